"""The Python front door: a file of any modality in, a vector or labels out (outer ring).

>>> import unipercept
>>> unipercept.encode("door.wav").vector            # D float32 of length 1
>>> unipercept.perceive("cat.jpg", model="unireplknet_t.in1k_224").to_text()
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from os import PathLike, fspath
from pathlib import Path
from threading import Lock
from typing import Any, overload

from torch import Tensor

from unipercept.devices import on_cpu
from unipercept.embedding import EmbeddingMap
from unipercept.encode_chunk import AUTO, EncodedFile, EncodeSettings, FailedFile, encode_chunk, make_pipeline
from unipercept.encode_job import encode_files
from unipercept.errors import InputError, NoTrainedHeadError, UniperceptError
from unipercept.model_cards import UNIVERSAL, check_model_name, model_card, model_for, tasks_for
from unipercept.models import Model, load_model
from unipercept.perceive_chunk import perceive_chunk
from unipercept.pipelines import Pipeline
from unipercept.pipelines.base import no_head_message
from unipercept.pipelines.detect import check_input, detect_modality
from unipercept.pipelines.files import path_text
from unipercept.pipelines.timeseries import TimeSeriesPipeline
from unipercept.results import Anomalies, Embedding, Forecast, Labels, ModelOutput

__all__ = ["detect_modality", "encode", "encode_files", "forecast", "perceive", "perceive_files", "pipeline"]


def pipeline(modality: str, model: str | Path = "default", device: str = AUTO, config: Any = None) -> Pipeline[Any]:
    """The pipeline of one modality: reads files, makes maps, runs a model on them.

    >>> pipe = unipercept.pipeline("image")
    >>> emap = pipe.embed(pipe.read("photo.png"))
    >>> emap.tensor.shape, sorted(emap.coords)     # BxCxHxW, and the names of its axes
    (torch.Size([1, 3, 112, 112]), ['x', 'y'])

    Args:
        modality: "image", "audio", "video", "pointcloud", "timeseries" or "weather".
        model: a name that `unipercept models` lists, or the path of a checkpoint (.safetensors, .pth). The default,
            `universal`, stands for its network for the modality (of sounds: that of `universal.esc10`).
        device: "auto" (an accelerator where there is one), "cpu", "cuda" …
        config: the pipeline's settings, e.g. `AudioConfig(...)`; None for its defaults.

    Raises:
        InputError: there is no such modality or model.
    """
    model = check_model_name(model)
    chosen = _AnyChannels(model_for(model, modality), device, modality)
    made = make_pipeline(modality, chosen.card, model=chosen, config=config)
    if isinstance(made, TimeSeriesPipeline) and (model_card(model).name == UNIVERSAL or chosen.labels is None):
        made.find_anomalies = _anomalies
    return made


def ood_score(result: Labels | Anomalies) -> float:
    """Out-of-distribution score of a result; above 1 the labels carry a notice. 0 where the model has none."""
    return float(result.metadata.get("ood_score", 0.0))


def _anomalies(source: Any) -> Anomalies:
    from unipercept.forecasting.anomalies import find_anomalies

    return find_anomalies(source)


class _AnyChannels:
    """A model by name, loaded when the first map shows how many channels it needs. Its head serves one modality."""

    def __init__(self, name: str, device: str, modality: str) -> None:
        self.card = model_card(name)
        self._name, self._device, self._modality = name, device, modality
        self._last: Model | None = None

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.card.labels() if self.card.head_modality == self._modality else None

    def pooled(self, emap: EmbeddingMap) -> Tensor:
        return self._load(emap).pooled(emap)

    def predict(self, emap: EmbeddingMap) -> ModelOutput:
        if self.labels is None:
            raise NoTrainedHeadError(no_head_message(self.name, self._modality))
        self._last = self._load(emap)
        return self._last.predict(emap)

    def remarks(self, vector: Tensor, texture: Tensor, emap: EmbeddingMap) -> Mapping[str, Any]:
        return self._last.remarks(vector, texture, emap) if self._last else {}

    def _load(self, emap: EmbeddingMap) -> Model:
        return load_model(self._name, in_channels=emap.tensor.shape[1], device=self._device)


@overload
def perceive(  # type: ignore[overload-overlap]  # a str is an iterable of str; the first match wins
    path: str | Path,
    *,
    modality: str = ...,
    model: str | Path = ...,
    device: str = ...,
    on_progress: Callable[[float], object] | None = ...,
) -> Labels | Anomalies: ...
@overload
def perceive(
    path: Iterable[str | Path],
    *,
    modality: str = ...,
    model: str | Path = ...,
    device: str = ...,
    on_progress: Callable[[float], object] | None = ...,
) -> list[Labels | Anomalies]: ...
@on_cpu
def perceive(
    path: str | Path | Iterable[str | Path],
    *,
    modality: str = AUTO,
    model: str | Path = "default",
    device: str = AUTO,
    on_progress: Callable[[float], object] | None = None,
) -> Labels | Anomalies | list[Labels | Anomalies]:
    """Labels of a file, or anomalies of a table. For several files, of any modalities, a list in their order.

    >>> print(unipercept.perceive("photo.png", model="universal.fashion_mnist").top(1).to_text())  # doctest: +ELLIPSIS
    photo.png (image, universal.fashion_mnist)...

    Labels are the classes of the model's trained head. For a table of time series, unless a model with a head for
    series is named, the result is the anomalous values, and the type of each column ("kinds" in the `metadata`).

    `universal` has several heads for audio and point clouds: the labels are those of the head for which the recording
    is least out of distribution. `metadata` names that head, and has a "notice" if the recording is out of
    distribution even for it: its labels are then meaningless.

    Args:
        path: a file, or several.
        modality: "auto" (detected from the content), or one of those of `pipeline`.
        model, device: as of `pipeline`.
        on_progress: called with the share of the maps that has been sent to the network, from 0 to 1.

    Raises:
        NoTrainedHeadError: the model has no trained head for this modality.
        InputError: a file cannot be used; the message says which and why.
    """
    if isinstance(path, str | PathLike):
        return perceive([fspath(path)], modality=modality, model=model, device=device, on_progress=on_progress)[0]
    results: list[Labels | Anomalies] = []
    for _, result in perceive_files(path, modality=modality, model=model, device=device, on_progress=on_progress):
        if isinstance(result, UniperceptError):
            raise result
        results.append(result)
    return results


def perceive_files(
    paths: Iterable[str | Path],
    *,
    modality: str = AUTO,
    model: str | Path = "default",
    device: str = AUTO,
    on_progress: Callable[[float], object] | None = None,
) -> Iterator[tuple[str, Labels | Anomalies | UniperceptError]]:
    """As `perceive`, for files of which some may be unreadable: yields each path with its result or its error, in
    order, as soon as it is done.

    Maps of several files share passes of the network. Arguments are those of `perceive`.
    """
    model = check_model_name(model)

    making = Lock()

    @cache  # the same pipelines for all files: what they read can then share a batch
    def heads_for(found: str) -> tuple[Pipeline[Any], ...]:
        heads = tasks_for(model, found)
        return tuple(pipeline(found, name, device) for name in (heads if len(heads) > 1 else (model,)))

    def heads_of(path: str) -> tuple[Pipeline[Any], ...]:
        check_input(path)
        found = detect_modality(path) if modality == AUTO else modality
        with making:  # of two threads each would make its own
            return heads_for(found)

    for path, outputs in perceive_chunk(
        [path_text(path) for path in _listed(paths)], heads_of, on_progress=on_progress
    ):
        yield path, outputs if isinstance(outputs, UniperceptError) else min(outputs, key=ood_score)


@overload
def encode(  # type: ignore[overload-overlap]  # as above
    path: str | Path, *, modality: str = ..., model: str | Path = ..., device: str = ..., batch_size: int = ...
) -> Embedding: ...
@overload
def encode(
    path: Iterable[str | Path],
    *,
    modality: str = ...,
    model: str | Path = ...,
    device: str = ...,
    batch_size: int = ...,
) -> list[Embedding]: ...
def encode(
    path: str | Path | Iterable[str | Path],
    *,
    modality: str = AUTO,
    model: str | Path = "default",
    device: str = AUTO,
    batch_size: int = 32,
) -> Embedding | list[Embedding]:
    """The embedding of a file: an L2-normalised vector, D float32.

    For several files, of any modalities, a list in their order.

    >>> unipercept.encode("photo.png").vector.shape
    torch.Size([320])

    For folders, many files or files that may be unreadable, use `encode_files`: it writes as it goes and can resume.

    Args:
        path: a file, or several.
        modality: "auto" (detected from the content), or one of those of `pipeline`.
        model, device: as of `pipeline`.
        batch_size: maps of 224x224 that share a pass of the network; larger maps share it with fewer.

    Raises:
        InputError: a file cannot be used; the message says which and why.
    """
    if isinstance(path, str | PathLike):
        return encode([fspath(path)], modality=modality, model=model, device=device, batch_size=batch_size)[0]
    settings = EncodeSettings(check_model_name(model), modality, device, batch_size)
    return [_embedding(outcome) for outcome in encode_chunk([path_text(one) for one in _listed(path)], settings)]


def forecast(
    source: Any,
    horizon: int,
    *,
    targets: Sequence[str] = (),
    time: str | None = None,
    series: str | None = None,
    known: Sequence[str] = (),
    static: Sequence[str] = (),
    period: int | None = None,
    methods: Sequence[str] = (),
    seconds: float = 120.0,
    device: str = AUTO,
    seed: int = 0,
) -> Forecast:
    """Forecast a table of time series, with prediction intervals calibrated by back-testing on the table itself.

    >>> load = 10 + np.sin(np.arange(240) * 2 * np.pi / 24)
    >>> result = unipercept.forecast(load, 12, methods=["seasonal"], seconds=5)
    >>> result.values.shape                        # steps x variables, the median
    (12, 1)

    Args:
        source: a CSV, Excel, Parquet or Feather file; a pandas DataFrame or Series; an xarray object; a
            NumPy array, steps x variables.
        horizon: steps ahead.
        targets: columns to forecast; default: all numeric columns.
        time, series: columns of times and of series names (long format); default: detected.
        known: covariates known in advance, in rows up to the horizon; default: columns that alone reach that far.
        static: in long format, columns with one value for each series; default: detected.
        period: steps in a cycle; default: detected.
        methods: which to back-test, of `unipercept.forecasting.methods.NAMES`; default: all.
        seconds: approximate time limit.
        device: of the networks among the methods: "auto", "cpu", "cuda" …
        seed: of all that is random; the same file, methods and seed give the same forecast, except for `network`.

    Raises:
        InputError: the table or an argument cannot be used; one line says why.
    """
    from unipercept.forecasting.forecast import forecast_table

    return forecast_table(
        source,
        horizon,
        targets=targets,
        time=time,
        series=series,
        known=known,
        static=static,
        period=period,
        methods=methods,
        seconds=seconds,
        device=device,
        seed=seed,
    )


def _listed(paths: object) -> list[object]:
    """One or several paths as a list.

    Raises:
        TypeError: not paths (an item that is no path is reported by `path_text`).
    """
    if isinstance(paths, str | Path):
        return [paths]
    # A loop over a table would give its column names.
    is_table = isinstance(paths, bytes | Mapping) or getattr(paths, "ndim", 1) != 1
    return list(paths) if isinstance(paths, Iterable) and not is_table else [path_text(paths)]


def _embedding(outcome: EncodedFile | FailedFile) -> Embedding:
    if isinstance(outcome, FailedFile):
        raise InputError(outcome.error) if outcome.is_final else UniperceptError(outcome.error)
    metadata = {"content_hash": outcome.content_hash, "n_maps": outcome.n_maps}
    return Embedding(outcome.vector, outcome.path, outcome.modality, outcome.model, metadata)
