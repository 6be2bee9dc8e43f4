"""How the GPU benchmarks measure: calls captured in a CUDA graph over inputs larger than the L2, so that
launches and caches do not help.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BYTES_PER_US = 4.3e6  # a copy on an H200, bytes read and written
OPERATIONS_PER_US = 700e6  # of a large bf16 product there, a little under the 800 measured
FLOAT32_OPERATIONS_PER_US = 60e6  # of fused multiply-adds outside of the tensor cores, by the datasheet 67
ROTATED_BYTES = 400e6  # several times the L2


def hardware() -> str:
    """The line that every table of results begins with."""
    triton = __import__("triton").__version__
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, Triton {triton}"


def copies(make: Callable[[], Any], bytes_each: float, most: int = 24) -> list[Any]:
    """As many sets of inputs as pass through the caches."""
    return [make() for _ in range(max(3, min(most, int(ROTATED_BYTES / bytes_each))))]


def graph_of(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """`call` captured after three runs on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def replay_us(graph: torch.cuda.CUDAGraph, repeats: int = 7) -> float:
    """Median time of a replay."""
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]


def turns_us(
    graphs: Mapping[str, torch.cuda.CUDAGraph], rounds: int = 15, repeats: int = 11
) -> dict[str, tuple[float, float, float]]:
    """Median, least and most of the rounds' median times of each graph, a few replays of each in turn: what changes the
    clock or the host meets all of them.
    """
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(rounds + 1):  # the first warms up
        for name in list(graphs)[:: 1 if turn % 2 else -1]:
            found[name].append(replay_us(graphs[name], repeats))
    return {name: (sorted(times[1:])[rounds // 2], min(times[1:]), max(times[1:])) for name, times in found.items()}


def time_us(function: Callable[..., Any], sets: Sequence[tuple[Any, ...]], repeats: int = 7) -> float:
    """Median time of one call, launched from a graph that goes through all `sets` of inputs."""

    def all_sets() -> None:
        for inputs in sets:
            function(*inputs)

    return replay_us(graph_of(all_sets), repeats) / len(sets)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())
