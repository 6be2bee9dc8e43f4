"""The pipeline of each modality: a plain dictionary; classes are imported on first use."""

from importlib import import_module
from typing import Any

from unipercept.errors import InputError
from unipercept.pipelines.base import Pipeline

PIPELINES = {
    "image": ("unipercept.pipelines.image", "ImagePipeline"),
    "audio": ("unipercept.pipelines.audio", "AudioPipeline"),
    "video": ("unipercept.pipelines.video", "VideoPipeline"),
    "pointcloud": ("unipercept.pipelines.pointcloud", "PointCloudPipeline"),
    "timeseries": ("unipercept.pipelines.timeseries", "TimeSeriesPipeline"),
    "weather": ("unipercept.pipelines.weather", "WeatherPipeline"),
}


def pipeline_class(modality: str) -> type[Pipeline[Any]]:
    """The class that reads and embeds `modality`.

    Raises:
        InputError: there is no such modality.
    """
    if modality not in PIPELINES:
        raise InputError(f"modality must be one of {', '.join(PIPELINES)}; got {modality!r}")
    module, name = PIPELINES[modality]
    found: type[Pipeline[Any]] = getattr(import_module(module), name)
    return found


__all__ = ["PIPELINES", "Pipeline", "pipeline_class"]
