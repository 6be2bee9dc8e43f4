"""A finer grid under the same body: tokens and means are kept."""

import numpy as np
import pytest
import torch

from unipercept.app.forecaster.frames import Statistics
from unipercept.app.forecaster.model import ForecastModel, new_model
from unipercept.app.forecaster.onnx_stage import global_grid
from unipercept.app.forecaster.resolution import extended, overlaps
from unipercept.errors import InputError

STATISTICS = Statistics((0.0, 1.0), (1.0, 2.0), (0.5, 0.5))
TIMES = np.array(["2020-03-01T06"], "datetime64[ns]")


def coarse(patch: int = 2, **settings: object) -> ForecastModel:
    torch.manual_seed(0)
    sizes = {"patch": patch, "width": 8, "groups": (1,), "kernel_size": 5, "dilation": 1, **settings}
    model = new_model("puyun", ("t2m", "u10"), global_grid(8, 16), STATISTICS, attention="lka", **sizes)
    torch.nn.init.normal_(model.network.recover.weight, std=0.3)
    return model.eval()


@pytest.mark.parametrize("factor", [2, 3])
def test_a_field_of_constant_cells_gives_the_same_tokens_and_forecast(factor: int) -> None:
    model = coarse()
    fine = extended(model, global_grid(8 * factor, 16 * factor), 2 * factor)
    x = torch.randn(1, 2, 2, 8, 16)
    repeated = x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    expected = model(x, TIMES).repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    assert torch.allclose(fine(repeated, TIMES), expected, atol=1e-5)


def test_patches_that_do_not_nest_keep_the_mean_of_what_is_recovered() -> None:
    model = coarse(predict="direct")
    fine = extended(model, global_grid(20, 40), 5)
    share = overlaps(2, 5)
    assert torch.allclose(share.sum(dim=0), torch.ones(2, dtype=torch.float64))
    tokens = torch.randn(1, 8, 4, 8)
    fields = [m.network._to_grid(m.network.recover(tokens)) for m in (model, fine)]
    assert torch.allclose(fields[0].mean(dim=(2, 3)), fields[1].mean(dim=(2, 3)), atol=1e-6)
    assert sum(p.numel() for b in model.network.groups for p in b.parameters()) == sum(
        p.numel() for b in fine.network.groups for p in b.parameters()
    )


def test_the_pitch_in_degrees_must_stay() -> None:
    with pytest.raises(InputError, match=r"would be 22\.5; choose patch 4"):
        extended(coarse(), global_grid(16, 32), 2)


def test_static_fields_beside_the_position_must_be_given_again() -> None:
    model = new_model("tiny", ("t2m", "u10"), global_grid(8, 16), STATISTICS, static=torch.zeros(1, 8, 16), width=4)
    with pytest.raises(InputError, match="1 static fields"):
        extended(model, global_grid(16, 32), 2)
    finer = extended(model, global_grid(16, 32), 2, torch.ones(1, 16, 32))
    assert finer.network.static.shape == (5, 16, 32)
