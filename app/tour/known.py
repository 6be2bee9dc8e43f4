"""Recordings whose truth is known, drawn here by the rules of generated sets that the default model was trained on, and what it says of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unipercept.api import perceive
from unipercept.datasets.base import LabelledSet
from unipercept.datasets.processes import processes
from unipercept.datasets.shapes3d import shapes3d
from unipercept.datasets.synthetic import write_ply
from unipercept.datasets.things3d import things3d
from unipercept.model_cards import MODELS, UNIVERSAL
from unipercept.results import Labels

SETS: dict[str, Callable[..., LabelledSet]] = {"shapes3d": shapes3d, "things3d": things3d, "processes": processes}
PER_SET = 4
SEED = 2026  # of no training, validation or test recording: those are of seed 0


class Answer(NamedTuple):
    """What a head said of one recording. `score` is its probability; `notice` is there where it calls the recording strange."""

    path: Path
    head: str
    truth: str
    said: str
    score: float
    notice: str


def ask(folder: Path, seed: int = SEED) -> list[Answer]:
    """Write `PER_SET` recordings of different classes of each set into `folder` and have each perceived.

    Their proportions and lengths are those of the test splits, which no training recording has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, make in SETS.items():
        if f"{UNIVERSAL}.{name}" not in MODELS:
            continue
        drawn = make(split="test", per_class=1, seed=seed)
        for position in np.random.default_rng(seed).choice(len(drawn), PER_SET, replace=False).tolist():
            truth = drawn.card.class_names[int(drawn.targets[position])]
            path = _write(folder / f"{name}-{truth.replace(' ', '-')}", drawn[position].input)
            result = perceive(path, model=f"{UNIVERSAL}.{name}", device="cpu")
            assert isinstance(result, Labels)
            notice = str(result.metadata.get("notice", ""))
            found.append(Answer(path, result.model, truth, result.labels[0], result.scores[0], notice))
    return found


def _write(stem: Path, recording: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]") -> Path:
    """Points as .ply, steps as .csv."""
    if recording.shape[1] == 3:
        write_ply(path := stem.with_suffix(".ply"), recording)
    else:
        np.savetxt(path := stem.with_suffix(".csv"), recording, header="value", comments="", fmt="%.9g")
    return path
