"""Measuring which tiles are best for given shapes on this GPU.

Never done unasked: benchmarks/feed_forward.py --tune does.

Shapes: B batch, C channels, H rows, W columns, N hidden channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import triton
from torch import Tensor
from triton.testing import do_bench

from unipercept.kernels.feed_forward.gpu import contract, expand, on_device_of, squeeze_excite
from unipercept.kernels.feed_forward.gpu_tiles import MEASURED, Product, Tile, neighbours, shared_bytes_of, tile_for
from unipercept.kernels.feed_forward.reference import Weights
from unipercept.kernels.measured import Report, device_name, search

AXES = ("columns", "rows", "way", "warps", "depth", "stages", "group")
REPEAT_MS = 20
THREADS = 8


def tune(y: Tensor, weights: Weights, report: Report | None = None) -> Path:
    """Find the best tile of each product for inputs like `y`, BxHxWxC, and write them to the cache folder.

    Goes along one axis of the tile after the other, from the tile in use: minutes, most of them compiling. `report` is
    told of each improvement: product, tile and milliseconds.
    """
    best = {}
    with on_device_of(y):
        for product, run in products(y, weights):
            best[str(product)], _ = search(
                str(product),
                tile_for(product, y.device),
                AXES,
                partial(_neighbours, product, shared_bytes_of(y.device)),
                partial(_compile, run, y),
                partial(_milliseconds, run),
                report,
            )
    return MEASURED.remember(device_name(y.device), best)


def _neighbours(product: Product, shared_bytes: int, tile: Tile, axis: str) -> list[Tile]:
    return neighbours(tile, product, axis, shared_bytes)


def products(y: Tensor, weights: Weights) -> Iterator[tuple[Product, Callable[[Tile], Any]]]:
    """Each product of the form for inference with what runs it with a given tile."""
    n, c, size = *weights.w1.shape, y.shape[1] * y.shape[2]
    gate = squeeze_excite(y, None, weights)[1]
    hidden, factor = expand(y, gate, weights)
    yield Product("expand", n, c, size, y.dtype), lambda tile: expand(y, gate, weights, tile)
    yield (
        Product("contract", c, n, size, y.dtype),
        lambda tile: contract(hidden, factor, weights.w2, None, y, y.shape, y.dtype, tile),
    )


def _compile(run: Callable[[Tile], Any], y: Tensor, tiles: Sequence[Tile]) -> None:
    """Run each once, in threads: compiling is what takes the time, and most of it can be done side by side."""

    def attempt(tile: Tile) -> None:
        # What fails here fails again, and is dealt with, when it is measured.
        with on_device_of(y), suppress(Exception):
            run(tile)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(attempt, tiles))


def _milliseconds(run: Callable[[Tile], Any], tile: Tile) -> float:
    """The median; infinite for a tile that asks for more than the GPU has, or that this Triton cannot compile."""
    try:
        return float(do_bench(lambda: run(tile), warmup=5, rep=REPEAT_MS, return_mode="median"))
    except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError):
        return float("inf")
    except RuntimeError as error:
        if "PassManager" not in str(error):
            raise
        return float("inf")
