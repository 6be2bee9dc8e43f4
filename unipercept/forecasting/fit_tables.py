"""What a fit makes of its tables: checked, cut into training and validation rows, laid out as windows on the device.

Shapes: T rows, V variables, F calendar features, A static attributes, L rows of a context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.errors import InputError
from unipercept.forecasting.network import SeriesForecaster
from unipercept.forecasting.scaling import Scale, mean_and_deviation
from unipercept.forecasting.windows import Windows
from unipercept.pipelines.folding import dominant_period

Array = NDArray[np.floating[Any]]

LEAST_CONTEXT = 4  # rows that a training window sees at least; before the first row a series is padded and masked
MOST_WINDOWS = 500_000  # of a series; a longer one gives every k-th
LONGEST_PERIOD = 366


@dataclass(frozen=True, eq=False)
class FitTables:
    """Tables of the same variables, each a series of its own in time; windows never cross.

    Args:
        tables: TxV each, NaN where missing.
        cuts: the first validation row of each.
        features: TxF each, or None.
        static: VxA each, or None.
    """

    tables: list[Array]
    cuts: list[int]
    features: list[Array] | None
    static: list[Array] | None

    @staticmethod
    def of(
        values: Array | Sequence[Array],
        calendar: Array | Sequence[Array] | None,
        static: Array | Sequence[Array] | None,
        horizon: int,
        fraction: float,
    ) -> FitTables:
        """Those long enough to learn from; the last `fraction` of their rows validates.

        Raises:
            InputError: shapes that do not fit, infinite values, or no table that is long enough.
        """
        tables = _checked_values(values)
        features = _checked_features(calendar, tables)
        attributes = _checked_static(static, tables)
        cuts = [_cut(len(table), horizon, fraction) for table in tables]
        usable = [i for i, (cut, table) in enumerate(zip(cuts, tables, strict=True)) if cut < len(table)]
        if not usable:
            longest = max(map(len, tables))
            raise InputError(
                f"a horizon of {horizon} needs at least {2 * horizon + LEAST_CONTEXT} rows, the longest series has {longest}; "
                "shorten the horizon"
            )
        return FitTables(
            [tables[i] for i in usable],
            [cuts[i] for i in usable],
            None if features is None else [features[i] for i in usable],
            None if attributes is None else [attributes[i] for i in usable],
        )

    def __len__(self) -> int:
        return len(self.tables)

    @property
    def n_variables(self) -> int:
        """V."""
        return int(self.tables[0].shape[1])

    @property
    def n_features(self) -> int:
        """F."""
        return 0 if self.features is None else self.features[0].shape[1]

    @property
    def n_static(self) -> int:
        """A."""
        return 0 if self.static is None else self.static[0].shape[1]

    @property
    def validation_rows(self) -> int:
        """Of all tables together."""
        return sum(len(table) - cut for table, cut in zip(self.tables, self.cuts, strict=True))

    def heads(self) -> list[Array]:
        """The training rows."""
        return [table[:cut] for table, cut in zip(self.tables, self.cuts, strict=True)]

    def strongest_period(self) -> int:
        """Of the longest table's training rows, in its first variables."""
        part = max(self.heads(), key=len)[-8192:, :64]
        filled = np.where(np.isnan(part), mean_and_deviation(part)[0], part)
        return dominant_period(torch.from_numpy(filled.T.copy()), min(LONGEST_PERIOD, max(2, len(part) // 3)))

    def windows(
        self, network: SeriesForecaster, scale: Scale, horizon: int, device: torch.device
    ) -> tuple[Windows, Windows]:
        """Training windows whose future lies before the cut, validation windows whose future lies after it."""
        lookback, horizon = network.lookback, min(horizon, network.horizon)
        longest = max(self.cuts)
        variables = self.n_variables
        front = lookback - min(LEAST_CONTEXT, lookback) if longest < 4 * (lookback + horizon) else 0
        buffers, masks, known, parts = [], [], [], ([], [])  # type: ignore[var-annotated]
        base = row_base = 0
        for number, (table, cut) in enumerate(zip(self.tables, self.cuts, strict=True)):
            padded = np.full((front + len(table), variables), np.nan, np.float32)
            padded[front:] = scale.scaled(table, number)
            buffers.append(np.nan_to_num(padded).T.reshape(-1))
            masks.append(~np.isnan(padded).T.reshape(-1))
            if self.features is not None:
                whole = np.zeros((len(padded), self.n_features), np.float32)
                whole[front:] = scale.scaled_features(self.features[number])
                known.append(whole)
            for part, first, last in zip(parts, (lookback, front + cut), (front + cut, len(padded)), strict=True):
                first = max(first, lookback)
                count = last - horizon - first + 1
                if count > 0:
                    starts = np.arange(0, count, max(1, count // MOST_WINDOWS), dtype=np.int64) + first - lookback
                    each = [np.full(len(starts), value, np.int64) for value in (len(padded), number)]
                    part.append((base + starts, row_base + starts, *each))
            base, row_base = base + padded.size, row_base + len(padded)

        def move(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        values, seen = move(np.concatenate(buffers)), np.concatenate(masks)
        observed = None if seen.all() else move(seen)
        told = None if self.features is None else move(np.concatenate(known))
        static = None if self.static is None else move(np.concatenate(self.static).astype(np.float32))
        made = []
        for name, part in zip(("training", "validation"), parts, strict=True):
            if not part:
                raise InputError(f"no {name} window of {horizon} steps fits; give more rows or a shorter horizon")
            begin, row, stride, of_table = (move(np.concatenate(column)) for column in zip(*part, strict=True))
            made.append(
                Windows(
                    values, observed, told, begin, row, stride, variables, lookback, horizon, network.mix is not None,
                    static, of_table,
                )
            )  # fmt: skip
        return made[0], made[1]


def _checked_values(values: Array | Sequence[Array]) -> list[Array]:
    several = isinstance(values, list | tuple)
    tables: list[Array] = [np.asarray(table, np.float64) for table in (values if several else [values])]
    if not tables or any(
        table.ndim != 2 or table.shape[1] != tables[0].shape[1] or 0 in table.shape for table in tables
    ):
        raise InputError(
            f"values must be TxV, or tables of the same V; got {', '.join(str(t.shape) for t in tables[:5]) or 'none'}"
        )
    for table in tables:
        if np.isinf(table).any():
            raise InputError("values hold infinite numbers; mark missing ones with NaN")
    if all(np.isnan(table).all() for table in tables):
        raise InputError("every value is missing")
    return tables


def _checked_features(calendar: Array | Sequence[Array] | None, tables: list[Array]) -> list[Array] | None:
    if calendar is None:
        return None
    features: list[Array] = [
        np.asarray(part, np.float64) for part in (calendar if isinstance(calendar, list | tuple) else [calendar])
    ]
    if [len(f) for f in features] != [len(t) for t in tables] or any(f.ndim != 2 for f in features):
        raise InputError("calendar must have a row of features for each row of the values")
    if not all(np.isfinite(f).all() for f in features):
        raise InputError("calendar features must be finite: what is known in advance is known")
    return features


def _checked_static(static: Array | Sequence[Array] | None, tables: list[Array]) -> list[Array] | None:
    if static is None:
        return None
    parts: list[Array] = [
        np.asarray(part, np.float64) for part in (static if isinstance(static, list | tuple) else [static])
    ]
    width = parts[0].shape[-1] if parts and parts[0].ndim == 2 else 0
    if [part.shape for part in parts] != [(table.shape[1], width) for table in tables] or not width:
        raise InputError(
            f"static must be VxA for each table of TxV; got {', '.join(str(part.shape) for part in parts[:5]) or 'none'}"
        )
    if not all(np.isfinite(part).all() for part in parts):
        raise InputError("static attributes must be finite; give a missing one a column of its own")
    return parts


def _cut(rows: int, horizon: int, fraction: float) -> int:
    """First validation row; `rows` where the series is too short to learn from."""
    cut = min(rows - horizon, round(rows * (1 - fraction)))
    return cut if cut >= horizon + LEAST_CONTEXT else rows
