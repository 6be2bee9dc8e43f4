"""Two processes train as one."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.conftest import Noisy, settings, smooth_network, squared
from unipercept.train import (
    fit,
    load_checkpoint,
)

WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import torch, conftest as t
from unipercept.train import fit
folder = Path(sys.argv[2])
model = t.smooth_network()
shard = sys.argv[4] == "shard"
def train(model, **changes):
    config = t.settings(accumulation_steps=2, validate_every=3, batch_size=7, checkpoint_every=5, shard=shard)
    arguments = dict(loss=t.squared, config=config, validation=t.Noisy(1), run_dir=folder)
    return fit(model, None, t.Noisy(22), **arguments, **changes)
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
            subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)
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
