"""The chosen methods fitted to the whole history: quantiles of what follows any origin.

Shapes: T rows, V series, O origins, H steps ahead, Q quantile levels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import UniperceptError
from unipercept.forecasting.backtest import Backtest
from unipercept.forecasting.baselines import Method, Naive
from unipercept.forecasting.choose import Choice, widened
from unipercept.forecasting.prepare import Prepared, forward_filled
from unipercept.forecasting.residuals import ErrorQuantiles, Liveliness, recent_window
from unipercept.forecasting.settings import QUANTILES

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Weighted methods with their error quantiles; what `forecast` and its scores on later data use.

    Args:
        parts: method, weight, and the error quantiles of one that gives points.
        own: series to the part (by its place) that alone serves it.
        constant: V bool; these are continued as they are.
        widening: Q conformal factors.
        liveliness: by which error quantiles are scaled.
    """

    parts: tuple[tuple[Method, float, ErrorQuantiles | None], ...]
    own: dict[int, int]
    constant: NDArray[np.bool_]
    widening: NDArray[np.float64]
    liveliness: Liveliness

    def quantiles(self, values: Array, origins: Sequence[int], horizon: int) -> NDArray[np.float64]:
        """O x H x V x Q of what follows each origin, given values[:origin]."""
        scale = self.liveliness.at(values, origins, horizon)
        found = [self._part(place, values, origins, horizon, scale) for place in range(len(self.parts))]
        total = np.zeros((len(origins), horizon, values.shape[1], len(QUANTILES)))
        for (_, weight, _), part in zip(self.parts, found, strict=True):
            total += weight * part
        for v, place in self.own.items():
            total[:, :, v] = found[place][:, :, v]
        result = widened(total, self.widening)
        if self.constant.any():
            last = forward_filled(values)[np.asarray(origins) - 1][:, None, :, None]
            result = np.where(self.constant[None, None, :, None], last, result)
        return np.asarray(result, np.float64)

    def _part(self, place: int, values: Array, origins: Sequence[int], horizon: int, scale: Array) -> Array:
        method, _, errors = self.parts[place]
        found = method.predict(values, origins, horizon)
        return found if errors is None else errors.around(found, scale)


def final_mixture(prepared: Prepared, found: Backtest, choice: Choice, *, seconds: float) -> Mixture:
    """The chosen methods, learned anew from the whole history where that is quick, with the error quantiles of the back-test."""
    parts: list[tuple[Method, float, ErrorQuantiles | None]] = []
    places: dict[str, int] = {}
    used = {*choice.weights, *choice.own.values()}
    scale = np.concatenate([found.earlier_liveliness, found.scored_liveliness])
    width = prepared.values.shape[1]
    for one in found.tested:
        if one.method.name not in used:
            continue
        method = copy.copy(one.method)
        if not method.gives_quantiles:
            try:
                method.fit(prepared.values, found.plan.horizon, seconds / len(used))
            except UniperceptError:
                method = one.method
        errors = None if one.errors is None else ErrorQuantiles(one.errors, scale).spread_to(found.columns, width)
        places[method.name] = len(parts)
        parts.append((method, choice.weights.get(method.name, 0.0), errors))
    own = {int(found.columns[v]): places[name] for v, name in choice.own.items()}
    window = recent_window(prepared.period, found.plan.horizon)
    return Mixture(
        tuple(parts), own, prepared.constant, choice.widening, Liveliness.of(prepared.values, prepared.period, window)
    )


def untested(prepared: Prepared) -> Mixture:
    """The last value again, for a history too short to test anything; its errors of one step grow with the root of the step."""
    values = prepared.values
    origins = list(range(1, len(values)))
    method = Naive()
    points = method.predict(values, origins, 1)
    lively = Liveliness.of(values, 1, 24)
    scale = lively.at(values, origins, 1)
    errors = prepared.truth[1:][:, None] - points
    spread = ErrorQuantiles(errors, scale)
    return Mixture(((method, 1.0, spread),), {}, prepared.constant, np.ones(len(QUANTILES)), lively)
