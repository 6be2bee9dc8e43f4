"""Weather fields to maps: a time of ERA5-like fields is one map, a channel a field. H is latitude, W is longitude.

Shapes: C channels, H rows from north to south, W columns from 0 degrees east.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from unipercept.devices import on_cpu
from unipercept.embedding import Axis, EmbeddingMap
from unipercept.errors import InputError, import_optional, one_line
from unipercept.pipelines.base import PerceptionModel, Pipeline, check_raw
from unipercept.pipelines.detect import is_zarr, zipped_zarr
from unipercept.pipelines.files import check_file, open_error
from unipercept.pipelines.netcdf import open_netcdf
from unipercept.pipelines.weather_fields import CHANNEL_SETS, Channel, find_channels
from unipercept.pipelines.weather_grib import open_grib
from unipercept.pipelines.weather_grid import area_weights, canonical_grid, first_lead, grid_facts
from unipercept.pipelines.weather_values import doubt, limits_of, without_codes

if TYPE_CHECKING:
    import xarray

EXPECTED = "gridded weather (NetCDF, Zarr or GRIB)"
PROGRESS_PATTERN = "_progress*"  # beside the arrays of a store that one of our writers has not finished
MAX_BLOCK_BYTES = 256 << 20  # fields read at a time, where a chunk of the store holds many times
MAX_MAP_CELLS = 1 << 29  # channels x rows x columns of one map: 2 GiB
CONSTANT = 1e-7  # a standard deviation below this share of the mean is rounding: float32 holds seven digits


@dataclass(frozen=True)
class WeatherConfig:
    """How fields become maps.

    Args:
        channels: names such as ("z500", "t2m"), a set ("puyun69", "wb69"), or None for every field of the file.
        times: "all", or how many, spread evenly.
        missing: "mask" fills missing cells with the channel's mean and masks them; "error" refuses them.
        statistics: channel to (mean, std) in canonical units; None standardises each map and channel by its own
            area-weighted mean and standard deviation. Either way both are in the metadata.
    """

    channels: tuple[str, ...] | str | None = None
    times: int | Literal["all"] = "all"
    missing: Literal["mask", "error"] = "mask"
    statistics: Mapping[str, tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.channels, str) and self.channels not in CHANNEL_SETS:
            raise InputError(f"channels must be names, or a set: {', '.join(CHANNEL_SETS)}; got {self.channels!r}")
        if self.times != "all" and (not isinstance(self.times, int) or self.times < 1):
            raise InputError(f'times must be "all" or at least 1, got {self.times!r}')
        if self.missing not in ("mask", "error"):
            raise InputError(f'missing must be "mask" or "error", got {self.missing!r}')

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The channel names, where they are chosen."""
        return CHANNEL_SETS[self.channels].names if isinstance(self.channels, str) else self.channels


@dataclass(frozen=True, eq=False)
class Fields:
    """Fields in the canonical layout, still on disk; or, for one time, read.

    Args:
        dataset: opened lazily.
        channels: what is taken of it, in order.
        times: numbers of the times to take; (0,) where there is no time axis.
        values: CxHxW float32 in canonical units, NaN where missing, once read.
        notes: what was converted, a sentence each.
    """

    dataset: xarray.Dataset
    channels: tuple[Channel, ...]
    times: tuple[int, ...]
    source: str
    notes: tuple[str, ...]
    values: NDArray[np.float32] | None = None


class WeatherPipeline(Pipeline[Fields]):
    """Fields to a 1 x C x H x W map per time, standardised channel by channel, axes in degrees north and east."""

    modality = "weather"

    def __init__(self, config: WeatherConfig = WeatherConfig(), *, model: PerceptionModel | None = None) -> None:
        super().__init__(model)
        self.config = config

    def read(self, path: Any) -> Fields:
        """Open a NetCDF or GRIB file or a Zarr folder, or take an xarray Dataset; no field is read yet.

        Raises:
            InputError: it cannot be read, is not on a latitude-longitude grid, or lacks a channel that is asked for.
            MissingDependencyError: the library of its format is not installed.
        """
        notes: list[str] = []
        opened = open_dataset(path) if isinstance(path, str | Path) else _dataset(path)
        source = str(path) if isinstance(path, str | Path) else "Dataset"
        dataset = canonical_grid(first_lead(opened, notes), source, notes)
        channels = find_channels(dataset, self.config.wanted, source, notes)
        taken = sorted(
            {str(dim) for c in channels for dim in _extra_dims(dataset[c.variable]) if dataset.sizes[dim] > 1}
        )
        notes.extend(f"of the {dataset.sizes[dim]} along {dim} the first is taken" for dim in taken)
        cells = len(channels) * dataset.sizes["latitude"] * dataset.sizes["longitude"]
        if cells > MAX_MAP_CELLS:
            raise InputError(f"{source} makes maps of {cells} cells, at most {MAX_MAP_CELLS} are read; choose channels")
        count = dataset.sizes.get("time", 1)
        if not count:
            raise InputError(f"{source} has no times")
        wanted = count if self.config.times == "all" else min(count, self.config.times)
        times = tuple(np.linspace(0, count - 1, wanted).round().astype(int).tolist())
        return Fields(dataset, tuple(channels), times, source, tuple(notes))

    def split(self, raw: Fields) -> Iterator[Fields]:
        """One time after another, read in blocks that fit the store's chunks but never more than 256 MiB."""
        if raw.values is not None:
            yield raw
            return
        rows, columns = raw.dataset.sizes["latitude"], raw.dataset.sizes["longitude"]
        at_once = max(1, MAX_BLOCK_BYTES // (4 * len(raw.channels) * rows * columns))
        for start in range(0, len(raw.times), at_once):
            block = raw.times[start : start + at_once]
            notes = list(raw.notes)
            values = read_block(raw, block, notes)
            for i, time in enumerate(block):
                yield replace(raw, times=(time,), values=values[i], notes=tuple(notes))

    def count(self, raw: Fields) -> int:
        """Times."""
        return 1 if raw.values is not None else len(raw.times)

    @on_cpu
    def embed(self, raw: Fields) -> EmbeddingMap:
        """One map of one time; of several times, their maps as a batch (as large as they are: prefer `maps`)."""
        check_raw(raw, Fields, "read, which takes an xarray Dataset too")
        if raw.values is None:
            return EmbeddingMap.concat([self.embed(piece) for piece in self.split(raw)])
        latitude, longitude = (raw.dataset[name].values.astype(np.float64) for name in ("latitude", "longitude"))
        real = np.isfinite(raw.values)
        if not real.all() and self.config.missing == "error":
            worst = raw.channels[int((~real).sum(axis=(1, 2)).argmax())].name
            raise InputError(
                f"{raw.source} has {int((~real).sum())} missing values, most in {worst}; allow them with missing='mask'"
            )
        if not real.any():
            raise InputError(f"{raw.source} holds missing values only at time {_time_text(raw)}")
        scaled, mean, std = self._standardised(raw, real, area_weights(latitude))
        metadata = {
            "source": raw.source,
            "time": _time_text(raw),
            "channels": [c.name for c in raw.channels],
            "units": [c.unit for c in raw.channels],
            "mean": mean,
            "std": std,
            "missing_values": int((~real).sum()),
            **grid_facts(latitude, longitude),
            "notes": [*raw.notes, *doubts(raw.channels, raw.values)],
            "attributes": {
                k: one_line(v, 200)
                for k, v in raw.dataset.attrs.items()
                if str(k) in ("source", "title", "institution")
            },
        }
        coords = {
            "latitude": Axis("H", torch.from_numpy(latitude), "degrees_north"),
            "longitude": Axis("W", torch.from_numpy(longitude), "degrees_east"),
        }
        mask = None if real.all() else torch.from_numpy(real.all(axis=0))[None]
        return EmbeddingMap(torch.from_numpy(scaled)[None], self.modality, coords, mask, metadata)

    def _standardised(
        self, raw: Fields, real: NDArray[np.bool_], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], list[float], list[float]]:
        """Each channel to mean 0 and deviation 1, missing cells to 0; and the means and
        deviations that were taken off.
        """
        assert raw.values is not None
        scaled, means, stds = np.empty_like(raw.values), [], []
        for i, channel in enumerate(raw.channels):
            known, field = real[i], raw.values[i].astype(np.float64)
            if self.config.statistics is not None:
                if channel.name not in self.config.statistics:
                    raise InputError(
                        f"statistics lack channel {channel.name}; they have {', '.join(list(self.config.statistics)[:8])}"
                    )
                mean, std = self.config.statistics[channel.name]
            else:
                area = known * weights[:, None]
                total = max(float(area.sum()), 1e-300)
                mean = float((np.where(known, field, 0) * area).sum() / total)
                std = float(np.sqrt((np.where(known, field - mean, 0) ** 2 * area).sum() / total))
                std = std if std > CONSTANT * abs(mean) else 1.0
            scaled[i] = np.where(known, (field - mean) / std, 0.0)
            means.append(mean)
            stds.append(std)
        return scaled, means, stds


def _dataset(fields: Any) -> xarray.Dataset:
    """A Dataset, or a DataArray as one."""
    import xarray as xr

    if isinstance(fields, xr.DataArray):
        if fields.name is None:
            raise InputError("the DataArray has no name; call it what it holds, such as array.rename('t2m')")
        return fields.to_dataset()
    if not isinstance(fields, xr.Dataset):
        raise TypeError(f"expected a path or an xarray Dataset, got {type(fields).__name__}")
    return fields


def open_dataset(path: str | Path) -> xarray.Dataset:
    """Open NetCDF, Zarr or GRIB by content, lazily.

    Raises:
        InputError: it is none of them, or damaged.
        MissingDependencyError: the library of its format is not installed.
    """
    import xarray as xr

    path = check_file(path, folder=True)
    try:
        with warnings.catch_warnings():  # what the libraries have to say of a file is not for our users
            warnings.simplefilter("ignore")
            return _open_any(path, xr)
    except (InputError, ImportError):
        raise
    except Exception as error:  # netCDF4, zarr and eccodes raise many kinds for a damaged file
        reason, is_time, _ = str(error).partition(". Try opening your dataset with decode_times=False")
        raise open_error(path, EXPECTED, f"{reason}; write them as days since a date" if is_time else error) from error


def _open_any(path: Path, xr: Any) -> xarray.Dataset:
    if path.is_dir():
        import_optional("zarr", extra="weather")
        if not is_zarr(path):
            raise InputError(f"{path} is a folder without Zarr metadata; expected {EXPECTED}")
        if any(path.glob(PROGRESS_PATTERN)):
            raise InputError(f"{path} is still being written, or was left unfinished; finish it first")
        root = xr.open_zarr(path, chunks=None)
        return root if root.sizes else _of_one_group(path, xr.open_groups(path, engine="zarr"), root)
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"GRIB"):
        return open_grib(path, EXPECTED)
    if head.startswith(b"PK\x03\x04"):
        return _open_zipped_zarr(path, xr)
    if head.startswith((b"CDF", b"\x89HDF")):
        root, groups = open_netcdf(path)
        return root if root.sizes else _of_one_group(path, groups, root)
    raise InputError(f"{path} is not {EXPECTED}: it starts with {head!r}")


def _open_zipped_zarr(path: Path, xr: Any) -> xarray.Dataset:
    zarr = import_optional("zarr", extra="weather")
    group = zipped_zarr(path)
    if group is None:
        raise InputError(f"{path} is a ZIP archive without a Zarr store in it; unpack it and give the files")
    options = {"group": group, "consolidated": False} if group else {}  # xarray looks for the former at the root alone
    dataset: xarray.Dataset = xr.open_zarr(zarr.storage.ZipStore(path, mode="r"), chunks=None, **options)
    return dataset


def _of_one_group(path: Path, groups: Mapping[str, xarray.Dataset], root: xarray.Dataset) -> xarray.Dataset:
    """The one group of a file that holds something, where nothing lies at its root."""
    groups = {name: group for name, group in groups.items() if group.sizes}
    if len(groups) > 1:
        raise InputError(
            f"{path} holds the groups {', '.join(groups)}; from Python, give one: xarray.open_dataset({path.name!r}, group=...)"
        )
    return next(iter(groups.values()), root)


def read_block(raw: Fields, times: tuple[int, ...], notes: list[str] | None = None) -> NDArray[np.float32]:
    """Fields of the times with these numbers, TxCxHxW float32 in canonical units, NaN where missing.

    Args:
        notes: gets a sentence for each code, such as -9999, that is taken as missing.
    """
    rows, columns = raw.dataset.sizes["latitude"], raw.dataset.sizes["longitude"]
    block = np.empty((len(times), len(raw.channels), rows, columns), np.float32)
    first = times[0]
    contiguous = times == tuple(range(first, first + len(times)))
    levels = raw.dataset["level"].values.astype(np.float64) if "level" in raw.dataset.dims else None
    coded: dict[float, list[str]] = {}
    for variable in dict.fromkeys(c.variable for c in raw.channels):
        array = raw.dataset[variable]
        if "time" in array.dims:
            array = array.isel(time=slice(first, first + len(times)) if contiguous else list(times))
        array = array.isel(dict.fromkeys(_extra_dims(array), 0))
        try:
            stored = array.transpose("time", "level", "latitude", "longitude", missing_dims="ignore").values
        except Exception as error:  # whatever the store raises for a chunk that is damaged
            raise open_error(raw.source, EXPECTED, error) from error
        for i, channel in enumerate(raw.channels):
            if channel.variable != variable:
                continue
            if channel.level is None or levels is None:
                field = stored
            else:
                field = stored[..., int(abs(levels - channel.level).argmin()), :, :]
            block[:, i], codes = _converted(field, channel)
            for code in codes:
                coded.setdefault(code, []).append(channel.name)
    if notes is not None:
        notes += [f"{code:g} is taken as a code for missing ({', '.join(names)})" for code, names in coded.items()]
    return block


def _converted(field: NDArray[Any], channel: Channel) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Stored values in the channel's unit, codes for missing as NaN; and those codes.

    In double precision, but for single precision in the right unit, which is most of what there is, and large.
    """
    is_plain = field.dtype == np.float32 and (channel.factor, channel.offset) == (1.0, 0.0)
    values, codes = without_codes(field if is_plain else field.astype(np.float64), stored_limits(channel))
    return values if is_plain else values * channel.factor + channel.offset, codes


def stored_limits(channel: Channel) -> tuple[float, float]:
    """Between what the values of a channel lie, in the unit in which they are stored."""
    low, high = limits_of(channel.name)
    return (low - channel.offset) / channel.factor, (high - channel.offset) / channel.factor


def doubts(channels: Sequence[Channel], values: NDArray[Any]) -> list[str]:
    """A sentence for each channel whose CxHxW values, in its canonical unit, cannot be in that unit."""
    found = (doubt(channel.name, channel.unit, field) for channel, field in zip(channels, values, strict=True))
    return [sentence for sentence in found if sentence is not None]


def _extra_dims(array: xarray.DataArray) -> set[Any]:
    """Dimensions that a map does not have: members, leads, depths."""
    return set(array.dims) - {"time", "level", "latitude", "longitude"}


def _time_text(raw: Fields) -> str | None:
    if "time" not in raw.dataset.coords:
        return None
    times = np.atleast_1d(raw.dataset["time"].values)
    return str(times[raw.times[0]]) if raw.times[0] < len(times) else None
