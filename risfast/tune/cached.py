"""Detection tuned without training: the backbone estimates every covariance once, trials only read them out."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from risfast.confidence import HitModel
from risfast.covariance import covariance_from_factor, effective_covariance, ls_covariance
from risfast.data.scenes import Scenes
from risfast.detect import DetectionOptions, Sources, detect_fixed
from risfast.durable import replace_file
from risfast.evaluate.metrics import Scores, score_scenes
from risfast.geometry import PlanarArray, SearchGrid
from risfast.localize import Localizer
from risfast.model_files import Build, load_model, read_card
from risfast.models import build_backbone
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.models.decode import MapDetection
from risfast.models.unrolled import UnrolledBackbone
from risfast.ops import mvdr_spectrum, nms_3d
from risfast.setup import array_from_json
from risfast.tune.errors import StudyError
from risfast.tune.objectives import farthest_m, final_value, judging_scenes
from risfast.tune.options import HpoConfig
from risfast.tune.space import SPACE, CovarianceOptions, Float, Int, model_folder, read_out_options
from risfast.tune.worker import Result

__all__ = ["CaponPeaks", "DetectionObjective", "capon_peaks", "chosen_sources"]

_MAD_TO_SIGMA = 1.4826  # of a Gaussian, as in risfast.detect
_AT_ONCE = 16
# Lets every peak through: below any real threshold, and closer than any two refined peaks that differ.
_EVERYTHING = replace(
    DetectionOptions(), max_db=1e6, mad_z=None, prominence_db=0.0, separation_rad=1e-9, separation_m=1e-9
)


@dataclass(frozen=True)
class CaponPeaks:
    """Refined peaks of the Capon spectra of S scenes, before any threshold, and what thresholds compare with.

    Attributes
    ----------
    position : float64 tensor, shape (S, k, 3)
        Azimuth and elevation in radians, range in metres; strongest first.
    power : float64 tensor, shape (S, k)
        Linear; 0 in slots without a peak.
    median_db, mad_db : float64 tensors, shape (S,)
        Median of the map in dB, and the median absolute deviation from it.
    """

    position: Tensor
    power: Tensor
    median_db: Tensor
    mad_db: Tensor


def capon_peaks(
    covariance: Tensor, array: PlanarArray, grid: SearchGrid, loading: float, options: DetectionOptions
) -> CaponPeaks:
    """All refined peaks of a batch of covariances.

    Parameters
    ----------
    covariance : complex tensor, shape (S, N, N)
    array, grid, loading
        As :func:`risfast.detect.detect_sources` takes them.
    options : DetectionOptions
        Candidates, window and refinement count; thresholds and separations do not.

    Returns
    -------
    CaponPeaks
    """
    parts = []
    for part in covariance.split(_AT_ONCE):
        everything = replace(
            _EVERYTHING, candidates=options.candidates, window=options.window, refine_points=options.refine_points
        )
        found = detect_fixed(part, array, grid, factored=False, loading=loading, options=everything)
        level = mvdr_spectrum(part, array, grid, loading=loading).power.flatten(1).double().log10() * 10
        median = level.median(1).values
        mad = (level - median[:, None]).abs().median(1).values
        power = torch.where(found.keep, found.power, torch.zeros_like(found.power))
        parts.append((found.position, power, median, mad))
    return CaponPeaks(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def chosen_sources(peaks: CaponPeaks, options: DetectionOptions, *, wrap_azimuth: bool = False) -> list[Sources]:
    """What :func:`risfast.detect.detect_sources` reports with these thresholds and separations.

    Parameters
    ----------
    peaks : CaponPeaks
    options : DetectionOptions
        Of the same candidates, window and refinement as the peaks.
    wrap_azimuth : bool
        Whether the grid goes round.

    Returns
    -------
    list of S Sources
        Strongest first, as :func:`risfast.detect.detect_sources` gives them.
    """
    level = peaks.power.clamp_min(torch.finfo(torch.float64).tiny).log10() * 10
    threshold = torch.maximum(level.amax(1) - options.max_db, peaks.median_db + options.prominence_db)
    if options.mad_z is not None:
        threshold = torch.maximum(threshold, peaks.median_db + options.mad_z * _MAD_TO_SIGMA * peaks.mad_db)
    score = torch.where((peaks.power > 0) & (level >= threshold[:, None]), level, torch.full_like(level, -math.inf))
    separation = (options.separation_rad, options.separation_rad, options.separation_m)
    limit = peaks.power.shape[1] if options.max_sources is None else min(options.max_sources, peaks.power.shape[1])
    kept = nms_3d(peaks.position, score, separation=separation, k=limit, wrap_azimuth=wrap_azimuth)
    background = 10 ** (peaks.median_db / 10)
    found = []
    for scene, count in enumerate(kept.count.tolist()):
        index = kept.index[scene, :count].long()
        azimuth, elevation, r = peaks.position[scene, index].unbind(-1)
        power = peaks.power[scene, index]
        found.append(Sources(azimuth, elevation, r, power, (1 - background[scene] / power).clamp(0, 1)))
    return found


class _Memory:
    """Answers a backbone has given, by the memory that holds their measurement; the scenes outlive it."""

    def __init__(self, module: nn.Module) -> None:
        self._forward = module.forward
        self._known: dict[tuple[int, int], CovarianceEstimate] = {}

    def __call__(self, measurement: Measurement) -> CovarianceEstimate:
        key = measurement.y.data_ptr(), len(measurement)
        if key not in self._known:
            self._known[key] = self._forward(measurement)
        return self._known[key]


class DetectionObjective:
    """Read the estimates of a trained backbone out with the choice applied, and judge the sources.

    Parameters
    ----------
    config : HpoConfig
    folder : Path
        Where Capon peaks are kept, for all workers on this machine.
    build : callable, optional
        Makes the backbone; :func:`risfast.models.build_backbone` by default.

    Raises
    ------
    StudyError
        The model is of another array than ``config.base.system``.
    """

    def __init__(self, config: HpoConfig, folder: Path, build: Build | None = None) -> None:
        self._config, self._folder = config, folder
        model = model_folder(config)
        array = config.base.system.planar_array()
        own = array_from_json(read_card(model)["array"])
        if not torch.equal(own.positions_m, array.positions_m) or own.wavelength_m != array.wavelength_m:
            raise StudyError(f"{model} was trained for another array; give its own with --base.system.n-h and the like")
        self._module, self._card = load_model(model, build or build_backbone)
        _check_read_out(self._module, config)
        self._hits = HitModel.load(model)
        memory = _Memory(self._module)
        self._module.forward = memory  # the localizer then asks the memory
        self._array, self._scenes = array, judging_scenes(config)
        self._spent = 0.0  # seconds of detection in this trial
        self._everything: dict[str, list[Sources]] = {}
        self._peaks: dict[tuple[str, float, float], CaponPeaks] = {}

    @torch.no_grad()
    def _estimate(self, scenes: Scenes) -> tuple[Measurement, Tensor]:
        """The measurement of a set, and the factors of its covariances, which are kept."""
        measurement = Measurement.of(scenes)
        parts = [self._module(measurement[i : i + _AT_ONCE]) for i in range(0, len(scenes), _AT_ONCE)]
        return measurement, torch.cat([part.factor for part in parts])

    def __call__(
        self, choice: Mapping[str, Any], seed: int, folder: Path, report: Callable[[int, float], None]
    ) -> Result:
        """Judge one choice; nothing in it is random, and it needs no folder."""
        self._spent = 0.0
        scores = self.scores(choice)
        system = next(iter(self._scenes.values())).config
        result = final_value(scores, self._config.score, farthest_m(system))
        if not self._config.score.polish:  # read from what was kept: its time says nothing about production
            return result
        count = sum(len(found) for found in scores.values())
        return Result(result.value, {**result.attributes, "seconds_per_scene": self._spent / count})

    def scores(self, choice: Mapping[str, Any]) -> dict[str, Scores]:
        """What becomes of the sources of every set with a choice applied.

        Parameters
        ----------
        choice : mapping of str to value
            By the names of the space; what it leaves out keeps its default.

        Returns
        -------
        dict of str to Scores
            One for each L.
        """
        found = {}
        for name, scenes in self._scenes.items():
            self._estimate(scenes)  # once, and not timed
            began = time.monotonic()
            sources = self.sources(name, scenes, choice)
            self._spent += time.monotonic() - began
            found[name] = score_scenes(sources, scenes)
        return found

    @torch.no_grad()
    def sources(self, name: str, scenes: Scenes, choice: Mapping[str, Any]) -> list[Sources]:
        """The sources of a set with a choice applied.

        Parameters
        ----------
        name : str
            Of the set, by which its estimates are kept.
        scenes : Scenes
            Of the set, S of them.
        choice : mapping of str to value

        Returns
        -------
        list of S Sources
        """
        options, covariance = read_out_options(self._config, choice)
        polish = self._config.score.polish
        if options.read_out == "own" and not polish:
            return [_strong(found, options.own) for found in self._own(name, scenes)]
        if options.read_out == "own":
            localizer = Localizer(self._module, self._array, replace(options, scenes_at_once=_AT_ONCE), self._hits)
            y, codes, channel = scenes.y, scenes.codes, scenes.channel
            return localizer.localize(y, codes, channel, noise_power=scenes.noise_power)
        return chosen_sources(self.peaks(name, scenes, covariance), options.detection)

    def _own(self, name: str, scenes: Scenes) -> list[Sources]:
        """Everything that the backbone's own detection reports anywhere in the space, kept."""
        if name not in self._everything:
            threshold, most = SPACE[MapDetection]["threshold"], SPACE[MapDetection]["max_sources"]
            assert isinstance(threshold, Float)
            assert isinstance(most, Int)
            measurement, found = Measurement.of(scenes), []
            for i in range(0, len(scenes), _AT_ONCE):
                estimate = self._module(measurement[i : i + _AT_ONCE])
                found += self._module.sources(  # type: ignore[operator]  # every backbone has it
                    estimate, threshold=threshold.low, max_sources=most.high
                )
            self._everything[name] = found
        return self._everything[name]

    def peaks(self, name: str, scenes: Scenes, options: CovarianceOptions) -> CaponPeaks:
        """Capon peaks of a set, from memory, from the folder, or made.

        Parameters
        ----------
        name : str
            Of the set.
        scenes : Scenes
        options : CovarianceOptions

        Returns
        -------
        CaponPeaks
        """
        key = (name, options.loading, options.beta)
        if key not in self._peaks:
            path = self._folder / f"peaks-{self._digest(name, options)}.safetensors"
            found = _read_peaks(path)
            if found is None:
                found = self._make_peaks(scenes, options)
                self._folder.mkdir(parents=True, exist_ok=True)
                replace_file(path, save({field: value.contiguous() for field, value in vars(found).items()}))
            self._peaks[key] = found
        return self._peaks[key]

    def _make_peaks(self, scenes: Scenes, options: CovarianceOptions) -> CaponPeaks:
        measurement, factor = self._estimate(scenes)
        sample = None
        if options.beta > 0:
            sample = ls_covariance(
                measurement.y, measurement.codes, measurement.channel, noise_power=measurement.noise_power
            )
        matrix = effective_covariance(covariance_from_factor(factor), sample=sample, beta=options.beta)
        return capon_peaks(matrix, self._array, SearchGrid.reference(), options.loading, DetectionOptions())

    def _digest(self, name: str, options: CovarianceOptions) -> str:
        """Of everything that the peaks depend on."""
        parts = [self._card["sha256"], name, self._config.score.seed, self._config.score.scenes, vars(options)]
        text = json.dumps([*parts, _system_text(self._config)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def _strong(found: Sources, chosen: Mapping[str, Any]) -> Sources:
    """What a stricter threshold and cap leave: sources come strongest first, and none depends on a weaker one."""
    options = MapDetection(**chosen)
    count = min(int((found.confidence >= options.threshold).sum()), options.max_sources)
    return Sources(*(getattr(found, f.name)[:count] for f in fields(Sources)))


def _check_read_out(module: nn.Module, config: HpoConfig) -> None:
    if config.read_out == "own" and not (isinstance(module, UnrolledBackbone) and module.settings.corrections):
        raise StudyError("this model has no map of sources of its own to tune; give --read-out capon")


def _system_text(config: HpoConfig) -> str:
    return repr((config.base.system, config.base.data.code_kinds))


def _read_peaks(path: Path) -> CaponPeaks | None:
    """Peaks that were kept; None where there are none, or they cannot be read and must be made again."""
    try:
        return CaponPeaks(**load(path.read_bytes()))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None
