"""Detection through refined maps."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from risfast.evaluate import match
from risfast.geometry import PlanarArray
from risfast.localize.refiner import RefinedOptions, Refiner, build_refiner, estimate_maps, refined_sources
from risfast.losses import blob_heatmap
from risfast.models import build_backbone
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.models.refiner import RefinerOptions, SpectrumRefiner
from risfast.ops import mvdr_spectrum_lowrank
from risfast.simulate import SystemConfig, generate_scenes

ARRAY = PlanarArray.rectangular(8, 8)
SYSTEM = SystemConfig(
    array=ARRAY,
    n_antennas=8,
    n_snapshots=8,
    n_sources=(1, 2),
    min_separation_rad=math.radians(30),
    range_m=(0.6, 3.0),
    azimuth_rad=(-0.8, 0.8),
    elevation_rad=(-0.4, 0.4),
)
SETUP = SYSTEM.setup
GRID = SETUP.search_grid(12.0)


class Told(nn.Module):
    """A refiner that has been told the map."""

    def __init__(self, refined: Tensor) -> None:
        super().__init__()
        self.refined = refined

    def forward(self, maps: Tensor) -> Tensor:
        return self.refined


def test_directions_come_from_the_map_and_the_rest_from_the_covariance() -> None:
    scenes = generate_scenes(SYSTEM, 2, range(5))
    factor = scenes.true_factor()
    given = estimate_maps(CovarianceEstimate(factor), nn.Identity(), SETUP, GRID)
    told = Told(blob_heatmap(scenes.position, scenes.mask, GRID))
    found, verdict = refined_sources(Refiner(told, GRID), given, factor, SETUP)  # type: ignore[arg-type]
    assert bool(verdict.ok.all())
    for i, sources in enumerate(found):
        matched = match(sources.position, scenes.position[i][scenes.mask[i]])
        assert matched.ghosts == matched.misses == 0
        # The covariance is the true one, without noise: what is left is the refinement's own grid.
        assert float(matched.distance_m.max()) < 0.05
        assert bool((sources.confidence > 0.8).all())  # the blob at the grid point next to its middle
        assert bool((sources.power > 0).all())


def test_planar_waves_make_one_source_of_a_direction() -> None:
    system = dataclasses.replace(SYSTEM, wavefront="planar")
    scenes = generate_scenes(system, 2, range(5))
    factor = scenes.true_factor()
    given = estimate_maps(CovarianceEstimate(factor), nn.Identity(), system.setup, GRID)
    told = Told(blob_heatmap(scenes.position, scenes.mask, GRID))
    found, _ = refined_sources(Refiner(told, GRID), given, factor, system.setup)  # type: ignore[arg-type]
    for i, sources in enumerate(found):
        matched = match(sources.position, scenes.position[i][scenes.mask[i]], system.setup.tolerance)
        assert matched.ghosts == matched.misses == 0


def test_what_the_map_does_not_show_is_not_found() -> None:
    scenes = generate_scenes(SYSTEM, 2, range(3))
    factor = scenes.true_factor()
    given = estimate_maps(CovarianceEstimate(factor), nn.Identity(), SETUP, GRID)
    blank = Told(torch.zeros(3, *GRID.shape[:2]))
    found, verdict = refined_sources(Refiner(blank, GRID), given, factor, SETUP)  # type: ignore[arg-type]
    assert [len(sources) for sources in found] == [0, 0, 0]
    assert not bool(verdict.ok.any())  # and the guard says so


def test_the_first_map_is_the_capon_power_in_decibels() -> None:
    factor = generate_scenes(SYSTEM, 2, range(2)).true_factor()
    options = RefinedOptions(floor_db=-30.0, loading=1e-3)
    given = estimate_maps(CovarianceEstimate(factor), nn.Identity(), SETUP, GRID, options)
    spectrum = mvdr_spectrum_lowrank(factor, ARRAY, GRID, loading=1e-3, wavefront=SETUP.wavefront)
    for i in range(2):
        level = 10 * (spectrum.power[i].double() / spectrum.power[i].max()).log10()
        torch.testing.assert_close(given.maps[i, 0].double(), 1 + level.clamp_min(-30) / 30, rtol=0, atol=1e-5)
    assert torch.equal(given.plane, spectrum.plane)


def test_the_intensity_is_the_expected_count_of_each_direction() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("unrolled", SETUP, {"steps": 1, "width": 4, "head_width": 4, "columns": 8}).eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        estimate = backbone(Measurement.of(generate_scenes(SYSTEM, 1, range(2))))
        given = estimate_maps(estimate, backbone, SETUP, GRID, RefinedOptions(maps=("capon", "intensity")))
    assert given.maps.shape == (2, 2, *GRID.shape[:2])
    assert estimate.sources is not None
    counts = estimate.sources.log_intensity.double().exp().sum(-1)
    # At a direction of an atom it is that atom's: the corners of the region.
    for atom in ((0, 0), (-1, -1), (0, -1), (-1, 0)):
        expected = 1 + counts[:, *atom].log().clamp_min(-12) / 12
        torch.testing.assert_close(given.maps[:, 1, *atom].double(), expected, rtol=0, atol=1e-5)


def test_a_backbone_without_counts_has_no_intensity() -> None:
    factor = generate_scenes(SYSTEM, 2, range(1)).true_factor()
    with pytest.raises(ValueError, match="intensity"):
        estimate_maps(
            CovarianceEstimate(factor), nn.Identity(), SETUP, GRID, RefinedOptions(maps=("capon", "intensity"))
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"maps": ()}, "start with capon"),
        ({"maps": ("intensity",)}, "start with capon"),
        ({"maps": ("capon", "capon")}, "once"),
        ({"maps": ("capon", "music")}, "among capon, intensity"),
        ({"threshold": 1.5}, "threshold"),
        ({"candidates": 0}, "candidates"),
        ({"separation_m": 0.0}, "positive"),
    ],
)
def test_values_that_cannot_be_met_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RefinedOptions(**values)


def test_a_refiner_is_rebuilt_from_its_options() -> None:
    made = SpectrumRefiner(RefinerOptions(2, (8, 16), (2,)))
    again = build_refiner("refiner", SETUP, made.options())
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in made.named_parameters()}
    with pytest.raises(ValueError, match="expected a refiner"):
        build_refiner("unrolled", SETUP, {})
    with pytest.raises(ValueError, match="unknown field"):
        build_refiner("refiner", SETUP, {"depth": 3})
