"""Evaluators made for a device, and kept with their tables between calls."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from risfast.geometry import find_lattice
from risfast.ops.domain import Domain, MirrorBasis
from risfast.ops.evaluators import ChebyshevBox, DenseBox, DensePoints, Evaluator, LagBox
from risfast.ops.interpolation import AxisNodes, BoxNodes, box_nodes
from risfast.ops.lag import LagEvaluator
from risfast.ops.nodes import NodeSet

__all__ = ["CPU", "EvaluatorCache", "cached_nodes", "held_bytes", "points_on"]

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


def points_on(domain: Domain, dtype: torch.dtype, device: torch.device) -> DensePoints:
    """Dense evaluation of a list of points, on a device; it is not kept."""
    return DensePoints(_on_device(domain, device), dtype)


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
        return DenseBox(where, dtype, values_per_slab) if domain.box else DensePoints(where, dtype)


def held_bytes(evaluator: Evaluator) -> int:
    """Bytes of the tables that an evaluator keeps."""
    if isinstance(evaluator, LagBox):
        return LagEvaluator.stored_bytes(evaluator.domain, evaluator.lag.lattice) if evaluator.lag.kept else 0
    return evaluator.nodes.kept_bytes if isinstance(evaluator, ChebyshevBox) else 0
