"""What embeddings are worth: nearest neighbours and linear probes of frozen vectors, compared with
baselines without a network.

Shapes: R recordings, D numbers of a vector, K classes, B batch, S side, N points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.datasets.base import LabelledSet
from unipercept.devices import resolve_device
from unipercept.errors import InputError
from unipercept.model_cards import model_card, model_of_set
from unipercept.models import load_model
from unipercept.perception.networks import fit_probe
from unipercept.perception.packs import MapMaker, Packs, decode, make_pipeline
from unipercept.perception.run import check_unseen, default_maps, modality_of
from unipercept.perception.scores import wilson
from unipercept.perception.series_statistics import series_statistics
from unipercept.perception.settings import MapSettings
from unipercept.perception.splits import open_parts, run_folder
from unipercept.perception.task import features_of

N_NEIGHBOURS = 5
N_COMPONENTS = 64  # of the principal components
HOG_CELL, HOG_BINS = 8, 9  # pixels and directions, Dalal and Triggs (2005)
COLOUR_LEVELS = 4  # of each of red, green and blue
CHUNK, QUERIES = 64, 1_000  # recordings at a time

Extractor = Callable[[Packs], Tensor]


def compare_vectors(
    model: str,
    source: str,
    *,
    data: str | Path | None = None,
    fold: str | None = None,
    limit: int | None = None,
    device: str = "auto",
) -> dict[str, dict[str, float]]:
    """Test accuracy of a model's frozen vectors and of the baselines on one set, by nearest
    neighbours and by linear probe.

    Penalties are chosen on validation; the test split is scored once. `universal` stands for its network that was
    trained on the set, else for that of the modality.

    Args:
        model: a name of `unipercept models`, a run's folder or a checkpoint.
        source: a folder of class folders, or a published set (then `data` is where it lies, `fold` its test fold).
        limit: use at most this many recordings of train, and of validation, drawn at random; test is always whole.

    Returns:
        Name to {"neighbours", "probe", "probe_95_low", "probe_95_high", "dim"}; the model's name comes first.

    Raises:
        InputError: no such set or model, a set without a test split, or one whose test split trained the model.
    """
    parts, _ = open_parts(source, data, fold=fold, run=run_folder(model))
    if "test" not in parts:
        raise InputError(f"{source} has no test split to compare on; it has {', '.join(parts)}")
    check_unseen(model, parts["test"])
    modality = modality_of(parts.values())
    return compare_parts(model_of_set(model, source, modality), parts, modality, limit=limit, device=device)


def compare_parts(
    model: str, parts: Mapping[str, LabelledSet], modality: str, *, limit: int | None = None, device: str = "auto"
) -> dict[str, dict[str, float]]:
    """`compare_vectors` of parts "train", "validation" and "test" that are there already."""
    card = model_card(model)
    own = bool(card.maps) and card.head_modality == modality
    maps = MapSettings.from_json(card.maps) if own else default_maps(parts["train"], modality)
    loaded = load_model(model, in_channels=maps.in_channels, device=device)
    where = resolve_device(device)
    packs = {
        name: decode(part if name == "test" else _spread(part, limit), maps).to(where) for name, part in parts.items()
    }
    extractors: dict[str, Extractor] = {card.name: lambda p: features_of(loaded.network, p, maps, where)}  # type: ignore[arg-type]
    extractors |= baselines(maps, packs["train"])
    if modality == "timeseries":  # of the series as read: their length is lost in the maps
        extractors["series statistics"] = lambda p: statistics_of(
            next(parts[name] for name, q in packs.items() if q is p), p
        )
    n_classes = len(parts["train"].card.class_names)
    return {name: _scored(extract, packs, n_classes) for name, extract in extractors.items()}


def _spread(part: LabelledSet, limit: int | None) -> LabelledSet:
    if limit is None or limit >= len(part):
        return part
    return part.subset(np.sort(np.random.default_rng(0).permutation(len(part))[:limit]))


def baselines(maps: MapSettings, train: Packs) -> dict[str, Extractor]:
    """Features of a modality without a network. Principal components are those of the training maps."""
    components = principal_components(_flat_maps(train, maps))
    found: dict[str, Extractor] = {
        "principal components of the map": lambda p: (_flat_maps(p, maps) - components[0]) @ components[1].T
    }
    if maps.modality == "audio":
        found["log-mel statistics"] = lambda p: _by_recording(p, lambda v, n: sound_statistics(MapMaker(maps), v, n))
    elif maps.modality == "pointcloud":
        found["geometric features"] = lambda p: _by_recording(p, lambda v, _: cloud_features(v))
    elif maps.modality in ("image", "video"):
        found["HOG"] = lambda p: _by_recording(p, lambda v, _: gradient_histograms(v.float()))
        found["colour histogram"] = lambda p: _by_recording(p, lambda v, _: colour_histogram(v))
    return found


def statistics_of(part: LabelledSet, packs: Packs) -> Tensor:
    """Rx32 of the series of a part that were decoded, averaged over the columns of each."""
    pipe = make_pipeline(MapSettings("timeseries"))
    places = {name: i for i, name in enumerate(part.ids)}
    rows = []
    for name in packs.ids:
        values = pipe.read(part.read(places[name])).values
        rows.append(np.mean([series_statistics(column) for column in values.T], axis=0))
    return torch.from_numpy(np.array(rows)).float()


def nearest_neighbours(
    train: Tensor, targets: Tensor, queries: Tensor, n_classes: int, k: int = N_NEIGHBOURS
) -> Tensor:
    """Classes of queries by votes of the k nearest in angle, each weighted by its
    similarity; standardised beforehand.
    """
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0).clamp(min=1e-6)
    archive, asked = (F.normalize((part - mean) / std, dim=1) for part in (train, queries))
    said = []
    for some in torch.split(asked, QUERIES):
        similarity, rows = (some @ archive.T).topk(min(k, len(train)), dim=1)
        votes = train.new_zeros(len(some), n_classes).scatter_add_(1, targets[rows], (similarity + 1) / 2)
        said.append(votes.argmax(dim=1))
    return torch.cat(said)


def sound_statistics(maker: MapMaker, samples: Tensor, lengths: Tensor) -> Tensor:
    """Bx4M: mean, deviation, least and greatest of each mel bin over the real frames."""
    energies, real = maker.energies(samples, lengths)
    inside = real[:, None, :]
    count = inside.sum(dim=2).clamp(min=1)
    mean = (energies * inside).sum(dim=2) / count
    std = (((energies - mean[:, :, None]) * inside).square().sum(dim=2) / count).sqrt()
    low = energies.masked_fill(~inside, float("inf")).amin(dim=2)
    high = energies.masked_fill(~inside, float("-inf")).amax(dim=2)
    return torch.cat([mean, std, low, high], dim=1)


def gradient_histograms(pixels: Tensor) -> Tensor:
    """Histograms of oriented gradients of Bx3xHxW: cells of 8x8, 9 unsigned directions, blocks of 2x2, L2-Hys.

    Source: Dalal and Triggs (2005).
    """
    grey = F.pad(pixels.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    x, y = grey[:, 0, 1:-1, 2:] - grey[:, 0, 1:-1, :-2], grey[:, 0, 2:, 1:-1] - grey[:, 0, :-2, 1:-1]
    strength, place = (x.square() + y.square()).sqrt(), torch.atan2(y, x) % torch.pi / torch.pi * HOG_BINS
    low = place.floor().long() % HOG_BINS
    share = place - place.floor()
    planes = F.one_hot(low, HOG_BINS) * (strength * (1 - share))[..., None]
    planes = planes + F.one_hot((low + 1) % HOG_BINS, HOG_BINS) * (strength * share)[..., None]
    cells = F.avg_pool2d(planes.permute(0, 3, 1, 2), HOG_CELL)
    blocks = F.unfold(cells, 2).transpose(1, 2)
    clipped = F.normalize(blocks, dim=2, eps=1e-3).clamp(max=0.2)
    return F.normalize(clipped, dim=2, eps=1e-3).flatten(1)


def colour_histogram(pixels: Tensor) -> Tensor:
    """Bx64 shares of the pixels in each of 4x4x4 colours."""
    levels = pixels.long() * COLOUR_LEVELS // 256
    colour = (levels[:, 0] * COLOUR_LEVELS + levels[:, 1]) * COLOUR_LEVELS + levels[:, 2]
    return F.one_hot(colour.flatten(1), COLOUR_LEVELS**3).float().mean(dim=1)


def cloud_features(points: Tensor) -> Tensor:
    """Bx16 of BxNx3: extents, spread along principal axes and their ratios, heights, distances from the middle.

    Source: the eigenvalue features of Weinmann et al. (2015), section 3.2, with sizes in the file's units.
    """
    centred = points - points.mean(dim=1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred / points.shape[1]
    values = torch.linalg.eigvalsh(covariance.double()).float().clamp(min=1e-12).flip(1)
    first, second, third = values.unbind(1)
    extent = points.amax(dim=1) - points.amin(dim=1)
    distance = centred.norm(dim=2)
    height = (points[:, :, 2] - points[:, :, 2].amin(dim=1, keepdim=True)) / extent[:, 2:].clamp(min=1e-9)
    shape = torch.stack([(first - second) / first, (second - third) / first, third / first], dim=1)
    spread = torch.stack([distance.mean(dim=1), distance.std(dim=1), distance.amax(dim=1)], dim=1).clamp(min=1e-9)
    heights = torch.stack([height.mean(dim=1), height.std(dim=1)], dim=1)
    flat = (extent[:, 0] * extent[:, 1]).clamp(min=1e-12).log()[:, None]
    volume = extent.clamp(min=1e-9).prod(dim=1).log()[:, None]
    return torch.cat([extent.clamp(min=1e-9).log(), values.log(), shape, spread.log(), heights, flat, volume], dim=1)


def principal_components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D) and the first components (CxD) of RxD. Seeded: torch's randomised SVD, Halko et al. (2011)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean = rows.mean(dim=0)
        _, _, v = torch.pca_lowrank(rows - mean, q=min(N_COMPONENTS, *rows.shape), center=False)
    return mean, v.T


def _scored(extract: Extractor, packs: Mapping[str, Packs], n_classes: int) -> dict[str, float]:
    vectors = {name: extract(part).float().to(part.targets.device) for name, part in packs.items()}
    targets = {name: part.targets for name, part in packs.items()}
    near = nearest_neighbours(vectors["train"], targets["train"], vectors["test"], n_classes)
    weight, bias, _ = fit_probe(
        vectors["train"], targets["train"], vectors["validation"], targets["validation"], n_classes
    )
    hits = int(((vectors["test"] @ weight.T + bias).argmax(dim=1) == targets["test"]).sum())
    low, high = wilson(hits, len(targets["test"]))
    return {
        "neighbours": float((near == targets["test"]).double().mean()),
        "probe": hits / len(targets["test"]),
        "probe_95_low": low,
        "probe_95_high": high,
        "dim": vectors["train"].shape[1],
    }


def _by_recording(packs: Packs, features: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Features of the items, averaged over each recording's."""
    chunks = zip(packs.values.split(CHUNK), packs.lengths.split(CHUNK), strict=True)  # type: ignore[no-untyped-call]
    found = torch.cat([features(values, lengths) for values, lengths in chunks])
    total = found.new_zeros(len(packs), found.shape[1]).index_add_(0, packs.recording, found)
    return total / torch.bincount(packs.recording, minlength=len(packs))[:, None]


def _flat_maps(packs: Packs, maps: MapSettings) -> Tensor:
    """Rx(C H W) of maps (their first view) shrunk to at most 32x32."""
    maker = MapMaker(maps)

    def flat(values: Tensor, lengths: Tensor) -> Tensor:
        made, _ = maker(values, lengths)
        size = min(32, made.shape[2]), min(32, made.shape[3])
        return F.adaptive_avg_pool2d(made[:: maker.n_views], size).flatten(1)

    return _by_recording(packs, flat)
