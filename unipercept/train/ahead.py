"""Training steps that never wait for the host: forward and backward as one CUDA graph, the update as another,
non-finite steps skipped on the device.

A small network is limited by the host: a thousand launches per step, and a synchronisation to read the loss after each.
Here a step is two launches, and numbers stay on the device until they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unipercept.errors import InputError
from unipercept.kernels.streams import capture, capture_stream
from unipercept.train.optimization import ExponentialMovingAverage, add_all

WARM_UP_RUNS = 2  # before a capture: kernels are compiled and libraries take their workspace


class GradientGraphs:
    """`computed(batch)` and its gradients, added to what is there already; a CUDA graph for each shape of batch.

    On a CPU the same is done without a graph.

    Args:
        computed: a batch to scalars by name, `loss` among them. Whatever it reads must stay where it is: its tensors
            are read again by each replay, its Python numbers only once.
        parameters: whose gradients are accumulated.
        buffers: what `computed` changes beside them, such as statistics over batches: a
            capture leaves them as they were.
        variant: what else a graph depends on, e.g. the length of a rollout.
        warm_up_runs: before each capture; at least 1.
    """

    def __init__(
        self,
        computed: Callable[[Any], Mapping[str, Tensor]],
        parameters: Sequence[nn.Parameter],
        device: torch.device,
        buffers: Sequence[Tensor] = (),
        variant: Callable[[], Hashable] = lambda: None,
        warm_up_runs: int = WARM_UP_RUNS,
    ) -> None:
        self.buffers, self.warm_up_runs = list(buffers), warm_up_runs
        self.computed, self.parameters, self.device, self.variant = computed, list(parameters), device, variant
        self.sums: dict[str, Tensor] = {}
        self._weight = torch.zeros((), dtype=torch.float64, device=device)
        self._graphs: dict[Hashable, tuple[list[Tensor], Any, torch.cuda.CUDAGraph]] = {}
        self._pool: Any = None
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    @property
    def gradients(self) -> list[Tensor]:
        """One for each parameter; they stay where they are."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def accumulate(self, batch: Any, weight: float) -> None:
        """Add `weight` times the gradients and values of a batch.

        Raises:
            InputError: a batch that holds something else than tensors.
        """
        leaves, structure = pytree.tree_flatten(batch)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise InputError("run_ahead needs batches of tensors alone; leave it out")
        self._weight.fill_(weight)
        if self.device.type != "cuda":
            self._add(batch)
            return
        key = (tuple((leaf.shape, leaf.dtype) for leaf in leaves), str(structure), self.variant())
        if key not in self._graphs:
            self._graphs[key] = self._captured(leaves, structure)
        inputs, _, graph = self._graphs[key]
        torch._foreach_copy_(inputs, leaves)
        graph.replay()

    def clear(self) -> None:
        """Reset gradients and values for the next step."""
        torch._foreach_zero_(self.gradients)
        if self.sums:
            torch._foreach_zero_(list(self.sums.values()))

    def _add(self, batch: Any) -> None:
        values = self.computed(batch)
        weighted = values["loss"].double() * self._weight
        found = torch.autograd.grad(weighted, self.parameters, allow_unused=True)
        pairs = [(total, g) for total, g in zip(self.gradients, found, strict=True) if g is not None]
        totals, parts = [total for total, _ in pairs], [g for _, g in pairs]
        add_all(parts, totals)
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((), dtype=torch.float64, device=self.device)
            self.sums[name] += value.detach().double() * self._weight

    def _captured(self, leaves: list[Tensor], structure: Any) -> tuple[list[Tensor], Any, torch.cuda.CUDAGraph]:
        """A graph for batches of these shapes.

        What was accumulated, and the random numbers to come, stay as they are.
        """
        inputs = [leaf.clone() for leaf in leaves]
        batch = pytree.tree_unflatten(inputs, structure)
        random = torch.cuda.get_rng_state(self.device)
        kept = [tensor.clone() for tensor in (*self.gradients, *self.sums.values())]
        known, buffers = list(self.sums), [buffer.clone() for buffer in self.buffers]
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(self.warm_up_runs):
                self._add(batch)
        torch.cuda.current_stream(self.device).wait_stream(side)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with capture(graph, capture_stream(self.device), pool=self._pool):
            self._add(batch)
        self._pool = graph.pool()  # shared: nothing in it is needed from one replay to the next
        torch._foreach_zero_([*self.gradients, *self.sums.values()])
        torch._foreach_copy_([*self.gradients, *(self.sums[name] for name in known)], kept)
        if buffers:
            torch._foreach_copy_(self.buffers, buffers)
        torch.cuda.set_rng_state(random, self.device)
        return inputs, batch, graph


class Replayed:
    """A function without arguments: called directly the first time, captured as a CUDA graph the second
    time and replayed afterwards.

    The first call may allocate what later calls keep. On a CPU, and where `captures` is False, every call is direct.
    """

    def __init__(self, function: Callable[[], object], device: torch.device) -> None:
        self.function, self.device = function, device
        self.has_run = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *, captures: bool) -> None:
        if self.device.type != "cuda" or not captures or not self.has_run:
            self.function()
            self.has_run = True
            return
        if self._graph is None:
            torch.cuda.synchronize(self.device)
            self._graph = torch.cuda.CUDAGraph()
            with capture(self._graph, capture_stream(self.device)):
                self.function()
        self._graph.replay()


class DeviceUpdate:
    """What follows the gradients of a step, without a synchronisation: they are checked and clipped, weights and their
    average updated, gradients and values reset. Launched the first time, one CUDA graph from the second on.

    Args:
        graphs: whose gradients are applied.
        optimizer: a fused one of the same parameters.
        largest_norm: of all gradients together; None does not clip.
        also: what else belongs to an update, given whether its step, or one before, was not finite (0 or 1).

    Raises:
        InputError: an optimiser that cannot skip a step by itself.
    """

    def __init__(
        self,
        graphs: GradientGraphs,
        optimizer: torch.optim.Optimizer,
        average: ExponentialMovingAverage | None,
        largest_norm: float | None,
        also: Callable[[Tensor], object] = lambda is_bad: None,
    ) -> None:
        self.graphs, self.optimizer, self.average = graphs, optimizer, average
        self.largest_norm, self.also, device = largest_norm, also, graphs.device
        self.check = DeviceCheck(optimizer, device)
        # Inputs that change every step: the share of the current weights in the average, and the rate of each group.
        self._share = 0.0
        self._numbers = torch.zeros(1 + len(optimizer.param_groups), device=device)
        # What `read` returns: nothing yet, and all is well.
        self._seen = torch.zeros(3, dtype=torch.float64, device=device)
        self._launch = Replayed(self._update, device)

    def __call__(self, rates: Sequence[float], share: float = 0.0) -> None:
        """One update at the learning rate of each group; `share` is that of the updated weights in their average."""
        self._share = share
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._numbers.copy_(torch.tensor([share, *rates]), non_blocking=True)
        self._launch(captures=all("capturable" in group for group in self.optimizer.param_groups))

    def read(self) -> tuple[dict[str, float], float, int | None]:
        """Synchronise: the values of the last step, the norm of its gradients, and None, or if a step was not finite
        the number of those before it.
        """
        *values, norm, is_bad, n_good = self._seen.tolist()
        return dict(zip(sorted(self.graphs.sums), values, strict=True)), norm, int(n_good) if is_bad else None

    def _update(self) -> None:
        gradients, sums = self.graphs.gradients, self.graphs.sums
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        self.check.take(sums["loss"], norm)
        if self.largest_norm is not None:
            torch._foreach_mul_(gradients, (self.largest_norm / (norm + 1e-6)).clamp(max=1.0))
        with self._rates_on_device():
            self.optimizer.step()
        if self.average is not None and self._numbers.is_cuda:
            self.average.update_by(self._numbers[0])
        elif self.average is not None:
            self.average.update(self._share)
        self.also(self.check.is_bad)
        self._seen = torch.stack(
            [
                *(sums[name] for name in sorted(sums)),
                *(number.double() for number in (norm, self.check.is_bad, self.check.n_good)),
            ]
        )
        self.graphs.clear()

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """On a GPU the optimiser reads its rates there; a CPU takes the float64 values."""
        if not self._numbers.is_cuda:
            yield
            return
        groups = self.optimizer.param_groups
        before = [(group["lr"], group.get("capturable")) for group in groups]
        for group, rate in zip(groups, self._numbers[1:], strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = torch.cuda.is_current_stream_capturing()
        yield
        for group, (rate, capturable) in zip(groups, before, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = capturable


class DeviceCheck:
    """Whether all steps so far were finite, known to the device at once and to the host when it asks.

    Once a step is bad, none after it changes the weights: fused optimisers skip a step whose `found_inf` is 1.

    Raises:
        InputError: an optimiser that cannot skip a step by itself.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            raise InputError(
                f"run_ahead needs a fused optimiser, which can skip a step on the device; {type(optimizer).__name__} cannot"
            )
        self.is_bad = torch.zeros((), device=device)  # 0 or 1
        self.n_good = torch.zeros((), dtype=torch.int64, device=device)
        optimizer.found_inf = self.is_bad  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]

    def take(self, *values: Tensor) -> None:
        """Check the numbers of a step before the weights change."""
        for value in values:
            self.is_bad.copy_(torch.maximum(self.is_bad, (~torch.isfinite(value)).to(self.is_bad)))
        self.n_good += (1 - self.is_bad).long()
