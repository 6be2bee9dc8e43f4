"""Static attributes of series as numbers: categories become columns of 0 and 1, numbers are scaled over the series.

Shapes: V series, A attributes, F features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import InputError

Attribute = str | float | None

MOST_CATEGORIES = 50  # of an attribute; rarer ones share a column
SKEWED = 30.0  # largest over smallest of a positive attribute from which on its logarithm is taken


@dataclass(frozen=True, eq=False)
class Attributes:
    """What is known of each series besides its values.

    Args:
        names: A.
        rows: V times A values; None where a series has none.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[Attribute, ...], ...]

    @staticmethod
    def of(names: Sequence[str], by_series: Mapping[str, tuple[Attribute, ...]], series: Sequence[str]) -> Attributes:
        """Of these series, in their order."""
        return Attributes(tuple(names), tuple(by_series[name] for name in series))

    def encoded(self) -> NDArray[np.float64]:
        """VxF: of numbers their standard score (0 where missing), of categories a 1 in their column."""
        parts = [
            _numbers(column) if all(isinstance(cell, float | None) for cell in column) else _categories(column)
            for column in zip(*self.rows, strict=True)
        ]
        whole = np.concatenate(parts, axis=1)
        kept: NDArray[np.float64] = whole[:, np.ptp(whole, axis=0) > 0]
        return kept

    def check_same(self, later: Attributes, series: Sequence[str]) -> None:
        """Refuse attributes of a later table that are not those of the fit.

        Raises:
            InputError: an attribute that was not there, a category that was not seen, or another value of a series.
        """
        for name in later.names:
            if name not in self.names:
                raise InputError(f"static attribute {name!r} was not there when this was fitted")
        for place, name in enumerate(later.names):
            known = [row[self.names.index(name)] for row in self.rows]
            for one, was, now in zip(series, known, (row[place] for row in later.rows), strict=True):
                if isinstance(now, str) and now not in known:
                    raise InputError(
                        f"static attribute {name!r} of series {one!r} is {now!r}, which was not seen in the fit"
                    )
                if now is not None and now != was:
                    raise InputError(
                        f"static attribute {name!r} of series {one!r} is {now!r}; it was {was!r} in the fit"
                    )


def _numbers(column: Sequence[Attribute]) -> NDArray[np.float64]:
    values = np.array([np.nan if cell is None else cell for cell in column], np.float64)
    known = np.isfinite(values)
    if not known.any():
        return np.zeros((len(values), 0))
    low, high = values[known].min(), values[known].max()
    if low > 0 and high > SKEWED * low:
        values = np.log(values)
    deviation = values[known].std()
    scaled = np.where(known, (values - values[known].mean()) / (deviation if deviation > 0 else 1.0), 0.0)
    return np.stack([scaled, (~known).astype(np.float64)], axis=1)


def _categories(column: Sequence[Attribute]) -> NDArray[np.float64]:
    common = [name for name, _ in Counter(str(cell) for cell in column).most_common(MOST_CATEGORIES)]
    place = {name: i for i, name in enumerate(common)}
    found = np.zeros((len(column), len(common) + 1))
    found[np.arange(len(column)), [place.get(str(cell), len(common)) for cell in column]] = 1.0
    return found
