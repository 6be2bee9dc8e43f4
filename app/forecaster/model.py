"""A network with its normalisation, grid and clock: physical states in, a physical state out; saved as one file.

Shapes: B batch, T input times, V channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unipercept.app.forecaster.boundary import padding_of
from unipercept.app.forecaster.clock import position_fields, seasonal, solar_fields
from unipercept.app.forecaster.frames import Grid, Statistics
from unipercept.app.forecaster.network import NetworkConfig, WeatherNetwork, preset
from unipercept.atomic import atomic_path
from unipercept.errors import InputError, WeightsError, one_line

FORMAT = 1  # of the file's header


class ForecastModel(nn.Module):
    """One step of a forecast.

    Args:
        network: works on normalised states.
        grid: of the states.
        statistics: of the channels, in `units`.
        step_hours: from one state to the next.
        units: of the channels.
        card: what a reader should know: data, licence, recipe, metric. JSON values only.
    """

    def __init__(
        self,
        network: WeatherNetwork,
        grid: Grid,
        statistics: Statistics,
        *,
        step_hours: float = 6,
        units: Sequence[str] | None = None,
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        config = network.config
        if grid.shape != (config.rows, config.columns) or len(statistics.mean) != len(config.channels):
            raise InputError(
                f"grid {grid.shape} and statistics of {len(statistics.mean)} channels do not fit the network"
            )
        self.network, self.grid, self.statistics, self.step_hours = network, grid, statistics, float(step_hours)
        self.channels, self.units = config.channels, tuple(units or ("1",) * len(config.channels))
        self.frames, self.card = config.frames, dict(card or {})
        for name, values in (("mean", statistics.mean), ("std", statistics.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64)[:, None, None], persistent=False)

    mean: Tensor
    std: Tensor

    def normalise(self, states: Tensor) -> Tensor:
        """...VxHxW physical to float32 with mean 0 and standard deviation 1; float64 stays so."""
        dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
        return ((states - self.mean.to(states.dtype)) / self.std.to(states.dtype)).to(dtype)

    def forcing(self, times: Any) -> tuple[Tensor | None, Tensor | None]:
        """Season and solar fields of the given times, as far as the network takes them, on its device."""
        config, like = self.network.config, self.network.change
        season = None if config.time == "none" else seasonal(times).to(like)
        if not config.solar:
            return season, None
        return season, solar_fields(times, self.grid.latitude, self.grid.longitude).to(like)

    def forward(self, states: Tensor, times: Any) -> Tensor:
        """BxTxVxHxW, the last of them at `times` (B), to BxVxHxW one step later, all in physical units.

        The change is what is brought back to physical units: adding it to the state keeps
        the digits that the state has.
        """
        normalised = self.normalise(states)
        change: Tensor = self.network(normalised, *self.forcing(times)) - normalised[:, -1]
        return states[:, -1] + change * self.std.to(change.dtype)

    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 over weights and settings: which model made a forecast."""
        digest = hashlib.sha256(json.dumps(self._header(), sort_keys=True).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write weights, settings, grid and statistics as one safetensors file."""
        from safetensors.torch import save_file

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        with atomic_path(path) as temporary:
            save_file(state, temporary, metadata={"forecaster": json.dumps({**self._header(), "card": self.card})})

    def _header(self) -> dict[str, Any]:
        statistics = {name: list(getattr(self.statistics, name)) for name in ("mean", "std", "change")}
        return {
            "format": FORMAT,
            "network": self.network.config.to_dict(),
            "latitude": list(self.grid.latitude),
            "longitude": list(self.grid.longitude),
            "statistics": statistics,
            "step_hours": self.step_hours,
            "units": list(self.units),
        }

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> ForecastModel:
        """Read what `save` wrote; in evaluation mode.

        Raises:
            WeightsError: it cannot be read, is damaged, or is something else.
        """
        from safetensors import safe_open

        path = Path(path)
        if not path.is_file():
            raise WeightsError(f"no forecast model at {path}; train one with `unipercept weather train`")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                header = json.loads((file.metadata() or {}).get("forecaster", "null"))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        except Exception as error:  # safetensors raises its own kind, and JSON another
            raise WeightsError(f"cannot read {path} as a forecast model: {one_line(error)}") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise WeightsError(f"{path} is not a forecast model in format {FORMAT} (of `unipercept weather train`)")
        return cls._from_header(header, state, path).to(device).eval()

    @classmethod
    def _from_header(cls, header: dict[str, Any], state: dict[str, Tensor], path: Path) -> ForecastModel:
        try:
            config = NetworkConfig.from_dict(header["network"])
            network = WeatherNetwork(config)
            network.load_state_dict(state)
            statistics = Statistics(**{name: tuple(values) for name, values in header["statistics"].items()})
            grid = Grid(tuple(header["latitude"]), tuple(header["longitude"]))
            settings = {"step_hours": header["step_hours"], "units": header["units"], "card": header["card"]}
        except (KeyError, TypeError, RuntimeError) as error:
            raise WeightsError(f"{path} is damaged: {one_line(error, 200)}") from error
        return cls(network, grid, statistics, **settings)


def new_model(
    name: str,
    channels: Sequence[str],
    grid: Grid,
    statistics: Statistics,
    *,
    step_hours: float = 6,
    units: Sequence[str] | None = None,
    static: Tensor | None = None,
    **settings: Any,
) -> ForecastModel:
    """A fresh model of a preset for a grid. Its forecast is persistence until it is trained.

    Args:
        name: of the preset.
        channels, units: V names and their units.
        statistics: of the training period, by which fields and changes are scaled.
        step_hours: lead of one step.
        static: SxHxW fields that never change, standardised; position (sines and cosines) always comes before them,
            except in the `puyun` preset, which has none unless some are given.
        settings: any of `NetworkConfig`.
    """
    rows, columns = grid.shape
    fields = [] if name == "puyun" and static is None else [position_fields(grid.latitude, grid.longitude)]
    if static is not None:
        fields.append(static.float())
    known = torch.cat(fields) if fields else None
    config = preset(
        name,
        **{
            "channels": tuple(channels),
            "rows": rows,
            "columns": columns,
            "padding": padding_of(grid.latitude, grid.longitude),
            "n_static": 0 if known is None else known.shape[0],
            **settings,
        },
    )
    change = torch.tensor(np.divide(statistics.change, statistics.std), dtype=torch.float32)
    network = WeatherNetwork(config, change, known)
    return ForecastModel(network, grid, statistics, step_hours=step_hours, units=units)
