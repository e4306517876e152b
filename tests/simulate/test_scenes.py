"""Counter-based random numbers, and scenes that depend on nothing but configuration, seed and index."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import oracles
import pytest
import torch

from risfast.geometry import PlanarArray
from risfast.simulate import Coherence, SceneRandom, SystemConfig, generate_scenes
from risfast.simulate.impairments import Impairments
from risfast.simulate.streams import philox

SMALL = SystemConfig(
    array=PlanarArray.rectangular(4, 3),
    n_antennas=5,
    n_snapshots=7,
    code_kinds=("dft", "random", "hadamard", "mixed"),
)
HARSH = dataclasses.replace(
    SMALL,
    impairments=Impairments(0.1, 0.1, 0.1, 0.01, 0.01, 0.005, 0.3, 0.01),
    coherence=Coherence(0.5, 3, 0.8),
    gain="inverse_range",
    min_separation_rad=math.radians(10),
)
TENSORS = [f.name for f in dataclasses.fields(generate_scenes(SMALL, 0, [])) if f.name != "config"]


# --- random numbers


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 from the paper's definition, in unbounded integers."""
    for _ in range(10):
        p0, p1 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (p1 >> 32) ^ counter[1] ^ key[0],
            p1 % 2**32,
            (p0 >> 32) ^ counter[3] ^ key[1],
            p0 % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that the authors publish with their library
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    words = [torch.tensor([int(w, 16)]) for w in counter.split()]
    k0, k1 = (int(w, 16) for w in key.split())
    assert [f"{int(w):08x}" for w in philox(words, (k0, k1))] == expected.split()


def test_words_are_philox_of_seed_index_stream_and_position():
    seed, index, stream = 0xFEDCBA9876543210, 2**40 + 3, 11
    words = SceneRandom(seed, [5, index]).words(stream, 10)[1].tolist()
    blocks = [philox_in_python([b, stream, index % 2**32, index >> 32], [seed % 2**32, seed >> 32]) for b in range(3)]
    assert words == [word for block in blocks for word in block][:10]


@pytest.mark.parametrize("draw", ["uniform", "normal", "complex_normal"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_a_shorter_draw_is_a_prefix_of_a_longer_one(draw, count):
    random = SceneRandom(3, [0, 9])
    assert torch.equal(getattr(random, draw)(2, (count,)), getattr(random, draw)(2, (11,))[:, :count])


def test_uniform_numbers_are_uniform():
    u = SceneRandom(1, range(50)).uniform(3, (4000,)).numpy().ravel()
    assert 0 < u.min() < u.max() < 1
    counts = np.histogram(u, bins=256, range=(0, 1))[0]
    chi2 = ((counts - len(u) / 256) ** 2 / (len(u) / 256)).sum()
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)


def test_normal_numbers_pass_kolmogorov_smirnov_and_have_normal_moments():
    from scipy.stats import kstest

    x = SceneRandom(1, range(50)).normal(3, (4001,)).numpy().ravel()
    assert kstest(x, "norm").pvalue > 1e-4
    standard_error = 1 / math.sqrt(len(x))
    assert abs(x.mean()) < 5 * standard_error
    assert abs((x**2).mean() - 1) < 5 * math.sqrt(2) * standard_error
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96) * standard_error


def test_complex_normal_numbers_are_circular_with_unit_variance():
    z = SceneRandom(1, range(50)).complex_normal(3, (4000,)).numpy().ravel()
    standard_error = 1 / math.sqrt(len(z))
    assert abs((np.abs(z) ** 2).mean() - 1) < 5 * standard_error
    assert abs((z**2).mean()) < 5 * math.sqrt(2) * standard_error
    assert abs(z.mean()) < 5 * standard_error


def test_integers_hit_every_value_equally_often():
    n = SceneRandom(1, range(50)).integers(3, -2, 5, (2000,)).numpy().ravel()
    counts = np.bincount(n + 2)
    assert len(counts) == 7
    assert np.abs(counts / len(n) - 1 / 7).max() < 5 * math.sqrt(6 / 49 / len(n))


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_permutations_hold_every_value_once(count):
    orders = SceneRandom(1, range(5)).permutation(3, count)
    assert torch.equal(orders.sort(1).values, torch.arange(count).expand(5, -1))


def test_streams_seeds_indices_and_neighbours_are_uncorrelated():
    n = 20_000
    base = SceneRandom(1, [0]).normal(3, (n,))[0]
    others = {
        "stream": SceneRandom(1, [0]).normal(4, (n,))[0],
        "seed": SceneRandom(2, [0]).normal(3, (n,))[0],
        "high word of the seed": SceneRandom(1 + 2**32, [0]).normal(3, (n,))[0],
        "index": SceneRandom(1, [1]).normal(3, (n,))[0],
        "high word of the index": SceneRandom(1, [2**32]).normal(3, (n,))[0],
        "neighbour": base.roll(1),
        "square of the neighbour": base.roll(1).square() - 1,
    }
    for name, other in others.items():
        assert abs(float((base * other).mean() / other.std())) < 5 / math.sqrt(n), name


def test_first_numbers_of_consecutive_scenes_are_independent():
    first = SceneRandom(0, range(20_000)).normal(0).numpy()
    assert abs((first[1:] * first[:-1]).mean()) < 5 / math.sqrt(len(first))
    assert len(np.unique(first)) > 0.999 * len(first)


@pytest.mark.parametrize(
    ("seed", "indices", "error", "message"),
    [
        (-1, [0], ValueError, "seed"),
        (2**64, [0], ValueError, "seed"),
        (1.0, [0], TypeError, "seed"),
        (True, [0], TypeError, "seed"),
        (0, [-1], ValueError, "indices must be >= 0"),
        (0, [0.5], TypeError, "indices must be integers"),
        (0, [[0, 1]], ValueError, "indices must be 1D"),
    ],
)
def test_bad_seeds_and_indices_are_named(seed, indices, error, message):
    with pytest.raises(error, match=message):
        SceneRandom(seed, indices)


# --- scenes


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal, but for the last bits of float64: sums may be grouped differently in batches of different size."""
    if first.is_floating_point() or first.is_complex():
        scale = float(second.abs().nan_to_num(posinf=0).max()) if second.numel() else 1.0
        return torch.allclose(first, second, rtol=0, atol=1e-12 * scale)
    return torch.equal(first, second)


@pytest.mark.parametrize("config", [SMALL, HARSH, SystemConfig()], ids=["small", "harsh", "reference"])
def test_a_scene_does_not_depend_on_its_batch(config):
    whole = generate_scenes(config, 5, range(9), dtype=torch.complex128)
    for indices in ([4], [8, 0, 3], torch.tensor([7, 4, 4])):
        part = generate_scenes(config, 5, indices, dtype=torch.complex128)
        for name in TENSORS:
            assert same(getattr(part, name), getattr(whole, name)[torch.as_tensor(indices)]), name


def test_the_same_call_gives_the_same_bits():
    first, second = (generate_scenes(HARSH, 5, range(6)) for _ in range(2))
    for name in TENSORS:
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_another_seed_or_index_gives_another_scene():
    base = generate_scenes(SMALL, 5, [0, 1])
    other = generate_scenes(SMALL, 6, [0])
    for name in ("y", "codes", "channel", "position", "snr_db"):
        assert not torch.equal(getattr(base, name)[0], getattr(base, name)[1]), name
        assert not torch.equal(getattr(base, name)[0], getattr(other, name)[0]), name


def test_single_precision_is_the_rounded_double_precision_scene():
    single, double = (generate_scenes(HARSH, 5, range(6), dtype=d) for d in (torch.complex64, torch.complex128))
    assert single.y.dtype == torch.complex64
    assert single.position.dtype == single.noise_power.dtype == torch.float32
    for name in TENSORS:
        torch.testing.assert_close(
            getattr(single, name), getattr(double, name).to(getattr(single, name).dtype), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize(
    "change",
    [
        {"impairments": Impairments(0.1, 0.1, 0.1, 0.01, 0.01, 0.005, 0.3, 0.01)},
        {"coherence": Coherence(1.0, 3)},
        {"gain": "inverse_range"},
        {"snr_db": (3.0, 3.0)},
        {"wavefront": "fresnel"},
    ],
)
def test_an_option_changes_nothing_but_what_it_is_about(change):
    base, changed = (generate_scenes(c, 5, range(6)) for c in (SMALL, dataclasses.replace(SMALL, **change)))
    assert not torch.equal(base.y, changed.y)
    for name in ("codes", "channel", "position", "mask"):
        assert torch.equal(getattr(base, name), getattr(changed, name)), name


def test_more_sources_do_not_move_the_first_ones_or_the_noise():
    few, many = (
        generate_scenes(dataclasses.replace(SMALL, n_sources=(k, k), snr_db=(0, 0)), 5, range(6)) for k in (2, 5)
    )
    assert torch.equal(few.position, many.position[:, :2])
    assert torch.equal(few.channel, many.channel)


def test_the_measurements_have_the_stated_snr_and_model():
    """y - H diag(c) A s must be noise of the stated power; its part that depends on the SNR alone isolates it."""
    loud, quiet = (
        generate_scenes(dataclasses.replace(SMALL, snr_db=(snr, snr)), 5, range(40), dtype=torch.complex128)
        for snr in (0.0, 20.0)
    )
    sigma_loud, sigma_quiet = (s.noise_power.sqrt()[:, None, None] for s in (loud, quiet))
    noise = (loud.y - quiet.y) / (sigma_loud - sigma_quiet)  # of unit power
    clean = loud.y - sigma_loud * noise
    snr = clean.abs().square().mean((1, 2)) / loud.noise_power
    torch.testing.assert_close(snr, torch.ones_like(snr), rtol=1e-9, atol=0)
    assert float(noise.abs().square().mean()) == pytest.approx(1, abs=5 / math.sqrt(noise.numel()))
    for b in range(6):  # without noise, snapshot l lies in the span of H diag(c_l) A
        factor = loud.true_factor()[b][:, loud.mask[b]].numpy()
        for snapshot in range(7):
            phi = loud.channel[b].numpy() @ np.diag(loud.codes[b, snapshot].numpy())
            basis, signal = phi @ factor, clean[b, snapshot].numpy()
            if basis.shape[1] < 5:
                fitted = basis @ np.linalg.lstsq(basis, signal, rcond=None)[0]
                np.testing.assert_allclose(fitted, signal, atol=1e-9 * np.abs(signal).max())


def test_the_true_covariance_is_the_brute_force_sum_over_sources():
    scenes = generate_scenes(HARSH, 2, range(5), dtype=torch.complex128)
    factor, covariance = scenes.true_factor(), scenes.true_covariance()
    for b in range(5):
        expected = np.zeros((12, 12), complex)
        for k in range(5):
            if not scenes.mask[b, k]:
                assert float(factor[b, :, k].abs().max()) == 0
                continue
            az, el, r = scenes.position[b, k].tolist()
            source = r * np.array([math.sin(az) * math.cos(el), math.sin(el), math.cos(az) * math.cos(el)])
            distance = np.linalg.norm(source - HARSH.array.positions_m.numpy(), axis=1)
            a = np.exp(2j * np.pi / 0.3 * (r - distance))
            expected += np.outer(a, a.conj()) / r**2
        np.testing.assert_allclose(covariance[b].numpy(), expected, atol=1e-9)


def test_the_measurements_average_to_the_true_covariance():
    """Mean of y y^H over many snapshots against Phi R Phi^H + sigma^2 I, with one code throughout."""
    config = dataclasses.replace(SMALL, n_snapshots=20_000, n_sources=(2, 2), code_kinds=("hadamard",))
    scene = generate_scenes(config, 7, [0], dtype=torch.complex128)
    for row in scene.codes[0, :3]:
        chosen = (scene.codes[0] == row).all(1)
        y = scene.y[0, chosen].numpy()
        phi = scene.channel[0].numpy() @ np.diag(row.numpy())
        expected = phi @ scene.true_covariance()[0].numpy() @ phi.conj().T + scene.noise_power[0].item() * np.eye(5)
        sample = y.T @ y.conj() / len(y)
        assert np.linalg.norm(sample - expected) < 5 * np.trace(expected).real / math.sqrt(len(y))


def test_defaults_are_the_reference_system():
    scenes = generate_scenes(SystemConfig(), 0, range(300))
    assert scenes.y.shape == (300, 64, 16)
    assert scenes.codes.shape == (300, 64, 144)
    assert scenes.channel.shape == (300, 16, 144)
    assert scenes.position.shape == (300, 5, 3)
    counts = torch.bincount(scenes.n_sources, minlength=6)
    assert counts[0] == 0
    assert float((counts[1:] / 300 - 0.2).abs().max()) < 5 * math.sqrt(0.16 / 300)
    position = scenes.position[scenes.mask].double()
    limits = [(-math.radians(60), math.radians(60)), (-math.radians(30), math.radians(30)), (0.5, 10.0)]
    for axis, (low, high) in enumerate(limits):
        share = (position[:, axis] - low) / (high - low)
        assert 0 <= float(share.min()) < 0.02
        assert 0.98 < float(share.max()) <= 1
        assert float(share.mean()) == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / len(share)))
    assert -5 <= float(scenes.snr_db.min()) < -4
    assert 19 < float(scenes.snr_db.max()) <= 20
    assert torch.equal(scenes.power, scenes.mask.float())
    assert float(scenes.position[~scenes.mask].abs().max()) == 0


def test_every_code_kind_occurs():
    scenes = generate_scenes(dataclasses.replace(SMALL, code_kinds=("random", "hadamard")), 0, range(100))
    real = (scenes.codes.imag == 0).flatten(1).all(1)
    assert 0.3 < float(real.float().mean()) < 0.7


def test_impairments_stay_out_of_what_the_estimator_knows():
    clean, harsh = generate_scenes(SMALL, 3, range(4)), generate_scenes(HARSH, 3, range(4))
    assert torch.equal(clean.codes, harsh.codes)
    assert torch.equal(clean.channel, harsh.channel)
    assert float((harsh.codes.abs() - 1).abs().max()) < 1e-6


def test_sources_keep_the_minimum_separation_and_the_rest_of_the_scene():
    config = dataclasses.replace(SMALL, n_sources=(5, 5), min_separation_rad=math.radians(20))
    scenes, free = (
        generate_scenes(c, 1, range(100), dtype=torch.complex128)
        for c in (config, dataclasses.replace(config, min_separation_rad=0.0))
    )

    def closest(position: torch.Tensor) -> np.ndarray:
        az, el = position[..., 0].numpy(), position[..., 1].numpy()
        u = np.stack([np.sin(az) * np.cos(el), np.sin(el), np.cos(az) * np.cos(el)], -1)
        cosine = u @ u.transpose(0, 2, 1) - 2 * np.eye(5)
        return np.degrees(np.arccos(np.clip(cosine.max((1, 2)), -1, 1)))

    assert closest(scenes.position).min() >= 20 - 1e-6
    enough = closest(free.position) >= 20
    assert 0 < enough.sum() < 100
    assert torch.equal(scenes.position[enough], free.position[enough])
    assert torch.equal(scenes.channel, free.channel)


def test_an_impossible_separation_is_refused():
    config = dataclasses.replace(SMALL, n_sources=(5, 5), min_separation_rad=math.radians(120))
    with pytest.raises(ValueError, match="min_separation_rad"):
        generate_scenes(config, 0, range(3))


def test_coherent_groups_have_the_given_size_and_frequency():
    config = dataclasses.replace(SMALL, coherence=Coherence(0.3, 3))
    scenes = generate_scenes(config, 0, range(600))
    size = scenes.coherent.sum(1)
    eligible = scenes.n_sources >= 2
    assert float((size[eligible] > 0).float().mean()) == pytest.approx(0.3, abs=0.1)
    assert int(size[~eligible].max()) == 0
    chosen = size > 0
    assert torch.equal(size[chosen], scenes.n_sources[chosen].clamp_max(3))
    assert not bool((scenes.coherent & ~scenes.mask).any())


def test_fully_coherent_sources_leave_measurements_of_rank_one():
    config = dataclasses.replace(
        SMALL,
        n_sources=(3, 3),
        coherence=Coherence(1.0, 3),
        snr_db=(200, 200),
        n_snapshots=64,
        code_kinds=("hadamard",),
    )
    scene = generate_scenes(config, 0, [0], dtype=torch.complex128)
    row = scene.codes[0, 0]
    y = scene.y[0, (scene.codes[0] == row).all(1)]
    assert len(y) == 4
    singular = torch.linalg.svdvals(y)
    assert float(singular[1] / singular[0]) < 1e-8


def test_no_sources_makes_scenes_of_noise_alone():
    scenes = generate_scenes(dataclasses.replace(SMALL, n_sources=(0, 0)), 0, range(50))
    assert scenes.position.shape == (50, 0, 3)
    assert bool((scenes.noise_power == 1).all())
    assert bool((scenes.snr_db == -math.inf).all())
    assert float(scenes.y.abs().square().mean()) == pytest.approx(1, abs=5 / math.sqrt(scenes.y.numel()))
    assert float(scenes.true_covariance().abs().max()) == 0


@pytest.mark.parametrize("config", [SMALL, HARSH], ids=["small", "harsh"])
def test_an_empty_batch_has_empty_tensors_of_the_right_shape(config):
    scenes = generate_scenes(config, 0, [])
    assert len(scenes) == 0
    assert scenes.y.shape == (0, 7, 5)
    assert scenes.codes.shape == (0, 7, 12)
    assert scenes.true_covariance().shape == (0, 12, 12)


def test_an_irregular_array_of_one_element_makes_scenes():
    config = SystemConfig(array=PlanarArray([[0.1, 0.2, 0.3]], 0.3), n_antennas=1, n_snapshots=1)
    assert bool(generate_scenes(config, 0, range(3)).y.isfinite().all())


def test_scenes_move_between_devices_whole():
    moved = generate_scenes(SMALL, 0, [1]).to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)


@pytest.mark.parametrize(
    "change",
    [
        {"n_antennas": 0},
        {"n_snapshots": 0},
        {"azimuth_rad": (1.0, -1.0)},
        {"elevation_rad": (-2.0, 0.0)},
        {"range_m": (0.0, 5.0)},
        {"range_m": (1.0, math.inf)},
        {"n_sources": (3, 2)},
        {"n_sources": (1, 2.5)},
        {"snr_db": (math.nan, 1.0)},
        {"code_kinds": ()},
        {"code_kinds": ("dft", "fourier")},
        {"rician_factor": (-1.0, 1.0)},
        {"gain": "quadratic"},
        {"wavefront": "cubic"},
        {"min_separation_rad": -0.1},
    ],
)
def test_a_bad_configuration_names_its_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("change", [{"probability": 1.5}, {"correlation": -0.1}, {"group_size": 1}])
def test_a_bad_coherence_names_its_field(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Coherence(**change)


def test_a_real_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype"):
        generate_scenes(SMALL, 0, [0], dtype=torch.float32)


# --- direct sampling


@pytest.mark.parametrize("config", [SMALL, HARSH])
def test_scenes_sampled_directly_are_the_fields_at_the_elements(config):
    direct = dataclasses.replace(config, sampling="direct", n_snapshots=4000, snr_db=(30.0, 30.0), n_sources=(2, 2))
    scenes = generate_scenes(direct, 1, range(2), dtype=torch.complex128)
    n = direct.array.n_elements
    assert scenes.y.shape == (2, 4000, n)
    assert torch.equal(scenes.channel, torch.eye(n, dtype=torch.complex128).expand(2, n, n))
    assert bool((scenes.codes == 1).all())
    assert direct.setup.sampling == "direct"
    surface = generate_scenes(dataclasses.replace(direct, sampling="surface"), 1, range(2), dtype=torch.complex128)
    assert torch.equal(scenes.position, surface.position)  # the same sources
    if config is SMALL:
        sample = scenes.y.mT @ scenes.y.conj() / 4000
        exact = scenes.true_covariance() + scenes.noise_power[:, None, None] * torch.eye(n)
        assert float((sample - exact).abs().max()) < 0.2


def test_sampling_is_checked():
    with pytest.raises(ValueError, match="sampling must be one of"):
        dataclasses.replace(SMALL, sampling="both")


# --- several narrow bands

BANDS = dataclasses.replace(SMALL, sampling="direct", n_sources=(2, 2), wavelengths_m=(0.3, 0.4, 0.5))


def test_bands_share_the_sources_and_have_symbols_and_noise_of_their_own():
    one = dataclasses.replace(BANDS, wavelengths_m=None)
    scenes, alone = (generate_scenes(config, 1, range(3), dtype=torch.complex128) for config in (BANDS, one))
    assert scenes.y.shape == (3, 3, 7, 12)
    assert scenes.noise_power.shape == (3, 3)
    for name in ("position", "mask", "power", "snr_db"):
        assert torch.equal(getattr(scenes, name), getattr(alone, name))
    assert torch.equal(scenes.y[:, 0], alone.y)  # the first band is the array's own
    assert torch.equal(scenes.noise_power[:, 0], alone.noise_power)
    power = scenes.y.abs().square().mean((2, 3))
    correlation = (scenes.y[:, 0] * scenes.y[:, 1].conj()).mean((1, 2)).abs() / power[:, 0]
    assert float(correlation.max()) < 0.5


def test_each_band_has_the_waves_of_its_wavelength():
    long = dataclasses.replace(BANDS, n_snapshots=4000, snr_db=(20.0, 20.0))
    scenes = generate_scenes(long, 2, [0], dtype=torch.complex128)
    for band, wavelength in enumerate(long.wavelengths_m):
        a = oracles.steering(long.array.positions_m.numpy(), wavelength, scenes.position[0].numpy())
        exact = a.T @ a.conj() + float(scenes.noise_power[0, band]) * np.eye(12)
        y = scenes.y[0, band].numpy()
        np.testing.assert_allclose(y.T @ y.conj() / 4000, exact, atol=0.15)


def test_bands_are_those_of_the_setup_and_are_checked():
    assert BANDS.setup.wavelengths_m == (0.3, 0.4, 0.5)
    shorter = dataclasses.replace(BANDS, wavelengths_m=(0.4, 0.2))
    assert shorter.array.wavelength_m == 0.2
    assert dataclasses.replace(BANDS, wavelengths_m=(0.3,)) == dataclasses.replace(BANDS, wavelengths_m=None)
    with pytest.raises(ValueError, match="sampled directly"):
        dataclasses.replace(BANDS, sampling="surface")
    with pytest.raises(ValueError, match="wavelengths_m must be positive"):
        dataclasses.replace(BANDS, wavelengths_m=(0.3, -1.0))
