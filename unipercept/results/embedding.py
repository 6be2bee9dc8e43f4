"""A recording as one vector.

Shapes: D width of the vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unipercept.errors import InputError, printable
from unipercept.results.base import Result
from unipercept.results.drawing import BLUE, empty_figure
from unipercept.results.words import origin

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Embedding(Result):
    """A recording as one vector of length 1: D float32."""

    vector: Tensor
    source: str
    modality: str
    model: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or self.vector.dtype != torch.float32:
            raise InputError(
                f"Embedding needs a float32 vector, got {self.vector.dtype} of shape {tuple(self.vector.shape)}"
            )

    def similarity(self, other: Embedding) -> float:
        """Cosine similarity, in [-1, 1]. It means something only between vectors of one model."""
        if self.model != other.model:
            raise InputError(f"vectors of different models cannot be compared: {self.model!r} and {other.model!r}")
        return float(torch.dot(self.vector, other.vector))

    def to_dict(self) -> dict[str, Any]:
        return {**origin(self), "vector": self.vector.tolist(), "metadata": dict(self.metadata)}

    def to_text(self) -> str:
        head = ", ".join(f"{x:+.4f}" for x in self.vector[:4].tolist())
        return f"{printable(self.source)} ({self.modality}, {self.model})\n  {len(self.vector)} numbers: {head}, …"

    def to_dataframe(self) -> pandas.DataFrame:
        import pandas as pd

        return pd.DataFrame([{**origin(self), "vector": self.vector.numpy()}])

    def to_xarray(self) -> xarray.Dataset:
        import xarray as xr

        return xr.Dataset({"vector": ("feature", self.vector.numpy())}, attrs=origin(self))

    def plot(self) -> Figure:
        figure, axes = empty_figure(height=2.2)
        axes.bar(range(len(self.vector)), self.vector.numpy(), width=1.0, color=BLUE)
        axes.set(
            xlabel="feature",
            ylabel="value",
            title=printable(Path(self.source).name),
            xlim=(-0.5, len(self.vector) - 0.5),
        )
        return figure
