"""What must hold whatever the numbers are: symmetries, invariances, limits, and what a plan says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import (
    analysis,
    bartlett_spectrum,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    plan,
    synthesis,
)

WAVELENGTH = 0.3
AXES = (np.radians(np.linspace(-50, 35, 7)), np.radians(np.linspace(-10, 28, 5)), [0.6, 1.7, 8.0])
# One representative of each method: (wavefront, method).
METHODS = [("spherical", "dense"), ("spherical", "chebyshev"), ("fresnel", "lag"), ("spherical", "auto")]
# Two float32 evaluations of one problem, each within the documented bound of the truth.
PAIR_DB = {torch.complex64: 2e-3, torch.complex128: 2e-6}
# The same algorithm run in other pieces: what is left is the order of float32 (float64) additions.
SAME_DB = {torch.complex64: 1e-4, torch.complex128: 1e-10}


def as_grid(azimuth, elevation, range_m):
    return SearchGrid(*(np.asarray(axis, float) for axis in (azimuth, elevation, range_m)))


@pytest.fixture
def array():
    return PlanarArray(oracles.rectangular(3, 5), WAVELENGTH)


@pytest.fixture
def grid():
    return as_grid(*AXES)


def random_covariance(batch=2, n=15, seed=0, dtype=torch.complex64):
    rng = np.random.default_rng(seed)
    R = torch.as_tensor(np.stack([oracles.wishart(rng, n, n + 5) + 0.05 * np.eye(n) for _ in range(batch)])).to(dtype)
    return (R + R.mH) / 2


def random_factor(batch=2, n=15, rank=3, seed=0, dtype=torch.complex64):
    return torch.as_tensor(oracles.complex_normal(np.random.default_rng(seed), batch, n, rank)).to(dtype)


def volume(R, array, grid, **options):
    return mvdr_spectrum(R, array, grid, reduce="none", **options).numpy()


def low_volume(F, array, grid, **options):
    return mvdr_spectrum_lowrank(F, array, grid, reduce="none", **options).numpy()


def options_of(case):
    return {"wavefront": case[0], "method": case[1]}


# ---- scale and units


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("scale", [1e-20, 1e-12, 0.3, 1e6, 1e20])
def test_scaling_the_covariance_scales_the_power(array, grid, case, scale):
    """Also where the square of a power is beyond float32: received powers in watts are like that."""
    R = random_covariance()
    scaled = volume(scale * R, array, grid, **options_of(case)) / scale
    assert oracles.worst_db(scaled, volume(R, array, grid, **options_of(case))) <= PAIR_DB[torch.complex64]


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("scale", [1e-10, 1e-6, 0.3, 1e3, 1e10])
def test_scaling_the_factor_scales_the_power_by_the_square(array, grid, case, scale):
    F = random_factor()
    scaled = low_volume(scale * F, array, grid, **options_of(case)) / scale**2
    assert oracles.worst_db(scaled, low_volume(F, array, grid, **options_of(case))) <= 2e-2


@pytest.mark.parametrize("case", METHODS, ids="-".join)
def test_scenes_of_very_different_power_share_a_batch(array, grid, case):
    R = random_covariance(batch=3)
    powers = torch.tensor([1e-9, 1.0, 1e9])[:, None, None]
    together = volume(R * powers, array, grid, **options_of(case)) / powers[..., None].numpy()
    assert oracles.worst_db(together, volume(R, array, grid, **options_of(case))) <= PAIR_DB[torch.complex64]


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.floats(0.01, 100), st.sampled_from(METHODS))
def test_only_lengths_in_wavelengths_matter(stretch, case):
    small = PlanarArray(oracles.rectangular(3, 5), WAVELENGTH)
    large = PlanarArray(oracles.rectangular(3, 5, 0.15 * stretch), WAVELENGTH * stretch)
    near, far = as_grid(*AXES), as_grid(AXES[0], AXES[1], np.array(AXES[2]) * stretch)
    R = random_covariance(dtype=torch.complex128)
    actual, expected = volume(R, large, far, **options_of(case)), volume(R, small, near, **options_of(case))
    assert oracles.worst_db(actual, expected) <= PAIR_DB[torch.complex128]


# ---- symmetries


@pytest.mark.parametrize("case", METHODS, ids="-".join)
def test_the_order_of_the_elements_does_not_matter(grid, case):
    positions = oracles.rectangular(3, 5)
    order = np.random.default_rng(2).permutation(15)
    R, F = random_covariance(dtype=torch.complex128), random_factor(dtype=torch.complex128)
    first, second = PlanarArray(positions, WAVELENGTH), PlanarArray(positions[order], WAVELENGTH)
    expected = volume(R, first, grid, **options_of(case))
    actual = volume(R[:, order][:, :, order], second, grid, **options_of(case))
    assert oracles.worst_db(actual, expected) <= PAIR_DB[torch.complex128]
    expected = low_volume(F, first, grid, **options_of(case))
    actual = low_volume(F[:, order], second, grid, **options_of(case))
    assert oracles.worst_db(actual, expected) <= PAIR_DB[torch.complex128]


@pytest.mark.parametrize("case", METHODS, ids="-".join)
def test_the_spectrum_does_not_see_the_basis_of_a_factor(array, grid, case):
    F = random_factor(rank=4, dtype=torch.complex128)
    unitary = np.linalg.qr(oracles.complex_normal(np.random.default_rng(3), 4, 4))[0]
    turned = F @ torch.from_numpy(unitary)
    padded = torch.cat([F, torch.zeros(2, 15, 3, dtype=F.dtype)], dim=-1)
    expected = low_volume(F, array, grid, **options_of(case))
    for same in (turned, padded, F.flip(-1), -1j * F):
        assert oracles.worst_db(low_volume(same, array, grid, **options_of(case)), expected) <= 2e-6


@pytest.mark.parametrize("method", ["dense", "chebyshev", "lag", "auto"])
def test_a_phase_ramp_over_the_array_shifts_the_far_field_map(method):
    """diag(exp(j k x s)) R diag(...)^H moves every plane wave by s in sin(azimuth)."""
    positions = oracles.rectangular(7, 1, 0.1)
    array = PlanarArray(positions, WAVELENGTH)
    sines = np.linspace(-0.7, 0.5, 13)
    step = sines[1] - sines[0]
    grid = as_grid(np.arcsin(sines), [0.0], [1.0])
    R = random_covariance(n=7, dtype=torch.complex128)
    ramp = torch.from_numpy(np.exp(2j * np.pi / WAVELENGTH * positions[:, 0] * step))
    moved = ramp[:, None] * R * ramp.conj()
    moved = (moved + moved.mH) / 2
    before = volume(R, array, grid, wavefront="planar", method=method)
    after = volume(moved, array, grid, wavefront="planar", method=method)
    assert oracles.worst_db(after[:, 1:], before[:, :-1]) <= PAIR_DB[torch.complex128]


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("method", ["dense", "chebyshev", "auto"])
def test_turning_array_and_grid_together_about_the_vertical_changes_nothing(wavefront, method):
    positions, angle = oracles.volumetric(5, 8, 0.3), 0.37
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])  # azimuth + angle
    R = random_covariance(n=8, dtype=torch.complex128)
    options = {"wavefront": wavefront, "method": method}
    before = volume(R, PlanarArray(positions, WAVELENGTH), as_grid(*AXES), **options)
    turned = PlanarArray(positions @ turn.T, WAVELENGTH)
    after = volume(R, turned, as_grid(AXES[0] + angle, *AXES[1:]), **options)
    assert oracles.worst_db(after, before) <= PAIR_DB[torch.complex128]


@pytest.mark.parametrize("side", ["left and right", "up and down"])
@pytest.mark.parametrize("name", ["lattice", "volumetric"])
@pytest.mark.parametrize("case", METHODS, ids="-".join)
def test_mirroring_array_and_grid_mirrors_the_map(side, name, case):
    if name == "volumetric" and case[1] == "lag":
        case = ("fresnel", "dense")
    positions = (
        oracles.rectangular(4, 3, 0.15, 0.1, (0.1, 0.3)) if name == "lattice" else oracles.volumetric(5, 12, 0.3)
    )
    axis = 0 if side == "left and right" else 1
    mirrored = positions.copy()
    mirrored[:, axis] *= -1
    axes = [np.asarray(a, float) for a in AXES]
    flipped = list(axes)
    flipped[axis] = -axes[axis][::-1]
    R = random_covariance(n=12, dtype=torch.complex128)
    before = volume(R, PlanarArray(positions, WAVELENGTH), as_grid(*axes), **options_of(case))
    after = volume(R, PlanarArray(mirrored, WAVELENGTH), as_grid(*flipped), **options_of(case))
    assert oracles.worst_db(np.flip(after, axis + 1), before) <= PAIR_DB[torch.complex128]


# ---- known answers


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("dtype", PAIR_DB)
@pytest.mark.parametrize("loading", [1e-2, 0.5])
def test_white_noise_has_its_own_power_everywhere(array, grid, case, dtype, loading):
    """Distortionless: of R = sigma^2 I every look lets through sigma^2 (1 + loading)."""
    R = torch.stack([0.3 * torch.eye(15), 70 * torch.eye(15)]).to(dtype)
    expected = np.broadcast_to(np.array([0.3, 70])[:, None, None, None] * (1 + loading), (2, *grid.shape))
    actual = volume(R, array, grid, loading=loading, **options_of(case))
    assert oracles.worst_db(actual, expected) <= PAIR_DB[dtype] / 2


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("dtype", PAIR_DB)
def test_one_source_shows_its_power_at_its_own_place(array, grid, case, dtype):
    """R = p a a^H: trace/N = p, so by Sherman-Morrison P = p N + delta at the source, delta = loading p."""
    points = oracles.box(grid.azimuth_rad.numpy(), grid.elevation_rad.numpy(), grid.range_m.numpy())
    a = oracles.steering(array.positions_m.numpy(), WAVELENGTH, points[4, 2, 1], case[0])
    p, loading = 0.8, 1e-2
    F = torch.as_tensor(math.sqrt(p) * a[None, :, None]).to(dtype)
    expected = np.array([p * 15 + loading * p])
    full = volume((F @ F.mH + (F @ F.mH).mH) / 2, array, grid, loading=loading, **options_of(case))[:, 4, 2, 1]
    low = low_volume(F, array, grid, loading=loading, **options_of(case))[:, 4, 2, 1]
    assert oracles.worst_db(full, expected) <= PAIR_DB[dtype] / 2
    assert oracles.worst_db(low, expected) <= (1e-2 if dtype == torch.complex64 else 1e-6)


@pytest.mark.parametrize("case", METHODS, ids="-".join)
def test_a_spectrum_lies_between_the_smallest_and_largest_eigenvalue(array, grid, case):
    R = random_covariance(dtype=torch.complex128)
    loaded = torch.from_numpy(oracles.loaded(R.numpy(), 1e-2))
    low, high = torch.linalg.eigvalsh(loaded)[:, [0, -1]].T.numpy()
    power = volume(R, array, grid, **options_of(case))
    assert (power >= low[:, None, None, None] * (1 - 1e-6)).all()
    assert (power <= high[:, None, None, None] * (1 + 1e-6)).all()


@pytest.mark.parametrize("case", METHODS, ids="-".join)
def test_more_loading_never_lowers_the_power(array, grid, case):
    R = random_covariance(dtype=torch.complex128)
    powers = [volume(R, array, grid, loading=loading, **options_of(case)) for loading in (0.0, 1e-3, 1e-2, 1.0)]
    for less, more in itertools.pairwise(powers):
        assert (more >= less * (1 - 1e-6)).all()


def test_the_spherical_map_tends_to_the_planar_map_with_range(array):
    R = random_covariance(dtype=torch.complex128)
    worst = []
    for r in (10.0, 100.0, 1000.0, 1e5):
        grid = as_grid(AXES[0], AXES[1], [r])
        planar = volume(R, array, grid, wavefront="planar")
        spherical = volume(R, array, grid, wavefront="spherical")
        worst.append(oracles.worst_db(spherical, planar))
    assert worst == sorted(worst, reverse=True)
    # The phases differ by k |p|^2 / (2 r), so each factor of ten in range is one in the map.
    assert worst[2] == pytest.approx(worst[1] / 10, rel=0.1)
    assert worst[3] == pytest.approx(worst[2] / 100, rel=0.1)


def test_in_the_planar_wavefront_range_does_not_matter(array):
    R = random_covariance(dtype=torch.complex128)
    for method in ("dense", "chebyshev", "lag"):
        power = volume(R, array, as_grid(AXES[0], AXES[1], [0.5, 3.0, 900.0]), wavefront="planar", method=method)
        assert oracles.worst_db(power, np.broadcast_to(power[..., :1], power.shape)) <= 1e-10


# ---- reduction over planes


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("dtype", PAIR_DB)
def test_the_maximum_over_planes_is_the_maximum_of_the_volume(array, grid, case, dtype):
    R, F = random_covariance(dtype=dtype), random_factor(dtype=dtype)
    for operator, matrix in ((mvdr_spectrum, R), (mvdr_spectrum_lowrank, F), (bartlett_spectrum, R)):
        full = operator(matrix, array, grid, reduce="none", **options_of(case))
        spectrum = operator(matrix, array, grid, **options_of(case))
        assert spectrum.power.shape == spectrum.plane.shape == (2, 7, 5)
        assert oracles.worst_db(spectrum.power.numpy(), full.max(-1).values.numpy()) <= SAME_DB[dtype]
        chosen = full.gather(-1, spectrum.plane.long()[..., None])[..., 0]
        assert oracles.worst_db(chosen.numpy(), full.max(-1).values.numpy()) <= SAME_DB[dtype]


@pytest.mark.parametrize("method", ["dense", "chebyshev", "lag", "auto"])
def test_ties_go_to_the_lowest_plane(array, method):
    grid = as_grid(AXES[0], AXES[1], [0.5, 1.0, 2.0, 4.0])
    spectra = [
        mvdr_spectrum(random_covariance(), array, grid, wavefront="planar", method=method),
        mvdr_spectrum_lowrank(random_factor(), array, grid, wavefront="planar", method=method),
        bartlett_spectrum(random_covariance(), array, grid, wavefront="planar", method=method),
        music_spectrum(random_covariance(), array, grid, n_sources=2, wavefront="planar", method=method),
    ]
    alone = PlanarArray([[0.0, 0.0, 0.0]], WAVELENGTH)
    spectra.append(
        mvdr_spectrum(torch.ones(1, 1, 1, dtype=torch.complex64), alone, grid, wavefront="fresnel", method=method)
    )
    for spectrum in spectra:
        assert not spectrum.plane.any()


def test_a_subset_of_planes_gives_the_same_values_on_those_planes(array, grid):
    R = random_covariance(dtype=torch.complex128)
    for case in METHODS:
        whole = volume(R, array, grid, **options_of(case))
        subset = volume(R, array, as_grid(AXES[0], AXES[1], [0.6, 8.0]), **options_of(case))
        assert oracles.worst_db(subset, whole[..., [0, 2]]) <= PAIR_DB[torch.complex128]


# ---- the far field

FAR_METHODS = [("spherical", "dense"), ("spherical", "chebyshev"), ("spherical", "auto"), ("planar", "dense")]
FAR_METHODS += [("fresnel", method) for method in ("dense", "chebyshev", "lag")]


@pytest.mark.parametrize("elements", ["lattice", "volume"])
@pytest.mark.parametrize("case", FAR_METHODS, ids="-".join)
def test_the_plane_at_infinity_is_the_planar_wavefront(case, elements):
    if case[1] == "lag" and elements == "volume":
        elements = "lattice with its columns reversed"
    positions = {"lattice": oracles.rectangular(3, 5), "volume": oracles.volumetric(4, 15, 0.3)}.get(elements)
    array = PlanarArray(oracles.rectangular(3, 5)[::-1].copy() if positions is None else positions, WAVELENGTH)
    far = as_grid(AXES[0], AXES[1], [0.6, 8.0, math.inf])
    x = inputs(far, dtype=torch.complex128)
    x[2][..., :2] = 0
    alone = (*x[:2], x[2][..., 2:])
    for name, operator in OPERATORS.items():
        if name.endswith("max"):
            continue
        options = options_of(case)
        found = operator(x, array, far, **options)
        one = as_grid(AXES[0], AXES[1], [1.0])
        planar = operator(alone, array, one, wavefront="planar", method="dense")
        close(found if name == "synthesis" else found[..., 2:], planar, 1e-6)


@pytest.mark.parametrize("case", [("spherical", "dense"), ("spherical", "chebyshev"), ("fresnel", "lag")], ids="-".join)
def test_a_thousand_kilometres_are_as_far_as_infinity(array, case):
    for name, operator in OPERATORS.items():
        x = inputs(as_grid(AXES[0], AXES[1], [0.6, 1.0]), dtype=torch.complex128)
        far, further = (
            operator(x, array, as_grid(AXES[0], AXES[1], [0.6, r]), **options_of(case)) for r in (1e6, math.inf)
        )
        close(far, further, 1e-5)
        assert far.isfinite().all(), name


def test_points_of_a_list_may_be_at_infinity(array):
    rng = np.random.default_rng(8)
    R = inputs(as_grid(*AXES), dtype=torch.complex128)[0][:2]
    points = np.column_stack([rng.uniform(-1, 1, (5, 2)), [0.7, math.inf, 1e300, 3.0, math.inf]])
    A = oracles.steering(array.positions_m.numpy(), WAVELENGTH, np.where(points == 1e300, math.inf, points))
    found = analysis(R, array, torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(found, oracles.analysis(R.numpy(), A), rtol=1e-12)
    p = torch.rand(2, 5, dtype=torch.float64)
    summed = synthesis(p, array, torch.from_numpy(points)).numpy()
    np.testing.assert_allclose(summed, oracles.synthesis(p.numpy(), A), atol=1e-12)


# ---- batches, strides, budgets

OPERATORS = {
    "mvdr_spectrum": lambda x, array, grid, **o: mvdr_spectrum(x[0], array, grid, reduce="none", **o),
    "mvdr_spectrum max": lambda x, array, grid, **o: mvdr_spectrum(x[0], array, grid, **o).power,
    "mvdr_spectrum_lowrank": lambda x, array, grid, **o: mvdr_spectrum_lowrank(x[1], array, grid, reduce="none", **o),
    "mvdr_spectrum_lowrank max": lambda x, array, grid, **o: mvdr_spectrum_lowrank(x[1], array, grid, **o).power,
    "music_spectrum": lambda x, array, grid, **o: music_spectrum(x[0], array, grid, n_sources=2, reduce="none", **o),
    "bartlett_spectrum": lambda x, array, grid, **o: bartlett_spectrum(x[0], array, grid, reduce="none", **o),
    "analysis": lambda x, array, grid, **o: analysis(x[0], array, grid, **o),
    "analysis factored": lambda x, array, grid, **o: analysis(x[1], array, grid, **o),
    "synthesis": lambda x, array, grid, **o: synthesis(x[2], array, grid, **o),
}


def inputs(grid, batch=3, dtype=torch.complex64):
    p = torch.as_tensor(np.random.default_rng(6).uniform(0.1, 1, (batch, *grid.shape))).to(dtype.to_real())
    return random_covariance(batch, dtype=dtype), random_factor(batch, dtype=dtype), p


def close(actual, expected, tolerance=2e-5):
    """Equal up to the order of float32 additions, relative to the largest entry."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), atol=tolerance * scale, rtol=tolerance)


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("name", OPERATORS)
def test_a_batch_gives_what_its_scenes_give_alone(array, grid, name, case):
    x = inputs(grid)
    together = OPERATORS[name](x, array, grid, **options_of(case))
    alone = [OPERATORS[name](tuple(t[b : b + 1] for t in x), array, grid, **options_of(case)) for b in range(3)]
    close(together, torch.cat(alone))
    if "synthesis" not in name:
        close(OPERATORS[name](tuple(t[1] for t in x), array, grid, **options_of(case)), together[1])


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("name", OPERATORS)
def test_the_result_does_not_depend_on_the_byte_budget(array, name, case):
    grid = SearchGrid.box(41, 23, [0.6, 1.7, 8.0], 1.0, 0.5)
    x = inputs(grid, batch=5)
    expected = OPERATORS[name](x, array, grid, **options_of(case))
    for budget in (2**30, 2**26, 2**22, 2**20):
        close(OPERATORS[name](x, array, grid, byte_budget=budget, **options_of(case)), expected)


@pytest.mark.parametrize("case", [("spherical", "dense"), ("spherical", "chebyshev"), ("fresnel", "lag")], ids="-".join)
def test_the_winning_plane_does_not_depend_on_the_byte_budget(array, case):
    grid = SearchGrid.box(41, 23, [0.6, 1.7, 8.0], 1.0, 0.5)
    R = random_covariance(4, dtype=torch.complex128)
    expected = mvdr_spectrum(R, array, grid, **options_of(case))
    for budget in (2**30, 2**26, 2**20):
        actual = mvdr_spectrum(R, array, grid, byte_budget=budget, **options_of(case))
        assert torch.equal(actual.plane, expected.plane)


def test_a_large_batch_on_a_small_budget_equals_its_scenes(array):
    grid = SearchGrid.box(61, 41, [0.6, 1.7, 8.0], 1.0, 0.5)
    R = random_covariance(33)
    for case in METHODS:
        together = mvdr_spectrum(R, array, grid, byte_budget=2**20, **options_of(case))
        alone = mvdr_spectrum(R[17], array, grid, **options_of(case))
        close(together.power[17], alone.power)


def strided(tensor):
    """The same values in other layouts: every second entry, axes swapped in memory, offset, lazily conjugated."""
    spread = torch.full([2 * size + 1 for size in tensor.shape], math.nan, dtype=tensor.dtype)
    window = spread[tuple(slice(1, None, 2) for _ in tensor.shape)]
    window.copy_(tensor)
    yield window
    yield tensor.mT.contiguous().mT
    yield tensor.flip(0).contiguous().flip(0)
    if tensor.is_complex():
        yield tensor.conj().resolve_conj().conj()
        yield tensor.mH.contiguous().mH
    else:
        yield torch.complex(torch.zeros_like(tensor), -tensor).conj().imag  # negated lazily
        yield tensor.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("name", OPERATORS)
def test_strided_input_gives_what_contiguous_input_gives(array, grid, name, case):
    x = inputs(grid)
    expected = OPERATORS[name](x, array, grid, **options_of(case))
    for layouts in zip(*(strided(t) for t in x), strict=True):
        close(OPERATORS[name](layouts, array, grid, **options_of(case)), expected)


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("name", OPERATORS)
def test_one_scene_expanded_over_a_batch_gives_equal_results(array, grid, name, case):
    x = tuple(t[:1] for t in inputs(grid))
    expanded = tuple(t.expand(3, *t.shape[1:]) for t in x)
    result = OPERATORS[name](expanded, array, grid, **options_of(case))
    close(result, OPERATORS[name](x, array, grid, **options_of(case)).expand_as(result).contiguous())


@pytest.mark.parametrize("case", METHODS, ids="-".join)
@pytest.mark.parametrize("name", OPERATORS)
def test_inputs_are_left_as_they_were_and_results_are_the_callers_own(array, grid, name, case):
    x = inputs(grid)
    before = [t.clone() for t in x]
    first = OPERATORS[name](x, array, grid, **options_of(case))
    kept = first.clone()
    first.fill_(math.nan)  # what a caller does to a result must not reach a cache
    assert all(torch.equal(t, b) for t, b in zip(x, before, strict=True))
    assert torch.equal(OPERATORS[name](x, array, grid, **options_of(case)), kept)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_empty_batch_gives_an_empty_result(array, grid, name):
    for dtype in PAIR_DB:
        empty = tuple(t[:0] for t in inputs(grid, dtype=dtype))
        full = OPERATORS[name](inputs(grid, dtype=dtype), array, grid)
        for case in METHODS:
            result = OPERATORS[name](empty, array, grid, **options_of(case))
            assert result.shape == (0, *full.shape[1:])
            assert result.dtype == full.dtype


def test_an_empty_batch_gives_an_empty_plane_map_and_an_empty_gradient(array, grid):
    R = torch.zeros(0, 15, 15, dtype=torch.complex64, requires_grad=True)
    spectrum = mvdr_spectrum(R, array, grid)
    assert spectrum.plane.shape == (0, 7, 5)
    assert spectrum.plane.dtype == torch.int32
    spectrum.power.sum().backward()
    assert R.grad.shape == R.shape


def test_the_operators_run_in_inference_mode(array, grid):
    with torch.inference_mode():
        inside = mvdr_spectrum(random_covariance(), array, grid).power
    close(inside.clone(), mvdr_spectrum(random_covariance(), array, grid).power)


def test_a_plan_made_in_inference_mode_serves_training_afterwards(array):
    """Whatever is cached must not be an inference tensor."""
    grid = as_grid(np.radians(np.linspace(-41, 29, 9)), AXES[1], [0.7, 2.2])  # used nowhere else
    for case in METHODS:
        with torch.inference_mode():
            mvdr_spectrum(random_covariance(), array, grid, **options_of(case))
        F = random_factor().requires_grad_()
        mvdr_spectrum_lowrank(F, array, grid, **options_of(case)).power.sum().backward()
        R = random_covariance().requires_grad_()
        mvdr_spectrum(R, array, grid, **options_of(case)).power.sum().backward()
        assert bool(R.grad.isfinite().all() & F.grad.isfinite().all())


def test_the_default_dtype_of_torch_does_not_matter(array, grid):
    expected = volume(random_covariance(), array, grid)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        actual = volume(random_covariance(), PlanarArray(oracles.rectangular(3, 5), WAVELENGTH), as_grid(*AXES))
    finally:
        torch.set_default_dtype(default)
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual, expected)


# ---- plans


@pytest.mark.parametrize("case", [*METHODS, ("planar", "auto"), ("fresnel", "chebyshev")], ids="-".join)
def test_a_plan_says_what_will_be_done_and_what_it_costs(case):
    made = plan(PlanarArray.rectangular(), SearchGrid.reference(), operation="mvdr", batch=4, **options_of(case))
    text = str(made)
    if case[1] != "auto":
        assert case[1] in text
    for word in ("method", "tile", "byte", "flop", "dB"):
        assert word.lower() in text.lower(), (word, text)
    if "chebyshev" in text:
        assert "node" in text.lower()


def test_a_plan_picks_the_cheap_method_where_it_is_valid():
    surface, reference = PlanarArray.rectangular(), SearchGrid.reference()
    assert plan(surface, reference, wavefront="fresnel").method == "lag"
    assert plan(surface, reference, wavefront="spherical").method == "chebyshev"
    irregular = PlanarArray(oracles.irregular_plane(0, 30, 0.8), WAVELENGTH)
    assert plan(irregular, reference, wavefront="fresnel").method != "lag"


def test_a_plan_does_not_change_from_one_call_to_the_next():
    surface, training = PlanarArray.rectangular(), SearchGrid.training()
    assert str(plan(surface, training, batch=2)) == str(plan(surface, training, batch=2))


def test_a_plan_refuses_what_the_operator_would_refuse():
    surface, training = PlanarArray.rectangular(), SearchGrid.training()
    with pytest.raises(ValueError, match="method"):
        plan(surface, training, method="lag", wavefront="spherical")
    with pytest.raises(ValueError, match="method"):
        plan(surface, training, method="fast")
    with pytest.raises(ValueError, match="wavefront"):
        plan(surface, training, wavefront="round")
