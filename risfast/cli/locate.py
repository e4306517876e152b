"""``risfast locate``: from a recording of any kind to a table, a picture and a file of its sources."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from risfast.cli.detect import (
    REGION_METAVAR,
    Covariances,
    RegionDeg,
    Results,
    check_results,
    detect_in,
    problem_of,
    region_of,
    report,
)
from risfast.cli.found import draw, edge_note, source_table
from risfast.cli.import_file import field_names
from risfast.cli.options import Common, Flat, Opt, check_device
from risfast.cli.progress import Progress
from risfast.detect import DetectionOptions
from risfast.errors import FileFormatError
from risfast.io import Recording, read, read_options, write_results
from risfast.io.setup_file import SetupParts, read_setup_parts
from risfast.setup import Setup

if TYPE_CHECKING:
    import torch

    from risfast.localize import Localisation, Localizer, PipelineOptions

__all__ = ["Options", "run"]

HELP = (
    "FILE holds snapshots behind a surface with its codes and channel, snapshots of an array that is sampled itself, "
    "or a covariance; .npz, .mat, .h5, .uvh5 or SigMF, as risfast import reads them."
)
OLD_SPELLINGS = {"--array": "--setup"}
IN_OPTIONS = {"n_sources": "--sources", "array": "--setup", "positions_m": "--positions", "speed_m_s": "--speed"}


@dataclass(frozen=True)
class Options:
    """Options of ``risfast locate``."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """The recording."""
    model: Annotated[Opt[str], arg(metavar="default|none|FOLDER")] = None
    """The model that comes with risfast, none (the classical fit, for any array), or the folder of a trained one. By
    default the first if it is for this array and region, else the classical fit."""
    setup: Opt[Path] = None
    """TOML file with the array and, where they are not to be derived, region, wavefront and tolerance; needed where
    FILE holds no positions."""
    positions: Opt[Path] = None
    """Positions alone, as acoular's .xml, .csv or .toml."""
    wavelength_m: Opt[float] = None
    """Wavelength in metres, where neither FILE nor --setup says it."""
    region: Annotated[Opt[RegionDeg], arg(metavar=REGION_METAVAR)] = None
    """Where sources are looked for, in degrees and metres; R_MAX may be inf. By default that of the setup, or what the
    array can tell apart."""
    speed: Annotated[Opt[float], arg(metavar="M_S")] = None
    """Speed of the waves in m/s, where only a frequency is known."""
    frequency_hz: Annotated[Opt[float], arg(metavar="HZ")] = None
    """Frequency, where FILE has several, none, or samples in time."""
    fields: Annotated[tuple[str, ...], arg(name="field", metavar="FIELD=NAME ...", help_behavior_hint="")] = ()
    """Names of variables in FILE, such as snapshots=Y channel=H."""
    options: Annotated[Opt[Path], arg(metavar="TOML")] = None
    """Options of the localisation, as risfast hpo writes them."""
    sources: Annotated[Opt[int], arg(metavar="K")] = None
    """How many sources there are, if that is known."""
    max_sources: Annotated[Opt[int], arg(metavar="K")] = None
    """Report at most K sources of a scene, the strongest."""
    least_confidence: Annotated[Opt[float], arg(metavar="P")] = None
    """Report no source that is less probable than this, from 0 to 1; by default as the options or the model say."""
    device: str = "cpu"
    """Where to compute, cpu or cuda."""
    results: Annotated[Results, Flat] = field(default_factory=Results)
    common: Annotated[Common, Flat] = field(default_factory=Common)


def run(options: Options, progress: Progress) -> int:
    """Read, choose a model, localise, report."""
    picture = check_results(options.results, options.file)
    device = check_device(options.device)
    if options.sources is not None and options.sources < 1:
        raise ValueError(f"--sources must be at least 1, got {options.sources}")
    parts = None if options.setup is None else read_setup_parts(options.setup)
    region = None if options.region is None else region_of(options.region)
    chosen = None if options.model in (None, "none") else _model(options)
    recording = _read(options, chosen, progress)
    if options.common.verbose:
        for note in recording.provenance.notes:
            progress.say(f"{options.file.name}: {note}")
    if recording.covariance is not None:
        return _covariance(options, recording.covariance.to(device), problem_of(recording, region), picture, progress)
    localizer = _localizer(options, chosen, recording, parts, progress).to(device)
    localizer.options = _decision(localizer.options, options)
    scenes = recording.scenes
    if not 0 <= options.results.picture_scene < scenes:
        raise ValueError(f"--picture-scene must be from 0 to {scenes - 1}, got {options.results.picture_scene}")
    progress("localising", 0, scenes, unit="scenes")
    found = localizer.analyse(
        recording,
        n_sources=options.sources,
        report=lambda done, total: progress("localising", done, total, unit="scenes"),
    )
    progress.close()
    _report(found, localizer, options, picture, progress)
    return 0


def _model(options: Options) -> Localizer:
    """The model that was asked for by name."""
    from risfast.localize import Localizer  # noqa: PLC0415 - networks, for what needs them
    from risfast.models.pretrained import DEFAULT_MODEL  # noqa: PLC0415

    folder = DEFAULT_MODEL if options.model in (None, "default") else Path(str(options.model))
    return Localizer.load(folder, options=options.options)


def _read(options: Options, chosen: Localizer | None, progress: Progress) -> Recording:
    """The recording; of a file that says nothing of its array, with the array of the model that was asked for."""

    def reading(setup: Path | Setup | None) -> Recording:
        return read(
            options.file,
            fields=field_names(options.fields),
            setup=setup,
            positions_m=options.positions,
            wavelength_m=options.wavelength_m,
            frequency_hz=options.frequency_hz,
            speed_m_s=options.speed,
        )

    try:
        return reading(options.setup)
    except FileFormatError as error:
        if chosen is None or options.setup is not None:
            raise
        try:
            recording = reading(chosen.setup)
        except FileFormatError:
            raise error from None
        progress.say(f"the array is taken to be the model's, for {error}")
        return recording


def _localizer(
    options: Options, chosen: Localizer | None, recording: Recording, parts: SetupParts | None, progress: Progress
) -> Localizer:
    """The model, if it is one for this problem; the classical fit if none was asked for by name."""
    from risfast.localize import Localizer  # noqa: PLC0415

    region = None if options.region is None else region_of(options.region)
    if options.model == "none":
        return Localizer.classical(problem_of(recording, region), options=_read_options(options))
    model = chosen or _model(options)
    unlike = _unlike(model, recording, parts, options)
    if unlike is None:
        return model
    if chosen is not None:
        raise ValueError(f"{unlike}; take --model none, or a model of its own (risfast backbone --system.array FILE)")
    progress.say(f"{unlike}: the classical fit is used (--model none)")
    return Localizer.classical(problem_of(recording, region), options=_read_options(options))


def _read_options(options: Options) -> PipelineOptions | None:
    return None if options.options is None else read_options(options.options)


def _unlike(model: Localizer, recording: Recording, parts: SetupParts | None, options: Options) -> str | None:
    """Why a model is not for this problem; None where it is."""
    own, name = model.setup, "the default model" if options.model in (None, "default") else f"{options.model}"
    if recording.sampling != own.sampling:
        what = "directly" if recording.sampling == "direct" else "through a surface"
        return f"{options.file.name} is sampled {what}, and {name} is not for that"
    unlike = model.unlike(recording.array)
    if unlike is not None:
        return unlike
    scale = recording.array.wavelength_m / own.array.wavelength_m
    given = recording.given
    region = None if options.region is None else region_of(options.region)
    if region is None and given is not None and (parts is None or parts.region is not None):
        region = given.region
    if region is not None and region != own.scaled(scale).region:
        return f"the region is not the one that {name} was trained for ({_region_text(own.scaled(scale))})"
    if given is not None and given.wavefront != own.wavefront and (parts is None or parts.wavefront is not None):
        return f"the wavefront is {given.wavefront}, and that of {name} {own.wavefront}"
    return None


def _region_text(setup: Setup) -> str:
    degrees = [math.degrees(v) for pair in (setup.region.azimuth_rad, setup.region.elevation_rad) for v in pair]
    return " ".join(f"{value:g}" for value in (*(round(v, 6) for v in degrees), *setup.region.range_m))


def _decision(current: PipelineOptions, options: Options) -> PipelineOptions:
    """The options with the thresholds that were typed."""
    decision = current.decision
    if options.least_confidence is not None:
        decision = replace(decision, least_confidence=options.least_confidence)
    if options.max_sources is not None:
        decision = replace(decision, max_sources=options.max_sources)
    return replace(current, decision=decision)


def _covariance(
    options: Options, matrices: torch.Tensor, setup: Setup, picture: Path | None, progress: Progress
) -> int:
    """Peaks of the Capon map, as risfast detect finds them."""
    if options.model not in (None, "none"):
        raise ValueError(
            f"{options.file} holds a covariance, which no model reads (they need snapshots): take --model none"
        )
    if options.least_confidence is not None:
        raise ValueError("--least-confidence: the peaks of a covariance have no confidence; --max-sources limits them")
    chosen = _read_options(options)
    detection = DetectionOptions() if chosen is None else chosen.candidates.detection
    if options.max_sources is not None:
        detection = replace(detection, max_sources=options.max_sources)
    if options.sources is not None:  # as many peaks, however weak
        detection = replace(detection, max_sources=options.sources, max_db=math.inf, mad_z=None, prominence_db=0.0)
    grid = setup.search_grid() if chosen is None else chosen.grid(setup)
    what = Covariances(matrices, setup, grid, detection=detection)
    if chosen is not None:
        what = replace(what, loading=chosen.map.loading)
    found = detect_in(what, options.results.picture_scene, progress)
    report(found, what, options.results, picture, options.file, progress)
    return 0


def _report(
    found: Localisation, localizer: Localizer, options: Options, picture: Path | None, progress: Progress
) -> None:
    """The table first, so that it is there whatever becomes of the files; then notes, results and picture."""
    setup = found.setup or localizer.setup
    print(source_table(found.sources))
    notes = [*found.notes, edge_note(found.sources, setup.region)]
    for note in notes:
        if note is not None:
            progress.say(note)
    if options.common.verbose:
        progress.say(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in found.seconds.items()))
    if options.results.output is not None:
        write_results(options.results.output, found.sources, setup)
        print(f"results: {options.results.output}")
    if picture is None:
        return
    from risfast.covariance import covariance_from_factor, effective_covariance  # noqa: PLC0415
    from risfast.localize import pipeline  # noqa: PLC0415

    scene = options.results.picture_scene
    matrix = effective_covariance(covariance_from_factor(found.factor[scene : scene + 1]))
    power, grid = pipeline.spectrum(matrix, setup, localizer.options)
    draw(picture, f"{options.file.name}, scene {scene}", power.power[0], grid, found.sources[scene])
    print(f"picture: {picture}")
