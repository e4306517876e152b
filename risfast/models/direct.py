"""For arrays that are sampled directly: the sample covariance, and its Capon map on a grid of atoms.

All snapshots share one covariance, so that every form on the atoms is one of a few vectors, a_g^H W W^H a_g: their
steering vectors are kept, N numbers an atom, where a surface needs maps between atoms and whole matrices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from risfast.detect import (
    DetectionOptions,
    RefinedPeaks,
    as_lists,
    background_db,
    choose_peaks,
    detect_sources,
)
from risfast.geometry import SensorArray
from risfast.models.atoms import MOST_ATOMS, AtomAxes
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.ops import local_maxima_3d
from risfast.setup import Setup
from risfast.sources import Sources
from risfast.steering import steering_vectors

_LOADING = 1e-2  # of trace / N
_STEERING_BYTES = 1 << 28
_BLOCK = 1 << 17  # products that are made at once: 1 MB, which a processor's cache holds
_CANDIDATES = 20
_RANK, _ITERATIONS = 10, 2  # of the leading part of a sample covariance: more than the most sources of a polish
_LEAST_LEFT = 1e-5  # of a steering vector's N: what single precision leaves


class SteeredAtoms(nn.Module):
    """A grid of atoms over (sin azimuth, sin elevation, 1/range) with their steering vectors, single precision."""

    positions: Tensor  # (G_az, G_el, G_r, 3)
    steering: Tensor  # (F, G, N)

    def __init__(self, setup: Setup, axes: AtomAxes | None = None) -> None:
        super().__init__()
        self.setup, self.axes = setup, axes or self.axes_of(setup)
        self.array, self.wavefront = setup.array, setup.wavefront
        azimuth, elevation = self.axes.angles(self.axes.coordinates)
        places = torch.meshgrid(azimuth, elevation, 1 / self.axes.inverse_range, indexing="ij")
        self.register_buffer("positions", torch.stack(places, -1), persistent=False)
        by_band = []
        for wavelength in setup.wavelengths_m:
            array = SensorArray(self.array.positions_m, wavelength)
            vectors = steering_vectors(array, *places, wavefront=self.wavefront, dtype=torch.complex64)
            by_band.append(vectors.flatten(0, 2))
        self.register_buffer("steering", torch.stack(by_band), persistent=False)

    @staticmethod
    def axes_of(setup: Setup) -> AtomAxes:
        """As dense as the array asks for, and as memory allows."""
        most = min(MOST_ATOMS, _STEERING_BYTES // (8 * setup.array.n_elements * setup.n_bands))
        return AtomAxes.of(setup, max(most, 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G_az, G_el, G_r)."""
        return self.axes.shape

    def power(self, vectors: Tensor) -> Tensor:
        """|W^H a_g|^2 of every atom, of B F scenes and bands.

        vectors (B F, N, R) -> (B F, G)
        """
        bands = len(self.steering)
        _, n, r = vectors.shape
        b = len(vectors) // bands
        columns = vectors.conj().to(torch.complex64).unflatten(0, (b, bands)).permute(1, 2, 0, 3)
        found = []
        for steering, own in zip(self.steering, columns.reshape(bands, n, b * r), strict=True):
            parts = []
            for rows in steering.split(max(_BLOCK // max(b * r, 1), 1)):
                squares = torch.view_as_real(rows @ own).square_()
                parts.append(squares.view(len(rows), b, 2 * r).sum(2))
            found.append(torch.cat(parts).mT)
        return torch.stack(found, 1).flatten(0, 1)


def fused(power: Tensor) -> Tensor:
    """Capon spectra of F bands as one: their geometric mean, in which a peak stands that most of them have.

    power (B, F, G) -> (B, G)
    """
    return power.log().mean(1).exp()


class Condensed(NamedTuple):
    """A matrix W W^H as its leading part and an even floor, Q diag(value) Q^H + floor I."""

    basis: Tensor  # (B, N, r) Orthonormal columns
    value: Tensor  # (B, r) What the leading eigenvalues have above the floor
    floor: Tensor  # (B,) Mean of the other eigenvalues


def condensed(vectors: Tensor, rank: int = _RANK) -> Condensed:
    """The leading part of W W^H, whose sources stand out of the noise, and the mean of the rest.

    vectors (B, N, R)
    """
    # Subspace iteration: N. Halko, P.-G. Martinsson, J. A. Tropp, "Finding structure with randomness", SIAM Review 53,
    # 2011. Always from the same columns, so that only W W^H matters and not W.
    _, n, r = vectors.shape
    rank = min(rank, n, r)
    drawn = torch.randn(n, rank, dtype=vectors.dtype, generator=torch.Generator().manual_seed(0))
    basis = vectors @ (vectors.mH @ drawn.to(vectors.device))
    for _ in range(_ITERATIONS - 1):
        basis = torch.linalg.qr(basis).Q
        basis = vectors @ (vectors.mH @ basis)
    basis = torch.linalg.qr(basis).Q
    small = vectors.mH @ basis
    value, turn = torch.linalg.eigh(small.mH @ small)
    rest = torch.view_as_real(vectors).square().sum((1, 2, 3)) - value.sum(1)
    floor = rest.clamp_min(0) / max(n - rank, 1)
    return Condensed(basis @ turn, (value - floor[:, None]).clamp_min(0), floor)


class SampleCovariance(nn.Module):
    """The backbone of an array that is sampled directly: its sample covariance, whose Capon peaks are its sources."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup, self.atoms = setup, SteeredAtoms(setup)

    def forward(self, measurement: Measurement) -> CovarianceEstimate:
        """The factor of the sample covariance, its Capon map, and a first value of the noise.

        Parameters
        ----------
        measurement : Measurement
            Of pooled snapshots.

        Returns
        -------
        CovarianceEstimate
        """
        factor = measurement.fields.mT / measurement.weight.sqrt()[:, None, None]
        mean = torch.view_as_real(factor).square().sum((1, 2, 3)) / factor.shape[1]
        lead = condensed(factor)
        # Woodbury's identity, as for Capon spectra of low rank.
        level = lead.floor + _LOADING * mean
        taken = lead.value / (lead.value + level[:, None])
        left = factor.shape[1] - self.atoms.power(lead.basis * taken.sqrt()[:, None])
        power = factor.shape[1] * level[:, None] / left.double().clamp_min(_LEAST_LEFT)
        if measurement.bands > 1:
            factor, level, power = (v.unflatten(0, (-1, measurement.bands)) for v in (factor, level, power))
            power = fused(power)
        return CovarianceEstimate(factor, power.unflatten(1, self.atoms.shape), level)

    def sources(self, estimate: CovarianceEstimate, **detection: Any) -> list[Sources]:
        """Peaks of the Capon spectrum, refined; of several bands, peaks of their spectrum among the atoms.

        Parameters
        ----------
        estimate : CovarianceEstimate
            Of this backbone.
        **detection
            Fields of :class:`risfast.DetectionOptions`.

        Returns
        -------
        list of Sources, one a scene
        """
        if self.setup.n_bands > 1:
            return self.candidates(estimate, **detection)
        return detect_sources(estimate.covariance(), self.setup, options=DetectionOptions(**detection))

    def candidates(self, estimate: CovarianceEstimate, **detection: Any) -> list[Sources]:
        """Peaks among the atoms, as near as a polish needs them; of fields of :class:`risfast.DetectionOptions`."""
        assert estimate.power is not None  # an estimate of this backbone has it
        power = estimate.power
        circle = self.atoms.axes.region.full_circle
        peaks = local_maxima_3d(power, window=(3, 3, 3), k=_CANDIDATES, full_circle=circle)
        there = torch.arange(_CANDIDATES, device=power.device) < peaks.count[:, None]
        index = peaks.index.clamp_min(0).unbind(-1)
        place = self.atoms.positions[index]
        height = power[torch.arange(len(power), device=power.device)[:, None], *index]
        found = RefinedPeaks(place, torch.where(there, height, 0.0), *background_db(power))
        return as_lists(choose_peaks(found, self.setup, DetectionOptions(**detection)), self.setup)
