"""The kernels of local refinement against the float64 brute force, and against the CPU operators."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from test_kernels_forms import WAVENUMBER, brute_form, geometry_of, inverse_range, large_tiles, on  # noqa: F401
from test_kernels_interpreter import DEVICE, kernel_module, poisoned  # noqa: F401 - poisoned: a fixture
from test_refinement import ARRAYS, FIELD_HIGH, FIELD_LOW, WAVELENGTH, brute_power, fine_grid, problem, random_positions
from torch.utils._python_dispatch import TorchDispatchMode

from risfast.errors import ShapeError
from risfast.ops.refinement import walk_spacing
from risfast.ops.register import refine_op, walk_op

kernels = kernel_module("refine")

# A GPU turns NaN and overflow into their IEEE results silently.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")

LOADING = 1e-2


def boxes_of(low, high):
    """Corners in (azimuth, elevation, 1/range) from corners in (azimuth, elevation, range)."""
    low, high = inverse_range(low), inverse_range(high)
    return np.minimum(low, high), np.maximum(low, high)


def denominators(matrix, factored):
    """Matrices of the form that the Capon power divides by, and the numerators [B, 1]; by the formulas."""
    n = matrix.shape[1]
    if not factored:
        return np.linalg.inv(oracles.loaded(matrix, LOADING)), np.full((len(matrix), 1), float(n))
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    delta = LOADING * (s**2).sum(-1, keepdims=True) / n
    return u * (s / np.sqrt(s**2 + delta))[:, None], n * delta


def refined(form, factored, low, high, positions, wavefront="spherical", points=(41, 41, 41)):
    """Points and values of the kernels, on the CPU."""
    low, high = on(low), on(high)
    widest = kernels.widest_half(low, high)
    plan = kernels.RefinePlan.build(torch.as_tensor(positions), WAVENUMBER, wavefront, points, widest, DEVICE)
    return [out.cpu() for out in kernels.refine(on(form), factored, low, high, plan)]


def refined_by_the_cpu(form, factored, low, high, positions, wavefront="spherical", points=(41, 41, 41)):
    given = [torch.as_tensor(x) for x in (form, low, high, positions)]
    return refine_op(given[0], factored, given[1], given[2], list(points), given[3], WAVENUMBER, wavefront)


# The fine grid


@pytest.mark.parametrize(
    ("nodes", "points"),
    [((1, 1, 1), (1, 1, 1)), ((7, 7, 7), (11, 41, 41)), ((3, 17, 9), (9, 33, 5)), ((2, 11, 37), (3, 17, 70))],
)
def test_the_smallest_point_of_the_fine_grid_is_found(nodes, points):
    rng = np.random.default_rng(sum(nodes))
    values = rng.normal(size=(3, *nodes)).astype(np.float32)
    values[2] = abs(values[2]) + 1
    matrices = [rng.uniform(0, 1, (p, n)).astype(np.float32) for p, n in zip(points, nodes, strict=True)]
    q = np.einsum("cijk,ai,ej,rk->caer", values, *(m.astype(float) for m in matrices), optimize=True)
    key = torch.full((3,), kernels._NO_KEY).to(DEVICE)
    configuration = kernels.grid_minimum_configuration(*nodes[1:])
    chunks = -(-points[0] // configuration["AZIMUTHS"])
    given = [on(x) for x in (values, *matrices)]
    kernels.grid_minimum_kernel[(3 * chunks,)](
        *given, key, *nodes, *points, chunks, PRECISION=kernels.dot_precision(), **configuration
    )
    index = (key & 0xFFFFFFFF).cpu().numpy()
    flat = q.reshape(3, -1)
    found = flat[np.arange(3), index]
    np.testing.assert_allclose(found, flat.min(1), rtol=1e-5, atol=1e-5 * np.abs(flat).max())


def test_equal_points_of_the_fine_grid_give_the_first():
    key = torch.full((2,), kernels._NO_KEY).to(DEVICE)
    values = torch.tensor([-3.0, 5.0]).reshape(2, 1, 1, 1).to(DEVICE)
    ones = [torch.ones(n, 1).to(DEVICE) for n in (19, 21, 23)]
    kernels.grid_minimum_kernel[(2 * 3,)](
        values, *ones, key, 1, 1, 1, 19, 21, 23, 3, PRECISION="ieee", **kernels.grid_minimum_configuration(1, 1)
    )
    assert (key & 0xFFFFFFFF).tolist() == [0, 0]


# Refinement


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize(
    ("name", "wavefront"), [("rectangular", "spherical"), ("irregular", "planar"), ("volumetric", "fresnel")]
)
def test_no_point_of_the_fine_grid_is_stronger_than_the_refined_one(name, wavefront, factored):
    matrix, _, *corners = problem(name, wavefront, factored, seed=3)
    points = (41, 41, 41) if (wavefront, factored) == ("spherical", False) else (17, 13, 11)
    form, scale = denominators(matrix, factored)
    position, value = refined(form, factored, *boxes_of(*corners), ARRAYS[name], wavefront, points)
    power = scale / value.numpy()
    for scene in range(len(matrix)):
        there = brute_power(matrix[scene], ARRAYS[name], position[scene].numpy(), wavefront, factored, LOADING)
        np.testing.assert_allclose(power[scene], there, rtol=1e-7)
        grid = fine_grid(corners[0][scene, -1], corners[1][scene, -1], points)
        best = brute_power(matrix[scene], ARRAYS[name], grid, wavefront, factored, LOADING).max()
        assert there[-1] >= best * (1 - 1e-7)


def assert_same_place(position, expected):
    """Within 1e-4 degrees and 0.1 mm."""
    np.testing.assert_allclose(position[..., :2].numpy(), expected[..., :2].numpy(), rtol=0, atol=math.radians(1e-4))
    np.testing.assert_allclose(position[..., 2].numpy(), expected[..., 2].numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize("name", ["rectangular", "volumetric"])
def test_refined_positions_are_those_of_the_cpu(name, factored):
    matrix, _, *corners = problem(name, "spherical", factored, seed=1)
    form, _ = denominators(matrix, factored)
    given = form, factored, *boxes_of(*corners), ARRAYS[name], "spherical", (25, 21, 17)
    position, value = refined(*given)
    expected, expected_value = refined_by_the_cpu(*given)
    assert_same_place(position, expected)
    np.testing.assert_allclose(value.numpy(), expected_value.numpy(), rtol=1e-9)


@pytest.mark.usefixtures("large_tiles")
def test_refined_positions_on_the_reference_surface_are_those_of_the_cpu():
    rng = np.random.default_rng(4)
    positions = oracles.rectangular(12, 12)
    truth = random_positions(rng, 1, 3)
    a = oracles.steering(positions, WAVELENGTH, truth)
    R = oracles.source_covariance(a[0], [1.0, 0.5, 0.2], 1e-2)[None]
    half = walk_spacing(torch.as_tensor(positions), WAVENUMBER).numpy()  # the boxes that a walk leaves behind
    centre = inverse_range(truth) + half * rng.uniform(-0.8, 0.8, truth.shape)
    given = denominators(R, False)[0], False, centre - half, centre + half, positions, "spherical", (21, 21, 21)
    position, _ = refined(*given)
    assert_same_place(position, refined_by_the_cpu(*given)[0])


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("points", [(7, 5, 3), (2, 2, 2), (1, 9, 1), (1, 1, 1)])
def test_points_stay_inside_boxes_that_hold_no_minimum(points):
    rng = np.random.default_rng(11)
    matrix, *_ = problem("irregular", "spherical", False, seed=11)
    centre = inverse_range(random_positions(rng, 2, 5))
    low, high = centre - np.array([0.05, 0.04, 0.02]), centre + np.array([0.03, 0.06, 0.03])
    form, _ = denominators(matrix, False)
    position, value = refined(form, False, low, high, ARRAYS["irregular"], points=points)
    coordinates = inverse_range(position.numpy())
    assert (coordinates >= low - 1e-12).all()
    assert (coordinates <= high + 1e-12).all()
    for scene in range(2):
        there = brute_form(form[scene], False, ARRAYS["irregular"], coordinates[scene])
        np.testing.assert_allclose(value[scene].numpy(), there, rtol=1e-9)
        middle = brute_form(form[scene], False, ARRAYS["irregular"], (low[scene] + high[scene]) / 2)
        assert (there < middle).all()


def test_a_wide_box_takes_many_nodes_and_the_deepest_of_many_valleys():
    positions = oracles.rectangular(1, 12)
    truth = np.array([[[0.0, 0.31, 2.0]], [[0.0, -0.42, 2.0]]])
    a = oracles.steering(positions, WAVELENGTH, truth)
    R = np.stack([oracles.source_covariance(x, [1.0], 0.1) for x in a])
    low, high = np.tile([-0.01, -1.0, 0.49], (2, 1, 1)), np.tile([0.01, 1.0, 0.51], (2, 1, 1))
    plan = kernels.RefinePlan.build(
        torch.as_tensor(positions), WAVENUMBER, "spherical", (1, 81, 1), (0.01, 1.0, 0.01), DEVICE
    )
    assert plan.matrices[1].shape[1] > 32
    position, _ = kernels.refine(on(denominators(R, False)[0]), False, on(low), on(high), plan)
    # The valleys between the side lobes are a sixth of a radian apart; the steps of the grid are 0.025 rad.
    np.testing.assert_allclose(position[..., 1].cpu().numpy(), truth[..., 1], atol=1e-3)


def test_a_box_of_no_size_gives_its_point():
    matrix, truth, _, _ = problem("rectangular", "spherical", False, seed=13)
    form, _ = denominators(matrix, False)
    at = inverse_range(truth)
    position, value = refined(form, False, at, at, ARRAYS["rectangular"], points=(5, 5, 5))
    np.testing.assert_allclose(position.numpy(), truth, rtol=1e-12)
    for scene in range(2):
        there = brute_form(form[scene], False, ARRAYS["rectangular"], at[scene])
        np.testing.assert_allclose(value[scene].numpy(), there, rtol=1e-9)


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
def test_scenes_do_not_depend_on_each_other_nor_on_how_they_are_cut_up(factored, monkeypatch):
    matrix, _, *corners = problem("irregular", "spherical", factored, seed=17, batch=3, sources=1)
    form, _ = denominators(matrix, factored)
    low, high = boxes_of(*corners)
    given = ARRAYS["irregular"], "spherical", (9, 7, 5)
    whole = refined(form, factored, low, high, *given)
    monkeypatch.setattr(kernels, "_NODE_BYTES", 1)
    for ours, theirs in zip(refined(form, factored, low, high, *given), whole, strict=True):
        assert torch.equal(ours, theirs)
    form[1, 2, 0] = np.nan
    position, value = refined(form, factored, low, high, *given)
    assert value[1].isnan().all()
    for scene in (0, 2):
        assert torch.equal(position[scene], whole[0][scene])
        assert torch.equal(value[scene], whole[1][scene])


@pytest.mark.usefixtures("large_tiles")
def test_strided_and_conjugated_input_gives_what_plain_input_gives():
    matrix, _, *corners = problem("rectangular", "spherical", False, seed=19)
    form, _ = denominators(matrix, False)
    low, high = boxes_of(*corners)
    given = ARRAYS["rectangular"], "spherical", (9, 7, 5)
    plain = refined(form, False, low, high, *given)
    plan = kernels.RefinePlan.build(
        torch.as_tensor(given[0]), WAVENUMBER, *given[1:], kernels.widest_half(on(low), on(high)), DEVICE
    )
    wide = torch.zeros(4, 15, 30, dtype=torch.complex128, device=DEVICE)
    wide[::2, :, ::2] = on(form.conj())
    corners = [on(corner.transpose(2, 0, 1)).permute(1, 2, 0) for corner in (low, high)]
    assert not corners[0].is_contiguous()
    strided = kernels.refine(wide[::2, :, ::2].conj(), False, *corners, plan)
    for ours, theirs in zip(strided, plain, strict=True):
        assert torch.equal(ours.cpu(), theirs)


# The walk


def walk_bounds(positions):
    bounds = np.stack([inverse_range(np.array(corner)) for corner in (FIELD_LOW, FIELD_HIGH)])
    low, high = bounds.min(0), bounds.max(0)
    spacing = np.minimum(walk_spacing(torch.as_tensor(positions), WAVENUMBER).numpy(), (high - low) / 8)
    return low, high, spacing.tolist()


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize(
    ("name", "wavefront", "factored"),
    [("rectangular", "spherical", False), ("irregular", "fresnel", True), ("linear", "planar", False)],
)
def test_a_walk_goes_downhill_inside_its_bounds(name, wavefront, factored):
    matrix, *_ = problem(name, wavefront, factored, seed=29)
    form, _ = denominators(matrix, factored)
    start = inverse_range(random_positions(np.random.default_rng(29), 2, 5))
    low, high, spacing = walk_bounds(ARRAYS[name])
    geometry = geometry_of(ARRAYS[name], wavefront)
    ended = kernels.walk(on(form), factored, on(start), on(low), on(high), spacing, geometry).cpu().numpy()
    assert (ended >= low).all()
    assert (ended <= high).all()
    for scene in range(2):
        before = brute_form(form[scene], factored, ARRAYS[name], start[scene], wavefront)
        after = brute_form(form[scene], factored, ARRAYS[name], ended[scene], wavefront)
        largest = len(ARRAYS[name]) if factored else len(ARRAYS[name]) * np.linalg.norm(form[scene], 2)
        assert (after <= before + 1e-5 * largest).all()  # a form in float32 may be wrong by that
        assert (after < before - 1e-3 * largest).any()


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize("points", [(11, 11, 11), (1, 1, 1)])
def test_walks_and_refinements_end_where_those_of_the_cpu_do(factored, points):
    positions = oracles.rectangular(8, 8)
    rng = np.random.default_rng(7)
    truth = random_positions(rng, 2, 2)
    a = oracles.steering(positions, WAVELENGTH, truth)
    matrix = a.swapaxes(-1, -2) if factored else np.stack([oracles.source_covariance(x, [1.0, 0.4], 1e-2) for x in a])
    form, _ = denominators(matrix, factored)
    low, high, spacing = walk_bounds(positions)
    start = inverse_range(truth) + np.array(spacing) * rng.uniform(-1.5, 1.5, truth.shape)
    start = np.clip(start, low, high)
    ended = kernels.walk(on(form), factored, on(start), on(low), on(high), spacing, geometry_of(positions)).cpu()
    given = [torch.as_tensor(x) for x in (form, start, low, high, positions)]
    theirs = walk_op(given[0], factored, *given[1:4], spacing, given[4], WAVENUMBER, "spherical")
    np.testing.assert_allclose(ended.numpy(), theirs.numpy(), atol=1e-3 * max(spacing))
    found = []
    for by, at in ((refined, ended), (refined_by_the_cpu, theirs)):
        reach = np.minimum(spacing, np.minimum(at.numpy() - low, high - at.numpy()))
        found.append(by(form, factored, at.numpy() - reach, at.numpy() + reach, positions, points=points)[0])
    assert_same_place(*found)


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize(
    ("wavefront", "factored"), [("spherical", False), ("spherical", True), ("fresnel", False), ("planar", False)]
)
def test_far_sources_are_found_from_the_far_field_and_from_near(wavefront, factored):
    positions = oracles.volumetric(6, 14, 0.35)
    truth = np.array([[[0.31, -0.17, np.inf]], [[0.31, -0.17, 3.0]]])
    a = oracles.steering(positions, WAVELENGTH, truth, wavefront)
    matrix = a.swapaxes(-1, -2) if factored else np.stack([oracles.source_covariance(x, [1.0], 1e-2) for x in a])
    form, _ = denominators(matrix, factored)
    low, high = np.array([-1.2, -0.6, 0.0]), np.array([1.2, 0.6, 2.0])
    spacing = np.minimum(walk_spacing(torch.as_tensor(positions), WAVENUMBER).numpy(), (high - low) / 8)
    start = np.tile(inverse_range(truth) + np.array([0.03, -0.04, 0]), (1, 3, 1))
    start[..., 2] = [0.0, 1e-200, 0.7]
    geometry = geometry_of(positions, wavefront)
    ended = kernels.walk(on(form), factored, on(start), on(low), on(high), spacing.tolist(), geometry).cpu().numpy()
    box = np.maximum(ended - spacing, low), np.minimum(ended + spacing, high)
    position, value = refined(form, factored, *box, positions, wavefront, (11, 11, 11))
    assert value.isfinite().all()
    np.testing.assert_allclose(position[..., :2], np.tile(truth[..., :2], (1, 3, 1)), atol=1e-5)
    if wavefront == "planar":
        assert (position[..., 2] >= 0.5).all()
    else:
        np.testing.assert_allclose(1 / position[..., 2], np.tile(1 / truth[..., 2], (1, 3)), atol=1e-4)
    theirs, their_value = refined_by_the_cpu(form, factored, *box, positions, wavefront, (11, 11, 11))
    np.testing.assert_allclose(value, their_value, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(position[..., :2], theirs[..., :2], atol=1e-5)


class NoWaiting(TorchDispatchMode):
    """Refuses what a graph cannot capture: values that go to the host, and shapes that depend on values."""

    refused = ("_local_scalar_dense", "nonzero", "masked_select", "linalg", "equal", "unique", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        if any(name.startswith(word) for word in self.refused):
            raise AssertionError(f"{name} makes the host wait")
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("large_tiles")
def test_nothing_waits_for_the_host():
    with NoWaiting(), pytest.raises(AssertionError, match="makes the host wait"):
        bool(torch.ones(1).any())
    matrix, truth, *corners = problem("irregular", "spherical", False, seed=2)
    form, low, high, start = (
        on(x) for x in (denominators(matrix, False)[0], *boxes_of(*corners), inverse_range(truth))
    )
    positions = ARRAYS["irregular"]
    plan = kernels.RefinePlan.build(
        torch.as_tensor(positions), WAVENUMBER, "spherical", (5, 5, 5), kernels.widest_half(low, high), DEVICE
    )
    bounds = walk_bounds(positions)
    given = form, False, start, on(bounds[0]), on(bounds[1]), bounds[2], plan.geometry
    with NoWaiting():
        found = kernels.walk(*given), *kernels.refine(form, False, low, high, plan)
    assert all(out.isfinite().all() for out in found)


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize(("batch", "candidates"), [(0, 3), (2, 0), (0, 0)])
def test_no_scenes_or_no_candidates_give_empty_results(batch, candidates, factored):
    form = np.zeros((batch, 7, 3 if factored else 7), complex)
    boxes = np.ones((batch, candidates, 3))
    position, value = refined(form, factored, boxes, boxes, ARRAYS["linear"])
    assert position.shape == (batch, candidates, 3)
    assert value.shape == (batch, candidates)
    low, high, spacing = walk_bounds(ARRAYS["linear"])
    geometry = geometry_of(ARRAYS["linear"])
    assert kernels.walk(on(form), factored, on(boxes), on(low), on(high), spacing, geometry).shape == boxes.shape


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"matrix": torch.eye(5, dtype=torch.complex64)[None]}, ShapeError, r"matrix must have shape \(B, 7, 7\)"),
        ({"matrix": torch.eye(7)[None]}, TypeError, "matrix must be complex"),
        ({"low": torch.ones(1, 2, 3)}, TypeError, "low must be float64"),
        ({"low": torch.ones(2, 2, 3, dtype=torch.float64)}, ShapeError, r"low must have shape \(1, C, 3\)"),
        ({"high": torch.ones(1, 3, 3, dtype=torch.float64)}, ShapeError, "the corners must have one shape"),
    ],
)
def test_bad_operands_are_named(changes, error, message):
    positions = torch.as_tensor(ARRAYS["linear"])
    plan = kernels.RefinePlan.build(positions, WAVENUMBER, "planar", (3, 3, 3), (0.1, 0.1, 0.1), DEVICE)
    boxes = torch.ones(1, 2, 3, dtype=torch.float64)
    given = {"matrix": torch.eye(7, dtype=torch.complex64)[None], "low": boxes, "high": boxes} | changes
    with pytest.raises(error, match=message):
        kernels.refine(factored=False, plan=plan, **{name: tensor.to(DEVICE) for name, tensor in given.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": (3, 0, 3)}, "points must be three counts"),
        ({"points": (1 << 11, 1 << 10, 1 << 10)}, "fewer than"),
        ({"widest": (0.1, math.nan, 0.1)}, "widest must be three finite half sizes"),
        ({"wavefront": "plane"}, "wavefront must be one of"),
    ],
)
def test_bad_plans_are_named(changes, message):
    given = {"wavefront": "planar", "points": (3, 3, 3), "widest": (0.1, 0.1, 0.1)} | changes
    with pytest.raises(ValueError, match=message):
        kernels.RefinePlan.build(
            torch.as_tensor(ARRAYS["linear"]), WAVENUMBER, given["wavefront"], given["points"], given["widest"], DEVICE
        )
