"""Scores of a classifier: accuracy with its interval, per class, confusion, calibration and its temperature.

Shapes: R recordings, I items, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unipercept.errors import InputError

N_BINS = 15  # of confidence, as in Guo et al. (2017)
Z_95 = 1.959964  # of a normal distribution


@dataclass(frozen=True)
class Scores:
    """Of R recordings with K classes.

    Args:
        probabilities: RxK.
        targets: R.
    """

    probabilities: Tensor
    targets: Tensor

    @property
    def predicted(self) -> Tensor:
        """R class indices."""
        return self.probabilities.argmax(dim=1)

    @property
    def accuracy(self) -> float:
        """Share of recordings whose most probable class is right."""
        return float((self.predicted == self.targets).double().mean())

    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy. Source: Wilson (1927), which holds near 0 and 1 and for few recordings."""
        return wilson(int((self.predicted == self.targets).sum()), len(self.targets))

    def confusion(self) -> Tensor:
        """KxK counts: rows are the truth, columns the predictions."""
        n_classes = self.probabilities.shape[1]
        return torch.bincount(self.targets * n_classes + self.predicted, minlength=n_classes**2).reshape(n_classes, -1)

    def per_class(self) -> list[dict[str, float]]:
        """Support, recall, precision and F1 of each class; 0 / 0 counts as 0."""
        counts = self.confusion().double()
        right, support, said = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
        rows = []
        for k in range(len(right)):
            recall, precision = float(right[k] / support[k].clamp(min=1)), float(right[k] / said[k].clamp(min=1))
            f1 = 2 * recall * precision / max(recall + precision, 1e-12)
            rows.append({"support": int(support[k]), "recall": recall, "precision": precision, "f1": f1})
        return rows

    def mean_class_accuracy(self) -> float:
        """Mean recall over the classes that occur."""
        found = [row["recall"] for row in self.per_class() if row["support"]]
        return sum(found) / len(found)

    def reliability(self) -> list[tuple[float, float, int]]:
        """(mean confidence, accuracy, count) of each bin of confidence that holds recordings."""
        confidence = self.probabilities.amax(dim=1).double()
        right = (self.predicted == self.targets).double()
        bins = (confidence * N_BINS).long().clamp(max=N_BINS - 1)
        found = []
        for b in range(N_BINS):
            inside = bins == b
            if inside.any():
                found.append((float(confidence[inside].mean()), float(right[inside].mean()), int(inside.sum())))
        return found

    def calibration_error(self) -> float:
        """Expected calibration error: mean over recordings of |confidence - accuracy| by bin.

        Source: Naeini et al. (2015).
        """
        return sum(abs(c - a) * n for c, a, n in self.reliability()) / len(self.targets)

    def calibration_error_by_chance(self, draws: int = 200) -> float:
        """The mean calibration error that as many recordings would give if each probability were exact: far above 0
        where recordings are few.

        Source: consistency resampling, Bröcker and Smith (2007), Increasing the Reliability of Reliability Diagrams.
        """
        confidence = self.probabilities.amax(dim=1).double()
        bins = F.one_hot((confidence * N_BINS).long().clamp(max=N_BINS - 1), N_BINS).double()
        uniform = torch.rand(draws, len(confidence), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return float((((uniform < confidence).double() - confidence) @ bins).abs().sum(dim=1).mean() / len(confidence))

    def negative_log_likelihood(self) -> float:
        """Mean of -log of the probability of the truth, in nats."""
        return float(F.nll_loss(self.probabilities.double().clamp(min=1e-12).log(), self.targets))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        low, high = self.interval()
        return {
            "n": len(self.targets),
            "accuracy": self.accuracy,
            "accuracy_95_low": low,
            "accuracy_95_high": high,
            "mean_class_accuracy": self.mean_class_accuracy(),
            "negative_log_likelihood": self.negative_log_likelihood(),
            "expected_calibration_error": self.calibration_error(),
            "expected_calibration_error_by_chance": self.calibration_error_by_chance(),
        }


def soft_cross_entropy(logits: Tensor, weighted: Tensor) -> Tensor:
    """Mean cross-entropy of IxK logits with soft labels (IxK, multiplied by class weights), in single precision; 0 if
    no item has a label.
    """
    loss: Tensor = -(weighted * logits.float().log_softmax(dim=1)).sum() / weighted.sum().clamp(min=1e-6)
    return loss


def unexplained(said: Tensor, truth: Tensor) -> Tensor:
    """Share of the variance of T traits that IxT predictions do not explain in a batch, averaged over the traits; NaN
    in `truth` is left out.
    """
    known = truth.isfinite()
    truth, count = torch.where(known, truth, 0), known.sum(dim=0).clamp(min=1)
    spread = torch.where(known, truth - truth.sum(dim=0) / count, 0).square().sum(dim=0) / count
    missed = torch.where(known, said.float() - truth, 0).square().sum(dim=0) / count
    return (missed / (spread + 1e-3)).mean()


def named(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of IxQ logits with one-hot rows, averaged over the items; rows of NaN are left out."""
    known = truth.isfinite()
    right = torch.where(known, truth, 0) * logits.float().log_softmax(dim=1)
    return -right.sum() / known.all(dim=1).sum().clamp(min=1)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % score interval of a share."""
    if count < 1 or not 0 <= hits <= count:
        raise InputError(f"an interval needs 0 <= hits <= count and a count of at least 1, got {hits} of {count}")
    share, z = hits / count, Z_95
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def pooled(logits: Tensor, weights: Tensor, recording: Tensor, n_recordings: int, temperature: float = 1.0) -> Tensor:
    """Items' logits (IxK) to recordings' probabilities (RxK): softmax, averaged by share of
    real input, as the pipelines do.
    """
    probabilities = (logits.double() / temperature).softmax(dim=1) * weights.double()[:, None]
    total = torch.zeros(n_recordings, logits.shape[1], dtype=torch.float64).index_add_(0, recording, probabilities)
    mass = torch.zeros(n_recordings, dtype=torch.float64).index_add_(0, recording, weights.double())
    return total / mass.clamp(min=1e-12)[:, None]


def best_temperature(logits: Tensor, weights: Tensor, recording: Tensor, targets: Tensor) -> float:
    """The divisor of the logits, 0.05 to 20, with the highest posterior density: golden section on its logarithm.

    The prior of the logarithm is a standard normal. Without it, a handful of recordings that are all classified
    correctly would make the network certain of everything; hundreds of recordings outweigh the prior.

    Source: temperature scaling, Guo et al. (2017), without a prior, on validation sets of thousands.
    """

    def cost(log_temperature: float) -> float:
        probabilities = pooled(logits, weights, recording, len(targets), math.exp(log_temperature))
        return Scores(probabilities, targets).negative_log_likelihood() + log_temperature**2 / (2 * len(targets))

    low, high, golden = math.log(0.05), math.log(20.0), (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if cost(left) <= cost(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
