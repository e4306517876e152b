"""How good a backbone is, measured the way it is used: its covariance, its own peaks, and Capon on its covariance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from risfast.evaluate import Summary, match, summarise
from risfast.geometry import SearchGrid
from risfast.localize import pipeline
from risfast.localize.pipeline import Parts, PipelineOptions
from risfast.models.base import CovarianceEstimate, Measurement
from risfast.setup import Tolerance
from risfast.simulate.scenes import Scenes
from risfast.sources import Sources

# A backbone whose predictions vary over scenes by less than this share of what the true covariances do is blind.
_CONSTANT_SHARE = 0.02


@dataclass(frozen=True)
class CovarianceScores:
    """Figures over a set of scenes with sources, of covariances that are normalised to trace N."""

    nmse_mean: float  # |R_est - R|^2 / |R|^2 in the Frobenius norm; 1 for a matrix of zeros
    nmse_median: float  # |R_est - R|^2 / |R|^2 in the Frobenius norm; 1 for a matrix of zeros
    # Mean of the same for the mean of the true covariances: what a prediction that ignores the scene can reach
    nmse_of_mean: float
    # Mean of <R_i, R_j> / (|R_i| |R_j|) between the predictions of different scenes; 1 for a constant
    correlation: float
    # Mean of |R_i - mean|^2 over mean of |R_i|^2 of the predictions: their variance over scenes, 0 for a constant
    spread: float
    true_spread: float  # The same of the true covariances


def _unit_trace(factor: Tensor) -> Tensor:
    """A factor of the covariance scaled to trace N; zeros stay zeros."""
    power = factor.abs().square().sum((-2, -1), keepdim=True)
    scale = torch.where(power > 0, factor.shape[-2] / power, torch.zeros_like(power))
    return factor * scale.sqrt()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<A A^H, B B^H> = |A^H B|^2 by columns: never an N x N matrix."""
    return (a.mH @ b).abs().square().sum((-2, -1))


# Factors [B, N, K] of covariances R in float64, and |R|^2 [B] of each, batch by batch.
_Batches = Sequence[tuple[Tensor, Tensor]]


def _summed_covariance(factors: Iterable[Tensor]) -> Tensor:
    """Sum over scenes of F F^H: of each batch one product of [N, B K] with its adjoint."""
    wide = (factor.movedim(0, 1).flatten(1) for factor in factors)
    total: Tensor = sum(w @ w.mH for w in wide)  # type: ignore[assignment]  # there is a batch
    return total


def _spread(batches: _Batches) -> float:
    """Variance over scenes relative to the mean square: 1 - |mean|^2 / mean |R|^2."""
    energy = torch.cat([of_batch for _, of_batch in batches])
    if not float(energy.mean()) > 0:
        return 0.0
    mean = _summed_covariance(factor for factor, _ in batches) / len(energy)
    return max(1 - float(mean.abs().square().sum() / energy.mean()), 0.0)


def _correlation(batches: _Batches) -> float:
    """Mean over pairs of different scenes; one without power counts as alike, as a constant is."""
    alive = sum(int((energy > 0).sum()) for _, energy in batches)
    if alive < 2:
        return 1.0
    units = [torch.where(energy > 0, energy.clamp_min(1e-300).rsqrt(), 0.0).sqrt() for _, energy in batches]
    directions = _summed_covariance(
        factor * unit[:, None, None] for (factor, _), unit in zip(batches, units, strict=True)
    )
    return (float(directions.abs().square().sum()) - alive) / (alive * (alive - 1))


def score_covariances(estimated: Sequence[Tensor], true: Sequence[Tensor]) -> CovarianceScores:
    """Compare predicted with true covariances, given by factors.

    estimated, true (B, N, K_f) and (B, N, K)
    """
    predictions, truths, errors = [], [], []
    for estimate, truth in zip(estimated, true, strict=True):
        keep = truth.abs().square().sum((-2, -1)) > 0
        f, t = (_unit_trace(factor[keep].to(torch.complex128)) for factor in (estimate, truth))
        energy, own = _inner(t, t), _inner(f, f)
        errors.append((energy - 2 * _inner(f, t) + own) / energy)
        predictions.append((f, own))
        truths.append((t, energy))
    error, energy = torch.cat(errors), torch.cat([of_truth for _, of_truth in truths])
    if len(error) == 0:
        raise ValueError("no scene has a source: there is no covariance to compare with")
    mean = _summed_covariance([t for t, _ in truths]) / len(error)
    # mean over scenes of |M - R|^2 / |R|^2, with <M, R> = tr(F^H M F)
    cross = torch.cat([(t.conj() * (mean @ t)).real.sum((-2, -1)) for t, _ in truths])
    return CovarianceScores(
        nmse_mean=float(error.mean()),
        nmse_median=float(error.median()),
        nmse_of_mean=float(((mean.abs().square().sum() - 2 * cross) / energy + 1).mean()),
        correlation=_correlation(predictions),
        spread=_spread(predictions),
        true_spread=_spread(truths),
    )


def is_constant(scores: CovarianceScores) -> bool:
    """Whether the predictions ignore the scene: they hardly differ from their own mean, where the truth does."""
    return scores.spread < _CONSTANT_SHARE * scores.true_spread


def score_sources(found: Sequence[Sources], scenes: Scenes, tolerance: Tolerance | None = None) -> Summary:
    """Figures of detections against the true sources."""
    position, mask, tolerance = scenes.position.cpu(), scenes.mask.cpu(), tolerance or scenes.config.setup.tolerance
    return summarise([match(sources.position, position[i][mask[i]], tolerance) for i, sources in enumerate(found)])


def peak_to_sidelobe_db(power: Tensor, grid: SearchGrid, true: Tensor, tolerance: Tolerance) -> float:
    """Highest power near a true source over the highest elsewhere, in dB.

    power (G_az, G_el), true (K, 3)
    """
    power, true = power.double().cpu(), true.double().cpu()
    azimuth, elevation = grid.azimuth_rad.double().cpu(), grid.elevation_rad.double().cpu()
    turned = torch.remainder(azimuth[:, None, None] - true[:, 0] + math.pi, 2 * math.pi) - math.pi
    near = (
        (turned.abs() <= tolerance.azimuth_rad)
        & ((elevation[None, :, None] - true[:, 1]).abs() <= tolerance.elevation_rad)
    ).any(-1)
    if not bool(near.any()) or bool(near.all()):
        return math.nan
    return float(10 * torch.log10(power[near].max() / power[~near].max()))


# The figures of a summary that metrics and cards hold.
_RATES = ("f1", "precision", "recall", "ghosts_per_scene", "count_accuracy")
_ERRORS = ("rmse_azimuth_rad", "rmse_elevation_rad", "rmse_range_m", "rmse_xyz_m")


def summary_figures(
    found: Sequence[Sources], scenes: Scenes, tolerance: Tolerance, prefix: str = ""
) -> dict[str, float]:
    """Figures of detections against the true sources, as metrics and cards hold them."""
    summary = score_sources(found, scenes, tolerance)
    return {f"{prefix}{name}": float(getattr(summary, name)) for name in (*_RATES, *_ERRORS)}


def scene_slice(scenes: Scenes, part: slice | Tensor) -> Scenes:
    """Some of the scenes.

    part (B,)
    """
    tensors = {name: value[part] for name, value in vars(scenes).items() if isinstance(value, Tensor)}
    return Scenes(config=scenes.config, **tensors)


@torch.no_grad()
def validate(
    parts: Parts, scenes: Scenes, options: PipelineOptions | None = None, *, batch_size: int = 16, capon_scenes: int = 0
) -> tuple[dict[str, float], CovarianceScores]:
    """Measure a backbone on a set of scenes. Training, its end and evaluation all come through here."""
    options = replace(options or PipelineOptions(), polished=False)
    was_training = parts.backbone.training
    parts.backbone.eval()
    estimated, true, found, noise = [], [], [], []
    try:
        for start in range(0, len(scenes), batch_size):
            part = scene_slice(scenes, slice(start, start + batch_size))
            measurement = pipeline.measure(part, options)
            estimate = pipeline.estimate(parts, measurement)
            found += pipeline.candidates(parts, measurement, estimate, options)[0]
            estimated.append(estimate.factor)
            noise.append(estimate.noise_power)
            true.append(part.true_factor())
    finally:
        parts.backbone.train(was_training)
    scores = score_covariances(estimated, true)
    figures = {**vars(scores), **summary_figures(found, scenes, parts.setup.tolerance)}
    if capon_scenes:
        few = scene_slice(scenes, slice(0, capon_scenes))
        known = None if any(power is None for power in noise) else torch.cat(noise)[:capon_scenes]  # type: ignore[arg-type]
        estimate = CovarianceEstimate(_joined(estimated)[:capon_scenes], noise_power=known)
        figures |= _capon_figures(parts, estimate, few, options)
    return figures, scores


def _joined(factors: Sequence[Tensor]) -> Tensor:
    """Factors of all scenes, whose widths may differ between batches."""
    width = max(factor.shape[-1] for factor in factors)
    return torch.cat([torch.nn.functional.pad(factor, (0, width - factor.shape[-1])) for factor in factors])


def _capon_figures(
    parts: Parts, estimate: CovarianceEstimate, scenes: Scenes, options: PipelineOptions
) -> dict[str, float]:
    """Detection from the effective covariance, and from the true one."""
    setup, measurement = parts.setup, pipeline.measure(scenes, options)
    found = capon_answers(parts, measurement, estimate, options)
    spectrum, grid = pipeline.spectrum(pipeline.effective(estimate, measurement, options), setup, options)
    true = [position[mask] for position, mask in zip(scenes.position, scenes.mask, strict=True)]
    ratios = [peak_to_sidelobe_db(spectrum.power[i], grid, true[i], setup.tolerance) for i in range(len(scenes))]
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    truth = replace(options, map=replace(options.map, blend=0.0, shrinkage=False))
    of_truth = capon_answers(parts, measurement, CovarianceEstimate(scenes.true_factor()), truth)
    return {
        **summary_figures(found, scenes, setup.tolerance, "capon_"),
        "capon_peak_to_sidelobe_db": sum(finite) / len(finite) if finite else math.nan,
        "true_capon_f1": score_sources(of_truth, scenes, setup.tolerance).f1,
    }


def capon_answers(
    parts: Parts, measurement: Measurement, estimate: CovarianceEstimate, options: PipelineOptions
) -> list[Sources]:
    """Capon detection where it is the answer, whatever source of candidates the options name."""
    capon = replace(options, polished=False, candidates=replace(options.candidates, source="capon"))
    return pipeline.candidates(parts, measurement, estimate, capon)[0]
