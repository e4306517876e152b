"""Operators on covariances, factors and spectra of near-field arrays.

All are batched, take complex64 or complex128 with any strides, and choose a method by cost and validity
(``print(plan(array, grid))`` says which and why):

=========== ======================================= ============================================================
method      works for                               how
=========== ======================================= ============================================================
dense       any array, wavefront, grid or points    steering vectors made on the fly, in tiles
chebyshev   any array and wavefront, box grids      dense on a few nodes of angle, then two small products
lag         uniform planar array, fresnel or planar a trigonometric polynomial in the block-Toeplitz lags of Q
=========== ======================================= ============================================================

Error against float64 arithmetic at loading 1e-2, held by the tests at every grid point: 1e-3 dB for complex64 (1e-2 dB
for a low-rank factor), 1e-6 dB for complex128, for every method. On the CPU all Capon forms are computed in float64.

CUDA tensors are computed on their device, by Triton kernels, on the current stream and without waiting for the host:

- Values are not looked at. A scene that the CPU would refuse (NaN, no positive trace, not definite) comes out as NaN,
  the others do not suffer, and a matrix that is not Hermitian counts by its Hermitian part. With
  ``RISFAST_CHECK_VALUES=1`` in the environment the checks of the CPU are made, which wait for the device. MUSIC waits
  for its eigenvectors.
- Maps and volumes are stored with azimuth fastest.
- ``precision`` is the least precision of products: "auto" means float32's, as three tf32 products ("tf32x3") on NVIDIA
  and "ieee" on AMD; "tf32" is fast and wrong at a peak: by 9e-3 dB for a covariance at loading 1e-2, 1 dB for a factor.
  The lag method never reduces it; for complex64 it computes in float32 only where N / loading is at most 5000 (N = 36
  at loading 1e-2), within 1e-2 dB, and in float64 elsewhere, which has kernels for up to 32 columns of elements.
- complex128 has kernels for the lag method only. What has no kernel is computed by plain torch on the device, in
  float64, which waits for it and refuses what the CPU refuses; ``RISFAST_TRITON=0`` in the environment asks for that
  everywhere. Arrays of more than 256 elements are inverted by torch.linalg.
- Tables are kept with the plan, on the device. Call once before the capture of a CUDA graph; :func:`clear_plans` ends
  the use of graphs captured before.
"""

from risfast.ops.api import (
    analysis,
    bartlett_spectrum,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    synthesis,
)
from risfast.ops.form import QuadraticForm, Spectrum
from risfast.ops.peaks import Peaks, Selection, local_maxima_3d, nms_3d
from risfast.ops.plan import Plan, clear_plans, plan
from risfast.ops.wideband import band_spectrum

__all__ = [
    "Peaks",
    "Plan",
    "QuadraticForm",
    "Selection",
    "Spectrum",
    "analysis",
    "band_spectrum",
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
