"""Point cloud to maps: one rendering a view, nearness and surface normals, without anything learned.

Shapes: N points, B views, S side of a picture in cells.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unipercept.devices import on_cpu
from unipercept.embedding import Axis, EmbeddingMap
from unipercept.errors import InputError
from unipercept.pipelines.base import PerceptionModel, Pipeline, as_array, check_raw
from unipercept.pipelines.cloud_files import Points, points_of_array, read_points
from unipercept.pipelines.projection import VIEW_ANGLES, depth_map, rotation, shade, splat_radius, unit_sphere

N_BINS = 1 << 16  # of the places of points, of which a few thousand are needed
DEFAULT_VIEWS = (0, 4, 5, 8)  # from a side, from two corners, from a pole: of VIEW_ANGLES


@dataclass(frozen=True)
class PointCloudConfig:
    """How a cloud becomes maps.

    Args:
        size: S.
        views: numbers of views in VIEW_ANGLES, an item of the batch each.
        mesh_points: points spread over a mesh.
        seed: of that spreading, and of choosing `n_points`.
        n_points: every cloud is brought to so many points, drawn at random (with repeats where it has fewer); which
            ones does not depend on their order. 0 takes all.
        with_scale: a fourth channel with the cloud's radius on the object, log2(radius) / 4: size in the file's units.
    """

    size: int = 224
    views: tuple[int, ...] = DEFAULT_VIEWS
    mesh_points: int = 100_000
    seed: int = 0
    n_points: int = 0
    with_scale: bool = False

    def __post_init__(self) -> None:
        if (
            self.size < 4
            or self.n_points < 0
            or self.mesh_points < 1
            or not self.views
            or any(v not in range(len(VIEW_ANGLES)) for v in self.views)
        ):
            raise InputError(
                f"PointCloudConfig needs size >= 4, mesh_points >= 1, n_points >= 0 and views within 0 to {len(VIEW_ANGLES) - 1}, "
                f"got {self.size}, {self.mesh_points}, {self.n_points}, {self.views}"
            )


@dataclass(frozen=True, eq=False)
class Cloud:
    """Nx3 finite points in the units of the file."""

    points: Points
    source: str
    facts: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_array(points: "NDArray[Any] | Tensor") -> "Cloud":
        """A cloud in memory, Nx3 or wider; further columns are left out.

        Raises:
            InputError: another shape, or no finite point.
        """
        facts: dict[str, Any] = {"format": "array"}
        kept = points_of_array(as_array(points), "a cloud", facts)
        kept = kept[np.isfinite(kept).all(axis=1)]
        if not len(kept):
            raise InputError(f"none of the {len(points)} points is finite; a cloud needs at least one")
        return Cloud(kept, "array", {**facts, "n_points": len(kept)})


class PointCloudPipeline(Pipeline[Cloud]):
    """Cloud or mesh to B x 3 x S x S: for each view nearness in [0, 1] and the normal's x and y
    in [-1, 1], 0 off the object.

    The cloud is centred and scaled into the unit ball; centre and scale stay in the metadata, so that a place on the
    map can be found again in the file's units. Points are z-buffered and widened until gaps close.
    """

    modality = "pointcloud"

    def __init__(self, config: PointCloudConfig = PointCloudConfig(), *, model: PerceptionModel | None = None) -> None:
        super().__init__(model)
        self.config = config

    def read(self, path: str | Path) -> Cloud:
        """Read a cloud, or spread points over a mesh.

        Raises:
            InputError: the file cannot be read or holds no finite point.
            MissingDependencyError: open3d is not there.
        """
        points, facts = read_points(path, self.config.mesh_points, self.config.seed)
        return Cloud(points, str(path), facts)

    @on_cpu
    def embed(self, raw: Cloud) -> EmbeddingMap:
        """One map, a view an item of the batch."""
        check_raw(raw, Cloud, "Cloud.from_array")
        size = self.config.size
        points, centre, scale = unit_sphere(torch.from_numpy(chosen_points(raw.points, self.config)))
        splat = splat_radius(len(points), size)
        pictures, hits = [], []
        for view in self.config.views:
            picture, hit = shade(depth_map(turn(points, rotation(VIEW_ANGLES[view])), size, splat))
            if self.config.with_scale:
                picture = torch.cat([picture, hit[None].to(picture.dtype) * scale_value(scale)])
            pictures.append(picture)
            hits.append(hit)
        across = (torch.arange(size, dtype=torch.float32) + 0.5) * 2 / size - 1
        metadata = {
            "source": raw.source,
            **raw.facts,
            "view_angles": [list(VIEW_ANGLES[view]) for view in self.config.views],
            "centre": (centre + torch.tensor(raw.facts.get("origin", [0.0] * 3), dtype=torch.float64)).tolist(),
            "scale": scale,
            "splat": splat,
            "channels": ["nearness", "normal_x", "normal_y", *(["scale"] if self.config.with_scale else [])],
        }
        coords = {"y": Axis("H", -across, "1"), "x": Axis("W", across, "1")}
        return EmbeddingMap(torch.stack(pictures), self.modality, coords, torch.stack(hits), metadata)


def chosen_points(points: Points, config: PointCloudConfig) -> Points:
    """`config.n_points` of the points, the same for the same cloud whatever the order of its points; all of them where
    it is 0.
    """
    if not config.n_points or len(points) == config.n_points:
        return points
    rng = np.random.default_rng(config.seed)
    ranks = rng.choice(len(points), config.n_points, replace=len(points) < config.n_points)
    return points[_with_ranks(_along_a_line(points), ranks)]


def _along_a_line(points: Points) -> NDArray[np.float64]:
    """Where N points lie along a direction in which the points of a grid have places of their own. Their order stays
    that of a moved or rounded copy of the cloud, but for near neighbours; that of hashes would not.
    """
    place = points[:, 0].astype(np.float64)
    for column, stretch in ((1, math.sqrt(2)), (2, math.sqrt(3))):
        place += stretch * points[:, column].astype(np.float64)
    return place


def _with_ranks(values: NDArray[np.float64], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of those of N values that have the given ranks; only values that share a bin with one are sorted."""
    low, high = float(values.min()), float(values.max())
    bins = ((values - low) * (N_BINS / (high - low) if high > low else 0.0)).astype(np.int32)
    counts = np.bincount(bins)
    bin_of_rank = np.searchsorted(counts.cumsum(), ranks, side="right")
    is_needed = np.zeros(len(counts), bool)
    is_needed[bin_of_rank] = True
    kept = np.flatnonzero(is_needed[bins])
    kept = kept[np.argsort(values[kept])]
    n_left_out = np.where(is_needed, 0, counts).cumsum()  # below the end of each bin
    found: NDArray[np.int64] = kept[ranks - n_left_out[bin_of_rank]]
    return found


def scale_value(scale: float) -> float:
    """A radius on a scale where 1/16 to 16 units is -1 to 1."""
    return math.log2(max(scale, 1e-12)) / 4


def turn(points: Tensor, matrix: Tensor, chunk: int = 1 << 20) -> Tensor:
    """Nx3 points turned by a 3x3 rotation, p R^T, in parts: ten million points at once would
    need their memory twice more.
    """
    matrix = matrix.to(points.dtype)
    turned = torch.empty_like(points)
    for start in range(0, len(points), chunk):
        torch.matmul(points[start : start + chunk], matrix.T, out=turned[start : start + chunk])
    return turned
