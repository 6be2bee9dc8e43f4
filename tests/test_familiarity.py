"""What is usual to a head: distances are Mahalanobis', one view is enough to be out of distribution, and
files keep what was measured.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from unipercept import shared_weights
from unipercept.errors import InputError, WeightsError
from unipercept.familiarity import (
    OWN_FROM,
    Familiarity,
    familiarity_beside,
    fit_familiarity,
    look_familiar,
    save_beside,
    texture_of,
)
from unipercept.models import load_model


def drawn(count, seed):
    """Vectors of two classes and textures that vary together, with the classes."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    wide = torch.randn(count, 1, generator=generator) * torch.ones(6)
    vectors = torch.randn(count, 6, generator=generator) * 0.1 + 5 * targets[:, None] * torch.eye(6)[0] + wide
    return (vectors, torch.randn(count, 4, generator=generator) + wide[:, :1]), targets


@pytest.fixture(scope="module")
def found():
    return fit_familiarity(*drawn(390, 0), drawn(390, 1)[0])


def test_a_distance_is_mahalanobis_of_the_scaled_views():
    (vectors, textures), targets = drawn(390, 0)
    found = fit_familiarity((vectors, textures), targets, (vectors, textures))
    deviation = vectors.double().std(dim=0, correction=0)
    scaled = vectors.double() / deviation
    means = torch.stack([scaled[targets == k].mean(dim=0) for k in (0, 1)])
    within = scaled - means[targets]
    inverse = torch.linalg.inv(within.T @ within / 390)
    away = (torch.randn(9, 6, generator=torch.Generator().manual_seed(2)) * 3).double()
    exact = torch.stack(
        [((away / deviation - mean) @ inverse * (away / deviation - mean)).sum(dim=1) for mean in means]
    )
    # Five of six directions are kept, so the sixth is exact too; half precision of means
    # and directions is what differs.
    assert torch.allclose(found.content.distance(away), (exact.amin(dim=0) / 6).sqrt(), rtol=0.02)


def test_nearly_all_that_is_usual_is_called_so_and_either_view_can_be_out_of_distribution(found):
    vectors, textures = drawn(2_000, 3)[0]
    assert 0.03 < float((found.ood_score(vectors, textures) > 1).double().mean()) < 0.08
    between = vectors + 2.5 * torch.eye(6)[0]
    assert (found.ood_score(between, textures) > 1).all()
    assert (found.ood_score(vectors, textures + 10 * torch.eye(4)[1]) > 1).all()


def kinds(count, seed):
    """Two kinds by turns, of which one varies ten times as much as the other."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    spread = torch.where(targets == 1, 1.0, 0.1)[:, None]
    vectors = 9 * targets[:, None] * torch.eye(6)[0] + spread * torch.randn(count, 6, generator=generator)
    return (vectors, spread * torch.randn(count, 4, generator=generator)), targets


@pytest.mark.parametrize("count", [2 * OWN_FROM - 2, 2 * OWN_FROM])
def test_classes_with_enough_recordings_have_a_covariance_each(count):
    train, targets = kinds(count, 0)
    found = fit_familiarity(train, targets, kinds(1_000, 1)[0])
    is_own = count == 2 * OWN_FROM
    assert len(found.content.directions) == len(found.texture.variances) == (2 if is_own else 1)
    views, kind = kinds(4_000, 2)
    flagged = found.ood_score(*views) > 1
    narrow, wide = (float(flagged[kind == one].double().mean()) for one in (0, 1))
    assert (narrow > 0.02) == is_own  # under one covariance no member of the narrow kind is ever flagged
    assert wide < 0.12
    # What lies as far from a narrow kind as members of the wide one from each other is flagged by both.
    beside = views[0][kind == 0] + 2 * torch.eye(6)[1], views[1][kind == 0]
    assert bool((found.ood_score(*beside) > 1).all()) == is_own


def test_files_of_one_covariance_for_all_classes_are_read(found):
    before = {
        key: value[0] if key.endswith(("directions", "variances")) else value for key, value in found.tensors().items()
    }
    views = drawn(50, 4)[0]
    assert torch.equal(Familiarity.from_tensors(before).ood_score(*views), found.ood_score(*views))


def test_what_is_stored_says_the_same(found):
    again = Familiarity.from_tensors(found.tensors())
    views = drawn(50, 4)[0]
    assert torch.equal(again.ood_score(*views), found.ood_score(*views))


def test_a_damaged_file_beside_the_weights_is_one_line(found, tmp_path):
    save_beside(tmp_path / "model.safetensors", found)
    beside = tmp_path / "familiar.safetensors"
    assert torch.equal(familiarity_beside(tmp_path / "model.safetensors").limits, found.limits)
    for content in (beside.read_bytes()[:-100], b""):
        beside.write_bytes(content)
        with pytest.raises(WeightsError, match="is damaged"):
            familiarity_beside(tmp_path / "model.safetensors")
    save_file({"limits": torch.ones(3)}, beside)
    with pytest.raises(WeightsError, match="is damaged"):
        familiarity_beside(tmp_path / "model.safetensors")


def test_a_class_without_recordings_and_a_dead_channel_are_no_obstacle():
    (vectors, textures), targets = drawn(40, 0)
    textures[:, 2] = 7.0
    found = fit_familiarity((vectors, textures), targets * 3, (vectors, textures))
    assert found.content.means.shape == (2, 6)
    assert found.ood_score(vectors, textures).isfinite().all()


def test_a_texture_is_the_mean_and_the_deviation_of_each_channel():
    stage = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    mean, deviation = texture_of(stage).split(3, dim=1)
    assert torch.allclose(mean, stage.flatten(2).mean(dim=2), atol=1e-6)
    assert torch.allclose(deviation.exp(), stage.flatten(2).std(dim=2, correction=0), rtol=1e-5)
    assert texture_of(torch.zeros(1, 3, 2, 2)).isfinite().all()


def test_one_pass_gives_features_and_textures():
    model = load_model("universal.fsdd", in_channels=1, device="cpu")
    maps = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    pooled, texture = look_familiar(model.network, maps)
    assert torch.equal(pooled, model.features(maps))
    assert texture.shape == (2, 160)


def test_a_file_takes_what_was_measured_and_keeps_its_weights(found, tmp_path):
    path = tmp_path / "universal.safetensors"
    content = load_file(shared_weights.shipped_file())
    small = {key: value for key, value in content.items() if "fsdd" in key or "esc10" in key}
    facts = shared_weights.read_facts(shared_weights.shipped_file())
    save_file(small, path, metadata={"unipercept": json.dumps(facts)})
    shared_weights.set_familiarity(path, {"fsdd": found})
    views = drawn(50, 5)[0]
    read = shared_weights.familiarity(path, "fsdd")
    assert torch.equal(read.ood_score(*views), found.ood_score(*views))
    after = load_file(path)
    assert all(torch.equal(after[key], small[key]) for key in small if "familiar" not in key and "centres" not in key)
    assert shared_weights.read_facts(path) == facts
    assert not any("familiar" in key for key in shared_weights.task_state(path, "fsdd"))
    with pytest.raises(InputError, match="knows the tasks"):
        shared_weights.set_familiarity(path, {"smells": found})
