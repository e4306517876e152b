"""The refiner of a model folder, where its own test says that it helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from risfast.geometry import SearchGrid
from risfast.models.refiner import SpectrumRefiner
from risfast.refined import RefinedOptions, Refiner, build_refiner
from risfast.setup import Setup

__all__ = ["load_helpful_refiner"]


def load_helpful_refiner(
    folder: Path | str, backbone_card: dict[str, Any], setup: Setup, device: torch.device | str = "cpu"
) -> Refiner | None:
    """A refiner from its model folder, where its own test says that it helps.

    Parameters
    ----------
    folder : Path
        That a training of a refiner ended with.
    backbone_card : dict
        Of the backbone, as :func:`risfast.model_files.load_model` gives it.
    setup : Setup
    device : device

    Returns
    -------
    Refiner or None
        None where the card does not say ``"helps": true``: detection is better without it.

    Raises
    ------
    FileFormatError, ValueError
        A file is missing or damaged, or the refiner was trained for another setup or behind another backbone.
    """
    from risfast.model_files import load_model, read_card  # noqa: PLC0415 - safetensors only where a file is read

    path = Path(folder)
    card = read_card(path)
    if card.get("helps") is not True:
        return None
    if card["backbone"]["sha256"] != backbone_card["sha256"]:
        raise ValueError(f"{path} was trained behind another backbone than the one given; train it behind this one")
    network, card = load_model(path, build_refiner, device, setup)
    assert isinstance(network, SpectrumRefiner)  # build_refiner makes nothing else
    axes = {name: torch.tensor(values, dtype=torch.float64) for name, values in card["grid"].items()}
    return Refiner(network, SearchGrid(**axes), RefinedOptions(**card["reading"]))
