"""What is measured on a GPU: one function a scenario, from a batch size to the work and its accounts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bench.accuracy import exact_values, measure_errors
from bench.gpu_peers import formulation
from bench.peers import Map, Problem
from risfast.detect import DetectionOptions, detect_fixed, detect_sources
from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import mvdr_spectrum, mvdr_spectrum_lowrank, reference
from risfast.ops.cuda import (
    DevicePlan,
    device_plan,
    epilogue_of,
    from_factor,
    loaded_factor,
    loaded_inverse,
)
from risfast.ops.devices import kernel_module
from risfast.ops.spectra import lowrank_delta, woodbury_factor
from risfast.steering import steering_vectors

LOADING = 1e-2
_CHECKED_SCENES = 2  # whose error is looked at


@dataclass(frozen=True, eq=False)
class Setting:
    """Sizes of a run."""

    device: torch.device
    array: PlanarArray
    grid: SearchGrid
    batches: tuple[int, ...]
    columns: int = 10
    options: DetectionOptions = field(default_factory=DetectionOptions)
    maxima: int = 64
    kept: int = 20

    @property
    def points(self) -> int:
        return self.grid.size

    @property
    def directions(self) -> int:
        return self.grid.shape[0] * self.grid.shape[1]


def reference_setting(device: torch.device) -> Setting:
    """The reference system on the inference grid."""
    return Setting(device, PlanarArray.rectangular(), SearchGrid.reference(), (1, 32, 256))


def tiny_setting(device: torch.device) -> Setting:
    """Every path at a size that the interpreter can bear."""
    angles = [torch.linspace(-1.0, 1.0, 13), torch.linspace(-0.5, 0.5, 7)]
    grid = SearchGrid(*(a.double() for a in angles), [0.8, 2.0])
    options = DetectionOptions(candidates=4, refine_points=(5, 5, 5), window=(3, 3, 1))
    return Setting(device, PlanarArray.rectangular(4, 3), grid, (1, 2), 2, options, 8, 4)


@dataclass(frozen=True, eq=False)
class Work:
    """One scenario at one batch size.

    Attributes
    ----------
    call, inputs : what is timed, and its tensors
    flops, bytes : of a call, counted from the formulas: what the method must do, not what a tile pads
    error_db : from the result to decibels against float64
    peers : name to a call on ``peer_inputs``, which hold ``peer_scenes`` scenes
    cpu : the same on the CPU, on one scene
    capture : whether it can be captured in a CUDA graph
    """

    call: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    flops: float
    bytes: float
    error_db: Callable[[Any], float]
    peers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    peer_inputs: tuple[Tensor, ...] = ()
    peer_scenes: int = 1
    cpu: Callable[[], Any] | None = None
    capture: bool = True


@lru_cache(maxsize=8)
def _factors(setting: Setting, batch: int, columns: int, wavefront: str) -> Tensor:
    """Factors of ``columns`` sources at random grid points, complex128 [B, N, K] on the CPU."""
    generator = torch.Generator().manual_seed(1)
    axes = (setting.grid.azimuth_rad, setting.grid.elevation_rad, setting.grid.range_m)
    at = [axis[torch.randint(len(axis), (batch, columns), generator=generator)] for axis in axes]
    a = steering_vectors(setting.array, *at, wavefront=wavefront, dtype=torch.complex128)  # [B, K, N]
    gain = 0.3 + torch.rand(batch, columns, 1, generator=generator, dtype=torch.float64)
    return (a * gain).mT.contiguous()


@lru_cache(maxsize=4)
def covariances(setting: Setting, batch: int, wavefront: str) -> Tensor:
    """Five sources (fewer on a tiny array) and white noise, complex64 on the device."""
    F = _factors(setting, batch, min(5, setting.array.n_elements // 6), wavefront)
    R = F @ F.mH + 0.05 * torch.eye(F.shape[1], dtype=F.dtype)
    return R.to(setting.device, torch.complex64)


def factors(setting: Setting, batch: int) -> Tensor:
    """Low-rank factors, complex64 on the device, spherical wavefront."""
    return _factors(setting, batch, setting.columns, "spherical").to(setting.device, torch.complex64)


def _plan(setting: Setting, operation: str, matrix: Tensor, wavefront: str, method: str) -> DevicePlan:
    array, grid = setting.array, setting.grid
    axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
    geometry = (array.positions_m, *axes, array.wavenumber, wavefront, method, 1 << 28, "auto")
    rank = matrix.shape[2] if operation == "mvdr_lowrank" else None
    return device_plan(operation, matrix, geometry, loading=LOADING, rank=rank)


def _problem(setting: Setting, operation: str, matrix: Tensor, wavefront: str) -> Problem:
    """The first scenes as the checks of accuracy take them."""
    axes = (setting.grid.azimuth_rad, setting.grid.elevation_rad, setting.grid.range_m)
    array = setting.array
    few = matrix[:_CHECKED_SCENES].cpu()
    return Problem(operation, few, array.positions_m, array.wavelength_m, wavefront, *axes, LOADING)


def _map_error(setting: Setting, operation: str, matrix: Tensor, wavefront: str) -> Callable[[Any], float]:
    """Largest error in dB of a map at its peaks and at random angles, over the first scenes."""

    def error(found: Any) -> float:
        power, plane = (field[:_CHECKED_SCENES].cpu() for field in found)
        return measure_errors(_problem(setting, operation, matrix, wavefront), Map(power, plane)).worst_db

    return error


def _peers(setting: Setting, wavefront: str, power: Callable[[Tensor], Tensor]) -> dict[str, Callable[..., Any]]:
    made = {}
    for kind in ("materialised", "chunked", "compiled"):
        if kind != "compiled" or setting.device.type == "cuda":  # compiling for the CPU needs a C++ compiler
            made[f"torch {kind}"] = formulation(kind, setting.array, setting.grid, wavefront, power, setting.device)
    return made


def _reciprocal(setting: Setting) -> Callable[[Tensor], Tensor]:
    n = setting.array.n_elements
    return lambda q: n / q


def lag_flops(setting: Setting) -> float:
    """Of one scene: coefficients, rows, evaluation with mirrored azimuths."""
    lattice = setting.array.lattice
    assert lattice is not None
    n_h, n_v, n = lattice.n_h, lattice.n_v, setting.array.n_elements
    n_r, n_el = setting.grid.shape[2], setting.grid.shape[1]
    return 8.0 * n * n * n_r + 8.0 * (2 * n_v - 1) * n_el * n_r * n_h + 2.0 * (n_h - 1) * setting.points


def lag_map_from_inverse(setting: Setting, batch: int) -> Work:
    """From R^-1 to the map: coefficients, rows, evaluation, best plane."""
    R = covariances(setting, batch, "fresnel")
    inverse = loaded_inverse(R, LOADING).to(torch.complex64)
    plan = _plan(setting, "mvdr", R, "fresnel", "lag")
    n = setting.array.n_elements
    epilogue = epilogue_of(inverse, "reciprocal", n)
    return Work(
        lambda q: kernel_module("lag").lag_power(q, plan.lag, epilogue),
        (inverse,),
        batch * lag_flops(setting),
        batch * (8.0 * n * n + 8.0 * setting.directions),
        _map_error(setting, "mvdr", R, "fresnel"),
        _peers(setting, "fresnel", _reciprocal(setting)),
        (loaded_factor(R[:1], LOADING),),
        1,
        lambda: mvdr_spectrum(R[:1].cpu(), setting.array, setting.grid, wavefront="fresnel", method="lag"),
    )


def chebyshev_flops(setting: Setting, nodes: tuple[int, int], columns: float) -> float:
    """Of one scene: products at the nodes, and two real products to interpolate."""
    n_az, n_el, n_r = setting.grid.shape
    at_nodes = nodes[0] * nodes[1] * n_r * (8 * setting.array.n_elements * columns + 4 * columns)
    return at_nodes + 2.0 * n_r * n_az * (nodes[0] * nodes[1] + nodes[1] * n_el)


def _nodes(plan: DevicePlan) -> tuple[int, int]:
    assert plan.azimuth is not None
    assert plan.elevation is not None
    return plan.azimuth.shape[1], plan.elevation.shape[1]


def chebyshev_from_inverse(setting: Setting, batch: int) -> Work:
    """From the triangular factor of R^-1 to the map: nodes, interpolation, best plane; spherical."""
    R = covariances(setting, batch, "spherical")
    factor = loaded_factor(R, LOADING)
    plan = _plan(setting, "mvdr", R, "spherical", "chebyshev")
    n = setting.array.n_elements
    epilogue = epilogue_of(factor, "reciprocal", n)
    return Work(
        lambda w: from_factor(plan, w, epilogue, False),
        (factor,),
        batch * chebyshev_flops(setting, _nodes(plan), (n + 1) / 2),
        batch * (8.0 * n * n + 8.0 * setting.directions),
        _map_error(setting, "mvdr", R, "spherical"),
        _peers(setting, "spherical", _reciprocal(setting)),
        (factor[:1],),
        1,
        lambda: mvdr_spectrum(R[:1].cpu(), setting.array, setting.grid, method="chebyshev"),
    )


def _lowrank(setting: Setting, batch: int, method: str) -> Work:
    F = factors(setting, batch)
    plan = _plan(setting, "mvdr_lowrank", F, "spherical", method)
    n, columns = setting.array.n_elements, setting.columns
    if method == "chebyshev":
        flops = chebyshev_flops(setting, _nodes(plan), 2 * columns)  # the residual takes two products
    else:
        flops = setting.points * (16.0 * n * columns + 6.0 * n + 90.0 * n)  # two products, steering made twice
    delta = lowrank_delta(F[:1], LOADING)
    small = woodbury_factor(F[:1], delta).to(torch.complex64)
    options = {"loading": LOADING, "method": method}
    return Work(
        lambda f: mvdr_spectrum_lowrank(f, setting.array, setting.grid, **options),
        (F,),
        batch * flops,
        batch * (8.0 * n * columns + 8.0 * setting.directions),
        _map_error(setting, "mvdr_lowrank", F, "spherical"),
        _peers(setting, "spherical", lambda q: n * delta.float() / (n - q)),
        (small,),
        1,
        lambda: mvdr_spectrum_lowrank(F[:1].cpu(), setting.array, setting.grid, **options),
    )


def chebyshev_lowrank(setting: Setting, batch: int) -> Work:
    """From a factor with K columns to the map; spherical."""
    return _lowrank(setting, batch, "chebyshev")


def dense_lowrank(setting: Setting, batch: int) -> Work:
    """The same without interpolation."""
    return _lowrank(setting, batch, "dense")


def inverse(setting: Setting, batch: int) -> Work:
    """(R + delta I)^-1 in float64."""
    R = covariances(setting, batch, "spherical")
    n = setting.array.n_elements

    def by_torch(matrix: Tensor) -> Tensor:
        delta = LOADING * matrix.diagonal(dim1=1, dim2=2).real.double().mean(-1)
        eye = torch.eye(n, device=matrix.device, dtype=torch.complex128)
        loaded = matrix.to(torch.complex128) + delta[:, None, None] * eye
        return torch.cholesky_inverse(torch.linalg.cholesky_ex(loaded).L)

    def error(found: Tensor) -> float:
        expected = by_torch(R[:_CHECKED_SCENES].cpu())
        difference = (found[:_CHECKED_SCENES].cpu().to(torch.complex128) - expected).abs().amax()
        return 10 * math.log10(1 + float(difference / expected.abs().amax()))

    return Work(
        lambda matrix: loaded_inverse(matrix, LOADING),
        (R,),
        batch * 16.0 / 3.0 * n**3,
        batch * 24.0 * n * n,
        error,
        {"torch cholesky_inverse": by_torch},
        (R,),
        batch,
        lambda: by_torch(R[:1].cpu()),
    )


def maxima(setting: Setting, batch: int) -> Work:
    """3D maxima of a volume, and suppression down to the best 20."""
    R = covariances(setting, batch, "fresnel")
    volume = mvdr_spectrum(R, setting.array, setting.grid, wavefront="fresnel", reduce="none")
    peaks, nms = kernel_module("peaks"), kernel_module("nms")
    window = setting.options.window
    separation = (math.radians(5.0), math.radians(5.0), 1.0)
    # Grid indices stand for positions: the work of suppression does not depend on the unit.
    step = torch.tensor([math.radians(120 / 360), math.radians(60 / 180), 0.5], device=setting.device)

    def call(values: Tensor) -> tuple[Tensor, ...]:
        index, value, _, _ = peaks.local_maxima(values, window, setting.maxima)
        kept, count, _ = nms.nms(index * step, value, separation, setting.kept)
        return index, value, kept, count

    def error(found: tuple[Tensor, ...]) -> float:
        expected = reference.local_maxima_3d(volume[:1].cpu(), window, setting.maxima, None)
        same = torch.equal(found[0][:1].cpu(), expected[0]) and torch.equal(found[1][:1].cpu(), expected[1])
        return 0.0 if same else math.inf

    def pooled(values: Tensor) -> Tensor:
        top = torch.nn.functional.max_pool3d(values[:, None], window, stride=1, padding=[s // 2 for s in window])[:, 0]
        flat = torch.where(top == values, values, -math.inf).flatten(1)
        return flat.topk(min(setting.maxima, flat.shape[1])).indices

    return Work(
        call,
        (volume,),
        batch * 2.0 * setting.points,
        batch * 4.0 * setting.points,
        error,
        {"torch max_pool3d and topk": pooled},
        (volume[:1].contiguous(),),
        1,
    )


def detection(setting: Setting, batch: int) -> Work:
    """From R to fixed-size detections, fresnel, refinement included."""
    R = covariances(setting, batch, "fresnel")
    how = {"wavefront": "fresnel", "options": setting.options, "loading": LOADING}
    n, nodes = setting.array.n_elements, 512.0  # about 8 x 8 x 8 nodes a box

    def error(found: Any) -> float:
        """Of the powers named at the positions named; infinite where a scene has no source."""
        problem = _problem(setting, "mvdr", R, "fresnel")
        worst = 0.0
        for scene in range(problem.batch):
            keep = found.keep[scene].cpu()
            if not bool(keep.any()):
                return math.inf
            expected = exact_values(problem, scene, found.position[scene].cpu()[keep])
            worst = max(worst, float((10 * (found.power[scene].cpu()[keep] / expected).log10()).abs().max()))
        return worst

    refinement = setting.options.candidates * 8.0 * n * n * (nodes + 8 * 22 + 2 * 22)
    return Work(
        lambda matrix: detect_fixed(matrix, setting.array, setting.grid, factored=False, **how),
        (R,),
        batch * (lag_flops(setting) + 32.0 / 3.0 * n**3 + refinement),
        batch * (8.0 * n * n + 8.0 * setting.points),
        error,
        cpu=lambda: detect_sources(R[:1].cpu(), setting.array, setting.grid, **how),
    )


@dataclass(frozen=True)
class Scenario:
    """A row of the table: what it is, what it must reach a scene at B = 256 in microseconds, and its floor on paper."""

    title: str
    make: Callable[[Setting, int], Work]
    must_us: float
    floor_us: float | None


SCENARIOS = {
    "lag": Scenario("lag, any rank, fresnel, from R^-1", lag_map_from_inverse, 1.0, 0.35),
    "chebyshev": Scenario("chebyshev, full rank, spherical, from R^-1", chebyshev_from_inverse, 35.0, 10.0),
    "chebyshev_lowrank": Scenario("chebyshev, low rank K = 10, spherical", chebyshev_lowrank, 5.0, 1.5),
    "dense_lowrank": Scenario("dense, low rank K = 10, spherical", dense_lowrank, 200.0, 79.0),
    "inverse": Scenario("inverse of R", inverse, 2.0, 0.4),
    "maxima": Scenario("maxima + NMS, 20 best", maxima, 2.0, 0.6),
    "detection": Scenario("detect_sources end to end from R, fresnel", detection, 30.0, None),
}
