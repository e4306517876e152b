"""The one path from a measurement to sources, as steps with names, under one set of options.

    measurement -> estimate -> effective -> spectrum -> candidates -> polish -> decide

The localizer, the fit of its confidence, validation, tuning, evaluation and the demo call these steps, each with the
options that it was given, and none has a path of its own. Ground truth never enters.

Which number decides that a candidate is a source (defaults; the last that applies has the last word):

=================================== ===== =====================================================================
option of :class:`PipelineOptions`  value decides
=================================== ===== =====================================================================
candidates.own["threshold"]         0.3   the backbone's own detections, without a polish (``models/decode.py``)
candidates.least_count              0.15  the same, for a polish to choose from
candidates.detection                3 dB  Capon peaks, without a polish (``detect.py``)
candidates.polished_detection       12 dB the same, for a polish to choose from
polish.penalty                      2.0   sources after the polish, where the model has no calibration: classical fits
decision.least_confidence           0.3   sources after the polish, where it has one, as the shipped model
=================================== ===== =====================================================================
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from risfast.covariance import covariance_from_factor, effective_covariance
from risfast.detect import DetectionOptions, RefinedPeaks, as_lists, choose_peaks, refined_peaks
from risfast.geometry import SearchGrid
from risfast.localize.confidence import HitModel, hit_features
from risfast.localize.count import COUNTS, CountModel, CountModels, polished_evidence
from risfast.localize.polish import Polished, PolishOptions, polish_sources
from risfast.localize.refiner import Refiner, estimate_maps, refined_sources
from risfast.localize.source_sets import Atoms, atoms_of
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.ops import Spectrum, mvdr_spectrum
from risfast.ops.wideband import band_spectrum
from risfast.setup import MOST_POINTS, POINTS_PER_BEAM, Setup
from risfast.sources import Sources

if TYPE_CHECKING:
    from risfast.simulate.scenes import Scenes

CANDIDATE_SOURCES = ("own", "capon", "refined")


@dataclass(frozen=True)
class MapOptions:
    """Grid, loading and covariance of the Capon map.

    Parameters
    ----------
    points_per_beam : float
        Grid points in one beam width, wavelength / extent of the array.
    most_points : int
        Most points of the whole grid; angles are coarser where it would have more.
    loading : float
        Diagonal loading, relative to trace(R)/N.
    blend : float in [0, 1]
        Weight of the least-squares sample covariance in the covariance of the map, both of trace N.
    shrinkage : bool
        Whether the covariance shrinks toward the identity as the estimated SNR says.

    Raises
    ------
    ValueError
        A value is out of its range.
    """

    points_per_beam: float = POINTS_PER_BEAM
    most_points: int = MOST_POINTS
    loading: float = 1e-2
    blend: float = 0.0
    shrinkage: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        if not (0 < self.points_per_beam < math.inf and self.most_points >= 1):
            raise ValueError("points_per_beam must be positive and most_points at least 1")
        if not 0 <= self.loading < math.inf:
            raise ValueError(f"loading must be finite and at least 0, got {self.loading!r}")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend must lie in [0, 1], got {self.blend!r}")


def _capon_detection() -> DetectionOptions:
    return DetectionOptions(max_db=3.0, mad_z=12.0, separation_rad=math.radians(5))


@dataclass(frozen=True)
class CandidateOptions:
    """Where sources come from, before the polish or as the answer.

    Parameters
    ----------
    source : {"own", "capon", "refined"}
        The backbone's own detections, the peaks of the Capon map of its covariance, or those of the map that the
        model's refiner redraws; a scene whose redrawn map cannot be believed falls back to the Capon peaks.
    own : dict
        Options of the backbone's own detection, where it is the answer.
    polished : dict
        The same where a polish follows.
    least_count : float in (0, 1]
        Least expected number of sources within the tolerance of a candidate for the polish, of a backbone that maps
        them: lower than where the backbone has the last word, for the polish takes away what does not hold.
    detection : DetectionOptions
        Of the Capon peaks, where they are the answer. The default is what studies of detection on covariances of the
        default backbone found, on two sets of scenes; it drops sources 3 dB below the strongest peak of their scene.
    polished_detection : DetectionOptions
        The same where a polish follows.

    Raises
    ------
    ValueError
        An unknown source, or a count outside (0, 1].
    """

    source: str = "own"
    own: dict[str, Any] = field(default_factory=dict)
    polished: dict[str, Any] = field(default_factory=dict)
    least_count: float = 0.15
    detection: DetectionOptions = field(default_factory=_capon_detection)
    polished_detection: DetectionOptions = field(default_factory=DetectionOptions)

    def __post_init__(self) -> None:
        """Check every value."""
        if self.source not in CANDIDATE_SOURCES:
            raise ValueError(f"candidates.source must be one of {', '.join(CANDIDATE_SOURCES)}; got {self.source!r}")
        if not 0 < self.least_count <= 1:
            raise ValueError(f"least_count must lie in (0, 1], got {self.least_count!r}")


@dataclass(frozen=True)
class DecisionOptions:
    """Which polished sources are reported.

    Parameters
    ----------
    least_confidence : float in [0, 1)
        Least probability of a hit, where the model comes with a calibration of it;
        without one, or at 0, the penalty of the polish decides alone.
    max_sources : int or None
        Report at most so many, the strongest.

    Raises
    ------
    ValueError
        A value is out of its range.
    """

    least_confidence: float = 0.3
    max_sources: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if not 0 <= self.least_confidence < 1:
            raise ValueError(f"least_confidence must lie in [0, 1), got {self.least_confidence!r}")
        if self.max_sources is not None and self.max_sources < 1:
            raise ValueError(f"max_sources must be at least 1 or None, got {self.max_sources!r}")


@dataclass(frozen=True)
class PipelineOptions:
    """Everything that the path from a measurement to sources can be told.

    They are stored with a model, written by tuning and read by ``Localizer.load(..., options=)`` and
    ``risfast locate --options``.

    Parameters
    ----------
    map : MapOptions
    candidates : CandidateOptions
    polish : PolishOptions
    decision : DecisionOptions
    polished : bool
        Whether the likelihood polish follows the candidates, or they are the answer.
    noise_known : bool
        Whether simulated scenes tell their noise power; it is estimated otherwise.
    scenes_at_once : int
        Scenes that go through together; memory follows it.
    channels : {"check", "all"}
        Of an array that is sampled directly: whether channels that the data show to be dead, far too loud, exchanged
        or not phase-locked are left out, and said in the notes, or all are taken, as they are where the covariance of
        their noise is told.
    count : {"off", "equal", "spread"}
        Whether the probability of each number of sources is computed, after the polish: for sources of equal powers, or
        of powers whose spread the scene tells. Of one band; without the polish there is none.

    Raises
    ------
    ValueError
        ``scenes_at_once`` is below 1, or ``channels`` or ``count`` is none of these.
    """

    map: MapOptions = field(default_factory=MapOptions)
    candidates: CandidateOptions = field(default_factory=CandidateOptions)
    polish: PolishOptions = field(default_factory=PolishOptions)
    decision: DecisionOptions = field(default_factory=DecisionOptions)
    polished: bool = True
    noise_known: bool = False
    scenes_at_once: int = 16
    channels: str = "check"
    count: str = "off"

    def __post_init__(self) -> None:
        """Check every value."""
        if self.scenes_at_once < 1:
            raise ValueError(f"scenes_at_once must be at least 1, got {self.scenes_at_once}")
        if self.channels not in ("check", "all"):
            raise ValueError(f"channels must be 'check' or 'all', got {self.channels!r}")
        if self.count not in COUNTS:
            raise ValueError(f"count must be one of {', '.join(COUNTS)}; got {self.count!r}")

    @property
    def capon_detection(self) -> DetectionOptions:
        """Of Capon peaks that are the answer, or that a polish follows."""
        return self.candidates.polished_detection if self.polished else self.candidates.detection

    def grid(self, setup: Setup) -> SearchGrid:
        """The grid of the map.

        Parameters
        ----------
        setup : Setup

        Returns
        -------
        SearchGrid
            Over the region of the setup.
        """
        return setup.search_grid(self.map.points_per_beam, self.map.most_points)


@dataclass(frozen=True, eq=False)
class Parts:
    """What a model brings to the path.

    Parameters
    ----------
    backbone : nn.Module
        From :func:`risfast.models.build_backbone`.
    setup : Setup
        That it is for.
    calibration : HitModel, optional
        Turns what the polish ends with into probabilities of a hit.
    refiner : Refiner, optional
        Redraws the backbone's maps, for candidates from "refined".
    counts : mapping of str to CountModel
        Turn evidence into the probability of each number of sources, by the option ``count``.
    """

    backbone: nn.Module
    setup: Setup
    calibration: HitModel | None = None
    refiner: Refiner | None = None
    counts: CountModels = field(default_factory=dict)

    def count_model(self, options: PipelineOptions) -> CountModel:
        """What turns evidence into the probability of each number of sources.

        Parameters
        ----------
        options : PipelineOptions

        Returns
        -------
        CountModel
            Of the model for the option ``count``, or that for any system.
        """
        return self.counts.get(options.count, CountModel())

    @cached_property
    def atoms(self) -> Atoms:
        """Where the polish looks for new sources: the backbone's atoms, or the setup's."""
        atoms = getattr(self.backbone, "atoms", None)
        if isinstance(atoms, Atoms):
            return atoms
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))
        return atoms_of(self.setup).to(device)


class Localisation(NamedTuple):
    """Everything that a localisation found out.

    Attributes
    ----------
    sources : list of B Sources
    position_covariance : list of B float64 tensors, shape (K, 3, 3), or None
        Cramér-Rao bound of each source's (azimuth, elevation, range) at the estimate; infinite where the data do not
        determine a coordinate; None without polish.
    noise_power : real tensor, shape (B,), or None
        Of several bands (B, F).
    factor : complex tensor, shape (B, N, K_f)
        Of the backbone's covariance; of several bands (B, F, N, K_f).
    seconds : dict of str to float
        Wall time of each stage, of all scenes together.
    refused : tuple of B tuples of str
        Why a scene's refined map was not believed; its candidates are those of the Capon map then.
    notes : tuple of str
        What was done to the data to fit the model: a change of units, an order of elements; and what an array that is
        sampled directly cannot tell apart.
    setup : Setup or None
        Of the answer: array and region of the data.
    mismatch : list of B float64 tensors, shape (K,), or None
        Of an array that is sampled directly: the part of each source's power that is off its steering vector, in scenes
        whose data say that gains, positions or the room are not quite as the model has them; 0 where it fits.
    copies : list of B Sources, or None
        In such scenes, places that the model would need further point sources at, with the signals of those that are
        reported: reflections, where they are strong.
    count_probability : float64 tensor, shape (B, K_max + 1), or None
        Of 0, 1, ... sources, where the options ask for it; NaN in scenes whose data say that the array is not quite as
        the model has it. The sources that are reported are those that are probably hits, and may be fewer than are
        probably there.
    """

    sources: list[Sources]
    position_covariance: list[Tensor] | None
    noise_power: Tensor | None
    factor: Tensor
    seconds: dict[str, float]
    refused: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    setup: Setup | None = None
    mismatch: list[Tensor] | None = None
    copies: list[Sources] | None = None
    count_probability: Tensor | None = None


def measure(scenes: Scenes, options: PipelineOptions | None = None) -> Measurement:
    """What an estimator is given of simulated scenes: the noise power only where the options say so."""
    return Measurement.of(scenes, noise_known=options is not None and options.noise_known)


def estimate(parts: Parts, measurement: Measurement) -> CovarianceEstimate:
    """The backbone's estimate of B scenes."""
    found: CovarianceEstimate = parts.backbone(measurement)
    return found


def effective(found: CovarianceEstimate, measurement: Measurement | None, options: PipelineOptions) -> Tensor:
    """The covariance of the map, complex (B, N, N), of trace N."""
    if found.factor.ndim == 4:
        raise ValueError("a Capon map of one band is asked for, and the estimate is of several: candidates from 'own'")
    # ``measurement`` is needed where the options blend its sample covariance in, or shrink by its SNR.
    matrix, sample, snr_db = covariance_from_factor(found.factor), None, None
    if measurement is not None and (options.map.blend or options.map.shrinkage):
        noise = found.noise_power if measurement.noise_power is None else measurement.noise_power
        if options.map.blend:
            sample = replace(measurement, noise_power=noise).covariance.to(matrix.dtype)
        if options.map.shrinkage and noise is not None:
            snr_db = 10 * (measurement.received / noise.double() - 1).clamp_min(1e-6).log10()
    elif options.map.blend or options.map.shrinkage:
        raise ValueError("map.blend and map.shrinkage need the measurement that the estimate is of")
    return effective_covariance(matrix, sample=sample, beta=options.map.blend, snr_db=snr_db)


_COARSER = 8  # at the most, in points


def spectrum(covariance: Tensor, setup: Setup, options: PipelineOptions) -> tuple[Spectrum, SearchGrid]:
    """The Capon map of effective covariances, and its grid; of several bands (B, F, N, N), their geometric mean."""
    grid = options.grid(setup)
    if setup.n_bands > 1:  # all bands together cost a few maps of one, on a coarser grid
        most = max(options.map.most_points // min(setup.n_bands, _COARSER), 1)
        grid = setup.search_grid(options.map.points_per_beam, most)
        return band_spectrum(covariance, setup.replace(gains=None), grid, loading=options.map.loading), grid
    power = mvdr_spectrum(covariance, setup.array, grid, loading=options.map.loading, wavefront=setup.wavefront)
    assert isinstance(power, Spectrum)
    return power, grid


def map_peaks(covariance: Tensor, setup: Setup, options: PipelineOptions) -> RefinedPeaks:
    """All refined peaks of the Capon map of effective covariances, before thresholds; of B scenes."""
    grid, detection = options.grid(setup), options.capon_detection
    return refined_peaks(covariance, setup, grid, factored=False, loading=options.map.loading, options=detection)


def chosen_peaks(peaks: RefinedPeaks, setup: Setup, options: PipelineOptions) -> list[Sources]:
    """Those of :func:`map_peaks` that pass the thresholds; a list of B scenes."""
    return as_lists(choose_peaks(peaks, setup, options.capon_detection), setup)


def capon_peaks(covariance: Tensor, setup: Setup, options: PipelineOptions) -> list[Sources]:
    """Detections on the Capon map of effective covariances; a list of B scenes."""
    return chosen_peaks(map_peaks(covariance, setup, options), setup, options)


def candidates(
    parts: Parts,
    measurement: Measurement,
    found: CovarianceEstimate,
    options: PipelineOptions,
    peaks: RefinedPeaks | None = None,
) -> tuple[list[Sources], tuple[tuple[str, ...], ...]]:
    """Where the polish starts, or what is reported without one; and why refined maps were not believed."""
    # ``peaks`` are those of :func:`map_peaks`, where they are cached from options that differ in thresholds alone.
    chosen = options.candidates
    refused: tuple[tuple[str, ...], ...] = ()
    if chosen.source == "own":
        how, detect = chosen.own, parts.backbone.sources  # every backbone has it
        if options.polished:
            how = {"threshold": chosen.least_count} if found.sources is not None else {}
            how, detect = {**how, **chosen.polished}, getattr(parts.backbone, "candidates", detect)
        sources = list(detect(found, **how))  # type: ignore[operator]
    elif chosen.source == "capon":
        if peaks is None:
            peaks = map_peaks(effective(found, measurement, options), parts.setup, options)
        sources = chosen_peaks(peaks, parts.setup, options)
    else:
        sources, refused = _refined(parts, measurement, found, options)
    if options.polished:
        return sources, refused
    return [_as_answer(s, parts.setup) for s in sources], refused


def _as_answer(sources: Sources, setup: Setup) -> Sources:
    """Candidates that no polish follows: what planar waves say nothing of, and what lies on the edge."""
    if setup.wavefront == "planar":
        sources = sources.replace(range=torch.full_like(sources.range, math.nan))
    return sources.replace(at_edge=setup.region.at_edge(sources.position).to(sources.azimuth.device))


def _refined(
    parts: Parts, measurement: Measurement, found: CovarianceEstimate, options: PipelineOptions
) -> tuple[list[Sources], tuple[tuple[str, ...], ...]]:
    refiner = parts.refiner
    if refiner is None:
        raise ValueError(
            "candidates.source is 'refined', and this model has no refiner whose own test says that it helps; train "
            "one with `risfast refiner`, or take 'own' or 'capon'"
        )
    given = estimate_maps(found, parts.backbone, parts.setup, refiner.grid, refiner.reading)
    sources, verdict = refined_sources(refiner, given, found.factor, parts.setup)
    refused = (~verdict.ok).nonzero()[:, 0].cpu()
    if len(refused):
        some = replace(found, factor=found.factor[refused], noise_power=_some(found.noise_power, refused))
        matrix = effective(some, measurement[refused], options)
        for scene, peaks in zip(refused.tolist(), capon_peaks(matrix, parts.setup, options), strict=True):
            sources[scene] = peaks
        first = int(refused[0])
        warnings.warn(
            f"the refined maps of {len(refused)} of {len(sources)} scenes cannot be believed, and the Capon map was "
            f"used for them (scene {first}: {'; '.join(verdict.reasons[first])})",
            stacklevel=4,
        )
    return sources, verdict.reasons


def _some(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index]


def polish(
    parts: Parts,
    measurement: Measurement,
    starts: list[Sources],
    found: CovarianceEstimate,
    options: PipelineOptions,
) -> Polished:
    """The maximum of the penalised likelihood from the candidates on."""
    return polish_sources(measurement, starts, parts.atoms, options.polish, noise_power=found.noise_power)


def decide(
    parts: Parts,
    measurement: Measurement,
    polished: Polished,
    found: CovarianceEstimate,
    options: PipelineOptions,
    n_sources: Tensor | None = None,
) -> Polished:
    """What is reported of the polished sources, with calibrated probabilities where the model has them."""
    # ``n_sources`` [B] is how many there are, where that is known: as many of the most probable, and where the polish
    # found fewer, more sources of the likelihood without a penalty.
    least = 0.0 if n_sources is not None else options.decision.least_confidence
    decided = _calibrated(parts, measurement, polished, found, least)
    most = options.decision.max_sources
    if n_sources is None:
        return decided if most is None else _strongest(decided, [most] * len(decided.sources))
    counts = n_sources.tolist()
    decided = _strongest(decided, counts, by_confidence=True)
    for count in sorted(set(counts)):
        lacking = [i for i, s in enumerate(decided.sources) if counts[i] == count and len(s) < count]
        if not lacking:
            continue
        index = torch.tensor(lacking)
        how = replace(options.polish, births=count, max_sources=count, penalty=0.0)
        starts = [decided.sources[i] for i in lacking]
        part, few = measurement[index], _scenes_of(found, index)
        grown = polish_sources(part, starts, parts.atoms, how, noise_power=few.noise_power)
        grown = _calibrated(parts, part, grown, few, 0.0)
        decided = _put(decided, lacking, grown)
    return decided


def count(parts: Parts, measurement: Measurement, polished: Polished, options: PipelineOptions) -> Tensor:
    """How probable each number of sources is (B, K_max + 1), from what the polish ended with, before any decision."""
    evidence = polished_evidence(measurement, polished, parts.atoms, options.polish, options.count)
    return parts.count_model(options).probability(evidence)


def _calibrated(
    parts: Parts, measurement: Measurement, polished: Polished, found: CovarianceEstimate, least: float
) -> Polished:
    if parts.calibration is None or found.sources is None:
        return polished
    cells = parts.backbone.range_cells
    features = hit_features(polished, found.sources, cells, parts.setup, measurement.n_snapshots)  # type: ignore[arg-type]
    return parts.calibration.decide(polished, features, least)


def _scenes_of(found: CovarianceEstimate, index: Tensor) -> CovarianceEstimate:
    """The estimate of some of its scenes."""
    maps = found.sources
    return CovarianceEstimate(
        found.factor[index],
        _some(found.power, index),
        _some(found.noise_power, index),
        None if maps is None else type(maps)(maps.log_intensity[index], maps.offset[index]),
    )


def _strongest(polished: Polished, counts: list[int], *, by_confidence: bool = False) -> Polished:
    """At most so many sources of each scene, strongest first."""
    chosen = []
    for sources, count in zip(polished.sources, counts, strict=True):
        order = torch.arange(len(sources))
        if by_confidence:
            order = sources.confidence.argsort(descending=True, stable=True)
        chosen.append(order[:count].sort().values)
    return polished.select(chosen)


def _put(polished: Polished, scenes: list[int], part: Polished) -> Polished:
    """The same with some of the scenes replaced."""
    fields: dict[str, Any] = {
        name: list(getattr(polished, name)) for name in ("sources", "covariance", "gain", "range_mass")
    }
    for name, values in fields.items():
        for scene, value in zip(scenes, getattr(part, name), strict=True):
            values[scene] = value
    for name in ("mismatch", "copies"):
        if getattr(polished, name) is not None and getattr(part, name) is not None:
            fields[name] = list(getattr(polished, name))
            for scene, one in zip(scenes, getattr(part, name), strict=True):
                fields[name][scene] = one
    noise, value = polished.noise_power.clone(), polished.log_likelihood.clone()
    noise[scenes], value[scenes] = part.noise_power, part.log_likelihood
    return polished._replace(noise_power=noise, log_likelihood=value, **fields)


@torch.no_grad()
def run(
    parts: Parts,
    measurement: Measurement,
    options: PipelineOptions,
    n_sources: Tensor | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Localisation:
    """All steps, a few scenes at a time.

    Parameters
    ----------
    parts : Parts
    measurement : Measurement
        Of B scenes; its noise power is used where it has one.
    options : PipelineOptions
    n_sources : int64 tensor, shape (B,), optional
        K of each scene where it is known.
    report : callable, optional
        Told how many of how many scenes are done.

    Returns
    -------
    Localisation

    Raises
    ------
    ValueError
        The number of sources is to be counted, and there are several bands.
    """
    if options.count != "off" and measurement.bands > 1:
        raise ValueError(f"the number of sources is counted in one band, and the measurement is of {measurement.bands}")
    results = []
    total = len(measurement)
    for start in range(0, max(total, 1), options.scenes_at_once):
        part = slice(start, start + options.scenes_at_once)
        known = None if n_sources is None else n_sources[part]
        results.append(_some_scenes(parts, measurement[part], options, known))
        if report is not None:
            report(min(start + options.scenes_at_once, total), total)
    seconds = {name: sum(result.seconds[name] for result in results) for name in results[0].seconds}
    covariances = [c for result in results for c in result.position_covariance or ()]
    noise = [result.noise_power for result in results if result.noise_power is not None]
    mismatch = None if results[0].mismatch is None else [m for result in results for m in result.mismatch or ()]
    sources = [s for result in results for s in result.sources]
    kept = [parts.setup.region.holds(found.position) for found in sources]
    left_out = sum(len(inside) - int(inside.sum()) for inside in kept)
    if left_out:
        sources = [found[inside] for found, inside in zip(sources, kept, strict=True)]
        covariances = [c[inside.to(c.device)] for c, inside in zip(covariances, kept, strict=False)]
        mismatch = mismatch and [m[inside.to(m.device)] for m, inside in zip(mismatch, kept, strict=True)]
    counted = options.count != "off" and options.polished
    outside = (f"sources outside of the box were left out: {left_out}",) if left_out else ()
    return Localisation(
        sources,
        covariances if options.polished else None,
        torch.cat(noise) if noise else None,
        torch.cat([result.factor for result in results]),
        seconds,
        tuple(why for result in results for why in result.refused),
        outside,
        parts.setup,
        mismatch,
        [c for result in results for c in result.copies or ()] if results[0].copies is not None else None,
        torch.cat([r.count_probability for r in results if r.count_probability is not None]) if counted else None,
    )


def mismatch_notes(mismatch: list[Tensor]) -> tuple[str, ...]:
    """What is said where the data do not quite fit the array."""
    bent = [float(m.max()) for m in mismatch if len(m) and bool((m > 0).any())]
    if not bent:
        return ()
    of = "" if len(mismatch) == 1 else f"in {len(bent)} of {len(mismatch)} scenes "
    return (
        f"{of}the sources are not quite point sources before this array: gains, positions or the room are off, by up "
        f"to {100 * max(bent) ** 0.5:.2g} % of a source's amplitude; weak copies of their signals are not counted as "
        "sources, and positions are as uncertain as that makes them",
    )


def _some_scenes(
    parts: Parts, measurement: Measurement, options: PipelineOptions, n_sources: Tensor | None
) -> Localisation:
    began = time.perf_counter()
    found = estimate(parts, measurement)
    spent = time.perf_counter() - began
    rest = after_estimate(parts, measurement, found, options, n_sources)
    return rest._replace(seconds={"backbone": spent, **rest.seconds})


def after_estimate(
    parts: Parts,
    measurement: Measurement,
    found: CovarianceEstimate,
    options: PipelineOptions,
    n_sources: Tensor | None = None,
    peaks: RefinedPeaks | None = None,
) -> Localisation:
    """Candidates, polish and decision of scenes whose estimate is there; ``peaks`` as in :func:`candidates`."""
    times = [time.perf_counter()]
    starts, refused = candidates(parts, measurement, found, options, peaks)
    times.append(time.perf_counter())
    seconds = {"detection": times[1] - times[0]}
    if not options.polished:
        most = [options.decision.max_sources] * len(starts) if n_sources is None else n_sources.tolist()
        starts = [s[:count] for s, count in zip(starts, most, strict=True)]
        return Localisation(starts, None, found.noise_power, found.factor, seconds, refused)
    polished = polish(parts, measurement, starts, found, options)
    decided = decide(parts, measurement, polished, found, options, n_sources)
    times.append(time.perf_counter())
    seconds["polish"] = times[2] - times[1]
    probability = None
    if options.count != "off":
        probability = count(parts, measurement, polished, options)
        seconds["count"] = time.perf_counter() - times[2]
    polished = decided
    return Localisation(
        polished.sources,
        polished.covariance,
        polished.noise_power,
        found.factor,
        seconds,
        refused,
        mismatch=polished.mismatch,
        copies=polished.copies,
        count_probability=probability,
    )
