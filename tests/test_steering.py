"""The phase formula, its precision, and its limits."""

from __future__ import annotations

import decimal
import math

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import PlanarArray, direction_cosines
from risfast.steering import WAVEFRONTS, check_wavefront, steering_phase, steering_phase_gradient, steering_vectors

ARRAYS = {
    "rectangular": oracles.rectangular(3, 5),
    "linear": oracles.rectangular(7, 1),
    "irregular": oracles.irregular_plane(1, 11, 0.8),
    "volumetric": oracles.volumetric(2, 9, 0.4),
    "single": np.array([[0.1, -0.2, 0.3]]),
}
POINTS = oracles.box(np.radians([-57, -20, 0, 33]), np.radians([-30, 4, 25]), [0.55, 2.0, 9.5, 400.0])


def vectors(array, points, **options):
    points = torch.as_tensor(points)
    return steering_vectors(array, points[..., 0], points[..., 1], points[..., 2], **options)


def exact_phase(position, wavelength, azimuth, elevation, r):
    """k (r - |r u - p|) with 60 digits from the float64 direction cosines."""
    with decimal.localcontext(decimal.Context(prec=60)):
        u = [decimal.Decimal(float(c)) for c in oracles.direction(azimuth, elevation)]
        length = sum(c * c for c in u).sqrt()  # the rounded cosines are not quite a unit vector
        source = [decimal.Decimal(r) * c / length for c in u]
        distance = sum((s - decimal.Decimal(float(p))) ** 2 for s, p in zip(source, position, strict=True)).sqrt()
        return 2 * math.pi * float((decimal.Decimal(r) - distance) / decimal.Decimal(wavelength))


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
def test_the_oracle_agrees_with_the_formula_written_as_a_loop(name, wavefront):
    azimuth, elevation, r = 0.4, -0.2, 0.7
    expected = oracles.steering_by_loop(ARRAYS[name], 0.3, azimuth, elevation, r, wavefront)
    actual = oracles.steering(ARRAYS[name], 0.3, np.array([azimuth, elevation, r]), wavefront)
    np.testing.assert_allclose(actual, expected, atol=1e-13)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.complex128, 1e-11), (torch.complex64, 2e-7)])
def test_steering_matches_brute_force(name, wavefront, dtype, tolerance):
    a = vectors(PlanarArray(ARRAYS[name], 0.3), POINTS, wavefront=wavefront, dtype=dtype)
    assert a.dtype == dtype
    expected = oracles.steering(ARRAYS[name], 0.3, POINTS, wavefront)
    np.testing.assert_allclose(a.numpy(), expected, atol=tolerance)


def test_spherical_is_the_default_wavefront():
    array = PlanarArray(ARRAYS["irregular"], 0.3)
    assert torch.equal(vectors(array, POINTS), vectors(array, POINTS, wavefront="spherical"))


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_every_entry_has_unit_modulus_so_the_norm_squared_is_the_element_count(wavefront):
    array = PlanarArray(ARRAYS["volumetric"], 0.3)
    a = vectors(array, POINTS, wavefront=wavefront, dtype=torch.complex128)
    np.testing.assert_allclose(a.abs().numpy(), 1, atol=1e-14)
    np.testing.assert_allclose(a.abs().square().sum(-1).numpy(), array.n_elements, atol=1e-12)


@pytest.mark.parametrize("r", [0.55, 9.5, 100.0, 1e4, 1e7])
def test_float64_phase_is_exact_to_rounding_at_any_range(r):
    array = PlanarArray(oracles.rectangular(12, 12), 0.3)
    for azimuth, elevation in [(0.9, -0.4), (-0.3, 0.1)]:
        angles = torch.tensor([azimuth, elevation], dtype=torch.float64)
        u = direction_cosines(angles[0], angles[1])
        range_m = torch.tensor(r, dtype=torch.float64)
        phase = steering_phase(array.positions_m, u, range_m, array.wavenumber, "spherical")
        for n in (0, 11, 77, 143):
            expected = exact_phase(array.positions_m[n].tolist(), 0.3, azimuth, elevation, r)
            assert float(phase[n]) == pytest.approx(expected, abs=2e-13)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ARRAYS)
def test_phase_at_infinity_is_planar(name, dtype, wavefront):
    array = PlanarArray(ARRAYS[name], 0.3)
    u = direction_cosines(*torch.from_numpy(oracles.box([-0.9, 0.0, 2.5], [-1.2, 0.4], [1.0])).to(dtype).unbind(-1)[:2])
    positions = array.positions_m.to(dtype)
    expected = array.wavenumber * (u.double() @ positions.double().T)
    for r in (math.inf, torch.finfo(dtype).max, 1e36):  # a number whose square is none behaves as infinity does
        phase = steering_phase(positions, u, torch.full(u.shape[:-1], r, dtype=dtype), array.wavenumber, wavefront)
        np.testing.assert_allclose(phase.double(), expected, atol=40 * torch.finfo(dtype).eps)


def test_phase_bends_as_one_over_the_range_up_to_any_range():
    array = PlanarArray(ARRAYS["volumetric"], 0.3)
    u = direction_cosines(torch.tensor(0.4), torch.tensor(-0.2)).double()
    u = u / u.norm()
    projection, squared = array.positions_m @ u, array.positions_m.square().sum(1)
    second = -array.wavenumber * (squared - projection.square()) / 2  # of 1/range
    for r in (1e5, 1e8, 1e20, 1e120, 1e160, 1e300):
        range_m = torch.tensor(r, dtype=torch.float64)
        phase = steering_phase(array.positions_m, u, range_m, array.wavenumber, "spherical")
        expected = array.wavenumber * projection + second / r
        np.testing.assert_allclose(phase, expected, rtol=0, atol=2e-14 + (7 / r) ** 2)


def gradient_at(inverse_range, wavefront, positions):
    inverse = torch.as_tensor(inverse_range, dtype=torch.float64)
    azimuth, elevation = torch.full_like(inverse, 0.4), torch.full_like(inverse, -0.7)
    return steering_phase_gradient(positions, azimuth, elevation, 1 / inverse, 21.0, wavefront)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_derivatives_at_infinity_are_the_limits(wavefront):
    positions = torch.from_numpy(ARRAYS["volumetric"])
    u = direction_cosines(torch.tensor(0.4).double(), torch.tensor(-0.7).double())
    squared = positions.square().sum(1)
    along = {
        "spherical": -21.0 * (squared - (positions @ u).square()) / 2,
        "fresnel": -21.0 * squared / 2,
        "planar": torch.zeros(9, dtype=torch.float64),
    }[wavefront]
    _, gradient = gradient_at([0.0, 1e-300, 1e-170, 1e-140, 1e-100, 1e-30, 1e-15], wavefront, positions)
    np.testing.assert_allclose(gradient[:, 2], along.expand(7, 9), atol=1e-12)
    _, planar = gradient_at([0.0], "planar", positions)
    np.testing.assert_allclose(gradient[:, :2], planar[:, :2].expand(7, 2, 9), atol=1e-12)


@pytest.mark.parametrize("inverse", [0.0, 1e-3, 0.8])
@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_derivatives_agree_with_finite_differences(wavefront, inverse):
    positions = torch.from_numpy(ARRAYS["volumetric"])
    centre = torch.tensor([0.4, -0.7, inverse], dtype=torch.float64)
    step = 1e-5

    def phase(point):
        u = direction_cosines(point[0], point[1])
        return steering_phase(positions, u, 1 / point[2], 21.0, wavefront)

    _, gradient = gradient_at(inverse, wavefront, positions)
    for axis in range(3):
        arm = step * torch.eye(3, dtype=torch.float64)[axis]
        if axis == 2 and inverse == 0:  # from one side, to second order
            slope = (4 * phase(centre + arm) - phase(centre + 2 * arm) - 3 * phase(centre)) / (2 * step)
        else:
            slope = (phase(centre + arm) - phase(centre - arm)) / (2 * step)
        np.testing.assert_allclose(gradient[axis], slope, atol=2e-8)


def test_steering_vectors_take_infinite_ranges():
    array = PlanarArray(ARRAYS["irregular"], 0.3)
    points = oracles.box([-0.4, 2.0], [0.3], [2.0, math.inf])
    a = vectors(array, points, dtype=torch.complex128)
    planar = vectors(array, points, wavefront="planar", dtype=torch.complex128)
    np.testing.assert_allclose(a[..., 1, :], planar[..., 1, :], atol=1e-13)
    np.testing.assert_allclose(a[..., 0, :], oracles.steering(ARRAYS["irregular"], 0.3, points[..., 0, :]), atol=1e-12)


@pytest.mark.parametrize("r", [0.55, 9.5, 100.0])
def test_float32_phase_stays_below_1e_5_rad_on_the_reference_surface(r):
    array = PlanarArray.rectangular()
    azimuth, elevation = torch.linspace(-1, 1, 9)[:, None], torch.linspace(-0.5, 0.5, 5)
    u = direction_cosines(azimuth, elevation)
    phase = steering_phase(array.positions_m.float(), u, torch.full((9, 5), r), array.wavenumber, "spherical")
    assert phase.dtype == torch.float32
    # The float64 reference takes the same rounded directions, positions and ranges: this measures the formula alone.
    source = u.double() * float(torch.tensor(r))
    distance = (source[..., None, :] - array.positions_m.float().double()).norm(dim=-1)
    expected = array.wavenumber * (source.norm(dim=-1, keepdim=True) - distance)
    stretch = (u.double().norm(dim=-1, keepdim=True) - 1).abs().max()  # |u| is 1 only to 6e-8
    assert float((phase.double() - expected).abs().max()) < 1e-5 + array.wavenumber * array.aperture_m * float(stretch)


def test_spherical_tends_to_planar_as_the_second_order_term_does():
    array = PlanarArray(ARRAYS["volumetric"], 0.3)
    bound = array.wavenumber * float(array.positions_m.square().sum(-1).max()) / 2  # k |p|^2 / (2 r), to first order
    for r in (50.0, 500.0, 5e4):
        points = oracles.box([-0.9, 0.2], [0.1, 0.4], [r])
        spherical = oracles.phase(ARRAYS["volumetric"], 0.3, points)
        a, b = (vectors(array, points, wavefront=w, dtype=torch.complex128) for w in ("spherical", "planar"))
        assert float((a - b).abs().max()) <= 1.05 * bound / r
        np.testing.assert_allclose(a.angle().numpy(), np.angle(np.exp(1j * spherical)), atol=1e-8)


def test_fresnel_tends_to_spherical_on_broadside_faster_than_planar():
    array = PlanarArray(ARRAYS["rectangular"], 0.3)
    points = oracles.box([0.0], [0.0], [30.0])
    exact = vectors(array, points, dtype=torch.complex128)
    fresnel = (vectors(array, points, wavefront="fresnel", dtype=torch.complex128) - exact).abs().max()
    planar = (vectors(array, points, wavefront="planar", dtype=torch.complex128) - exact).abs().max()
    assert float(fresnel) < 1e-3 * float(planar)


def test_fresnel_is_wrong_by_more_than_two_radians_at_one_metre():
    points = oracles.box(np.radians(np.linspace(-60, 60, 13)), np.radians(np.linspace(-30, 30, 7)), [1.0])
    array = PlanarArray.rectangular()
    exact = oracles.phase(array.positions_m.numpy(), 0.3, points)
    u = direction_cosines(torch.from_numpy(points[..., 0]), torch.from_numpy(points[..., 1]))
    fresnel = steering_phase(array.positions_m, u, torch.from_numpy(points[..., 2]), array.wavenumber, "fresnel")
    assert np.abs(fresnel.numpy() - exact).max() > 2


def test_phase_is_finite_where_the_source_stands_on_an_element():
    array = PlanarArray([[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]], 0.3)
    a = steering_vectors(array, torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.5), dtype=torch.complex128)
    k = 2 * math.pi / 0.3
    np.testing.assert_allclose(a.numpy(), np.exp(1j * k * np.array([0.5, 0.0])), atol=1e-12)


def test_arguments_broadcast_and_batch_shapes_are_kept():
    array = PlanarArray(ARRAYS["linear"], 0.3)
    azimuth, elevation, r = (
        torch.linspace(-1, 1, 5)[:, None, None],
        torch.linspace(-0.4, 0.4, 3)[:, None],
        torch.tensor([1.0, 4.0]),
    )
    a = steering_vectors(array, azimuth, elevation, r)
    assert a.shape == (5, 3, 2, 7)
    points = np.stack(np.broadcast_arrays(azimuth.double(), elevation.double(), r.double()), axis=-1)
    np.testing.assert_allclose(a.numpy(), oracles.steering(ARRAYS["linear"], 0.3, points), atol=1e-6)
    assert steering_vectors(array, torch.zeros(0), torch.zeros(0), torch.zeros(0)).shape == (0, 7)


@pytest.mark.parametrize("wavefront", oracles.WAVEFRONTS)
def test_phase_is_differentiable_in_position_and_angles(wavefront):
    array = PlanarArray(ARRAYS["volumetric"][:3], 0.3)
    point = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    positions = array.positions_m.clone().requires_grad_()

    def phase(point, positions):
        return steering_phase(positions, direction_cosines(point[0], point[1]), point[2], array.wavenumber, wavefront)

    assert torch.autograd.gradcheck(phase, (point, positions))
    far = torch.tensor([0.3, -0.2, math.inf], dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.functional.jacobian(lambda point: phase(point, array.positions_m), far)
    _, expected = steering_phase_gradient(array.positions_m, *far.detach(), array.wavenumber, wavefront)
    np.testing.assert_allclose(slopes[:, :2].T, expected[:2], atol=1e-12)
    assert not slopes[:, 2].any()


@pytest.mark.parametrize("r", [0.0, -1.0, -math.inf, math.nan])
def test_steering_refuses_ranges_that_are_not_positive(r):
    with pytest.raises(ValueError, match="range_m"):
        steering_vectors(PlanarArray.rectangular(2, 2), torch.zeros(2), torch.zeros(2), torch.tensor([1.0, r]))


def test_steering_refuses_unknown_wavefronts_and_real_dtypes():
    array, zero, one = PlanarArray.rectangular(2, 2), torch.tensor(0.0), torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"wavefront.*spherical.*'round'"):
        steering_vectors(array, zero, zero, one, wavefront="round")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype"):
        steering_vectors(array, zero, zero, one, dtype=torch.float32)


def test_every_advertised_wavefront_is_accepted():
    assert set(WAVEFRONTS) == set(oracles.WAVEFRONTS)
    for wavefront in WAVEFRONTS:
        check_wavefront(wavefront)


# Amplitude of a spherical wave


def test_amplitude_of_a_spherical_wave_is_range_over_distance():
    for positions in ARRAYS.values():
        options = {"wavefront": "spherical_amplitude", "dtype": torch.complex128}
        a = vectors(PlanarArray(positions, 0.3), POINTS, **options).numpy()
        u = np.stack([oracles.direction(az, el) for az, el, _ in POINTS.reshape(-1, 3)])
        r = POINTS.reshape(-1, 3)[:, 2:]
        distance = np.linalg.norm(r[:, None] * u[:, None] - positions, axis=-1)
        expected = r / distance * np.exp(2j * np.pi / 0.3 * (r - distance))
        np.testing.assert_allclose(a.reshape(expected.shape), expected, rtol=1e-10, atol=1e-10)


def test_amplitudes_across_a_metre_differ_in_the_near_field_and_not_in_the_far():
    array = PlanarArray.linear(11, 0.1, 0.3)
    a = steering_vectors(
        array, torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.2), wavefront="spherical_amplitude"
    )
    level = 20 * a.abs().log10()
    assert float(level.max() - level.min()) == pytest.approx(10 * math.log10(1 + 0.5**2 / 0.2**2), abs=1e-4)
    far = steering_vectors(
        array, torch.tensor(0.4), torch.tensor(0.0), torch.tensor(math.inf), wavefront="spherical_amplitude"
    )
    assert torch.equal(far, steering_vectors(array, torch.tensor(0.4), torch.tensor(0.0), torch.tensor(math.inf)))


def test_the_field_of_a_point_source_solves_the_wave_equation():
    """exp(-j k d) / d does: its Laplacian is -k^2 times it, whichever element is asked."""
    k, step = 2 * math.pi / 0.3, 1e-3
    centre = torch.tensor([0.11, -0.07, 0.05], dtype=torch.float64)
    shifts = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)]).double() * step
    place = (torch.tensor(0.4), torch.tensor(-0.2), torch.tensor(0.7))
    field = steering_vectors(
        PlanarArray(centre + shifts, 0.3), *place, wavefront="spherical_amplitude", dtype=torch.complex128
    )
    laplacian = (field[1:].sum() - 6 * field[0]) / step**2
    assert abs(laplacian / field[0] + k * k) < 1e-4 * k * k


def test_a_source_on_an_element_has_no_amplitude():
    array = PlanarArray([[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]], 0.3)
    place = torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.5)
    with pytest.raises(ValueError, match="stands on an element"):
        steering_vectors(array, *place, wavefront="spherical_amplitude")


def test_amplitudes_are_refused_where_forms_count_on_unit_modulus():
    with pytest.raises(ValueError, match="wavefront must be one of spherical, fresnel, planar"):
        check_wavefront("spherical_amplitude")
