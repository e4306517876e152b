"""What is measured, and who takes part: scenes on grids, and contestants with their documented error bounds."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from bench import peers
from bench.peers import Call, Problem
from risfast import ops
from risfast.geometry import PlanarArray, SearchGrid
from risfast.simulate.scenes import Scenes, SystemConfig, generate_scenes

SEED = 2
SOURCES = 5
FACTOR_RANK = 10  # K of the low-rank scenarios
LOADING = 1e-2
GRIDS = {"reference": SearchGrid.reference, "training": SearchGrid.training}
BATCHES = (1, 32)
METHODS = {"spherical": ("dense", "chebyshev"), "fresnel": ("dense", "chebyshev", "lag")}
FACTORED = ("mvdr_lowrank", "analysis_factored")


@dataclass(frozen=True)
class Scenario:
    """One problem by name."""

    operation: str
    wavefront: str
    grid: str
    batch: int
    dtype: torch.dtype = torch.complex64
    rank: int | None = None  # sources a scene; by default 10 where a factor is given, else 5
    snapped: bool = True  # sources on grid points
    loading: float = LOADING

    @property
    def sources(self) -> int:
        return self.rank or (FACTOR_RANK if self.operation in FACTORED else SOURCES)

    @property
    def title(self) -> str:
        precision = "" if self.dtype == torch.complex64 else ", complex128"
        return f"{self.operation}, {self.wavefront}, {self.grid} grid, B = {self.batch}{precision}"


def true_scenes(n_sources: int, wavefront: str, batch: int) -> Scenes:
    """Scenes of the reference system with sources at least 8 degrees apart."""
    config = SystemConfig(
        n_sources=(n_sources, n_sources), wavefront=wavefront, min_separation_rad=math.radians(8.0), n_snapshots=16
    )
    return generate_scenes(config, SEED, range(batch), dtype=torch.complex128)


def _nearest(values: Tensor, axis: Tensor) -> Tensor:
    return axis[(values[..., None] - axis).abs().argmin(-1)]


def on_grid(scenes: Scenes, grid: SearchGrid) -> Scenes:
    """The same scenes with every source moved to the nearest grid point.

    There the Capon peak is highest and what float32 can lose is most: the hardest case for accuracy.
    """
    axes = (grid.azimuth_rad, grid.elevation_rad, grid.range_m)
    moved = [_nearest(scenes.position[..., i], axis) for i, axis in enumerate(axes)]
    return replace(scenes, position=torch.stack(moved, -1))


@lru_cache(maxsize=2)
def problem_of(scenario: Scenario) -> Problem:
    """The tensors of a scenario: true covariances (or factors) of the scenes, or random weights for synthesis."""
    grid, array = GRIDS[scenario.grid](), PlanarArray.rectangular()
    if scenario.operation == "synthesis":
        generator = torch.Generator().manual_seed(SEED)
        matrix = torch.rand(scenario.batch, *grid.shape, generator=generator)
        matrix = matrix.to(scenario.dtype.to_real())
    else:
        scenes = true_scenes(scenario.sources, scenario.wavefront, scenario.batch)
        # MUSIC has no floor: at a source on the grid its power is rounding over rounding.
        if scenario.snapped and scenario.operation != "music":
            scenes = on_grid(scenes, grid)
        factor = scenes.true_factor()
        matrix = (factor if scenario.operation in FACTORED else factor @ factor.mH).to(scenario.dtype)
    return Problem(
        operation=scenario.operation,
        matrix=matrix,
        positions_m=array.positions_m,
        wavelength_m=array.wavelength_m,
        wavefront=scenario.wavefront,
        azimuth_rad=grid.azimuth_rad,
        elevation_rad=grid.elevation_rad,
        range_m=grid.range_m,
        loading=scenario.loading,
        n_sources=SOURCES,
    )


def sampled_problem(
    positions_m: Tensor, wavefront: str, batch: int = 1, snapshots: int | None = None, *, factor: bool = False
) -> Problem:
    """A sample covariance, or its factor, of five sources and noise of 20 dB less, on the reference grid.

    By default of twice as many snapshots as elements: it has full rank and no structure that a plan could use.
    """
    grid, wavelength_m = SearchGrid.reference(), PlanarArray.rectangular().wavelength_m
    snapshots = snapshots or 2 * len(positions_m)
    generator = torch.Generator().manual_seed(SEED)
    position = true_scenes(SOURCES, wavefront, batch).position.double()  # [B, K, 3]
    phases = peers.phase(peers.direction(position), position[..., 2], positions_m, wavelength_m, wavefront)
    signals = torch.randn(batch, SOURCES, snapshots, generator=generator, dtype=torch.complex64)
    noise = torch.randn(batch, len(positions_m), snapshots, generator=generator, dtype=torch.complex64)
    steering = torch.polar(torch.ones_like(phases), phases).mT.to(torch.complex64)  # [B, N, K]
    F = (steering @ signals + 0.1 * noise) / math.sqrt(snapshots)
    return Problem(
        operation="mvdr_lowrank" if factor else "mvdr",
        matrix=F if factor else F @ F.mH,
        positions_m=positions_m,
        wavelength_m=wavelength_m,
        wavefront=wavefront,
        azimuth_rad=grid.azimuth_rad,
        elevation_rad=grid.elevation_rad,
        range_m=grid.range_m,
        loading=LOADING,
        n_sources=SOURCES,
    )


@dataclass(frozen=True)
class Contestant:
    """A way to compute a problem.

    Attributes
    ----------
    prepare : from a problem to a call
        What it makes before the call is not timed, but counts as memory.
    bound_db : from a problem to dB
        The documented error; beyond it no speed is reported.
    unavailable : from a problem to a reason, or None
    needs_warming : bool
        Whether ``prepare`` compiles, which would count as memory.
    once : bool
        Whether the first call is the one that is timed: it takes seconds, and keeps nothing for the next.
    """

    name: str
    is_peer: bool
    prepare: Callable[[Problem], Call]
    bound_db: Callable[[Problem], float]
    unavailable: Callable[[Problem], str | None] = lambda problem: None
    needs_warming: bool = False
    once: bool = False


def our_bound_db(problem: Problem) -> float:
    """What risfast.ops documents at loading 1e-2, ten times that below; MUSIC, which has no floor, as low rank."""
    scale = 1.0 if problem.loading >= LOADING else 10.0
    if problem.matrix.dtype in (torch.complex128, torch.float64):
        return scale * 1e-6
    return scale * (1e-2 if problem.operation in ("mvdr_lowrank", "music") else 1e-3)


def float32_bound_db(problem: Problem) -> float:
    """Of the plain torch peers in float32: forms that cancel lose more."""
    return {"mvdr": 2e-2, "mvdr_lowrank": 1e-1, "music": 1e-1}.get(problem.operation, 1e-3)


def operator_call(problem: Problem, method: str = "auto", byte_budget: int | None = None) -> Call:
    """The public operator on a problem."""
    array = PlanarArray(problem.positions_m, problem.wavelength_m)
    grid = SearchGrid(problem.azimuth_rad, problem.elevation_rad, problem.range_m)
    options: dict[str, Any] = {"wavefront": problem.wavefront, "method": method, "byte_budget": byte_budget}
    if problem.operation == "music":
        options["n_sources"] = problem.n_sources
    if problem.operation.startswith("mvdr"):
        options["loading"] = problem.loading
    if problem.operation.startswith("analysis"):
        options["factored"] = problem.operation == "analysis_factored"
    operator = {
        "mvdr": ops.mvdr_spectrum,
        "mvdr_lowrank": ops.mvdr_spectrum_lowrank,
        "music": ops.music_spectrum,
        "bartlett": ops.bartlett_spectrum,
        "analysis": ops.analysis,
        "analysis_factored": ops.analysis,
        "synthesis": ops.synthesis,
    }[problem.operation]
    return lambda: operator(problem.matrix, array, grid, **options)


def ours(method: str = "auto") -> Contestant:
    """risfast with one method."""
    return Contestant(f"risfast {method}", False, lambda problem: operator_call(problem, method), our_bound_db)


MATERIALISED = Contestant("materialised einsum", True, peers.materialised, float32_bound_db, once=True)
CACHED_GEMM = Contestant("cached steering GEMM", True, peers.cached_gemm, float32_bound_db)
DENSE_EAGER = Contestant("dense torch, eager", True, peers.dense_eager, float32_bound_db)
DENSE_COMPILED = Contestant(
    "dense torch, compiled",
    True,
    peers.dense_compiled,
    float32_bound_db,
    lambda problem: peers.no_compiler(),
    needs_warming=True,
)
ACOULAR = Contestant("acoular", True, peers.acoular_beamformer, lambda problem: 1e-3, peers.no_acoular, once=True)
PYROOMACOUSTICS = Contestant(
    "pyroomacoustics", True, peers.pyroomacoustics_music, lambda problem: 1e-3, peers.no_pyroomacoustics, once=True
)
PEERS = (MATERIALISED, CACHED_GEMM, DENSE_EAGER, DENSE_COMPILED, ACOULAR, PYROOMACOUSTICS)


def forget_plans() -> None:
    """Empty the caches of plans and tables, so that a first call is a first call again."""
    module = importlib.import_module("risfast.ops.plan")
    for value in vars(module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
