"""ESC-10 cross-validated over its folds: each is the test of trainings on all the others, from scratch, by the recipe for ambience.

    python benchmarks/esc10.py --data DATA/esc10 -o OUT [--seeds 0 1 2] [--device cuda]

The small network of `unipercept train`, trained by the trainer of `unipercept universal`, validation recordings included: nothing is
chosen while it runs. A test fold is judged once, after its training. One line a training, then a line over all; OUT keeps the weights.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unipercept.datasets.esc import ESC10
from unipercept.models import resolve_device
from unipercept.perception.packs import Packs, decode
from unipercept.perception.scores import wilson
from unipercept.perception.settings import RECIPES, SMALL, MapSettings, Recipe
from unipercept.perception.splits import open_parts
from unipercept.perception.universal import UniversalConfig, train_on_packs
from unipercept.perception.universal_data import TaskSpec

MAPS = MapSettings("audio", size=64, length=512)
STEPS = 1_350  # of 64 clips: 360 passes over three folds
FOLDS = (1, 2, 3, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {arguments.device}, torch {torch.__version__}")
    found: dict[int, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        for fold in FOLDS:
            parts, _ = open_parts("esc10", arguments.data, fold=str(fold))
            packs = {name: decode(part, MAPS) for name, part in parts.items()}
            folder = arguments.output / f"fold-{fold}-seed-{seed}"
            score = train_fold(packs, folder, seed=seed, device=resolve_device(arguments.device))
            found.setdefault(seed, []).append(score)
            print(f"seed {seed}, fold {fold}: {100 * score['accuracy']:.2f} % of {score['n']}", flush=True)
    for seed, scores in found.items():
        print(f"seed {seed}: {summary(scores)}")


def train_fold(
    packs: Mapping[str, Packs],
    output: Path,
    *,
    recipe: Recipe = RECIPES["ambience"],
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Train on the parts train and validation, judge test once: its scores."""
    output.mkdir(parents=True, exist_ok=True)
    task = TaskSpec("esc10", MAPS, recipe, recipe.batch_size)
    config = UniversalConfig(architecture=SMALL, steps=steps, seed=seed, drop_path=recipe.drop_path)
    facts = train_on_packs(
        [task],
        {"esc10": packs},
        {"esc10": ESC10.class_names},
        {"esc10": ESC10.licence},
        output,
        config,
        device,
        parts=("test",),
        all_train=True,
        tell=tell,
    )
    return dict(facts["scores"]["esc10"]["test"])


def summary(scores: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over all clips of the folds, with its interval."""
    count = sum(score["n"] for score in scores)
    hits = round(sum(score["accuracy"] * score["n"] for score in scores))
    low, high = wilson(hits, count)
    return f"{100 * hits / count:.2f} % of {count} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
