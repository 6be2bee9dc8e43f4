"""A run that breaks, stops or diverges goes on to the same bits, and says what cannot be gone on with."""

import csv
import math
import os
import signal

import pytest
import torch
from torch import nn

from tests.train.conftest import Noisy, network, same, settings, smooth_network, squared
from unipercept.errors import InputError
from unipercept.train import (
    DivergedError,
    fit,
    load_checkpoint,
    seed_everything,
)


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
