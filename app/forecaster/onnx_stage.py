"""Released weather models as ONNX graphs, one of a cascade's stages: PuYun, FuXi and Pangu-Weather interfaces.

The user brings the file and its licence; nothing is shipped or downloaded. Physical units go in and come out.

Shapes: B batch, T input times, V channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.app.forecaster.clock import released_time_vector
from unipercept.app.forecaster.frames import Grid
from unipercept.download import sha256_of
from unipercept.errors import InputError, WeightsError, import_optional, one_line
from unipercept.pipelines.weather_fields import LEVELS_13, PUYUN69

# Sources: the PuYun plugin of ai-models, the FuXi repository, the Pangu-Weather repository.
PANGU69 = (
    *(f"{name}{level}" for name in ("z", "q", "t", "u", "v") for level in reversed(LEVELS_13)),
    *("msl", "u10", "v10", "t2m"),
)
FUXI70 = (*PUYUN69.names, "tp")
TIME_INPUTS = ("time_embeddings", "temb")
UNITS = {"z": "m2 s-2", "q": "kg kg-1", "t": "K", "u": "m s-1", "v": "m s-1", "r": "%", "m": "Pa"}


class OnnxModel:
    """A graph as a stage's model.

    What the graph takes is read off it: `input` of 1xTxVxHxW (T is 2), with `time_embeddings` or `temb` where it has
    one; or Pangu's pair `input` (5x13xHxW) and `input_surface` (4xHxW), T being 1. Of a graph that returns several
    states, as FuXi's does, the last is taken. Batches are run one by one.

    Args:
        path: the .onnx file.
        channels: of its states; None for the published ones, by their number (69: PuYun's, 70: FuXi's).
        grid: None for the global grid of the graph's size, rows from 90 to -90 where they are odd in number.
        step_hours: from one state to the next.
        providers: onnxruntime's, in order of preference; None for a GPU where there is one.

    Raises:
        WeightsError: the file cannot be read.
        InputError: its inputs are of none of these kinds.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        channels: Sequence[str] | None = None,
        grid: Grid | None = None,
        step_hours: float = 6,
        providers: Sequence[str] | None = None,
    ) -> None:
        runtime = import_optional("onnxruntime", extra="onnx")
        self.path, self.step_hours = Path(path), float(step_hours)
        if not self.path.is_file():
            raise WeightsError(f"no ONNX graph at {self.path}")
        available = runtime.get_available_providers()
        wanted = list(providers or [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available])
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # what it has to say of a graph is not for our users
        try:
            self._session = runtime.InferenceSession(str(self.path), sess_options=options, providers=wanted)
        except Exception as error:  # onnxruntime has kinds of its own
            raise WeightsError(f"cannot read {self.path} as an ONNX graph: {one_line(error, 200)}") from error
        self._inputs = {entry.name: tuple(entry.shape) for entry in self._session.get_inputs()}
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self.is_pangu = "input_surface" in self._inputs
        if "input" not in self._inputs:
            raise InputError(f"{self.path} takes {', '.join(self._inputs)}; a weather graph takes `input`")
        self.frames, n_channels, rows, columns = self._sizes()
        self.channels = tuple(channels or self._published(n_channels))
        if len(self.channels) != n_channels:
            raise InputError(f"{self.path} has {n_channels} channels, {len(self.channels)} names were given")
        self.units = tuple("m" if c == "tp" else UNITS.get("m" if c == "msl" else c[0], "1") for c in self.channels)
        self.grid = grid or global_grid(rows, columns)
        if self.grid.shape != (rows, columns):
            raise InputError(f"{self.path} works on {rows}x{columns} cells, the grid has {self.grid.shape}")

    def __call__(self, states: Tensor, times: Any) -> Tensor:
        """BxTxVxHxW, the last at `times` (B), to BxVxHxW one step later, on the device of `states`."""
        found = [
            self._one(sample, time) for sample, time in zip(states.detach().cpu().float().numpy(), times, strict=True)
        ]
        return torch.from_numpy(np.stack(found)).to(states)

    def fingerprint(self) -> str:
        """The first 16 hex digits of the file's SHA-256."""
        return file_hash(self.path)

    def _one(self, states: NDArray[np.float32], time: Any) -> NDArray[np.float32]:
        rows, columns = self.grid.shape
        if self.is_pangu:
            state = states[-1]
            fed = {"input": state[:65].reshape(5, 13, rows, columns), "input_surface": state[65:]}
        else:
            fed = {"input": states[None]}
            for name in TIME_INPUTS:
                if name in self._inputs:
                    vector = released_time_vector(time, round(self.step_hours))
                    fed[name] = vector.reshape((1, 12) if name == "temb" else (1, 1, 12))
        results = self._session.run(self._outputs, fed)
        if self.is_pangu:
            return np.concatenate([results[0].reshape(65, rows, columns), results[1].reshape(4, rows, columns)])
        states_out = np.asarray(results[0], np.float32).reshape(-1, len(self.channels), rows, columns)
        return np.asarray(states_out[-1])

    def _sizes(self) -> tuple[int, int, int, int]:
        shape = self._inputs["input"]
        if self.is_pangu:
            return 1, 69, int(shape[-2]), int(shape[-1])
        if len(shape) != 5 or not all(isinstance(n, int) for n in shape[1:]):
            raise InputError(f"{self.path}: `input` is {shape}, expected 1 x times x channels x rows x columns")
        return int(shape[1]), int(shape[2]), int(shape[3]), int(shape[4])

    def _published(self, n_channels: int) -> tuple[str, ...]:
        known = {69: PANGU69 if self.is_pangu else PUYUN69.names, 70: FUXI70}
        if n_channels not in known:
            raise InputError(f"{self.path} has {n_channels} channels; name them")
        return known[n_channels]


def global_grid(rows: int, columns: int) -> Grid:
    """The global grid of that size: with rows at the poles where `rows` is odd, else of cell centres."""
    latitude = np.linspace(90, -90, rows) if rows % 2 else 90 - 180 / rows * (np.arange(rows) + 0.5)
    return Grid(tuple(latitude.tolist()), tuple((np.arange(columns) * 360 / columns).tolist()))


def file_hash(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    return sha256_of(path)[:16]
