"""What the documents name is there: links, files, modules, verbs of the command line and their options."""

import importlib
import re
from pathlib import Path

import pytest
import typer.main

from unipercept.cli import app

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("app", "benchmarks", "datasets", "docs", "kernels", "pipelines", "tests", "unipercept")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def anchors_of(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), link
        assert not anchor or anchor in anchors_of(path), link


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_files_and_modules_that_are_named_exist(document):
    text = re.sub(r"\]\([^)\s]+\)", "]", text_of(document))  # where links lead has a test of its own
    for path in re.findall(rf"\b(?<![/.\w])(?:{'|'.join(FOLDERS)})/[\w/.-]+\.(?:py|md|csv|cu|cuh|safetensors)\b", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(unipercept(?:\.[A-Za-z_]\w*)+)", text):
        assert resolves(name), name


def resolves(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def commands(text: str) -> list[list[str]]:
    """The words of each `unipercept …` in code, up to a comment or the end of the command."""
    code = "\n".join([*blocks(text), *re.findall(r"`(unipercept [^`]*)`", text)])
    lines = re.split(r"\n|  #| {3,}|; | \| ", code.replace("\\\n", " "))
    return [line.split() for line in lines if line.startswith("unipercept ")]


def blocks(text: str) -> list[str]:
    fenced = re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [*fenced, *(line[4:] for line in text.splitlines() if line.startswith("    "))]


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if commands(text_of(name))])
def test_verbs_and_options_that_are_shown_exist(document):
    root = typer.main.get_command(app)
    for words in commands(text_of(document)):
        command, rest = root, words[1:]
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, " ".join(words)
            command, rest = command.commands[rest[0]], rest[1:]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        known |= {"-h", "--help"}
        given = {word.split("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)}
        assert given <= known, " ".join(words)


@pytest.mark.parametrize(
    "package",
    [
        "unipercept.app.forecaster",
        "unipercept.datasets",
        "unipercept.forecasting",
        "unipercept.kernels",
        "unipercept.perception",
        "unipercept.pipelines",
    ],
)
def test_the_map_of_a_package_names_every_module(package):
    module = importlib.import_module(package)
    named = set(re.findall(r"\w+", module.__doc__))
    assert {path.stem for path in Path(module.__file__).parent.glob("*.py")} - {"__init__"} <= named
