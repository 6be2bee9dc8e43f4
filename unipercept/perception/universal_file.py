"""The file of the shared network, extraction of one task's network from it, and its card.

It holds each tensor once: what all tasks share under its own name, what differs under `task.NAME.`; weights in half
precision, statistics in single.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unipercept import shared_weights, weights
from unipercept.atomic import atomic_path
from unipercept.errors import WeightsError
from unipercept.perception.universal_data import setting_words

if TYPE_CHECKING:
    from unipercept.perception.universal_network import SharedNetwork

LARGEST_BYTES = 12_000_000


def save_universal(shared: SharedNetwork, facts: Mapping[str, Any], path: Path) -> None:
    """Write every tensor once.

    Raises:
        WeightsError: the file of several tasks would exceed 12 MB.
    """
    from safetensors.torch import save_file

    states = {}
    for task in shared.networks:
        state = {key: value.detach().cpu().clone() for key, value in shared.of(task).state_dict().items()}
        states[task] = {k: v.half() if v.is_floating_point() and "running" not in k else v for k, v in state.items()}
    first = next(iter(states.values()))
    common = {
        key
        for key, value in first.items()
        if all(key in s and s[key].shape == value.shape and torch.equal(s[key], value) for s in states.values())
    }
    content = {key: first[key].contiguous() for key in common}
    for name, state in states.items():
        content |= {f"task.{name}.{key}": value.contiguous() for key, value in state.items() if key not in common}
    total = sum(value.numel() * value.element_size() for value in content.values())
    if len(states) > 1 and total > LARGEST_BYTES:
        raise WeightsError(f"the universal weights would take {total:,} bytes; at most {LARGEST_BYTES:,} are shipped")
    with atomic_path(path) as temporary:
        save_file(content, temporary, metadata={"unipercept": json.dumps(dict(facts))})


def extract(path: str | Path, task: str, output: str | Path) -> Path:
    """One task's network out of a universal file, in inference form, as a file that perceive, encode and train take.

    Raises:
        WeightsError: not a universal file.
        InputError: no such task.
    """
    network, facts = shared_weights.task_network(path, task), shared_weights.read_facts(path)
    about = facts["tasks"][task]
    own = {"labels": about["labels"], "modality": about["maps"]["modality"], "maps": json.dumps(about["maps"])}
    weights.save_weights(network, output, {**own, **shared_weights.head_text(facts, task)})
    return Path(output)


def card_text(facts: Mapping[str, Any], size: int) -> str:
    """The model card."""
    rows = []
    for name, about in facts["tasks"].items():
        for part, score in facts["scores"][name].items():
            interval = f"{100 * score['accuracy_95_low']:.1f} to {100 * score['accuracy_95_high']:.1f}"
            rows.append(
                f"| {name} | {about['maps']['modality']} | {part} | {score['n']} | {100 * score['accuracy']:.2f} | {interval} |"
            )
    licences = "\n".join(f"- {name}: {about['licence']}" for name, about in facts["tasks"].items())
    only = " ".join(f"--only {name}" for name in facts["tasks"])
    config = facts["config"]
    voted = any("mirrored" in part for score in facts["scores"].values() for part in score)
    again = "" if config["architecture"] == "unireplknet_a" else f" --architecture {config['architecture']}"
    start = " --start BEFORE/universal.safetensors" if facts.get("before") else ""
    start += f" --keep {config['kept']}" if config.get("kept") else ""
    again += f" --drop-path {config['drop_path']:g}{' --all' if facts['all_train'] else ''}"
    words = (
        word for name, about in facts["tasks"].items() for word in setting_words(name, about["maps"], about["recipe"])
    )
    again += "".join(f" --set {word}" for word in dict.fromkeys(words))
    return (
        f"# universal: one backbone for {len(facts['tasks'])} sets\n\n"
        f"{config['architecture']}, {size:,} bytes, {facts['steps']} steps, seed {config['seed']}, "
        f"{'own norm statistics for each task' if config['own_statistics'] else 'norm statistics shared by all tasks'}, "
        f"{facts['training_seconds']:.0f} s of training{_earlier_text(facts)} (torch {facts['versions']['torch']})"
        f"{'; trained on the validation recordings too, so without out-of-distribution notices' if facts['all_train'] else ''}.\n\n"
        "| set | modality | split | recordings | accuracy % | 95 % interval |\n| --- | --- | --- | ---: | ---: | --- |\n"
        + "\n".join(rows)
        + f"\n\nEvery recording once, views and windows averaged{'; mirrored too: a picture and its mirror image, averaged' if voted else ''}."
        + f"\n\n## Licences of the data\n\n{licences}\n\n"
        f"## Again\n\n    unipercept universal --data DATA --pictures PICTURES -o OUT --steps {facts['steps']} "
        f"--seed {config['seed']} --learning-rate {config['learning_rate']:g}{again} {only}{start}\n"
    )


def _earlier_text(facts: Mapping[str, Any]) -> str:
    before = facts.get("before")
    return f", after {before['steps']} steps and {before['training_seconds']:.0f} s of another" if before else ""
