"""The stochastic likelihood of the snapshots, its derivatives and its damped ascent, batched over scenes.

    y_l ~ CN(0, R_l),      R_l = sum_k p_k b_lk b_lk^H + sigma^2 I,      b_lk = Phi_l a(azimuth_k, elevation_k, range_k)

Everything about it, the Fisher information included, follows from Gram matrices of the b_lk, their derivatives and y_l;
the metric R_l^-1 comes by the Woodbury identity from a K x K factorisation. Range enters as 1/range, along which phases
are nearly linear.

Snapshots that share a code share R_l, and form a group: of an array that is sampled directly all L are one, the
likelihood is -L (log det R + tr(R^-1 S)) of their sample covariance S, and its cost does not depend on L.

Several narrow bands hear the same sources, at the same places, each with powers and noise of its own: their likelihoods
add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from risfast.geometry import Folds, PlanarArray
from risfast.models.base import Measurement
from risfast.setup import Setup
from risfast.steering import check_wavefront, direction_cosines, steering_phase, steering_phase_gradient


def squared_magnitude(values: Tensor) -> Tensor:
    """|z|^2 = Re(z)^2 + Im(z)^2, elementwise."""
    # ``abs().square()`` takes a guarded square root of every element first: on a processor that is six to ten times the
    # work.
    return values.real.square() + values.imag.square()


@dataclass(frozen=True)
class SourceState:
    """Sources and noise of B scenes, float64.

    Attributes
    ----------
    position : tensor, shape (B, K, 3)
        Azimuth, elevation (radians), 1/range (1/metres).
    power : tensor, shape (B, K), or (B, F, K) of several bands
        p_k > 0, linear.
    noise : tensor, shape (B,), or (B, F) of several bands
        sigma^2 > 0, linear.
    mask : bool tensor, shape (B, K)
        Which of the sources exist; the others are not looked at.
    """

    position: Tensor
    power: Tensor
    noise: Tensor
    mask: Tensor

    @property
    def n_parameters(self) -> int:
        """3 K + F (K + 1): the coordinates, one after another; log powers, band by band; log noise of each band."""
        return 3 * self.mask.shape[1] + self.bands * (self.mask.shape[1] + 1)

    @property
    def bands(self) -> int:
        """F."""
        return 1 if self.power.ndim == 2 else self.power.shape[1]

    @property
    def strength(self) -> Tensor:
        """Power of each source, summed over bands, (B, K)."""
        return self.power if self.power.ndim == 2 else self.power.sum(1)

    @property
    def by_band(self) -> SourceState:
        """The same with each band as a scene, B F of them."""
        if self.power.ndim == 2:
            return self
        f = self.bands
        position, mask = self.position.repeat_interleave(f, 0), self.mask.repeat_interleave(f, 0)
        return SourceState(position, self.power.flatten(0, 1), self.noise.flatten(), mask)

    def take(self, scenes: Tensor) -> SourceState:
        """Some of the scenes, by their indices.

        Parameters
        ----------
        scenes : int64 tensor, shape (b,)
            Which, from 0.

        Returns
        -------
        SourceState
            Of b scenes, in that order.
        """
        return SourceState(self.position[scenes], self.power[scenes], self.noise[scenes], self.mask[scenes])

    def columns(self, used: Tensor) -> SourceState:
        """Some of the slots of sources, by their indices.

        Parameters
        ----------
        used : int64 tensor, shape (k,)
            Which, from 0; the same in every scene.

        Returns
        -------
        SourceState
            Of the same scenes, with k slots.
        """
        return SourceState(self.position[:, used], self.power[..., used], self.noise, self.mask[:, used])

    def moved(self, step: Tensor) -> SourceState:
        """The state after a step in the parameters; those of sources that do not exist stay.

        Parameters
        ----------
        step : float64 tensor, shape (B, 3 K + F (K + 1))
            Azimuths and elevations (radians) and 1/ranges (1/metres), K of each, log powers (natural logarithm), K of
            each band, then the log noise of each band.

        Returns
        -------
        SourceState
            Positions move by the step; powers and noise grow by a factor, so that they stay positive.
        """
        k, f = self.mask.shape[1], self.bands
        by_source = torch.where(self.mask[:, None], step[:, :-f].unflatten(1, (3 + f, k)), 0.0)
        return replace(
            self,
            position=self.position + by_source[:, :3].mT,
            power=self.power * by_source[:, 3:].exp().view_as(self.power),
            noise=self.noise * step[:, -f:].exp().view_as(self.noise),
        )


@dataclass(frozen=True)
class Derivatives:
    """Log-likelihood with first derivatives and expected second ones.

    Attributes
    ----------
    value : tensor, shape (B,)
    gradient : tensor, shape (B, P)
        With respect to the parameters of :meth:`SourceState.moved`; 0 for sources that do not exist.
    information : tensor, shape (B, P, P)
        Fisher information; rows and columns of sources that do not exist are those of the identity.
    """

    value: Tensor
    gradient: Tensor
    information: Tensor

    def take(self, scenes: Tensor) -> Derivatives:
        """Some of the scenes, by their indices.

        Parameters
        ----------
        scenes : int64 tensor, shape (b,)
            Which, from 0.

        Returns
        -------
        Derivatives
            Of b scenes, in that order.
        """
        return Derivatives(self.value[scenes], self.gradient[scenes], self.information[scenes])


# Eigenvalues of the Fisher information, scaled to a unit diagonal, that rounding cannot tell from zero; and the part
# of a coordinate that must lie in their space for it to count as unbounded.
KNOWN = 1e30  # information of a coordinate that the region fixes
SINGULAR = 1e-12
UNBOUNDED = 1e-9


def coordinate_covariance(information: Tensor, k: int) -> Tensor:
    """Covariances of the coordinates of each source.

    information (B, P, P) -> (B, K, 3, 3)
    """
    # Blocks of the inverse. A coordinate that the data do not determine has an infinite variance, and no covariance
    # with the others (Stoica and Marzetta, "Parameter estimation problems with singular information matrices", IEEE
    # Trans. SP 49, 2001).
    inverse, lost, _ = scaled_inverse(information, definite=True)
    blocks, lost = position_blocks(inverse, lost, k)
    return blocks + torch.diag_embed(torch.where(lost, torch.inf, 0.0)).nan_to_num(nan=0.0, posinf=torch.inf)


def scaled_inverse(matrix: Tensor, *, definite: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pseudo-inverses of symmetric matrices, the parameters that they leave open, and which have no negative part.

    Of definite ones a negative eigenvalue is rounding. matrix (B, P, P) -> (B, P, P), (B, P), (B,)
    """
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    value, vector = torch.linalg.eigh(matrix * scale[:, :, None] * scale[:, None])
    null = (value if definite else value.abs()) <= SINGULAR * value.shape[1]
    inverse = (vector * torch.where(null, 0.0, 1 / value)[:, None]) @ vector.mT
    inverse = inverse * scale[:, :, None] * scale[:, None]
    return inverse, (vector.square() * null[:, None]).sum(2) > UNBOUNDED, ~((value < 0) & ~null).any(1)


def position_blocks(matrix: Tensor, lost: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Blocks of the coordinates of each source, zero in those that are lost, and which these are.

    matrix (B, P, P), lost (B, P) -> (B, K, 3, 3), (B, K, 3)
    """
    blocks = matrix[:, : 3 * k, : 3 * k].unflatten(1, (3, k)).unflatten(3, (3, k))
    blocks = blocks.diagonal(dim1=2, dim2=4).permute(0, 3, 1, 2)
    lost = lost[:, : 3 * k].unflatten(1, (3, k)).mT
    return torch.where(lost[..., None] | lost[..., None, :], 0.0, blocks), lost


_FARTHEST_M = 1e12  # beyond it amplitudes are alike
_LEAST_RATIO = 1.05  # of n / d: a power that starts at zero would stay there
_POWER_STEPS = 8


class Likelihood:
    """Log-likelihood of measurements as a function of sources.

    Parameters
    ----------
    measurement : Measurement
        Of B scenes.
    array : PlanarArray
        N elements.
    wavefront : {"spherical", "fresnel", "planar"}
    wavenumbers : float64 tensor, shape (B,), optional
        In the place of the array's.
    dtype : torch.complex128 or torch.complex64
        Of the products with the sensing operators, which are most of the work. Everything after them is complex128.
        complex64 moves the log-likelihood by some 1e-3, far less than a source is worth; pooled snapshots, of which
        there may be many, are always complex128.

    Raises
    ------
    ValueError
        An unknown wavefront.

    Notes
    -----
    The stochastic (unconditional) model: P. Stoica and A. Nehorai, "Performance study of conditional and unconditional
    direction-of-arrival estimation", IEEE Transactions on Acoustics, Speech, and Signal Processing 38(10), 1990.
    """

    def __init__(
        self,
        measurement: Measurement,
        array: PlanarArray,
        wavefront: str = "spherical",
        dtype: torch.dtype = torch.complex128,
        wavenumbers: Tensor | None = None,
    ) -> None:
        check_wavefront(wavefront)
        y, codes = measurement.y.to(torch.complex128), measurement.codes
        # G groups of ``weight`` snapshots that share a code, each of R columns whose outer products add up to theirs.
        self.y, self.weight, self.pooled = y[..., None], measurement.weight, measurement.pooled is not None
        if self.pooled:  # [B, G, M, R]
            self.y, codes, dtype = y.mT[:, None], codes[:, :1], torch.complex128
        self._energy = squared_magnitude(self.y).sum((1, 2, 3))
        self.codes, self.channel = codes.to(dtype), measurement.channel.to(dtype)
        # Pooled snapshots have codes of ones.
        self.phi = self.channel[:, None]  # [B, G, M, N]
        if not self.pooled:
            self.phi = self.phi * self.codes[:, :, None]
        self.array, self.wavefront = array, wavefront
        self.whitened = self.pooled and measurement.whitened
        self._positions = array.positions_m.to(self.y.device)
        self._wavenumbers = wavenumbers
        self.spreading: Tensor | None = None

    def __getitem__(self, index: Tensor) -> Likelihood:
        """The likelihood of some of the scenes, by their indices, ascending."""
        if len(index) == len(self.y):
            return self
        part = object.__new__(Likelihood)
        part.y, part.codes, part._energy = self.y[index], self.codes[index], self._energy[index]
        if self.pooled and not self.whitened:  # one identity for all
            part.channel = self.channel[:1].expand(len(index), -1, -1)
        else:
            part.channel = self.channel[index]
        part.phi = part.channel[:, None] if self.pooled else self.phi[index]
        part.array, part.wavefront, part._positions = self.array, self.wavefront, self._positions
        part.weight, part.pooled, part.whitened = self.weight[index], self.pooled, self.whitened
        part._wavenumbers = None if self._wavenumbers is None else self._wavenumbers[index]
        part.spreading = None if self.spreading is None else self.spreading[index]
        return part

    def with_spreading(self, exponent: Tensor) -> Likelihood:
        """The same where waves decay from element to element as (r / d_n)^exponent, relative to the origin.

        Parameters
        ----------
        exponent : float64 tensor, shape (B,)
            1 as in free space, 0 not at all.

        Returns
        -------
        Likelihood
        """
        part = copy(self)
        part.spreading = exponent
        return part

    def _weighted(self, values: Tensor) -> Tensor:
        """Values [B, ...] of one snapshot as those of all that share its code."""
        return values * self.weight.view(-1, *[1] * (values.ndim - 1)) if self.pooled else values

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, G, M): scenes, codes that the snapshots do not share, and antennas."""
        b, groups, m, _ = self.y.shape
        return b, groups, m

    @property
    def each(self) -> Likelihood:
        """Of each band."""
        return self

    @property
    def size(self) -> float:
        """L M, how many numbers a scene is."""
        _, groups, m = self.shape
        return groups * m * (float(self.weight[0]) if self.pooled and len(self.weight) else 1)

    def seen(self, position: Tensor, *, derivatives: bool = False) -> Tensor:
        """Responses b of the antennas to sources of unit power, and their derivatives.

        Parameters
        ----------
        position : float64 tensor, shape (B, K, 3)
            Azimuth, elevation (radians), 1/range (1/metres, > 0).
        derivatives : bool
            Whether the derivatives along the three coordinates come with them.

        Returns
        -------
        complex128 tensor, shape (B, L, M, K), or (B, L, M, 4, K) with ``derivatives``
            The second form stacks b and its derivatives with respect to azimuth, elevation and 1/range. Pooled
            snapshots have one response in the place of L.
        """
        if not derivatives:
            return self._products(self._steering(position)).to(torch.complex128)
        azimuth, elevation, inverse = position.unbind(-1)
        phase, gradient = steering_phase_gradient(
            self._positions, azimuth, elevation, 1 / inverse, self._wavenumber, self.wavefront
        )
        if self._wavenumbers is not None:
            phase = phase * self._wavenumbers[:, None, None]
            gradient = gradient * self._wavenumbers[:, None, None, None]
        a = torch.complex(phase.cos(), phase.sin())[:, None]  # [B, 1, K, N]
        slopes = 1j * gradient.transpose(1, 2)
        if self.spreading is not None:
            decay, along = self._decay(position)
            a, slopes = a * decay.exp()[:, None], slopes + along.transpose(1, 2)
        columns = torch.cat([a, slopes * a], 1)  # [B, 4, K, N]
        response = self._products(columns.flatten(1, 2)).to(torch.complex128)
        return response.unflatten(-1, (4, position.shape[1]))

    def _steering(self, position: Tensor) -> Tensor:
        """Steering vectors [B, K, N] of positions [B, K, 3], complex128."""
        azimuth, elevation, inverse = position.unbind(-1)
        direction = direction_cosines(azimuth, elevation)
        phase = steering_phase(self._positions, direction, 1 / inverse, self._wavenumber, self.wavefront)
        if self._wavenumbers is not None:
            phase = phase * self._wavenumbers[:, None, None]
        vectors = torch.complex(phase.cos(), phase.sin())
        return vectors if self.spreading is None else vectors * self._decay(position)[0].exp()

    def _decay(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of amplitudes [B, K, N], and their derivatives [B, K, 3, N], of positions [B, K, 3]."""
        # With the path psi = r - d: log(r / d) changes with an angle as psi' / d, and with 1/r as (r psi + psi') / d.
        assert self.spreading is not None
        azimuth, elevation, inverse = position.unbind(-1)
        r = (1 / inverse).clamp_max(_FARTHEST_M)
        path, slope = steering_phase_gradient(self._positions, azimuth, elevation, r, 1.0, self.wavefront)
        r = r[..., None]
        distance = (r - path).clamp_min(1e-12)
        along = (
            torch.cat([slope[..., :2, :], (r * path)[..., None, :] + slope[..., 2:, :]], -2) / distance[..., None, :]
        )
        exponent = self.spreading.view(-1, 1, 1)
        return exponent * (r / distance).log(), exponent[..., None] * along

    @property
    def _wavenumber(self) -> float:
        """Of all scenes; 1 where each has its own, which paths are multiplied by."""
        return self.array.wavenumber if self._wavenumbers is None else 1.0

    def _products(self, vectors: Tensor) -> Tensor:
        """Phi_l v [B, L, M, K] of vectors [B, K, N], in the working precision."""
        if self.pooled and not self.whitened:  # through an identity
            return vectors.mT[:, None]
        response = self.phi.flatten(1, 2) @ vectors.mT.to(self.phi.dtype)
        return response.unflatten(1, (-1, self.shape[2]))

    @staticmethod
    def _scaled(response: Tensor, state: SourceState) -> Tensor:
        """Responses [B, L, M, ..., K] times root powers; zero for sources that do not exist."""
        root = torch.where(state.mask, state.power, 0.0).sqrt()
        return response * root.view(len(root), *[1] * (response.ndim - 2), root.shape[1])

    def _factor(self, response: Tensor, state: SourceState) -> Tensor:
        """Lower Cholesky factors of R_l [B, L, M, M]; NaN where one does not exist."""
        scaled = self._scaled(response, state)
        return _cholesky(_plus_noise(scaled @ scaled.mH, state.noise))

    def value(self, state: SourceState) -> Tensor:
        """Log-likelihood, without the constant -L M log(pi).

        Parameters
        ----------
        state : SourceState
            Of B scenes.

        Returns
        -------
        float64 tensor, shape (B,)
            Natural logarithm; NaN where a covariance R_l is not definite.
        """
        scaled = self._scaled(self.seen(state.position), state)
        factor = _cholesky(_plus_noise(scaled.mH @ scaled, state.noise))
        return self._value(factor, scaled.mH @ self.y, state.noise)

    def losses(self, state: SourceState) -> Tensor:
        """What the log-likelihood loses without each source, everything else as it is.

        Parameters
        ----------
        state : SourceState
            Of B scenes.

        Returns
        -------
        float64 tensor, shape (B, K)
            Natural logarithm; infinite for sources that do not exist, NaN where a covariance R_l is not definite.

        Notes
        -----
        With T = (sigma^2 I + S^H S)^-1 and z = S^H y, source k explains |(T z)_k|^2 / (sigma^2 T_kk) of snapshot l and
        takes -log(sigma^2 T_kk) of its log determinant: Schur complements of row k.
        """
        scaled = self._scaled(self.seen(state.position), state)
        t = torch.cholesky_inverse(_cholesky(_plus_noise(scaled.mH @ scaled, state.noise)))
        noise = state.noise[:, None, None]
        own = noise * t.diagonal(dim1=2, dim2=3).real  # [B, G, K], at most 1
        tz = t @ (scaled.mH @ self.y)
        lost = (squared_magnitude(tz).sum(3) / own + self._weighted(own.log())).sum(1)
        return torch.where(state.mask, lost, torch.inf)

    def _value(self, factor: Tensor, matched: Tensor, noise: Tensor) -> Tensor:
        """Of the Cholesky factors [B, G, K, K] of sigma^2 I + S^H S, and of S^H y [B, G, K, R]."""
        _, groups, m = self.shape
        logdet = 2 * self._weighted(factor.diagonal(dim1=-2, dim2=-1).real.log().sum((1, 2)))
        logdet = logdet + self._weighted(groups * (m - factor.shape[-1]) * noise.log())
        explained = squared_magnitude(torch.linalg.solve_triangular(factor, matched, upper=False)).sum((1, 2, 3))
        return -logdet - (self._energy - explained) / noise

    def correction(self, state: SourceState) -> Tensor:
        """Low-rank part V_l of the inverse covariances, R_l^-1 = I / sigma^2 - V_l V_l^H.

        Parameters
        ----------
        state : SourceState
            Of B scenes.

        Returns
        -------
        complex128 tensor, shape (B, L, M, K)
            NaN where R_l is not definite.

        Notes
        -----
        Woodbury: with S = B P^(1/2) and the Cholesky factor C of sigma^2 I + S^H S, V = S C^-H / sigma.
        """
        scaled = self._scaled(self.seen(state.position), state)
        factor = _cholesky(_plus_noise(scaled.mH @ scaled, state.noise))
        whole = torch.linalg.solve_triangular(factor.mH, scaled, upper=True, left=False)
        return whole / state.noise.sqrt()[:, None, None, None]

    def profile(self, others: SourceState, path: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of one more source along a path, at its best power.

        Parameters
        ----------
        others : SourceState
            Of B scenes.
        path : tensor, shape (B, J, 3)
            Azimuth, elevation, 1/range.

        Returns
        -------
        gain : tensor, shape (B, J)
            Log-likelihood with the source less that without.
        power : tensor, shape (B, J)
            The power that maximises it; 0 where any power would lower it.

        Notes
        -----
        By the matrix determinant lemma: sum_l p |q_l|^2 / (1 + p s_l) - log(1 + p s_l) with s = b^H R^-1 b and
        q = b^H R^-1 y of the covariance R without the source. The power starts at what would be best if every snapshot
        saw the source with the same gain; the fixed point of the derivative's ratio then takes it to the maximum.
        s and q are the sparsity and quality factors of M. E. Tipping and A. C. Faul, "Fast marginal likelihood
        maximisation for sparse Bayesian models", AISTATS 2003.
        """
        s, q = self._along(others, path)
        total = s.sum(1).clamp_min(1e-300)
        rho = (q.sum(1) / total).clamp_min(_LEAST_RATIO)
        power = (rho - 1 + _LEAST_RATIO) * s.shape[1] / total
        for _ in range(_POWER_STEPS):
            shrunk = 1 / (1 + power[:, None] * s)
            power = power * (q * shrunk.square()).sum(1) / (s * shrunk).sum(1).clamp_min(1e-300)
        gain = self._gain(s, q, power)
        return gain.clamp_min(0), torch.where(gain > 0, power, 0.0)

    def gains(self, others: SourceState, path: Tensor, power: Tensor) -> Tensor:
        """Log-likelihood of one more source of a given power along a path, less that without.

        Parameters
        ----------
        others : SourceState
            Of B scenes.
        path : tensor, shape (B, J, 3)
            Azimuth, elevation, 1/range.
        power : tensor, shape (B,)
            Linear, > 0.

        Returns
        -------
        tensor, shape (B, J)
        """
        return self._gain(*self._along(others, path), power[:, None])

    def _along(self, others: SourceState, path: Tensor) -> tuple[Tensor, Tensor]:
        """b^H R^-1 b, and the mean of |b^H R^-1 y|^2 over the snapshots of a group, along a path: [B, G, J] both."""
        eye = torch.eye(self.shape[2], dtype=torch.complex128, device=self.y.device)
        factor = self._factor(self.seen(others.position), others)
        inverse_factor = torch.linalg.solve_triangular(factor, eye, upper=False)
        white_y = inverse_factor @ self.y
        # 64 bits: the gain is some L M times the SNR, and the posterior of range looks at differences of order one.
        white = inverse_factor @ self._products(self._steering(path)).to(torch.complex128)  # [B, L, M, J]
        s, q = squared_magnitude(white).sum(2), squared_magnitude(white_y.mH @ white).sum(2)
        return s, q / self.weight[:, None, None] if self.pooled else q

    def _gain(self, s: Tensor, q: Tensor, power: Tensor) -> Tensor:
        """What the log-likelihood gains by one more source of a power [B, J], of :meth:`_along`."""
        scaled = power[:, None] * s
        return self._weighted((power[:, None] * q / (1 + scaled) - scaled.log1p()).sum(1))

    def derivatives(self, state: SourceState) -> Derivatives:
        """Value, gradient and Fisher information.

        Parameters
        ----------
        state : SourceState
            Of B scenes.

        Returns
        -------
        Derivatives
            NaN in scenes where a covariance R_l is not definite.

        Notes
        -----
        Slepian-Bangs: F_ij = sum_l tr(R_l^-1 dR_l/di R_l^-1 dR_l/dj), with dR/dtheta = p (db b^H + b db^H),
        dR/dlog p = p b b^H and dR/dlog sigma^2 = sigma^2 I.
        P. Stoica and R. Moses, Spectral Analysis of Signals, 2005, appendix B.

        With S = B P^(1/2) and T = (sigma^2 I + S^H S)^-1, K x K, the Woodbury identity gives S^H R^-1 = T S^H and
        S^H R^-2 = T^2 S^H, R^-1 = (I - S T S^H) / sigma^2, tr R^-1 = (M - K) / sigma^2 + tr T and
        tr R^-2 = (M - K) / sigma^4 + tr T^2: nothing cancels but what the derivatives share with the sources. With more
        sources than antennas the derivatives lose digits from 50 dB of SNR on.
        """
        _, groups, m = self.shape
        k = state.mask.shape[1]
        noise = state.noise[:, None, None, None]
        columns = self._scaled(self.seen(state.position, derivatives=True), state).flatten(3)
        both = torch.cat([columns, self.y], -1)
        # Of pooled snapshots only the trace of their own Gram matrix, R x R, matters.
        product = (columns if self.pooled else both).mH @ both
        gram, matched = product[..., : 4 * k, : 4 * k], product[..., : 4 * k, 4 * k :]
        rows, z = gram[..., :k, :], matched[..., :k, :]  # S^H (S, dS) and S^H y
        factor = _cholesky(_plus_noise(rows[..., :k], state.noise))
        t = torch.cholesky_inverse(factor)
        tz, between = t @ z, t @ rows  # S^H R^-1 y and S^H R^-1 (S, dS)
        inner = ((gram[..., k:, k:] - rows[..., k:].mH @ between[..., k:]) / noise).unflatten(3, (3, k))
        u = torch.cat([tz, (matched[..., k:, :] - rows[..., k:].mH @ tz) / noise], 2)  # (S, dS)^H R^-1 y
        u = u.unflatten(2, (4, k))  # [B, G, 4, K, R]
        own = self._weighted(between.unflatten(3, (4, k)).diagonal(dim1=2, dim2=4))  # [B, G, 4, K]

        slope = 2 * ((u[:, :, :1] * u[:, :, 1:].conj()).sum(4) - own[:, :, 1:]).real
        scale = squared_magnitude(u[:, :, :1]).sum(4) - own[:, :, :1].real
        sigma = state.noise
        absent = self._weighted(torch.full_like(sigma, groups * (m - k)))
        trace = self._weighted(t.diagonal(dim1=2, dim2=3).real.sum((1, 2)))
        received = self._energy if self.pooled else product[..., -1, -1].real.sum(1)
        left = received - (z.conj() * tz).real.sum((1, 2, 3))
        by_noise = (left / sigma - squared_magnitude(tz).sum((1, 2, 3))) - (absent + sigma * trace)
        by_source = torch.cat([slope, scale], 2).sum(1)
        gradient = torch.cat([by_source.flatten(1), by_noise[:, None]], 1)

        information = self._weighted(self._information(between.unflatten(3, (4, k)), inner.unflatten(2, (3, k))))
        squared = (t @ between).unflatten(3, (4, k)).diagonal(dim1=2, dim2=4).real.sum(1)  # S^H R^-2 (S, dS)
        squared = self._weighted(squared)
        cross = torch.cat([2 * squared[:, 1:], squared[:, :1]], 1) * sigma[:, None, None]
        corner = absent + self._weighted(sigma.square() * squared_magnitude(t).sum((1, 2, 3)))
        whole = torch.cat([information, cross.flatten(1)[:, None]], 1)
        last = torch.cat([cross.flatten(1), corner[:, None]], 1)
        whole = torch.cat([whole, last[..., None]], 2)
        there = torch.cat([state.mask.repeat(1, 4), state.mask.new_ones(len(state.mask), 1)], 1)
        both = there[:, :, None] & there[:, None]
        identity = torch.eye(whole.shape[1], dtype=whole.dtype, device=whole.device)
        return Derivatives(
            self._value(factor, z, sigma), torch.where(there, gradient, 0.0), torch.where(both, whole, identity)
        )

    @staticmethod
    def _information(rows: Tensor, inner: Tensor) -> Tensor:
        """Fisher information of positions and log powers [B, 4 K, 4 K]."""
        # Of s_i^H R^-1 (s_j, ds_j) [B, L, K, 4, K] and ds_i^H R^-1 ds_j [B, L, 3, K, 3, K].
        between, right = rows[:, :, :, 0], rows[:, :, :, 1:]
        # Angles and ranges: 2 Re[(s_i^H ds_j)(s_j^H ds_i) + (s_i^H s_j)(ds_j^H ds_i)].
        swapped = right.permute(0, 1, 3, 4, 2)  # [c of i, i, j]: s_j^H d_c s_i
        first = torch.einsum("bliej,blcij->bciej", right, swapped)
        # (ds_j^H ds_i) is the conjugate of inner_ij.
        second = (between[:, :, None, :, None] * inner.conj()).sum(1)
        angles = 2 * (first + second).real
        # With log powers: 2 Re[(s_i^H d_c s_j)(s_j^H s_i)], and |s_i^H s_j|^2 among them.
        mixed = 2 * (right * between.conj()[:, :, :, None]).real.sum(1)  # [B, i, c, j]
        b, _, k = between.shape[:3]
        whole = torch.empty(b, 4, k, 4, k, dtype=angles.dtype, device=angles.device)
        whole[:, :3, :, :3] = angles
        whole[:, 3, :, :3] = mixed
        whole[:, :3, :, 3] = mixed.permute(0, 2, 3, 1)
        whole[:, 3, :, 3] = squared_magnitude(between).sum(1)
        return whole.reshape(b, 4 * k, 4 * k)


def _plus_noise(matrix: Tensor, noise: Tensor) -> Tensor:
    """Matrices [B, L, K, K] plus sigma^2 I."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return matrix + noise[:, None, None, None] * eye


def _cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factors; NaN where one does not exist."""
    found = torch.linalg.cholesky_ex(matrix)
    return torch.where((found.info > 0)[..., None, None], torch.nan, found.L)


# Longest step: of an angle in beam widths, of 1/range by the phase of the outermost element, of log power and log
# noise.
_LONGEST_BEAMS, _LONGEST_PHASE_RAD, _LONGEST_POWER, _LONGEST_NOISE = 0.44, 3.57, 1.5, 1.0
_DAMPING_START, _DAMPING_LEAST, _DAMPING_MOST = 1e-3, 1e-6, 1e6
_DAMPING_DOWN, _DAMPING_UP = 0.2, 10.0
# Of the log-likelihood: far below what a source is worth, and far below what the data tell.
_CONVERGED, _SETTLED = 1e-2, 1e-6
_LARGEST_UPDATE = 10.0  # of second derivatives, in units of the expected ones
# Expected gains that a scene is given to reach its goal: the likelihood is not quadratic.
_HOPE = 5.0


@dataclass(frozen=True)
class Box:
    """Where sources may be."""

    low: Tensor  # (3,) Bounds of (azimuth, elevation, 1/range)
    high: Tensor  # (3,) Bounds of (azimuth, elevation, 1/range)
    longest: Tensor  # (3,) Longest step of the same
    full_circle: bool  # Whether azimuth goes round
    folds: Folds  # Ends at which it turns back
    least_power: Tensor  # (B,) or (B, F)
    least_noise: Tensor  # (B,) or (B, F)

    @classmethod
    def of(cls, setup: Setup, least_power: Tensor, least_noise: Tensor) -> Box:
        """The region of a setup, and steps that its aperture can follow."""
        low, high = setup.region.bounds()
        beams = [_LONGEST_BEAMS * setup.array.wavelength_m / max(extent, 1e-300) for extent in setup.extents_m]
        curve = _LONGEST_PHASE_RAD / setup.curvature_rad_m if setup.curvature_rad_m > 0 else math.inf
        steps = torch.tensor([*beams, curve], dtype=torch.float64)
        # No step is longer than the region is.
        longest = torch.minimum(steps, (high - low).clamp_min(1e-12))
        device = least_power.device
        circle, folds = setup.region.full_circle, Folds.of(setup.array, setup.region)
        return cls(low.to(device), high.to(device), longest.to(device), circle, folds, least_power, least_noise)

    def __getitem__(self, scenes: Tensor) -> Box:
        """The same of some of the scenes."""
        return replace(self, least_power=self.least_power[scenes], least_noise=self.least_noise[scenes])

    def inside(self, position: Tensor) -> Tensor:
        """The nearest positions inside; azimuth goes round, and angles turn back, where the region does.

        position (..., 3)
        """
        position = self.folds.inside(position)
        if self.full_circle:
            middle = (self.low[0] + self.high[0]) / 2
            azimuth = torch.remainder(position[..., 0] - middle + math.pi, 2 * math.pi) - math.pi + middle
            position = torch.cat([azimuth[..., None], position[..., 1:]], -1)
        return torch.maximum(torch.minimum(position, self.high), self.low)

    def clamp(self, state: SourceState) -> SourceState:
        """The nearest state inside."""
        return replace(
            state,
            position=self.inside(state.position),
            power=torch.maximum(state.power, self.least_power[..., None]),
            noise=torch.maximum(state.noise, self.least_noise),
        )


@dataclass(frozen=True)
class Point:
    """States of B scenes with their log-likelihoods."""

    state: SourceState  # Of B scenes
    value: Tensor  # (B,) As :meth:`risfast.localize.likelihood.Likelihood.value` gives it

    def take(self, scenes: Tensor) -> Point:
        """Some of the scenes, by their indices.

        scenes (b,)
        """
        return Point(self.state.take(scenes), self.value[scenes])

    def put(self, scenes: Tensor, other: Point) -> Point:
        """A copy with some of the scenes, by their indices, taken from ``other``.

        scenes (b,)
        """
        return Point(_put(self.state, scenes, other.state), self.value.index_copy(0, scenes, other.value))


def climb(
    state: SourceState,
    at: Any,
    damping: Tensor,
    active: Tensor,
    iterations: int,
    *,
    propose: Callable[[Tensor, SourceState, Any, Tensor], tuple[Tensor, Tensor]],
    evaluate: Callable[[Tensor, SourceState, Any, Tensor], tuple[SourceState, Any]],
    judge: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]],
) -> tuple[SourceState, Any]:
    """Damped Newton steps of all scenes at once, each until it has settled.

    ``at`` is what a step is made from: a dataclass of tensors, ``value`` among them, with ``take``.
    ``propose`` gives the steps of the active scenes and which of these go on, ``evaluate`` the states after them, kept
    within their bounds, and what is there, ``judge`` from the new and the old values and the damping which steps
    are taken, the next damping, and which scenes go on.
    """
    for _ in range(iterations):
        here, now = state.take(active), at.take(active)
        step, more = propose(active, here, now, damping[active])
        going = more.nonzero()[:, 0]
        active = active[going]
        if not len(active):
            break
        before = now.take(going)
        moved, there = evaluate(active, here.take(going), before, step[going])
        better, damping[active], more = judge(there.value, before.value, damping[active])
        taken = better.nonzero()[:, 0]
        state = _put(state, active[taken], moved.take(taken))
        at = _put(at, active[taken], there.take(taken))
        active = active[more]
    return state, at


def _put(one: Any, scenes: Tensor, other: Any) -> Any:
    """A copy of a dataclass of tensors with some of the scenes, by their indices, taken from ``other``."""
    values = {f.name: getattr(one, f.name).index_copy(0, scenes, getattr(other, f.name)) for f in fields(one)}
    return replace(one, **values)


class Ascendable(Protocol):
    """A likelihood of B scenes that can be climbed."""

    def __getitem__(self, index: Tensor) -> Ascendable:
        """Of some of the scenes."""
        ...

    def derivatives(self, state: SourceState) -> Derivatives:
        """Value, gradient and Fisher information."""
        ...


def ascend(
    likelihood: Ascendable,
    state: SourceState,
    box: Box,
    iterations: int,
    goal: Tensor | None = None,
    precise: bool = False,
) -> Point:
    """Climb the likelihood of each scene until it hardly rises; no step makes it fall.

    goal (B,)
    """
    # Fisher scoring with Levenberg-Marquardt damping: (F + lambda diag F) step = gradient, lambda a fifth after a step
    # that was taken and ten times as large after one that was not. Coordinates at a bound that the gradient points out
    # of stay there, and the others move as if they were known. The expected gain is half the product of step and
    # gradient. D. W. Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", Journal of SIAM
    # 11(2), 1963.
    # A precise climb learns what the expected second derivatives lack of the true ones from the gradients on its way,
    # as in J. E. Dennis, D. M. Gay and R. E. Welsch, "An adaptive nonlinear least-squares algorithm", ACM Transactions
    # on Mathematical Software 7(3), 1981, but by symmetric updates of rank one: A. R. Conn, N. I. M. Gould and P. L.
    # Toint, "Convergence of quasi-Newton matrices generated by the symmetric rank one update", Mathematical Programming
    # 50, 1991. In single precision it would learn rounding.
    used = state.mask.any(0).nonzero()[:, 0]
    inner = state.columns(used)
    at = likelihood.derivatives(inner)
    lacking, settled = torch.zeros_like(at.information), _SETTLED if precise else _CONVERGED

    def propose(active: Tensor, here: SourceState, now: Derivatives, damping: Tensor) -> tuple[Tensor, Tensor]:
        held = _held(here, box, now.gradient)
        if precise:
            curved = now.information + lacking[active]
            concave = torch.linalg.cholesky_ex(_system(curved, damping, held)).info == 0
            now = replace(now, information=torch.where(concave[:, None, None], curved, now.information))
        step, expected = _step(now, damping, held, box.longest, here)
        promising = ~(expected < settled / 2)  # NaN is for the likelihood to refuse
        if goal is not None:
            promising &= ~(now.value + _HOPE * expected < goal[active])
        return step, promising

    def evaluate(active: Tensor, here: SourceState, now: Derivatives, step: Tensor) -> tuple[SourceState, Derivatives]:
        moved = box[active].clamp(here.moved(step))
        there = likelihood[active].derivatives(moved)
        if precise:
            lacking[active] += _lacking(here, now, moved, there, there.information + lacking[active], step)
        return moved, there

    def judge(there: Tensor, before: Tensor, damping: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gain = there - before
        better = gain > 0  # False for NaN
        damping = torch.where(better, damping * _DAMPING_DOWN, damping * _DAMPING_UP)
        return better, damping.clamp(_DAMPING_LEAST, _DAMPING_MOST), ~better | (gain >= settled)

    every = torch.arange(len(state.noise), device=state.noise.device)
    damping = torch.full_like(at.value, _DAMPING_START)
    found, at = climb(inner, at, damping, every, iterations, propose=propose, evaluate=evaluate, judge=judge)
    position, power = state.position.clone(), state.power.clone()
    position[:, used], power[..., used] = found.position, found.power
    return Point(SourceState(position, power, found.noise, state.mask), at.value)


def _held(state: SourceState, box: Box, gradient: Tensor) -> Tensor:
    """Which parameters [B, P] are coordinates at a bound that the gradient points out of."""
    k = state.mask.shape[1]
    slope = gradient[:, : 3 * k].unflatten(1, (3, k)).mT  # [B, K, 3]
    out = ((state.position >= box.high) & (slope > 0)) | ((state.position <= box.low) & (slope < 0))
    out |= box.high <= box.low  # a fixed coordinate
    if box.full_circle:
        out[..., 0] = False
    for axis, ends in enumerate((box.folds.azimuth, box.folds.elevation)):
        if all(ends):
            out[..., axis] = False
    return torch.cat([out.mT.flatten(1), out.new_zeros(len(out), state.n_parameters - 3 * k)], 1)


def _lacking(
    here: SourceState, now: Derivatives, moved: SourceState, there: Derivatives, curved: Tensor, step: Tensor
) -> Tensor:
    """What ``curved`` [B, P, P] lacks of the second derivatives along a step; 0 where the gradients do not tell."""
    apart = moved.position - here.position, (moved.power / here.power).log(), (moved.noise / here.noise).log()
    way = torch.cat([apart[0].mT.flatten(1), apart[1].flatten(1), apart[2].view(len(step), -1)], 1)
    missing = now.gradient - there.gradient - (curved @ way[..., None])[..., 0]
    along = (missing * way).sum(1)
    # What a short step seems to lack is rounding, and makes a large update, in units of the expected deviations.
    size = (missing.square() / there.information.diagonal(dim1=1, dim2=2).clamp_min(1e-300)).sum(1)
    told = _LARGEST_UPDATE * along.abs() > size
    told &= (way.abs() <= step.abs() * (1 + 1e-6) + 1e-12).all(1)  # none that went round or through a pole
    scale = torch.where(told, 1 / along, 0.0)
    return torch.where(told[:, None, None], missing[:, :, None] * missing[:, None] * scale[:, None, None], 0.0)


def _system(information: Tensor, damping: Tensor, held: Tensor) -> Tensor:
    """The damped information [B, P, P] of what is not held."""
    both = ~held[:, :, None] & ~held[:, None]
    diagonal = information.diagonal(dim1=1, dim2=2)
    # A direction that the data say nothing about would make the system singular.
    ridge = damping[:, None] * diagonal + 1e-12 * diagonal.amax(1, keepdim=True)
    return torch.where(both, information, 0.0) + torch.diag_embed(torch.where(held, 1.0, ridge))


def _step(at: Derivatives, damping: Tensor, held: Tensor, longest: Tensor, state: SourceState) -> tuple[Tensor, Tensor]:
    """Damped step [B, P], cut to the longest in each parameter, and the gain [B] to expect of the whole of it."""
    gradient = torch.where(held, 0.0, at.gradient)
    step = torch.linalg.solve_ex(_system(at.information, damping, held), gradient[..., None]).result[..., 0]
    expected = (gradient * step).sum(1) / 2
    k, f = state.mask.shape[1], state.bands
    others = longest.new_tensor([_LONGEST_POWER] * (f * k) + [_LONGEST_NOISE] * f)
    bound = torch.cat([longest.repeat_interleave(k), others])
    return torch.maximum(torch.minimum(torch.where(step.isfinite(), step, 0.0), bound), -bound), expected
