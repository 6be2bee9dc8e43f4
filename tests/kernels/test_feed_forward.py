"""The feed-forward of a block: it is the block's own mathematics, on every path, with its gradients.

The Triton kernels run on a GPU where there is one, else in Triton's interpreter.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unipercept.blocks import Block
from unipercept.errors import InputError
from unipercept.kernels import feed_forward, feed_forward_train, normed_feed_forward_train
from unipercept.kernels.dispatch import ENVIRONMENT_VARIABLE, watch
from unipercept.kernels.feed_forward.reference import Weights, feed_forward_reference

PACKAGE = "unipercept.kernels.feed_forward"
# Batch, rows, columns, channels, hidden: tiles that straddle images, that end with them, and maps smaller than a tile;
# widths with a tail (20 = 16 + 4 has none, 40 = 32 + 8 and 48 = 32 + 16 have), and some that no tile divides.
SHAPES = [
    (5, 7, 7, 20, 80),
    (3, 14, 14, 12, 40),
    (2, 5, 6, 16, 64),
    (3, 2, 2, 24, 96),
    (2, 1, 1, 16, 33),
    (1, 9, 15, 48, 100),
]


def random_case(shape, dtype=torch.float32, *, beta=True) -> tuple[Tensor, Tensor, Weights]:
    """Input, residual and weights of the size that trained ones have."""
    batch, rows, columns, channels, hidden = shape
    generator = torch.Generator().manual_seed(0)
    squeezed = max(1, channels // 4)

    def normal(*size, fan=1):
        return (torch.randn(*size, generator=generator) * fan**-0.5).to(dtype)

    weights = Weights(
        normal(squeezed, channels, fan=channels), normal(squeezed), normal(channels, squeezed, fan=squeezed), normal(channels),
        normal(hidden, channels, fan=channels), normal(hidden), normal(hidden), normal(hidden) if beta else None,
        normal(channels, hidden, fan=hidden), normal(channels),
    )  # fmt: skip
    return normal(batch, rows, columns, channels), normal(batch, rows, columns, channels), weights


def moved(weights: Weights, *args, **kwargs) -> Weights:
    return Weights(*(None if w is None else w.to(*args, **kwargs) for w in weights))


def infer(y, residual, weights: Weights, **kwargs) -> Tensor:
    return feed_forward(y, residual, *weights[:7], weights.w2, weights.b2, **kwargs)


def gradients(y: Tensor, weights: Weights, push: Tensor, **kwargs) -> dict[str, Tensor]:
    """The training form's, with `push` that of its output."""
    leaves = {"y": y, **{name: w for name, w in weights._asdict().items() if w is not None}}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    parts = [leaves.get(name) for name in Weights._fields]
    feed_forward_train(leaves["y"], *parts, **kwargs).backward(push)
    return {name: leaf.grad for name, leaf in leaves.items()}


def relative_error(found: Tensor, exact: Tensor) -> float:
    error = (found.double().cpu() - exact).norm()
    return float(error / exact.norm().clamp(min=1e-30))  # some gradients are 0 throughout


def block_and_weights(channels: int, deploy: bool) -> tuple[Block, Weights]:
    """A block in float64 with every parameter drawn at random, and those that the operation takes."""
    torch.manual_seed(0)
    block = Block(channels, 3, deploy=deploy).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    norm = block.response_norm
    return block, Weights(
        block.se.down.weight, block.se.down.bias, block.se.up.weight, block.se.up.bias, block.expand.weight,
        block.expand.bias, norm.gamma, norm.beta, block.contract.weight, block.contract.bias,
    )  # fmt: skip


def test_it_is_the_second_half_of_a_block():
    block, weights = block_and_weights(16, deploy=True)
    x = torch.randn(3, 16, 7, 5, dtype=torch.float64)
    y = block.dwconv(x).permute(0, 2, 3, 1)
    found = infer(y, x.permute(0, 2, 3, 1), weights).permute(0, 3, 1, 2)
    assert torch.allclose(found, block(x), atol=1e-12)


def test_its_training_form_is_that_of_a_block():
    block, weights = block_and_weights(16, deploy=False)
    x = torch.randn(3, 16, 7, 5, dtype=torch.float64)
    y = block.norm(block.dwconv(x))
    o = feed_forward_train(y.permute(0, 2, 3, 1), *weights).permute(0, 3, 1, 2)
    assert torch.allclose(x + block.pwconv2[2](o) * block.gamma.view(1, -1, 1, 1), block(x), atol=1e-12)


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_gradients_of_the_reference_are_right(train, beta):
    y, residual, weights = random_case((2, 2, 3, 8, 12), torch.float64, beta=beta)
    inputs = [None if t is None else t.requires_grad_() for t in (y, residual, *weights)]

    def run(*present):
        each = iter(present)
        y, residual, *parts = (None if t is None else next(each) for t in inputs)
        weights = Weights(*parts)
        return feed_forward_train(y, *weights) if train else infer(y, residual, weights)

    assert torch.autograd.gradcheck(run, [t for t in inputs if t is not None])


def test_a_map_of_zeros_has_finite_gradients():
    y, _, weights = random_case((2, 2, 3, 8, 12), torch.float64)
    weights = weights._replace(b1=torch.zeros_like(weights.b1), gamma=weights.gamma.requires_grad_())
    y = torch.zeros_like(y).requires_grad_()
    feed_forward_train(y, *weights).sum().backward()
    assert y.grad.isfinite().all()
    assert weights.gamma.grad.abs().max() == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given_sums", [True, False])
def test_the_gpu_path_agrees_with_float64(triton_device, shape, given_sums):
    y, residual, weights = random_case(shape)
    exact = infer(y.double(), residual.double(), moved(weights, torch.float64))
    allowed = 2 * relative_error(infer(y, residual, weights, implementation="reference"), exact) + 1e-7
    sums = y.sum(dim=(1, 2)).to(triton_device) if given_sums else None
    with watch() as seen:
        found = infer(
            y.to(triton_device),
            residual.to(triton_device),
            moved(weights, triton_device),
            sums=sums,
            implementation="gpu",
        )
    assert list(seen) == [("feed_forward", "gpu")]
    assert relative_error(found, exact) <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_the_gpu_path_in_16_bits_errs_no_more_than_twice_pytorch(triton_device, shape, dtype):
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers; this needs a GPU")
    y, residual, weights = random_case(shape, dtype)
    exact = infer(y.double(), residual.double(), moved(weights, torch.float64))
    allowed = 2 * relative_error(infer(y, residual, weights, implementation="reference"), exact)
    found = infer(y.to(triton_device), residual.to(triton_device), moved(weights, triton_device), implementation="gpu")
    assert found.dtype == dtype
    assert relative_error(found, exact) <= allowed


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_the_gpu_path_agree_with_float64(triton_device, shape, beta):
    y, _, weights = random_case(shape, beta=beta)
    push = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    exact = gradients(y.double(), moved(weights, torch.float64), push.double())
    plain = gradients(y, weights, push, implementation="reference")
    with watch() as seen:
        found = gradients(
            y.to(triton_device), moved(weights, triton_device), push.to(triton_device), implementation="gpu"
        )
    assert list(seen) == [("feed_forward_train", "gpu"), ("feed_forward_backward", "gpu")]
    for name in exact:
        allowed = 2 * relative_error(plain[name], exact[name]) + 1e-6
        assert relative_error(found[name], exact[name]) <= allowed, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("shape", [(3, 9, 8, 16, 64), (5, 7, 7, 20, 80)])
def test_gradients_in_16_bits_err_no_more_than_twice_pytorch(triton_device, shape, beta, dtype):
    """The first shape has so many cells that sums are taken image by image."""
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers; this needs a GPU")
    y, push, weights = random_case(shape, dtype, beta=beta)
    exact = gradients(y.double(), moved(weights, torch.float64), push.double())
    leaves = [t.clone().requires_grad_() for t in (y, *(w for w in weights if w is not None))]
    each = iter(leaves[1:])
    plain_weights = Weights(*(None if w is None else next(each) for w in weights))
    feed_forward_reference(leaves[0], None, plain_weights)[0].backward(push)  # by torch's operations, each rounded
    with watch() as seen:
        found = gradients(
            y.to(triton_device), moved(weights, triton_device), push.to(triton_device), implementation="gpu"
        )
    assert list(seen) == [("feed_forward_train", "gpu"), ("feed_forward_backward", "gpu")]
    rounding = torch.finfo(dtype).eps / 2  # of the result alone; four numbers may be luckier than that
    for name, leaf in zip(exact, leaves, strict=True):
        allowed = 2 * max(relative_error(leaf.grad, exact[name]), rounding)
        assert relative_error(found[name], exact[name]) <= allowed, name


def normed(x: Tensor, weights: Weights, norm, push: Tensor, **kwargs) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Output, mean and variance of the form with a batch norm before it; and the gradients."""
    leaves = {"x": x, "norm_weight": norm[0], "norm_bias": norm[1]}
    leaves |= {name: w for name, w in weights._asdict().items() if w is not None}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    parts = [leaves.get(name) for name in ("x", "norm_weight", "norm_bias", *Weights._fields)]
    found = normed_feed_forward_train(*parts, eps=1e-3, **kwargs)
    found[0].backward(push)
    return list(found), {name: leaf.grad for name, leaf in leaves.items()}


def norm_of(channels: int, dtype=torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(channels, generator=generator).to(dtype) + i for i in (1, 0)]


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] * s[1] * s[2] > 3])
def test_a_batch_norm_before_it_is_torchs_own(triton_device, shape, beta):
    x, _, weights = random_case(shape, beta=beta)
    x, norm = x + 3, norm_of(shape[3])
    push = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    wide, wide_norm = moved(weights, torch.float64), [n.double().requires_grad_() for n in norm]
    leaf = x.double().requires_grad_()
    y = torch.nn.functional.batch_norm(leaf.permute(0, 3, 1, 2), None, None, *wide_norm, training=True, eps=1e-3)
    y = y.permute(0, 2, 3, 1).detach().requires_grad_()
    apart = gradients(y, wide, push.double())
    results, exact = normed(x.double(), wide, [n.double() for n in norm], push.double())
    assert relative_error(results[0], feed_forward_train(y, *wide)) < 1e-12
    assert relative_error(results[1], x.double().mean(dim=(0, 1, 2))) < 1e-12
    assert relative_error(results[2], x.double().var(dim=(0, 1, 2), correction=0)) < 1e-12
    for name in wide._fields:
        if name in exact:
            assert relative_error(exact[name], apart[name]) < 1e-12, name
    plain_results, plain = normed(x, weights, norm, push, implementation="reference")
    moved_norm = [n.to(triton_device) for n in norm]
    with watch() as seen:
        found, ours = normed(
            x.to(triton_device), moved(weights, triton_device), moved_norm, push.to(triton_device), implementation="gpu"
        )
    assert list(seen) == [("feed_forward_train", "gpu"), ("feed_forward_backward", "gpu")]
    for i, (one, theirs, right) in enumerate(zip(found, plain_results, results, strict=True)):
        assert relative_error(one, right) <= 2 * relative_error(theirs, right) + 1e-6, i
    for name in exact:
        assert relative_error(ours[name], exact[name]) <= 2 * relative_error(plain[name], exact[name]) + 2e-6, name


def test_gradients_with_a_batch_norm_before_it_are_right():
    x, _, weights = random_case((2, 2, 3, 8, 12), torch.float64)
    inputs = [t.requires_grad_() for t in (x, *norm_of(8, torch.float64), *weights)]
    assert torch.autograd.gradcheck(lambda *given: normed_feed_forward_train(*given)[0], inputs)


def test_the_inference_form_can_be_trained(triton_device):
    y, residual, weights = random_case(SHAPES[0])
    found = {}
    for implementation, dtype, place in (("reference", torch.float64, "cpu"), ("gpu", torch.float32, triton_device)):
        inputs = [t.to(place, dtype).requires_grad_() for t in (y, residual, *weights[:7], weights.w2, weights.b2)]
        feed_forward(*inputs, implementation=implementation).square().sum().backward()
        found[implementation] = [t.grad for t in inputs]
    for exact, ours in zip(found["reference"], found["gpu"], strict=True):
        assert relative_error(ours, exact) < 1e-5


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("way", ["flat", "images", "scaled weights", "library"])
def test_every_way_to_tile_gives_the_same(triton_device, shape, way, monkeypatch):
    gpu = importlib.import_module(f"{PACKAGE}.gpu")
    chosen = {"flat": way == "flat", "scale_weights": way == "scaled weights", "library": way == "library"}
    tile = gpu.Tile(32, 16, 8, 16, 4, 2, group=2, **chosen)
    monkeypatch.setattr(gpu, "tile_for", lambda product, device: tile)
    y, residual, weights = random_case(shape)
    exact = infer(y.double(), residual.double(), moved(weights, torch.float64))
    found = infer(y.to(triton_device), residual.to(triton_device), moved(weights, triton_device), implementation="gpu")
    assert relative_error(found, exact) < 1e-6


def test_one_image_is_cut_into_more_tiles_than_a_batch():
    tiles = importlib.import_module(f"{PACKAGE}.gpu_tiles")
    for kernel, n, k, size in [("expand", 320, 80, 3136), ("contract", 320, 1280, 196), ("contract", 640, 2560, 49)]:
        product = tiles.Product(kernel, n, k, size, torch.bfloat16)
        tile = tiles.default_tile(product, 227 * 1024)
        assert tiles.shrunk(tile, product, 128) == tile
        one = tiles.shrunk(tile, product, 1)
        assert tiles.tiles_of(one, 1, size) * n // one.columns >= tiles.tiles_of(tile, 1, size) * n // tile.columns


def test_the_residual_keeps_its_type_under_autocast(triton_device):
    y, residual, weights = random_case(SHAPES[0])
    for implementation in ("reference", "gpu"):
        with torch.autocast(triton_device, torch.float16):
            arguments = y.to(triton_device), residual.to(triton_device), moved(weights, triton_device)
            found = infer(*arguments, implementation=implementation)
        assert found.dtype == torch.float32
        exact = infer(y.double(), residual.double(), moved(weights, torch.float64))
        assert relative_error(found, exact) < 1e-2


@pytest.mark.parametrize("implementation", ["reference", "gpu"])
def test_they_are_well_formed_operators(triton_device, implementation):
    y, residual, weights = random_case((2, 1, 2, 8, 16))
    y, residual = y.to(triton_device).requires_grad_(), residual.to(triton_device).requires_grad_()
    weights = Weights(*(w.to(triton_device).requires_grad_() for w in weights))
    operators = torch.ops.unipercept
    inference = (y, residual, None, *weights[:7], weights.w2, weights.b2, implementation)
    torch.library.opcheck(operators.feed_forward.default, inference)
    train = operators.feed_forward_train.default
    torch.library.opcheck(train, (y, None, *weights, None, None, 0.0, implementation))
    norm = [torch.ones(8, device=triton_device).requires_grad_() for _ in range(2)]
    torch.library.opcheck(train, (y, None, *weights, *norm, 1e-5, implementation))


def test_it_compiles_and_exports_as_one_graph():
    y, residual, weights = random_case((2, 3, 3, 8, 16))

    class Module(torch.nn.Module):
        def forward(self, y, residual):
            return infer(y, residual, weights) * 2

    exact = Module()(y, residual)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(y, residual), exact)
    assert torch.equal(torch.export.export(Module(), (y, residual)).module()(y, residual), exact)


def test_its_training_form_compiles_as_one_graph():
    y, _, weights = random_case((2, 3, 3, 8, 16))

    def run(function):
        leaves = [t.clone().requires_grad_() for t in (y, *weights)]
        function(*leaves).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    compiled = torch.compile(feed_forward_train, fullgraph=True, backend="aot_eager")
    for found, exact in zip(run(compiled), run(feed_forward_train), strict=True):
        assert torch.equal(found, exact)


def test_images_whose_places_need_more_than_32_bits_are_not_for_the_kernels():
    y, _, weights = random_case((1, 1, 1, 4, 8))
    large = y.expand(1, 40_000, 8_000, 4)  # 2.56e9 hidden values; only its size is asked for
    with pytest.raises(InputError, match="up to 2,000,000,000 hidden values an image"):
        infer(large, large, weights, implementation="gpu")


def test_more_images_than_a_grid_has_room_for_train_on_the_reference():
    y, _, weights = random_case((65_536, 1, 1, 4, 8))
    with watch() as seen:
        assert feed_forward_train(y, *weights).shape == y.shape
    assert set(seen) == {("feed_forward_train", "reference")}
    with pytest.raises(InputError, match="train on up to 65535 images at once, got 65536"):
        feed_forward_train(y, *weights, implementation="gpu")


def test_what_is_forced_runs_or_raises(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    y, residual, weights = random_case((1, 2, 2, 8, 16))
    with watch() as seen:
        feed_forward_train(y, *weights)
    assert list(seen) == [("feed_forward_train", "reference")]
    with pytest.raises(InputError, match="NVIDIA GPU, got a tensor on cpu"):
        infer(y, residual, weights, implementation="gpu")
    with pytest.raises(InputError, match="bfloat16, float16, float32, got"):
        infer(y.double(), residual, moved(weights, torch.float64), implementation="gpu")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cuda-of-the-future")
    with pytest.raises(InputError, match="cuda-of-the-future"):
        infer(y, residual, weights)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("w1", torch.zeros(16, 9), r"w1 \(16, 8\) beside y \(1, 2, 2, 8\), got \(16, 9\)"),
        ("w2", torch.zeros(16, 8), r"w2 \(8, 16\)"),
        ("gamma", torch.zeros(8), r"gamma \(16,\)"),
        ("down_w", torch.zeros(2, 8, 3, 3), r"down_w \(2, 8\)"),
        ("b2", torch.zeros(8).double(), r"b2 on cpu in torch\.float32"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name, value, message):
    y, residual, weights = random_case((1, 2, 2, 8, 16))
    with pytest.raises(InputError, match=message):
        infer(y, residual, weights._replace(**{name: value}))


def test_maps_that_do_not_fit_are_refused():
    y, residual, weights = random_case((1, 2, 2, 8, 16))
    with pytest.raises(InputError, match="y BxHxWxC"):
        infer(y[0], residual, weights)
    with pytest.raises(InputError, match="residual"):
        infer(y, residual[:, :1], weights)
    with pytest.raises(InputError, match=r"sums \(1, 8\)"):
        infer(y, residual, weights, sums=torch.zeros(8))


@pytest.mark.parametrize(
    ("capability", "dtype", "channels", "side", "launches"),
    [
        (90, "bfloat16", 320, 14, "once"),
        (86, "bfloat16", 80, 14, "once"),
        *(pytest.param(*case, "all", marks=pytest.mark.slow) for case in (
            (80, "bfloat16", 320, 14), (86, "bfloat16", 80, 14), (86, "bfloat16", 640, 7), (89, "float16", 160, 28), (90, "bfloat16", 320, 14),
            (90, "bfloat16", 80, 56), (90, "float32", 96, 7), (90, "bfloat16", 640, 7), (100, "bfloat16", 320, 14), (120, "bfloat16", 160, 28),
        )),
    ],
)  # fmt: skip
def test_every_kernel_compiles_for(capability, dtype, channels, side, launches, tmp_path):
    pytest.importorskip("triton", reason="triton is not installed")
    script = Path(__file__).with_name("compile_feed_forward.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), str(capability), dtype, str(channels), str(side)]
    command += ["once"] if launches == "once" else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = {line.split()[0] for line in done.stdout.splitlines()}
    assert len(kernels) == 22, kernels


@pytest.mark.parametrize("kilobytes", [99, 163, 227])  # of GeForce cards, the A100 and Hopper
def test_the_gates_weights_fit_into_shared_memory(kilobytes, monkeypatch):
    """Two tiles of them are there at a time, and some sums; the compiler says 133,120 bytes of two of 64 KB."""
    pytest.importorskip("triton", reason="triton is not installed")
    gpu = importlib.import_module(f"{PACKAGE}.gpu")
    monkeypatch.setattr(gpu, "shared_bytes_of", lambda device: 1024 * kilobytes)
    for channels in (40, 80, 160, 320, 512, 640, 768, 1024, 1536, 2048):
        tile = gpu.gate_options(torch.empty(channels // 4, channels, dtype=torch.bfloat16))
        assert 2 * 2 * tile["BLOCK_C"] * tile["BLOCK_R"] + 4096 <= 1024 * kilobytes


def test_measured_tiles_are_remembered(triton_device, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    tiles = importlib.import_module(f"{PACKAGE}.gpu_tiles")
    tiles.MEASURED.forget()
    product, other = (tiles.Product("expand", 320, 80, size, torch.float16) for size in (49, 196))
    place, tile = torch.device(triton_device), tiles.Tile(64, 64, 0, 16, 4, 2)
    name = tiles.device_name(place)
    rule = tiles.tile_for(product, place)
    path = tiles.MEASURED.remember(name, {str(product): tile})
    assert tiles.tile_for(product, place) == tile != rule
    tiles.MEASURED.remember(name, {str(other): tile})
    assert tiles.tile_for(product, place) == tiles.tile_for(other, place) == tile
    path.write_text("{}}")
    tiles.MEASURED.forget()
    assert tiles.tile_for(product, place) == rule
    tiles.MEASURED.forget()


@pytest.mark.parametrize("channels", [40, 48, 64, 80, 96, 128, 192, 256])
def test_tiles_of_the_network_fit_without_waste(triton_device, channels):
    tiles = importlib.import_module(f"{PACKAGE}.gpu_tiles")
    for stage, size in enumerate((3136, 784, 196, 49)):
        c = channels << stage
        for kernel, n, k in (("expand", 4 * c, c), ("contract", c, 4 * c)):
            tile = tiles.default_tile(tiles.Product(kernel, n, k, size, torch.bfloat16), 227 * 1024)
            assert n % (tile.columns + tile.tail) == 0
            assert tiles.images_touched(tile, size) <= 4


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@needs_gpu
@pytest.mark.parametrize(("channels", "side"), [(80, 56), (160, 28), (320, 14), (640, 7), (40, 7), (96, 17)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_widths_of_the_network_on_a_gpu(channels, side, dtype):
    y, residual, weights = random_case((5, side, side, channels, 4 * channels), dtype)
    y, residual, weights = y.cuda(), residual.cuda(), moved(weights, "cuda")
    exact = infer(y.double(), residual.double(), moved(weights, torch.float64)).cpu()
    allowed = 2 * relative_error(infer(y, residual, weights, implementation="reference"), exact) + 1e-6
    assert relative_error(infer(y, residual, weights), exact) <= allowed
    exact = gradients(y.double(), moved(weights, torch.float64), residual.double())
    plain = gradients(y, weights, residual, implementation="reference")
    found = gradients(y, weights, residual)
    for name in exact:
        # Gradients of squeeze-excite are sums that cancel: of ten numbers for 40 channels,
        # one in a hundred has been seen.
        slack = 1e-5 if dtype == torch.float32 else 1e-2 if name.startswith(("down", "up")) else 4e-3
        assert (
            relative_error(found[name], exact[name].cpu()) <= 2 * relative_error(plain[name], exact[name].cpu()) + slack
        ), name


@needs_gpu
def test_the_same_input_gives_the_same_bits_on_a_gpu():
    y, residual, weights = random_case((64, 14, 14, 160, 640), torch.bfloat16)
    y, residual, weights = y.cuda(), residual.cuda(), moved(weights, "cuda")
    assert torch.equal(infer(y, residual, weights), infer(y, residual, weights))
    first, second = (gradients(y, weights, residual) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@needs_gpu
def test_it_runs_in_a_cuda_graph_and_under_the_compiler():
    y, residual, weights = random_case((8, 14, 14, 80, 320), torch.bfloat16)
    y, residual, weights = y.cuda(), residual.cuda(), moved(weights, "cuda")
    exact = infer(y, residual, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = infer(y, residual, weights)
    graph.replay()
    assert torch.equal(found, exact)
    assert torch.equal(torch.compile(infer, fullgraph=True)(y, residual, weights), exact)
