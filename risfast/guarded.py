"""A refiner behind its guard: what it redraws badly is detected without it, counted and reported."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from risfast.covariance import covariance_from_factor, effective_covariance
from risfast.detect import DetectionOptions, Sources, detect_sources
from risfast.geometry import PlanarArray, SearchGrid
from risfast.models.base import CovarianceEstimate
from risfast.models.refiner import GuardOptions, SpectrumRefiner
from risfast.refined import RefinedOptions, build_refiner, estimate_maps, refined_sources

__all__ = ["GuardedRefiner", "GuardedSources", "load_helpful_refiner"]


class GuardedSources(NamedTuple):
    """Detections of B scenes, and which of them went without the refiner.

    Attributes
    ----------
    sources : list of B Sources
        By way of the refined map, with its values as confidence; of raw Capon where the guard refused the map.
    reasons : tuple of B tuples of str
        Why the guard refused a map; empty where the refiner was used.
    """

    sources: list[Sources]
    reasons: tuple[tuple[str, ...], ...]

    @property
    def fallbacks(self) -> int:
        """Scenes that were detected without the refiner."""
        return sum(bool(why) for why in self.reasons)


@dataclass(frozen=True)
class GuardedRefiner:
    """A refiner with all that it takes to go from an estimate to sources, with it or without.

    Parameters
    ----------
    refiner : SpectrumRefiner
    backbone : nn.Module
        Of the estimates.
    array : PlanarArray
    grid : SearchGrid
        Of the refiner's maps.
    reading : RefinedOptions
        How maps are made and read.
    limits : GuardOptions
        What a refined map must look like to be believed: finite, spread, not saturated, with a plausible number of
        peaks.
    capon_grid : SearchGrid
        Of the detection without the refiner; the reference grid by default.
    detection : DetectionOptions
        Of the same.
    """

    refiner: SpectrumRefiner
    backbone: nn.Module
    array: PlanarArray
    grid: SearchGrid = field(default_factory=SearchGrid.training)
    reading: RefinedOptions = field(default_factory=RefinedOptions)
    limits: GuardOptions = field(default_factory=GuardOptions)
    capon_grid: SearchGrid = field(default_factory=SearchGrid.reference)
    detection: DetectionOptions = field(default_factory=DetectionOptions)

    @torch.no_grad()
    def sources(self, estimate: CovarianceEstimate) -> GuardedSources:
        """Detect the sources of an estimate of the backbone.

        Parameters
        ----------
        estimate : CovarianceEstimate
            Of B scenes.

        Returns
        -------
        GuardedSources

        Warns
        -----
        UserWarning
            The guard refused a map: raw Capon (MVDR) detection on the effective covariance stood in for the refiner.
        """
        given = estimate_maps(estimate, self.backbone, self.array, self.grid, self.reading)
        found, verdict = refined_sources(
            self.refiner, given, estimate.factor, self.array, self.grid, self.reading, self.limits
        )
        refused = (~verdict.ok).nonzero()[:, 0].tolist()
        if refused:
            matrix = effective_covariance(covariance_from_factor(estimate.factor[refused]))
            instead = detect_sources(matrix, self.array, self.capon_grid, options=self.detection)
            for scene, sources in zip(refused, instead, strict=True):
                found[scene] = sources
            warnings.warn(
                f"the refined maps of {len(refused)} of {len(found)} scenes cannot be believed, and raw Capon was used "
                f"for them (scene {refused[0]}: {'; '.join(verdict.reasons[refused[0]])})",
                stacklevel=3,  # past no_grad, to the caller
            )
        return GuardedSources(found, verdict.reasons)


def load_helpful_refiner(
    folder: Path | str,
    backbone: nn.Module,
    backbone_card: dict[str, Any],
    array: PlanarArray,
    device: torch.device | str = "cpu",
) -> GuardedRefiner | None:
    """A refiner from its model folder, where its own test says that it helps.

    Parameters
    ----------
    folder : Path
        That a training of a refiner ended with.
    backbone : nn.Module
        That it is to stand behind.
    backbone_card : dict
        Of the backbone, as :func:`risfast.model_files.load_model` gives it.
    array : PlanarArray
    device : device

    Returns
    -------
    GuardedRefiner or None
        None where the card does not say ``"helps": true``: detection is better without it.

    Raises
    ------
    FileFormatError, ValueError
        A file is missing or damaged, or the refiner was trained for another array or behind another backbone.
    """
    from risfast.model_files import load_model, read_card  # noqa: PLC0415 - safetensors only where a file is read

    path = Path(folder)
    card = read_card(path)
    if card.get("helps") is not True:
        return None
    if card["backbone"]["sha256"] != backbone_card["sha256"]:
        raise ValueError(f"{path} was trained behind another backbone than the one given; train it behind this one")
    refiner, card = load_model(path, build_refiner, device, array)
    assert isinstance(refiner, SpectrumRefiner)  # build_refiner makes nothing else
    axes = {name: torch.tensor(values, dtype=torch.float64) for name, values in card["grid"].items()}
    return GuardedRefiner(refiner, backbone, array, SearchGrid(**axes), RefinedOptions(**card["reading"]))
