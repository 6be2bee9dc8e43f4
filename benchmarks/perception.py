"""The shipped `universal` weights on the test splits of its sets, and how it tells the strange from the familiar.

    python benchmarks/perception.py --data DATA --pictures PICTURES [--sets fsdd esc10] [--limit 2000]

For each set: accuracy of its head on the test split (every recording once, views and windows averaged, single precision), its
calibration error, and the share of recordings that are called strange: of its own test split (few should be), and of the
other sets of the modality (most should be). Sets that lie in no folder of DATA are passed over.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch

from unipercept.datasets.base import LabelledSet
from unipercept.errors import UniperceptError, one_line
from unipercept.models import MODELS, Model, load_model
from unipercept.perception.packs import decode
from unipercept.perception.scores import Scores, pooled
from unipercept.perception.settings import MapSettings
from unipercept.perception.splits import open_parts
from unipercept.perception.task import features_of, judge

FOLDS = {"esc10": "1"}  # the fold that `universal` was not trained on
STRANGERS = {"audio": ("fsdd", "esc10"), "pointcloud": ("shapes3d", "things3d", "dales_objects", "bimnet10")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=[card.task for card in MODELS.values() if card.task])
    parser.add_argument("--limit", type=int, help="at most so many test recordings of a set")
    arguments = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    print("| head | recordings | n | accuracy % | 95 % interval | calibration error | called strange % | s |")
    print("| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for name in arguments.sets:
        card = MODELS[f"universal.{name}"]
        maps = MapSettings.from_json(card.maps)
        model = load_model(card.name, in_channels=maps.in_channels)
        others = [other for other in STRANGERS.get(maps.modality, ()) if other != name]
        for source in (name, *others):
            try:
                print(_row(model, maps, name, source, arguments), flush=True)
            except UniperceptError as error:
                print(f"| {name} | {source} | {one_line(error)} |")


def _row(model: Model, maps: MapSettings, name: str, source: str, arguments: argparse.Namespace) -> str:
    started = time.monotonic()
    packs = decode(_test(source, arguments), maps)
    assert model.familiarity is not None
    vectors = features_of(model.network, packs, maps, model.device)  # type: ignore[arg-type]
    strange = float((model.familiarity.strangeness(vectors) > 1).double().mean())
    known = ["", "", ""]
    if source == name:
        logits, weights, owners = judge(model.network, packs, maps, model.device)
        scores = Scores(pooled(logits, weights, owners, len(packs)), packs.targets)
        low, high = scores.interval()
        known = [
            f"{100 * scores.accuracy:.2f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{scores.calibration_error():.3f}",
        ]
    seconds = time.monotonic() - started
    return f"| {name} | {source} | {len(packs)} | {' | '.join(known)} | {100 * strange:.1f} | {seconds:.0f} |"


def _test(source: str, arguments: argparse.Namespace) -> LabelledSet:
    folder = arguments.pictures if source == "camera_motion" else arguments.data / source
    test = open_parts(source, folder, fold=FOLDS.get(source))[0]["test"]
    if arguments.limit is None or arguments.limit >= len(test):
        return test
    return test.subset(np.linspace(0, len(test) - 1, arguments.limit).astype(int))


if __name__ == "__main__":
    main()
