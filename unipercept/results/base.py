"""The interface of all results: they print, draw and save themselves."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from unipercept.atomic import atomic_path
from unipercept.errors import InputError
from unipercept.results.drawing import write_figure

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.figure import Figure

SAVED_SUFFIXES = (".json", ".csv", ".parquet", ".nc", ".zarr", ".png")


class ModelOutput(NamedTuple):
    """Outputs of a model for B maps: BxD pooled features, BxN logits of N classes and Bx2C textures
    (familiarity.py), float32 on the CPU.
    """

    pooled: Tensor
    logits: Tensor
    texture: Tensor


class Result(ABC):
    """The interface of all results."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""

    @abstractmethod
    def to_text(self) -> str:
        """A few lines for a terminal."""

    @abstractmethod
    def to_dataframe(self) -> pandas.DataFrame:
        """A table: what `save` writes to csv and parquet."""

    @abstractmethod
    def to_xarray(self) -> xarray.Dataset:
        """Named arrays: what `save` writes to nc and zarr."""

    @abstractmethod
    def plot(self) -> Figure:
        """A matplotlib figure; it is not shown, so that it works without a display."""

    def save(self, path: str | Path) -> Path:
        """Write by suffix: .json, .csv, .parquet, .nc, .zarr or .png; atomically.

        Raises:
            InputError: another suffix, or a folder that does not exist.
        """
        path = Path(path)
        if path.suffix.lower() not in SAVED_SUFFIXES:
            raise InputError(f"cannot save as {path.name}: the suffix must be one of {', '.join(SAVED_SUFFIXES)}")
        writers: dict[str, Callable[[Path], object]] = {
            ".json": lambda p: p.write_text(
                json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            ),
            ".csv": lambda p: self.to_dataframe().to_csv(p, index=False),
            ".parquet": lambda p: self.to_dataframe().to_parquet(p, index=False),
            ".nc": lambda p: self.to_xarray().to_netcdf(p),
            ".zarr": lambda p: self.to_xarray().to_zarr(p, consolidated=False),
            ".png": lambda p: write_figure(self.plot(), p),
        }
        with atomic_path(path) as temporary:
            writers[path.suffix.lower()](temporary)
        return path

    def _repr_html_(self) -> str:
        from html import escape

        table = self.to_dataframe().head(10).to_html(index=False, border=0)
        return f"<div><pre>{escape(self.to_text().splitlines()[0])}</pre>{table}</div>"
