"""A quadratic form over (azimuth, elevation, 1/range): its values, slopes and curvatures, as a search needs them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from risfast.geometry import direction_cosines
from risfast.ops.lag_boxes import is_lattice, lag_values
from risfast.steering import LAG_WAVEFRONTS, search_paths

SearchGeometry = tuple[Tensor, float, str]  # positions [N, 3], wavenumber, wavefront

_LAG_FROM = 1000  # nodes of the boxes of a scene from which the lag method is faster
_TILE_VALUES = 1 << 15  # steering vector entries made at once, which stay in the caches


def real_matrix(matrix: Tensor) -> Tensor:
    """[[Re, -Im], [Im, Re]] of complex matrices: a quadratic form of (cos, sin) needs no complex numbers.

    (B, N, K) -> (B, 2 N, 2 K)
    """
    re, im = matrix.real, matrix.imag
    return torch.cat([torch.cat([re, -im], -1), torch.cat([im, re], -1)], -2)


class Landscape:
    """The form over (azimuth, elevation, 1/range) for scenes of one array, in the precision of the matrix."""

    def __init__(self, matrix: Tensor, factored: bool, geometry: SearchGeometry) -> None:
        """By Q (B, N, N) or W (B, N, K)."""
        positions, wavenumber, wavefront = geometry
        self.given, self.factored, self.geometry = matrix, factored, geometry
        self.matrix = real_matrix(matrix)
        scaled = (wavenumber * positions.double()).to(self.matrix.dtype)
        self.twice, self.squared = 2 * scaled.mT, (scaled.square() / wavenumber).sum(1)
        self.unit, self.paths = 1 / wavenumber, search_paths(wavefront)

    def _applied(self, columns: Tensor) -> Tensor:
        """Q x, or (I - W W^H) x, of real rows [B, M, 2 N]."""
        image = columns @ self.matrix
        return torch.baddbmm(columns, image, self.matrix.mT, alpha=-1) if self.factored else image

    def value(self, at: Tensor) -> Tensor:
        """The form a^H Q a, or N - ||W^H a||^2.

        at (B, M, 3) -> (B, M), in the precision of the matrix
        """
        direction = direction_cosines(at[..., 0], at[..., 1]).to(self.twice.dtype)
        s = at[..., 2:].to(self.twice.dtype)
        phase = self.paths(direction @ self.twice, self.squared, s, self.unit).path
        a = torch.cat([phase.cos(), phase.sin()], -1)
        return torch.linalg.vecdot(a, self._applied(a))

    def on_grids(self, axes: list[Tensor]) -> Tensor:
        """The form on grids, by the lag method where that is faster.

        axes (B, C, A), (B, C, E), (B, C, S) -> (B, C, A, E, S)
        """
        positions, wavenumber, wavefront = self.geometry
        shape = (*axes[0].shape, axes[1].shape[2], axes[2].shape[2])
        on_cpu = self.given.device.type == "cpu" and not self.factored and wavefront in LAG_WAVEFRONTS
        if on_cpu and math.prod(shape[1:]) > _LAG_FROM and is_lattice(positions):
            return lag_values(self.given, positions, wavenumber, wavefront, (axes[0], axes[1], axes[2]))
        grids = torch.broadcast_tensors(
            axes[0][..., None, None], axes[1][..., None, :, None], axes[2][..., None, None, :]
        )
        at = torch.stack(grids, -1).flatten(1, 4)
        tile = max(1, _TILE_VALUES // (len(at) * len(positions)))
        return torch.cat([self.value(part) for part in at.split(tile, 1)], 1).reshape(shape)

    def model(self, at: Tensor) -> Tensor:
        """Value, gradient and, row by row, Hessian of the form, float64.

        at (B, M, 3) -> (B, M, 13)
        """
        at = at.to(self.twice.dtype)
        (sin_az, sin_el, _), (cos_az, cos_el, s) = at.sin().unbind(-1), at.cos().unbind(-1)
        x, z, dx, dz = sin_az * cos_el, cos_az * cos_el, sin_az * sin_el, cos_az * sin_el
        minus_x, minus_z, zero, s = -x, -z, torch.zeros_like(x), at[..., 2:]
        # Of the direction u: du/daz, du/del, u, and the second derivatives by az az, az el, el az, el el.
        turned = [z, zero, minus_x, -dx, cos_el, -dz, x, sin_el, z]
        twice_turned = [minus_x, zero, minus_z, -dz, zero, dx, -dz, zero, dx, minus_x, -sin_el, minus_z]
        rows = torch.stack(turned + twice_turned, -1).unflatten(-1, (7, 3))
        first = rows[..., :3, :] @ self.twice  # [B, M, 3, N]
        path, stretch, along_range, bend = self.paths(first[..., 2, :], self.squared, s, self.unit)
        first[..., :2, :].mul_(stretch[..., None, :])
        first[..., 2, :].copy_(along_range)
        # Derivatives of a are j g a and (j h - g g) a; here without the j.
        cos, sin = path.cos(), path.sin()
        a = torch.cat([cos, sin], -1)[..., None, :]
        columns = torch.cat([a, first.repeat(1, 1, 1, 2) * a], -2)  # (a, g a)  [B, M, 4, 2 N]
        image = self._applied(columns.flatten(1, 2)).unflatten(1, columns.shape[1:3])
        gram = columns @ image.mT  # [B, M, 4, 4]
        re, im = image[..., 0, :].chunk(2, -1)
        # Of conj(a) Q a  [B, M, N].
        re, im = torch.addcmul(cos * re, sin, im), torch.addcmul(cos * im, sin, re, value=-1)
        weight = (bend * s * im - re)[..., None, :]
        weights = torch.cat([im[..., None, :], weight * first, (bend * path * im)[..., None, :]], -2)
        sums = weights @ first.mT  # gradient, and what second derivatives have of products of the first
        hessian = gram[..., 1:, 1:] + sums[..., 1:4, :]
        hessian[..., 2].add_(sums[..., 4, :])
        hessian[..., 2, :].add_(sums[..., 4, :])
        turning = (stretch * im) @ self.twice.mT  # [B, M, 3]
        hessian[..., :2, :2].add_((rows[..., 3:, :] @ turning[..., None]).unflatten(-2, (2, 2))[..., 0])
        return torch.cat([gram[..., :1, 0], 2 * sums[..., 0, :], 2 * hessian.flatten(-2)], -1).double()
