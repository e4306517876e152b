"""Codes, channels, the sensing operator, symbols, noise and impairments against float64 loops and properties."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from risfast.covariance import SensingOperator, check_measurements
from risfast.errors import ShapeError
from risfast.geometry import PlanarArray
from risfast.simulate import SceneRandom
from risfast.simulate.channels import add_noise, rician_channel, source_symbols
from risfast.simulate.codes import CODE_KINDS, make_codes, quantize_turns
from risfast.simulate.impairments import Impairments, impair_codes, impaired_steering

IMPAIRMENT_NAMES = [f.name for f in dataclasses.fields(Impairments)]


def random_complex(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).to(dtype)


def dense_phi(codes: torch.Tensor, channel: torch.Tensor) -> np.ndarray:
    """Phi_l = H diag(c_l) for one scene, [L, M, N]."""
    return np.stack([channel.numpy() @ np.diag(c) for c in codes.numpy()])


# --- codes


@pytest.mark.parametrize("kind", CODE_KINDS)
@pytest.mark.parametrize("bits", [1, 2, 3, None])
def test_codes_have_unit_modulus_and_only_the_quantised_phases(kind, bits):
    array = PlanarArray.rectangular(5, 3)
    codes = make_codes(kind, 11, array, bits=bits, draws=SceneRandom(1, range(3)), dtype=torch.complex128)
    assert codes.shape == (3, 11, 15)
    torch.testing.assert_close(codes.abs(), torch.ones(3, 11, 15, dtype=torch.float64), rtol=0, atol=1e-12)
    if bits is not None:
        levels = np.angle(codes.numpy()) * 2**bits / (2 * np.pi)
        assert np.abs(levels - np.round(levels)).max() < 1e-9


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_quantisation_takes_the_nearest_level(bits):
    turns = torch.linspace(-1.5, 1.5, 997, dtype=torch.float64)
    error = (quantize_turns(turns, bits) - turns).abs()
    assert float(error.max()) <= 0.5 / 2**bits + 1e-12
    assert float(error.max()) > 0.49 / 2**bits


def test_square_aperture_has_eight_by_eight_separable_orthogonal_dft_beams():
    array = PlanarArray.rectangular(8, 8)
    codes = make_codes("dft", 64, array, bits=None, dtype=torch.complex128).numpy()
    np.testing.assert_allclose(codes @ codes.conj().T, 64 * np.eye(64), atol=1e-9)
    for beam in codes:  # separable: the 8 x 8 picture of a beam has rank one
        assert np.linalg.matrix_rank(beam.reshape(8, 8), tol=1e-9) == 1


@pytest.mark.parametrize(("n_h", "n_v"), [(12, 12), (24, 3), (1, 40), (40, 1)])
@pytest.mark.parametrize("n_beams", [16, 32, 64])
def test_dft_beams_are_distinct_for_every_aperture(n_h, n_v, n_beams):
    codes = make_codes("dft", n_beams, PlanarArray.rectangular(n_h, n_v), n_beams=n_beams, bits=3)
    assert len({tuple(np.round(np.angle(row) / (np.pi / 4)).astype(int) % 8) for row in codes.numpy()}) == n_beams


@pytest.mark.parametrize(("kind", "count"), [("dft", 16), ("hadamard", 256)])
def test_every_codeword_is_used_once_before_any_is_used_again(kind, count):
    array = PlanarArray.rectangular()
    for draws in (None, SceneRandom(4, [7])):
        codes = make_codes(kind, 2 * count, array, n_beams=16, draws=draws).reshape(2 * count, 144)
        first, second = (
            {tuple(row.round(decimals=3).tolist()) for row in torch.view_as_real(part).flatten(1)}
            for part in (codes[:count], codes[count:])
        )
        assert len(first) == count
        assert first == second


def test_hadamard_codes_are_rows_of_the_sylvester_matrix():
    from scipy.linalg import hadamard

    rows = {tuple(row) for row in hadamard(16)[:, :13].astype(int)}
    codes = make_codes("hadamard", 16, PlanarArray.linear(13, 0.15, 0.3), draws=SceneRandom(0, [3]))[0]
    assert {tuple(row) for row in codes.real.int().tolist()} == rows
    assert float(codes.imag.abs().max()) == 0


def test_mixed_codes_take_the_kinds_in_turn():
    array, draws = PlanarArray.rectangular(4, 4), SceneRandom(9, [2, 5])
    made = {kind: make_codes(kind, 10, array, draws=draws) for kind in CODE_KINDS}
    for snapshot in range(10):
        kind = ("dft", "random", "hadamard")[snapshot % 3]
        assert torch.equal(made["mixed"][:, snapshot], made[kind][:, snapshot])


def test_scenes_take_the_beams_in_different_orders():
    codes = make_codes("dft", 64, PlanarArray.rectangular(), draws=SceneRandom(0, range(2)))
    assert not torch.equal(codes[0], codes[1])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "fourier"}, "kind must be one of"),
        ({"kind": "random"}, "pass draws"),
        ({"kind": "dft", "bits": 0}, "bits must be"),
        ({"kind": "hadamard", "bits": True}, "bits must be"),
        ({"kind": "dft", "n_beams": 20}, "n_beams must be"),
        ({"kind": "dft", "n_snapshots": 0}, "n_snapshots must be"),
    ],
)
def test_bad_code_options_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_codes(**{"n_snapshots": 4, "array": PlanarArray.rectangular(2, 2), **kwargs})


# --- channel


def test_line_of_sight_alone_is_an_outer_product_of_unit_entries():
    channel = rician_channel(PlanarArray.rectangular(5, 4), 7, 1e12, SceneRandom(0, range(6)), dtype=torch.complex128)
    assert channel.shape == (6, 7, 20)
    torch.testing.assert_close(channel.abs(), torch.ones_like(channel.abs()), rtol=0, atol=1e-5)
    singular = torch.linalg.svdvals(channel)
    assert float((singular[:, 1] / singular[:, 0]).max()) < 1e-5


@pytest.mark.parametrize("factor", [0.0, 0.5, 10.0])
def test_channel_entries_have_unit_mean_power_and_the_rician_share(factor):
    draws = SceneRandom(3, range(400))
    channel = rician_channel(PlanarArray.rectangular(6, 6), 8, factor, draws, dtype=torch.complex128)
    n = channel.numel()
    power = channel.abs().square()
    # var |h|^2 of a Rician entry is 1 - (K / (K + 1))^2; five standard errors
    spread = math.sqrt(1 - (factor / (factor + 1)) ** 2) / math.sqrt(n)
    assert abs(float(power.mean()) - 1) < 5 * spread
    assert float(power.var()) == pytest.approx(1 - (factor / (factor + 1)) ** 2, abs=0.03)


def test_each_scene_takes_its_own_factor():
    draws = SceneRandom(3, range(2))
    channel = rician_channel(PlanarArray.rectangular(6, 6), 8, torch.tensor([0.0, 1e9]), draws)
    assert float((channel[0].abs() - 1).abs().max()) > 0.5
    assert float((channel[1].abs() - 1).abs().max()) < 1e-3


def test_negative_rician_factor_is_refused():
    with pytest.raises(ValueError, match="factor"):
        rician_channel(PlanarArray.rectangular(2, 2), 2, -1.0, SceneRandom(0, [0]))


# --- operator


@pytest.mark.parametrize(("snapshots", "antennas", "elements", "rank"), [(1, 1, 1, 1), (7, 3, 13, 2), (5, 5, 5, 5)])
def test_operator_matches_the_dense_matrices(snapshots, antennas, elements, rank):
    codes, channel = random_complex(snapshots, elements), random_complex(antennas, elements, seed=1)
    x, y = random_complex(snapshots, elements, seed=2), random_complex(snapshots, antennas, seed=3)
    factor = random_complex(elements, rank, seed=4)
    operator, phi = SensingOperator(codes, channel), dense_phi(codes, channel)
    np.testing.assert_allclose(operator.apply(x), np.einsum("lmn,ln->lm", phi, x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(operator.adjoint(y), np.einsum("lmn,lm->ln", phi.conj(), y), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(operator.project(factor), phi @ factor.numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(operator.gram(), phi @ phi.conj().transpose(0, 2, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_apply_and_adjoint_are_adjoint_for_batches_and_strided_input(dtype):
    codes = random_complex(3, 13, 7, dtype=dtype).mT  # strided [3, 7, 13]
    channel = random_complex(13, 5, seed=1, dtype=dtype).mT  # one channel for all scenes
    x, y = random_complex(3, 7, 13, seed=2, dtype=dtype), random_complex(3, 7, 5, seed=3, dtype=dtype)
    operator = SensingOperator(codes, channel)
    left, right = (y.conj() * operator.apply(x)).sum(), (operator.adjoint(y).conj() * x).sum()
    torch.testing.assert_close(left, right, rtol=1e-12 if dtype == torch.complex128 else 1e-4, atol=1e-12)


def measurements(**changes):
    given = {"y": random_complex(2, 7, 5), "codes": random_complex(2, 7, 13), "channel": random_complex(2, 5, 13)}
    return {**given, **{name: change(given[name]) for name, change in changes.items()}}


@pytest.mark.parametrize("name", ["y", "codes", "channel"])
def test_transposed_measurements_are_recognised(name):
    with pytest.raises(ShapeError, match=rf"{name} looks transposed, pass {name}\.mT"):
        check_measurements(**measurements(**{name: lambda t: t.mT}))


@pytest.mark.parametrize("name", ["y", "codes", "channel"])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.real, TypeError, "must be complex"),
        (lambda t: t[0, 0], ShapeError, "at least two dimensions"),
        (lambda t: t[:, :, :-1], ShapeError, "must share N|must have shape"),
        (lambda t: t[[0, 0, 0]], ShapeError, "batch dimensions"),
        (lambda t: t * math.nan, ValueError, "must be finite"),
        (lambda t: t * math.inf, ValueError, "must be finite"),
    ],
)
def test_bad_measurements_are_refused_before_any_work(name, change, error, message):
    with pytest.raises(error, match=message):
        check_measurements(**measurements(**{name: change}))


def test_mixed_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"channel is torch\.complex64"):
        check_measurements(**measurements(channel=lambda t: t.to(torch.complex64)))


# --- symbols and noise


def test_independent_symbols_have_the_given_powers_and_no_correlation():
    power = torch.tensor([[1.0, 0.25, 4.0]]).expand(2, 3)
    symbols = source_symbols(40_000, power, SceneRandom(0, [4, 5]))
    covariance = (symbols.mT @ symbols.conj()).numpy() / 40_000
    expected = np.diag([1.0, 0.25, 4.0])
    scale = np.sqrt(np.outer([1, 0.25, 4], [1, 0.25, 4]))
    assert np.abs((covariance - expected) / scale).max() < 5 / math.sqrt(40_000)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_coherent_sources_have_the_given_correlation_and_leave_the_others_alone(correlation):
    power = torch.tensor([[1.0, 0.25, 4.0]])
    coherent = torch.tensor([[True, False, True]])
    symbols = source_symbols(40_000, power, SceneRandom(0, [4]), correlation=correlation, coherent=coherent)[0].numpy()
    covariance = symbols.T @ symbols.conj() / 40_000
    coefficient = np.abs(covariance / np.sqrt(np.outer(power[0], power[0])))
    expected = np.eye(3)
    expected[0, 2] = expected[2, 0] = correlation
    assert np.abs(coefficient - expected).max() < 6 / math.sqrt(40_000)
    alone = source_symbols(40_000, power, SceneRandom(0, [4]))[0].numpy()
    np.testing.assert_array_equal(symbols[:, 1], alone[:, 1])


def test_a_further_source_does_not_shift_the_symbols_of_the_first():
    draws = SceneRandom(0, [4])
    few, many = (source_symbols(9, torch.ones(1, k), draws) for k in (2, 5))
    assert torch.equal(few, many[:, :, :2])


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_power_follows_from_the_measured_signal_power(snr_db):
    clean = random_complex(3, 50, 40)
    y, noise_power = add_noise(clean, snr_db, SceneRandom(0, range(3)))
    expected = np.mean(np.abs(clean.numpy()) ** 2, axis=(1, 2)) / 10 ** (snr_db / 10)
    np.testing.assert_allclose(noise_power, expected, rtol=1e-12)
    measured = np.mean(np.abs((y - clean).numpy()) ** 2, axis=(1, 2))
    np.testing.assert_allclose(measured, expected, rtol=6 / math.sqrt(2000))


def test_a_silent_scene_gets_noise_of_unit_power():
    y, noise_power = add_noise(torch.zeros(1, 50, 40, dtype=torch.complex128), 7.0, SceneRandom(0, [0]))
    assert float(noise_power) == 1
    assert float(y.abs().square().mean()) == pytest.approx(1, abs=6 / math.sqrt(2000))


# --- impairments


@pytest.mark.parametrize("name", IMPAIRMENT_NAMES)
@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf])
def test_impossible_impairments_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Impairments(**{name: value})


@pytest.mark.parametrize(
    ("name", "limit"), [("dropped_elements", 1), ("wavelength_jitter", 0.1), ("spacing_jitter", 0.1)]
)
def test_impairments_beyond_their_limit_are_refused(name, limit):
    Impairments(**{name: limit})
    with pytest.raises(ValueError, match=name):
        Impairments(**{name: limit + 0.01})


def impaired(array: PlanarArray, scenes: int, **effects: float) -> np.ndarray:
    """What the surface does to codes of one, [B, L, N]."""
    codes = torch.ones(scenes, 20, array.n_elements, dtype=torch.complex128)
    return impair_codes(codes, array, Impairments(**effects), SceneRandom(2, range(scenes))).numpy()


def test_a_perfect_system_changes_nothing():
    array = PlanarArray.rectangular(5, 3)
    assert (impaired(array, 2) == 1).all()
    position = torch.tensor([[[0.3, -0.2, 0.7]], [[-0.9, 0.1, 8.0]]], dtype=torch.float64)
    steering = impaired_steering(array, position, "spherical", Impairments(), SceneRandom(0, range(2)))[:, 0].numpy()
    for b in range(2):
        az, el, r = position[b, 0].tolist()
        source = r * np.array([math.sin(az) * math.cos(el), math.sin(el), math.cos(az) * math.cos(el)])
        distance = np.linalg.norm(source - array.positions_m.numpy(), axis=1)
        np.testing.assert_allclose(steering[b], np.exp(1j * array.wavenumber * (r - distance)), atol=1e-9)


def test_code_phase_noise_is_gaussian_and_independent():
    phase = np.angle(impaired(PlanarArray.rectangular(10, 10), 10, code_phase_noise_rad=0.2))
    assert phase.std() == pytest.approx(0.2, rel=0.03)
    assert abs(np.corrcoef(phase[:, :, 0].ravel(), phase[:, :, 1].ravel())[0, 1]) < 0.3


def test_amplitude_jitter_leaves_the_phases_and_never_goes_below_zero():
    codes = impaired(PlanarArray.rectangular(10, 10), 10, amplitude_jitter=0.1)
    assert codes.real.std() == pytest.approx(0.1, rel=0.03)
    assert np.abs(codes.imag).max() == 0
    assert impaired(PlanarArray.rectangular(10, 10), 10, amplitude_jitter=2.0).real.min() == 0


def test_dropped_elements_are_dead_in_every_snapshot():
    codes = impaired(PlanarArray.rectangular(20, 20), 20, dropped_elements=0.25)
    dead = codes == 0
    assert (dead == dead[:, :1]).all()
    assert dead.mean() == pytest.approx(0.25, abs=0.03)
    assert set(np.unique(codes.real)) == {0.0, 1.0}


def test_a_code_offset_is_common_to_the_elements_of_a_snapshot():
    codes = impaired(PlanarArray.rectangular(5, 3), 50, code_offset_rad=0.3)
    assert np.ptp(np.angle(codes), axis=2).max() < 1e-12
    assert np.angle(codes[:, :, 0]).std() == pytest.approx(0.3, rel=0.1)


def test_a_pointing_offset_is_a_phase_ramp_over_the_surface():
    array = PlanarArray.rectangular(5, 3)
    codes = impaired(array, 30, pointing_offset=0.02)
    plane = np.c_[array.positions_m[:, :2].numpy() * array.wavenumber]
    slopes, residual, *_ = np.linalg.lstsq(plane, np.angle(codes).reshape(-1, 15).T, rcond=None)
    assert residual.max() < 1e-20
    assert slopes.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("wavefront", ["spherical", "fresnel", "planar"])
def test_geometry_impairments_move_the_elements_and_the_wavelength(wavefront):
    """The same draws, applied in numpy float64 to one scene at a time."""
    array, draws = PlanarArray.rectangular(4, 3), SceneRandom(8, [3, 1])
    effects = Impairments(wavelength_jitter=0.02, spacing_jitter=0.03, position_jitter_m=0.01)
    position = torch.tensor([[[0.3, -0.2, 0.7]], [[-0.9, 0.1, 8.0]]], dtype=torch.float64)
    steering = impaired_steering(array, position, wavefront, effects, draws)[:, 0].numpy()
    from risfast.simulate.streams import Stream

    wave, scale, jitter = (
        draws.normal(stream, shape).numpy()
        for stream, shape in (
            (Stream.WAVELENGTH_JITTER, ()),
            (Stream.SPACING_JITTER, ()),
            (Stream.POSITION_JITTER, (12, 3)),
        )
    )
    for b in range(2):
        elements = array.positions_m.numpy() * (1 + 0.03 * scale[b]) + 0.01 * jitter[b]
        k = 2 * np.pi / (0.3 * (1 + 0.02 * wave[b]))
        az, el, r = position[b, 0].tolist()
        u = np.array([math.sin(az) * math.cos(el), math.sin(el), math.cos(az) * math.cos(el)])
        path = {
            "spherical": r - np.linalg.norm(r * u - elements, axis=1),
            "fresnel": elements @ u - (elements**2).sum(1) / (2 * r),
            "planar": elements @ u,
        }[wavefront]
        np.testing.assert_allclose(steering[b], np.exp(1j * k * path), atol=1e-9)
