"""The lag method: on a uniform planar array with a Fresnel or planar phase, a^H Q a is a trigonometric polynomial.

With a_n = exp(j k (p_n.u - |p_n|^2 / 2 r)),

    a^H Q a = sum_D C_D(r) exp(j k (D_h u_x + D_v u_y)),    C_D(r) = sum_{p_m - p_n = D} conj(w_n) Q_nm w_m,

w_n = exp(-j k |p_n|^2 / 2 r): the coefficients are weighted sums along the block-Toeplitz diagonals of Q, range only
re-weights them, and u_y = sin(elevation) separates. Mirror images in elevation share the tables of u_x.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from risfast.geometry import Lattice, find_lattice
from risfast.ops.domain import Domain, HalfAxis, adjoint_of, antisymmetric
from risfast.ops.evaluators import Operand, Place, Tile

_TILE_BYTES = 1 << 21
COEFFICIENT_BYTES = 1 << 24  # held at once while the diagonals are summed


def _curvature(domain: Domain, coordinate: Tensor) -> Tensor:
    """exp(-j k x^2 / 2 r) on every plane, [R, n]; 1 for the planar wavefront."""
    phase = torch.zeros(domain.range.numel(), coordinate.numel(), dtype=torch.float64)
    if domain.wavefront == "fresnel":
        phase = -domain.wavenumber * coordinate.square() / (2 * domain.range[:, None])
    return torch.complex(phase.cos(), phase.sin())


def lattice_weights(domain: Domain, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """The weights w of columns and of rows, which separate because |p|^2 = x^2 + y^2.

    -> (R, n_h), (R, n_v)
    """
    p = domain.positions[torch.tensor(lattice.order)].reshape(lattice.n_h, lattice.n_v, 3)
    return _curvature(domain, p[:, 0, 0]), _curvature(domain, p[0, :, 1])


def vertical_phase(domain: Domain, lattice: Lattice, elevation: Tensor) -> Tensor:
    """K D_v spacing sin(el) for D_v from 1 - n_v to n_v - 1.

    elevation (E,) -> (2 n_v - 1, E)
    """
    lag_v = torch.arange(-(lattice.n_v - 1), lattice.n_v, dtype=torch.float64)
    return domain.wavenumber * lattice.spacing_v_m * lag_v[:, None] * elevation.sin()


def horizontal_phase(domain: Domain, lattice: Lattice, elevation: Tensor, azimuth: Tensor) -> Tensor:
    """K D_h spacing sin(az) cos(el) for D_h from 0 to n_h - 1.

    elevation (E,), azimuth (A,) -> (E, n_h, A)
    """
    lag_h = torch.arange(lattice.n_h, dtype=torch.float64)
    unit = domain.wavenumber * lattice.spacing_h_m
    return unit * elevation.cos()[:, None, None] * lag_h[:, None] * azimuth.sin()


class LagBox:
    """The lag method on a box, in float64."""

    def __init__(self, domain: Domain, keep: bool) -> None:
        lattice = find_lattice(domain.positions)
        if lattice is None:
            raise AssertionError("the plan lets only uniform planar arrays come here")
        self.domain, self.lattice = domain, lattice
        self.order = torch.tensor(lattice.order)
        # Elevation is folded if it is antisymmetric; the array's own symmetry does not matter here.
        self.elevation = HalfAxis(domain.elevation, antisymmetric(domain.elevation))
        self.weights_h, self.weights_v = lattice_weights(domain, lattice)  # [R, n_h], [R, n_v]
        phase = vertical_phase(domain, lattice, self.elevation.values)
        self.vertical = torch.complex(phase.cos(), phase.sin())  # [2 n_v - 1, half G_el]
        self._kept = self._tables(0, self.elevation.half) if keep else None

    @staticmethod
    def stored_bytes(domain: Domain, lattice: Lattice) -> int:
        """Bytes that ``keep`` costs."""
        half_el = HalfAxis(domain.elevation, antisymmetric(domain.elevation)).half
        return 16 * half_el * domain.azimuth.numel() * lattice.n_h

    def _tables(self, low: int, high: int) -> Tensor:
        """cos, then sin, of k D_h spacing sin(az) cos(el): [elevation, 2 n_h, azimuth]."""
        phase = horizontal_phase(self.domain, self.lattice, self.elevation.values[low:high], self.domain.azimuth)
        return torch.cat([phase.cos(), phase.sin()], 1)

    @property
    def cached_bytes(self) -> int:
        """Bytes of the stored tables."""
        return 0 if self._kept is None else self._kept.numel() * self._kept.element_size()

    def tables(self, low: int, high: int) -> Tensor:
        """Cosines, then sines, of k D_h spacing sin(az) cos(el).

        -> (high - low, 2 n_h, G_az)
        """
        return self._tables(low, high) if self._kept is None else self._kept[low:high]

    def coefficients(self, matrix: Tensor) -> Tensor:
        """The coefficients C_D(r) for D_h >= 0, doubled where D_h > 0.

        matrix (b, N, N) -> (b, R, n_h, 2 n_v - 1)
        """
        n_h, n_v = self.lattice.n_h, self.lattice.n_v
        q = matrix[:, self.order[:, None], self.order].reshape(-1, n_h, n_v, n_h, n_v)
        planes = max(1, COEFFICIENT_BYTES // (64 * q.shape[0] * n_h * n_v * n_v))
        return torch.cat(
            [
                self._some_coefficients(q, w_h, w_v)
                for w_h, w_v in zip(self.weights_h.split(planes), self.weights_v.split(planes), strict=True)
            ],
            1,
        )

    def _some_coefficients(self, q: Tensor, weights_h: Tensor, weights_v: Tensor) -> Tensor:
        """Coefficients of the planes with these weights, [R', n_h] and [R', n_v]."""
        n_h, n_v = self.lattice.n_h, self.lattice.n_v
        b, r = q.shape[0], weights_h.shape[0]
        by_lag = torch.empty(n_h, b, n_v, n_v, r, dtype=torch.complex128)
        for lag in range(n_h):  # sum over the columns i_h with i_h + lag inside
            weights = weights_h[:, : n_h - lag].conj().resolve_conj() * weights_h[:, lag:]
            torch.matmul(q.diagonal(lag, 1, 3), weights.mT, out=by_lag[lag])
        by_lag[1:] *= 2
        vertical = weights_v.conj().resolve_conj()[:, None, :, None] * weights_v[:, None, None]
        lags = by_lag.permute(1, 4, 0, 2, 3) * vertical
        # Skew: row i_v of [i_v, j_v] shifted right by n_v - 1 - i_v puts equal lags j_v - i_v in one column. Rows of
        # length 2 n_v read as rows of length 2 n_v - 1 do just that, last row first.
        skewed = torch.zeros(b, r, n_h, n_v, 2 * n_v, dtype=torch.complex128)
        skewed[..., :n_v] = lags.flip(3)
        flat = skewed.reshape(b, r, n_h, -1)[..., : n_v * (2 * n_v - 1)]
        return flat.reshape(b, r, n_h, n_v, 2 * n_v - 1).sum(3)

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Slabs of elevations; where elevation is mirrored, the second image holds the negative ones, outwards."""
        c = self.coefficients(operand.hermitian())
        b, r, n_h, _ = c.shape
        images = [c @ self.vertical]  # [b, R, n_h, half G_el]
        if self.elevation.mirrored:
            images.append(c @ self.vertical.conj())
        rows = torch.cat(images).permute(3, 0, 1, 2).reshape(self.elevation.half, -1, n_h)
        rows = torch.cat([rows.real, -rows.imag], -1)  # [half G_el, images * b * R, 2 n_h]
        axis, whole = self.elevation, slice(None)
        first = axis.count - axis.half
        step = max(1, _TILE_BYTES // (8 * rows.shape[1] * self.domain.azimuth.numel()))
        for low in range(0, self.elevation.half, step):
            high = min(low + step, self.elevation.half)
            q = torch.bmm(rows[low:high], self.tables(low, high))
            upper = Place(whole, slice(first + low, first + high), elevation_first=True)
            lower = Place(whole, slice(axis.half - high, axis.half - low), elevation_first=True, reverse=True)
            places = (upper, lower) if axis.mirrored else (upper,)
            yield Tile(q.reshape(high - low, len(images) * b, r, -1).permute(1, 2, 0, 3), places)

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis in the array's own order; see :class:`risfast.ops.evaluators.Evaluator`.

        weights (b, G_az, G_el, R) -> (b, N, N)
        """
        weights = weights.to(torch.float64)
        b, r = weights.shape[0], weights.shape[3]
        n_h = self.lattice.n_h
        upper, lower = self.elevation.fold(weights.permute(2, 0, 3, 1), 0)  # [half G_el, b, R, G_az]
        images = torch.stack([upper, lower], 1) if self.elevation.mirrored else upper[:, None]
        images = images.reshape(self.elevation.half, -1, self.domain.azimuth.numel())
        # S_nm = sum_g p_g a_n conj(a_m) depends on the lag p_n - p_m through exp(+j theta).
        rows = torch.empty(self.elevation.half, images.shape[1], 2 * n_h, dtype=torch.float64)
        step = max(1, _TILE_BYTES // (16 * n_h * self.domain.azimuth.numel()))
        for low in range(0, self.elevation.half, step):
            high = min(low + step, self.elevation.half)
            rows[low:high] = images[low:high] @ self.tables(low, high).mT
        sums = torch.complex(rows[..., :n_h], rows[..., n_h:]).reshape(self.elevation.half, -1, b, r, n_h)
        lags = sums[:, 0].permute(1, 2, 3, 0) @ self.vertical.mT  # [b, R, n_h, 2 n_v - 1]
        if sums.shape[1] == 2:
            lags = lags + sums[:, 1].permute(1, 2, 3, 0) @ adjoint_of(self.vertical)
        return self._toeplitz(lags)

    def _toeplitz(self, lags: Tensor) -> Tensor:
        """Matrix S_nm = sum_r w_n conj(w_m) T(p_n - p_m) from lags [b, R, n_h, 2 n_v - 1] with D_h >= 0."""
        n_h, n_v = self.lattice.n_h, self.lattice.n_v
        full = torch.cat([lags[:, :, 1:].flip(2, 3).conj().resolve_conj(), lags], 2)  # D_h from -(n_h - 1)
        i = torch.arange(n_h * n_v)
        d_h = (i // n_v)[:, None] - (i // n_v) + n_h - 1
        d_v = (i % n_v)[:, None] - (i % n_v) + n_v - 1
        result = torch.zeros(lags.shape[0], n_h * n_v, n_h * n_v, dtype=torch.complex128)
        for plane, (w_h, w_v) in enumerate(zip(self.weights_h, self.weights_v, strict=True)):
            w = (w_h[:, None] * w_v).flatten()
            result += full[:, plane, d_h, d_v] * (w[:, None] * w.conj().resolve_conj())
        result = (result + adjoint_of(result)) / 2
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(self.order.numel())
        return result[:, place[:, None], place]
