"""A run: recordings in, a folder with a model, its settings, its split, its scores and a report out.

    run.json          settings, classes, maps, recipe, versions: what reproduces the run
    split.json        which recording was in which part
    skipped.json      recordings that could not be decoded
    fit/              metrics.csv, last.pt (to resume), best.pt
    model.safetensors the model in inference form, calibrated; `perceive --model RUN` uses it
    familiar.safetensors out-of-distribution statistics, for the notices of `perceive`
    scores.json       accuracy and calibration, with split and protocol
    report.html       the same for people

Shapes: I items, R recordings, V views, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unipercept.atomic import atomic_path
from unipercept.backbone import UniRepLKNet
from unipercept.datasets.base import LabelledSet
from unipercept.devices import resolve_device
from unipercept.errors import InputError, UniperceptError, as_text
from unipercept.familiarity import save_beside
from unipercept.model_cards import UNIVERSAL, fingerprint, model_card, model_for
from unipercept.perception.measure_familiarity import N_LOOKED_AT, familiarity_of, spread
from unipercept.perception.networks import (
    FrozenBackbone,
    build_network,
    fit_probe,
    layer_groups,
    scale_head,
    set_head,
    sizes_of,
)
from unipercept.perception.packs import Packs, check_skipped, decode, sound_settings
from unipercept.perception.scores import Scores, best_temperature, pooled
from unipercept.perception.settings import MODALITIES, RECIPES, MapSettings, Recipe, Tuning
from unipercept.perception.splits import check_unchanged, n_that_trained, open_parts, record, run_folder
from unipercept.perception.task import Task, logits_of
from unipercept.perception.universal_data import TASKS
from unipercept.pipelines.detect import detect_modality
from unipercept.reparam import reparameterize
from unipercept.train import Progress, fit, load_checkpoint, seed_everything
from unipercept.train.checkpoint import LAST
from unipercept.versions import versions
from unipercept.weights import save_weights

RUN_FILE, MODEL_FILE, SCORES_FILE, SKIPPED_FILE = "run.json", "model.safetensors", "scores.json", "skipped.json"
CHECKPOINT = f"fit/{LAST}"  # to resume from

KINDS = {"esc10": "ambience", "esc50": "ambience"}  # sets that another recipe than their modality's suits

Tell = Callable[[str], object]


@dataclass(frozen=True)
class RunSummary:
    """The result of a run."""

    folder: Path
    scores: Mapping[str, Any]  # by part: not of the training part
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def train_run(
    source: str,
    output: str | Path,
    *,
    data: str | Path | None = None,
    fold: str | None = None,
    recipe: Recipe | None = None,
    maps: MapSettings | None = None,
    start: str | None = None,
    tuning: Tuning = "full",
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    max_bad_share: float = 0.1,
    overrides: Mapping[str, Any] | None = None,
    map_overrides: Mapping[str, Any] | None = None,
    names: tuple[str, str] | None = None,
    tell: Tell = lambda line: None,
    on_decode: Callable[[int, int], object] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunSummary:
    """Train a classifier on a folder of class folders or a published set, evaluate it, and write the run's folder.

    Args:
        source: a folder, or a name of `LABELLED_SETS` (then `data` is where it lies).
        fold: the test fold, of a set with folds.
        recipe, maps: None for the defaults of the modality (for ESC-10 and ESC-50 the recipe `ambience`); `overrides`
            and `map_overrides` change single settings.
        start: weights to start from; None is from scratch.
        tuning: "full", "head" (backbone frozen, head trained with augmentation) or "linear" (probe of frozen features).
        resume: continue a stopped run in `output`; the result is that of an uninterrupted run.
        max_bad_share: recordings that may fail to decode; they are listed in skipped.json.
        device, seed: where it trains; of the split, the weights and the batches.
        tell: called with a line on each stage.
        on_decode: called with how many recordings have been decoded, and of how many.
        on_progress: called after each update.
        names: shown in place of `source` and `output` in the run's files, for callers with private temporary folders.

    Raises:
        InputError: settings, folder or recordings that cannot be used; one line says why.
        DivergedError: the loss is no longer finite.
    """
    output = Path(output)
    if tuning != "full" and start is None:
        raise InputError(
            f"tuning {tuning!r} keeps the backbone as it is and needs one that was trained: name it with --from"
        )
    if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
        raise InputError(f"{output} lies in {source}, where it would count as a class; name a folder outside of it")
    if _has_learned(output) and not resume:
        raise InputError(f"{output} holds a run already; add --resume to go on with it, or name another folder")
    chosen_device = resolve_device(device)
    parts, how = open_parts(source, data, fold=fold, seed=seed, start=run_folder(start) if start else None)
    if start is not None and "test" in parts and (seen := n_seen(start, parts["test"])):
        how += f"; {seen} of the {len(parts['test'])} test recordings trained {start}, so the test score is too high"
    modality = modality_of(parts.values())
    if maps is None and start is not None and tuning != "full":  # a frozen backbone sees what it was trained on
        maps = _maps_of(start, modality)
    maps = replace(maps or default_maps(parts["train"], modality), **(map_overrides or {}))
    recipe = (recipe or default_recipe(KINDS.get(source, modality), chosen_device)).changed(
        seed=seed, **(overrides or {})
    )
    if start is None:
        sizes_of(recipe.architecture)  # an unknown one raises before everything is decoded
    called, folder_called = map(as_text, names or (source, str(output)))
    job = _job(called, data, how, parts, maps, recipe, start, tuning)
    if resume and _has_learned(output):
        check_unchanged(parts, output)
    _prepare(output, job, resume)
    record(parts, how, output)
    tell(f"{modality}: {', '.join(f'{len(part):,} {name}' for name, part in parts.items())}; {how}")
    packs = _decode_all(parts, maps, max_bad_share, on_decode, output)
    tell(f"decoded; training {start or recipe.architecture} ({tuning}) on {chosen_device}")
    network = _trained(packs, maps, recipe, job, output, start, tuning, chosen_device, resume, on_progress)
    tell("trained; evaluating it and writing the report")
    return _finish(network, packs, parts, maps, job, output, folder_called, chosen_device)


def modality_of(parts: Iterable[LabelledSet], *, n_looked_at: int = 200) -> str:
    """The modality of a set: by its card, or by the content of a sample of its files.

    Raises:
        InputError: files of several modalities, or of none that trains.
    """
    found: dict[str, str] = {}
    for samples in parts:
        if samples.card.modality:
            return samples.card.modality
        for position in np.linspace(0, len(samples) - 1, min(n_looked_at, len(samples))).astype(int):
            path = samples.read(int(position))
            try:
                found.setdefault(detect_modality(path), str(path))
            except UniperceptError:  # a damaged file is listed when it is decoded
                continue
    source = samples.card.source
    if not found:
        raise InputError(f"none of the files looked at in {source} is a recording of a known kind")
    if len(found) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        raise InputError(
            f"{source} mixes modalities: {one} is {first}, {other} is {second}; train one modality at a time"
        )
    return next(iter(found))


def default_maps(samples: LabelledSet, modality: str) -> MapSettings:
    """Maps of the modality; those of sounds follow their length and rate."""
    if modality != "audio":
        return MapSettings(modality)
    return sound_settings(samples)


def _maps_of(start: str, modality: str) -> MapSettings | None:
    """The maps that a model was trained on, if it says so and they are of the modality."""
    card = model_card(model_for(start, modality))
    return MapSettings.from_json(card.maps) if card.maps and card.head_modality == modality else None


def default_recipe(kind: str, device: torch.device) -> Recipe:
    """The recipe of a modality, or `ambience`.

    With an accelerator the former uses UniRepLKNet-A; otherwise, as in `ambience`, the network is the small one.
    """
    recipe = RECIPES.get(kind)
    if recipe is None:
        raise InputError(f"classifiers are trained on {', '.join(MODALITIES)}; got {kind!r}")
    if device.type == "cpu" or kind == "ambience":
        return recipe
    return recipe.changed(architecture="unireplknet_a", batch_size=64)


def _job(
    source: str,
    data: str | Path | None,
    how: str,
    parts: Mapping[str, LabelledSet],
    maps: MapSettings,
    recipe: Recipe,
    start: str | None,
    tuning: str,
) -> dict[str, Any]:
    card = parts["train"].card
    return {
        "format": "unipercept.run/1",
        "source": source,
        "data": None if data is None else str(data),
        "split": how,
        "licence": card.licence,
        "protocol": card.protocol,
        "class_names": list(card.class_names),
        "counts": {name: len(part) for name, part in parts.items()},
        "maps": asdict(maps),
        "recipe": asdict(recipe),
        "start": start,
        "start_weights": None if start is None else fingerprint(start),
        "tuning": tuning,
        "versions": versions(),
    }


def _has_learned(output: Path) -> bool:
    """Whether a folder holds anything that a new run would destroy: one that was stopped while it decoded does not."""
    return any((output / name).exists() for name in (CHECKPOINT, MODEL_FILE))


def _prepare(output: Path, job: dict[str, Any], resume: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    if resume and _has_learned(output):
        before = read_run(output)
        different = sorted(
            key for key in job.keys() & before.keys() - {"versions"} if json.loads(json.dumps(job[key])) != before[key]
        )
        if different:
            raise InputError(
                f"{output} was started with other settings ({', '.join(different)}); repeat those to resume"
            )
    with atomic_path(output / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(job, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_run(folder: str | Path) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        InputError: the folder holds no run.
    """
    try:
        content = json.loads((Path(folder) / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no run of `unipercept train`; expected {RUN_FILE} in it") from error
    return dict(content)


def _decode_all(
    parts: Mapping[str, LabelledSet],
    maps: MapSettings,
    max_bad_share: float,
    on_decode: Callable[[int, int], object] | None,
    output: Path,
) -> dict[str, Packs]:
    total, before = sum(len(part) for part in parts.values()), 0
    packs = {}
    for name, part in parts.items():
        if not len(part):
            continue
        offset = before
        step = None if on_decode is None else (lambda done, offset=offset: on_decode(offset + done, total))
        packs[name] = decode(part, maps, max_bad_share=1.0, on_sample=step)
        before += len(part)
    check_skipped([pair for pack in packs.values() for pair in pack.skipped], total, max_bad_share)
    skipped = [{"recording": name, "error": error} for pack in packs.values() for name, error in pack.skipped]
    with atomic_path(output / SKIPPED_FILE) as temporary:
        temporary.write_text(json.dumps(skipped, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return packs


def _trained(
    packs: Mapping[str, Packs],
    maps: MapSettings,
    recipe: Recipe,
    job: Mapping[str, Any],
    output: Path,
    start: str | None,
    tuning: str,
    device: torch.device,
    resume: bool,
    on_progress: Callable[[Progress], None] | None,
) -> UniRepLKNet:
    seed_everything(recipe.seed)
    n_classes = len(job["class_names"])
    network = build_network(recipe, maps, n_classes, start).to(device)
    if tuning == "linear":
        probe(network, packs, maps, n_classes, device)
        return network
    model: nn.Module = FrozenBackbone(network) if tuning == "head" else network
    task = Task(packs["train"], packs["validation"], maps, recipe, n_classes, device)
    ahead = device.type == "cuda"  # launching the kernels one by one takes longer than running them
    fit(
        model,
        None,
        task.training_positions(),
        loss=task.loss,
        config=task.config(str(device), run_ahead=ahead),
        run_dir=output / "fit",
        resume=resume,
        validation=task.validation_positions(),
        metrics=task.metrics,
        groups=layer_groups(model, recipe),
        on_progress=on_progress,
    )
    best = load_checkpoint(output / "fit" / "best.pt")["model"]
    model.load_state_dict(best)
    return network


def probe(
    network: UniRepLKNet, packs: Mapping[str, Packs], maps: MapSettings, n_classes: int, device: torch.device
) -> None:
    """Fit a linear probe on a network's frozen features and make it the head."""
    network.reset_classifier(0)
    found = {}
    for name in ("train", "validation"):
        features, _, recording = logits_of(network, packs[name], maps, device)
        found[name] = features, packs[name].targets[recording]
    weight, bias, _ = fit_probe(*found["train"], *found["validation"], n_classes)
    set_head(network, weight, bias)


def _finish(
    network: UniRepLKNet,
    packs: Mapping[str, Packs],
    parts: Mapping[str, LabelledSet],
    maps: MapSettings,
    job: dict[str, Any],
    output: Path,
    called: str,
    device: torch.device,
) -> RunSummary:
    """Calibrate on validation, evaluate on test (on validation if there is none), export, and write the report."""
    from unipercept.perception.report import write_report

    validation = packs["validation"]
    logits, weights, owners = logits_of(network, validation, maps, device)
    temperature = best_temperature(logits, weights, owners, validation.targets)
    raw = {"validation": pooled(logits, weights, owners, len(validation))}
    scale_head(network, temperature)
    by_part = {"validation": Scores(pooled(logits, weights, owners, len(validation), temperature), validation.targets)}
    if "test" in packs:
        test = packs["test"]
        logits, weights, owners = logits_of(network, test, maps, device)
        by_part["test"] = Scores(pooled(logits, weights, owners, len(test)), test.targets)
        raw["test"] = pooled(logits * temperature, weights, owners, len(test))
    scores: dict[str, Any] = {
        "temperature": temperature,
        "protocol": "every recording once, views and windows averaged",
    }
    for name, found in by_part.items():
        before = Scores(raw[name], found.targets)
        scores[name] = {**found.to_dict(), "expected_calibration_error_before": before.calibration_error()}
    _export(network, packs, job, scores, output, device)
    with atomic_path(output / SCORES_FILE) as temporary:
        temporary.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    name = "test" if "test" in by_part else "validation"
    before = Scores(raw[name], by_part[name].targets)
    write_report(output, called, job, scores, name, by_part[name], before, packs[name], parts[name], maps)
    skipped = tuple(pair for pack in packs.values() for pair in pack.skipped)
    return RunSummary(output, scores, tuple(job["class_names"]), skipped)


def _export(
    network: UniRepLKNet,
    packs: Mapping[str, Packs],
    job: Mapping[str, Any],
    scores: Mapping[str, Any],
    output: Path,
    device: torch.device,
) -> None:
    part = "test" if "test" in scores else "validation"
    found = scores[part]
    folded = network if network.deploy else reparameterize(network.cpu().eval())
    train, validation = (spread(packs[name], count) for name, count in N_LOOKED_AT.items())
    usual = familiarity_of(folded.to(device), train, validation, MapSettings(**job["maps"]), device)
    save_beside(output / MODEL_FILE, usual)
    save_weights(
        folded.cpu(),
        output / MODEL_FILE,
        {
            "labels": job["class_names"],
            "modality": job["maps"]["modality"],
            "maps": json.dumps(job["maps"]),
            "trained_on": f"{job['source']}, {job['counts']['train']} recordings ({job['split']})"
            + (f", from {job['start']} (weights {job['start_weights'][:16]})" if job["start"] else ""),
            "data_licence": job["licence"],
            "metric": f"{100 * found['accuracy']:.2f} % accuracy on {found['n']} {part} recordings "
            f"(95 % interval {100 * found['accuracy_95_low']:.1f} to {100 * found['accuracy_95_high']:.1f})",
            "limits": f"recognises {len(job['class_names'])} classes only; recordings that are out of distribution get a notice; seed {job['recipe']['seed']}",
        },
    )


def n_seen(model: str, samples: LabelledSet) -> int:
    """How many of the samples trained a model or chose its weights, as far as a run's record or the fold of
    `universal` says.
    """
    card = model_card(model)
    if card.name != UNIVERSAL and not card.task:
        return n_that_trained(run_folder(model), samples)
    fold = next((task.fold for task in TASKS if task.name == samples.card.name), None)
    return len(samples) if fold and samples.split.startswith("fold-") and samples.split != f"fold-{fold}" else 0


def check_unseen(model: str, test: LabelledSet) -> None:
    """Refuse a test split that trained the model.

    Raises:
        InputError: it holds recordings that did.
    """
    seen = n_seen(model, test)
    if seen:
        raise InputError(
            f"{seen} of the {len(test)} recordings of {test.card.name}, {test.split}, trained {model}; leave out --fold "
            "to evaluate it on the fold that it has not seen"
        )
