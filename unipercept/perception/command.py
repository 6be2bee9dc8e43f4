"""The option `--set` as settings: `mixup=0.2` belongs to the recipe, `size=96` to the maps."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from unipercept.errors import InputError
from unipercept.perception.settings import MapSettings, Recipe

WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a word", type(None): "None"}


def parse_settings(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`name=value` words as overrides of the recipe and of the maps.

    Raises:
        InputError: no such setting, a value of another type, a word without "=", or the seed, which is an option.
    """
    recipe = {field.name for field in fields(Recipe)}
    maps = {field.name for field in fields(MapSettings)} - {"modality"}
    types = {**get_type_hints(MapSettings), **get_type_hints(Recipe)}
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in recipe | maps:
            raise InputError(f"--set takes name=value with one of {', '.join(sorted(recipe | maps))}; got {word!r}")
        if name == "seed":  # the split is drawn with it too
            raise InputError(f"the seed is an option of its own: --seed {text}")
        found[name not in recipe][name] = _value(name, text, types[name])
    return found


def _value(name: str, text: str, expected: Any) -> Any:
    """The value of a setting whose type is `expected`: a plain type, a union of some, or a literal."""
    try:
        value = ast.literal_eval(text)  # numbers, True, None; no code is executed
    except (ValueError, SyntaxError):
        value = text
    if get_origin(expected) is Literal:
        if text in get_args(expected):
            return text
        raise InputError(f"{name} is one of {', '.join(get_args(expected))}; got {text!r}")
    kinds = get_args(expected) or (expected,)
    if type(value) in kinds or (float in kinds and type(value) is int):
        return value
    if str in kinds:
        return text
    raise InputError(f"{name} is {' or '.join(WORDS[kind] for kind in kinds)}; got {text!r}")
