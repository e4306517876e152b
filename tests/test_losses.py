"""Losses of covariances and factors: what they say, where they are zero and one, and their gradients at the corners."""

import math

import numpy as np
import oracles
import pytest
import torch
from gradients import gradient_of

from risfast.covariance import covariance_from_factor, effective_covariance
from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, SensorArray
from risfast.losses import (
    BackboneObjective,
    ObjectiveOptions,
    capon_peak_contrast,
    factor_nmse,
    orthogonality,
    subspace_alignment,
)
from risfast.models.base import CovarianceEstimate
from risfast.models.transformer import TransformerEstimate
from risfast.simulate.scenes import SystemConfig, generate_scenes

SURFACE = PlanarArray.rectangular()
POSITIONS = oracles.rectangular(12, 12)
SCENES = generate_scenes(SystemConfig(n_snapshots=2, n_sources=(0, 5)), 4711, range(12))
TOLERANCE = {torch.complex64: 2e-5, torch.complex128: 1e-12}


def random_factor(seed, *shape, dtype=torch.complex128):
    return torch.from_numpy(oracles.complex_normal(np.random.default_rng(seed), *shape)).to(dtype)


def positions_of(*sources):
    """(1, K, 3) in radians and metres from (degrees, degrees, metres), and a mask of ones."""
    position = torch.tensor(sources, dtype=torch.float64).reshape(1, -1, 3)
    position[..., :2] = position[..., :2].deg2rad()
    return position, torch.ones(position.shape[:2], dtype=torch.bool)


def factor_of(position, mask):
    a = oracles.steering(POSITIONS, 0.3, position.numpy())
    return torch.from_numpy(a).mT * mask[:, None]


def assert_finite(value, gradient):
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(torch.view_as_real(gradient) if gradient.is_complex() else gradient).all())


# factor_nmse


def nmse_by_matrices(F_hat, F_true):
    """The formula with N x N matrices."""
    values = []
    for f, t in zip(F_hat.numpy().astype(complex), F_true.numpy().astype(complex), strict=True):
        R, T = f @ f.conj().T, t @ t.conj().T
        R, T = R / np.trace(R).real, T / np.trace(T).real
        values.append(np.sum(abs(R - T) ** 2) / np.sum(abs(T) ** 2))
    return np.array(values)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("k_f", "k"), [(1, 1), (10, 5), (3, 5), (60, 2)])
def test_factor_nmse_is_that_of_the_matrices(k_f, k, dtype):
    F_hat, F_true = random_factor(3, 4, 25, k_f, dtype=dtype), random_factor(4, 4, 25, k, dtype=dtype)
    expected = nmse_by_matrices(F_hat, F_true)
    np.testing.assert_allclose(factor_nmse(F_hat, F_true), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_factor_nmse_is_zero_at_the_truth_whatever_its_scale_rotation_and_empty_columns(dtype):
    truth = SCENES.true_factor().to(dtype)[SCENES.n_sources > 0]
    unitary = torch.linalg.qr(random_factor(5, 5, 5))[0].to(dtype)
    prediction = torch.cat([3e-7 * truth @ unitary, torch.zeros_like(truth)], -1)
    assert float(factor_nmse(prediction, truth).max()) <= TOLERANCE[dtype]


def test_factor_nmse_does_not_depend_on_the_scales_even_extreme_ones():
    F_hat, F_true = random_factor(6, 3, 20, 4, dtype=torch.complex64), random_factor(7, 3, 20, 2, dtype=torch.complex64)
    expected = factor_nmse(F_hat, F_true)
    for scale in (1e-25, 1e25):
        value, gradient = gradient_of(lambda f: factor_nmse(f, F_true), F_hat * scale)
        torch.testing.assert_close(value, expected)
        assert bool((gradient.abs() * scale < 10).all())
        torch.testing.assert_close(factor_nmse(F_hat, F_true * scale), expected)


def test_factor_nmse_of_a_zero_factor_is_one_and_its_gradient_finite():
    truth = SCENES.true_factor()
    value, gradient = gradient_of(lambda f: factor_nmse(f, truth), torch.zeros(12, 144, 4, dtype=torch.complex64))
    torch.testing.assert_close(value, (SCENES.n_sources > 0).float())
    assert_finite(value, gradient)


def test_scenes_without_sources_add_nothing_and_pull_nowhere():
    empty = torch.zeros(2, 144, 5, dtype=torch.complex64)
    prediction = random_factor(8, 2, 144, 3, dtype=torch.complex64)
    for loss in (factor_nmse, subspace_alignment):
        value, gradient = gradient_of(lambda f, loss=loss: loss(f, empty), prediction)
        assert bool((value == 0).all())
        assert bool((gradient == 0).all())
        assert bool((loss(prediction, empty[..., :0]) == 0).all())


@pytest.mark.parametrize("loss", [factor_nmse, subspace_alignment, lambda f, _: orthogonality(f)])
def test_gradients_of_the_factor_losses_are_those_of_finite_differences(loss):
    truth = random_factor(9, 2, 9, 3)
    truth[1, :, 2] = 0
    prediction = random_factor(10, 2, 9, 4).requires_grad_()
    # the loss takes the scale of the factor as given, which is exact only for what does not depend on it
    assert torch.autograd.gradcheck(lambda f: loss(f, truth), prediction)


@pytest.mark.parametrize("loss", [factor_nmse, subspace_alignment])
def test_the_order_of_the_sources_and_of_the_columns_does_not_matter(loss):
    truth, prediction = SCENES.true_factor(), random_factor(11, 12, 144, 6, dtype=torch.complex64)
    expected = loss(prediction, truth)
    torch.testing.assert_close(loss(prediction, truth[..., [3, 0, 4, 2, 1]]), expected)
    torch.testing.assert_close(loss(prediction[..., [5, 2, 0, 1, 4, 3]], truth), expected)


@pytest.mark.parametrize("loss", [factor_nmse, subspace_alignment])
def test_a_scene_that_is_not_finite_spoils_only_itself(loss):
    prediction = random_factor(12, 12, 144, 6, dtype=torch.complex64)
    truth = SCENES.true_factor()
    expected = loss(prediction, truth)
    where = int(SCENES.n_sources.argmax())
    prediction[where, 3, 1] = complex(math.nan, 0)
    value = loss(prediction, truth)
    assert math.isnan(float(value[where]))
    others = torch.arange(12) != where
    torch.testing.assert_close(value[others], expected[others])


# subspace_alignment


def test_subspace_alignment_is_the_power_outside_the_span():
    prediction, truth = random_factor(13, 3, 12, 5), random_factor(14, 3, 12, 4)
    expected = []
    for f, t in zip(prediction.numpy(), truth.numpy(), strict=True):
        rest = f - t @ np.linalg.lstsq(t, f, rcond=None)[0]
        expected.append(np.sum(abs(rest) ** 2) / np.sum(abs(f) ** 2))
    np.testing.assert_allclose(subspace_alignment(prediction, truth), expected, rtol=1e-8)


def test_subspace_alignment_is_zero_within_the_span_and_one_outside_it():
    truth = SCENES.true_factor()
    some = SCENES.n_sources > 0
    inside = truth @ random_factor(15, 12, 5, 3, dtype=torch.complex64)
    assert float(subspace_alignment(inside, truth).max()) <= 1e-5
    basis = torch.linalg.qr(truth.to(torch.complex128))[0]
    noise = random_factor(16, 12, 144, 3)
    outside = (noise - basis @ (basis.mH @ noise)).to(torch.complex64)
    torch.testing.assert_close(subspace_alignment(outside, truth)[some], torch.ones(int(some.sum())))
    torch.testing.assert_close(subspace_alignment(torch.zeros_like(inside), truth), some.float())


@pytest.mark.parametrize("apart_deg", [0.0, 1e-7, 1e-3])
def test_sources_that_coincide_span_what_one_does(apart_deg):
    position, mask = positions_of((10, 5, 3.0), (10 + apart_deg, 5, 3.0), (-30, 0, 1.0))
    truth = factor_of(position, mask)
    value, gradient = gradient_of(lambda f: subspace_alignment(f, truth), truth[..., [0, 2]].clone())
    assert_finite(value, gradient)
    assert float(value) <= 1e-9
    rest = random_factor(17, 1, 144, 2)
    span = torch.linalg.qr(truth[..., [0, 2]])[0]
    rest = rest - span @ (span.mH @ rest)
    assert float(subspace_alignment(rest, truth[..., [0, 0, 2]])) == pytest.approx(1.0, abs=1e-12)


def test_subspace_alignment_does_not_depend_on_the_powers_of_the_sources():
    truth, prediction = SCENES.true_factor(), random_factor(18, 12, 144, 6, dtype=torch.complex64)
    power = torch.tensor([1e-4, 1.0, 30.0, 2e-2, 5e3])
    torch.testing.assert_close(subspace_alignment(prediction, truth * power), subspace_alignment(prediction, truth))


# orthogonality


def test_orthogonality_is_the_off_diagonal_share():
    F = random_factor(19, 3, 11, 4).numpy()
    expected = []
    for f in F:
        above = below = 0.0
        for i in range(4):
            for j in range(4):
                if i != j:
                    above += abs(np.vdot(f[:, i], f[:, j])) ** 2
                    below += np.linalg.norm(f[:, i]) ** 2 * np.linalg.norm(f[:, j]) ** 2
        expected.append(above / below)
    np.testing.assert_allclose(orthogonality(torch.from_numpy(F)), expected, rtol=2e-6)


def test_orthogonality_is_zero_for_orthogonal_columns_and_one_for_parallel_ones():
    columns = torch.linalg.qr(random_factor(20, 2, 10, 4))[0] * torch.tensor([1.0, 0.1, 3.0, 0.0])
    assert float(orthogonality(columns).max()) <= 1e-12
    parallel = random_factor(21, 2, 10, 1) * torch.tensor([1.0, -2.0, 1j])
    torch.testing.assert_close(orthogonality(parallel), torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("columns", [0, 1, 4])
def test_orthogonality_of_few_columns_or_none_is_zero_with_a_finite_gradient(columns):
    value, gradient = gradient_of(orthogonality, torch.zeros(2, 10, columns, dtype=torch.complex64))
    assert bool((value == 0).all())
    assert_finite(value, gradient)


@pytest.mark.parametrize("small", [0.0, 1e-12, 1e-6, 1e-3])
def test_orthogonality_does_not_blow_up_where_one_column_holds_the_power(small):
    F = random_factor(22, 1, 10, 3)
    F[..., 1:] *= small
    value, gradient = gradient_of(orthogonality, F)
    assert_finite(value, gradient)
    assert 0 <= float(value) <= 1
    # d/df of |f^H g|^2 / (1e-6 |g|^4) peaks where both terms of the denominator are equal, at some 1e3 / |g|
    assert float(gradient.abs().max()) <= 1e3


# capon_peak_contrast


def contrast_by_loops(R, position, loading, rings, margin):
    """One scene of separated sources, by the formula."""
    n = len(R)
    delta = loading * np.trace(R).real / n
    inverse = np.linalg.inv(R + delta * np.eye(n))

    def level(azimuth, elevation, r):
        a = oracles.steering(POSITIONS, 0.3, np.array([[azimuth, elevation, r]]))[0]
        return 10 * math.log10(n / (a.conj() @ inverse @ a).real)

    values = []
    for azimuth, elevation, r in position:
        short = [
            max(0.0, 1 - (level(azimuth, elevation, r) - level(azimuth + q * dx, elevation + q * dy, r)) / margin)
            for q in rings
            for dx, dy in ((math.cos(t), math.sin(t)) for t in np.arange(8) * math.pi / 4)
        ]
        values.append(np.mean(short))
    return np.mean(values)


def test_capon_peak_contrast_is_the_formula():
    position, mask = positions_of((20, 5, 1.5), (-25, -10, 4.0))
    R = covariance_from_factor(torch.cat([factor_of(position, mask), 6 * random_factor(23, 1, 144, 30)], -1))
    R = effective_covariance(R)
    rings = (math.radians(3.0), math.radians(8.0))
    expected = contrast_by_loops(R[0].numpy(), position[0].numpy(), 2e-2, rings, 25.0)
    value = capon_peak_contrast(R, SURFACE, position, mask, loading=2e-2, ring_rad=rings, margin_db=25.0)
    assert 0.05 < expected < 0.95
    assert float(value) == pytest.approx(expected, rel=1e-9)
    single = capon_peak_contrast(
        R.to(torch.complex64), SURFACE, position, mask, loading=2e-2, ring_rad=rings, margin_db=25.0
    )
    assert float(single) == pytest.approx(expected, rel=1e-4)


def test_capon_peak_contrast_is_zero_at_the_truth():
    some = SCENES.n_sources > 0
    R = effective_covariance(SCENES.true_covariance()[some])
    value = capon_peak_contrast(R, SURFACE, SCENES.position[some], SCENES.mask[some])
    assert bool((value == 0).all())


def test_capon_peak_contrast_of_a_flat_spectrum_is_one_and_of_a_hole_more():
    position, mask = positions_of((20, 5, 1.5), (-25, -10, 4.0))
    eye = torch.eye(144, dtype=torch.complex64)[None]
    for R in (eye, torch.zeros_like(eye)):
        value, gradient = gradient_of(lambda r: capon_peak_contrast(r, SURFACE, position, mask), R)
        torch.testing.assert_close(value, torch.ones(1), atol=1e-5, rtol=0)
        assert_finite(value, gradient)
    A = factor_of(position, mask)
    hole = eye - (A @ torch.linalg.solve(A.mH @ A, A.mH)).to(torch.complex64) * 0.99
    assert float(capon_peak_contrast((hole + hole.mH) / 2, SURFACE, position, mask)) > 1.2


def test_capon_peak_contrast_knows_the_range():
    right, mask = positions_of((20, 5, 1.0))
    wrong, _ = positions_of((20, 5, 8.0))
    R = effective_covariance(covariance_from_factor(factor_of(right, mask)))
    assert float(capon_peak_contrast(R, SURFACE, right, mask)) == 0
    assert float(capon_peak_contrast(R, SURFACE, wrong, mask)) > 0.2


def test_capon_peak_contrast_descends_towards_the_truth():
    position, mask = positions_of((20, 5, 1.5))
    truth = effective_covariance(covariance_from_factor(factor_of(position, mask)))
    eye = torch.eye(144, dtype=torch.complex128)[None]
    share = torch.tensor(1e-3, dtype=torch.float64, requires_grad=True)
    value = capon_peak_contrast(share * truth + (1 - share) * eye, SURFACE, position, mask)
    value.sum().backward()
    assert 0 < float(value.detach()) < 1
    assert float(share.grad) < 0


def test_sources_too_close_to_tell_apart_do_not_count_each_others_peaks():
    position, mask = positions_of((20, 5, 2.0), (25, 5, 2.0))
    R = effective_covariance(covariance_from_factor(factor_of(position, mask)))
    assert float(capon_peak_contrast(R, SURFACE, position, mask)) == 0


def test_coinciding_sources_masked_ones_and_none_have_finite_gradients():
    position, mask = positions_of((20, 5, 2.0), (20, 5, 2.0), (0, 0, 1.0))
    position[:, 2] = 0  # as masked positions come
    mask[:, 2] = False
    position, mask = position.expand(2, -1, -1), torch.cat([mask, torch.zeros_like(mask)])
    R = effective_covariance(covariance_from_factor(random_factor(24, 2, 144, 4)))
    value, gradient = gradient_of(lambda r: capon_peak_contrast(r, SURFACE, position, mask), R)
    assert_finite(value, gradient)
    assert float(value[1]) == 0
    assert bool((gradient[1] == 0).all())
    alone = capon_peak_contrast(R[:1], SURFACE, position[:1, :1], mask[:1, :1])
    torch.testing.assert_close(value[:1], alone)


def test_the_order_of_the_sources_does_not_matter_for_the_contrast():
    R = effective_covariance(SCENES.true_covariance()[SCENES.n_sources > 0], snr_db=-12.0)
    position, mask = SCENES.position[SCENES.n_sources > 0], SCENES.mask[SCENES.n_sources > 0]
    order = [4, 2, 0, 1, 3]
    expected = capon_peak_contrast(R, SURFACE, position, mask, margin_db=30.0)
    assert float(expected.max()) > 0
    torch.testing.assert_close(
        capon_peak_contrast(R, SURFACE, position[:, order], mask[:, order], margin_db=30.0), expected
    )


def test_a_matrix_that_is_not_definite_gives_nan_for_its_scene_alone():
    position, mask = (t.expand(2, *t.shape[1:]) for t in positions_of((20, 5, 2.0)))
    R = torch.eye(144, dtype=torch.complex64).repeat(2, 1, 1)
    R[1, 0, 0] = -1
    value = capon_peak_contrast(R, SURFACE, position, mask)
    assert torch.isnan(value).tolist() == [False, True]


EYE = torch.eye(144, dtype=torch.complex64)[None]
FACTOR = torch.ones(1, 144, 2, dtype=torch.complex64)
PLACE, HERE = positions_of((20, 5, 2.0))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: factor_nmse(FACTOR[:, :9], FACTOR), ShapeError, "F_hat and F_true must share"),
        (lambda: factor_nmse(FACTOR, FACTOR.real), TypeError, "F_true must be complex"),
        (lambda: subspace_alignment(FACTOR[0], FACTOR), ShapeError, "F_hat must have shape"),
        (lambda: orthogonality(FACTOR.real), TypeError, "F_hat must be complex"),
        (
            lambda: capon_peak_contrast(FACTOR, SURFACE, PLACE, HERE),
            ShapeError,
            r"covariance must have shape \(B, N, N\)",
        ),
        (lambda: capon_peak_contrast(EYE[:, :9, :9], SURFACE, PLACE, HERE), ShapeError, "N = 144"),
        (lambda: capon_peak_contrast(EYE, SURFACE, PLACE, HERE, loading=0), ValueError, "loading"),
        (lambda: capon_peak_contrast(EYE, SURFACE, PLACE, HERE, margin_db=0), ValueError, "margin_db"),
        (lambda: capon_peak_contrast(EYE, SURFACE, PLACE, HERE, ring_rad=(5.0,)), ValueError, "ring_rad"),
        (lambda: capon_peak_contrast(EYE, SURFACE, PLACE, HERE, ring_rad=()), ValueError, "ring_rad"),
        (lambda: capon_peak_contrast(EYE, SURFACE, PLACE[0], HERE), ShapeError, "position must have shape"),
        (lambda: capon_peak_contrast(EYE, SURFACE, PLACE, HERE[0]), ShapeError, "mask must have shape"),
        (lambda: capon_peak_contrast(EYE, SURFACE, PLACE, HERE.float()), TypeError, "mask must be a bool"),
        (lambda: capon_peak_contrast(EYE, SURFACE, PLACE.long(), HERE), TypeError, "position must be a real"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_every_term_has_a_weight_and_one_without_is_not_computed():
    scenes = generate_scenes(
        SystemConfig(array=SensorArray.rectangular(4, 3), n_antennas=2, n_snapshots=2), 0, range(3)
    )
    generator = torch.Generator().manual_seed(0)
    factor = scenes.true_factor() + 0.1 * torch.randn(3, 12, 5, dtype=torch.complex64, generator=generator)
    estimate = CovarianceEstimate(factor)
    assert set(BackboneObjective()(estimate, scenes).parts) == {"nmse"}
    weights = {"nmse": 2.0, "alignment": 0.5, "orthogonality": 0.25, "contrast": 0.125}
    found = BackboneObjective(ObjectiveOptions(**weights))(estimate, scenes)
    assert set(found.parts) == set(weights)
    total = sum(weight * float(found.parts[name]) for name, weight in weights.items())
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert float(found.parts["alignment"]) == pytest.approx(
        float(subspace_alignment(factor, scenes.true_factor()).mean())
    )
    placed = TransformerEstimate(factor, positions=scenes.position + 0.1)
    with_places = BackboneObjective(ObjectiveOptions(chamfer=1.0))(placed, scenes)
    assert set(with_places.parts) == {"nmse", "position", "chamfer"}
    assert float(with_places.parts["chamfer"]) > 0
