"""The evidence for a label: Grad-CAM maps on the input's own axes.

Shapes: B maps of one recording, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.atomic import atomic_path
from unipercept.axis_words import frequency_ticks, readable
from unipercept.backbone import UniRepLKNet
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, NoTrainedHeadError, printable
from unipercept.kernels.dispatch import plain_reference
from unipercept.results.drawing import plain_figure, title_with_notice, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unipercept.pipelines.base import Pipeline
    from unipercept.results import Labels

SHOWN_MAPS = 4
SEEN_BY_EYE = ("image", "video", "pointcloud")  # drawn with cells as high as wide


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the evidence for a class lies.

    Args:
        heat: BxHxW from 0 to 1, at the resolution of the map; the strongest place is 1 unless nothing speaks for the
            class.
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
        line = f"{printable(self.source)}: {self.label} ({self.score:.1%}); strongest evidence at {places or 'no axis'}"
        line += printable(self._of(self._strongest()[0]))
        return f"{line}\n  {self.notice}" if self.notice else line

    def plot(self) -> Figure:
        """The first maps, each beside itself overlaid with its heat."""
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
            for column, title in enumerate((saw + of, f"evidence for {self.label}")):
                axes[i, column].imshow(picture, aspect=aspect, origin=origin)
                if not i or of:  # else each row would say the same
                    axes[i, column].set_title(title, fontsize="medium")
                _write_axes(axes[i, column], self.emap)
            heat = self.heat[i].numpy()
            strength = 0.35 + 0.4 * heat
            axes[i, 1].imshow(heat, cmap="inferno", alpha=strength, aspect=aspect, vmin=0, vmax=1, origin=origin)
        title = f"{printable(Path(self.source).name)}: {self.label}, {self.score:.1%}"
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


def explain_file(path: str | Path, model: str, *, label: str | None = None, device: str = "auto") -> Explanation:
    """The evidence for a label of a recording, in the window or segment where the label is most probable.

    Label, probability and notice are those of the whole recording, as `perceive` returns them.

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
            pipe.model = load_model(
                model, in_channels=emap.tensor.shape[1], device=device
            )  # kept, not loaded each time
            yield emap

    return explain_named(name_pieces(pipe, maps(), source=str(path)), pipe, path, model, label=label, device=device)


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
) -> Explanation:
    """As `explain_file`, of a recording that was named already."""
    labels = named.labels
    label = labels.labels[0] if label is None else label
    piece = int(named.probabilities[:, _classes(model, label).index(label)].argmax())
    chosen = named.first if piece == 0 else next(islice(pipe.maps(path), piece, None))
    found = explain_map(chosen, model, label=label, device=device, source=str(path))
    score, notice = labels.scores[labels.labels.index(label)], str(labels.metadata.get("notice", ""))
    return replace(found, score=score, notice=notice)


def explain_map(
    emap: EmbeddingMap, model: str, *, label: str | None = None, device: str = "auto", source: str = ""
) -> Explanation:
    """As `explain_file`, of a map that the model's own pipeline has made.

    Args:
        emap: BxCxHxW, the windows or views of one recording.
        label: a class name; None for the most probable class.
        source: what the picture is titled with.

    Raises:
        NoTrainedHeadError: the model has no classes.
        InputError: `label` is none of them.
    """
    from unipercept.models import load_model

    names = _classes(model, label)
    loaded = load_model(model, in_channels=emap.tensor.shape[1], device=device)
    index = None if label is None else names.index(label)
    assert isinstance(loaded.network, UniRepLKNet)
    heat, found, score = class_activation(loaded.network, emap.tensor.to(loaded.device), index)
    if emap.mask is not None:  # padding contributes too, but is not part of the recording
        heat = heat * emap.mask.cpu()
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


def class_activation(network: UniRepLKNet, maps: Tensor, index: int | None = None) -> tuple[Tensor, int, float]:
    """Grad-CAM of a recording's maps: heat BxHxW on the CPU, the class, and its probability averaged over the maps.

    The channels of the last stage but one (stride 16, whose places are still fine) are weighted by the mean gradient of
    the class's logit and summed; what speaks against the class is cut off.

    Source: Selvaraju et al. (2017), Grad-CAM, equations 1 and 2.
    """
    # No hooks: a server's threads share the network, and hooks would see each other's passes.
    with torch.inference_mode(False):
        with torch.no_grad():
            kept = network.forward_stages(maps.clone())[2]
        with torch.enable_grad(), plain_reference():
            kept.requires_grad_()
            logits = network.forward_head(network.stages[3](network.downsample_layers[3](kept)))
            probability = logits.detach().softmax(dim=1).mean(dim=0)
            found = int(probability.argmax()) if index is None else index
            (gradient,) = torch.autograd.grad(logits[:, found].sum(), kept)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * kept.detach()).sum(dim=1, keepdim=True))
    heat = F.interpolate(heat, size=maps.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return (heat / heat.amax().clamp(min=1e-12)).cpu(), found, float(probability[found])


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
        count = (
            5 if axis.dim == "H" or np.abs(axis.values.numpy()).max() < 1000 else 3
        )  # side by side there is little room
        # Mel bins are not even in Hz: the ticks are round numbers of it all the same.
        places, texts = frequency_ticks(words.values) if name == "frequency" and axis.dim == "H" else words.ticks(count)
        (axes.set_xticks if axis.dim == "W" else axes.set_yticks)(places, texts)
        (axes.set_xlabel if axis.dim == "W" else axes.set_ylabel)(words.label)
