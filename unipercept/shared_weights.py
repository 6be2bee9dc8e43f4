"""Files with one backbone for several tasks, format `unipercept.universal/1`: each tensor is stored once; a
task can be extracted by itself.

Shared tensors have their own names, those of a task the prefix `task.NAME.`; the header holds each task's map settings,
classes, licences and scores. `unipercept universal` writes such files; one is shipped in data/.

`task.NAME.familiar.` holds the out-of-distribution statistics of a task (familiarity.py), which
`unipercept familiarity` measures after training.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from unipercept import weights
from unipercept.atomic import atomic_path
from unipercept.backbone import UniRepLKNet
from unipercept.errors import InputError, WeightsError
from unipercept.familiarity import Familiarity
from unipercept.reparam import reparameterize

FORMAT = "unipercept.universal/1"
FAMILIAR = "familiar."
SHIPPED = "universal.safetensors"
LARGEST_HEADER = 4_000_000  # bytes


def shipped_file() -> Path:
    """Path of the weights that ship with the package."""
    return Path(str(files("unipercept.data") / SHIPPED))


def read_facts(path: str | Path) -> dict[str, Any]:
    """The facts in the header; no tensor is read.

    Raises:
        WeightsError: not such a file.
    """
    try:
        with Path(path).open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > LARGEST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
        facts = json.loads(header.get("__metadata__", {}).get("unipercept", "{}"))
    except (OSError, ValueError, struct.error, AttributeError) as error:
        raise WeightsError(f"cannot read {path} as universal weights: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise WeightsError(f"{path} holds no universal weights of the format {FORMAT}")
    return facts


def task_facts(path: str | Path, task: str) -> Mapping[str, Any]:
    """The facts of one task.

    Raises:
        WeightsError: not such a file.
        InputError: no such task.
    """
    tasks = read_facts(path)["tasks"]
    if task not in tasks:
        raise InputError(f"{path} knows the tasks {', '.join(tasks)}; got {task!r}")
    found: Mapping[str, Any] = tasks[task]
    return found


@lru_cache(maxsize=2)
def _tensors(path: str, modified_ns: int) -> dict[str, Tensor]:
    return weights.read_checkpoint(path)


def task_state(path: str | Path, task: str) -> dict[str, Tensor]:
    """A task's state dict in single precision and training form, without its out-of-distribution statistics."""
    state, prefix = {}, f"task.{task}."
    for key, value in _tensors(str(path), Path(path).stat().st_mtime_ns).items():
        if key.startswith(prefix + FAMILIAR) or key == prefix + "centres":  # files of before familiarity
            continue
        if key.startswith(prefix):
            state[key.removeprefix(prefix)] = value
        elif not key.startswith("task."):
            state[key] = value
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def task_network(path: str | Path, task: str) -> UniRepLKNet:
    """A task's network in inference form.

    Raises:
        WeightsError: not such a file.
        InputError: no such task.
    """
    task_facts(path, task)
    return reparameterize(weights.build_from_state(task_state(path, task), str(path)).eval())


def familiarity(path: str | Path, task: str) -> Familiarity | None:
    """The out-of-distribution statistics of a task, if the file has them."""
    task_facts(path, task)
    prefix = f"task.{task}.{FAMILIAR}"
    found = {
        key.removeprefix(prefix): value
        for key, value in _tensors(str(path), Path(path).stat().st_mtime_ns).items()
        if key.startswith(prefix)
    }
    return Familiarity.from_tensors(found) if found else None


def set_familiarity(path: str | Path, found: Mapping[str, Familiarity]) -> None:
    """Replace the out-of-distribution statistics of some tasks in the file. Weights stay as they are.

    Raises:
        WeightsError: not such a file.
        InputError: no such task.
    """
    for task in found:
        task_facts(path, task)
    facts = read_facts(path)
    kept = {
        key: value
        for key, value in weights.read_checkpoint(path).items()
        if not any(key.startswith((f"task.{task}.{FAMILIAR}", f"task.{task}.centres")) for task in found)
    }
    for task, one in found.items():
        kept |= {f"task.{task}.{FAMILIAR}{name}": value.contiguous() for name, value in one.tensors().items()}
    with atomic_path(Path(path)) as temporary:
        save_file(kept, temporary, metadata={"unipercept": json.dumps(facts)})


def head_text(facts: Mapping[str, Any], task: str) -> dict[str, str]:
    """Words for a card: trained on, licence, metric, limits."""
    about, score = facts["tasks"][task], facts["scores"].get(task, {})
    part = "test" if "test" in score else "validation"
    metric = "none"
    if score:
        low, high = (100 * score[part][f"accuracy_95_{end}"] for end in ("low", "high"))
        metric = (
            f"{100 * score[part]['accuracy']:.2f} % accuracy on {score[part]['n']} {part} recordings "
            f"(95 % interval {low:.1f} to {high:.1f})"
        )
    return {
        "trained_on": f"{task}, jointly with {', '.join(name for name in facts['tasks'] if name != task)}",
        "data_licence": "; ".join(f"{name}: {other['licence']}" for name, other in facts["tasks"].items()),
        "metric": metric,
        "limits": f"recognises the {len(about['labels'])} classes of {task} only",
    }
