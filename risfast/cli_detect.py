"""The command ``risfast-train detect``: from a covariance file to a table, a file and a picture of its sources."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from risfast.cli_progress import Progress
from risfast.demo_options import GRIDS
from risfast.detect import DetectionOptions, Sources, detect_sources
from risfast.geometry import PlanarArray, SearchGrid
from risfast.io import RESULT_SUFFIXES, read, source_rows, write_results
from risfast.io.guard import need
from risfast.ops import mvdr_spectrum
from risfast.plots import PICTURE_SUFFIXES, SpectrumPanel, save_figure, spectrum_figure
from risfast.steering import WAVEFRONTS

__all__ = ["METHODS", "DetectCommand", "add_detect", "check_device", "run_detect", "search_grid"]

METHODS = ("auto", "dense", "chebyshev", "lag")
_SCENES_AT_ONCE = 8  # so that a long file shows progress


@dataclass(frozen=True)
class DetectCommand:
    """Options of ``risfast-train detect``; angles in degrees, as typed.

    Parameters
    ----------
    covariance : Path
        File with R; see :func:`risfast.io.read`.
    array : Path
        TOML file with the elements; see :func:`risfast.io.read_setup`.
    key : str or None
        Variable in the covariance file; None is ``R`` or ``covariance``.
    grid : {"reference", "training"}
        Search grid.
    azimuth_deg, elevation_deg : (float, float, float) or None
        Lowest, highest and count of an axis in place of the grid's.
    range_m : tuple of float or None
        Range planes in metres, increasing, in place of the grid's.
    wavefront, loading, method
        See :func:`risfast.ops.mvdr_spectrum`.
    max_sources : int or None
        Most sources that are reported for a covariance.
    device : str
        Where everything is computed.
    output : Path or None
        .json, .csv, .parquet or .mat file for the sources; see :func:`risfast.io.write_results`.
    picture : Path or None
        .png, .pdf or .svg file for the spectrum.
    picture_scene : int
        Which covariance of a batch is drawn, from 0.
    """

    covariance: Path
    array: Path
    key: str | None = None
    grid: str = "reference"
    azimuth_deg: tuple[float, float, float] | None = None
    elevation_deg: tuple[float, float, float] | None = None
    range_m: tuple[float, ...] | None = None
    wavefront: str = "spherical"
    loading: float = 1e-2
    method: str = "auto"
    max_sources: int | None = None
    device: str = "cpu"
    output: Path | None = None
    picture: Path | None = None
    picture_scene: int = 0


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


def search_grid(options: DetectCommand) -> SearchGrid:
    """The named grid with the axes that were given in its place.

    Parameters
    ----------
    options : DetectCommand

    Returns
    -------
    SearchGrid

    Raises
    ------
    ValueError
        An axis is not MIN MAX COUNT in degrees, or the ranges are not positive and increasing.
    """
    grid = GRIDS[options.grid]()
    azimuth, elevation, ranges = grid.azimuth_rad, grid.elevation_rad, grid.range_m
    if options.azimuth_deg is not None:
        azimuth = _axis_rad("--azimuth-deg", options.azimuth_deg, 180.0)
    if options.elevation_deg is not None:
        elevation = _axis_rad("--elevation-deg", options.elevation_deg, 90.0)
    if options.range_m is not None:
        ranges = torch.tensor(options.range_m, dtype=torch.float64)
    return SearchGrid(azimuth, elevation, ranges)


def _check_output(path: Path | None, option: str, suffixes: Sequence[str]) -> None:
    """Refuse a result that could not be written, before the work is done."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"{option}: the folder {path.parent} does not exist; make it first")
    if path.suffix.lower() == ".parquet":
        need("pyarrow", "writing .parquet", "parquet")


def check_device(name: str) -> torch.device:
    """The device of that name, if torch can use it here.

    Parameters
    ----------
    name : str
        As torch spells it: ``cpu``, ``cuda``, ``cuda:1``.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        Torch knows no such device, or cannot use it on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name!r} cannot be used on this machine: {reason}") from error
    return device


def run_detect(options: DetectCommand, progress: Progress) -> int:
    """Sources from a covariance file: a table, and where asked a file and a picture.

    Parameters
    ----------
    options : DetectCommand
    progress : Progress
        Told of every few covariances.

    Returns
    -------
    int
        Exit status 0; what goes wrong raises.

    Raises
    ------
    FileFormatError
        A file that cannot be read as what it was given for.
    ValueError
        A device, an axis, a name of a result or ``picture_scene`` out of its range.
    """
    _check_output(options.output, "--output", RESULT_SUFFIXES)
    _check_output(options.picture, "--picture", PICTURE_SUFFIXES)
    device = check_device(options.device)
    grid = search_grid(options)
    fields = {} if options.key is None else {"covariance": options.key}
    recording = read(options.covariance, setup=options.array, fields=fields).with_covariance()
    assert recording.covariance is not None
    array, covariance = recording.array, recording.covariance.to(device)
    n_scenes = covariance.shape[0]
    if not 0 <= options.picture_scene < n_scenes:
        raise ValueError(f"--picture-scene must be from 0 to {n_scenes - 1}, got {options.picture_scene}")
    detection = DetectionOptions()
    if options.max_sources is not None:
        detection = replace(detection, max_sources=options.max_sources)
    found: list[Sources] = []
    progress("detecting", 0, n_scenes)
    for chunk in covariance.split(_SCENES_AT_ONCE):
        found += detect_sources(
            chunk,
            array,
            grid,
            loading=options.loading,
            wavefront=options.wavefront,
            method=options.method,
            options=detection,
        )
        progress("detecting", len(found), n_scenes)
    if options.output is not None:
        write_results(options.output, found)
    if options.picture is not None:
        chosen = options.picture_scene
        _draw_detection(options, covariance[chosen : chosen + 1], array, grid, found[chosen])
    progress.close()
    print(_source_table(found))
    for label, path in (("results", options.output), ("picture", options.picture)):
        if path is not None:
            print(f"{label}: {path}")
    return 0


def _draw_detection(
    options: DetectCommand, covariance: Tensor, array: PlanarArray, grid: SearchGrid, found: Sources
) -> None:
    spectrum = mvdr_spectrum(
        covariance, array, grid, loading=options.loading, wavefront=options.wavefront, method=options.method
    )
    panel = SpectrumPanel(
        f"{options.covariance.name}, scene {options.picture_scene}", spectrum.power[0], found.position
    )
    assert options.picture is not None
    save_figure(spectrum_figure([panel], grid.azimuth_rad, grid.elevation_rad), options.picture)


def _source_table(scenes: Sequence[Sources]) -> str:
    lines = ["scene  source  azimuth deg  elevation deg   range m  power dB  confidence"]
    lines += [
        f"{row['scene']:>5}  {row['source']:>6}  {row['azimuth_deg']:>11.2f}  {row['elevation_deg']:>13.2f}  "
        f"{row['range_m']:>8.3f}  {row['power_db']:>8.1f}  {row['confidence']:>10.3f}"
        for row in source_rows(scenes)
    ]
    silent = [str(index) for index, found in enumerate(scenes) if len(found) == 0]
    if silent:
        lines.append(f"no sources in scene {', '.join(silent)}")
    return "\n".join(lines)


def add_detect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``detect``.

    Parameters
    ----------
    commands : subparsers of argparse
        Of ``risfast-train``; the new one sets ``run`` and ``options``.
    """
    defaults = DetectCommand(Path(), Path())
    parser = commands.add_parser("detect", help="find the sources in a covariance from a .npz, .mat or .h5 file")
    add = parser.add_argument
    add("covariance", type=Path, help="covariance (N, N) or (B, N, N) in .npz, .mat (also 7.3) or .h5")
    add("--array", type=Path, required=True, metavar="TOML", help="element positions and wavelength; see the README")
    add("--key", default=None, metavar="NAME", help="variable in the file (default: R or covariance)")
    add("--grid", choices=tuple(GRIDS), default=defaults.grid, help="search grid (default: %(default)s)")
    for name, largest in (("azimuth", 180), ("elevation", 90)):
        add(
            f"--{name}-deg",
            type=float,
            nargs=3,
            metavar=("MIN", "MAX", "COUNT"),
            help=f"{name} axis in degrees, within +-{largest}, in place of the grid's",
        )
    add("--range-m", type=float, nargs="+", metavar="M", help="range planes in metres, in place of the grid's")
    add("--wavefront", choices=WAVEFRONTS, default=defaults.wavefront, help="(default: %(default)s)")
    add(
        "--loading",
        type=float,
        default=defaults.loading,
        help="diagonal loading as a share of trace(R)/N (default: %(default)g)",
    )
    add("--method", choices=METHODS, default=defaults.method, help="how to compute it (default: %(default)s)")
    add("--max-sources", type=int, default=None, metavar="K", help="report at most K sources per covariance")
    add("--device", default=defaults.device, help="where to compute, cpu or cuda (default: %(default)s)")
    add("--output", type=Path, default=None, metavar="FILE", help="write the sources as .json, .csv, .parquet or .mat")
    add("--picture", type=Path, default=None, metavar="FILE", help="draw the spectrum as .png, .pdf or .svg")
    add("--picture-scene", type=int, default=0, metavar="I", help="which covariance of a batch to draw (default: 0)")
    parser.set_defaults(run=run_detect, options=DetectCommand)
