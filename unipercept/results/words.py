"""Names, times and origins of results as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unipercept.errors import as_text, shortened


class HasOrigin(Protocol):
    """Anything that says where a result comes from."""

    @property
    def source(self) -> str: ...
    @property
    def modality(self) -> str: ...
    @property
    def model(self) -> str: ...


def origin(result: HasOrigin) -> dict[str, str]:
    """The fields that every written form of a result carries."""
    return {"source": as_text(result.source), "modality": result.modality, "model": result.model}


def plain_times(times: NDArray[Any]) -> list[str]:
    """Times without digits that carry no information in any of them: 2024-01-31, 2024-01-31 18:00, or row numbers."""
    if not np.issubdtype(times.dtype, np.datetime64):
        return [str(time) for time in times]
    texts = [
        text.replace("T", " ") for text in np.datetime_as_string(times.astype("datetime64[ns]"), unit="ms").tolist()
    ]
    for ending in (".000", ":00", " 00:00"):
        if all(text.endswith(ending) for text in texts):
            texts = [text.removesuffix(ending) for text in texts]
        else:
            break
    return texts


def marked_times(times: NDArray[Any], metadata: Mapping[str, Any]) -> Any:
    """Times for a table, with their zone where the metadata say it: a file of bare times would pass for local ones."""
    import pandas as pd

    zone = metadata.get("time_zone")
    return times if zone is None else pd.DatetimeIndex(times).tz_localize(zone)


def text_array(names: tuple[str, ...]) -> NDArray[np.object_]:
    """Strings of any length: the fixed-width kind has no stable form in Zarr 3."""
    return np.array(names, dtype=object)


def short(name: str, limit: int = 24) -> str:
    """A name as pictures and lists have room for it."""
    return shortened(name, limit)
