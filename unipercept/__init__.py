"""One large-kernel ConvNet for images, audio, video, point clouds, time series and weather.

The names below are all that most users need. They are imported when first used: torch alone takes a
second or two, which `unipercept --help` must not wait for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unipercept.api import detect_modality, encode, encode_files, forecast, perceive, pipeline
    from unipercept.backbone import build_backbone
    from unipercept.embedding import Axis, EmbeddingMap
    from unipercept.reparam import reparameterize

__version__ = "0.1.0"

_LAZY = {
    "Axis": "unipercept.embedding",
    "EmbeddingMap": "unipercept.embedding",
    "build_backbone": "unipercept.backbone",
    "reparameterize": "unipercept.reparam",
    "detect_modality": "unipercept.api",
    "encode": "unipercept.api",
    "encode_files": "unipercept.api",
    "forecast": "unipercept.api",
    "perceive": "unipercept.api",
    "pipeline": "unipercept.api",
}

__all__ = [
    "Axis",
    "EmbeddingMap",
    "__version__",
    "build_backbone",
    "detect_modality",
    "encode",
    "encode_files",
    "forecast",
    "perceive",
    "pipeline",
    "reparameterize",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'unipercept' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
