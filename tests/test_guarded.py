"""A refiner behind its guard: bad maps are never used, and never in silence."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from risfast.covariance import covariance_from_factor, effective_covariance
from risfast.data import generate_scenes
from risfast.data.scenes import Scenes, SystemConfig
from risfast.detect import detect_sources
from risfast.errors import FileFormatError
from risfast.geometry import PlanarArray, SearchGrid
from risfast.guarded import GuardedRefiner, load_helpful_refiner
from risfast.losses import blob_heatmap
from risfast.model_files import save_model
from risfast.models.base import CovarianceEstimate
from risfast.models.refiner import GuardOptions, RefinerOptions, SpectrumRefiner
from risfast.refined import RefinedOptions, estimate_maps, refined_sources

ARRAY = PlanarArray.rectangular(8, 8)
GRID = SearchGrid.training()
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


def guarded(refined: Tensor, **options) -> GuardedRefiner:
    # detection without the refiner on the coarse grid: the guard is what is tested
    return GuardedRefiner(Told(refined), nn.Identity(), ARRAY, capon_grid=GRID, **options)  # type: ignore[arg-type]


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
    _, estimate, maps = truth(3)
    maps[1] = spoilt(kind, maps[1])
    with pytest.warns(UserWarning, match=rf"1 of 3 scenes.*raw Capon.*scene 1: .*{reason}"):
        found = guarded(maps).sources(estimate)
    assert found.fallbacks == 1
    assert [bool(why) for why in found.reasons] == [False, True, False]
    assert reason in " ".join(found.reasons[1])
    matrix = effective_covariance(covariance_from_factor(estimate.factor))
    capon = detect_sources(matrix, ARRAY, GRID)[1]
    assert len(capon) > 0
    assert torch.equal(found.sources[1].position, capon.position)
    alone, verdict = refined_sources(
        Told(maps), estimate_maps(estimate, nn.Identity(), ARRAY, GRID), estimate.factor, ARRAY, GRID
    )
    assert verdict.ok.tolist() == [True, False, True]
    for scene in (0, 2):
        assert torch.equal(found.sources[scene].position, alone[scene].position)
    assert len(alone[1]) == 0


def test_good_maps_are_used_without_a_word() -> None:
    _, estimate, maps = truth(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = guarded(maps).sources(estimate)
    assert found.fallbacks == 0
    assert found.reasons == ((), (), ())


def test_the_limits_decide() -> None:
    _, estimate, maps = truth(2)
    with pytest.warns(UserWarning, match="2 of 2 scenes"):
        found = guarded(maps, limits=GuardOptions(max_saturated=0.0, saturation=0.01)).sources(estimate)
    assert found.fallbacks == 2


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
    save_model(tmp_path, "refiner", network.state_dict(), ARRAY, network.options(), card)
    return tmp_path, {"sha256": "aa"}


def test_a_refiner_that_helps_is_read_as_it_was_trained(made: tuple[Path, dict]) -> None:
    folder, card = made
    backbone = nn.Identity()
    found = load_helpful_refiner(folder, backbone, card, ARRAY)
    assert found is not None
    assert found.backbone is backbone
    assert found.grid.shape == (31, 21, 2)
    assert torch.equal(found.grid.azimuth_rad, SearchGrid.box(31, 21, [0.6, 2.0], 0.8, 0.4).azimuth_rad)
    assert found.reading == RefinedOptions(threshold=0.25)
    assert not found.refiner.training


@pytest.mark.parametrize("helps", [False, None, "true"])
def test_a_refiner_that_does_not_help_is_left_out(helps: object, made: tuple[Path, dict]) -> None:
    folder, card = made
    path = folder / "model.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "helps": helps}))
    assert load_helpful_refiner(folder, nn.Identity(), card, ARRAY) is None


def test_what_does_not_belong_together_is_refused(made: tuple[Path, dict], tmp_path: Path) -> None:
    folder, card = made
    with pytest.raises(ValueError, match="another backbone"):
        load_helpful_refiner(folder, nn.Identity(), {"sha256": "bb"}, ARRAY)
    with pytest.raises(ValueError, match="another array"):
        load_helpful_refiner(folder, nn.Identity(), card, PlanarArray.rectangular(8, 7))
    with pytest.raises(FileFormatError, match="missing"):
        load_helpful_refiner(tmp_path / "none", nn.Identity(), card, ARRAY)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FileFormatError):
        load_helpful_refiner(folder, nn.Identity(), card, ARRAY)
