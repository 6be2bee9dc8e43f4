"""Compile every Triton kernel of the feed-forward for a GPU that need not be there; a script that the tests run.

    python tests/kernels/compile_feed_forward.py 90 bfloat16 80 56 [once]

Capability, type, channels, and the side of the map; `once` compiles only the first launch of each kernel. The launchers
run as they are, on a CPU; each launch is compiled instead. One line a kernel: its name, and the bytes of shared memory
that it needs. A kernel that needs more than the GPU has fails.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from unipercept.kernels.feed_forward import gpu, gpu_backward, gpu_backward_kernels, gpu_kernels, gpu_tiles
from unipercept.kernels.feed_forward.reference import Gradients, Norm, Saved, Weights

SHARED_BYTES = {80: 163 * 1024, 100: 227 * 1024, 90: 227 * 1024} | dict.fromkeys((86, 89, 120), 99 * 1024)
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class Compiler:
    """Stands in for a kernel: a launch compiles it."""

    def __init__(self, kernel: triton.JITFunction, capability: int, once: bool) -> None:
        self.kernel, self.capability, self.once = kernel, capability, once
        self.is_done = False

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *args, num_warps: int, num_stages: int = 3, **constants) -> None:
        if self.once and self.is_done:
            return
        self.is_done = True
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
        assert set(given) == set(self.kernel.arg_names), f"{self.kernel.__name__} takes {self.kernel.arg_names}"
        values = {name: given[name] for name in self.kernel.arg_names}
        signature = {name: "constexpr" if name in constants else self.type_of(value) for name, value in values.items()}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(values) if signature[name].startswith("*")}
        constexprs = {(i,): value for i, (name, value) in enumerate(values.items()) if name in constants}
        compiled = triton.compile(
            ASTSource(self.kernel, signature, constexprs, aligned),
            target=GPUTarget("cuda", self.capability, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        assert compiled.asm["cubin"]
        sys.stdout.write(f"{self.kernel.__name__} {compiled.metadata.shared}\n")
        assert compiled.metadata.shared <= SHARED_BYTES[self.capability], "more shared memory than there is"

    @staticmethod
    def type_of(value: object) -> str:
        if isinstance(value, torch.Tensor):
            return f"*{TYPES[value.dtype]}"
        return "i32" if isinstance(value, int) else "fp32"


def main() -> None:
    capability, dtype, channels, side = (
        int(sys.argv[1]),
        getattr(torch, sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
    )
    gpu_tiles._device = lambda device: ("offline", SHARED_BYTES[capability])
    for module in (gpu_kernels, gpu_backward_kernels):
        for name in dir(module):
            if name.endswith("_kernel"):
                setattr(module, name, Compiler(getattr(module, name), capability, sys.argv[5:] == ["once"]))
    hidden, squeezed = 4 * channels, channels // 4
    sizes = (
        (squeezed, channels), squeezed, (channels, squeezed), channels, (hidden, channels), hidden, hidden, hidden,
        (channels, hidden), channels,
    )  # fmt: skip
    weights = Weights(*(torch.zeros(size, dtype=dtype) for size in sizes))
    y = torch.zeros(2, side, side, channels, dtype=dtype)
    gpu.feed_forward_gpu(y, y, None, weights)
    gate, hidden_map = torch.zeros(2, channels, dtype=dtype), torch.zeros(2, side, side, hidden, dtype=dtype)
    norm, mean, channel = torch.zeros(2, hidden), torch.zeros(2, channels), torch.zeros(channels)
    saved = Saved(mean, gate, torch.zeros(2, squeezed), hidden_map, norm.to(dtype), norm, y, mean, hidden_map)
    for before, by_image in ((None, True), (Norm(channel, channel, channel, channel, 1e-5), False)):
        for module in (gpu, gpu_backward):
            module.sums_by_image = lambda y, by_image=by_image: by_image
        gpu.feed_forward_train_gpu(y, None, weights, before)
        gpu_backward.feed_forward_backward_gpu(y, y, saved, weights, before, Gradients(y, *weights, channel, channel))


if __name__ == "__main__":
    main()
