"""The refiner: maps in and out, any size, peaks, and the guard that tells when not to believe it."""

import json
import math

import numpy as np
import pytest
import torch

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, SearchGrid
from risfast.losses import blob_heatmap, focal_heatmap
from risfast.models.refiner import (
    GuardOptions,
    RefinerOptions,
    SpectrumRefiner,
    decode_peaks,
    guard,
    spectrum_map_db,
)
from risfast.ops import mvdr_spectrum_lowrank
from risfast.simulate.scenes import SystemConfig, generate_scenes

GRID = SearchGrid.training()
SMALL = RefinerOptions(channels=(8, 16, 16))


def refiner(options=SMALL, seed=5):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SpectrumRefiner(options)


def random_maps(*shape, seed=11):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# spectrum_map_db


def test_a_map_in_db_is_the_formula():
    power = np.random.default_rng(1).uniform(size=(3, 5, 4)) ** 8 * 37
    expected = np.clip(10 * np.log10(power / power.max((1, 2), keepdims=True)), -30, 0) / 30 + 1
    np.testing.assert_allclose(spectrum_map_db(torch.from_numpy(power), floor_db=-30), expected, atol=1e-6)


def test_a_map_in_db_does_not_depend_on_the_scale_and_lies_between_zero_and_one():
    power = random_maps(2, 6, 7) ** 6
    x = spectrum_map_db(power)
    torch.testing.assert_close(spectrum_map_db(power * 1e-30), x)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert bool((spectrum_map_db(torch.full((1, 3, 3), 5.0)) == 1).all())


def test_zero_power_has_a_finite_gradient():
    power = random_maps(1, 4, 4)
    power[0, 1, 1] = 0
    power.requires_grad_()
    spectrum_map_db(power).sum().backward()
    assert bool(torch.isfinite(power.grad).all())


# SpectrumRefiner


@pytest.mark.parametrize("size", [(61, 41), (1, 1), (2, 9), (7, 4), (8, 8), (181, 1)])
def test_any_size_comes_back(size):
    out = refiner()(random_maps(2, *size))
    assert out.shape == (2, *size)
    assert out.dtype == torch.float32
    assert bool(((out > 0) & (out < 1)).all())


def test_the_default_is_the_network_of_the_design():
    module = refiner(RefinerOptions())
    convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions[:8:2]] == [(1, 32), (32, 64), (64, 128), (128, 128)]
    assert [c.dilation for c in module.bottom.modules() if isinstance(c, torch.nn.Conv2d)] == [(2, 2), (4, 4)]
    assert sum(p.numel() for p in module.parameters()) * 4 < 4e6


def test_several_maps_and_another_depth():
    module = refiner(RefinerOptions(n_maps=3, channels=(8, 16, 16, 24), dilations=(1, 2, 4)))
    maps = random_maps(2, 3, 21, 13)
    out = module(maps)
    assert out.shape == (2, 21, 13)
    for m in range(3):
        changed = maps.clone()
        changed[:, m] = maps[:, m].flip(1)
        assert float((module(changed) - out).detach().abs().max()) > 1e-6
    assert refiner(RefinerOptions(channels=(8,), dilations=()))(maps[:, 0]).shape == (2, 21, 13)


def test_one_map_may_come_with_or_without_its_axis_and_each_scene_stands_alone():
    module, maps = refiner(), random_maps(3, 13, 10)
    out = module(maps)
    assert torch.equal(module(maps[:, None]), out)
    for b in range(3):
        torch.testing.assert_close(module(maps[b : b + 1])[0], out[b])
    assert module(maps[:0]).shape == (0, 13, 10)


def test_the_whole_map_is_seen_from_its_middle():
    module, maps = refiner(), random_maps(1, 33, 33).requires_grad_()
    module.logits(maps)[0, 16, 16].backward()
    assert float((maps.grad != 0).float().mean()) == 1.0


def test_the_output_is_the_sigmoid_of_the_logits_and_starts_near_the_prior():
    module, maps = refiner(RefinerOptions()), random_maps(2, 30, 20)
    out = module(maps)
    torch.testing.assert_close(out, module.logits(maps).sigmoid())
    # the bias alone gives 0.01; the last layer's random weights move that by a few nats at most
    assert float(out.detach().mean()) < 0.1


@pytest.mark.parametrize("maps", [torch.zeros(2, 9, 7), torch.ones(2, 9, 7), random_maps(2, 9, 7)])
def test_every_parameter_has_a_finite_gradient(maps):
    module = refiner()
    target = torch.zeros(2, 9, 7)
    target[0, 4, 3] = 1
    focal_heatmap(module.logits(maps), target).sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert bool(torch.isfinite(p.grad).all()), name


def test_the_same_seed_and_input_give_the_same_bits_in_training_and_evaluation():
    maps = random_maps(2, 15, 11)
    assert torch.equal(refiner()(maps), refiner()(maps))
    assert torch.equal(refiner().eval()(maps), refiner().train()(maps))


def test_it_is_saved_and_made_again_from_its_options_and_weights(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    module, maps = refiner(), random_maps(1, 9, 9)
    safetensors.save_file(module.state_dict(), tmp_path / "weights.safetensors")
    options = RefinerOptions(**json.loads(json.dumps(module.options())))
    assert options == SMALL
    again = refiner(options, seed=6)
    assert not torch.equal(again(maps), module(maps))
    again.load_state_dict(safetensors.load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(again(maps), module(maps))


def test_mixed_precision_gives_logits_of_full_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert refiner().logits(random_maps(1, 9, 9)).dtype == torch.float32


def test_it_learns_to_draw_blobs_from_capon_maps():
    system = SystemConfig(array=PlanarArray.rectangular(6, 6), n_antennas=4, n_snapshots=2, n_sources=(1, 2))
    scenes = generate_scenes(system, 3, range(8))
    grid = SearchGrid.box(31, 21, GRID.range_m, GRID.azimuth_rad[-1], GRID.elevation_rad[-1])
    spectrum = mvdr_spectrum_lowrank(scenes.true_factor(), system.array, grid)
    maps = spectrum_map_db(spectrum.power)
    sigma = (math.radians(4.0), math.radians(3.0))
    target = blob_heatmap(scenes.position, scenes.mask, grid, sigma_rad=sigma)
    module = refiner()
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(120):
        optimiser.zero_grad()
        loss = focal_heatmap(module.logits(maps), target).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        refined = module(maps)
    assert bool(guard(refined).ok.all())
    found = decode_peaks(refined, spectrum.plane, grid)
    for b in range(8):
        for azimuth, elevation, _ in scenes.position[b][scenes.mask[b]].tolist():
            near = (found.position[b, :, 0] - azimuth).abs() <= math.radians(5)
            near &= (found.position[b, :, 1] - elevation).abs() <= math.radians(5)
            assert bool(near.any())


# decode_peaks


def test_peaks_become_positions_best_first():
    refined, plane = torch.zeros(2, 61, 41), torch.zeros(2, 61, 41, dtype=torch.int32)
    for (i, j), value, p in (((20, 30), 0.6, 3), ((0, 40), 0.9, 6), ((21, 31), 0.5, 1), ((50, 5), 0.2, 2)):
        refined[0, i, j], plane[0, i, j] = value, p
    found = decode_peaks(refined, plane, GRID, k=4)
    assert found.count.tolist() == [2, 0]
    expected = torch.tensor([[-60.0, 30.0, 9.5], [-20.0, 15.0, 2.0]], dtype=torch.float64)
    expected[:, :2] = expected[:, :2].deg2rad()
    torch.testing.assert_close(found.position[0, :2], expected)
    torch.testing.assert_close(found.score[0, :2], torch.tensor([0.9, 0.6]))
    assert bool(found.position[0, 2:].isnan().all())
    assert bool(found.position[1].isnan().all())
    lower = decode_peaks(refined, plane, GRID, k=4, threshold=0.1, window=(3, 3))
    assert lower.count.tolist() == [3, 0]
    assert decode_peaks(refined, plane, GRID, k=1).count.tolist() == [1, 0]


# guard


def believable():
    position = torch.tensor([[[0.3, 0.1, 2.0], [-0.5, -0.2, 1.0]]], dtype=torch.float64)
    return 0.9 * blob_heatmap(position, torch.ones(1, 2, dtype=torch.bool), GRID).float()


def test_a_map_with_a_few_blobs_is_believed():
    result = guard(believable())
    assert result.ok.tolist() == [True]
    assert result.reasons == ((),)


def spoilt(kind):
    refined = believable()
    if kind == "nan":
        refined[0, 3, 3] = math.nan
    elif kind == "infinite":
        refined[0, 3, 3] = math.inf
    elif kind == "flat":
        refined = torch.full_like(refined, 0.5)
    elif kind == "saturated":
        refined[0, :20] = 0.99
    elif kind == "no peak":
        refined *= 0.3
    elif kind == "peaks":
        refined[0, ::7, ::7] = 0.8
    elif kind == "range":
        refined[0, 5, 5] = -0.1
    return refined


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", ["it holds NaN or infinite values"]),
        ("infinite", ["it holds NaN or infinite values"]),
        ("flat", ["it is flat: its values span 0"]),
        ("saturated", ["it is saturated in 33% of its cells"]),
        ("no peak", ["it has no peak above 0.3"]),
        ("peaks", ["it has more than 12 peaks above 0.3"]),
        ("range", ["it reaches from -0.1 to"]),
    ],
)
def test_a_spoilt_map_is_refused_with_its_reason_and_spoils_no_other(kind, words):
    result = guard(torch.cat([believable(), spoilt(kind), believable()]))
    assert result.ok.tolist() == [True, False, True]
    assert result.reasons[0] == result.reasons[2] == ()
    assert len(result.reasons[1]) == len(words)
    assert all(reason.startswith(word) for reason, word in zip(result.reasons[1], words, strict=True))


def test_the_limits_of_the_guard_are_options():
    flat = torch.zeros(1, 9, 9)
    flat[0, 4, 4] = 0.05
    lenient = GuardOptions(min_spread=0.01, threshold=0.02)
    assert guard(flat, lenient).ok.tolist() == [True]
    assert guard(believable(), GuardOptions(max_peaks=1)).ok.tolist() == [False]
    assert guard(torch.zeros(0, 9, 9)).reasons == ()


MAP = torch.rand(1, 61, 41)
PLANE = torch.zeros(1, 61, 41, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: spectrum_map_db(MAP[0]), ShapeError, r"power must have shape \(B, G_az, G_el\)"),
        (lambda: spectrum_map_db(PLANE), TypeError, "power must be a real"),
        (lambda: spectrum_map_db(MAP, floor_db=0.0), ValueError, "floor_db"),
        (lambda: spectrum_map_db(torch.cat([MAP, 0 * MAP])), ValueError, r"power\[1\]"),
        (lambda: spectrum_map_db(MAP - 1), ValueError, r"power\[0\]"),
        (lambda: spectrum_map_db(MAP * math.nan), ValueError, r"power\[0\]"),
        (lambda: RefinerOptions(n_maps=0), ValueError, "n_maps"),
        (lambda: RefinerOptions(channels=(12,)), ValueError, "multiples of 8"),
        (lambda: RefinerOptions(channels=()), ValueError, "channels must be one or more"),
        (lambda: RefinerOptions(dilations=(0,)), ValueError, "dilations must be integers"),
        (lambda: refiner()(MAP[0]), ShapeError, r"\(B, 1, G_az, G_el\) or \(B, G_az, G_el\)"),
        (lambda: refiner()(MAP[:, None].expand(1, 2, 61, 41)), ShapeError, "maps must have shape"),
        (lambda: refiner()(MAP[:, :0]), ShapeError, "maps must have shape"),
        (lambda: refiner()(PLANE), TypeError, "maps must be a real"),
        (lambda: refiner(RefinerOptions(n_maps=2, channels=(8,)))(MAP), ShapeError, r"\(B, 2, G_az, G_el\)"),
        (lambda: decode_peaks(MAP[:, :60], PLANE, GRID), ShapeError, r"\(61, 41\)"),
        (lambda: decode_peaks(MAP, PLANE[:, :60], GRID), ShapeError, "plane must have the shape"),
        (lambda: decode_peaks(MAP, PLANE.float(), GRID), TypeError, "plane must hold integers"),
        (lambda: decode_peaks(MAP, PLANE + 7, GRID), ValueError, r"0 \.\. 6"),
        (lambda: decode_peaks(MAP, PLANE, GRID, window=(2, 3)), ValueError, "window"),
        (lambda: decode_peaks(MAP, PLANE, GRID, k=0), ValueError, "k must be"),
        (lambda: decode_peaks(MAP * math.nan, PLANE, GRID), ValueError, "NaN"),
        (lambda: guard(MAP[0]), ShapeError, "refined must have shape"),
        (lambda: guard(PLANE), TypeError, "refined must be a real"),
        (lambda: GuardOptions(min_spread=2.0), ValueError, "min_spread"),
        (lambda: GuardOptions(max_peaks=0), ValueError, "max_peaks"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
