"""What the loop computes: steps, batches, learning rates, averages, precision; and what it tells while it runs."""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from tests.train.conftest import Noisy, network, same, settings, smooth_network, squared
from unipercept.embedding import EmbeddingMap
from unipercept.train import (
    TrainConfig,
    fit,
    learning_rate_factor,
    load_checkpoint,
    parameter_groups,
    seed_everything,
)
from unipercept.train.batches import BatchPlan, SeededSamples
from unipercept.train.distributed import Processes


def test_one_step_is_that_of_plain_adamw_with_decay_groups():
    model, plain, data = smooth_network(), smooth_network(), Noisy(5, noise=0.0)
    config = settings(epochs=3, batch_size=5, clip_gradient_norm=0.5, ema_decay=None)
    fit(model, None, data, loss=squared, config=config)
    decays = [{"params": [p], "weight_decay": 0.05 * (p.ndim > 1)} for p in plain.parameters()]
    optimizer = torch.optim.AdamW(decays, lr=1.0)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1) / 3
        optimizer.zero_grad()
        mse_loss(plain(data.x), data.y).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_same_seed_gives_the_same_bits_and_another_seed_others():
    states = []
    for seed in (1, 1, 2):
        model = network()
        fit(model, None, Noisy(), loss=squared, config=settings(seed=seed))
        states.append(model.state_dict())
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_a_sample_is_augmented_anew_in_each_epoch():
    samples = SeededSamples(Noisy(), seed=0, epoch=0), SeededSamples(Noisy(), seed=0, epoch=1)
    drawn = [[s[i][0][0].item() - s.samples.x[i, 0].item() for i in range(20)] for s in samples]
    assert len({round(value, 9) for values in drawn for value in values}) == 40
    assert drawn[0] == [samples[0][i][0][0].item() - samples[0].samples.x[i, 0].item() for i in range(20)]


def test_accumulated_parts_equal_the_large_batch():
    whole, parts = smooth_network(), smooth_network()
    a = fit(whole, None, Noisy(), loss=squared, config=settings())
    b = fit(parts, None, Noisy(), loss=squared, config=settings(accumulation_steps=4))
    for ours, theirs in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    assert a.series("loss")[1] == pytest.approx(b.series("loss")[1], abs=1e-12)
    assert all(torch.allclose(a.ema_state[name], b.ema_state[name], atol=1e-12) for name in a.ema_state)


def test_loaders_in_other_processes_change_nothing():
    here, there = network(), network()
    fit(here, None, Noisy(), loss=squared, config=settings(steps=6))
    fit(there, None, Noisy(), loss=squared, config=settings(steps=6, num_workers=2))
    assert same(here.state_dict(), there.state_dict())


@pytest.mark.parametrize(
    ("n_samples", "size", "count", "accumulation"), [(20, 6, 1, 1), (23, 8, 3, 2), (7, 5, 4, 3), (1, 4, 2, 1)]
)
def test_an_epoch_sees_every_sample_once_whatever_the_share(n_samples, size, count, accumulation):
    config = settings(batch_size=size, accumulation_steps=accumulation)
    plans = [BatchPlan(n_samples, config, Processes(rank, count, torch.device("cpu"))) for rank in range(count)]
    parts = [plan.parts(epoch=2) for plan in plans]
    seen = Counter(i for share in parts for part in share if part.weight for i in part.indices)
    assert seen == Counter(range(n_samples))
    updates = [sum(part.is_last for part in share) for share in parts]
    assert updates == [plans[0].steps_per_epoch] * count
    total = sum(part.weight for share in parts for part in share)
    assert total == pytest.approx(plans[0].steps_per_epoch, abs=1e-12)
    validated = Counter(i for plan in plans for part in plan.validation_parts() if part.weight for i in part.indices)
    assert validated == Counter(range(n_samples))
    for part in (part for plan in plans for part in plan.validation_parts()):
        assert len(part.indices) <= max(1, size // (count * accumulation))  # no more than in training
        assert part.weight in (0, len(part.indices))


def test_a_constant_learning_rate_stays_after_its_warm_up():
    config = TrainConfig(learning_rate=0.1, warmup_steps=2, schedule="constant", final_learning_rate=0.001)
    assert [learning_rate_factor(step, 5, config) for step in range(5)] == [0.5, 1, 1, 1, 1]


def test_learning_rate_warms_up_and_ends_at_its_final_value():
    config = TrainConfig(learning_rate=0.1, warmup_steps=4, final_learning_rate=0.001)
    factors = [learning_rate_factor(step, 20, config) for step in range(20)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[-1] == pytest.approx(0.01)
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_one_dimensional_tensors_and_biases_do_not_decay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, kept = parameter_groups(model, 0.05)
    assert [p.ndim for p in decayed["params"]] == [4]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    assert len(kept["params"]) == 3


def test_ready_groups_keep_their_own_scale():
    model = smooth_network()
    before = [p.detach().clone() for p in model.parameters()]
    groups = [{"params": list(model[0].parameters()), "lr_scale": 0.0}, {"params": list(model[2].parameters())}]
    fit(model, None, Noisy(), loss=squared, config=settings(), groups=groups)
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [False, False, True, True]


def test_averaged_weights_follow_the_recursion():
    model, seen = smooth_network(), []
    start = model[0].weight.detach().clone()
    result = fit(
        model,
        None,
        Noisy(),
        loss=squared,
        config=settings(steps=5),
        on_progress=lambda _: seen.append(model[0].weight.detach().clone()),
    )
    average = start
    for n, weight in enumerate(seen, 1):
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(result.ema_state["0.weight"], average, atol=1e-14)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_on_the_cpu(precision):
    model = smooth_network().float()
    data = [(x.float(), y.float()) for x, y in zip(Noisy().x, Noisy().y, strict=True)]
    result = fit(model, None, data, loss=squared, config=settings(epochs=30, precision=precision, learning_rate=0.03))
    _, losses = result.series("loss")
    assert losses[-1] < 0.2 * losses[0]
    assert model[0].weight.dtype == torch.float32


def test_validation_counts_every_sample_once_and_leaves_training_as_it_was(tmp_path):
    held_out = Noisy(7, noise=0.0)
    alone, validated = network(), network()
    fit(alone, None, Noisy(), loss=squared, config=settings(ema_decay=None))
    result = fit(
        validated,
        None,
        Noisy(),
        loss=squared,
        config=settings(ema_decay=None, validate_every=3),
        validation=held_out,
        metrics=lambda model, batch: {"bias": (model(batch[0]) - batch[1]).mean()},
        run_dir=tmp_path / "run",
    )
    assert same(alone.state_dict(), validated.state_dict())
    with torch.no_grad():
        difference = validated.eval()(held_out.x) - held_out.y
    assert result.series("bias", "validation")[1][-1] == pytest.approx(float(difference.mean()), abs=1e-12)
    steps, losses = result.series("loss", "validation")
    assert steps == [3, 6, 9, 12, 15, 16]
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    assert best["step"] == steps[int(np.argmin(losses))]
    assert result.best == min(losses) == best["metrics"]["loss"]


def test_the_best_checkpoint_holds_the_averaged_weights(tmp_path):
    config = settings(steps=4, validate_every=4)
    result = fit(network(), None, Noisy(), loss=squared, config=config, validation=Noisy(5), run_dir=tmp_path)
    assert same(load_checkpoint(tmp_path / "best.pt")["model"], result.ema_state)


def test_of_equally_good_steps_the_last_is_the_best(tmp_path):
    config = settings(steps=6, validate_every=2, monitor="share", monitor_mode="max")
    same_share = iter((0.5, 0.75, 0.75))
    fit(
        network(), None, Noisy(), loss=squared, config=config, validation=Noisy(1), run_dir=tmp_path,
        metrics=lambda model, batch: {"share": next(same_share)},
    )  # fmt: skip
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 6


def test_progress_reports_rate_and_time_left():
    seen = []
    fit(network(), None, Noisy(), loss=squared, config=settings(epochs=2), on_progress=seen.append)
    assert [p.step for p in seen] == list(range(1, 9))
    assert [p.epoch for p in seen] == [0] * 4 + [1] * 4
    assert all(p.samples_per_second > 0 for p in seen)
    assert seen[-1].eta_seconds == 0
    assert seen[0].eta_seconds > 0


def test_a_pipeline_makes_the_maps_that_the_loss_sees():
    class Sample(NamedTuple):
        input: float
        target: float

    class Constant:
        def embed(self, raw: float) -> EmbeddingMap:
            return EmbeddingMap(torch.full((1, 1, 2, 3), raw), "image")

    model, seen = nn.Linear(6, 1), []

    def loss(model, batch):
        maps, targets = batch
        seen.append((type(maps), tuple(maps.tensor.shape)))
        return mse_loss(model(maps.tensor.flatten(1))[:, 0], targets.float()), {"level": maps.tensor.mean()}

    samples = [Sample(float(i), 2.0 * i) for i in range(4)]
    result = fit(model, Constant(), samples, loss=loss, config=settings(epochs=1, batch_size=4))
    assert seen == [(EmbeddingMap, (4, 1, 2, 3))]
    assert result.series("level")[1] == [1.5]


def test_before_step_counts_the_updates_done():
    seen = []
    fit(
        smooth_network(),
        None,
        Noisy(),
        loss=squared,
        config=settings(steps=4, accumulation_steps=3),
        before_step=seen.append,
    )
    assert seen == [0, 1, 2, 3]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit(network(), None, Noisy(), loss=squared, config=settings(steps=3, tensorboard=True), run_dir=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(result.series("loss")[1], rel=1e-6)


class Forecaster(nn.Module):
    """Windows BxL to BxT: normalise, fold by the period, a large-kernel block, head, and back to the window's units."""

    def __init__(self, lookback: int, horizon: int, period: int, width: int = 16) -> None:
        super().__init__()
        self.period, rows = period, lookback // period
        self.stem = nn.Conv2d(1, width, 1)
        self.mix = nn.Sequential(nn.Conv2d(width, width, 7, padding=3, groups=width), nn.BatchNorm2d(width))
        self.feed = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))
        self.head = nn.Linear(width * rows * period, horizon)

    def forward(self, series):
        mean, std = series.mean(1, keepdim=True), series.std(1, keepdim=True)
        features = self.stem(((series - mean) / std).reshape(len(series), 1, -1, self.period))
        features = features + self.feed(self.mix(features))
        return self.head(features.flatten(1)) * std + mean


def test_a_small_forecaster_beats_persistence_of_the_period():
    seed_everything(0)
    t = torch.arange(1200.0)
    series = (
        torch.sin(2 * math.pi * t / 24) + 0.5 * torch.sin(2 * math.pi * t / 60) + 0.01 * t + 0.05 * torch.randn(1200)
    )
    windows = series.unfold(0, 96, 1)
    train, test = windows[:900], windows[1000:]
    model = Forecaster(lookback=72, horizon=24, period=24)

    def loss(model, batch):
        return mse_loss(model(batch[:, :72]), batch[:, 72:])

    fit(
        model,
        None,
        list(train),
        loss=loss,
        config=settings(epochs=6, batch_size=64, learning_rate=3e-3, ema_decay=None),
    )
    with torch.no_grad():
        ours = mse_loss(model(test[:, :72]), test[:, 72:])
    persistence = mse_loss(test[:, 48:72], test[:, 72:])
    assert ours < 0.2 * persistence
