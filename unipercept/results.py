"""What a caller gets back: Labels, Forecast, Anomalies, Embedding. Each can print, draw and save itself.

Shapes: D width of a vector, T forecast steps, P past steps, V variables.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.atomic import atomic_path
from unipercept.errors import InputError

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

# One accent per role, readable on white and by colour-blind readers (Okabe and Ito 2008).
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B7280"
MAX_PANELS = 6  # variables in one picture
MAX_KINDS_SHOWN = 8  # series whose kind is told in text
SAVED_SUFFIXES = (".json", ".csv", ".parquet", ".nc", ".zarr", ".png")


class Looked(NamedTuple):
    """What a model makes of B maps: BxD pooled features, BxN logits of N classes and Bx2C textures (familiarity.py), float32 on the CPU."""

    pooled: Tensor
    logits: Tensor
    texture: Tensor


class Result(ABC):
    """What all results can do."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""

    @abstractmethod
    def to_text(self) -> str:
        """A few lines for a terminal."""

    @abstractmethod
    def to_dataframe(self) -> pandas.DataFrame:
        """A table: what `save` writes to csv and parquet."""

    @abstractmethod
    def to_xarray(self) -> xarray.Dataset:
        """Named arrays: what `save` writes to nc and zarr."""

    @abstractmethod
    def plot(self) -> Figure:
        """A matplotlib figure; it is not shown, so that it works without a display."""

    def save(self, path: str | Path) -> Path:
        """Write by suffix: .json, .csv, .parquet, .nc, .zarr or .png; atomically.

        Raises:
            InputError: another suffix, or a folder that does not exist.
        """
        path = Path(path)
        if path.suffix.lower() not in SAVED_SUFFIXES:
            raise InputError(f"cannot save as {path.name}: the suffix must be one of {', '.join(SAVED_SUFFIXES)}")
        writers: dict[str, Callable[[Path], object]] = {
            ".json": lambda p: p.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"),
            ".csv": lambda p: self.to_dataframe().to_csv(p, index=False),
            ".parquet": lambda p: self.to_dataframe().to_parquet(p, index=False),
            ".nc": lambda p: self.to_xarray().to_netcdf(p),
            ".zarr": lambda p: self.to_xarray().to_zarr(p, consolidated=False),
            ".png": lambda p: self.plot().savefig(p, dpi=150),
        }
        with atomic_path(path) as temporary:
            writers[path.suffix.lower()](temporary)
        return path

    def _repr_html_(self) -> str:
        from html import escape

        table = self.to_dataframe().head(10).to_html(index=False, border=0)
        return f"<div><pre>{escape(self.to_text().splitlines()[0])}</pre>{table}</div>"


@dataclass(frozen=True)
class Labels(Result):
    """Class names with probabilities, most probable first.

    Raises:
        InputError: as many labels as scores are needed, in falling order.
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
        return {**_origin(self), "labels": pairs, "metadata": dict(self.metadata)}

    def to_text(self) -> str:
        lines = [f"{self.source} ({self.modality}, {self.model})"]
        if "notice" in self.metadata:
            lines.append(f"  {self.metadata['notice']}")
        return "\n".join(
            lines + [f"  {score:7.2%}  {label}" for label, score in zip(self.labels, self.scores, strict=True)]
        )

    def to_dataframe(self) -> pandas.DataFrame:
        import pandas as pd

        return pd.DataFrame({"label": self.labels, "score": self.scores}).assign(**_origin(self))

    def to_xarray(self) -> xarray.Dataset:
        import xarray as xr

        scores = xr.DataArray(np.array(self.scores), {"label": _names(self.labels)}, ("label",))
        return xr.Dataset({"score": scores}, attrs=_origin(self))

    def plot(self) -> Figure:
        figure, axes = _figure(height=0.6 + 0.32 * min(len(self.labels), 10))
        shown = self.top(10)
        axes.barh(range(len(shown.labels)), shown.scores, color=BLUE)
        axes.set_yticks(range(len(shown.labels)), shown.labels)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="probability", title=Path(self.source).name)
        return figure


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
        return {**_origin(self), "vector": self.vector.tolist(), "metadata": dict(self.metadata)}

    def to_text(self) -> str:
        head = ", ".join(f"{x:+.4f}" for x in self.vector[:4].tolist())
        return f"{self.source} ({self.modality}, {self.model})\n  {len(self.vector)} numbers: {head}, …"

    def to_dataframe(self) -> pandas.DataFrame:
        import pandas as pd

        return pd.DataFrame([{**_origin(self), "vector": self.vector.numpy()}])

    def to_xarray(self) -> xarray.Dataset:
        import xarray as xr

        return xr.Dataset({"vector": ("feature", self.vector.numpy())}, attrs=_origin(self))

    def plot(self) -> Figure:
        figure, axes = _figure(height=2.2)
        axes.bar(range(len(self.vector)), self.vector.numpy(), width=1.0, color=BLUE)
        axes.set(xlabel="feature", ylabel="value", title=Path(self.source).name, xlim=(-0.5, len(self.vector) - 0.5))
        return figure


@dataclass(frozen=True, eq=False)
class Forecast(Result):
    """What comes next.

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
            **_origin(self),
            "time": plain_times(self.time),
            "variables": list(self.variables),
            "values": self.values.tolist(),
            "quantiles": {str(q): v.tolist() for q, v in self.quantiles.items()},
            "metadata": dict(self.metadata),
        }

    def to_text(self) -> str:
        steps, count = self.values.shape
        times = plain_times(self.time)
        shown = min(count, 6)
        head = f"{self.source} ({self.modality}, {self.model}): "
        head += f"{steps} step{'s' * (steps != 1)} of {count} variable{'s' * (count != 1)} from {times[0]}"
        lines = [
            head,
            "  " + " " * len(times[0]) + "".join(f"  {_short(name, 10):>10}" for name in self.variables[:shown]),
        ]
        lines += [
            f"  {t}" + "".join(f"  {v:10.4g}" for v in row[:shown])
            for t, row in zip(times[:5], self.values[:5], strict=True)
        ]
        return "\n".join(lines + (["  …"] if steps > 5 else []))

    def to_dataframe(self, layout: str | None = None) -> pandas.DataFrame:
        """A row a step.

        Args:
            layout: "wide" has columns time, NAME, NAME_q0.1 …; "long" has time, series, forecast, q0.1 … and a row a step and series. None
                takes what metadata["layout"] says, and wide where it says nothing.
        """
        import pandas as pd

        levels = sorted(self.quantiles)
        if (layout or self.metadata.get("layout", "wide")) == "long":
            steps, count = self.values.shape
            long: dict[str, Any] = {
                "time": np.tile(self.time, count),
                "series": np.repeat(_names(self.variables), steps),
            }
            long["forecast"] = self.values.T.reshape(-1)
            long |= {f"q{level:g}": self.quantiles[level].T.reshape(-1) for level in levels}
            return pd.DataFrame(long)
        columns: dict[str, Any] = {"time": self.time}
        for i, name in enumerate(self.variables):
            columns[name] = self.values[:, i]
            columns |= {f"{name}_q{level:g}": self.quantiles[level][:, i] for level in levels}
        return pd.DataFrame(columns)

    def to_xarray(self) -> xarray.Dataset:
        import xarray as xr

        coords = {"time": self.time, "variable": _names(self.variables)}
        data = {"forecast": (("time", "variable"), self.values)}
        if self.quantiles:
            levels = sorted(self.quantiles)
            coords["quantile"] = np.array(levels)
            data["quantiles"] = (("quantile", "time", "variable"), np.stack([self.quantiles[q] for q in levels]))  # type: ignore[assignment]
        return xr.Dataset(data, coords, attrs=_origin(self))

    def plot(self, variable: str | None = None) -> Figure:
        """History, forecast with its intervals, truth and back-test of one variable; the first few, where none is named.

        Raises:
            InputError: there is no such variable.
        """
        if variable is not None and variable not in self.variables:
            raise InputError(f"{variable!r} was not forecast; there are {', '.join(self.variables[:8])}")
        shown = (
            [self.variables.index(variable)] if variable is not None else range(min(len(self.variables), MAX_PANELS))
        )
        panels = len(shown)
        figure, axes = _figure(height=3.2 if panels == 1 else 0.6 + 1.9 * panels, panels=panels)
        for axis, index in zip(axes, shown, strict=True):
            self._draw(axis, index)
        name = Path(self.source).name
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
        _short_dates(axes[-1])
        return figure

    def save_plot(self, path: str | Path, variable: str | None = None) -> Path:
        """Write `plot` as .png, .svg or .pdf, atomically."""
        path = Path(path)
        with atomic_path(path) as temporary:
            self.plot(variable).savefig(temporary, dpi=150)
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
            axes.set_ylabel(_short(self.variables[index]))

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


def plain_times(times: NDArray[Any]) -> list[str]:
    """Times without the digits that say nothing in all of them: 2024-01-31, 2024-01-31 18:00, or the numbers of rows."""
    if not np.issubdtype(times.dtype, np.datetime64):
        return [str(time) for time in times]
    texts = [
        text.replace("T", " ") for text in np.datetime_as_string(times.astype("datetime64[ns]"), unit="ms").tolist()
    ]
    for ending in (".000", ":00", " 00:00"):
        if all(text.endswith(ending) for text in texts):
            texts = [text.removesuffix(ending) for text in texts]
        else:
            break
    return texts


def _origin(result: Labels | Embedding | Forecast | Anomalies) -> dict[str, str]:
    return {"source": result.source, "modality": result.modality, "model": result.model}


def _names(names: tuple[str, ...]) -> NDArray[np.object_]:
    """Strings of any length: the fixed-width kind has no stable form in Zarr 3."""
    return np.array(names, dtype=object)


@dataclass(frozen=True, eq=False)
class Anomalies(Result):
    """Values that do not fit what came before them, the farthest first.

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
        """The k farthest."""
        columns = {
            name: getattr(self, name)[:k] for name in ("time", "variable", "value", "expected", "low", "high", "size")
        }
        return replace(self, **columns)

    def to_dict(self) -> dict[str, Any]:
        return {
            **_origin(self),
            "anomalies": self.to_dataframe().assign(time=plain_times(self.time)).to_dict("records"),
            "metadata": dict(self.metadata),
        }

    def to_text(self) -> str:
        rows = f"{len(self.series_time):,} steps of {len(self.variables)} series"
        if not len(self):
            return "\n".join([f"{self.source} ({self.modality}): nothing stands out in {rows}", *self._kinds()])
        lines = [
            f"{self.source} ({self.modality}, {self.model}): what stands out in {rows}; distance 1 is the end of the 95 % interval"
        ]
        width = max(len(_short(name)) for name in self.variable)
        lines += [
            f"  {when}  {_short(name):<{width}}  {value:10.5g}, expected {expected:.5g} ({low:.5g} to {high:.5g}); distance {size:.1f}"
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
        return "\n".join([*lines, *self._kinds()])

    def _kinds(self) -> list[str]:
        """A line for each series that a head has named: what kind it is."""
        kinds = self.metadata.get("kinds", [])
        if not kinds:
            return []
        width = max(len(_short(one["variable"])) for one in kinds[:MAX_KINDS_SHOWN])
        lines = [f"  of what kind ({kinds[0]['model']}, last {kinds[0]['n_steps']:,} steps):"]
        for one in kinds[:MAX_KINDS_SHOWN]:
            doubt = "; unlike all that the head was trained on" if "notice" in one else ""
            lines.append(f"    {_short(one['variable']):<{width}}  {one['kind']} ({one['score']:.0%}){doubt}")
        more = len(kinds) - MAX_KINDS_SHOWN
        return [*lines, *([f"    … {more} more with --json"] if more > 0 else [])]

    def to_dataframe(self) -> pandas.DataFrame:
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("value", "expected", "low", "high", "size")}
        return pd.DataFrame({"time": self.time, "variable": _names(self.variable), **columns})

    def to_xarray(self) -> xarray.Dataset:
        import xarray as xr

        columns = {
            name: ("anomaly", getattr(self, name)) for name in ("time", "value", "expected", "low", "high", "size")
        }
        return xr.Dataset({**columns, "variable": ("anomaly", _names(self.variable))}, attrs=_origin(self))

    def plot(self) -> Figure:
        """The series with most of them, each with its odd values marked and what was expected beside them."""
        ranked = sorted(
            set(self.variable), key=lambda name: -float(self.size[[v == name for v in self.variable]].max())
        )
        shown = ranked[:MAX_PANELS] or list(self.variables[:1])
        figure, axes = _figure(height=0.6 + (2.6 if len(shown) == 1 else 1.7 * len(shown)), panels=len(shown))
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
            axis.set_ylabel(_short(name))
        axes[0].set_title(f"{Path(self.source).name}: what does not fit", loc="left", fontsize=10)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, ncols=len(labels), loc="outside upper left", fontsize=8)
        _short_dates(axes[-1])
        return figure


def _short_dates(axes: Any) -> None:
    """Ticks of times without what repeats: the day under the first hour, the year under the first month."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if not isinstance(axes.xaxis.get_major_locator(), AutoDateLocator):  # rows are numbered
        axes.set_xlabel("step")
        return
    locator = AutoDateLocator(minticks=4, maxticks=9)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def _short(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _figure(height: float, panels: int = 0) -> tuple[Figure, Any]:
    """A figure with its axes; with `panels`, a list of as many that share their x axis."""
    from matplotlib.figure import Figure  # the object alone: no global state, no display

    figure = Figure(figsize=(7.2, height), layout="constrained")
    if not panels:
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        return figure, axes
    several = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for axes in several:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, several
