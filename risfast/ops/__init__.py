"""Operators on covariances, factors and spectra of near-field arrays.

All are batched, take complex64 or complex128 with any strides, and choose a method by cost and validity
(``print(plan(array, grid))`` says which and why):

=========== ======================================= ============================================================
method      works for                               how
=========== ======================================= ============================================================
dense       any array, wavefront, grid or points    steering vectors made on the fly, in tiles
chebyshev   any array and wavefront, box grids      dense on Chebyshev nodes of angle, then two small products
lag         uniform planar array, fresnel or planar a trigonometric polynomial in the block-Toeplitz lags of Q
=========== ======================================= ============================================================

Error against float64 arithmetic at loading 1e-2, held by the tests at every grid point: 1e-3 dB for complex64 (1e-2 dB
for a low-rank factor), 1e-6 dB for complex128, for every method. On the CPU all Capon forms are computed in float64.
"""

from risfast.ops.api import (
    Spectrum,
    analysis,
    bartlett_spectrum,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    synthesis,
)
from risfast.ops.peaks import Kept, Peaks, local_maxima_3d, nms_3d
from risfast.ops.plan import Plan, clear_plans, plan

__all__ = [
    "Kept",
    "Peaks",
    "Plan",
    "Spectrum",
    "analysis",
    "bartlett_spectrum",
    "clear_plans",
    "local_maxima_3d",
    "music_spectrum",
    "mvdr_spectrum",
    "mvdr_spectrum_lowrank",
    "nms_3d",
    "plan",
    "synthesis",
]
