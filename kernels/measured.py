"""Tuned tiles by kind of GPU: found by a search and kept on disk. Without them, rules choose."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

Tile = TypeVar("Tile")
Report = Callable[[str, Any, float], None]
ROUNDS = 2  # along all axes
ENOUGH = 0.99  # of the best time so far: less is noise


class Measured(Generic[Tile]):
    """The measured tiles of an operation, dataclasses by the name of a problem: those that came with the package, then
    those of the cache folder. A file that cannot be used counts as none.

    Args:
        operation: names the files, `OPERATION-DEVICE.json`.
        folder: of those that came with the package.
        read: makes a tile of its fields.
    """

    def __init__(self, operation: str, folder: Path, read: Callable[[Mapping[str, Any]], Tile]) -> None:
        self._operation, self._folder, self._read = operation, folder, read
        self._known: dict[str, dict[str, Tile]] = {}

    def find(self, problem: str, device_name: str) -> Tile | None:
        """The tile for a problem on a kind of GPU, None where none was measured."""
        return self._of(device_name).get(problem)

    def remember(self, device_name: str, best: Mapping[str, Tile]) -> Path:
        """Write tiles to the cache folder, beside those already there; the file."""
        path = cache_folder() / self._file(device_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {key: asdict(tile) for key, tile in (self._of(device_name) | dict(best)).items()}  # type: ignore[call-overload]
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        self.forget()
        return path

    def forget(self) -> None:
        """Read the files anew when next asked."""
        self._known.clear()

    def _of(self, device_name: str) -> dict[str, Tile]:
        if device_name not in self._known:
            name = self._file(device_name)
            self._known[device_name] = self._load(self._folder / name) | self._load(cache_folder() / name)
        return self._known[device_name]

    def _file(self, device_name: str) -> str:
        return f"{self._operation}-{'_'.join(device_name.split())}.json"

    def _load(self, path: Path) -> dict[str, Tile]:
        try:
            return {key: self._read(fields) for key, fields in json.loads(path.read_text(encoding="utf-8")).items()}
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return {}


def cache_folder() -> Path:
    """The folder of compiled kernels and tuned tiles: kernels/ in UNIPERCEPT_CACHE, else in ~/.cache/unipercept.

    Without a home, as for a container's user, it is one that cannot exist, so that nothing is kept.
    """
    try:
        return Path(os.environ.get("UNIPERCEPT_CACHE") or Path.home() / ".cache" / "unipercept") / "kernels"
    except RuntimeError:
        return Path(os.devnull, "unipercept", "kernels")


def device_name(device: torch.device) -> str:
    """The kind of GPU, or "interpreter" where there is none."""
    return str(torch.cuda.get_device_properties(device).name) if device.type == "cuda" else "interpreter"


def search(
    problem: str,
    start: Tile,
    axes: Sequence[str],
    neighbours: Callable[[Tile, str], Sequence[Tile]],
    prepare: Callable[[Sequence[Tile]], None],
    cost: Callable[[Tile], float],
    report: Report | None = None,
) -> tuple[Tile, float]:
    """The cheapest tile along one axis after the other from `start`, and its cost.

    Args:
        problem: its name, for `report`, which is told of each improvement.
        neighbours: tiles that differ from one along an axis.
        prepare: is given tiles that are about to be measured, to compile them side by side.
        cost: of running with a tile; infinite where it cannot run.
    """
    best, costs = start, {start: cost(start)}
    for _ in range(ROUNDS):
        before = best
        for axis in axes:
            others = [tile for tile in neighbours(best, axis) if tile not in costs]
            prepare(others)
            for tile in others:
                costs[tile] = cost(tile)
                if costs[tile] < ENOUGH * costs[best]:
                    best = tile
                    if report:
                        report(problem, tile, costs[tile])
        if best == before:
            break
    if report:
        report(f"best: {problem}", best, costs[best])
    return best, costs[best]
