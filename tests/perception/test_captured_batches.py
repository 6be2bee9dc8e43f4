"""Batches are varied on the device with what its generator draws: a CUDA graph can hold that,
and draws anew in each replay.
"""

from collections.abc import Callable

import pytest
import torch

from unipercept.kernels.streams import capture
from unipercept.perception import augment
from unipercept.perception.joint_step import JointStep
from unipercept.perception.networks import from_scratch
from unipercept.perception.packs import Packs
from unipercept.perception.settings import RECIPES, MapSettings, Recipe
from unipercept.perception.task import Task
from unipercept.perception.universal import UniversalConfig
from unipercept.perception.universal_data import TaskSpec
from unipercept.perception.universal_network import SharedNetwork
from unipercept.train import DivergedError
from unipercept.train.ahead import GradientGraphs

COUNT, CLASSES = 12, 3
MAPS = {
    "image": MapSettings("image", size=32),
    "audio": MapSettings("audio", size=32, length=32, sample_rate=8_000),
    "video": MapSettings("video", size=32, n_frames=4),
    "pointcloud": MapSettings("pointcloud", size=32, n_points=256),
    "timeseries": MapSettings("timeseries", size=32),
}


def task_of(modality: str, device: str, recipe: str | None = None) -> Task:
    maps, generator = MAPS[modality], torch.Generator().manual_seed(0)
    lengths = torch.ones(COUNT, dtype=torch.long)
    if modality == "audio":
        values = 0.1 * torch.randn(COUNT, maps.pipeline_config().window_length, generator=generator)
        lengths = lengths * values.shape[1]
    elif modality == "pointcloud":
        values = torch.randn(COUNT, maps.n_points, 3, generator=generator)
    elif modality == "timeseries":
        values = torch.randn(COUNT, 1, 32, 32, generator=generator)
    else:
        values = torch.randint(0, 256, (COUNT, 3, 32, 32), generator=generator, dtype=torch.uint8)
    targets = torch.arange(COUNT) % CLASSES
    packs = Packs(values, lengths, torch.arange(COUNT), targets, tuple(map(str, range(COUNT))))
    return Task(packs, packs, maps, RECIPES[recipe or modality], CLASSES, torch.device(device))


class Remembers(torch.nn.Module):
    """A network of one weight that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(CLASSES))
        self.seen = torch.zeros(())

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        self.seen = maps
        return maps.mean(dim=(1, 2, 3))[:, None] * self.weight


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [*MAPS, "ambience"])
def test_a_graph_varies_batches_as_launches_do_and_each_replay_anew(kind):
    modality = "audio" if kind == "ambience" else kind
    task, device = task_of(modality, "cuda", kind), torch.device("cuda")
    network = Remembers().to(device)
    graphs = GradientGraphs(lambda batch: {"loss": task.loss(network, batch)}, [network.weight], device)
    batch = task.training_positions().batch(range(8))
    torch.cuda.manual_seed(5)
    found = []
    for _ in range(3):
        graphs.accumulate(batch, 1.0)
        found.append(network.seen.clone())
    torch.cuda.manual_seed(5)
    expected = [task.training_batch(*batch)[0] for _ in range(3)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found[0], found[1])


class Garbage:
    """A CUDA graph and its memory in a cycle, which only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself, self.graph = self, torch.cuda.CUDAGraph()
        x = torch.ones(1000, device="cuda")
        with capture(self.graph):
            self.y = x + torch.rand_like(x)


def assert_replays_are_launches(
    replayed: Callable[[], list[torch.Tensor]], launched: Callable[[], list[torch.Tensor]], buffers: list[torch.Tensor]
) -> None:
    """Gradients and statistics of both, each time from the same state and random numbers."""
    replayed()  # captures
    for _ in range(3):
        Garbage()
        before, random = [b.clone() for b in buffers], torch.cuda.get_rng_state()
        found, after = replayed(), [b.clone() for b in buffers]
        torch._foreach_copy_(buffers, before)
        torch.cuda.set_rng_state(random)
        expected = launched()
        assert all(bool(gradient.isfinite().all()) for gradient in found)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(after, buffers, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", MAPS)
def test_a_replayed_step_has_the_bits_of_its_launches_whatever_is_collected_between(kind):
    task, device = task_of(kind, "cuda"), torch.device("cuda")
    network = from_scratch(task.recipe, task.maps.in_channels, CLASSES).to(device).train()
    parameters, buffers = list(network.parameters()), list(network.buffers())
    batch = task.training_positions().batch(range(8))

    def loss(rows):
        with torch.autocast("cuda", torch.bfloat16):
            return task.loss(network, rows)

    graphs = GradientGraphs(lambda rows: {"loss": loss(rows)}, parameters, device, buffers)

    def replayed():
        graphs.clear()
        graphs.accumulate(batch, 1.0)
        return [gradient.clone() for gradient in graphs.gradients]

    assert_replays_are_launches(replayed, lambda: list(torch.autograd.grad(loss(batch), parameters)), buffers)


def joint_step(kinds: list[str], device: str) -> tuple[JointStep, torch.Tensor]:
    """A step of these tasks with networks of one block a stage, and the positions of a batch."""
    jobs = {kind: task_of(kind, device) for kind in kinds}
    tasks = [TaskSpec(kind, MAPS[kind], RECIPES[kind], 8) for kind in kinds]
    config = UniversalConfig(architecture="small")
    shared = SharedNetwork(tasks, dict.fromkeys(kinds, CLASSES), config, torch.device(device)).train()
    step = JointStep(shared, tasks, jobs, config.weight_decay, torch.device(device))
    (rows,) = jobs[kinds[0]].training_positions().batch(range(8))
    return step, rows


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", MAPS)
def test_a_replayed_gradient_of_the_joint_training_has_the_bits_of_its_launches(kind):
    step, rows = joint_step([kind], "cuda")

    def replayed():
        step.graphs.clear()
        step.accumulate(kind, rows)
        return [found.clone() for found in step.graphs.gradients]

    def launched():
        found = torch.autograd.grad(step.graphs.computed((rows,))["loss"], step.graphs.parameters)
        return [part.contiguous() for part in found]

    assert_replays_are_launches(replayed, launched, step.graphs.buffers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_replayed_updates_of_the_joint_training_have_the_bits_of_their_launches():
    step, rows = joint_step(list(MAPS), "cuda")
    rates = iter([1e-2, 3e-3, 1e-3, 2e-3, 1e-4])
    for n, rate in enumerate(rates):
        for kind in MAPS:
            step.accumulate(kind, rows)
        if n:
            Garbage()
        changed = changed_by(step)
        before = [tensor.clone() for tensor in changed]
        step.apply(rate, n)  # launched, captured, and then replayed
        found = [tensor.clone() for tensor in changed_by(step)]
        if n == 0:
            continue  # the moments came into being
        torch._foreach_copy_(changed, before)
        step.update._update()
        assert all(torch.equal(one, other) for one, other in zip(found, changed, strict=True))
        assert not torch.equal(before[0], found[0])
    assert step.update.read()[2] is None


def changed_by(step: JointStep) -> list[torch.Tensor]:
    """Weights, averages, moments and counts of steps, gradients, and the checks of a step."""
    moments = [value for state in step.optimizer.state.values() for value in state.values()]
    checks = [step.update.check.is_bad, step.update.check.n_good]
    weights = [parameter.detach() for parameter in step.graphs.parameters]
    return [
        *weights,
        *step.average.average.values(),
        *moments,
        *step.graphs.gradients,
        *step.graphs.sums.values(),
        *checks,
    ]


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)
def test_a_joint_step_that_is_not_finite_changes_no_weight_and_the_next_look_says_so(device):
    step, rows = joint_step(["image", "timeseries"], device)
    for n in range(3):
        step.accumulate("image", rows)
        step.accumulate("timeseries", rows)
        step.apply(1e-3, n)
    assert step.shown(3).startswith("image ")
    weights = [parameter.detach().clone() for parameter in step.graphs.parameters]
    step.jobs["timeseries"].values[:] = float("nan")
    for n in range(3, 5):
        step.accumulate("image", rows)
        step.accumulate("timeseries", rows)
        step.apply(1e-3, n)
    assert all(torch.equal(one, other) for one, other in zip(weights, step.graphs.parameters, strict=True))
    with pytest.raises(
        DivergedError, match=r"no longer finite at step 5: image .*, timeseries nan; lower the learning"
    ):
        step.shown(5)


@pytest.mark.parametrize("kind", [*MAPS, "ambience"])
def test_a_batch_repeats_with_the_state_of_the_generator(kind):
    task = task_of("audio" if kind == "ambience" else kind, "cpu", kind)
    (rows,) = task.training_positions().batch(range(8))
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(task.training_batch(rows))
    assert all(torch.equal(one, other) for one, other in zip(made[0], made[1], strict=True))
    assert not torch.equal(made[0][0], made[2][0])


@pytest.mark.parametrize("recipe", [Recipe(mixup=1.0), Recipe(cutmix=1.0), Recipe(mixup=0.4, cutmix=0.4)])
def test_labels_are_mixed_by_the_share_of_the_pixels(recipe):
    torch.manual_seed(0)
    labels = torch.eye(6)
    pixels = labels[:, :, None, None].expand(6, 6, 20, 24)  # picture i is 1 in channel i alone
    shares = []
    for _ in range(40):
        mixed, soft = augment.mix_pictures(pixels, labels, recipe)
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), soft)
        torch.testing.assert_close(soft.sum(dim=0), torch.ones(6))  # the partners are an order of the batch
        shares.append(float(soft.diagonal().min()))
        if recipe.cutmix == 1.0:
            assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    assert len(set(shares)) > 8


def test_a_picture_alone_and_a_recipe_without_mixing_stay_as_they_are():
    pixels, labels = torch.rand(2, 3, 8, 8), torch.eye(2)
    assert augment.mix_pictures(pixels, labels, Recipe())[0] is pixels
    assert augment.mix_pictures(pixels[:1], labels[:1], Recipe(mixup=1.0))[0].shape == (1, 3, 8, 8)
