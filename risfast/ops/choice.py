"""Which method computes a request: where each holds, what it costs, and what error it leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from risfast.geometry import Lattice, find_lattice
from risfast.ops.devices import CACHED_BYTES
from risfast.ops.domain import Domain, NodeSet
from risfast.ops.interpolation import BoxNodes, box_nodes
from risfast.steering import LAG_WAVEFRONTS

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
SINGLE_ERROR = 1e-6
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
