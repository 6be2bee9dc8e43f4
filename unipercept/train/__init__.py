"""Training: one `fit` for every model, a loop over the objects it is handed.

    result = fit(model, None, dataset, loss=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
                 config=TrainConfig(epochs=10, learning_rate=1e-3), run_dir="runs/first", validation=held_out)

The same line started by `torchrun --nproc-per-node 4 script.py` trains data parallel, with the same global batches.
"""

from unipercept.train.checkpoint import load_checkpoint
from unipercept.train.config import TrainConfig
from unipercept.train.history import Progress, Record
from unipercept.train.loop import FitResult, fit
from unipercept.train.optimization import ExponentialMovingAverage, learning_rate_factor, parameter_groups
from unipercept.train.randomness import seed_everything
from unipercept.train.updates import DivergedError

__all__ = [
    "DivergedError",
    "ExponentialMovingAverage",
    "FitResult",
    "Progress",
    "Record",
    "TrainConfig",
    "fit",
    "learning_rate_factor",
    "load_checkpoint",
    "parameter_groups",
    "seed_everything",
]
