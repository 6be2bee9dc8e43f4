"""The public names say what they do, and their examples run as they stand."""

import doctest
import inspect

import numpy as np
import pytest
import torch

import unipercept

NAMES = [name for name in unipercept.__all__ if name != "__version__"]


@pytest.fixture
def photo(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("photo")
@pytest.mark.parametrize("name", NAMES)
def test_the_examples_of_a_public_name_run(name):
    thing = getattr(unipercept, name)
    names = {
        "unipercept": unipercept,
        "torch": torch,
        "np": np,
        "Axis": unipercept.Axis,
        "EmbeddingMap": unipercept.EmbeddingMap,
    }
    (example,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs=names)
    assert example.examples
    torch.manual_seed(0)
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_types_and_says_what_it_raises(name):
    thing = getattr(unipercept, name)
    if inspect.isclass(thing):
        return
    signature = inspect.signature(thing)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert "Raises:" in thing.__doc__ or name == "reparameterize"  # which takes any model


def test_the_front_door_of_forecasting_has_the_options_of_what_it_calls():
    from unipercept.forecasting.forecast import forecast_table

    inner = dict(inspect.signature(forecast_table).parameters)
    del inner["tell"]
    front = inspect.signature(unipercept.forecast).parameters
    assert {name: p.default for name, p in front.items()} == {name: p.default for name, p in inner.items()}
