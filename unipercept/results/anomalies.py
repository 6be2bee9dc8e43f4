"""Values that do not fit in a series.

Shapes: A anomalies, P steps looked at, V variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError, printable
from unipercept.results.base import Result
from unipercept.results.drawing import BLUE, GREY, MAX_PANELS, ORANGE, empty_figure, short_dates
from unipercept.results.words import marked_times, origin, plain_times, short, text_array

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

MAX_NOTICES_SHOWN = 5
MAX_KINDS_SHOWN = 8  # series whose kind is told in text


@dataclass(frozen=True, eq=False)
class Anomalies(Result):
    """Values that do not fit the ones before them, the farthest first.

    Args:
        time, variable, value: A of them: when, which series, what was measured.
        expected, low, high: A each, the forecast and the ends of its 95 % interval.
        size: A, the distance from the forecast in units of the distance to the interval's end; 1 lies on it.
        series_time, series: P times and PxV values of all that was looked at, for the picture.
        variables: V names.

    Raises:
        InputError: arrays that do not fit together.
    """

    time: NDArray[Any]
    variable: tuple[str, ...]
    value: NDArray[np.floating[Any]]
    expected: NDArray[np.floating[Any]]
    low: NDArray[np.floating[Any]]
    high: NDArray[np.floating[Any]]
    size: NDArray[np.floating[Any]]
    source: str
    model: str
    series_time: NDArray[Any]
    series: NDArray[np.floating[Any]]
    variables: tuple[str, ...]
    modality: str = "timeseries"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {
            len(a) for a in (self.time, self.variable, self.value, self.expected, self.low, self.high, self.size)
        }
        if len(lengths) != 1 or self.series.shape != (len(self.series_time), len(self.variables)):
            raise InputError(
                f"Anomalies needs columns of one length and a series for each name, got {sorted(lengths)} and {self.series.shape}"
            )

    def __len__(self) -> int:
        return len(self.time)

    def top(self, k: int) -> Anomalies:
        """The k largest."""
        columns = {
            name: getattr(self, name)[:k] for name in ("time", "variable", "value", "expected", "low", "high", "size")
        }
        return replace(self, **columns)

    def to_dict(self) -> dict[str, Any]:
        return {
            **origin(self),
            "anomalies": self.to_dataframe().assign(time=plain_times(self.time)).to_dict("records"),
            "metadata": dict(self.metadata),
        }

    def to_text(self) -> str:
        rows = f"{len(self.series_time):,} steps of {len(self.variables)} series"
        if not len(self):
            return "\n".join(
                [
                    f"{printable(self.source)} ({self.modality}): nothing stands out in {rows}",
                    *self._kinds(),
                    *self._notices(),
                ]
            )
        lines = [
            f"{printable(self.source)} ({self.modality}, {self.model}): what stands out in {rows}; distance 1 is the end of the 95 % interval"
        ]
        width = max(len(short(name)) for name in self.variable)
        lines += [
            f"  {when}  {short(name):<{width}}  {value:10.5g}, expected {expected:.5g} ({low:.5g} to {high:.5g}); distance {size:.1f}"
            for when, name, value, expected, low, high, size in zip(
                plain_times(self.time),
                self.variable,
                self.value,
                self.expected,
                self.low,
                self.high,
                self.size,
                strict=True,
            )
        ]
        return "\n".join([*lines, *self._kinds(), *self._notices()])

    def _kinds(self) -> list[str]:
        """A line for each series with the type that a model's head gave it."""
        kinds = self.metadata.get("kinds", [])
        if not kinds:
            return []
        width = max(len(short(one["variable"])) for one in kinds[:MAX_KINDS_SHOWN])
        lines = [f"  of what kind ({kinds[0]['model']}, last {kinds[0]['n_steps']:,} steps):"]
        for one in kinds[:MAX_KINDS_SHOWN]:
            doubt = "; " + one["notice"].partition(";")[0] if "notice" in one else ""
            lines.append(f"    {short(one['variable']):<{width}}  {one['kind']} ({one['score']:.0%}){doubt}")
        more = len(kinds) - MAX_KINDS_SHOWN
        return [*lines, *([f"    … {more} more with --json"] if more > 0 else [])]

    def _notices(self) -> list[str]:
        """Lines about what was detected and repaired in the table."""
        found = self.metadata.get("notices", [])
        more = len(found) - MAX_NOTICES_SHOWN
        lines = [f"  note: {line}" for line in found[:MAX_NOTICES_SHOWN]]
        return [*lines, *([f"    … {more} more with --json"] if more > 0 else [])]

    def to_dataframe(self) -> pandas.DataFrame:
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("value", "expected", "low", "high", "size")}
        return pd.DataFrame(
            {"time": marked_times(self.time, self.metadata), "variable": text_array(self.variable), **columns}
        )

    def to_xarray(self) -> xarray.Dataset:
        import xarray as xr

        columns = {
            name: ("anomaly", getattr(self, name)) for name in ("time", "value", "expected", "low", "high", "size")
        }
        return xr.Dataset({**columns, "variable": ("anomaly", text_array(self.variable))}, attrs=origin(self))

    def plot(self) -> Figure:
        """The series with most of them, each with its odd values marked and what was expected beside them."""
        ranked = sorted(
            set(self.variable), key=lambda name: -float(self.size[[v == name for v in self.variable]].max())
        )
        shown = ranked[:MAX_PANELS] or list(self.variables[:1])
        figure, axes = empty_figure(height=0.6 + (2.6 if len(shown) == 1 else 1.7 * len(shown)), panels=len(shown))
        for axis, name in zip(axes, shown, strict=True):
            axis.plot(
                self.series_time, self.series[:, self.variables.index(name)], color=GREY, linewidth=0.8, label="series"
            )
            here = np.array([v == name for v in self.variable], dtype=bool)
            if here.any():
                axis.vlines(
                    self.time[here], self.low[here], self.high[here], color=BLUE, linewidth=1.5, label="expected, 95 %"
                )
                axis.scatter(
                    self.time[here],
                    self.value[here],
                    s=10 + 6 * np.minimum(self.size[here], 10),
                    color=ORANGE,
                    zorder=3,
                    label="does not fit",
                )
            axis.set_ylabel(short(name))
        axes[0].set_title(f"{printable(Path(self.source).name)}: what does not fit", loc="left", fontsize=10)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside upper left", fontsize=8)
        short_dates(axes[-1])
        return figure
