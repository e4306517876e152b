"""One interface over the methods, and the dense and the chebyshev method: analysis and synthesis tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from risfast.ops.dense import Points, hermitian_form, outer_products, sum_of_squares, to_classes, to_images
from risfast.ops.domain import Domain, NodeSet, PointSet, adjoint_of
from risfast.ops.interpolation import BoxNodes
from risfast.ops.skeleton import Skeleton


@dataclass(frozen=True)
class Place:
    """Where a tile belongs in the box, and how its last two axes run."""

    # The lag method makes elevation the outer axis (``elevation_first``) and, in mirror images, lets it run backwards
    # (``reverse``); turning the map after a reduction is cheaper than turning the volume.

    azimuth: slice  # Of the box
    elevation: slice  # Of the box
    elevation_first: bool = False  # Whether the tile's last two axes are (elevation, azimuth)
    reverse: bool = False  # Whether its elevations run backwards

    def oriented(self, values: Tensor) -> Tensor:
        """Values of a tile as they belong into the box."""
        turned = values.mT if self.elevation_first else values
        return turned.flip(-1) if self.reverse else turned


@dataclass(frozen=True)
class Tile:
    """Values of part of a box, one mirror image after the other."""

    q: Tensor  # (images * b, R, ...) a^H Q a on R range planes
    places: tuple[Place, ...]  # One for each image


@dataclass(frozen=True)
class Operand:
    """A batch of Hermitian matrices Q."""

    matrix: Tensor  # (b, r, N) Rows X of Q = X^H X, or Q itself
    kind: str  # Which of the two

    def prepared(self, domain: Domain, dtype: torch.dtype) -> Operand:
        """The same in the mirror basis of a domain and in another dtype."""
        matrix, mirror = self.matrix.to(dtype), domain.mirror
        return Operand(
            mirror.transform_matrix(matrix) if self.kind == "hermitian" else mirror.transform(matrix), self.kind
        )

    def hermitian(self) -> Tensor:
        """Q [b, N, N] as complex128, in the order of the elements."""
        matrix = self.matrix.to(torch.complex128)
        return matrix if self.kind == "hermitian" else adjoint_of(matrix) @ matrix


class Evaluator(Protocol):
    """What a method offers."""

    domain: Domain

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Yield q = a^H Q a for tiles that cover the box (or the list, as one azimuth axis)."""
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

    def __init__(self, domain: Domain, dtype: torch.dtype) -> None:
        self.domain = domain
        self.points = PointSet(domain, dtype)

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """One tile: all points, as an azimuth axis."""
        q = _values(self.points, operand.prepared(self.domain, self.points.dtype), 0, self.points.count)[0]  # [b, G]
        yield Tile(q[:, None, :, None], (Place(slice(None), slice(None)),))

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        weights (b, G) -> (b, N, N)
        """
        return outer_products(self.points, weights[None].to(self.points.dtype.to_real()))


class DenseBox:
    """Dense evaluation of a box: steering vectors made on the fly, a slab of azimuths at a time."""

    def __init__(self, domain: Domain, dtype: torch.dtype, slab_values: int) -> None:
        self.domain = domain
        self.nodes = NodeSet(domain, domain.azimuth, domain.elevation, dtype, keep=False)
        self.slab_values = slab_values

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Slabs of azimuths, and of their mirror images."""
        nodes, axis = self.nodes, self.nodes.azimuth
        operand = operand.prepared(self.domain, nodes.dtype)
        step = max(1, self.slab_values // max(4 * operand.matrix.shape[0] * nodes.columns, 1))
        first = axis.count - axis.half
        for low in range(0, axis.half, step):
            high = min(low + step, axis.half)
            by_class = _values(nodes, operand, low * nodes.columns, high * nodes.columns)
            upper, lower = nodes.to_box(to_images(nodes, by_class), low, high)
            yield Tile(upper, (Place(slice(first + low, first + high), slice(None)),))
            if axis.mirrored:
                yield Tile(lower, (Place(slice(axis.half - high, axis.half - low), slice(None)),))

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        weights (b, G_az, G_el, R) -> (b, N, N)
        """
        images = self.nodes.from_box(weights.permute(0, 3, 1, 2).to(self.nodes.dtype.to_real()))
        return self.domain.mirror.restore_matrix(outer_products(self.nodes, to_classes(self.nodes, images)))


class ChebyshevBox:
    """Dense evaluation on a skeleton of a few nodes, and small real matrix products to interpolate."""

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

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Slabs of azimuths."""
        nodes = self.nodes
        operand = operand.prepared(self.domain, nodes.dtype)
        if self.skeleton is None:
            by_class = _values(nodes, operand, 0, nodes.count)
            upper, lower = nodes.to_box(to_images(nodes, by_class), 0, nodes.azimuth.half)
        else:
            on_skeleton = _values(self.skeleton, operand, 0, self.skeleton.count)
            upper, lower = nodes.unfold(self.skeleton.to_nodes(on_skeleton))
        if nodes.azimuth.mirrored:
            at_nodes = torch.cat([lower[:, :, : nodes.azimuth.count - nodes.azimuth.half], upper], 2)
        else:
            at_nodes = upper
        n_azimuth, n_elevation, n_range = self.domain.shape
        step = max(1, self.slab_values // max(at_nodes.shape[0] * n_range * n_elevation, 1))
        for low in range(0, n_azimuth, step):
            high = min(low + step, n_azimuth)
            slab = at_nodes[:, :, low:high] if self.azimuth is None else self.azimuth[low:high] @ at_nodes
            slab = slab if self.elevation is None else slab @ self.elevation
            yield Tile(slab, (Place(slice(low, high), slice(None)),))

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
