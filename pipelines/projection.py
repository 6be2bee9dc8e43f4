"""Point clouds as pictures, in plain torch: view rotations, a z-buffer, and the learned geometry-preserving projection.

Source of views and projection: the point-cloud code of UniRepLKNet after P2P, Wang et al. (2022).

Shapes: N points, B views, S side of a picture in cells, K neighbours, C features.
"""

import math

import torch
from torch import Tensor, nn

from unipercept.errors import InputError

HALF = math.pi / 2
# Euler angles about x, y, z in radians: four from the side, four from the corners above and below, two from the poles.
VIEW_ANGLES: tuple[tuple[float, float, float], ...] = (
    *((i * HALF, 0.0, HALF) for i in range(4)),
    (5 * math.pi / 4, -math.pi / 4, HALF),
    (7 * math.pi / 4, -math.pi / 4, HALF),
    (5 * math.pi / 4, math.pi / 4, HALF),
    (7 * math.pi / 4, math.pi / 4, HALF),
    (0.0, -HALF, HALF),
    (0.0, HALF, HALF),
)
CHUNK = 1 << 20  # points
CANVAS_MARGIN = 3  # cells of the canvas that the projection leaves free, for the 3x3 splat


def rotation(angles: tuple[float, float, float]) -> Tensor:
    """3x3 float64: Rx Ry Rz of angles in radians; points turn as p R^T."""
    x, y, z = (torch.tensor(angle, dtype=torch.float64) for angle in angles)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    about_x = torch.stack([one, zero, zero, zero, x.cos(), -x.sin(), zero, x.sin(), x.cos()]).reshape(3, 3)
    about_y = torch.stack([y.cos(), zero, y.sin(), zero, one, zero, -y.sin(), zero, y.cos()]).reshape(3, 3)
    about_z = torch.stack([z.cos(), -z.sin(), zero, z.sin(), z.cos(), zero, zero, zero, one]).reshape(3, 3)
    return about_x @ about_y @ about_z


def unit_sphere(points: Tensor) -> tuple[Tensor, Tensor, float]:
    """Nx3 points moved to mean 0 and scaled into the unit ball; their centre (3) and scale, so p = centre + scale * q.

    Points that all coincide get scale 1.

    Raises:
        InputError: the distance between points overflows their type.
    """
    # Piece by piece: a copy of tens of millions of points in double precision would triple the memory.
    parts = torch.split(points, CHUNK)
    centre = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / len(points)
    moved = points - centre.to(points.dtype)
    largest = max(float(moved.max()), -float(moved.min()))
    if not math.isfinite(largest):
        raise InputError(
            f"coordinates as large as {float(points.abs().max()):.3g} overflow {points.dtype}; use a larger unit"
        )
    if largest <= 1e-12 * float(centre.abs().max()):
        return moved, centre, 1.0
    unit = 1.0 if 1e-15 < largest < 1e15 else largest  # else its square is 0 or infinite in float32
    moved.div_(unit)
    scale = float(torch.stack([part.square().sum(dim=1).max() for part in torch.split(moved, CHUNK)]).max().sqrt())
    return moved.div_(scale), centre, scale * unit


def depth_map(points: Tensor, size: int, splat: int = 0) -> Tensor:
    """...xNx3 points in the unit ball, seen along z from above, to ...xSxS maps of the
    nearest z; -inf where nothing is.

    x runs to the right, y up, both over [-1, 1]; each point covers (2 splat + 1)^2 cells. Does not
    depend on the order of the points.
    """
    columns = ((points[..., 0] + 1) / 2 * size).floor().long().clamp(0, size - 1)
    rows = ((1 - points[..., 1]) / 2 * size).floor().long().clamp(0, size - 1)
    depth = points.new_full((*points.shape[:-2], size * size), -math.inf)
    depth.scatter_reduce_(-1, rows * size + columns, points[..., 2], "amax")
    depth = depth.reshape(-1, 1, size, size)
    if splat:
        depth = torch.nn.functional.max_pool2d(depth, 2 * splat + 1, stride=1, padding=splat)
    return depth.reshape(*points.shape[:-2], size, size)


def splat_radius(n_points: int, size: int) -> int:
    """Cells around a point that close the gaps between neighbours: the mean spacing of N
    points on the unit sphere's disc.
    """
    spacing = size * math.sqrt(math.pi / max(n_points, 1)) / 2
    return max(0, min(size // 16, math.ceil(spacing / 2 - 0.25)))


def shade(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Depth maps (...xSxS) to ...x3xSxS: nearness in [0, 1] and two components of the surface normal,
    and ...xSxS bool where they were hit.

    The normal comes from central differences of a depth map whose gaps hold the map's farthest hit.
    """
    hit = torch.isfinite(depth)
    farthest = torch.where(hit, depth, torch.full_like(depth, math.inf)).amin(dim=(-2, -1), keepdim=True)
    filled = torch.where(hit, depth, torch.where(torch.isfinite(farthest), farthest, torch.zeros_like(farthest)))
    smooth = _smooth(filled, hit)
    cell = 2 / depth.shape[-1]
    slope_x = _central(smooth, hit, dim=-1) / cell
    slope_y = -_central(smooth, hit, dim=-2) / cell
    length = (1 + slope_x.square() + slope_y.square()).sqrt()
    nearness = ((filled + 1) / 2).clamp(0, 1)
    return torch.stack([nearness, slope_x / length, slope_y / length], dim=-3) * hit.unsqueeze(-3), hit


def _smooth(depth: Tensor, hit: Tensor) -> Tensor:
    """Mean over the hit cells of each 3x3 neighbourhood: one point's rounding must not tilt its normal."""
    planes, hits = depth.reshape(-1, 1, *depth.shape[-2:]), hit.reshape(-1, 1, *hit.shape[-2:]).to(depth.dtype)
    weight = torch.nn.functional.avg_pool2d(hits, 3, 1, 1)
    total = torch.nn.functional.avg_pool2d(planes * hits, 3, 1, 1)
    return torch.where(hit, (total / weight.clamp(min=1e-12)).reshape(depth.shape), depth)


def _central(values: Tensor, hit: Tensor, dim: int) -> Tensor:
    """Central difference along `dim`, -1 or -2, where both neighbours were hit, one-sided where one was, else 0."""
    before, after = values.roll(1, dim), values.roll(-1, dim)
    has_before, has_after = hit.roll(1, dim), hit.roll(-1, dim)
    edge = torch.arange(values.shape[dim], device=values.device)
    shape = [-1, 1] if dim == -2 else [1, -1]
    has_before = has_before & (edge > 0).reshape(shape)
    has_after = has_after & (edge < values.shape[dim] - 1).reshape(shape)
    left = torch.where(has_before, values - before, torch.zeros_like(values))
    right = torch.where(has_after, after - values, torch.zeros_like(values))
    return (left + right) / (has_before.to(values.dtype) + has_after.to(values.dtype)).clamp(min=1)


def splat_cells(points: Tensor, size: int) -> Tensor:
    """Cells that each point writes to: Nx9 indices into an SxS canvas (row-major; x is the column, y the row).

    A cell is as wide as the larger of the two ranges over S - 3; each point fills a 3x3 neighbourhood; the occupied
    box is centred on the canvas.

    Raises:
        InputError: no points, or a canvas below 4 cells.
    """
    if len(points) == 0 or size <= CANVAS_MARGIN:
        raise InputError(f"the projection needs points and a canvas of at least 4 cells, got {len(points)} and {size}")
    low = points[:, :2].amin(dim=0)
    span = float((points[:, :2].amax(dim=0) - low).max())
    width = span / (size - CANVAS_MARGIN) if span > 0 else 1.0
    cells = ((points[:, :2] - low) / width).floor().long().clamp(max=size - CANVAS_MARGIN)
    offsets = torch.cartesian_prod(torch.arange(3), torch.arange(3)).to(cells.device)
    cells = cells[:, None] + offsets[None]
    box = cells.amax(dim=(0, 1)) + 1
    cells = (cells + torch.div(size - box, 2, rounding_mode="floor")).clamp(0, size - 1)
    return cells[..., 1] * size + cells[..., 0]


def scatter_sum(features: Tensor, cells: Tensor, size: int) -> Tensor:
    """NxC features added up into the cells (NxM) they write to: CxSxS; zero elsewhere.

    Differentiable in the features.
    """
    n_points, channels = features.shape
    spread = features[:, None].expand(n_points, cells.shape[1], channels).reshape(-1, channels)
    canvas = features.new_zeros(size * size, channels).index_add(0, cells.reshape(-1), spread)
    return canvas.T.reshape(channels, size, size)


def farthest_points(points: Tensor, count: int, start: int = 0) -> Tensor:
    """Indices of `count` of the Nx3 points, each the farthest from those before it; the first is `start`.

    Raises:
        InputError: more are asked for than there are.
    """
    if not 0 < count <= len(points) or not 0 <= start < len(points):
        raise InputError(f"cannot choose {count} of {len(points)} points from point {start}")
    chosen = torch.empty(count, dtype=torch.long)
    distance = points.new_full((len(points),), math.inf)
    current = start
    for i in range(count):
        chosen[i] = current
        distance = torch.minimum(distance, (points - points[current]).square().sum(dim=1))
        current = int(distance.argmax())
    return chosen


def nearest_neighbours(points: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """NxK indices of the K nearest points of each (itself first), `chunk` rows of the distance table at a time."""
    k = min(k, len(points))
    found = [torch.cdist(part, points).topk(k, largest=False).indices for part in torch.split(points, chunk)]
    return torch.cat(found)


class GeometryPreservingProjection(nn.Module):
    """The learned projection: point features from a neighbour graph, scattered onto a canvas per view, coloured to RGB.

    Args:
        size: S.
        k: neighbours in the graph.
        n_views: the first views of VIEW_ANGLES.
        width: C of the point features.

    Source: P2P, Wang et al. (2022), as UniRepLKNet's point-cloud code has it, without the fusion across views.
    """

    def __init__(self, size: int = 224, k: int = 32, n_views: int = 4, width: int = 64) -> None:
        super().__init__()
        if not 1 <= n_views <= len(VIEW_ANGLES):
            raise InputError(f"n_views must be 1 to {len(VIEW_ANGLES)}, got {n_views}")
        self.size, self.k, self.n_views = size, k, n_views
        self.lift = nn.Conv1d(3, 8, 1)
        self.edge = nn.Conv2d(16, width, 1, bias=False)
        self.edge_norm = nn.GroupNorm(4, width)
        self.project = nn.Conv1d(width, width, 1)
        self.refine = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.mix = nn.Conv2d(width, width, 1)
        self.colour = nn.Conv2d(width, 3, 1)

    def forward(self, points: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Nx3 points in the unit ball to n_views x 3 x S x S pictures, normalised with `mean` and `std` (3 each)."""
        features = self._point_features(points)
        views = []
        for angles in VIEW_ANGLES[: self.n_views]:
            turned = points @ rotation(angles).to(points).T
            views.append(scatter_sum(features, splat_cells(turned, self.size), self.size))
        canvas = torch.stack(views)
        canvas = self.mix(torch.relu(canvas + self.refine(canvas)))
        colours: Tensor = self.colour(canvas).sigmoid()
        return (colours - mean[:, None, None]) / std[:, None, None]

    def _point_features(self, points: Tensor) -> Tensor:
        lifted = self.lift(points.T[None])[0].T
        neighbours = nearest_neighbours(points.detach(), self.k)
        edges = torch.cat(
            [lifted[neighbours] - lifted[:, None], lifted[:, None].expand(-1, neighbours.shape[1], -1)], dim=2
        )
        edges = self.edge(edges.permute(2, 0, 1)[None])
        edges = torch.nn.functional.leaky_relu(self.edge_norm(edges), 0.2)
        features: Tensor = self.project(edges.amax(dim=3))[0].T
        return features
