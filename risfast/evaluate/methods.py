"""The methods of the suite behind one call: the localizer, every baseline, and fits that know the truth."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from risfast.baselines import BASELINES, CHECKOUT_BASELINES, Baseline, build_baseline
from risfast.baselines.capon import TransformerCapon, TrueCapon
from risfast.baselines.dcd_checkout import CLONE
from risfast.baselines.dcd_music import CheckoutOptions, LineBaseline
from risfast.baselines.dcd_networks import read_weights
from risfast.data.scenes import Scenes
from risfast.detect import Sources
from risfast.evaluate.scenarios import KNOWLEDGE
from risfast.evaluate.variants import VARIANTS
from risfast.geometry import PlanarArray
from risfast.localize import Localizer, LocalizerOptions
from risfast.model_files import load_model, read_card
from risfast.models import Measurement, build_backbone
from risfast.models.atoms import AtomGrid
from risfast.models.unrolled import UnrolledBackbone
from risfast.polish import PolishOptions, polish_sources
from risfast.setup import array_from_json

__all__ = [
    "CHECKOUT_METHODS",
    "DEFAULT_METHODS",
    "METHODS",
    "METHOD_TITLES",
    "Found",
    "Method",
    "Methods",
    "measurement_of",
]

DEFAULT_METHODS = ("localizer", "localizer_raw", "greedy_ml", "sbl", "ls_capon")
METHODS = ("localizer", "localizer_raw", *BASELINES, *VARIANTS)
CHECKOUT_METHODS = tuple(CHECKOUT_BASELINES)
"""Methods that need a checkout of public code, and weights for it."""
METHOD_TITLES = {
    "localizer": "localizer",
    "localizer_raw": "localizer, no polish",
    "greedy_ml": "greedy ML",
    "sbl": "SBL",
    "ls_capon": "LS + Capon",
    "als_capon": "ALS + Capon",
    "ls_music": "LS + MUSIC",
    "decoupled_music": "decoupled MUSIC",
    "separable_music": "decoupled MUSIC, angles apart",
    "range_music": "range MUSIC",
    "transformer_capon": "transformer + Capon",
    "nf_subspacenet": "NF-SubspaceNet",
    "dcd_music": "DCD-MUSIC",
    "true_capon": "Capon on the true covariance",
    "ml_from_truth": "ML started at the truth",
    "bound": "Cramér-Rao bound",
    **{name: variant.title for name, variant in VARIANTS.items()},
}


class Found(NamedTuple):
    """What a method found in some scenes.

    Attributes
    ----------
    sources : list of B Sources
    seconds : float
        Wall time of all of them.
    stages : dict of str to float
        Wall time of each stage, where the method tells.
    """

    sources: list[Sources]
    seconds: float
    stages: dict[str, float]


class Method(Protocol):
    """A method of the suite."""

    def find(self, scenes: Scenes, measurement: Measurement, n_sources: Tensor | None) -> Found:
        """Find the sources of some scenes.

        Parameters
        ----------
        scenes : Scenes
            B of them; only oracles look at the answer in them.
        measurement : Measurement
            Of the same scenes, with what the method is told of the noise.
        n_sources : int64 tensor, shape (B,), or None
            K of each scene, where the method is told.

        Returns
        -------
        Found
        """
        ...


def measurement_of(scenes: Scenes, knowledge: str) -> tuple[Measurement, Tensor | None]:
    """What a method with some knowledge is given.

    Parameters
    ----------
    scenes : Scenes
        B of them.
    knowledge : str
        One of :data:`risfast.evaluate.scenarios.KNOWLEDGE`.

    Returns
    -------
    measurement : Measurement
        With the noise power where it is known.
    n_sources : int64 tensor, shape (B,), or None
        K of each scene where it is known.

    Raises
    ------
    ValueError
        An unknown knowledge.
    """
    if knowledge not in KNOWLEDGE:
        raise ValueError(f"knowledge must be one of {', '.join(KNOWLEDGE)}; got {knowledge!r}")
    measurement = Measurement.of(scenes, noise_known="noise" in knowledge)
    return measurement, scenes.n_sources if "count" in knowledge else None


class _Localizer:
    def __init__(self, localizer: Localizer, polish: bool) -> None:
        self.localizer, self.polish = localizer, polish
        backbone = localizer.backbone
        self.atoms = backbone.atoms if isinstance(backbone, UnrolledBackbone) else AtomGrid(localizer.array)

    def find(self, scenes: Scenes, measurement: Measurement, n_sources: Tensor | None) -> Found:
        began = time.perf_counter()
        result = self.localizer.analyse(
            measurement.y,
            measurement.codes,
            measurement.channel,
            noise_power=measurement.noise_power,
            polish=self.polish,
        )
        sources = result.sources
        if n_sources is not None:
            sources = self._counted(measurement, sources, n_sources)
        return Found(sources, time.perf_counter() - began, result.seconds)

    def _counted(self, measurement: Measurement, found: list[Sources], n_sources: Tensor) -> list[Sources]:
        """As many as there are: the strongest, or births of the likelihood without a penalty."""
        counts = n_sources.tolist()
        result = [_strongest(sources, count) for sources, count in zip(found, counts, strict=True)]
        for count in sorted(set(counts)):
            lacking = [i for i, s in enumerate(result) if counts[i] == count and len(s) < count]
            if lacking and self.polish:
                how = PolishOptions(births=count, max_sources=count, penalty=0.0)
                part = measurement[torch.tensor(lacking)]
                grown = polish_sources(part, [result[i] for i in lacking], self.atoms, how).sources
                for i, sources in zip(lacking, grown, strict=True):
                    result[i] = sources
        return result


def _strongest(sources: Sources, count: int) -> Sources:
    return Sources(
        *(getattr(sources, name)[:count] for name in ("azimuth", "elevation", "range", "power", "confidence"))
    )


class _Baseline:
    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline

    def find(self, scenes: Scenes, measurement: Measurement, n_sources: Tensor | None) -> Found:
        method = self.baseline
        if isinstance(method, TrueCapon):
            method = method.with_truth(scenes.true_covariance())
        began = time.perf_counter()
        sources = method.localize(measurement, n_sources)
        return Found(sources, time.perf_counter() - began, {})


class _CheckoutMethod(_Baseline):
    def __init__(self, line: LineBaseline) -> None:
        super().__init__(line)
        self.line = line


class _FromTruth:
    """Maximum likelihood started at the true sources, with the range posterior: what the best search could find."""

    def __init__(self, array: PlanarArray) -> None:
        self.atoms = AtomGrid(array)

    def find(self, scenes: Scenes, measurement: Measurement, n_sources: Tensor | None) -> Found:
        start = []
        for position, power, mask in zip(scenes.position.double(), scenes.power.double(), scenes.mask, strict=True):
            azimuth, elevation, r = position[mask].unbind(-1)
            start.append(Sources(azimuth, elevation, r, power[mask], torch.ones_like(r)))
        how = PolishOptions(births=0, penalty=0.0, max_sources=max(scenes.mask.shape[1], 1))
        began = time.perf_counter()
        polished = polish_sources(measurement, start, self.atoms, how, noise_power=scenes.noise_power)
        return Found(polished.sources, time.perf_counter() - began, {})


class Methods:
    """Makes methods by name and keeps them.

    Parameters
    ----------
    model : Path
        Model folder of the localizer.
    transformer : Path or None
        Model folder of the transformer backbone.
    dcd_checkout : Path or None
        Checkout that :data:`CHECKOUT_METHODS` run.
    dcd_weights : tuple of Path
        Their weights; each file says which method it is for.
    """

    def __init__(
        self,
        model: Path,
        transformer: Path | None = None,
        dcd_checkout: Path | None = None,
        dcd_weights: tuple[Path, ...] = (),
    ) -> None:
        self._model, self._transformer = model, transformer
        self._dcd_checkout, self._dcd_weights = dcd_checkout, dcd_weights
        self.array = array_from_json(read_card(model)["array"])
        self._made: dict[str, Method] = {}
        self._localizer: Localizer | None = None

    def check(self, names: tuple[str, ...]) -> None:
        """Refuse what cannot be made, before any work.

        Parameters
        ----------
        names : tuple of str
            Of methods.

        Raises
        ------
        ValueError
            An unknown or repeated name, the transformer without its model, or a checkout or weights that are missing,
            not what they should be, or not asked for.
        RuntimeError
            The checkout imports a package that is not installed.
        """
        for name in names:
            if name not in METHODS and name not in CHECKOUT_METHODS:
                known = ", ".join((*METHODS, *CHECKOUT_METHODS))
                raise ValueError(f"methods must be among {known}; got {name!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"methods must not repeat, got {', '.join(names)}")
        if "transformer_capon" in names and self._transformer is None:
            raise ValueError("transformer_capon needs a trained model: give its folder with --transformer")
        asked = [name for name in names if name in CHECKOUT_METHODS]
        if not asked and (self._dcd_checkout is not None or self._dcd_weights):
            raise ValueError(
                f"--dcd-checkout and --dcd-weights are for {' and '.join(CHECKOUT_METHODS)}: name them in --methods"
            )
        for name in asked:
            self[name]  # imports the checkout

    @property
    def localizer(self) -> Localizer:
        """Of the model folder."""
        if self._localizer is None:
            self._localizer = Localizer.load(self._model)
        return self._localizer

    def identity(self, name: str) -> dict[str, Any]:
        """What a method's results depend on besides the scenes, as JSON values.

        Parameters
        ----------
        name : str
            One of :data:`METHODS`.

        Returns
        -------
        dict
            JSON values: checksum of the weights where there are any, and options.

        Raises
        ------
        FileFormatError, ValueError
            The model folder cannot be read.
        """
        if name in ("localizer", "localizer_raw"):
            return {"weights": read_card(self._model)["sha256"], **self._decision(self.localizer.options)}
        if name in VARIANTS:
            variant = VARIANTS[name]
            weights = None if variant.classical else read_card(self._model)["sha256"]
            return {"weights": weights, **self._decision(variant.of(self.localizer.options)), "polish": variant.polish}
        if name == "transformer_capon":
            assert self._transformer is not None
            return {"weights": read_card(self._transformer)["sha256"], "options": _plain(BASELINES[name][1]())}
        if name in CHECKOUT_METHODS:
            method = self[name]
            assert isinstance(method, _CheckoutMethod)
            return method.line.identity()
        options = PolishOptions() if name == "ml_from_truth" else BASELINES[name][1]()
        return {"options": _plain(options)}

    def _decision(self, options: LocalizerOptions) -> dict[str, Any]:
        hits = self.localizer.hits
        return {"options": _plain(options), "hits": None if hits is None else _plain(hits)}

    def __getitem__(self, name: str) -> Method:
        """The method of that name, made on the first call."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Method:
        if name in ("localizer", "localizer_raw"):
            return _Localizer(self.localizer, polish=name == "localizer")
        if name in VARIANTS:
            return _Localizer(VARIANTS[name].build(self.localizer), VARIANTS[name].polish)
        if name == "ml_from_truth":
            return _FromTruth(self.array)
        if name == "transformer_capon" and self._transformer is not None:
            backbone, _ = load_model(self._transformer, build_backbone, array=self.array)
            return _Baseline(TransformerCapon(self.array, backbone=backbone))
        if name in CHECKOUT_METHODS:
            return self._of_checkout(name)
        return _Baseline(build_baseline(name, self.array))

    def _of_checkout(self, name: str) -> Method:
        if self._dcd_checkout is None:
            raise ValueError(f"{name} needs its public code: `{CLONE}`, and give the folder with --dcd-checkout")
        fitting = [path for path in self._dcd_weights if read_weights(path).options.method == name]
        if len(fitting) != 1:
            raise ValueError(
                f"{name} needs one file of trained weights with --dcd-weights, got {len(fitting)}; make one with "
                f"`python -m risfast.baselines.dcd_train --checkout {self._dcd_checkout} --method {name} "
                f"--out {name}.safetensors`"
            )
        kind, _ = CHECKOUT_BASELINES[name]
        return _CheckoutMethod(kind(self.array, CheckoutOptions(self._dcd_checkout, fitting[0])))


def _plain(options: Any) -> Any:
    """Options as JSON values."""
    assert is_dataclass(options)
    assert not isinstance(options, type)
    return json.loads(json.dumps(asdict(options), default=str))
