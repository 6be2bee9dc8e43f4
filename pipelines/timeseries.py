"""Series to maps: each variable by itself, folded by the period that all of them share.

Shapes: B batch (a variable each), L steps, V variables, P period, R cycles, H rows, W columns.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.devices import on_cpu
from unipercept.embedding import Axis, EmbeddingMap
from unipercept.errors import InputError
from unipercept.pipelines.base import PerceptionModel, Pipeline, check_raw
from unipercept.pipelines.folding import dominant_period, fold_period, fold_square, unfold
from unipercept.pipelines.series_table import Series, grid_of, read_series
from unipercept.results import Anomalies, Labels

MIN_SIDE = 64  # cells: the backbone downsamples by 2 five times, so a smaller map would leave one cell
NORM_EPS = 1e-5
MAX_KINDS = 256  # variables that a head names: more than one reads, and few enough to wait for


@dataclass(frozen=True)
class TimeSeriesConfig:
    """How a series becomes maps.

    Args:
        window: L, steps in a map at the most; a longer series is cut into equal windows no longer than this.
        folding: "period" puts a cycle of the dominant period in each row; "square" is the reference's plain reshape of
            one feature a step to the most square picture.
        period: steps a cycle; None finds the strongest frequency.
        max_variables: embedded at a time; a wider table makes several maps.
        min_side: each cell is repeated until both sides have so many.
        size: S, both sides of every map, for networks that were trained on maps of one shape. Rows hold about sqrt(L)
            steps, a multiple of the period or an even part of it, and cells are repeated; averaged where a side has
            more than S. None keeps one cycle a row.
    """

    window: int = 4096
    folding: Literal["period", "square"] = "period"
    period: int | None = None
    max_variables: int = 32
    min_side: int = MIN_SIDE
    size: int | None = None

    def __post_init__(self) -> None:
        if (
            self.window < 2
            or self.max_variables < 1
            or self.min_side < 1
            or (self.period is not None and self.period < 1)
            or (self.size is not None and self.size < 1)
        ):
            raise InputError(
                "TimeSeriesConfig needs window >= 2, max_variables, min_side, period and size >= 1, "
                f"got {self.window}, {self.max_variables}, {self.min_side}, {self.period}, {self.size}"
            )
        if self.folding not in ("period", "square"):
            raise InputError(f'folding must be "period" or "square", got {self.folding!r}')


class TimeSeriesPipeline(Pipeline[Series]):
    """Series to a V x 1 x H x W map: H is the cycle, W the phase within it (time and time again).

    Each variable is brought to mean 0 and variance 1 over the window (kept in the metadata). Cells are repeated a whole
    number of times along each side, so `series_of` gives back every value. Filled gaps and padding are masked. With a
    `size` maps are square and of one shape, whatever the length; up to size^2/2 steps still come back.
    """

    modality = "timeseries"

    def __init__(
        self,
        config: TimeSeriesConfig = TimeSeriesConfig(),
        *,
        model: PerceptionModel | None = None,
        find_anomalies: Callable[[Any], Anomalies] | None = None,
    ) -> None:
        """`find_anomalies` does so in a table; if it is given, `perceive` returns them, and a trained head
        adds the kind of each column.
        """
        super().__init__(model)
        self.config = config
        self.find_anomalies = find_anomalies

    @property
    def looks_at_maps(self) -> bool:
        return self.find_anomalies is None

    def __call__(self, path: Any) -> Labels | Anomalies:
        """Anomalies of the table, and the kind of each column; without `find_anomalies`, the labels of the trained
        head, averaged over the columns.
        """
        if self.find_anomalies is None:
            return super().__call__(path)
        found = self.find_anomalies(path)
        if self.model is None or self.model.labels is None:
            return found
        return replace(found, metadata={**found.metadata, "kinds": self.kinds(path)})

    def kinds(self, path: Any) -> list[dict[str, Any]]:
        """The trained head's label for each variable's last window, for at most `MAX_KINDS` of them: variable, kind,
        score, model, remarks (`ood_score`, `notice`), and the number of steps used.

        Raises:
            InputError: the table holds no series.
            NoTrainedHeadError: the model has no head for series.
        """
        raw, model = self.read(path), self._model()
        first = max(0, len(raw) - self.config.window)
        raw = replace(
            raw,
            values=raw.values[first:, :MAX_KINDS],
            observed=raw.observed[first:, :MAX_KINDS],
            time=raw.time[first:],
            variables=raw.variables[:MAX_KINDS],
            first_step=first,
        )
        found = []
        for piece in self.split(raw):  # groups of variables
            emap = self.embed(piece)
            output = model.predict(emap)
            assert model.labels is not None
            chances_of_each = output.logits.softmax(dim=1)
            for name, vector, texture, chances in zip(
                piece.variables, output.pooled, output.texture, chances_of_each, strict=True
            ):
                best = int(chances.argmax())
                said = {
                    "variable": name,
                    "kind": model.labels[best],
                    "score": float(chances[best]),
                    "model": model.name,
                }
                remarks = model.remarks(F.normalize(vector, dim=0), texture, emap)
                found.append({**said, "n_steps": len(piece), **remarks})
        return found

    def read(self, path: Any) -> Series:
        """Read a table from a file, or take a pandas DataFrame or Series, an xarray object or a NumPy array (LxV).

        Raises:
            InputError: it holds no series; one line says why.
        """
        if isinstance(path, str | Path):
            return read_series(path)
        return grid_of(path).filled()

    def split(self, raw: Series) -> Iterator[Series]:
        """Equal windows in order; within each, groups of variables."""
        count = self._n_windows(raw)
        edges = [round(i * len(raw) / count) for i in range(count + 1)]
        for start, stop in pairwise(edges):
            for first in range(0, len(raw.variables), self.config.max_variables):
                last = first + self.config.max_variables
                yield replace(
                    raw,
                    values=raw.values[start:stop, first:last],
                    observed=raw.observed[start:stop, first:last],
                    time=raw.time[start:stop],
                    variables=raw.variables[first:last],
                    first_step=raw.first_step + start,
                )

    def count(self, raw: Series) -> int:
        """Windows times groups of variables."""
        return self._n_windows(raw) * -(-len(raw.variables) // self.config.max_variables)

    def _n_windows(self, raw: Series) -> int:
        return -(-len(raw) // self.config.window)

    @on_cpu
    def embed(self, raw: Series) -> EmbeddingMap:
        """One map of a window, a variable an item of the batch."""
        check_raw(raw, Series, "read")
        values = torch.from_numpy(np.ascontiguousarray(raw.values.T))
        mean = values.double().mean(dim=1)
        std = values.double().var(dim=1, correction=0).add(NORM_EPS**2).sqrt()
        scaled = ((values - mean[:, None]) / std[:, None]).float()
        observed = torch.from_numpy(np.ascontiguousarray(raw.observed.T))
        period = self.config.period or dominant_period(values)
        if self.config.folding == "period":
            row = row_length(period, len(raw)) if self.config.size else period
            folded, real = fold_period(scaled, row)
            seen = fold_period(observed, row)[0] & real
        else:
            picture, real = fold_square(scaled[..., None])
            folded, seen = picture[:, 0], fold_square(observed[..., None])[0][:, 0] & real
        rows, columns = folded.shape[1:]
        smallest = self.config.min_side
        sides = [self.config.size or -(-smallest // cells) * cells for cells in (rows, columns)]
        tensor, mask = _resized(folded, seen, real, sides)
        metadata = {
            "source": raw.source,
            "variables": list(raw.variables),
            "first_step": raw.first_step,
            "n_steps": len(raw),
            "start_time": str(raw.time[0]),
            "step_seconds": raw.step if np.issubdtype(raw.time.dtype, np.datetime64) else None,
            "folding": self.config.folding,
            "period": period,
            "cells": [rows, columns],
            "mean": mean.tolist(),
            "std": std.tolist(),
            "notes": list(raw.notes),
        }
        return EmbeddingMap(tensor[:, None], self.modality, self._axes(raw, rows, columns, sides), mask, metadata)

    def _axes(self, raw: Series, rows: int, columns: int, sides: list[int]) -> dict[str, Axis]:
        timed = np.issubdtype(raw.time.dtype, np.datetime64)
        unit, step = ("s", raw.step) if timed else ("1", 1.0)
        cycle = _cells_of(sides[0], rows).double() * columns * step
        phase = _cells_of(sides[1], columns).double() * step
        return {"cycle": Axis("H", cycle + raw.first_step * step, unit), "phase": Axis("W", phase, unit)}


def row_length(period: int, length: int) -> int:
    """Steps in a row of a map about as high as wide: the multiple of a period, or its even part, that is nearest to
    the square root of a length.
    """
    root = math.sqrt(length)
    if period <= root:
        return period * round(root / period)
    return max(1, round(period / round(period / root)))


def series_of(emap: EmbeddingMap) -> Tensor:
    """The L x V values that a map of this pipeline was made of, in the units of the table,
    float32; filled gaps included.

    Raises:
        InputError: the map was not made by TimeSeriesPipeline, or holds averages of steps.
    """
    facts = emap.metadata
    if emap.modality != "timeseries" or not {"cells", "n_steps", "mean", "std"} <= facts.keys():
        raise InputError(f"expected a map made by TimeSeriesPipeline, got {emap!r}")
    height, width = emap.tensor.shape[2:]
    rows, columns = facts["cells"]
    if rows > height or columns > width:
        raise InputError(
            f"the map's {height}x{width} cells are averages over {rows}x{columns} steps: the series is lost"
        )
    firsts = [-(-torch.arange(count) * side // count) for side, count in ((height, rows), (width, columns))]
    cells = emap.tensor[:, 0][:, firsts[0]][:, :, firsts[1]]
    scaled = unfold(cells, facts["n_steps"])
    mean, std = (torch.tensor(facts[key], dtype=torch.float64) for key in ("mean", "std"))
    return (scaled.double() * std[:, None] + mean[:, None]).float().T


def _resized(cells: Tensor, seen: Tensor, real: Tensor, sides: list[int]) -> tuple[Tensor, Tensor]:
    """BxRxP cells and whether they were observed (BxRxP) and are no padding (RxP) on a map of HxW: repeated
    along a side that grows, averaged without the padding along one that shrinks; there a cell counts as observed
    that is so for the most part.
    """
    repeated = min(sides[0], cells.shape[1]), min(sides[1], cells.shape[2])
    if repeated != cells.shape[1:]:
        share = F.adaptive_avg_pool2d(real[None].double(), repeated)
        cells = (F.adaptive_avg_pool2d((cells * real).double(), repeated) / share.clamp(min=1e-9)).to(cells.dtype)
        seen = F.adaptive_avg_pool2d(seen.double(), repeated) >= 0.5
    rows, columns = (_cells_of(side, count) for side, count in zip(sides, repeated, strict=True))
    return cells[:, rows][:, :, columns], seen[:, rows][:, :, columns]


def _cells_of(side: int, count: int) -> Tensor:
    """Which of `count` cells each of `side` positions shows, as evenly as may be."""
    return torch.arange(side) * count // side
