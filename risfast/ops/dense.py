"""Quadratic forms of steering vectors at a set of points, and their adjoint: the dense evaluation on the CPU.

Everything works on tiles of points small enough to stay in the cache, and on "images": where array and axes share
mirror symmetries (see :class:`~risfast.ops.domain.MirrorBasis`), one point stands for its four mirror images.
Matrices come in the mirror basis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from risfast.ops.domain import SIGN_TABLE, NodeSet, PointSet, adjoint_of, tiles


def _class_ranges(points: NodeSet | PointSet) -> list[tuple[int, int, int]]:
    """(class, start, stop) of the mirror classes that are not empty."""
    o = points.offsets
    return [(c, o[c], o[c + 1]) for c in range(4) if o[c + 1] > o[c]]


def _signs(points: NodeSet | PointSet, dtype: torch.dtype) -> Tensor:
    """Sign of each class in each image, [4, images]."""
    return torch.tensor(SIGN_TABLE, dtype=dtype)[:, : points.images]


def sum_of_squares(points: NodeSet | PointSet, rows: Tensor, low: int, high: int) -> Tensor:
    """||X a_g||^2 for some points and all their images.

    rows (b, r, N) -> (images, b, high - low)
    """
    b, r, n = rows.shape
    real = rows.real.dtype
    columns = rows.permute(2, 0, 1).reshape(n, b * r).contiguous()
    signs = _signs(points, real).mT.contiguous()
    total = torch.zeros(points.images, b, high - low, dtype=real)
    for start, stop in tiles(low, high, 4 * b * r * rows.element_size()):
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
    signs = _signs(points, matrix.real.dtype)
    total = torch.empty(points.images, b, high - low, dtype=matrix.real.dtype)
    parts = list(tiles(low, high, b * n * matrix.element_size()))
    # One buffer for all products: fresh pages would cost as much as the multiplication.
    buffer = torch.empty(max((stop - start for start, stop in parts), default=0) * b * n, dtype=matrix.dtype)
    for start, stop in parts:
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
    by_class = torch.einsum("ci,ibg->cbg", _signs(points, weights.dtype), weights)
    classes = _class_ranges(points)
    for start, stop in tiles(0, points.count, b * n * points.dtype.itemsize):
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
