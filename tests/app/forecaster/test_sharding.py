"""Two processes with half of the longitudes each give the forecast and the gradients of one with all of them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests import apart
from tests.app.forecaster.test_network import SMALL, awake, season, states
from unipercept.app.forecaster.network import NetworkConfig
from unipercept.app.forecaster.sharding import average_gradients, own_columns, shard_columns
from unipercept.errors import InputError

CONFIGS = {
    "centres": {"rows": 8, "columns": 16, "padding": "sphere", "patch": 1},
    "poles": {"rows": 9, "columns": 16, "padding": "sphere_poles", "patch": 2},
    "depthwise": {
        "rows": 9,
        "columns": 16,
        "padding": "sphere_poles",
        "patch": 2,
        "attention": "dw",
        "dilation": 1,
        "kernel_size": 5,
    },
    "belt": {"rows": 6, "columns": 16, "padding": "cylinder", "patch": 2},
    "wide": {"rows": 32, "columns": 64, "padding": "sphere", "patch": 1, "kernel_size": 21, "dilation": 3},
}


def config_of(name: str) -> NetworkConfig:
    return NetworkConfig(("z500", "t850", "u10", "v10"), **{**SMALL, **CONFIGS[name]})


def gradients(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def write_own_part(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    for name in CONFIGS:
        config = config_of(name)
        network = shard_columns(awake(config))
        x = own_columns(states(config)).requires_grad_()
        y = network(x, season())
        y.square().mean().backward()
        average_gradients(network)
        found[name] = {"y": y.detach(), "x": x.grad / 2, "weights": gradients(network)}
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("sharded")
    apart.run_together(write_own_part, folder, said=folder / "said.txt")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", CONFIGS)
def test_two_halves_are_the_whole(name: str, parts: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    config = config_of(name)
    network, x = awake(config), states(config).requires_grad_()
    y = network(x, season())
    y.square().mean().backward()
    scale = float(gradients(network).abs().max())
    assert torch.allclose(torch.cat([p[name]["y"] for p in parts], dim=-1), y.detach(), rtol=0, atol=1e-10)
    assert torch.allclose(torch.cat([p[name]["x"] for p in parts], dim=-1), x.grad, rtol=0, atol=1e-12)
    for part in parts:
        assert torch.allclose(part[name]["weights"], gradients(network), rtol=0, atol=1e-10 * max(scale, 1))


def test_without_a_process_group_the_way_to_start_is_named() -> None:
    with pytest.raises(InputError, match="torchrun"):
        shard_columns(awake(config_of("centres")))
