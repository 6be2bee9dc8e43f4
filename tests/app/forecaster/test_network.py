"""The network: persistence at the start, equivariance, sizes, gradients. float64 where a property is exact."""

import numpy as np
import pytest
import torch

from unipercept.app.forecaster.clock import seasonal, solar_fields
from unipercept.app.forecaster.network import PRESETS, NetworkConfig, WeatherNetwork, preset
from unipercept.errors import InputError

CHANNELS = ("z500", "t850", "u10", "v10")


def awake(config: NetworkConfig, seed: int = 0) -> WeatherNetwork:
    """A network whose every weight matters: random instead of zeros."""
    torch.manual_seed(seed)
    network = WeatherNetwork(config, change=torch.rand(len(config.channels)) + 0.5).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def states(config: NetworkConfig, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, config.frames, len(config.channels), config.rows, config.columns)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def season(batch: int = 2) -> torch.Tensor:
    return seasonal(np.array(["2018-02-03T06", "2018-09-01T18"], "datetime64[ns]")[:batch]).double()


SMALL = {"width": 6, "groups": (1, 1), "kernel_size": 9, "dilation": 2, "ratio": 2}
GRIDS = {"centres": (8, 16, "sphere", 2), "poles": (9, 16, "sphere_poles", 2), "region": (7, 9, "zero", 2)}


def config_of(grid: str, **settings: object) -> NetworkConfig:
    rows, columns, padding, patch = GRIDS[grid]
    sizes = {"rows": rows, "columns": columns, "padding": padding, "patch": patch, **SMALL, **settings}
    return NetworkConfig(CHANNELS, **sizes)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("predict", ["residual", "projected"])
@pytest.mark.parametrize("attention", ["lka", "dw"])
def test_before_training_the_forecast_is_persistence(grid: str, predict: str, attention: str) -> None:
    config = config_of(grid, predict=predict, attention=attention)
    network, x = WeatherNetwork(config).eval(), states(config).float()
    assert torch.equal(network(x, season().float()), x[:, -1])


@pytest.mark.parametrize(
    "settings", [{}, {"attention": "dw"}, {"attention": "dw", "combine": "mul_add"}, {"aggregate": "last"}]
)
@pytest.mark.parametrize("grid", ["centres", "poles"])
def test_turning_the_earth_turns_the_forecast(grid: str, settings: dict[str, str]) -> None:
    config = config_of(grid, **settings)
    network, x = awake(config).requires_grad_(False), states(config)
    expected = network(x, season())
    for shift in (4, 8):  # 90 and 180 degrees
        assert float((network(x.roll(shift, -1), season()) - expected.roll(shift, -1)).abs().max()) < 1e-12


def test_a_patch_of_one_commutes_with_every_turn() -> None:
    config = config_of("centres", patch=1)
    network, x = awake(config).requires_grad_(False), states(config)
    for shift in (1, 5):
        assert float((network(x.roll(shift, -1), season()) - network(x, season()).roll(shift, -1)).abs().max()) < 1e-12


@pytest.mark.parametrize("time", ["film", "channels"])
def test_season_and_sun_change_the_forecast_only_where_they_are_asked_for(time: str) -> None:
    config = config_of("centres", time=time, solar=True)
    network, x = awake(config), states(config, 1)
    latitude, longitude = np.linspace(80, -80, 8), np.arange(16) * 22.5
    forecasts = []
    for date in ("2018-01-01T00", "2018-07-01T00", "2018-01-01T12"):
        times = np.array([date], "datetime64[ns]")
        forecasts.append(network(x, seasonal(times).double(), solar_fields(times, latitude, longitude).double()))
    assert not torch.allclose(forecasts[0], forecasts[1])
    assert not torch.allclose(forecasts[0], forecasts[2])
    without = awake(config_of("centres", time="none"))
    assert torch.equal(without(x), without(x, season(1)))


@pytest.mark.parametrize(
    ("rows", "padding", "patch", "halo", "tokens"),
    [
        (721, "sphere_poles", 8, (3, 4), "sphere_poles"),
        (720, "sphere", 8, (0, 0), "sphere"),
        (121, "sphere_poles", 4, (1, 2), "sphere_poles"),
        (33, "sphere_poles", 1, (0, 0), "sphere_poles"),
        (32, "sphere", 1, (0, 0), "sphere"),
        (30, "zero", 4, (1, 1), "zero"),
    ],
)
def test_tokens_inherit_the_edge_of_the_grid(
    rows: int, padding: str, patch: int, halo: tuple[int, int], tokens: str
) -> None:
    config = NetworkConfig(CHANNELS, rows, 1440, padding, patch)
    assert config.halo == halo
    assert config.token_padding == tokens


@pytest.mark.parametrize("grid", GRIDS)
def test_recovered_fields_lie_where_their_patches_did(grid: str) -> None:
    """A network that only embeds and recovers with matching kernels gives its input back: rows
    are cut where they were added.
    """
    config = config_of(grid, width=len(CHANNELS) * 4, predict="direct", time="none", groups=(1,), frames=1)
    network, x = WeatherNetwork(config).double().eval(), states(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.embed.weight.copy_(torch.eye(config.width).view(config.width, 4, 2, 2))
        network.recover.weight.copy_(torch.eye(config.width)[:, :, None, None])
    assert torch.equal(network(x), x[:, -1])


@pytest.mark.parametrize(("width", "millions"), [(256, 27), (512, 91), (1024, 334)])
def test_puyun_has_the_parameters_that_the_formula_gives(width: int, millions: int) -> None:
    channels = tuple(f"z{i}" for i in range(69))
    with torch.device("meta"):
        network = WeatherNetwork(
            preset("puyun", channels=channels, rows=721, columns=1440, padding="sphere_poles", width=width, time="none")
        )
    count = sum(p.numel() for p in network.parameters())
    per_block = 6 * width**2 + (81 + 7) * width
    assert count == 48 * per_block + (2 * 69 * 64 + 1) * width + (4 * width + 1) * 69 * 64
    assert abs(count / 1e6 - millions) < 1  # the table in the specification rounds its parts


def test_tiny_fits_its_weights_into_eight_megabytes() -> None:
    channels = tuple(f"z{i}" for i in range(16))
    network = WeatherNetwork(preset("tiny", channels=channels, rows=32, columns=64))
    assert sum(t.numel() for t in network.state_dict().values()) * 4 < 8e6


def test_recomputed_activations_give_the_same_gradients() -> None:
    config = config_of("poles", drop_path_rate=0.0)
    network, gradients = awake(config), []
    for enable in (False, True):
        network.zero_grad()
        network.set_grad_checkpointing(enable)
        network(states(config), season()).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_settings_survive_json_and_unknown_ones_are_refused() -> None:
    config = config_of("poles", solar=True)
    assert NetworkConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="no setting depth"):
        NetworkConfig.from_dict({**config.to_dict(), "depth": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 3}, "does not divide"),
        ({"columns": 10}, "odd number of tokens"),
        ({"attention": "window"}, "attention must be one of"),
        ({"channels": ("t2m", "t2m")}, "differ"),
        ({"groups": ()}, "needs channels, groups"),
    ],
)
def test_sizes_that_do_not_fit_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NetworkConfig(**{**config_of("centres").to_dict(), "channels": CHANNELS, "groups": (1,), **settings})


def test_inputs_that_do_not_fit_are_named() -> None:
    config = config_of("centres")
    network, x = WeatherNetwork(config), states(config).float()
    with pytest.raises(InputError, match="states must be Bx2x4x8x16"):
        network(x[:, :1], season().float())
    with pytest.raises(InputError, match="season"):
        network(x)
    with pytest.raises(InputError, match="takes no solar"):
        network(x, season().float(), x[:, 0])
    with pytest.raises(InputError, match="preset must be one of"):
        preset("huge")
    assert set(PRESETS) == {"tiny", "small", "puyun"}


@pytest.mark.parametrize(("name", "half"), [("tiny", False), ("tiny", True), ("puyun", False), ("puyun", True)])
def test_the_estimate_of_what_the_backward_pass_keeps_is_that_of_autograd(name: str, half: bool) -> None:
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    alive = []  # a storage that is freed would give its address to another
    found = []
    for depth in (1, 3):  # the difference is that of two blocks
        sizes = {"channels": ("t2m", "u10"), "rows": 32, "columns": 64, "patch": 1, "width": 32, "groups": (depth,)}
        network = WeatherNetwork(preset(name, **sizes)).train()
        kept.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: alive.append(t) or count(t), lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
        ):
            network(torch.randn(1, 2, 2, 32, 64), torch.zeros(1, 4))
        found.append((sum(kept.values()), network.config.activation_bytes(half)))
    (few, estimate_few), (many, estimate_many) = found
    assert many - few == pytest.approx(estimate_many - estimate_few, rel=0.15)  # versions of torch differ a little
