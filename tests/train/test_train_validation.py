"""Figures of validation, against float64 loops over whole covariances."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from risfast.geometry import PlanarArray, SearchGrid
from risfast.localize.pipeline import CandidateOptions, MapOptions, Parts, PipelineOptions
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.setup import Tolerance
from risfast.simulate import SystemConfig, generate_scenes
from risfast.sources import Sources
from risfast.train.validation import (
    is_constant,
    peak_to_sidelobe_db,
    score_covariances,
    score_sources,
    validate,
)

N = 6


def factors(seed: int, scenes: int, columns: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(scenes, N, columns, 2))
    return torch.complex(*torch.tensor(values).unbind(-1)) * torch.tensor(rng.uniform(0.1, 9, (scenes, 1, 1)))


def by_loop(estimated: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
    """Every figure from N x N matrices, one scene at a time."""

    def matrices(f: torch.Tensor) -> list[np.ndarray]:
        made = [x @ x.conj().T for x in f.numpy()]
        return [R * N / np.trace(R).real for R in made]

    def spread(R: list[np.ndarray]) -> float:
        mean = sum(R) / len(R)
        return sum(np.linalg.norm(x - mean) ** 2 for x in R) / sum(np.linalg.norm(x) ** 2 for x in R)

    E, T = matrices(estimated), matrices(true)
    errors = [np.linalg.norm(e - t) ** 2 / np.linalg.norm(t) ** 2 for e, t in zip(E, T, strict=True)]
    mean = sum(T) / len(T)
    pairs = [np.vdot(a, b).real / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in itertools.combinations(E, 2)]
    return {
        "nmse_mean": float(np.mean(errors)),
        "nmse_median": float(sorted(errors)[(len(errors) - 1) // 2]),
        "nmse_of_mean": float(np.mean([np.linalg.norm(mean - t) ** 2 / np.linalg.norm(t) ** 2 for t in T])),
        "correlation": float(np.mean(pairs)),
        "spread": spread(E),
        "true_spread": spread(T),
    }


def test_figures_are_those_of_the_whole_matrices() -> None:
    estimated, true = factors(1, 9, 4), factors(2, 9, 2)
    scores = score_covariances([estimated[:4], estimated[4:]], [true[:4], true[4:]])
    assert dataclasses.asdict(scores) == pytest.approx(by_loop(estimated, true), rel=1e-10)


def test_batches_may_differ_in_width_and_do_not_matter() -> None:
    estimated, true = factors(1, 6, 4), factors(2, 6, 2)
    wide = nn.functional.pad(estimated[:2], (0, 3))
    whole = score_covariances([estimated], [true])
    parts = score_covariances([wide, estimated[2:]], [true[:2], true[2:]])
    assert dataclasses.asdict(parts) == pytest.approx(dataclasses.asdict(whole), rel=1e-12)


def test_the_truth_has_no_error_and_zeros_have_one() -> None:
    true = factors(3, 5, 2)
    perfect = score_covariances([true * 7], [true])
    assert perfect.nmse_mean == pytest.approx(0, abs=1e-12)
    assert perfect.correlation == pytest.approx(by_loop(true, true)["correlation"])
    zero = score_covariances([true * 0], [true])
    assert zero.nmse_mean == pytest.approx(1)
    assert (zero.spread, zero.correlation) == (0, 1)


def test_a_constant_is_recognised_and_an_estimate_that_follows_the_scene_is_not() -> None:
    true = factors(4, 8, 1)
    constant = score_covariances([factors(5, 1, 3).expand(8, -1, -1)], [true])
    assert constant.correlation == pytest.approx(1)
    assert constant.spread == pytest.approx(0, abs=1e-12)
    assert is_constant(constant)
    assert not is_constant(score_covariances([true + 0.3 * factors(6, 8, 1)], [true]))


def test_scenes_without_sources_have_no_covariance_to_compare() -> None:
    estimated, true = factors(1, 6, 4), factors(2, 6, 2)
    silent = true.clone()
    silent[[1, 4]] = 0
    kept = torch.tensor([0, 2, 3, 5])
    assert dataclasses.asdict(score_covariances([estimated], [silent])) == pytest.approx(
        dataclasses.asdict(score_covariances([estimated[kept]], [true[kept]]))
    )
    with pytest.raises(ValueError, match="no scene has a source"):
        score_covariances([estimated], [true * 0])


def test_peak_to_side_lobe_is_the_best_near_over_the_best_elsewhere() -> None:
    grid = SearchGrid.training()
    azimuth, elevation = grid.azimuth_rad.rad2deg(), grid.elevation_rad.rad2deg()
    power = torch.rand(azimuth.numel(), elevation.numel(), generator=torch.Generator().manual_seed(0))
    true_deg = [(10.0, 5.0), (-30.0, -20.0)]
    near, far = 0.0, 0.0
    for i, j in itertools.product(range(azimuth.numel()), range(elevation.numel())):
        inside = any(abs(azimuth[i] - a) <= 5 + 1e-9 and abs(elevation[j] - e) <= 5 + 1e-9 for a, e in true_deg)
        value = float(power[i, j])
        near, far = (max(near, value), far) if inside else (near, max(far, value))
    true = torch.tensor([[math.radians(a), math.radians(e), 2.0] for a, e in true_deg])
    assert peak_to_sidelobe_db(power, grid, true, Tolerance()) == pytest.approx(10 * math.log10(near / far), rel=1e-6)
    assert math.isnan(peak_to_sidelobe_db(power, grid, true[:0], Tolerance()))


def test_a_peak_across_the_end_of_the_circle_is_near() -> None:
    azimuth = torch.linspace(-179, 179, 180, dtype=torch.float64).deg2rad()
    grid = SearchGrid(azimuth, torch.zeros(1, dtype=torch.float64), torch.tensor([2.0]).double())
    power = torch.ones(180, 1)
    power[-1], power[90] = 8.0, 2.0
    true = torch.tensor([[math.radians(-178.0), 0.0, 2.0]])
    assert peak_to_sidelobe_db(power, grid, true, Tolerance()) == pytest.approx(10 * math.log10(8 / 2))


SYSTEM = SystemConfig(array=PlanarArray.rectangular(4, 4), n_antennas=4, n_snapshots=5, n_sources=(1, 2))


class Oracle(nn.Module):
    """Answers with the truth of the scenes it was made for, in the order it is asked."""

    def __init__(self, scenes) -> None:
        super().__init__()
        self.scenes, self.at = scenes, 0
        self.seen: list[tuple[bool, bool]] = []
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, measurement: Measurement) -> CovarianceEstimate:
        self.seen.append((self.training, measurement.noise_power is not None))
        start, self.at = self.at, self.at + len(measurement)
        assert torch.equal(measurement.y, self.scenes.y[start : self.at])
        return CovarianceEstimate(self.scenes.true_factor()[start : self.at])

    def sources(self, estimate: CovarianceEstimate, extra: float = 0.0) -> list[Sources]:
        first = self.at - estimate.factor.shape[0]
        found = []
        for i in range(first, self.at):
            azimuth, elevation, r = self.scenes.position[i][self.scenes.mask[i]].double().unbind(-1)
            found.append(Sources(azimuth + extra, elevation, r, torch.ones_like(r), torch.ones_like(r)))
        return found


def test_a_backbone_that_knows_the_truth_has_perfect_figures() -> None:
    scenes = generate_scenes(SYSTEM, 1, range(7))
    module = Oracle(scenes).train()
    coarse = PipelineOptions(map=MapOptions(points_per_beam=6.0))
    figures, scores = validate(Parts(module, SYSTEM.setup), scenes, coarse, batch_size=3, capon_scenes=4)
    assert figures["nmse_mean"] == pytest.approx(0, abs=1e-6)
    assert figures["nmse_mean"] == scores.nmse_mean
    assert (figures["f1"], figures["ghosts_per_scene"], figures["rmse_range_m"]) == (1, 0, pytest.approx(0, abs=1e-6))
    # A true covariance has no noise: Capon on it points at its sources.
    assert figures["capon_recall"] > 0.5
    assert figures["true_capon_f1"] == figures["capon_f1"]
    assert figures["capon_peak_to_sidelobe_db"] > 0
    assert module.seen == [(False, False)] * 3
    assert module.training


def test_detection_options_and_noise_reach_the_backbone() -> None:
    scenes = generate_scenes(SYSTEM, 1, range(4))
    module = Oracle(scenes).eval()
    options = PipelineOptions(candidates=CandidateOptions(own={"extra": math.radians(6.0)}), noise_known=True)
    figures, _ = validate(Parts(module, SYSTEM.setup), scenes, options)
    assert (figures["f1"], figures["recall"]) == (0, 0)
    assert "capon_f1" not in figures
    assert module.seen == [(False, True)]
    assert not module.training


def test_scores_of_sources_count_what_is_true_of_each_scene() -> None:
    scenes = generate_scenes(dataclasses.replace(SYSTEM, n_sources=(2, 2)), 1, range(3))
    empty = torch.empty(0).double()
    silent = Sources(empty, empty, empty, empty, empty)
    one = Sources(*scenes.position[1][:1].double().unbind(-1), torch.ones(1).double(), torch.ones(1).double())
    summary = score_sources([silent, one, silent], scenes)
    assert (summary.sources, summary.estimates, summary.found) == (6, 1, 1)


def test_a_hit_is_what_the_setup_says_it_is() -> None:
    scenes = generate_scenes(SYSTEM, 1, range(4))
    own = PipelineOptions(candidates=CandidateOptions(own={"extra": math.radians(6.0)}))
    wide = SYSTEM.setup.replace(tolerance=Tolerance(azimuth_rad=math.radians(7.0)))
    assert validate(Parts(Oracle(scenes), wide), scenes, own)[0]["f1"] == 1


@pytest.mark.parametrize(
    "system",
    [
        SystemConfig(wavefront="fresnel"),
        SystemConfig(wavefront="planar"),
        SystemConfig(azimuth_rad=(-0.4, 1.2), elevation_rad=(-0.7, 0.1), range_m=(0.8, 4.0)),
    ],
    ids=lambda s: s.wavefront,
)
def test_maps_agree_with_the_system_whatever_it_is(system: SystemConfig) -> None:
    chosen = dataclasses.replace(
        system,
        array=PlanarArray.rectangular(6, 6),
        n_snapshots=3,
        n_sources=(1, 2),
        min_separation_rad=math.radians(25),
    )
    scenes = generate_scenes(chosen, 3, range(6))
    coarse = PipelineOptions(map=MapOptions(points_per_beam=6.0))
    figures, _ = validate(Parts(Oracle(scenes), chosen.setup), scenes, coarse, capon_scenes=6)
    assert figures["true_capon_f1"] == 1
    assert figures["f1"] == 1


def test_maps_of_another_wavefront_do_not_agree() -> None:
    system = SystemConfig(n_snapshots=3, n_sources=(2, 2), range_m=(0.5, 1.0), wavefront="planar")
    scenes = generate_scenes(system, 3, range(4))
    coarse = PipelineOptions(map=MapOptions(points_per_beam=5.0))
    parts = Parts(Oracle(scenes), system.setup.replace(wavefront="spherical", tolerance=None))
    assert validate(parts, scenes, coarse, capon_scenes=4)[0]["true_capon_f1"] < 0.9
