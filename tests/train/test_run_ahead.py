"""Running ahead of the host trains as waiting does, and stops as it does."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.train.conftest import Noisy, network, same, settings, smooth_network, squared
from unipercept.errors import InputError
from unipercept.train import (
    DivergedError,
    fit,
    load_checkpoint,
)

ON_BOTH = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)


class Resident:
    """Samples that make their own batches."""

    def __init__(self, device: str = "cpu") -> None:
        data = Noisy(noise=0.0)
        self.x, self.y = data.x.to(device), data.y.to(device)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices):
        chosen = torch.tensor(indices, device=self.x.device)
        return self.x[chosen], self.y[chosen]


def two_losses(model: nn.Module, batch):
    error = model(batch[0]) - batch[1]
    return error.square().mean(), {"mae": error.abs().mean()}


@ON_BOTH
def test_running_ahead_trains_as_waiting_does(device):
    waiting, ahead = smooth_network(), smooth_network()
    config = settings(accumulation_steps=2, clip_gradient_norm=0.5, log_every=1)
    expected = fit(waiting, None, Noisy(noise=0.0), loss=two_losses, config=config)
    config = settings(accumulation_steps=2, clip_gradient_norm=0.5, log_every=3, run_ahead=True, device=device)
    found = fit(ahead.to(device), None, Resident(device), loss=two_losses, config=config, validation=Resident(device))
    # On a GPU a graph reads the learning rate, and its share of the average, in single precision.
    allowed = {"rtol": 1e-9, "atol": 1e-12} if device == "cpu" else {"rtol": 1e-5, "atol": 1e-7}
    for name, value in waiting.state_dict().items():
        torch.testing.assert_close(ahead.state_dict()[name].cpu(), value, **allowed)
    steps, losses = found.series("mae")
    every = dict(zip(*expected.series("mae"), strict=True))
    assert steps[0] == 3
    assert losses == pytest.approx([every[step] for step in steps], rel=allowed["rtol"])
    assert found.ema_state is not None
    for name, value in expected.ema_state.items():
        torch.testing.assert_close(found.ema_state[name].cpu(), value, **allowed)


@ON_BOTH
def test_a_step_that_is_not_finite_changes_nothing_wherever_it_runs(device):
    config = settings(run_ahead=True, device=device, shuffle=False, schedule="constant", log_every=100, batch_size=4)
    good, model, damaged = network().to(device), network().to(device), Resident(device)
    fit(good, None, Resident(device), loss=squared, config=replace(config, steps=3))
    damaged.y[13] = float("nan")  # in the fourth batch of five
    with pytest.raises(DivergedError, match=r"in step 4 .* step 3"):
        fit(model, None, damaged, loss=squared, config=replace(config, steps=9))
    assert same(model.state_dict(), good.state_dict())


def test_a_run_ahead_that_diverges_keeps_the_last_good_weights(tmp_path):
    steady = {"run_ahead": True, "schedule": "constant", "log_every": 5, "checkpoint_every": 5}
    good, model, step = smooth_network(), smooth_network(), [0]
    fit(good, None, Resident(), loss=squared, config=settings(steps=7, **steady))

    def breaks(network, batch):
        return squared(network, batch) * (float("nan") if step[0] == 7 else 1.0)

    with pytest.raises(DivergedError, match=r"in step 8 .* step 7, last good checkpoint: .*last\.pt of step 5"):
        fit(
            model, None, Resident(), loss=breaks, config=settings(steps=12, **steady), run_dir=tmp_path,
            before_step=lambda done: step.__setitem__(0, done),
        )  # fmt: skip
    assert same(model.state_dict(), good.state_dict())
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 5


def test_running_ahead_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="run_ahead must be left out with fp16"):
        settings(run_ahead=True, precision="fp16")
    with pytest.raises(InputError, match="needs a fused optimiser"):
        fit(
            smooth_network(), None, Resident(), loss=squared, config=settings(run_ahead=True),
            make_optimizer=lambda groups, config: torch.optim.RMSprop(groups),
        )  # fmt: skip


@ON_BOTH
def test_a_broken_and_resumed_run_ahead_is_bit_identical(tmp_path, device):
    config = settings(run_ahead=True, device=device, checkpoint_every=3, log_every=4)
    undisturbed, broken, again = network(), network(), network()
    whole = fit(undisturbed, None, Resident(device), loss=squared, config=config)

    def fail(progress):
        if progress.step == 8:
            raise RuntimeError("the node went away")

    with pytest.raises(RuntimeError, match="node"):
        fit(broken, None, Resident(device), loss=squared, config=config, run_dir=tmp_path, on_progress=fail)
    resumed = fit(again, None, Resident(device), loss=squared, config=config, run_dir=tmp_path, resume=True)
    assert same(undisturbed.state_dict(), again.state_dict())
    assert same(whole.ema_state, resumed.ema_state)
