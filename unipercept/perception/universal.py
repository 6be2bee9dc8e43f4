"""One set of weights for pictures, sounds, clips and clouds: a shared backbone, a stem a modality, a norm and head a task.

A step trains one task, drawn with probability proportional to (its recordings) ** (1 / temperature). Batch norms share
their weights but keep statistics for each modality (`per_modality_statistics`), since a log-mel and a rendering have little
in common; what that is worth is measured by switching it off. With one task the same code trains the specialist, so that
the cost or gain of sharing is a number.

The file holds each tensor once: what all tasks share under its own name, what differs under `task.NAME.`; weights in half
precision, statistics in single. `extract` gives any task's plain network back.

Shapes: B maps, C channels, H rows, W columns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unipercept import weights
from unipercept.atomic import atomic_path
from unipercept.backbone import UniRepLKNet
from unipercept.errors import InputError, WeightsError
from unipercept.models import resolve_device
from unipercept.perception.networks import from_scratch
from unipercept.perception.packs import Packs, decode
from unipercept.perception.run import Task, judge
from unipercept.perception.scores import Scores, pooled
from unipercept.perception.settings import RECIPES, MapSettings, Recipe
from unipercept.perception.splits import open_parts
from unipercept.reparam import reparameterize
from unipercept.train import parameter_groups, seed_everything

FORMAT = "unipercept.universal/1"
EMA_DECAY = 0.999
LARGEST_BYTES = 12_000_000
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class TaskSpec:
    """A set in the joint training. `weight` scales its loss; `folder` is where it lies below the data folder."""

    name: str
    maps: MapSettings
    recipe: Recipe
    batch_size: int
    folder: str = ""
    fold: str | None = None
    weight: float = 1.0


# Only sets whose licence is stated and allows weights to be given away.
TASKS = (
    TaskSpec(
        "fashion_mnist",
        MapSettings("image", size=56),
        RECIPES["image"].changed(random_augment=1, magnitude=3, mixup=0.1, cutmix=0.2),
        256,
        "fashion_mnist",
    ),
    TaskSpec("fsdd", MapSettings("audio", size=64, length=96, sample_rate=8_000), RECIPES["audio"], 128, "fsdd"),
    TaskSpec("esc10", MapSettings("audio", size=64, length=512), RECIPES["audio"], 48, "esc10", fold="1"),
    TaskSpec("shapes3d", MapSettings("pointcloud"), RECIPES["pointcloud"].changed(turn="all"), 48),
    TaskSpec("camera_motion", MapSettings("video"), RECIPES["video"], 32, ""),
)


@dataclass(frozen=True)
class UniversalConfig:
    """How the shared network trains."""

    architecture: str = "unireplknet_a"
    steps: int = 6_000
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 300
    drop_path: float = 0.1
    temperature: float = 4.0
    per_modality_statistics: bool = True
    seed: int = 0


def train_universal(
    data: str | Path,
    pictures: str | Path,
    output: str | Path,
    *,
    config: UniversalConfig = UniversalConfig(),
    only: Sequence[str] = (),
    device: str = "auto",
    judge_test: bool = False,
    tell: Callable[[str], object] = lambda line: None,
    tasks: Sequence[TaskSpec] = TASKS,
) -> dict[str, Any]:
    """Train on all tasks together (or on those in `only`: a specialist), judge each, write weights, card and scores.

    Args:
        data: folder that holds the sets' folders.
        pictures: folder of pictures and videos for camera_motion.
        judge_test: also judge the test splits; once, when tuning on validation is done.

    Raises:
        InputError: an unknown task, or a set that is not where it should be.
    """
    chosen = [task for task in tasks if not only or task.name in only]
    if not chosen or len(chosen) < len(set(only)):
        raise InputError(f"tasks are {', '.join(task.name for task in tasks)}; got {', '.join(only)}")
    output, where = Path(output), resolve_device(device)
    output.mkdir(parents=True, exist_ok=True)
    packs, classes, licences = _prepare(chosen, Path(data), Path(pictures), output, tell)
    seed_everything(config.seed)
    shared = SharedNetwork(chosen, {name: len(names) for name, names in classes.items()}, config).to(where)
    started = time.monotonic()
    _train(shared, chosen, packs, config, where, tell)
    seconds = time.monotonic() - started
    parts = ("validation", "test") if judge_test else ("validation",)
    scores = {task.name: _judge(shared, task, packs[task.name], parts, where) for task in chosen}
    facts = {
        "format": FORMAT,
        "config": asdict(config),
        "tasks": {
            t.name: {"maps": asdict(t.maps), "labels": classes[t.name], "licence": licences[t.name]} for t in chosen
        },
        "scores": scores,
        "training_seconds": seconds,
    }
    size = save_universal(shared, chosen, facts, output / "universal.safetensors")
    with atomic_path(output / "universal.json") as temporary:
        temporary.write_text(json.dumps({**facts, "bytes": size}, indent=1) + "\n")
    with atomic_path(output / "universal.md") as temporary:
        temporary.write_text(card_text(facts, size))
    for name, found in scores.items():
        tell(f"{name}: " + ", ".join(f"{part} {100 * score['accuracy']:.2f} %" for part, score in found.items()))
    tell(f"{size:,} bytes, {config.steps / max(seconds, 1e-9):.1f} steps/s")
    return facts


class SharedNetwork(nn.Module):
    """The trunk with its stems, norms and heads; `of(task)` shows one task's network, made of the same tensors."""

    def __init__(self, tasks: Sequence[TaskSpec], n_classes: Mapping[str, int], config: UniversalConfig) -> None:
        super().__init__()
        recipe = Recipe(architecture=config.architecture, drop_path=config.drop_path)
        first = from_scratch(recipe, tasks[0].maps.in_channels, n_classes[tasks[0].name])
        networks: dict[str, UniRepLKNet] = {}
        stems: dict[str, nn.Module] = {tasks[0].maps.modality: first.downsample_layers[0]}
        for task in tasks:
            own = from_scratch(recipe, task.maps.in_channels, n_classes[task.name])
            for i in range(1, 4):
                own.downsample_layers[i] = first.downsample_layers[i]
            own.stages = first.stages
            own.downsample_layers[0] = stems.setdefault(task.maps.modality, own.downsample_layers[0])
            networks[task.name] = own
        self.networks = nn.ModuleDict(networks)
        self.modalities = {task.name: task.maps.modality for task in tasks}
        self._norms = [module for module in first.stages.modules() if isinstance(module, nn.BatchNorm2d)]
        keys = set(self.modalities.values()) if config.per_modality_statistics else {""}
        self._statistics: dict[str, list[dict[str, Tensor]]] = {
            key: [{name: norm._buffers[name].clone() for name in STATISTICS} for norm in self._norms]  # type: ignore[union-attr]
            for key in keys
        }

    def of(self, name: str) -> UniRepLKNet:
        """A task's network with its modality's statistics in place, on the device of the weights."""
        modality = self.modalities[name]
        key = modality if modality in self._statistics else ""
        for norm, own in zip(self._norms, self._statistics[key], strict=True):
            for buffer, value in own.items():
                own[buffer] = norm._buffers[buffer] = value.to(norm.weight.device)
        found = self.networks[name]
        assert isinstance(found, UniRepLKNet)
        return found


def save_universal(shared: SharedNetwork, tasks: Sequence[TaskSpec], facts: Mapping[str, Any], path: Path) -> int:
    """Write every tensor once; the number of bytes.

    Raises:
        WeightsError: the file would exceed 12 MB.
    """
    from safetensors.torch import save_file

    states = {}
    for task in tasks:
        state = {key: value.detach().cpu().clone() for key, value in shared.of(task.name).state_dict().items()}
        states[task.name] = {
            k: v.half() if v.is_floating_point() and "running" not in k else v for k, v in state.items()
        }
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
    if total > LARGEST_BYTES:
        raise WeightsError(f"the universal weights would take {total:,} bytes; at most {LARGEST_BYTES:,} are shipped")
    with atomic_path(path) as temporary:
        save_file(content, temporary, metadata={"unipercept": json.dumps(dict(facts))})
    return path.stat().st_size


def extract(path: str | Path, task: str, output: str | Path) -> Path:
    """One task's network out of a universal file, in inference form, as a file that perceive, encode and train take.

    Raises:
        WeightsError: not a universal file.
        InputError: no such task.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("unipercept", "{}"))
            content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path} as universal weights: {error}") from error
    if facts.get("format") != FORMAT:
        raise WeightsError(f"{path} holds no universal weights of the format {FORMAT}")
    if task not in facts["tasks"]:
        raise InputError(f"{path} knows the tasks {', '.join(facts['tasks'])}; got {task!r}")
    prefix = f"task.{task}."
    state = {key: value for key, value in content.items() if not key.startswith("task.")}
    state |= {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}
    network = weights.build_from_state(
        {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, str(path)
    )
    about, score = facts["tasks"][task], facts["scores"].get(task, {})
    part = "test" if "test" in score else "validation"
    metric = (
        f"{100 * score[part]['accuracy']:.2f} % accuracy on {score[part]['n']} {part} recordings" if score else "none"
    )
    weights.save_weights(
        reparameterize(network.eval()),
        output,
        {
            "labels": about["labels"],
            "modality": about["maps"]["modality"],
            "maps": json.dumps(about["maps"]),
            "trained_on": f"{', '.join(facts['tasks'])}, jointly; head of {task}",
            "data_licence": "; ".join(f"{name}: {other['licence']}" for name, other in facts["tasks"].items()),
            "metric": metric,
            "limits": f"knows the {len(about['labels'])} classes of {task} and says one of them of anything",
        },
    )
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
    return (
        f"# universal: one backbone for {len(facts['tasks'])} sets\n\n"
        f"{config['architecture']}, {size:,} bytes, {config['steps']} steps, seed {config['seed']}, "
        f"{'own' if config['per_modality_statistics'] else 'shared'} norm statistics by modality, "
        f"{facts['training_seconds']:.0f} s of training.\n\n"
        "| set | modality | split | recordings | accuracy % | 95 % interval |\n| --- | --- | --- | ---: | ---: | --- |\n"
        + "\n".join(rows)
        + f"\n\nEvery recording once, views and windows averaged.\n\n## Licences of the data\n\n{licences}\n\n"
        f"## Again\n\n    unipercept universal --data DATA --pictures PICTURES -o OUT --steps {config['steps']} "
        f"--seed {config['seed']} {only}\n"
    )


def _prepare(
    tasks: Sequence[TaskSpec], data: Path, pictures: Path, output: Path, tell: Callable[[str], object]
) -> tuple[dict[str, dict[str, Packs]], dict[str, list[str]], dict[str, str]]:
    packs: dict[str, dict[str, Packs]] = {}
    classes, licences = {}, {}
    (output / "cache").mkdir(exist_ok=True)
    for task in tasks:
        folder = pictures if task.name == "camera_motion" else data / task.folder
        parts, how = open_parts(task.name, folder, fold=task.fold)
        card = parts["train"].card
        if not card.may_train:
            raise InputError(f"weights that are given away may not be trained on {task.name} (licence: {card.licence})")
        classes[task.name], licences[task.name] = list(card.class_names), card.licence
        packs[task.name] = {}
        for part, samples in parts.items():
            started = time.monotonic()
            cache = output / "cache" / f"{task.name}-{part}-{task.fold or ''}.safetensors"
            packs[task.name][part] = _cached(cache, samples, task.maps)
            tell(f"{task.name} {part}: {len(samples):,} recordings ({how}), {time.monotonic() - started:.1f} s")
    return packs, classes, licences


def _cached(cache: Path, samples: Any, maps: MapSettings) -> Packs:
    """Decoded recordings from the cache, if they were made of the same names with the same settings."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    key = json.dumps([maps.to_json(), list(samples.ids)])
    if cache.is_file():
        with safe_open(str(cache), framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                values, lengths = file.get_tensor("values"), file.get_tensor("lengths")
                return Packs(values, lengths, file.get_tensor("recording"), file.get_tensor("targets"), samples.ids)
    made = decode(samples, maps)
    if not made.skipped:
        found = {"values": made.values, "lengths": made.lengths, "recording": made.recording, "targets": made.targets}
        with atomic_path(cache) as temporary:
            save_file(found, temporary, metadata={"key": key})
    return made


def _train(
    shared: SharedNetwork,
    tasks: Sequence[TaskSpec],
    packs: Mapping[str, Mapping[str, Packs]],
    config: UniversalConfig,
    device: torch.device,
    tell: Callable[[str], object],
) -> None:
    """AdamW on one task a step; at the end the weights are their moving average, the statistics those of the last steps."""
    rng = np.random.default_rng(config.seed)
    jobs = {
        t.name: Task(
            packs[t.name]["train"], packs[t.name]["validation"], t.maps, t.recipe, shared.of(t.name).num_classes, device
        )
        for t in tasks
    }
    sizes = np.array([jobs[task.name].n_train for task in tasks], float) ** (1 / config.temperature)
    optimizer = torch.optim.AdamW(parameter_groups(shared, config.weight_decay), lr=config.learning_rate)
    parameters = list(shared.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    shared.train()
    for step in range(config.steps):
        task = tasks[int(rng.choice(len(tasks), p=sizes / sizes.sum()))]
        job = jobs[task.name]
        rows = torch.from_numpy(rng.choice(job.n_train, min(task.batch_size, job.n_train), replace=False))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = task.weight * job.loss(shared.of(task.name), (rows.to(device),))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)
        if step % 200 == 0 or step == config.steps - 1:
            tell(f"step {step} of {config.steps}: {task.name} loss {float(loss.detach()):.3f}")
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)


def _rate(step: int, config: UniversalConfig) -> float:
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    return float(0.5 * (1 + np.cos(np.pi * share)))


def _judge(
    shared: SharedNetwork, task: TaskSpec, packs: Mapping[str, Packs], parts: Sequence[str], device: torch.device
) -> dict[str, Any]:
    found = {}
    for part in parts:
        if part in packs:
            logits, share, owners = judge(shared.of(task.name), packs[part], task.maps, device)
            found[part] = Scores(pooled(logits, share, owners, len(packs[part])), packs[part].targets).to_dict()
    return found
