"""The public operators: validate, then hand over to the registered op, which plans and executes.

Spectra live in ``risfast.ops.api_spectra``, the linear pair in ``risfast.ops.api_linear``; all are offered here.
"""

from risfast.ops.api_linear import analysis, synthesis
from risfast.ops.api_spectra import (
    Spectrum,
    bartlett_spectrum,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
)

__all__ = [
    "Spectrum",
    "analysis",
    "bartlett_spectrum",
    "music_spectrum",
    "mvdr_spectrum",
    "mvdr_spectrum_lowrank",
    "synthesis",
]
