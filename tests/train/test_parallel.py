"""Two processes train as one."""

import contextlib
import csv
import os
from pathlib import Path

import pytest
import torch

from tests import apart
from tests.train.conftest import Noisy, settings, smooth_network, squared
from unipercept.train import fit, load_checkpoint


def train_a_share(folder: Path, shard: bool) -> None:
    """One of the processes; with `shard` it is broken off once, and goes on."""
    config = settings(accumulation_steps=2, validate_every=3, batch_size=7, checkpoint_every=5, shard=shard)

    def train(model, **changes):
        return fit(model, None, Noisy(22), loss=squared, config=config, validation=Noisy(1), run_dir=folder, **changes)

    def fail(step):
        if step == 7:
            raise RuntimeError

    if shard:
        with contextlib.suppress(RuntimeError):
            train(smooth_network(), before_step=fail)
    model = smooth_network()
    result = train(model, resume=shard)
    torch.save({"model": model.state_dict(), "ema": result.ema_state}, folder / f"rank{os.environ['RANK']}.pt")


@pytest.mark.parametrize("way", ["replicate", "shard"])
def test_two_processes_equal_one_on_the_same_global_batches(tmp_path, way):
    """22 samples in batches of 7: the last batch has one, so one process has none, as in a validation set of one."""
    one = smooth_network()
    config = settings(accumulation_steps=2, validate_every=3, batch_size=7, checkpoint_every=5)
    (tmp_path / "two").mkdir()
    alone = fit(one, None, Noisy(22), loss=squared, config=config, validation=Noisy(1), run_dir=tmp_path / "one")
    apart.run_together(train_a_share, tmp_path / "two", way == "shard", said=tmp_path / "said.txt")
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
