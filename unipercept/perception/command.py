"""The option `--set` as settings: `mixup=0.2` belongs to the recipe, `size=96` to the maps."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from unipercept.errors import InputError
from unipercept.perception.settings import MapSettings, Recipe


def parse_settings(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`name=value` words as overrides of the recipe and of the maps.

    Raises:
        InputError: no such setting, or a word without "=".
    """
    recipe, maps = (
        {field.name for field in fields(Recipe)},
        {field.name for field in fields(MapSettings)} - {"modality"},
    )
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in recipe | maps:
            raise InputError(f"--set takes name=value with one of {', '.join(sorted(recipe | maps))}; got {word!r}")
        found[name not in recipe][name] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)  # numbers, True, None; no code is executed
    except (ValueError, SyntaxError):
        return text
