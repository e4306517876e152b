"""The lag method: on a uniform planar array with a Fresnel or planar phase, a^H Q a is a trigonometric polynomial.

With a_n = exp(j k (p_n.u - |p_n|^2 / 2 r)),

    a^H Q a = sum_D C_D(r) exp(j k (D_h u_x + D_v u_y)),    C_D(r) = sum_{p_m - p_n = D} conj(w_n) Q_nm w_m,

w_n = exp(-j k |p_n|^2 / 2 r): the coefficients are weighted sums along the block-Toeplitz diagonals of Q, range only
re-weights them, and u_y = sin(elevation) separates. Mirror images in elevation share the tables of u_x, and those in
azimuth too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from risfast.geometry import Lattice, find_lattice
from risfast.ops.domain import Domain, HalfAxis, adjoint_of, antisymmetric
from risfast.ops.evaluators import Field, Operand, Place, Tile

_TILE_BYTES = 1 << 20
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


def horizontal_unit(domain: Domain, lattice: Lattice) -> Tensor:
    """K D_h spacing for D_h from 0 to n_h - 1."""
    return domain.wavenumber * lattice.spacing_h_m * torch.arange(lattice.n_h, dtype=torch.float64)


def horizontal_phase(domain: Domain, lattice: Lattice, elevation: Tensor, azimuth: Tensor) -> Tensor:
    """K D_h spacing sin(az) cos(el) for D_h from 0 to n_h - 1.

    elevation (E,), azimuth (A,) -> (E, n_h, A)
    """
    return elevation.cos()[:, None, None] * horizontal_unit(domain, lattice)[:, None] * azimuth.sin()


class LagBox:
    """The lag method on a box, in float64."""

    elevation_first = True

    def __init__(self, domain: Domain, keep: bool) -> None:
        lattice = find_lattice(domain.positions)
        if lattice is None:
            raise AssertionError("the plan lets only uniform planar arrays come here")
        self.domain, self.lattice = domain, lattice
        self.order = torch.tensor(lattice.order)
        self.in_order = lattice.order == tuple(range(len(lattice.order)))
        # Axes are folded if they are antisymmetric; the array's own symmetry does not matter here.
        self.azimuth, self.elevation = (HalfAxis(a, antisymmetric(a)) for a in (domain.azimuth, domain.elevation))
        self.weights_h, self.weights_v = lattice_weights(domain, lattice)  # [R, n_h], [R, n_v]
        self.pairs_h, self.pairs_v = self._pairs()
        phase = vertical_phase(domain, lattice, self.elevation.values)
        self.vertical = torch.complex(phase.cos(), phase.sin())  # [2 n_v - 1, half G_el]
        self._kept: dict[torch.dtype, Tensor] | None = None
        if keep:
            tables = self._tables(0, self.elevation.half)
            self._kept = {torch.float64: tables, torch.float32: tables.float()}

    @staticmethod
    def stored_bytes(domain: Domain, lattice: Lattice) -> int:
        """Bytes that ``keep`` costs."""
        half_az, half_el = (HalfAxis(a, antisymmetric(a)).half for a in (domain.azimuth, domain.elevation))
        return 24 * half_el * half_az * lattice.n_h

    def _tables(self, low: int, high: int) -> Tensor:
        """Cosines and sines of k D_h spacing sin(az) cos(el): [2, elevation, n_h, half G_az]."""
        phase = horizontal_phase(self.domain, self.lattice, self.elevation.values[low:high], self.azimuth.values)
        return torch.stack([phase.cos(), phase.sin()])

    @property
    def cached_bytes(self) -> int:
        """Bytes of the stored tables."""
        return 0 if self._kept is None else sum(table.nbytes for table in self._kept.values())

    def tables(self, low: int, high: int, real: torch.dtype = torch.float64) -> Tensor:
        """Cosines, and sines, of k D_h spacing sin(az) cos(el).

        -> (2, high - low, n_h, half G_az)
        """
        if self._kept is None:
            return self._tables(low, high).to(real)
        return self._kept[real][:, low:high]

    def _pairs(self) -> tuple[list[Tensor], Tensor]:
        """Products conj(w) w of columns at each lag, twice those of a positive lag, and of all rows.

        -> [(R, n_h - lag)], (R, n_v, n_v)
        """
        w_h, w_v, n_h = self.weights_h, self.weights_v, self.lattice.n_h
        columns = [w_h[:, : n_h - lag].conj() * w_h[:, lag:] * (1 + (lag > 0)) for lag in range(n_h)]
        return columns, w_v.conj()[:, :, None] * w_v[:, None]

    def coefficients(self, matrix: Tensor) -> Tensor:
        """The coefficients C_D(r) for D_h >= 0, doubled where D_h > 0.

        matrix (b, N, N) -> (b, R, n_h, 2 n_v - 1)
        """
        n_h, n_v = self.lattice.n_h, self.lattice.n_v
        q = matrix if self.in_order else matrix[:, self.order[:, None], self.order]
        q = q.reshape(-1, n_h, n_v, n_h, n_v).transpose(2, 3).contiguous()  # [b, column, column, row, row]
        planes = max(1, COEFFICIENT_BYTES // (64 * q.shape[0] * n_h * n_v * n_v))
        count = self.domain.range.numel()
        parts = [self._some_coefficients(q, slice(low, low + planes)) for low in range(0, count, planes)]
        return torch.cat(parts, 1)

    def _of_rows(self, rows: Tensor) -> Tensor:
        """The same of Q = X^H X: sums of the autocorrelations of the rows of X, by the Wiener-Khinchin theorem.

        rows (b, r, N) -> (b, R, n_h, 2 n_v - 1)
        """
        n_h, n_v = self.lattice.n_h, self.lattice.n_v
        x = rows.to(torch.complex128)[..., self.order].unflatten(-1, (n_h, n_v))
        planes = []
        for w_h, w_v in zip(self.weights_h, self.weights_v, strict=True):
            size = (2 * n_h, 2 * n_v)
            power = torch.zeros(len(x), *size, dtype=torch.float64)
            for some in x.split(max(1, COEFFICIENT_BYTES // (64 * len(x) * n_h * n_v)), 1):
                transform = torch.view_as_real(torch.fft.fft2(some * (w_h[:, None] * w_v), s=size))
                power += transform.square_().sum(1).sum(-1)
            planes.append(torch.fft.ifft2(power)[:, :n_h].roll(n_v - 1, -1)[..., : 2 * n_v - 1])
        c = torch.stack(planes, 1)
        c[:, :, 1:] *= 2
        return c

    def _some_coefficients(self, q: Tensor, planes: slice) -> Tensor:
        """Coefficients of some planes."""
        n_h, n_v = self.lattice.n_h, self.lattice.n_v
        vertical = self.pairs_v[planes]
        b, r = q.shape[0], vertical.shape[0]
        by_lag = torch.empty(n_h, b, r, n_v * n_v, dtype=torch.complex128)
        for lag, weights in enumerate(self.pairs_h):  # sum over the columns i_h with i_h + lag inside
            columns = q.diagonal(lag, 1, 2).permute(0, 3, 1, 2).flatten(2)
            torch.bmm(weights[planes].expand(b, -1, -1), columns, out=by_lag[lag])
        lags = by_lag.reshape(n_h, b, r, n_v, n_v).permute(1, 2, 0, 3, 4) * vertical[:, None]
        # Skew: row i_v of [i_v, j_v] shifted right by n_v - 1 - i_v puts equal lags j_v - i_v in one column. Rows of
        # length 2 n_v read as rows of length 2 n_v - 1 do just that, last row first.
        skewed = torch.zeros(b, r, n_h, n_v, 2 * n_v, dtype=torch.complex128)
        skewed[..., :n_v] = lags.flip(3)
        flat = skewed.reshape(b, r, n_h, -1)[..., : n_v * (2 * n_v - 1)]
        return flat.reshape(b, r, n_h, n_v, 2 * n_v - 1).sum(3)

    def field(self, operand: Operand) -> Field:
        """Slabs of elevations; where elevation is mirrored, the second image holds the negative ones, outwards."""
        few = operand.kind == "rows" and 4 * operand.matrix.shape[1] <= self.domain.n_elements
        c = self._of_rows(operand.matrix) if few else self.coefficients(operand.hermitian())
        origin = torch.zeros_like(c[0, 0])
        origin[0, self.lattice.n_v - 1] = 1
        c = operand.of_form(c, origin)
        images = [c @ self.vertical]  # [b, R, n_h, half G_el]
        if self.elevation.mirrored:
            images.append(c @ self.vertical.conj())
        rows = torch.stack(images).permute(4, 0, 1, 2, 3)  # [half G_el, images, b, R, n_h]
        parts = torch.stack([rows.real, -rows.imag])
        return Field(partial(self._slabs, parts), partial(self._at, parts))

    def _slabs(self, parts: Tensor, single: bool) -> Iterator[Tile]:
        real = torch.float32 if single else torch.float64
        images, b, r = parts.shape[2:5]
        even, odd = parts.flatten(2, 4).to(real)
        step = max(1, _TILE_BYTES // (real.itemsize * even.shape[1] * self.azimuth.half))
        # Fresh pages would cost as much as the products.
        buffer = torch.empty(3, min(step, self.elevation.half), even.shape[1], self.azimuth.half, dtype=real)
        for low in range(0, self.elevation.half, step):
            high = min(low + step, self.elevation.half)
            q, turned, image = buffer[:, : high - low]
            cosines, sines = self.tables(low, high, real)
            torch.bmm(even[low:high], cosines, out=q)
            torch.bmm(odd[low:high], sines, out=turned)
            if self.azimuth.mirrored:
                torch.sub(q, turned, out=image)
            for at, part in enumerate((q.add_(turned), image)[: 1 + self.azimuth.mirrored]):
                values = part.reshape(high - low, images * b, r, -1).permute(1, 2, 0, 3)
                yield Tile(values, self._places(low, high, at == 1))

    def _at(self, parts: Tensor, scene: Tensor, azimuth: Tensor, elevation: Tensor) -> Tensor:
        above = elevation - (self.elevation.count - self.elevation.half)
        below = self.elevation.half - 1 - elevation
        row, image = torch.where(above >= 0, above, below), (above < 0).long()
        turn = self.elevation.values[row].cos() * self.domain.azimuth[azimuth].sin()
        phase = horizontal_unit(self.domain, self.lattice) * turn[:, None]
        even, odd = parts[:, row, image, scene]  # [n, R, n_h]
        return (even @ phase.cos()[..., None] + odd @ phase.sin()[..., None])[..., 0]

    def _places(self, low: int, high: int, azimuth_image: bool) -> tuple[Place, ...]:
        """Where some elevations of the half axis and their mirror images lie, at positive or at negative azimuths."""
        azimuth = self.azimuth.place(0, self.azimuth.half, azimuth_image)
        turned = (-1,) if azimuth_image else ()
        upper = Place(azimuth, self.elevation.place(low, high, False), turned)
        lower = Place(azimuth, self.elevation.place(low, high, True), (-2, *turned))
        return (upper, lower)[: 1 + self.elevation.mirrored]

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis in the array's own order; see :class:`risfast.ops.evaluators.Evaluator`.

        weights (b, G_az, G_el, R) -> (b, N, N)
        """
        weights = weights.to(torch.float64)
        b, r = weights.shape[0], weights.shape[3]
        n_h, half = self.lattice.n_h, self.elevation.half
        upper, lower = self.elevation.fold(weights.permute(2, 0, 3, 1), 0)  # [half G_el, b, R, G_az]
        images = torch.stack([upper, lower], 1) if self.elevation.mirrored else upper[:, None]
        right, left = self.azimuth.fold(images.reshape(half, -1, self.domain.azimuth.numel()), 2)
        # S_nm = sum_g p_g a_n conj(a_m) depends on the lag p_n - p_m through exp(+j theta).
        rows = torch.empty(2, half, right.shape[1], n_h, dtype=torch.float64)
        step = max(1, _TILE_BYTES // (16 * n_h * self.azimuth.half))
        for low in range(0, half, step):
            high = min(low + step, half)
            cosines, sines = self.tables(low, high)
            rows[0, low:high] = (right[low:high] + left[low:high]) @ cosines.mT
            rows[1, low:high] = (right[low:high] - left[low:high]) @ sines.mT
        sums = torch.complex(rows[0], rows[1]).reshape(half, -1, b, r, n_h)
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
