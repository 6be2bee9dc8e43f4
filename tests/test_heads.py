import pytest
import torch

from unipercept.errors import InputError
from unipercept.heads import INITIAL_STD, ClassificationHead, ForecastHead, ReversibleInstanceNorm


def test_classification_head_pools_a_map_as_its_mean():
    torch.manual_seed(0)
    head = ClassificationHead(8, 3).double()
    features = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    assert torch.allclose(head(features), head(features.mean(dim=(2, 3))), atol=1e-15)
    assert head(features).shape == (2, 3)


def test_classification_head_is_layer_norm_then_linear():
    torch.manual_seed(0)
    head = ClassificationHead(8, 3).double()
    x = torch.randn(4, 8, dtype=torch.float64)
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    assert torch.allclose(head(x), normed @ head.linear.weight.T + head.linear.bias, atol=1e-12)


def test_a_small_initial_scale_starts_logits_near_zero():
    x = torch.randn(4, 8)
    assert ClassificationHead(8, 3, init_scale=0.001)(x).abs().max() < 1e-3


def test_forecast_head_sees_every_position_of_the_map():
    torch.manual_seed(0)
    head = ForecastHead(4 * 3 * 2, 5).double()
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    head(x).sum().backward()
    assert head(x).shape == (2, 5)
    assert (x.grad != 0).all()


def test_reversible_norm_is_exactly_inverted_and_leaves_no_level():
    torch.manual_seed(0)
    norm = ReversibleInstanceNorm(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 3.0]))
    series = torch.randn(4, 24, 3, dtype=torch.float64) * 7 + 1000
    normalized, statistics = norm.normalize(series)
    assert torch.allclose(norm.denormalize(normalized, statistics), series, rtol=1e-9)
    shifted, _ = norm.normalize(series + 500)
    assert torch.allclose(shifted, normalized, atol=1e-9)


def test_a_scale_that_became_zero_is_not_divided_by():
    norm = ReversibleInstanceNorm()
    torch.nn.init.zeros_(norm.weight)
    normalized, statistics = norm.normalize(torch.rand(1, 8, 1))
    assert torch.isfinite(norm.denormalize(normalized, statistics)).all()


def test_a_constant_window_stays_finite():
    norm = ReversibleInstanceNorm()
    normalized, statistics = norm.normalize(torch.full((1, 8, 2), 5.0))
    assert torch.equal(normalized, torch.zeros(1, 8, 2))
    assert torch.allclose(norm.denormalize(normalized, statistics), torch.full((1, 8, 2), 5.0))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: ClassificationHead(0, 3), "in_features"),
        (lambda: ForecastHead(3, 0), "horizon"),
        (lambda: ClassificationHead(8, 3)(torch.zeros(2, 7)), "D = 8"),
        (lambda: ForecastHead(8, 3)(torch.zeros(2, 7)), "8 features"),
        (lambda: ReversibleInstanceNorm().normalize(torch.zeros(2, 7)), "BxLxV"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(use, message):
    with pytest.raises(InputError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)


def test_initial_weights_are_normal_and_cut_at_two_deviations():
    torch.manual_seed(0)
    weight = ClassificationHead(400, 50).linear.weight.detach()
    assert abs(weight).max() <= 2 * INITIAL_STD
    assert abs(weight.mean()) < 0.05 * INITIAL_STD
    assert float(weight.std()) == pytest.approx(0.88 * INITIAL_STD, rel=0.03)  # what the cut leaves of the deviation
