"""Machine code on disk: compiled once, and again where the file is damaged or cannot be."""

from pathlib import Path

import pytest
import torch

from unipercept import doctor, download
from unipercept.errors import WeightsError
from unipercept.kernels import cuda, layer_norm2d, llvm
from unipercept.kernels.compiled_code import kept
from unipercept.kernels.layer_norm2d import cpu
from unipercept.kernels.measured import Measured


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIPERCEPT_CACHE", str(tmp_path))
    return tmp_path / "kernels"


def test_code_is_compiled_once_for_all_that_it_is_made_of(folder):
    made = []

    def compile_it():
        made.append(None)
        return b"code %d" % len(made)

    assert [kept((source, "sm_90"), "cubin", compile_it) for source in "aab"] == [b"code 1", b"code 1", b"code 2"]
    assert kept(("a", "sm_80"), "cubin", compile_it) == b"code 3"
    assert len(list(folder.iterdir())) == 3  # and nothing unfinished


@pytest.mark.parametrize("damage", [lambda code: code[:-1], lambda code: b"X" + code[1:], lambda code: b""])
def test_damaged_code_is_compiled_again(folder, damage):
    assert kept(("a",), "o", lambda: b"code") == b"code"
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert kept(("a",), "o", lambda: b"new code") == b"new code"
    assert kept(("a",), "o", lambda: pytest.fail("it is there")) == b"new code"


def test_a_folder_that_cannot_be_written_costs_a_compilation_and_no_more(folder):
    folder.write_text("a file is in the way")
    assert kept(("a",), "o", lambda: b"code") == b"code"


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    monkeypatch.delenv("UNIPERCEPT_CACHE", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert kept(("a",), "o", lambda: b"code") == b"code"
    assert kept(("a",), "o", lambda: b"new code") == b"new code"
    assert Measured("tiles", Path("nowhere"), dict).find("a problem", "a GPU") is None
    with pytest.raises(WeightsError, match="set UNIPERCEPT_CACHE"):
        download.cache_folder()
    assert doctor._cache().state == "off"


@pytest.mark.skipif(llvm.why_not() is not None, reason=f"no CPU kernels: {llvm.why_not()}")
def test_a_cpu_kernel_that_was_kept_gives_the_same_bits(folder, monkeypatch):
    x, weight, bias = torch.randn(2, 24, 5, 7), torch.rand(24), torch.rand(24)
    results, files = [], []
    for _ in range(2):
        cpu._kernel.cache_clear()  # as a new process has it
        results.append(layer_norm2d(x, weight, bias, implementation="cpu"))
        files.append(set(folder.iterdir()))
        monkeypatch.setattr(llvm, "_machine_code", lambda text: pytest.fail("it is there"))
    assert files[0] == files[1] != set()
    assert torch.equal(*results)


def test_who_waits_for_the_compiler_is_told_so_once(folder, monkeypatch, caplog):
    """And nobody for a kernel or two."""
    monkeypatch.setattr(cuda, "nvrtc_version", lambda: "13.0")
    monkeypatch.setattr(cuda, "compile_source", lambda *_: b"code")
    monkeypatch.setattr(cuda, "_seconds_compiling", 0.0)
    cuda._say_waiting.cache_clear()
    for seconds, said in ((0.0, 0), (cuda.SILENT_SECONDS / 2, 0), (2 * cuda.SILENT_SECONDS, 1), (9.0, 1)):
        monkeypatch.setattr(cuda, "_seconds_compiling", seconds)
        cuda.compiled("unipercept.kernels.adamw", ["cuda/adamw.cu"], {"seconds": str(seconds)}, "sm_90")
        assert [record.message for record in caplog.records] == [
            f"compiling GPU kernels, on first use alone: they are kept in {folder}"
        ] * said
