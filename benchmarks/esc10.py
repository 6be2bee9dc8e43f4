"""ESC-10 cross-validated over its folds: each is the test of trainings on all the others, from
scratch, by the recipe for ambience.

    python benchmarks/esc10.py --data DATA/esc10 -o OUT [--seeds 0 1 2] [--vote] [--device cuda]

The small network of `unipercept train`, trained by the trainer of `unipercept universal`, validation recordings
included: nothing is chosen while it runs. A test fold is evaluated once after each training, by both protocols: each
clip once; and, after the norms' statistics were re-estimated on clips that are not mixed, by ten votes.
`RECIPES_OF_FOLDS` says what trains for each test fold: what did best on validation among the other three
(results/perception.md has the figures). One line a training, two over the folds of each seed; with `--vote` two more,
of the mean of all seeds' probabilities. OUT keeps the weights, and what it has already is only evaluated.

Shapes: R recordings, K classes.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from unipercept.backbone import UniRepLKNet
from unipercept.datasets.esc import ESC10
from unipercept.devices import resolve_device
from unipercept.perception.packs import Packs, decode, joined
from unipercept.perception.scores import Scores, pooled
from unipercept.perception.settings import RECIPES, SMALL, MapSettings, Recipe
from unipercept.perception.splits import open_parts
from unipercept.perception.task import Task, logits_of, recompute_statistics
from unipercept.perception.universal import UniversalConfig, train_on_packs
from unipercept.perception.universal_data import TaskSpec
from unipercept.shared_weights import task_state
from unipercept.train import seed_everything
from unipercept.weights import build_from_state

AMBIENCE = RECIPES["ambience"]
# What long trainings bear: greater changes of speed, and two clips of a class at once. In
# trainings half as long it harms.
WIDE = AMBIENCE.changed(stretch=1.5, within=0.5)
WIDE_UNMASKED = WIDE.changed(frequency_mask=0.0, time_mask=0.0, drop_path=0.0)
RECIPES_OF_FOLDS = {1: WIDE, 2: AMBIENCE, 3: WIDE_UNMASKED, 4: WIDE}
MAPS = MapSettings("audio", size=64, length=512)
STEPS = 2_700  # of 64 clips: 720 passes over three folds
VOTES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", "-o", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--vote", action="store_true", help="also evaluate the mean of all seeds' probabilities")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {arguments.device}, torch {torch.__version__}")
    said: dict[tuple[str, int], list[Tensor]] = {}
    targets = []
    for fold, recipe in RECIPES_OF_FOLDS.items():
        parts, _ = open_parts("esc10", arguments.data, fold=str(fold))
        packs = {name: decode(part, MAPS) for name, part in parts.items()}
        targets.append(packs["test"].targets)
        for seed in arguments.seeds:
            folder = arguments.output / f"fold-{fold}-seed-{seed}"
            found = train_fold(packs, folder, recipe, seed=seed, device=resolve_device(arguments.device))
            shown = []
            for protocol, probabilities in found.items():
                said.setdefault((protocol, seed), []).append(probabilities)
                shown.append(f"{protocol} {100 * Scores(probabilities, targets[-1]).accuracy:.2f} %")
            print(f"seed {seed}, fold {fold}, {len(targets[-1])} clips: {'; '.join(shown)}", flush=True)
    for (protocol, seed), folds in said.items():
        print(f"seed {seed}, {protocol}: {summary(Scores(torch.cat(folds), torch.cat(targets)))}")
    for protocol in dict.fromkeys(protocol for protocol, _ in said) if arguments.vote else ():
        voted = torch.stack([torch.cat(said[protocol, seed]) for seed in arguments.seeds]).mean(dim=0)
        print(f"{len(arguments.seeds)} seeds vote, {protocol}: {summary(Scores(voted, torch.cat(targets)))}")


def train_fold(
    packs: Mapping[str, Packs], output: Path, recipe: Recipe, *, steps: int = STEPS, seed: int = 0, device: torch.device
) -> dict[str, Tensor]:
    """Train on the parts train and validation, where `output` holds no weights yet; protocol
    to RxK probabilities of test.
    """
    weights_file = output / "universal.safetensors"
    if weights_file.is_file():
        return evaluate_fold(packs, weights_file, recipe, device)
    output.mkdir(parents=True, exist_ok=True)
    spec = TaskSpec("esc10", MAPS, recipe, recipe.batch_size)
    config = UniversalConfig(architecture=SMALL, steps=steps, seed=seed, drop_path=recipe.drop_path)
    names, licences = {"esc10": ESC10.class_names}, {"esc10": ESC10.licence}
    train_on_packs([spec], {"esc10": packs}, names, licences, output, config, device, parts=(), all_train=True)
    return evaluate_fold(packs, weights_file, recipe, device)


def evaluate_fold(
    packs: Mapping[str, Packs], weights_file: Path, recipe: Recipe, device: torch.device
) -> dict[str, Tensor]:
    """Protocol to RxK probabilities of test, by a file that `train_fold` wrote."""
    seed_everything(0)
    network = build_from_state(task_state(weights_file, "esc10")).to(device)
    once = _heard(network, packs["test"], 1, recipe, device)
    train = joined(packs["train"], packs["validation"])
    recompute_statistics(network, Task(train, packs["validation"], MAPS, recipe, len(ESC10.class_names), device))
    return {"once": once, f"re-estimated, {VOTES} votes": _heard(network, packs["test"], VOTES, recipe, device)}


def _heard(network: UniRepLKNet, test: Packs, votes: int, recipe: Recipe, device: torch.device) -> Tensor:
    logits, shares, owners = logits_of(
        network, test, MAPS, device, votes=votes, recipe=recipe, half=device.type == "cuda"
    )
    return pooled(logits, shares, owners, len(test))


def summary(scores: Scores) -> str:
    """Accuracy with its interval."""
    low, high = scores.interval()
    return f"{100 * scores.accuracy:.2f} % of {len(scores.targets)} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
