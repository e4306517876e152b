"""Every spectrum, method, wavefront and dtype against the float64 brute force, in dB at every grid point."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import bartlett_spectrum, music_spectrum, mvdr_spectrum, mvdr_spectrum_lowrank, plan

WAVELENGTH = 0.3
ORDER = [7, 0, 11, 3, 14, 5, 1, 9, 12, 2, 10, 4, 13, 6, 8]
ARRAYS = {
    "rectangular": oracles.rectangular(3, 5),
    "permuted": oracles.rectangular(3, 5)[ORDER],
    "off-centre": oracles.rectangular(4, 3, 0.15, 0.1, centre=(0.2, -0.35)),
    "linear": oracles.rectangular(7, 1),
    "upright": oracles.rectangular(1, 6),
    "single": np.zeros((1, 3)),
    "single off-centre": np.array([[0.1, -0.2, 0.05]]),
    "irregular": oracles.irregular_plane(3, 11, 0.4),
    "volumetric": oracles.volumetric(4, 9, 0.3),
}
GRIDS = {
    "asymmetric": (np.radians(np.linspace(-50, 35, 7)), np.radians(np.linspace(-10, 28, 5)), [0.6, 1.7, 8.0]),
    "symmetric": (np.radians(np.linspace(-60, 60, 31)), np.radians(np.linspace(-30, 30, 19)), [0.55, 3.5]),
    "symmetric in azimuth": (np.radians(np.linspace(-60, 60, 23)), np.radians([-20, -3, 1, 9]), [0.85, 9.5]),
    "uneven": (np.radians([-48, -47, -3, 2, 2.5, 40]), np.radians([-29, 0, 1, 30]), [0.9]),
    "one azimuth": (np.radians([13]), np.radians(np.linspace(-30, 25, 17)), [0.55, 1.3, 6.0]),
    "one elevation": (np.radians(np.linspace(-60, 60, 37)), np.radians([0]), [1.3, 2.0]),
    "one point": (np.radians([-21]), np.radians([7]), [2.0]),
}
# Which grids each precision sees: all of them with float64, those that differ most in structure with float32.
FULL_RANK_GRIDS = {torch.complex64: ("asymmetric", "symmetric", "one point"), torch.complex128: tuple(GRIDS)}
LOW_RANK_GRIDS = {
    torch.complex64: ("symmetric", "uneven"),
    torch.complex128: ("asymmetric", "symmetric in azimuth", "one elevation", "one azimuth"),
}
# The lag method evaluates sums over a lattice; a spherical phase is not a function of the lag.
LATTICES = ("rectangular", "permuted", "off-centre", "linear", "upright", "single")
DTYPES = (torch.complex64, torch.complex128)


def methods_for(name, wavefront):
    """Every method that is valid; auto is one of them, and is tested by itself on the reference surface."""
    lag = ("lag",) if name in LATTICES and wavefront != "spherical" else ()
    return ("dense", "chebyshev", *lag)


def bound_db(dtype, *, low_rank=False, loading=1e-2, method="auto"):
    """What a map may be wrong by, in dB.

    The documented bounds hold at loading 1e-2: 1e-3 dB for full rank and 1e-2 dB for low rank in complex64, 1e-6 dB in
    complex128. Below that they grow with the dynamic range of q = a^H (R + delta I)^-1 a, which lies between
    N / (lambda + delta) at a peak and N / delta off it. Methods that interpolate or sum q itself have an error
    proportional to the largest q, so at a peak it grows as 1 / delta. dense evaluates q as the squared norm of a vector
    whose error e obeys |e| <= eps |a| / sqrt(delta) where the vector itself is at least |a| / sqrt(lambda + delta), so
    there it grows as 1 / sqrt(delta).
    """
    bound = (1e-2 if low_rank else 1e-3) if dtype == torch.complex64 else 1e-6
    shortfall = max(1.0, 1e-2 / loading)
    return bound * (math.sqrt(shortfall) if method == "dense" else shortfall)


def as_array(name):
    positions = oracles.rectangular(12, 12) if name == "reference" else ARRAYS[name]
    return PlanarArray(positions, WAVELENGTH)


def as_grid(axes):
    return SearchGrid(*(np.asarray(axis, float) for axis in axes))


def grid_steering(array, grid, wavefront):
    """Oracle steering vectors [G_az, G_el, G_r, N] at the float64 axes that the grid really holds."""
    points = oracles.box(grid.azimuth_rad.numpy(), grid.elevation_rad.numpy(), grid.range_m.numpy())
    return oracles.steering(array.positions_m.numpy(), array.wavelength_m, points, wavefront)


def covariances(A, seed=0):
    """Three sources on grid points, sources between them, a sample covariance, one of too few snapshots, identity."""
    rng = np.random.default_rng(seed)
    n = A.shape[-1]
    flat = A.reshape(-1, n)
    on_grid = flat[rng.integers(len(flat), size=3)]
    between = np.exp(1j * (np.angle(on_grid) + 0.3 * rng.standard_normal(on_grid.shape)))
    return np.stack(
        [
            oracles.source_covariance(on_grid, [1.0, 0.5, 2.0], 0.05),
            oracles.source_covariance(between, [1.0, 1.0, 0.1], 1e-3),
            3.0 * oracles.wishart(rng, n, 2 * n + 1),
            oracles.wishart(rng, n, 3),
            0.7 * np.eye(n),
        ]
    )


def as_covariance(values, dtype):
    """A tensor that is Hermitian to the last bit."""
    tensor = torch.as_tensor(values).to(dtype)
    return (tensor + tensor.mH) / 2


def check_spectrum(spectrum, volume, bound):
    """Power within the bound everywhere, and a plane whose power is the maximum to within it."""
    expected, _ = oracles.maximum_over_planes(volume)
    assert spectrum.plane.dtype == torch.int32
    assert oracles.worst_db(spectrum.power.numpy(), expected) <= bound
    plane = spectrum.plane.numpy().astype(int)
    assert plane.min() >= 0
    chosen = np.take_along_axis(volume, plane[..., None], axis=-1)[..., 0]
    assert oracles.worst_db(chosen, expected) <= 2 * bound


def test_the_oracle_agrees_with_loops():
    A = oracles.steering(ARRAYS["volumetric"], WAVELENGTH, oracles.box([0.3], [-0.1], [0.7, 2.0]))
    R = covariances(A)
    for b, matrix in enumerate(R):
        n = len(matrix)
        inverse = np.linalg.inv(matrix + 1e-2 * np.trace(matrix).real / n * np.eye(n))
        for g in range(2):
            a = A[0, 0, g]
            q = oracles.quadratic_by_loop(a, inverse)
            assert abs(q.imag) < 1e-9 * abs(q)
            assert oracles.capon(R, A)[b, 0, 0, g] == pytest.approx(n / q.real, rel=1e-9)
            assert oracles.bartlett(R, A)[b, 0, 0, g] == pytest.approx(
                oracles.quadratic_by_loop(a, matrix).real / n**2, rel=1e-12
            )


# ---- full rank


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_capon_matches_brute_force_on_every_array_and_grid(name, wavefront, dtype):
    array = as_array(name)
    for key in FULL_RANK_GRIDS[dtype]:
        grid = as_grid(GRIDS[key])
        A = grid_steering(array, grid, wavefront)
        R = as_covariance(covariances(A), dtype)
        volume = oracles.capon(R.numpy(), A)
        for method in methods_for(name, wavefront):
            options = {"wavefront": wavefront, "method": method}
            full = mvdr_spectrum(R, array, grid, reduce="none", **options)
            assert full.dtype == (torch.float32 if dtype == torch.complex64 else torch.float64)
            assert oracles.worst_db(full.numpy(), volume) <= bound_db(dtype), (key, method)
            check_spectrum(mvdr_spectrum(R, array, grid, **options), volume, bound_db(dtype))


REFERENCE_AXES = (
    np.radians(np.linspace(-60, 60, 25)),
    np.radians(np.linspace(-30, 30, 13)),
    oracles.REFERENCE_RANGES_M,
)


@pytest.fixture(scope="module", params=oracles.WAVEFRONTS)
def reference_case(request):
    """The reference surface on a coarse grid over its whole field of view."""
    array, grid = as_array("reference"), as_grid(REFERENCE_AXES)
    return request.param, array, grid, grid_steering(array, grid, request.param)


@pytest.mark.parametrize("loading", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_capon_matches_brute_force_on_the_reference_surface(reference_case, dtype, loading):
    wavefront, array, grid, A = reference_case
    R = as_covariance(covariances(A), dtype)
    volume = oracles.capon(R.numpy(), A, loading)
    for method in ("auto", *methods_for("rectangular", wavefront)):
        options = {"wavefront": wavefront, "method": method, "loading": loading}
        bound = bound_db(dtype, loading=loading, method=method)
        full = mvdr_spectrum(R, array, grid, reduce="none", **options)
        assert oracles.worst_db(full.numpy(), volume) <= bound, method
        check_spectrum(mvdr_spectrum(R, array, grid, **options), volume, bound)


class WholeGrid:
    """The reference surface and grid, with sources on grid points, judged at random points and around the sources.

    A source at broadside is the hardest to interpolate: there the errors of all pairs of elements add up in phase.
    """

    def __init__(self, wavefront, dtype):
        self.array, self.grid, self.wavefront = as_array("reference"), SearchGrid.reference(), wavefront
        rng = np.random.default_rng(5)
        index = np.stack([rng.integers(size, size=1000) for size in self.grid.shape], axis=-1)
        index[0] = (180, 90, 6)
        sources = index[:4]
        index = np.concatenate([index] + [sources + np.array(step) for step in ((0, 1, 0), (1, 0, 0), (-2, 3, 0))])
        self.index = tuple(np.clip(index, 0, np.array(self.grid.shape) - 1).T)
        axes = (self.grid.azimuth_rad.numpy(), self.grid.elevation_rad.numpy(), self.grid.range_m.numpy())
        points = np.stack([axis[i] for axis, i in zip(axes, self.index, strict=True)], axis=-1)
        self.A = A = oracles.steering(self.array.positions_m.numpy(), WAVELENGTH, points, wavefront)
        powers = [1.0, 0.3, 1.0, 2.0]
        several = [oracles.source_covariance(A[:4], powers, noise) for noise in (1.0, 1e-2)]
        self.R = as_covariance(np.stack([*several, oracles.source_covariance(A[:1], [1.0], 1e-4)]), dtype)
        self.lone = torch.as_tensor(A[None, 0, :, None]).to(dtype)
        self.factor = torch.as_tensor(A[None, :4].swapaxes(-1, -2) * np.sqrt(powers)).to(dtype)

    def sample(self, volume):
        return volume.numpy()[(slice(None), *self.index)]

    def full_error_db(self, method, loading):
        options = {"wavefront": self.wavefront, "method": method, "loading": loading}
        power = self.sample(mvdr_spectrum(self.R, self.array, self.grid, reduce="none", **options))
        return oracles.worst_db(power, oracles.capon(self.R.numpy(), self.A, loading))

    def low_error_db(self, F, method, loading):
        options = {"wavefront": self.wavefront, "method": method, "loading": loading}
        power = self.sample(mvdr_spectrum_lowrank(F, self.array, self.grid, reduce="none", **options))
        return oracles.worst_db(power, oracles.capon_lowrank(F.numpy(), self.A, loading))


WHOLE_GRID_CASES = [
    ("spherical", "auto", torch.complex64),
    ("spherical", "chebyshev", torch.complex128),
    ("fresnel", "auto", torch.complex64),
    ("fresnel", "chebyshev", torch.complex64),
    ("fresnel", "chebyshev", torch.complex128),
    ("fresnel", "lag", torch.complex128),
    ("planar", "lag", torch.complex64),
]


@pytest.mark.parametrize(("wavefront", "method", "dtype"), WHOLE_GRID_CASES)
def test_capon_on_the_whole_reference_grid_matches_brute_force_at_random_points_and_peaks(wavefront, method, dtype):
    whole = WholeGrid(wavefront, dtype)
    for loading in (1e-2, 1e-3, 1e-4):
        bound = bound_db(dtype, loading=loading, method=method)
        assert whole.full_error_db(method, loading) <= bound, loading
        bound = bound_db(dtype, low_rank=True, loading=loading, method=method)
        assert whole.low_error_db(whole.lone, method, loading) <= bound, loading
        assert whole.low_error_db(whole.factor, method, loading) <= bound, loading


@pytest.mark.parametrize(("wavefront", "method", "dtype"), WHOLE_GRID_CASES)
def test_a_plan_promises_no_smaller_error_than_it_keeps(wavefront, method, dtype):
    """To a factor of two: the plan prints one digit."""
    whole = WholeGrid(wavefront, dtype)
    for loading in (1e-2, 1e-4):
        options = {"wavefront": wavefront, "method": method, "dtype": dtype, "loading": loading}
        made = plan(whole.array, whole.grid, operation="mvdr", batch=3, **options)
        assert whole.full_error_db(method, loading) <= 2 * made.expected_error_db
        for F in (whole.lone, whole.factor):
            made = plan(whole.array, whole.grid, operation="mvdr_lowrank", rank=F.shape[-1], **options)
            assert whole.low_error_db(F, method, loading) <= 2 * made.expected_error_db


# ---- low rank


def factors(A, rank, seed=1):
    """Sources on the grid, between its points, random columns, linearly dependent columns, and some zero columns."""
    rng = np.random.default_rng(seed)
    n = A.shape[-1]
    flat = A.reshape(-1, n)
    on_grid = flat[rng.integers(len(flat), size=rank)].T * np.sqrt(rng.uniform(0.2, 2, rank))
    between = on_grid * np.exp(0.3j * rng.standard_normal((n, rank)))
    columns = oracles.complex_normal(rng, n, rank)
    dependent = columns[:, [0]] @ oracles.complex_normal(rng, 1, rank)
    some_zero = columns.copy()
    some_zero[:, 1::2] = 0
    return np.stack([on_grid, between, columns, dependent, some_zero])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_lowrank_capon_matches_brute_force_on_every_array_and_grid(name, wavefront, dtype):
    array = as_array(name)
    n = array.n_elements
    for key in LOW_RANK_GRIDS[dtype]:
        grid = as_grid(GRIDS[key])
        A = grid_steering(array, grid, wavefront)
        for rank in sorted({1, min(5, n), n, n + 2}):
            F = torch.as_tensor(factors(A, rank)).to(dtype)
            volume = oracles.capon_lowrank(F.numpy(), A)
            for method in methods_for(name, wavefront):
                options = {"wavefront": wavefront, "method": method}
                bound = bound_db(dtype, low_rank=True)
                full = mvdr_spectrum_lowrank(F, array, grid, reduce="none", **options)
                assert full.dtype == (torch.float32 if dtype == torch.complex64 else torch.float64)
                assert oracles.worst_db(full.numpy(), volume) <= bound, (key, rank, method)
                check_spectrum(mvdr_spectrum_lowrank(F, array, grid, **options), volume, bound)


@pytest.mark.parametrize("loading", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("rank", [1, 5, 10, 144])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lowrank_capon_matches_brute_force_on_the_reference_surface(reference_case, dtype, rank, loading):
    wavefront, array, grid, A = reference_case
    F = torch.as_tensor(factors(A, rank)[: 5 if rank < 144 else 3]).to(dtype)
    volume = oracles.capon_lowrank(F.numpy(), A, loading)
    for method in ("auto", *methods_for("rectangular", wavefront)):
        options = {"wavefront": wavefront, "method": method, "loading": loading}
        bound = bound_db(dtype, low_rank=True, loading=loading, method=method)
        full = mvdr_spectrum_lowrank(F, array, grid, reduce="none", **options)
        assert oracles.worst_db(full.numpy(), volume) <= bound, method
        check_spectrum(mvdr_spectrum_lowrank(F, array, grid, **options), volume, bound)


@pytest.mark.parametrize("method", ["auto", "dense", "chebyshev", "lag"])
def test_lowrank_capon_is_capon_of_the_product(method):
    array, grid = as_array("rectangular"), as_grid(GRIDS["asymmetric"])
    A = grid_steering(array, grid, "fresnel")
    F = torch.as_tensor(factors(A, 4))
    options = {"wavefront": "fresnel", "method": method, "reduce": "none"}
    low = mvdr_spectrum_lowrank(F, array, grid, **options)
    full = mvdr_spectrum(as_covariance(F @ F.mH, torch.complex128), array, grid, **options)
    assert oracles.worst_db(low.numpy(), full.numpy()) <= 2e-6


# ---- hard cases


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_dead_elements_work_with_loading(wavefront, dtype):
    array, grid = as_array("rectangular"), as_grid(GRIDS["asymmetric"])
    A = grid_steering(array, grid, wavefront)
    alive = np.ones(15)
    alive[[0, 4, 9]] = 0
    R = as_covariance(covariances(A) * np.outer(alive, alive), dtype)
    F = torch.as_tensor(factors(A, 4) * alive[:, None]).to(dtype)
    for method in methods_for("rectangular", wavefront):
        options = {"wavefront": wavefront, "method": method, "reduce": "none"}
        full = mvdr_spectrum(R, array, grid, **options)
        assert oracles.worst_db(full.numpy(), oracles.capon(R.numpy(), A)) <= bound_db(dtype)
        low = mvdr_spectrum_lowrank(F, array, grid, **options)
        assert oracles.worst_db(low.numpy(), oracles.capon_lowrank(F.numpy(), A)) <= bound_db(dtype, low_rank=True)


def hard_domains():
    """Geometries whose field is not what a far-field bandwidth rule expects: (positions, wavelength, axes)."""
    regular = oracles.rectangular(6, 6)
    u = oracles.direction(np.radians(11.3), np.radians(4.1))
    wide = (np.radians(np.linspace(-180, 180, 91)), np.radians(np.linspace(-90, 90, 47)), [0.8, 3.0])
    fine = (np.radians(np.linspace(-60, 60, 121)), np.radians(np.linspace(-30, 30, 61)), [0.6, 2.0, 8.0])
    almost = oracles.rectangular(4, 4)
    almost[0, 0] += 1e-6  # all but a lattice, all but a mirror image
    return {
        "an element beside a point of the middle plane": (np.vstack([regular, 2.0 * u + 0.01]), 0.3, fine),
        "an element beside a point of the nearest plane": (np.vstack([regular, 0.6 * u + 0.01]), 0.3, fine),
        "all directions": (oracles.volumetric(6, 12, 0.3), 0.3, wide),
        "short waves": (oracles.rectangular(5, 4), 0.04, fine),
        "long waves": (oracles.rectangular(5, 4), 30.0, fine),
        "far from the origin": (oracles.irregular_plane(8, 9, 0.3) + np.array([1.5, 0.0, -0.4]), 0.3, fine),
        "almost a lattice": (almost, 0.3, fine),
        "two elements in one place": (np.vstack([oracles.rectangular(3, 3), [[0.0, 0.0, 0.0]]]), 0.3, fine),
    }


@pytest.mark.parametrize("wavefront", ["spherical", "fresnel"])
@pytest.mark.parametrize("name", hard_domains())
def test_capon_keeps_its_bound_where_the_field_is_hard_to_interpolate(name, wavefront):
    positions, wavelength, axes = hard_domains()[name]
    array, grid = PlanarArray(positions, wavelength), as_grid(axes)
    A = grid_steering(array, grid, wavefront)
    R = as_covariance(covariances(A)[:3], torch.complex64)
    F = torch.as_tensor(factors(A, 3)[:2]).to(torch.complex64)
    volume, low_volume = oracles.capon(R.numpy(), A), oracles.capon_lowrank(F.numpy(), A)
    for method in ("auto", "dense", "chebyshev"):
        options = {"wavefront": wavefront, "method": method, "reduce": "none"}
        full = mvdr_spectrum(R, array, grid, **options)
        assert oracles.worst_db(full.numpy(), volume) <= bound_db(torch.complex64), method
        low = mvdr_spectrum_lowrank(F, array, grid, **options)
        assert oracles.worst_db(low.numpy(), low_volume) <= bound_db(torch.complex64, low_rank=True), method


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_loading_is_allowed_for_a_nonsingular_covariance(dtype):
    array, grid = as_array("rectangular"), as_grid(GRIDS["asymmetric"])
    for wavefront in oracles.WAVEFRONTS:
        A = grid_steering(array, grid, wavefront)
        R = as_covariance(covariances(A)[[0, 2, 4]], dtype)
        volume = oracles.capon(R.numpy(), A, 0.0)
        for method in methods_for("rectangular", wavefront):
            options = {"wavefront": wavefront, "method": method, "loading": 0.0, "reduce": "none"}
            full = mvdr_spectrum(R, array, grid, **options)
            # Condition numbers stay below 1e3 here, as with a loading of 1e-2.
            assert oracles.worst_db(full.numpy(), volume) <= bound_db(dtype), method


# ---- MUSIC and Bartlett


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ["rectangular", "permuted", "linear", "irregular", "volumetric"])
def test_music_matches_brute_force(name, wavefront, dtype):
    array = as_array(name)
    for key in ("asymmetric", "symmetric", "one point"):
        grid = as_grid(GRIDS[key])
        A = grid_steering(array, grid, wavefront)
        R = as_covariance(covariances(A)[1:4], dtype)
        for n_sources in (1, 3):
            null = oracles.music_null(R.numpy(), A, n_sources)
            for method in methods_for(name, wavefront):
                options = {"n_sources": n_sources, "wavefront": wavefront, "method": method}
                full = music_spectrum(R, array, grid, reduce="none", **options).numpy()
                assert full.dtype == (np.float32 if dtype == torch.complex64 else np.float64)
                # 1 / P is the share of the steering vector in the noise subspace: bounded by 1, with rounding noise
                # that is absolute (eps times sqrt(N) terms, and the gap of the eigenvalues).
                np.testing.assert_allclose(1 / full, null, atol=1e-5 if dtype == torch.complex64 else 1e-9)
                spectrum = music_spectrum(R, array, grid, **options)
                np.testing.assert_allclose(spectrum.power.numpy(), full.max(-1), rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_music_is_positive_and_finite_even_on_noiseless_sources(dtype):
    array, grid = as_array("rectangular"), as_grid(GRIDS["asymmetric"])
    for wavefront in oracles.WAVEFRONTS:
        A = grid_steering(array, grid, wavefront)
        on_grid = A.reshape(-1, 15)[[10, 40]]
        R = as_covariance(oracles.source_covariance(on_grid, [1.0, 1.0], 0.0)[None], dtype)
        for method in methods_for("rectangular", wavefront):
            options = {"n_sources": 2, "wavefront": wavefront, "method": method, "reduce": "none"}
            power = music_spectrum(R, array, grid, **options)
            assert bool(torch.isfinite(power).all()), method
            assert float(power.min()) >= 1 - 1e-4, method  # ||Us^H a||^2 is never negative
            assert float(power.flatten()[[10, 40]].min()) >= 1e4, method


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_bartlett_matches_brute_force(name, wavefront, dtype):
    array = as_array(name)
    for key in ("asymmetric", "symmetric", "one point"):
        grid = as_grid(GRIDS[key])
        A = grid_steering(array, grid, wavefront)
        R = as_covariance(covariances(A), dtype)
        expected = oracles.bartlett(R.numpy(), A)
        largest = np.trace(R.numpy(), axis1=-2, axis2=-1).real / array.n_elements  # no point of the map exceeds it
        scale = largest[:, None, None, None]
        tolerance = 1e-5 if dtype == torch.complex64 else 1e-8
        for method in methods_for(name, wavefront):
            options = {"wavefront": wavefront, "method": method}
            full = bartlett_spectrum(R, array, grid, reduce="none", **options).numpy()
            np.testing.assert_allclose(full / scale, expected / scale, atol=tolerance)
            spectrum = bartlett_spectrum(R, array, grid, **options)
            np.testing.assert_allclose(
                spectrum.power.numpy() / scale[..., 0], (expected / scale).max(-1), atol=tolerance
            )
            chosen = np.take_along_axis(expected, spectrum.plane.numpy().astype(int)[..., None], -1)[..., 0]
            np.testing.assert_allclose(chosen / scale[..., 0], (expected / scale).max(-1), atol=2 * tolerance)
