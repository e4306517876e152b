"""The localizer and the array of its data: other units, another order, other geometries, direct sampling."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from risfast.detect import DetectionOptions, detect_sources
from risfast.errors import ShapeError
from risfast.geometry import Region, SensorArray
from risfast.io.recording import Recording, Snapshots
from risfast.localize import CandidateOptions, DecisionOptions, Localizer, PipelineOptions
from risfast.localize.polish import PolishOptions
from risfast.models import Measurement
from risfast.setup import Setup, Tolerance

HOME = SensorArray.rectangular(5, 5)
NEAR = Region((-1.0, 1.0), (-0.6, 0.6), (0.3, 10.0))
TWO = ((0.3, 0.1, 1.5), (-0.5, -0.2, 0.8))
UNPOLISHED = PipelineOptions(polished=False)


def fields(rng, array, points, shape, wavefront="spherical", powers=None):
    """Fields at the elements, (*shape, N), of sources with Gaussian symbols."""
    a = oracles.steering(array.positions_m.numpy(), array.wavelength_m, np.array(points, float), wavefront)
    powers = np.ones(len(points)) if powers is None else np.array(powers, float)
    return (oracles.complex_normal(rng, *shape, len(points)) * np.sqrt(powers)) @ a


def direct(seed, array, points, *, scenes=1, length=12, snr_db=15.0, **how):
    """Snapshots of the elements, (B, L, N)."""
    rng = np.random.default_rng(seed)
    x = fields(rng, array, points, (scenes, length), **how)
    return x + 10 ** (-snr_db / 20) * oracles.complex_normal(rng, *x.shape)


def behind_surface(seed, array, points, *, scenes=2, length=12, antennas=8, snr_db=15.0, **how):
    """y (B, L, M), codes (B, L, N) and channel (B, M, N)."""
    rng = np.random.default_rng(seed)
    x = fields(rng, array, points, (scenes, length), **how)
    codes = np.exp(2j * np.pi * rng.random(x.shape))
    channel = oracles.complex_normal(rng, scenes, antennas, array.n_elements)
    clean = np.einsum("bmn,bln->blm", channel, codes * x)
    sigma = np.sqrt(np.mean(np.abs(clean) ** 2, axis=(1, 2), keepdims=True) * 10 ** (-snr_db / 10))
    return clean + sigma * oracles.complex_normal(rng, *clean.shape), codes, channel


def same(found, expected, scale=1.0):
    """Identical answers, ranges in other units."""
    assert [len(s) for s in found] == [len(s) for s in expected]
    assert sum(map(len, found)) > 0
    for one, other in zip(found, expected, strict=True):
        for name in ("azimuth", "elevation", "power", "confidence", "prominence_db", "at_edge"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        np.testing.assert_allclose(one.range, scale * other.range.numpy(), rtol=1e-14)


def assert_found(sources, points, angle_rad=0.03, range_part=0.15, exactly=True):
    """Every point is found once, and (exactly) nothing else; ``range_part`` None does not look at ranges."""
    position = sources.position.numpy()
    if exactly:
        assert len(sources) == len(points), sources
    for azimuth, elevation, r in points:
        turn = np.angle(np.exp(1j * (position[:, 0] - azimuth)))
        near = (np.abs(turn) < angle_rad) & (np.abs(position[:, 1] - elevation) < angle_rad)
        if range_part is not None:
            near &= np.abs(position[:, 2] - r) < range_part * r
        assert near.sum() == 1, sources


@pytest.fixture(scope="module")
def localizer():
    return Localizer.classical(Setup(HOME, NEAR))


@pytest.fixture(scope="module")
def measured():
    return behind_surface(1, HOME, TWO)


@pytest.fixture(scope="module")
def at_home(localizer, measured):
    return localizer.analyse(*measured)


def test_sources_behind_a_surface_are_found_where_they_are(at_home):
    for sources in at_home.sources:
        assert_found(sources, TWO)
    assert at_home.notes == ()
    assert at_home.setup == Setup(HOME, NEAR)


@pytest.mark.parametrize("frequency_hz", [28e9, 343.0 / 0.05])
def test_the_same_array_in_wavelengths_is_fitted_and_said_once(localizer, measured, at_home, frequency_hz):
    wavelength = 299792458.0 / frequency_hz
    scale = wavelength / 0.3
    small = SensorArray.rectangular(5, 5, wavelength / 2, wavelength)
    result = localizer.analyse(*measured, array=small)
    same(result.sources, at_home.sources, scale)
    [note] = result.notes
    assert "rescaled" in note
    assert result.setup.array == small
    assert result.setup.region.range_m == pytest.approx((0.3 * scale, 10 * scale))
    assert result.setup.tolerance.range_m == pytest.approx(scale)
    assert result.setup.tolerance.azimuth_rad == localizer.setup.tolerance.azimuth_rad
    unit = np.array([1, 1, scale])
    for one, other in zip(result.position_covariance, at_home.position_covariance, strict=True):
        np.testing.assert_allclose(one, other.numpy() * unit[:, None] * unit, rtol=1e-12)
    assert localizer.setup == Setup(HOME, NEAR)


def test_data_of_a_scaled_array_are_those_of_scaled_sources(localizer):
    scale = 1 / 28
    small = SensorArray(HOME.positions_m * scale, HOME.wavelength_m * scale)
    y = behind_surface(1, small, [(az, el, r * scale) for az, el, r in TWO])
    for sources in localizer.localize(*y, array=small):
        assert_found(sources, [(az, el, r * scale) for az, el, r in TWO])


ROW_MAJOR = np.arange(25).reshape(5, 5).T.ravel()


def check_order(localizer, measured, at_home, order, scale=1.0):
    y, codes, channel = measured
    array = SensorArray(HOME.positions_m[order.tolist()] * scale, HOME.wavelength_m * scale)
    result = localizer.analyse(y, codes[..., order], channel[..., order], array=array)
    same(result.sources, at_home.sources, scale)
    np.testing.assert_array_equal(result.factor, at_home.factor[:, order.tolist()])
    assert result.setup.array == array
    moved = int((order != np.arange(25)).sum())
    assert sum("reordered" in note for note in result.notes) == (moved > 0)
    assert moved == 0 or any(f"{moved} elements" in note for note in result.notes)
    return result


def test_rows_before_columns_is_another_order(localizer, measured, at_home):
    assert len(check_order(localizer, measured, at_home, ROW_MAJOR).notes) == 1
    assert len(check_order(localizer, measured, at_home, ROW_MAJOR, 0.1).notes) == 2


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(25)))
def test_any_order_gives_the_same_answers(order):
    measured = behind_surface(1, HOME, TWO, scenes=1)
    localizer = Localizer.classical(Setup(HOME, NEAR), options=UNPOLISHED)
    check_order(localizer, measured, localizer.analyse(*measured), np.array(order))


def test_the_wrong_order_unsaid_is_wrong(localizer, measured):
    y, codes, channel = measured
    lost = localizer.localize(y, codes[..., ROW_MAJOR], channel[..., ROW_MAJOR])
    for sources in lost:
        with pytest.raises(AssertionError):
            assert_found(sources, TWO)


def nudged(by):
    positions = HOME.positions_m.clone()
    positions[7, 0] += by
    return SensorArray(positions, 0.3)


OTHERS = {
    "other spacing": SensorArray.rectangular(5, 5, 0.16, 0.3),
    "other wavelength": SensorArray.rectangular(5, 5, 0.15, 0.29),
    "random": SensorArray(oracles.irregular_plane(0, 25, 0.4), 0.3),
    "shifted": SensorArray(HOME.positions_m + 0.1, 0.3),
    "one element off": nudged(0.01),
    "two at one place": SensorArray(HOME.positions_m[[*range(24), 0]], 0.3),
    "ring": SensorArray.circular(25, 0.4, 0.3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_array_is_refused_with_the_mend(localizer, measured, name):
    with pytest.raises(ValueError, match=r"another array.*Localizer\.classical\(array\)"):
        localizer.localize(*measured, array=OTHERS[name])
    assert "another array" in localizer.unlike(OTHERS[name])


def test_another_number_of_elements_is_refused_with_the_mend(localizer):
    array = SensorArray.rectangular(6, 4)
    y = behind_surface(0, array, TWO)
    with pytest.raises(ValueError, match=r"24 elements, the model is of 25.*Localizer\.classical\(array\)"):
        localizer.localize(*y, array=array)
    with pytest.raises(ShapeError):
        localizer.localize(*y)


def test_the_shipped_model_refuses_what_only_has_as_many_elements():
    shipped = Localizer.from_pretrained()
    for array in (SensorArray.rectangular(16, 9), SensorArray(oracles.irregular_plane(0, 144, 0.9), 0.3)):
        y = behind_surface(0, array, TWO, scenes=1)
        with pytest.raises(ValueError, match="another array"):
            shipped.localize(*y, array=array)
    assert shipped.unlike(SensorArray.rectangular(12, 12, 0.01, 0.02)) is None


def test_rounding_in_a_file_is_no_other_array(localizer, measured, at_home):
    result = localizer.analyse(*measured, array=SensorArray(HOME.positions_m.float(), 0.3))
    same(result.sources, at_home.sources)
    assert result.notes == ()
    same(localizer.localize(*measured, array=nudged(1e-6)), at_home.sources)


def test_another_wavefront_is_refused(localizer, measured):
    with pytest.raises(ValueError, match="wavefront is fresnel, the model's spherical"):
        localizer.localize(*measured, array=Setup(HOME, wavefront="fresnel"))
    assert "wavefront" in localizer.unlike(Setup(HOME, wavefront="planar"))
    assert localizer.unlike(Setup(HOME)) is None


def recording_of(y, codes=None, channel=None, array=HOME, **more):
    parts = {name: None if v is None else torch.tensor(v) for name, v in (("codes", codes), ("channel", channel))}
    return Recording(array, snapshots=Snapshots.of(np.concatenate(list(y))), scenes=len(y), **parts, **more)


def test_recordings_measurements_tensors_and_arrays_give_the_same_answers(localizer, measured, at_home):
    tensors = [torch.tensor(v) for v in measured]
    same(localizer.localize(*tensors), at_home.sources)
    same(localizer.localize(Measurement(*tensors)), at_home.sources)
    same(localizer.localize(recording_of(*measured)), at_home.sources)
    y, codes, channel = measured
    order = ROW_MAJOR.tolist()
    turned = SensorArray(HOME.positions_m[order] * 0.1, 0.03)
    result = localizer.analyse(recording_of(y, codes[..., order], channel[..., order], turned))
    same(result.sources, at_home.sources, 0.1)
    assert len(result.notes) == 2
    for scene in range(2):
        [one] = localizer.localize(*(v[scene] for v in measured))
        assert_found(one, TWO)


def test_a_recording_of_another_setup_is_refused(localizer, measured):
    with pytest.raises(ValueError, match="another array"):
        localizer.localize(recording_of(*measured, OTHERS["random"]))
    given = Setup(HOME, wavefront="planar")
    with pytest.raises(ValueError, match="wavefront is planar"):
        localizer.localize(recording_of(*measured, given=given))


@pytest.mark.parametrize("extra", ["codes", "channel"])
def test_recordings_and_measurements_come_alone(localizer, measured, extra):
    more = {extra: measured[1 if extra == "codes" else 2]}
    with pytest.raises(ValueError, match="give it alone"):
        localizer.localize(recording_of(*measured), **more)
    with pytest.raises(ValueError, match="give it alone"):
        localizer.localize(Measurement(*map(torch.tensor, measured)), **more)


DIRECT = Setup(HOME, NEAR, sampling="direct")


def test_an_array_that_is_sampled_itself():
    x = direct(0, HOME, TWO, scenes=2)
    for setup in (DIRECT, Setup(HOME, sampling="direct")):
        localizer = Localizer.classical(setup)
        for sources in localizer.localize(x):
            assert_found(sources, TWO)
        same(localizer.localize(recording_of(x)), localizer.localize(torch.tensor(x)))
    localizer_of_surface = Localizer.classical(Setup(HOME))
    identity = np.broadcast_to(np.eye(25, dtype=complex), (2, 25, 25))
    for one, other in zip(
        localizer_of_surface.localize(x, np.ones_like(x), identity), localizer.localize(x), strict=True
    ):
        np.testing.assert_allclose(one.position, other.position, rtol=1e-3)  # from elsewhere to the same maximum
    bare = Localizer.classical(HOME).analyse(x[0])  # nothing is said of a bare array: the data tell
    assert_found(bare.sources[0], TWO)
    assert bare.setup.sampling == "direct"


def test_data_that_lack_what_the_sampling_needs_are_refused(localizer, measured):
    y, codes, channel = measured
    x = direct(0, HOME, TWO)
    with pytest.raises(ValueError, match=r"codes and channel are missing.*sampling='direct'"):
        localizer.localize(x)
    with pytest.raises(ValueError, match="channel is missing"):
        localizer.localize(y, codes)
    with pytest.raises(ValueError, match="codes is missing"):
        localizer.localize(y, channel=channel)
    with pytest.raises(ValueError, match="sampling of this setup is direct"):
        Localizer.classical(DIRECT).localize(*measured)
    with pytest.raises(ValueError, match="sampling of this setup is direct"):
        Localizer.classical(DIRECT).localize(Measurement(*map(torch.as_tensor, measured)))
    with pytest.raises(ValueError, match="codes and channel are missing"):
        localizer.localize(recording_of(x))
    with pytest.raises(ValueError, match="channel is missing"):
        localizer.localize(recording_of(x, codes=np.ones((12, 25), complex)))


@pytest.mark.parametrize("batch", [True, False])
def test_transposed_snapshots_are_named(batch):
    x = direct(0, HOME, TWO, scenes=2)
    turned = x.swapaxes(1, 2) if batch else x[0].T
    with pytest.raises(ShapeError, match=r"x must have shape.*looks transposed"):
        Localizer.classical(DIRECT).localize(turned)
    with pytest.raises(ShapeError, match="x must have shape"):
        Localizer.classical(DIRECT).localize(x[0, 0])


def test_a_known_number_of_sources_is_the_number_of_answers():
    x = direct(0, HOME, TWO, scenes=3)
    localizer = Localizer.classical(DIRECT)
    for count in (0, 1, 9):
        assert [len(s) for s in localizer.localize(x, n_sources=count)] == [count] * 3
    for counts in (np.array([3, 1, 2], np.uint8), torch.tensor([2, 2, 0])):
        result = localizer.analyse(x, n_sources=counts)
        assert [len(s) for s in result.sources] == [int(c) for c in counts]
        assert [len(c) for c in result.position_covariance] == [int(c) for c in counts]
    for sources in localizer.localize(x, n_sources=2):
        assert_found(sources, TWO)
    for sources in localizer.localize(x, n_sources=4):
        assert_found(sources[sources.power.argsort(descending=True)[:2]], TWO)
    many = PipelineOptions(decision=DecisionOptions(max_sources=1))
    assert [len(s) for s in Localizer.classical(DIRECT, options=many).localize(x)] == [1, 1, 1]


def test_of_one_source_the_stronger_is_told_where_one_is_asked_for():
    x = direct(3, HOME, TWO, powers=(1.0, 0.05), scenes=2)
    for sources in Localizer.classical(DIRECT).localize(x, n_sources=1):
        assert_found(sources, TWO[:1])


@pytest.mark.parametrize("wrong", [-1, 1.0, True, [1, -1, 0], [1.0, 2.0, 1.0], np.array([True, False, True]), 1j])
def test_a_number_of_sources_is_a_whole_number(wrong):
    with pytest.raises(ValueError, match="n_sources must hold whole numbers"):
        Localizer.classical(DIRECT).localize(direct(0, HOME, TWO, scenes=3), n_sources=wrong)


@pytest.mark.parametrize("wrong", [[1, 2], [[1, 2, 3]], [1, 1, 1, 1]])
def test_numbers_of_sources_are_one_a_scene(wrong):
    with pytest.raises(ShapeError, match=r"n_sources must be one number or have shape \(3,\)"):
        Localizer.classical(DIRECT).localize(direct(0, HOME, TWO, scenes=3), n_sources=wrong)


def test_a_source_outside_the_region_ends_on_its_edge_and_says_so():
    x = direct(0, HOME, TWO, snr_db=0.0)
    cut = Region((-1.0, 0.2), (-0.6, 0.6), (0.3, 10.0))  # the first lies at 0.3
    detection = DetectionOptions(max_db=6.0, mad_z=None)
    chosen = CandidateOptions(source="capon", detection=detection, polished_detection=detection)
    options = PipelineOptions(candidates=chosen, polish=PolishOptions(births=0))
    [sources] = Localizer.classical(DIRECT.replace(region=cut), options=options).localize(x)
    inside = sources[(sources.azimuth + 0.5).abs() < 0.05]
    assert len(inside) == 1
    assert not inside.at_edge.any()
    [beyond] = [s for s in sources if s.azimuth > 0.15]
    assert beyond.at_edge
    assert beyond.azimuth == pytest.approx(0.2, abs=1e-3)
    [whole] = Localizer.classical(DIRECT, options=options).localize(x)
    assert len(whole) >= 2
    assert not whole.at_edge.any()


@pytest.mark.parametrize("far", [5.0, math.inf])
def test_a_source_nearer_than_the_region_ends_on_its_edge(far):
    x = direct(0, HOME, [TWO[1]])
    region = Region((-1.0, 1.0), (-0.6, 0.6), (1.6, far))
    [sources] = Localizer.classical(DIRECT.replace(region=region)).localize(x)
    strongest = sources[0]
    assert strongest.at_edge
    assert strongest.range == pytest.approx(1.6, rel=0.01)


@pytest.mark.parametrize("polish", [True, False])
@pytest.mark.parametrize("range_points", [64, 0])
@pytest.mark.parametrize("far", [10.0, math.inf])
def test_planar_waves_have_no_range(far, range_points, polish):
    region = Region((-1.0, 1.0), (-0.6, 0.6), (0.3, far))
    x = direct(1, HOME, TWO, scenes=6, wavefront="planar")
    options = PipelineOptions(polish=PolishOptions(range_points=range_points))
    localizer = Localizer.classical(Setup(HOME, region, "planar", "direct"), options=options)
    result = localizer.analyse(x, polish=polish)
    for sources in result.sources:
        assert len(sources) > 0
        assert sources.range.isnan().all()
        assert not sources.at_edge.any()
        if polish:
            assert_found(sources, TWO, 0.05, None)
            assert (sources.confidence > 0.9).all()
    for covariance in result.position_covariance or ():
        assert (covariance[:, 2, 2] == math.inf).all()
        assert (covariance[:, 2, :2] == 0).all()
        assert (torch.linalg.eigvalsh(covariance[:, :2, :2]) > 0).all()
    scored = localizer.setup.replace(tolerance=Tolerance(range_m=1.0))
    [sources, *_] = Localizer.classical(scored, options=options).localize(x)
    assert (sources.confidence == 0).all()  # a range that is not known is a miss where ranges count


def test_a_range_that_the_region_fixes_is_known():
    x = direct(0, HOME, [(0.3, 0.1, 1.5), (-0.5, -0.2, 1.5)], scenes=2)
    fixed = Region((-1.0, 1.0), (-0.6, 0.6), (1.5, 1.5))
    result = Localizer.classical(DIRECT.replace(region=fixed)).analyse(x)
    for sources, covariance in zip(result.sources, result.position_covariance, strict=True):
        assert_found(sources, [(0.3, 0.1, 1.5), (-0.5, -0.2, 1.5)], range_part=1e-12)
        assert (sources.confidence > 0.9).all()
        assert not sources.at_edge.any()
        assert (covariance[:, 2, 2] < 1e-12).all()


@pytest.mark.parametrize("far", [1e3, 1e4, 1e9, math.inf])
def test_what_lies_far_beyond_does_not_change_what_is_near(far):
    # A Gaussian of the deviation that the Fisher information gives holds most of the posterior.
    region = Region((-1.0, 1.0), (-0.6, 0.6), (0.3, far))
    result = Localizer.classical(DIRECT.replace(region=region)).analyse(direct(0, HOME, [(0.3, 0.1, 4.0)], snr_db=10))
    [sources], [covariance] = result.sources, result.position_covariance
    assert_found(sources, [(0.3, 0.1, 4.0)])
    deviation = math.sqrt(covariance[0, 2, 2])
    assert float(sources.confidence[0]) == pytest.approx(math.erf(1 / (math.sqrt(2) * deviation)), abs=0.05)


@pytest.mark.parametrize("polish", [True, False])
def test_a_source_in_the_far_field_is_no_number_or_far(polish):
    far = 1e4 * HOME.aperture_m
    x = direct(1, HOME, [(0.3, 0.1, far), (-0.5, -0.2, 0.8)], scenes=6)
    unknown = 0
    for sources in Localizer.classical(Setup(HOME, sampling="direct")).localize(x, polish=polish):
        assert_found(sources, [(0.3, 0.1, far), (-0.5, -0.2, 0.8)], 0.08, None)
        distant = sources[sources.azimuth > 0]
        unknown += int(distant.range.isnan().sum())
        assert not (distant.range < 5).any()
        assert not distant.at_edge.any()
        if polish:
            assert (distant.confidence < 0.3).all()
            assert float(sources[sources.azimuth < 0].range[0]) == pytest.approx(0.8, rel=0.1)
    # A range that is not two deviations from the far field is none; one in forty is by chance.
    assert not polish or unknown >= 5


RING = SensorArray.circular(12, 0.25, 0.3)


@pytest.mark.parametrize("source", ["own", "capon"])
@pytest.mark.parametrize("degrees", [179.9, 180.0, 90.0])
def test_a_ring_finds_a_source_once_all_round(degrees, source):
    azimuth = math.radians(degrees)
    options = PipelineOptions(candidates=CandidateOptions(source=source))
    localizer = Localizer.classical(Setup(RING, sampling="direct"), options=options)
    [sources] = localizer.localize(direct(0, RING, [(azimuth, 0.0, 1.5), (0.2, 0.0, 1.0)]))
    assert_found(sources, [(azimuth, 0.0, 1.5), (0.2, 0.0, 1.0)], 0.02)
    assert (sources.elevation == 0).all()
    assert (sources.azimuth.abs() <= math.pi).all()
    assert not sources.at_edge.any()


@pytest.mark.parametrize("azimuth", [math.pi, 1.0, -2.5])
@pytest.mark.parametrize("r", [0.6, 1.5, 1e5])
def test_a_capon_peak_of_a_ring_is_where_its_source_is(azimuth, r):
    a = oracles.steering(RING.positions_m.numpy(), 0.3, np.array([[azimuth, 0.0, r]]))
    [sources] = detect_sources(torch.tensor(oracles.source_covariance(a, [1.0], 0.03)), Setup(RING))
    assert_found(sources, [(azimuth, 0.0, r)], 1e-3, 0.01)
    assert (sources.prominence_db > 15).all()


@pytest.mark.parametrize("elevation", [0.0, 0.3])
def test_a_line_finds_sources_at_the_elevation_that_it_is_told(elevation):
    line = SensorArray.linear(10, 0.15, 0.3)
    points = [(-0.5, elevation, 1.5), (0.7, elevation, 1.0)]
    region = Region((-1.5, 1.5), (elevation, elevation), (0.4, math.inf))
    [sources] = Localizer.classical(Setup(line, region, sampling="direct")).localize(direct(0, line, points))
    assert_found(sources, points, 0.02)
    assert (sources.elevation == elevation).all()
    assert not sources.at_edge.any()
    if elevation == 0:
        [derived] = Localizer.classical(Setup(line, sampling="direct")).localize(direct(0, line, points))
        assert_found(derived, points, 0.02)


def test_confidence_is_a_probability_and_lower_for_weaker_sources():
    x = direct(5, HOME, TWO, scenes=12, powers=(1.0, 10**-1.8), snr_db=10.0)
    strong, weak = [], []
    for sources in Localizer.classical(DIRECT).localize(x):
        assert ((sources.confidence >= 0) & (sources.confidence <= 1)).all()
        strong += sources.confidence[(sources.azimuth - 0.3).abs() < 0.1].tolist()
        weak += sources.confidence[(sources.azimuth + 0.5).abs() < 0.1].tolist()
    assert len(strong) == 12
    assert len(weak) >= 4
    assert np.mean(strong) > np.mean(weak)


def test_scenes_do_not_know_of_each_other():
    x = direct(0, HOME, TWO, scenes=4)
    x[3] = direct(9, HOME, [(0.0, 0.3, 1.0)])[0]
    whole = Localizer.classical(DIRECT).analyse(x)
    for at_once in (1, 2):
        parts = Localizer.classical(DIRECT, options=PipelineOptions(scenes_at_once=at_once)).analyse(x)
        for one, other in zip(parts.sources, whole.sources, strict=True):
            np.testing.assert_allclose(one.position, other.position, rtol=2e-3)
            np.testing.assert_allclose(one.confidence, other.confidence, atol=0.01)
        np.testing.assert_allclose(parts.noise_power, whole.noise_power, rtol=1e-3)
    told = []
    Localizer.classical(DIRECT, options=PipelineOptions(scenes_at_once=2)).analyse(x, report=lambda *n: told.append(n))
    assert told == [(2, 4), (4, 4)]


def test_without_polish_the_candidates_are_the_answer():
    x = direct(0, HOME, TWO, scenes=2)
    localizer = Localizer.classical(DIRECT)
    result = localizer.analyse(x, polish=False)
    assert result.position_covariance is None
    assert set(result.seconds) == {"channels", "backbone", "detection"}
    for sources in result.sources:
        assert_found(sources, TWO, 0.08, None)
        assert (sources.power.diff() <= 0).all()
    same(Localizer.classical(DIRECT, options=UNPOLISHED).localize(x), result.sources)
    assert localizer.options.polished
