"""What every pipeline inherits: pooling over pieces, and plain words where no head is trained."""

import numpy as np
import pytest
import torch

from unipercept.embedding import EmbeddingMap
from unipercept.errors import InputError, NoTrainedHeadError
from unipercept.pipelines import PIPELINES, pipeline_class
from unipercept.pipelines.audio import Waveform
from unipercept.pipelines.base import Pipeline, pool_vector
from unipercept.pipelines.files import check_file
from unipercept.pipelines.picture import Picture
from unipercept.pipelines.pointcloud import Cloud
from unipercept.results import ModelOutput


class Numbers(Pipeline[list[float]]):
    """A file of numbers; each number is a piece. Zeros are padding."""

    modality = "timeseries"

    def read(self, path):
        return [float(x) for x in check_file(path).read_text().split()]

    def split(self, raw):
        yield from ([x] for x in raw)

    def embed(self, raw):
        tensor = torch.tensor(raw).reshape(1, 1, 1, 1)
        return EmbeddingMap(tensor, "timeseries", mask=(tensor != 0)[:, 0])


class Model:
    name = "stand-in"
    labels = ("low", "high")

    def pooled(self, emap):
        return torch.stack([emap.tensor[:, 0, 0, 0], torch.ones(len(emap))], dim=1)

    def predict(self, emap):
        value = emap.tensor[:, 0, 0, 0]
        return ModelOutput(self.pooled(emap), torch.stack([-value, value], dim=1), value[:, None])

    def remarks(self, vector, texture, emap):
        return {"width": len(vector), "texture": texture.tolist(), "first": emap.tensor.tolist()}


class Headless(Model):
    labels = None


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("1 3 0 5")
    return path


def test_encode_is_the_mean_over_real_pieces_scaled_to_length_one(numbers):
    expected = torch.nn.functional.normalize(torch.tensor([(1 + 3 + 5) / 3, 1.0]), dim=0)
    assert torch.allclose(Numbers(model=Model()).encode(numbers), expected)


def test_perceive_names_the_most_probable_class_first(numbers):
    result = Numbers(model=Model())(numbers)
    assert result.labels == ("high", "low")
    assert sum(result.scores) == pytest.approx(1)
    assert (result.source, result.model, result.modality) == (str(numbers), "stand-in", "timeseries")
    assert result.metadata == {"width": 2, "texture": [3.0], "first": [[[[1.0]]]]}  # the mean of what is real
    assert Numbers(model=Model()).looks_at_maps


def test_a_model_without_a_head_says_so(numbers):
    with pytest.raises(NoTrainedHeadError, match="no trained head for timeseries"):
        Numbers(model=Headless())(numbers)


def test_a_pipeline_without_a_model_says_how_to_get_one(numbers):
    with pytest.raises(InputError, match=r"unipercept\.pipeline"):
        Numbers().encode(numbers)


def test_pieces_count_by_their_real_share():
    pieces = [
        (torch.tensor([[3.0, 0.0]]), torch.tensor([1.0])),
        (torch.tensor([[0.0, 1.0], [9.0, 9.0]]), torch.tensor([4.0, 0.0])),
    ]
    assert pool_vector(pieces).tolist() == pytest.approx([0.6, 0.8])


def test_a_file_without_maps_is_named(tmp_path):
    (tmp_path / "blank.txt").write_text("\n")
    with pytest.raises(InputError, match=r"blank\.txt gave no map to classify"):
        Numbers(model=Model())(tmp_path / "blank.txt")


@pytest.mark.parametrize("features", [torch.zeros(1, 3), torch.full((1, 3), float("nan"))])
def test_features_that_mean_nothing_are_refused(features):
    with pytest.raises(InputError, match="not usable"):
        pool_vector([(features, torch.ones(1))])


def test_nothing_to_pool_is_refused():
    with pytest.raises(InputError, match="nothing to encode"):
        pool_vector([])


def test_check_file_names_what_is_wrong(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "broken").symlink_to(tmp_path / "absent")
    for name, message in (
        ("empty", "0 bytes"),
        ("absent", "does not exist"),
        ("broken", "does not exist"),
        (".", "is a folder"),
    ):
        with pytest.raises(InputError, match=message):
            check_file(tmp_path / name)


@pytest.mark.parametrize("modality", PIPELINES)
def test_every_listed_pipeline_exists_and_knows_its_modality(modality):
    assert pipeline_class(modality).modality == modality


@pytest.mark.parametrize("modality", PIPELINES)
def test_what_read_did_not_give_is_not_embedded(modality):
    with pytest.raises(TypeError, match=r"embed takes a .* which read returns, got str"):
        pipeline_class(modality)().embed("photo.png")


def test_an_unknown_modality_is_named():
    with pytest.raises(InputError, match="got 'smell'"):
        pipeline_class("smell")


def test_what_a_mask_hides_is_missing():
    """The hidden values, such as -9999 of a raster, were taken for measurements."""
    values = np.random.default_rng(0).random((30, 3))
    hidden = np.ma.masked_array(
        np.where(np.arange(30)[:, None] == 4, -9999.0, values), np.arange(30)[:, None] == [4] * 3
    )
    points = Cloud.from_array(hidden).points
    assert np.allclose(points, np.delete(values, 4, axis=0))
    for make in (Picture.from_array, lambda masked: Waveform.from_array(masked.T, 8000)):
        with pytest.raises(InputError, match="not finite"):
            make(hidden)
        make(np.ma.masked_array(values))  # nothing is hidden


@pytest.mark.parametrize("dtype", [">f4", ">i2", "<f8"])
def test_sound_may_have_either_byte_order(dtype):
    samples = np.sin(np.arange(4000) / 5) * (32767 if dtype == ">i2" else 1)
    assert torch.allclose(
        Waveform.from_array(samples.astype(dtype), 8000).samples.float(),
        torch.sin(torch.arange(4000) / 5),
        atol=1e-4,
    )
