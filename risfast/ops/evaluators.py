"""One interface over the methods, and the dense and the chebyshev method: analysis and synthesis tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from risfast.ops.dense import Points, hermitian_form, outer_products, sum_of_squares, to_classes, to_images
from risfast.ops.domain import Domain, NodeSet, PointSet, adjoint_of
from risfast.ops.interpolation import BoxNodes
from risfast.ops.skeleton import Skeleton


@dataclass(frozen=True)
class Place:
    """Where a tile belongs in the box, and how it runs there."""

    azimuth: slice  # Of the box
    elevation: slice  # Of the box
    backwards: tuple[int, ...] = ()  # Which of the tile's last two axes run backwards, as mirror images do

    def oriented(self, values: Tensor) -> Tensor:
        """Values of a tile as they run in the box."""
        return values.flip(self.backwards) if self.backwards else values


@dataclass(frozen=True)
class Tile:
    """Values of part of a box, one mirror image after the other; the next tile may overwrite them."""

    q: Tensor  # (images * b, R, ...) a^H Q a on R range planes; the last two axes are those of the evaluator
    places: tuple[Place, ...]  # One for each image


@dataclass(frozen=True)
class Operand:
    """A batch of Hermitian matrices Q."""

    matrix: Tensor  # (b, r, N) Rows X of Q = X^H X, or Q itself
    kind: str  # Which of the two
    residual: int = 0  # N, where N - a^H Q a is what matters
    unit: float = 1.0  # Multiplies what matters

    def prepared(self, domain: Domain, dtype: torch.dtype) -> Operand:
        """The same in the mirror basis of a domain and in another dtype."""
        matrix, mirror = self.matrix.to(dtype), domain.mirror
        transform = mirror.transform_matrix if self.kind == "hermitian" else mirror.transform
        return replace(self, matrix=transform(matrix))

    def of_form(self, q: Tensor, one: Tensor | float = 1.0) -> Tensor:
        """What matters, of a form q [b, ...] that is overwritten; ``one`` stands for 1 where q is a transform of it."""
        value = q.neg_().add_(one, alpha=self.residual) if self.residual else q
        return value if self.unit == 1 else value.mul_(self.unit)

    def hermitian(self) -> Tensor:
        """Q [b, N, N] as complex128, in the order of the elements."""
        matrix = self.matrix.to(torch.complex128)
        return matrix if self.kind == "hermitian" else adjoint_of(matrix) @ matrix


class Field(NamedTuple):
    """A form over a box, for one batch of operands.

    ``tiles`` yields tiles that cover the box (or the list, as one azimuth axis), in float32 where it is told that this
    is enough. ``at`` gives float64 values [n, R] at directions given by scene, azimuth and elevation index [n] each; it
    is None where float32 would gain nothing.
    """

    tiles: Callable[[bool], Iterator[Tile]]
    at: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


class Evaluator(Protocol):
    """What a method offers."""

    domain: Domain
    elevation_first: bool  # Whether the last two axes of a tile are (elevation, azimuth), or the other way round

    def field(self, operand: Operand) -> Field:
        """Analysis: q = a^H Q a, or N less it."""
        ...

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis: sum_g p_g a_g a_g^H.

        weights (b, G_az, G_el, R) -> (b, N, N)
        """
        ...


def _values(points: Points, operand: Operand, low: int, high: int) -> Tensor:
    """Q [classes, b, high - low] of a prepared operand."""
    if operand.kind == "hermitian":
        return hermitian_form(points, operand.matrix, low, high)
    return sum_of_squares(points, operand.matrix, low, high)


class DensePointList:
    """Dense evaluation of a list of points, in tiles."""

    elevation_first = False

    def __init__(self, domain: Domain, dtype: torch.dtype) -> None:
        self.domain = domain
        self.points = PointSet(domain, dtype)

    def field(self, operand: Operand) -> Field:
        """One tile: all points, as an azimuth axis."""
        q = _values(self.points, operand.prepared(self.domain, self.points.dtype), 0, self.points.count)[0]  # [b, G]
        tile = Tile(operand.of_form(q)[:, None, :, None], (Place(slice(None), slice(None)),))
        return Field(lambda single: iter([tile]))

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        weights (b, G) -> (b, N, N)
        """
        return outer_products(self.points, weights[None].to(self.points.dtype.to_real()))


class DenseBox:
    """Dense evaluation of a box: steering vectors made on the fly, a slab of azimuths at a time."""

    elevation_first = False

    def __init__(self, domain: Domain, dtype: torch.dtype, slab_values: int) -> None:
        self.domain = domain
        self.nodes = NodeSet(domain, domain.azimuth, domain.elevation, dtype, keep=False)
        self.slab_values = slab_values

    def field(self, operand: Operand) -> Field:
        """Slabs of azimuths, and of their mirror images."""
        prepared = operand.prepared(self.domain, self.nodes.dtype)
        return Field(lambda single: self._slabs(prepared))

    def _slabs(self, operand: Operand) -> Iterator[Tile]:
        nodes, axis = self.nodes, self.nodes.azimuth
        step = max(1, self.slab_values // max(4 * operand.matrix.shape[0] * nodes.columns, 1))
        for low in range(0, axis.half, step):
            high = min(low + step, axis.half)
            by_class = _values(nodes, operand, low * nodes.columns, high * nodes.columns)
            upper, lower = nodes.to_box(to_images(nodes, by_class), low, high)
            for image, values in enumerate((upper, lower)[: 1 + axis.mirrored]):
                yield Tile(operand.of_form(values), (Place(axis.place(low, high, image == 1), slice(None)),))

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        weights (b, G_az, G_el, R) -> (b, N, N)
        """
        images = self.nodes.from_box(weights.permute(0, 3, 1, 2).to(self.nodes.dtype.to_real()))
        return self.domain.mirror.restore_matrix(outer_products(self.nodes, to_classes(self.nodes, images)))


class ChebyshevBox:
    """Dense evaluation on a skeleton of a few nodes, and small real matrix products to interpolate."""

    elevation_first = False

    def __init__(
        self, domain: Domain, nodes: BoxNodes, dtype: torch.dtype, slab_values: int, keep: bool, tolerance: float
    ) -> None:
        self.domain = domain
        bare = NodeSet(domain, nodes.azimuth.nodes, nodes.elevation.nodes, dtype, keep=False)
        # It is found on the host, by numbers that have to be the same every time.
        self.skeleton = Skeleton.find(bare, tolerance, keep) if domain.positions.device.type == "cpu" else None
        whole = self.skeleton is None and keep
        self.nodes = NodeSet(domain, nodes.azimuth.nodes, nodes.elevation.nodes, dtype, keep=True) if whole else bare
        self.slab_values = slab_values
        real = dtype.to_real()
        self.azimuth = None if nodes.azimuth.matrix is None else nodes.azimuth.matrix.to(real)
        self.elevation = None if nodes.elevation.matrix is None else nodes.elevation.matrix.mT.to(real).contiguous()

    @property
    def cached_bytes(self) -> int:
        """Bytes of its tables."""
        return self.nodes.cached_bytes if self.skeleton is None else self.skeleton.cached_bytes

    def field(self, operand: Operand) -> Field:
        """Slabs of azimuths, interpolated from the nodes."""
        at_nodes = operand.of_form(self._at_nodes(operand.prepared(self.domain, self.nodes.dtype)))
        return Field(partial(self._slabs, at_nodes), partial(self._at, at_nodes))

    def _at_nodes(self, operand: Operand) -> Tensor:
        """The form at all nodes, [b, R, n_azimuth, n_elevation]."""
        nodes = self.nodes
        if self.skeleton is None:
            by_class = _values(nodes, operand, 0, nodes.count)
            upper, lower = nodes.to_box(to_images(nodes, by_class), 0, nodes.azimuth.half)
        else:
            on_skeleton = _values(self.skeleton, operand, 0, self.skeleton.count)
            upper, lower = nodes.unfold(self.skeleton.to_nodes(on_skeleton))
        if not nodes.azimuth.mirrored:
            return upper
        return torch.cat([lower[:, :, : nodes.azimuth.count - nodes.azimuth.half], upper], 2)

    def _slabs(self, at_nodes: Tensor, single: bool) -> Iterator[Tile]:
        real = torch.float32 if single else at_nodes.dtype
        values = at_nodes.to(real)
        azimuth = None if self.azimuth is None else self.azimuth.to(real)
        elevation = None if self.elevation is None else self.elevation.to(real)
        n_azimuth, n_elevation, n_range = self.domain.shape
        step = max(1, self.slab_values // max(values.shape[0] * n_range * n_elevation, 1))
        for low in range(0, n_azimuth, step):
            high = min(low + step, n_azimuth)
            slab = values[:, :, low:high] if azimuth is None else azimuth[low:high] @ values
            slab = slab if elevation is None else slab @ elevation
            yield Tile(slab, (Place(slice(low, high), slice(None)),))

    def _at(self, at_nodes: Tensor, scene: Tensor, azimuth: Tensor, elevation: Tensor) -> Tensor:
        values = at_nodes.new_empty(len(scene), at_nodes.shape[1])
        planes, columns, rows = at_nodes.shape[1:]
        by_azimuth = torch.eye(columns) if self.azimuth is None else self.azimuth
        by_elevation = torch.eye(rows) if self.elevation is None else self.elevation
        for b, nodes in enumerate(at_nodes):
            here = scene == b
            rows_of = by_azimuth[azimuth[here]].to(nodes.dtype) @ nodes.transpose(0, 1).flatten(1)
            weights = by_elevation[:, elevation[here]].mT[:, None].to(nodes.dtype)
            values[here] = (rows_of.unflatten(1, (planes, rows)) * weights).sum(-1)
        return values

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        weights (b, G_az, G_el, R) -> (b, N, N)
        """
        p = weights.permute(0, 3, 1, 2).to(self.nodes.dtype.to_real())
        if self.elevation is not None:
            p = p @ self.elevation.mT
        if self.azimuth is not None:
            p = self.azimuth.mT @ p
        if self.skeleton is None:
            outer = outer_products(self.nodes, to_classes(self.nodes, self.nodes.from_box(p)))
        else:
            outer = outer_products(self.skeleton, self.skeleton.from_nodes(self.nodes.fold(p)))
        return self.domain.mirror.restore_matrix(outer)
