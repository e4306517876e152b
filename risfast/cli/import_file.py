"""``risfast import``: read a measurement of any format, say what it is, and write it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from risfast.cli.options import Command, Common, Flag, Flat, Opt, check_output
from risfast.cli.progress import ProgressBar

if TYPE_CHECKING:
    from risfast.io import Recording


@dataclass(frozen=True)
class ImportCommand(Command):
    """Options of ``risfast import``."""

    HELP: ClassVar[str] = (
        "Without OUTPUT, it only prints what the file holds. "
        "risfast import SOURCE OUTPUT is the same as --output OUTPUT."
    )
    OLD_SPELLINGS: ClassVar[dict[str, str]] = {"--array": "--setup", "--array-output": "--setup-output"}
    IN_OPTIONS: ClassVar[dict[str, str]] = {"array": "--setup", "positions_m": "--positions"}

    # .npz, .mat, .h5, .uvh5, .sigmf-meta, .sigmf, .wav, .flac
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    target: Annotated[tyro.conf.Positional[Opt[Path]], tyro.conf.arg(metavar="[OUTPUT]")] = None  # .h5, .npz or .mat
    output: Opt[Path] = None  # The same as OUTPUT.
    setup_output: Opt[Path] = None  # Write the setup (array, region, wavefront) as a .toml for --setup.
    overwrite: Flag = False  # Replace an output that is there.
    # Format of the file; by default recognised from its content.
    format: Opt[Literal["npz", "mat", "hdf5", "acoular", "aiaa", "uvh5", "sigmf", "audio"]] = None
    # Names of variables, such as covariance=Rxx positions_m=mic/xyz.
    fields: Annotated[
        tuple[str, ...], tyro.conf.arg(name="field", metavar="FIELD=NAME ...", help_behavior_hint="")
    ] = ()
    setup: Opt[Path] = None  # TOML file with positions and wavelength, in place of the source's.
    positions: Opt[Path] = None  # Positions as acoular's .xml, .csv or .toml.
    wavelength_m: Opt[float] = None  # Wavelength in metres.
    # Frequency, or several, where the source has several or samples in time.
    frequency_hz: Annotated[Opt[tuple[float, ...]], tyro.conf.arg(metavar="HZ ...")] = None
    band: Annotated[Opt[tuple[float, float]], tyro.conf.arg(metavar="LOW HIGH")] = None  # All bins of a band, in hertz.
    # Third-octave bands by their nominal centres, such as 1000 1250.
    third_octave: Annotated[Opt[tuple[float, ...]], tyro.conf.arg(metavar="HZ ...")] = None
    speed_m_s: Opt[float] = None  # Speed of the waves in m/s.
    sample_rate_hz: Opt[float] = None  # Sample rate of samples in time.
    polarization: Opt[str] = None  # Polarization of visibilities, such as xx.
    # Samples of a segment of Welch's method; by default 256 at a single frequency, else as the array and bands need.
    block_size: Opt[int] = None
    # Indices of the elements to leave out, counted from 0.
    flagged: Annotated[tuple[int, ...], tyro.conf.arg(metavar="I ...", help_behavior_hint="")] = ()
    covariance: Flag = False  # Write the sample covariance in place of the snapshots.
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """Read, describe, write."""
        from risfast.io import read, write_recording, write_setup  # noqa: PLC0415
        from risfast.io.export import RECORDING_SUFFIXES  # noqa: PLC0415

        if self.target is not None and self.output is not None:
            raise ValueError(f"give OUTPUT or --output, not both: got {self.target} and {self.output}")
        output = self.target or self.output
        for path, name in ((output, "OUTPUT"), (self.setup_output, "--setup-output")):
            if path is not None and path.exists() and self.source.exists() and path.samefile(self.source):
                raise ValueError(f"{name} is the file that is read, {str(path)!r}")
        check_output(output, "OUTPUT", RECORDING_SUFFIXES, overwrite=self.overwrite)
        check_output(self.setup_output, "--setup-output", (".toml",), overwrite=self.overwrite)
        named = (
            "format",
            "setup",
            "wavelength_m",
            "speed_m_s",
            "sample_rate_hz",
            "polarization",
            "block_size",
            "flagged",
        )
        given = {name: getattr(self, name) for name in named}
        given |= chosen_bands(self.frequency_hz, self.band, self.third_octave)
        recording = read(self.source, fields=field_names(self.fields), positions_m=self.positions, **given)
        if self.covariance:
            recording = recording.with_covariance()
        progress.close()
        print(describe(recording))
        if output is not None:
            write_recording(output, recording)
            print(f"written: {output}")
        if self.setup_output is not None:
            write_setup(self.setup_output, recording.setup)
            print(f"setup: {self.setup_output}")
        return 0


def field_names(pairs: tuple[str, ...]) -> dict[str, str]:
    """FIELD=NAME pairs."""
    mapped = {}
    for pair in pairs:
        field, equals, name = pair.partition("=")
        if not (field and equals and name):
            raise ValueError(f"--field must be FIELD=NAME, such as covariance=Rxx, got {pair!r}")
        mapped[field] = name
    return mapped


def chosen_bands(
    frequency_hz: tuple[float, ...] | None, band: tuple[float, float] | None, third_octave: tuple[float, ...] | None
) -> dict[str, Any]:
    """What ``read`` takes of --frequency-hz, --band and --third-octave, of which one may be given."""
    given = {"--frequency-hz": frequency_hz, "--band": band, "--third-octave": third_octave}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"give one of {', '.join(given)}, got {' and '.join(names)}")
    if band is not None and not band[0] < band[1]:
        raise ValueError(f"--band must be LOW HIGH with LOW below HIGH, got {band[0]:g} {band[1]:g}")
    if third_octave is not None:
        return {"third_octave": list(third_octave)}
    if frequency_hz is not None and len(frequency_hz) == 1:
        return {"frequency_hz": frequency_hz[0]}
    return {"frequency_hz": band if frequency_hz is None else list(frequency_hz)}


def describe(recording: Recording) -> str:
    """A recording in a few lines for people."""
    source = recording.provenance
    lines = [f"format: {source.format}", f"array: {recording.array!r}, aperture {recording.array.aperture_m:g} m"]
    if recording.n_bands > 1 and recording.frequencies_hz is not None:
        low, high = min(recording.frequencies_hz), max(recording.frequencies_hz)
        lines.append(f"frequencies: {recording.n_bands} from {low:g} to {high:g} Hz")
    if recording.frequency_hz is not None:
        lines.append(f"frequency: {recording.frequency_hz:g} Hz")
    if recording.covariance is not None:
        lines.append(f"covariance: {' x '.join(map(str, recording.covariance.shape))}")
    if recording.effective_snapshots is not None:
        lines.append(f"worth {min(recording.effective_snapshots):.4g} independent snapshots")
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
