"""The command line as a user meets it: what it prints where, and its exit status."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from unipercept import __version__, weights
from unipercept.backbone import build_backbone, seed_weights
from unipercept.cli import main

VERBS = [
    *("perceive", "encode", "search", "explain", "forecast", "weather"),
    *("train", "evaluate", "universal", "datasets", "familiarity", "probe"),
    *("models", "convert", "demo", "app", "doctor"),
]


@pytest.fixture
def run(capsys):
    """The command line in this process: (exit status, stdout, stderr)."""

    def run_here(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return run_here


@pytest.fixture
def picture(tmp_path):
    """A PNG under the name of a JPEG."""
    path = tmp_path / "picture.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


@pytest.fixture
def classifier(tmp_path):
    """A checkpoint with a head of three classes."""
    path = tmp_path / "model.safetensors"
    network = seed_weights(build_backbone("unireplknet_a", num_classes=3))
    weights.save_weights(network, path, {"labels": ["cat", "dog", "hen"], "modality": "image"})
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors by a shell")
def test_closed_output_streams_are_no_failure(picture, tmp_path):
    words = ["encode", str(picture), "-o", str(tmp_path / "v.parquet")]
    script = f"from unipercept.cli import main; main({words!r})"
    closed = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, script], check=False)
    assert closed.returncode == 0
    assert (tmp_path / "v.parquet" / "part-00000.parquet").exists()


def test_help_needs_neither_torch_nor_a_second():
    script = "import sys, unipercept.cli; print([m for m in ('torch', 'pandas', 'numpy', 'rich.progress') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
    seconds = []
    for _ in range(2):
        start = os.times()
        subprocess.run([sys.executable, "-m", "unipercept", "--help"], capture_output=True, check=True)
        end = os.times()  # processor time: a busy machine makes nothing of this
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert min(seconds) < 1.5


def test_help_lists_just_these_verbs_each_with_an_example(run):
    status, said, _ = run("--help")
    assert status == 0
    assert re.findall(r"^│ ([a-z]\S*)", said, re.MULTILINE) == VERBS
    for verb in VERBS:
        status, said, _ = run(verb, "--help")
        assert status == 0
        if verb != "weather":  # has verbs of its own
            assert f"unipercept {verb}" in said.partition("Example")[2]


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"unipercept {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["encode"],
        ["encode", "a.jpg"],
        ["encode", "absent.jpg", "-o", "v.parquet"],
        ["encode", "absent.jpg", "-o", "v.parquet", "--batch-size", "0"],
        ["encode", "absent.jpg", "-o", "v.parquet", "--nonsense"],
        ["perceive", "absent.jpg"],
        ["perceive", "."],
        ["models", "no_such_model"],
        ["convert", "absent.pth", "-o", "out.safetensors"],
    ],
    ids=" ".join,
)
def test_a_mistake_gives_one_line_on_stderr_and_status_2(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    status, said, complained = run(*arguments)
    assert status == 2
    assert said == ""
    assert complained.startswith("error: ")
    assert len(complained.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "value", "line"), [("--model", "resnet", "no model 'resnet'"), ("--modality", "smell", "modality must be one of"), ("--device", "cuda:77", "device must be")])  # fmt: skip
def test_a_wrong_choice_stops_before_anything_is_written(run, tmp_path, picture, option, value, line):
    status, _, complained = run("encode", picture, "-o", tmp_path / "v.parquet", option, value)
    assert (status, line in complained) == (2, True), complained
    assert not (tmp_path / "v.parquet").exists()


def test_encode_writes_a_table_and_refuses_to_do_it_twice(run, tmp_path, picture):
    status, said, complained = run("encode", picture, "-o", tmp_path / "v.parquet")
    assert (status, complained) == (0, "")
    assert "1 of 1 files encoded" in said
    table = pd.read_parquet(tmp_path / "v.parquet")
    assert table.modality.tolist() == ["image"]
    assert len(table.vector[0]) == 320
    status, _, complained = run("encode", picture, "-o", tmp_path / "v.parquet")
    assert (status, "add --resume" in complained) == (2, True)
    status, said, _ = run("encode", picture, "-o", tmp_path / "v.parquet", "--resume")
    assert (status, "1 file was done before" in said) == (0, True)


def test_a_batch_with_a_bad_file_finishes_and_exits_with_3(run, tmp_path, picture):
    (tmp_path / "bad.wav").write_text("no sound\n")
    status, said, complained = run("encode", picture, tmp_path / "bad.wav", tmp_path / "absent.wav", "-o", tmp_path / "v.parquet", "--json")  # fmt: skip
    assert status == 3
    summary = json.loads(said)
    assert (summary["n_files"], summary["n_vectors"]) == (3, 1)
    assert len(complained.splitlines()) == 2
    assert all(line.startswith("skipped: ") for line in complained.splitlines())


def test_perceive_names_classes_or_says_that_there_is_no_head(run, picture, classifier):
    status, said, complained = run("perceive", picture, "-m", "unireplknet_a")
    assert (status, said) == (2, "")
    assert "'unireplknet_a' has no trained head for image" in complained
    status, said, _ = run("perceive", picture, "-m", classifier, "--top", 2, "--json")
    assert status == 0
    (result,) = json.loads(said)
    assert len(result["labels"]) == 2
    assert {item["label"] for item in result["labels"]} < {"cat", "dog", "hen"}
    status, said, _ = run("perceive", picture, "-m", classifier)
    assert status == 0
    assert said.count("%") == 3


def test_perceive_of_several_goes_on_after_a_bad_one(run, picture, classifier, tmp_path):
    (tmp_path / "empty.png").touch()
    status, said, complained = run("perceive", tmp_path / "empty.png", picture, "-m", classifier)
    assert status == 3
    assert "cat" in said
    assert "empty.png is empty" in complained
    (tmp_path / "cube.xyz").write_text("".join(f"{i & 1} {i >> 1 & 1} {i >> 2}\n" for i in range(8)))
    status, said, complained = run("perceive", tmp_path / "cube.xyz", picture, "-m", classifier)
    assert (status, "cat" in said) == (3, True)
    assert "no trained head for pointcloud" in complained


def test_models_lists_all_and_shows_one(run):
    status, said, _ = run("models")
    assert status == 0
    assert all(
        name in said
        for name in ("universal.esc10", "unireplknet_a ", "unireplknet_xl.in22k_to_in1k_384", "untrained", "83.21% top")
    )
    status, said, _ = run("models", "unireplknet_t.in1k_224", "--json")
    assert status == 0
    assert json.loads(said)["n_classes"] == 1000


@pytest.mark.parametrize(("width", "left"), [(80, 4), (120, 2), (300, 0)])
def test_the_table_of_models_fits_the_terminal(run, monkeypatch, width, left):
    """At 80 columns every cell was cut in the middle."""
    from rich.console import Console

    from unipercept.model_cards import MODELS

    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    status, said, _ = run("models")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines()
    assert (status, max(map(len, lines)) <= width) == (0, True)
    names = [line.split(" ")[0] for line in lines]
    assert set(MODELS) <= set(names)
    said_of_t = lines[names.index("unireplknet_t.in1k_224")]
    assert all(word in said_of_t for word in ("1000 classes", "83.21% top-1"))
    assert len(re.findall(r"Not shown in \d+ columns: (.*)", said) or []) == bool(left)
    assert "".join(re.findall(r"columns: (.*)", said)).count(",") == max(0, left - 1)


def test_convert_folds_a_checkpoint(run, tmp_path):
    network = seed_weights(build_backbone("unireplknet_a", num_classes=3)).eval()
    torch.save(network.state_dict(), tmp_path / "a.pth")
    status, said, _ = run("convert", tmp_path / "a.pth", "-o", tmp_path / "a.safetensors", "--reparameterize")
    assert status == 0
    folded = weights.build_from_state(weights.read_checkpoint(tmp_path / "a.safetensors")).eval()
    assert folded.deploy
    assert said.startswith(f"{len(folded.state_dict())} tensors")
    maps = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded(maps), network(maps), rtol=1e-4, atol=1e-5)


def test_doctor_finds_the_core_in_order(run):
    status, said, _ = run("doctor", "--json")
    assert status == 0
    states = {check["name"]: check for check in json.loads(said)}
    assert {states[name]["state"] for name in ("python", "torch", "network", "device")} == {"ok"}
    assert all(check["remedy"] for check in states.values() if check["state"] == "broken")


def test_doctor_says_what_is_off_and_how_to_mend_it(monkeypatch):
    from unipercept import doctor

    monkeypatch.setattr(doctor, "OPTIONAL", (("no_such_library", ("no-such-library",), "audio", "sound"),))
    (check,) = doctor._optional_libraries()
    assert (check.state, check.remedy) == ("off", "pip install 'unipercept[audio]'")
    assert doctor._loading_remedy("open3d", OSError("libGL.so.1: cannot open shared object file")).endswith("libgl1") == sys.platform.startswith("linux")  # fmt: skip


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    from unipercept import model_cards

    def fail(_name):
        raise RuntimeError("a bug")

    monkeypatch.setattr(model_cards, "model_card", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["models", "unireplknet_a"])


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 7 GiB"), RuntimeError("CUDA out of memory. Tried …")]
)
def test_too_little_memory_is_said_in_a_line(run, monkeypatch, error):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr("unipercept.cli.app", fail)
    status, _, complained = run("models")
    assert (status, len(complained.splitlines())) == (2, 1)
    assert "not enough memory" in complained
