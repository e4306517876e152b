"""The only place of the net that calls what it watches: where a call of risfast changes, it is changed here.

Each function returns arrays by "case/quantity"; `comparison.py` has a tolerance for each quantity. Numbers of several
scenes stand one after the other, and "case/count" says how many are whose. What carries a grid, a region or an option
is given it, so that another default is not another answer.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from risfast import Localizer, Region, SearchGrid, SensorArray, Setup, detect_sources, detect_sources_lowrank
from risfast.io import read
from risfast.localize import CandidateOptions, PipelineOptions
from risfast.ops import (
    analysis,
    bartlett_spectrum,
    local_maxima_3d,
    music_spectrum,
    mvdr_spectrum,
    mvdr_spectrum_lowrank,
    nms_3d,
    synthesis,
)

from . import inputs
from .inputs import Shake

Answers = dict[str, np.ndarray]
WAVEFRONTS = ("spherical", "fresnel", "planar")
METHODS = {"spherical": ("dense", "chebyshev"), "fresnel": ("dense", "chebyshev", "lag"), "planar": ("dense", "lag")}


def input_answers() -> Answers:
    """The inputs themselves: where they have changed, the other answers answer other questions."""
    scenes = {f"reference {length}": inputs.reference_scenes(length) for length in (16, 64)}
    scenes["fresnel"], scenes["direct"] = inputs.fresnel_scenes(), inputs.direct_scenes()
    answers = {
        f"{case}, {name}/inputs": _projection(getattr(given, name))
        for case, given in scenes.items()
        for name in ("y", "codes", "channel")
    }
    for wavefront in ("spherical", "fresnel"):
        R, F = inputs.covariances(wavefront)
        answers |= {f"{wavefront} R/inputs": _projection(R), f"{wavefront} F/inputs": _projection(F)}
    return answers


def localizer_answers(shake: Shake | None = None) -> Answers:
    """The localizer that comes with the package, on 64 reference scenes."""
    return _on_reference(_pretrained(), inputs.N_REFERENCE, shake)


def classical_answers(shake: Shake | None = None) -> Answers:
    """The classical localizer of the reference surface, on reference scenes."""
    localizer = Localizer.classical(_setup(inputs.SURFACE))
    return _on_reference(localizer, inputs.N_CLASSICAL, shake)


def unpolished_answers(shake: Shake | None = None) -> Answers:
    """What the localizer finds before its polish: the backbone's own detections, and peaks of its Capon spectrum."""
    answers = {}
    capon = Localizer.from_pretrained(PipelineOptions(candidates=CandidateOptions(source="capon")))
    for read_out, localizer in (("own", _pretrained()), ("capon", capon)):
        for length in (16, 64):
            scenes = inputs.reference_scenes(length, inputs.N_UNPOLISHED)
            y = inputs.shaken(scenes.y, shake)
            found = localizer.localize(y, scenes.codes, scenes.channel, polish=False)
            answers |= _sources(f"{read_out} {length}", found, capon=read_out == "capon")
    return answers


def fresnel_answers(shake: Shake | None = None) -> Answers:
    """The classical localizer under the Fresnel wavefront."""
    localizer = Localizer.classical(_setup(inputs.SURFACE, wavefront="fresnel"))
    return _localized("fresnel", localizer, inputs.fresnel_scenes(), shake)


def direct_answers(shake: Shake | None = None) -> Answers:
    """The classical localizer of an array that is sampled directly: codes of 1, the identity for a channel."""
    localizer = Localizer.classical(_setup(inputs.SMALL))
    return _localized("direct", localizer, inputs.direct_scenes(), shake)


def detection_answers(shake: Shake | None = None) -> Answers:
    """Sources of covariances and of factors on the reference grid, under both curved wavefronts."""
    array, grid = SensorArray.rectangular(**inputs.SURFACE), SearchGrid.reference()
    answers = {}
    for wavefront in ("spherical", "fresnel"):
        R, F = inputs.covariances(wavefront)
        moved = inputs.shaken(R, shake)
        found = detect_sources((moved + moved.mH) / 2, array, grid, wavefront=wavefront)
        answers |= _sources(f"{wavefront} covariances", found, capon=True)
        found = detect_sources_lowrank(inputs.shaken(F, shake), array, grid, wavefront=wavefront)
        answers |= _sources(f"{wavefront} factors", found, capon=True)
    return answers


def operator_answers() -> Answers:
    """The operators on a tiny array, by every method that can, with the winning planes and the gradients."""
    given, array = inputs.operands(), SensorArray.rectangular(**inputs.TINY)
    grid = SearchGrid(*given.axes)
    answers: Answers = {}
    for wavefront, method in ((w, m) for w in WAVEFRONTS for m in METHODS[w]):
        how = {"wavefront": wavefront, "method": method}
        spectra = {
            "capon": lambda how: mvdr_spectrum(given.R, array, grid, **how),
            "low rank": lambda how: mvdr_spectrum_lowrank(given.F, array, grid, **how),
            "bartlett": lambda how: bartlett_spectrum(given.R, array, grid, **how),
            "music": lambda how: music_spectrum(given.R, array, grid, n_sources=2, **how),
        }
        for name, spectrum in spectra.items():
            case = f"{name}, {wavefront}, {method}"
            answers[f"{case}/spectrum"] = spectrum({**how, "reduce": "none"}).numpy()
            power, plane = spectrum({**how, "reduce": "max"})
            answers[f"{case}, max/spectrum"], answers[f"{case}, max/plane"] = power.numpy(), plane.numpy()
        case = f"{wavefront}, {method}"
        answers[f"analysis, {case}/linear"] = analysis(given.Q, array, grid, **how).numpy()
        answers[f"analysis of a factor, {case}/linear"] = analysis(given.F, array, grid, **how).numpy()
        answers[f"synthesis, {case}/linear"] = synthesis(given.weights, array, grid, **how).numpy()
    for wavefront in WAVEFRONTS:
        where = (array, given.points)
        answers[f"analysis at points, {wavefront}/linear"] = analysis(given.Q, *where, wavefront=wavefront).numpy()
        summed = synthesis(given.point_weights, *where, wavefront=wavefront)
        answers[f"synthesis at points, {wavefront}/linear"] = summed.numpy()
        for name, spectrum, matrix in (("R", mvdr_spectrum, given.R), ("F", mvdr_spectrum_lowrank, given.F)):
            leaf = matrix.clone().requires_grad_()
            volume = spectrum(leaf, array, grid, wavefront=wavefront, reduce="none")
            (gradient,) = torch.autograd.grad((volume * given.weights).sum(), leaf)
            answers[f"gradient of capon by {name}, {wavefront}/linear"] = gradient.numpy()
            single = spectrum(matrix.to(torch.complex64), array, grid, wavefront=wavefront, reduce="none")
            answers[f"capon of {name} in complex64, {wavefront}/spectrum_single"] = single.numpy()
    return answers


def peak_answers() -> Answers:
    """3D maxima and suppression, with ties, in both precisions."""
    answers: Answers = {}
    for dtype in (torch.float32, torch.float64):
        volumes = inputs.volumes().to(dtype)
        for window, k, threshold in (((7, 7, 3), 20, None), ((3, 3, 3), 64, 0.5), ((5, 3, 1), 4, None)):
            found = local_maxima_3d(volumes, window=window, k=k, threshold=threshold)
            case = f"maxima, {dtype}, window {window}, {k} slots"
            for name in ("index", "value", "count"):
                answers[f"{case}, {name}/exact"] = getattr(found, name).numpy()
        positions, scores = inputs.candidates()
        for separation, wrap in (((0.5, 0.3, 1.0), False), ((0.5, 0.3, 1.0), True), ((1.0, 0.5, float("inf")), True)):
            kept = nms_3d(positions.to(dtype), scores.to(dtype), separation=separation, k=20, on_sphere=wrap)
            case = f"nms, {dtype}, separation {separation}, {'round' if wrap else 'open'}"
            answers[f"{case}, index/exact"], answers[f"{case}, count/exact"] = kept.index.numpy(), kept.count.numpy()
    return answers


def reader_answers() -> Answers:
    """What ten files are read as."""
    answers: Answers = {}
    with tempfile.TemporaryDirectory() as folder:
        for case, path, arguments in inputs.write_files(Path(folder)):
            recording = read(path, **arguments)
            parts = {
                "covariance": recording.covariance,
                "snapshots": None if recording.snapshots is None else recording.snapshots.read(),
                "codes": recording.codes,
                "channel": recording.channel,
                "positions_m": recording.array.positions_m,
                "wavelength_m": recording.array.wavelength_m,
                "frequency_hz": recording.frequency_hz,
                "flagged": [item.index for item in recording.flagged],
            }
            answers |= {f"{case}/{name}": np.asarray(part) for name, part in parts.items() if part is not None}
    return answers


class Group(NamedTuple):
    """Answers that are recorded, compared and announced together.

    ``shake`` is the relative noise on the input, some ten times its rounding, that may not move them.
    """

    answers: Callable[..., Answers]
    shake: float | None = None


GROUPS = {
    "inputs": Group(input_answers),
    "localizer": Group(localizer_answers, 1e-6),
    "classical": Group(classical_answers, 1e-6),
    "unpolished": Group(unpolished_answers, 1e-6),
    "fresnel": Group(fresnel_answers, 1e-6),
    "direct": Group(direct_answers, 1e-6),
    "detection": Group(detection_answers, 1e-14),
    "operators": Group(operator_answers),
    "peaks": Group(peak_answers),
    "readers": Group(reader_answers),
}


@cache
def _pretrained() -> Localizer:
    return Localizer.from_pretrained()


def _setup(array: dict[str, Any], wavefront: str = "spherical") -> Setup:
    """A problem with the region and the tolerance of the reference system."""
    view = Region((-math.pi / 3, math.pi / 3), (-math.pi / 6, math.pi / 6), (0.5, 10.0))
    return Setup(SensorArray.rectangular(**array), view, wavefront)


def _on_reference(localizer: Localizer, count: int, shake: Shake | None) -> Answers:
    answers = {}
    for length in (16, 64):
        answers |= _localized(f"{length} snapshots", localizer, inputs.reference_scenes(length, count), shake)
    return answers


def _localized(case: str, localizer: Localizer, scenes, shake: Shake | None) -> Answers:
    result = localizer.analyse(inputs.shaken(scenes.y, shake), scenes.codes, scenes.channel)
    variances = torch.cat([c.diagonal(dim1=-2, dim2=-1) for c in result.position_covariance])
    return {
        **_sources(case, result.sources, capon=False),
        f"{case}/deviation": variances.sqrt().numpy(),
        f"{case}/noise_power": result.noise_power.double().numpy(),
    }


def _sources(case: str, scenes, *, capon: bool) -> Answers:
    """Sources of all scenes. A Capon peak has no probability but a height over its background, here in dB."""
    answers = {f"{case}/count": np.array([len(found) for found in scenes])}
    for name in ("azimuth", "elevation", "range", "power", "confidence"):
        answers[f"{case}/{name}"] = torch.cat([getattr(found, name).double() for found in scenes]).numpy()
    if capon:
        del answers[f"{case}/confidence"]
        answers[f"{case}/prominence_db"] = torch.cat([found.prominence_db for found in scenes]).numpy()
    return answers


def _projection(values: torch.Tensor) -> np.ndarray:
    """Two numbers for each scene that hardly any change leaves alone: its RMS, and its product with a fixed wave."""
    flat = values.to(torch.complex128).flatten(1)
    wave = torch.polar(torch.ones(flat.shape[1]).double(), torch.arange(flat.shape[1]).double().square() * 0.37)
    rms = flat.abs().square().mean(1).sqrt()
    return torch.stack([rms.to(flat.dtype), flat @ wave / flat.shape[1] ** 0.5], 1).numpy()
