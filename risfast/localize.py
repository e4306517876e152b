"""From measurements to sources: backbone, detections, likelihood polish."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from risfast.confidence import HitModel, hit_features
from risfast.covariance import covariance_from_factor, effective_covariance
from risfast.data.system_json import array_from_json
from risfast.detect import DetectionOptions, Sources, detect_sources
from risfast.geometry import PlanarArray, SearchGrid
from risfast.models import CovarianceEstimate, Measurement, build_backbone
from risfast.models.atoms import AtomGrid
from risfast.models.pretrained import DEFAULT_MODEL
from risfast.models.unrolled import UnrolledBackbone, UnrolledOptions
from risfast.polish import Polished, PolishOptions, polish_sources

__all__ = ["Localisation", "Localizer", "LocalizerOptions"]

READ_OUTS = ("own", "capon")
_SBL_STEPS = 30


@dataclass(frozen=True)
class LocalizerOptions:
    """Options of a :class:`Localizer`.

    Parameters
    ----------
    read_out : {"own", "capon"}
        Where candidates come from: the backbone's own detections, or the peaks of the Capon spectrum of its covariance.
    own : dict
        Options of the backbone's own detection, where it is the answer.
    candidates : dict
        The same where a polish follows: it takes away what does not hold, so that candidates may be many.
    detection : DetectionOptions
        Of the Capon peaks.
    polish : PolishOptions
    least_confidence : float in [0, 1)
        Least probability of a hit of a reported source, where the model comes with a fitted one
        (:mod:`risfast.confidence`); 0 leaves the decision to the penalty of the polish alone.
    scenes_at_once : int
        Scenes that go through together; memory follows it.

    Raises
    ------
    ValueError
        An unknown read-out, a probability outside [0, 1), or ``scenes_at_once`` below 1.
    """

    read_out: str = "own"
    own: dict[str, Any] = field(default_factory=dict)
    candidates: dict[str, Any] = field(default_factory=dict)
    detection: DetectionOptions = field(default_factory=DetectionOptions)
    polish: PolishOptions = field(default_factory=PolishOptions)
    least_confidence: float = 0.35
    scenes_at_once: int = 16

    def __post_init__(self) -> None:
        """Check every value."""
        if self.read_out not in READ_OUTS:
            raise ValueError(f"read_out must be one of {', '.join(READ_OUTS)}; got {self.read_out!r}")
        if not 0 <= self.least_confidence < 1:
            raise ValueError(f"least_confidence must lie in [0, 1), got {self.least_confidence!r}")
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
    """

    sources: list[Sources]
    position_covariance: list[Tensor] | None
    noise_power: Tensor | None
    factor: Tensor
    seconds: dict[str, float]


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
    ) -> None:
        self.backbone, self.array, self.hits = backbone.eval(), array, hits
        self.options = options or LocalizerOptions()
        # The polish looks for new sources on the backbone's atoms, or on the default ones.
        self._atoms = backbone.atoms if isinstance(backbone, UnrolledBackbone) else AtomGrid(array)

    @classmethod
    def from_pretrained(cls, options: LocalizerOptions | None = None) -> Localizer:
        """The checkpoint that comes with the package: the reference surface, any codes, 16 to 64 snapshots."""
        return cls.load(DEFAULT_MODEL, options)

    @classmethod
    def load(cls, folder: Path | str, options: LocalizerOptions | None = None) -> Localizer:
        """A model folder that a training run ended with.

        Raises
        ------
        FileFormatError, ValueError
            A file is missing or damaged, or the weights are not the architecture's.
        """
        from risfast.model_files import load_model  # noqa: PLC0415 - safetensors only where a file is read

        module, card = load_model(Path(folder), build_backbone)
        return cls(module, array_from_json(card["array"]), options, HitModel.load(Path(folder)))

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
        """As :meth:`localize`, with the covariances of the positions, the noise, and the time of each stage."""
        measurement = self._measurement(y, codes, channel, noise_power)
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
        )

    @torch.no_grad()
    def _some(self, measurement: Measurement, polish: bool) -> Localisation:
        seconds: dict[str, float] = {}
        began = time.perf_counter()
        estimate = self.backbone(measurement)
        seconds["backbone"] = time.perf_counter() - began
        began = time.perf_counter()
        found = self._candidates(estimate, polish)
        seconds["detection"] = time.perf_counter() - began
        if not polish:
            return Localisation(found, None, estimate.noise_power, estimate.factor, seconds)
        began = time.perf_counter()
        polished = self._polished(measurement, found, estimate)
        seconds["polish"] = time.perf_counter() - began
        return Localisation(polished.sources, polished.covariance, polished.noise_power, estimate.factor, seconds)

    def _polished(self, measurement: Measurement, found: list[Sources], estimate: CovarianceEstimate) -> Polished:
        polished = polish_sources(
            measurement, found, self._atoms, self.options.polish, noise_power=estimate.noise_power
        )
        if self.hits is None or estimate.sources is None:
            return polished
        snapshots = measurement.y.shape[1]
        features = hit_features(polished, estimate.sources, self.backbone.range_cells, snapshots)  # type: ignore[arg-type]
        return self.hits.decide(polished, features, self.options.least_confidence)

    def _candidates(self, estimate: CovarianceEstimate, polish: bool) -> list[Sources]:
        if self.options.read_out == "capon":
            covariance = effective_covariance(covariance_from_factor(estimate.factor))
            return detect_sources(covariance, self.array, SearchGrid.reference(), options=self.options.detection)
        chosen = self.options.candidates if polish else self.options.own
        return list(self.backbone.sources(estimate, **chosen))  # type: ignore[operator]  # every backbone has it

    def _measurement(self, y: Any, codes: Any, channel: Any, noise_power: Any) -> Measurement:
        """Check, batch and convert; every error comes before any work."""
        tensors = {"y": _tensor(y, "y"), "codes": _tensor(codes, "codes"), "channel": _tensor(channel, "channel")}
        ranks = {name: t.ndim for name, t in tensors.items()}
        if set(ranks.values()) not in ({2}, {3}):
            raise ValueError(
                "y, codes and channel must all have 2 dimensions (one scene) or all 3 (a batch), got "
                + ", ".join(f"{name} with {rank}" for name, rank in ranks.items())
            )
        if ranks["y"] == 2:
            tensors = {name: t[None] for name, t in tensors.items()}
        measurement = Measurement(**tensors)
        if measurement.y.shape[1] == 0:
            raise ValueError("y holds no snapshot: L must be at least 1")
        if len(measurement) and not bool((measurement.y.abs().amax((1, 2)) > 0).all()):
            silent = int((measurement.y.abs().amax((1, 2)) == 0).nonzero()[0, 0])
            raise ValueError(f"y[{silent}] is zero throughout: there is nothing to localise")
        if noise_power is None:
            return measurement
        noise = torch.as_tensor(noise_power).to(measurement.y.device).double()
        noise = noise.expand(len(measurement)) if noise.ndim == 0 else noise
        return Measurement(measurement.y, measurement.codes, measurement.channel, _checked_noise(noise, measurement))


def _tensor(value: Any, name: str) -> Tensor:
    tensor = torch.as_tensor(value)
    if not tensor.is_complex():
        raise TypeError(f"{name} must be complex64 or complex128, got {tensor.dtype}")
    if not bool(torch.isfinite(torch.view_as_real(tensor.resolve_conj())).all()):
        raise ValueError(f"{name} holds values that are not finite")
    return tensor


def _checked_noise(noise: Tensor, measurement: Measurement) -> Tensor:
    if noise.shape != (len(measurement),):
        raise ValueError(
            f"noise_power must be one number or have shape ({len(measurement)},), one for each scene, got "
            f"{tuple(noise.shape)}"
        )
    if not bool((torch.isfinite(noise) & (noise > 0)).all()):
        raise ValueError("noise_power must be positive and finite: it is linear (sigma^2), not in dB")
    received = measurement.y.abs().double().square().mean((1, 2))
    loud = (noise > 3 * received).nonzero()[:, 0]
    if len(loud):
        # What is received holds the noise too: three times as much noise does not happen.
        warnings.warn(
            f"noise_power of scene {int(loud[0])} is {float(noise[loud[0]]):.3g}, more than three times the mean power "
            f"{float(received[loud[0]]):.3g} of its snapshots; is it in dB?",
            stacklevel=4,
        )
    return noise
