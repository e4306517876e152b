"""The commands of ``risfast-train`` around files and the machine: ``import`` and ``doctor``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from risfast.errors import FileFormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from risfast.io import Recording

    Progress = Callable[[str, int, int], None]

__all__ = ["DoctorCommand", "ImportCommand", "add_doctor", "add_import"]

_FORMATS = ("npz", "mat", "hdf5", "acoular", "aiaa", "uvh5", "sigmf")


@dataclass(frozen=True)
class ImportCommand:
    """Options of ``risfast-train import``.

    Parameters
    ----------
    source : Path
        What is read.
    output, array_output : Path or None
        Where the recording goes (.h5, .npz, .mat), and its array (.toml).
    format, array, wavelength_m, frequency_hz, speed_m_s, sample_rate_hz, polarization, block_size, flagged
        As :func:`risfast.data.read` takes them.
    field : tuple of str
        Names of variables as FIELD=NAME.
    positions : Path or None
        File with the positions of the elements.
    covariance : bool
        Whether snapshots become their sample covariance.
    """

    source: Path
    output: Path | None = None
    array_output: Path | None = None
    format: str | None = None
    field: tuple[str, ...] = ()
    array: Path | None = None
    positions: Path | None = None
    wavelength_m: float | None = None
    frequency_hz: float | None = None
    speed_m_s: float | None = None
    sample_rate_hz: float | None = None
    polarization: str | None = None
    block_size: int = 256
    flagged: tuple[int, ...] = ()
    covariance: bool = False


@dataclass(frozen=True)
class DoctorCommand:
    """Options of ``risfast-train doctor``.

    Parameters
    ----------
    folder : Path
        Where results are to be written.
    device : str or None
        The only device to look at.
    """

    folder: Path = Path()
    device: str | None = None


def _mapping(pairs: tuple[str, ...]) -> dict[str, str]:
    """FIELD=NAME pairs."""
    mapped = {}
    for pair in pairs:
        field, equals, name = pair.partition("=")
        if not (field and equals and name):
            raise ValueError(f"--field must be FIELD=NAME, such as covariance=Rxx, got {pair!r}")
        mapped[field] = name
    return mapped


def run_import(options: ImportCommand, progress: Progress) -> int:
    """Read a measurement of any format, say what it is, and write it in one that everything here reads.

    Parameters
    ----------
    options : ImportCommand
    progress : callable
        Not told anything: reading is quick.

    Returns
    -------
    int
        Exit status 0; what goes wrong raises.

    Raises
    ------
    FileFormatError
        The source cannot be read, or the output not written.
    ValueError
        A name of an output, or a field, is wrong.
    """
    from risfast.io import read, write_recording  # noqa: PLC0415  (only this command reads such files)
    from risfast.io.export import RECORDING_SUFFIXES  # noqa: PLC0415

    for path, name, suffixes in (
        (options.output, "OUTPUT", RECORDING_SUFFIXES),
        (options.array_output, "--array-output", (".toml",)),
    ):
        if path is not None and (path.suffix.lower() not in suffixes or not path.parent.is_dir()):
            raise ValueError(
                f"{name} must end in {', '.join(suffixes)} and lie in a folder that exists, got {str(path)!r}"
            )
        if path is not None and path.exists() and path.samefile(options.source):
            raise ValueError(f"{name} is the file that is read, {str(path)!r}")
    recording = read(
        options.source,
        format=options.format,
        fields=_mapping(options.field),
        array=options.array,
        positions_m=options.positions,
        wavelength_m=options.wavelength_m,
        frequency_hz=options.frequency_hz,
        speed_m_s=options.speed_m_s,
        sample_rate_hz=options.sample_rate_hz,
        polarization=options.polarization,
        block_size=options.block_size,
        flagged=options.flagged,
    )
    if options.covariance:
        recording = recording.with_covariance()
    print(describe(recording))
    if options.output is not None:
        write_recording(options.output, recording)
        print(f"written: {options.output}")
    if options.array_output is not None:
        _write_array(options.array_output, recording)
        print(f"array: {options.array_output}")
    return 0


def describe(recording: Recording) -> str:
    """A recording in a few lines for people.

    Parameters
    ----------
    recording : Recording

    Returns
    -------
    str
    """
    source = recording.provenance
    lines = [f"format: {source.format}", f"array: {recording.array!r}, aperture {recording.array.aperture_m:g} m"]
    if recording.frequency_hz is not None:
        lines.append(f"frequency: {recording.frequency_hz:g} Hz")
    if recording.covariance is not None:
        lines.append(f"covariance: {' x '.join(map(str, recording.covariance.shape))}")
    if recording.snapshots is not None:
        lines.append(f"snapshots: {' x '.join(map(str, recording.snapshots.shape))} {recording.snapshots.dtype}")
    lines += [
        f"{name}: {tuple(values.shape)}"
        for name in ("codes", "channel")
        if (values := getattr(recording, name)) is not None
    ]
    lines += [f"{name}: {text}" for name, text in source.details.items()]
    lines += [f"left out: element {item.name}, {item.reason}" for item in recording.flagged]
    lines += [f"note: {note}" for note in source.notes]
    return "\n".join(lines)


def _write_array(path: Path, recording: Recording) -> None:
    """The array as ``risfast-train detect --array`` reads it."""
    import tomli_w  # noqa: PLC0415

    from risfast.durable import replace_file  # noqa: PLC0415

    document = {
        "wavelength_m": recording.array.wavelength_m,
        "positions_m": [[float(value) for value in row] for row in recording.array.positions_m],
    }
    replace_file(path, tomli_w.dumps(document).encode())


def run_doctor(options: DoctorCommand, progress: Progress) -> int:
    """Look at the machine and say what to do; 1 if anything fails.

    Parameters
    ----------
    options : DoctorCommand
    progress : callable
        Not told anything.

    Returns
    -------
    int

    Raises
    ------
    FileFormatError
        There is no such folder.
    """
    from risfast.doctor import examine  # noqa: PLC0415  (it times the operators)

    if not options.folder.is_dir():
        raise FileFormatError(f"--folder {options.folder}: there is no such folder")
    checks = examine(options.folder, options.device)
    for check in checks:
        print(f"{check.status:<4}  {check.name}: {check.found}")
        if check.mend:
            print(f"      -> {check.mend}")
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    print(f"{failed} failed, {warned} to know, {len(checks) - failed - warned} well")
    return 1 if failed else 0


def add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of ``import``.

    Parameters
    ----------
    commands : subparsers of argparse
        It is added there.
    """
    parser = commands.add_parser(
        "import",
        help="read a recording (.npz, .mat, .h5, .uvh5, SigMF) and write it as .h5, .npz or .mat",
    )
    add = parser.add_argument
    add("source", type=Path, help=".npz, .mat, .h5, .uvh5, .sigmf-meta")
    add("output", type=Path, nargs="?", default=None, help=".h5, .npz or .mat; without it, only say what is there")
    add("--array-output", type=Path, default=None, metavar="TOML", help="write the array for detect --array")
    add("--format", choices=_FORMATS, default=None, help="(default: what the content looks like)")
    add("--field", nargs="+", default=[], metavar="FIELD=NAME", help="names of variables, such as covariance=Rxx")
    add("--array", type=Path, default=None, metavar="TOML", help="positions and wavelength, in place of the file's")
    add("--positions", type=Path, default=None, metavar="FILE", help="positions as acoular's .xml, .csv or .toml")
    for name, text in (
        ("wavelength-m", "wavelength in metres"),
        ("frequency-hz", "frequency, where the file has several or samples in time"),
        ("speed-m-s", "speed of the waves"),
        ("sample-rate-hz", "of samples in time"),
    ):
        add(f"--{name}", type=float, default=None, metavar="X", help=text)
    add("--polarization", default=None, help="of visibilities, such as xx")
    add("--block-size", type=int, default=256, metavar="SAMPLES", help="segments of Welch's method (default: 256)")
    add("--flagged", type=int, nargs="+", default=[], metavar="I", help="elements to leave out, from 0")
    add("--covariance", action="store_true", help="make the sample covariance of the snapshots")
    parser.set_defaults(run=run_import, options=ImportCommand)


def add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of ``doctor``.

    Parameters
    ----------
    commands : subparsers of argparse
        It is added there.
    """
    parser = commands.add_parser(
        "doctor", help="check versions, devices, accuracy, speed and the disk, and say what to do"
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="where results are to be written (default: here)")
    parser.add_argument("--device", default=None, help="check this device only, cpu or cuda (default: all)")
    parser.set_defaults(run=run_doctor, options=DoctorCommand)
