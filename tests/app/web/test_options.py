"""What the command line may say: sizes, users, paths, each mistake in one line."""

import socket

import pytest

from unipercept.app import demo
from unipercept.app.web.options import AppOptions, parse_auth, parse_bytes
from unipercept.errors import InputError


@pytest.mark.parametrize(("text", "size"), [("200MB", 200_000_000), ("2GiB", 2 << 30), ("1.5 kb", 1500), ("7", 7)])
def test_sizes_are_read_in_their_units(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-1MB", "many", "5 furlongs", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="a size is written as"):
        parse_bytes(text)


def test_a_job_may_take_a_fair_share_of_the_memory(monkeypatch):
    monkeypatch.setattr("unipercept.app.web.options.machine_bytes", lambda: 20e9)
    assert AppOptions(concurrency=4).job_bytes == 4e9
    assert AppOptions(concurrency=4, max_job_bytes=3 * 10**9).job_bytes == 3e9
    monkeypatch.setattr("unipercept.app.web.options.machine_bytes", lambda: 4e9)
    assert AppOptions(concurrency=4).job_bytes == 2e9
    with pytest.raises(InputError, match="1GB of memory or more"):
        AppOptions(max_job_bytes=10**8)


def test_users_come_from_words_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "users").write_text("ada:one\nbob:t:wo\n")
    assert parse_auth("ada:one,bob:t:wo") == parse_auth(f"@{tmp_path / 'users'}") == (("ada", "one"), ("bob", "t:wo"))
    monkeypatch.setenv("UNIPERCEPT_APP_AUTH", "eve:three")
    assert parse_auth(None) == (("eve", "three"),)
    assert parse_auth("") == ()


@pytest.mark.parametrize("text", ["ada", "ada:", ":one", "@/no/such/file"])
def test_a_user_without_a_password_is_refused(text):
    with pytest.raises(InputError):
        parse_auth(text)


@pytest.mark.parametrize("settings", [{"port": 70000}, {"concurrency": 0}, {"max_file_bytes": 0}, {"root_path": "no"}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(InputError):
        AppOptions(**settings)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--max-file-size", "huge"], "a size is written as"),
        (["--auth", "ada"], "--auth takes user:password"),
        (["--root-path", "x y"], "the root path must be"),
    ],
)
def test_the_verb_says_mistakes_in_one_line(arguments, line, capsys):
    from unipercept.cli import main

    with pytest.raises(SystemExit) as left:
        main(["app", *arguments])
    complained = capsys.readouterr().err
    assert (left.value.code, complained.count("\n"), line in complained) == (2, 1, True)


def test_the_library_does_not_load_gradio_and_the_entry_not_torch():
    import subprocess
    import sys

    for module, absent in (("unipercept", "gradio"), ("unipercept.cli", "gradio"), ("unipercept.app.demo", "gradio")):
        code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, module


def test_a_server_that_was_built_has_loaded_nothing_that_no_tab_needs_yet():
    import subprocess
    import sys

    pytest.importorskip("gradio")
    heavy = (
        "torch",
        "matplotlib",
        "plotly",
        "scipy",
        "xarray",
        "zarr",
        "dask",
        "librosa",
        "soundfile",
        "open3d",
        "decord",
        "av",
    )
    code = (
        "import sys; from unipercept.app.demo import build; from unipercept.app.web.options import AppOptions\n"
        f"build(AppOptions(port=0)).close(); print([name for name in {heavy} if name in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def test_an_address_that_cannot_be_listened_on_is_refused_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        for host, port, message in [
            ("127.0.0.1", taken, "is another program there"),
            ("nowhere.invalid", 0, "no address of this machine"),
        ]:
            with pytest.raises(InputError, match=message):
                demo.run(AppOptions(host=host, port=port), print)
