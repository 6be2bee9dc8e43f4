"""The pipeline of each modality: a plain dictionary; classes are imported on first use.

base            the interface; batches runs maps through a network; files checks paths before they are read
detect          the modality of a file, from its content: containers, text_formats
image           picture reads files and arrays
audio           sound_file reads files, mel is the filter bank
video           video_readers reads frames
pointcloud      cloud_files reads files: cloud_headers, cloud_las, cloud_records, cloud_text; projection renders views
timeseries      series_table reads tables onto a regular grid; folding makes the map a file: table_file, workbook,
                table_head, legacy_text, cells; its columns: series_time_column, series_columns, series_times,
                series_numbers, series_clock, series_static, series_even
weather         weather_grid gives axes one form, weather_fields variables, weather_units units; weather_values finds
                codes for missing and wrong units; weather_grib opens GRIB, netcdf NetCDF for one thread at a time,
                netcdf_classic finds those cut short
quiet           silences C libraries
"""

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
