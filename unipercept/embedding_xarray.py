"""EmbeddingMap to and from xarray, exactly, also through NetCDF and Zarr. Imported on first use: xarray is heavy.

Shapes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import xarray
from torch import Tensor

from unipercept.errors import InputError

if TYPE_CHECKING:
    from unipercept.embedding import EmbeddingMap

# Units that xarray decodes into timedelta64 or datetime64 when a file is opened, which would change the numbers.
_DECODED_UNITS = frozenset({"days", "hours", "minutes", "seconds", "milliseconds", "microseconds", "nanoseconds"})


def to_xarray(emap: EmbeddingMap, header: Mapping[str, str]) -> xarray.DataArray:
    """The map as a DataArray whose attributes hold `header`, so that it can be read back exactly."""
    along = {name: axis.dim for name, axis in emap.coords.items()}
    dims = ("batch", "channel", _primary(along, "H"), _primary(along, "W"))
    coords: dict[str, xarray.Variable] = {}
    for name, axis in emap.coords.items():
        attributes = {} if axis.unit in _DECODED_UNITS or " since " in axis.unit else {"units": axis.unit}
        coords[name] = xarray.Variable(dims[2 if axis.dim == "H" else 3], _to_numpy(axis.values), attributes)
    if emap.mask is not None:
        coords["mask"] = xarray.Variable((dims[0], *dims[2:]), emap.mask.cpu().numpy())
    return xarray.DataArray(_to_numpy(emap.tensor), coords, dims, name="embedding_map", attrs=dict(header))


def parts_from_xarray(array: xarray.DataArray) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a DataArray made by `to_xarray`, its dimensions in any order.

    Raises:
        InputError: it was not made by `to_xarray`, or lost a coordinate or a dimension on its way.
    """
    header = {str(name): value for name, value in array.attrs.items() if isinstance(value, str)}
    try:
        axes, tensor_dtype = json.loads(header["coords"]), header["dtype"]
        along = {name: axis["dim"] for name, axis in axes.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "expected a DataArray made by EmbeddingMap.to_xarray(); its attributes are missing or damaged"
        ) from error
    missing = [name for name in axes if name not in array.coords]
    if missing:
        raise InputError(f"the DataArray has lost its coordinates {missing}; write and read it with all of them")
    dims = ("batch", "channel", _primary(along, "H"), _primary(along, "W"))
    if set(array.dims) != set(dims):
        raise InputError(
            f"the DataArray must have the dimensions {', '.join(dims)}; got {', '.join(map(str, array.dims))}"
        )
    array = array.transpose(*dims)
    tensors = {"tensor": _to_tensor(array, tensor_dtype)}
    tensors |= {f"coords.{name}": _to_tensor(array.coords[name], axis["dtype"]) for name, axis in axes.items()}
    if "mask" in array.coords:
        tensors["mask"] = _to_tensor(array.coords["mask"], "bool")
    return tensors, header


def _primary(along: Mapping[str, str], dim: str) -> str:
    """The first axis along `dim`, of axes by name, names the dimension, so that xarray indexes and plots by it."""
    return next((name for name, own in along.items() if own == dim), dim)


def _to_numpy(tensor: Tensor):  # type: ignore[no-untyped-def]
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()  # exact; NumPy has no bfloat16, NetCDF no half precision
    return tensor.numpy()


def _to_tensor(array: xarray.DataArray, dtype: str) -> Tensor:
    return torch.from_numpy(array.values.copy()).to(getattr(torch, dtype))
