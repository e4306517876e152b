"""Baselines by name."""

from __future__ import annotations

from typing import Any

from risfast.baselines.base import Baseline
from risfast.baselines.capon import (
    AlsCapon,
    AlsCaponOptions,
    CaponOptions,
    LsCapon,
    TransformerCapon,
    TransformerCaponOptions,
    TrueCapon,
)
from risfast.baselines.decoupled import (
    DecoupledMusic,
    DecoupledMusicOptions,
    SeparableMusic,
    SeparableMusicOptions,
)
from risfast.baselines.fits import GreedyMl, GreedyMlOptions, Sbl, SblOptions
from risfast.baselines.music import LsMusic, MusicOptions, RangeMusic, RangeMusicOptions
from risfast.setup import Setup

BASELINES: dict[str, tuple[type[Any], type[Any]]] = {
    "ls_capon": (LsCapon, CaponOptions),
    "als_capon": (AlsCapon, AlsCaponOptions),
    "ls_music": (LsMusic, MusicOptions),
    "decoupled_music": (DecoupledMusic, DecoupledMusicOptions),
    "separable_music": (SeparableMusic, SeparableMusicOptions),
    "range_music": (RangeMusic, RangeMusicOptions),
    "sbl": (Sbl, SblOptions),
    "greedy_ml": (GreedyMl, GreedyMlOptions),
    "transformer_capon": (TransformerCapon, TransformerCaponOptions),
    "true_capon": (TrueCapon, CaponOptions),
}
"""The class of each baseline and that of its options. ``true_capon`` needs the truth: see its ``with_truth``."""


def build_baseline(name: str, setup: Setup, options: Any = None) -> Baseline:
    """Make a baseline.

    Parameters
    ----------
    name : str
        One of :data:`BASELINES`.
    setup : Setup
        What it is for.
    options : dataclass, optional
        Of the class that the table names; None is its defaults.

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
    kind, kind_of_options = BASELINES[name]
    if options is not None and not isinstance(options, kind_of_options):
        raise TypeError(f"options of {name} must be {kind_of_options.__name__}, got {type(options).__name__}")
    made: Baseline = kind(setup, options)
    return made
