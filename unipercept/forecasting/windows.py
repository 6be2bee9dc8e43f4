"""Windows cut from series where they lie: on the device, without a loader.

Shapes: S series of a batch, L past steps, T future steps, V variables, F features known in
advance, A static attributes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unipercept.forecasting.network import SeriesForecast, SeriesForecaster

# Values of a network's widest layer where no gradients are taken: a quarter of a GiB, and several such are held.
AT_ONCE = 2**26


@dataclass(frozen=True)
class Windows:
    """Windows of L + T steps of many series that lie one after the other in one buffer.

    Args:
        values: every series' steps, scaled, missing ones 0; one vector.
        observed: bool beside `values`, or None where nothing is missing.
        features: rows x F, or None.
        starts: first step of each window in `values`, of variable 0.
        rows: first row of each window in `features`, as many as `starts`.
        stride: distance in `values` from a variable to the next.
        n_variables: V; every window exists for each.
        lookback, horizon: L and T.
        static: (tables V) x A, attributes of each series, or None.
        tables: which table each window is of, as many as `starts`; None where there is one.
        together: a window is of all variables, not of one; for networks in which they see each other.
    """

    values: Tensor
    observed: Tensor | None
    features: Tensor | None
    starts: Tensor
    rows: Tensor
    stride: Tensor  # as many as `starts`
    n_variables: int
    lookback: int
    horizon: int
    together: bool = False
    static: Tensor | None = None
    tables: Tensor | None = None

    def __len__(self) -> int:
        return len(self.starts) * (1 if self.together else self.n_variables)

    def seeing(self, lookback: int) -> Windows:
        """The same windows with the last `lookback` past steps alone."""
        later = self.lookback - lookback
        return replace(self, starts=self.starts + later, rows=self.rows + later, lookback=lookback)

    def sample(self, most: int | None) -> Tensor:
        """Numbers of about `most` windows that are spread over all rows and all variables alike; None for all.

        Windows are counted variable by variable: with a step that shares a factor with V some variables are never met.
        """
        step = max(1, len(self) // most) if most else 1
        while not self.together and math.gcd(step, self.n_variables) > 1:
            step += 1
        return torch.arange(0, len(self), step, device=self.values.device)

    def batch(self, numbers: Tensor) -> Batch:
        """Windows by number: window * V + variable, or window where variables come together."""
        device = self.values.device
        if self.together:
            window = numbers
            variable = torch.arange(self.n_variables, device=device).expand(len(numbers), -1)
        else:
            window, variable = numbers // self.n_variables, (numbers % self.n_variables)[:, None]
        steps = torch.arange(self.lookback + self.horizon, device=device)
        where = (self.starts[window][:, None] + variable * self.stride[window][:, None])[:, None] + steps[:, None]
        observed = None if self.observed is None else self.observed[where]
        features = None if self.features is None else self.features[self.rows[window][:, None] + steps]
        origin = self.rows[window] + self.lookback
        static = None
        if self.static is not None:
            first = 0 if self.tables is None else self.tables[window][:, None] * self.n_variables
            static = self.static[first + variable]
        return Batch(self.values[where], observed, features, variable, self.lookback, origin, static)


@dataclass(frozen=True)
class Batch:
    """Windows, past and future in one."""

    values: Tensor  # Sx(L+T)xV, V = 1 unless variables come together
    observed: Tensor | None
    features: Tensor | None  # Sx(L+T)xF
    identity: Tensor  # SxV
    lookback: int
    origin: Tensor  # S, the row of the first future step
    static: Tensor | None = None  # SxVxA

    def forecast(self, network: SeriesForecaster, *, with_quantiles: bool = True) -> SeriesForecast:
        """What the network says of the future; of more features than it was built for it is shown the first.

        Without gradients a large batch goes through the network in parts.
        """
        size = max(1, AT_ONCE // (network.widest * self.identity.shape[1]))
        if torch.is_grad_enabled() or len(self.values) <= size:
            return self._forecast(network, with_quantiles)
        found = [
            self._cut(slice(first, first + size))._forecast(network, with_quantiles)
            for first in range(0, len(self.values), size)
        ]
        quantiles = [one.quantiles for one in found if one.quantiles is not None]
        deviation = [one.deviation for one in found if one.deviation is not None]
        return SeriesForecast(
            torch.cat([one.point for one in found]), torch.cat(quantiles) if quantiles else None, torch.cat(deviation)
        )

    def _cut(self, some: slice) -> Batch:
        """These windows alone."""
        observed, features, static = (
            None if one is None else one[some] for one in (self.observed, self.features, self.static)
        )
        return Batch(
            self.values[some], observed, features, self.identity[some], self.lookback, self.origin[some], static
        )

    def _forecast(self, network: SeriesForecaster, with_quantiles: bool) -> SeriesForecast:
        features = None if self.features is None else self.features[..., : network.n_features]
        seen = None if self.observed is None else self.observed[:, : self.lookback]
        past = self.values[:, : self.lookback]
        found: SeriesForecast = network(past, seen, features, self.identity, self.static, with_quantiles=with_quantiles)
        steps = self.values.shape[1] - self.lookback
        quantiles = None if found.quantiles is None else found.quantiles[:, :steps]
        return SeriesForecast(found.point[:, :steps], quantiles, found.deviation)

    @property
    def target(self) -> Tensor:
        """SxTxV."""
        return self.values[:, self.lookback :]

    @property
    def target_observed(self) -> Tensor | None:
        """SxTxV bool, or None."""
        return None if self.observed is None else self.observed[:, self.lookback :]
