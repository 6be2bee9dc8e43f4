"""The few exceptions that a caller may want to catch.

Each message is one line: what was expected, what came, what to do.
"""

import importlib
import re
from types import ModuleType

MESSAGE_LIMIT = 1000  # characters of one of our own messages, which may name a path or two
_NO_TEXT = re.compile(r"[\ud800-\udfff]")  # how Python holds the bytes of a name that is not UTF-8
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # would move the cursor, or are no text at all


class UniperceptError(Exception):
    """Base of every error that the caller can fix; the command line prints it as one line and exits with 2."""


class InputError(UniperceptError, ValueError):
    """A file, table or argument that cannot be used as it is."""


class MissingDependencyError(UniperceptError, ImportError):
    """An optional library is absent or cannot be loaded on this machine."""


class WeightsError(UniperceptError):
    """A checkpoint does not match the model, or cannot be obtained (offline, not cached, wrong hash)."""


class NoTrainedHeadError(UniperceptError):
    """The chosen model has no trained head for what was asked."""


def import_optional(name: str, *, extra: str) -> ModuleType:
    """Import the library `name`, which belongs to the install extra `extra`.

    Raises:
        MissingDependencyError: with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is needed here and could not be imported ({one_line(error)}); install it with: pip install 'unipercept[{extra}]'"
        ) from error


def counted(count: int, one: str, many: str) -> str:
    """A number with the words that go with it: counted(1, "row was", "rows were")."""
    return f"{count} {one if count == 1 else many}"


def one_line(error: object, limit: int = 300) -> str:
    """The text of an error from a library, folded to one line of at most `limit`
    characters that a terminal can show.
    """
    return shortened(printable(" ".join(str(error).split())) or type(error).__name__, limit)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters of a text, the last one an ellipsis if any are left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def as_text(path: str) -> str:
    """A name that is not UTF-8 with its odd bytes written out, as in \\xff: tables and JSON hold text alone."""
    return _NO_TEXT.sub(_written_out, path)


def printable(text: str) -> str:
    """Text with line ends, control characters and the odd bytes of a file name written out, as in \\n and \\xff."""
    return _CONTROL.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else match[0].encode("unicode_escape").decode()
