"""The methods of the suite behind one call: the localizer, every baseline, and fits that know the truth."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from risfast.baselines import BASELINES, Baseline, build_baseline
from risfast.baselines.capon import TransformerCapon, TrueCapon
from risfast.io.options_file import read_options
from risfast.localize import Localizer, pipeline
from risfast.localize.localizer import REFINER_FOLDER
from risfast.localize.pipeline import Parts, PipelineOptions
from risfast.localize.polish import PolishOptions
from risfast.models import CovarianceEstimate, Measurement, build_backbone
from risfast.models.files import MODEL_CARD, load_model, read_card
from risfast.setup import Setup
from risfast.simulate.scenes import Scenes
from risfast.sources import Sources


@dataclass(frozen=True)
class Variant:
    """One change to the localizer of a model."""

    title: str  # For tables
    # Options of :class:`risfast.localize.PipelineOptions` that differ, by their names with dots
    changes: Mapping[str, Any] = field(default_factory=dict)
    # Whether the sparse covariance fit without any training stands in for the model, with the default options
    classical: bool = False

    def of(self, options: PipelineOptions) -> PipelineOptions:
        """The changed options."""
        for name, value in self.changes.items():
            options = _changed(options, name, value)
        return options


def _changed(options: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return replace(options, **{first: _changed(getattr(options, first), rest, value) if rest else value})


_NO_CONFIDENCE = {"decision.least_confidence": 0.0}
_REFINED = {"candidates.source": "refined"}
_CAPON_RAW = {"candidates.source": "capon", "polished": False}
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "localizer": Variant("localizer", {"polished": True}),
        "localizer_count": Variant("localizer, count of equal powers", {"count": "equal"}),
        "localizer_count_spread": Variant("localizer, count of any powers", {"count": "spread"}),
        "without_confidence": Variant("no calibrated confidence", _NO_CONFIDENCE),
        "without_posterior": Variant(
            "nor range posterior: the maximum of the likelihood", {**_NO_CONFIDENCE, "polish.range_points": 0}
        ),
        "without_births": Variant("polish that adds no sources", {"polish.births": 0}),
        "without_deaths": Variant(
            "polish of positions only",
            {**_NO_CONFIDENCE, "polish.births": 0, "polish.penalty": 0.0},
        ),
        "localizer_raw": Variant("localizer, no polish", {"polished": False}),
        "capon_polish": Variant("candidates from Capon peaks", {"candidates.source": "capon"}),
        "capon_raw": Variant("Capon peaks of the covariance, no polish", _CAPON_RAW),
        "refined": Variant("candidates from the refiner's map", _REFINED),
        "refined_raw": Variant("peaks of the refiner's map, no polish", {**_REFINED, "polished": False}),
        "capon_blend": Variant(
            "the same, a tenth of the sample covariance blended in", {**_CAPON_RAW, "map.blend": 0.1}
        ),
        "classical": Variant("classical fit instead of the trained backbone", classical=True),
        "classical_raw": Variant("classical fit, no polish", {"polished": False}, classical=True),
    }
)
"""The localizer, and what it is without a stage, by the name of the method and in the order of the ablation."""

KNOWLEDGE = ("blind", "noise", "count", "count_noise")
"""What a method is told besides the measurements: nothing, the noise power, the number of sources, or both."""

DEFAULT_METHODS = ("localizer", "localizer_raw", "greedy_ml", "sbl", "ls_capon")
SUITE_METHODS = tuple(dict.fromkeys(("localizer", "localizer_raw", *BASELINES, *VARIANTS)))
METHOD_TITLES = {
    "greedy_ml": "greedy ML",
    "sbl": "SBL",
    "ls_capon": "LS + Capon",
    "als_capon": "ALS + Capon",
    "ls_music": "LS + MUSIC",
    "bartlett": "Bartlett",
    "decoupled_music": "decoupled MUSIC",
    "separable_music": "decoupled MUSIC, angles apart",
    "range_music": "range MUSIC",
    "transformer_capon": "transformer + Capon",
    "true_capon": "Capon on the true covariance",
    "ml_from_truth": "ML started at the truth",
    **{name: variant.title for name, variant in VARIANTS.items()},
}


_ROUNDING = 1e-9  # of ends of regions


def takes_bands(name: str) -> bool:
    """Whether a method takes several narrow bands."""
    if name in VARIANTS:
        changes = VARIANTS[name].changes
        return changes.get("candidates.source") not in ("capon", "refined") and "count" not in changes
    return name in ("greedy_ml", "ml_from_truth")


class Found(NamedTuple):
    """What a method found in some scenes."""

    sources: list[Sources]
    seconds: float  # Wall time of all of them
    stages: dict[str, float]  # Wall time of each stage, where the method tells
    count_probability: Tensor | None = (
        None  # (B, K_max + 1) Probability of each number of sources, where the method tells
    )


class Method(ABC):
    """A method of the suite."""

    @abstractmethod
    def find(self, scenes: Scenes, measurement: Measurement, n_sources: Tensor | None) -> Found:
        """Find the sources of some scenes.

        n_sources (B,)
        """


def measurement_of(scenes: Scenes, knowledge: str) -> tuple[Measurement, Tensor | None]:
    """What a method with some knowledge is given.

    -> n_sources (B,)
    """
    if knowledge not in KNOWLEDGE:
        raise ValueError(f"knowledge must be one of {', '.join(KNOWLEDGE)}; got {knowledge!r}")
    measurement = Measurement.of(scenes, noise_known="noise" in knowledge)
    return measurement, scenes.n_sources if "count" in knowledge else None


class _Localizer(Method):
    """Parts on the one path, under some options."""

    def __init__(self, parts: Parts, options: PipelineOptions) -> None:
        self.parts, self.options = parts, options
        held = (*parts.backbone.parameters(), *parts.backbone.buffers())
        self.device = next((tensor.device for tensor in held), torch.device("cpu"))

    def find(self, scenes: Scenes, measurement: Measurement, n_sources: Tensor | None) -> Found:
        began = time.perf_counter()
        result = pipeline.run(self.parts, measurement.to(self.device), self.options, n_sources)
        spent = time.perf_counter() - began
        return Found(result.sources, spent, result.seconds, result.count_probability)


class _Baseline(Method):
    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline

    def find(self, scenes: Scenes, measurement: Measurement, n_sources: Tensor | None) -> Found:
        method = self.baseline
        if isinstance(method, TrueCapon):
            method = method.with_truth(scenes.true_covariance())
        began = time.perf_counter()
        sources = method.localize(measurement, n_sources)
        return Found(sources, time.perf_counter() - began, {})


class _FromTruth(Method):
    """Maximum likelihood started at the true sources, with the range posterior: what the best search could find."""

    options = PipelineOptions(polish=PolishOptions(births=0, penalty=0.0))

    def __init__(self, setup: Setup) -> None:
        self.parts = Parts(nn.Module(), setup)

    def find(self, scenes: Scenes, measurement: Measurement, n_sources: Tensor | None) -> Found:
        rows = zip(scenes.position.double(), scenes.power.double(), scenes.mask, strict=True)
        # Scenes tell the power in each band, and candidates that of all bands together.
        start = [Sources.at(position[mask], power[mask] * measurement.bands) for position, power, mask in rows]
        most = max(scenes.mask.shape[1], 1)
        options = replace(self.options, polish=replace(self.options.polish, max_sources=most))
        known = CovarianceEstimate(scenes.y.new_zeros(len(scenes), 1, 0), noise_power=scenes.noise_power)
        began = time.perf_counter()
        polished = pipeline.polish(self.parts, measurement, start, known, options)
        return Found(polished.sources, time.perf_counter() - began, {})


class Methods:
    """Makes methods by name and keeps them."""

    def __init__(
        self,
        model: Path | None,
        transformer: Path | None = None,
        *,
        setup: Setup | None = None,
        device: str = "cpu",
        refiner: Path | None = None,
        options: Path | None = None,
    ) -> None:
        if model is None and setup is None:
            raise ValueError("without a model, a setup or a system says what the problem is")
        self._model, self._transformer, self._device = model, transformer, device
        self._refiner, self._options = refiner, None if options is None else read_options(options)
        own = None if model is None else Setup.from_json(read_card(model)["setup"])
        self.setup: Setup = setup or own  # type: ignore[assignment]  # one of them is there
        if own is not None:
            self._check_fit(own)
        self._made: dict[str, Method] = {}

    def _check_fit(self, own: Setup) -> None:
        """Refuse a model of another problem; it looks for sources in its own region."""
        for name in ("array", "wavefront", "sampling"):
            theirs, asked = getattr(own, name), getattr(self.setup, name)
            if theirs != asked:
                raise ValueError(
                    f"the model is for the {name} {theirs}, and the system has {asked}; train one for it "
                    "(`risfast backbone`), or take --model none, the classical fit"
                )
        inside, outside = self.setup.region, own.region
        for name in ("azimuth_rad", "elevation_rad", "range_m"):
            (low, high), (least, most) = getattr(inside, name), getattr(outside, name)
            if low < least - _ROUNDING or high > most + _ROUNDING:
                raise ValueError(
                    f"the model looks for sources with {name} in {least:g} .. {most:g}, and the system has them in "
                    f"{low:g} .. {high:g}; train one for it (`risfast backbone`), or take --model none"
                )

    def check(self, names: tuple[str, ...]) -> None:
        """Refuse what cannot be made, before any work."""
        if not names:
            raise ValueError("methods must name at least one method")
        for name in names:
            if name not in SUITE_METHODS:
                raise ValueError(f"methods must be among {', '.join(SUITE_METHODS)}; got {name!r}")
            if self.setup.n_bands > 1 and not takes_bands(name):
                raise ValueError(
                    f"{name} takes one band, and the setup has {self.setup.n_bands}; give --methods without it: "
                    f"{', '.join(filter(takes_bands, SUITE_METHODS))} take several"
                )
        if len(set(names)) != len(names):
            raise ValueError(f"methods must not repeat, got {', '.join(names)}")
        if "transformer_capon" in names and self._transformer is None:
            raise ValueError("transformer_capon needs a trained model: give its folder with --transformer")
        for name in names:
            if name.startswith("refined") and (self._model is None or self.localizer.parts.refiner is None):
                raise ValueError(f"{name} needs a refiner behind the model: give its folder with --refiner")

    @cached_property
    def localizer(self) -> Localizer:
        """Of the model folder, or the classical one."""
        if self._model is None:
            return self._classical(self._options)
        return Localizer.load(self._model, self._device, self._options, self._refiner)

    def _classical(self, options: PipelineOptions | None = None) -> Localizer:
        return Localizer.classical(self.setup, options=options).to(self._device)

    def _on_path(self, name: str) -> tuple[bool, PipelineOptions]:
        """Whether the classical fit stands in for the model, and the options of the path."""
        variant = VARIANTS[name]
        return variant.classical, variant.of(PipelineOptions() if variant.classical else self.localizer.options)

    def identity(self, name: str) -> dict[str, Any]:
        """What a method's results depend on besides the scenes, as JSON values."""
        if name in VARIANTS:
            classical, options = self._on_path(name)
            if classical or self._model is None:
                return {"weights": None, "options": _plain(options)}
            card, calibration = read_card(self._model), self.localizer.calibration
            return {
                "weights": card["sha256"],
                "setup": card["setup"],
                "options": _plain(options),
                "calibration": None if calibration is None else _plain(calibration),
                **self._refiner_identity(options),
                **({} if options.count == "off" else {"counts": _plain(self.localizer.parts.count_model(options))}),
            }
        if name == "transformer_capon":
            assert self._transformer is not None
            return {"weights": read_card(self._transformer)["sha256"], "options": _plain(BASELINES[name].Options())}
        return {"options": _plain(_FromTruth.options if name == "ml_from_truth" else BASELINES[name].Options())}

    def _refiner_identity(self, options: PipelineOptions) -> dict[str, str]:
        """What the results of refined candidates depend on besides."""
        if options.candidates.source != "refined" or self._model is None:
            return {}
        folder = self._refiner or self._model / REFINER_FOLDER
        return {"refiner": read_card(folder)["sha256"]} if (folder / MODEL_CARD).is_file() else {}

    def __getitem__(self, name: str) -> Method:
        """The method of that name, made on the first call."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Method:
        if name in VARIANTS:
            classical, options = self._on_path(name)
            return _Localizer((self._classical() if classical else self.localizer).parts, options)
        if name == "ml_from_truth":
            return _FromTruth(self.setup)
        if name == "transformer_capon" and self._transformer is not None:
            backbone, _ = load_model(self._transformer, build_backbone, setup=self.setup)
            return _Baseline(TransformerCapon(self.setup, backbone=backbone))
        return _Baseline(build_baseline(name, self.setup))


def _plain(options: Any) -> Any:
    """Options as JSON values."""
    return json.loads(json.dumps(asdict(options), default=str))
