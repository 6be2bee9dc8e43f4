"""Gradient of one network at fixed shapes: making of the batch, forward and backward pass, replayed as one CUDA graph.

Maps here are small and layers many: launching some fifteen hundred kernels one by one takes the processor longer than
the GPU needs to run them. Elsewhere than on CUDA the same passes run as they are.

Shapes: B maps, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unipercept.kernels.streams import capture
from unipercept.perception.scores import named, soft_cross_entropy, unexplained
from unipercept.train.optimization import add_all

WARMUPS = 3  # passes before the capture: kernels are compiled and tuned in them


class CapturedGradient:
    """The gradient of a soft-label loss in all parameters of a network; of one that tells traits too (`TellsTraits`)
    with what it does not explain of them, and of the last of them, which name a quantity, their cross-entropy.

    In bfloat16 on CUDA, in single precision elsewhere. Batches are of one shape, that of the first. Not to be run
    beside another on a second stream: graphs of one process share the workspaces of their matrix products.

    Args:
        batch: positions to BxCxHxW maps and BxK weighted labels; what it reads must stay where it is, and it may draw.
    """

    def __init__(
        self,
        network: nn.Module,
        batch: Callable[[Tensor], tuple[Tensor, Tensor]],
        weight: float = 1.0,
        n_traits: int = 0,
        n_quantities: int = 0,
    ) -> None:
        self.network, self.batch, self.weight = network, batch, weight
        self.n_traits, self.n_quantities = n_traits, n_quantities
        self.parameters = list(network.parameters())
        self.gradients: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rows = self._loss = torch.empty(0)

    def __call__(self, rows: Tensor) -> Tensor:
        """The loss of the batch at B positions, detached; it and `gradients` are valid until the next call."""
        if not rows.is_cuda:
            self._loss, self.gradients = self._pass(rows)
            return self._loss
        if self._graph is None:
            self._capture(rows)
        self._rows.copy_(rows)
        assert self._graph is not None
        self._graph.replay()
        return self._loss

    def add_to_parameters(self) -> None:
        """Add the gradients to the parameters' `grad`, which must be there."""
        add_all(self.gradients, [parameter.grad for parameter in self.parameters if parameter.grad is not None])

    def _pass(self, rows: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        maps, labels = self.batch(rows)
        with torch.autocast(maps.device.type, dtype=torch.bfloat16, enabled=maps.is_cuda):
            logits = self.network(maps)
        classes = logits.shape[1] - self.n_traits
        loss = soft_cross_entropy(logits[:, :classes], labels[:, :classes])
        if self.n_traits:
            measured = logits.shape[1] - self.n_quantities
            loss = loss + unexplained(logits[:, classes:measured], labels[:, classes:measured])
            if self.n_quantities:
                loss = loss + named(logits[:, measured:], labels[:, measured:])
        loss = self.weight * loss
        return loss.detach(), torch.autograd.grad(loss, self.parameters)

    def _capture(self, rows: Tensor) -> None:
        self._rows = rows.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                self._pass(self._rows)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with capture(self._graph):
            self._loss, self.gradients = self._pass(self._rows)
