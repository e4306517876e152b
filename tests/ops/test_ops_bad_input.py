"""Every kind of bad input raises, and the message names the argument and says what was wrong with it."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, SearchGrid
from risfast.ops import (
    analysis,
    bartlett_spectrum,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    synthesis,
)

N = 6
ARRAY = PlanarArray(oracles.rectangular(3, 2), 0.3)
IRREGULAR = PlanarArray(oracles.irregular_plane(0, N, 0.4), 0.3)
LIFTED = PlanarArray(oracles.rectangular(3, 2) + np.array([0, 0, 0.1]), 0.3)
GRID = SearchGrid(np.array([-0.4, 0.0, 0.5]), np.array([-0.1, 0.2]), np.array([0.7, 3.0]))
POINTS = torch.tensor([[0.1, 0.0, 1.0], [-0.3, 0.2, 4.0]], dtype=torch.float64)


def music(R, array=ARRAY, grid=GRID, **options):
    return music_spectrum(R, array, grid, **{"n_sources": 2, **options})


FROM_COVARIANCE = {"mvdr_spectrum": mvdr_spectrum, "music_spectrum": music, "bartlett_spectrum": bartlett_spectrum}
# name: (operator, name of its first argument, a good one)
OPERATORS = {
    "mvdr_spectrum": (mvdr_spectrum, "R"),
    "music_spectrum": (music, "R"),
    "bartlett_spectrum": (bartlett_spectrum, "R"),
    "mvdr_spectrum_lowrank": (mvdr_spectrum_lowrank, "F"),
    "analysis": (analysis, "W_or_Q"),
    "synthesis": (synthesis, "p"),
}


def good(name, dtype=torch.complex64, batch=2):
    rng = np.random.default_rng(0)
    if name == "synthesis":
        return torch.as_tensor(rng.uniform(0, 1, (batch, *GRID.shape))).to(dtype.to_real())
    if name == "mvdr_spectrum_lowrank":
        return torch.as_tensor(oracles.complex_normal(rng, batch, N, 2)).to(dtype)
    R = torch.as_tensor(np.stack([oracles.wishart(rng, N, 12) for _ in range(batch)])).to(dtype)
    return (R + R.mH) / 2


def names(argument):
    """A pattern for the argument as a word of its own."""
    return rf"(?<!\w){argument}(?!\w)"


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_good_input_is_accepted(name, dtype):
    OPERATORS[name][0](good(name, dtype), ARRAY, GRID)


# ---- shapes


@pytest.mark.parametrize("name", ["mvdr_spectrum", "music_spectrum", "bartlett_spectrum"])
@pytest.mark.parametrize(
    "shape", [(), (N,), (2, N, N - 1), (2, N - 1, N), (1, 2, N, N), (2, 0, 0), (2, N + 1, N + 1), (N - 1, N - 1)]
)
def test_a_covariance_of_the_wrong_shape_is_refused(name, shape):
    with pytest.raises(ShapeError, match=names("R")) as caught:
        FROM_COVARIANCE[name](torch.zeros(shape, dtype=torch.complex64), ARRAY, GRID)
    assert "shape" in str(caught.value) or str(N) in str(caught.value)


def test_a_covariance_of_another_array_is_refused_with_both_sizes():
    with pytest.raises(ShapeError, match=names("R")) as caught:
        mvdr_spectrum(torch.eye(9, dtype=torch.complex64), ARRAY, GRID)
    assert "6" in str(caught.value)
    assert "9" in str(caught.value)


@pytest.mark.parametrize("shape", [(), (N,), (2, 2, N), (1, 2, N, 2), (2, N + 1, 2), (2, 0, 2), (2, N, 0)])
def test_a_factor_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(ShapeError, match=names("F")):
        mvdr_spectrum_lowrank(torch.ones(shape, dtype=torch.complex64), ARRAY, GRID)


def test_a_transposed_factor_is_recognised():
    with pytest.raises(ShapeError, match=r"transpos"):
        mvdr_spectrum_lowrank(good("mvdr_spectrum_lowrank").mT, ARRAY, GRID)


@pytest.mark.parametrize("shape", [(), (N,), (2, N + 1, N + 1), (2, N + 1, 2), (1, 2, N, N)])
def test_a_matrix_of_the_wrong_shape_is_refused_by_analysis(shape):
    with pytest.raises(ShapeError, match=names("W_or_Q")):
        analysis(torch.ones(shape, dtype=torch.complex64), ARRAY, GRID)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 2, 3), (2, 2, 3, 2), (2, 12), (1, 2, 3, 2, 2)])
def test_weights_that_do_not_fit_the_grid_are_refused(shape):
    with pytest.raises(ShapeError, match=names("p")):
        synthesis(torch.ones(shape), ARRAY, GRID)


def test_weights_that_do_not_fit_the_points_are_refused():
    with pytest.raises(ShapeError, match=names("p")):
        synthesis(torch.ones(2, 3), ARRAY, POINTS)


@pytest.mark.parametrize("shape", [(), (3,), (4, 2), (3, 4), (1, 4, 3)])
def test_points_of_the_wrong_shape_are_refused(shape):
    points = torch.ones(shape, dtype=torch.float64)
    with pytest.raises(ShapeError, match="points"):
        analysis(good("analysis"), ARRAY, points)
    with pytest.raises(ShapeError, match="points"):
        synthesis(torch.ones(2, 4), ARRAY, points)


# ---- types, dtypes and devices


@pytest.mark.parametrize("name", [n for n in OPERATORS if n != "synthesis"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_a_matrix_that_is_not_complex_is_refused(name, dtype):
    operator, argument = OPERATORS[name]
    with pytest.raises((TypeError, ValueError), match=names(argument)) as caught:
        operator(torch.ones(good(name).shape, dtype=dtype), ARRAY, GRID)
    assert str(dtype).removeprefix("torch.") in str(caught.value)
    assert "complex" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.bool, torch.float16])
def test_weights_that_are_not_real_floats_are_refused(dtype):
    with pytest.raises((TypeError, ValueError), match=names("p")):
        synthesis(torch.ones(2, *GRID.shape, dtype=dtype), ARRAY, GRID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, "complex64"])
def test_synthesis_refuses_to_compute_in_a_dtype_that_is_not_complex(dtype):
    with pytest.raises((TypeError, ValueError), match="dtype"):
        synthesis(good("synthesis"), ARRAY, GRID, dtype=dtype)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("value", [None, 3.0, [[1.0]], "R"])
def test_what_is_not_a_tensor_is_refused(name, value):
    operator, argument = OPERATORS[name]
    with pytest.raises(TypeError, match=names(argument)):
        operator(value, ARRAY, GRID)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("value", [None, ARRAY.positions_m, 0.3, GRID])
def test_what_is_not_an_array_is_refused(name, value):
    with pytest.raises(TypeError, match=names("array")):
        OPERATORS[name][0](good(name), value, GRID)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("value", [None, 3, (1, 2, 3), ARRAY])
def test_what_is_not_a_grid_is_refused(name, value):
    with pytest.raises(TypeError, match="grid"):
        OPERATORS[name][0](good(name), ARRAY, value)


@pytest.mark.parametrize("name", ["mvdr_spectrum", "music_spectrum", "bartlett_spectrum", "mvdr_spectrum_lowrank"])
def test_a_spectrum_needs_a_grid_and_says_so_when_it_gets_points(name):
    with pytest.raises(TypeError, match=names("grid")):
        OPERATORS[name][0](good(name), ARRAY, POINTS)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex128, torch.bool])
def test_points_that_are_not_real_floats_are_refused(dtype):
    with pytest.raises((TypeError, ValueError), match="points"):
        analysis(good("analysis"), ARRAY, torch.ones(4, 3, dtype=dtype))


def test_a_mixture_of_devices_is_refused():
    elsewhere = POINTS.to("meta")
    with pytest.raises(ValueError, match=r"points.*(meta|cpu)"):
        analysis(good("analysis"), ARRAY, elsewhere)
    with pytest.raises(ValueError, match=r"points.*(meta|cpu)"):
        synthesis(torch.ones(2, 2), ARRAY, elsewhere)


# ---- values


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(name, bad):
    operator, argument = OPERATORS[name]
    x = good(name)
    x.view(-1)[-1] = bad
    with pytest.raises(ValueError, match=names(argument)) as caught:
        operator(x, ARRAY, GRID)
    assert "finite" in str(caught.value) or "NaN" in str(caught.value)


@pytest.mark.parametrize("name", ["mvdr_spectrum", "analysis"])
def test_an_imaginary_part_that_is_not_finite_is_refused(name):
    operator, argument = OPERATORS[name]
    x = good(name)
    x[1, 0, 1] = complex(0, math.nan)
    x[1, 1, 0] = complex(0, math.nan)
    with pytest.raises(ValueError, match=names(argument)):
        operator(x, ARRAY, GRID)


@pytest.mark.parametrize("name", [*FROM_COVARIANCE, "analysis"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_matrix_that_is_not_hermitian_beyond_rounding_is_refused(name, dtype):
    operator, argument = OPERATORS[name]
    for change in ("off the diagonal", "imaginary diagonal", "transposed phase"):
        R = good(name, dtype)
        if change == "off the diagonal":
            R[1, 0, 3] += 1e-2 * R[1, 0, 0].real
        elif change == "imaginary diagonal":
            R[1, 2, 2] += 1e-2j * R[1, 2, 2].real
        else:
            R[1] = R[1].triu() + R[1].triu(1).mT  # symmetric where it should be Hermitian
        with pytest.raises(ValueError, match=names(argument)) as caught:
            operator(R, ARRAY, GRID)
        assert "ermitian" in str(caught.value)


@pytest.mark.parametrize("name", [*FROM_COVARIANCE, "analysis"])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_matrix_that_is_hermitian_to_rounding_is_accepted_whatever_its_scale(name, scale, dtype):
    R = good(name, dtype) * scale
    rounding = torch.finfo(dtype).eps * float(R.abs().max())
    R = R + rounding * torch.as_tensor(oracles.complex_normal(np.random.default_rng(1), 2, N, N)).to(dtype)
    assert not torch.equal(R, R.mH)
    OPERATORS[name][0](R, ARRAY, GRID)


@pytest.mark.parametrize("name", ["mvdr_spectrum", "music_spectrum", "bartlett_spectrum"])
def test_a_covariance_of_zero_or_negative_trace_is_refused(name):
    for scene in (torch.zeros(N, N), -torch.eye(N)):
        R = good(name)
        R[1] = scene.to(R.dtype)
        with pytest.raises(ValueError, match=names("R")) as caught:
            FROM_COVARIANCE[name](R, ARRAY, GRID)
        assert "trace" in str(caught.value)


def test_a_factor_of_zeros_is_refused():
    F = good("mvdr_spectrum_lowrank")
    F[1] = 0
    with pytest.raises(ValueError, match=names("F")):
        mvdr_spectrum_lowrank(F, ARRAY, GRID)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("smallest", [-1.0, -0.1, -0.02])
def test_an_indefinite_covariance_is_refused(dtype, smallest):
    """Eigenvalues 1, .., 1, negative, in a random basis; the loading of about 0.01 does not hide it."""
    basis = np.linalg.qr(oracles.complex_normal(np.random.default_rng(2), N, N))[0]
    R = good("mvdr_spectrum", dtype)
    R[1] = torch.as_tensor(basis * np.array([1.0] * (N - 1) + [smallest]) @ basis.conj().T).to(dtype)
    R[1] = (R[1] + R[1].mH) / 2
    with pytest.raises(ValueError, match=names("R")) as caught:
        mvdr_spectrum(R, ARRAY, GRID)
    assert "definite" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_covariance_that_is_indefinite_only_by_rounding_is_accepted(dtype):
    F = torch.as_tensor(oracles.complex_normal(np.random.default_rng(3), 1, N, 1)).to(dtype)
    R = F @ F.mH
    R = (R + R.mH) / 2
    R = R - 2 * torch.finfo(dtype).eps * float(R.abs().max()) * torch.eye(N)
    assert float(torch.linalg.eigvalsh(R).min()) < 0
    power = mvdr_spectrum(R, ARRAY, GRID).power
    assert bool((power > 0).all())


@pytest.mark.parametrize("loading", [0.0, -1e-3])
@pytest.mark.parametrize("method", ["auto", "dense", "chebyshev", "lag"])
def test_a_singular_covariance_needs_loading(loading, method):
    column = torch.as_tensor(oracles.complex_normal(np.random.default_rng(3), 1, N, 1))
    R = column @ column.mH
    with pytest.raises(ValueError, match=names("loading")):
        mvdr_spectrum((R + R.mH) / 2, ARRAY, GRID, loading=loading, wavefront="fresnel", method=method)
    with pytest.raises(ValueError, match=names("loading")):
        mvdr_spectrum_lowrank(column, ARRAY, GRID, loading=loading, wavefront="fresnel", method=method)


def test_a_dead_element_needs_loading():
    R = good("mvdr_spectrum", torch.complex128)
    R[:, 2, :] = 0
    R[:, :, 2] = 0
    assert bool(mvdr_spectrum(R, ARRAY, GRID).power.isfinite().all())
    with pytest.raises(ValueError, match=names("loading")):
        mvdr_spectrum(R, ARRAY, GRID, loading=0.0)


@pytest.mark.parametrize("name", ["mvdr_spectrum", "mvdr_spectrum_lowrank"])
@pytest.mark.parametrize("loading", [math.nan, math.inf, "1e-2", None])
def test_a_loading_that_is_not_a_finite_number_is_refused(name, loading):
    with pytest.raises((TypeError, ValueError), match=names("loading")):
        OPERATORS[name][0](good(name), ARRAY, GRID, loading=loading)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_points_that_are_not_finite_are_refused(axis, bad):
    points = POINTS.clone()
    points[1, axis] = bad
    with pytest.raises(ValueError, match="points"):
        analysis(good("analysis"), ARRAY, points)
    with pytest.raises(ValueError, match="points"):
        synthesis(torch.ones(2, 2), ARRAY, points)


@pytest.mark.parametrize("r", [0.0, -1.0])
def test_points_at_a_range_that_is_not_positive_are_refused(r):
    points = POINTS.clone()
    points[1, 2] = r
    with pytest.raises(ValueError, match=r"points.*range|range.*points"):
        analysis(good("analysis"), ARRAY, points)
    with pytest.raises(ValueError, match=r"points.*range|range.*points"):
        synthesis(torch.ones(2, 2), ARRAY, points)


@pytest.mark.parametrize("n_sources", [-1, N, N + 1, 1.5, None])
def test_music_refuses_a_number_of_sources_that_leaves_no_noise_subspace(n_sources):
    with pytest.raises((TypeError, ValueError), match=names("n_sources")):
        music_spectrum(good("music_spectrum"), ARRAY, GRID, n_sources=n_sources)


# ---- options


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("method", "fast", ["auto", "dense", "chebyshev", "lag"]),
        ("method", "Dense", ["dense"]),
        ("method", None, ["dense"]),
        ("wavefront", "round", ["spherical", "fresnel", "planar"]),
        ("wavefront", None, ["spherical"]),
        ("byte_budget", 0, []),
        ("byte_budget", -5, []),
        ("byte_budget", "64MB", []),
    ],
)
def test_an_unknown_option_is_refused_and_the_known_ones_named(name, option, value, known):
    with pytest.raises((TypeError, ValueError), match=names(option)) as caught:
        OPERATORS[name][0](good(name), ARRAY, GRID, **{option: value})
    for choice in known:
        assert choice in str(caught.value)


@pytest.mark.parametrize("name", ["mvdr_spectrum", "music_spectrum", "bartlett_spectrum", "mvdr_spectrum_lowrank"])
@pytest.mark.parametrize("reduce", ["sum", "Max", None])
def test_an_unknown_reduction_is_refused(name, reduce):
    with pytest.raises(ValueError, match=names("reduce")) as caught:
        OPERATORS[name][0](good(name), ARRAY, GRID, reduce=reduce)
    assert "max" in str(caught.value)
    assert "none" in str(caught.value)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_misspelt_keyword_is_refused(name):
    with pytest.raises(TypeError, match="wavefrnt"):
        OPERATORS[name][0](good(name), ARRAY, GRID, wavefrnt="planar")


@pytest.mark.parametrize("name", OPERATORS)
def test_lag_is_refused_for_a_spherical_wavefront(name):
    with pytest.raises(ValueError, match=names("method")) as caught:
        OPERATORS[name][0](good(name), ARRAY, GRID, method="lag", wavefront="spherical")
    assert "lag" in str(caught.value)
    assert "spherical" in str(caught.value)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("array", [IRREGULAR, LIFTED], ids=["irregular", "lifted"])
@pytest.mark.parametrize("wavefront", ["fresnel", "planar"])
def test_lag_is_refused_for_an_array_that_is_no_lattice(name, array, wavefront):
    with pytest.raises(ValueError, match=names("method")) as caught:
        OPERATORS[name][0](good(name), array, GRID, method="lag", wavefront=wavefront)
    assert "lag" in str(caught.value)
    assert "uniform" in str(caught.value) or "lattice" in str(caught.value)


@pytest.mark.parametrize("method", ["chebyshev", "lag"])
def test_methods_that_need_a_box_are_refused_for_a_list_of_points(method):
    with pytest.raises(ValueError, match=names("method")):
        analysis(good("analysis"), ARRAY, POINTS, method=method, wavefront="fresnel")
    with pytest.raises(ValueError, match=names("method")):
        synthesis(torch.ones(2, 2), ARRAY, POINTS, method=method, wavefront="fresnel")


# ---- before any work, and nothing else


def test_bad_options_are_noticed_before_the_matrix_is_looked_at():
    """A meta tensor has no values: work on it would fail in another way."""
    R = torch.zeros(4096, N, N, dtype=torch.complex64, device="meta")
    with pytest.raises(ValueError, match=names("method")):
        mvdr_spectrum(R, ARRAY, GRID, method="fast")
    with pytest.raises(ShapeError, match=names("R")):
        mvdr_spectrum(R[:, :, :-1], ARRAY, GRID)


@pytest.mark.parametrize("name", OPERATORS)
def test_options_are_checked_for_an_empty_batch_too(name):
    with pytest.raises(ValueError, match=names("method")):
        OPERATORS[name][0](good(name)[:0], ARRAY, GRID, method="fast")


def test_what_needs_no_check_is_not_refused():
    indefinite = torch.as_tensor(oracles.hermitian(np.random.default_rng(4), 1, N))
    assert analysis(indefinite, ARRAY, GRID).shape == (1, *GRID.shape)
    assert analysis(torch.zeros(1, N, N, dtype=torch.complex64), ARRAY, GRID).abs().max() == 0
    assert synthesis(-torch.ones(1, *GRID.shape), ARRAY, GRID).shape == (1, N, N)
    assert analysis(good("analysis"), ARRAY, POINTS[:0]).shape == (2, 0)
    assert not synthesis(torch.ones(2, 0), ARRAY, POINTS[:0]).any()
