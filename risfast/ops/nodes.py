"""Quadratic forms of steering vectors at a set of points, and their adjoint: the dense evaluation on the CPU.

Everything works on tiles of points small enough to stay in the cache, and on "images": where array and axes share
mirror symmetries (see :class:`~risfast.ops.domain.MirrorBasis`), one point stands for its four mirror images.
Matrices come in the mirror basis.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from risfast.ops.domain import Domain, adjoint_of

# Bytes of one tile of products: a few of these fit a core's own cache beside the matrix.
TILE_BYTES = 1 << 20
# Sign of each class (rows) in each image (columns: itself, -azimuth, -elevation, both).
CHARACTERS = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))


class HalfAxis:
    """The half of an axis that has to be computed: all of it, or the part at or above zero where it is mirrored.

    axis (G,)
    """

    def __init__(self, axis: Tensor, mirrored: bool) -> None:
        self.count = axis.numel()
        self.mirrored = mirrored
        self.half = (self.count + 1) // 2 if mirrored else self.count
        self.values = axis[self.count - self.half :]

    def unfold(self, upper: Tensor, lower: Tensor, dim: int) -> Tensor:
        """The whole axis from values at the half and at its mirror image; the centre is taken from the half."""
        if not self.mirrored:
            return upper
        image = lower.narrow(dim, self.count % 2, self.count - self.half).flip(dim)
        return torch.cat([image, upper], dim)

    def fold(self, whole: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Adjoint of :meth:`unfold`."""
        upper = whole.narrow(dim, self.count - self.half, self.half)
        if not self.mirrored:
            return upper, torch.zeros_like(upper)
        lower = torch.zeros_like(upper)
        outer = self.count - self.half
        lower.narrow(dim, self.count % 2, outer).copy_(whole.narrow(dim, 0, outer).flip(dim))
        return upper, lower


class PointSet:
    """A list of points without symmetry."""

    def __init__(self, domain: Domain, dtype: torch.dtype) -> None:
        self.domain, self.dtype = domain, dtype
        self.offsets = (0, domain.n_elements, domain.n_elements, domain.n_elements, domain.n_elements)
        self.images = 1
        self.count = domain.azimuth.numel()

    def steering(self, low: int, high: int) -> Tensor:
        """Steering vectors of some points.

        -> (high - low, N)
        """
        d = self.domain
        return d.steering(d.azimuth[low:high], d.elevation[low:high], d.range[low:high]).to(self.dtype)


class NodeSet:
    """Nodes over azimuth x elevation on every range plane, flattened in the order (azimuth, range, elevation)."""

    def __init__(self, domain: Domain, azimuth: Tensor, elevation: Tensor, dtype: torch.dtype, keep: bool) -> None:
        self.domain, self.dtype = domain, dtype
        flips = domain.mirror.flips
        self.azimuth, self.elevation = HalfAxis(azimuth, flips[0]), HalfAxis(elevation, flips[1])
        self.offsets = domain.mirror.offsets
        self.images = 4 if any(flips) else 1
        self.columns = domain.range.numel() * self.elevation.half  # nodes per azimuth
        self.count = self.azimuth.half * self.columns
        self._kept = self._table() if keep else None

    @staticmethod
    def stored_bytes(domain: Domain, n_azimuth: int, n_elevation: int, dtype: torch.dtype) -> int:
        """Bytes that ``keep`` costs."""
        flips = domain.mirror.flips
        half = [(n + 1) // 2 if flip else n for n, flip in zip((n_azimuth, n_elevation), flips, strict=True)]
        return half[0] * half[1] * domain.range.numel() * domain.n_elements * dtype.itemsize

    @property
    def kept_bytes(self) -> int:
        """Bytes of the stored steering vectors."""
        return 0 if self._kept is None else self._kept.numel() * self._kept.element_size()

    def _table(self) -> Tensor:
        """All steering vectors, made a tile at a time: the temporaries of one pass would be ten times the table."""
        table = torch.empty(self.count, self.domain.n_elements, dtype=self.dtype)
        for low, high in _tiles(0, self.count, table.element_size() * self.domain.n_elements):
            table[low:high] = self._make(low, high)
        return table

    def _make(self, low: int, high: int) -> Tensor:
        index = torch.arange(low, high)
        azimuth, rest = index // self.columns, index % self.columns
        plane, elevation = rest // self.elevation.half, rest % self.elevation.half
        d = self.domain
        a = d.steering(self.azimuth.values[azimuth], self.elevation.values[elevation], d.range[plane])
        return d.mirror.transform(a).to(self.dtype)

    def steering(self, low: int, high: int) -> Tensor:
        """Steering vectors of some nodes, in the mirror basis.

        -> (high - low, N)
        """
        return self._make(low, high) if self._kept is None else self._kept[low:high]

    def to_box(self, images: Tensor, azimuth_low: int, azimuth_high: int) -> tuple[Tensor, Tensor]:
        """Values at some azimuths of the half axis as part of the box: there, and at their mirror images.

        images (images, b, g) -> upper, lower (b, R, azimuth_high - azimuth_low, G_el)
        """
        shape = (*images.shape[:2], azimuth_high - azimuth_low, self.domain.range.numel(), self.elevation.half)
        v = images.reshape(shape).transpose(2, 3)
        if self.images == 1:
            return v[0], v[0, :, :, :0]
        upper = self.elevation.unfold(v[0], v[2], -1)
        lower = self.elevation.unfold(v[1], v[3], -1) if self.azimuth.mirrored else upper[:, :, :0]
        return upper, lower.flip(2)

    def from_box(self, values: Tensor) -> Tensor:
        """Adjoint of :meth:`to_box` over all azimuths.

        values (b, R, n_azimuth, n_elevation) -> (images, b, count)
        """
        if self.images == 1:
            return values.transpose(1, 2).reshape(1, values.shape[0], self.count)
        upper, lower = self.azimuth.fold(values, 2)
        (at, below), (beside, opposite) = self.elevation.fold(upper, 3), self.elevation.fold(lower, 3)
        images = (at, beside, below, opposite)
        return torch.stack([v.transpose(1, 2).reshape(v.shape[0], self.count) for v in images])


def _tiles(low: int, high: int, bytes_per_point: int) -> Iterator[tuple[int, int]]:
    step = max(32, TILE_BYTES // max(bytes_per_point, 1))
    for start in range(low, high, step):
        yield start, min(start + step, high)


def _class_ranges(points: NodeSet | PointSet) -> list[tuple[int, int, int]]:
    """(class, start, stop) of the mirror classes that are not empty."""
    o = points.offsets
    return [(c, o[c], o[c + 1]) for c in range(4) if o[c + 1] > o[c]]


def _characters(points: NodeSet | PointSet, dtype: torch.dtype) -> Tensor:
    """Sign of each class in each image, [4, images]."""
    return torch.tensor(CHARACTERS, dtype=dtype)[:, : points.images]


def sum_of_squares(points: NodeSet | PointSet, rows: Tensor, low: int, high: int) -> Tensor:
    """||X a_g||^2 for some points and all their images.

    rows (b, r, N) -> (images, b, high - low)
    """
    b, r, n = rows.shape
    real = rows.real.dtype
    columns = rows.permute(2, 0, 1).reshape(n, b * r).contiguous()
    signs = _characters(points, real).mT.contiguous()
    total = torch.zeros(points.images, b, high - low, dtype=real)
    for start, stop in _tiles(low, high, 4 * b * r * rows.element_size()):
        a = points.steering(start, stop)
        products = torch.zeros(4, stop - start, b * r, dtype=rows.dtype)
        for c, first, last in _class_ranges(points):
            torch.mm(a[:, first:last], columns[first:last], out=products[c])
        images = signs @ torch.view_as_real(products).reshape(4, -1)
        squares = images.square_().reshape(points.images, stop - start, b, 2 * r).sum(-1)
        total[:, :, start - low : stop - low] = squares.mT
    return total


def hermitian_form(points: NodeSet | PointSet, matrix: Tensor, low: int, high: int) -> Tensor:
    """Re a_g^H Q a_g for some points and all their images.

    matrix (b, N, N) -> (images, b, high - low)
    """
    # Of the blocks Q_st between classes only s <= t are multiplied; the others are their conjugates. The sign of a
    # block in an image is that of class s xor t.
    b, n = matrix.shape[:2]
    classes = _class_ranges(points)
    blocks = [matrix[:, :stop, start:stop].permute(2, 0, 1).reshape(stop - start, -1) for _, start, stop in classes]
    signs = _characters(points, matrix.real.dtype)
    total = torch.empty(points.images, b, high - low, dtype=matrix.real.dtype)
    tiles = list(_tiles(low, high, b * n * matrix.element_size()))
    # One buffer for all products: fresh pages would cost as much as the multiplication.
    buffer = torch.empty(max((stop - start for start, stop in tiles), default=0) * b * n, dtype=matrix.dtype)
    for start, stop in tiles:
        a = points.steering(start, stop)
        a_real = torch.view_as_real(a)[:, None]
        g = stop - start
        by_class = torch.zeros(4, g, b, dtype=total.dtype)
        for (t, first, last), block in zip(classes, blocks, strict=True):
            product = torch.mm(a[:, first:last], block, out=buffer[: g * block.shape[1]].view(g, -1))
            terms = torch.view_as_real(product).reshape(g, b, last, 2).mul_(a_real[:, :, :last])
            for s, low_s, high_s in classes[: classes.index((t, first, last)) + 1]:
                by_class[s ^ t].add_(terms[:, :, low_s:high_s].flatten(2).sum(-1), alpha=1 if s == t else 2)
        total[:, :, start - low : stop - low] = torch.einsum("ci,cgb->ibg", signs, by_class)
    return total


def outer_products(points: NodeSet | PointSet, weights: Tensor) -> Tensor:
    """sum_g p_g a_g a_g^H over all points and their images, the adjoint of :func:`hermitian_form`.

    weights (images, b, count) -> (b, N, N)
    """
    b = weights.shape[1]
    n = points.offsets[-1]
    result = torch.zeros(b, n, n, dtype=points.dtype)
    by_class = torch.einsum("ci,ibg->cbg", _characters(points, weights.dtype), weights)
    classes = _class_ranges(points)
    for start, stop in _tiles(0, points.count, b * n * points.dtype.itemsize):
        a = points.steering(start, stop)
        right = a.conj().resolve_conj()
        for s, low_s, high_s in classes:
            for t, low_t, high_t in classes:
                if t < s:
                    continue
                weight = by_class[s ^ t, :, start:stop, None]  # [b, g, 1]
                result[:, low_s:high_s, low_t:high_t] += a[:, low_s:high_s].mT @ (right[:, low_t:high_t] * weight)
    diagonal = result.diagonal(dim1=-2, dim2=-1).real.clone()
    upper = torch.triu(result, 1)
    return upper + adjoint_of(upper) + torch.diag_embed(diagonal)
