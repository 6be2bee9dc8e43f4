"""What is built, what is installed under which name, and what an import costs."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("app", "datasets", "kernels", "pipelines")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_SOURCE = shutil.ignore_patterns(
    ".*", "out", "runs", "build", "dist", "htmlcov", "__pycache__", "*.egg-info", "*.pyc", "node_modules"
)
HEAVY = {
    "av",
    "dask",
    "decord",
    "gradio",
    "laspy",
    "librosa",
    "matplotlib",
    "numba",
    "open3d",
    "pandas",
    "pyarrow",
    "scipy",
    "xarray",
}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program that must succeed; returns what it printed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, since building leaves folders behind."""
    copy = tmp_path_factory.mktemp("source") / "unipercept-checkout"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_SOURCE)
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made from it; without the network."""
    pytest.importorskip("build", reason="needs the package build: pip install 'unipercept[dev]'")
    output = tmp_path_factory.mktemp("built")
    run(sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", output, source, cwd=output)
    return next(output.glob("*.tar.gz")), next(output.glob("*.whl"))


def contents(wheel: Path) -> dict[str, int]:
    """Checksum of each file of a wheel but RECORD, which lists the others."""
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.CRC for item in archive.infolist() if not item.filename.endswith("RECORD")}


def test_the_wheel_installs_one_name(built: tuple[Path, Path]) -> None:
    names = {PurePosixPath(name).parts[0] for name in contents(built[1])}
    assert names == {"unipercept", f"unipercept-{PROJECT['version']}.dist-info"}


def test_the_wheel_holds_every_file_of_the_packages_once(built: tuple[Path, Path], source: Path) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        found = [name for name in archive.namelist() if name.startswith("unipercept/")]
    wanted = []
    for folder in ("unipercept", *FOLDERS):
        for path in (source / folder).rglob("*"):
            inside = path.relative_to(source / folder)
            if path.is_file() and not (folder == "unipercept" and inside.parts[0] in FOLDERS):
                wanted.append(PurePosixPath("unipercept", "" if folder == "unipercept" else folder, *inside.parts))
    assert sorted(found) == sorted(map(str, wanted))


def test_the_sdist_needs_no_links(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        members = archive.getmembers()
    names = {PurePosixPath(*PurePosixPath(member.name).parts[1:]).as_posix() for member in members}
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert not [name for name in names if re.match(rf"unipercept/({'|'.join(FOLDERS)})(/|$)", name)]
    assert {"setup.py", "dev.py", "constraints.txt", "LICENSE", "tests/conftest.py", "pipelines/base.py"} <= names


def test_the_sdist_and_the_checkout_give_the_same_wheel(built: tuple[Path, Path], source: Path, tmp_path: Path) -> None:
    run(sys.executable, "-P", "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, source, cwd=tmp_path)
    assert contents(next(tmp_path.glob("*.whl"))) == contents(built[1])


def test_the_installed_wheel_works_without_the_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    """A wheel without compiled code is installed by unpacking it."""
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
    code += "".join(f"import unipercept.{folder} as m; print(m.__file__)\n" for folder in FOLDERS)
    printed = run(sys.executable, "-P", "-c", code, cwd=tmp_path).split()
    assert printed == [str(tmp_path / "site/unipercept" / folder / "__init__.py") for folder in FOLDERS]


def modules_after(code: str) -> set[str]:
    """Top-level modules that are loaded after some code ran in a fresh interpreter."""
    printed = run(sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(list(sys.modules)))", cwd=ROOT)
    return {name.split(".")[0] for name in json.loads(printed.splitlines()[-1])}


def test_import_unipercept_loads_no_heavy_library() -> None:
    assert not modules_after("import unipercept") & HEAVY


def test_listing_the_front_door_loads_no_heavy_library() -> None:
    assert not modules_after("import unipercept; dir(unipercept)") & HEAVY


def test_a_label_and_the_evidence_for_it_load_no_compiler() -> None:
    code = """
import torch
from unipercept.models import load_model
from unipercept.embedding import EmbeddingMap
from unipercept.perception.explain import evidence
evidence(load_model().network, EmbeddingMap(torch.randn(1, 3, 32, 32), "image"), 0)
"""
    assert not modules_after(code) & {"sympy", "triton"}  # what torch._dynamo brings, in seconds


def test_the_command_line_module_loads_no_heavy_library() -> None:
    assert not modules_after("import unipercept.cli") & HEAVY


def test_the_links_of_the_checkout_agree_with_the_mapping() -> None:
    if not any((ROOT / "unipercept" / folder).exists() for folder in FOLDERS):
        pytest.skip("unpacked from an sdist, which has no links")
    assert [(ROOT / "unipercept" / folder).resolve() for folder in FOLDERS] == [ROOT / folder for folder in FOLDERS]


def test_the_version_is_said_once() -> None:
    import unipercept

    assert unipercept.__version__ == PROJECT["version"]


def import_name(requirement: str) -> str:
    name = Requirement(requirement).name
    return {"pillow": "PIL", "open3d-cpu": "open3d", "eva-decord": "decord"}.get(name, name.replace("-", "_"))


def test_what_is_imported_is_asked_for() -> None:
    """scipy came along with librosa for long, and a plain installation could not forecast."""
    asked = {import_name(text) for text in PROJECT["dependencies"]}
    asked |= {import_name(text) for name in set(EXTRAS) - {"all", "dev"} for text in EXTRAS[name]}
    asked |= {"fastapi", "uvicorn", "triton"}  # gradio and torch bring them
    asked |= {"sklearn"}  # in a method that only scikit-learn calls
    imported = set()
    for folder in ("unipercept", *FOLDERS):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                    imported |= {name.partition(".")[0] for name in names}
    assert imported - sys.stdlib_module_names - {"unipercept"} <= asked


def test_the_doctor_looks_at_what_is_asked_for() -> None:
    from unipercept.doctor import CORE, OPTIONAL

    assert sorted(CORE) == sorted(Requirement(text).name for text in PROJECT["dependencies"])
    assert {extra for _, _, extra, _ in OPTIONAL} == set(EXTRAS) - {"all", "dev"}


def test_all_means_every_extra_that_users_may_want() -> None:
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == set(EXTRAS) - {"all", "dev"}


@pytest.mark.parametrize("python", ["3.11", "3.13"])
@pytest.mark.parametrize(
    ("system", "machine"),
    [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64"), ("win32", "AMD64")],
)
def test_each_platform_gets_one_open3d_and_decord_where_it_has_a_wheel(system: str, machine: str, python: str) -> None:
    environment = {"sys_platform": system, "platform_machine": machine, "python_version": python}

    def chosen(extra: str) -> set[str]:
        wanted = map(Requirement, EXTRAS[extra])
        return {r.name for r in wanted if (r.marker or Marker("python_version > '3'")).evaluate(environment)}

    is_linux_pc = (system, machine) == ("linux", "x86_64")
    assert chosen("pointcloud") == {"open3d-cpu" if is_linux_pc else "open3d", "libusb-package", "laspy", "lazrs"}
    assert ("eva-decord" in chosen("video")) == ((system, machine) in {("linux", "x86_64"), ("win32", "AMD64")})
    assert "av" in chosen("video")


def test_constraints_pin_what_the_project_asks_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(r.name): r for r in map(Requirement, (line for line in lines if line[:1] not in "#"))}
    asked = [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]
    for requirement in asked:
        name = canonicalize_name(requirement.name)
        if name not in {"torch", "unipercept", "open3d", "setuptools"}:
            (pin,) = pins[name].specifier
            assert pin.operator == "=="
            assert requirement.specifier.contains(pin.version), f"{requirement} against {pins[name]}"
    assert "torch" not in pins, "dev.py chooses torch"
    assert not [str(pin) for pin in pins.values() if "+" in str(pin.specifier)], "a build label ties it to one index"


@pytest.mark.parametrize("folder", FOLDERS)
def test_bare_imports_are_refused_by_the_linter(folder: str) -> None:
    if (
        shutil.which("ruff") is None
        and subprocess.run([sys.executable, "-m", "ruff", "--version"], check=False).returncode
    ):
        pytest.skip("needs ruff: pip install 'unipercept[dev]'")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename=app/x.py", "-"],
        input=f"from {folder} import x\n", cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "TID251" in done.stdout
