"""A trained model as a folder of two files: the weights, and a card that says what they are."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from risfast import __version__
from risfast.errors import FileFormatError
from risfast.geometry import Region
from risfast.io.durable import finite_json, replace_file
from risfast.setup import Setup, array_from_json

MODEL_WEIGHTS = "model.safetensors"
MODEL_CARD = "model.json"
_FORMAT = 2

Build = Callable[[str, Setup, "dict[str, Any] | None"], nn.Module]
"""Makes a module from its name, the setup and its options."""


def save_model(
    folder: Path,
    name: str,
    weights: Mapping[str, Tensor],
    setup: Setup,
    options: Mapping[str, Any],
    card: Mapping[str, Any],
) -> None:
    """Write a model folder; each file appears whole, the card last."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save({key: value.detach().cpu().contiguous() for key, value in weights.items()})
    content = {
        "format": _FORMAT,
        "version": __version__,
        "name": name,
        "options": dict(options),
        "setup": setup.to_json(),
        "sha256": hashlib.sha256(data).hexdigest(),
        **card,
    }
    replace_file(folder / MODEL_WEIGHTS, data)
    replace_file(folder / MODEL_CARD, (json.dumps(finite_json(content), indent=1, allow_nan=False) + "\n").encode())


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a model folder."""
    path = folder / MODEL_CARD
    try:
        card = json.loads(path.read_bytes())
        if card["format"] == 1:
            card = _renewed(card)
        if card["format"] != _FORMAT:
            raise FileFormatError(f"{path}: format {card['format']!r}, this version reads 1 and {_FORMAT}")
        missing = {"name", "options", "setup", "sha256"} - set(card)
    except FileNotFoundError as error:
        raise FileFormatError(f"{path}: missing; give the folder of a trained model") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise FileFormatError(f"{path}: not the card of a model: {error!r}") from error
    if missing:
        raise FileFormatError(f"{path}: the card lacks {', '.join(sorted(missing))}")
    return dict(card)


def _renewed(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card of format 1, whose region and wavefront stand among the options, or in the system it was trained on."""
    options = dict(card["options"])
    system = card.get("training", {}).get("system", {})
    axes = options.get("axes", {})
    ends = {
        name: options.pop(name, axes.get(name)) or _degrees(system.get(name.replace("_rad", "_deg")))
        for name in ("azimuth_rad", "elevation_rad", "range_m")
    }
    wavefront = options.pop("wavefront", system.get("wavefront", "spherical"))
    pairs = {name: (-end, end) if isinstance(end, int | float) else tuple(end) for name, end in ends.items()}
    setup = Setup(array_from_json(card["array"]), Region(**pairs), wavefront)
    rest = {name: value for name, value in card.items() if name != "array"}
    return {**rest, "format": _FORMAT, "options": options, "setup": setup.to_json()}


def _degrees(pair: Sequence[float] | None) -> tuple[float, ...]:
    if pair is None:
        raise ValueError("the card says nothing of the region that it was trained for; train the model again")
    return tuple(map(math.radians, pair))


def load_model(
    folder: Path, build: Build, device: torch.device | str = "cpu", setup: Setup | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Read a model folder."""
    card = read_card(folder)
    try:
        own = Setup.from_json(card["setup"])
    except (ValueError, TypeError, KeyError) as error:
        raise FileFormatError(f"{folder / MODEL_CARD}: {error}") from error
    if setup is not None:
        for name in ("array", "region", "wavefront"):
            if getattr(own, name) != getattr(setup, name):
                raise ValueError(
                    f"{folder} was trained for another {name}, {getattr(own, name)}, than the one given, "
                    f"{getattr(setup, name)}"
                )
    path = folder / MODEL_WEIGHTS
    try:
        data = path.read_bytes()
        weights = load(data)
    except FileNotFoundError as error:
        raise FileFormatError(f"{path}: missing") from error
    except SafetensorError as error:
        raise FileFormatError(f"{path}: {error}") from error
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise FileFormatError(f"{path}: damaged, its checksum is not the card's")
    module = build(card["name"], own, card["options"]).to(device)
    load_weights(module, weights, str(path))
    return module.eval(), card


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Put weights into a module."""
    own, given = ({name: tuple(v.shape) for name, v in tensors.items()} for tensors in (module.state_dict(), weights))
    if own != given:
        name = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))[0]
        raise ValueError(
            f"{origin} is of another architecture: {name} has shape {given.get(name, 'none')} there and "
            f"{own.get(name, 'none')} here"
        )
    module.load_state_dict(dict(weights))
