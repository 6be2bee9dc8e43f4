"""Every source of random numbers (python, numpy, torch, CUDA): seed them, and take their state with a checkpoint."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def seed_everything(seed: int) -> None:
    """Seed all generators of this process; call it before building a model, so that its weights repeat too."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - transforms of users and libraries draw from the global generator
    torch.manual_seed(seed)


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, well spread where the numbers are small and close together."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def random_state() -> RandomState:
    """State of all generators, made of tensors, numbers and strings only: it loads with weights_only=True."""
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # noqa: NPY002 - as above
    version, internal, next_gauss = random.getstate()
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached_gaussian],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
    }


def set_random_state(state: RandomState) -> None:
    """The inverse of `random_state`."""
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    name, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def preserved_randomness(seed: int | None = None) -> Iterator[None]:
    """Random draws inside the block do not affect the state outside.

    `seed` seeds the block; None continues from the current state.

    For use around every sample, it takes states as they are, and leaves out torch.manual_seed: that asks each kind of
    accelerator for its generators, 0.1 ms on a CPU.
    """
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - as above
    generators = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    cuda = [generator.get_state() for generator in generators]  # of all GPUs: a draw may be on another than the current
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - as above
        torch.default_generator.manual_seed(seed)
        for generator in generators:
            generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as above
        torch.set_rng_state(pytorch)
        for generator, state in zip(generators, cuda, strict=True):
            generator.set_state(state)
