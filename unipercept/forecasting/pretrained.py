"""The pretrained network as a method of the back-test: nothing is fitted to the table, so short series are enough.

Shapes: T rows, V series, O origins, H steps ahead, Q quantile levels, S contexts, L rows of a context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.atomic import atomic_path
from unipercept.devices import resolve_device
from unipercept.errors import InputError
from unipercept.forecasting.forecaster_file import config_of, load_weights, read_forecaster
from unipercept.forecasting.pretrained_network import PretrainedConfig, PretrainedNetwork, folded_period
from unipercept.forecasting.repairs import forward_filled
from unipercept.forecasting.scaling import mean_and_deviation

Array = NDArray[np.floating[Any]]

FORMAT = "unipercept.pretrained_forecaster/1"
FILE = "forecaster_pretrained.safetensors"  # in unipercept/data
LEAST_ROWS = 8  # of a history
LONGEST_PERIOD = 168  # steps, as in training
# Up to so many every row of a history is shown; of longer ones whole cycles, so that histories share passes.
FEW_CYCLES = 4
MOST_CELLS = {"cpu": 1_500_000, "cuda": 300_000_000}  # of a back-test: some 20 s of two CPU cores
CELLS_AT_ONCE = {"cpu": 30_000, "cuda": 1_000_000}
MOST_ORIGINS = 48  # that a back-test asks for


class Pretrained:
    """Quantiles of what follows, by weights that saw generated processes alone."""

    name = "pretrained"
    gives_quantiles = True
    fits_closely = False

    def __init__(self, period: int, device: str = "auto", path: Path | None = None) -> None:
        """`path` names other weights than those of the package.

        Args:
            period: steps of the cycle of the series, 1 for none; `short_cycle` gives one that the weights know.

        Raises:
            InputError: a cycle that the weights were not trained on, or a device that is not there.
        """
        if not 1 <= period <= LONGEST_PERIOD or period != int(period):
            raise InputError(f"period must be 1 to {LONGEST_PERIOD} whole steps, got {period}")
        self.period, self.device, self.path = period, str(resolve_device(device)), path

    def fit(self, values: Array, horizon: int, seconds: float) -> None:
        """Nothing is learned; `InputError` where the weights are not for such a table."""
        if len(values) < LEAST_ROWS:
            raise InputError(f"{len(values)} rows are too few; {LEAST_ROWS} are needed")
        network = self._network()
        cells = MOST_ORIGINS * values.shape[1] * min(len(values), network.steps_seen(self.period))
        most = MOST_CELLS["cpu" if self.device == "cpu" else "cuda"]
        if cells > most:
            raise InputError(f"{values.shape[1]} series of {len(values)} rows would take too long on this device")

    def predict(self, values: Array, origins: Sequence[int], horizon: int) -> Array:
        """O x H x V x Q; where fewer than two rows are known before an origin, the last (or 0) at all levels."""
        network = self._network()
        seen_steps = network.steps_seen(self.period)
        filled, known = forward_filled(values), np.isfinite(values)
        starts = np.where(known.any(axis=0), known.argmax(axis=0), len(values))
        by_length: dict[int, list[tuple[int, int]]] = {}
        for place, origin in enumerate(origins):
            for variable in range(values.shape[1]):
                length = self._shown(min(origin - int(starts[variable]), seen_steps))
                by_length.setdefault(length, []).append((place, variable))
        found = np.empty((len(origins), horizon, values.shape[1], len(network.config.quantiles)))
        for length, places in by_length.items():
            row, column = (np.array(part) for part in zip(*places, strict=True))
            if length < 2:  # nothing is known yet
                last = np.pad(filled, ((1, 0), (0, 0)))[np.asarray(origins)[row], column]
                found[row, :, column] = np.nan_to_num(last)[:, None, None]
                continue
            rows = np.asarray(origins)[row][:, None] + np.arange(-length, 0)
            found[row, :, column] = self._of_series(
                filled[rows, column[:, None]], known[rows, column[:, None]], horizon
            )
        return found

    def of_contexts(self, contexts: Array, horizon: int) -> Array:
        """N x H x V x Q of what follows NxLxV contexts, the last rows of each, L at least 2; NaN where missing."""
        count, _, variables = contexts.shape
        series = (
            contexts[:, -self._network().steps_seen(self.period) :].transpose(0, 2, 1).reshape(count * variables, -1)
        )
        known = np.isfinite(series)
        filled = forward_filled(series.T, start="mean").T
        found = self._of_series(filled, known, horizon)
        return found.reshape(count, variables, horizon, -1).transpose(0, 2, 1, 3)

    def _shown(self, length: int) -> int:
        period = folded_period(self.period)
        return length if length <= FEW_CYCLES * period else length // period * period

    def _of_series(self, contexts: Array, known: NDArray[np.bool_], horizon: int) -> Array:
        """SxHxQ of SxL."""
        mean, deviation = mean_and_deviation(contexts, axis=1)
        scaled = (contexts - mean[:, None]) / deviation[:, None]
        at_once = max(1, CELLS_AT_ONCE["cpu" if self.device == "cpu" else "cuda"] // contexts.shape[1])
        x = torch.from_numpy(scaled).to(self.device, torch.float32)
        seen = torch.from_numpy(known).to(self.device)
        parts = [
            self._passes(part, mask, horizon)
            for part, mask in zip(torch.split(x, at_once), torch.split(seen, at_once), strict=True)
        ]
        return np.asarray(np.concatenate(parts) * deviation[:, None, None] + mean[:, None, None])

    @torch.inference_mode()
    def _passes(self, x: Tensor, seen: Tensor, horizon: int) -> Array:
        """SxHxQ; a horizon beyond one pass goes on from the median, and what was uncertain at its end stays so."""
        network = self._network()
        most = network.steps_seen(self.period)
        parts: list[Tensor] = []
        before: Tensor | None = None
        done = 0
        while done < horizon:
            quantiles = network(x[:, -most:], self.period, seen[:, -most:])
            middle = quantiles[..., network.median : network.median + 1]
            if before is not None:
                distance = quantiles - middle
                quantiles = middle + distance.sign() * (distance.square() + before.square()).sqrt()
            before = quantiles[:, -1:] - middle[:, -1:]
            parts.append(quantiles)
            done += quantiles.shape[1]
            x = torch.cat([x, middle[..., 0]], 1)
            seen = torch.cat([seen, torch.ones_like(middle[..., 0], dtype=torch.bool)], 1)
        return torch.cat(parts, 1)[:, :horizon].double().cpu().numpy()

    def _network(self) -> PretrainedNetwork:
        return load_pretrained(self.path, self.device)[0]


def short_cycle(period: int, periods: Sequence[int] = (), unseen: int | None = None) -> int:
    """The cycle that the weights are shown: the calendar's where rows are too few to see any, else the table's; where
    that is too long another that was found, or none.

    Told of a cycle that it has not seen twice, the network forecasts better than told of none: on development series,
    24 months by 15 %, 30 hours by 61 % (MASE).
    """
    wanted = (period, *sorted(periods)) if unseen is None else (unseen, period, *sorted(periods))
    return next((p for p in wanted if p <= LONGEST_PERIOD), 1)


def save_pretrained(network: PretrainedNetwork, card: dict[str, Any], path: Path) -> None:
    """Write weights in half precision, and the card in the header."""
    from safetensors.torch import save_file

    state = {
        key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for key, value in network.state_dict().items()
    }
    card = {"format": FORMAT, "config": asdict(network.config), **card}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"unipercept": json.dumps(card)})


@lru_cache(maxsize=4)
def load_pretrained(path: Path | None = None, device: str = "cpu") -> tuple[PretrainedNetwork, dict[str, Any]]:
    """Network and card; None for those that come with the package.

    Raises:
        InputError: no such file.
        WeightsError: not one of ours.
    """
    place = Path(str(files("unipercept.data") / FILE)) if path is None else path
    if path is None and not place.is_file():
        raise InputError("this installation carries no pretrained forecaster; install unipercept again")
    card, tensors = read_forecaster(place, FORMAT)
    network = PretrainedNetwork(config_of(card, PretrainedConfig, place))
    load_weights(network, tensors, place)
    return network.to(device).eval(), card
