"""The feed-forward's CUDA kernel for Hopper: run on an emulated GPU against float64."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.kernels import emulation
from tests.kernels.emulation import emulated
from unipercept.kernels.feed_forward import gpu_hopper

FOLDER = Path(gpu_hopper.__file__).parent


def emulate(y, gate, weight, bias, plan):
    """The hidden map, and each image's sums of squares put together from the tiles' parts."""
    images, size, _ = y.shape
    n = weight.shape[0]
    rows = plan.defines["ROWS"]
    tiles = -(-images * size // rows)
    hidden, partial = torch.full((images, size, n), float("nan")).to(y.dtype), torch.full((tiles, 2, n), float("nan"))
    source = "\n".join((FOLDER / file).read_text() for file in gpu_hopper.EXPAND[2:])
    emulation.emulate(
        source, "expand", (tiles,), plan.threads, plan.shared_bytes,
        [y, gate, weight, bias, hidden, partial, (size, "int"), (images * size, "int")], plan.defines,
    )  # fmt: skip
    sums = torch.zeros(images, n)
    for tile in range(tiles):
        first, last = tile * rows // size, (min((tile + 1) * rows, images * size) - 1) // size
        for image in range(first, last + 1):
            sums[image] += partial[tile, image - first]
    return hidden, sums


@emulated
@pytest.mark.parametrize(("size", "k"), [(196, 64), (250, 80), (400, 64)])
def test_the_first_product_with_its_gelu_and_squares(size, k):
    generator = torch.Generator().manual_seed(size)
    images, n = 3, 160
    y, gate, weight, bias = (
        (scale * torch.randn(*shape, generator=generator)).bfloat16()
        for shape, scale in (((images, size, k), 1), ((images, k), 1), ((n, k), k**-0.5), ((n,), 1))
    )
    hidden, sums = emulate(y, gate, weight, bias, gpu_hopper.expand_plan(torch.bfloat16, k, n))
    scaled = (y * gate[:, None]).double()
    wanted = F.gelu(scaled @ weight.double().T + bias.double())
    assert not hidden.isnan().any()
    assert (hidden.double() - wanted).norm() < 2.0**-8 * wanted.norm()
    assert torch.allclose(sums.double(), wanted.square().sum(1), rtol=1e-3)


@emulated
@pytest.mark.parametrize(
    ("size", "n", "channels", "tile", "blocks"),
    [
        (49, 192, 80, gpu_hopper.ContractTile(128, 80, 4), 1),
        (100, 320, 160, gpu_hopper.ContractTile(64, 80, 4), 3),
        (196, 128, 320, gpu_hopper.ContractTile(192, 160, 5), 2),
        (196, 64, 320, gpu_hopper.ContractTile(64, 320, 4), 4),
    ],
)
def test_the_second_product_with_its_factor_and_residual(size, n, channels, tile, blocks):
    generator = torch.Generator().manual_seed(size)
    images = 3
    hidden, factor, weight, bias, residual = (
        (scale * torch.randn(*shape, generator=generator)).bfloat16()
        for shape, scale in (
            ((images, size, n), 1), ((images, n), 1), ((channels, n), n**-0.5), ((channels,), 1), ((images, size, channels), 1),
        )
    )  # fmt: skip
    output = torch.full_like(residual, float("nan"))
    plan = gpu_hopper.contract_plan(torch.bfloat16, n, channels, size, tile)
    source = "\n".join((FOLDER / file).read_text() for file in gpu_hopper.CONTRACT[2:])
    emulation.emulate(
        source, "contract", (blocks,), plan.threads, plan.shared_bytes,
        [hidden, factor, weight, bias, residual, output, (size, "int"), (images * size, "int")], plan.defines,
    )  # fmt: skip
    grown = (hidden * factor[:, None]).double()
    wanted = grown @ weight.double().T + bias.double() + residual.double()
    assert not output.isnan().any()
    assert (output.double() - wanted).norm() < 2.0**-8 * wanted.norm()


def on_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


@pytest.mark.skipif(not on_hopper(), reason="needs a Hopper GPU")
@pytest.mark.parametrize(("channels", "side"), [(160, 28), (320, 14), (640, 7)])
def test_both_products_of_a_full_batch_on_the_gpu(channels, side):
    generator = torch.Generator("cuda").manual_seed(side)
    images, n = 128, 4 * channels

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator, device="cuda")).bfloat16()

    y, gate, residual = draw(images, side, side, channels), draw(images, channels), draw(images, side, side, channels)
    w1, b1, w2, b2 = draw(n, channels, scale=channels**-0.5), draw(n), draw(channels, n, scale=n**-0.5), draw(channels)
    assert gpu_hopper.takes_contract(y.new_empty(images, side, side, n), residual, channels)
    hidden = F.gelu(F.linear((y * gate[:, None, None]).double(), w1.double(), b1.double())).bfloat16()
    if gpu_hopper.takes_expand(y, n):
        found = torch.full_like(hidden, float("nan"))
        gpu_hopper.expand_gpu(
            y, gate, w1, b1, found, y.new_empty(-(-images * side**2 // gpu_hopper.ROWS), 2, n).float()
        )
        assert (found.double() - hidden.double()).norm() < 2.0**-8 * hidden.double().norm()
    factor = 1 + draw(images, n, scale=0.5)
    for bias in (b2, None):
        first, second = (gpu_hopper.contract_gpu(hidden, factor, w2, bias, residual) for _ in range(2))
        grown = (hidden * factor[:, None, None]).double()
        wanted = F.linear(grown, w2.double(), None if bias is None else bias.double()) + residual.double()
        assert (first.double() - wanted).norm() < 2.0**-8 * wanted.norm()
        assert torch.equal(first, second)
