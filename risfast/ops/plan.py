"""Plans: which method computes a request, with what nodes and tiles, at what cost and error, and why."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from risfast.geometry import PlanarArray, SearchGrid, find_lattice
from risfast.ops import checks
from risfast.ops.choice import DEFAULT_BYTE_BUDGET, SINGLE_ERROR, Request, choose, expected_error_db, table_budget
from risfast.ops.devices import ByteCache, device_tables
from risfast.ops.domain import TILE_BYTES, Domain, MirrorBasis, NodeSet, domain_of
from risfast.ops.evaluators import ChebyshevBox, DenseBox, DensePointList, Evaluator
from risfast.ops.interpolation import AxisNodes, BoxNodes, box_nodes
from risfast.ops.lag import COEFFICIENT_BYTES, LagBox
from risfast.steering import check_wavefront


@dataclass(frozen=True)
class Plan:
    """How a request will be computed; ``print`` it.

    Attributes
    ----------
    operation, method, reason : str
        What is computed, how, and why so.
    wavefront : {"spherical", "fresnel", "planar"}
        Of the steering vectors.
    shape : tuple of int
        (G_az, G_el, G_r) of a box, (G,) of a list of points.
    n_elements, batch : int
        N and B.
    dtype : torch.complex64 or torch.complex128
        Of the matrix.
    nodes : (int, int) or None
        Nodes of the chebyshev method in azimuth and elevation; None for other methods.
    mirrors : (bool, bool)
        Mirror symmetries in azimuth and elevation that are used.
    scenes_per_pass, values_per_slab : int
        Tiles: scenes evaluated together, and map values held at once.
    byte_budget : int
        Working memory that was allowed.
    bytes_held : int
        Tables kept between calls.
    bytes_working : int
        Estimated peak of a call, above its inputs and outputs.
    flops : float
        Floating-point operations of a call.
    expected_error_db : float
        Error of the result against exact arithmetic, at loading as given, for the strongest possible peak.
    weak : float
        Fraction of its largest value below which the form is computed in float64; 0 where all of it is.
    """

    operation: str
    method: str
    reason: str
    wavefront: str
    shape: tuple[int, ...]
    n_elements: int
    batch: int
    dtype: torch.dtype
    nodes: tuple[int, int] | None
    mirrors: tuple[bool, bool]
    scenes_per_pass: int
    values_per_slab: int
    byte_budget: int
    bytes_held: int
    bytes_working: int
    flops: float
    expected_error_db: float
    weak: float

    def __str__(self) -> str:
        """One line a fact."""
        size = " x ".join(map(str, self.shape))
        nodes = (
            ""
            if self.nodes is None
            else f"\n  nodes        {self.nodes[0]} azimuth x {self.nodes[1]} elevation a plane"
        )
        mirrored = [name for name, used in zip(("azimuth", "elevation"), self.mirrors, strict=True) if used]
        return (
            f"{self.operation} of {self.batch} x {self.n_elements} elements, {self.wavefront}, on {size} points\n"
            f"  method       {self.method}: {self.reason}{nodes}\n"
            f"  mirrors      {' and '.join(mirrored) or 'none'}\n"
            f"  tiles        {self.scenes_per_pass} scenes a pass, {self.values_per_slab} values a slab\n"
            f"  bytes        {self.bytes_held / 2**20:.1f} MiB kept, {self.bytes_working / 2**20:.1f} MiB working, "
            f"budget {self.byte_budget / 2**20:.0f} MiB\n"
            f"  flops        {self.flops / 1e9:.3g} G\n"
            f"  error        {self.expected_error_db:.1g} dB expected"
        )


_SCENES = 4  # a pass, on a grid of any size
_CPU = torch.device("cpu")
_evaluators = ByteCache(on_gpu=False)


def clear_plans() -> None:
    """Free every plan and table that is kept between calls (at most 256 MiB, and as much for GPUs)."""
    _evaluators.clear()
    _cached_plan.cache_clear()
    box_nodes.cache_clear()
    device_tables.clear()


def plan_of(domain: Domain, request: Request) -> Plan:
    """Choose a method and its tiles; the plan stays for the next call on an equal box."""
    return _cached_plan(domain, request) if domain.box else _new_plan(domain, request)


def make_plan(domain: Domain, request: Request, device: torch.device = _CPU) -> tuple[Plan, Evaluator]:
    """Choose, and build what the choice needs on a device; plan and tables stay for the next call on an equal box."""
    made = plan_of(domain, request)
    if not domain.box:
        return made, DensePointList(_on_device(domain, device), request.compute_dtype)
    tolerance = request.tolerance if made.method == "chebyshev" else 0.0
    key = (domain, made.method, tolerance, request.compute_dtype, made.values_per_slab, made.bytes_held > 0, device)
    evaluator: Evaluator = _evaluators.get(key, lambda: _box_evaluator(*key))
    return made, evaluator


def _box_evaluator(
    domain: Domain,
    method: str,
    tolerance: float,
    dtype: torch.dtype,
    values_per_slab: int,
    keep: bool,
    device: torch.device,
) -> Evaluator:
    """What computes a method on a box, on a device; ``keep`` if its tables fit their budget."""
    nodes = box_nodes(domain, tolerance) if method == "chebyshev" else None
    with torch.device(device):
        where = _on_device(domain, device)
        if method == "lag":
            return LagBox(where, keep)
        if nodes is not None:
            return ChebyshevBox(where, _nodes_on_device(nodes, device), dtype, values_per_slab, keep, tolerance)
        return DenseBox(where, dtype, values_per_slab)


def _on_device(domain: Domain, device: torch.device) -> Domain:
    """The domain with its tensors on a device, its symmetries as they were found; itself on the CPU."""
    if device == _CPU:
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


@lru_cache(maxsize=256)
def _cached_plan(domain: Domain, request: Request) -> Plan:
    return _new_plan(domain, request)


def _new_plan(domain: Domain, request: Request) -> Plan:
    method, reason, nodes, flops = choose(domain, request)
    budget = request.byte_budget
    n, points = domain.n_elements, math.prod(domain.shape)
    values_per_slab = min(1 << 17, budget // 64)
    # A few scenes share the cost of calls; many would leave the caches.
    fitting = max(_SCENES, min(32, values_per_slab // max(points, 1)))
    scenes = max(1, min(request.batch, fitting, budget // (128 * n * n + 64 * points)))
    held, working = 0, 4 * 8 * values_per_slab + 8 * TILE_BYTES + scenes * 16 * n * n * 6
    if not domain.box:
        working += 8 * points * scenes
    elif method == "lag":
        lattice = find_lattice(domain.positions)
        stored = 0 if lattice is None else LagBox.stored_bytes(domain, lattice)
        held = stored if stored <= table_budget(request) else 0
        working += COEFFICIENT_BYTES
    elif method == "chebyshev" and nodes is not None:
        count = nodes.azimuth.count * nodes.elevation.count * domain.range.numel()
        stored = NodeSet.stored_bytes(domain, nodes.azimuth.count, nodes.elevation.count, request.compute_dtype)
        held = stored if stored <= table_budget(request) else 0
        working += 4 * 8 * scenes * count
    return Plan(
        operation=request.operation,
        method=method,
        reason=reason,
        wavefront=domain.wavefront,
        shape=domain.shape,
        n_elements=n,
        batch=request.batch,
        dtype=request.dtype,
        nodes=None if nodes is None or method != "chebyshev" else (nodes.azimuth.count, nodes.elevation.count),
        mirrors=domain.mirror.flips if domain.box else (False, False),
        scenes_per_pass=scenes,
        values_per_slab=values_per_slab,
        byte_budget=budget,
        bytes_held=held,
        bytes_working=working,
        flops=flops,
        expected_error_db=expected_error_db(method, nodes, request),
        weak=SINGLE_ERROR / request.relative_error if request.single else 0.0,
    )


def plan(
    array: PlanarArray,
    grid: SearchGrid,
    *,
    operation: str = "mvdr",
    batch: int = 1,
    rank: int | None = None,
    wavefront: str = "spherical",
    method: str = "auto",
    dtype: torch.dtype = torch.complex64,
    loading: float = 1e-2,
    byte_budget: int | None = None,
) -> Plan:
    """How an operator would compute a request; ``print(plan(array, grid))``.

    Parameters
    ----------
    array : PlanarArray
        N elements.
    grid : SearchGrid
        Where the operator is evaluated.
    operation : {"mvdr", "mvdr_lowrank", "analysis", "synthesis", "music", "bartlett"}
        Which operator.
    batch : int
        Scenes B, >= 0.
    rank : int or None
        Columns K of a factor; None for a full matrix.
    wavefront, method, dtype, loading, byte_budget
        As the operators take them.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        An unknown option, or a method that the array, wavefront or points do not allow.
    """
    checks.check_array(array)
    checks.check_grid(grid)
    checks.check_loading(loading, minimum_open=False)
    check_wavefront(wavefront)
    if batch < 0:
        raise ValueError(f"batch must be at least 0, got {batch}")
    budget = DEFAULT_BYTE_BUDGET if byte_budget is None else byte_budget
    if operation == "mvdr_lowrank" and rank is None:
        raise ValueError("rank must be given for operation='mvdr_lowrank': the columns K of the factor")
    request = Request(operation, method, batch, array.n_elements, rank, dtype, loading, budget)
    axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
    domain = domain_of(array.positions_m, axes, array.wavenumber, wavefront, box=True)
    return make_plan(domain, request)[0]
