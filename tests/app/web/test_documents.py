"""What README and docs/app.md say to a server, said to one."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio_client")

ROOT = Path(__file__).resolve().parent.parent.parent.parent
ADDRESS = "http://127.0.0.1:7860"


def blocks(document: str, language: str, word: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [block for block in found if word in block]


@pytest.fixture
def named(tmp_path, recordings, monkeypatch):
    """Recordings under the names that the documents use, in the working folder."""
    soundfile = pytest.importorskip("soundfile")
    rng, time = np.random.default_rng(0), np.arange(8000) / 16000
    Image.open(recordings["picture"]).convert("RGB").save(tmp_path / "photo.jpg")
    shutil.copy(recordings["load"], tmp_path / "load.csv")
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for pitch in (300, 900):
            for number in range(8):
                wave = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.05 * rng.normal(size=len(time))
                soundfile.write(tmp_path / "new.wav", wave, 16000)
                archive.write(tmp_path / "new.wav", f"clips/{pitch}/{number}.wav")
    shutil.copy(tmp_path / "new.wav", tmp_path / "speech.wav")
    points = "".join(f"{x:.4f} {y:.4f} {z:.4f}\n" for x, y, z in rng.normal(size=(400, 3)))
    head = (
        "ply\nformat ascii 1.0\nelement vertex 400\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    (tmp_path / "chair.ply").write_text(head + points)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", ["README.md", pytest.param("docs/app.md", marks=pytest.mark.slow)])
def test_python_that_asks_a_server_runs(open3d, server, named, document):
    (block,) = blocks(document, "python", "gradio_client")
    exec(compile(block.replace(ADDRESS, server.url.rstrip("/")), document, "exec"), {})


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_calls_without_python_give_a_result(server, named):
    (block,) = blocks("docs/app.md", "sh", "curl")
    done = subprocess.run(
        ["sh", "-c", block.replace(ADDRESS, server.url.rstrip("/"))], capture_output=True, text=True, check=True
    )
    assert "event: complete" in done.stdout
    assert '"vector"' in done.stdout
