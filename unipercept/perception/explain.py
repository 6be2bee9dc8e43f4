"""The evidence for a label: integrated gradients on the input's own axes.

Not Grad-CAM: it points at places in a late stage, into which kernels of 13 cells and squeeze-and-excitation carry what
lies all over the map. Taking out what it marks changes a label hardly more than taking out blocks at random
(benchmarks/results/perception.md).

Shapes: B maps of one recording, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from unipercept.atomic import atomic_path
from unipercept.axis_words import frequency_ticks, readable
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, NoTrainedHeadError, printable
from unipercept.kernels.dispatch import plain_reference
from unipercept.results.drawing import plain_figure, title_with_notice, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unipercept.pipelines.base import Pipeline
    from unipercept.results import Labels

SHOWN_MAPS = 4
N_STEPS = 8  # from the blurred map to the map: the result of 48 correlates with that of 8 to 0.99
BLUR = 1 / 8  # deviation of the blur, in shorter sides of the map
SMOOTHING = 2.0  # deviation in cells: the parts of one edge of the input count together
CELLS_AT_ONCE = 1 << 17  # of maps in a pass with gradients
# Threads that build graphs on the same weights at once can stand still for ever: torch 2.13 holds a weight's lock while
# it waits for Python's, and the other way round.
_GRAPHS = threading.Lock()
SEEN_BY_EYE = ("image", "video", "pointcloud")  # drawn with cells as high as wide


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the evidence for a class lies.

    Args:
        heat: BxHxW from 0 to 1, at the resolution of the map: how much each place adds to the log-odds of the class,
            compared with a blurred map. The strongest place is 1 unless nothing speaks for the class; 0 is for what
            speaks against it, too.
        emap: what the network saw.
        label, score: the class explained, and its probability.
        notice: set if the recording is out of distribution for the model: label and evidence are then meaningless.
    """

    heat: Tensor
    emap: EmbeddingMap
    label: str
    score: float
    source: str
    notice: str = ""

    def peaks(self) -> dict[str, tuple[float, str]]:
        """By axis: the physical position of the strongest place over all maps, and its unit."""
        return {
            name: (float(axis.values[position]), axis.unit)
            for (name, axis), position in zip(self.emap.coords.items(), self._places(), strict=True)
        }

    def _places(self) -> list[int]:
        """The strongest place, as a position along each axis."""
        _, row, column = self._strongest()
        return [row if axis.dim == "H" else column for axis in self.emap.coords.values()]

    def _strongest(self) -> tuple[int, int, int]:
        """Map, row and column of the strongest place."""
        number, row, column = np.unravel_index(int(self.heat.flatten().argmax()), tuple(self.heat.shape))
        return int(number), int(row), int(column)

    def _of(self, number: int) -> str:
        """Which of several maps: the variable of a series, the view of a cloud."""
        names = self.emap.metadata.get("variables", ())
        if number < len(names):
            return f" of {names[number]}"
        count = len(self.heat)
        return f" in view {number + 1} of {count}" if self.emap.modality == "pointcloud" and count > 1 else ""

    def to_text(self) -> str:
        """A line with the class and the place of its strongest evidence; a second one if there is a notice."""
        axes = [(name, readable(self.emap, name)) for name in self.emap.coords]
        places = ", ".join(
            f"{name} {axis.text(position)} {axis.unit}".rstrip()
            for (name, axis), position in zip(axes, self._places(), strict=True)
        )
        line = f"{printable(self.source)}: {self.label} ({self.score:.1%}); "
        if self.heat.any():
            line += f"strongest evidence at {places or 'no axis'}{printable(self._of(self._strongest()[0]))}"
        else:
            line += "no place speaks more for it than a blurred version does"
        return f"{line}\n  {self.notice}" if self.notice else line

    def plot(self) -> Figure:
        """The first maps, each beside itself in grey with its heat, from yellow to red."""
        count = min(len(self.heat), SHOWN_MAPS)
        figure = plain_figure((6.0, 2.6 * count))  # small: its words are read on a phone too
        axes = figure.subplots(count, 2, squeeze=False)
        origin: Any = "lower" if self.emap.modality == "audio" else "upper"  # low frequencies at the bottom
        aspect: Any = "equal" if self.emap.modality in SEEN_BY_EYE else "auto"
        frames = self.emap.metadata.get("n_frames_in_map", 1) if self.emap.metadata.get("folding") == "stack" else 1
        saw = "what it saw" if frames == 1 else f"what it saw: the first of {frames} frames"
        for i in range(count):
            of = self._of(i)
            picture = np.asarray(_three_channels(self.emap).to_image(i))
            heat = self.heat[i].numpy()
            # In grey and pale, since colours would hide the heat; where there is none it is transparent.
            grey = picture.reshape(*heat.shape, -1)[..., :3].mean(axis=2)
            axes[i, 0].imshow(picture, aspect=aspect, origin=origin)
            axes[i, 1].imshow(grey, cmap="gray", vmin=-255, vmax=255, aspect=aspect, origin=origin)
            axes[i, 1].imshow(heat, cmap="autumn_r", alpha=heat**0.5, vmin=0, vmax=1, aspect=aspect, origin=origin)
            for column, title in enumerate((saw + of, f"evidence for {self.label}")):
                if not i or of:  # else each row would say the same
                    axes[i, column].set_title(title, fontsize="medium")
                _write_axes(axes[i, column], self.emap)
        title = f"{printable(Path(self.source).name)}: {self.label}, {self.score:.1%}; evidence: integrated gradients"
        figure.suptitle(title_with_notice(title, self.notice), fontsize="medium")
        return figure

    def save(self, path: str | Path) -> Path:
        """Write the picture (.png), atomically."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise InputError(f"an explanation is written as .png, got {path.name}")
        with atomic_path(path) as temporary:
            write_figure(self.plot(), temporary, dpi=175)
        return path


def explain_file(
    path: str | Path,
    model: str,
    *,
    label: str | None = None,
    device: str = "auto",
    on_progress: Callable[[float], object] | None = None,
) -> Explanation:
    """The evidence for a label of a recording, in the window or segment where the label is most probable.

    Label, probability and notice are those of the whole recording, as `perceive` returns them.

    Args:
        on_progress: called with the share of the gradients that are done.

    Raises:
        NoTrainedHeadError: the model has no head.
        InputError: the recording cannot be read, or `label` is none of the model's classes.
    """
    from unipercept.encode_chunk import make_pipeline
    from unipercept.model_cards import UNIVERSAL, model_card, model_for
    from unipercept.models import load_model
    from unipercept.pipelines.detect import detect_modality

    if model_card(model).name == UNIVERSAL:
        model = model_for(model, detect_modality(path))
    card = model_card(model)
    if card.head_modality is None:
        raise NoTrainedHeadError(f"model {model!r} has no trained head; there is no class to explain")
    _classes(model, label)
    pipe = make_pipeline(card.head_modality, card)

    def maps() -> Iterator[EmbeddingMap]:
        for emap in pipe.maps(path):
            channels = emap.tensor.shape[1]
            pipe.model = load_model(model, in_channels=channels, device=device)  # kept, not loaded each time
            yield emap

    named = name_pieces(pipe, maps(), source=str(path))
    return explain_named(named, pipe, path, model, label=label, device=device, on_progress=on_progress)


@dataclass(frozen=True, eq=False)
class NamedPieces:
    """A recording of P pieces, named.

    Args:
        vector: D, of the whole recording.
        first: map of the first piece.
        probabilities: PxK of each piece, in the order of the head's classes, weighted by its share of real input.
    """

    labels: Labels
    vector: Tensor
    first: EmbeddingMap
    probabilities: Tensor


def name_pieces(pipe: Pipeline[Any], maps: Iterable[EmbeddingMap], *, source: str = "") -> NamedPieces:
    """As `Pipeline.name`, with the probabilities in each piece: evidence is shown where a label is most probable."""
    from unipercept.pipelines.base import HeadOutputs, predict_batch
    from unipercept.pipelines.batches import Batches

    whole = HeadOutputs()

    class Piece(HeadOutputs):
        """Its own probabilities alone; batches go by shape, so that maps need not come back in their order."""

        def add(self, parts: tuple[Tensor, ...], share: float) -> None:
            whole.add(parts, share)
            super().add((parts[1],), share)

    batches, pieces = Batches(predict_batch), list[Piece]()
    for emap in maps:
        whole.expect(emap)
        pieces.append(Piece())
        batches.add((pipe,), (pieces[-1],), emap)
    batches.flush()
    labels, vector = pipe.conclude(whole, source=source)
    assert whole.first is not None
    return NamedPieces(labels, vector, whole.first, torch.stack([piece.totals[0] for piece in pieces]))


def explain_named(
    named: NamedPieces,
    pipe: Pipeline[Any],
    path: str | Path,
    model: str,
    *,
    label: str | None = None,
    device: str = "auto",
    on_progress: Callable[[float], object] | None = None,
) -> Explanation:
    """As `explain_file`, of a recording that was named already."""
    labels = named.labels
    label = labels.labels[0] if label is None else label
    piece = int(named.probabilities[:, _classes(model, label).index(label)].argmax())
    chosen = named.first if piece == 0 else next(islice(pipe.maps(path), piece, None))
    found = explain_map(chosen, model, label=label, device=device, source=str(path), on_progress=on_progress)
    score, notice = labels.scores[labels.labels.index(label)], str(labels.metadata.get("notice", ""))
    return replace(found, score=score, notice=notice)


def explain_map(
    emap: EmbeddingMap,
    model: str,
    *,
    label: str | None = None,
    device: str = "auto",
    source: str = "",
    on_progress: Callable[[float], object] | None = None,
) -> Explanation:
    """As `explain_file`, of a map that the model's own pipeline has made.

    Args:
        emap: BxCxHxW, the windows or views of one recording.
        label: a class name; None for the most probable class.
        source: what the picture is titled with.
        on_progress: called with the share of the gradients that are done.

    Raises:
        NoTrainedHeadError: the model has no classes.
        InputError: `label` is none of them.
    """
    from unipercept.models import load_model

    names = _classes(model, label)
    loaded = load_model(model, in_channels=emap.tensor.shape[1], device=device)
    index = None if label is None else names.index(label)
    heat, found, score = evidence(loaded.network, emap.to(loaded.device), index, on_progress)
    return Explanation(heat, emap, names[found], score, source)


def _classes(model: str, label: str | None) -> tuple[str, ...]:
    """The classes of a model, `label` among them."""
    from unipercept.model_cards import model_card

    names = model_card(model).labels()
    if names is None:
        raise NoTrainedHeadError(f"model {model!r} has no trained head; there is no class to explain")
    if label is not None and label not in names:
        raise InputError(
            f"the model's classes are {', '.join(names[:12])}{' …' if len(names) > 12 else ''}; got {label!r}"
        )
    return names


def evidence(
    network: nn.Module,
    emap: EmbeddingMap,
    index: int | None = None,
    on_progress: Callable[[float], object] | None = None,
) -> tuple[Tensor, int, float]:
    """Integrated gradients of a class's log-odds over the maps of one recording: heat BxHxW on the CPU, the class (by
    default the most probable), and its probability averaged over the maps.

    The path leads from each map blurred to the map itself. What belongs together is added up: the channels of a cell,
    and the cells around it. Padding is left as it is and has no evidence.

    Source: Sundararajan et al. (2017), Axiomatic Attribution for Deep Networks, equation 3; the blurred baseline is
    that of Fong and Vedaldi (2017).
    """
    with _GRAPHS, torch.inference_mode(False), torch.no_grad():
        maps, shares = emap.tensor.clone(), emap.real_share().to(emap.tensor.device)
        real = torch.ones_like(maps[:, :1]) if emap.mask is None else emap.mask[:, None].to(maps)
        probability = (
            shares / shares.sum().clamp(min=1e-12) @ torch.cat([network(few).softmax(dim=1) for few in _chunks(maps)])
        )
        found = int(probability.argmax()) if index is None else index
        change = (maps - _blurred(maps, real, BLUR * min(maps.shape[2:]))) * real
        slope = torch.zeros_like(maps)
        for step in range(N_STEPS):
            to_go = (N_STEPS - step - 0.5) / N_STEPS
            slope += torch.cat([_slope(network, few, found) for few in _chunks(maps - to_go * change)])
            if on_progress:
                on_progress((step + 1) / N_STEPS)
        heat = (slope * change).sum(dim=1, keepdim=True)
        heat = (_blurred(heat, real, SMOOTHING) * real)[:, 0].clamp(min=0)
        return (heat / heat.amax().clamp(min=1e-12)).cpu(), found, float(probability[found])


def _chunks(maps: Tensor) -> tuple[Tensor, ...]:
    return torch.split(maps, max(1, CELLS_AT_ONCE // maps[0, 0].numel()))


def _slope(network: nn.Module, maps: Tensor, index: int) -> Tensor:
    """Gradient of the log-odds of a class, of each map."""
    with torch.enable_grad(), plain_reference():
        maps = maps.requires_grad_()
        logits = network(maps).float()
        others = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
        return torch.autograd.grad((logits[:, index] - others.logsumexp(dim=1)).sum(), maps)[0]


def _blurred(maps: Tensor, real: Tensor, deviation: float) -> Tensor:
    """Gaussian means of BxCxHxW over the real cells, Bx1xHxW of 0 and 1, around each cell."""

    def kernel(side: int) -> Tensor:
        places = torch.arange(side, device=maps.device, dtype=maps.dtype)
        return (-(places[:, None] - places).square() / (2 * deviation**2)).exp()

    rows, columns = map(kernel, maps.shape[2:])
    return rows @ (maps * real) @ columns / (rows @ real @ columns).clamp(min=1e-12)


def _three_channels(emap: EmbeddingMap) -> EmbeddingMap:
    """Without a channel that is no picture (a cloud's scale), so that the picture has the map's cells."""
    return replace(emap, tensor=emap.tensor[:, :3]) if emap.tensor.shape[1] > 3 else emap


def _write_axes(axes: Any, emap: EmbeddingMap) -> None:
    """Where on the map's own axes its cells lie; nothing of a grid of frames, whose cells repeat from tile to tile."""
    if emap.metadata.get("folding") == "grid":
        axes.set(xticks=[], yticks=[])
        return
    for name, axis in emap.coords.items():
        words = readable(emap, name)
        long = np.abs(axis.values.numpy()).max() >= 1000
        count = 3 if long and axis.dim == "W" else 5  # side by side there is little room
        # Mel bins are not even in Hz: the ticks are round numbers of it all the same.
        places, texts = frequency_ticks(words.values) if name == "frequency" and axis.dim == "H" else words.ticks(count)
        (axes.set_xticks if axis.dim == "W" else axes.set_yticks)(places, texts)
        (axes.set_xlabel if axis.dim == "W" else axes.set_ylabel)(words.label)
