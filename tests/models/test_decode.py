"""From maps to sources: cells, expected counts, peaks of powers, and the objective that teaches the counts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from risfast.geometry import SensorArray
from risfast.losses import BackboneObjective, ObjectiveOptions
from risfast.models.atoms import AtomAxes, RangeCells
from risfast.models.base import CovarianceEstimate, SourceMap
from risfast.models.decode import MapDetection, PowerDetection, counts_near, sources_of_map, sources_of_power
from risfast.setup import Tolerance
from risfast.simulate.scenes import SystemConfig, generate_scenes

AXES = AtomAxes()
CELLS = RangeCells(AXES, 8)
TOLERANCE = Tolerance()
NOTHING = -40.0


def empty_map(batch=1):
    shape = (batch, AXES.n_azimuth, AXES.n_elevation)
    return SourceMap(torch.full((*shape, len(CELLS)), NOTHING), torch.zeros(*shape, AXES.n_range, 2))


def place(position):
    """(azimuth, elevation, cell) index of the cell of a source, and its offset."""
    target = CELLS.targets(torch.tensor([[position]]))
    flat = int(target.cell)
    return (flat // len(CELLS) // AXES.n_elevation, flat // len(CELLS) % AXES.n_elevation, flat % len(CELLS)), target


def decoded(found, tolerance=TOLERANCE, **options):
    power = torch.ones(len(found.log_intensity), *AXES.shape)
    return sources_of_map(found, power, CELLS, tolerance, MapDetection(**options))


def test_the_cells_cover_the_ranges_and_are_finest_near():
    assert CELLS.edges[0] == pytest.approx(0.5)
    assert CELLS.edges[-1] == pytest.approx(10.0)
    widths = CELLS.edges.diff()
    assert (widths > 0).all()
    assert float(widths.max()) < 1.0  # finer than the tolerance of a hit everywhere
    assert len(CELLS) == 80


def test_targets_are_where_the_sources_are():
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor([-1.04, -0.52, 0.5]), torch.tensor([1.04, 0.52, 10.0])
    position = low + (high - low) * torch.rand(1, 200, 3, generator=generator)
    target = CELLS.targets(position)
    sines = AXES.coordinates
    for i, (azimuth, elevation, r) in enumerate(position[0].double().tolist()):
        flat = int(target.cell[0, i])
        g_az, g_el, cell = flat // len(CELLS) // AXES.n_elevation, flat // len(CELLS) % AXES.n_elevation, flat % 80
        assert abs(math.sin(azimuth) - float(sines[0][g_az])) <= AXES.spacing[0] / 2 + 1e-6
        assert abs(math.sin(elevation) - float(sines[1][g_el])) <= AXES.spacing[1] / 2 + 1e-6
        assert float(CELLS.edges[cell]) - 1e-6 <= r <= float(CELLS.edges[cell + 1]) + 1e-6
        back = float(sines[0][g_az]) + AXES.spacing[0] * float(target.offset[0, i, 0])
        assert back == pytest.approx(math.sin(azimuth), abs=1e-5)


@pytest.mark.parametrize("position", [(0.3, -0.2, 1.1), (-0.9, 0.4, 7.7), (0.0, 0.0, 0.55), (1.0, 0.5, 9.9)])
def test_a_certain_source_is_found_where_it_is(position):
    found = empty_map()
    (g_az, g_el, cell), target = place(position)
    found.log_intensity[0, g_az, g_el, cell] = 0.0
    found.offset[0, g_az, g_el, cell // 8] = target.offset[0, 0]
    [sources] = decoded(found)
    assert len(sources) == 1
    assert float(sources.azimuth) == pytest.approx(position[0], abs=1e-4)
    assert float(sources.elevation) == pytest.approx(position[1], abs=1e-4)
    half = float((CELLS.edges[cell + 1] - CELLS.edges[cell]) / 2)
    assert float(sources.range) == pytest.approx(position[2], abs=half + 1e-6)
    assert float(sources.confidence) == pytest.approx(1.0)


def test_one_source_of_uncertain_range_is_one_source_where_most_of_it_is():
    found = empty_map()
    far = (CELLS.centres - 8.0).abs() < 0.9  # 0.6 of the source within the tolerance of 8 m
    near = (CELLS.centres - 5.5).abs() < 0.5
    found.log_intensity[0, 12, 7, far] = math.log(0.6 / int(far.sum()))
    found.log_intensity[0, 12, 7, near] = math.log(0.4 / int(near.sum()))
    [sources] = decoded(found)
    assert len(sources) == 1
    assert float(sources.range) == pytest.approx(8.0, abs=0.3)
    assert float(sources.confidence) == pytest.approx(0.6, abs=1e-6)


def test_two_sources_in_one_direction_are_two():
    found = empty_map()
    for r in (2.0, 6.0):
        found.log_intensity[0, 12, 7, int((CELLS.centres - r).abs().argmin())] = math.log(0.95)
    [sources] = decoded(found)
    assert sorted(round(float(r)) for r in sources.range) == [2, 6]


def test_two_sources_in_one_place_are_apart_along_its_counts_and_not_by_rounding():
    found = empty_map()
    found.log_intensity[0, 12, 7, 20] = math.log(0.7)
    found.log_intensity[0, 13, 7, 20] = math.log(0.9)  # 2.3 degrees beside it, within the tolerance
    [sources] = decoded(found)
    assert len(sources) == 2
    here, there = sources.position.double()
    centre = (here + there) / 2
    angles = AXES.angles(AXES.coordinates)[0][[12, 13]].double()
    share = torch.tensor([0.7, 0.9], dtype=torch.float64) / 1.6
    middle = float(share @ angles)
    deviation = float((share @ (angles - middle).square()).sqrt())
    assert float(centre[0]) == pytest.approx(middle, abs=1e-6)
    assert float((here - there)[0].abs()) == pytest.approx(2 * deviation, rel=1e-5)
    torch.testing.assert_close(here[1:], there[1:], atol=1e-6, rtol=0)
    noise = 1e-6 * torch.rand(found.log_intensity.shape, generator=torch.Generator().manual_seed(0))
    [again] = decoded(SourceMap(found.log_intensity + noise, found.offset))
    torch.testing.assert_close(again.position, sources.position, atol=1e-5, rtol=1e-5)


def test_of_two_and_three_sources_in_one_cell_no_two_are_in_one_place():
    for expected in (1.9, 2.9):
        found = empty_map()
        found.log_intensity[0, 12, 7, 20] = math.log(expected)
        [sources] = decoded(found)
        assert len(sources) == round(expected)
        apart = torch.pdist(sources.position.double() / torch.tensor(TOLERANCE.limits))
        assert float(apart.min()) > 0.05
        assert float(apart.max()) < 0.5


def test_the_threshold_and_the_cap_hold_and_the_order_is_by_confidence():
    found = empty_map()
    for i, expected in enumerate((0.9, 0.7, 0.5, 0.2)):
        found.log_intensity[0, 3 + 5 * i, 7, 20] = math.log(expected)
    [sources] = decoded(found)
    assert sources.confidence.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert len(decoded(found, threshold=0.15)[0]) == 4
    assert decoded(found, max_sources=1)[0].confidence.tolist() == pytest.approx([0.9])
    assert len(decoded(found, threshold=0.95)[0]) == 0
    assert decoded(empty_map(0)) == []


def greedily(counts, offset, options):
    """(azimuth, elevation, range, expected number) of what is reported, one after the other, by the definition."""
    n_el, n_cells = AXES.n_elevation, len(CELLS)
    best = np.argsort(-counts.ravel(), kind="stable")[: options.cells]
    left = counts.ravel()[best].copy()
    rows = []
    for flat in best:
        g_az, g_el, cell = flat // (n_el * n_cells), flat // n_cells % n_el, flat % n_cells
        moved = offset[g_az, g_el, cell // (n_cells // AXES.n_range)]
        sines = [float(AXES.coordinates[i][g]) + AXES.spacing[i] * moved[i] for i, g in enumerate((g_az, g_el))]
        rows.append([*np.arcsin(np.clip(sines, -1, 1)), float(CELLS.centres[cell])])
    place, found, windows = np.array(rows), [], []
    half = (TOLERANCE.azimuth_rad, TOLERANCE.elevation_rad, TOLERANCE.range_m)
    within = np.abs(place[:, None] - place) <= half
    near, inside = within[..., :2].all(2), within.all(2)
    for _ in range(options.max_sources):
        mass = inside @ left
        at = mass.argmax()
        if mass[at] < options.threshold:
            break
        here, beside = inside[at], near[at] & ~inside[at]
        found.append([*(left[here] @ place[here] / mass[at]), min(mass[at], 1)])
        windows.append(here)
        taken = min(mass[at], 1)
        left[here] *= 1 - taken / mass[at]
        if beside.any() and left[beside].sum() > 0:
            left[beside] *= 1 - min((1 - taken) / left[beside].sum(), 1)
    apart = set()
    for one, other in itertools.combinations(range(len(found)), 2):  # of one place: a deviation to each side
        centre = np.array(found[one][:3])
        if apart & {one, other} or np.any(np.abs(found[other][:3] - centre) >= 1e-3 * np.array(half)):
            continue
        apart |= {one, other}
        cells, weight = place[windows[one]], counts.ravel()[best][windows[one]]
        off = (cells - centre) / half
        variance, axes = np.linalg.eigh(np.einsum("c,ci,cj->ij", weight / weight.sum(), off, off))
        way = axes[:, -1] * np.sign(axes[np.abs(axes[:, -1]).argmax(), -1])
        move = way * max(math.sqrt(variance[-1]), 0.1) * half
        found[one][:3], found[other][:3] = centre + move, centre - move
    return np.array(sorted(found, key=lambda row: -row[3])).reshape(-1, 4)


@pytest.mark.parametrize("threshold", [0.15, 0.6])
def test_any_map_is_read_as_defined_and_alike_in_every_batch(threshold):
    generator = torch.Generator().manual_seed(8)
    found = empty_map(5)
    found.log_intensity.copy_(-9 + torch.randn(found.log_intensity.shape, generator=generator))
    for b in range(5):  # a few blurred sources each, none in the last map
        for _ in range(4 if b < 4 else 0):
            g_az, g_el, cell = (int(torch.randint(3, n - 3, (1,), generator=generator)) for n in (25, 15, 80))
            blur = torch.randn(3, 3, 5, generator=generator) - 2.5
            found.log_intensity[b, g_az - 1 : g_az + 2, g_el - 1 : g_el + 2, cell - 2 : cell + 3] = blur
    found.offset.copy_(0.3 * torch.randn(found.offset.shape, generator=generator))
    options = MapDetection(threshold=threshold)
    together = decoded(found, threshold=threshold)
    assert sum(map(len, together)) > 4
    for b, sources in enumerate(together):
        one = SourceMap(found.log_intensity[b : b + 1], found.offset[b : b + 1])
        torch.testing.assert_close(decoded(one, threshold=threshold)[0].position, sources.position, rtol=0, atol=0)
        counts, offset = found.log_intensity[b].double().exp().numpy(), found.offset[b].double().numpy()
        exact = greedily(counts, offset, options)
        rows = torch.cat([sources.position, sources.confidence[:, None]], 1)
        np.testing.assert_allclose(rows.numpy(), exact, atol=1e-5)


def test_powers_of_atoms_give_their_peaks():
    power = torch.full((1, *AXES.shape), 1e-6)
    power[0, 5, 4, 3] = 1.0
    power[0, 18, 10, 6] = 0.5
    power[0, 18, 10, 7] = 0.25
    power[0, 10, 2, 5] = 0.01  # 20 dB down
    [sources] = sources_of_power(power, AXES, TOLERANCE)
    assert len(sources) == 2
    assert sources.power.tolist() == pytest.approx([1.0, 0.75], rel=1e-4)
    sines = AXES.coordinates
    assert float(sources.azimuth[0].sin()) == pytest.approx(float(sines[0][5]), abs=1e-4)
    expected = (2 * AXES.inverse_range[6] + AXES.inverse_range[7]) / 3
    assert 1 / float(sources.range[1]) == pytest.approx(float(expected), rel=1e-3)
    assert len(sources_of_power(power, AXES, TOLERANCE, PowerDetection(max_db=25.0))[0]) == 3
    assert len(sources_of_power(torch.zeros(1, *AXES.shape), AXES, TOLERANCE)[0]) == 0
    assert sources_of_power(torch.zeros(0, *AXES.shape), AXES, TOLERANCE) == []


def test_a_peak_of_powers_in_the_far_field_has_an_infinite_range_and_takes_in_its_neighbours():
    axes = AtomAxes(9, 5, 1, range_m=(0.5, math.inf))
    power = torch.full((1, *axes.shape), 1e-9)
    power[0, 4, 2, 0], power[0, 5, 2, 0], power[0, 1, 2, 0] = 1.0, 0.4, 0.5
    [sources] = sources_of_power(power, axes, Tolerance(range_m=math.inf))
    assert sources.power.tolist() == pytest.approx([1.4, 0.5], rel=1e-4)
    assert sources.range.tolist() == [math.inf, math.inf]


def test_cells_reach_to_the_far_field_with_finite_centres():
    cells = RangeCells(AtomAxes(5, 4, 3, range_m=(0.5, math.inf)), 4)
    assert not cells.edges.isnan().any()
    assert (cells.edges.diff() > 0).all()
    assert float(cells.edges[-1]) == math.inf
    assert ((cells.edges[:-1] < cells.centres) & (cells.centres < cells.edges[1:])).all()
    assert cells.centres.isfinite().all()
    steps = (1 / cells.edges[-5:]).diff()  # the last atom's cells: equal lengths of 1/range
    torch.testing.assert_close(steps, steps[:1].expand(4))
    position = torch.tensor([[[0.0, 0.0, r] for r in (*cells.centres.tolist(), math.inf)]])
    assert (cells.targets(position).cell % 12).tolist() == [[*range(12), 11]]


def test_a_map_of_planar_waves_gives_directions_and_no_range():
    axes = AtomAxes(9, 5, 1, range_m=(0.5, math.inf))
    cells, tolerance = RangeCells(axes, 2), Tolerance(range_m=math.inf)
    log_intensity = torch.full((1, 9, 5, 2), NOTHING)
    log_intensity[0, 2, 1] = math.log(0.45)  # of each cell of range
    log_intensity[0, 7, 3, 0] = math.log(0.7)
    found = SourceMap(log_intensity, torch.zeros(1, 9, 5, 1, 2))
    [sources] = sources_of_map(found, torch.ones(1, *axes.shape), cells, tolerance)
    assert sources.confidence.tolist() == pytest.approx([0.9, 0.7], abs=1e-6)
    assert sources.range.tolist() == [math.inf, math.inf]
    azimuth, elevation = axes.angles(axes.coordinates)
    assert sources.azimuth.tolist() == pytest.approx(azimuth[[2, 7]].tolist())
    assert sources.elevation.tolist() == pytest.approx(elevation[[1, 3]].tolist())
    within, toward = counts_near(found, sources.position[None], cells, tolerance)
    assert within.tolist() == [pytest.approx([0.9, 0.7], abs=1e-6)]
    torch.testing.assert_close(toward, within)


@pytest.mark.parametrize("shift", [-0.02, 0.03])
def test_a_source_on_the_seam_of_a_full_circle_is_one(shift):
    axes = AtomAxes(72, 1, 2, azimuth_rad=math.pi, elevation_rad=(0.0, 0.0), range_m=(1.0, 4.0))
    cells = RangeCells(axes, 3)
    log_intensity = torch.full((1, 72, 1, 6), NOTHING)
    log_intensity[0, [0, 71], 0, 2] = torch.tensor([0.4, 0.5]).log()
    offset = torch.zeros(1, 72, 1, 2, 2)
    offset[..., 0] = shift / axes.spacing[0]
    found = SourceMap(log_intensity, offset)
    power = torch.zeros(1, *axes.shape)
    power[0, [0, 71, 36], 0] = 1.0
    [sources] = sources_of_map(found, power, cells, Tolerance())
    assert sources.confidence.tolist() == pytest.approx([0.9], abs=1e-6)
    half = math.pi / 72
    expected = (0.4 * half - 0.5 * half) / 0.9 + shift  # from the seam
    assert abs(float(sources.azimuth)) <= math.pi
    turn = math.remainder(float(sources.azimuth) - math.pi, 2 * math.pi)
    assert turn == pytest.approx(expected, abs=1e-6)
    assert float(sources.power) == 4.0  # both atoms at the seam, at both ranges
    within, _ = counts_near(found, torch.tensor([[[math.pi, 0.0, 2.0]]]), cells, Tolerance())
    assert float(within) == pytest.approx(0.9, abs=1e-6)


def test_the_count_loss_is_least_at_the_expected_counts():
    array = SensorArray.rectangular(4, 3)
    axes = AtomAxes(5, 4, 3)
    cells = RangeCells(axes, 2)
    scenes = generate_scenes(SystemConfig(array=array, n_antennas=2, n_snapshots=2), 0, range(40))
    target = cells.targets(scenes.position)
    counts = torch.zeros(40, 5 * 4 * 6).scatter_add_(1, target.cell, scenes.mask.float())
    mean = counts.mean(0, keepdim=True).clamp_min(1e-6)
    objective = BackboneObjective(ObjectiveOptions(), cells)

    def loss(log_intensity):
        offset = torch.zeros(40, 5, 4, 3, 2)
        found = SourceMap(log_intensity.expand(40, -1).reshape(40, 5, 4, 6), offset)
        return float(objective(CovarianceEstimate(scenes.true_factor(), sources=found), scenes).parts["intensity"])

    best = loss(mean.log())
    for shift in (-0.3, 0.3):
        assert loss(mean.log() + shift) > best
    assert loss(mean.log().roll(1, 1)) > best


def test_the_objective_is_zero_where_the_estimate_is_right():
    array = SensorArray.rectangular(4, 3)
    axes = AtomAxes(5, 4, 3)
    cells = RangeCells(axes, 2)
    scenes = generate_scenes(SystemConfig(array=array, n_antennas=2, n_snapshots=2), 0, range(6))
    target = cells.targets(scenes.position)
    offset = torch.zeros(6, 5 * 4 * 3, 2)
    atom = target.cell // 6 * 3 + target.cell % 6 // 2
    once = [b for b in range(6) if len(set(atom[b][scenes.mask[b]].tolist())) == int(scenes.mask[b].sum())]
    assert once  # an atom that holds two sources has no right offset
    for b in range(6):
        for k in range(int(scenes.mask[b].sum())):
            offset[b, atom[b, k]] = target.offset[b, k]
    found = SourceMap(torch.zeros(6, 5, 4, 6), offset.reshape(6, 5, 4, 3, 2))
    some = torch.tensor(once)
    picked = generate_scenes(scenes.config, 0, once)
    estimate = CovarianceEstimate(
        picked.true_factor() * 3, sources=SourceMap(found.log_intensity[some], found.offset[some])
    )
    terms = BackboneObjective(ObjectiveOptions(), cells)(estimate, picked)
    assert float(terms.parts["nmse"]) == pytest.approx(0.0, abs=1e-5)
    assert float(terms.parts["offset"]) == pytest.approx(0.0, abs=1e-6)
    assert float(terms.total) == pytest.approx(0.05 * float(terms.parts["intensity"]), abs=1e-5)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (MapDetection, {"threshold": 0.0}),
        (MapDetection, {"threshold": 1.5}),
        (MapDetection, {"max_sources": 0}),
        (PowerDetection, {"max_db": 0.0}),
        (PowerDetection, {"max_sources": 0}),
        (ObjectiveOptions, {"nmse": -1.0}),
    ],
)
def test_wrong_options_are_refused(make, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)
