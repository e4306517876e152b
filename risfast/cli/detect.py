"""``risfast detect``: the sources in a covariance, as ``risfast locate --model none`` finds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from risfast.cli.found import draw, edge_note, source_table
from risfast.cli.options import Common, Flag, Flat, Opt, check_device, check_output
from risfast.cli.progress import Progress
from risfast.detect import DetectionOptions, detect_sources
from risfast.geometry import Region, SearchGrid
from risfast.io import RESULT_SUFFIXES, Recording, read, write_results
from risfast.ops import mvdr_spectrum
from risfast.report.plots import PICTURE_SUFFIXES
from risfast.setup import Setup
from risfast.sources import Sources

__all__ = ["Covariances", "Options", "Results", "detect_in", "problem_of", "region_of", "report", "run"]

OLD_SPELLINGS = {"--array": "--setup"}
_SCENES_AT_ONCE = 8  # so that a long file shows progress

RegionDeg = tuple[float, float, float, float, float, float]
REGION_METAVAR = "AZ_MIN AZ_MAX EL_MIN EL_MAX R_MIN R_MAX"


@dataclass(frozen=True)
class Results:
    """Where what was found goes."""

    output: Opt[Path] = None
    """Write the sources as .csv, .json, .parquet or .mat."""
    picture: Opt[Path] = None
    """Draw the direction map and the sources as .png, .pdf or .svg; by default next to FILE, as FILE.sources.png."""
    no_picture: Flag = False
    """Draw nothing."""
    picture_scene: int = 0
    """Which scene of a file with several is drawn, from 0."""
    overwrite: Flag = False
    """Replace results and pictures that are there."""


@dataclass(frozen=True)
class Options:
    """Options of ``risfast detect``."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """Covariance (N, N) or (B, N, N) in .npz, .mat (also 7.3) or .h5; snapshots of an array that is sampled itself."""
    setup: Opt[Path] = None
    """TOML file with positions, wavelength and, where they are not to be derived, region and wavefront; needed where
    FILE holds no positions."""
    key: Annotated[Opt[str], arg(metavar="NAME")] = None
    """Variable in the file; by default R or covariance."""
    region: Annotated[Opt[RegionDeg], arg(metavar=REGION_METAVAR)] = None
    """Where sources are looked for, in degrees and metres; R_MAX may be inf. By default that of the setup."""
    grid: Opt[Literal["reference", "training"]] = None
    """A search grid of the reference system, in place of the one that follows from the setup."""
    azimuth_deg: Annotated[Opt[tuple[float, float, float]], arg(metavar="MIN MAX COUNT")] = None
    """Azimuth axis in degrees, within +-180, in place of the grid's."""
    elevation_deg: Annotated[Opt[tuple[float, float, float]], arg(metavar="MIN MAX COUNT")] = None
    """Elevation axis in degrees, within +-90, in place of the grid's."""
    range_m: Annotated[Opt[tuple[float, ...]], arg(metavar="M ...")] = None
    """Range planes in metres, in place of the grid's."""
    wavefront: Opt[Literal["spherical", "fresnel", "planar"]] = None
    """By default that of the setup."""
    loading: float = 1e-2
    """Diagonal loading as a share of trace(R)/N."""
    method: Literal["auto", "dense", "chebyshev", "lag"] = "auto"
    """How to compute it."""
    max_sources: Annotated[Opt[int], arg(metavar="K")] = None
    """Report at most K sources of a covariance."""
    device: str = "cpu"
    """Where to compute, cpu or cuda."""
    results: Annotated[Results, Flat] = field(default_factory=Results)
    common: Annotated[Common, Flat] = field(default_factory=Common)


@dataclass(frozen=True)
class Covariances:
    """What is searched, and how."""

    matrices: Tensor
    setup: Setup
    grid: SearchGrid
    named: bool = False
    """Whether the grid is one of the reference system: its ends are the region then."""
    loading: float = 1e-2
    method: str = "auto"
    detection: DetectionOptions = field(default_factory=DetectionOptions)


def run(options: Options, progress: Progress) -> int:
    """Read, search, report."""
    picture = check_results(options.results, options.file)
    device = check_device(options.device)
    mapped = {} if options.key is None else {"covariance": options.key}
    recording = read(options.file, fields=mapped, setup=options.setup).with_covariance()
    assert recording.covariance is not None
    setup = problem_of(recording, None if options.region is None else region_of(options.region))
    if options.wavefront is not None:
        setup = setup.replace(wavefront=options.wavefront, tolerance=None)
    setup, grid = _search(options, setup)
    detection = DetectionOptions()
    if options.max_sources is not None:
        detection = replace(detection, max_sources=options.max_sources)
    what = Covariances(
        recording.covariance.to(device),
        setup,
        grid,
        options.grid is not None,
        options.loading,
        options.method,
        detection,
    )
    found = detect_in(what, options.results.picture_scene, progress)
    report(found, what, options.results, picture, options.file, progress)
    return 0


def problem_of(recording: Recording, region: Region | None) -> Setup:
    """The setup of a recording with another region, which not every array needs (or is able) to derive."""
    if region is None:
        return recording.setup
    if recording.given is not None:
        return recording.setup.replace(region=region)
    return Setup(recording.array, region, sampling=recording.sampling, speed_m_s=recording.speed_m_s)


def region_of(given: RegionDeg) -> Region:
    """--region in degrees and metres."""
    az_low, az_high, el_low, el_high, near, far = given
    for name, low, high, limit in (("azimuth", az_low, az_high, 360.0), ("elevation", el_low, el_high, 90.0)):
        if not max(abs(low), abs(high)) <= limit or high < low:
            raise ValueError(
                f"--region: the {name} must be MIN MAX in degrees within +-{limit:g}, got {low:g} {high:g}"
            )
    if not 0 < near <= far or math.isinf(near):
        raise ValueError(f"--region: the range must be R_MIN R_MAX in metres, above 0, got {near:g} {far:g}")
    azimuth, elevation = (tuple(map(math.radians, pair)) for pair in ((az_low, az_high), (el_low, el_high)))
    return Region((azimuth[0], azimuth[1]), (elevation[0], elevation[1]), (near, far))


def _axis_rad(name: str, limits: Sequence[float], largest_deg: float) -> Tensor:
    """MIN MAX COUNT in degrees as a uniform axis in radians."""
    low, high, count = limits
    if not (math.isfinite(low) and math.isfinite(high)) or max(abs(low), abs(high)) > largest_deg:
        raise ValueError(f"{name}: MIN and MAX must lie within +-{largest_deg:g} degrees, got {low:g} and {high:g}")
    if count != int(count) or count < 1:
        raise ValueError(f"{name}: COUNT must be a whole number >= 1, got {count:g}")
    if high < low or (high == low) != (count == 1):
        raise ValueError(f"{name}: MIN must be below MAX (or equal to it with COUNT 1), got {low:g} {high:g} {count:g}")
    return torch.linspace(low, high, int(count), dtype=torch.float64).deg2rad()


def _search(options: Options, setup: Setup) -> tuple[Setup, SearchGrid]:
    """The grid with the axes that were given in place of its own, and the setup with their ends as its region."""
    grid = setup.search_grid() if options.grid is None else getattr(SearchGrid, options.grid)()
    azimuth, elevation, ranges, region = grid.azimuth_rad, grid.elevation_rad, grid.range_m, setup.region
    if options.azimuth_deg is not None:
        azimuth = _axis_rad("--azimuth-deg", options.azimuth_deg, 180.0)
        region = replace(region, azimuth_rad=(float(azimuth[0]), float(azimuth[-1])))
    if options.elevation_deg is not None:
        elevation = _axis_rad("--elevation-deg", options.elevation_deg, 90.0)
        region = replace(region, elevation_rad=(float(elevation[0]), float(elevation[-1])))
    if options.range_m is not None:
        ranges = torch.tensor(options.range_m, dtype=torch.float64)
    searched = SearchGrid(azimuth, elevation, ranges)
    if options.range_m is not None:
        region = replace(region, range_m=(float(ranges[0]), float(ranges[-1])))
    return setup.replace(region=region), searched


def check_results(results: Results, file: Path) -> Path | None:
    """Refuse results that could not be written, and say where the picture goes; None where none is drawn."""
    check_output(results.output, "--output", RESULT_SUFFIXES, overwrite=results.overwrite)
    if results.no_picture:
        if results.picture is not None:
            raise ValueError("give --picture or --no-picture, not both")
        return None
    picture = results.picture or file.with_name(f"{file.name}.sources.png")
    option = "--picture" if results.picture is not None else "--picture, --no-picture"
    if file.exists():  # or it is the file that is complained about
        check_output(picture, option, PICTURE_SUFFIXES, overwrite=results.overwrite)
    return picture


def detect_in(what: Covariances, shown: int, progress: Progress) -> list[Sources]:
    """The sources of every covariance; ``shown`` is the one that is to be drawn."""
    matrices, setup = what.matrices, what.setup
    if not 0 <= shown < len(matrices):
        raise ValueError(f"--picture-scene must be from 0 to {len(matrices) - 1}, got {shown}")
    found: list[Sources] = []
    progress("detecting", 0, len(matrices), unit="scenes")
    for chunk in matrices.split(_SCENES_AT_ONCE):
        found += detect_sources(
            chunk,
            setup.array if what.named else setup,
            what.grid,
            loading=what.loading,
            wavefront=setup.wavefront if what.named else None,
            method=what.method,
            options=what.detection,
        )
        progress("detecting", len(found), len(matrices), unit="scenes")
    progress.close()
    return found


def report(
    found: list[Sources], what: Covariances, results: Results, picture: Path | None, file: Path, progress: Progress
) -> None:
    """The table first, so that it is there whatever becomes of the files; then results and picture."""
    print(source_table(found))
    note = edge_note(found, what.setup.region)
    if note is not None:
        progress.say(note)
    if results.output is not None:
        write_results(results.output, found, what.setup)
        print(f"results: {results.output}")
    if picture is not None:
        scene = results.picture_scene
        spectrum = mvdr_spectrum(
            what.matrices[scene : scene + 1],
            what.setup.array,
            what.grid,
            loading=what.loading,
            wavefront=what.setup.wavefront,
            method=what.method,
        )
        draw(picture, f"{file.name}, scene {scene}", spectrum.power[0], what.grid, found[scene])
        print(f"picture: {picture}")
