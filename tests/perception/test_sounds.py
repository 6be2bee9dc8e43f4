"""Sounds in training: those of two classes are heard in the share that their label says, filters leave
silence silent, ambience loops.
"""

import math

import pytest
import torch

from unipercept.errors import InputError
from unipercept.perception import augment
from unipercept.perception.packs import MapMaker, Packs
from unipercept.perception.run import default_recipe
from unipercept.perception.settings import RECIPES, MapSettings, Recipe
from unipercept.perception.task import Task, recompute_statistics
from unipercept.pipelines.mel import POWER_FLOOR

LENGTH = 1_000


def tones(*amplitudes):
    """A tone of each amplitude, of a frequency of its own: orthogonal."""
    time = torch.arange(LENGTH) * 2 * math.pi / LENGTH
    return torch.stack([a * torch.sin(time * 10 * (i + 1)) for i, a in enumerate(amplitudes)])


def test_two_classes_are_heard_in_the_share_of_their_labels_however_loud_they_were():
    torch.manual_seed(0)
    samples, lengths = tones(1.0, 0.01), torch.full((2,), LENGTH)
    for _ in range(20):
        mixed, labels = augment.mix_between(samples, lengths, torch.eye(2), torch.tensor([0, 1]), 1.0)
        heard = (mixed @ tones(1.0, 1.0).T * 2 / LENGTH).abs() / torch.tensor([1.0, 0.01])  # weights of both
        levels = heard * torch.tensor([1.0, 0.01])
        assert torch.allclose(levels[:, 0] / levels.sum(dim=1), labels[:, 0], atol=1e-3)
        assert torch.allclose(heard.square().sum(dim=1), torch.ones(2), atol=1e-3)
        assert torch.allclose(labels.sum(dim=1), torch.ones(2))


def test_partners_are_of_another_class_where_there_is_one_and_of_the_same_where_not():
    torch.manual_seed(0)
    targets = torch.tensor([0, 0, 0, 0, 1])
    _, labels = augment.mix_between(torch.randn(5, 50), torch.full((5,), 50), torch.eye(2)[targets], targets, 1.0)
    assert ((labels > 0) & (labels < 1)).all()
    same = torch.zeros(5, dtype=torch.int64)
    _, labels = augment.mix_between(torch.randn(5, 50), torch.full((5,), 50), torch.eye(2)[same], same, 1.0)
    assert torch.allclose(labels[:, 0], torch.ones(5))
    kept, labels = augment.mix_between(tones(1.0, 1.0), torch.full((2,), LENGTH), torch.eye(2), torch.arange(2), 0.0)
    assert torch.equal(labels, torch.eye(2))
    assert torch.allclose(kept, tones(1.0, 1.0), atol=1e-6)


def test_a_sound_gets_one_of_its_own_class_added_at_most_as_loud_as_itself_and_keeps_its_energy():
    torch.manual_seed(0)
    samples, lengths, targets = tones(1.0, 0.01, 0.5), torch.full((3,), LENGTH), torch.tensor([0, 0, 1])
    for _ in range(20):
        mixed = augment.mix_within(samples, lengths, targets, 1.0)
        heard = (mixed @ tones(1.0, 1.0, 1.0).T * 2 / LENGTH).abs()
        share = heard[0, 1] / heard[0, 0]
        assert 10 ** (-augment.SOFTER / 20) - 1e-3 <= float(share) <= 1 + 1e-3
        assert torch.allclose(heard.square().sum(dim=1), torch.tensor([1.0, 0.01, 0.5]).square(), rtol=1e-3)
        assert float(heard[:2, 2].max()) < 1e-5
        assert torch.allclose(mixed[2], samples[2])  # alone of its class
    assert torch.allclose(augment.mix_within(samples, lengths, targets, 0.0), samples)
    assert torch.allclose(augment.mix_within(samples[:1], lengths[:1], targets[:1], 1.0), samples[:1])


def test_a_partner_of_the_same_class_is_cut_to_the_length_of_the_first():
    torch.manual_seed(0)
    samples = tones(1.0, 1.0)
    samples[0, 400:] = 0
    mixed = augment.mix_within(samples, torch.tensor([400, LENGTH]), torch.zeros(2, dtype=torch.int64), 1.0)
    assert float(mixed[0, 400:].abs().max()) == 0.0


def test_silence_can_be_mixed_too():
    samples = torch.cat([tones(1.0), torch.zeros(1, LENGTH)])
    mixed, _ = augment.mix_between(samples, torch.full((2,), LENGTH), torch.eye(2), torch.arange(2), 1.0)
    assert mixed.isfinite().all()
    same = torch.zeros(2, dtype=torch.int64)
    assert augment.mix_within(samples, torch.full((2,), LENGTH), same, 1.0).isfinite().all()


def test_a_filter_tilts_bins_alike_in_all_frames_and_leaves_silence_and_padding():
    torch.manual_seed(0)
    floor = math.log(POWER_FLOOR)
    energies = torch.full((3, 64, 10), -4.0)
    energies[:, :, 6:8], energies[:, :, 8:] = floor, 0.0
    filtered = augment.equalise(energies, 5.0)
    change = filtered - energies
    assert torch.equal(change[:, :, 6:], torch.zeros(3, 64, 4))
    assert torch.allclose(change[:, :, :6], change[:, :, :1].expand(-1, -1, 6))
    assert float(change[0, :, 0].std()) > 0.1
    assert not torch.allclose(change[0], change[1])
    assert torch.equal(augment.equalise(energies, 0.0), energies)


def test_ambience_that_is_faster_goes_on_from_its_beginning():
    torch.manual_seed(0)
    samples, lengths = torch.ones(40, 100), torch.full((40,), 80)
    samples[:, 80:] = 0
    looped, after = augment.change_speed(samples, lengths, 1.5, loops=True)
    assert torch.equal(after, lengths)
    assert torch.allclose(looped, samples)
    ended, after = augment.change_speed(samples, lengths, 1.5)
    assert int(after.min()) < 60
    assert float(ended.sum(dim=1).min()) < 60


def test_ambience_trains_the_small_network_on_any_device():
    for device in ("cpu", "cuda"):
        assert default_recipe("ambience", torch.device(device)).architecture == "small"
    assert default_recipe("audio", torch.device("cuda")).architecture == "unireplknet_a"
    with pytest.raises(InputError, match="classifiers are trained on image, audio"):
        default_recipe("smell", torch.device("cpu"))


def test_a_batch_of_sounds_has_soft_labels_of_two_classes():
    torch.manual_seed(0)
    maps = MapSettings("audio", size=16, length=32)
    count = maps.pipeline_config().window_length
    values, rows = torch.randn(8, count) * 0.1, torch.arange(8)
    packs = Packs(values, torch.full((8,), count), rows, rows % 4, tuple("abcdefgh"))
    recipe = RECIPES["ambience"].changed(between=1.0, label_smoothing=0.0)
    made, labels = Task(packs, packs, maps, recipe, 4, torch.device("cpu")).training_batch(rows)
    assert made.shape == (8, 1, 16, 32)
    assert made.isfinite().all()
    assert ((labels > 0).sum(dim=1) == 2).all()
    plain, _ = MapMaker(maps)(values, packs.lengths)
    assert not torch.allclose(made, plain, atol=0.1)


def test_settled_statistics_are_those_of_clips_that_are_not_mixed():
    torch.manual_seed(0)
    maps = MapSettings("audio", size=16, length=32)
    count, rows = maps.pipeline_config().window_length, torch.arange(8)
    packs = Packs(torch.randn(8, count) * 0.1, torch.full((8,), count), rows, rows % 4, tuple("abcdefgh"))
    task = Task(packs, packs, maps, Recipe(batch_size=8, between=1.0), 4, torch.device("cpu"))
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(1))
    recompute_statistics(network, task, 3)
    plain, _ = MapMaker(maps)(packs.values, packs.lengths)
    assert torch.allclose(network[0].running_mean, plain.mean()[None], atol=1e-4)
    assert network[0].momentum == 0.1
    assert not network.training
