"""A step of the joint training: the gradients of a batch of each task, added up, and one update of the weights.

Maps here are small and layers many: launching some fifteen hundred kernels one by one takes the processor longer than
the GPU needs to run them. On CUDA each task's making of the batch, forward and backward pass are one CUDA graph, and
the update is another; elsewhere the same runs without.

Shapes: B maps, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unipercept.perception.scores import named, soft_cross_entropy, unexplained
from unipercept.perception.task import Task
from unipercept.perception.universal_data import TaskSpec
from unipercept.perception.universal_network import SharedNetwork
from unipercept.train import DivergedError, ExponentialMovingAverage, parameter_groups
from unipercept.train.ahead import DeviceUpdate, GradientGraphs

EMA_DECAY = 0.999
LARGEST_GRADIENT = 5.0  # norm over all weights


class JointStep:
    """The weights of all tasks with all that a step changes.

    In bfloat16 on CUDA, in single precision elsewhere. For a network that predicts traits too (`WithTraits`), the
    unexplained share of the traits is added to the loss, and the cross-entropy of the last of them, which are one-hot.

    Args:
        jobs: each task's items, whose tensors must stay in place; batches are drawn on the device.
    """

    def __init__(
        self,
        shared: SharedNetwork,
        tasks: Sequence[TaskSpec],
        jobs: Mapping[str, Task],
        weight_decay: float,
        device: torch.device,
    ) -> None:
        self.jobs, self.weights = jobs, {task.name: task.weight for task in tasks}
        self.learners = {task.name: shared.learner(task.name) for task in tasks}
        self.losses = {task.name: torch.zeros((), device=device) for task in tasks}  # of each task's last batch
        self._task = tasks[0].name
        self.graphs = GradientGraphs(
            self._values, list(shared.parameters()), device, list(shared.buffers()), lambda: self._task
        )
        self.optimizer = torch.optim.AdamW(parameter_groups(shared, weight_decay), fused=True)
        self.average = ExponentialMovingAverage(lambda: dict(shared.named_parameters()), EMA_DECAY)
        self.update = DeviceUpdate(self.graphs, self.optimizer, self.average, LARGEST_GRADIENT)

    def accumulate(self, task: str, rows: Tensor) -> None:
        """Add the gradients of a task's batch, the items at B positions, to those of the step."""
        self._task = task
        self.graphs.accumulate((rows,), 1.0)

    def apply(self, rate: float, n_updates: int) -> None:
        """Update the weights and their average, after so many updates."""
        self.update([rate] * len(self.optimizer.param_groups), self.average.share(n_updates))

    def shown(self, step: int) -> str:
        """The last losses of all tasks, in words.

        Raises:
            DivergedError: a step was not finite; from it on the weights have stayed as they were.
        """
        shown = ", ".join(f"{name} {float(loss):.3f}" for name, loss in self.losses.items())
        if self.update.read()[2] is not None:
            raise DivergedError(f"the loss is no longer finite at step {step}: {shown}; lower the learning rate")
        return shown

    def _values(self, batch: tuple[Tensor]) -> dict[str, Tensor]:
        task, (rows,) = self._task, batch
        job = self.jobs[task]
        maps, labels = job.training_batch(rows)
        with torch.autocast(maps.device.type, dtype=torch.bfloat16, enabled=maps.is_cuda):
            logits = self.learners[task](maps)
        classes = logits.shape[1] - job.n_traits
        loss = soft_cross_entropy(logits[:, :classes], labels[:, :classes])
        if job.n_traits:
            measured = logits.shape[1] - job.n_quantities
            loss = loss + unexplained(logits[:, classes:measured], labels[:, classes:measured])
            if job.n_quantities:
                loss = loss + named(logits[:, measured:], labels[:, measured:])
        loss = self.weights[task] * loss
        self.losses[task].copy_(loss.detach())
        return {"loss": loss}
