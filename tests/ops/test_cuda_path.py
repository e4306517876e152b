"""The whole CUDA path against the float64 brute force and the CPU: in Triton's interpreter, or on a GPU.

With RISFAST_TEST_DEVICE=cuda these tests run on the first GPU. Without one test_kernels_process.py runs them in a
process of its own, where the functions that serve CUDA tensors serve CPU tensors (RISFAST_TRITON=interpret) and the
kernels are interpreted.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

DEVICE = os.environ.get("RISFAST_TEST_DEVICE", "cpu")
ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("triton", reason="Triton is not installed: its kernels are optional")
if DEVICE == "cpu" and os.environ.get("RISFAST_TRITON") != "interpret":
    reason = "needs RISFAST_TRITON=interpret and TRITON_INTERPRET=1; test_kernels_process.py runs this file with them"
    pytest.skip(reason, allow_module_level=True)

if importlib.util.find_spec("risfast.kernels") is None:
    folder = ROOT / "kernels"
    spec = importlib.util.spec_from_file_location(
        "risfast.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    sys.modules["risfast.kernels"] = importlib.util.module_from_spec(spec)

sys.path.append(str(ROOT))
import risfast.ops.cuda as gpu  # noqa: E402
from bench.gpu_interpreter import patch_once_a_launch  # noqa: E402
from risfast.detect import DetectionOptions, Sources, detect_sources, detect_sources_lowrank  # noqa: E402
from risfast.geometry import PlanarArray, SearchGrid  # noqa: E402
from risfast.ops import (  # noqa: E402
    analysis,
    bartlett_spectrum,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    plan,
    reference,
    register,
    synthesis,
)

# Lanes beyond the end of an array may divide by zero: a GPU does so silently, and nothing of it is stored.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")

if DEVICE == "cpu":
    patch_once_a_launch()

WAVELENGTH = 0.3
GRID = SearchGrid(
    torch.linspace(-1.0, 1.0, 33, dtype=torch.float64),
    torch.linspace(-0.5, 0.45, 10, dtype=torch.float64),
    [0.6, 1.4, 5.0],
)
LOPSIDED = SearchGrid(
    torch.linspace(-0.3, 1.0, 18, dtype=torch.float64), torch.linspace(-0.5, 0.5, 11, dtype=torch.float64), [0.8]
)
FAR = SearchGrid(LOPSIDED.azimuth_rad, LOPSIDED.elevation_rad, [0.8, np.inf])
POINTS = torch.tensor([[0.1, 0.2, 1.0], [-0.5, 0.3, np.inf], [0.7, -0.2, 0.6]], dtype=torch.float64)
CASES = [("spherical", "dense"), ("spherical", "chebyshev"), ("fresnel", "lag"), ("planar", "lag")]
CASES += [("fresnel", "dense"), ("planar", "chebyshev")]
LATTICE = oracles.rectangular(4, 3)
SCATTERED = oracles.volumetric(3, 7, 0.3)


def array_of(positions):
    return PlanarArray(torch.as_tensor(positions), WAVELENGTH)


def steering_of(positions, where, wavefront):
    if isinstance(where, SearchGrid):
        where = oracles.box(where.azimuth_rad, where.elevation_rad, where.range_m)
    return oracles.steering(positions, WAVELENGTH, np.asarray(where), wavefront)


def covariances(positions, wavefront, scenes=2, noise=0.02):
    """Two sources on grid points and noise, a scene each; complex128 numpy."""
    volume = steering_of(positions, GRID, wavefront).reshape(-1, len(positions))
    rng = np.random.default_rng(11)
    picks = rng.integers(0, len(volume), (scenes, 2))
    return np.stack([oracles.source_covariance(volume[p], [1.0, 0.5], noise) for p in picks])


def on(matrix, dtype=torch.complex64):
    return torch.as_tensor(matrix).to(DEVICE, dtype)


def assert_spectrum(found, expected, bound_db):
    """Within the bound at every point; where two planes tie within it, either may win."""
    best, _ = oracles.maximum_over_planes(expected)
    power, plane = found.power.cpu().numpy(), found.plane.cpu().numpy()
    assert oracles.worst_db(power, best) < bound_db
    chosen = np.take_along_axis(expected, plane[..., None].astype(int), -1)[..., 0]
    assert oracles.worst_db(chosen, best) < 2 * bound_db


@pytest.mark.parametrize(
    ("wavefront", "method", "grid"),
    [pytest.param(*case, GRID, id=f"{case[0]}-{case[1]}-mirrored") for case in CASES]
    + [pytest.param(*case, LOPSIDED, id=f"{case[0]}-{case[1]}-lopsided") for case in CASES[:3]]
    + [pytest.param(*case, FAR, id=f"{case[0]}-{case[1]}-far") for case in CASES],
)
def test_capon_matches_brute_force(wavefront, method, grid):
    R = covariances(LATTICE, wavefront)
    expected = oracles.capon(R, steering_of(LATTICE, grid, wavefront))
    options = {"wavefront": wavefront, "method": method}
    assert_spectrum(mvdr_spectrum(on(R), array_of(LATTICE), grid, **options), expected, 5e-3)
    volume = mvdr_spectrum(on(R), array_of(LATTICE), grid, reduce="none", **options)
    assert oracles.worst_db(volume.cpu().numpy(), expected) < 5e-3


@pytest.mark.parametrize("loading", [1e-1, 1e-3, 1e-5])
def test_the_lag_method_takes_float64_where_a_small_loading_needs_it(loading):
    R = covariances(LATTICE, "fresnel", noise=1e-6)
    expected = oracles.capon(on(R).cpu().numpy(), steering_of(LATTICE, GRID, "fresnel"), loading)
    found = mvdr_spectrum(on(R), array_of(LATTICE), GRID, loading=loading, wavefront="fresnel", method="lag")
    assert found.power.dtype == torch.float32
    assert_spectrum(found, expected, 1e-2)


@pytest.mark.parametrize(("side", "loading", "scenes", "bound_db"), [(6, 7.2e-3, 2, 1e-2), (12, 1e-2, 1, 1e-4)])
def test_the_lag_method_takes_float64_where_a_large_array_needs_it(side, loading, scenes, bound_db):
    # Sources on grid points, where the form is smallest and the sum that makes it cancels most.
    positions = oracles.rectangular(side, side)
    grid = SearchGrid(torch.linspace(-0.9, 0.9, 5, dtype=torch.float64), [-0.2, 0.2], [2.0])
    A = steering_of(positions, grid, "fresnel")
    rng = np.random.default_rng(14)
    volume = A.reshape(-1, side * side)
    picks = np.stack([rng.permutation(len(volume))[:2] for _ in range(scenes)])
    R = on(np.stack([oracles.source_covariance(volume[p], [1.0, 0.5], 1e-3) for p in picks]))
    found = mvdr_spectrum(R, array_of(positions), grid, loading=loading, wavefront="fresnel", method="lag")
    assert_spectrum(found, oracles.capon(R.cpu().numpy(), A, loading), bound_db)


@pytest.mark.parametrize(
    ("wavefront", "method", "columns"),
    [(*case, 3) for case in CASES] + [(*case, columns) for case in CASES[:3] for columns in (1, 12)],
)
def test_low_rank_capon_matches_brute_force(wavefront, method, columns):
    rng = np.random.default_rng(columns)
    F = oracles.complex_normal(rng, 2, 12, columns)
    expected = oracles.capon_lowrank(on(F).cpu().numpy(), steering_of(LATTICE, GRID, wavefront))
    options = {"wavefront": wavefront, "method": method}
    assert_spectrum(mvdr_spectrum_lowrank(on(F), array_of(LATTICE), GRID, **options), expected, 1e-2)
    volume = mvdr_spectrum_lowrank(on(F), array_of(LATTICE), GRID, reduce="none", **options)
    assert oracles.worst_db(volume.cpu().numpy(), expected) < 1e-2


@pytest.mark.parametrize("method", ["dense", "chebyshev"])
def test_a_source_on_the_grid_keeps_its_low_rank_peak(method):
    grid_steering = steering_of(LATTICE, GRID, "spherical").reshape(-1, 12)
    F = on(grid_steering[[200, 700]].T[None] * np.array([1.0, 0.3]))
    expected = oracles.capon_lowrank(F.cpu().numpy(), steering_of(LATTICE, GRID, "spherical"))
    assert_spectrum(mvdr_spectrum_lowrank(F, array_of(LATTICE), GRID, method=method), expected, 1e-2)


@pytest.mark.parametrize(("wavefront", "method"), CASES)
def test_bartlett_and_music_match_brute_force(wavefront, method):
    R = covariances(LATTICE, wavefront, noise=0.1)
    A = steering_of(LATTICE, GRID, wavefront)
    options = {"wavefront": wavefront, "method": method}
    assert_spectrum(bartlett_spectrum(on(R), array_of(LATTICE), GRID, **options), oracles.bartlett(R, A), 1e-3)
    # The null has no floor: its depth, not its height in dB, is what can be compared.
    power = music_spectrum(on(R), array_of(LATTICE), GRID, n_sources=2, reduce="none", **options)
    null = 1 / power.cpu().double().numpy()
    np.testing.assert_allclose(null, oracles.music_null(R, A, 2), atol=5e-6)


@pytest.mark.parametrize(("wavefront", "method"), CASES)
@pytest.mark.parametrize("kind", ["hermitian", "factor"])
def test_analysis_matches_brute_force(wavefront, method, kind):
    rng = np.random.default_rng(5)
    matrix = oracles.hermitian(rng, 2, 12) if kind == "hermitian" else oracles.complex_normal(rng, 2, 12, 5)
    A = steering_of(LATTICE, GRID, wavefront)
    expected = (oracles.analysis if kind == "hermitian" else oracles.analysis_factored)(matrix, A)
    options = {"wavefront": wavefront, "method": method, "factored": kind == "factor"}
    actual = analysis(on(matrix), array_of(LATTICE), GRID, **options).cpu().numpy()
    np.testing.assert_allclose(actual, expected, atol=2e-6 * np.abs(expected).max(), rtol=0)


def test_any_array_and_lists_of_points():
    rng = np.random.default_rng(6)
    Q, W = oracles.hermitian(rng, 2, 7), oracles.complex_normal(rng, 2, 7, 3)
    A = steering_of(SCATTERED, POINTS, "spherical")
    array = array_of(SCATTERED)
    np.testing.assert_allclose(analysis(on(Q), array, POINTS).cpu(), oracles.analysis(Q, A), atol=1e-4)
    np.testing.assert_allclose(analysis(on(W), array, POINTS).cpu(), oracles.analysis_factored(W, A), rtol=1e-5)
    p = rng.standard_normal((2, 3))
    actual = synthesis(on(p, torch.float32), array, POINTS).cpu().numpy()
    np.testing.assert_allclose(actual, oracles.synthesis(p, A), atol=1e-5)
    R = covariances(SCATTERED, "spherical")
    expected = oracles.capon(R, steering_of(SCATTERED, GRID, "spherical"))
    assert_spectrum(mvdr_spectrum(on(R), array, GRID), expected, 5e-3)


@pytest.mark.parametrize(("wavefront", "method"), CASES)
def test_synthesis_matches_brute_force_and_is_the_adjoint(wavefront, method):
    rng = np.random.default_rng(7)
    p = rng.standard_normal((2, *GRID.shape))
    options = {"wavefront": wavefront, "method": method}
    actual = synthesis(on(p, torch.float32), array_of(LATTICE), GRID, **options)
    expected = oracles.synthesis(p, steering_of(LATTICE, GRID, wavefront))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual.cpu().numpy(), expected, atol=1e-5 * scale, rtol=0)
    assert torch.equal(actual, actual.mH)
    Q = oracles.hermitian(rng, 2, 12)
    q = analysis(on(Q), array_of(LATTICE), GRID, factored=False, **options).double().cpu()
    left = float((q * torch.as_tensor(p)).sum())
    right = float((torch.as_tensor(Q).conj() * actual.cpu()).sum().real)
    assert abs(left - right) <= 1e-5 * np.abs(Q).sum() * scale / 12


@pytest.mark.parametrize("reduce", ["max", "none"])
@pytest.mark.parametrize(("wavefront", "method"), CASES[:3])
@pytest.mark.parametrize("operator", ["mvdr_spectrum", "mvdr_spectrum_lowrank"])
def test_gradients_match_plain_torch(operator, wavefront, method, reduce):
    array, lowrank = array_of(LATTICE), operator == "mvdr_spectrum_lowrank"
    rng = np.random.default_rng(8)
    given = oracles.complex_normal(rng, 2, 12, 3) if lowrank else covariances(LATTICE, wavefront)
    matrix = on(given).requires_grad_()
    function = mvdr_spectrum_lowrank if lowrank else mvdr_spectrum
    found = function(matrix, array, GRID, wavefront=wavefront, method=method, reduce=reduce)
    power, plane = (found, None) if reduce == "none" else found
    weight = torch.as_tensor(rng.standard_normal(tuple(power.shape)))
    (power * weight.float().to(DEVICE)).sum().backward()
    # The same by automatic differentiation of the formula, dense and in float64.
    double = torch.as_tensor(given).to(torch.complex128).requires_grad_()
    a = reference.steering(array, GRID.points(), wavefront)
    volume = (reference.capon_lowrank if lowrank else reference.capon)(double, a)
    chosen = volume if plane is None else volume.gather(-1, plane.cpu().long()[..., None])[..., 0]
    (chosen * weight).sum().backward()
    expected = double.grad
    scale = float(expected.abs().max())
    np.testing.assert_allclose(matrix.grad.cpu().numpy(), expected.numpy(), atol=2e-4 * scale, rtol=0)


def test_second_derivatives_of_analysis():
    W = on(oracles.complex_normal(np.random.default_rng(9), 1, 12, 2)).requires_grad_()
    weight = torch.linspace(0.5, 1.5, GRID.size, device=DEVICE).reshape(1, *GRID.shape)
    options = {"wavefront": "fresnel", "method": "lag", "factored": True}
    value = (analysis(W, array_of(LATTICE), GRID, **options) * weight).sum()
    (first,) = torch.autograd.grad(value, W, create_graph=True)
    (second,) = torch.autograd.grad(first.abs().square().sum(), W)
    # The form is quadratic in W: its gradient is 2 S W, and that of ||2 S W||^2 is 8 S^2 W.
    S = reference.synthesis(weight.cpu(), reference.steering(array_of(LATTICE), GRID.points(), "fresnel"))[0]
    double = W.detach().cpu().to(torch.complex128)
    for actual, expected in ((first, 2 * S @ double), (second, 8 * S @ S @ double)):
        scale = float(expected.abs().max())
        np.testing.assert_allclose(actual.detach().cpu(), expected, atol=1e-5 * scale, rtol=0)


# --- Detection ----------------------------------------------------------------------------------------------------

DETECTION_GRID = SearchGrid(
    torch.linspace(-1.0, 1.0, 41, dtype=torch.float64),
    torch.linspace(-0.5, 0.5, 21, dtype=torch.float64),
    [0.6, 1.0, 2.0, 5.0],
)
DETECTION_ARRAY = PlanarArray.rectangular(6, 5)
OPTIONS = {"candidates": 6, "refine_points": (9, 9, 9), "separation_rad": 0.1}


def detection_matrix(wavefront, columns):
    sources = np.array([[0.4, 0.1, 1.4], [-0.5, -0.2, 0.8]])
    steering = oracles.steering(np.asarray(DETECTION_ARRAY.positions_m), 0.3, sources, wavefront)
    powers = np.array([[1.0, 0.6], [0.4, 1.0]])
    F = np.swapaxes(steering, 0, 1)[None] * np.sqrt(powers)[:, None]
    return F if columns else F @ F.conj().swapaxes(1, 2) + 0.01 * np.eye(30)


CPU_DETECTION = """
import sys, torch
from risfast.detect import DetectionOptions, detect_sources, detect_sources_lowrank
from risfast.geometry import PlanarArray, SearchGrid
requests, axes, options = torch.load(sys.argv[1])
answers = {}
for key, matrix in requests.items():
    run = detect_sources_lowrank if key[1] else detect_sources
    found = run(matrix, PlanarArray.rectangular(6, 5), SearchGrid(*axes), wavefront=key[0],
                options=DetectionOptions(**options))
    answers[key] = [(s.position, s.power, s.confidence) for s in found]
torch.save(answers, sys.argv[2])
"""
DETECTIONS = [(wavefront, lowrank) for wavefront in ("spherical", "fresnel") for lowrank in (False, True)]


@pytest.fixture(scope="module")
def detected_on_the_cpu(tmp_path_factory):
    """What the CPU finds, in a process where the CPU serves itself: position, power, confidence of each scene."""
    folder = tmp_path_factory.mktemp("cpu")
    axes = (DETECTION_GRID.azimuth_rad, DETECTION_GRID.elevation_rad, DETECTION_GRID.range_m)
    requests = {key: on(detection_matrix(*key)).cpu() for key in DETECTIONS}
    torch.save((requests, axes, OPTIONS), folder / "in.pt")
    environment = {k: v for k, v in os.environ.items() if k not in ("RISFAST_TRITON", "TRITON_INTERPRET")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", CPU_DETECTION, str(folder / "in.pt"), str(folder / "out.pt")]
    subprocess.run(command, env=environment, check=True)
    return torch.load(folder / "out.pt")


@pytest.mark.parametrize(("wavefront", "lowrank"), DETECTIONS)
def test_detection_finds_what_the_cpu_finds(detected_on_the_cpu, wavefront, lowrank):
    matrix = on(detection_matrix(wavefront, lowrank))
    run = detect_sources_lowrank if lowrank else detect_sources
    found = run(matrix, DETECTION_ARRAY, DETECTION_GRID, wavefront=wavefront, options=DetectionOptions(**OPTIONS))
    expected = detected_on_the_cpu[wavefront, lowrank]
    assert [len(s) for s in found] == [len(position) for position, _, _ in expected]
    assert all(isinstance(s, Sources) and len(s) >= 2 for s in found)
    for sources, (position, power, confidence) in zip(found, expected, strict=True):
        np.testing.assert_allclose(sources.position.cpu(), position, atol=2e-6, rtol=2e-6)
        np.testing.assert_allclose(sources.power.cpu(), power, rtol=2e-4)
        np.testing.assert_allclose(sources.confidence.cpu(), confidence, atol=2e-4)


# --- What has no kernel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wavefront", "method"), CASES)
def test_complex128_is_exact_to_1e_6_db_by_every_method(wavefront, method):
    array, A = array_of(LATTICE), steering_of(LATTICE, GRID, wavefront)
    R = covariances(LATTICE, wavefront)
    F = oracles.complex_normal(np.random.default_rng(15), 2, 12, 3)
    options = {"wavefront": wavefront, "method": method}
    found = mvdr_spectrum(on(R, torch.complex128), array, GRID, **options)
    assert found.power.dtype == torch.float64
    assert found.power.stride()[1:] == (1, GRID.shape[0])  # azimuth is stored fastest, whatever computes
    assert_spectrum(found, oracles.capon(R, A), 1e-6)
    volume = mvdr_spectrum_lowrank(on(F, torch.complex128), array, GRID, reduce="none", **options)
    assert volume.stride()[1:3] == (1, GRID.shape[0])
    assert oracles.worst_db(volume.cpu().numpy(), oracles.capon_lowrank(F, A)) < 1e-6
    p = np.random.default_rng(16).standard_normal((2, *GRID.shape))
    actual = synthesis(on(p, torch.float64), array, GRID, **options).cpu().numpy()
    np.testing.assert_allclose(actual, oracles.synthesis(p, A), atol=1e-11 * np.abs(p).sum())


def test_more_columns_than_are_shipped_are_computed_in_plain_torch_or_planned_around():
    positions = oracles.rectangular(65, 1)
    R = on(np.eye(65)[None] + 0.1 * np.ones((1, 65, 65)))
    small = SearchGrid([0.0, 0.1], [0.0], [2.0])
    for method, columns in (("lag", 65), ("lag", 60), ("auto", 65)):
        some = R[:, :columns, :columns]
        expected = oracles.capon(some.cpu().numpy(), steering_of(positions[:columns], small, "fresnel"))
        found = mvdr_spectrum(some, array_of(positions[:columns]), small, wavefront="fresnel", method=method)
        assert_spectrum(found, expected, 5e-3)


@pytest.mark.parametrize(("wavefront", "method"), [("spherical", "dense"), ("fresnel", "lag")])
def test_more_elements_than_the_inverse_takes_are_planned_around(wavefront, method):
    positions = oracles.rectangular(20, 13, 0.1)
    assert len(positions) > gpu.kernel_module("inverse").LARGEST
    small = SearchGrid([-0.4, 0.0, 0.4], [0.0, 0.2], [2.0])
    A = steering_of(positions, small, wavefront)
    R = oracles.source_covariance(A.reshape(-1, 260)[[1, 4]], [1.0, 0.5], 0.02)[None]
    found = mvdr_spectrum(on(R), array_of(positions), small, wavefront=wavefront, method=method)
    assert_spectrum(found, oracles.capon(R, A), 5e-3)
    inverse = torch.ops.risfast.loaded_inverse(on(R, torch.complex128), torch.tensor(1e-2, dtype=torch.float64))
    np.testing.assert_allclose(inverse.cpu(), reference.loaded_inverse(torch.as_tensor(R)), atol=1e-9)


def test_more_columns_than_the_residual_takes_are_planned_around():
    positions = oracles.rectangular(6, 6)
    most = gpu.kernel_module("lowrank").MOST_COLUMNS
    small = SearchGrid([-0.4, 0.1, 0.5], [0.0, 0.2], [0.7, 2.0])
    A = steering_of(positions, small, "spherical")
    F = on(oracles.complex_normal(np.random.default_rng(12), 1, 36, most + 1))
    found = mvdr_spectrum_lowrank(F, array_of(positions), small, method="dense")
    assert_spectrum(found, oracles.capon_lowrank(F.cpu().numpy(), A), 1e-2)
    # No source stands on the grid, so that the null has a depth everywhere.
    R = oracles.wishart(np.random.default_rng(13), 36, 72)[None]
    power = music_spectrum(on(R), array_of(positions), small, n_sources=most + 1, reduce="none", method="dense")
    np.testing.assert_allclose(1 / power.cpu().double().numpy(), oracles.music_null(R, A, most + 1), atol=5e-6)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of"):
        mvdr_spectrum(on(covariances(LATTICE, "spherical")), array_of(LATTICE), GRID, precision="bf16")


def test_every_precision_computes_the_same_map_within_its_error():
    R = covariances(LATTICE, "spherical")
    expected = oracles.capon(R, steering_of(LATTICE, GRID, "spherical"))
    for precision, bound_db in (("ieee", 5e-3), ("tf32x3", 5e-3), ("tf32", 1.0)):
        found = mvdr_spectrum(on(R), array_of(LATTICE), GRID, method="dense", precision=precision)
        assert_spectrum(found, expected, bound_db)


@pytest.mark.parametrize(("wavefront", "method"), CASES[:3])
def test_a_scene_without_an_answer_is_nan_and_leaves_the_others_alone(monkeypatch, wavefront, method):
    for module in (gpu, register):
        monkeypatch.setattr(module, "checks_values", lambda device: False)
    good = covariances(LATTICE, wavefront)
    broken = np.concatenate([good, -good[:1], np.full_like(good[:1], np.nan), np.zeros_like(good[:1])])
    options = {"wavefront": wavefront, "method": method}
    expected = mvdr_spectrum(on(good), array_of(LATTICE), GRID, **options)
    found = mvdr_spectrum(on(broken), array_of(LATTICE), GRID, **options)
    np.testing.assert_allclose(found.power[:2].cpu(), expected.power.cpu(), rtol=1e-6)
    assert bool(found.power[2:].isnan().all())


def test_the_plan_of_the_cpu_names_the_method():
    assert plan(array_of(LATTICE), GRID, wavefront="fresnel").method == "lag"
