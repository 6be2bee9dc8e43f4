"""Random draws of a sample leave nothing behind."""

import torch

from unipercept.train.randomness import preserved_randomness


def test_draws_on_any_gpu_are_undone(monkeypatch):
    """Of those that are not the current one, too."""
    generators = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)

    def draw():
        return [torch.rand(3, generator=generator) for generator in generators]

    before = [generator.get_state() for generator in generators]
    with preserved_randomness(7):
        first = draw()
    assert all(torch.equal(a, g.get_state()) for a, g in zip(before, generators, strict=True))
    with preserved_randomness(7):
        assert all(torch.equal(a, b) for a, b in zip(first, draw(), strict=True))
