"""One update of the weights: forward and backward of each part, gradients exchanged, checked, clipped, and applied."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unipercept.errors import InputError, UniperceptError
from unipercept.train.ahead import DeviceUpdate, GradientGraphs
from unipercept.train.batches import Part
from unipercept.train.config import TrainConfig
from unipercept.train.distributed import Processes
from unipercept.train.optimization import (
    ExponentialMovingAverage,
    ParameterGroup,
    copy_all,
    learning_rate_factor,
    settings_kept,
)
from unipercept.train.sharding import gathered, load_training_state, training_state, whole

# (model, batch) to the mean loss over the batch's samples, alone or with further means to report.
Loss = Callable[[nn.Module, Any], Tensor | tuple[Tensor, Mapping[str, Tensor]]]
MakeOptimizer = Callable[[list[ParameterGroup], TrainConfig], torch.optim.Optimizer]

# fp16 halves its loss scale at each overflow; from 65536 down to here no value of the scale has helped.
SMALLEST_LOSS_SCALE = 1e-6


class DivergedError(UniperceptError, ArithmeticError):
    """The loss or its gradient is no longer finite; the model holds the weights of the last good step."""


def adamw(groups: list[ParameterGroup], config: TrainConfig) -> torch.optim.Optimizer:
    """Source: Loshchilov and Hutter (2019), decoupled weight decay."""
    fused = True if config.run_ahead else None  # None: torch's own choice
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)


class Updates:
    """The model with all that changes when it is updated; `state` and `load` carry the whole of it.

    The loss runs inside the data parallel wrapper, so it may call the model several times, or any of its methods.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        groups: list[ParameterGroup],
        config: TrainConfig,
        processes: Processes,
        make_optimizer: MakeOptimizer,
    ) -> None:
        self.model, self.config, self.processes = model, config, processes
        self.step = self._first_step = 0  # updates done, and done before this process began
        self.optimizer = make_optimizer(groups, config)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.precision == "fp16")
        self.ema = None if config.ema_decay is None else ExponentialMovingAverage(model.state_dict, config.ema_decay)
        if config.compile:
            model.compile()
        self.evaluated = _WithLoss(model, loss, processes.device, config)
        self._trained: nn.Module = self.evaluated
        self._is_spread = config.shard and processes.count > 1
        if processes.count > 1 and not self._is_spread:
            self._trained = DistributedDataParallel(
                self.evaluated,
                find_unused_parameters=config.find_unused_parameters,
            )
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._good_buffers, self._buffer_kinds = _kept_together(list(model.buffers()))
        self._sums: dict[str, Tensor] = {}
        self._ahead: DeviceUpdate | None = None
        if config.run_ahead:
            if processes.count > 1:
                raise InputError("run_ahead is for one process; leave it out under torchrun")
            graphs = GradientGraphs(
                self.evaluated, self._parameters, processes.device, list(model.buffers()),
                getattr(loss, "variant", lambda: None),
            )  # fmt: skip
            limit = config.clip_gradient_norm
            self._ahead = DeviceUpdate(graphs, self.optimizer, self.ema, limit, self._keep_buffers)
        self._latest: dict[str, float] = {"loss": float("nan"), "learning_rate": config.learning_rate}

    def accumulate(self, part: Part, batch: Any) -> None:
        """Add a part's gradients to those of the step."""
        if self._ahead is not None:
            self._ahead.graphs.accumulate(batch, part.weight)
            return
        if isinstance(self._trained, DistributedDataParallel):
            self._trained.require_backward_grad_sync = part.is_last  # what its no_sync() sets
        elif self._is_spread:
            self.model.set_requires_gradient_sync(part.is_last)  # type: ignore[operator]
        values = self._trained(batch)
        # Data parallel gradients are averaged over the processes, hence the count.
        self.scaler.scale(values["loss"] * (part.weight * self.processes.count)).backward()
        for name, value in values.items():
            weighted = value.detach().double() * part.weight if part.weight else torch.zeros_like(value).double()
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted

    def apply(
        self, total_steps: int, *, wants_stop: bool, last_good: str, look: bool = True
    ) -> tuple[dict[str, float], bool]:
        """Update the weights by the gradients of the step.

        Args:
            look: whether the means are wanted; without, those of an earlier step may come back when running ahead.

        Returns:
            Means over the global batch (`loss`, what the loss function reports, `gradient_norm`, `learning_rate`), and
            whether any of the processes wants to stop.

        Raises:
            DivergedError: loss or gradients are NaN or infinite; the weights stay as they were before the step.
        """
        if self._ahead is not None:
            return self._apply_ahead(self._ahead, total_steps, last_good, look or wants_stop), wants_stop
        names = sorted(self._sums)
        sums = self.processes.sum([float(wants_stop), *(float(self._sums[name]) for name in names)])
        means = dict(zip(names, sums[1:], strict=True))
        self._sums = {}
        learning_rate = self._set_learning_rate(total_steps)
        self._require_finite("loss", means["loss"], learning_rate, last_good)
        self.scaler.unscale_(self.optimizer)
        limit = self.config.clip_gradient_norm or float("inf")
        total = nn.utils.clip_grad_norm_(self._parameters, limit)
        norm = float(gathered(total))
        if not self.scaler.is_enabled():
            self._require_finite("gradient norm", norm, learning_rate, last_good)
        elif self.scaler.get_scale() < SMALLEST_LOSS_SCALE:
            self._require_finite("gradient norm at any loss scale", float("nan"), learning_rate, last_good)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        copy_all(list(self.model.buffers()), self._good_buffers)
        if self.ema is not None:
            self.ema.update(self.ema.share(self.step))
        return {**means, "gradient_norm": norm, "learning_rate": learning_rate}, sums[0] > 0

    def _apply_ahead(self, update: DeviceUpdate, total_steps: int, last_good: str, look: bool) -> dict[str, float]:
        learning_rate = self._set_learning_rate(total_steps)
        self.step += 1
        share = 0.0 if self.ema is None else self.ema.share(self.step)
        update([group["lr"] for group in self.optimizer.param_groups], share)
        if look:
            values, norm, n_good = update.read()
            self._latest = {**values, "gradient_norm": norm, "learning_rate": learning_rate}
            if n_good is not None:
                self.step = self._first_step + n_good
                self._require_finite("loss or gradient norm", float("nan"), learning_rate, last_good)
        return self._latest

    def _keep_buffers(self, is_bad: Tensor) -> None:
        """Those of the last finite step, on the device."""
        for kept, buffers in self._buffer_kinds:
            kept.copy_(torch.where(is_bad > 0, kept, torch.cat([buffer.reshape(-1) for buffer in buffers])))

    def _set_learning_rate(self, total_steps: int) -> float:
        factor = learning_rate_factor(self.step, total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def _require_finite(self, what: str, value: float, learning_rate: float, last_good: str) -> None:
        if torch.isfinite(torch.tensor(value)):
            return
        self.optimizer.zero_grad(set_to_none=True)
        copy_all(self._good_buffers, list(self.model.buffers()))  # batch statistics have seen the bad batch
        raise DivergedError(
            f"{what} is {value:g} in step {self.step + 1} at learning rate {learning_rate:g}; the weights are those of step "
            f"{self.step}, last good checkpoint: {last_good}; check the data, lower the learning rate or clip the gradients"
        )

    def state(self) -> dict[str, Any]:
        """Weights, optimiser, loss scale, averaged weights and step, for a checkpoint.

        All processes must ask together.
        """
        if self._is_spread:
            weights, optimizer = training_state(self.model, self.optimizer)
        else:
            weights, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        return {
            "step": self.step,
            "model": weights,
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else whole(self.ema.average),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`.

        Raises:
            InputError: a checkpoint of another model, optimiser or setting.
        """
        if (state["ema"] is None) != (self.ema is None):
            raise InputError("the run was started with another ema_decay; keep it None or a number when resuming")
        try:
            with settings_kept(self.optimizer):  # config.json shows them
                if self._is_spread:
                    load_training_state(self.model, self.optimizer, state["model"], state["optimizer"])
                else:
                    self.model.load_state_dict(state["model"])
                    self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            first = " ".join(str(error).split())[:200]
            raise InputError(f"the checkpoint in the run folder is of another model or optimiser: {first}") from error
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load(state["ema"])
        self.step = self._first_step = int(state["step"])
        copy_all(list(self.model.buffers()), self._good_buffers)


def _kept_together(buffers: list[Tensor]) -> tuple[list[Tensor], list[tuple[Tensor, list[Tensor]]]]:
    """Copies of the buffers, and of each type and device one vector that these copies
    are parts of, with its buffers.
    """
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, buffer in enumerate(buffers):
        kinds.setdefault((buffer.dtype, buffer.device), []).append(i)
    copies, together = list(buffers), []
    for places in kinds.values():
        mine = [buffers[i] for i in places]
        vector = torch.cat([buffer.detach().reshape(-1) for buffer in mine])
        for i, part in zip(places, torch.split(vector, [buffer.numel() for buffer in mine]), strict=True):
            copies[i] = part.view(buffers[i].shape)
        together.append((vector, mine))
    return copies, together


class _WithLoss(nn.Module):
    """A batch to its losses, in the precision of the run."""

    def __init__(self, model: nn.Module, loss: Loss, device: torch.device, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.loss, self.device_type, self.precision = model, loss, device.type, config.precision

    def forward(self, batch: Any) -> dict[str, Tensor]:
        with autocast(self.device_type, self.precision):
            result = self.loss(self.model, batch)
        loss, extra = result if isinstance(result, tuple) else (result, {})
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError(
                f"loss(model, batch) must return one number, the mean over the batch; got {getattr(loss, 'shape', loss)}"
            )
        return {"loss": loss.reshape(()).float() if loss.dtype != torch.float64 else loss.reshape(()), **scalars(extra)}


def autocast(device_type: str, precision: str) -> torch.autocast:
    """The context in which a model runs at `precision`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device_type, dtype=dtype, enabled=precision != "float32")


def scalars(values: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """Named numbers as detached scalar tensors."""
    return {name: torch.as_tensor(value).detach().reshape(()) for name, value in dict(values).items()}
