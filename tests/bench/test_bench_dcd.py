"""Methods that run a checkout of public code: what is refused, that nothing of it leaks, and the bridge to the surface.

A small package of the same names stands in for the checkout; the tests at the end run the real one, whose folder
RISFAST_DCD_CHECKOUT names.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import random
import sys
import types
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from fake_checkout import write_checkout

from risfast.errors import FileFormatError, ShapeError
from risfast.evaluate import match
from risfast.geometry import SensorArray
from risfast.models import Measurement, build_backbone
from risfast.models.files import save_model
from risfast.simulate.scenes import SystemConfig, generate_scenes

ROOT = Path(__file__).resolve().parents[2]
# Appended, so that an installed risfast is what the other tests see.
sys.path.append(str(ROOT))

from bench.peers.dcd_checkout import calm, load_checkout, second_order_wavefront, system_model  # noqa: E402
from bench.peers.dcd_evaluate import main as evaluate_main  # noqa: E402
from bench.peers.dcd_music import PEERS, CheckoutOptions  # noqa: E402
from bench.peers.dcd_networks import (  # noqa: E402
    MOST_SOURCES,
    LineNetwork,
    LineOptions,
    Weights,
    about_the_centre,
    build_network,
    read_weights,
    snapshots_of,
    write_weights,
)
from bench.peers.dcd_train import TrainOptions, draw_line_scenes, main, train_network  # noqa: E402
from bench.peers.line_cuts import LineSources, central_cuts, paired_sources, square_lattice  # noqa: E402

SIDE = 6
ARRAY = SensorArray.rectangular(SIDE, SIDE)
SETUP = SystemConfig(array=ARRAY).setup
NAMES = list(PEERS)
CLONE = "git clone https://github.com/aradgast/DCD-MUSIC"
LINE = LineOptions(n_elements=SIDE, n_snapshots=24, near=2.0, far=12.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def checkout(folder):
    return load_checkout(folder)


@pytest.fixture(scope="module")
def weights(checkout, tmp_path_factory):
    """A file of weights for each method; nothing was learned, for MUSIC has nothing to learn."""
    place, files = tmp_path_factory.mktemp("weights"), {}
    for name in NAMES:
        line = dataclasses.replace(LINE, method=name)
        with calm():
            network = build_network(checkout, line)
        files[name] = place / f"{name}.safetensors"
        write_weights(files[name], network, line, {"made": "by a test"})
    return files


# ---- the checkout


def changed(tmp_path, **files):
    return write_checkout(tmp_path / "changed", **files)


def test_a_folder_that_is_missing_or_something_else_is_refused_with_what_to_clone(tmp_path):
    with pytest.raises(FileFormatError, match="no such folder.*" + CLONE):
        load_checkout(tmp_path / "nowhere")
    (tmp_path / "src").mkdir()
    with pytest.raises(FileFormatError, match="lacks src/system_model.py, src/models_pack/subspacenet.py.*" + CLONE):
        load_checkout(tmp_path)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"criterions": ("from torch import nn", "import nosuchpackage")}, RuntimeError, "needs nosuchpackage"),
        ({"criterions": ("from torch import nn", "import src.gone")}, FileFormatError, "imports src.gone"),
        ({"criterions": ("class RMSPELoss", "class Other")}, FileFormatError, "has no RMSPELoss"),
        ({"criterions": ("import torch", "import torch)")}, FileFormatError, "cannot be imported"),
        ({"system_model": ("-2j", "2j")}, FileFormatError, "steering vectors differ by"),
        ({"system_model": ("x * np.sin", "2 * x * np.sin")}, FileFormatError, "steering vectors differ by"),
        ({"system_model": ("(2 * distance)", "distance")}, FileFormatError, "steering vectors differ by"),
        ({"system_model": ("np.exp(-2j * np.pi * delay)", "delay[:3]")}, FileFormatError, r"shape \(3, 9\), expected"),
    ],
)
def test_another_version_of_the_code_is_refused(tmp_path, files, error, words):
    with pytest.raises(error, match=words):
        load_checkout(changed(tmp_path, **files))
    assert not [name for name in sys.modules if name == "src" or name.startswith("src.")]


def state():
    return (
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],  # noqa: NPY002
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        list(sys.path),
        sys.dont_write_bytecode,
    )


def test_loading_and_running_leave_the_interpreter_as_it_was(folder, weights, capfd):
    before, modules = state(), {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "src"}
    for name in NAMES:
        network = LineNetwork(load_checkout(folder), read_weights(weights[name]))
        network.counts(torch.eye(SIDE, dtype=torch.complex64)[None])
    assert state() == before
    assert {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "src"} == modules
    assert not [entry for entry in sys.path_importer_cache if Path(entry).is_relative_to(folder)]
    assert not list(folder.rglob("__pycache__"))
    assert capfd.readouterr() == ("", "")


def test_a_package_of_the_same_name_stays_and_is_not_mixed_up(folder, monkeypatch):
    own = types.ModuleType("src")
    monkeypatch.setitem(sys.modules, "src", own)
    monkeypatch.setitem(sys.modules, "src.system_model", own)
    assert load_checkout(folder).classes["SystemModel"].__module__ == "src.system_model"
    assert sys.modules["src"] is sys.modules["src.system_model"] is own


def test_two_checkouts_live_side_by_side(tmp_path, checkout):
    other = load_checkout(changed(tmp_path, subspacenet=("0.2 *", "0.3 *")))
    assert other.classes["SubspaceNet"] is not checkout.classes["SubspaceNet"]
    assert other.fingerprint != checkout.fingerprint
    assert load_checkout(checkout.folder).fingerprint == checkout.fingerprint


# ---- conventions: ours against brute force


def test_the_second_order_wavefront_is_the_spherical_one_up_to_the_third_order():
    x = (torch.arange(12, dtype=torch.float64) - 5.5) / 2
    angle = torch.linspace(-1.0, 1.0, 7, dtype=torch.float64)
    for r in (1e2, 1e3, 1e4):
        ours = second_order_wavefront(x, angle, torch.full_like(angle, r)).numpy()
        for i, theta in enumerate(angle.tolist()):
            for n, position in enumerate(x.tolist()):
                d = math.sqrt(r**2 - 2 * r * position * math.sin(theta) + position**2)
                exact = np.exp(2j * np.pi * ((2 * r * position * math.sin(theta) - position**2) / (r + d)))
                # |x|^3 / (2 r^2) bounds the third order of sqrt(1 + e), 1e-9 the rounding of 1e4 turns
                assert abs(ours[n, i] - exact) <= 2 * np.pi * abs(position) ** 3 / r**2 + 1e-9


@pytest.mark.parametrize(("n", "snapshots"), [(3, 4), (6, 24), (12, 64)])
def test_snapshots_have_the_covariance_that_was_asked_for_and_no_mean(n, snapshots):
    factor = torch.randn(2, n, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(n))
    covariance = factor @ factor.mH  # singular: n > 2
    x = snapshots_of(covariance.to(torch.complex64), snapshots)
    assert tuple(x.shape) == (2, n, snapshots)
    assert float(x.mean(-1).abs().max()) < 1e-12
    # the root of a singular matrix in complex64: the square root of its rounding does not come back in the square
    assert float((x @ x.mH / (snapshots - 1) - covariance).abs().max()) < 1e-5 * float(covariance.abs().max())


def test_too_few_snapshots_are_refused():
    with pytest.raises(ShapeError, match="n_snapshots must be above N = 6"):
        snapshots_of(torch.eye(6, dtype=torch.complex64)[None], 6)


def test_angle_and_range_from_the_first_element_are_moved_to_the_centre():
    rng = np.random.default_rng(0)
    for n in (4, 7, 12):
        angle, r = rng.uniform(-1, 1, 20), rng.uniform(2, 30, 20)
        point = np.stack([r * np.sin(angle), r * np.cos(angle)])  # about the centre
        first = np.array([[-(n - 1) / 4], [0.0]])
        from_first = point - first
        moved = about_the_centre(
            torch.from_numpy(np.arctan2(*from_first)), torch.from_numpy(np.linalg.norm(from_first, axis=0)), n
        )
        np.testing.assert_allclose(moved[0], angle, atol=1e-12)
        np.testing.assert_allclose(moved[1], r, rtol=1e-12)


def test_scenes_of_a_line_have_spherical_wavefronts_about_its_centre():
    options = TrainOptions(snr_db=(200.0, 200.0))
    scenes = draw_line_scenes(LINE, options, 3, 1, torch.Generator().manual_seed(0))
    positions = np.stack([(np.arange(SIDE) - (SIDE - 1) / 2) / 2, np.zeros(SIDE), np.zeros(SIDE)], -1)
    for x, angle, r in zip(scenes.snapshots.numpy(), scenes.angle.numpy(), scenes.distance.numpy(), strict=True):
        a = oracles.steering_by_loop(positions, 1.0, angle[0], 0.0, r[0])
        covariance = x @ x.conj().T / x.shape[1]
        np.testing.assert_allclose(covariance, np.outer(a, a.conj()), atol=1e-6)
    assert float(scenes.snapshots.abs().square().mean()) == pytest.approx(1)
    assert LINE.near <= float(scenes.distance.min()) <= float(scenes.distance.max()) <= LINE.far


# ---- the bridge from the surface to lines and back


def field(array, azimuth, elevation, r):
    return oracles.steering_by_loop(array.positions_m.numpy(), array.wavelength_m, azimuth, elevation, r)


@pytest.mark.parametrize("side", [5, 6])
def test_cuts_are_the_covariances_of_the_central_row_and_column_in_any_element_order(side):
    rng = np.random.default_rng(side)
    plain = SensorArray.rectangular(side, side)
    shuffled = SensorArray(plain.positions_m[torch.from_numpy(rng.permutation(side**2))], plain.wavelength_m)
    x = rng.standard_normal((2, side**2, 3)) + 1j * rng.standard_normal((2, side**2, 3))
    r = x @ x.conj().swapaxes(1, 2)
    horizontal, vertical = central_cuts(torch.from_numpy(r), square_lattice(shuffled, side))
    place = {
        tuple(np.round(p[:2] / 0.15 + (side - 1) / 2).astype(int)): n
        for n, p in enumerate(shuffled.positions_m.numpy())
    }
    middle = [side // 2] if side % 2 else [side // 2 - 1, side // 2]
    for b in range(2):
        for i in range(side):
            for j in range(side):
                along = np.mean([r[b, place[i, m], place[j, m]] for m in middle])
                up = np.mean([r[b, place[m, i], place[m, j]] for m in middle])
                np.testing.assert_allclose([horizontal[b, i, j], vertical[b, i, j]], [along, up], rtol=1e-12)


def test_a_row_sees_a_source_as_a_line_does_at_the_angle_of_its_direction_cosine():
    array = SensorArray.rectangular(7, 7)
    line = np.stack([(np.arange(7) - 3) * 0.15, np.zeros(7), np.zeros(7)], -1)
    for azimuth, elevation, r in [(0.7, 0.3, 1.1), (-0.9, -0.5, 0.6), (0.0, 0.4, 5.0)]:
        a = field(array, azimuth, elevation, r)
        cuts = central_cuts(torch.from_numpy(np.outer(a, a.conj()))[None], square_lattice(array, 7))
        for cut, sine in zip(cuts, (math.sin(azimuth) * math.cos(elevation), math.sin(elevation)), strict=True):
            b = oracles.steering_by_loop(line, 0.3, math.asin(sine), 0.0, r)
            np.testing.assert_allclose(cut[0], np.outer(b, b.conj()), atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_angles_in_any_order_are_paired_to_the_sources(count, seed):
    array, rng = SensorArray.rectangular(), np.random.default_rng([count, seed])
    azimuth = rng.permutation(np.linspace(-0.9, 0.9, 5))[:count]
    elevation = rng.permutation(np.linspace(-0.5, 0.5, 5))[:count]
    r = rng.uniform(1.0, 8.0, count)
    a = np.stack([field(array, *one) for one in zip(azimuth, elevation, r, strict=True)], 1)
    along, up = np.arcsin(np.sin(azimuth) * np.cos(elevation)), elevation
    orders = rng.permutation(count), rng.permutation(count)
    lines = [
        LineSources(torch.from_numpy(t[o]), torch.from_numpy(r[o])) for t, o in zip((along, up), orders, strict=True)
    ]
    found = paired_sources(torch.from_numpy(a @ a.conj().T), array, *lines, (0.5, 10.0))
    expected = np.stack([azimuth, elevation, r], 1)[np.argsort(azimuth)]
    np.testing.assert_allclose(found.position.numpy()[np.argsort(found.azimuth.numpy())], expected, atol=1e-9)
    basis, ranges = np.linalg.svd(a, full_matrices=False)[0], 1 / np.linspace(1 / 10.0, 1 / 0.5, 64)
    nulls = []  # the deepest of each ray: they come deepest first
    for at in found.position[:, :2].tolist():
        ray = oracles.steering(array.positions_m.numpy(), array.wavelength_m, np.array([[*at, r] for r in ranges]))
        nulls.append((1 - np.square(np.abs(ray @ basis.conj())).sum(1) / array.n_elements).min())
    assert max(nulls) < 0.01
    assert (np.diff(nulls) >= -1e-9).all()
    np.testing.assert_allclose(found.power.sum(), count)  # each source has power 1 at each element


def test_the_range_of_a_pair_lies_between_those_of_its_lines_and_near_the_one_at_broadside():
    array = SensorArray.rectangular()
    a = field(array, 1.0, 0.0, 3.0)
    found = paired_sources(
        torch.from_numpy(np.outer(a, a.conj())),
        array,
        LineSources(torch.tensor([1.0]), torch.tensor([4.0])),
        LineSources(torch.tensor([0.0]), torch.tensor([2.0])),
        (0.5, 10.0),
    )
    weight = math.cos(1.0) ** 4
    assert float(found.range) == pytest.approx((weight + 1) / (weight / 4 + 1 / 2), rel=1e-6)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (SensorArray.rectangular(6, 5), "lattice of 6 x 6"),
        (SensorArray.rectangular(6, 6, 0.1), "half a wavelength"),
        (SensorArray(ARRAY.positions_m + torch.tensor([0.1, 0, 0]), 0.3), "centred on the origin"),
        (SensorArray(torch.randn(36, 3, generator=torch.Generator().manual_seed(0)), 0.3), "lattice of 6 x 6"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_an_array_that_is_no_pair_of_lines_is_refused(folder, weights, name, array, words):
    with pytest.raises(ValueError, match=words):
        PEERS[name](SETUP.replace(array=array), CheckoutOptions(folder, weights[name]))


# ---- weights


def test_weights_come_back_with_what_their_network_is_built_for(checkout, weights):
    for name in NAMES:
        read = read_weights(weights[name])
        assert read.options == dataclasses.replace(LINE, method=name)
        network = LineNetwork(checkout, read).network
        assert {n: t.tolist() for n, t in network.state_dict().items()} == {
            n: t.tolist() for n, t in read.state.items()
        }
        grid = network.diff_method.distances
        assert float(grid[0]) == LINE.near
        assert float(grid[-1]) >= LINE.far
        assert float(network.diff_method.system.array.sum()) == 0  # centred


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_the_checkouts_own_training_is_about_its_first_element(checkout, tmp_path, name):
    line = dataclasses.replace(LINE, method=name, n_elements=12, n_snapshots=64, lags=3, centred=False)
    with calm():
        network = build_network(checkout, line)
    torch.save(network.state_dict(), tmp_path / "weights")
    read = read_weights(tmp_path / "weights")
    assert read.options == dataclasses.replace(LineOptions(), method=name, lags=3, centred=False)
    angle, r = 0.3, 15.0  # a point of the grid that the checkout searches
    from_first = torch.arange(12, dtype=torch.float64) / 2
    a = second_order_wavefront(from_first, torch.tensor([angle]).double(), torch.tensor([r]).double())
    found = LineNetwork(checkout, read).locate((a @ a.mH)[None], 1)
    x, z = r * math.sin(angle) - 5.5 / 2, r * math.cos(angle)
    assert float(found[0]) == pytest.approx(math.atan2(x, z), abs=1e-9)
    assert float(found[1]) == pytest.approx(math.hypot(x, z), abs=1e-9)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_files_that_hold_no_weights_are_refused_and_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_weights(tmp_path / "missing.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload()))
    torch.save(Payload(), tmp_path / "evil2.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("evil.pt", "evil2.pt", "empty.pt"):
        with pytest.raises(FileFormatError, match="not a state of tensors"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "unpickled").exists()
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(FileFormatError, match="not the state of a SubspaceNet"):
        read_weights(tmp_path / "other.pt")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x08")
    with pytest.raises(FileFormatError, match="damaged"):
        read_weights(tmp_path / "damaged.safetensors")


def test_weights_of_another_format_or_network_are_refused(checkout, tmp_path, weights):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(FileFormatError, match="not weights of a linear array"):
        read_weights(tmp_path / "plain.safetensors")
    save_file(
        {"a": torch.zeros(1)},
        tmp_path / "later.safetensors",
        {"format": "risfast-dcd-1", "options": json.dumps({"wings": 2})},
    )
    with pytest.raises(FileFormatError, match="options cannot be read"):
        read_weights(tmp_path / "later.safetensors")
    cascade = read_weights(weights["dcd_music"])
    mixed = Weights(dataclasses.replace(cascade.options, method="nf_subspacenet"), cascade.state, "")
    with pytest.raises(FileFormatError, match="do not fit nf_subspacenet"):
        LineNetwork(checkout, mixed)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "esprit"}, "method must be one of"),
        ({"n_elements": 2}, "n_elements must be at least 3"),
        ({"n_snapshots": 6}, "n_snapshots above it"),
        ({"lags": 0}, "lags must lie in"),
        ({"lags": 24}, "lags must lie in 1 "),
        ({"near": 0.0}, "near and far"),
        ({"far": 2.0}, "near and far"),
    ],
)
def test_options_of_a_line_are_checked(values, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(LINE, **values)


def test_a_network_refuses_a_covariance_of_another_line_and_counts_it_cannot_hold(checkout, weights):
    network = LineNetwork(checkout, read_weights(weights["nf_subspacenet"]))
    with pytest.raises(ShapeError, match=r"covariance must have shape \(B, 6, 6\)"):
        network.counts(torch.eye(5, dtype=torch.complex64)[None])
    for count in (0, MOST_SOURCES + 1):
        with pytest.raises(ValueError, match="n_sources must lie in 1"):
            network.locate(torch.eye(6, dtype=torch.complex64)[None], count)


# ---- the methods

CONFIG = SystemConfig(
    array=ARRAY,
    n_antennas=12,
    n_snapshots=24,
    n_sources=(1, 1),
    snr_db=(30.0, 30.0),
    range_m=(1.2, 2.0),
    azimuth_rad=(-0.7, 0.7),
    elevation_rad=(-0.4, 0.4),
    rician_factor=(0.5, 0.5),
)


def hits(found, scenes):
    pairs = zip(found, scenes.position, scenes.mask, strict=True)
    return [match(sources.position, position[mask]).hits for sources, position, mask in pairs]


@pytest.mark.parametrize("covariance", ["sbl", "als"])
@pytest.mark.parametrize("name", NAMES)
def test_a_strong_lone_source_is_found_through_the_surface(folder, weights, name, covariance):
    scenes = generate_scenes(CONFIG, 11, range(4))
    baseline = PEERS[name](SETUP, CheckoutOptions(folder, weights[name], covariance))
    told = baseline.localize(Measurement.of(scenes), scenes.n_sources)
    assert [len(s) for s in told] == [1] * 4
    assert hits(told, scenes) == [1] * 4
    assert max(hits(baseline.localize(Measurement.of(scenes)), scenes)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_as_many_sources_come_back_as_were_asked_for_whatever_the_batch(folder, weights, name):
    scenes = generate_scenes(dataclasses.replace(CONFIG, n_sources=(2, 2), snr_db=(0.0, 0.0)), 12, range(4))
    measurement, counts = Measurement.of(scenes), torch.tensor([0, 1, 3, 5])
    baseline = PEERS[name](SETUP, CheckoutOptions(folder, weights[name], "ls"))
    found = baseline.localize(measurement, counts)
    assert [len(s) for s in found] == counts.tolist()
    for sources in found:
        assert bool(sources.position.isfinite().all())
        assert bool((sources.range > 0).all())
        assert sources.power.dtype == sources.position.dtype == torch.float64
        assert bool(sources.confidence.isnan().all())  # they do not say how probable a hit is
    alone = baseline.localize(measurement[2:3], counts[2:3])
    assert torch.allclose(alone[0].position, found[2].position, atol=1e-9)
    assert baseline.localize(measurement[:0]) == []
    with pytest.raises(ValueError, match="n_sources must be at most 5"):
        baseline.localize(measurement, torch.tensor([1, 1, 1, 6]))


@pytest.mark.parametrize("name", NAMES)
def test_blind_counts_are_those_of_the_line_that_sees_more(folder, weights, name, monkeypatch):
    scenes = generate_scenes(CONFIG, 13, range(3))
    baseline = PEERS[name](SETUP, CheckoutOptions(folder, weights[name], "ls"))
    seen = iter([torch.tensor([1, 2, 3]), torch.tensor([2, 1, 3])])
    monkeypatch.setattr(LineNetwork, "counts", lambda self, covariance: next(seen))
    assert [len(s) for s in baseline.localize(Measurement.of(scenes))] == [2, 2, 3]


def test_a_method_says_what_it_lacks(folder, weights):
    for name in NAMES:
        with pytest.raises(ValueError, match=CLONE):
            PEERS[name](SETUP)
        with pytest.raises(ValueError, match=f"dcd_train --checkout .* --method {name}"):
            PEERS[name](SETUP, CheckoutOptions(folder))
    with pytest.raises(ValueError, match="holds weights of dcd_music, not of nf_subspacenet"):
        PEERS["nf_subspacenet"](SETUP, CheckoutOptions(folder, weights["dcd_music"]))
    with pytest.raises(ValueError, match="covariance must be one of sbl, als, ls"):
        CheckoutOptions(folder, weights["dcd_music"], "guess")


# ---- training


@pytest.mark.parametrize("name", NAMES)
def test_training_moves_the_parameters_and_leaves_random_numbers_alone(checkout, name, capsys):
    before, told = state(), []
    line = dataclasses.replace(LINE, method=name)

    def report(step, steps, loss):
        print(step)
        told.append((step, steps, loss))

    network = train_network(checkout, line, TrainOptions(steps=8, batch=3), report)
    assert [(step, steps) for step, steps, _ in told] == [(i + 1, 8) for i in range(8)]
    assert all(math.isfinite(loss) for _, _, loss in told)
    assert state() == before
    assert capsys.readouterr().out.split() == [str(i + 1) for i in range(8)]  # of the report, nothing of the checkout
    assert bool((network.shift != 0).any())
    again = train_network(checkout, line, TrainOptions(steps=8, batch=3))
    assert torch.equal(again.shift, network.shift)
    if name == "dcd_music":  # half of the steps for angles alone, then ranges, then both
        assert network.extractor_trained == [False] * 2 + [True] * 2
        assert bool((network.angle_extractor.shift != 0).any())


def test_the_command_writes_weights_that_the_method_runs_with(folder, tmp_path, capsys):
    out = tmp_path / "dcd.safetensors"
    arguments = ["--checkout", str(folder), "--method", "dcd_music", "--out", str(out), "--elements", "6"]
    arguments += ["--snapshots", "24", "--range-wavelengths", "2", "12", "--train.steps", "4", "--train.batch", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [str(out)]
    assert "step 4/4" in printed.err
    assert read_weights(out).options == dataclasses.replace(LINE, method="dcd_music")
    scenes = generate_scenes(CONFIG, 14, range(1))
    baseline = PEERS["dcd_music"](SETUP, CheckoutOptions(folder, out))
    assert len(baseline.localize(Measurement.of(scenes), torch.tensor([2]))[0]) == 2


def test_the_command_says_in_one_line_what_is_wrong(folder, tmp_path, capsys):
    given = ["--checkout", str(tmp_path / "nowhere"), "--out", str(tmp_path / "w.safetensors")]
    assert main(given) == 1
    assert CLONE in capsys.readouterr().err
    assert main(["--checkout", str(folder), "--out", str(tmp_path / "w.pt")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dcd_train: --out must end in .safetensors")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, "steps and batch"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"snr_db": (3.0, 1.0)}, "snr_db"),
        ({"angle_rad": 2.0}, "angle_rad"),
    ],
)
def test_options_of_the_training_are_checked(values, words):
    with pytest.raises(ValueError, match=words):
        TrainOptions(**values)


def test_only_a_centred_line_is_trained(checkout):
    with pytest.raises(ValueError, match="centred must be True"):
        train_network(checkout, dataclasses.replace(LINE, centred=False), TrainOptions(steps=1))


# ---- the comparison


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    options = {"steps": 2, "width": 4, "head_width": 4, "columns": 8}
    options["axes"] = {"n_azimuth": 11, "n_elevation": 7, "n_range": 5}
    backbone = build_backbone("unrolled", SETUP, options)
    save_model(place, "unrolled", backbone.state_dict(), SETUP, options, {})
    return place


def test_the_command_scores_them_beside_methods_of_risfast(model, folder, weights, capsys):
    arguments = ["--checkout", str(folder), "--weights", *map(str, weights.values()), "--model", str(model)]
    arguments += ["--methods", "localizer", "--scenes", "17", "--snapshots", "6"]
    assert evaluate_main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines] == ["localizer", *NAMES]
    assert all(0 <= float(line.split()[5]) <= 1 for line in lines)


def test_the_command_refuses_what_is_missing(model, folder, weights, capsys):
    for given, words in (
        ([], CLONE),
        ([weights["dcd_music"]] * 2, "must be of different methods, got dcd_music, dcd_music"),
        ([folder / "none"], "cannot be read"),
    ):
        arguments = ["--checkout", str(folder), "--model", str(model), "--weights", *map(str, given)]
        assert evaluate_main(arguments) == 1
        assert words in capsys.readouterr().err


# ---- the real checkout

REAL = os.environ.get("RISFAST_DCD_CHECKOUT", "")
real = [pytest.mark.slow, pytest.mark.skipif(not REAL, reason="RISFAST_DCD_CHECKOUT names no checkout")]


@pytest.fixture(scope="module")
def real_checkout():
    return load_checkout(REAL)


class TestRealCheckout:
    pytestmark = real

    def test_its_music_finds_our_sources_at_our_angles_and_ranges(self, real_checkout):
        """Conventions agree: sign, centre, units; nothing is learned here."""
        line = LineOptions(near=3.0, far=15.0)
        with calm():
            music = build_network(real_checkout, line).eval().diff_method
        scenes = draw_line_scenes(line, TrainOptions(snr_db=(30.0, 30.0)), 50, 1, torch.Generator().manual_seed(1))
        x = scenes.snapshots.conj().resolve_conj()
        with calm(), torch.no_grad():
            angle, distance = music(x @ x.mH / x.shape[-1], 1)[0]
        apart = (angle - scenes.angle).abs().rad2deg()
        assert float(apart.median()) < 1
        assert float(apart.max()) < 5
        assert float((distance / scenes.distance - 1).abs().median()) < 0.1

    def test_its_system_model_is_the_second_order_wavefront_about_its_first_element_when_it_is_left_alone(
        self, real_checkout
    ):
        with calm():
            model = system_model(real_checkout, 12, 64, centred=False)
            theirs = model.steering_vec(np.array([0.4, -0.8]), distance=np.array([9.0, 20.0]), nominal=True)
        x = torch.arange(12, dtype=torch.float64) / 2
        ours = second_order_wavefront(x, torch.tensor([0.4, -0.8], dtype=torch.float64), torch.tensor([9.0, 20.0]))
        np.testing.assert_allclose(theirs, ours.conj().resolve_conj().numpy(), atol=1e-9)

    @pytest.mark.parametrize(("name", "steps"), [("nf_subspacenet", 60), ("dcd_music", 400)])
    def test_its_networks_learn_and_run_through_the_surface(self, real_checkout, tmp_path, name, steps):
        line, losses = LineOptions(name, far=15.0), []
        options = TrainOptions(steps=steps, batch=8, snr_db=(10.0, 30.0))
        network = train_network(real_checkout, line, options, lambda step, steps, loss: losses.append(loss))
        first = losses[: steps // 2]  # of one objective, for either method
        tenth = max(len(first) // 5, 1)
        assert sum(first[-tenth:]) < sum(first[:tenth])
        path = tmp_path / "weights.safetensors"
        write_weights(path, network, line, {})
        scenes = generate_scenes(SystemConfig(n_snapshots=16), 3, range(4))
        found = PEERS[name](SystemConfig().setup, CheckoutOptions(Path(REAL), path)).localize(
            Measurement.of(scenes), scenes.n_sources
        )
        assert [len(s) for s in found] == scenes.n_sources.tolist()
        assert all(bool(s.position.isfinite().all()) for s in found)
