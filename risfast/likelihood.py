"""The stochastic likelihood of the snapshots and its derivatives, batched over scenes.

    y_l ~ CN(0, R_l),      R_l = sum_k p_k b_lk b_lk^H + sigma^2 I,      b_lk = Phi_l a(azimuth_k, elevation_k, range_k)

Everything about it, the Fisher information included, follows from Gram matrices of the b_lk and their derivatives in
the metric R_l^-1: nothing larger than M x M is ever factored. Range enters as 1/range, along which phases are nearly
linear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from risfast.geometry import PlanarArray
from risfast.models.base import Measurement
from risfast.steering import check_wavefront, steering_phase_gradient

__all__ = ["Derivatives", "Likelihood", "SourceState"]

_LEAST_RATIO = 1.05  # of n / d: a power that starts at zero would stay there
_POWER_STEPS = 8


@dataclass(frozen=True)
class SourceState:
    """Sources and noise of B scenes, float64.

    Attributes
    ----------
    position : tensor, shape (B, K, 3)
        Azimuth, elevation (radians), 1/range (1/metres).
    power : tensor, shape (B, K)
        p_k > 0, linear.
    noise : tensor, shape (B,)
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
        """4 K + 1: the three coordinates and the log power of each source, coordinate by coordinate; log noise."""
        return 4 * self.mask.shape[1] + 1

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
        return SourceState(self.position[:, used], self.power[:, used], self.noise, self.mask[:, used])

    def moved(self, step: Tensor) -> SourceState:
        """The state after a step in the parameters; those of sources that do not exist stay.

        Parameters
        ----------
        step : float64 tensor, shape (B, 4 K + 1)
            Azimuths and elevations (radians), 1/ranges (1/metres) and log powers (natural logarithm), K of each, then
            the log noise.

        Returns
        -------
        SourceState
            Positions move by the step; powers and noise grow by a factor, so that they stay positive.
        """
        k = self.mask.shape[1]
        by_source = torch.where(self.mask[:, None], step[:, : 4 * k].unflatten(1, (4, k)), 0.0)
        return replace(
            self,
            position=self.position + by_source[:, :3].mT,
            power=self.power * by_source[:, 3].exp(),
            noise=self.noise * step[:, 4 * k].exp(),
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


class Likelihood:
    """Log-likelihood of measurements as a function of sources.

    Parameters
    ----------
    measurement : Measurement
        Of B scenes.
    array : PlanarArray
        N elements.
    wavefront : {"spherical", "fresnel", "planar"}
    dtype : torch.complex128 or torch.complex64
        Of the products with the sensing operators, which are nearly all of the work. All that is M x M is complex128.
        complex64 moves the log-likelihood by some 1e-3, far less than a source is worth.

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
    ) -> None:
        check_wavefront(wavefront)
        self.y = measurement.y.to(torch.complex128)
        codes, channel = measurement.codes.to(dtype), measurement.channel.to(dtype)
        self.phi = channel[:, None] * codes[:, :, None]  # [B, L, M, N]
        self.array, self.wavefront = array, wavefront
        self._positions = array.positions_m.to(self.y.device)

    def __getitem__(self, index: Tensor) -> Likelihood:
        """The likelihood of some of the scenes, by their indices."""
        if len(index) == len(self.y):
            return self
        part = object.__new__(Likelihood)
        part.y, part.phi = self.y[index], self.phi[index]
        part.array, part.wavefront, part._positions = self.array, self.wavefront, self._positions
        return part

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, L, M)."""
        b, snapshots, m = self.y.shape
        return b, snapshots, m

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
            The second form stacks b and its derivatives with respect to azimuth, elevation and 1/range.
        """
        azimuth, elevation, inverse = position.unbind(-1)
        phase, gradient = steering_phase_gradient(
            self._positions, azimuth, elevation, 1 / inverse, self.array.wavenumber, self.wavefront
        )
        a = torch.complex(phase.cos(), phase.sin())  # [B, K, N]
        columns = a[:, None]
        if derivatives:
            columns = torch.cat([columns, 1j * gradient.transpose(1, 2) * columns], 1)  # [B, 4, K, N]
        flat = columns.flatten(1, 2).mT.to(self.phi.dtype)  # [B, N, (4) K]
        response = (self.phi.flatten(1, 2) @ flat).unflatten(1, (-1, self.shape[2])).to(torch.complex128)
        return response.unflatten(-1, (4, position.shape[1])) if derivatives else response

    def _factor(self, response: Tensor, state: SourceState) -> Tensor:
        """Lower Cholesky factors of R_l [B, L, M, M]; NaN where one does not exist."""
        scaled = response * torch.where(state.mask, state.power, 0.0).sqrt()[:, None, None]
        r = scaled @ scaled.mH
        r.diagonal(dim1=-2, dim2=-1).add_(state.noise[:, None, None])
        found = torch.linalg.cholesky_ex(r)
        return torch.where((found.info > 0)[..., None, None], torch.nan, found.L)

    def _value(self, factor: Tensor, whitened: Tensor) -> Tensor:
        logdet = 2 * factor.diagonal(dim1=-2, dim2=-1).real.log().sum((1, 2))
        return -logdet - whitened.abs().square().sum((1, 2))

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
        factor = self._factor(self.seen(state.position), state)
        whitened = torch.linalg.solve_triangular(factor, self.y[..., None], upper=False)[..., 0]
        return self._value(factor, whitened)

    def inverse(self, state: SourceState) -> Tensor:
        """Inverse covariances R_l^-1 of the snapshots.

        Parameters
        ----------
        state : SourceState
            Of B scenes.

        Returns
        -------
        complex128 tensor, shape (B, L, M, M)
            NaN where R_l is not definite.
        """
        return torch.cholesky_inverse(self._factor(self.seen(state.position), state))

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
        eye = torch.eye(self.shape[2], dtype=torch.complex128, device=self.y.device)
        factor = self._factor(self.seen(others.position), others)
        inverse_factor = torch.linalg.solve_triangular(factor, eye, upper=False)
        white = inverse_factor @ self.seen(path)  # [B, L, M, J]
        white_y = inverse_factor @ self.y[..., None]
        s = white.abs().square().sum(2)  # [B, L, J]
        q = (white.mH @ white_y)[..., 0].abs().square()
        total = s.sum(1).clamp_min(1e-300)
        rho = (q.sum(1) / total).clamp_min(_LEAST_RATIO)
        power = (rho - 1 + _LEAST_RATIO) * self.shape[1] / total
        for _ in range(_POWER_STEPS):
            shrunk = 1 / (1 + power[:, None] * s)
            power = power * (q * shrunk.square()).sum(1) / (s * shrunk).sum(1).clamp_min(1e-300)
        scaled = power[:, None] * s
        gain = (power[:, None] * q / (1 + scaled) - scaled.log1p()).sum(1)
        return gain.clamp_min(0), torch.where(gain > 0, power, 0.0)

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
        """
        m = self.shape[2]
        k = state.mask.shape[1]
        columns = self.seen(state.position, derivatives=True)  # [B, L, M, 4, K]
        factor = self._factor(columns[..., 0, :], state)
        eye = torch.eye(m, dtype=torch.complex128, device=self.y.device)
        inverse_factor = torch.linalg.solve_triangular(factor, eye, upper=False)
        white_y = (inverse_factor @ self.y[..., None])[..., 0]
        u = (inverse_factor.mH @ white_y[..., None])[..., 0]  # R^-1 y
        white = inverse_factor @ columns.flatten(3)  # [B, L, M, 4 K]
        gram = (white.mH @ white).unflatten(3, (4, k)).unflatten(2, (4, k))  # [B, L, 4, K, 4, K]
        solved = inverse_factor.mH @ white  # R^-1 columns
        p = torch.where(state.mask, state.power, 0.0)
        sigma = state.noise

        own = gram.diagonal(dim1=3, dim2=5)[:, :, 0]  # b_k^H R^-1 (b, db)_k  [B, L, 4, K]
        seen = (columns.flatten(3).mH @ u[..., None])[..., 0].unflatten(2, (4, k))  # (b, db)^H u
        slope = 2 * (seen[:, :, :1] * seen[:, :, 1:].conj() - own[:, :, 1:]).real
        scale = seen[:, :, :1].abs().square() - own[:, :, :1].real
        by_source = torch.cat([slope, scale], 2).sum(1) * p[:, None]  # [B, 4, K]
        traces = inverse_factor.abs().square().sum((1, 2, 3))
        by_noise = sigma * (u.abs().square().sum((1, 2)) - traces)
        gradient = torch.cat([by_source.flatten(1), by_noise[:, None]], 1)

        information = self._information(gram, p)
        squared = (solved.unflatten(3, (4, k)) * solved.unflatten(3, (4, k))[..., :1, :].conj()).sum((1, 2))
        cross = torch.cat([2 * squared[:, 1:].real, squared[:, :1].real], 1) * p[:, None] * sigma[:, None, None]
        inverse = inverse_factor.mH @ inverse_factor
        corner = sigma.square() * inverse.abs().square().sum((1, 2, 3))
        whole = torch.cat([information, cross.flatten(1)[:, None]], 1)
        last = torch.cat([cross.flatten(1), corner[:, None]], 1)
        whole = torch.cat([whole, last[..., None]], 2)
        there = torch.cat([state.mask.repeat(1, 4), state.mask.new_ones(len(state.mask), 1)], 1)
        both = there[:, :, None] & there[:, None]
        identity = torch.eye(whole.shape[1], dtype=whole.dtype, device=whole.device)
        return Derivatives(
            self._value(factor, white_y), torch.where(there, gradient, 0.0), torch.where(both, whole, identity)
        )

    @staticmethod
    def _information(gram: Tensor, p: Tensor) -> Tensor:
        """Fisher information of positions and log powers [B, 4 K, 4 K]."""
        between = gram[:, :, 0, :, 0]  # b_i^H R^-1 b_j  [B, L, K, K]
        right = gram[:, :, 0, :, 1:]  # b_i^H R^-1 d_c b_j  [B, L, K, 3, K]
        inner = gram[:, :, 1:, :, 1:]  # d_c b_i^H R^-1 d_e b_j  [B, L, 3, K, 3, K]
        # Angles and ranges: 2 p_i p_j Re[(b_i^H db_j)(b_j^H db_i) + (b_i^H b_j)(db_j^H db_i)].
        swapped = right.permute(0, 1, 3, 4, 2)  # [c of i, i, j]: b_j^H d_c b_i
        first = torch.einsum("bliej,blcij->bciej", right, swapped)
        # (db_j^H db_i) is the conjugate of inner_ij.
        second = (between[:, :, None, :, None] * inner.conj()).sum(1)
        angles = 2 * (first + second).real
        # With log powers: 2 p_i p_j Re[(b_i^H d_c b_j)(b_j^H b_i)], and |b_i^H b_j|^2 among them.
        mixed = 2 * (right * between.conj()[:, :, :, None]).real.sum(1)  # [B, i, c, j]
        powers = between.abs().square().sum(1)
        b, k = p.shape
        whole = torch.empty(b, 4, k, 4, k, dtype=p.dtype, device=p.device)
        whole[:, :3, :, :3] = angles
        whole[:, 3, :, :3] = mixed
        whole[:, :3, :, 3] = mixed.permute(0, 2, 3, 1)
        whole[:, 3, :, 3] = powers
        whole = whole * p[:, None, :, None, None] * p[:, None, None, None]
        return whole.reshape(b, 4 * k, 4 * k)
