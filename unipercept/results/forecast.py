"""A forecast with its intervals, the history before it and its back-test.

Shapes: T forecast steps, P past steps, V variables.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unipercept.atomic import atomic_path
from unipercept.errors import InputError, counted, printable
from unipercept.results.base import Result
from unipercept.results.drawing import BLUE, GREY, MAX_PANELS, ORANGE, empty_figure, short_dates, write_figure
from unipercept.results.words import marked_times, origin, plain_times, short, text_array

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

MAX_ROWS, MAX_COLUMNS = 5, 6  # of the table in a terminal


@dataclass(frozen=True, eq=False)
class Forecast(Result):
    """A forecast of one or more series.

    Args:
        time: T times (datetime64, or step numbers).
        values: TxV point forecast, in the units of the series.
        variables: V names.
        history_time: P times before the first forecast; P may be 0.
        history: PxV.
        quantiles: level in (0, 1) to TxV, not crossing.
        truth: TxV, where it is known.
        tested: forecasts of the same series from earlier times, with their truth: a back-test.
        metadata: how it was made, as JSON values.

    Raises:
        InputError: shapes that do not fit together, or quantiles that cross.
    """

    time: NDArray[Any]
    values: NDArray[np.floating[Any]]
    variables: tuple[str, ...]
    source: str
    model: str
    history_time: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    history: NDArray[np.floating[Any]] | None = None
    quantiles: Mapping[float, NDArray[np.floating[Any]]] = field(default_factory=dict)
    truth: NDArray[np.floating[Any]] | None = None
    tested: tuple[Forecast, ...] = ()
    modality: str = "timeseries"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.time), len(self.variables))
        arrays = {"values": self.values, "truth": self.truth} | {f"quantile {q}": v for q, v in self.quantiles.items()}
        for name, array in arrays.items():
            if array is not None and array.shape != shape:
                raise InputError(
                    f"Forecast {name} must be {shape[0]}x{shape[1]} (steps x variables), got {array.shape}"
                )
        if self.history is not None and self.history.shape != (len(self.history_time), shape[1]):
            raise InputError(f"Forecast history must be {len(self.history_time)}x{shape[1]}, got {self.history.shape}")
        levels = sorted(self.quantiles)
        if any((self.quantiles[a] > self.quantiles[b]).any() for a, b in itertools.pairwise(levels)):
            raise InputError("Forecast quantiles must not cross")

    def quantile(self, level: float) -> NDArray[np.floating[Any]]:
        """TxV values of one quantile level."""
        if level not in self.quantiles:
            raise InputError(f"quantile {level} was not forecast; there are {sorted(self.quantiles) or 'none'}")
        return self.quantiles[level]

    def to_dict(self) -> dict[str, Any]:
        return {
            **origin(self),
            "time": plain_times(self.time),
            "variables": list(self.variables),
            "values": self.values.tolist(),
            "quantiles": {str(q): v.tolist() for q, v in self.quantiles.items()},
            "metadata": dict(self.metadata),
        }

    def to_text(self) -> str:
        steps, count = self.values.shape
        times = plain_times(self.time)
        shown = min(count, MAX_COLUMNS)
        head = f"{printable(self.source)} ({self.modality}, {self.model}): "
        head += f"{steps} step{'s' * (steps != 1)} of {count} variable{'s' * (count != 1)} from {times[0]}"
        head += f" {self.metadata['time_zone']}" if "time_zone" in self.metadata else ""
        names = "".join(f"  {short(name, 10):>10}" for name in self.variables[:shown])
        has_interval = count == 1 and {0.1, 0.9} <= set(self.quantiles)
        lines = [head, "  " + " " * len(times[0]) + names + "  80 % interval" * has_interval]
        for step in range(min(steps, MAX_ROWS)):
            line = f"  {times[step]}" + "".join(f"  {value:10.4g}" for value in self.values[step, :shown])
            if has_interval:
                line += f"  {self.quantiles[0.1][step, 0]:.4g} to {self.quantiles[0.9][step, 0]:.4g}"
            lines.append(line)
        left = [counted(steps - MAX_ROWS, "more step", "more steps")] * (steps > MAX_ROWS)
        left += [counted(count - shown, "more variable", "more variables")] * (count > shown)
        return "\n".join(lines + [f"  … {', '.join(left)}"] * bool(left))

    def to_dataframe(self, layout: str | None = None) -> pandas.DataFrame:
        """A row a step.

        Args:
            layout: "wide" has columns time, NAME, NAME_q0.1 …; "long" has time, series, forecast, q0.1 … and a row a
                step and series. None takes what metadata["layout"] says, and wide where it says nothing, unless two
                columns would have one name.
        """
        import pandas as pd

        levels = sorted(self.quantiles)
        times = marked_times(self.time, self.metadata)
        names = ["time", *(f"{name}{end}" for name in self.variables for end in ("", *(f"_q{q:g}" for q in levels)))]
        usual = self.metadata.get("layout", "wide") if len(set(names)) == len(names) else "long"
        if (layout or usual) == "long":
            steps, count = self.values.shape
            long: dict[str, Any] = {
                "time": pd.Index(times).take(np.tile(np.arange(steps), count)),
                "series": np.repeat(text_array(self.variables), steps),
            }
            long["forecast"] = self.values.T.reshape(-1)
            long |= {f"q{level:g}": self.quantiles[level].T.reshape(-1) for level in levels}
            return pd.DataFrame(long)
        columns: dict[str, Any] = {"time": times}
        for i, name in enumerate(self.variables):
            columns[name] = self.values[:, i]
            columns |= {f"{name}_q{level:g}": self.quantiles[level][:, i] for level in levels}
        return pd.DataFrame(columns)

    def to_xarray(self) -> xarray.Dataset:
        import xarray as xr

        coords = {"time": self.time, "variable": text_array(self.variables)}
        data = {"forecast": (("time", "variable"), self.values)}
        if self.quantiles:
            levels = sorted(self.quantiles)
            coords["quantile"] = np.array(levels)
            data["quantiles"] = (("quantile", "time", "variable"), np.stack([self.quantiles[q] for q in levels]))  # type: ignore[assignment]
        return xr.Dataset(data, coords, attrs=origin(self))

    def plot(self, variable: str | None = None) -> Figure:
        """History, forecast with its intervals, truth and back-test of one variable; the
        first few, where none is named.

        Raises:
            InputError: there is no such variable.
        """
        if variable is not None and variable not in self.variables:
            raise InputError(f"{variable!r} was not forecast; there are {', '.join(self.variables[:8])}")
        shown = (
            [self.variables.index(variable)] if variable is not None else range(min(len(self.variables), MAX_PANELS))
        )
        panels = len(shown)
        figure, axes = empty_figure(height=3.2 if panels == 1 else 0.6 + 1.9 * panels, panels=panels)
        for axis, index in zip(axes, shown, strict=True):
            self._draw(axis, index)
        name = printable(Path(self.source).name)
        more = (
            f" (the first {panels} of {len(self.variables)})"
            if panels < len(self.variables) and variable is None
            else ""
        )
        axes[0].set_title(
            f"{name}: {self.variables[shown[0]]}{more}" if panels == 1 else f"{name}{more}", loc="left", fontsize=10
        )
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside upper left", fontsize=8)
        short_dates(axes[-1])
        return figure

    def save_plot(self, path: str | Path, variable: str | None = None) -> Path:
        """Write `plot` as .png, .svg or .pdf, atomically."""
        path = Path(path)
        with atomic_path(path) as temporary:
            write_figure(self.plot(variable), temporary)
        return path

    def _draw(self, axes: Any, index: int) -> None:
        if self.history is not None and len(self.history):
            axes.plot(self.history_time, self.history[:, index], color=GREY, linewidth=1, label="history")
        self._draw_bands(axes, index, BLUE, named=True)
        if self.truth is not None:
            axes.plot(self.time, self.truth[:, index], color="black", linewidth=1.1, linestyle="--", label="truth")
        axes.plot(self.time, self.values[:, index], color=BLUE, linewidth=1.6, label="forecast")
        for number, earlier in enumerate(self.tested):
            earlier._draw_bands(axes, index, ORANGE, named=False)
            label = "back-test" if not number else None
            axes.plot(earlier.time, earlier.values[:, index], color=ORANGE, linewidth=1.2, label=label)
            axes.axvline(earlier.time[0], color=ORANGE, linewidth=0.6, linestyle=":")
        if self.history is not None and len(self.history):
            axes.axvline(self.time[0], color=BLUE, linewidth=0.6, linestyle=":")
        if len(self.variables) > 1 and axes.figure.axes[1:]:
            axes.set_ylabel(short(self.variables[index]))

    def _draw_bands(self, axes: Any, index: int, colour: str, *, named: bool) -> None:
        """The widest interval and, where it is there, the one of 80 %."""
        levels = sorted(self.quantiles)
        pairs = [(levels[0], levels[-1])] if len(levels) > 1 else []
        pairs += [(0.1, 0.9)] if len(levels) > 4 and {0.1, 0.9} <= set(levels) and levels[0] < 0.1 else []
        for (low, high), alpha in zip(pairs, (0.16, 0.3), strict=False):
            label = f"{100 * (high - low):.0f} % interval" if named else None
            axes.fill_between(
                self.time,
                self.quantiles[low][:, index],
                self.quantiles[high][:, index],
                color=colour,
                alpha=alpha,
                linewidth=0,
                label=label,
            )
