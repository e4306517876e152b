"""Quadratic forms of steering vectors at a set of points, and their adjoint: the dense evaluation on the CPU.

Everything works on tiles of points small enough to stay in the cache, and by mirror class: where array and axes share
mirror symmetries (see :class:`~risfast.ops.domain.MirrorBasis`), one point stands for its four mirror images, and a
form is the sum of up to four parts, each even or odd in azimuth and in elevation. Matrices come in the mirror basis.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from risfast.ops.domain import SIGN_TABLE, adjoint_of, tiles

_BLOCK = 48  # columns of a Hermitian matrix that are multiplied at once where no mirror splits it


class Points(Protocol):
    """Points to evaluate at."""

    offsets: tuple[int, ...]  # Start of each mirror class in a steering vector, and N
    images: int  # Points that one point stands for
    classes: tuple[int, ...]  # Mirror classes of a form that are not zero
    count: int
    dtype: torch.dtype

    def steering(self, low: int, high: int) -> Tensor:
        """Steering vectors of some points in the mirror basis, (high - low, N)."""
        ...


def _class_ranges(points: Points) -> list[tuple[int, int, int]]:
    """(class, start, stop) of the mirror classes that are not empty."""
    o = points.offsets
    return [(c, o[c], o[c + 1]) for c in range(4) if o[c + 1] > o[c]]


def _signs(points: Points, dtype: torch.dtype) -> Tensor:
    """Sign of each class in each image, [classes, images]."""
    return torch.tensor(SIGN_TABLE, dtype=dtype)[list(points.classes), : points.images]


def to_images(points: Points, by_class: Tensor) -> Tensor:
    """Values at the images of points from the parts of a form.

    by_class (classes, ...) -> (images, ...)
    """
    if points.images == 1:
        return by_class
    return (_signs(points, by_class.dtype).mT @ by_class.flatten(1)).reshape(points.images, *by_class.shape[1:])


def to_classes(points: Points, images: Tensor) -> Tensor:
    """Adjoint of :func:`to_images`.

    images (images, ...) -> (classes, ...)
    """
    if points.images == 1:
        return images
    return (_signs(points, images.dtype) @ images.flatten(1)).reshape(-1, *images.shape[1:])


def sum_of_squares(points: Points, rows: Tensor, low: int, high: int) -> Tensor:
    """||X a_g||^2 for some points, by class.

    rows (b, r, N) -> (classes, b, high - low)
    """
    b, r, n = rows.shape
    real = rows.real.dtype
    # Rows times points: the other way round a few rows take three times as long.
    rows = rows.reshape(b * r, n).contiguous()
    signs = _signs(points, real).mT.contiguous()
    ranges = _class_ranges(points)
    # Row c of the signs belongs to the vectors of class c; classes of vectors and of forms are the same ones.
    held = [points.classes.index(c) for c, _, _ in ranges]
    total = torch.empty(points.images, b, high - low, dtype=real)
    for start, stop in tiles(low, high, 4 * b * r * rows.element_size()):
        a = points.steering(start, stop)
        products = torch.zeros(len(points.classes), b * r, stop - start, dtype=rows.dtype)
        for c, (_, first, last) in zip(held, ranges, strict=True):
            torch.mm(rows[:, first:last], a[:, first:last].mT, out=products[c])
        images = signs @ torch.view_as_real(products).flatten(1)
        squares = images.square_().reshape(points.images, b, r, -1).sum(2).unflatten(2, (-1, 2))
        torch.add(squares[..., 0], squares[..., 1], out=total[:, :, start - low : stop - low])
    return to_classes(points, total).div_(points.images)


def _hermitian_terms(points: Points, matrix: Tensor) -> list[tuple[slice, Tensor, list[tuple[slice, int, int]]]]:
    """Columns k, Q[m, k] as [k, b * m] for some rows m, and of those rows: where they lie, class of the form, factor.

    Together the terms sum_m conj(a_m) Q_mk a_k make up the form.
    """
    # Of the blocks Q_st of a Hermitian matrix only s <= t are multiplied; the others are their conjugates. The sign of
    # a block in an image is that of class s xor t.
    terms = []
    if points.images == 1:
        n = matrix.shape[-1]
        for first in range(0, n, _BLOCK):
            last = min(first + _BLOCK, n)
            block = matrix[:, first:last, :last].permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
            block[first:] /= 2
            terms.append((slice(0, last), block.flatten(1), [(slice(first, last), 0, 2)]))
        return terms
    classes = _class_ranges(points)
    for i, (t, first, last) in enumerate(classes):
        block = matrix[:, :last, first:last].permute(2, 0, 1).reshape(last - first, -1)
        rows = [
            (slice(low, high), points.classes.index(s ^ t), 1 if s == t else 2) for s, low, high in classes[: i + 1]
        ]
        terms.append((slice(first, last), block, rows))
    return terms


def hermitian_form(points: Points, matrix: Tensor, low: int, high: int) -> Tensor:
    """Re a_g^H Q a_g for some points, by class.

    matrix (b, N, N) -> (classes, b, high - low)
    """
    b, n = matrix.shape[:2]
    terms = _hermitian_terms(points, matrix)
    total = torch.empty(len(points.classes), b, high - low, dtype=matrix.real.dtype)
    parts = list(tiles(low, high, b * n * matrix.element_size()))
    # One buffer for all products: fresh pages would cost as much as the multiplication.
    buffer = torch.empty(max((stop - start for start, stop in parts), default=0) * b * n, dtype=matrix.dtype)
    for start, stop in parts:
        a = points.steering(start, stop)
        a_real = torch.view_as_real(a)[:, None]
        g = stop - start
        by_class = torch.zeros(len(total), g, b, dtype=total.dtype)
        for columns, block, rows in terms:
            product = torch.mm(a[:, columns], block, out=buffer[: g * block.shape[1]].view(g, -1))
            begin, end = rows[0][0].start, rows[-1][0].stop
            real = torch.view_as_real(product).view(g, b, -1, 2).mul_(a_real[:, :, begin:end])
            for at, c, factor in rows:
                by_class[c].add_(real[:, :, at.start - begin : at.stop - begin].flatten(2).sum(-1), alpha=factor)
        total[:, :, start - low : stop - low] = by_class.mT
    return total


def outer_products(points: Points, by_class: Tensor) -> Tensor:
    """sum_g p_g a_g a_g^H over all points and their images, the adjoint of :func:`hermitian_form`.

    by_class (classes, b, count) -> (b, N, N)
    """
    b = by_class.shape[1]
    n = points.offsets[-1]
    result = torch.zeros(b, n, n, dtype=points.dtype)
    classes = _class_ranges(points)
    for start, stop in tiles(0, points.count, b * n * points.dtype.itemsize):
        a = points.steering(start, stop)
        right = a.conj().resolve_conj()
        for s, low_s, high_s in classes:
            for t, low_t, high_t in classes:
                if t < s:
                    continue
                weight = by_class[points.classes.index(s ^ t), :, start:stop, None]  # [b, g, 1]
                result[:, low_s:high_s, low_t:high_t] += a[:, low_s:high_s].mT @ (right[:, low_t:high_t] * weight)
    diagonal = result.diagonal(dim1=-2, dim2=-1).real.clone()
    upper = torch.triu(result, 1)
    return upper + adjoint_of(upper) + torch.diag_embed(diagonal)
