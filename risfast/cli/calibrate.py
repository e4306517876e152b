"""``risfast calibrate``: gains, and positions, of an array from recordings of sources."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from risfast.cli.import_file import chosen_bands, field_names
from risfast.cli.options import Command, Common, Flag, Flat, Opt, check_output
from risfast.cli.progress import ProgressBar
from risfast.report.plots import PICTURE_SUFFIXES
from risfast.setup import Setup

if TYPE_CHECKING:
    from risfast.io import Recording
    from risfast.localize import ArrayCalibration


@dataclass(frozen=True)
class CalibrateCommand(Command):
    """Options of ``risfast calibrate``."""

    HELP: ClassVar[str] = (
        "Every FILE is a recording of one or a few sources by the same array, which is sampled itself; every scene in "
        "it counts. Sources in different directions tell more than long recordings."
    )
    IN_OPTIONS: ClassVar[dict[str, str]] = {"n_sources": "--sources", "array": "--setup", "sources": "--at"}

    # Recordings, one or more, as risfast import reads them.
    files: Annotated[Positional[tuple[Path, ...]], arg(metavar="FILE", help_behavior_hint="")]
    setup: Opt[Path] = None  # TOML file with the array; needed where the files hold no positions.
    # Where the source of each FILE is, in degrees and metres (R may be inf); searched for by default.
    at: Annotated[Opt[tuple[float, ...]], arg(metavar="AZ EL R")] = None
    positions: Flag = False  # Estimate the positions of the elements, too.
    sources: Annotated[Opt[int], arg(metavar="K")] = None  # How many sources are searched for in each scene, if known.
    # How many independent snapshots a covariance is the mean of.
    snapshots: Annotated[Opt[float], arg(metavar="L")] = None
    # Frequency, or several, where a FILE has several, none, or samples in time.
    frequency_hz: Annotated[Opt[tuple[float, ...]], arg(metavar="HZ ...")] = None
    # A band of samples in time, in hertz: all of its bins, at most 32; the gains are those of all of them.
    band: Annotated[Opt[tuple[float, float]], arg(metavar="LOW HIGH")] = None
    speed: Annotated[Opt[float], arg(metavar="M_S")] = None  # Speed of the waves in m/s.
    # Names of variables in the files, such as snapshots=X.
    fields: Annotated[tuple[str, ...], arg(name="field", metavar="FIELD=NAME ...", help_behavior_hint="")] = ()
    output: Opt[Path] = None  # Write the setup with its gains (and positions) as .toml, for --setup.
    # Draw the gains as .png, .pdf or .svg; by default beside the output, as OUTPUT.png.
    picture: Opt[Path] = None
    overwrite: Flag = False  # Replace a setup and a picture that are there.
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """Read, calibrate, report, write."""
        from risfast.localize import calibrate  # noqa: PLC0415 - networks, for what needs them

        if not self.files:
            raise ValueError("give at least one FILE")
        picture = self.picture
        if picture is None and self.output is not None:
            picture = self.output.with_name(f"{self.output.name}.png")
        check_output(self.output, "--output", (".toml",), overwrite=self.overwrite)
        check_output(picture, "--picture", PICTURE_SUFFIXES, overwrite=self.overwrite)
        places = self._places()
        if places is not None and self.sources is not None:
            raise ValueError("--sources is for sources that are searched for; --at says where they are: give one")
        setup: Setup | None = None
        matrices: list[Tensor] = []
        lengths: list[float] = []
        known: list[Tensor] = []
        for number, file in enumerate(self.files):
            progress("reading", number, len(self.files), unit="files")
            own, covariance, length = self._read(file)
            if setup is not None and own != setup:
                raise ValueError(f"{file} is of another setup than {self.files[0]}: give one with --setup")
            setup = own
            matrices += list(covariance)
            lengths += [length] * len(covariance)
            if places is not None:
                known += [places[number]] * len(covariance)
        progress.close()
        assert setup is not None  # there is a file
        given = known if places is not None else None
        found = calibrate(matrices, setup, lengths, sources=given, positions=self.positions, n_sources=self.sources)
        return self._report(found, setup, picture, progress)

    def _places(self) -> list[Tensor] | None:
        """--at as (azimuth, elevation, range) in radians and metres."""
        if self.at is None:
            return None
        if len(self.at) != 3 * len(self.files):
            raise ValueError(
                f"--at must be AZ EL R for each of {len(self.files)} files, {3 * len(self.files)} numbers; got "
                f"{len(self.at)}"
            )
        triples = [self.at[start : start + 3] for start in range(0, len(self.at), 3)]
        for azimuth, elevation, r in triples:
            if not (abs(azimuth) <= 360 and abs(elevation) <= 90 and r > 0):
                raise ValueError(
                    f"--at must be an azimuth and an elevation in degrees and a range above 0 m, got {azimuth:g} "
                    f"{elevation:g} {r:g}"
                )
        return [
            torch.tensor([math.radians(azimuth), math.radians(elevation), r], dtype=torch.float64)
            for azimuth, elevation, r in triples
        ]

    def _read(self, file: Path) -> tuple[Setup, Tensor, float]:
        """The setup, the covariances of all scenes, and L."""
        from risfast.io import read  # noqa: PLC0415 - file formats, once arguments are right

        how: dict[str, Any] = {"speed_m_s": self.speed, "setup": self.setup}
        how |= chosen_bands(self.frequency_hz, self.band, None)
        recording: Recording = read(file, fields=field_names(self.fields), **how)
        if recording.sampling != "direct":
            raise ValueError(f"{file} was received through a surface; calibrate takes an array that is sampled itself")
        length = self.snapshots
        if recording.snapshots is not None:
            if length is not None:
                raise ValueError(f"--snapshots goes with a covariance, and {file} holds the snapshots themselves")
            length = recording.n_snapshots
        if length is None and recording.effective_snapshots is not None:
            length = min(recording.effective_snapshots)
        if length is None:
            raise ValueError(f"{file} holds a covariance: give --snapshots, how many it is the mean of")
        recording = recording.with_covariance()
        if recording.flagged:
            names = ", ".join(item.name for item in recording.flagged)
            raise ValueError(f"{file}: no gain can be found for elements without power or that are left out: {names}")
        assert recording.covariance is not None
        return recording.setup.replace(sampling="direct"), recording.covariance, length

    def _report(self, found: ArrayCalibration, before: Setup, picture: Path | None, progress: ProgressBar) -> int:
        from risfast.io import write_setup  # noqa: PLC0415
        from risfast.report.calibration import calibration_figure, calibration_table  # noqa: PLC0415
        from risfast.report.plots import save_figure  # noqa: PLC0415 - matplotlib

        print(calibration_table(found, before))
        left = "cannot be told from so few recordings" if math.isnan(found.mismatch) else f"{found.mismatch:.1%}"
        print(f"what the array still does not explain of its sources: {left}")
        for note in found.notes:
            progress.say(note)
        if self.output is not None:
            write_setup(self.output, found.setup)
            print(f"setup: {self.output}")
        if picture is not None:
            save_figure(calibration_figure(found, before), picture)
            print(f"picture: {picture}")
        return 0
