"""Files of forecasters: weights as safetensors with a card, JSON, in their header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from unipercept.errors import InputError, WeightsError, one_line

Config = TypeVar("Config")


def read_forecaster(place: Path, wanted: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and tensors of a file; nothing is unpickled.

    Args:
        wanted: the card's `format`.

    Raises:
        InputError: no such file.
        WeightsError: no safetensors, or of another format.
    """
    from safetensors import SafetensorError, safe_open

    if not place.is_file():
        raise InputError(f"{place} does not exist; a forecaster is a file that `save` wrote")
    try:
        with safe_open(str(place), framework="pt") as file:
            card = json.loads((file.metadata() or {}).get("unipercept", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"cannot read {place} as a forecaster: {one_line(error)}") from error
    if card.get("format") != wanted:
        raise WeightsError(f"{place} holds no forecaster of the format {wanted}, but of {card.get('format', 'none')}")
    return card, tensors


def config_of(card: dict[str, Any], kind: type[Config], place: Path) -> Config:
    """The sizes that a card tells, as the dataclass `kind`.

    Raises:
        WeightsError: sizes that are missing or unknown.
    """
    try:
        return kind(**{**card["config"], "quantiles": tuple(card["config"]["quantiles"])})
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"{place} was written by another version of unipercept, fit it anew: {one_line(error)}"
        ) from error


def load_weights(network: nn.Module, tensors: dict[str, Tensor], place: Path) -> None:
    """Put a file's tensors into a network, in single precision.

    Raises:
        WeightsError: names or shapes are not those that the card promises.
    """
    try:
        network.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in tensors.items()})
    except RuntimeError as error:
        raise WeightsError(f"the weights in {place} do not match their card: {one_line(error)}") from error
