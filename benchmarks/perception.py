"""The shipped `universal` weights on the test splits of its sets, and which recordings it calls out of distribution.

    python benchmarks/perception.py --data DATA --pictures PICTURES [--sets fsdd esc10] [--limit 2000]
                                    [--unrelated FOLDER ...]

For each set: accuracy of its head on the test split (every recording once, views and windows averaged, single
precision; of pictures also each and its mirror image together), its calibration error, and the share of recordings that
are flagged: of its own test split (few should be), and of the other sets of the modality and of the files in the
folders of UNRELATED (most should be). To the head of series also everyday ones (datasets/everyday.py; few should be
flagged), and sounds and pictures read as series, sample by sample and row by row (most should be). Sets that lie in no
folder of DATA are passed over.
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.datasets.everyday import everyday
from unipercept.datasets.processes import LONGEST
from unipercept.errors import UniperceptError, one_line
from unipercept.model_cards import MODELS
from unipercept.models import Model, load_model
from unipercept.perception.measure_familiarity import familiar_views, spread
from unipercept.perception.packs import decode
from unipercept.perception.scores import Scores, pooled
from unipercept.perception.settings import MapSettings
from unipercept.perception.splits import open_parts
from unipercept.perception.task import logits_of
from unipercept.perception.universal import MIRRORED
from unipercept.pipelines.detect import detect_modality

FOLDS = {"esc10": "1"}  # the fold that `universal` was not trained on
UNRELATED = {
    "audio": ("fsdd", "esc10"),
    "pointcloud": ("shapes3d", "things3d", "dales_objects", "bimnet10"),
    "timeseries": ("everyday", "fsdd", "esc10", "fashion_mnist"),
}
EVERYDAY_A_KIND, READ_AS_SERIES = 60, 150  # series


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--unrelated", type=Path, nargs="*", default=[], help="folders of files of one modality each")
    parser.add_argument("--sets", nargs="*", default=[card.task for card in MODELS.values() if card.task])
    parser.add_argument("--limit", type=int, help="at most so many test recordings of a set")
    arguments = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    print("| head | recordings | n | accuracy % | 95 % interval | calibration error | flagged % | s |")
    print("| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for name in arguments.sets:
        card = MODELS[f"universal.{name}"]
        maps = MapSettings.from_json(card.maps)
        model = load_model(card.name, in_channels=maps.in_channels)
        others = [other for other in UNRELATED.get(maps.modality, ()) if other != name]
        folders = [str(folder) for folder in arguments.unrelated if _modality(folder) == maps.modality]
        for source in (name, *others, *folders):
            try:
                for row in _rows(model, maps, name, source, arguments):
                    print(row, flush=True)
            except UniperceptError as error:
                print(f"| {name} | {source} | {one_line(error)} |")


def _rows(model: Model, maps: MapSettings, name: str, source: str, arguments: argparse.Namespace) -> list[str]:
    started = time.monotonic()
    packs = decode(_test(source, maps.modality, arguments), maps, max_bad_share=0.5)
    assert model.familiarity is not None
    views = familiar_views(model.network, packs, maps, model.device)
    flagged = f"{100 * float((model.familiarity.ood_score(*views) > 1).double().mean()):.1f}"
    if source != name:
        return [f"| {name} | {Path(source).name} | {len(packs)} | | | | {flagged} | {time.monotonic() - started:.0f} |"]
    votes = {"": 1, ", mirrored too": 2} if maps.modality == "image" else {"": 1}
    rows = []
    for kind, count in votes.items():
        logits, weights, owners = logits_of(model.network, packs, maps, model.device, votes=count, recipe=MIRRORED)
        scores = Scores(pooled(logits, weights, owners, len(packs)), packs.targets)
        low, high = (f"{100 * bound:.1f}" for bound in scores.interval())
        known = f"{100 * scores.accuracy:.2f} | {low} to {high} | {scores.calibration_error():.3f}"
        seconds = time.monotonic() - started
        rows.append(
            f"| {name} | {source} test{kind} | {len(packs)} | {known} | {flagged if count == 1 else ''} | {seconds:.0f} |"
        )
    return rows


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _modality(folder: Path) -> str:
    return detect_modality(_files(folder)[0])


def _as_series(samples: LabelledSet) -> LabelledSet:
    """Some of the sounds or pictures as series of at most 4,096 steps: samples from the loudest
    on, rows one behind the other.
    """

    def read(position: int) -> NDArray[np.float64]:
        found = chosen.read(position)
        if samples.card.modality == "image":
            return np.asarray(found[:, :, 0], np.float64).reshape(-1, 1)
        first = max(0, int(np.abs(found.samples).argmax()) - 1_000)
        return np.asarray(found.samples[first : first + LONGEST], np.float64)[:, None]

    chosen = spread(samples, READ_AS_SERIES)
    return replace(chosen, card=replace(samples.card, modality="timeseries"), read=read)


def _test(source: str, modality: str, arguments: argparse.Namespace) -> LabelledSet:
    if Path(source) in arguments.unrelated:
        paths = _files(Path(source))
        card = SetCard(source, _modality(Path(source)), source, "", False, ("",), ("all",), "", "")
        return LabelledSet(card, "all", np.zeros(len(paths), np.int64), tuple(p.name for p in paths), paths.__getitem__)
    if source == "everyday":
        return everyday("test", EVERYDAY_A_KIND)
    folder = arguments.pictures if source == "camera_motion" else arguments.data / source
    test = open_parts(source, folder, fold=FOLDS.get(source))[0]["test"]
    if modality == "timeseries" != test.card.modality:
        return _as_series(test)
    if arguments.limit is None or arguments.limit >= len(test):
        return test
    return test.subset(np.linspace(0, len(test) - 1, arguments.limit).astype(int))


if __name__ == "__main__":
    main()
