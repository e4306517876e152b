"""A trained model as a folder of two files: the weights, and a card that says what they are."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from risfast import __version__
from risfast.errors import FileFormatError
from risfast.geometry import Region
from risfast.io.durable import finite_json, replace_file, sealed_json, sha256_of
from risfast.io.guard import check_seal, file_digest, inside, load_json, naming, parsing, read_whole
from risfast.models.pretrained import CONFIDENCE_FILE, COUNT_FILE
from risfast.setup import Setup, array_from_json

MODEL_WEIGHTS = "model.safetensors"
MODEL_CARD = "model.json"
_FORMAT = 3  # 2 had no checksum of the card itself, 1 no setup
_SEAL, _CONFIDENCE_SUM = "card_sha256", "confidence_sha256"
_WEIGHTS_BYTES = 8 << 30
_LARGEST_COUNT = 2048  # in the options of a network, of what its weights do not show

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
    """Write a model folder; each file appears whole, the card last. A calibration is of other weights, and goes."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save({key: value.detach().cpu().contiguous() for key, value in weights.items()})
    content = {
        "format": _FORMAT,
        "version": __version__,
        "name": name,
        "options": dict(options),
        "setup": setup.to_json(),
        "sha256": sha256_of(data),
        **card,
    }
    for calibration in (CONFIDENCE_FILE, COUNT_FILE):
        (folder / calibration).unlink(missing_ok=True)
    replace_file(folder / MODEL_WEIGHTS, data)
    _write_card(folder, content)


def _write_card(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a card that vouches for itself, for the weights that it names, and for the calibration that is there."""
    confidence = folder / CONFIDENCE_FILE
    sums = {_CONFIDENCE_SUM: file_digest(confidence) if confidence.is_file() else None}
    replace_file(folder / MODEL_CARD, sealed_json(finite_json({**content, **sums}), _SEAL) + b"\n")


def write_confidence(folder: Path, content: bytes) -> None:
    """Put a calibration beside the weights that it was fitted on, and let their card vouch for it."""
    replace_file(folder / CONFIDENCE_FILE, content)
    if (folder / MODEL_CARD).is_file():
        _write_card(folder, _stored_card(folder))


def read_confidence(folder: Path) -> dict[str, Any] | None:
    """The calibration in a model folder, which the card there must vouch for; None where there is none."""
    path = folder / CONFIDENCE_FILE
    claimed = _stored_card(folder).get(_CONFIDENCE_SUM, "") if (folder / MODEL_CARD).is_file() else ""
    if not path.exists():
        if claimed:
            raise FileFormatError(f"{path}: missing, and {MODEL_CARD} vouches for one; fit it again")
        return None
    content = load_json(inside(folder, CONFIDENCE_FILE), "a calibration of the confidence")
    if claimed not in ("", file_digest(path)):
        raise FileFormatError(
            f"{path}: damaged, or of other weights: its checksum is not the one in {MODEL_CARD}; fit it again: "
            f"`python -m risfast.train.confidence --model {folder}`"
        )
    return content


def _stored_card(folder: Path) -> dict[str, Any]:
    """The card as it stands; its checksum is verified where it has one, which it must from format 3 on."""
    path, what = folder / MODEL_CARD, "the card of a model"
    if not path.exists():
        raise FileFormatError(f"{path}: missing; give the folder of a trained model")
    card = load_json(inside(folder, MODEL_CARD), what)
    found = card.get("format")
    if found not in range(1, _FORMAT + 1):
        raise FileFormatError(f"{path}: format {found!r:.60}, this version reads 1 to {_FORMAT}")
    if _SEAL in card or found == _FORMAT:
        check_seal(path, card, _SEAL)
    return card


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a model folder."""
    path, card = folder / MODEL_CARD, _stored_card(folder)
    with naming(path, "the card of a model"):
        if card["format"] == 1:
            card = _renewed(card)
        missing = {"name", "options", "setup", "sha256"} - set(card)
        if missing:
            raise FileFormatError(f"{path}: the card lacks {', '.join(sorted(missing))}")
        if not isinstance(card["options"], dict):
            raise ValueError(f"options must be an object, got {card['options']!r:.60}")
    return card


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
    with naming(folder / MODEL_CARD, "the card of a model"):
        own = Setup.from_json(card["setup"])
    if setup is not None:
        for name in ("array", "region", "wavefront"):
            if getattr(own, name) != getattr(setup, name):
                raise ValueError(
                    f"{folder} was trained for another {name}, {getattr(own, name)}, than the one given, "
                    f"{getattr(setup, name)}"
                )
    path = inside(folder, MODEL_WEIGHTS)
    weights = read_tensors(path, card["sha256"])
    for name, value in weights.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise FileFormatError(f"{path}: {name} ({value.dtype}) must hold finite real numbers")
    with naming(folder / MODEL_CARD, "the card of a model"), _no_larger_than(weights, card["options"]):
        module = build(card["name"], own, card["options"])
    with naming(path):
        load_weights(module, weights, str(path))
    return module.to(device).eval(), card


def read_tensors(path: Path, checksum: Any) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose SHA-256 is known; nothing is unpickled."""
    if not path.exists():
        raise FileFormatError(f"{path}: missing")
    data = read_whole(path, "weights", _WEIGHTS_BYTES)
    if sha256_of(data) != checksum:
        raise FileFormatError(f"{path}: damaged, its checksum is not the one that is stored beside it")
    with parsing(path, "safetensors"):
        return load(data)


@contextmanager
def _no_larger_than(weights: Mapping[str, Tensor], options: Mapping[str, Any]) -> Iterator[None]:
    """Stop a network that its card makes larger than the weights are, before its parameters are filled."""
    numbers = sum(value.numel() for value in weights.values())
    longest = max([_LARGEST_COUNT, *(side for value in weights.values() for side in value.shape)])
    for name, count in options.items():
        counts = count if isinstance(count, list) else [count]
        if any(isinstance(one, int) and one > longest for one in counts):
            raise ValueError(f"options.{name} = {count!r:.60} is larger than anything in {MODEL_WEIGHTS}")
    made, thread = 0, threading.get_ident()

    def count_up(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        if threading.get_ident() == thread and parameter is not None:
            made += parameter.numel()
            if made > numbers:
                raise ValueError(f"the options make a network of more than the {numbers} numbers in {MODEL_WEIGHTS}")

    handle = register_module_parameter_registration_hook(count_up)
    try:
        yield
    finally:
        handle.remove()


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Put weights into a module."""
    own, given = ({name: tuple(v.shape) for name, v in tensors.items()} for tensors in (module.state_dict(), weights))
    if own != given:
        name = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))[0]
        raise ValueError(
            f"{origin} is of another architecture: {name} has shape {given.get(name, 'none')} there and "
            f"{own.get(name, 'none')} here"
        )
    for name, value in module.state_dict().items():
        if weights[name].dtype != value.dtype:
            raise ValueError(f"{origin}: {name} must be {value.dtype}, found {weights[name].dtype}")
    module.load_state_dict(dict(weights))
