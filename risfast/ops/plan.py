"""Plans: which method computes a request, with what nodes and tiles, at what cost and error, and why."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from risfast.geometry import Lattice, PlanarArray, SearchGrid, find_lattice
from risfast.ops import checks
from risfast.ops.devices import CACHED_BYTES, ByteCache, device_tables
from risfast.ops.domain import TILE_BYTES, Domain, MirrorBasis, NodeSet, domain_of
from risfast.ops.evaluators import ChebyshevBox, DenseBox, DensePointList, Evaluator
from risfast.ops.interpolation import AxisNodes, BoxNodes, box_nodes
from risfast.ops.lag import COEFFICIENT_BYTES, LagBox
from risfast.steering import LAG_WAVEFRONTS, check_wavefront

METHODS = ("auto", "dense", "chebyshev", "lag")
OPERATIONS = ("mvdr", "mvdr_lowrank", "analysis", "synthesis", "music", "bartlett")
DEFAULT_BYTE_BUDGET = 256 << 20
MINIMUM_BYTE_BUDGET = 1 << 20

# Interpolation error aimed at, in dB at the strongest possible peak, for results in float32 and in float64.
_TARGET_DB = {torch.complex64: 5e-4, torch.complex128: 5e-7}
# Of a low-rank factor ten times as much is promised, in complex64.
_LOWRANK_LOOSER = 10.0
# The same relative to ||Q||_F for operations whose result is not the reciprocal of a nearly singular form.
_TARGET_RELATIVE = {torch.complex64: 3e-8, torch.complex128: 1e-14}
# Error of a field in float32 as a fraction of its largest value.
_SINGLE_ERROR = 1e-6
_SMALLEST_TOLERANCE = 2e-14  # what float64 can resolve
# Floating-point operations that cost as much time as one element of a steering vector (square root, sine, cosine).
_STEERING_FLOPS = 700.0
_COPY_FLOPS = 40.0  # the same for one value written and read again


@dataclass(frozen=True)
class Request:
    """What decides a plan, beside the domain."""

    operation: str  # One of :data:`OPERATIONS`
    method: str  # One of :data:`METHODS`
    batch: int  # Scenes B
    n_elements: int  # N
    rank: int | None  # Columns K of a factor; None for a full matrix
    dtype: torch.dtype  # Of the matrix
    loading: float  # delta = loading * trace / N, for Capon alone
    byte_budget: int  # Working memory in bytes

    def __post_init__(self) -> None:
        """Check the options."""
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}; got {self.operation!r}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.dtype not in _TARGET_DB:
            raise TypeError(f"dtype must be complex64 or complex128, got {self.dtype}")
        if self.byte_budget < MINIMUM_BYTE_BUDGET:
            raise ValueError(f"byte_budget must be at least {MINIMUM_BYTE_BUDGET} bytes, got {self.byte_budget}")

    @property
    def compute_dtype(self) -> torch.dtype:
        """Everything near a reciprocal is computed in complex128: float32 loses up to 0.05 dB at its peaks."""
        return self.dtype if self.operation in ("analysis", "synthesis") else torch.complex128

    @property
    def single(self) -> bool:
        """Whether a field may be in float32 where it is not weak."""
        return self.dtype == torch.complex64 and self.operation in ("mvdr", "mvdr_lowrank", "music")

    @property
    def relative_error(self) -> float:
        """Error of a power that is aimed at."""
        looser = _LOWRANK_LOOSER if self.operation == "mvdr_lowrank" and self.dtype == torch.complex64 else 1.0
        return 10 ** (looser * _TARGET_DB[self.dtype] / 10) - 1

    @property
    def tolerance(self) -> float:
        """Interpolation error that the operation can bear, as :class:`BoxNodes` has it checked."""
        # Capon: beside a lone source s the inverse is (I - s s^H / N) / delta, delta = loading (traces of N): where the
        # form is 1, an error of |s^H a|^2 / N is divided by the loading. Nodes are checked for it.
        if self.operation in ("mvdr", "mvdr_lowrank"):
            wanted = max(self.relative_error * self.loading / math.sqrt(self.n_elements), _SMALLEST_TOLERANCE)
            # In quarter decades, so that a loading that varies finds the nodes of the one before.
            return 10 ** (math.floor(4 * math.log10(wanted)) / 4)
        target = _TARGET_RELATIVE[self.dtype]
        if self.operation == "music":
            target = min(target, 1e-9)  # the null at a source has no floor
        return max(target, _SMALLEST_TOLERANCE)


def _evaluation_flops(domain: Domain, points: float, request: Request) -> float:
    """Products with the matrix at so many points (without their mirror images)."""
    n = domain.n_elements
    images = domain.mirror.images
    rows = request.rank if request.rank is not None else n * (0.5 if images == 1 else 0.625)
    return max(request.batch, 1) * points * (8 * n * rows + images * _COPY_FLOPS * rows)


def _dense_cost(domain: Domain, request: Request) -> float:
    images = domain.mirror.images
    points = math.prod(domain.shape) / images
    return points * domain.n_elements * _STEERING_FLOPS + _evaluation_flops(domain, points, request)


def _chebyshev_cost(domain: Domain, nodes: BoxNodes, request: Request) -> float:
    images = domain.mirror.images
    n_az, n_el, n_r = domain.shape
    count = nodes.azimuth.count * nodes.elevation.count * n_r
    flops = _evaluation_flops(domain, count / images, request)
    if nodes.azimuth.matrix is not None:
        flops += max(request.batch, 1) * 2.0 * n_r * n_az * nodes.azimuth.count * nodes.elevation.count
    if nodes.elevation.matrix is not None:
        flops += max(request.batch, 1) * 2.0 * n_r * n_az * nodes.elevation.count * n_el
    return flops + max(request.batch, 1) * _COPY_FLOPS * math.prod(domain.shape)


def _lag_cost(domain: Domain, n_h: int, n_v: int, request: Request) -> float:
    n_az, n_el, n_r = domain.shape
    coefficients = n_r * domain.n_elements**2 * _COPY_FLOPS + n_r * n_h * 2 * n_v * n_el * 8
    if request.rank is not None:
        coefficients += 8.0 * domain.n_elements**2 * request.rank
    return max(request.batch, 1) * (coefficients + n_r * n_az * n_el * (2.0 * n_h + _COPY_FLOPS))


def require_lag(lattice: Lattice | None, wavefront: str) -> None:
    """Refuse the lag method where it does not hold."""
    if lattice is None:
        raise ValueError(
            "method='lag' needs a uniform planar array (a full rectangular lattice at z = 0); array is irregular. Use "
            "method='chebyshev' or 'dense'"
        )
    if wavefront not in LAG_WAVEFRONTS:
        raise ValueError(
            f"method='lag' needs wavefront='fresnel' or 'planar', got wavefront={wavefront!r}, whose phase is no "
            "polynomial of the element index; use method='chebyshev'"
        )


def choose(domain: Domain, request: Request) -> tuple[str, str, BoxNodes | None, float]:
    """The cheapest method that holds, or the one that is asked for."""
    lattice = find_lattice(domain.positions)
    if request.method == "lag":
        require_lag(lattice, domain.wavefront)
    if request.method in ("lag", "chebyshev") and not domain.box:
        raise ValueError(
            f"method={request.method!r} needs a SearchGrid; a list of points is evaluated by method='dense'"
        )
    asked = "asked for"
    if not domain.box:
        points = float(domain.shape[0])
        cost = points * domain.n_elements * _STEERING_FLOPS + _evaluation_flops(domain, points, request)
        return "dense", asked if request.method == "dense" else "a list of points has no structure", None, cost
    if request.method == "dense":
        return "dense", asked, None, _dense_cost(domain, request)
    if lattice is not None and domain.wavefront in LAG_WAVEFRONTS:
        cost = _lag_cost(domain, lattice.n_h, lattice.n_v, request)
        if request.method == "lag":
            return "lag", asked, None, cost
        if request.method == "auto":
            # Its cost does not depend on the rank and is far below the others' unless the grid is tiny.
            dense = _dense_cost(domain, request)
            if cost < dense:
                return (
                    "lag",
                    f"uniform planar array, {domain.wavefront} phase: {dense / cost:.0f} x less work than dense",
                    None,
                    cost,
                )
    if request.method == "auto" and request.operation.startswith("mvdr") and request.loading < 1e-9:
        return "dense", "without loading no interpolation error is small enough", None, _dense_cost(domain, request)
    nodes = box_nodes(domain, request.tolerance)
    stored = NodeSet.stored_bytes(domain, nodes.azimuth.count, nodes.elevation.count, request.compute_dtype)
    whole = nodes.azimuth.matrix is None and nodes.elevation.matrix is None
    if request.method == "auto" and whole and stored > table_budget(request):
        return "dense", "the aperture asks for as many nodes as there are points", None, _dense_cost(domain, request)
    cost, dense = _chebyshev_cost(domain, nodes, request), _dense_cost(domain, request)
    if request.method == "chebyshev":
        return "chebyshev", asked, nodes, cost
    if cost < dense:
        return (
            "chebyshev",
            f"the aperture band-limits the form in angle: {dense / cost:.0f} x less work than dense",
            nodes,
            cost,
        )
    return "dense", "the grid is too coarse to gain from interpolation", None, dense


def expected_error_db(method: str, nodes: BoxNodes | None, request: Request) -> float:
    """Error of a result against exact arithmetic: its rounding, plus what interpolation adds."""
    rounding = torch.finfo(request.dtype).eps * 10 / math.log(10)
    if request.compute_dtype == torch.complex64:
        rounding *= 16
    elif request.operation.startswith("mvdr") and request.loading > 0:
        # Condition number N / loading, in float64, through a Cholesky factor.
        rounding += torch.finfo(torch.float64).eps * 1e3 / request.loading * 10 / math.log(10)
    if request.single and method != "dense":
        rounding += request.relative_error * 10 / math.log(10)  # of float32 where the form is not weak
    if method != "chebyshev" or nodes is None:
        return rounding
    scale = 1.0
    if request.operation.startswith("mvdr"):
        # Without loading nothing is known of the condition of R: assume what float64 can still invert.
        scale = math.sqrt(request.n_elements) / max(request.loading, 1e-12)
    return rounding + 10 / math.log(10) * nodes.checked_error * scale


def table_budget(request: Request) -> int:
    """What the tables of one plan may take: half the byte budget, and at most half of what is kept of all plans."""
    return min(request.byte_budget // 2, CACHED_BYTES // 2)


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
        weak=_SINGLE_ERROR / request.relative_error if request.single else 0.0,
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
