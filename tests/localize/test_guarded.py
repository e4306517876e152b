"""A refiner behind its guard: bad maps are never used, and never in silence."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from risfast.errors import FileFormatError
from risfast.geometry import PlanarArray, SearchGrid
from risfast.io.durable import sealed_json
from risfast.localize import pipeline
from risfast.localize.pipeline import CandidateOptions, MapOptions, Parts, PipelineOptions
from risfast.localize.refiner import RefinedOptions, Refiner, estimate_maps, load_helpful_refiner, refined_sources
from risfast.losses import blob_heatmap
from risfast.models.base import CovarianceEstimate
from risfast.models.files import save_model
from risfast.models.refiner import GuardOptions, RefinerOptions, SpectrumRefiner
from risfast.simulate import generate_scenes
from risfast.simulate.scenes import Scenes, SystemConfig
from risfast.sources import Sources

SYSTEM = SystemConfig(
    array=PlanarArray.rectangular(8, 8),
    n_antennas=8,
    n_snapshots=8,
    n_sources=(1, 2),
    min_separation_rad=math.radians(30),
    range_m=(0.6, 3.0),
    azimuth_rad=(-0.8, 0.8),
    elevation_rad=(-0.4, 0.4),
)
SETUP = SYSTEM.setup
OPTIONS = PipelineOptions(map=MapOptions(points_per_beam=6.0), candidates=CandidateOptions("refined"), polished=False)
GRID = OPTIONS.grid(SETUP)


class Told(nn.Module):
    """A refiner that has been told the map."""

    def __init__(self, refined: Tensor) -> None:
        super().__init__()
        self.refined = refined

    def forward(self, maps: Tensor) -> Tensor:
        return self.refined


def truth(count: int) -> tuple[Scenes, CovarianceEstimate, Tensor]:
    """Scenes, their true covariances, and maps that show their sources."""
    scenes = generate_scenes(SYSTEM, 2, range(count))
    return scenes, CovarianceEstimate(scenes.true_factor()), blob_heatmap(scenes.position, scenes.mask, GRID).float()


def located(
    scenes: Scenes, estimate: CovarianceEstimate, refined: Tensor, limits: GuardOptions | None = None
) -> tuple[list[Sources], tuple[tuple[str, ...], ...]]:
    """Sources by way of maps that the refiner has been told, on the one path."""
    refiner = Refiner(Told(refined), GRID, limits=limits or GuardOptions())  # type: ignore[arg-type]
    parts = Parts(nn.Identity(), SETUP, refiner=refiner)
    return pipeline.candidates(parts, pipeline.measure(scenes), estimate, OPTIONS)


def spoilt(kind: str, good: Tensor) -> Tensor:
    """A map that no refiner should draw."""
    if kind == "nan":
        return torch.where(good == good.max(), torch.nan, good)
    if kind == "infinite":
        return torch.where(good == good.max(), torch.inf, good)
    if kind == "flat":
        return torch.full_like(good, 0.5)
    if kind == "saturated":
        return torch.where(torch.arange(good.shape[0])[:, None] < 20, 1.0, 0.0).expand_as(good).clone()
    if kind == "empty":
        return good * 0.2
    chess = torch.zeros_like(good)
    chess[2::6, 2::6] = 0.8
    return chess


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "NaN or infinite"),
        ("infinite", "NaN or infinite"),
        ("flat", "flat"),
        ("saturated", "saturated"),
        ("empty", "no peak"),
        ("many peaks", "more than 12 peaks"),
    ],
)
def test_a_bad_map_is_replaced_by_capon_counted_and_reported(kind: str, reason: str) -> None:
    scenes, estimate, maps = truth(3)
    maps[1] = spoilt(kind, maps[1])
    with pytest.warns(UserWarning, match=rf"1 of 3 scenes.*the Capon map was used.*scene 1: .*{reason}"):
        found, reasons = located(scenes, estimate, maps)
    assert [bool(why) for why in reasons] == [False, True, False]
    assert reason in " ".join(reasons[1])
    capon = pipeline.capon_peaks(pipeline.effective(estimate, None, OPTIONS), SETUP, OPTIONS)[1]
    assert len(capon) > 0
    # Of one scene, not of three: products of another size are summed in another order.
    torch.testing.assert_close(found[1].position, capon.position, rtol=1e-9, atol=1e-9)
    given = estimate_maps(estimate, nn.Identity(), SETUP, GRID)
    alone, verdict = refined_sources(Refiner(Told(maps), GRID), given, estimate.factor, SETUP)  # type: ignore[arg-type]
    assert verdict.ok.tolist() == [True, False, True]
    for scene in (0, 2):
        assert torch.equal(found[scene].position, alone[scene].position)
    assert len(alone[1]) == 0


def test_good_maps_are_used_without_a_word() -> None:
    scenes, estimate, maps = truth(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, reasons = located(scenes, estimate, maps)
    assert reasons == ((), (), ())
    assert [len(s) for s in found] == scenes.mask.sum(1).tolist()


def test_the_limits_decide() -> None:
    scenes, estimate, maps = truth(2)
    with pytest.warns(UserWarning, match="2 of 2 scenes"):
        _, reasons = located(scenes, estimate, maps, GuardOptions(max_saturated=0.0, saturation=0.01))
    assert all(reasons)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, dict]:
    """The folder of a refiner that helps, and the card of the backbone it was trained behind."""
    torch.manual_seed(0)
    network = SpectrumRefiner(RefinerOptions(1, (8, 16), (2,)))
    grid = SearchGrid.box(31, 21, [0.6, 2.0], 0.8, 0.4)
    card = {
        "helps": True,
        "reading": {"maps": ["capon"], "threshold": 0.25},
        "grid": {name: axis.tolist() for name, axis in vars(grid).items()},
        "backbone": {"sha256": "aa"},
    }
    save_model(tmp_path, "refiner", network.state_dict(), SETUP, network.options(), card)
    return tmp_path, {"sha256": "aa"}


def test_a_refiner_that_helps_is_read_as_it_was_trained(made: tuple[Path, dict]) -> None:
    folder, card = made
    found = load_helpful_refiner(folder, card, SETUP)
    assert found is not None
    assert found.grid.shape == (31, 21, 2)
    assert torch.equal(found.grid.azimuth_rad, SearchGrid.box(31, 21, [0.6, 2.0], 0.8, 0.4).azimuth_rad)
    assert found.reading == RefinedOptions(threshold=0.25)
    assert not found.network.training


@pytest.mark.parametrize("helps", [False, None, "true"])
def test_a_refiner_that_does_not_help_is_left_out(helps: object, made: tuple[Path, dict]) -> None:
    folder, card = made
    path = folder / "model.json"
    content = json.loads(path.read_text())
    path.write_bytes(sealed_json({**content, "helps": helps}, "card_sha256"))
    assert load_helpful_refiner(folder, card, SETUP) is None


def test_what_does_not_belong_together_is_refused(made: tuple[Path, dict], tmp_path: Path) -> None:
    folder, card = made
    with pytest.raises(ValueError, match="another backbone"):
        load_helpful_refiner(folder, {"sha256": "bb"}, SETUP)
    with pytest.raises(ValueError, match="another array"):
        load_helpful_refiner(folder, card, SETUP.replace(array=PlanarArray.rectangular(8, 7)))
    with pytest.raises(ValueError, match="another region"):
        load_helpful_refiner(folder, card, SYSTEM.setup.replace(region=None))
    with pytest.raises(FileFormatError, match="missing"):
        load_helpful_refiner(tmp_path / "none", card, SETUP)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FileFormatError):
        load_helpful_refiner(folder, card, SETUP)
