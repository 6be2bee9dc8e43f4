"""A run of blocks as one cooperative launch of clusters, compute capability 9.0 and higher: the plan and the launch.

The kernel is CUDA C++ in cuda/clusters.cu, which says how it works.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d.gpu import limits_of
from unipercept.kernels.depthwise_conv2d.gpu_tiles import Limits
from unipercept.kernels.folded_blocks.run import TYPES, NoPlanError, Run, aligned, depth_shares, large_blocks, odd, up16

PACKAGE = "unipercept.kernels.folded_blocks"
FILES = (
    "../depthwise_conv2d/cuda/prelude.cuh", "../depthwise_conv2d/cuda/bulk.cuh", "cuda/cluster.cuh",
    "../feed_forward/cuda/gelu.cuh", "cuda/parts.cuh", "cuda/clusters.cu",
)  # fmt: skip
THREADS = 256
RANKS = (16, 8, 4)  # thread blocks in a cluster, what is tried first
WIDEST = 28  # outputs of a thread in the convolution


@dataclass(frozen=True)
class ClusterPlan:
    """How the map is cut; the names are those of clusters.cu."""

    ranks: int
    rows: int
    tile: int
    shared_bytes: int = 0

    def clusters(self, run: Run) -> int:
        """That share the map's rows."""
        return math.ceil(run.height / self.rows)


def plan_of(run: Run, limits: Limits) -> ClusterPlan:
    """Which cells and channels each thread block owns.

    Raises:
        NoPlanError: sizes that the kernel does not take.
    """
    for ranks in RANKS:
        c, n, r = run.channels, run.hidden, run.squeezed
        # Of the groups of 16 or 18 multiprocessors some lack a few: not all that divides their number can run.
        clusters = (limits.multiprocessors - 16) // ranks
        if clusters < 1 or run.batch > 1 or c % 16 or c % (2 * ranks) or n % (8 * ranks) or r % 4 or r > THREADS:
            continue
        plan = ClusterPlan(ranks, math.ceil(run.height / clusters), run.width if run.width <= WIDEST else WIDEST)
        plan = replace(plan, shared_bytes=shared_bytes(run, plan))
        whole = plan.rows * run.width * (c // ranks) % 8 == 0  # bulk copies are of multiples of 16 bytes
        if whole and c // ranks <= 32 and n // ranks <= THREADS and plan.shared_bytes <= limits.shared_bytes:
            return plan
    raise NoPlanError("the map or its weights are not for clusters")


def shared_bytes(run: Run, plan: ClusterPlan) -> int:
    """Shared memory of a thread block, as clusters.cu lays it out."""
    kernels = min(run.kernels), max(run.kernels)
    c, n, r, large = run.channels // plan.ranks, run.hidden // plan.ranks, run.squeezed, kernels[1]
    own = plan.rows * run.width
    high, deep, across = up16(own), up16(n), math.ceil(run.width / plan.tile)
    lines = plan.rows * across

    def plane(k: int) -> int:
        return odd((plan.rows + k - 1) * (math.ceil((across * plan.tile + k - 1) / 4) * 4))

    def lined(k: int) -> int:
        return max(min(k, max(1, THREADS // (c * lines))) * lines * plan.tile * c, c * plan.rows * k)

    shares = 4 * run.channels * own
    weights = [run.channels * (deep + 8), c * large**2, r * c, r * c, c, r, c, n, n, c]
    kept = (
        128, max(2 * n * (run.channels + 8), shares), *(2 * count for count in weights), max(2 * high * (run.channels + 8), 32 * THREADS), 4 * plan.ranks * r, 4 * plan.ranks,
        2 * high * (deep + 8), 2 * own * c, 4 * own * c, 4 * own * c,
        2 * own * c,
        4 * c * max(odd(k * math.ceil(k / 4) * 4) for k in kernels), 4 * max(map(lined, kernels)), 128, 128, 4 * THREADS, 4 * deep,
    )  # fmt: skip
    sums = 4 * depth_shares(high, n, run.channels, THREADS) * high * (n + 4)
    return sum(map(aligned, kept)) + max(4 * c * max(map(plane, kernels)), sums, shares)


def defines_of(run: Run, plan: ClusterPlan) -> dict[str, int | str]:
    """The kernel's constants."""
    return {
        "T": TYPES[run.dtype], "HEIGHT": run.height, "WIDTH": run.width, "CHANNELS": run.channels, "HIDDEN": run.hidden,
        "SQUEEZED": run.squeezed, "BLOCKS": len(run.kernels), "SMALL": min(run.kernels), "LARGE": max(run.kernels),
        "ROWS": plan.rows, "RANKS": plan.ranks, "TILE": plan.tile, "THREADS": THREADS, "SHARED_BYTES": plan.shared_bytes,
    }  # fmt: skip


@dataclass(frozen=True)
class ClusterLaunch:
    """A compiled kernel and its plan, made once for a run."""

    kernel: cuda.Kernel
    plan: ClusterPlan
    run: Run
    large: ctypes.c_ulonglong

    def __call__(self, x: Tensor, weights: ctypes.Array[ctypes.c_void_p], output: Tensor, arrived: Tensor) -> None:
        """1xCxHxW channels-last through the blocks into `output`; `arrived` is a zero."""
        sizes = scratch_sizes(self.run, self.plan)
        squeezed, squares = (x.new_empty(sizes[name], dtype=torch.float32) for name in ("squeezed", "squares"))
        carried = x.new_empty(sizes["carried"])
        self.kernel(
            self.plan.clusters(self.run) * self.plan.ranks, THREADS, x, weights, self.large, carried, squeezed, squares,
            output, arrived, cooperative=True, cluster=self.plan.ranks,
        )  # fmt: skip


@lru_cache(maxsize=256)
def launch_of(run: Run, index: int) -> ClusterLaunch | None:
    """The kernel for a run on that GPU; None where it has no clusters, or not enough of them at the same time."""
    if torch.cuda.get_device_capability(index) < (9, 0):
        return None
    try:
        plan = plan_of(run, limits_of(index))
    except NoPlanError:
        return None
    name, device = "run_blocks_in_clusters", torch.device("cuda", index)
    kernel = cuda.kernel(PACKAGE, FILES, name, defines_of(run, plan), plan.shared_bytes, device, overlapping=True)
    if kernel.clusters_at_once(plan.ranks, THREADS) < plan.clusters(run):
        return None
    return ClusterLaunch(kernel, plan, run, ctypes.c_ulonglong(large_blocks(run.kernels)))


def scratch_sizes(run: Run, plan: ClusterPlan) -> dict[str, int]:
    """Elements of what clusters hand to each other: float32, but for the map carried."""
    clusters = plan.clusters(run)
    return {
        "squeezed": clusters * run.channels, "squares": clusters * run.hidden, "carried": run.cells * run.channels,
    }  # fmt: skip
