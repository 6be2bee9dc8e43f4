"""Tensors on a GPU that is not the current one: each operation runs where they are, with the bits of the first GPU."""

import pytest
import torch

from unipercept import build_backbone
from unipercept.kernels import depthwise_conv2d, folded_blocks, layer_norm2d
from unipercept.kernels.adamw import AdamW
from unipercept.kernels.dispatch import watch
from unipercept.kernels.folded_blocks import BlockWeights
from unipercept.reparam import reparameterize
from unipercept.train.ahead import GradientGraphs

pytestmark = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs, a GPU that is not the current one"
)
DEVICES = [torch.device("cuda", index) for index in range(2)]


def tiny(device):
    torch.manual_seed(0)
    kernels = (3, 3), (13, 13), (13, 3), (13, 13)
    model = build_backbone(
        "unireplknet_a", num_classes=8, dims=(16, 32, 64, 128), depths=(2, 2, 2, 2), kernel_sizes=kernels
    )
    return model.to(device)


def inference(device, batch):
    """One image goes in single launches of whole stages, more layer by layer."""
    model = reparameterize(tiny(device)).to(torch.bfloat16).eval()
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    with torch.no_grad():
        return [model(x.contiguous(memory_format=torch.channels_last))]


def training(device):
    """A step in both layouts' large kernels, with statistics, gradients and the update."""
    model = tiny(device).train()
    optimizer = AdamW(model.parameters(), lr=1e-2, implementation="gpu")
    x = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(device)
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(x.contiguous(memory_format=torch.channels_last)).float().square().mean()
    loss.backward()
    optimizer.step()
    return [loss.detach(), *(p.detach() for p in model.parameters()), *model.buffers()]


def convolution(device, dtype, channels_last):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*s, generator=generator).to(device, dtype) for s in ((16, 32, 28, 28), (32, 1, 13, 13)))
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    x, w = x.requires_grad_(), w.requires_grad_()
    y = depthwise_conv2d(x, w, implementation="gpu")
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), (x, w))]


def same_on_both(run):
    """On the second GPU first, which has no context yet where this test comes first."""
    assert torch.cuda.current_device() == 0
    with watch() as ran:
        second = run(DEVICES[1])
    assert all(t.device == DEVICES[1] for t in second)
    assert torch.cuda.current_device() == 0
    with watch() as expected:
        first = run(DEVICES[0])
    assert list(ran) == list(expected)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_convolutions(dtype, channels_last):
    same_on_both(lambda device: convolution(device, dtype, channels_last))


@pytest.mark.parametrize("batch", [1, 16])
def test_a_model_for_inference(batch):
    same_on_both(lambda device: inference(device, batch))


def test_a_training_step():
    torch.backends.cudnn.deterministic = True
    try:
        same_on_both(training)
    finally:
        torch.backends.cudnn.deterministic = False


def test_blocks_in_a_graph_of_the_other_gpu():
    """A cooperative launch, whose counters are of the device."""

    def run(device):
        draw = lambda *size: torch.randn(*size, generator=generator).to(device, torch.bfloat16)  # noqa: E731
        generator, c, n, r = torch.Generator().manual_seed(0), 32, 128, 8
        shapes = ((c, 1, 3, 3), (c,), (r, c), (r,), (c, r), (c,), (n, c), (n,), (n,), (c, n), (c,))
        blocks = [BlockWeights(*(draw(*shape) / shape[-1] for shape in shapes)) for _ in range(2)]
        x = draw(1, c, 28, 28).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.cuda.device(device):
            once, graph = folded_blocks(x, blocks, implementation="gpu"), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
                captured = folded_blocks(x, blocks, implementation="gpu")
            for _ in range(3):
                graph.replay()
            torch.cuda.synchronize()
        assert torch.equal(once, captured)
        return [captured]

    same_on_both(run)


def test_gradients_are_captured_on_their_own_device():
    """Whichever GPU was the first to capture."""

    def run(device):
        weight = torch.nn.Parameter(torch.full((8,), 2.0, device=device))
        bias, x = torch.zeros(8, device=device), torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0))
        graphs = GradientGraphs(
            lambda batch: {"loss": layer_norm2d(batch[0], weight, bias, implementation="gpu").square().mean()},
            [weight],
            device,
        )
        for _ in range(3):
            graphs.accumulate((x.to(device),), 1.0)
        torch.cuda.synchronize(device)
        assert graphs.sums["loss"].item() > 0
        return [*graphs.gradients, graphs.sums["loss"]]

    same_on_both(run)
    same_on_both(run)
