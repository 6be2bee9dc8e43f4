"""Scores of a model on a set: of its test part, of another part, or of a folder.

Shapes: R recordings, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unipercept import shared_weights
from unipercept.datasets.base import LabelledSet
from unipercept.errors import InputError
from unipercept.model_cards import ModelCard, model_card, model_of_set
from unipercept.perception.packs import decode
from unipercept.perception.run import MODEL_FILE, RUN_FILE, check_unseen, modality_of, n_seen, read_run
from unipercept.perception.scores import Scores, pooled
from unipercept.perception.settings import MapSettings, Recipe
from unipercept.perception.splits import open_parts, run_folder
from unipercept.perception.task import logits_of


def evaluate_run(
    run: str | Path,
    source: str,
    *,
    data: str | Path | None = None,
    fold: str | None = None,
    split: str = "test",
    votes: int = 1,
    device: str = "auto",
    on_decode: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Scores of a model on a set: on its test part, or on all of a folder of class folders (split "all").

    Args:
        run: a run's folder, or a model whose card says how recordings become its maps: a checkpoint of `train`, or one
            of the tasks of `universal` (which itself stands for its network that was trained on the set).
        source, data, fold: as of `train_run`.
        split: "test", another part of the set, or "all".
        votes: test-time augmentation: versions of each recording whose outputs are averaged, the original and others
            augmented by the recipe of the run or of the task of `universal`.
        on_decode: called with how many recordings have been decoded, and of how many.

    Raises:
        InputError: no run or model, no such set, a test split that trained the model, classes that it does not know,
            or votes below 1 or of a model without a recipe.
    """
    from unipercept.datasets.folders import class_folders
    from unipercept.models import load_model

    model_card(str(run))  # an unknown model is reported before anything about the set
    recipe = _recipe_of(run) if Path(run).is_dir() else None
    if votes < 1:
        raise InputError(f"votes must be at least 1, got {votes}")
    if split == "all":
        samples, how = class_folders(source), "all recordings of the folder"
    else:
        parts, how = open_parts(source, data, fold=fold, seed=recipe.seed if recipe else 0, run=run_folder(run))
        if split not in parts:
            raise InputError(f"{source} has the parts {', '.join(parts)}; got {split!r}: choose one of them (--split)")
        samples = parts[split]
    if split == "test":
        check_unseen(str(run), samples)
    elif seen := n_seen(str(run), samples):
        how += f"; {seen} of these {len(samples)} trained the model or chose its weights, so the score is too high"
    card = model_card(model_of_set(str(run), source, modality_of([samples])))
    names = card.labels()
    if names is None or not card.maps:
        raise InputError(
            f"{card.name} does not say how recordings become its maps and what its classes are; give a run"
        )
    recipe = recipe or _recipe_of_task(card)
    if votes > 1 and recipe is None:
        raise InputError(
            f"{card.name} does not say how recordings may be augmented, so they cannot vote {votes} times; give a run"
        )
    samples, maps = _in_terms_of(samples, names), MapSettings.from_json(card.maps)
    step = None if on_decode is None else (lambda done: on_decode(done, len(samples)))
    packs = decode(samples, maps, on_sample=step)
    model = load_model(card.name, in_channels=maps.in_channels, device=device)
    logits, weights, owners = logits_of(model.network, packs, maps, model.device, votes=votes, recipe=recipe)
    scores = Scores(pooled(logits, weights, owners, len(packs)), packs.targets)
    return {
        "source": source,
        "split": split,
        "parts": how,
        "protocol": f"every recording once, views and windows averaged, {votes} vote{'s' if votes > 1 else ''}",
        **scores.to_dict(),
        "per_class": {name: row for name, row in zip(names, scores.per_class(), strict=True) if row["support"]},
        "skipped": [list(pair) for pair in packs.skipped],
    }


def _recipe_of(run: str | Path) -> Recipe:
    try:
        return Recipe(**read_run(run)["recipe"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{Path(run) / RUN_FILE} holds no recipe as this version writes it ({error}); evaluate {Path(run) / MODEL_FILE}, "
            "or train again"
        ) from error


def _recipe_of_task(card: ModelCard) -> Recipe | None:
    """The augmentation recipe of a task of `universal`."""
    if not card.task:
        return None
    return Recipe(**shared_weights.task_facts(shared_weights.shipped_file(), card.task)["recipe"])


def _in_terms_of(samples: LabelledSet, class_names: tuple[str, ...]) -> LabelledSet:
    """The set with its targets numbered as the model numbers its classes."""
    unknown = sorted(set(samples.card.class_names) - set(class_names))
    if unknown:
        raise InputError(f"the model does not know the class {unknown[0]!r}; it knows {', '.join(class_names[:12])} …")
    order = np.array([class_names.index(name) for name in samples.card.class_names])
    return replace(samples, targets=order[samples.targets])
