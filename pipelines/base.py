"""The interface of every modality's pipeline: read, split, embed, encode, interpret.

Shapes: B batch, C channels, H rows, W columns, D width of the pooled features, N classes, 2C of a texture
(familiarity.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.devices import on_cpu
from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, NoTrainedHeadError
from unipercept.pipelines.batches import Batches
from unipercept.results import Anomalies, Labels, ModelOutput

Raw = TypeVar("Raw")


class PerceptionModel(Protocol):
    """The interface of a model that a pipeline needs; `unipercept.models.Model` implements it."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Class names of the trained head, or None where there is no trained head."""

    def pooled(self, emap: EmbeddingMap) -> Tensor:
        """BxD float32 on the CPU: pooled features of each item."""

    def predict(self, emap: EmbeddingMap) -> ModelOutput:
        """Pooled features, logits and textures; raises NoTrainedHeadError where there is no trained head."""

    def remarks(self, vector: Tensor, texture: Tensor, emap: EmbeddingMap) -> Mapping[str, Any]:
        """Metadata about a recording besides its labels, from its vector (D), texture (2C) and first map:
        out-of-distribution score and notice.
        """


class Pipeline(ABC, Generic[Raw]):
    """One modality: file to raw input to EmbeddingMap, and a prediction back to words.

    Only `read` touches files and codecs. It opens, checks and returns soon: long recordings stay on disk, and `split`
    reads them piece by piece. `embed` is pure: same input, same map.
    """

    modality: ClassVar[str]

    def __init__(self, model: PerceptionModel | None = None) -> None:
        self.model = model

    @abstractmethod
    def read(self, path: str | Path) -> Raw:
        """Open a file.

        Raises:
            InputError: it is missing, unreadable, damaged, empty or of another kind; one line says which.
        """

    @abstractmethod
    def embed(self, raw: Raw) -> EmbeddingMap:
        """Lay the input out as a map; B > 1 where one input makes several maps (windows, views, variables)."""

    def split(self, raw: Raw) -> Iterator[Raw]:
        """Pieces of bounded size, in order, that together are the input. Most inputs are one piece."""
        yield raw

    def count(self, raw: Raw) -> int | None:
        """How many pieces `split` will give, for a progress bar; None where the file does not say."""
        return 1

    def maps(self, path: str | Path) -> Iterator[EmbeddingMap]:
        """The maps of a file, piece by piece, with memory bounded whatever the file's length."""
        for piece in self.split(self.read(path)):
            yield self.embed(piece)

    @on_cpu
    def encode(self, path: str | Path) -> Tensor:
        """The file as one vector: D float32 of length 1 (L2).

        Several maps are averaged, weighted by their share of real input.
        """
        model, pieces = self._model(), list[tuple[Tensor, Tensor]]()

        def pool(_: None, maps: Tensor, owners: list[tuple[None, float]]) -> None:
            shares = torch.tensor([share for _, share in owners], dtype=torch.float64)
            pieces.append((model.pooled(EmbeddingMap(maps, self.modality)), shares))

        batches = Batches(pool)
        for emap in self.maps(path):
            batches.add(None, None, emap)
        batches.flush()
        return pool_vector(pieces)

    @property
    def looks_at_maps(self) -> bool:
        """Whether `perceive` runs the head on each map, instead of another analysis of the file as a whole."""
        return True

    def __call__(self, path: str | Path) -> Labels | Anomalies:
        """Labels of the file by the model's trained head.

        Raises:
            NoTrainedHeadError: the model has none for this modality.
        """
        return self.name(self.maps(path), source=str(path))[0]

    @on_cpu
    def name(self, maps: Iterable[EmbeddingMap], *, source: str = "") -> tuple[Labels, Tensor]:
        """Labels of the maps of one recording, and its vector (D), from one pass of the network.

        Raises:
            NoTrainedHeadError: the model has no trained head for this modality.
        """
        outputs, batches = HeadOutputs(), Batches(predict_batch)
        self.labels()
        for emap in maps:
            outputs.expect(emap)
            batches.add((self,), (outputs,), emap)
        batches.flush()
        return self.conclude(outputs, source=source)

    @on_cpu
    def conclude(self, outputs: "HeadOutputs", *, source: str = "") -> tuple[Labels, Tensor]:
        """The labels of a recording from the accumulated outputs for all of its maps, and its vector (D)."""
        if outputs.first is None or not outputs.totals:
            raise InputError(f"{source} gave no map to classify")
        mean = [total / max(outputs.weight, 1e-12) for total in outputs.totals]
        probabilities, texture = mean[1].float(), mean[2].float()
        found, vector = self.interpret(probabilities, outputs.first, source=source), unit_vector(outputs.totals[0])
        remarks = self._model().remarks(vector, texture, outputs.first)
        return replace(found, metadata={**found.metadata, **remarks}), vector

    def labels(self) -> tuple[str, ...]:
        """The classes of the model's head.

        Raises:
            NoTrainedHeadError: it has no trained head for this modality.
        """
        model = self._model()
        if model.labels is None:
            raise NoTrainedHeadError(no_head_message(model.name, self.modality))
        return model.labels

    def interpret(self, prediction: Tensor, source_map: EmbeddingMap, *, source: str = "") -> Labels:
        """Class probabilities (N) in words, most probable first."""
        model, labels = self._model(), self.labels()
        if len(labels) != len(prediction):
            raise NoTrainedHeadError(no_head_message(model.name, self.modality))
        order = prediction.argsort(descending=True)
        return Labels(
            labels=tuple(labels[i] for i in order.tolist()),
            scores=tuple(prediction[order].tolist()),
            source=source,
            modality=self.modality,
            model=model.name,
        )

    def _model(self) -> PerceptionModel:
        if self.model is None:
            raise InputError(
                f"this {self.modality} pipeline has no model, so it can read and embed only; "
                f'make it with unipercept.pipeline("{self.modality}")'
            )
        return self.model


@dataclass(eq=False)
class HeadOutputs:
    """Outputs of a head for one recording, accumulated over its maps; it holds only the first map.

    Args:
        first: the first map.
        totals: features (D), class probabilities (N) and textures (2C) in float64, each map
            weighted by its share of real input.
        weight: the sum of these shares.
        n_expected: maps that are on their way to the network.
    """

    first: EmbeddingMap | None = None
    totals: tuple[Tensor, ...] = ()
    weight: float = 0.0
    n_expected: int = 0

    def expect(self, emap: EmbeddingMap) -> None:
        """Count the maps that are sent to the network."""
        self.first = self.first or emap
        self.n_expected += len(emap)

    def add(self, parts: tuple[Tensor, ...], share: float) -> None:
        """Add the outputs for one map: features, class probabilities and texture."""
        parts = tuple(part.double() * share for part in parts)
        self.totals = tuple(a + b for a, b in zip(self.totals, parts, strict=True)) if self.totals else parts
        self.weight += share
        self.n_expected -= 1


def predict_batch(
    heads: tuple[Pipeline[Any], ...], maps: Tensor, owners: list[tuple[tuple[HeadOutputs, ...], float]]
) -> None:
    """One pass of each head's network over a batch of maps, perhaps of several recordings; outputs are
    added to their own recording.

    Args:
        owners: for each map, the accumulated outputs of its recording, one per head, and the map's share of real input.
    """
    for number, pipe in enumerate(heads):
        output = pipe._model().predict(EmbeddingMap(maps, pipe.modality))
        rows = zip(output.pooled, output.logits.softmax(dim=1), output.texture, strict=True)
        for row, (outputs, share) in zip(rows, owners, strict=True):
            outputs[number].add(row, share)


def pool_vector(pieces: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Weighted mean of pooled features over (BxD features, B weights) pieces, scaled to length 1: D float32.

    Raises:
        InputError: there is nothing to pool, or the features are not finite.
    """
    total: Tensor | None = None
    for features, weights in pieces:
        part = (features.double() * weights.double()[:, None]).sum(dim=0)
        total = part if total is None else total + part
    if total is None:
        raise InputError("nothing to encode: the input gave no map")
    return unit_vector(total)


def unit_vector(total: Tensor) -> Tensor:
    """Features D of any length, float64, scaled to length 1: float32.

    Raises:
        InputError: the features are not finite, or all of them are 0.
    """
    norm = total.norm()
    if not torch.isfinite(norm) or norm == 0:
        raise InputError(
            f"the features are not usable (norm {norm:g}); the input holds only padding or values out of range"
        )
    vector: Tensor = (total / norm).float()
    return vector


def no_head_message(model: str, modality: str) -> str:
    can = "no model has" if modality == "weather" else "`unipercept models` lists the models that can"
    return f"model {model!r} has no trained head for {modality}: it can encode, but not classify; {can}"


def as_array(values: Any) -> NDArray[Any]:
    """Numbers in memory as an array: of an array (what its mask hides is NaN), a list, or a tensor of any type."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        filled: NDArray[Any] = np.ma.filled(values.astype(np.float64), np.nan)
        return filled
    if not isinstance(values, Tensor):
        return np.asarray(values)
    tensor = values.detach().cpu()
    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def check_raw(raw: object, expected: type, from_array: str) -> None:
    """Refuse to embed what is not the result of `read`; `from_array` makes one of an array.

    Raises:
        TypeError: it is of another type.
    """
    if not isinstance(raw, expected):
        raise TypeError(
            f"embed takes a {expected.__name__}, which read returns, got {type(raw).__name__}; make one of an array by {from_array}"
        )
