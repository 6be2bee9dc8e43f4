"""How a model is trained: every setting of a run, printed into its folder as config.json."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Literal

from unipercept.errors import InputError

# What decides which samples a step sees: a run that is resumed must keep them.
DATA_ORDER_FIELDS = ("batch_size", "seed", "shuffle")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `fit`. Defaults are those of the backbone's published ImageNet recipe, scaled to a batch of 64.

    A step is one update of the weights; it sees one global batch of `batch_size` samples, whatever the
    number of processes and accumulated parts that share it. The last batch of an epoch may be smaller:
    nothing is dropped or padded.

    Raises:
        InputError: a value out of its range.

    Source: spec of UniRepLKNet, Ding et al. (2024), appendix: AdamW, lr 4e-3 at batch 4096, weight decay 0.05.
    """

    epochs: int = 1  # passes over the data; ignored when `steps` is given
    steps: int | None = None  # updates in all
    batch_size: int = 64  # samples an update, over all processes
    accumulation_steps: int = 1  # parts in which each process computes its share of a batch, to save memory
    learning_rate: float = 4e-3 * 64 / 4096
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0  # linear, from learning_rate / warmup_steps
    final_learning_rate: float = 0.0  # where the cosine ends
    clip_gradient_norm: float | None = None  # largest Euclidean norm of all gradients together
    ema_decay: float | None = None  # of the averaged weights that are validated and kept as the best; None: no average
    precision: Literal["float32", "bf16", "fp16"] = "float32"  # of the forward pass; weights stay as they are
    shuffle: bool = True
    seed: int = 0
    num_workers: int = 0  # processes that load data, for each process that trains
    device: str = "auto"  # "auto", "cpu", "cuda" ...
    compile: bool = False  # torch.compile the model
    run_ahead: bool = False  # a GPU works without waiting: see unipercept.train.ahead; one process, float32 or bf16
    shard: bool = False  # spread weights and optimiser over the processes (FSDP); one process leaves it out
    deterministic: bool = False  # let PyTorch refuse operations that are not (cuDNN, scatter ...)
    find_unused_parameters: bool = False  # for data parallel models of which a step uses a part
    validate_every: int | None = None  # steps; None: at the end of each epoch
    checkpoint_every: int | None = None  # steps; None: at the end of each epoch
    log_every: int = 1  # steps between two lines of metrics.csv
    monitor: str = "loss"  # the validation metric that decides which weights are best
    monitor_mode: Literal["min", "max"] = "min"
    tensorboard: bool = False  # needs the extra `train`

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation_steps", "log_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "validate_every", "checkpoint_every"):
            value = getattr(self, name)
            _require(name, value, value is None or value >= 1, "None or at least 1")
        for name in ("warmup_steps", "num_workers", "seed", "weight_decay", "final_learning_rate"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _require("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "positive and finite")
        clip = self.clip_gradient_norm
        _require("clip_gradient_norm", clip, clip is None or clip > 0, "None or positive")
        _require(
            "ema_decay", self.ema_decay, self.ema_decay is None or 0 <= self.ema_decay < 1, "None or within [0, 1)"
        )
        for name, choices in (
            ("precision", ("float32", "bf16", "fp16")),
            ("schedule", ("cosine", "constant")),
            ("monitor_mode", ("min", "max")),
        ):
            _require(name, getattr(self, name), getattr(self, name) in choices, "one of " + ", ".join(choices))
        _require("run_ahead", self.run_ahead, not (self.run_ahead and self.precision == "fp16"), "left out with fp16")
        _require("shard", self.shard, not (self.shard and self.precision == "fp16"), "left out with fp16")

    def to_json(self) -> str:
        """All settings, one a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """The inverse of `to_json`.

        Raises:
            InputError: not JSON, or a setting that does not exist.
        """
        try:
            settings = json.loads(text)
            settings["betas"] = tuple(settings.get("betas", cls.betas))
            return cls(**settings)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"not the settings of a training run: {error}") from error


def _require(name: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        raise InputError(f"{name} must be {what}, got {value!r}")
