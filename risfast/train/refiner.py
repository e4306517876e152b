"""``risfast refiner``: stage 2, a U-Net on the maps of a backbone that no longer changes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from risfast.geometry import SearchGrid
from risfast.io.durable import replace_file
from risfast.localize import pipeline
from risfast.localize.localizer import REFINER_FOLDER
from risfast.localize.pipeline import Parts
from risfast.localize.refiner import Refiner, RefinerInput, estimate_maps, refined_sources
from risfast.losses import Terms, blob_heatmap, focal_heatmap
from risfast.models import build_backbone
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.models.files import MODEL_CARD, MODEL_WEIGHTS, load_model, read_card, save_model
from risfast.models.refiner import SpectrumRefiner
from risfast.setup import Setup
from risfast.simulate.scenes import Scenes
from risfast.sources import Sources
from risfast.train.backbone import keep_options
from risfast.train.config import RefinerConfig
from risfast.train.distributed import World
from risfast.train.loop import autocast
from risfast.train.runs import Figures, Measured, RunOutcome, RunReport, train_stage
from risfast.train.validation import capon_answers, scene_slice, summary_figures


@dataclass
class RefinerStage:
    """A refiner in training, validation and at the end of its run; see :class:`risfast.train.runs.Stage`."""

    module: SpectrumRefiner
    backbone: nn.Module  # Frozen
    setup: Setup  # Of the backbone, and of the system
    config: RefinerConfig

    def __post_init__(self) -> None:
        """Freeze the backbone."""
        self.backbone.requires_grad_(False).eval()
        self._judged: dict[int, _Judged] = {}

    @cached_property
    def grid(self) -> SearchGrid:
        """Of the maps."""
        return self.config.map_options.grid(self.setup)

    @property
    def parts(self) -> Parts:
        """What the refiner stands behind."""
        return Parts(self.backbone, self.setup)

    @property
    def refiner(self) -> Refiner:
        """The network with all that it takes to go from an estimate to sources."""
        return Refiner(self.module, self.grid, self.config.reading)

    @torch.no_grad()
    def given(self, measurement: Measurement) -> tuple[CovarianceEstimate, RefinerInput]:
        """The backbone's estimate of some scenes, and the maps of it."""
        estimate = pipeline.estimate(self.parts, measurement)
        return estimate, estimate_maps(estimate, self.backbone, self.setup, self.grid, self.config.reading)

    def loss(self, scenes: Scenes, noise_known: bool) -> Terms:
        """Mean focal loss over the scenes."""
        _, given = self.given(Measurement.of(scenes, noise_known=noise_known))
        width = torch.tensor(self.config.heatmap.sigma_deg).deg2rad().item()
        target = blob_heatmap(scenes.position, scenes.mask, self.grid, sigma_rad=(width, width))
        with autocast(self.config.machine.amp):
            logits = self.module.logits(given.maps)
        options = self.config.heatmap
        loss = focal_heatmap(logits.float(), target.float(), alpha=options.alpha, gamma=options.gamma).mean()
        return Terms(loss, {"heatmap": loss})

    @torch.no_grad()
    def measure(self, scenes: Scenes) -> Measured:
        """F1 and the rest of the refined detections, of the backbone's own and of Capon, on the same covariances."""
        key = id(scenes)
        if key not in self._judged:
            self._judged[key] = self._judge(scenes)
        known = self._judged[key]
        self.module.eval()
        found: list[Sources] = []
        believed: list[bool] = []
        for given, factor in known.batches:
            sources, verdict = refined_sources(self.refiner, given, factor, self.setup)
            found += sources
            believed += verdict.ok.tolist()
        # What the network itself finds: where the guard does not believe a map, nothing. Capon's answer, that stands in
        # for it in use, would hide a network that has learned nothing.
        figures = summary_figures(found, known.scenes, self.setup.tolerance)
        share = sum(believed) / len(believed)
        return Measured({**figures, **known.others, "guard_accepts": share}, False)

    @torch.no_grad()
    def locate(self, scenes: Scenes) -> tuple[CovarianceEstimate, list[Sources]]:
        """The backbone's estimate, and the sources by way of the refined maps."""
        estimate, given = self.given(pipeline.measure(scenes, self.config.pipeline))
        return estimate, refined_sources(self.refiner, given, estimate.factor, self.setup)[0]

    def save(self, folder: Path, card: dict[str, Any], figures: Figures) -> None:
        """Write the model folder; the card says how maps are read, of which backbone, and whether all this helps."""
        config = self.config
        card |= {
            "helps": helps(figures),
            "reading": {**vars(config.reading), "maps": list(config.reading.maps)},
            "grid": {name: axis.tolist() for name, axis in vars(self.grid).items()},
            "backbone": {"sha256": read_card(config.backbone_folder())["sha256"]},
        }
        keep_options(folder, self.config)
        save_model(folder, "refiner", self.module.state_dict(), self.setup, self.module.options(), card)

    def _judge(self, scenes: Scenes) -> _Judged:
        """What does not change while the refiner learns."""
        size, options = self.config.validation.batch_size, replace(self.config.pipeline, polished=False)
        of_backbone = replace(options, candidates=replace(options.candidates, source="own"))
        batches, own, capon = [], [], []
        for start in range(0, len(scenes), size):
            measurement = pipeline.measure(scene_slice(scenes, slice(start, start + size)), options)
            estimate, given = self.given(measurement)
            batches.append((given, estimate.factor))
            own += pipeline.candidates(self.parts, measurement, estimate, of_backbone)[0]
            capon += capon_answers(self.parts, measurement, estimate, options)
        others = {
            **summary_figures(own, scenes, self.setup.tolerance, "own_"),
            **summary_figures(capon, scenes, self.setup.tolerance, "capon_"),
        }
        return _Judged(scenes, batches, others)


@dataclass(frozen=True)
class _Judged:
    """A set of scenes with all that the refiner has no part in; it keeps the scenes, so that their id stays theirs."""

    scenes: Scenes
    batches: list[tuple[RefinerInput, torch.Tensor]]
    others: dict[str, float]


def train_refiner(config: RefinerConfig, folder: Path, report: RunReport) -> RunOutcome | None:
    """Train a refiner, or go on with a run that was interrupted."""

    def make(world: World) -> RefinerStage:
        setup = config.system.setup()
        backbone, _ = load_model(config.backbone_folder(), build_backbone, world.device, setup)
        torch.manual_seed(config.seed)
        network = SpectrumRefiner(replace(config.network, n_maps=len(config.reading.maps))).to(world.device)
        return RefinerStage(network, backbone, setup, config)

    outcome = train_stage(config, folder, report, make)
    if outcome is None or not outcome.complete:
        return outcome
    return replace(outcome, notes=[*outcome.notes, install(outcome.model, config)])


def install(model: Path, config: RefinerConfig) -> str:
    """Put a refiner that helps into the model folder of its backbone, where the localizer finds it, and say so."""
    if read_card(model)["helps"] is not True:
        return "the refiner is not put behind its backbone: its own test does not say that it helps"
    if not config.backbone:
        return f"the refiner helps; copy {model} to a folder {REFINER_FOLDER} in a model folder of your own to use it"
    folder = config.backbone_folder()
    if read_card(model)["backbone"]["sha256"] != read_card(folder)["sha256"]:
        return f"the refiner is not put behind {folder}: its weights are others by now than in the training"
    place, made = folder / REFINER_FOLDER, folder / f".{REFINER_FOLDER}.new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for name in (MODEL_WEIGHTS, MODEL_CARD):
        replace_file(made / name, (model / name).read_bytes())
    shutil.rmtree(place, ignore_errors=True)
    made.rename(place)  # which appears whole
    return f"the refiner helps, and stands behind its backbone: {place}"


def helps(figures: Figures) -> bool:
    """Whether the refiner detects better than the backbone's own peaks and than Capon, over all sets together."""
    # Better is a higher F1 than both; or, at no less recall, fewer ghosts than both.
    if not figures:
        return False

    def mean(name: str) -> float:
        return sum(figure[name] for figure in figures.values()) / len(figures)

    others = ("own_", "capon_")
    more = all(mean("f1") > mean(f"{other}f1") for other in others)
    recall = all(mean("recall") >= mean(f"{other}recall") for other in others)
    fewer = all(mean("ghosts_per_scene") < mean(f"{other}ghosts_per_scene") for other in others)
    return more or (recall and fewer)
