"""Folding a series: exactly undone at every length, and the period is the one that is in the series."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unipercept.errors import InputError
from unipercept.pipelines.folding import (
    dominant_period,
    fold_period,
    fold_square,
    square_sides,
    unfold,
)


@given(length=st.integers(1, 200), period=st.integers(1, 50))
def test_period_folding_is_exactly_inverted(length, period):
    series = torch.randn(2, length)
    folded, real = fold_period(series, period)
    assert folded.shape == (2, math.ceil(length / period), period)
    assert int(real.sum()) == length
    assert torch.equal(unfold(folded, length), series)


@given(length=st.integers(1, 60), features=st.integers(1, 20))
def test_square_folding_is_exactly_inverted(length, features):
    embedded = torch.randn(2, length, features)
    folded, real = fold_square(embedded)
    assert int(real.sum()) == length * features
    assert torch.equal(unfold(folded, length * features).reshape(embedded.shape), embedded)


def test_square_folding_is_the_reference_reshape():
    embedded = torch.randn(2, 48, 768)
    assert torch.equal(fold_square(embedded)[0], embedded.reshape(2, 1, 192, 192))


@given(st.integers(1, 5000))
def test_a_square_holds_its_cells_with_little_padding(cells):
    height, width = square_sides(cells)
    assert cells <= height * width <= cells + 2 * math.isqrt(cells) + 1
    assert height <= width <= 2 * height


@pytest.mark.parametrize("period", [7, 24, 30, 96])
@pytest.mark.parametrize("trend", [0.0, 0.05])
def test_the_dominant_period_is_found_under_noise_and_trend(period, trend):
    steps = torch.arange(period * 20).double()
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(2, len(steps), generator=generator)
    series = torch.sin(2 * math.pi * steps / period) + noise + trend * steps
    assert dominant_period(series) == period


@pytest.mark.parametrize(
    "series", [torch.zeros(1, 100), torch.full((2, 50), 3.0), torch.arange(3.0)[None], torch.zeros(1, 1)]
)
def test_what_does_not_repeat_has_period_one(series):
    assert dominant_period(series) == 1


def test_what_happens_once_is_no_period():
    steps = torch.arange(100.0)
    once, twice = (torch.cos(2 * math.pi * cycles * steps / 100)[None] for cycles in (1, 2))
    assert dominant_period(once + 0.1 * twice) == 50


def test_a_period_below_one_is_refused():
    with pytest.raises(InputError, match="at least 1 step"):
        fold_period(torch.zeros(1, 5), 0)
