"""Forecasts on disk: a Zarr store that grows while the forecast runs, and from which a killed run goes on.

Dimensions ([number], time, prediction_timedelta, [level], latitude, longitude), long names, float32, one lead a chunk:
what WeatherBench 2 reads. States reach the disk in a thread of their own; at most two wait there.

Shapes: B members, V channels, H rows, W columns.
"""

from __future__ import annotations

import errno
import hashlib
import json
import queue
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.app.forecaster.cf import AXES, CONVENTIONS, LONG_NAMES, field_attributes
from unipercept.app.forecaster.frames import Grid
from unipercept.atomic import atomic_path
from unipercept.errors import InputError, import_optional, one_line
from unipercept.versions import versions

QUEUED = 1  # states that wait while one is written
MAX_STORE_BYTES = 1 << 44

UPPER = re.compile(r"([ztuvrqw])(\d+)")


@dataclass(frozen=True)
class Variable:
    """A variable of the store: which channels it holds, and their levels in hPa (none for a surface variable)."""

    name: str
    short: str
    channels: tuple[int, ...]
    levels: tuple[int, ...] = ()


def variables_of(channels: Sequence[str]) -> list[Variable]:
    """How channels such as z500 and t2m are laid out in a store.

    Upper-air variables share one level axis; one that has other levels than the rest is
    written flat, as geopotential_500.
    """
    upper: dict[str, dict[int, int]] = {}
    flat: list[Variable] = []
    for i, name in enumerate(channels):
        match = UPPER.fullmatch(name)
        if match and name not in LONG_NAMES:
            upper.setdefault(match[1], {})[int(match[2])] = i
        else:
            flat.append(Variable(LONG_NAMES.get(name, (name, name))[0], name, (i,)))
    axes = {tuple(sorted(levels)) for levels in upper.values()}
    found = []
    for short, levels in upper.items():
        ordered, long = tuple(sorted(levels)), LONG_NAMES[short][0]
        if len(axes) == 1:
            found.append(Variable(long, short, tuple(levels[level] for level in ordered), ordered))
        else:
            found.extend(Variable(f"{long}_{level}", short, (levels[level],)) for level in ordered)
    return found + flat


class ForecastWriter:
    """Write states into a store as they come.

    Args:
        path: the Zarr folder.
        channels, units: of the states.
        grid: of the states.
        times: initial times.
        leads_hours: lead of each step, rising.
        members: ensemble size; None leaves the dimension `number` out.
        attributes: of the store: model, stages, seed ...
        resume: go on with a store that a run left unfinished; it must be of the same forecast.

    Raises:
        InputError: the store exists, or belongs to another forecast; the disk is full.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        channels: Sequence[str],
        units: Sequence[str],
        grid: Grid,
        times: Sequence[Any],
        leads_hours: Sequence[float],
        members: int | None = None,
        attributes: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self._zarr = import_optional("zarr", extra="weather")
        self.path, self.members = Path(path), members
        self.times = np.asarray(times, "datetime64[ns]")
        self.variables = variables_of(channels)
        self._channels, self._units, self._grid = tuple(channels), tuple(units), grid
        self._leads = np.asarray(leads_hours, np.float64)
        self._identity = self._identify(attributes or {})
        if self.path.exists() and any(self.path.iterdir() if self.path.is_dir() else [self.path]):
            if not resume:
                raise InputError(f"{self.path} exists; choose another output, or go on with it by --resume")
            self.done = self._reopen()
        else:
            self.done = {}
            self._guarded(lambda: self._create(attributes or {}))
        self._group = self._zarr.open_group(str(self.path), mode="r+", use_consolidated=False)
        self._error: BaseException | None = None
        self._queue: queue.Queue[tuple[int, int, Tensor, Any] | None] = queue.Queue(maxsize=QUEUED)
        self._thread = threading.Thread(target=self._work, name="forecast writer", daemon=True)
        self._thread.start()

    @property
    def is_complete(self) -> bool:
        """Whether every lead of every initial time is there."""
        return all(self.leads_done(i) == len(self._leads) for i in range(len(self.times)))

    def leads_done(self, time: int) -> int:
        """How many leads of initial time number `time` are on disk."""
        return self.done.get(time, 0)

    def put(self, time: int, lead: int, state: Tensor) -> None:
        """Hand over the state BxVxHxW of one lead; waits while another is still queued.

        Raises:
            InputError: an earlier state could not be written.
        """
        self._raise_error()
        event = None
        if state.is_cuda:
            host = torch.empty(state.shape, dtype=torch.float32, pin_memory=True)
            host.copy_(state, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(state.device))
        else:
            host = state.detach().float().clone()
        while True:
            try:
                self._queue.put((time, lead, host, event), timeout=0.2)
                return
            except queue.Full:
                self._raise_error()

    def read_back(self, time: int, leads: Sequence[int]) -> Tensor:
        """States that are on disk already, BxLxVxHxW float32, exactly as they were written."""
        rows, columns = self._grid.shape
        states = np.empty((self.members or 1, len(leads), len(self._channels), rows, columns), np.float32)
        for variable in self.variables:
            array: Any = self._group[variable.name]
            for i, lead in enumerate(leads):
                block = array[:, time, lead] if self.members is not None else array[time, lead][None]
                block = block if variable.levels else block[:, None]
                states[:, i, list(variable.channels)] = block
        return torch.from_numpy(states)

    def close(self) -> None:
        """Wait until everything is on disk; a store with all its leads is marked complete.

        Raises:
            InputError: something could not be written.
        """
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._raise_error()
        if self.is_complete:
            self._guarded(self._finish)

    def abandon(self) -> None:
        """Stop without waiting for more than what is queued; the store can be gone on with."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue  # drain, so that nobody waits for ever
            time, lead, host, event = item
            try:
                if event is not None:
                    event.synchronize()
                self._write(time, lead, host.numpy())
                self._note(time, lead)
            except BaseException as error:  # it belongs to the thread that waits for the forecast
                self._error = error

    def _write(self, time: int, lead: int, states: NDArray[np.float32]) -> None:
        for variable in self.variables:
            block = states[:, list(variable.channels)] if variable.levels else states[:, variable.channels[0]]
            array: Any = self._group[variable.name]
            if self.members is not None:
                array[:, time, lead] = block
            else:
                array[time, lead] = block[0]

    def _note(self, time: int, lead: int) -> None:
        """Only now does the lead count as written: a kill before this line writes it again."""
        self.done[time] = lead + 1
        content = {"identity": self._identity, "done": {str(k): v for k, v in self.done.items()}}
        with atomic_path(progress_file(self.path)) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            self._translate(error)

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            self._translate(error)

    def _translate(self, error: BaseException) -> None:
        n_done = sum(self.done.values())
        if isinstance(error, OSError):
            what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else one_line(error, 150)
            raise InputError(
                f"cannot write {self.path}: {what}; {n_done} states are kept there, go on with --resume when it is mended"
            ) from error
        raise error

    def _identify(self, attributes: Mapping[str, Any]) -> str:
        """Settings that must match for a store to be continued."""
        facts = {
            "channels": self._channels, "times": [str(t) for t in self.times], "leads": self._leads.tolist(),
            "members": self.members, "grid": [self._grid.latitude, self._grid.longitude],
            "attributes": {k: v for k, v in sorted(attributes.items()) if k != "created"},
        }  # fmt: skip
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _reopen(self) -> dict[int, int]:
        if not progress_file(self.path).exists():
            raise InputError(f"{self.path} is complete, or no forecast of ours; choose another output")
        try:
            content = json.loads(progress_file(self.path).read_text(encoding="utf-8"))
            identity, done = content["identity"], {int(k): int(v) for k, v in content["done"].items()}
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{progress_file(self.path)} is damaged; delete {self.path} and forecast anew") from error
        if identity != self._identity:
            raise InputError(
                f"{self.path} was begun with another model, data, initial times, leads, members or seed; "
                "repeat those of the first run, or choose another output"
            )
        return done

    def _create(self, attributes: Mapping[str, Any]) -> None:
        """Coordinates and empty arrays; nothing of the size of a state is held."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary:
            group = self._zarr.open_group(str(temporary), mode="w", zarr_format=3)
            self._describe(group, attributes)
            for variable in self.variables:
                self._add(group, variable)
            progress_file(temporary).write_text(json.dumps({"identity": self._identity, "done": {}}), encoding="utf-8")

    @property
    def _levels(self) -> tuple[int, ...]:
        return next((v.levels for v in self.variables if v.levels), ())

    def _describe(self, group: Any, attributes: Mapping[str, Any]) -> None:
        """Attributes and axes."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        group.attrs.update(
            {
                "Conventions": CONVENTIONS,
                "title": "Weather forecast",
                "history": f"{created}: unipercept {versions()['unipercept']}, weather forecast",
                "created": created,
                "status": "being written",
                **attributes,
            }
        )
        seconds = (self.times - np.datetime64(0, "s")) // np.timedelta64(1, "s")
        lead_seconds = np.round(self._leads * 3600).astype(np.int64)
        _axis(
            group,
            "time",
            seconds.astype(np.int64),
            "seconds since 1970-01-01",
            calendar="proleptic_gregorian",
            standard_name="forecast_reference_time",
            axis="T",
        )
        _axis(
            group,
            "prediction_timedelta",
            lead_seconds,
            "seconds",
            dtype="timedelta64[ns]",
            standard_name="forecast_period",
        )
        for name in ("latitude", "longitude"):
            _axis(group, name, np.asarray(getattr(self._grid, name)), **AXES[name])
        if self._levels:
            _axis(group, "level", np.asarray(self._levels, np.int64), **AXES["level"])
        if self.members is not None:
            _axis(group, "number", np.arange(self.members), "1", standard_name="realization")

    def _add(self, group: Any, variable: Variable) -> None:
        """An array that holds nothing yet."""
        members = {} if self.members is None else {"number": self.members}
        times = {"time": len(self.times), "prediction_timedelta": len(self._leads)}
        levels = {"level": len(self._levels)} if variable.levels else {}
        field = {**levels, **dict(zip(("latitude", "longitude"), self._grid.shape, strict=True))}
        sizes = {**members, **times, **field}
        n_bytes = 4 * int(np.prod(list(sizes.values())))
        if n_bytes > MAX_STORE_BYTES:
            raise InputError(f"the forecast would take {n_bytes / 1e12:.0f} TB; forecast fewer times")
        group.create_array(
            variable.name,
            shape=tuple(sizes.values()),
            dtype="float32",
            chunks=tuple(field.get(name, 1) for name in sizes),
            compressors=None,  # weather in float32 shrinks by a tenth and takes longer than the disk
            fill_value=float("nan"),
            dimension_names=tuple(sizes),
            attributes=field_attributes(variable.short, self._units[variable.channels[0]], variable.name),
        )

    def _finish(self) -> None:
        group = self._zarr.open_group(str(self.path), mode="r+", use_consolidated=False)
        group.attrs["status"] = "complete"
        progress_file(self.path).unlink(missing_ok=True)
        with warnings.catch_warnings():  # version 3 of the format has no word on consolidated metadata yet
            warnings.simplefilter("ignore")
            self._zarr.consolidate_metadata(str(self.path))


def progress_file(path: Path) -> Path:
    """Beside the arrays while they are being written: how many leads of each initial time are there."""
    return path / "_progress.json"


def _axis(group: Any, name: str, values: NDArray[Any], units: str, **attributes: str) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=str(values.dtype),
        chunks=values.shape,
        dimension_names=(name,),
        attributes={"units": units, **attributes},
    )
    array[...] = values
