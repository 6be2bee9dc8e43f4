#!/usr/bin/env python3
"""Set up, run, check and measure unipercept, with nothing but python3: the same verbs for people and for CI.

Every verb first makes `.venv` and installs the project there, which takes minutes once and a blink afterwards.
The standard library alone; and nothing newer than Python 3.6 syntax, so that an old python3 still gets told why.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the check is for those that pyproject.toml cannot reach
    sys.exit(
        "unipercept needs Python 3.11 or newer; this is %d.%d (%s). Run dev.py with a newer one, e.g.: python3.12 dev.py test"  # noqa: UP031
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

import argparse
import base64
import configparser
import ctypes
import hashlib
import os
import platform
import re
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BINARIES = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BINARIES / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "unipercept-set-up"  # holds the fingerprint of what was installed; written last
INPUTS = ("pyproject.toml", "setup.py", "constraints.txt", "dev.py")

# Bare Debian has a python3 without ensurepip: pip then comes from the package index, and this checksum decides.
PIP_VERSION = "26.3"
PIP_WHEEL = f"pip-{PIP_VERSION}-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
PIP_MAX_BYTES = 8 * 2**20  # the wheel has 1.8 MB

TORCH_RANGE = ((2, 6), (3, 0))  # as in pyproject.toml: from, below
TORCH_PIN = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_CPU_INDEX_TIMEOUT_SECONDS = 3
# GPU kernels are tested without a GPU, in Triton's interpreter and by compiling. GPU builds of torch bring their own.
KERNEL_TEST_TOOLS = ("triton==3.6.0", "nvidia-cuda-nvrtc==13.5.37")

# What open3d loads from the system, and the Debian package of each. libusb comes from PyPI (libusb-package).
SYSTEM_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11.so.6": "libx11-6",
    "libgomp.so.1": "libgomp1",
}

MAX_TEST_WORKERS = 8  # each loads torch: some 0.5 GB

CLEANED = (".venv", "out", "build", "dist", "htmlcov", ".coverage")
CLEANED_ANYWHERE = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "*.egg-info")

HELP = """\
start here:
  python3 dev.py demo                   six kinds of real input through one network; open out/report.html afterwards
  python3 dev.py test                   the tests, without those marked slow

then:
  python3 dev.py test --slow            all tests
  python3 dev.py test -k fold -x        what follows goes to pytest: only tests named *fold*, stop at the first failure
  python3 dev.py test tests/kernels     one folder
  python3 dev.py lint                   what CI checks: ruff, its formatter, and mypy --strict
  python3 dev.py lint --fix             the same, and fix what ruff can fix
  python3 dev.py bench                  the measurements of benchmarks/; name some to run only those
  python3 dev.py setup                  only the set-up that every verb does first
  python3 dev.py clean                  delete .venv, out/, builds and caches

after the set-up, the program itself is .venv/bin/unipercept (try: .venv/bin/unipercept --help)
"""


class SetupError(Exception):
    """The set-up cannot go on; the message says in one line what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    options, passed_on = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.verb != "clean":
            set_up()
        run: Callable[[argparse.Namespace, list[str]], int] = options.run
        return run(options, passed_on)
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The verb with its own options, and everything else, which goes on to the program that the verb runs."""
    parser = argparse.ArgumentParser(
        prog="python3 dev.py",
        description="Set up, run, check and measure unipercept. Each verb sets up first: minutes once, then a blink.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    demo = verbs.add_parser("demo", help="run the main job on real sample inputs; results in ./out")
    demo.add_argument("-o", "--output", default="out", help="folder for the results (default: %(default)s)")
    demo.set_defaults(run=run_demo)
    test = verbs.add_parser("test", help="run the tests; unknown options go to pytest")
    test.add_argument("--slow", action="store_true", help="also run the tests marked slow")
    test.set_defaults(run=run_test)
    lint = verbs.add_parser("lint", help="ruff check, ruff format --check, mypy --strict")
    lint.add_argument("--fix", action="store_true", help="fix what ruff can fix, and format")
    lint.set_defaults(run=run_lint)
    bench = verbs.add_parser("bench", help="run benchmarks/NAME.py, or all of them")
    bench.add_argument("names", nargs="*", metavar="NAME", help="e.g. encode_overhead (default: all)")
    bench.set_defaults(run=run_bench)
    verbs.add_parser("setup", help="only set up").set_defaults(run=run_setup)
    verbs.add_parser("clean", help="delete .venv, out/, builds and caches").set_defaults(run=run_clean)
    options, passed_on = parser.parse_known_args(arguments)
    if passed_on and options.verb in ("lint", "setup", "clean"):
        parser.error(f"{options.verb} does not know {' '.join(passed_on)}")
    return options, passed_on


# --- the verbs


def run_demo(options: argparse.Namespace, passed_on: list[str]) -> int:
    """The main job on real sample inputs."""
    return call(PYTHON, "-m", "unipercept", "demo", "-o", options.output, *passed_on)


def run_test(options: argparse.Namespace, passed_on: list[str]) -> int:
    """pytest, one process a core with one thread each: small tensors gain nothing from more."""
    chosen = [] if options.slow or "-m" in passed_on else ["-m", "not slow"]
    workers = min(usable_cores(), MAX_TEST_WORKERS)
    spread = (
        [] if {"-n", "--pdb", "-p"} & set(passed_on) or workers == 1 else ["-n", str(workers), "--dist", "worksteal"]
    )
    # -P: without it the folder comes first in sys.path, and other people's `import datasets` would find ours.
    return call(PYTHON, "-P", "-m", "pytest", *spread, *chosen, *passed_on, OMP_NUM_THREADS="1")


def usable_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_lint(options: argparse.Namespace, passed_on: list[str]) -> int:
    """All three checks, also when the first fails."""
    fix = ["--fix"] if options.fix else []
    check = [] if options.fix else ["--check"]
    statuses = [
        call(PYTHON, "-m", "ruff", "check", *fix, "."),
        call(PYTHON, "-m", "ruff", "format", *check, "."),
        call(PYTHON, "-m", "mypy", "unipercept", "dev.py"),
    ]
    return max(statuses)


def run_bench(options: argparse.Namespace, passed_on: list[str]) -> int:
    """Each benchmark in a process of its own, so that one's memory is not counted as the next one's."""
    known = {path.stem: path for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py"))}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        raise SetupError(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(known)}")
    statuses = [0]
    for name in options.names or known:
        say(f"benchmarks/{name}.py")
        statuses.append(call(PYTHON, "-P", known[name], *passed_on))
    return max(statuses)


def run_setup(options: argparse.Namespace, passed_on: list[str]) -> int:
    """Everything is done already."""
    print(f"Set up in {VENV}; the program is {BINARIES / 'unipercept'}")
    return 0


def run_clean(options: argparse.Namespace, passed_on: list[str]) -> int:
    """Delete what the other verbs made."""
    for path in made_here():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        print(f"deleted {path.relative_to(ROOT)}")
    return 0


def made_here() -> Iterator[Path]:
    """Folders and files that the verbs made; links are not followed."""
    yield from (ROOT / name for name in CLEANED if (ROOT / name).exists())
    for folder, below, _ in os.walk(ROOT):
        below[:] = [name for name in below if name not in (".git", ".venv", "out", "build", "dist")]
        for name in list(below):
            if any(Path(name).match(pattern) for pattern in CLEANED_ANYWHERE):
                below.remove(name)
                yield Path(folder, name)


# --- the set-up


def set_up() -> None:
    """Make `.venv` and install the project there, unless that is done and nothing changed since."""
    python = base_python()
    wanted = fingerprint()
    if is_ready(wanted):
        return
    started = time.monotonic()
    print("Setting up, once; this takes some minutes. The files go to .venv, `python3 dev.py clean` deletes them.")
    say("1/4 system libraries for point clouds")
    bring_system_libraries()
    say("2/4 environment and pip")
    make_environment(python)
    say("3/4 torch")
    torch = choose_torch(python)
    say("4/4 unipercept with all extras and the tools for development")
    install([*torch, *kernel_test_tools()])
    STAMP.write_text(wanted, encoding="utf-8")
    say(f"set up in {time.monotonic() - started:.0f} s")


def base_python() -> str:
    """The interpreter that makes `.venv`: the one that runs, or its parent when that is `.venv`'s own."""
    inside = Path(sys.prefix).resolve() == VENV
    return str(getattr(sys, "_base_executable", sys.executable)) if inside else sys.executable


def fingerprint() -> str:
    """A hash of all that decides what lies in `.venv`. The checkout's place counts: scripts hold it.

    Which python3 asks does not count, or two people's would rebuild it in turns.
    """
    parts = [str(ROOT).encode(), *((ROOT / name).read_bytes() for name in INPUTS)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_ready(wanted: str) -> bool:
    """Whether the last set-up ended, was for the same files, and its interpreter still runs."""
    if not STAMP.is_file() or STAMP.read_text(encoding="utf-8") != wanted:
        return False
    probe = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('unipercept', 'torch', 'pytest'))))"
    return call(PYTHON, "-P", "-c", probe, quiet=True) == 0


def bring_system_libraries() -> None:
    """Install the shared libraries that open3d wants, or say how to. Without them only point clouds are off."""
    missing = [package for library, package in SYSTEM_LIBRARIES.items() if not can_load(library)]
    if not sys.platform.startswith("linux") or not missing:
        return
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
        if call("apt-get", "update", "-q") == 0 and call(*install, DEBIAN_FRONTEND="noninteractive") == 0:
            return
    print(f"Point clouds will be off until this is run: sudo apt-get install -y {' '.join(missing)}")


def can_load(library: str) -> bool:
    """Whether the loader finds a shared library: the same on every distribution, unlike asking its package manager."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def make_environment(python: str) -> None:
    """Make `.venv` afresh, with pip; keep one whose interpreter works, so that a set-up cut short goes on."""
    STAMP.unlink(missing_ok=True)
    if not environment_works() and call(python, "-m", "venv", "--clear", "--without-pip", VENV) != 0:
        raise SetupError(f"{python} cannot make environments; on Debian and Ubuntu: apt-get install python3-venv")
    if call(PYTHON, "-m", "pip", "--version", quiet=True) == 0:
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            wheel = Path(folder) / PIP_WHEEL
            wheel.write_bytes(fetch_pip())
            # A wheel is a zip file, and Python runs what lies in one: this pip installs itself.
            if call(PYTHON, wheel / "pip", "install", "--no-index", "--no-deps", "--quiet", wheel) != 0:
                raise SetupError("pip could not install itself into .venv; see above")
    except OSError as error:
        print(f"pip's wheel cannot be fetched ({error}); trying the one that came with Python")
        if call(PYTHON, "-m", "ensurepip", "--default-pip", quiet=True) != 0:
            raise SetupError(
                f"the package index {split_account(index_url())[1]} cannot be reached and Python has no pip of its own; "
                "set PIP_INDEX_URL or HTTPS_PROXY, or: sudo apt-get install -y python3-venv"
            ) from error


def environment_works() -> bool:
    """Whether `.venv` runs, and still with the Python version that it was made for."""
    probe = "import os, sys, sysconfig; sys.exit(not os.path.isdir(sysconfig.get_path('purelib')))"
    return PYTHON.exists() and call(PYTHON, "-c", probe, quiet=True) == 0


def install(others: Sequence[str]) -> None:
    """Install the project, editable, at the pinned versions, and `others`; pip shows the progress."""
    status = call(
        PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt",
        *others, "--editable", f"{ROOT}[all,dev]",
        PIP_USER="0",  # where it is set to 1 for everybody, pip refuses environments
    )  # fmt: skip
    if status != 0:
        raise SetupError(
            "pip could not install the project; its message is above. Run the same command again to go on."
        )


# --- which torch


def choose_torch(python: str) -> list[str]:
    """Arguments for pip: none when a fitting torch is at hand, else the build that suits the machine."""
    here, at_hand = torch_of(PYTHON), torch_of(python)
    if here:
        print(f"keeping torch {here[0]} of .venv")
        return []
    if at_hand:
        version, folder = at_hand
        print(f"keeping torch {version} of {folder}")
        # A folder named in a .pth file comes after .venv's own, so only what .venv lacks is taken from there.
        (site_packages() / "unipercept-torch-at-hand.pth").write_text(f"{folder}\n")
        return []
    if has_nvidia_driver():
        print("NVIDIA driver found: the package index's own build of torch")
        return []
    pin = [f"torch=={TORCH_PIN}"]
    if not sys.platform.startswith("linux"):
        return pin  # the index's own build is the small one there
    if answers(f"{TORCH_CPU_INDEX}/torch/"):
        return [*pin, "--extra-index-url", TORCH_CPU_INDEX]
    print(f"{TORCH_CPU_INDEX} does not answer; the package index's build may bring CUDA along, some 3 GB")
    return pin


def kernel_test_tools() -> list[str]:
    """Packages for pip; none where they have no wheels, or where torch for a GPU brings them."""
    if has_nvidia_driver() or sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    return list(KERNEL_TEST_TOOLS)


def torch_of(python: str | Path) -> tuple[str, str] | None:
    """Version and folder of the torch that an interpreter imports, when it is in the range."""
    probe = "import pathlib, torch; print(torch.__version__); print(pathlib.Path(torch.__file__).parent.parent)"
    answer = subprocess.run([python, "-P", "-W", "ignore", "-c", probe], capture_output=True, text=True, check=False)
    lines = answer.stdout.splitlines()
    if answer.returncode != 0 or len(lines) < 2:
        return None
    version, folder = lines[-2:]
    return (version, folder) if torch_fits(version) else None


def torch_fits(version: str) -> bool:
    """Whether a version such as 2.13.0+cpu lies in the range."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and TORCH_RANGE[0] <= (int(numbers[1]), int(numbers[2])) < TORCH_RANGE[1]


def site_packages() -> Path:
    """Where `.venv` keeps its packages."""
    probe = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True, check=True).stdout.strip())


def has_nvidia_driver() -> bool:
    """Whether this machine has a driver, which is what CUDA builds need; a card without one is no use to them."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def answers(url: str) -> bool:
    """Whether a server answers soon.

    Asked here, because pip would try five times and take the waiting for its other indexes too.
    """
    try:
        with urllib.request.urlopen(url, timeout=TORCH_CPU_INDEX_TIMEOUT_SECONDS, context=tls()) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


# --- pip without pip


def fetch_pip() -> bytes:
    """pip's wheel from the configured package index.

    Raises:
        SetupError: the index has another file under this name.
        OSError: the index cannot be reached.
    """
    account, index = split_account(index_url().rstrip("/"))
    text, place = get(f"{index}/pip/", account)
    link = re.search(rf'href="([^"]*{re.escape(PIP_WHEEL)}[^"]*)"', text.decode("utf-8", "replace"))
    if link is None:
        raise OSError(f"{index}/pip/ does not list {PIP_WHEEL}")
    address = urllib.parse.urljoin(place, link[1].replace("&amp;", "&"))
    same_server = urllib.parse.urlsplit(address).netloc == urllib.parse.urlsplit(index).netloc
    wheel, _ = get(address, account if same_server else "")
    if hashlib.sha256(wheel).hexdigest() != PIP_SHA256:
        raise SetupError(f"{PIP_WHEEL} from {index} is not the file it should be (sha256 differs); set PIP_INDEX_URL")
    return wheel


def split_account(url: str) -> tuple[str, str]:
    """The `user:password` of an address, "" without one, and the address without it, as it may be shown."""
    parts = urllib.parse.urlsplit(url)
    account, _, host = parts.netloc.rpartition("@")
    return urllib.parse.unquote(account), urllib.parse.urlunsplit(parts._replace(netloc=host))


def get(url: str, account: str) -> tuple[bytes, str]:
    """Body of a page and the address it came from in the end."""
    request = urllib.request.Request(url, headers={"Accept": "text/html, */*;q=0.1"})
    if account:  # not redirected: another server is none of its business
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(account.encode()).decode())
    timeout_seconds = float(pip_setting("timeout") or pip_setting("default-timeout") or 15)
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds, context=tls()) as response:
            return response.read(PIP_MAX_BYTES), response.url
    except urllib.error.URLError as error:
        # Bare Debian has no certificates either. The checksum decides anyway; a password is not sent unprotected.
        if not isinstance(error.reason, ssl.SSLCertVerificationError) or account:
            raise
        unchecked = ssl._create_unverified_context()
        with urllib.request.urlopen(request, timeout=timeout_seconds, context=unchecked) as response:
            return response.read(PIP_MAX_BYTES), response.url


def tls() -> ssl.SSLContext:
    """Certificates that pip was told to trust, else the system's."""
    return ssl.create_default_context(cafile=pip_setting("cert") or None)


def index_url() -> str:
    """The package index that pip would use."""
    return pip_setting("index-url") or "https://pypi.org/simple"


def pip_setting(name: str) -> str | None:
    """One of pip's settings, from where pip takes it: its environment variable, else its
    files, the last one winning.
    """
    value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if value:
        return value
    settings = configparser.RawConfigParser()
    for path in pip_files():
        try:
            settings.read(path, encoding="utf-8")
        except configparser.Error:
            continue
    for section in ("install", "global"):
        if settings.has_option(section, name):
            return settings.get(section, name).strip().strip("'\"")
    return None


def pip_files() -> list[Path]:
    """pip's configuration files, in the order in which later ones win."""
    home = Path.home()
    if os.name == "nt":
        found = [Path(os.environ.get("APPDATA", home)) / "pip" / "pip.ini"]
    else:
        user = Path(os.environ.get("XDG_CONFIG_HOME", home / ".config"))
        found = [Path("/etc/pip.conf"), home / ".pip/pip.conf", user / "pip/pip.conf"]
        found.insert(1, home / "Library/Application Support/pip/pip.conf")
    named = os.environ.get("PIP_CONFIG_FILE")
    return [*found, Path(named)] if named else found


# --- the outside world


def say(text: str) -> None:
    """A heading between the output of other programs; flushed, since they write to the same place."""
    print(f"\n=== {text}", flush=True)


def call(*command: str | Path, quiet: bool = False, **environment: str) -> int:
    """Run a program in the checkout and wait; returns its exit status."""
    output = subprocess.DEVNULL if quiet else None
    sys.stdout.flush()
    try:
        return subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            check=False,
        ).returncode
    except OSError as error:
        print(f"{command[0]}: {error}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main())
