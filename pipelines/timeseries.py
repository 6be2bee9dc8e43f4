"""Series to maps: each variable by itself, folded by the period that all of them share.

Shapes: B batch (a variable each), L steps, V variables, P period, R cycles, H rows, W columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unipercept.embedding import Axis, EmbeddingMap
from unipercept.errors import InputError
from unipercept.pipelines.base import PerceptionModel, Pipeline
from unipercept.pipelines.folding import dominant_period, fold_period, fold_square, unfold_period, unfold_square
from unipercept.pipelines.series_table import Series, read_series, series_from_frame
from unipercept.results import Anomalies, Labels

MIN_SIDE = 64  # cells: the backbone halves five times, so a smaller map would leave one cell
NORM_EPS = 1e-5


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
    """

    window: int = 4096
    folding: Literal["period", "square"] = "period"
    period: int | None = None
    max_variables: int = 32
    min_side: int = MIN_SIDE

    def __post_init__(self) -> None:
        if (
            self.window < 2
            or self.max_variables < 1
            or self.min_side < 1
            or (self.period is not None and self.period < 1)
        ):
            raise InputError(
                "TimeSeriesConfig needs window >= 2, max_variables, min_side and period >= 1, "
                f"got {self.window}, {self.max_variables}, {self.min_side}, {self.period}"
            )
        if self.folding not in ("period", "square"):
            raise InputError(f'folding must be "period" or "square", got {self.folding!r}')


class TimeSeriesPipeline(Pipeline[Series]):
    """Series to a V x 1 x H x W map: H is the cycle, W the phase within it (time and time again).

    Each variable is brought to mean 0 and variance 1 over the window (kept in the metadata). Cells are repeated a whole
    number of times along each side, so `series_of` gives back every value. Filled gaps and padding are masked.
    """

    modality = "timeseries"

    def __init__(
        self,
        config: TimeSeriesConfig = TimeSeriesConfig(),
        *,
        model: PerceptionModel | None = None,
        judge: Callable[[Any], Anomalies] | None = None,
    ) -> None:
        """`judge` says what stands out in a table; it is what perceiving a series means where the model has no trained head."""
        super().__init__(model)
        self.config = config
        self.judge = judge

    def __call__(self, path: Any) -> Labels | Anomalies:
        """What the table shows: the classes of a trained head, or what does not fit the rest of it."""
        if self.judge is None or (self.model is not None and self.model.labels is not None):
            return super().__call__(path)
        return self.judge(path)

    def read(self, path: Any) -> Series:
        """Read a table from a file, or take a pandas DataFrame or Series, an xarray object or a NumPy array (LxV).

        Raises:
            InputError: it holds no series; one line says why.
        """
        if isinstance(path, str | Path):
            return read_series(path)
        return series_from_frame(path)

    def split(self, raw: Series) -> Iterator[Series]:
        """Equal windows in order; within each, groups of variables."""
        count = -(-len(raw) // self.config.window)
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

    def embed(self, raw: Series) -> EmbeddingMap:
        """One map of a window, a variable an item of the batch."""
        values = torch.from_numpy(np.ascontiguousarray(raw.values.T))
        mean = values.double().mean(dim=1)
        std = values.double().var(dim=1, correction=0).add(NORM_EPS**2).sqrt()
        scaled = ((values - mean[:, None]) / std[:, None]).float()
        observed = torch.from_numpy(np.ascontiguousarray(raw.observed.T))
        period = self.config.period or dominant_period(values)
        if self.config.folding == "period":
            folded, real = fold_period(scaled, period)
            seen = fold_period(observed, period)[0] & real
        else:
            picture, real = fold_square(scaled[..., None])
            folded, seen = picture[:, 0], fold_square(observed[..., None])[0][:, 0] & real
        rows, columns = folded.shape[1:]
        repeats = [-(-self.config.min_side // rows), -(-self.config.min_side // columns)]
        tensor, mask = (_repeat(cells, repeats) for cells in (folded, seen))
        metadata = {
            "source": raw.source,
            "variables": list(raw.variables),
            "first_step": raw.first_step,
            "n_steps": len(raw),
            "start_time": str(raw.time[0]),
            "step_seconds": raw.step if np.issubdtype(raw.time.dtype, np.datetime64) else None,
            "folding": self.config.folding,
            "period": period,
            "repeats": repeats,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "notes": list(raw.notes),
        }
        return EmbeddingMap(tensor[:, None], "timeseries", self._axes(raw, rows, columns, repeats), mask, metadata)

    def _axes(self, raw: Series, rows: int, columns: int, repeats: list[int]) -> dict[str, Axis]:
        timed = np.issubdtype(raw.time.dtype, np.datetime64)
        unit, step = ("s", raw.step) if timed else ("1", 1.0)
        cycle = torch.arange(rows, dtype=torch.float64).repeat_interleave(repeats[0]) * columns * step
        phase = torch.arange(columns, dtype=torch.float64).repeat_interleave(repeats[1]) * step
        return {"cycle": Axis("H", cycle + raw.first_step * step, unit), "phase": Axis("W", phase, unit)}


def series_of(emap: EmbeddingMap) -> Tensor:
    """The L x V values that a map of this pipeline was made of, in the units of the table, float32; filled gaps included.

    Raises:
        InputError: the map was not made by TimeSeriesPipeline.
    """
    facts = emap.metadata
    if emap.modality != "timeseries" or not {"repeats", "n_steps", "mean", "std"} <= facts.keys():
        raise InputError(f"expected a map made by TimeSeriesPipeline, got {emap!r}")
    cells = emap.tensor[:, 0, :: facts["repeats"][0], :: facts["repeats"][1]]
    if facts["folding"] == "period":
        scaled = unfold_period(cells, facts["n_steps"])
    else:
        scaled = unfold_square(cells[:, None], facts["n_steps"], 1)[..., 0]
    mean, std = (torch.tensor(facts[key], dtype=torch.float64) for key in ("mean", "std"))
    return (scaled.double() * std[:, None] + mean[:, None]).float().T


def _repeat(cells: Tensor, repeats: list[int]) -> Tensor:
    return cells.repeat_interleave(repeats[0], dim=1).repeat_interleave(repeats[1], dim=2)
