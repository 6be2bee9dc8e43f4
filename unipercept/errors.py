"""The few exceptions that a caller may want to catch. Each message is one line: what was expected, what came, what to do."""

import importlib
from types import ModuleType


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
    """The text of an error from a library, folded to one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
