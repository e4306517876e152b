"""Baselines by name."""

from __future__ import annotations

from typing import Any

from risfast.baselines.base import Baseline
from risfast.baselines.capon import AlsCapon, LsCapon, TransformerCapon, TrueCapon
from risfast.baselines.decoupled import DecoupledMusic, SeparableMusic
from risfast.baselines.fits import GreedyMl, Sbl
from risfast.baselines.music import Bartlett, LsMusic, RangeMusic
from risfast.setup import Setup

BASELINES: dict[str, type[Baseline]] = {
    "ls_capon": LsCapon,
    "als_capon": AlsCapon,
    "ls_music": LsMusic,
    "bartlett": Bartlett,
    "decoupled_music": DecoupledMusic,
    "separable_music": SeparableMusic,
    "range_music": RangeMusic,
    "sbl": Sbl,
    "greedy_ml": GreedyMl,
    "transformer_capon": TransformerCapon,
    "true_capon": TrueCapon,
}
"""The class of each baseline. ``true_capon`` needs the truth: see its ``with_truth``."""


def build_baseline(name: str, setup: Setup, options: Any = None) -> Baseline:
    """Make a baseline.

    Parameters
    ----------
    name : str
        One of :data:`BASELINES`.
    setup : Setup
        What it is for.
    options : dataclass, optional
        Of the class that ``BASELINES[name].Options`` is; None is its defaults.

    Returns
    -------
    Baseline

    Raises
    ------
    TypeError, ValueError
        An unknown name, options of another class, or what the class itself refuses.
    """
    if name not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}; got {name!r}")
    kind = BASELINES[name]
    if options is not None and not isinstance(options, kind.Options):
        raise TypeError(f"options of {name} must be {kind.Options.__name__}, got {type(options).__name__}")
    return kind(setup, options)
