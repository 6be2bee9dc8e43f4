"""AdamW for models of many small tensors: on a GPU all of them in one launch or two.

    m = m + (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
    w = (1 - rate decay) w - rate m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

torch's fused form takes some twenty launches for the 684 tensors of UniRepLKNet-T, and three times as long as for a
single tensor of as many elements. The count of steps t stays on the device, so that a step can be captured in a CUDA
graph; without a graph, the host takes longer to inspect so many tensors than the GPU takes for the launches.

w, its gradient g and the moments m and v of a parameter are of one shape, any.

Source: Loshchilov and Hutter (2019), decoupled weight decay.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from unipercept.errors import InputError
from unipercept.kernels.dispatch import choose


class AdamW(torch.optim.Optimizer):
    """As `torch.optim.AdamW` of the same arguments, for parameters of floating types.

    Args:
        params: parameters, or groups of them.
        lr, betas, eps, weight_decay: rate, b1 and b2, eps and decay of the module's docstring. A rate that changes
            between steps is a number on the host: a captured step keeps the one that it was captured with.
        implementation: "reference" or "gpu" to force one; it runs or raises.

    Raises:
        InputError: a number out of its range; in `step`, an implementation that cannot run here, or sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        implementation: str | None = None,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 < beta < 1 for beta in betas):
            raise InputError(
                f"AdamW needs a rate, eps and decay of at least 0 and betas between 0 and 1; got {lr}, {eps}, {weight_decay}, {betas}"
            )
        self.implementation = implementation
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update by the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # Parameters by their count of steps, which those at the same step share.
            counted: dict[Tensor, list[Tensor]] = {}
            fresh: dict[torch.device, Tensor] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise InputError("AdamW takes no sparse gradients; give such parameters to torch.optim.SparseAdam")
                state = self.state[p]
                if not state:
                    state["step"] = fresh.setdefault(p.device, torch.zeros((), dtype=torch.float32, device=p.device))
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                counted.setdefault(state["step"], []).append(p)
            for count, parameters in counted.items():
                self._update(parameters, self._counted_on(count, parameters, group), group)
        return loss

    def _counted_on(self, count: Tensor, parameters: Sequence[Tensor], group: dict[str, Any]) -> Tensor:
        """One more, for these parameters of those that share it."""
        sharing = sum(self.state[p].get("step") is count for p in group["params"] if p in self.state)
        if sharing == len(parameters):
            count += 1
            return count
        count = count + 1
        for p in parameters:
            self.state[p]["step"] = count
        return count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; parameters of a group that are at the same step share their count again."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            shared: dict[tuple[torch.device, float], Tensor] = {}
            for p in group["params"]:
                if p in self.state:
                    step = float(self.state[p]["step"])
                    self.state[p]["step"] = shared.setdefault(
                        (p.device, step), torch.tensor(step, dtype=torch.float32, device=p.device)
                    )

    def _update(self, parameters: Sequence[Tensor], count: Tensor, group: dict[str, Any]) -> None:
        """`count` is that of this step."""
        taken = [(p, cast(Tensor, p.grad), self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"]) for p in parameters]
        if _chosen(taken, self.implementation) == "gpu":
            from unipercept.kernels.adamw.gpu import adamw_gpu  # on first use: a CPU install needs nothing of it

            adamw_gpu(taken, count, group["lr"], group["betas"], group["eps"], group["weight_decay"])
            return
        b1, b2 = group["betas"]
        first, second = -torch.expm1(count * math.log(b1)), -torch.expm1(count * math.log(b2))
        for p, gradient, mean, square in taken:
            mean.lerp_(gradient, 1 - b1)
            square.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
            root = (square / second.to(square.dtype)).sqrt_().add_(group["eps"])
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(mean / root * (group["lr"] / first).to(p.dtype))


def _chosen(taken: Sequence[tuple[Tensor, ...]], asked: str | None) -> str:
    def why_not(name: str) -> str | None:
        if name != "gpu":
            return None
        from unipercept.kernels.adamw.gpu import why_not

        return why_not(taken)

    return choose("adamw", ("reference", "gpu"), taken[0][0], asked, why_not)
