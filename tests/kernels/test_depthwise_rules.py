"""Which CUDA kernel and tile a depthwise convolution takes, by its shape and the GPU: rules
and plans alone, nothing runs.
"""

from dataclasses import replace

import pytest
import torch

from tests.kernels.depthwise_problems import A10, H200, ODD_STRANDS, PROBLEMS, RTX_5090
from unipercept.kernels import cuda
from unipercept.kernels.depthwise_conv2d import gpu, gpu_plans
from unipercept.kernels.depthwise_conv2d import gpu_tiles as tiles


def test_images_run_where_there_are_enough_and_where_they_fit():
    """Whether the forward pass takes images as columns of its products, and the weight's gradient as their depth."""

    def takes(side, kernel, batch, limits=H200, channels_last=True, channels=2048):
        problem = gpu.Problem(torch.bfloat16, side, side, (kernel, kernel), 1, "zero", channels_last, channels_last, 1)
        return tuple(
            getattr(gpu.rule_of(operation)(problem, batch, channels, limits), "images", False)
            for operation in ("forward", "weight gradient")
        )

    assert takes(7, 13, 8) == takes(14, 13, 8) == takes(28, 13, 8) == (True, True)
    assert takes(14, 13, 7) == (False, False)
    assert takes(7, 13, 7) == takes(7, 3, 8) == takes(7, 3, 80) == (True, False)
    assert takes(7, 3, 16) == (False, False)  # neither few nor many
    assert takes(7, 13, 7, channels_last=False) == takes(7, 3, 1, channels_last=False) == (True, True)
    assert takes(7, 13, 7, A10) == (False, False)
    assert takes(7, 15, 8) == takes(7, 7, 8) == takes(5, 13, 8) == takes(7, 3, 8, channels_last=False) == (True, True)
    assert takes(7, 13, 8, channels_last=False, channels=2049) == (False, False)  # copies begin at 16 bytes
    assert takes(7, 13, 8, A10) == (True, True)
    assert takes(7, 15, 8, A10) == takes(7, 7, 8, A10) == takes(5, 13, 8, A10) == (True, False)
    assert takes(7, 13, 8, A10, channels_last=False) == (False, False)
    assert takes(20, 13, 8) == takes(56, 13, 8) == takes(56, 13, 8, channels_last=False) == (True, False)
    # Half of the multiprocessors would idle.
    assert takes(14, 13, 16, channels=320) == takes(28, 13, 8, channels=160) == (False, True)
    assert takes(14, 13, 8, A10) == takes(14, 13, 8, replace(H200, bulk_copies=False)) == (False, True)
    for side, kernel in [(14, 17), (17, 13), (28, 7), (56, 9)]:
        assert takes(side, kernel, 8) == (True, False)
    for side, kernel in [(56, 7), (28, 3), (14, 19), (14, 5)]:
        assert takes(side, kernel, 8) == (False, False)
    for side, kernel, images, taken in [(28, 5, 1, True), (14, 31, 2, True), (28, 33, 8, False), (14, 13, 1, False)]:
        assert takes(side, kernel, images, channels_last=False) == (taken, False)
    assert takes(28, 13, 8, A10) == takes(58, 13, 8) == takes(17, 13, 8, channels_last=False) == (False, False)


@pytest.mark.parametrize("channels_last", [True, False])
def test_strands_fit_where_the_rule_takes_them(channels_last):
    for height in range(1, 58):
        for width in range(1, 58):
            problem = gpu.Problem(torch.bfloat16, height, width, (13, 13), 1, "zero", channels_last, channels_last, 1)
            tile = gpu.forward_tile(problem, 64, 320, H200)
            plan = gpu_plans.forward_plan(problem, 64, 320, tile, H200)
            assert plan.shared_bytes <= H200.shared_bytes
            if plan.files in (gpu_plans.STRANDS_FILES, gpu_plans.STRANDS_FIRST_FILES):
                assert height % plan.defines["GROUPS"] == 0
                assert channels_last or width % 2 == 0  # a word is two columns


def test_contiguous_strands_of_an_odd_number_of_words_are_left_to_the_other_kernel():
    (batch, channels, height, width), kernel, _ = ODD_STRANDS[0]
    limits = replace(H200, multiprocessors=1)

    def files(columns):
        problem = gpu.problem_of(torch.empty(batch, channels, height, columns, dtype=torch.bfloat16), kernel)
        return gpu_plans.forward_plan(
            problem, batch, channels, gpu.forward_tile(problem, batch, channels, limits), limits
        ).files

    assert files(width + 2) == gpu_plans.STRANDS_FIRST_FILES
    assert files(width) not in (gpu_plans.STRANDS_FILES, gpu_plans.STRANDS_FIRST_FILES)


@pytest.mark.parametrize(("channels", "ranks"), [(320, 8), (512, 6), (640, 5), (768, 4), (1024, 0), (656, 0)])
def test_a_cluster_adds_up_a_3x3_gradient_whose_images_fit_into_it(channels, ranks):
    problem = gpu.Problem(torch.bfloat16, 7, 7, (3, 3), 1, "zero", True, True, 1)
    for batch in (8, 16, 16 * ranks or 64, 16 * ranks + 1):
        tile = gpu.weight_gradient_tile(problem, batch, channels, H200)
        plan = gpu_plans.weight_gradient_plan(problem, batch, channels, tile, H200)
        assert plan.shared_bytes <= H200.shared_bytes
        clusters = 16 <= batch <= 16 * ranks
        assert (plan.files == gpu_plans.OCTETS_CLUSTERS_FILES) == clusters
        if clusters:
            assert (plan.ranks, plan.parts, plan.blocks) == (ranks, 0, channels // 32 * ranks)


def test_3x3_takes_the_copy_engine_where_it_gains():
    """Forwards for maps larger than the L2 cache, backwards for equal groups of channels; from
    Hopper on, and for plain padding.
    """
    problem = gpu.problem_of(
        torch.empty(1, 80, 56, 56, dtype=torch.bfloat16).to(memory_format=torch.channels_last), (3, 3)
    )
    for batch, channels, limits, forward, gradient in [
        (64, 80, H200, tiles.Rows, tiles.Octets), (8, 80, H200, tiles.Narrow, tiles.Octets),
        (64, 80, A10, tiles.Narrow, tiles.Patches), (64, 80, RTX_5090, tiles.Rows, tiles.Patches), (64, 72, H200, tiles.Rows, tiles.Patches),
        (64, 8000, H200, tiles.Narrow, tiles.Octets),
    ]:  # fmt: skip
        assert type(gpu.forward_tile(problem, batch, channels, limits)) is forward
        assert type(gpu.weight_gradient_tile(problem, batch, channels, limits)) is gradient
    for other in (replace(problem, dilation=2), replace(problem, padding="circular"), replace(problem, kernel=(5, 5))):
        assert type(gpu.forward_tile(other, 64, 80, H200)) is tiles.Tile
        assert type(gpu.weight_gradient_tile(other, 64, 80, H200)) is tiles.Tile
    odd = gpu.problem_of(torch.empty(2, 12, 56, 56, dtype=torch.bfloat16), (3, 3))  # laid out anew
    assert type(gpu.forward_tile(odd, 2000, 12, H200)) is tiles.Tile


@pytest.mark.parametrize("limits", [H200, RTX_5090], ids=["H200", "RTX 5090"])
@pytest.mark.parametrize("height", [1, 2, 5, 7, 8, 9, 14, 28, 56, 200])
def test_tiles_for_the_copy_engine_fit(height, limits):
    for channels in (8, 16, 32, 64, 80, 96, 160, 320, 640, 1024):
        for width in (1, 3, 7, 8, 14, 28, 33, 56, 57, 112, 360):
            problem = gpu.Problem(torch.bfloat16, height, width, (3, 3), 1, "zero", True, True, 1)
            for batch in (1, 64, 4096):
                for operation in ("forward", "weight gradient"):
                    tile = gpu.rule_of(operation)(problem, batch, channels, limits)
                    plan = gpu_plans.plan_of(operation)(problem, batch, channels, tile, limits)
                    assert plan.shared_bytes <= limits.shared_bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_new_map_size_meets_a_kernel_that_is_already_there(dtype):
    """No compilation for each size: what is compiled in depends on a few steps of the size alone."""
    seen = set()
    for height in range(57, 257):
        problem = gpu.Problem(dtype, height, 2 * height, (13, 13), 1, "zero", True, True, 1)
        tile = gpu.forward_tile(problem, 1, 64, H200)
        seen.add(tuple(gpu_plans.forward_plan(problem, 1, 64, tile, H200).defines.items()))
    assert len(seen) <= 40


def test_a_tile_that_does_not_fit_is_never_chosen():
    small = replace(A10, shared_bytes=65_536, shared_bytes_total=66_560)
    for problem in PROBLEMS:
        for limits in (H200, A10, RTX_5090):
            tile = gpu.forward_tile(problem, 8, 64, limits)
            assert gpu_plans.forward_plan(problem, 8, 64, tile, limits).shared_bytes <= limits.shared_bytes
    with pytest.raises(cuda.KernelError, match="no tile fits"):
        gpu.forward_tile(replace(PROBLEMS[0], kernel=(51, 51)), 8, 64, small)
    with pytest.raises(cuda.KernelError, match="no tile fits"):
        gpu.forward_tile(replace(PROBLEMS[0], dtype=torch.float32, kernel=(51, 51), dilation=9), 8, 64, small)


def test_small_maps_leave_the_copy_engine_where_its_stage_does_not_fit():
    """Tile and plan are of one kernel: there it is that of the GPUs before Hopper."""
    problem = gpu.Problem(torch.bfloat16, 7, 7, (13, 13), 1, "zero", True, True, 1)
    for limits, files in ((H200, gpu_plans.SMALL_FILES), (replace(H200, shared_bytes=24_000), gpu_plans.IMAGES_FILES)):
        tile = gpu.forward_tile(problem, 8, 16, limits)
        plan = gpu_plans.forward_plan(problem, 8, 16, tile, limits)
        assert plan.files == files
        assert plan.shared_bytes <= limits.shared_bytes


def test_torch_is_left_what_it_does_faster():
    """As measured: plain 3x3 kernels on contiguous 7x7 maps, but for the weight's gradient and
    on Hopper; float32 up to 5x5.
    """
    small, large = (torch.empty(2, 8, side, side, dtype=torch.bfloat16) for side in (7, 56))
    last = small.contiguous(memory_format=torch.channels_last)
    assert gpu.slower_than_torch(small, 3, 3, 1, "forward", bulk_copies=False)
    assert not gpu.slower_than_torch(small, 3, 3, 1, "forward", bulk_copies=True)
    assert gpu.slower_than_torch(small[:, :5], 3, 3, 1, "forward", bulk_copies=True)
    assert not gpu.slower_than_torch(small, 3, 3, 1, "weight gradient")
    assert not gpu.slower_than_torch(torch.empty(2, 8, 14, 14, dtype=torch.bfloat16), 3, 3, 1, "forward")
    assert not gpu.slower_than_torch(last, 3, 3, 1, "weight gradient")
    assert not gpu.slower_than_torch(last, 3, 3, 1, "forward")
    assert gpu.slower_than_torch(last, 3, 3, 1, "input gradient")
    assert not gpu.slower_than_torch(torch.cat([last, last]), 3, 3, 1, "input gradient")
    assert not gpu.slower_than_torch(large, 3, 3, 1, "weight gradient")
    assert not gpu.slower_than_torch(small, 13, 13, 1, "forward")
    assert not gpu.slower_than_torch(last, 3, 3, 5, "weight gradient")
    small, last = small.float(), last.float()
    assert gpu.slower_than_torch(last, 5, 5, 1, "forward")
    assert not gpu.slower_than_torch(last, 7, 7, 1, "forward")
    assert gpu.slower_than_torch(small, 13, 13, 1, "forward")
    assert not gpu.slower_than_torch(small, 13, 13, 1, "weight gradient")


def test_measured_tiles_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    tiles.MEASURED.forget()
    x = torch.empty(8, 16, 7, 7, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    problem = gpu.problem_of(x, (13, 13))
    name = tiles.name_of("forward", problem, 16)
    assert tiles.measured_tile("forward", problem, 8, 16, "A GPU") is None
    tile, narrow = tiles.Tile(16, 4, 7, 1, 0, 8), tiles.Narrow(4, 4, 7)
    path = tiles.MEASURED.remember("A GPU", {name: tile, "another": narrow})
    assert path.name == "depthwise_conv2d-A_GPU.json"
    assert tiles.measured_tile("forward", problem, 8, 16, "A GPU") == tile
    assert tiles.measured_tile("forward", problem, 3, 16, "A GPU") is None  # the tile takes four images at a time
    assert tiles.MEASURED.find("another", "A GPU") == narrow
    path.write_text('{"another": {"quads": 1}}')
    tiles.MEASURED.forget()
    assert tiles.MEASURED.find("another", "A GPU") is None
    tiles.MEASURED.forget()


def test_first_units_are_asked_for_in_order_where_a_team_has_a_second():
    def in_order(side, batch, channels):
        problem = gpu.Problem(torch.bfloat16, side, side, (13, 13), 1, "zero", True, True, 1)
        tile = gpu.forward_tile(problem, batch, channels, H200)
        return gpu_plans.forward_plan(problem, batch, channels, tile, H200).defines["IN_ORDER"]

    assert in_order(14, 256, 320) == in_order(28, 128, 160) == 1
    assert in_order(14, 128, 320) == in_order(28, 64, 160) == in_order(56, 256, 80) == 0
