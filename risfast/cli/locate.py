"""``risfast locate`` and ``risfast detect``: from a recording of any kind to a table, a picture and a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from tyro.conf import Positional, arg

from risfast.cli.import_file import chosen_bands, field_names
from risfast.cli.options import Command, Common, Flag, Flat, Opt, check_output, usable_device
from risfast.cli.progress import ProgressBar
from risfast.detect import DetectionOptions, detect_sources
from risfast.errors import FileFormatError
from risfast.geometry import Region, SearchGrid, SensorArray
from risfast.io import RESULT_SUFFIXES, Recording, SceneDetails, read, read_options, source_rows, write_results
from risfast.io.setup_file import SetupParts, read_setup_parts
from risfast.ops import mvdr_spectrum
from risfast.report.plots import PICTURE_SUFFIXES
from risfast.setup import Setup
from risfast.sources import Sources

if TYPE_CHECKING:
    from risfast.localize import Localizer, PipelineOptions

_SCENES_AT_ONCE = 8  # so that a long file shows progress
_DETAILED_SCENES = 16  # whose map and range profiles a file of results holds
_REGION_DEG = tuple[float, float, float, float, float, float]
_BOX_METAVAR = "X0 X1 Y0 Y1 Z0 Z1"
_REGION_METAVAR = "AZ_MIN AZ_MAX EL_MIN EL_MAX R_MIN R_MAX"


@dataclass(frozen=True)
class OutputOptions:
    """Where what was found goes."""

    # Write the sources as .csv, .json, .parquet or .mat; .json holds what risfast show draws, too.
    output: Opt[Path] = None
    # Draw the direction map and the sources as .png, .pdf or .svg; by default next to FILE, as FILE.sources.png.
    picture: Opt[Path] = None
    no_picture: Flag = False  # Draw nothing.
    picture_scene: int = 0  # Which scene of a file with several is drawn, from 0.
    overwrite: Flag = False  # Replace results and pictures that are there.
    xyz: Flag = False  # Print x, y and z in metres, too.

    def picture_of(self, file: Path) -> Path | None:
        """Where the picture goes, None where none is drawn; results that could not be written are refused."""
        check_output(self.output, "--output", RESULT_SUFFIXES, overwrite=self.overwrite)
        if self.no_picture:
            if self.picture is not None:
                raise ValueError("give --picture or --no-picture, not both")
            return None
        picture = self.picture or file.with_name(f"{file.name}.sources.png")
        option = "--picture" if self.picture is not None else "--picture, --no-picture"
        if file.exists():  # or it is the file that is complained about
            check_output(picture, option, PICTURE_SUFFIXES, overwrite=self.overwrite)
        return picture

    def check_scene(self, scenes: int) -> None:
        """Refuse to draw a scene that is not there."""
        if not 0 <= self.picture_scene < scenes:
            raise ValueError(f"--picture-scene must be from 0 to {scenes - 1}, got {self.picture_scene}")


class _Map(NamedTuple):
    """The map of a scene, and what it is of."""

    power: Tensor  # (G_az, G_el)
    grid: SearchGrid
    covariance: Tensor  # (1, N, N), or (1, F, N, N) of several bands
    setup: Setup  # Of the covariance


class _SourceCommand(Command):
    """A command that finds the sources in a file, and reports them."""

    file: Path  # an option of each command, in its own place among the others
    results: OutputOptions

    def peaks(
        self,
        matrices: Tensor,
        setup: Setup,
        grid: SearchGrid,
        detection: DetectionOptions,
        picture: Path | None,
        progress: ProgressBar,
        *,
        named: bool = False,
        loading: float = 1e-2,
        method: str = "auto",
        **noise: Any,
    ) -> int:
        """Search every covariance, and report; the ends of a ``named`` grid of the reference system are the region."""
        self.results.check_scene(len(matrices))
        matrices, setup = setup.without_gains(matrices), setup.replace(gains=None)
        target, wavefront = (setup.array, setup.wavefront) if named else (setup, None)
        how: dict[str, Any] = {
            "wavefront": wavefront,
            "loading": loading,
            "method": method,
            "options": detection,
            **noise,
        }
        how["report"] = lambda done, total: progress("simulating noise", done, total, unit="scenes")
        found: list[Sources] = []
        progress("detecting", 0, len(matrices), unit="scenes")
        for chunk in matrices.split(_SCENES_AT_ONCE):
            found += detect_sources(chunk, target, grid, **how)
            progress("detecting", len(found), len(matrices), unit="scenes")
        progress.close()

        def spectrum(scene: int) -> _Map:
            matrix, wavefront = matrices[scene : scene + 1], setup.wavefront
            power = mvdr_spectrum(matrix, setup.array, grid, loading=loading, wavefront=wavefront, method=method)
            return _Map(power.power[0], grid, matrix, setup)

        said = setup.ambiguities if setup.sampling == "direct" else ()
        return self.report(found, setup, [*said, _edge_note(found, setup.region)], picture, spectrum, progress)

    def report(
        self,
        found: list[Sources],
        setup: Setup,
        notes: Iterable[str | None],
        picture: Path | None,
        spectrum: Callable[[int], _Map],
        progress: ProgressBar,
        position_covariance: Sequence[Tensor] | None = None,
    ) -> int:
        """The table first, so that it is there whatever becomes of the files; then notes, results and picture."""
        print(source_table(found, xyz=self.results.xyz))
        for note in notes:
            if note is not None:
                progress.say(note)
        if self.results.output is not None:
            write_results(self.results.output, found, setup, self._details(found, spectrum, position_covariance))
            print(f"results: {self.results.output}")
        if picture is not None:
            from risfast.report.plots import SpectrumPanel, direction_figure, save_figure  # noqa: PLC0415 - matplotlib

            scene = self.results.picture_scene
            drawn = spectrum(scene)
            panel = SpectrumPanel(f"{self.file.name}, scene {scene}", drawn.power, found[scene].position)
            save_figure(direction_figure(panel, drawn.grid.azimuth_rad, drawn.grid.elevation_rad), picture)
            print(f"picture: {picture}")
        return 0

    def _details(
        self,
        found: list[Sources],
        spectrum: Callable[[int], _Map],
        position_covariance: Sequence[Tensor] | None,
    ) -> list[SceneDetails]:
        """Maps, range profiles and position covariances of the first scenes, where the file of results holds them."""
        from risfast.report.views import scene_details  # noqa: PLC0415

        assert self.results.output is not None
        if self.results.output.suffix.lower() != ".json":
            return []
        return [
            scene_details(
                *spectrum(scene), found[scene], None if position_covariance is None else position_covariance[scene]
            )
            for scene in range(min(len(found), _DETAILED_SCENES))
        ]


@dataclass(frozen=True)
class LocateCommand(_SourceCommand):
    """Options of ``risfast locate``."""

    HELP: ClassVar[str] = (
        "FILE holds snapshots behind a surface with its codes and channel, snapshots of an array that is sampled "
        "itself, samples in time, or a covariance; .npz, .mat, .h5, .uvh5, SigMF, .wav or .flac, as risfast import "
        "reads them."
    )
    OLD_SPELLINGS: ClassVar[dict[str, str]] = {"--array": "--setup"}
    IN_OPTIONS: ClassVar[dict[str, str]] = {
        **{"n_sources": "--sources", "array": "--setup"},
        **{"positions_m": "--positions", "speed_m_s": "--speed", "block_size": "--segment"},
    }

    file: Annotated[Positional[Path], arg(metavar="FILE")]  # The recording.
    # The model that comes with risfast, none (the classical fit, for any array), or the folder of a trained one. By
    # default the first if it is for this array and region, else the classical fit.
    model: Annotated[Opt[str], arg(metavar="default|none|FOLDER")] = None
    # TOML file with the array and, where they are not to be derived, region, wavefront and tolerance; needed where
    # FILE holds no positions.
    setup: Opt[Path] = None
    positions: Opt[Path] = None  # Positions alone, as acoular's .xml, .csv or .toml.
    wavelength_m: Opt[float] = None  # Wavelength in metres, where neither FILE nor --setup says it.
    # Where sources are looked for, in degrees and metres; R_MAX may be inf. By default that of the setup, or what the
    # array can tell apart.
    region: Annotated[Opt[_REGION_DEG], arg(metavar=_REGION_METAVAR)] = None
    # A box in metres in which sources are looked for, in the coordinates of the elements, in place of --region.
    box: Annotated[Opt[_REGION_DEG], arg(metavar=_BOX_METAVAR)] = None
    # Speed of the waves in m/s, where only a frequency is known.
    speed: Annotated[Opt[float], arg(metavar="M_S")] = None
    # Frequency, or several, where FILE has several, none, or samples in time.
    frequency_hz: Annotated[Opt[tuple[float, ...]], arg(metavar="HZ ...")] = None
    # A band of samples in time, in hertz: all of its bins, at most 32.
    band: Annotated[Opt[tuple[float, float]], arg(metavar="LOW HIGH")] = None
    # Third-octave bands by their nominal centres, such as 1000 1250.
    third_octave: Annotated[Opt[tuple[float, ...]], arg(metavar="HZ ...")] = None
    # Samples of a segment of Welch's method; by default 256 at a single frequency, else as the array and bands need.
    segment: Annotated[Opt[int], arg(metavar="N")] = None
    # Names of variables in FILE, such as snapshots=Y channel=H.
    fields: Annotated[tuple[str, ...], arg(name="field", metavar="FIELD=NAME ...", help_behavior_hint="")] = ()
    # Options of the localisation, as risfast hpo writes them.
    options: Annotated[Opt[Path], arg(metavar="TOML")] = None
    # How many independent snapshots a covariance is the mean of: it is localised as they would be, not only mapped. Of
    # samples in time it is known.
    snapshots: Annotated[Opt[int], arg(metavar="L")] = None
    sources: Annotated[Opt[int], arg(metavar="K")] = None  # How many sources there are, if that is known.
    max_sources: Annotated[Opt[int], arg(metavar="K")] = None  # Report at most K sources of a scene, the strongest.
    # Report no source that is less probable than this, from 0 to 1; by default as the options or the model say.
    least_confidence: Annotated[Opt[float], arg(metavar="P")] = None
    # Where sources come from, before the polish chooses: own (the model's), capon, or refined.
    candidates: Opt[Literal["own", "capon", "refined"]] = None
    # Also say how probable each number of sources is: of sources of equal powers, or of powers whose spread FILE tells.
    count: Opt[Literal["equal", "spread"]] = None
    device: str = "cpu"  # Where to compute, cpu or cuda.
    results: Annotated[OutputOptions, Flat] = field(default_factory=OutputOptions)
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """Read, choose a model, localise, report."""
        picture = self.results.picture_of(self.file)
        device = usable_device(self.device)
        if self.sources is not None and self.sources < 1:
            raise ValueError(f"--sources must be at least 1, got {self.sources}")
        parts = None if self.setup is None else read_setup_parts(self.setup)
        region = region_of(self.region, self.box)
        chosen = None if self.model in (None, "none") else self._named_model()
        recording = self._read(chosen, progress)
        for note in (*recording.provenance.notes, *(f"left out: {it.name}, {it.reason}" for it in recording.flagged)):
            progress.say(f"{self.file.name}: {note}")
        options = None if self.options is None else read_options(self.options)
        matrices = recording.covariance
        if matrices is None and self.snapshots is not None:
            raise ValueError(f"--snapshots goes with a covariance, and {self.file} holds the snapshots themselves")
        if matrices is not None and self.snapshots is None and recording.effective_snapshots is None:
            return self._covariance(matrices.to(device), _problem(recording, region), options, picture, progress)
        localizer = self._localizer(chosen, recording, parts, region, options, progress).to(device)
        typed = {name: getattr(self, name) for name in ("least_confidence", "max_sources")}
        decision = replace(localizer.options.decision, **{k: v for k, v in typed.items() if v is not None})
        localizer.options = replace(localizer.options, decision=decision)
        if self.candidates is not None:
            chosen_from = replace(localizer.options.candidates, source=self.candidates)
            localizer.options = replace(localizer.options, candidates=chosen_from)
        self.results.check_scene(recording.n_scenes)
        progress("localising", 0, recording.n_scenes, unit="scenes")
        if matrices is not None and self.snapshots is not None:
            known = (float(self.snapshots),) * recording.n_bands
            recording = replace(recording, effective_snapshots=known)
        found = localizer.analyse(
            recording if matrices is None else replace(recording, covariance=matrices.to(device)),
            n_sources=self.sources,
            count=self.count,
            report=lambda done, total: progress("localising", done, total, unit="scenes"),
        )
        progress.close()
        setup = found.setup or localizer.setup

        def spectrum(scene: int) -> _Map:
            from risfast.covariance import covariance_from_factor, effective_covariance  # noqa: PLC0415
            from risfast.localize import pipeline  # noqa: PLC0415

            factor = found.factor[scene : scene + 1]
            heard = factor.abs().amax(-1).flatten(0, -2).amax(0) > 0  # channels that were left out have zeros
            array = SensorArray(setup.array.positions_m[heard.cpu()], setup.array.wavelength_m)
            used = setup.replace(array=array, wavelengths_m=setup.wavelengths_m, gains=None)
            matrix = effective_covariance(covariance_from_factor(factor[..., heard, :]))
            power, grid = pipeline.spectrum(matrix, used, localizer.options)
            return _Map(power.power[0], grid, matrix, used)

        notes = [*_count_notes(found.count_probability), *found.notes, _edge_note(found.sources, setup.region)]
        if self.common.verbose:
            notes.append(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in found.seconds.items()))
        return self.report(found.sources, setup, notes, picture, spectrum, progress, found.position_covariance)

    def _named_model(self) -> Localizer:
        """The model that was asked for by name."""
        from risfast.localize import Localizer  # noqa: PLC0415 - networks, for what needs them
        from risfast.models.pretrained import DEFAULT_MODEL  # noqa: PLC0415

        folder = DEFAULT_MODEL if self.model in (None, "default") else Path(str(self.model))
        return Localizer.load(folder, options=self.options)

    def _read(self, chosen: Localizer | None, progress: ProgressBar) -> Recording:
        """The recording; of a file that says nothing of its array, with the array of the model that was asked for."""
        same = {"wavelength_m": self.wavelength_m, "speed_m_s": self.speed, "block_size": self.segment}
        how: dict[str, Any] = {"fields": field_names(self.fields), "positions_m": self.positions, **same}
        how |= chosen_bands(self.frequency_hz, self.band, self.third_octave)
        try:
            return read(self.file, setup=self.setup, **how)
        except FileFormatError as error:
            if chosen is None or self.setup is not None:
                raise
            try:
                recording = read(self.file, setup=chosen.setup, **how)
            except FileFormatError:
                raise error from None
            progress.say(f"the array is taken to be the model's, for {error}")
            return recording

    def _localizer(
        self,
        chosen: Localizer | None,
        recording: Recording,
        parts: SetupParts | None,
        region: Region | None,
        options: PipelineOptions | None,
        progress: ProgressBar,
    ) -> Localizer:
        """The model, if it is one for this problem; the classical fit if none was asked for by name."""
        from risfast.localize import Localizer  # noqa: PLC0415

        if self.model != "none":
            model = chosen or self._named_model()
            unlike = self._unlike(model, recording, parts, region)
            if unlike is None:
                return model
            if chosen is not None:
                raise ValueError(
                    f"{unlike}; take --model none, or a model of its own (risfast backbone --system.array FILE)"
                )
            progress.say(f"{unlike}: the classical fit is used (--model none)")
        return Localizer.classical(_problem(recording, region), options=options)

    def _unlike(
        self, model: Localizer, recording: Recording, parts: SetupParts | None, region: Region | None
    ) -> str | None:
        """Why a model is not for this problem; None where it is."""
        own, name = model.setup, "the default model" if self.model in (None, "default") else f"{self.model}"
        if recording.sampling != own.sampling:
            what = "directly" if recording.sampling == "direct" else "through a surface"
            return f"{self.file.name} is sampled {what}, and {name} is not for that"
        unlike = model.unlike(recording.array)
        if unlike is not None:
            return unlike
        trained = own.scaled(recording.array.wavelength_m / own.array.wavelength_m).region
        given = recording.given
        if region is None and given is not None and (parts is None or parts.region is not None):
            region = given.region
        if region is not None and region != trained:
            degrees = (round(math.degrees(v), 6) for v in (*trained.azimuth_rad, *trained.elevation_rad))
            text = " ".join(f"{value:g}" for value in (*degrees, *trained.range_m))
            return f"the region is not the one that {name} was trained for ({text})"
        if given is not None and given.wavefront != own.wavefront and (parts is None or parts.wavefront is not None):
            return f"the wavefront is {given.wavefront}, and that of {name} {own.wavefront}"
        return None

    def _covariance(
        self,
        matrices: Tensor,
        setup: Setup,
        options: PipelineOptions | None,
        picture: Path | None,
        progress: ProgressBar,
    ) -> int:
        """Peaks of the Capon map, as risfast detect finds them."""
        if self.model not in (None, "none"):
            raise ValueError(
                f"{self.file} holds a covariance, which no model reads (they need snapshots): take --model none"
            )
        if self.least_confidence is not None:
            raise ValueError(
                "--least-confidence: the peaks of a covariance have no confidence; --max-sources limits them"
            )
        detection = DetectionOptions() if options is None else options.candidates.detection
        if self.max_sources is not None:
            detection = replace(detection, max_sources=self.max_sources)
        if self.sources is not None:  # as many peaks, however weak
            detection = replace(detection, max_sources=self.sources, max_db=math.inf, mad_z=None, prominence_db=0.0)
        if setup.n_bands > 1:
            raise ValueError(f"{self.file} holds {setup.n_bands} bands and not how many snapshots: give --snapshots")
        grid = setup.search_grid() if options is None else options.grid(setup)
        how: dict[str, Any] = {} if options is None else {"loading": options.map.loading}
        return self.peaks(matrices, setup, grid, detection, picture, progress, **how)


@dataclass(frozen=True)
class DetectCommand(_SourceCommand):
    """Options of ``risfast detect``."""

    OLD_SPELLINGS: ClassVar[dict[str, str]] = {"--array": "--setup"}

    # Covariance (N, N) or (B, N, N) in .npz, .mat (also 7.3) or .h5; snapshots of an array that is sampled itself.
    file: Annotated[Positional[Path], arg(metavar="FILE")]
    # TOML file with positions, wavelength and, where they are not to be derived, region and wavefront; needed where
    # FILE holds no positions.
    setup: Opt[Path] = None
    key: Annotated[Opt[str], arg(metavar="NAME")] = None  # Variable in the file; by default R or covariance.
    # Where sources are looked for, in degrees and metres; R_MAX may be inf. By default that of the setup.
    region: Annotated[Opt[_REGION_DEG], arg(metavar=_REGION_METAVAR)] = None
    # A box in metres in which sources are looked for, in the coordinates of the elements, in place of --region.
    box: Annotated[Opt[_REGION_DEG], arg(metavar=_BOX_METAVAR)] = None
    # A search grid of the reference system, in place of the one that follows from the setup.
    grid: Opt[Literal["reference", "training"]] = None
    # Azimuth axis in degrees, within +-180, in place of the grid's.
    azimuth_deg: Annotated[Opt[tuple[float, float, float]], arg(metavar="MIN MAX COUNT")] = None
    # Elevation axis in degrees, within +-90, in place of the grid's.
    elevation_deg: Annotated[Opt[tuple[float, float, float]], arg(metavar="MIN MAX COUNT")] = None
    # Range planes in metres, in place of the grid's.
    range_m: Annotated[Opt[tuple[float, ...]], arg(metavar="M ...")] = None
    wavefront: Opt[Literal["spherical", "fresnel", "planar"]] = None  # Wavefront; by default that of the setup.
    loading: float = 1e-2  # Diagonal loading as a share of trace(R)/N.
    method: Literal["auto", "dense", "chebyshev", "lag"] = "auto"  # How to compute the map.
    max_sources: Annotated[Opt[int], arg(metavar="K")] = None  # Report at most K sources of a covariance.
    # How many independent snapshots the covariance is the mean of: peaks are tested against noise, not against the
    # median of the map.
    snapshots: Annotated[Opt[int], arg(metavar="L")] = None
    # Probability of a false alarm in noise alone, for that test; 0.01 by default. Snapshots in FILE are counted.
    false_alarm: Annotated[Opt[float], arg(metavar="P")] = None
    device: str = "cpu"  # Where to compute, cpu or cuda.
    results: Annotated[OutputOptions, Flat] = field(default_factory=OutputOptions)
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """Read, search, report."""
        picture = self.results.picture_of(self.file)
        device = usable_device(self.device)
        mapped = {} if self.key is None else {"covariance": self.key}
        recording = read(self.file, fields=mapped, setup=self.setup)
        if recording.n_bands > 1:
            raise ValueError(f"{self.file} holds {recording.n_bands} bands, and a map is of one: take risfast locate")
        noise = self._noise(recording)
        recording = recording.with_covariance()
        assert recording.covariance is not None
        setup = _problem(recording, region_of(self.region, self.box))
        if self.wavefront is not None:
            setup = setup.replace(wavefront=self.wavefront, tolerance=None)
        setup, grid = self._search(setup)
        detection = DetectionOptions()
        if self.max_sources is not None:
            detection = replace(detection, max_sources=self.max_sources)
        how: dict[str, Any] = {"loading": self.loading, "method": self.method, "named": self.grid is not None}
        how |= noise
        return self.peaks(recording.covariance.to(device), setup, grid, detection, picture, progress, **how)

    def _noise(self, recording: Recording) -> dict[str, Any]:
        """What the test against noise takes; nothing where peaks are compared with the median of the map."""
        snapshots = self.snapshots
        if snapshots is None and self.false_alarm is not None:
            if recording.snapshots is None:
                raise ValueError("--false-alarm needs --snapshots, how many of them the covariance is the mean of")
            snapshots = recording.n_snapshots
        if snapshots is None:
            return {}
        return {"snapshots": snapshots, **({} if self.false_alarm is None else {"false_alarm": self.false_alarm})}

    def _search(self, setup: Setup) -> tuple[Setup, SearchGrid]:
        """The grid with the axes that were given in place of its own, and the setup with their ends as its region."""
        grid = setup.search_grid() if self.grid is None else getattr(SearchGrid, self.grid)()
        given: dict[str, Tensor] = {}
        if self.azimuth_deg is not None:
            given["azimuth_rad"] = _axis_rad("--azimuth-deg", self.azimuth_deg, 180.0)
        if self.elevation_deg is not None:
            given["elevation_rad"] = _axis_rad("--elevation-deg", self.elevation_deg, 90.0)
        if self.range_m is not None:
            given["range_m"] = torch.tensor(self.range_m, dtype=torch.float64)
        searched = replace(grid, **given)
        ends: dict[str, Any] = {name: (float(axis[0]), float(axis[-1])) for name, axis in given.items()}
        return setup.replace(region=replace(setup.region, **ends)), searched


def _problem(recording: Recording, region: Region | None) -> Setup:
    """The setup of a recording with another region, which not every array needs (or is able) to derive."""
    if region is None:
        return recording.setup
    if recording.given is not None:
        return recording.setup.replace(region=region)
    own: dict[str, Any] = {"sampling": recording.sampling, "wavelengths_m": recording.wavelengths_m}
    return Setup(recording.array, region, **own, speed_m_s=recording.speed_m_s)


def region_of(given: _REGION_DEG | None, box: _REGION_DEG | None = None) -> Region | None:
    """--region, in degrees and metres, or --box."""
    if given is not None and box is not None:
        raise ValueError("give --region or --box, not both")
    if box is not None:
        try:
            return Region.box_m(box[:2], box[2:4], box[4:])
        except ValueError as error:
            raise ValueError(f"--box: {error}") from error
    if given is None:
        return None
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


def source_table(scenes: Sequence[Sources], *, xyz: bool = False) -> str:
    """A line a source: degrees, metres and dB; columns that say nothing of any source are left out."""
    rows = [
        {**row, "range_m": _range(row["range_m"]), "edge": "yes" if row["at_edge"] else "-"}
        for row in source_rows(scenes)
    ]
    forms = {"scene": ">5", "source": ">6", "azimuth deg": ">11.2f", "elevation deg": ">13.2f", "range m": ">14"}
    forms |= {f"{axis} m": ">9.3f" for axis in "xyz" if xyz}
    forms |= {"power dB": ">8.1f", "confidence": ">10.3f", "prominence dB": ">13.1f", "edge": ">4"}
    keys = {name: name.replace(" ", "_").lower() for name in forms}
    for name in ("confidence", "prominence dB"):
        if not any(math.isfinite(row[keys[name]]) for row in rows):
            del forms[name]
    lines = ["  ".join(name.rjust(len(format(0, form))) for name, form in forms.items())]
    lines += ["  ".join(format(row[keys[name]], form) for name, form in forms.items()) for row in rows]
    silent = [str(index) for index, found in enumerate(scenes) if len(found) == 0]
    if silent:
        lines.append(f"no sources in scene {', '.join(silent)}")
    return "\n".join(lines)


def _range(metres: float) -> str:
    if math.isnan(metres):
        return "not determined"
    return "far field" if math.isinf(metres) else f"{metres:.3f}"


_LEAST_SAID = 0.005  # probability of a number of sources


def _count_notes(probability: Tensor | None) -> Iterator[str]:
    """How probable each number of sources is, a line for each scene."""
    for scene, row in enumerate([] if probability is None else probability.tolist()):
        of = "" if len(probability or ()) == 1 else f"scene {scene}: "
        if math.isnan(row[0]):
            yield f"{of}the number of sources is not weighed, for the array is not quite as the model has it"
            continue
        said = (f"{k}: {100 * p:.0f} %" for k, p in enumerate(row) if p >= _LEAST_SAID)
        yield f"{of}probability of each number of sources: {', '.join(said)}"


def _edge_note(scenes: Sequence[Sources], region: Region) -> str | None:
    """How many sources lie on the edge of the region, on which, and what to do; None where none does."""
    found = Sources.stack(list(scenes))
    edge = found[found.at_edge]
    if not len(edge):
        return None
    where: list[str] = []
    for name, limits, values in (
        ("azimuth", region.azimuth_rad, edge.azimuth),
        ("elevation", region.elevation_rad, edge.elevation),
        ("range", region.range_m, edge.range),
    ):
        for limit in limits:
            near = (1 / values - 1 / limit).abs() * limit if name == "range" else (values - limit).abs()
            if math.isfinite(limit) and limits[0] < limits[1] and bool((near < 1e-3).any()):
                where.append(f"{name} {limit:.2f} m" if name == "range" else f"{name} {math.degrees(limit):.1f} deg")
    on = f" ({', '.join(where)})" if where else ""
    verb = "lies" if len(edge) == 1 else "lie"
    return f"{len(edge)} of {len(found)} sources {verb} on the edge of the region{on}: widen it with --region"
