"""Text files are UTF-8 whatever the locale of the machine: on Windows and in some containers the default is another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for folder in ("app", "datasets", "kernels", "pipelines", "unipercept")
    for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)
WITH_TEXT = {"read_text": 0, "write_text": 1}  # arguments before `encoding`
READERS_OF_THEIR_OWN = (
    "Image",
    "Archive",
    "archive",
    "av",
    "tarfile",
    "laspy",
    "webbrowser",
    "opened",
    "opener",
    "container",
)


def without_encoding(source: str) -> list[str]:
    """Calls that read or write text in the encoding of the locale."""
    return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and is_loose(node)]


def is_loose(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    last = name.rpartition(".")[2]
    if last in WITH_TEXT:
        return len(call.args) <= WITH_TEXT[last]
    is_file = last == "open" and not any(reader in name for reader in READERS_OF_THEIR_OWN)
    return is_file and not any("b" in ast.unparse(argument) for argument in call.args if "'" in ast.unparse(argument))


def test_every_text_file_names_its_encoding():
    assert len(SOURCES) > 300
    found = {path.name: loose for path in SOURCES if (loose := without_encoding(path.read_text(encoding="utf-8")))}
    assert not found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("path.read_text()", 1), ("path.write_text(text)", 1), ("open(path)", 1), ("path.open('w', newline='')", 1),
        ("path.read_text(encoding='utf-8')", 0), ("path.write_text(text, 'utf-8')", 0), ("path.open('rb')", 0),
        ("open(path, 'ab' if resumed else 'wb')", 0), ("Image.open(path)", 0),
    ],
)  # fmt: skip
def test_a_file_in_the_encoding_of_the_locale_is_noticed(source, count):
    assert len(without_encoding(source)) == count
