"""Years of generated weather as Zarr stores with ERA5's names: in parallel over members, block by block, resumable.

A member is a store of its own. Until it is complete, `_progress.npz` beside its arrays holds the state of the model
after the last complete block, so that an interrupted run continues with identical results.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unipercept.app.forecaster.cf import AXES, CONVENTIONS, field_attributes
from unipercept.app.forecaster.dynamics.lift import SOURCE, SURFACE, UPPER, Lift, LiftConfig, date_of
from unipercept.app.forecaster.dynamics.quasigeostrophic import (
    DAY,
    QuasiGeostrophic,
    QuasiGeostrophicConfig,
    seconds_of,
)
from unipercept.app.forecaster.dynamics.spectral import Array
from unipercept.atomic import atomic_path, check_folder_of
from unipercept.errors import InputError, import_optional, one_line

if TYPE_CHECKING:
    import xarray

PROGRESS = "_progress.npz"
STEP_HOURS = 6
BLOCK_TIMES = 40  # ten days: what a kill can cost at most
SPIN_UP_DAYS = 120  # the small noise has become weather after some 30
MAX_DAYS = 366 * 200


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of the generated weather.

    Args:
        days: how many, from `start`; 6-hourly.
        seed: of the first member; the next have the next.
    """

    days: int = 365
    start: str = "2000-01-01"
    seed: int = 0
    spin_up_days: int = SPIN_UP_DAYS
    dynamics: QuasiGeostrophicConfig = field(default_factory=QuasiGeostrophicConfig)
    lift: LiftConfig = field(default_factory=LiftConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.days <= MAX_DAYS or self.spin_up_days < 0:
            raise InputError(f"days must lie within 1 and {MAX_DAYS}, got {self.days}")
        try:
            np.datetime64(self.start, "s")
        except ValueError as error:
            raise InputError(f"start must be a date such as 2000-01-01, got {self.start!r}") from error

    @property
    def n_times(self) -> int:
        """States that are written."""
        return self.days * 24 // STEP_HOURS

    @property
    def n_blocks(self) -> int:
        """Blocks that a member takes."""
        return -(-self.n_times // BLOCK_TIMES)


def member_path(output: Path, member: int, members: int) -> Path:
    """Path of a member: `output` itself if it is alone, else numbered beside its place."""
    return output if members == 1 else output.with_name(f"{output.stem}-{member:03d}{output.suffix}")


def generate(
    output: str | Path,
    config: GenerateConfig = GenerateConfig(),
    *,
    members: int = 1,
    workers: int = 1,
    resume: bool = False,
    on_block: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write `members` independent runs, and give their stores.

    Args:
        output: a folder ending in .zarr; member i of several becomes name-00i.zarr.
        workers: processes; a member is never split.
        resume: continue unfinished stores, and keep complete ones.
        on_block: called for every ten days of a member that are on disk.

    Raises:
        InputError: a store exists (without `resume`), or was begun with other settings; the folder it
            is to lie in does not exist.
    """
    import_optional("zarr", extra="weather")
    output = Path(output)
    if members < 1 or workers < 1:
        raise InputError(f"members and workers must be 1 or more, got {members} and {workers}")
    if output.suffix != ".zarr":
        raise InputError(f"output must end in .zarr, got {output}")
    check_folder_of(output)
    paths = [member_path(output, i, members) for i in range(members)]
    if not resume and (there := [path for path in paths if path.exists()]):
        raise InputError(f"{there[0]} exists; go on with --resume, or remove it")
    tasks = {path: dataclasses.replace(config, seed=config.seed + i) for i, path in enumerate(paths)}
    pending = {path: task for path, task in tasks.items() if not _is_whole(path, task)}
    for path in paths:
        for _ in range(_blocks_done(path, tasks[path])):
            on_block()
    if workers == 1 or len(pending) == 1:
        for path, task in pending.items():
            while not _advance(path, task):
                on_block()
            on_block()
    elif pending:
        _advance_all(pending, workers, on_block)
    return paths


def _advance_all(tasks: dict[Path, GenerateConfig], workers: int, on_block: Callable[[], None]) -> None:
    """Give one block of a member at a time to the next free process."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        running: dict[Future[bool], Path] = {pool.submit(_advance, path, task): path for path, task in tasks.items()}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                path = running.pop(future)
                finished = future.result()
                on_block()
                if not finished:
                    running[pool.submit(_advance, path, tasks[path])] = path


def _advance(path: Path, config: GenerateConfig) -> bool:
    """Write the next block of a member; True when it is whole."""
    done, state = _restart(path, config)
    block, state = _block(config, done, state)
    count = len(block["geopotential"])
    try:
        as_dataset(config, slice(done, done + count), block).drop_vars(["latitude", "longitude", "level"]).to_zarr(
            path, region={"time": slice(done, done + count)}
        )
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {one_line(error)}; what is whole is kept, go on with --resume"
        ) from error
    done += count
    if done == config.n_times:
        (path / PROGRESS).unlink()
        return True
    _save(path, config, done, state)
    return False


def member_dataset(config: GenerateConfig) -> xarray.Dataset:
    """One member in memory, the same numbers as `generate` writes: 14 MB a month on the default grid."""
    import xarray as xr

    state, blocks = _first_state(config), []
    for done in range(0, config.n_times, BLOCK_TIMES):
        block, state = _block(config, done, state)
        blocks.append(as_dataset(config, slice(done, min(done + BLOCK_TIMES, config.n_times)), block))
    return xr.concat(blocks, "time", data_vars="minimal")


def _first_state(config: GenerateConfig) -> Array:
    """The state after the spin-up from a seed."""
    model, _ = _machinery(config.dynamics, config.lift)
    time = seconds_of(config.start) - config.spin_up_days * DAY
    return model.run(model.initial_state(time, config.seed), time, config.spin_up_days * 24)[0]


def _block(config: GenerateConfig, done: int, state: Array) -> tuple[dict[str, Array], Array]:
    """The next ten days from state number `done` on, by variable, and the state that follows them."""
    model, lift = _machinery(config.dynamics, config.lift)
    time = seconds_of(config.start) + done * STEP_HOURS * 3600
    fields: list[dict[str, Array]] = []
    for _ in range(min(BLOCK_TIMES, config.n_times - done)):
        fields.append(lift(state, time))
        state, time = model.run(state, time, STEP_HOURS)
    if not np.isfinite(state).all():
        raise InputError("the model has blown up; take a smaller shear or a coarser truncation")
    return {name: np.stack([f[name] for f in fields]) for name in fields[0]}, state


def _restart(path: Path, config: GenerateConfig) -> tuple[int, Array]:
    """The number of times on disk, and the next state; creates the store if it does not exist."""
    if (path / PROGRESS).exists():
        done, settings, state = _load(path)
        if settings != _settings(config):
            raise InputError(f"{path} was begun with other settings; use those, or remove it")
        return done, state
    state = _first_state(config)
    if path.exists():
        shutil.rmtree(path)  # begun, but nothing was written
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr on consolidated metadata of version 3
        as_dataset(config, slice(0, config.n_times), None).to_zarr(temporary, compute=False, encoding=_encoding(config))
        _save(temporary, config, 0, state)
    return 0, state


@lru_cache(maxsize=2)
def _machinery(dynamics: QuasiGeostrophicConfig, lift: LiftConfig) -> tuple[QuasiGeostrophic, Lift]:
    model = QuasiGeostrophic(dynamics)
    return model, Lift(model, lift)


def as_dataset(config: GenerateConfig, times: slice, block: dict[str, Array] | None) -> xarray.Dataset:
    """The fields of `times` as a Dataset; without a block, a template that holds no numbers."""
    import xarray as xr

    start, lift = seconds_of(config.start), config.lift
    numbers = range(times.start, times.stop)
    coordinates: dict[str, Any] = {
        "time": ("time", np.array([date_of(start + i * STEP_HOURS * 3600) for i in numbers]), AXES["time"]),
        "level": ("level", np.array(lift.levels), AXES["level"]),
        "latitude": ("latitude", lift.latitude, AXES["latitude"]),
        "longitude": ("longitude", lift.longitude, AXES["longitude"]),
    }
    data = {}
    for name, (short, unit) in {**UPPER, **SURFACE}.items():
        dims = ("time", *(["level"] if name in UPPER else []), "latitude", "longitude")
        shape = tuple({"time": len(numbers), "level": len(lift.levels)}.get(d, 0) for d in dims[:-2])
        shape = (*shape, lift.rows, lift.columns)
        chunks = (BLOCK_TIMES, *shape[1:])
        if block is None:
            values = import_optional("dask.array", extra="weather").empty(shape, chunks=chunks, dtype="f4")
        else:
            values = block[name]
        data[name] = (dims, values, {**field_attributes(short, unit, name), "short_name": short})
    return xr.Dataset(data, coordinates, {"Conventions": CONVENTIONS, "source": SOURCE, "settings": _settings(config)})


def _encoding(config: GenerateConfig) -> dict[str, dict[str, Any]]:
    """One chunk for all times: readers of the axis would else open a file every ten days."""
    return {"time": {"chunks": (config.n_times,), "units": "hours since 1970-01-01", "dtype": "int64"}}


def _settings(config: GenerateConfig) -> str:
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def _save(path: Path, config: GenerateConfig, done: int, state: Array) -> None:
    with atomic_path(path / PROGRESS) as temporary:
        np.savez(temporary, done=done, settings=_settings(config), state=state)


def _load(path: Path) -> tuple[int, str, Array]:
    try:
        with np.load(path / PROGRESS, allow_pickle=False) as stored:
            return int(stored["done"]), str(stored["settings"]), stored["state"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path / PROGRESS} is damaged ({one_line(error)}); remove {path} and begin again") from error


def _is_whole(path: Path, config: GenerateConfig) -> bool:
    """Whether a store is finished; one of other settings is refused."""
    if not path.exists() or (path / PROGRESS).exists():
        return False
    try:
        attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a store that generate wrote; remove it or choose another name") from error
    if attributes.get("settings") != _settings(config):
        raise InputError(f"{path} was made with other settings; use those, or remove it")
    return True


def _blocks_done(path: Path, config: GenerateConfig) -> int:
    if not path.exists():
        return 0
    return _load(path)[0] // BLOCK_TIMES if (path / PROGRESS).exists() else config.n_blocks
