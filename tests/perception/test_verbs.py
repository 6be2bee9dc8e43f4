"""The verbs of training on the command line: results on stdout, a caller's mistake one line and status 2."""

import json
import wave

import numpy as np
import pytest

from unipercept.cli import main
from unipercept.errors import InputError


def verb(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, words)))
    output = capsys.readouterr()
    return caught.value.code, output.out, output.err


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    root = tmp_path_factory.mktemp("tones")
    for name, hertz in (("low", 300), ("high", 2000)):
        (root / name).mkdir()
        for i in range(8):
            wavelength = np.sin(2 * np.pi * hertz * np.arange(3000) / 8000 + i) * 9000
            with wave.open(str(root / name / f"{i}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 3000, "NONE", ""))
                file.writeframes(wavelength.astype("<i2").tobytes())
    return root


def test_settings_hold_beside_the_number_of_epochs_and_whole_numbers_are_numbers(tones, tmp_path, capsys):
    words = ("--epochs", 1, "--set", "min_steps=2", "--set", "mixup=1", "--set", "mixup_alpha=1", "--set", "size=32")
    status, _, err = verb(capsys, "train", tones, "-o", tmp_path / "run", *words, "--device", "cpu")
    assert status == 0, err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["min_steps"] == 2
    status, _, err = verb(capsys, "train", tones, "-o", tmp_path / "other", "--set", "mixup_alpha=0")
    assert (status, err.count("\n")) == (2, 1)


def test_train_perceive_encode_search_and_explain_follow_each_other(tones, tmp_path, capsys):
    run = tmp_path / "run"
    options = ("--epochs", 3, "--set", "size=32", "--set", "batch_size=8", "--device", "cpu")
    status, out, err = verb(capsys, "train", tones, "-o", run, *options)
    assert status == 0, err
    assert "test accuracy: " in out
    assert f"--model {run}" in out
    status, out, err = verb(capsys, "perceive", tones / "low" / "1.wav", "--model", run, "--json")
    assert status == 0, err
    assert {pair["label"] for pair in json.loads(out)[0]["labels"]} == {"low", "high"}
    status, out, _ = verb(capsys, "evaluate", run, tones, "--split", "all", "--json")
    assert (status, json.loads(out)["n"]) == (0, 16)
    assert "14 of these 16 trained the model or chose its weights" in json.loads(out)["parts"]
    status, _, err = verb(capsys, "encode", tones, "-o", tmp_path / "v.parquet", "--model", run)
    assert status == 0, err
    status, out, err = verb(
        capsys, "search", tones / "high" / "3.wav", "-i", tmp_path / "v.parquet", "--top", 2, "--json"
    )
    assert status == 0, err
    assert json.loads(out)[0]["similarity"] > 0.9999
    status, out, err = verb(capsys, "explain", tones / "high" / "3.wav", "--model", run, "-o", tmp_path / "why.png")
    assert status == 0, err
    assert "Hz" in out
    status, said, err = verb(capsys, "perceive", tones / "low" / "1.wav", "--json")
    assert status == 0, err
    status, out, err = verb(capsys, "explain", tones / "low" / "1.wav", "-o", tmp_path / "why.png")
    assert status == 0, err
    assert json.loads(said)[0]["labels"][0]["label"] in out  # of the head that `perceive` listens to


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "nowhere", "-o", "run"), "nowhere does not exist; expected a folder with one sub-folder per class"),
        (("train", "esc_10", "-o", "run"), "did you mean esc10"),
        (("train", ".", "-o", "run", "--set", "colour=red"), "--set takes name=value"),
        (("train", ".", "-o", "run", "--set", "size=abc"), "size is a whole number; got 'abc'"),
        (("train", ".", "-o", "run", "--set", "turn=up"), "turn is one of none, upright, all; got 'up'"),
        (("train", ".", "-o", "run", "--set", "seed=3"), "the seed is an option of its own: --seed 3"),
        (("train", ".", "-o", "run", "--tune", "most"), "--tune must be"),
        (("train", ".", "-o", "run", "--tune", "linear"), "--from"),
        (("universal", "-o", "u", "--data", ".", "--pictures", ".", "--set", "epochs=3"), "from an option of its own"),
        (("evaluate", "nowhere", "."), "there is no model 'nowhere'"),
        (("search", "x.wav", "-i", "nowhere.parquet"), "nowhere.parquet does not exist"),
        (("datasets", "holiday"), "dataset must be one of"),
    ],
)
def test_a_mistake_is_one_line(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, err = verb(capsys, *words)
    assert status == 2
    assert expected in err
    assert err.count("\n") == 1


def test_the_network_of_a_run_is_chosen_by_its_name(monkeypatch, capsys):
    def train_run(source, output, **settings):
        raise InputError(json.dumps(settings["overrides"]))

    monkeypatch.setattr("unipercept.perception.run.train_run", train_run)
    _, _, err = verb(capsys, "train", "clips", "-o", "run", "--model", "unireplknet_f", "--set", "mixup=0.5")
    assert json.loads(err.removeprefix("error: ")) == {"mixup": 0.5, "architecture": "unireplknet_f"}


def test_datasets_are_listed_with_their_licence(capsys):
    status, out, _ = verb(capsys, "datasets", "fsdd")
    assert status == 0
    assert "CC BY-SA 4.0" in out
