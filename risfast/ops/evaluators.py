"""One interface over the methods: analysis and synthesis of a box or a list of points, tile by tile."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from risfast.geometry import find_lattice
from risfast.ops.dense import hermitian_form, outer_products, sum_of_squares
from risfast.ops.domain import Domain, MirrorBasis, NodeSet, PointSet, adjoint_of
from risfast.ops.interpolation import AxisNodes, BoxNodes, box_nodes
from risfast.ops.lag import LagEvaluator


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


def _values(points: NodeSet | PointSet, operand: Operand, low: int, high: int) -> Tensor:
    """Q [images, b, high - low] of a prepared operand."""
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
            images = _values(nodes, operand, low * nodes.columns, high * nodes.columns)
            upper, lower = nodes.to_box(images, low, high)
            yield Tile(upper, (Place(slice(first + low, first + high), slice(None)),))
            if axis.mirrored:
                yield Tile(lower, (Place(slice(axis.half - high, axis.half - low), slice(None)),))

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        weights (b, G_az, G_el, R) -> (b, N, N)
        """
        images = self.nodes.from_box(weights.permute(0, 3, 1, 2).to(self.nodes.dtype.to_real()))
        return self.domain.mirror.restore_matrix(outer_products(self.nodes, images))


class ChebyshevBox:
    """Dense evaluation on Chebyshev nodes, and two small real matrix products to interpolate."""

    def __init__(self, domain: Domain, nodes: BoxNodes, dtype: torch.dtype, slab_values: int, keep: bool) -> None:
        self.domain, self.layout = domain, nodes
        self.nodes = NodeSet(domain, nodes.azimuth.nodes, nodes.elevation.nodes, dtype, keep)
        self.slab_values = slab_values
        real = dtype.to_real()
        self.azimuth = None if nodes.azimuth.matrix is None else nodes.azimuth.matrix.to(real)
        self.elevation = None if nodes.elevation.matrix is None else nodes.elevation.matrix.mT.to(real).contiguous()

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Slabs of azimuths."""
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

        weights (b, G_az, G_el, R) -> (b, N, N)
        """
        p = weights.permute(0, 3, 1, 2).to(self.nodes.dtype.to_real())
        if self.elevation is not None:
            p = p @ self.elevation.mT
        if self.azimuth is not None:
            p = self.azimuth.mT @ p
        return self.domain.mirror.restore_matrix(outer_products(self.nodes, self.nodes.from_box(p)))


class LagBox:
    """The lag method behind the common interface."""

    def __init__(self, domain: Domain, keep: bool) -> None:
        self.domain = domain
        self.lag = LagEvaluator(domain, keep)

    def tiles(self, operand: Operand) -> Iterator[Tile]:
        """Slabs of elevations."""
        axis = self.lag.elevation
        first = axis.count - axis.half
        for low, high, q in self.lag.tiles(operand.hermitian()):
            upper = Place(slice(None), slice(first + low, first + high), elevation_first=True)
            lower = Place(slice(None), slice(axis.half - high, axis.half - low), elevation_first=True, reverse=True)
            yield Tile(q, (upper, lower) if axis.mirrored else (upper,))

    def adjoint(self, weights: Tensor) -> Tensor:
        """Synthesis; see :class:`Evaluator`.

        weights (b, G_az, G_el, R) -> (b, N, N)
        """
        return self.lag.adjoint(weights.to(torch.float64))


CPU = torch.device("cpu")


@lru_cache(maxsize=64)
def cached_nodes(domain: Domain, tolerance: float) -> BoxNodes:
    """:func:`risfast.ops.interpolation.box_nodes` of a domain on the CPU, kept."""
    return box_nodes(domain, tolerance)


class EvaluatorCache:
    """The evaluators used last, whose tables cost more to make than many a call; bounded in bytes."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._held: OrderedDict[Any, Evaluator] = OrderedDict()
        self._lock = Lock()

    def get(
        self,
        domain: Domain,
        method: str,
        tolerance: float,
        dtype: torch.dtype,
        values_per_slab: int,
        table_budget: int,
        device: torch.device = CPU,
    ) -> Evaluator:
        """The evaluator, made if it is not held."""
        key = (
            domain,
            method,
            tolerance if method == "chebyshev" else 0.0,
            dtype,
            values_per_slab,
            table_budget,
            device,
        )
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        made = _new_evaluator(*key)
        with self._lock:
            self._held[key] = made
            while len(self._held) > 1 and sum(map(held_bytes, self._held.values())) > self.most_bytes:
                self._held.popitem(last=False)
        return made

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._held.clear()


def _on_device(domain: Domain, device: torch.device) -> Domain:
    """The domain with its tensors on a device, its symmetries as they were found; itself on the CPU."""
    if device == CPU:
        return domain
    mirror = domain.mirror
    moved = copy.copy(domain)
    for name in ("positions", "azimuth", "elevation", "range"):
        object.__setattr__(moved, name, getattr(domain, name).to(device))
    there = MirrorBasis(mirror.orbits.to(device), mirror.scale.to(device), mirror.sizes, mirror.flips)
    object.__setattr__(moved, "mirror", there)
    return moved


def _nodes_on_device(nodes: BoxNodes, device: torch.device) -> BoxNodes:
    def moved(axis: AxisNodes) -> AxisNodes:
        matrix: Tensor | None = None if axis.matrix is None else axis.matrix.to(device)
        return AxisNodes(axis.nodes.to(device), matrix)

    return BoxNodes(moved(nodes.azimuth), moved(nodes.elevation), nodes.checked_error)


def points_on(domain: Domain, dtype: torch.dtype, device: torch.device) -> DensePointList:
    """Dense evaluation of a list of points, on a device; it is not kept."""
    return DensePointList(_on_device(domain, device), dtype)


def _new_evaluator(
    domain: Domain,
    method: str,
    tolerance: float,
    dtype: torch.dtype,
    values_per_slab: int,
    table_budget: int,
    device: torch.device,
) -> Evaluator:
    keep = False
    nodes: BoxNodes | None = None
    lattice = find_lattice(domain.positions)
    if method == "lag":
        keep = lattice is not None and LagEvaluator.stored_bytes(domain, lattice) <= table_budget
    elif method == "chebyshev":
        nodes = cached_nodes(domain, tolerance)
        keep = NodeSet.stored_bytes(domain, nodes.azimuth.count, nodes.elevation.count, dtype) <= table_budget
    with torch.device(device):
        where = _on_device(domain, device)
        if method == "lag":
            return LagBox(where, keep)
        if nodes is not None:
            return ChebyshevBox(where, _nodes_on_device(nodes, device), dtype, values_per_slab, keep)
        return DenseBox(where, dtype, values_per_slab) if domain.box else DensePointList(where, dtype)


def held_bytes(evaluator: Evaluator) -> int:
    """Bytes of the tables that an evaluator keeps."""
    if isinstance(evaluator, LagBox):
        return LagEvaluator.stored_bytes(evaluator.domain, evaluator.lag.lattice) if evaluator.lag.kept else 0
    return evaluator.nodes.kept_bytes if isinstance(evaluator, ChebyshevBox) else 0
