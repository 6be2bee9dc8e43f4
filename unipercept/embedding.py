"""The one form in which every modality reaches the backbone.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unipercept.atomic import atomic_path
from unipercept.errors import InputError, one_line

if TYPE_CHECKING:
    import xarray
    from PIL.Image import Image

MODALITIES = ("image", "audio", "video", "pointcloud", "timeseries", "weather")
RESERVED_NAMES = frozenset({"batch", "channel", "mask", "H", "W"})  # dimension names of the xarray form
FORMAT_NAME = "unipercept.EmbeddingMap"
FORMAT_VERSION = "1"


@dataclass(frozen=True, eq=False)
class Axis:
    """Physical positions along one dimension of a map. Several may share a dimension.

    >>> Axis("W", torch.arange(4) * 0.01, "s").values
    tensor([0.0000, 0.0100, 0.0200, 0.0300])

    Args:
        dim: "H" or "W".
        values: as many real numbers as the map has rows or columns, in `unit`; kept on the CPU.
        unit: as written after a number: "Hz", "s", "hPa", "degrees_north"; "1" for a plain count.

    Raises:
        InputError: another dim, or values that are not a vector of real numbers.
    """

    dim: str
    values: Tensor
    unit: str

    def __post_init__(self) -> None:
        if self.dim not in ("H", "W"):
            raise InputError(f'an Axis lies along "H" or "W", got {self.dim!r}')
        if not isinstance(self.values, Tensor) or self.values.ndim != 1:
            raise InputError(f"Axis values must be a 1-D tensor, got {_describe(self.values)}")
        if self.values.is_complex() or self.values.dtype == torch.bool:
            raise InputError(f"Axis values must be real numbers, got {self.values.dtype}")
        if not isinstance(self.unit, str) or not self.unit:
            raise InputError(f'an Axis needs a unit such as "Hz" ("1" for a plain count), got {self.unit!r}')
        object.__setattr__(self, "values", self.values.detach().cpu())

    def equals(self, other: Axis) -> bool:
        """Whether dim, unit and every value (and its dtype) are the same."""
        return (self.dim, self.unit, self.values.dtype) == (other.dim, other.unit, other.values.dtype) and _same(
            self.values, other.values
        )


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """An input laid out as an image, with the physical positions of its rows and columns.

    It is checked when it is made.

    >>> emap = EmbeddingMap(torch.zeros(1, 1, 2, 4), "audio", {"time": Axis("W", torch.arange(4) * 0.01, "s")})
    >>> emap.to_xarray().dims
    ('batch', 'channel', 'H', 'time')

    Args:
        tensor: BxCxHxW, floating point.
        modality: one of `MODALITIES`.
        coords: name to Axis, e.g. {"frequency": Axis("H", …, "Hz"), "time": Axis("W", …, "s")}.
        mask: BxHxW bool, True on real input; None means that all of it is real.
        metadata: what is needed to interpret or invert the map (source, sample rate, scaling constants …): JSON values
            only; tuples become lists.

    Raises:
        InputError: the parts do not fit together; the message says which and how.
    """

    tensor: Tensor
    modality: str
    coords: Mapping[str, Axis] = field(default_factory=dict)
    mask: Tensor | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_tensor(self.tensor)
        if self.modality not in MODALITIES:
            raise InputError(f"modality must be one of {', '.join(MODALITIES)}; got {self.modality!r}")
        for name, axis in self.coords.items():
            _check_axis(name, axis, self.tensor)
        if self.mask is not None:
            _check_mask(self.mask, self.tensor)
        object.__setattr__(self, "coords", dict(self.coords))
        object.__setattr__(self, "metadata", _json_values(self.metadata))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.tensor.shape)
        axes = ", ".join(f"{name} ({axis.dim}, {axis.unit})" for name, axis in self.coords.items()) or "no axes"
        return f"EmbeddingMap({self.modality}, {shape} {str(self.tensor.dtype).removeprefix('torch.')}, {axes})"

    def equals(self, other: EmbeddingMap) -> bool:
        """Whether both hold exactly the same values (NaN equals NaN), axes, mask and metadata."""
        return (
            self.modality == other.modality
            and self.tensor.dtype == other.tensor.dtype
            and _same(self.tensor, other.tensor)
            and list(self.coords) == list(other.coords)
            and all(axis.equals(other.coords[name]) for name, axis in self.coords.items())
            and ((self.mask is None) == (other.mask is None))
            and (self.mask is None or other.mask is None or torch.equal(self.mask, other.mask))
            and _dump(self.metadata) == _dump(other.metadata)
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> EmbeddingMap:
        """The same map on another device or in another floating-point type. Axes stay on the CPU."""
        mask = None if self.mask is None else self.mask.to(device=device)
        return replace(self, tensor=self.tensor.to(device=device, dtype=dtype), mask=mask)

    def select(self, index: int) -> EmbeddingMap:
        """Item `index` of the batch, as a batch of one, with its own metadata where `concat` kept them apart."""
        mask = None if self.mask is None else self.mask[index][None]
        return replace(self, tensor=self.tensor[index][None], mask=mask, metadata=self.metadata_of(index))

    def metadata_of(self, index: int) -> Mapping[str, Any]:
        """The metadata of item `index` of the batch: its own where `concat` kept them apart, else those of the map."""
        items: Any = self.metadata.get("items")
        is_apart = len(self.metadata) == 1 and isinstance(items, list) and len(items) == len(self)
        return dict(items[index]) if is_apart else self.metadata

    def real_share(self) -> Tensor:
        """B numbers in [0, 1], float32: the share of each item's cells that is real input rather than padding."""
        if self.mask is None:
            return torch.ones(len(self), dtype=torch.float32)
        return self.mask.float().mean(dim=(1, 2)).cpu()

    @staticmethod
    def concat(maps: Sequence[EmbeddingMap]) -> EmbeddingMap:
        """Join maps along the batch. Metadata that differ are kept item by item under "items".

        Raises:
            InputError: no maps, or modality, shape, dtype or axes differ.
        """
        if not maps:
            raise InputError("concat needs at least one EmbeddingMap, got none")
        first = maps[0]
        for other in maps[1:]:
            _check_alike(first, other)
        mask = None
        if any(m.mask is not None for m in maps):
            mask = torch.cat([m.mask if m.mask is not None else _all_real(m.tensor) for m in maps])
        metadata: Mapping[str, Any] = first.metadata
        if any(_dump(m.metadata) != _dump(first.metadata) for m in maps[1:]):
            metadata = {"items": [dict(m.metadata) for m in maps]}
        return replace(first, tensor=torch.cat([m.tensor for m in maps]), mask=mask, metadata=metadata)

    def save(self, path: str | Path) -> None:
        """Write the map as one safetensors file, atomically. `load` gives back exactly the same map."""
        from safetensors.torch import save_file

        tensors = {"tensor": self.tensor.detach().cpu().contiguous()}
        if self.mask is not None:
            tensors["mask"] = self.mask.cpu().contiguous()
        tensors |= {f"coords.{name}": axis.values.clone().contiguous() for name, axis in self.coords.items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=self._header())

    @staticmethod
    def load(path: str | Path) -> EmbeddingMap:
        """Read what `save` wrote.

        Raises:
            InputError: the file cannot be read, or is not an EmbeddingMap of this version.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
        except (SafetensorError, OSError) as error:
            raise InputError(f"cannot read {path} as an EmbeddingMap: {one_line(error)}") from error
        return _from_parts(tensors, header, source=str(path))

    def to_xarray(self) -> xarray.DataArray:
        """The map as a DataArray with named coordinates; it can be plotted, or written as NetCDF or Zarr.

        Dimensions: batch, channel, then the first axis along H and along W by name ("H", "W" where there is none).
        """
        from unipercept.embedding_xarray import to_xarray

        return to_xarray(self, self._header())

    @staticmethod
    def from_xarray(array: xarray.DataArray) -> EmbeddingMap:
        """Read back what `to_xarray` gave, also after a trip through NetCDF or Zarr.

        Raises:
            InputError: the array was not made by `to_xarray`.
        """
        from unipercept.embedding_xarray import parts_from_xarray

        tensors, header = parts_from_xarray(array)
        return _from_parts(tensors, header, source="the DataArray")

    def to_image(self, index: int = 0) -> Image:
        """Item `index` of the batch as the backbone sees it, rows from the top: an RGB picture of HxW pixels.

        Three channels are shown as red, green, blue (with mean and std of the metadata undone where they are
        known), one channel in colours from dark to bright. Of more channels the first 16 are tiled in reading order;
        of a video, whose channels are the colours of frame after frame, the first 16 frames. Padding is grey.

        Raises:
            InputError: there is no such item.
        """
        from unipercept.embedding_image import to_image

        return to_image(self, index)

    def _repr_html_(self) -> str:
        from unipercept.embedding_image import to_html

        return to_html(self)

    def _header(self) -> dict[str, str]:
        coords = {
            name: {"dim": axis.dim, "unit": axis.unit, "dtype": _dtype_name(axis.values.dtype)}
            for name, axis in self.coords.items()
        }
        return {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "modality": self.modality,
            "dtype": _dtype_name(self.tensor.dtype),
            "coords": _dump(coords),
            "metadata": _dump(self.metadata),
        }


def _from_parts(tensors: dict[str, Tensor], header: Mapping[str, str], source: str) -> EmbeddingMap:
    if header.get("format") != FORMAT_NAME or header.get("version") != FORMAT_VERSION:
        found = f"format {header.get('format')!r}, version {header.get('version')!r}"
        raise InputError(f"{source} must be an EmbeddingMap of version {FORMAT_VERSION}; found {found}")
    try:
        axes = json.loads(header["coords"])
        coords = {name: Axis(a["dim"], tensors.pop(f"coords.{name}"), a["unit"]) for name, a in axes.items()}
        tensor, mask = tensors.pop("tensor"), tensors.pop("mask", None)
        modality, metadata = header["modality"], json.loads(header["metadata"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{source} is a damaged EmbeddingMap ({type(error).__name__}: {one_line(error)}); make it again"
        ) from error
    if tensors or _dtype_name(tensor.dtype) != header.get("dtype"):
        raise InputError(
            f"{source} does not match its header (left over: {sorted(tensors)}, dtype {tensor.dtype}); make it again"
        )
    return EmbeddingMap(tensor, modality, coords, mask, metadata)


def _check_tensor(tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.ndim != 4:
        hint = "; a single map needs a batch dimension: tensor[None]" if getattr(tensor, "ndim", 0) == 3 else ""
        raise InputError(f"tensor must be BxCxHxW, got {_describe(tensor)}{hint}")
    if not tensor.is_floating_point():
        raise InputError(f"tensor must be floating point, got {tensor.dtype}; convert it with tensor.float()")
    if 0 in tensor.shape:
        raise InputError(f"tensor must not be empty, got {_describe(tensor)}")


def _check_axis(name: str, axis: Axis, tensor: Tensor) -> None:
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED_NAMES:
        raise InputError(f"an axis needs a name such as 'time' (not {', '.join(sorted(RESERVED_NAMES))}), got {name!r}")
    if not isinstance(axis, Axis):
        raise InputError(f"coords[{name!r}] must be an Axis, got {type(axis).__name__}")
    size = tensor.shape[2 if axis.dim == "H" else 3]
    if len(axis.values) != size:
        raise InputError(f"axis {name!r} lies along {axis.dim} and needs {size} values, got {len(axis.values)}")


def _check_mask(mask: Tensor, tensor: Tensor) -> None:
    batch, _, height, width = tensor.shape
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (batch, height, width):
        raise InputError(f"mask must be bool {batch}x{height}x{width}, got {_describe(mask)}")
    if mask.device != tensor.device:
        raise InputError(f"mask must lie on {tensor.device} like the tensor, got {mask.device}")


def _check_alike(first: EmbeddingMap, other: EmbeddingMap) -> None:
    for what, a, b in (
        ("modality", first.modality, other.modality),
        ("CxHxW", tuple(first.tensor.shape[1:]), tuple(other.tensor.shape[1:])),
        ("dtype", first.tensor.dtype, other.tensor.dtype),
        ("axes", list(first.coords), list(other.coords)),
    ):
        if a != b:
            raise InputError(f"concat needs maps of one {what}, got {a} and {b}")
    for name, axis in first.coords.items():
        if not axis.equals(other.coords[name]):
            raise InputError(f"concat needs maps on the same axes; {name!r} differs")


def _all_real(tensor: Tensor) -> Tensor:
    batch, _, height, width = tensor.shape
    return torch.ones(batch, height, width, dtype=torch.bool, device=tensor.device)


def _json_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that survives a trip through JSON unchanged, so that saving it is exact."""
    try:
        values = json.loads(_dump(metadata))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"metadata must hold JSON values (str, int, float, bool, None, lists, dicts): {one_line(error)}"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"metadata must be a mapping, got {type(metadata).__name__}")
    return values


def _dump(value: Any) -> str:
    return json.dumps(dict(value) if isinstance(value, Mapping) else value)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
