"""Class names with their probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.errors import InputError, printable
from unipercept.results.base import Result
from unipercept.results.drawing import BLUE, empty_figure, title_with_notice
from unipercept.results.words import origin, text_array

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Labels(Result):
    """Class names with probabilities, most probable first.

    Raises:
        InputError: labels and scores of different lengths, or scores that do not fall.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    source: str
    modality: str
    model: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.scores) or not self.labels:
            raise InputError(
                f"Labels needs a score for each label, got {len(self.labels)} labels and {len(self.scores)} scores"
            )
        if any(a < b for a, b in itertools.pairwise(self.scores)):
            raise InputError("Labels needs scores in falling order")

    def top(self, k: int) -> Labels:
        """The k most probable."""
        return Labels(self.labels[:k], self.scores[:k], self.source, self.modality, self.model, self.metadata)

    def to_dict(self) -> dict[str, Any]:
        pairs = [{"label": label, "score": score} for label, score in zip(self.labels, self.scores, strict=True)]
        return {**origin(self), "labels": pairs, "metadata": dict(self.metadata)}

    def to_text(self) -> str:
        lines = [f"{printable(self.source)} ({self.modality}, {self.model})"]
        if "notice" in self.metadata:
            lines.append(f"  {self.metadata['notice']}")
        pairs = zip(self.labels, self.scores, strict=True)  # names of folders, which may hold line ends
        return "\n".join(lines + [f"  {score:7.2%}  {printable(label)}" for label, score in pairs])

    def to_dataframe(self) -> pandas.DataFrame:
        import pandas as pd

        return pd.DataFrame({"label": self.labels, "score": self.scores}).assign(**origin(self))

    def to_xarray(self) -> xarray.Dataset:
        import xarray as xr

        scores = xr.DataArray(np.array(self.scores), {"label": text_array(self.labels)}, ("label",))
        return xr.Dataset({"score": scores}, attrs=origin(self))

    def plot(self) -> Figure:
        notice = str(self.metadata.get("notice", ""))
        figure, axes = empty_figure(height=0.6 + 0.32 * min(len(self.labels), 10) + (0.5 if notice else 0.0))
        shown = self.top(10)
        axes.barh(range(len(shown.labels)), shown.scores, color=BLUE)
        axes.set_yticks(range(len(shown.labels)), shown.labels)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="probability")
        figure.suptitle(title_with_notice(printable(Path(self.source).name), notice), fontsize="medium")
        return figure
