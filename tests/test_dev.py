"""dev.py: what it decides, on made-up machines. The set-up itself runs before these tests do."""

import argparse
import ast
import hashlib
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DEV = Path(__file__).resolve().parent.parent / "dev.py"


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dev.py of an otherwise empty checkout, with none of this machine's settings for pip."""
    (tmp_path / "checkout").mkdir()
    copy = tmp_path / "checkout" / "dev.py"
    copy.write_bytes(DEV.read_bytes())
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        (copy.parent / name).write_text(name)
    for name in ("PIP_INDEX_URL", "PIP_CERT", "PIP_CONFIG_FILE", "PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    specification = importlib.util.spec_from_file_location("dev_under_test", copy)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "pip_files", list)
    return module


@pytest.fixture
def calls(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that dev.py would run; none is run."""
    seen: list[list[str]] = []

    def record(*command: str | Path, **_: Any) -> int:
        seen.append([str(part) for part in command])
        return 0

    monkeypatch.setattr(dev, "call", record)
    monkeypatch.setattr(dev, "set_up", lambda: None)
    return seen


# --- the verbs


def test_an_old_python_can_read_it_and_is_told_so() -> None:
    ast.parse(DEV.read_text(), feature_version=(3, 7))
    check = next(node for node in ast.parse(DEV.read_text()).body if isinstance(node, ast.If))
    code = "import sys; sys.version_info = (3, 8, 1)\n" + ast.unparse(check)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer; this is 3.8" in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_needs_the_standard_library_alone() -> None:
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(DEV.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names <= sys.stdlib_module_names


def test_help_teaches_the_two_commands() -> None:
    done = subprocess.run([sys.executable, DEV, "--help"], capture_output=True, text=True, check=True)
    assert "python3 dev.py demo" in done.stdout
    assert "python3 dev.py test" in done.stdout


def test_test_leaves_the_slow_ones_out_unless_asked(dev: ModuleType, calls: list[list[str]]) -> None:
    assert dev.main(["test"]) == 0
    assert dev.main(["test", "--slow"]) == 0
    assert "not slow" in calls[0]
    assert "not slow" not in calls[1]


def test_what_dev_does_not_know_goes_to_pytest_in_order(dev: ModuleType, calls: list[list[str]]) -> None:
    dev.main(["test", "tests/kernels", "-k", "fold", "-x", "-m", "slow", "-n", "0"])
    assert calls[0][-8:] == ["tests/kernels", "-k", "fold", "-x", "-m", "slow", "-n", "0"]
    assert calls[0].count("-m") == 2  # python's own and the one given
    assert calls[0].count("-n") == 1


def test_lint_runs_all_three_checks(dev: ModuleType, calls: list[list[str]]) -> None:
    assert dev.main(["lint"]) == 0
    assert [call[2:4] for call in calls] == [["ruff", "check"], ["ruff", "format"], ["mypy", "unipercept"]]
    assert "--check" in calls[1]


def test_lint_fails_when_any_check_does(
    dev: ModuleType, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = iter([0, 1, 0])
    monkeypatch.setattr(dev, "call", lambda *_, **__: next(statuses))
    assert dev.main(["lint"]) == 1


def test_demo_writes_where_it_is_told(dev: ModuleType, calls: list[list[str]]) -> None:
    dev.main(["demo"])
    dev.main(["demo", "-o", "elsewhere"])
    assert [call[-4:] for call in calls] == [
        ["unipercept", "demo", "-o", "out"],
        ["unipercept", "demo", "-o", "elsewhere"],
    ]


def test_bench_names_what_there_is(dev: ModuleType, calls: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    (dev.ROOT / "benchmarks").mkdir()
    for name in ("alpha.py", "beta.py", "_common.py"):
        (dev.ROOT / "benchmarks" / name).touch()
    assert dev.main(["bench"]) == 0
    assert [Path(call[-1]).name for call in calls] == ["alpha.py", "beta.py"]
    assert dev.main(["bench", "gamma"]) == 1
    assert capsys.readouterr().err == "dev.py: no benchmark named gamma; there are: alpha, beta\n"


def test_clean_deletes_what_was_made_and_nothing_else(dev: ModuleType, tmp_path: Path) -> None:
    made = [".venv/bin", "out", "pipelines/__pycache__", "unipercept.egg-info", ".mypy_cache"]
    kept = ["pipelines/audio", "tests/golden", ".git/objects"]
    for name in [*made, *kept]:
        (dev.ROOT / name).mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere" / "__pycache__"
    elsewhere.mkdir(parents=True)
    (dev.ROOT / "link").symlink_to(elsewhere.parent)
    assert dev.main(["clean"]) == 0
    assert not [name for name in made if (dev.ROOT / name).exists()]
    assert all((dev.ROOT / name).is_dir() for name in kept)
    assert elsewhere.is_dir()


def test_a_mistyped_option_is_refused(dev: ModuleType, calls: list[list[str]]) -> None:
    with pytest.raises(SystemExit) as stop:
        dev.main(["lint", "--fxi"])
    assert stop.value.code == 2
    assert not calls


# --- the set-up


def test_set_up_is_skipped_only_while_its_inputs_stay(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    dev.STAMP.parent.mkdir()
    dev.STAMP.write_text(dev.fingerprint())
    monkeypatch.setattr(dev, "call", lambda *_, **__: 0)
    assert dev.is_ready(dev.fingerprint())
    monkeypatch.setattr(dev, "call", lambda *_, **__: 1)
    assert not dev.is_ready(dev.fingerprint()), "the interpreter of .venv is broken"
    monkeypatch.setattr(dev, "call", lambda *_, **__: 0)
    for name in dev.INPUTS:
        before = dev.fingerprint()
        with (dev.ROOT / name).open("a") as file:
            file.write("# changed\n")
        assert not dev.is_ready(dev.fingerprint())
        dev.STAMP.write_text(before)


def test_a_set_up_cut_short_is_not_taken_for_done(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    dev.STAMP.parent.mkdir()
    dev.STAMP.write_text("of an older constraints.txt")
    monkeypatch.setattr(dev, "bring_system_libraries", lambda: None)
    monkeypatch.setattr(dev, "choose_torch", lambda _: [])
    monkeypatch.setattr(dev, "call", lambda *command, **_: int("--editable" in map(str, command)))
    assert dev.main(["setup"]) == 1
    assert not dev.STAMP.exists()


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("2.13.0+cpu", True),
        ("2.11.0", True),
        ("2.6.0a0+git1", True),
        ("2.5.1", False),
        ("3.0.0", False),
        ("odd", False),
    ],
)
def test_the_torch_range_is_that_of_the_project(dev: ModuleType, version: str, fits: bool) -> None:
    assert dev.torch_fits(version) is fits
    assert '"torch>=2.6,<3"' in (DEV.parent / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("at_hand", "driver", "cpu_index", "wanted"),
    [
        ({}, True, True, []),
        ({}, False, True, ["torch==2.13.0", "--extra-index-url", "https://download.pytorch.org/whl/cpu"]),
        ({}, False, False, ["torch==2.13.0"]),
        ({"venv": ("2.12.1", "x")}, False, True, []),
        ({"python": ("2.11.0", "/opt/packages")}, True, True, []),
    ],
)
def test_torch_is_kept_or_chosen_for_the_machine(
    dev: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    at_hand: dict[str, tuple[str, str]],
    driver: bool,
    cpu_index: bool,
    wanted: list[str],
) -> None:
    dev.VENV.mkdir()
    monkeypatch.setattr(dev.sys, "platform", "linux")
    monkeypatch.setattr(dev, "torch_of", lambda python: at_hand.get("venv" if python == dev.PYTHON else "python"))
    monkeypatch.setattr(dev, "has_nvidia_driver", lambda: driver)
    monkeypatch.setattr(dev, "answers", lambda _: cpu_index)
    monkeypatch.setattr(dev, "site_packages", lambda: dev.VENV)
    assert dev.choose_torch("python3") == wanted
    written = [path.read_text() for path in dev.VENV.glob("*.pth")]
    assert written == (["/opt/packages\n"] if "python" in at_hand else [])


def test_a_torch_at_hand_is_found_with_its_folder(dev: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("print('hello')\n__version__ = '2.9.1'\n")
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    fake.chmod(0o755)
    assert dev.torch_of(fake) == ("2.9.1", str(tmp_path))
    (tmp_path / "torch/__init__.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    assert dev.torch_of(fake) is None


def test_system_libraries_never_stop_the_set_up(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev.sys, "platform", "linux")
    monkeypatch.setattr(dev, "can_load", lambda library: library == "libgomp.so.1")
    monkeypatch.setattr(dev, "call", lambda *_, **__: 100)
    dev.bring_system_libraries()
    assert "sudo apt-get install -y libgl1 libegl1 libx11-6\n" in capsys.readouterr().out


# --- pip without pip


class Index(BaseHTTPRequestHandler):
    """A package index of one file; wants a password when one is set."""

    wheel = b"not pip"
    secret: str | None = None

    def do_GET(self) -> None:
        if self.secret and self.headers.get("Authorization") != self.secret:
            self.send_error(401)
            return
        listing = b'<a href="../files/pip-1.0-py3-none-any.whl">old</a> <a href="../files/%s#sha256=0&amp;x=1">pip</a>'
        body = self.wheel if "/files/" in self.path else listing % b"pip-26.3-py3-none-any.whl"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test reads what dev.py prints."""


@pytest.fixture
def index() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Index)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}/simple"
    server.shutdown()
    thread.join()
    server.server_close()


def test_pip_comes_from_the_configured_index(dev: ModuleType, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index}/")
    monkeypatch.setattr(dev, "PIP_SHA256", hashlib.sha256(Index.wheel).hexdigest())
    assert dev.fetch_pip() == Index.wheel


def test_a_pip_with_another_checksum_is_refused(dev: ModuleType, index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index}")
    with pytest.raises(dev.SetupError, match="sha256 differs"):
        dev.fetch_pip()


def test_an_index_with_a_password_is_asked_with_it(
    dev: ModuleType, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Index, "secret", "Basic dXNlcjpwQHNz")  # user:p@ss
    monkeypatch.setattr(dev, "PIP_SHA256", hashlib.sha256(Index.wheel).hexdigest())
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:p%40ss@{index}")
    assert dev.fetch_pip() == Index.wheel
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index}")
    with pytest.raises(OSError, match="401"):
        dev.fetch_pip()


def test_without_index_and_ensurepip_one_line_says_what_to_do(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setattr(dev, "bring_system_libraries", lambda: None)
    monkeypatch.setattr(dev, "call", lambda *command, **_: int({"pip", "ensurepip"} & set(map(str, command)) != set()))
    assert dev.main(["setup"]) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9/simple cannot be reached" in error
    assert error.count("\n") == 1


def test_settings_come_from_where_pip_takes_them(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, user, odd = tmp_path / "site.conf", tmp_path / "user.conf", tmp_path / "odd.conf"
    site.write_text("[global]\nindex-url = https://site/simple\ncert = /site.pem\n")
    user.write_text("[global]\nindex-url = https://user/simple\n")
    odd.write_text("no section\n")
    monkeypatch.setattr(dev, "pip_files", lambda: [site, odd, user, tmp_path / "absent"])
    assert dev.index_url() == "https://user/simple"
    assert dev.pip_setting("cert") == "/site.pem"
    monkeypatch.setenv("PIP_INDEX_URL", "https://environment/simple")
    assert dev.index_url() == "https://environment/simple"


def test_every_verb_has_a_function(dev: ModuleType) -> None:
    for verb in ("demo", "test", "lint", "bench", "setup", "clean"):
        options, _ = dev.parse([verb])
        assert isinstance(options, argparse.Namespace)
        assert callable(options.run)
