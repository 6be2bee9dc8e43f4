"""Windows over the rows of a series, as the long-term forecasting benchmark takes them: one row apart, none dropped.

Shapes: L past steps, T future steps, V variables.
"""

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.base import Sample
from unipercept.errors import InputError


class WindowSet:
    """All windows of L past and T future steps, one row apart, whose future lies inside the split."""

    def __init__(self, values: NDArray[np.float32], first: int, last: int, lookback: int, horizon: int) -> None:
        first_future = max(first, lookback)
        if lookback < 1 or horizon < 1 or last - horizon < first_future:
            raise InputError(
                f"windows of {lookback} past and {horizon} future steps do not fit the split's {last - first} rows"
            )
        self.values, self.lookback, self.horizon = values, lookback, horizon
        self.first, self.last = first, last  # rows of the split, the last one not among them
        self.first_future = first_future
        self._count = last - horizon - first_future + 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """Input LxV and target TxV, scaled, float32."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        now = self.first_future + index
        past, future = self.values[now - self.lookback : now], self.values[now : now + self.horizon]
        return Sample(past, future, f"row {now}")


def scaled_windows(
    values: NDArray[np.float64], splits: dict[str, tuple[int, int]], split: str, lookback: int, horizon: int
) -> WindowSet:
    """Windows of one split of a table, rows x V, scaled by mean and standard deviation of its training rows; a variable
    that never changes in them is divided by 1, as the published code's scaler does.

    Raises:
        InputError: no such split, or windows that do not fit into it.
    """
    if split not in splits:
        raise InputError(f"split must be one of {', '.join(splits)}; got {split!r}")
    train = values[slice(*splits["train"])]
    deviation = train.std(axis=0)
    deviation[np.ptp(train, axis=0) == 0] = 1.0
    scaled = ((values - train.mean(axis=0)) / deviation).astype(np.float32)
    return WindowSet(scaled, *splits[split], lookback, horizon)
