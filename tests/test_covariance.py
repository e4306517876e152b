"""The effective covariance and the estimates from measurements, against float64 numpy written from the formulas."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from risfast.covariance import (
    als_covariance,
    als_fit,
    covariance_from_factor,
    effective_covariance,
    ls_covariance,
    ls_snapshots,
    matched_filter_covariance,
)
from risfast.errors import ShapeError
from risfast.geometry import PlanarArray
from risfast.simulate import SystemConfig, generate_scenes

SMALL = SystemConfig(
    array=PlanarArray.rectangular(6, 6), n_antennas=8, n_snapshots=16, n_sources=(1, 3), range_m=(0.5, 4.0)
)


def random_complex(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).to(dtype)


def random_covariance(*batch: int, n: int = 7, seed: int = 0, dtype: torch.dtype = torch.complex128) -> torch.Tensor:
    return covariance_from_factor(random_complex(*batch, n, n, seed=seed)).to(dtype)


def measurements(seed: int = 0, batch: tuple[int, ...] = (2,), sizes: tuple[int, int, int] = (7, 3, 13), **kwargs):
    """y [.., L, M], codes of any modulus [.., L, N], channel [.., M, N]."""
    n_snapshots, m, n = sizes
    return (
        random_complex(*batch, n_snapshots, m, seed=seed, **kwargs),
        random_complex(*batch, n_snapshots, n, seed=seed + 1, **kwargs),
        random_complex(*batch, m, n, seed=seed + 2, **kwargs),
    )


def unit_trace(r: np.ndarray) -> np.ndarray:
    return r * len(r) / np.trace(r).real


def trace(r: torch.Tensor) -> torch.Tensor:
    return r.diagonal(dim1=-2, dim2=-1).sum(-1)


# --- the effective covariance


@pytest.mark.parametrize("n", [1, 2, 7, 13])
@pytest.mark.parametrize(("beta", "snr_db", "loading"), [(0.0, None, 0.0), (0.3, 4.0, 0.01), (1.0, -3.0, 0.0)])
def test_the_builder_matches_its_formula(n, beta, snr_db, loading):
    estimate, sample = random_covariance(3, n=n), 50 * random_covariance(3, n=n, seed=1)
    result = effective_covariance(estimate, sample=sample, beta=beta, snr_db=snr_db, loading=loading, strict=True)
    for b in range(3):
        expected = (1 - beta) * unit_trace(estimate[b].numpy()) + beta * unit_trace(sample[b].numpy())
        if snr_db is not None:
            alpha = 1 / (1 + 10 ** (snr_db / 10))
            expected = (1 - alpha) * expected + alpha * np.eye(n)
        np.testing.assert_allclose(result[b].numpy(), expected + loading * np.eye(n), rtol=1e-12, atol=1e-12)


def test_no_loading_is_added_unless_asked_for():
    """The spectrum loads; a singular estimate must reach it singular."""
    singular = covariance_from_factor(random_complex(7, 2))
    assert float(torch.linalg.eigvalsh(effective_covariance(singular))[0]) < 1e-12
    assert float(torch.linalg.eigvalsh(effective_covariance(singular, loading=0.1))[0]) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_scale_of_the_inputs_does_not_matter(dtype):
    estimate, sample = random_covariance(2, dtype=dtype), random_covariance(2, seed=1, dtype=dtype)
    first = effective_covariance(estimate, sample=sample, beta=0.4, snr_db=3.0)
    second = effective_covariance(1e12 * estimate, sample=1e-12 * sample, beta=0.4, snr_db=3.0)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(trace(first), torch.full((2,), 7.0, dtype=dtype))
    assert torch.equal(first, first.mH)


def test_a_result_is_a_fixed_point():
    once = effective_covariance(random_covariance(2))
    torch.testing.assert_close(effective_covariance(once), once, rtol=1e-14, atol=0)


def test_shrinkage_goes_from_the_estimate_to_the_identity_with_the_snr():
    estimate = random_covariance(4)
    plain, eye = effective_covariance(estimate), torch.eye(7, dtype=torch.complex128)
    snr_db = torch.tensor([math.inf, 300.0, 0.0, -math.inf])
    shrunk = effective_covariance(estimate, snr_db=snr_db)
    torch.testing.assert_close(shrunk[0], plain[0], rtol=0, atol=0)
    torch.testing.assert_close(shrunk[1], plain[1])
    torch.testing.assert_close(shrunk[2], (plain[2] + eye) / 2)
    torch.testing.assert_close(shrunk[3], eye, rtol=0, atol=0)


def test_shrinkage_is_white_noise_at_that_snr_at_each_element():
    estimate = effective_covariance(random_covariance())
    noisy = estimate + torch.eye(7) / 10**0.6
    torch.testing.assert_close(effective_covariance(estimate, snr_db=6.0), effective_covariance(noisy))


def test_strided_and_unbatched_input_gives_the_same_matrix():
    estimate = random_covariance(3, 2)
    strided = estimate.mT.contiguous().mT
    torch.testing.assert_close(effective_covariance(strided)[1, 1], effective_covariance(estimate[1, 1]))
    assert effective_covariance(estimate[:0]).shape == (0, 2, 7, 7)


def test_gradients_flow_and_match_finite_differences():
    def build(factor):
        r = effective_covariance(covariance_from_factor(factor), sample=random_covariance(2, n=3), beta=0.2, snr_db=5.0)
        return torch.view_as_real(r)

    assert torch.autograd.gradcheck(build, random_complex(2, 3, 2, seed=5).requires_grad_())


BROKEN = {
    "holds NaN or infinite values": lambda r: r * math.nan,
    "is not Hermitian beyond rounding": lambda r: r + 0.01j * torch.eye(7),
    "has a trace that is not positive": lambda r: -r,
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("which", ["estimate", "sample"])
def test_strict_mode_refuses_a_broken_matrix_and_counts_it(fault, which):
    matrices = {"estimate": random_covariance(3), "sample": random_covariance(3, seed=1)}
    matrices[which][1] = BROKEN[fault](matrices[which][1])
    with pytest.raises(ValueError, match=f"{which} {fault} in 1 of 3"):
        effective_covariance(**matrices, beta=0.5, strict=True)


@pytest.mark.parametrize("fault", BROKEN)
def test_otherwise_a_broken_matrix_warns_and_leaves_its_neighbours_alone(fault):
    estimate = random_covariance(3)
    expected = effective_covariance(estimate)
    estimate[1] = BROKEN[fault](estimate[1])
    with pytest.warns(RuntimeWarning, match=fault):
        result = effective_covariance(estimate)
    assert torch.equal(result[[0, 2]], expected[[0, 2]])
    if "Hermitian" in fault:  # the skew part is dropped
        torch.testing.assert_close(result[1], expected[1])
    else:
        assert torch.equal(result[1], torch.eye(7, dtype=torch.complex128))


def test_the_warning_is_shown_once():
    import warnings

    with warnings.catch_warnings(record=True) as shown:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for scenes in (1, 2, 3):
            effective_covariance(torch.zeros(scenes, 3, 3, dtype=torch.complex64))
    assert len(shown) == 1


def test_a_broken_matrix_sends_no_nan_to_the_gradients_of_the_others():
    estimate = random_covariance(3)
    estimate[1] = 0
    estimate.requires_grad_()
    with pytest.warns(RuntimeWarning):
        effective_covariance(estimate, snr_db=3.0).abs().square().sum().backward()
    assert bool(estimate.grad.isfinite().all())
    assert float(estimate.grad[1].abs().max()) == 0
    assert float(estimate.grad[0].abs().max()) > 0


def test_rounding_of_single_precision_is_not_a_fault():
    factor = random_complex(144, 500, dtype=torch.complex64)
    effective_covariance((factor @ factor.mH)[None], strict=True)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"estimate": random_complex(7, 3)}, ShapeError, "estimate must have shape"),
        ({"estimate": random_covariance().real}, TypeError, "estimate must be complex"),
        ({"beta": 0.5}, ValueError, "pass sample"),
        ({"beta": -0.1}, ValueError, "beta"),
        ({"beta": math.nan}, ValueError, "beta"),
        ({"sample": random_covariance(n=6), "beta": 0.5}, ShapeError, "sample must match"),
        ({"sample": random_covariance(dtype=torch.complex64), "beta": 0.5}, ShapeError, "sample must match"),
        ({"loading": -1e-3}, ValueError, "loading"),
        ({"snr_db": math.nan}, ValueError, "snr_db"),
        ({"snr_db": torch.zeros(3)}, ShapeError, "snr_db"),
    ],
)
def test_bad_arguments_of_the_builder_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        effective_covariance(**{"estimate": random_covariance(), **kwargs})


# --- least squares and matched filter


@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 3, 13), (5, 13, 3), (2, 5, 5)])
def test_ls_matches_the_regularised_normal_equations(sizes):
    """(Phi^H Phi + lambda I)^-1 Phi^H y, the N x N form that the code avoids."""
    y, codes, channel = measurements(sizes=sizes)
    snapshots = ls_snapshots(y, codes, channel, ridge=0.7)
    covariance = ls_covariance(y, codes, channel, ridge=0.7)
    n = sizes[2]
    for b in range(2):
        expected = np.zeros((n, n), complex)
        for i in range(sizes[0]):
            phi = channel[b].numpy() @ np.diag(codes[b, i].numpy())
            x = np.linalg.solve(phi.conj().T @ phi + 0.7 * np.eye(n), phi.conj().T @ y[b, i].numpy())
            np.testing.assert_allclose(snapshots[b, i].numpy(), x, rtol=1e-9, atol=1e-9)
            expected += np.outer(x, x.conj()) / sizes[0]
        np.testing.assert_allclose(covariance[b].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_matched_filter_matches_the_loop():
    y, codes, channel = measurements()
    result = matched_filter_covariance(y, codes, channel)
    for b in range(2):
        phis = [channel[b].numpy() @ np.diag(c) for c in codes[b].numpy()]
        gain = np.mean([np.trace(p @ p.conj().T).real / 3 for p in phis])
        x = [p.conj().T @ v / gain for p, v in zip(phis, y[b].numpy(), strict=True)]
        expected = np.mean([np.outer(v, v.conj()) for v in x], axis=0)
        np.testing.assert_allclose(result[b].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_the_default_ridge_is_noise_over_the_power_per_element():
    y, codes, channel = measurements()
    default = ls_covariance(y, codes, channel, noise_power=torch.tensor([0.2, 0.5], dtype=torch.float64))
    for b, noise in enumerate((0.2, 0.5)):
        gain = np.mean([np.linalg.norm(channel[b].numpy() * c) ** 2 / 3 for c in codes[b].numpy()])
        element = (np.mean(np.abs(y[b].numpy()) ** 2) - noise) / gain
        expected = ls_covariance(y[b], codes[b], channel[b], ridge=noise / element)
        torch.testing.assert_close(default[b], expected, rtol=1e-9, atol=0)


def estimate_of(name: str, y, codes, channel, **kwargs) -> torch.Tensor:
    if name == "ls":
        return ls_covariance(y, codes, channel, **kwargs)
    if name == "matched filter":
        return matched_filter_covariance(y, codes, channel)
    return covariance_from_factor(als_covariance(y, codes, channel, 3, **kwargs))


ESTIMATORS = ["ls", "matched filter", "als"]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("noise_power", [None, 0.0, 0.3, 1e3])
def test_estimates_follow_the_units_of_the_measurements(name, noise_power):
    """y -> s y with sigma -> s sigma scales R by s^2; H -> s H as well leaves R alone."""
    y, codes, channel = measurements()
    kwargs = {} if noise_power is None else {"noise_power": noise_power}
    scaled = {} if noise_power is None else {"noise_power": 4 * noise_power}
    base = estimate_of(name, y, codes, channel, **kwargs)
    torch.testing.assert_close(estimate_of(name, 2 * y, codes, channel, **scaled) / 4, base, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(estimate_of(name, 2 * y, codes, 2 * channel, **scaled), base, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_hermitian_and_positive_semidefinite_and_repeatable(name):
    given = measurements()
    r = estimate_of(name, *given)
    torch.testing.assert_close(r, r.mH, rtol=0, atol=1e-14)
    assert float(torch.linalg.eigvalsh(r).min()) > -1e-10
    assert torch.equal(r, estimate_of(name, *given))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_do_not_depend_on_the_batch_strides_or_order_of_snapshots(name):
    y, codes, channel = measurements(batch=(3,))
    r = estimate_of(name, y, codes, channel)
    strided = [t.mT.contiguous().mT for t in (y, codes, channel)]
    torch.testing.assert_close(estimate_of(name, *strided), r, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(estimate_of(name, y[1], codes[1], channel[1]), r[1], rtol=1e-7, atol=1e-9)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(estimate_of(name, y[:, order], codes[:, order], channel), r, rtol=1e-7, atol=1e-9)
    assert estimate_of(name, y[:0], codes[:0], channel[:0]).shape == (0, 13, 13)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_codebook_and_channel_serve_a_batch_of_measurements(name):
    y, codes, channel = measurements(batch=())
    several = torch.stack([y, 2 * y, y * 1j])
    each = torch.stack([estimate_of(name, v, codes, channel) for v in several])
    torch.testing.assert_close(estimate_of(name, several, codes, channel), each, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("silent", ["y", "codes", "channel"])
def test_silence_gives_zero_and_no_nan(name, silent):
    y, codes, channel = (t * (n != silent) for n, t in zip(("y", "codes", "channel"), measurements(), strict=True))
    assert float(estimate_of(name, y, codes, channel).abs().max()) == 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_dead_element_gets_no_power(name):
    y, codes, channel = measurements()
    codes[..., 4] = 0
    r = estimate_of(name, y, codes, channel)
    assert float(r[:, 4].abs().max()) < 1e-9 * float(r.abs().max())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_transposed_measurements_are_named(name):
    y, codes, channel = measurements()
    with pytest.raises(ShapeError, match="y looks transposed"):
        estimate_of(name, y.mT, codes, channel)


@pytest.mark.parametrize("name", ["ls", "als"])
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"noise_power": -1.0}, ValueError, "noise_power"),
        ({"noise_power": math.nan}, ValueError, "noise_power"),
        ({"noise_power": torch.ones(3)}, ShapeError, "noise_power"),
    ],
)
def test_bad_noise_powers_are_named(name, kwargs, error, message):
    with pytest.raises(error, match=message):
        estimate_of(name, *measurements(), **kwargs)


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.inf])
def test_a_ridge_that_is_not_positive_is_refused(ridge):
    with pytest.raises(ValueError, match="ridge"):
        ls_covariance(*measurements(), ridge=ridge)


def test_single_precision_agrees_with_double_on_reference_scenes():
    scenes = generate_scenes(SystemConfig(), 3, range(2), dtype=torch.complex128)
    given = scenes.y, scenes.codes, scenes.channel
    double = ls_covariance(*given, noise_power=scenes.noise_power)
    single = ls_covariance(*(t.to(torch.complex64) for t in given), noise_power=scenes.noise_power)
    assert single.dtype == torch.complex64
    assert float((single - double).abs().max() / double.abs().max()) < 1e-4


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_stack_of_surface_sized_matrices_is_ever_made(name):
    from torch.utils._python_dispatch import TorchDispatchMode

    class LargestTensor(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves(result):
                if isinstance(t, torch.Tensor):
                    self.numel = max(self.numel, t.untyped_storage().nbytes() // t.element_size())
            return result

    n_snapshots, n = 31, 101
    given = measurements(batch=(), sizes=(n_snapshots, 2, n))
    with LargestTensor() as largest:
        estimate_of(name, *given)
    assert n * n <= largest.numel < 2 * n * n < n_snapshots * n * n


def nmse(estimate: torch.Tensor, truth: torch.Tensor) -> float:
    difference = effective_covariance(estimate) - effective_covariance(truth)
    return float(
        (difference.abs().square().sum((1, 2)) / effective_covariance(truth).abs().square().sum((1, 2))).mean()
    )


def test_ls_reaches_its_known_quality_on_the_small_problem():
    """An independent study of the same problem measured 0.88 (1.0 is the zero matrix), the matched filter is worse."""
    scenes = generate_scenes(SMALL, 1, range(300))
    given, truth = (scenes.y, scenes.codes, scenes.channel), scenes.true_covariance()
    ls = nmse(ls_covariance(*given, noise_power=scenes.noise_power), truth)
    assert ls == pytest.approx(0.88, abs=0.03)
    assert ls < nmse(matched_filter_covariance(*given), truth)


# --- alternating least squares


def ridge_objective(factor, symbols, y, codes, channel, noise, ridge) -> float:
    """Of one scene, from the definition."""
    cost = noise * np.sum(np.abs(symbols) ** 2) + ridge * np.sum(np.abs(factor) ** 2)
    for v, c, z in zip(y, codes, symbols, strict=True):
        cost += np.sum(np.abs(v - channel @ (c * (factor @ z))) ** 2)
    return cost


def als_in_numpy(y, codes, channel, rank, noise, ridge, iterations) -> tuple[np.ndarray, list[float]]:
    """Exact alternation over dense normal equations from the LS start; the factor and the objectives."""
    n = codes.shape[1]
    phis = [channel @ np.diag(c) for c in codes]
    gain = np.mean([np.linalg.norm(p) ** 2 / len(channel) for p in phis])
    lam = noise / ((np.mean(np.abs(y) ** 2) - noise) / gain)
    x = [np.linalg.solve(p.conj().T @ p + lam * np.eye(n), p.conj().T @ v) for p, v in zip(phis, y, strict=True)]
    value, vector = np.linalg.eigh(np.mean([np.outer(v, v.conj()) for v in x], axis=0))
    factor = vector[:, -rank:] * np.sqrt(np.maximum(value[-rank:], 0))

    def solve_symbols():
        return np.array(
            [
                np.linalg.solve((p @ factor).conj().T @ (p @ factor) + noise * np.eye(rank), (p @ factor).conj().T @ v)
                for p, v in zip(phis, y, strict=True)
            ]
        )

    symbols = solve_symbols()
    history = [ridge_objective(factor, symbols, y, codes, channel, noise, ridge)]
    for _ in range(iterations):
        design = np.concatenate([np.kron(p, z[None]) for p, z in zip(phis, symbols, strict=True)])  # vec(F), rows first
        normal = design.conj().T @ design + ridge * np.eye(n * rank)
        factor = np.linalg.solve(normal, design.conj().T @ y.ravel()).reshape(n, rank)
        symbols = solve_symbols()
        history.append(ridge_objective(factor, symbols, y, codes, channel, noise, ridge))
    return factor @ (symbols.T @ symbols.conj() / len(y)) @ factor.conj().T, history


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_als_matches_the_exact_alternation(rank):
    y, codes, channel = measurements(sizes=(9, 4, 6))
    fit = als_fit(y, codes, channel, rank, noise_power=0.1, ridge=0.4, iterations=5, inner_iterations=200)
    for b in range(2):
        r, history = als_in_numpy(y[b].numpy(), codes[b].numpy(), channel[b].numpy(), rank, 0.1, 0.4, 5)
        np.testing.assert_allclose(fit.objective[b].numpy(), history, rtol=1e-8)
        np.testing.assert_allclose(covariance_from_factor(fit.factor[b]).numpy(), r, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("inner_iterations", [1, 3, 20])
@pytest.mark.parametrize("rank", [1, 4, 36])
@pytest.mark.parametrize("noise_power", [True, False])
def test_als_never_raises_its_objective(inner_iterations, rank, noise_power):
    scenes = generate_scenes(SMALL, 4, range(8), dtype=torch.complex128)
    fit = als_fit(
        scenes.y,
        scenes.codes,
        scenes.channel,
        rank,
        noise_power=scenes.noise_power if noise_power else None,
        iterations=8,
        inner_iterations=inner_iterations,
    )
    rise = fit.objective.diff(dim=1) / fit.objective[:, :1]
    assert float(rise.max()) <= 1e-12
    assert float(rise.sum(1).max()) < -0.01


@pytest.mark.parametrize("n_snapshots", [1, 2, 7])
def test_als_returns_a_factor_of_the_asked_rank(n_snapshots):
    given = measurements(sizes=(n_snapshots, 3, 13))
    for rank in (1, 3, 13):
        factor = als_covariance(*given, rank)
        assert factor.shape == (2, 13, rank)
        assert bool(factor.isfinite().all())


def test_als_recovers_a_covariance_that_is_determined_and_nearly_free_of_noise():
    """48 antennas against 36 elements: each snapshot alone determines its field."""
    config = dataclasses.replace(SMALL, n_antennas=48, n_snapshots=400, n_sources=(2, 2), snr_db=(40.0, 40.0))
    scenes = generate_scenes(config, 0, range(3))
    factor = als_covariance(scenes.y, scenes.codes, scenes.channel, 2, noise_power=scenes.noise_power)
    assert nmse(covariance_from_factor(factor), scenes.true_covariance()) < 0.03
    power = trace(covariance_from_factor(factor)).real / trace(scenes.true_covariance()).real
    torch.testing.assert_close(power, torch.ones(3), rtol=0, atol=5 / math.sqrt(400))


def test_a_field_buried_in_noise_keeps_the_least_squares_start():
    y, codes, channel = measurements()
    noise = 50 * float(y.abs().square().mean())
    factor = als_covariance(y, codes, channel, 2, noise_power=noise)
    r = ls_covariance(y, codes, channel, noise_power=noise)
    value, vector = torch.linalg.eigh(r)
    expected = covariance_from_factor(vector[..., -2:] * value[..., None, -2:].sqrt())
    torch.testing.assert_close(covariance_from_factor(factor), expected, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 14}, "rank"),
        ({"rank": 2.0}, "rank"),
        ({"iterations": 0}, "iterations"),
        ({"inner_iterations": 0}, "inner_iterations"),
        ({"ridge": -1.0}, "ridge"),
    ],
)
def test_bad_options_of_als_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        als_fit(*measurements(), **{"rank": 2, **kwargs})
