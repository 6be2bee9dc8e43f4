import csv
import math
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError
from unipercept.heads import ForecastHead, ReversibleInstanceNorm
from unipercept.train import (
    DivergedError,
    TrainConfig,
    fit,
    learning_rate_factor,
    load_checkpoint,
    parameter_groups,
    seed_everything,
)
from unipercept.train.batches import BatchPlan
from unipercept.train.distributed import Processes


class Noisy:
    """Inputs and targets of a linear rule; each read adds noise from all three generators, as an augmentation would."""

    def __init__(self, n: int = 20, noise: float = 0.1) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
        self.y = self.x.sum(1, keepdim=True)
        self.noise = noise
        self.fails_at: int | None = None
        self.reads = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        self.reads += 1
        if self.reads == self.fails_at:
            raise RuntimeError("the disk went away")
        jitter = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002 - what transforms use
        return self.x[index] + self.noise * jitter, self.y[index]


def network(*, dropout: float = 0.2) -> nn.Module:
    seed_everything(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 1)).double()


def smooth_network() -> nn.Module:
    """Without statistics over a batch or randomness: what parts and processes may not change."""
    seed_everything(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1)).double()


def squared(model: nn.Module, batch):
    return mse_loss(model(batch[0]), batch[1])


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SETTINGS = TrainConfig(
    epochs=4, batch_size=6, learning_rate=0.01, warmup_steps=3, ema_decay=0.9, clip_gradient_norm=1.0
)


def settings(**changes) -> TrainConfig:
    return TrainConfig(**{**vars(SETTINGS), "device": "cpu", **changes})


# --- what the loop computes ---------------------------------------------------------------------------------------


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


# --- validation and the front -------------------------------------------------------------------------------------


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


# --- stopping and going on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [3, 33, 47])  # before the first checkpoint, between two, in a later epoch
def test_a_broken_and_resumed_run_is_bit_identical(tmp_path, fails_at):
    config = settings(checkpoint_every=3, validate_every=2, accumulation_steps=2)
    undisturbed, broken = network(), network()
    whole = fit(undisturbed, None, Noisy(22), loss=squared, config=config, validation=Noisy(5), run_dir=tmp_path / "a")
    data = Noisy(22)
    data.fails_at = fails_at
    with pytest.raises(RuntimeError, match="disk"):
        fit(broken, None, data, loss=squared, config=config, validation=Noisy(5), run_dir=tmp_path / "b")
    seed_everything(99)
    again = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 1)).double()
    if fails_at == 3:
        again = network()  # nothing was saved, so the start is the caller's
    resumed = fit(
        again, None, Noisy(22), loss=squared, config=config, validation=Noisy(5), run_dir=tmp_path / "b", resume=True
    )
    assert same(undisturbed.state_dict(), again.state_dict())
    assert same(whole.ema_state, resumed.ema_state)
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    assert whole.history == resumed.history
    assert whole.best == resumed.best
    a, b = (load_checkpoint(tmp_path / run / "best.pt") for run in "ab")
    assert a["step"] == b["step"]
    assert same(a["model"], b["model"])


def test_metrics_file_has_each_measure_once(tmp_path):
    fit(network(), None, Noisy(), loss=squared, config=settings(epochs=1), run_dir=tmp_path)
    fit(network(), None, Noisy(), loss=squared, config=settings(epochs=2), run_dir=tmp_path, resume=True)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [(row["step"], row["split"], row["name"]) for row in csv.DictReader(file)]
    assert len(rows) == len(set(rows)) == 8 * 3


def test_rows_after_the_checkpoint_and_a_half_written_one_are_measured_again(tmp_path):
    """What a kill -9 leaves: the checkpoint of an earlier step, more rows than that, the last one cut."""
    whole, killed, again = network(), network(), network()
    config = settings(checkpoint_every=5)
    fit(whole, None, Noisy(), loss=squared, config=config, run_dir=tmp_path / "a")
    complete = (tmp_path / "a" / "metrics.csv").read_text()

    def fail(progress):
        if progress.step == 8:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(killed, None, Noisy(), loss=squared, config=config, run_dir=tmp_path / "b", on_progress=fail)
    rows = (tmp_path / "b" / "metrics.csv").read_text()
    assert complete.startswith(rows)
    (tmp_path / "b" / "metrics.csv").write_text(rows[:-4])
    fit(again, None, Noisy(), loss=squared, config=config, run_dir=tmp_path / "b", resume=True)
    assert (tmp_path / "b" / "metrics.csv").read_text() == complete
    assert same(whole.state_dict(), again.state_dict())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_of_the_step_in_progress(tmp_path, number):
    undisturbed, stopped, again = network(), network(), network()
    fit(undisturbed, None, Noisy(), loss=squared, config=settings())
    before = signal.getsignal(number)

    def stop(progress):
        if progress.step == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        fit(stopped, None, Noisy(), loss=squared, config=settings(), run_dir=tmp_path, on_progress=stop)
    assert signal.getsignal(number) is before
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    fit(again, None, Noisy(), loss=squared, config=settings(), run_dir=tmp_path, resume=True)
    assert same(undisturbed.state_dict(), again.state_dict())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(tmp_path, bad):
    model, kept = network(), {}

    def keep(progress):
        kept.update({name: value.clone() for name, value in model.state_dict().items()})

    def loss(model, batch):
        value = squared(model, batch)
        return value * bad if kept and updates_done[-1] == 6 else value

    updates_done: list[int] = []
    with pytest.raises(
        DivergedError, match=r"step 7 at learning rate .* step 6, last good checkpoint: .*last\.pt of step 4"
    ) as caught:
        fit(
            model, None, Noisy(), loss=loss, config=settings(checkpoint_every=4), run_dir=tmp_path,
            before_step=updates_done.append, on_progress=keep,
        )  # fmt: skip
    assert "\n" not in str(caught.value)
    assert same(model.state_dict(), kept)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 4


def test_a_gradient_that_is_not_finite_stops_too():
    def loss(model, batch):
        return (model(batch[0]) * 0).abs().sqrt().sum()  # finite, with an infinite derivative

    with pytest.raises(DivergedError, match="gradient norm is nan"):
        fit(network(), None, Noisy(), loss=loss, config=settings())


def test_a_folder_with_a_run_is_neither_overwritten_nor_mixed(tmp_path):
    fit(network(), None, Noisy(), loss=squared, config=settings(steps=2), run_dir=tmp_path)
    with pytest.raises(InputError, match="holds a run already"):
        fit(network(), None, Noisy(), loss=squared, config=settings(steps=2), run_dir=tmp_path)
    with pytest.raises(InputError, match="batch_size = 6, got 5"):
        fit(network(), None, Noisy(), loss=squared, config=settings(batch_size=5), run_dir=tmp_path, resume=True)
    with pytest.raises(InputError, match="n_samples = 20, got 21"):
        fit(network(), None, Noisy(21), loss=squared, config=settings(), run_dir=tmp_path, resume=True)
    with pytest.raises(InputError, match="another model"):
        fit(smooth_network(), None, Noisy(), loss=squared, config=settings(), run_dir=tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(InputError, match="cannot read the checkpoint") as caught:
        fit(network(), None, Noisy(), loss=squared, config=settings(), run_dir=tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_settings_are_printed_into_the_folder_and_read_back(tmp_path):
    fit(network(), None, Noisy(), loss=squared, config=settings(steps=1), run_dir=tmp_path)
    assert TrainConfig.from_json((tmp_path / "config.json").read_text()) == settings(steps=1)


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 0},
        {"learning_rate": math.nan},
        {"precision": "fp8"},
        {"ema_decay": 1.0},
        {"clip_gradient_norm": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        settings(**bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": []}, "no sample"),
        ({"loss": lambda model, batch: model(batch[0])}, "one number"),
        ({"groups": lambda model: [{"params": [model[0].weight]}]}, "leave out"),
        ({"config": settings(monitor="accuracy")}, "monitor must be one of .*loss"),
        ({"config": settings(device="abacus")}, "device must be"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(changes, message):
    model = network()
    arguments = {"dataset": Noisy(), "loss": squared, "config": settings(), "validation": Noisy(3), **changes}
    if "groups" in arguments:
        arguments["groups"] = arguments["groups"](model)
    with pytest.raises(InputError, match=message) as caught:
        fit(model, None, arguments.pop("dataset"), **arguments)
    assert "\n" not in str(caught.value)


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit(network(), None, Noisy(), loss=squared, config=settings(steps=3, tensorboard=True), run_dir=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(result.series("loss")[1], rel=1e-6)


# --- data parallel ------------------------------------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import torch, test_train as t
folder = Path(sys.argv[2])
model = t.smooth_network()
shard = sys.argv[4] == "shard"
def train(model, **changes):
    config = t.settings(accumulation_steps=2, validate_every=3, batch_size=7, checkpoint_every=5, shard=shard)
    arguments = dict(loss=t.squared, config=config, validation=t.Noisy(1), run_dir=folder)
    return t.fit(model, None, t.Noisy(22), **arguments, **changes)
if shard:  # broken off once, and gone on with
    def fail(step):
        if step == 7:
            raise RuntimeError
    try:
        train(t.smooth_network(), before_step=fail)
    except RuntimeError:
        pass
result = train(model, resume=shard)
torch.save({"model": model.state_dict(), "ema": result.ema_state}, folder / f"rank{sys.argv[3]}.pt")
"""


@pytest.mark.parametrize("way", ["replicate", "shard"])
def test_two_processes_equal_one_on_the_same_global_batches(tmp_path, way):
    """22 samples in batches of 7: the last batch has one, so one process has none, as in a validation set of one."""
    one = smooth_network()
    config = settings(accumulation_steps=2, validate_every=3, batch_size=7, checkpoint_every=5)
    (tmp_path / "two").mkdir()
    alone = fit(one, None, Noisy(22), loss=squared, config=config, validation=Noisy(1), run_dir=tmp_path / "one")
    (tmp_path / "worker.py").write_text(WORKER)
    workers = []
    rendezvous = _free_port()
    for rank in range(2):
        # What torchrun sets; its own launcher would import torch once more.
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(rendezvous), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        command = [sys.executable, str(tmp_path / "worker.py"), __file__, str(tmp_path / "two"), str(rank), way]
        workers.append(
            subprocess.Popen(command, env=environment, cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE)
        )
    try:
        errors = [worker.communicate(timeout=120)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], errors
    for rank in range(2):
        state = torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True)
        for name, value in one.state_dict().items():
            assert torch.allclose(state["model"][name], value, atol=1e-12)
            assert torch.allclose(state["ema"][name], alone.ema_state[name], atol=1e-12)
    two = load_checkpoint(tmp_path / "two" / "last.pt")
    assert len(two["random"]) == 2
    with (tmp_path / "one" / "metrics.csv").open() as a, (tmp_path / "two" / "metrics.csv").open() as b:
        for ours, theirs in zip(csv.DictReader(a), csv.DictReader(b), strict=True):
            assert float(ours.pop("value")) == pytest.approx(float(theirs.pop("value")), abs=1e-10)
            assert ours == theirs


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- the job of the demo ------------------------------------------------------------------------------------------


class Forecaster(nn.Module):
    """Windows BxLx1 to BxT: normalise, fold by the period, a large-kernel block, head, and back to the window's units."""

    def __init__(self, lookback: int, horizon: int, period: int, width: int = 16) -> None:
        super().__init__()
        self.period, rows = period, lookback // period
        self.norm = ReversibleInstanceNorm()
        self.stem = nn.Conv2d(1, width, 1)
        self.mix = nn.Sequential(nn.Conv2d(width, width, 7, padding=3, groups=width), nn.BatchNorm2d(width))
        self.feed = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1))
        self.head = ForecastHead(width * rows * period, horizon)

    def forward(self, series):
        normalized, statistics = self.norm.normalize(series)
        features = self.stem(normalized.reshape(len(series), 1, -1, self.period))
        features = features + self.feed(self.mix(features))
        return self.norm.denormalize(self.head(features)[:, :, None], statistics)[:, :, 0]


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
        return mse_loss(model(batch[:, :72, None]), batch[:, 72:])

    fit(
        model,
        None,
        list(train),
        loss=loss,
        config=settings(epochs=6, batch_size=64, learning_rate=3e-3, ema_decay=None),
    )
    with torch.no_grad():
        ours = mse_loss(model(test[:, :72, None]), test[:, 72:])
    persistence = mse_loss(test[:, 48:72], test[:, 72:])
    assert ours < 0.2 * persistence


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_broken_and_resumed_run_is_bit_identical_on_a_gpu(tmp_path, precision):
    config = settings(device="cuda", precision=precision, checkpoint_every=3, deterministic=precision == "float32")
    data = [(x.float(), y.float()) for x, y in zip(Noisy().x, Noisy().y, strict=True)]
    undisturbed, broken, again = network().float(), network().float(), network().float()
    fit(undisturbed, None, data, loss=squared, config=config)

    def fail(progress):
        if progress.step == 8:
            raise RuntimeError("the node went away")

    with pytest.raises(RuntimeError, match="node"):
        fit(broken, None, data, loss=squared, config=config, run_dir=tmp_path, on_progress=fail)
    fit(again, None, data, loss=squared, config=config, run_dir=tmp_path, resume=True)
    assert next(again.parameters()).is_cuda
    assert same(undisturbed.state_dict(), again.state_dict())


# --- running ahead of the host ------------------------------------------------------------------------------------


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


def test_running_ahead_trains_as_waiting_does():
    waiting, ahead = smooth_network(), smooth_network()
    config = settings(accumulation_steps=2, clip_gradient_norm=0.5, log_every=1)
    expected = fit(waiting, None, Noisy(noise=0.0), loss=two_losses, config=config)
    config = settings(accumulation_steps=2, clip_gradient_norm=0.5, log_every=3, run_ahead=True)
    found = fit(ahead, None, Resident(), loss=two_losses, config=config, validation=Resident())
    for name, value in waiting.state_dict().items():
        torch.testing.assert_close(ahead.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    steps, losses = found.series("mae")
    every = dict(zip(*expected.series("mae"), strict=True))
    assert steps[0] == 3
    assert losses == pytest.approx([every[step] for step in steps], rel=1e-9)
    assert found.ema_state is not None
    torch.testing.assert_close(found.ema_state, expected.ema_state, rtol=1e-9, atol=1e-12)


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


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)
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
