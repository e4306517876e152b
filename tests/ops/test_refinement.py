"""Refinement of peaks: the walk, the fine grid and the steps below it, against brute force in float64."""

import math

import numpy as np
import oracles
import pytest
import torch

import risfast.ops.landscape
from risfast.errors import ShapeError
from risfast.geometry import PlanarArray
from risfast.ops import nms_3d
from risfast.ops.descent import newton_descend
from risfast.ops.landscape import Landscape
from risfast.ops.refinement import refine_peaks, walk_peaks

WAVELENGTH = 0.3
ARRAYS = {
    "rectangular": oracles.rectangular(3, 5),
    "irregular": oracles.irregular_plane(1, 13, 0.4),
    "linear": oracles.rectangular(7, 1),
    "volumetric": oracles.volumetric(2, 11, 0.35),
    "single": oracles.rectangular(1, 1),
}
FIELD_LOW, FIELD_HIGH = (-math.radians(60), -math.radians(30), 0.5), (math.radians(60), math.radians(30), 10.0)


def random_positions(rng, *shape):
    """Points of the reference field of view, uniform in angle and in 1/range."""
    azimuth, elevation = rng.uniform(-1.0, 1.0, shape), rng.uniform(-0.5, 0.5, shape)
    return np.stack([azimuth, elevation, 1 / rng.uniform(0.15, 1.6, shape)], -1)


def random_boxes(rng, around):
    """Corners of boxes that hold ``around`` [..., 3] anywhere but near their walls."""
    share = rng.uniform(0.2, 0.8, around.shape)
    width = np.array([0.12, 0.1, 0.12])
    centre = np.concatenate([around[..., :2], 1 / around[..., 2:]], -1)
    near, far = centre - share * width, centre + (1 - share) * width
    far[..., 2], near[..., 2] = 1 / near[..., 2], 1 / far[..., 2]
    return near, far


def fine_grid(low, high, points=(41, 41, 41)):
    """The grid of one box, uniform in azimuth, elevation and 1/range; an axis of one point has it at the centre."""
    ends = [(low[0], high[0]), (low[1], high[1]), (1 / high[2], 1 / low[2])]
    axes = [np.linspace(a, b, n) if n > 1 else np.array([(a + b) / 2]) for (a, b), n in zip(ends, points, strict=True)]
    axes[2] = 1 / axes[2]
    return oracles.box(*axes)


def problem(name, wavefront, factored, seed, batch=2, sources=2, noise=0.05):
    """Covariances (or factors) of scenes, their sources, and a box around each: numpy arrays."""
    rng = np.random.default_rng(seed)
    positions = ARRAYS[name]
    truth = random_positions(rng, batch, sources)
    steering_matrix = oracles.steering(positions, WAVELENGTH, truth, wavefront)  # [B, K, N]
    power = rng.uniform(0.5, 2.0, (batch, sources))
    if factored:
        matrix = (np.sqrt(power)[..., None] * steering_matrix).swapaxes(-1, -2)
    else:
        scenes = zip(steering_matrix, power, strict=True)
        matrix = np.stack([oracles.source_covariance(a, p, noise) for a, p in scenes])
    return matrix, truth, *random_boxes(rng, truth)


def brute_power(matrix, positions, points, wavefront, factored, loading):
    """Capon power of one scene at points [..., 3]."""
    a = oracles.steering(positions, WAVELENGTH, points, wavefront)
    capon = oracles.capon_lowrank if factored else oracles.capon
    return capon(matrix[None], a, loading)[0]


def as_tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


def refine(name, matrix, low, high, **options):
    array = PlanarArray(ARRAYS[name], WAVELENGTH)
    return refine_peaks(torch.as_tensor(matrix), array, *as_tensors(low, high), **options)


# The default fine grid where it matters most; smaller and odder ones keep the brute force short elsewhere.
FINE_POINTS = {"spherical": (41, 41, 41), "fresnel": (17, 23, 11), "planar": (21, 16, 5)}


def assert_beats_the_fine_grid(found, matrix, name, boxes, points, wavefront, factored, loading, tolerance):
    """The reported power is the power there, and no grid point of the last box of each scene has more."""
    low, high = boxes
    for scene in range(len(matrix)):
        position = found.position[scene].numpy()
        there = brute_power(matrix[scene], ARRAYS[name], position, wavefront, factored, loading)
        np.testing.assert_allclose(found.power[scene].numpy(), there, rtol=tolerance)
        grid = fine_grid(low[scene, -1], high[scene, -1], points)
        best = brute_power(matrix[scene], ARRAYS[name], grid, wavefront, factored, loading).max()
        assert there[-1] >= best * (1 - tolerance)


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_no_point_of_the_fine_grid_is_stronger_than_the_refined_one(name, wavefront, factored):
    matrix, _, *boxes = problem(name, wavefront, factored, seed=3)
    points = FINE_POINTS[wavefront]
    found = refine(name, matrix, *boxes, factored=factored, wavefront=wavefront, points=points)
    # Along the flat ridges of a linear array, the fine grid's float32 may take a neighbour of the best point.
    tolerance = 1e-5 if name == "linear" else 1e-7
    assert_beats_the_fine_grid(found, matrix, name, boxes, points, wavefront, factored, 1e-2, tolerance)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
def test_refinement_holds_for_both_dtypes_at_small_loading(factored, dtype):
    matrix, _, *boxes = problem("rectangular", "spherical", factored, seed=5, noise=1e-5)
    tensor = torch.from_numpy(matrix).to(dtype)
    found = refine("rectangular", tensor, *boxes, factored=factored, loading=1e-4)
    assert found.position.dtype == found.power.dtype == torch.float64
    given = tensor.to(torch.complex128).numpy()
    # A float32 factorisation of the matrix costs its rounding over the loading.
    tolerance = 1e-3 if dtype == torch.complex64 else 1e-7
    assert_beats_the_fine_grid(found, given, "rectangular", boxes, (41, 41, 41), "spherical", factored, 1e-4, tolerance)


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize("name", ["rectangular", "volumetric"])
def test_the_refined_point_of_a_single_source_is_the_source(name, factored):
    matrix, truth, low, high = problem(name, "spherical", factored, seed=7, sources=1)
    found = refine(name, matrix, low, high, factored=factored)
    # One source's Capon peak is exactly at the source, for any loading.
    np.testing.assert_allclose(found.position[..., :2].numpy(), truth[..., :2], atol=1e-6)
    np.testing.assert_allclose(1 / found.position[..., 2].numpy(), 1 / truth[..., 2], atol=1e-5)


@pytest.mark.parametrize("points", [(41, 41, 41), (7, 5, 3), (2, 2, 2), (1, 9, 1), (1, 1, 1)])
@pytest.mark.parametrize("name", ARRAYS)
def test_refined_points_stay_inside_their_boxes(name, points):
    rng = np.random.default_rng(11)
    matrix, _, _, _ = problem(name, "spherical", False, seed=11)
    # Boxes anywhere: the strongest point is on a wall of most of them.
    low, high = random_boxes(rng, random_positions(rng, 2, 6))
    position = refine(name, matrix, low, high, points=points).position.numpy()
    assert (position >= low * (1 - np.sign(low) * 1e-12)).all()
    assert (position <= high * (1 + np.sign(high) * 1e-12)).all()


def test_a_box_of_no_size_gives_its_point():
    matrix, truth, _, _ = problem("rectangular", "spherical", False, seed=13)
    found = refine("rectangular", matrix, truth, truth)
    np.testing.assert_allclose(found.position.numpy(), truth, rtol=1e-12)
    for scene in range(2):
        there = brute_power(matrix[scene], ARRAYS["rectangular"], truth[scene], "spherical", False, 1e-2)
        np.testing.assert_allclose(found.power[scene].numpy(), there, rtol=1e-9)


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
def test_a_batch_gives_what_its_scenes_give(factored):
    matrix, truth, low, high = problem("irregular", "spherical", factored, seed=17, batch=3)
    array = PlanarArray(ARRAYS["irregular"], WAVELENGTH)
    batch = refine("irregular", matrix, low, high, factored=factored)
    bounds = torch.tensor(FIELD_LOW), torch.tensor(FIELD_HIGH)
    walked = walk_peaks(torch.from_numpy(matrix), array, torch.from_numpy(truth), *bounds, factored=factored)
    for scene in range(3):
        one = slice(scene, scene + 1)
        alone = refine("irregular", matrix[one], low[one], high[one], factored=factored)
        np.testing.assert_allclose(alone.position.numpy(), batch.position[one].numpy(), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(alone.power.numpy(), batch.power[one].numpy(), rtol=1e-8)
        matrix_alone, truth_alone = as_tensors(matrix[one], truth[one])
        for a, b in zip(walk_peaks(matrix_alone, array, truth_alone, *bounds, factored=factored), walked, strict=True):
            np.testing.assert_allclose(a, b[one], rtol=1e-4, atol=1e-5)  # float32


def test_strided_input_gives_what_contiguous_input_gives():
    matrix, _, low, high = problem("rectangular", "spherical", False, seed=19)
    array = PlanarArray(ARRAYS["rectangular"], WAVELENGTH)
    wide = torch.zeros(4, 15, 30, dtype=torch.complex128)
    wide[::2, :, ::2] = torch.from_numpy(matrix)
    corners = [torch.from_numpy(np.asfortranarray(c)) for c in (low, high)]
    assert not wide[::2, :, ::2].is_contiguous()
    strided = refine_peaks(wide[::2, :, ::2], array, *corners)
    plain = refine("rectangular", matrix, low, high)
    assert torch.equal(strided.position, plain.position)
    assert torch.equal(strided.power, plain.power)


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize(("batch", "candidates"), [(0, 3), (2, 0), (0, 0)])
def test_no_scenes_or_no_candidates_give_empty_results(batch, candidates, factored):
    array = PlanarArray(ARRAYS["linear"], WAVELENGTH)
    matrix = torch.eye(7, dtype=torch.complex64)[:, : 3 if factored else 7].expand(batch, -1, -1)
    boxes = torch.ones(batch, candidates, 3, dtype=torch.float64)
    found = refine_peaks(matrix, array, boxes, boxes, factored=factored)
    assert found.position.shape == (batch, candidates, 3)
    assert found.power.shape == (batch, candidates)
    bounds = boxes.new_tensor(FIELD_LOW), boxes.new_tensor(FIELD_HIGH)
    for corner in walk_peaks(matrix, array, boxes, *bounds, factored=factored):
        assert corner.shape == (batch, candidates, 3)


def good_call():
    matrix, _, low, high = problem("linear", "spherical", False, seed=23)
    tensors = as_tensors(matrix, low, high)
    return dict(zip(("matrix", "low", "high"), tensors, strict=True), array=PlanarArray(ARRAYS["linear"], WAVELENGTH))


def not_hermitian(call):
    call["matrix"][1, 0, 1] += 1


def not_finite(call):
    call["matrix"][1, 2, 2] = math.nan


BAD = {
    "real matrix": (lambda c: c.update(matrix=c["matrix"].real), TypeError, "R must be complex64 or complex128"),
    "wrong N": (lambda c: c.update(matrix=c["matrix"][:, :5, :5]), ShapeError, "R must have N = 7 rows"),
    "not Hermitian": (not_hermitian, ValueError, r"R must be Hermitian; R\[1\]"),
    "not finite": (not_finite, ValueError, r"R must be finite; R\[1\]"),
    "zero trace": (lambda c: c["matrix"].zero_(), ValueError, "R must have a positive trace"),
    "array": (lambda c: c.update(array=ARRAYS["linear"]), TypeError, "array must be a risfast.geometry.SensorArray"),
    "wavefront": (lambda c: c.update(wavefront="plane"), ValueError, "wavefront must be one of spherical"),
    "loading": (lambda c: c.update(loading=-1.0), ValueError, "loading must be finite"),
    "no loading, factored": (
        lambda c: c.update(matrix=c["matrix"][..., :2], factored=True, loading=0.0),
        ValueError,
        "loading must be finite and > 0",
    ),
    "batch of boxes": (lambda c: c.update(low=c["low"][:1]), ShapeError, "low must have shape .* B = 2"),
    "candidates": (lambda c: c.update(high=c["high"][:, :1]), ShapeError, "low and high must have the same shape"),
    "swapped": (lambda c: c.update(low=c["high"], high=c["low"]), ValueError, "low <= high"),
    "range zero": (lambda c: c["low"][..., 2].zero_(), ValueError, "ranges > 0"),
    "infinite box": (lambda c: c["high"][..., 0].fill_(math.inf), ValueError, "low and high must be finite"),
    "NaN box": (lambda c: c["low"][..., 0].fill_(math.nan), ValueError, "low and high must be finite"),
    "points": (lambda c: c.update(points=(41, 0, 41)), ValueError, "points must be three counts"),
    "two points": (lambda c: c.update(points=(41, 41)), ValueError, "points must be three counts"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_refused_by_name(fault):
    break_it, error, text = BAD[fault]
    call = good_call()
    break_it(call)
    with pytest.raises(error, match=text):
        refine_peaks(**call)


def wide_boxes(rng, wavefront, scenes, candidates):
    """Covariances on 12 x 12 elements, and boxes 6 degrees and two range planes wide: a third of them hold two sources,
    a third one, the others none.
    """
    positions, planes = oracles.rectangular(12, 12), 1 / np.array(oracles.REFERENCE_RANGES_M)
    centre = rng.uniform([-1.0, -0.5, 0.11], [1.0, 0.5, 1.8], (scenes, candidates, 3))
    plane = np.abs(centre[..., 2:] - planes).argmin(-1)
    low, high = centre - math.radians(3), centre + math.radians(3)
    low[..., 2], high[..., 2] = planes[(plane + 1).clip(max=len(planes) - 1)], planes[(plane - 1).clip(min=0)]
    third = candidates // 3
    holder = np.concatenate([np.arange(third), np.arange(2 * third)])  # the box of each source
    source = rng.uniform(low[:, holder], high[:, holder])
    power = 10 ** rng.uniform(-1, 1, source.shape[:2])
    a = oracles.steering(positions, WAVELENGTH, np.concatenate([source[..., :2], 1 / source[..., 2:]], -1), wavefront)
    R = np.stack([oracles.source_covariance(x, p, 10 ** rng.uniform(-4, -1)) for x, p in zip(a, power, strict=True)])
    return positions, R, low, high


@pytest.mark.slow
@pytest.mark.parametrize("wavefront", ["spherical", "fresnel"])
def test_the_deepest_valley_of_a_wide_box_is_found(wavefront):
    rng = np.random.default_rng(71)
    positions, R, low, high = wide_boxes(rng, wavefront, scenes=10, candidates=20)
    near = np.concatenate([low[..., :2], 1 / high[..., 2:]], -1)
    far = np.concatenate([high[..., :2], 1 / low[..., 2:]], -1)
    array = PlanarArray(positions, WAVELENGTH)
    found = refine_peaks(torch.from_numpy(R), array, *as_tensors(near, far), wavefront=wavefront)
    loss_db = []
    for scene, candidate in np.ndindex(10, 20):
        grid = fine_grid(near[scene, candidate], far[scene, candidate], (17, 17, 29))
        best = brute_power(R[scene], positions, grid, wavefront, False, 1e-2).max()
        loss_db.append(10 * math.log10(best / float(found.power[scene, candidate])))
    assert max(loss_db) < 1e-3


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_a_walk_gains_power_and_its_box_holds_where_it_ended(name, wavefront, factored):
    rng = np.random.default_rng(29)
    matrix, _, _, _ = problem(name, wavefront, factored, seed=29)
    start = random_positions(rng, 2, 9)
    array = PlanarArray(ARRAYS[name], WAVELENGTH)
    bounds = torch.tensor(FIELD_LOW, dtype=torch.float64), torch.tensor(FIELD_HIGH, dtype=torch.float64)
    ended, low, high = walk_peaks(
        *as_tensors(matrix)[:1], array, torch.from_numpy(start), *bounds, factored=factored, wavefront=wavefront
    )
    slack = 1e-6  # the walk is in float32
    assert ((ended >= low * (1 - slack * low.sign())) & (ended <= high * (1 + slack * high.sign()))).all()
    for corner in (ended, low, high):
        assert ((corner >= bounds[0] - slack) & (corner <= bounds[1] + 10 * slack)).all()
    assert (low <= high).all()
    for scene in range(2):
        before = brute_power(matrix[scene], ARRAYS[name], start[scene], wavefront, factored, 1e-2)
        after = brute_power(matrix[scene], ARRAYS[name], ended[scene].numpy(), wavefront, factored, 1e-2)
        assert (after >= before * (1 - 1e-3)).all()


def test_a_walk_reaches_a_source_that_showed_several_degrees_off_on_another_plane():
    positions = oracles.rectangular(12, 12)
    array = PlanarArray(positions, WAVELENGTH)
    source = np.array([[math.radians(41.0), math.radians(-17.0), 1.02]])
    a = oracles.steering(positions, WAVELENGTH, source)
    R = torch.from_numpy(oracles.source_covariance(a, [1.0], 1e-2)[None])
    # The brute-force peak on the neighbouring plane, by steps of a degree.
    around = oracles.box(source[0, 0] + np.radians(range(-9, 10)), source[0, 1] + np.radians(range(-9, 10)), [1.3])
    power = brute_power(R[0].numpy(), positions, around, "spherical", False, 1e-2)
    start = around.reshape(-1, 3)[power.argmax()]
    assert np.abs(start[:2] - source[0, :2]).max() > math.radians(2.0)
    bounds = torch.tensor(FIELD_LOW, dtype=torch.float64), torch.tensor(FIELD_HIGH, dtype=torch.float64)
    _, low, high = walk_peaks(R, array, torch.from_numpy(start[None, None]), *bounds)
    found = refine_peaks(R, array, low, high).position[0, 0].numpy()
    np.testing.assert_allclose(found, source[0], atol=1e-5)


# ---- the far field


FAR_BOUNDS = (
    torch.tensor((-1.2, -0.6, 0.5), dtype=torch.float64),
    torch.tensor((1.2, 0.6, math.inf), dtype=torch.float64),
)


OFF = np.array([0.03, -0.04, 0.0])


def far_scene(name, ranges, wavefront="spherical", factored=False):
    """A scene of one source for each range, and the sources [C, 1, 3]."""
    truth = np.array([[[0.31, -0.17, r]] for r in ranges])
    a = oracles.steering(ARRAYS[name], WAVELENGTH, truth, wavefront)
    matrix = a.swapaxes(-1, -2) if factored else np.stack([oracles.source_covariance(x, [1.0], 0.01) for x in a])
    return torch.from_numpy(matrix), truth


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ["rectangular", "volumetric"])
def test_boxes_may_reach_to_infinity_or_lie_there(name, wavefront, factored):
    matrix, truth = far_scene(name, [math.inf, 1e5, 6.0], wavefront, factored)
    low = torch.from_numpy(truth - np.array([0.07, 0.05, 0]))
    low[..., 2] = 2.0
    high = torch.from_numpy(truth + np.array([0.05, 0.06, 0]))
    high[..., 2] = math.inf
    array = PlanarArray(ARRAYS[name], WAVELENGTH)
    options = {"factored": factored, "wavefront": wavefront}
    found = refine_peaks(matrix, array, low, high, **options)
    np.testing.assert_allclose(found.position[..., :2], truth[..., :2], atol=1e-6)
    if wavefront != "planar":
        np.testing.assert_allclose(1 / found.position[..., 2], 1 / truth[..., 2], atol=1e-5)
    # The brute force subtracts ranges, which leaves no phase of a source a billion metres away.
    near = torch.where(found.position > 1e9, math.inf, found.position).numpy()
    for scene in range(3):
        there = brute_power(matrix[scene].numpy(), ARRAYS[name], near[scene], wavefront, factored, 1e-2)
        np.testing.assert_allclose(found.power[scene], there, rtol=1e-7)
    low[..., 2] = math.inf  # nothing but the far field
    there = refine_peaks(matrix[:1], array, low[:1], high[:1], **options)
    assert there.position[..., 2].tolist() == [[math.inf]]
    np.testing.assert_allclose(there.position[..., :2], truth[:1, :, :2], atol=1e-6)


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_walks_from_and_to_the_far_field_end_at_the_source(name, wavefront, factored):
    matrix, truth = far_scene(name, [math.inf, 1e4, 1.5], wavefront, factored)
    array = PlanarArray(ARRAYS[name], WAVELENGTH)
    start = torch.from_numpy(truth + OFF).expand(3, 4, 3).clone()
    start[..., 2] = torch.tensor([math.inf, 1e300, 1e3, 1.2])
    options = {"factored": factored, "wavefront": wavefront}
    _, low, high = walk_peaks(matrix, array, start, *FAR_BOUNDS, **options)
    found = refine_peaks(matrix, array, low, high, **options)
    assert not any(t.isnan().any() for t in (low, high, *found))
    assert ((found.position[..., 2] >= 0.5) & (high[..., 2] >= low[..., 2])).all()
    assert (
        (found.position >= low * (1 - 1e-12 * low.sign())) & (found.position <= high * (1 + 1e-12 * high.sign()))
    ).all()
    for scene in range(3):
        args = ARRAYS[name], truth[scene, 0], wavefront, factored, 1e-2
        best = brute_power(matrix[scene].numpy(), *args)
        # The ridges of a linear array bend in all three coordinates: eight steps end within 0.01 dB of their crest.
        np.testing.assert_allclose(found.power[scene], best, rtol=2.3e-3 if name == "linear" else 1e-6)
    if name in ("rectangular", "volumetric"):
        np.testing.assert_allclose(found.position[..., :2], truth[..., :2].repeat(4, 1), atol=1e-5)
        if wavefront != "planar":
            np.testing.assert_allclose(1 / found.position[..., 2], (1 / truth[..., 2]).repeat(4, 1), atol=1e-4)


def test_a_walk_in_the_far_field_alone_stays_there():
    matrix, truth = far_scene("rectangular", [math.inf])
    array = PlanarArray(ARRAYS["rectangular"], WAVELENGTH)
    low, high = (bound.clone() for bound in FAR_BOUNDS)
    low[2] = math.inf
    start = torch.from_numpy(truth + OFF)
    ended, *box = walk_peaks(matrix, array, start, low, high)
    assert all(t[0, 0, 2] == math.inf for t in (ended, *box))
    np.testing.assert_allclose(refine_peaks(matrix, array, *box).position, truth, atol=1e-6)


# ---- the full circle

CIRCLE = {
    "-pi .. pi": (-math.pi, math.pi - math.radians(5)),
    "0 .. 2 pi": (0.0, 2 * math.pi - math.radians(5)),
    "closed": (-math.pi, math.pi),
}


@pytest.mark.parametrize("ends", CIRCLE)
def test_the_search_passes_over_the_seam_of_a_full_circle(ends):
    first, last = CIRCLE[ends]
    positions = oracles.volumetric(5, 24, 0.3)
    seam = first if first else 0.0
    truth = np.array([[[seam - 0.001, 0.1, 3.0]], [[seam + 0.001, 0.1, 3.0]]])
    a = oracles.steering(positions, WAVELENGTH, truth)
    R = torch.from_numpy(np.stack([oracles.source_covariance(x, [1.0], 0.01) for x in a]))
    start = torch.tensor([[first, 0.15, 2.0], [last, 0.15, 2.0]], dtype=torch.float64).expand(2, 2, 3)
    low, high = torch.tensor([[first, -0.5, 0.5], [last, 0.5, math.inf]], dtype=torch.float64)
    array = PlanarArray(positions, WAVELENGTH)
    walked, *box = walk_peaks(R, array, start, low, high, circle_from=first)
    found = refine_peaks(R, array, *box, circle_from=first).position
    for azimuth in (walked[..., 0], found[..., 0]):
        assert ((azimuth >= first) & (azimuth < first + 2 * math.pi)).all()
    expected = truth[..., 0] + 2 * math.pi * (truth[..., 0] < first)
    np.testing.assert_allclose(found[..., 0], expected.repeat(2, 1), atol=1e-6)
    np.testing.assert_allclose(found[..., 1:], truth[..., 1:].repeat(2, 1), rtol=1e-5)
    # Both candidates meet: the source is there once.
    kept = nms_3d(found, torch.zeros(2, 2), separation=(0.01, 0.01, 0.1), on_sphere=True)
    assert kept.count.tolist() == [1, 1]
    # Bounded by the axis, the candidate from the other end stops short of a source beyond the seam.
    _, *bounded = walk_peaks(R, array, start, low, high)
    stopped = refine_peaks(R, array, *bounded).position
    assert float((stopped[0, 0, 0] - first).abs()) < 1e-9


def test_away_from_the_seam_a_circle_changes_nothing():
    matrix, truth = far_scene("volumetric", [math.inf, 2.0])
    array = PlanarArray(ARRAYS["volumetric"], WAVELENGTH)
    start = torch.from_numpy(truth + OFF)
    plain, wrapped = (walk_peaks(matrix, array, start, *FAR_BOUNDS, circle_from=c) for c in (None, -math.pi))
    for one, other in zip(plain, wrapped, strict=True):
        assert torch.equal(one, other)
    results = [refine_peaks(matrix, array, *plain[1:], circle_from=c) for c in (None, -math.pi)]
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("iterations", [0, 1, 8])
def test_descending_never_goes_uphill_nor_out_of_its_box(iterations):
    rng = np.random.default_rng(31)
    positions = ARRAYS["volumetric"]
    n, count = len(positions), 50
    # Any Hermitian form, indefinite ones too: its landscape has saddles, ridges and steep walls.
    Q = oracles.hermitian(rng, n)
    start = rng.uniform([-1.0, -0.5, 0.15], [1.0, 0.5, 1.6], (count, 3))
    margin = rng.uniform(0.0, 0.3, (count, 3)) * (rng.random((count, 3)) < 0.8)
    low, high = start - margin * [1, 1, 0.3], start + rng.uniform(0.01, 0.3, (count, 3)) * [1, 1, 0.3]
    step = rng.uniform(0.001, 0.4, (count, 3)) * (high - low)
    geometry = (torch.from_numpy(positions), 2 * math.pi / WAVELENGTH, "spherical")
    given = [t[None] for t in as_tensors(start, step, low, high)]
    landscape = Landscape(torch.from_numpy(Q[None]), False, geometry)
    point, value = newton_descend(landscape, *given, iterations, 0.0)
    point, value = point[0].numpy(), value[0]

    def brute(coordinates):
        points = np.concatenate([coordinates[:, :2], 1 / coordinates[:, 2:]], 1)
        return oracles.analysis(Q[None], oracles.steering(positions, WAVELENGTH, points))[0]

    np.testing.assert_allclose(value.numpy(), brute(point), rtol=1e-9, atol=1e-9)
    assert (value.numpy() <= brute(start) + 1e-9).all()
    assert (point >= low).all()
    assert (point <= high).all()


def test_a_short_step_from_the_middle_of_a_slope_descends():
    rng = np.random.default_rng(41)
    positions = ARRAYS["volumetric"]
    Q = oracles.hermitian(rng, len(positions))
    start = rng.uniform([-1.0, -0.5, 0.3], [1.0, 0.5, 1.5], (60, 3))
    # 4e-3 rad, or 4e-3 / m, turn the phase by less than 0.05 rad: a quadratic model is good there.
    step = np.full_like(start, 4e-3)
    geometry = (torch.from_numpy(positions), 2 * math.pi / WAVELENGTH, "spherical")
    given = [t[None] for t in as_tensors(start, step, start - 0.2, start + 0.2)]
    landscape = Landscape(torch.from_numpy(Q[None]), False, geometry)
    _, value = newton_descend(landscape, *given, 1, 0.0)
    value = value[0]

    def brute(coordinates):
        points = np.concatenate([coordinates[..., :2], 1 / coordinates[..., 2:]], -1)
        return oracles.analysis(Q[None], oracles.steering(positions, WAVELENGTH, points))[0]

    ahead = start[:, None] + step[:, None] * np.eye(3)
    slope = np.abs(brute(ahead) - brute(start)[:, None]).max(1)  # over one step
    assert (slope > 1e-3).all()
    assert (value.numpy() < brute(start) - slope / 4).all()


def far_and_near(rng, count):
    """Coordinates (azimuth, elevation, 1/range) [1, count, 3], the first in the far field."""
    coordinates = rng.uniform([-1.0, -0.5, 0.15], [1.0, 0.5, 1.6], (1, count, 3))
    coordinates[0, 0, 2] = 0.0
    return coordinates


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_forms_agree_with_the_formulas(wavefront):
    rng = np.random.default_rng(37)
    positions = ARRAYS["irregular"]
    coordinates = far_and_near(rng, 20)
    with np.errstate(divide="ignore"):
        points = np.concatenate([coordinates[..., :2], 1 / coordinates[..., 2:]], -1)
    a = oracles.steering(positions, WAVELENGTH, points, wavefront)[0]
    geometry = (torch.from_numpy(positions), 2 * math.pi / WAVELENGTH, wavefront)
    Q, W = oracles.hermitian(rng, 13)[None], oracles.complex_normal(rng, 1, 13, 3)
    ours = Landscape(torch.from_numpy(Q), False, geometry).value(torch.from_numpy(coordinates))
    np.testing.assert_allclose(ours[0].numpy(), oracles.analysis(Q, a)[0])
    ours = Landscape(torch.from_numpy(W), True, geometry).value(torch.from_numpy(coordinates))
    np.testing.assert_allclose(ours[0].numpy(), 13 - oracles.analysis_factored(W, a)[0], rtol=1e-9)


@pytest.mark.parametrize("by_lags", [True, False])
@pytest.mark.parametrize("wavefront", ["fresnel", "planar"])
def test_grids_in_boxes_agree_with_the_formulas(wavefront, by_lags, monkeypatch):
    monkeypatch.setattr(risfast.ops.landscape, "_LAG_FROM", 0 if by_lags else math.inf)
    rng = np.random.default_rng(53)
    positions = rng.permutation(ARRAYS["rectangular"] + [0.4, -0.3, 0.0])
    Q = np.stack([oracles.hermitian(rng, len(positions)) for _ in range(2)])
    low, high = np.array([-1.0, -0.5, 0.0]), np.array([1.0, 0.5, 1.6])
    axes = [rng.uniform(low[i], high[i], (2, 3, n)) for i, n in enumerate((5, 4, 6))]
    axes[2][0, 0, 0] = 0.0  # the far field
    geometry = (torch.from_numpy(positions), 2 * math.pi / WAVELENGTH, wavefront)
    q = Landscape(torch.from_numpy(Q), False, geometry).on_grids(list(as_tensors(*axes)))
    assert q.shape == (2, 3, 5, 4, 6)
    for scene, box in np.ndindex(2, 3):
        grid = np.stack(np.meshgrid(*(axis[scene, box] for axis in axes), indexing="ij"), -1).reshape(-1, 3)
        with np.errstate(divide="ignore"):
            points = np.concatenate([grid[:, :2], 1 / grid[:, 2:]], 1)
        a = oracles.steering(positions, WAVELENGTH, points, wavefront)
        expected = oracles.analysis(Q[scene][None], a)[0]
        np.testing.assert_allclose(q[scene, box].flatten(), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("factored", [False, True], ids=["full", "factored"])
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_derivatives_are_those_of_central_differences(wavefront, factored):
    rng = np.random.default_rng(43)
    positions = ARRAYS["volumetric"]
    n = len(positions)
    matrix = oracles.complex_normal(rng, 1, n, 3) if factored else oracles.hermitian(rng, n)[None]
    geometry = (torch.from_numpy(positions), 2 * math.pi / WAVELENGTH, wavefront)
    landscape = Landscape(torch.from_numpy(matrix), factored, geometry)
    at = torch.from_numpy(far_and_near(rng, 20))
    at[0, 0, 2] = 1e-3  # the differences step to both sides of it
    model = landscape.model(at)  # value, gradient, and Hessian row by row
    np.testing.assert_allclose(model[..., 0], landscape.value(at), rtol=1e-9, atol=1e-9)
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = 1e-5
        ahead, behind = (landscape.model(at + sign * step) for sign in (1, -1))
        for ours, one, other in (
            (model[..., 1 + axis], ahead[..., 0], behind[..., 0]),
            (model[..., 4 + 3 * axis : 7 + 3 * axis], ahead[..., 1:4], behind[..., 1:4]),
        ):
            np.testing.assert_allclose(ours, (one - other) / 2e-5, atol=1e-6 * float(ours.abs().max()) + 1e-9)
