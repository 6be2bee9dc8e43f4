"""What README shows runs as it stands, on small recordings under the names that it uses."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from unipercept.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TOO_LONG = ("demo",)  # it has its own test
SHORTER = {"--days 90": "--days 12", "--seconds 20": "--seconds 2"}  # nothing but the time they take depends on these


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def code() -> list[str]:
    """What runs by itself; what asks a server is run by tests/app/web/test_documents.py."""
    return [block for block in blocks("python") if "gradio_client" not in block]


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("unipercept ") and line.split()[1] not in TOO_LONG]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory, open3d) -> Path:
    """photo.jpg, speech.wav, chair.ply, load.csv, era5.nc and a tree `recordings/` of copies."""
    image = pytest.importorskip("PIL.Image")
    soundfile = pytest.importorskip("soundfile")
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(folder / "photo.jpg")
    seconds = np.arange(16000) / 16000
    soundfile.write(folder / "speech.wav", 0.3 * np.sin(2 * np.pi * 440 * seconds), 16000)
    points = rng.normal(size=(500, 3))
    lines = "\n".join(" ".join(f"{x:.4f}" for x in point) for point in points)
    header = (
        "ply\nformat ascii 1.0\nelement vertex 500\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    (folder / "chair.ply").write_text(header + lines + "\n")
    hours = np.arange("2024-01-01", "2024-01-31", dtype="datetime64[h]")
    load = 10 + np.sin(np.arange(len(hours)) * 2 * np.pi / 24)
    rows = "\n".join(f"{t},{v:.4f}" for t, v in zip(hours.astype(str), load, strict=True))
    (folder / "load.csv").write_text("date,load\n" + rows + "\n")
    latitude, longitude = np.linspace(90, -90, 33), np.arange(0, 360, 5.625)
    field = 280 + 20 * np.cos(np.deg2rad(latitude))[:, None] + np.zeros(len(longitude))
    xarray.Dataset(
        {"t2m": (("time", "latitude", "longitude"), field[None], {"units": "K"})},
        {"time": np.array(["2024-01-01"], dtype="datetime64[ns]"), "latitude": latitude, "longitude": longitude},
    ).to_netcdf(folder / "era5.nc")
    tree = folder / "recordings"
    tree.mkdir()
    for name in ("photo.jpg", "speech.wav", "load.csv"):
        (tree / name).write_bytes((folder / name).read_bytes())
    return folder


def test_readme_has_commands_and_code():
    assert len(commands()) >= 4
    assert len(code()) == 2


@pytest.mark.usefixtures("short_spin_up")
@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_succeeds(recordings, monkeypatch, capsys, command):
    """In the order in which they stand: some go on with what one before has written."""
    for shown, shorter in SHORTER.items():
        command = command.replace(shown, shorter)
    monkeypatch.chdir(recordings)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command)[1:])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.out + said.err


@pytest.mark.parametrize("number", [0, 1])
def test_every_python_block_of_the_readme_runs(recordings, monkeypatch, number):
    monkeypatch.chdir(recordings)
    exec(compile(code()[number], f"README.md block {number}", "exec"), {})
