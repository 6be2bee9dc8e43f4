"""A cascade on disk: cascade.json names its stages' files and steps; a single model file is a cascade of one stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unipercept.app.forecaster.cascade import Cascade, Stage, StepModel
from unipercept.app.forecaster.ensemble import with_stochastic_depth
from unipercept.app.forecaster.forecast import EnsembleSettings
from unipercept.app.forecaster.frames import Grid
from unipercept.app.forecaster.model import ForecastModel
from unipercept.app.forecaster.onnx_stage import OnnxModel, file_hash
from unipercept.atomic import atomic_path
from unipercept.errors import InputError, WeightsError
from unipercept.pipelines.weather_fields import CHANNEL_SETS

FILE_NAME = "cascade.json"
WHOLE_FORECAST = 1_000_000  # steps of a model that is alone
ENSEMBLE_FIELDS = {"perturbation", "amplitude", "relative", "length_km", "correlation_hours", "n_stages"}
DEFAULT = "default"
DEFAULT_FOLDER = Path(__file__).parent / "default"  # trained on generated weather; see its card


def load_cascade(
    path: str | Path,
    device: str | torch.device = "cpu",
    blend_steps: int | None = None,
    *,
    n_stages: int | None = None,
    stochastic_depth: float | None = None,
    seed: int = 0,
) -> Cascade:
    """A cascade from a folder with cascade.json, from that file, or from one model (.safetensors, .onnx);
    "default" is the shipped one.

    Models are read when their first step comes.

    Args:
        blend_steps: instead of the file's.
        n_stages: use only the first ones; the last one used makes all remaining steps.
        stochastic_depth: probability with which blocks are dropped in forecasts too, drawn for each member from `seed`;
            None for none.

    Raises:
        InputError: cascade.json does not say what it should.
        WeightsError: a model's file is missing.
    """
    path, drawn = DEFAULT_FOLDER if path == DEFAULT else Path(path), None if stochastic_depth is None else seed
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise WeightsError(f"no forecast model at {path}; train one with `unipercept weather train`")
    if path.suffix != ".json":
        alone = {"model": path.name, "name": path.stem, "steps": WHOLE_FORECAST}
        return Cascade([_stage(alone, path.parent, device, stochastic_depth)], seed=drawn)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stages = [_stage(entry, path.parent, device, stochastic_depth) for entry in content["stages"]]
        blended = int(content.get("blend_steps", 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no cascade: expected stages, each with name, model and steps ({error!r})"
        ) from error
    if n_stages is not None and not 1 <= n_stages <= len(stages):
        raise InputError(f"{path} has {len(stages)} stages, of which {n_stages} cannot be used")
    return Cascade(stages[:n_stages], blended if blend_steps is None else blend_steps, drawn)


def chosen_ensemble(
    path: str | Path, members: int, *, seed: int = 0, **given: Any
) -> tuple[EnsembleSettings | None, int | None]:
    """The ensemble settings of a cascade and the number of stages that its members run through (None: all): those of
    its file, overridden by `given`.

    A file may limit ensembles to the first stage: the second one forecasts only what is still predictable, and would
    pull the members together. Settings of the file that belong to another perturbation than the given one are ignored.
    A single forecast is no ensemble: its settings are None, and it runs through all stages.

    Args:
        given: fields of `EnsembleSettings`; None for those that are not.

    Raises:
        InputError: settings that do not exist, or do not fit.
    """
    if members == 1:
        return None, None
    own = _file_settings(path)
    n_stages, chosen = own.pop("n_stages", None), {name: value for name, value in given.items() if value is not None}
    if chosen.get("perturbation") not in (None, own.get("perturbation")):
        own = {}
    return EnsembleSettings(members, seed=seed, **{**own, **chosen}), n_stages


def _file_settings(path: str | Path) -> dict[str, Any]:
    path = DEFAULT_FOLDER if path == DEFAULT else Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if path.suffix != ".json" or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("ensemble", {})
        if not set(found) <= ENSEMBLE_FIELDS:
            raise ValueError(f"got {', '.join(map(str, found))}")
        EnsembleSettings(**{name: value for name, value in found.items() if name != "n_stages"})
    except (ValueError, TypeError, AttributeError) as error:
        known = ", ".join(sorted(ENSEMBLE_FIELDS))
        raise InputError(f"{path}: ensemble may hold {known}, which do not fit as they are there ({error})") from error
    return dict(found)


def save_cascade(path: str | Path, stages: Sequence[Mapping[str, Any]], **facts: Any) -> None:
    """Write cascade.json: stages as {"name", "model" (a file beside it), "steps"}."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps({"stages": [dict(stage) for stage in stages], **facts}, indent=2) + "\n", encoding="utf-8"
        )


def _stage(entry: Mapping[str, Any], folder: Path, device: str | torch.device, stochastic_depth: float | None) -> Stage:
    path = folder / str(entry["model"])
    if not path.is_file():
        raise WeightsError(f"the cascade names {path}, which is not there")
    settings = _onnx_settings(entry) if path.suffix == ".onnx" else {}

    def load() -> StepModel:
        if path.suffix == ".onnx":
            return OnnxModel(path, **settings)
        model = ForecastModel.load(path, device)
        if stochastic_depth is not None:
            with_stochastic_depth(model, stochastic_depth)
        return model

    return Stage(str(entry["name"]), int(entry["steps"]), load, file_hash(path))


def _onnx_settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Channels (names, or a set's name), step_hours, latitude and longitude, as far as they are given."""
    settings: dict[str, Any] = {"step_hours": float(entry.get("step_hours", 6))}
    channels = entry.get("channels")
    if channels is not None:
        settings["channels"] = CHANNEL_SETS[channels].names if isinstance(channels, str) else tuple(channels)
    if "latitude" in entry:
        settings["grid"] = Grid(tuple(entry["latitude"]), tuple(entry["longitude"]))
    return settings
