"""things3d: point clouds of twenty upright things of streets and buildings, put together of
boxes, cylinders and ellipsoids.

Where shapes3d asks what a solid is however it lies, here lie, size and parts make the kind: a wall is no floor, a
beam no column. Things stand on the z axis in metres, turned about it at random, and are spoiled as a scanner
spoils them: noise, faces that look away, uneven density, a bite, an unknown unit of length. Proportions are cut
into bands as those of shapes3d are.

Source: generated here. Licence: Apache-2.0, as the code. Shapes: N points, P parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.datasets.shapes3d import proportions
from unipercept.errors import InputError

Vector = tuple[float, float, float]
Numbers = NDArray[np.float64]
PER_CLASS = {"train": 1_000, "validation": 30, "test": 50}


@dataclass(frozen=True)
class Part:
    """A "box", a standing "cylinder" or an "ellipsoid" with full `size` along x, y, z and its middle at `place`; `tilt`
    about x in radians, before it is put there.
    """

    kind: str
    size: Vector
    place: Vector
    tilt: float = 0.0


def _mix(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _bars(count: int, size: Vector, start: Vector, step: Vector) -> list[Part]:
    """The same box `count` times, each a step on."""
    return [Part("box", size, tuple(a + i * d for a, d in zip(start, step, strict=True))) for i in range(count)]  # type: ignore[arg-type]


def _legs(width: float, depth: float, height: float, thick: float) -> list[Part]:
    x, y = (width - thick) / 2, (depth - thick) / 2
    return [Part("box", (thick, thick, height), (i * x, j * y, height / 2)) for i in (-1, 1) for j in (-1, 1)]


def _wall(a: float, b: float) -> list[Part]:
    height = _mix(2.2, 3.5, b)
    return [Part("box", (_mix(2, 9, a), _mix(0.1, 0.35, b), height), (0, 0, height / 2))]


def _slab(a: float, b: float) -> list[Part]:
    return [Part("box", (_mix(3, 10, a), _mix(2, 8, b), _mix(0.1, 0.4, a)), (0, 0, 0))]


def _column(a: float, b: float) -> list[Part]:
    height, width = _mix(2.2, 4.5, a), _mix(0.2, 0.6, b)
    return [Part("cylinder" if b < 0.5 else "box", (width, width, height), (0, 0, height / 2))]


def _beam(a: float, b: float) -> list[Part]:
    width = _mix(0.15, 0.4, b)
    return [Part("box", (_mix(2.5, 8, a), width, width * _mix(1, 2, a)), (0, 0, 2.5))]


def _door(a: float, b: float) -> list[Part]:
    width, height, frame = _mix(0.8, 1.6, a), _mix(1.9, 2.5, b), 0.08
    sides = [Part("box", (frame, 0.16, height), (side * width / 2, 0, height / 2)) for side in (-1, 1)]
    handle = Part("ellipsoid", (0.12, 0.2, 0.06), (0.4 * width, 0, 0.45 * height))
    panel = Part("box", (width, 0.04, height), (0, 0, height / 2))
    return [*sides, Part("box", (width, 0.16, frame), (0, 0, height)), panel, handle]


def _window(a: float, b: float) -> list[Part]:
    width, height, frame = _mix(0.7, 2.2, a), _mix(0.8, 1.6, b), 0.08
    upright = _bars(2 + (a > 0.4), (frame, 0.1, height), (-width / 2, 0, 1.6), (width / (1 + (a > 0.4)), 0, 0))
    across = _bars(2 + (b > 0.5), (width, 0.1, frame), (0, 0, 1.6 - height / 2), (0, 0, height / (1 + (b > 0.5))))
    return [*upright, *across]


def _stairs(a: float, b: float) -> list[Part]:
    count, depth, rise, width = 4 + int(9 * a), _mix(0.25, 0.35, b), _mix(0.15, 0.2, a), _mix(0.8, 2.0, b)
    return [Part("box", (width, depth, rise), (0, i * depth, (i + 0.5) * rise)) for i in range(count)]


def _fence(a: float, b: float) -> list[Part]:
    length, height, count = _mix(2, 9, a), _mix(0.8, 1.8, b), 6 + int(14 * a)
    posts = _bars(count, (0.06, 0.06, height), (-length / 2, 0, height / 2), (length / (count - 1), 0, 0))
    return [*posts, *_bars(2, (length, 0.05, 0.08), (0, 0, 0.25 * height), (0, 0, 0.6 * height))]


def _gable(width: float, depth: float, rise: float, base: float) -> list[Part]:
    slope = np.arctan2(2 * rise, depth)
    size = (width, float(np.hypot(depth / 2, rise)), 0.12)
    return [Part("box", size, (0, s * depth / 4, base + rise / 2), -s * float(slope)) for s in (-1, 1)]


def _roof(a: float, b: float) -> list[Part]:
    return _gable(_mix(4, 10, a), _mix(3, 8, b), _mix(0.8, 3, a), 0.0)


def _house(a: float, b: float) -> list[Part]:
    width, depth, height = _mix(5, 14, a), _mix(4, 9, b), _mix(2.5, 7, a)
    body = Part("box", (width, depth, height), (0, 0, height / 2))
    return [body, *(_gable(1.05 * width, 1.1 * depth, _mix(1, 3.5, b), height) if b > 0.25 else [])]


def _balcony(a: float, b: float) -> list[Part]:
    width, depth, height, count = _mix(1.5, 4, a), _mix(0.9, 1.6, b), _mix(0.9, 1.2, a), 8 + int(8 * a)
    front = _bars(count, (0.04, 0.04, height), (-width / 2, depth / 2, height / 2), (width / (count - 1), 0, 0))
    sides = [Part("box", (0.05, depth, 0.05), (s * width / 2, 0, height)) for s in (-1, 1)]
    return [
        Part("box", (width, depth, 0.15), (0, 0, 0)),
        *front,
        *sides,
        Part("box", (width, 0.06, 0.06), (0, depth / 2, height)),
    ]


def _table(a: float, b: float) -> list[Part]:
    width, depth, height = _mix(0.7, 2.2, a), _mix(0.6, 1.1, b), _mix(0.45, 0.8, b)
    return [Part("box", (width, depth, 0.05), (0, 0, height)), *_legs(width, depth, height, 0.07)]


def _chair(a: float, b: float) -> list[Part]:
    width, height = _mix(0.4, 0.6, a), _mix(0.4, 0.5, b)
    back = Part("box", (width, 0.04, _mix(0.35, 0.7, a)), (0, width / 2, height + _mix(0.35, 0.7, a) / 2), 0.1)
    return [Part("box", (width, width, 0.05), (0, 0, height)), back, *_legs(width, width, height, 0.05)]


def _shelf(a: float, b: float) -> list[Part]:
    width, depth, height, count = _mix(0.6, 2, a), _mix(0.25, 0.5, b), _mix(1.2, 2.4, a), 3 + int(4 * b)
    boards = _bars(count, (width, depth, 0.03), (0, 0, 0.05), (0, 0, (height - 0.1) / (count - 1)))
    return [*boards, *(Part("box", (0.03, depth, height), (s * width / 2, 0, height / 2)) for s in (-1, 1))]


def _lamp(a: float, b: float) -> list[Part]:
    height, reach = _mix(3.5, 11, a), _mix(0.3, 2.0, b)
    pole = Part("cylinder", (0.2, 0.2, height), (0, 0, height / 2))
    return [
        pole,
        Part("box", (reach, 0.1, 0.1), (reach / 2, 0, height)),
        Part("ellipsoid", (0.7, 0.3, 0.2), (reach, 0, height)),
    ]


def _tree(a: float, b: float) -> list[Part]:
    height, crown = _mix(3, 14, a), _mix(1.5, 6, b)
    trunk = Part("cylinder", (0.06 * crown + 0.1,) * 2 + (0.5 * height,), (0, 0, 0.25 * height))
    shift = 0.15 * crown
    blobs = [
        Part("ellipsoid", (0.8 * crown, 0.8 * crown, 0.5 * height), (x, y, 0.65 * height + x))
        for x, y in ((shift, 0), (-shift, shift), (0, -shift))
    ]
    return [trunk, *blobs]


def _bush(a: float, b: float) -> list[Part]:
    width, height = _mix(0.8, 3, a), _mix(0.6, 1.8, b)
    return [
        Part("ellipsoid", (width, 0.8 * width, height), (x * width, y * width, height / 2))
        for x, y in ((0, 0), (0.4, 0.2), (-0.3, 0.3))
    ]


def _wheels(length: float, width: float, size: float) -> list[Part]:
    return [
        Part("cylinder", (size, size, 0.2), (i * 0.32 * length, j * width / 2, size / 2), np.pi / 2)
        for i in (-1, 1)
        for j in (-1, 1)
    ]


def _car(a: float, b: float) -> list[Part]:
    length, width, height = _mix(3.4, 5.2, a), _mix(1.6, 2.0, b), _mix(1.3, 1.9, a)
    body = Part("box", (length, width, 0.5 * height), (0, 0, 0.45 * height))
    cabin = Part("box", (_mix(0.4, 0.65, b) * length, 0.9 * width, 0.35 * height), (-0.05 * length, 0, 0.85 * height))
    return [body, cabin, *_wheels(length, width, 0.65)]


def _truck(a: float, b: float) -> list[Part]:
    length, width, height = _mix(6, 14, a), _mix(2.2, 2.6, b), _mix(2.6, 4.0, b)
    load = Part("box", (0.72 * length, width, height - 0.9), (-0.1 * length, 0, 0.9 + (height - 0.9) / 2))
    cab = Part("box", (0.2 * length, width, 0.75 * height), (0.39 * length, 0, 0.3 + 0.375 * height))
    return [load, cab, *_wheels(length, width, 1.0)]


def _wires(a: float, b: float) -> list[Part]:
    length, count, apart = _mix(8, 40, a), 2 + int(4 * b), _mix(0.4, 1.5, b)
    pieces, sag = 8, 0.03 * length
    parts = []
    for wire in range(count):
        for i in range(pieces):
            x = (i + 0.5) / pieces - 0.5
            place = (x * length, (wire - count / 2) * apart, 8 + sag * 4 * x * x + (wire % 2) * apart)
            parts.append(Part("box", (length / pieces, 0.04, 0.04), place))
    return parts


MAKERS: dict[str, Callable[[float, float], list[Part]]] = {
    "wall": _wall,
    "slab": _slab,
    "column": _column,
    "beam": _beam,
    "door": _door,
    "window": _window,
    "stairs": _stairs,
    "fence": _fence,
    "roof": _roof,
    "house": _house,
    "balcony": _balcony,
    "table": _table,
    "chair": _chair,
    "shelf": _shelf,
    "lamp post": _lamp,
    "tree": _tree,
    "bush": _bush,
    "car": _car,
    "truck": _truck,
    "wires": _wires,
}
CLASSES = tuple(MAKERS)
CARD = SetCard(
    name="things3d",
    modality="pointcloud",
    source="generated by unipercept.datasets.things3d",
    licence="Apache-2.0",
    may_train=True,
    class_names=CLASSES,
    splits=("train", "validation", "test"),
    protocol="accuracy on things whose proportions no train thing has",
    layout="nothing: the folder is not read",
    n_samples={split: n * len(CLASSES) for split, n in PER_CLASS.items()},
)


def things3d(
    folder: str | Path = "", split: str = "train", *, per_class: int | None = None, n_points: int = 2048, seed: int = 0
) -> LabelledSet:
    """Clouds of N points, float32, made when asked for, the same for the same arguments.

    Raises:
        InputError: no such split, or sizes below 1.
    """
    CARD.check_split(split)
    count = PER_CLASS[split] if per_class is None else per_class
    if min(count, n_points) < 1:
        raise InputError(f"things3d needs per_class and n_points of at least 1, got {count} and {n_points}")
    targets = np.repeat(np.arange(len(CLASSES)), count)
    part = CARD.splits.index(split)

    def read(position: int) -> NDArray[np.float32]:
        rng = np.random.default_rng([seed, part, position])
        return scan(MAKERS[CLASSES[targets[position]]](*proportions(split, rng)), n_points, rng)

    ids = tuple(f"{CLASSES[target]} {split} {i % count}" for i, target in enumerate(targets))
    return LabelledSet(CARD, split, targets.astype(np.int64), ids, read)


def scan(parts: list[Part], n_points: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """One recording of a thing: Nx3."""
    points, normals = surface(parts, 3 * n_points, rng)
    if rng.uniform() < 0.6:  # from one side: above, or from the street
        seen = normals @ _direction(rng) > -0.1
        points = points[seen] if seen.sum() > 0.2 * len(seen) else points
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    radius = np.linalg.norm(points - middle, axis=1).max()
    away = ((points - middle) / radius) @ _direction(rng)
    keep = rng.uniform(size=len(points)) < np.exp(-rng.uniform(0, 1.5) * (1 + away))
    if rng.uniform() < 0.3:
        place = middle + radius * rng.uniform(0.5, 1) * _direction(rng)
        keep &= np.linalg.norm(points - place, axis=1) > rng.uniform(0.2, 0.5) * radius
    points = points[keep] if keep.sum() > 64 else points
    points = points + rng.normal(size=points.shape) * rng.uniform(0, 0.012) * radius
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.cos(angle), np.sin(angle)
    unit = 1.0 if rng.uniform() < 0.6 else np.exp(rng.uniform(-3, 0))
    turned = points @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) * unit
    chosen = rng.choice(len(turned), n_points, replace=len(turned) < n_points)
    return np.asarray(turned[chosen], np.float32)


def surface(parts: list[Part], count: int, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Points spread over the parts by their area, and the normals there: two of count x 3, about."""
    areas = np.array([_area(part) for part in parts])
    counts = rng.multinomial(count, areas / areas.sum())
    points, normals = [], []
    for part, n in zip(parts, counts, strict=True):
        at, normal = _SURFACES[part.kind](np.array(part.size) / 2, n, rng)
        c, s = np.cos(part.tilt), np.sin(part.tilt)
        turn = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
        points.append(at @ turn + np.array(part.place))
        normals.append(normal @ turn)
    return np.concatenate(points), np.concatenate(normals)


def _area(part: Part) -> float:
    x, y, z = part.size
    if part.kind == "box":
        return 2 * (x * y + y * z + z * x)
    if part.kind == "cylinder":
        return np.pi * (x * z + x * x / 2)
    return float(np.pi * (((x * y) ** 1.6 + (y * z) ** 1.6 + (z * x) ** 1.6) / 3) ** (1 / 1.6))  # Thomsen's formula


def _box(half: Numbers, n: int, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    faces = np.array([half[1] * half[2], half[2] * half[0], half[0] * half[1]])
    axis, side = rng.choice(3, n, p=faces / faces.sum()), rng.choice([-1.0, 1.0], n)
    normals = np.eye(3)[axis] * side[:, None]
    return np.where(normals != 0, normals, rng.uniform(-1, 1, (n, 3))) * half, normals


def _cylinder(half: Numbers, n: int, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    angle, height = rng.uniform(0, 2 * np.pi, n), rng.uniform(-1, 1, n)
    is_cap = rng.uniform(size=n) < half[0] / (half[0] + 2 * half[2])
    radius = np.where(is_cap, np.sqrt(rng.uniform(size=n)), 1.0)
    around = np.stack([np.cos(angle), np.sin(angle), np.zeros(n)], axis=1)
    side = np.sign(height)
    points = (
        radius[:, None] * around * half[0]
        + np.stack([0 * angle, 0 * angle, np.where(is_cap, side, height)], axis=1) * half[2]
    )
    return points, np.where(is_cap[:, None], np.stack([0 * angle, 0 * angle, side], axis=1), around)


def _ellipsoid(half: Numbers, n: int, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    sphere = rng.normal(size=(n, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    normals = sphere / half
    return sphere * half, normals / np.linalg.norm(normals, axis=1, keepdims=True)


_SURFACES = {"box": _box, "cylinder": _cylinder, "ellipsoid": _ellipsoid}


def _direction(rng: np.random.Generator) -> Numbers:
    """Uniform over the directions that do not look down."""
    direction = rng.normal(size=3)
    direction[2] = abs(direction[2])
    return np.asarray(direction / np.linalg.norm(direction))
