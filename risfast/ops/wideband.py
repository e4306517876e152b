"""Maps of many frequencies: the spectra of narrow bands as one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import SearchGrid, SensorArray
from risfast.ops import checks
from risfast.ops.form import QuadraticForm, Spectrum
from risfast.setup import Setup

_DENSE_PRODUCTS = 4e9  # of a band, on a grid: a second or less

Fusion = Literal["geometric", "sum", "phat"]


def band_spectrum(
    R: Tensor,
    setup: Setup,
    grid: SearchGrid | None = None,
    *,
    fusion: Fusion = "geometric",
    loading: float = 1e-2,
) -> Spectrum:
    """One map of the covariances of several narrow bands.

    Parameters
    ----------
    R : complex tensor, shape (F, N, N) or (B, F, N, N)
        Covariances, the bands in the order of the setup's wavelengths.
    setup : Setup
        An array that is sampled directly, with F wavelengths.
    grid : SearchGrid, optional
        By default that of the setup.
    fusion : {"geometric", "sum", "phat"}
        ``geometric`` is the geometric mean of the Capon spectra, each relative to the mean power of its band: a grid
        lobe, which is elsewhere in every band, disappears. ``sum`` is their arithmetic mean, which also shows a source
        that only some bands hear. ``phat`` is the steered response of the phases alone, averaged over bands and pairs
        of elements, from -1 to 1 where all agree: the most robust one where rooms reflect.
    loading : float
        Diagonal loading of the Capon spectra.

    Returns
    -------
    Spectrum
        Power and range plane, (G_az, G_el) or (B, G_az, G_el): the largest over the range planes.

    Raises
    ------
    ShapeError, TypeError, ValueError
        A shape that is not that of the setup, an unknown fusion, or as :func:`risfast.ops.mvdr_spectrum`.

    Notes
    -----
    Geometric mean: M. Azimi-Sadjadi et al., "Wideband DOA estimation algorithms for multiple moving sources using
    unattended acoustic sensors", IEEE Trans. AES 44, 2008. Phase transform: J. H. DiBiase, "A high-accuracy,
    low-latency technique for talker localization in reverberant environments", 2000.
    """
    if fusion not in get_args(Fusion):
        raise ValueError(f"fusion must be one of {', '.join(get_args(Fusion))}; got {fusion!r}")
    covariance = checks.complex_tensor(R, "R")
    n, bands = setup.array.n_elements, setup.n_bands
    if covariance.ndim not in (3, 4) or covariance.shape[-3:] != (bands, n, n):
        raise ShapeError(f"R must have shape ({bands}, {n}, {n}) or (B, {bands}, {n}, {n}), got {tuple(R.shape)}")
    grid = setup.search_grid() if grid is None else grid
    batch = setup.without_gains(covariance if covariance.ndim == 4 else covariance[None])
    found = []
    for scene in batch:
        total: Tensor | None = None
        for volume in _volumes(scene, setup, grid, fusion, loading):
            part = volume.log_() if fusion == "geometric" else volume
            total = part if total is None else total.add_(part)
        assert total is not None  # a setup has at least one band
        total /= bands
        found.append((total.exp_() if fusion == "geometric" else total).max(-1))
    if not found:
        nothing = covariance.real.new_zeros(0, *grid.shape[:2], dtype=torch.float32)
        return Spectrum(nothing, nothing.long())
    power, plane = (torch.stack([one[i] for one in found]) for i in range(2))
    return Spectrum(power, plane) if covariance.ndim == 4 else Spectrum(power[0], plane[0])


def _volumes(scene: Tensor, setup: Setup, grid: SearchGrid, fusion: str, loading: float) -> Iterator[Tensor]:
    """Of each band, (G_az, G_el, G_r), single precision."""
    n = setup.array.n_elements
    one = torch.ones(1, dtype=torch.float64, device=scene.device)
    # A plan of every wavelength, which no other map uses, would take longer than the maps.
    method = "dense" if grid.size * n * n < _DENSE_PRODUCTS else "auto"
    for wavelength, matrix in zip(setup.wavelengths_m, scene, strict=True):
        array = SensorArray(setup.array.positions_m, wavelength)
        if fusion == "phat":
            phases = matrix / matrix.abs().clamp_min(torch.finfo(matrix.real.dtype).tiny)
            phases = (phases - torch.diag(phases.diagonal()))[None].to(torch.complex64)
            form = QuadraticForm(phases, False, "linear", one / max(n * (n - 1), 1), "analysis", None, True)
        else:
            mean = float(matrix.diagonal().real.mean())
            if not (mean > 0 and math.isfinite(mean)):
                raise ValueError(f"R of the band at {wavelength:.4g} m has no positive trace")
            form = QuadraticForm.capon((matrix / mean).to(torch.complex64)[None], loading)
        yield form.spectrum(array, grid, wavefront=setup.wavefront, method=method, reduce="none")[0]
