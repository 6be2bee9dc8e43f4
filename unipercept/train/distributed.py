"""The processes that train one model together, as started by `torchrun`; one process is the same with a count of 1."""

import io
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from unipercept.errors import InputError

_joinings = itertools.count()


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many, and the device it computes on."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes, in float64; every process gets the same numbers."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value` (tensors, numbers, strings, lists, dicts), in order of rank."""
        if self.count == 1:
            return [value]
        buffer = io.BytesIO()
        torch.save(value, buffer)
        content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8).to(self.device)
        sizes = [int(size) for size in self.sum([float(len(content) * (r == self.rank)) for r in range(self.count)])]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=self.device)
        padded[: len(content)] = content
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded)
        parts = [part[:size].cpu().numpy().tobytes() for part, size in zip(received, sizes, strict=True)]
        return [torch.load(io.BytesIO(part), map_location="cpu", weights_only=True) for part in parts]

    def wait(self) -> None:
        """A barrier: returns when all processes have called it."""
        self.sum([0.0])


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the process group that `torchrun` describes in the environment, or one that
    exists; leave what was joined here.

    Args:
        device: "auto" (a CUDA device for each process where there are some, else the CPU), or a torch device.

    Raises:
        InputError: a device that this machine does not have.
    """
    chosen = _device(device)
    joins = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if joins:
        from torch.distributed.distributed_c10d import PrefixStore  # not in builds of torch without processes
        from torch.distributed.rendezvous import rendezvous

        store, rank, count = next(rendezvous("env://"))
        # A second run of one program may find the first one's store, with addresses that nobody listens at any more.
        store = PrefixStore(f"unipercept/{next(_joinings)}", store)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", store=store, rank=rank, world_size=count)
    try:
        if dist.is_initialized():
            yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
        else:
            yield Processes(0, 1, chosen)
    finally:
        if joins:
            dist.destroy_process_group()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device {name} was asked for, and PyTorch finds no CUDA device here; use device='cpu'")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise InputError(f"device {device} was asked for, and this machine has {torch.cuda.device_count()} of them")
        torch.cuda.set_device(device)
    return device
