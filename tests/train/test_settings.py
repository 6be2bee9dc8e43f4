"""Settings are kept beside a run, and what cannot be trained is refused in one line."""

import math

import pytest

from tests.train.conftest import Noisy, network, settings, squared
from unipercept.errors import InputError
from unipercept.train import (
    TrainConfig,
    fit,
)


def test_settings_are_printed_into_the_folder_and_read_back(tmp_path):
    fit(network(), None, Noisy(), loss=squared, config=settings(steps=1), run_dir=tmp_path)
    assert TrainConfig.from_json((tmp_path / "config.json").read_text()) == settings(steps=1)


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 0},
        {"learning_rate": math.nan},
        {"precision": "fp8"},
        {"ema_decay": 1.0},
        {"clip_gradient_norm": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        settings(**bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": []}, "no sample"),
        ({"loss": lambda model, batch: model(batch[0])}, "one number"),
        ({"groups": lambda model: [{"params": [model[0].weight]}]}, "leave out"),
        ({"config": settings(monitor="accuracy")}, "monitor must be one of .*loss"),
        ({"config": settings(device="abacus")}, "device must be"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(changes, message):
    model = network()
    arguments = {"dataset": Noisy(), "loss": squared, "config": settings(), "validation": Noisy(3), **changes}
    if "groups" in arguments:
        arguments["groups"] = arguments["groups"](model)
    with pytest.raises(InputError, match=message) as caught:
        fit(model, None, arguments.pop("dataset"), **arguments)
    assert "\n" not in str(caught.value)
