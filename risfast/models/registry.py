"""Backbones by name, for configurations and checkpoints."""

from __future__ import annotations

from typing import Any

from torch import nn

from risfast.models.base import single_precision
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.setup import Setup

BACKBONES = ("unrolled", "transformer")


@single_precision()
def build_backbone(name: str, setup: Setup, options: dict[str, Any] | None = None) -> nn.Module:
    """Make a backbone with fresh parameters.

    Parameters
    ----------
    name : {"unrolled", "transformer"}
        Which backbone.
    setup : Setup
        The problem that it is for.
    options : dict, optional
        Fields of :class:`~risfast.models.unrolled.UnrolledOptions` or
        :class:`~risfast.models.transformer.TransformerOptions`, as plain values; the rest are the defaults.

    Returns
    -------
    torch.nn.Module
        With ``forward(Measurement)``, ``options()`` and ``sources(estimate)``.

    Raises
    ------
    ValueError
        An unknown name, field or value.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}; got {name!r}")
    try:
        if name == "unrolled":
            return UnrolledBackbone(setup, UnrolledOptions.from_dict(options or {}))
        # Its detection needs what the default does without.
        from risfast.models.transformer import TransformerBackbone, TransformerOptions  # noqa: PLC0415

        return TransformerBackbone(setup, TransformerOptions(**(options or {})))
    except TypeError as error:
        raise ValueError(f"the options of backbone {name!r} hold an unknown field, or another kind: {error}") from None
