"""Detection through the refiner: maps of an estimate in, sources out.

The refiner says in which directions the sources are; their ranges, and the last digits of the directions, come from the
Capon power of the covariance that the maps were made of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from risfast.geometry import SearchGrid
from risfast.models.base import CovarianceEstimate, single_precision
from risfast.models.refiner import (
    GuardOptions,
    GuardResult,
    RefinerOptions,
    SpectrumRefiner,
    decode_peaks,
    guard,
    spectrum_map_db,
)
from risfast.ops import mvdr_spectrum_lowrank, nms_3d
from risfast.ops.refinement import refine_peaks, walk_peaks
from risfast.setup import Setup
from risfast.sources import Sources

MAPS = ("capon", "intensity")
_LOWEST_LOG = -12.0  # of an expected count: what lies below is as good as none


@dataclass(frozen=True)
class RefinedOptions:
    """How maps are made and read."""

    # What the refiner is shown, in this order: "capon", the Capon power on the grid in dB, always first; "intensity",
    # the logarithm of the number of sources that the backbone itself expects in each direction
    maps: tuple[str, ...] = ("capon",)
    floor_db: float = -40.0  # Lowest level of the Capon map, dB below its maximum
    loading: float = 1e-2  # Of the Capon power
    threshold: float = 0.3  # Least value of the refined map at a source
    candidates: int = 8  # Most sources of a scene
    # Two sources closer than this in azimuth, elevation and range are one; None is half the tolerance of the setup
    separation_rad: float = math.radians(1.0)
    # Two sources closer than this in azimuth, elevation and range are one; None is half the tolerance of the setup
    separation_m: float | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        object.__setattr__(self, "maps", tuple(self.maps))  # from a file it comes as a list
        if not self.maps or self.maps[0] != "capon" or len(set(self.maps)) != len(self.maps):
            raise ValueError(f"maps must start with capon and name each map once, got {self.maps!r}")
        if any(name not in MAPS for name in self.maps):
            raise ValueError(f"maps must be among {', '.join(MAPS)}; got {self.maps!r}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold!r}")
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates!r}")
        if not (self.separation_rad > 0 and (self.separation_m is None or self.separation_m > 0)):
            raise ValueError("separation_rad and separation_m must be positive")


@dataclass(frozen=True)
class RefinerInput:
    """What the refiner takes of B scenes."""

    maps: Tensor  # (B, C, G_az, G_el)
    plane: Tensor  # (B, G_az, G_el) The range plane that the Capon power is highest in


@dataclass(frozen=True)
class Refiner:
    """A refiner's network with all that it takes to go from an estimate to sources."""

    network: SpectrumRefiner
    grid: SearchGrid  # Of its maps
    reading: RefinedOptions = field(default_factory=RefinedOptions)  # How maps are made and read
    # What a refined map must look like to be believed: finite, spread, not saturated, with a plausible number of peaks
    limits: GuardOptions = field(default_factory=GuardOptions)


@single_precision()
def build_refiner(name: str, setup: Setup, options: dict[str, Any] | None = None) -> nn.Module:
    """Make a refiner for a model folder; the network itself needs no setup."""
    if name != "refiner":
        raise ValueError(f"expected a refiner, got {name!r}")
    try:
        return SpectrumRefiner(RefinerOptions(**(options or {})))
    except TypeError as error:
        raise ValueError(f"the options of the refiner hold an unknown field, or another kind: {error}") from None


def estimate_maps(
    estimate: CovarianceEstimate,
    backbone: nn.Module,
    setup: Setup,
    grid: SearchGrid,
    options: RefinedOptions | None = None,
) -> RefinerInput:
    """The maps that the refiner takes, from a backbone's estimate."""
    chosen = options or RefinedOptions()
    spectrum = mvdr_spectrum_lowrank(
        estimate.factor, setup.array, grid, loading=chosen.loading, wavefront=setup.wavefront
    )
    maps = [spectrum_map_db(spectrum.power, floor_db=chosen.floor_db)]
    if "intensity" in chosen.maps:
        maps.append(_intensity(estimate, backbone, grid))
    return RefinerInput(torch.stack(maps, 1), spectrum.plane)


def _intensity(estimate: CovarianceEstimate, backbone: nn.Module, grid: SearchGrid) -> Tensor:
    """Log of the expected sources of each direction, summed over range and interpolated to the grid, about 0 .. 1."""
    axes = getattr(getattr(backbone, "atoms", None), "axes", None)
    if estimate.sources is None or axes is None:
        raise ValueError('the map "intensity" needs a backbone that expects counts of sources, such as unrolled')
    level = estimate.sources.log_intensity.float().logsumexp(-1).clamp_min(_LOWEST_LOG)  # [B, A_az, A_el]
    # grid_sample wants (x, y) = (last axis, the one before), from -1 at the first sample to 1 at the last.
    places = []
    angles = (
        (grid.azimuth_rad, torch.zeros_like(grid.azimuth_rad)),
        (torch.zeros_like(grid.elevation_rad), grid.elevation_rad),
    )
    for i, pair in enumerate(angles):
        axis, at = axes.coordinates[i], axes.coordinates_of(torch.stack(pair, -1))[i]
        places.append((2 * at - (axis[0] + axis[-1])) / (axis[-1] - axis[0]).clamp_min(1e-12))
    y, x = torch.meshgrid(*places, indexing="ij")
    points = torch.stack([x, y], -1).to(level).expand(len(level), -1, -1, -1)
    drawn = nn.functional.grid_sample(level[:, None], points, align_corners=True, padding_mode="border")[:, 0]
    return 1 - drawn / _LOWEST_LOG


@torch.no_grad()
def refined_sources(
    refiner: Refiner, given: RefinerInput, factor: Tensor, setup: Setup
) -> tuple[list[Sources], GuardResult]:
    """Sources by way of the refined maps; none where the guard does not believe a map.

    factor (B, N, K_f)
    """
    chosen, grid, array = refiner.reading, refiner.grid, setup.array
    refined = refiner.network(given.maps).float()
    verdict = guard(refined, refiner.limits)
    refined = torch.where(verdict.ok.to(refined.device)[:, None, None], refined, torch.zeros_like(refined))
    peaks = decode_peaks(refined, given.plane, grid, threshold=chosen.threshold, k=chosen.candidates)
    filled = torch.arange(chosen.candidates, device=refined.device) < peaks.count[:, None]
    first = torch.stack([axis[0] for axis in (grid.azimuth_rad, grid.elevation_rad, grid.range_m)]).to(peaks.position)
    start = torch.where(filled[..., None], peaks.position, first)
    ends = (setup.region.azimuth_rad, setup.region.elevation_rad, setup.region.range_m)
    corners = [torch.tensor([end[i] for end in ends], dtype=torch.float64) for i in (0, 1)]
    if setup.wavefront == "planar":  # of waves without curvature a peak has no range to be refined or told apart by
        corners[0][2] = corners[1][2]
    circle = setup.region.azimuth_rad[0] if setup.region.full_circle else None
    how: dict[str, Any] = {"factored": True, "loading": chosen.loading, "wavefront": setup.wavefront}
    how["circle_from"] = circle
    _, low, high = walk_peaks(factor, array, start, *corners, **how)
    found = refine_peaks(factor, array, low, high, **how)
    score = torch.where(filled, peaks.score.double(), torch.full_like(found.power, -math.inf))
    apart = setup.tolerance.range_m / 2 if chosen.separation_m is None else chosen.separation_m
    separation = (chosen.separation_rad, chosen.separation_rad, apart)
    kept = nms_3d(found.position, score, separation=separation, k=chosen.candidates, on_sphere=True)
    sources = []
    for scene, number in enumerate(kept.count.tolist()):
        index = kept.index[scene, :number]
        position, power = found.position[scene, index].cpu(), found.power[scene, index].cpu()
        sources.append(Sources.at(position, power, peaks.score[scene, index].double().cpu()))
    return sources, verdict


def load_helpful_refiner(
    folder: Path | str, backbone_card: dict[str, Any], setup: Setup, device: torch.device | str = "cpu"
) -> Refiner | None:
    """A refiner from its model folder, where its own test says that it helps."""
    from risfast.models.files import read_card  # noqa: PLC0415 - safetensors only where a file is read

    helps = read_card(Path(folder)).get("helps") is True
    return load_refiner(folder, backbone_card, setup, device) if helps else None


def load_refiner(
    folder: Path | str, backbone_card: dict[str, Any], setup: Setup, device: torch.device | str = "cpu"
) -> Refiner:
    """A refiner from its model folder, whether it helps or not."""
    # safetensors only where a file is read
    from risfast.io.guard import naming  # noqa: PLC0415
    from risfast.models.files import MODEL_CARD, load_model, read_card  # noqa: PLC0415

    path = Path(folder)
    card = read_card(path)
    with naming(path / MODEL_CARD, "the card of a refiner"):
        if card["backbone"]["sha256"] != backbone_card["sha256"]:
            raise ValueError("it was trained behind another backbone than the one given; train it behind this one")
        network, card = load_model(path, build_refiner, device, setup)
        assert isinstance(network, SpectrumRefiner)  # build_refiner makes nothing else
        axes = {name: torch.tensor(values, dtype=torch.float64) for name, values in card["grid"].items()}
        return Refiner(network, SearchGrid(**axes), RefinedOptions(**card["reading"]))
