"""From measurements to sources: backbone, detections, likelihood polish."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from risfast.confidence import HitModel, hit_features
from risfast.covariance import covariance_from_factor, effective_covariance, ls_covariance
from risfast.detect import DetectionOptions, Sources, detect_sources
from risfast.geometry import PlanarArray, SearchGrid
from risfast.guarded import GuardedRefiner, load_helpful_refiner
from risfast.measured import measurement_from
from risfast.models import CovarianceEstimate, Measurement, build_backbone
from risfast.models.atoms import AtomGrid
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.polish import Polished, PolishOptions, polish_sources
from risfast.setup import array_from_json

__all__ = ["Localisation", "Localizer", "LocalizerOptions"]

READ_OUTS = ("own", "capon", "refined")
REFINER_FOLDER = "refiner"
_SBL_STEPS = 30


def _capon_detection() -> DetectionOptions:
    return DetectionOptions(max_db=3.0, mad_z=12.0, separation_rad=math.radians(5))


@dataclass(frozen=True)
class LocalizerOptions:
    """Options of a :class:`Localizer`.

    Parameters
    ----------
    read_out : {"own", "capon", "refined"}
        Where candidates come from: the backbone's own detections, the peaks of the Capon spectrum of its covariance, or
        the spectrum that the model's refiner redraws, behind its guard (:class:`risfast.guarded.GuardedRefiner`).
    own : dict
        Options of the backbone's own detection, where it is the answer.
    candidates : dict
        The same where a polish follows.
    least_count : float in (0, 1]
        Least expected number of sources within the tolerance of a candidate for the polish, of a backbone that maps
        them: lower than where the backbone has the last word, for the polish takes away what does not hold.
    detection : DetectionOptions
        Of the Capon peaks, where they are the answer. The default is what studies of detection on covariances of the
        default backbone found, on two sets of scenes; it drops sources 3 dB below the strongest peak of their scene.
    capon_candidates : DetectionOptions
        The same where a polish follows.
    blend : float in [0, 1]
        Weight of the least-squares sample covariance in the covariance of the Capon peaks, both of trace N.
    polish : PolishOptions
    least_confidence : float in [0, 1)
        Least probability of a hit of a reported source, where the model comes with a fitted one
        (:mod:`risfast.confidence`); 0 leaves the decision to the penalty of the polish alone.
    scenes_at_once : int
        Scenes that go through together; memory follows it.

    Raises
    ------
    ValueError
        An unknown read-out, a probability outside [0, 1), a count outside (0, 1], a weight outside [0, 1], or
        ``scenes_at_once`` below 1.
    """

    read_out: str = "own"
    own: dict[str, Any] = field(default_factory=dict)
    candidates: dict[str, Any] = field(default_factory=dict)
    least_count: float = 0.15
    detection: DetectionOptions = field(default_factory=_capon_detection)
    capon_candidates: DetectionOptions = field(default_factory=DetectionOptions)
    blend: float = 0.0
    polish: PolishOptions = field(default_factory=PolishOptions)
    least_confidence: float = 0.3
    scenes_at_once: int = 16

    def __post_init__(self) -> None:
        """Check every value."""
        if self.read_out not in READ_OUTS:
            raise ValueError(f"read_out must be one of {', '.join(READ_OUTS)}; got {self.read_out!r}")
        if not 0 <= self.least_confidence < 1:
            raise ValueError(f"least_confidence must lie in [0, 1), got {self.least_confidence!r}")
        if not 0 < self.least_count <= 1:
            raise ValueError(f"least_count must lie in (0, 1], got {self.least_count!r}")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend must lie in [0, 1], got {self.blend!r}")
        if self.scenes_at_once < 1:
            raise ValueError(f"scenes_at_once must be at least 1, got {self.scenes_at_once}")


class Localisation(NamedTuple):
    """Everything that a localisation found out.

    Attributes
    ----------
    sources : list of B Sources
    position_covariance : list of B float64 tensors, shape (K, 3, 3), or None
        Cramér-Rao bound of each source's (azimuth, elevation, range) at the estimate; None without polish.
    noise_power : real tensor, shape (B,), or None
    factor : complex tensor, shape (B, N, K_f)
        Of the backbone's covariance.
    seconds : dict of str to float
        Wall time of each stage, of all scenes together.
    refused : tuple of B tuples of str
        Why the guard refused a scene's refined map, whose candidates are those of raw Capon then; empty where none was
        refused.
    """

    sources: list[Sources]
    position_covariance: list[Tensor] | None
    noise_power: Tensor | None
    factor: Tensor
    seconds: dict[str, float]
    refused: tuple[tuple[str, ...], ...] = ()


class Localizer:
    """Finds sources in snapshots that were taken through a surface.

    Parameters
    ----------
    backbone : nn.Module
        From :func:`risfast.models.build_backbone`, of the surface's array.
    array : PlanarArray
        The surface, N elements; codes and channel are in the order of ``array.positions_m``.
    options : LocalizerOptions, optional
    hits : HitModel, optional
        Of this backbone: turns what the polish ends with into probabilities of a hit, by which sources are kept.
    refiner : GuardedRefiner, optional
        Of this backbone, for the read-out ``"refined"``.

    Raises
    ------
    ValueError
        The read-out is ``"refined"`` and there is no refiner.

    Examples
    --------
    >>> from risfast import Localizer
    >>> localizer = Localizer.from_pretrained()
    >>> sources = localizer.localize(y, codes, channel)  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: nn.Module,
        array: PlanarArray,
        options: LocalizerOptions | None = None,
        hits: HitModel | None = None,
        refiner: GuardedRefiner | None = None,
    ) -> None:
        self.backbone, self.array, self.hits, self.refiner = backbone.eval(), array, hits, refiner
        self.options = options or LocalizerOptions()
        if self.options.read_out == "refined" and refiner is None:
            raise ValueError(
                "read_out='refined' needs a refiner, and this model has none whose own test says that it helps; "
                "train one with `risfast-train refiner`, or take 'own' or 'capon'"
            )
        # The polish looks for new sources on the backbone's atoms, or on the default ones.
        self._atoms = backbone.atoms if isinstance(backbone, UnrolledBackbone) else AtomGrid(array)

    @classmethod
    def from_pretrained(cls, options: LocalizerOptions | None = None) -> Localizer:
        """The checkpoint that comes with the package: the reference surface, any codes, 16 to 64 snapshots.

        Parameters
        ----------
        options : LocalizerOptions, optional

        Returns
        -------
        Localizer

        Raises
        ------
        FileFormatError, ValueError
            As :meth:`load`.
        """
        return cls.load(DEFAULT_MODEL, options)

    @classmethod
    def load(cls, folder: Path | str, options: LocalizerOptions | None = None) -> Localizer:
        """A model folder that a training run ended with, and the refiner in its folder ``refiner`` if that helps.

        Parameters
        ----------
        folder : Path or str
            Weights, card and, where one was fitted, the model of hits.
        options : LocalizerOptions, optional

        Returns
        -------
        Localizer
            For the array of the model.

        Raises
        ------
        FileFormatError, ValueError
            A file is missing or damaged, the weights are not the architecture's, or the refiner is another model's.
        """
        from risfast.model_files import load_model  # noqa: PLC0415 - safetensors only where a file is read

        module, card = load_model(Path(folder), build_backbone)
        array = array_from_json(card["array"])
        within = Path(folder) / REFINER_FOLDER
        refiner = load_helpful_refiner(within, module, card, array) if within.is_dir() else None
        return cls(module, array, options, HitModel.load(Path(folder)), refiner)

    @classmethod
    def classical(
        cls, array: PlanarArray, options: LocalizerOptions | None = None, *, wavefront: str = "spherical"
    ) -> Localizer:
        """Without any checkpoint, for any array: the sparse covariance fit, 30 steps.

        Parameters
        ----------
        array : PlanarArray
        options : LocalizerOptions, optional
        wavefront : {"spherical", "fresnel", "planar"}

        Returns
        -------
        Localizer
            Without a model of hits and without a refiner.

        Raises
        ------
        ValueError
            An unknown wavefront.
        """
        fit = UnrolledBackbone(array, UnrolledOptions(steps=_SBL_STEPS, corrections=False, wavefront=wavefront))
        return cls(fit, array, options)

    def localize(
        self,
        y: Tensor | np.ndarray[Any, Any],
        codes: Tensor | np.ndarray[Any, Any],
        channel: Tensor | np.ndarray[Any, Any],
        *,
        noise_power: Tensor | np.ndarray[Any, Any] | float | None = None,
        polish: bool = True,
    ) -> list[Sources]:
        """Find the sources of one scene or of a batch.

        Parameters
        ----------
        y : complex array or tensor, shape (L, M) or (B, L, M)
            Snapshots of the M antennas.
        codes : complex array or tensor, shape (L, N) or (B, L, N)
            Phase code of the surface in each snapshot.
        channel : complex array or tensor, shape (M, N) or (B, M, N)
            From the surface to the antennas.
        noise_power : float or real array, shape () or (B,), optional
            sigma^2, linear; estimated where it is not given.
        polish : bool
            Whether the likelihood sharpens what the backbone found.

        Returns
        -------
        list of Sources
            One a scene, strongest first: azimuth and elevation in radians, range in metres. ``confidence`` is the
            probability of a hit with polish (of a model without a fitted one: the posterior probability of the
            reported range within a metre), and the expected number of sources within the tolerance without.

        Raises
        ------
        ShapeError, TypeError, ValueError
            Shapes that do not belong together (a transposed argument is named), values that are not finite, silence,
            no snapshot, or a noise power that is not positive.
        """
        return self.analyse(y, codes, channel, noise_power=noise_power, polish=polish).sources

    def analyse(
        self,
        y: Tensor | np.ndarray[Any, Any],
        codes: Tensor | np.ndarray[Any, Any],
        channel: Tensor | np.ndarray[Any, Any],
        *,
        noise_power: Tensor | np.ndarray[Any, Any] | float | None = None,
        polish: bool = True,
    ) -> Localisation:
        """As :meth:`localize`, with the covariances of the positions, the noise, and the time of each stage.

        Parameters
        ----------
        y, codes, channel, noise_power, polish
            As :meth:`localize` takes them.

        Returns
        -------
        Localisation

        Raises
        ------
        ShapeError, TypeError, ValueError
            As :meth:`localize`.
        """
        measurement = measurement_from(y, codes, channel, noise_power)
        parts = [
            self._some(measurement[start : start + self.options.scenes_at_once], polish)
            for start in range(0, max(len(measurement), 1), self.options.scenes_at_once)
        ]
        seconds = {name: sum(part.seconds[name] for part in parts) for name in parts[0].seconds}
        covariances = [c for part in parts for c in part.position_covariance or ()]
        noise = [part.noise_power for part in parts if part.noise_power is not None]
        return Localisation(
            [s for part in parts for s in part.sources],
            covariances if polish else None,
            torch.cat(noise) if noise else None,
            torch.cat([part.factor for part in parts]),
            seconds,
            tuple(why for part in parts for why in part.refused),
        )

    @torch.no_grad()
    def _some(self, measurement: Measurement, polish: bool) -> Localisation:
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        estimate = self.backbone(measurement)
        seconds["backbone"] = time.perf_counter() - began
        began = time.perf_counter()
        found, refused = self._candidates(measurement, estimate, polish)
        seconds["detection"] = time.perf_counter() - began
        if not polish:
            return Localisation(found, None, estimate.noise_power, estimate.factor, seconds, refused)
        began = time.perf_counter()
        polished = self._polished(measurement, found, estimate)
        seconds["polish"] = time.perf_counter() - began
        return Localisation(
            polished.sources, polished.covariance, polished.noise_power, estimate.factor, seconds, refused
        )

    def _polished(self, measurement: Measurement, found: list[Sources], estimate: CovarianceEstimate) -> Polished:
        polished = polish_sources(
            measurement, found, self._atoms, self.options.polish, noise_power=estimate.noise_power
        )
        if self.hits is None or estimate.sources is None:
            return polished
        snapshots = measurement.y.shape[1]
        features = hit_features(polished, estimate.sources, self.backbone.range_cells, snapshots)  # type: ignore[arg-type]
        return self.hits.decide(polished, features, self.options.least_confidence)

    def _candidates(
        self, measurement: Measurement, estimate: CovarianceEstimate, polish: bool
    ) -> tuple[list[Sources], tuple[tuple[str, ...], ...]]:
        """Where the polish starts, or what is reported without one; and what the refiner's guard refused."""
        options = self.options
        if options.read_out == "own":
            chosen = options.own
            if polish:
                chosen = {"threshold": options.least_count} if estimate.sources is not None else {}
                chosen = {**chosen, **options.candidates}
            return list(self.backbone.sources(estimate, **chosen)), ()  # type: ignore[operator]  # every backbone has it
        if options.read_out == "refined" and self.refiner is not None:
            guarded = self.refiner.sources(estimate)
            return guarded.sources, guarded.reasons
        matrix, sample = covariance_from_factor(estimate.factor), None
        if options.blend:
            noise = estimate.noise_power if measurement.noise_power is None else measurement.noise_power
            sample = ls_covariance(measurement.y, measurement.codes, measurement.channel, noise_power=noise)
            sample = sample.to(matrix.dtype)
        covariance = effective_covariance(matrix, sample=sample, beta=options.blend)
        detection = options.capon_candidates if polish else options.detection
        return detect_sources(covariance, self.array, SearchGrid.reference(), options=detection), ()
