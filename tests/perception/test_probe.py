"""Baselines are what their papers say, and a probe finds what is there to be found."""

import numpy as np
import torch

from unipercept.datasets.base import LabelledSet, SetCard
from unipercept.perception import probe
from unipercept.perception.networks import fit_probe
from unipercept.perception.probe import cloud_features, colour_histogram, compare_vectors, gradient_histograms


def test_a_probe_separates_what_is_linear_and_keeps_the_units_of_its_features():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator) * torch.tensor([1, 10, 100, 0.1, 1.0]) + 7
    y = ((x[:, 1] - 7) / 10 + (x[:, 3] - 7) / 0.1 > 0).long()
    weight, bias, _ = fit_probe(x[:200], y[:200], x[200:250], y[200:250], 2)
    assert ((x[250:] @ weight.T + bias).argmax(1) == y[250:]).float().mean() > 0.93


def test_neighbours_vote():
    train = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    said = probe.nearest_neighbours(train, torch.tensor([0, 0, 1, 1]), torch.tensor([[0.8, 0.1], [0.0, 0.7]]), 2, k=3)
    assert said.tolist() == [0, 1]


def test_edges_fall_into_the_bin_of_their_direction():
    ramp = torch.arange(32.0).repeat(32, 1) * 8
    histogram = gradient_histograms(ramp.expand(1, 3, 32, 32))
    bins = histogram.reshape(-1, 9, 4).sum(dim=(0, 2))
    assert bins.argmax() == 0  # the gradient runs along x: direction 0
    turned = gradient_histograms(ramp.T.expand(1, 3, 32, 32)).reshape(-1, 9, 4).sum(dim=(0, 2))
    assert turned.argmax() == 4  # 90 degrees lie in the middle of nine bins of 180


def test_histograms_and_shapes_are_those_of_their_definition():
    red = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 255
    assert colour_histogram(red)[0].argmax() == 3 * 16
    assert float(colour_histogram(red).sum()) == 1
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(1, 4000, 3, generator=generator) * torch.tensor([10.0, 0.01, 0.01])
    plane = torch.randn(1, 4000, 3, generator=generator) * torch.tensor([10.0, 10.0, 0.01])
    linear, planar = cloud_features(line)[0, 6:9], cloud_features(plane)[0, 6:9]
    assert linear[0] > 0.99
    assert planar[1] > 0.9
    assert cloud_features(line).shape == (1, 16)


def test_the_comparison_names_model_and_baselines(monkeypatch):
    card = SetCard("made", "image", "here", "own", True, ("dark", "bright"), ("train", "validation", "test"), "", "")

    def part(seed):
        rng = np.random.default_rng(seed)
        targets = np.arange(20) % 2
        pictures = [(rng.integers(0, 90, (32, 32, 3)) + 120 * t).astype(np.uint8) for t in targets]
        return LabelledSet(card, "", targets, tuple(map(str, range(20))), lambda i: pictures[i])

    parts = {name: part(seed) for seed, name in enumerate(card.splits)}
    monkeypatch.setattr(probe, "open_parts", lambda *_a, **_k: (parts, ""))
    found = compare_vectors("unireplknet_a", "made", device="cpu")
    assert list(found) == ["unireplknet_a", "principal components of the map", "HOG", "colour histogram"]
    assert found["colour histogram"]["probe"] == 1.0
    assert found["unireplknet_a"]["probe"] > 0.9
