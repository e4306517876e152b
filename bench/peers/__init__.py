"""What risfast is measured against: other ways to compute the same maps, written from the formulas.

Nothing in this file imports risfast (the adapters of DCD-MUSIC beside it do). A peer is a function from a
:class:`Problem` to a call; what the call may reuse (a table, a compiled function, distances) is made outside it, so
that a timing of the call leaves it out.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SPECTRA = ("mvdr", "mvdr_lowrank", "music", "bartlett")
OPERATIONS = (*SPECTRA, "analysis", "analysis_factored", "synthesis")
# Points of one tile. Of 1024, 4096, 16384 and 65536 the fastest for the peers on one core: a tile stays in the cache.
CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Problem:
    """One thing to compute, as plain tensors.

    ``matrix`` is R [B, N, N], a factor [B, N, K], or for synthesis the weights [B, G_az, G_el, G_r].
    """

    operation: str
    matrix: Tensor
    positions_m: Tensor  # float64 [N, 3]
    wavelength_m: float
    wavefront: str
    azimuth_rad: Tensor
    elevation_rad: Tensor
    range_m: Tensor
    loading: float = 1e-2
    n_sources: int = 5  # of MUSIC

    @property
    def batch(self) -> int:
        return self.matrix.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.azimuth_rad), len(self.elevation_rad), len(self.range_m)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def points(self) -> Tensor:
        """Every point, range fastest, float64 [G, 3]."""
        axes = torch.meshgrid(self.azimuth_rad, self.elevation_rad, self.range_m, indexing="ij")
        return torch.stack(axes, -1).reshape(-1, 3)


class Map(NamedTuple):
    """The largest power over the range planes and where it is, [B, G_az, G_el]."""

    power: Tensor
    plane: Tensor


class Form(NamedTuple):
    """A quadratic form a^H Q a ("hermitian") or ||W^H a||^2 ("factor"), complex128, and what follows it."""

    kind: str
    matrix: Tensor
    finish: Callable[[Tensor], Tensor]


Call = Callable[[], Any]


def direction(points: Tensor) -> Tensor:
    """Unit vectors [..., 3] of points (azimuth, elevation, range)."""
    azimuth, elevation = points[..., 0], points[..., 1]
    return torch.stack(
        [azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()],
        -1,
    )


def phase(u: Tensor, r: Tensor, positions: Tensor, wavelength_m: float, wavefront: str) -> Tensor:
    """k (r - |r u - p|), or its fresnel or planar approximation, [..., N]; r - d in the form that does not cancel."""
    k = 2 * math.pi / wavelength_m
    projection, squared, r = u @ positions.T, positions.square().sum(-1), r[..., None]
    if wavefront == "planar":
        return k * projection
    if wavefront == "fresnel":
        return k * (projection - squared / (2 * r))
    numerator = 2 * r * projection - squared
    return k * numerator / (r + (r * r - numerator).sqrt())


def steering(problem: Problem, points: Tensor, dtype: torch.dtype) -> Tensor:
    """a_n = exp(j phase) as one complex exponential, [g, N]."""
    real = dtype.to_real()
    points, positions = points.to(real), problem.positions_m.to(real)
    return torch.exp(1j * phase(direction(points), points[..., 2], positions, problem.wavelength_m, problem.wavefront))


def loaded(R: Tensor, loading: float) -> tuple[Tensor, Tensor]:
    """R + delta I in complex128, and delta [B]."""
    R = R.to(torch.complex128)
    R, n = (R + R.mH) / 2, R.shape[-1]
    delta = loading * R.diagonal(dim1=1, dim2=2).real.sum(-1) / n
    return R + delta[:, None, None] * torch.eye(n), delta


def _woodbury(F: Tensor, loading: float) -> tuple[Tensor, Tensor]:
    """W with (F F^H + delta I)^-1 = (I - W W^H) / delta, and delta [B]."""
    F = F.to(torch.complex128)
    n, k = F.shape[1:]
    delta = loading * F.abs().square().sum((1, 2)) / n
    C = torch.linalg.cholesky(F.mH @ F + delta[:, None, None] * torch.eye(k))
    return torch.linalg.solve_triangular(C, F.mH, upper=False).mH, delta


def form_of(problem: Problem) -> Form:
    """The form that a problem asks for; its cost belongs to every call."""
    n, matrix = len(problem.positions_m), problem.matrix
    if problem.operation == "mvdr":
        return Form("hermitian", torch.linalg.inv(loaded(matrix, problem.loading)[0]), lambda q: n / q)
    if problem.operation == "mvdr_lowrank":
        W, delta = _woodbury(matrix, problem.loading)
        return Form("factor", W, lambda q: n * delta[:, None].to(q.dtype) / (n - q))
    if problem.operation == "music":
        _, vectors = torch.linalg.eigh(matrix.to(torch.complex128))
        return Form("factor", vectors[..., -problem.n_sources :], lambda q: n / (n - q))
    if problem.operation == "bartlett":
        return Form("hermitian", matrix, lambda q: q / n**2)
    if problem.operation in ("analysis", "analysis_factored"):
        return Form("hermitian" if problem.operation == "analysis" else "factor", matrix, lambda q: q)
    raise ValueError(f"no quadratic form for operation {problem.operation!r}")


def result_of(problem: Problem, power: Tensor) -> Map | Tensor:
    """What every contestant returns: the map of a spectrum, or the values of analysis, from power [B, G]."""
    volume = power.reshape(-1, *problem.shape)
    return Map(*volume.max(-1)) if problem.operation in SPECTRA else volume


def _evaluate(problem: Problem, tiles: Iterator[tuple[slice, Tensor]], form: Form) -> Tensor:
    """The form on tiles of steering vectors [g, N], finished: [B, G]."""
    power = torch.empty(problem.batch, problem.size)
    matrix = form.matrix.to(torch.complex64)
    for at, A in tiles:
        if form.kind == "hermitian":
            q = torch.einsum("gn,bnm,gm->bg", A.conj(), matrix, A).real
        else:
            q = torch.einsum("gn,bnk->bgk", A, matrix.conj()).abs().square().sum(-1)
        power[:, at] = form.finish(q)
    return power


def _outer_products(problem: Problem, tiles: Iterator[tuple[slice, Tensor]]) -> Tensor:
    """Synthesis: sum over tiles of p_g a_g a_g^H."""
    weights = problem.matrix.reshape(problem.batch, -1).to(torch.complex64)
    n = len(problem.positions_m)
    total = torch.zeros(problem.batch, n, n, dtype=torch.complex64)
    for at, A in tiles:
        total += torch.einsum("bg,gn,gm->bnm", weights[:, at], A, A.conj())
    return total


def _slices(problem: Problem) -> Iterator[slice]:
    for start in range(0, problem.size, CHUNK):
        yield slice(start, min(start + CHUNK, problem.size))


def _rebuilt(problem: Problem, points: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Steering vectors of each tile, made when it is asked for."""
    for at in _slices(problem):
        yield at, steering(problem, points[at], torch.complex64)


def materialised(problem: Problem) -> Call:
    """Steering vectors rebuilt in each call with torch.exp, then one einsum a tile; complex64 after the inverse."""
    points = problem.points.float()
    if problem.operation == "synthesis":
        return lambda: _outer_products(problem, _rebuilt(problem, points))
    return lambda: result_of(problem, _evaluate(problem, _rebuilt(problem, points), form_of(problem)))


def materialised_volume(problem: Problem) -> Call:
    """The same, with every range plane kept: [B, G_az, G_el, G_r]."""
    points = problem.points.float()
    return lambda: _evaluate(problem, _rebuilt(problem, points), form_of(problem)).reshape(-1, *problem.shape)


def cached_gemm(problem: Problem) -> Call:
    """Steering vectors of the whole grid kept in a complex64 table; one GEMM a tile and scene, and a sum of squares."""
    table = torch.cat([steering(problem, problem.points[at], torch.complex128).to(torch.complex64)
                       for at in _slices(problem)])  # fmt: skip

    def power_of(form: Form, rows: Tensor, squares: bool) -> Map | Tensor:
        power = torch.empty(problem.batch, problem.size)
        for at in _slices(problem):
            A = table[at]
            for b in range(problem.batch):
                product = torch.view_as_real(A @ rows[b])
                other = product if squares else torch.view_as_real(A)
                power[b, at] = (product * other).sum((-2, -1))
        return result_of(problem, form.finish(power))

    def spectrum() -> Map | Tensor:
        if problem.operation == "mvdr":  # as ||L^-1 a||^2, which loses less than a^H (R^-1 a)
            full, _ = loaded(problem.matrix, problem.loading)
            eye = torch.eye(full.shape[-1], dtype=full.dtype).expand_as(full)
            rows = torch.linalg.solve_triangular(torch.linalg.cholesky(full), eye, upper=False)
            n = full.shape[-1]
            return power_of(Form("rows", rows, lambda q: n / q), rows.mT.to(torch.complex64), squares=True)
        form = form_of(problem)
        if form.kind == "factor":
            return power_of(form, form.matrix.conj().to(torch.complex64), squares=True)
        return power_of(form, form.matrix.mT.to(torch.complex64), squares=False)

    if problem.operation == "synthesis":
        return lambda: _outer_products(problem, ((at, table[at]) for at in _slices(problem)))
    return spectrum


def _real_tile(u: Tensor, r: Tensor, positions: Tensor, wavelength_m: float, wavefront: str) -> Tensor:
    """[cos | sin] of the phases, [g, 2 N]."""
    angle = phase(u, r, positions, wavelength_m, wavefront)
    return torch.cat([angle.cos(), angle.sin()], -1)


def _real_hermitian(u, r, positions, wavelength_m, wavefront, M):
    X = _real_tile(u, r, positions, wavelength_m, wavefront)
    return torch.stack([((X @ m) * X).sum(-1) for m in M])


def _real_squares(u, r, positions, wavelength_m, wavefront, M):
    X = _real_tile(u, r, positions, wavelength_m, wavefront)
    return torch.stack([(X @ m).square().sum(-1) for m in M])


def _real_outer(u, r, positions, wavelength_m, wavefront, weights):
    X = _real_tile(u, r, positions, wavelength_m, wavefront)
    return torch.stack([X.T @ (X * w[:, None]) for w in weights])


def _real_form(form: Form) -> Tensor:
    """The real matrices that [cos | sin] is multiplied with, float32."""
    real, imaginary = form.matrix.real, form.matrix.imag
    sign = -1 if form.kind == "hermitian" else 1
    if form.kind == "hermitian":  # x^T [[Qr, -Qi], [Qi, Qr]] x = a^H Q a
        rows = [torch.cat([real, sign * imaginary], -1), torch.cat([imaginary, real], -1)]
    else:  # w^H a = (wr.c + wi.s) + j (wr.s - wi.c)
        rows = [torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)]
    return torch.cat(rows, -2).float().contiguous()


@lru_cache(maxsize=32)
def _compiled(tile: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(tile, dynamic=False, fullgraph=True)


def no_compiler() -> str | None:
    """Why torch.compile cannot be used here, or None."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in names):
        return f"torch.compile needs a C++ compiler; none of {', '.join(names)} was found"
    return None


def _dense(problem: Problem, wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Call:
    """Dense in split real arithmetic: sines and cosines of a tile, one real GEMM a scene; float32."""
    padded = math.ceil(problem.size / CHUNK) * CHUNK
    points = torch.cat([problem.points, problem.points[-1:].expand(padded - problem.size, 3)])
    u, r, positions = direction(points).float(), points[:, 2].float(), problem.positions_m.float()
    fixed = (positions, problem.wavelength_m, problem.wavefront)
    n, tiles = len(positions), [slice(s, s + CHUNK) for s in range(0, padded, CHUNK)]

    def spectrum() -> Map | Tensor:
        form = form_of(problem)
        tile = wrap(_real_hermitian if form.kind == "hermitian" else _real_squares)
        M = _real_form(form)
        q = torch.cat([tile(u[at], r[at], *fixed, M) for at in tiles], 1)[:, : problem.size]
        return result_of(problem, form.finish(q))

    def outer() -> Tensor:
        tile = wrap(_real_outer)
        weights = torch.zeros(problem.batch, padded)
        weights[:, : problem.size] = problem.matrix.reshape(problem.batch, -1)
        S = sum(tile(u[at], r[at], *fixed, weights[:, at].contiguous()) for at in tiles)
        # a a^H = (c c^T + s s^T) + j (s c^T - c s^T)
        return torch.complex(S[:, :n, :n] + S[:, n:, n:], S[:, n:, :n] - S[:, :n, n:])

    return outer if problem.operation == "synthesis" else spectrum


def dense_eager(problem: Problem) -> Call:
    """Real sines, cosines and GEMMs, op by op."""
    return _dense(problem, lambda tile: tile)


def dense_compiled(problem: Problem) -> Call:
    """The same through torch.compile; compiling is left out of the timing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own deprecation notices
        call = _dense(problem, _compiled)
        call()
    return call


# Its MUSIC weighs the noise eigenvectors by their eigenvalues and scales by the smallest value: another map.
ACOULAR_OPERATIONS = {"mvdr": "Capon", "mvdr_lowrank": "Capon", "bartlett": "Base"}


def no_acoular(problem: Problem) -> str | None:
    """Why acoular cannot compute a problem, or None."""
    if importlib.util.find_spec("acoular") is None:
        return "acoular is not installed (pip install .[bench])"
    if problem.operation not in ACOULAR_OPERATIONS:
        return f"acoular computes no comparable {problem.operation}"
    if problem.wavefront != "spherical":
        return f"acoular knows spherical waves only, not {problem.wavefront}"
    return None


def acoular_beamformer(problem: Problem) -> Call:
    """acoular's BeamformerCapon or, for Bartlett, BeamformerBase, on an imported grid and cross-spectral matrix.

    ``steer_type="classic"`` makes h = a / N with |a_n| = 1 and a_n = exp(-j k d_n), ours up to a phase that cancels.
    Its Capon map is 1 / (a^H C^-1 a) of the loaded matrix C, so ours is N times as large; its Bartlett map is ours.
    The distances from points to elements stay with the SteeringVector between calls. One scene at a time. What it
    compiles with its first call is compiled on one point before.
    """
    threads = torch.get_num_threads()
    import acoular

    torch.set_num_threads(threads)  # numba, which it imports, gives torch all cores
    if problem.size > 1:
        axes = {name: getattr(problem, name)[:1] for name in ("azimuth_rad", "elevation_rad", "range_m")}
        acoular_beamformer(replace(problem, **axes))()

    acoular.config.global_caching = "none"  # no result files
    speed = 300.0
    frequency = speed / problem.wavelength_m
    xyz = direction(problem.points) * problem.points[:, 2:]
    grid = acoular.ImportGrid()
    grid.pos = np.ascontiguousarray(xyz.numpy().T)
    steer = acoular.SteeringVector(
        grid=grid,
        mics=acoular.MicGeom(pos_total=np.ascontiguousarray(problem.positions_m.numpy().T)),
        steer_type="classic",
        env=acoular.Environment(c=speed),
    )
    beamformer = getattr(acoular, f"Beamformer{ACOULAR_OPERATIONS[problem.operation]}")
    options = {"r_diag": False} if problem.operation == "bartlett" else {}
    scale = 1.0 if problem.operation == "bartlett" else len(problem.positions_m)
    _ = steer.rm, steer.r0

    def spectrum() -> Map | Tensor:
        R = problem.matrix
        R = R @ R.mH if problem.operation == "mvdr_lowrank" else R
        if problem.operation.startswith("mvdr"):
            R, _ = loaded(R, problem.loading)
        volumes = []
        for csm in R.to(torch.complex128).numpy():
            spectra = acoular.PowerSpectraImport(csm=csm[None].copy(), frequencies=frequency)
            # A new beamformer for each covariance: an old one would return the result that it keeps.
            former = beamformer(freq_data=spectra, steer=steer, cached=False, **options)
            volumes.append(former.synthetic(frequency, 0))
        return result_of(problem, scale * torch.from_numpy(np.stack(volumes)))

    return spectrum


def no_pyroomacoustics(problem: Problem) -> str | None:
    """Why pyroomacoustics cannot compute a problem, or None."""
    if importlib.util.find_spec("pyroomacoustics") is None:
        return "pyroomacoustics is not installed (pip install .[bench])"
    if problem.operation != "music":
        return f"pyroomacoustics computes no comparable {problem.operation}"
    if problem.wavefront != "spherical":
        return f"pyroomacoustics gets the distances of points, which are not {problem.wavefront}"
    return None


def pyroomacoustics_music(problem: Problem) -> Call:
    """pyroomacoustics' MUSIC at one frequency, its look-up table of near-field mode vectors on the points of the grid.

    Its mode vectors are exp(+j k d_n), the conjugates of ours up to a phase that cancels, so it gets conjugated
    snapshots; its map is 1 / (a^H (I - U_s U_s^H) a), so ours is N times as large. The times of flight stay with it
    between calls; one scene at a time.
    """
    from pyroomacoustics.doa import MUSIC
    from pyroomacoustics.doa.doa import ModeVector
    from pyroomacoustics.doa.grid import Grid

    class Points(Grid):
        """Any points; whoever wants maxima finds them on the map."""

        def find_peaks(self, k: int = 1) -> np.ndarray:
            return np.zeros(0, dtype=int)

    speed = 300.0
    frequency = speed / problem.wavelength_m
    grid = Points(problem.size)
    grid.x, grid.y, grid.z = (direction(problem.points) * problem.points[:, 2:]).numpy().T
    how = {"L": problem.positions_m.numpy().T, "fs": 2 * frequency, "nfft": 2, "c": speed}  # the second bin is ours
    finder = MUSIC(**how, num_src=problem.n_sources, n_grid=4)
    finder.grid, finder.mode_vec = grid, ModeVector(**how, grid=grid, mode="near")

    def snapshots(R: Tensor) -> np.ndarray:
        """As many as elements, with R as their mean product, [N, 2, N]."""
        value, vector = torch.linalg.eigh(R.to(torch.complex128))
        root = vector * (len(R) * value.clamp_min(0)).sqrt()
        return np.repeat(root.conj().resolve_conj().numpy()[:, None], 2, axis=1)

    frames = [snapshots(R) for R in problem.matrix]

    def spectrum() -> Map | Tensor:
        volumes = []
        for frame in frames:
            finder.locate_sources(frame, num_src=problem.n_sources, freq_bins=[1])
            volumes.append(finder.grid.values)
        return result_of(problem, len(problem.positions_m) * torch.from_numpy(np.stack(volumes)))

    return spectrum
