"""One interface over the methods: analysis and synthesis of a box or a list of points, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from risfast.ops.domain import Domain, adjoint_of
from risfast.ops.interpolation import BoxNodes
from risfast.ops.lag import LagEvaluator
from risfast.ops.nodes import NodeSet, PointSet, hermitian_form, outer_products, sum_of_squares

__all__ = ["ChebyshevBox", "DenseBox", "DensePoints", "Evaluator", "LagBox", "Operand", "Place", "Tile"]


@dataclass(frozen=True)
class Place:
    """Where a tile belongs in the box, and how its last two axes run.

    The lag method makes elevation the outer axis (``elevation_first``) and, in mirror images, lets it run backwards
    (``reverse``); turning the map after a reduction is cheaper than turning the volume.

    Attributes
    ----------
    azimuth, elevation : slice
        Of the box.
    elevation_first : bool
        Whether the tile's last two axes are (elevation, azimuth).
    reverse : bool
        Whether its elevations run backwards.
    """

    azimuth: slice
    elevation: slice
    elevation_first: bool = False
    reverse: bool = False

    def oriented(self, values: Tensor) -> Tensor:
        """Values of a tile as they belong into the box.

        Parameters
        ----------
        values : tensor, last two axes (azimuth, elevation), or (elevation, azimuth) where ``elevation_first``

        Returns
        -------
        tensor, last two axes (azimuth, elevation), a view where it can be
        """
        turned = values.mT if self.elevation_first else values
        return turned.flip(-1) if self.reverse else turned


@dataclass(frozen=True)
class Tile:
    """Values of part of a box, one mirror image after the other.

    Attributes
    ----------
    q : real tensor, shape (images * b, R, ...)
        a^H Q a on R range planes.
    places : tuple of Place
        One for each image.
    """

    q: Tensor
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Operand:
    """A batch of Hermitian matrices Q.

    Attributes
    ----------
    matrix : complex tensor, shape (b, r, N) or (b, N, N)
        Rows X of Q = X^H X, or Q itself.
    kind : {"rows", "hermitian"}
        Which of the two.
    """

    matrix: Tensor
    kind: str

    def prepared(self, domain: Domain, dtype: torch.dtype) -> Operand:
        """The same in the mirror basis of a domain and in another dtype.

        Parameters
        ----------
        domain : Domain
        dtype : torch.complex64 or torch.complex128

        Returns
        -------
        Operand
        """
        matrix, mirror = self.matrix.to(dtype), domain.mirror
        return Operand(
            mirror.transform_matrix(matrix) if self.kind == "hermitian" else mirror.transform(matrix), self.kind
        )

    def hermitian(self) -> Tensor:
        """Q [b, N, N] as complex128, in the order of the elements."""
        matrix = self.matrix.to(torch.complex128)
        return matrix if self.kind == "hermitian" else adjoint_of(matrix) @ matrix


class Evaluator(Protocol):
    """What a method offers.

    Attributes
    ----------
    domain : Domain
        What it evaluates.
    """

    domain: Domain

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Yield q = a^H Q a for tiles that cover the box (or the list, as one azimuth axis).

        Parameters
        ----------
        operand : Operand
            b matrices, in the order of the elements.

        Yields
        ------
        Tile
        """
        ...

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis: sum_g p_g a_g a_g^H.

        Parameters
        ----------
        weights : real tensor, shape (b, G_az, G_el, R) of a box, (b, G) of a list of points
            p.

        Returns
        -------
        complex tensor, shape (b, N, N), Hermitian
        """
        ...


def _values(points: NodeSet | PointSet, operand: Operand, low: int, high: int) -> Tensor:
    """Q [images, b, high - low] of a prepared operand."""
    if operand.kind == "hermitian":
        return hermitian_form(points, operand.matrix, low, high)
    return sum_of_squares(points, operand.matrix, low, high)


class DensePoints:
    """Dense evaluation of a list of points, in tiles.

    Parameters
    ----------
    domain : Domain
        A list of points.
    dtype : torch.complex64 or torch.complex128
        Of the computation.
    """

    def __init__(self, domain: Domain, dtype: torch.dtype) -> None:
        self.domain = domain
        self.points = PointSet(domain, dtype)

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """One tile: all points, as an azimuth axis.

        Parameters
        ----------
        operand : Operand
            b matrices.

        Yields
        ------
        Tile
            ``q`` (b, 1, G, 1).
        """
        q = _values(self.points, operand.prepared(self.domain, self.points.dtype), 0, self.points.count)[0]  # [b, G]
        yield Tile(q[:, None, :, None], (Place(slice(None), slice(None)),))

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        Parameters
        ----------
        weights : real tensor, shape (b, G)

        Returns
        -------
        complex tensor, shape (b, N, N), Hermitian
        """
        return outer_products(self.points, weights[None].to(self.points.dtype.to_real()))


class DenseBox:
    """Dense evaluation of a box: steering vectors made on the fly, a slab of azimuths at a time.

    Parameters
    ----------
    domain : Domain
        A box.
    dtype : torch.complex64 or torch.complex128
        Of the computation.
    slab_values : int
        Map values held at once.
    """

    def __init__(self, domain: Domain, dtype: torch.dtype, slab_values: int) -> None:
        self.domain = domain
        self.nodes = NodeSet(domain, domain.azimuth, domain.elevation, dtype, keep=False)
        self.slab_values = slab_values

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Slabs of azimuths, and of their mirror images.

        Parameters
        ----------
        operand : Operand
            b matrices.

        Yields
        ------
        Tile
            ``q`` (b, R, azimuths, G_el).
        """
        nodes, axis = self.nodes, self.nodes.azimuth
        operand = operand.prepared(self.domain, nodes.dtype)
        step = max(1, self.slab_values // max(4 * operand.matrix.shape[0] * nodes.columns, 1))
        first = axis.count - axis.half
        for low in range(0, axis.half, step):
            high = min(low + step, axis.half)
            images = _values(nodes, operand, low * nodes.columns, high * nodes.columns)
            upper, lower = nodes.to_box(images, low, high)
            yield Tile(upper, (Place(slice(first + low, first + high), slice(None)),))
            if axis.mirrored:
                yield Tile(lower, (Place(slice(axis.half - high, axis.half - low), slice(None)),))

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        Parameters
        ----------
        weights : real tensor, shape (b, G_az, G_el, R)

        Returns
        -------
        complex tensor, shape (b, N, N), Hermitian
        """
        images = self.nodes.from_box(weights.permute(0, 3, 1, 2).to(self.nodes.dtype.to_real()))
        return self.domain.mirror.restore_matrix(outer_products(self.nodes, images))


class ChebyshevBox:
    """Dense evaluation on Chebyshev nodes, and two small real matrix products to interpolate.

    Parameters
    ----------
    domain : Domain
        A box.
    nodes : BoxNodes
        Its nodes and interpolation matrices.
    dtype : torch.complex64 or torch.complex128
        Of the computation.
    slab_values : int
        Map values held at once.
    keep : bool
        Whether the steering vectors at the nodes are stored.
    """

    def __init__(self, domain: Domain, nodes: BoxNodes, dtype: torch.dtype, slab_values: int, keep: bool) -> None:
        self.domain, self.layout = domain, nodes
        self.nodes = NodeSet(domain, nodes.azimuth.nodes, nodes.elevation.nodes, dtype, keep)
        self.slab_values = slab_values
        real = dtype.to_real()
        self.azimuth = None if nodes.azimuth.matrix is None else nodes.azimuth.matrix.to(real)
        self.elevation = None if nodes.elevation.matrix is None else nodes.elevation.matrix.mT.to(real).contiguous()

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Slabs of azimuths.

        Parameters
        ----------
        operand : Operand
            b matrices.

        Yields
        ------
        Tile
            ``q`` (b, R, azimuths, G_el).
        """
        nodes = self.nodes
        operand = operand.prepared(self.domain, nodes.dtype)
        upper, lower = nodes.to_box(_values(nodes, operand, 0, nodes.count), 0, nodes.azimuth.half)
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

        Parameters
        ----------
        weights : real tensor, shape (b, G_az, G_el, R)

        Returns
        -------
        complex tensor, shape (b, N, N), Hermitian
        """
        p = weights.permute(0, 3, 1, 2).to(self.nodes.dtype.to_real())
        if self.elevation is not None:
            p = p @ self.elevation.mT
        if self.azimuth is not None:
            p = self.azimuth.mT @ p
        return self.domain.mirror.restore_matrix(outer_products(self.nodes, self.nodes.from_box(p)))


class LagBox:
    """The lag method behind the common interface.

    Parameters
    ----------
    domain : Domain
        A box for a uniform planar array, with the fresnel or the planar wavefront.
    keep : bool
        Whether the cosine and sine tables are stored.
    """

    def __init__(self, domain: Domain, keep: bool) -> None:
        self.domain = domain
        self.lag = LagEvaluator(domain, keep)

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Slabs of elevations.

        Parameters
        ----------
        operand : Operand
            b matrices.

        Yields
        ------
        Tile
            ``q`` (images * b, R, elevations, G_az).
        """
        axis = self.lag.elevation
        first = axis.count - axis.half
        for low, high, q in self.lag.tiles(operand.hermitian()):
            upper = Place(slice(None), slice(first + low, first + high), elevation_first=True)
            lower = Place(slice(None), slice(axis.half - high, axis.half - low), elevation_first=True, reverse=True)
            yield Tile(q, (upper, lower) if axis.mirrored else (upper,))

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        Parameters
        ----------
        weights : real tensor, shape (b, G_az, G_el, R)

        Returns
        -------
        complex128 tensor, shape (b, N, N), Hermitian
        """
        return self.lag.adjoint(weights.to(torch.float64))
