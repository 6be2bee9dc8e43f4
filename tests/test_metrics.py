import math

import numpy as np
import pytest
import torch

from unipercept.errors import InputError
from unipercept.metrics import accuracy, mean_absolute_error, mean_squared_error


def test_accuracy_is_the_share_of_targets_among_the_best():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [1.0, 3.0, 2.0]])
    target = torch.tensor([0, 0, 0, 0])
    assert float(accuracy(logits, target)) == 1 / 4
    assert float(accuracy(logits, target, top=2)) == 2 / 4
    assert float(accuracy(logits, target, top=3)) == 1.0


def test_a_row_of_nan_is_wrong_even_for_all_classes():
    assert float(accuracy(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]), top=2)) == 0.0


def test_accuracy_agrees_with_sorting_in_numpy():
    generator = np.random.default_rng(0)
    logits, target = generator.normal(size=(200, 10)), generator.integers(0, 10, 200)
    best = np.argsort(-logits, axis=1)[:, :5]
    expected = np.mean([t in row for t, row in zip(target, best, strict=True)])
    assert float(accuracy(torch.from_numpy(logits), torch.from_numpy(target), top=5)) == pytest.approx(
        expected, abs=1e-15
    )


def test_errors_agree_with_numpy_in_float64_for_low_precision_input():
    generator = np.random.default_rng(1)
    a, b = (torch.from_numpy(generator.normal(size=(3, 5))).bfloat16() for _ in range(2))
    difference = a.double().numpy() - b.double().numpy()
    assert float(mean_squared_error(a, b)) == pytest.approx((difference**2).mean(), abs=1e-15)
    assert float(mean_absolute_error(a, b)) == pytest.approx(abs(difference).mean(), abs=1e-15)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: mean_squared_error(torch.zeros(2, 1), torch.zeros(2)), "one shape"),
        (lambda: mean_absolute_error(torch.zeros(0), torch.zeros(0)), "at least one sample"),
        (lambda: accuracy(torch.zeros(2, 3), torch.zeros(2)), "integer targets"),
        (lambda: accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), "at least one sample"),
        (lambda: accuracy(torch.zeros(1, 3), torch.tensor([3])), "within"),
        (lambda: accuracy(torch.zeros(1, 3), torch.tensor([0]), top=4), "top must"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(score, message):
    with pytest.raises(InputError, match=message) as caught:
        score()
    assert "\n" not in str(caught.value)
