"""What a caller gets back: Labels, Forecast, Embedding. Each can print, draw and save itself.

Shapes: D width of a vector, T forecast steps, P past steps, V variables.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


class Looked(NamedTuple):
    """What a model makes of B maps: BxD pooled features and BxN logits of N classes, float32 on the CPU."""

    pooled: Tensor
    logits: Tensor


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
        writers: dict[str, Callable[[Path], object]] = {
            ".json": lambda p: p.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"),
            ".csv": lambda p: self.to_dataframe().to_csv(p, index=False),
            ".parquet": lambda p: self.to_dataframe().to_parquet(p, index=False),
            ".nc": lambda p: self.to_xarray().to_netcdf(p),
            ".zarr": lambda p: self.to_xarray().to_zarr(p, consolidated=False),
            ".png": lambda p: self.plot().savefig(p, dpi=150),
        }
        if path.suffix.lower() not in writers:
            raise InputError(f"cannot save as {path.name}: the suffix must be one of {', '.join(writers)}")
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
            "time": [str(t) for t in self.time],
            "variables": list(self.variables),
            "values": self.values.tolist(),
            "quantiles": {str(q): v.tolist() for q, v in self.quantiles.items()},
            "metadata": dict(self.metadata),
        }

    def to_text(self) -> str:
        steps, count = self.values.shape
        lines = [
            f"{self.source} ({self.modality}, {self.model}): {steps} steps of {count} variables from {self.time[0]}"
        ]
        lines += [
            f"  {t}  " + "  ".join(f"{v:10.4g}" for v in row[:6])
            for t, row in zip(self.time[:5], self.values[:5], strict=True)
        ]
        return "\n".join(lines + (["  …"] if steps > 5 else []))

    def to_dataframe(self) -> pandas.DataFrame:
        import pandas as pd

        columns: dict[str, Any] = {"time": self.time}
        for i, name in enumerate(self.variables):
            columns[name] = self.values[:, i]
            columns |= {f"{name}_q{level:g}": values[:, i] for level, values in sorted(self.quantiles.items())}
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
        """History, forecast, intervals and truth of one variable (the first unless named)."""
        index = 0 if variable is None else self.variables.index(variable)
        figure, axes = _figure(height=3.2)
        if self.history is not None and len(self.history):
            axes.plot(self.history_time, self.history[:, index], color=GREY, linewidth=1, label="history")
        levels = sorted(self.quantiles)
        if len(levels) > 1:
            low, high = self.quantiles[levels[0]][:, index], self.quantiles[levels[-1]][:, index]
            axes.fill_between(
                self.time, low, high, color=BLUE, alpha=0.2, linewidth=0, label=f"{levels[0]:g} to {levels[-1]:g}"
            )
        if self.truth is not None:
            axes.plot(self.time, self.truth[:, index], color=ORANGE, linewidth=1, label="truth")
        axes.plot(self.time, self.values[:, index], color=BLUE, linewidth=1.6, label="forecast")
        axes.set(title=f"{Path(self.source).name}: {self.variables[index]}")
        axes.legend(frameon=False, ncols=4, loc="upper left")
        figure.autofmt_xdate()
        return figure


def _origin(result: Labels | Embedding | Forecast) -> dict[str, str]:
    return {"source": result.source, "modality": result.modality, "model": result.model}


def _names(names: tuple[str, ...]) -> NDArray[np.object_]:
    """Strings of any length: the fixed-width kind has no stable form in Zarr 3."""
    return np.array(names, dtype=object)


def _figure(height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # the object alone: no global state, no display

    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
