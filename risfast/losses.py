"""What a network is trained on: one function a term, and their weighted sum.

Every term takes a batch and gives one number a scene, (B,), zero at perfection; the order of the sources never matters.
Scenes may hold different numbers of sources: absent ones are masked, or zero columns of a factor, and a scene without
any adds nothing to a term that compares with sources. Gradients are finite wherever the inputs are, corners included;
inputs that are not finite make the term of their scene so, for the training loop to see.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, SearchGrid, direction_cosines
from risfast.models.atoms import RangeCells
from risfast.models.base import CovarianceEstimate, SourceMap
from risfast.setup import Setup
from risfast.simulate.scenes import Scenes
from risfast.steering import Wavefront, steering_vectors

_ENUMERATED_SLOTS = 5  # up to so many predictions all orders (at most 120) are tried at once, on any device
_SMALLEST_RANGE_M = 1e-3  # where the logarithm of a predicted range is cut off
_LARGEST_COST = 1e30  # stands for a cost that is not finite: the assignment must not fail where the loss will be NaN


def check_sources(position: Tensor, mask: Tensor, name: str = "position") -> None:
    """Check that positions and their mask belong together.

    position (B, K, 3), mask (B, K)
    """
    if not position.is_floating_point():
        raise TypeError(f"{name} must be a real floating-point tensor, got {position.dtype}")
    if position.ndim != 3 or position.shape[-1] != 3:
        raise ShapeError(f"{name} must have shape (B, K, 3): azimuth, elevation, range; got {tuple(position.shape)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {mask.dtype}; pass mask.bool()")
    if mask.shape != position.shape[:2]:
        raise ShapeError(f"mask must have shape {tuple(position.shape[:2])} as {name} says, got {tuple(mask.shape)}")


def _check_prediction(predicted: Tensor, position: Tensor) -> None:
    if not predicted.is_floating_point():
        raise TypeError(f"predicted must be a real floating-point tensor, got {predicted.dtype}")
    if predicted.ndim != 3 or predicted.shape[-1] != 3 or predicted.shape[0] != position.shape[0]:
        raise ShapeError(
            f"predicted must have shape (B, P, 3) = ({position.shape[0]}, P, 3): azimuth, elevation, range; "
            f"got {tuple(predicted.shape)}"
        )


def mean_over_sources(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis of what is not masked. Masked values are not looked at, not even for their gradient.

    values (..., K), mask (..., K) -> (...)
    """
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum(-1) / mask.sum(-1).clamp_min(1)


@lru_cache(maxsize=32)
def _orders(slots: int, sources: int) -> Tensor:
    """Every way to give ``sources`` different slots, int64 (n, sources), in lexicographic order."""
    orders = list(itertools.permutations(range(slots), sources))
    return torch.tensor(orders, dtype=torch.int64).reshape(len(orders), sources)


def assign_sources(cost: Tensor, mask: Tensor) -> Tensor:
    """Give each true source a prediction of its own, at the least total cost.

    cost (B, P, K), mask (B, K) -> (B, K)
    """
    # H. W. Kuhn, "The Hungarian method for the assignment problem", 1955, through
    # `scipy.optimize.linear_sum_assignment`; up to five predictions all orders are tried, without a loop over scenes.
    if cost.ndim != 3 or mask.shape != (cost.shape[0], cost.shape[2]):
        raise ShapeError(
            f"cost (B, P, K) and mask (B, K) must belong together, got {tuple(cost.shape)} and {tuple(mask.shape)}"
        )
    slots, sources = cost.shape[1:]
    if slots < sources:
        raise ShapeError(
            f"{slots} predictions cannot be paired with up to {sources} sources; predict at least as many as K_max"
        )
    table = cost.detach().double().nan_to_num(_LARGEST_COST, _LARGEST_COST, -_LARGEST_COST)
    table = torch.where(mask[:, None, :], table, torch.zeros_like(table))
    if slots <= _ENUMERATED_SLOTS:
        orders = _orders(slots, sources).to(cost.device)
        # [B, n, K]: what each source pays under each order
        paid = table[:, orders, torch.arange(sources, device=cost.device)]
        chosen = orders[paid.sum(-1).argmin(1)]
    else:
        chosen = torch.stack([_hungarian(scene) for scene in table.cpu()]) if len(table) else mask.long()
        chosen = chosen.to(cost.device)
    return torch.where(mask, chosen, torch.full_like(chosen, -1))


def _hungarian(cost: Tensor) -> Tensor:
    """The row for each column of one (P, K) cost, P >= K."""
    row, column = linear_sum_assignment(cost.numpy())
    chosen = torch.empty(cost.shape[1], dtype=torch.int64)
    chosen[torch.as_tensor(column)] = torch.as_tensor(row)
    return chosen


def position_huber(
    predicted: Tensor,
    position: Tensor,
    mask: Tensor,
    *,
    scale: tuple[float, float, float] = (math.radians(5.0), math.radians(5.0), 0.2),
) -> Tensor:
    """Huber loss of azimuth, elevation and log range after the best pairing of predictions with true sources.

    predicted (B, P, 3), position (B, K_max, 3), mask (B, K_max) -> (B,)
    """
    # For a pair, sum_c h(e_c / scale_c) with h(x) = x^2 / 2 up to |x| = 1 and |x| - 1/2 beyond, e = (azimuth error
    # wrapped to +-pi, elevation error, ln(r / r_true)); then the mean over the true sources. Predictions left over cost
    # nothing. P. J. Huber, "Robust estimation of a location parameter", 1964; pairing as in :func:`assign_sources`.
    check_sources(position, mask)
    _check_prediction(predicted, position)
    if len(scale) != 3 or not all(s > 0 for s in scale):
        raise ValueError(f"scale must be three positive numbers, got {scale!r}")
    truth = torch.where(mask[..., None], position, torch.ones_like(position)).to(predicted.dtype)
    here, there = _with_log_range(predicted)[:, :, None], _with_log_range(truth)[:, None]  # [B, P, 1, 3], [B, 1, K, 3]
    error = here - there
    turns = (error[..., 0].detach() / (2 * math.pi)).round()
    error = torch.stack([error[..., 0] - 2 * math.pi * turns, error[..., 1], error[..., 2]], -1)
    x = error / error.new_tensor(scale)
    cost = torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none").sum(-1)  # [B, P, K]
    chosen = assign_sources(cost, mask).clamp_min(0)
    return mean_over_sources(cost.gather(1, chosen[:, None, :])[:, 0], mask)


def _with_log_range(position: Tensor) -> Tensor:
    azimuth, elevation, r = position.unbind(-1)
    return torch.stack([azimuth, elevation, r.clamp_min(_SMALLEST_RANGE_M).log()], -1)


def angle_chamfer(predicted: Tensor, position: Tensor, mask: Tensor, *, predicted_mask: Tensor | None = None) -> Tensor:
    """Chamfer distance between the directions of two sets of sources.

    predicted (B, P, 3), position (B, K_max, 3), mask (B, K_max), predicted_mask (B, P) -> (B,)
    """
    # (mean over true of min over predicted + mean over predicted of min over true) / 2 of 1 - cos(angle between them).
    # H. Fan, H. Su, L. Guibas, "A point set generation network for 3D object reconstruction", CVPR 2017. 1 - cos is
    # taken as half the squared chord, which is smooth where directions meet and knows no wrap.
    check_sources(position, mask)
    _check_prediction(predicted, position)
    present = torch.ones(predicted.shape[:2], dtype=torch.bool, device=mask.device)
    if predicted_mask is not None:
        check_sources(predicted, predicted_mask, "predicted")
        present = predicted_mask
    if predicted.shape[1] == 0 or position.shape[1] == 0:
        return predicted.new_zeros(len(predicted)) + 0 * predicted.sum((1, 2))
    here = _directions(predicted, present)
    there = _directions(position.to(predicted.dtype), mask)
    distance = (here[:, :, None] - there[:, None]).square().sum(-1) / 2  # [B, P, K]
    # 4 is beyond any distance, which is at most 2; an absent row or column is left out of its mean
    pair = present[:, :, None] & mask[:, None, :]
    distance = torch.where(pair, distance, torch.full_like(distance, 4.0))
    both = present.any(1) & mask.any(1)
    to_predicted = mean_over_sources(distance.amin(1), mask & both[:, None])
    to_true = mean_over_sources(distance.amin(2), present & both[:, None])
    return (to_predicted + to_true) / 2


def _directions(position: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors (B, K, 3); of absent sources some direction, whatever their rows hold."""
    angle = torch.where(mask[..., None], position[..., :2], torch.zeros_like(position[..., :2]))
    return direction_cosines(angle[..., 0], angle[..., 1])


def focal_heatmap(logits: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of a map against soft targets, summed over the cells, per unit of target.

    logits (B, ...) -> (B,)
    """
    # With p = sigmoid(logit): sum_g alpha_t |t - p|^gamma (-t ln p - (1 - t) ln(1 - p)) / max(1, sum_g t), where
    # alpha_t = alpha t + (1 - alpha) (1 - t). T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017; for
    # targets between 0 and 1 in the form of X. Li et al., "Generalized focal loss", NeurIPS 2020 (there without alpha).
    if logits.shape != target.shape or logits.ndim < 2:
        raise ShapeError(
            f"logits and target must share a shape (B, ...), got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha!r}")
    if not (gamma == 0 or 1 <= gamma < math.inf):
        raise ValueError(f"gamma must be 0 or at least 1 (between, the gradient has a pole), got {gamma!r}")
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise ValueError("target must lie in [0, 1]")
    t = target.to(logits.dtype)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, t, reduction="none")
    weight = alpha * t + (1 - alpha) * (1 - t)
    cell = weight * (t - logits.sigmoid()).abs().pow(gamma) * entropy
    return cell.flatten(1).sum(1) / t.flatten(1).sum(1).clamp_min(1)


def blob_heatmap(
    position: Tensor,
    mask: Tensor,
    grid: SearchGrid,
    *,
    sigma_rad: tuple[float, float] = (math.radians(2.0), math.radians(2.0)),
) -> Tensor:
    """A Gaussian blob around the direction of each source, the largest where they overlap.

    position (B, K_max, 3), mask (B, K_max) -> (B, G_az, G_el)
    """
    # max_k exp(-(azimuth - azimuth_k)^2 / (2 sigma_az^2) - (elevation - elevation_k)^2 / (2 sigma_el^2)), with azimuth
    # differences wrapped to +-pi. The target of X. Zhou, D. Wang, P. Krähenbühl, "Objects as points", 2019, with widths
    # in angle instead of in cells.
    check_sources(position, mask)
    if len(sigma_rad) != 2 or not all(0 < s < math.inf for s in sigma_rad):
        raise ValueError(f"sigma_rad must be two positive widths in radians, got {sigma_rad!r}")
    azimuth, elevation = (axis.to(position.device) for axis in (grid.azimuth_rad, grid.elevation_rad))
    where = position.double()
    off_az = azimuth - where[..., :1]  # [B, K, G_az]
    off_az = (off_az - 2 * math.pi * (off_az / (2 * math.pi)).round()) / sigma_rad[0]
    off_el = (elevation - where[..., 1:2]) / sigma_rad[1]  # [B, K, G_el]
    blob = (off_az.square()[..., :, None] + off_el.square()[..., None, :]).div(-2).exp()
    blob = torch.where(mask[..., None, None], blob, torch.zeros_like(blob))
    empty = blob.new_zeros(len(blob), 1, *blob.shape[2:])  # the maximum of no blobs is 0
    return torch.cat([blob, empty], 1).amax(1).to(position.dtype)


# Added to the Gram matrix of unit steering vectors: the projector stays right to this for sources that coincide.
_GRAM_JITTER = 1e-10
# Share of the squared trace below which the off-diagonal energy that could be there is too small to judge.
_ENERGY_FLOOR = 1e-6
_RING_DIRECTIONS = 8


def _squared(x: Tensor) -> Tensor:
    """|x|^2 with a gradient that is finite at 0."""
    return x.real.square() + x.imag.square()


def _check_matrices(prediction: Tensor, target: Tensor, names: tuple[str, str], square: bool) -> None:
    """Complex, (B, N, N) both or (B, N, any) both, of one batch and N."""
    for name, matrix in zip(names, (prediction, target), strict=True):
        if not matrix.is_complex():
            raise TypeError(f"{name} must be complex64 or complex128, got {matrix.dtype}")
        if matrix.ndim != 3 or (square and matrix.shape[-1] != matrix.shape[-2]):
            shape = "(B, N, N)" if square else "(B, N, K)"
            raise ShapeError(f"{name} must have shape {shape}, got {tuple(matrix.shape)}")
    if prediction.shape[:2] != target.shape[:2]:
        raise ShapeError(
            f"{names[0]} and {names[1]} must share B and N, got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )


def _unit_scale(factor: Tensor) -> Tensor:
    """The factor over its largest entry, which no scale-free figure notices; a zero factor stays zero."""
    if factor.shape[-1] == 0:
        return factor
    with torch.no_grad():
        largest = torch.view_as_real(factor.resolve_conj()).abs().amax((1, 2, 3))
        largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    return factor / largest[:, None, None]


def _positive(x: Tensor) -> Tensor:
    """x, or 1 where it is 0: a divisor that spoils neither value nor gradient."""
    return torch.where(x == 0, torch.ones_like(x), x)


def factor_nmse(F_hat: Tensor, F_true: Tensor) -> Tensor:
    """Normalised squared error of F F^H after both covariances are scaled to the same trace, without an N x N matrix.

    F_hat (B, N, K_f), F_true (B, N, K) -> (B,)
    """
    # With R = F F^H / ||F||_F^2: ||R_hat - R||^2 / ||R||^2, where ||R_hat||^2, ||R||^2 and <R_hat, R> are the squared
    # norms of the Gram matrices F_hat^H F_hat, F^H F and F_hat^H F.
    _check_matrices(F_hat, F_true, ("F_hat", "F_true"), square=False)
    guess, truth = _unit_scale(F_hat), _unit_scale(F_true)
    trace_guess, trace_truth = _squared(guess).sum((1, 2)), _squared(truth).sum((1, 2))
    own = _squared(guess.mH @ guess).sum((1, 2)) / _positive(trace_guess).square()
    cross = _squared(guess.mH @ truth).sum((1, 2)) / (_positive(trace_guess) * _positive(trace_truth))
    energy = _squared(truth.mH @ truth).sum((1, 2)) / _positive(trace_truth).square()
    error = (own - 2 * cross + energy).clamp_min(0)
    return torch.where(trace_truth > 0, error / _positive(energy), torch.zeros_like(error))


def subspace_alignment(F_hat: Tensor, F_true: Tensor) -> Tensor:
    """Share of the predicted power outside the span of the true steering vectors: 1 - ||P F_hat||^2 / ||F_hat||^2.

    F_hat (B, N, K_f), F_true (B, N, K) -> (B,)
    """
    # P = A (A^H A)^-1 A^H projects on the true steering vectors, so that ||P F_hat||^2 = ||C^-1 A^H F_hat||^2 with the
    # K x K Cholesky factor C C^H = A^H A; nothing that is learned is decomposed. The signal-subspace projector of R. O.
    # Schmidt, "Multiple emitter location and signal parameter estimation", IEEE Trans. AP 34, 1986 (MUSIC). A
    # covariance that misses a source but adds nothing scores 0: it complements :func:`factor_nmse`, it does not replace
    # it.
    _check_matrices(F_hat, F_true, ("F_hat", "F_true"), square=False)
    guess = _unit_scale(F_hat)
    with torch.no_grad():
        norm = torch.linalg.vector_norm(F_true.to(torch.complex128), dim=1, keepdim=True)  # [B, 1, K]
        steering = F_true / _positive(norm)
        present = (norm[:, 0] > 0).double()
        gram = steering.mH @ steering + torch.diag_embed(1 - present + _GRAM_JITTER)
        # rows of C^-1 A^H, orthonormal: P = whitened^H whitened
        whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), steering.mH, upper=False)
    inside = _squared(whitened.to(guess.dtype) @ guess).sum((1, 2))
    outside = (1 - inside / _positive(_squared(guess).sum((1, 2)))).clamp_min(0)
    return torch.where(present.any(1), outside, torch.zeros_like(outside))


def orthogonality(F_hat: Tensor) -> Tensor:
    """How far the columns of a factor are from orthogonal.

    F_hat (B, N, K_f) -> (B,)
    """
    # sum_{i != j} |f_i^H f_j|^2 / sum_{i != j} ||f_i||^2 ||f_j||^2. The double soft orthogonality of N. Bansal, X.
    # Chen, Z. Wang, NeurIPS 2018, weighted by power, so that columns without any need not point anywhere. The
    # denominator is raised by 1e-6 of the squared trace, which bounds the gradient where one column holds nearly all
    # power.
    _check_matrices(F_hat, F_hat, ("F_hat", "F_hat"), square=False)
    guess = _unit_scale(F_hat)
    gram = guess.mH @ guess
    power = gram.diagonal(dim1=1, dim2=2).real
    trace2 = power.sum(1).square()
    own = power.square().sum(1)
    crossed = _squared(gram).sum((1, 2)) - own
    possible = trace2 - own + _ENERGY_FLOOR * trace2
    return (crossed / _positive(possible)).clamp_min(0)


def capon_peak_contrast(
    covariance: Tensor,
    array: PlanarArray,
    position: Tensor,
    mask: Tensor,
    *,
    loading: float = 1e-2,
    wavefront: Wavefront = "spherical",
    ring_rad: Sequence[float] = (math.radians(5.0), math.radians(10.0)),
    margin_db: float = 10.0,
) -> Tensor:
    """Whether the Capon spectrum peaks at the true sources: max(0, 1 - contrast / margin), averaged.

    covariance (B, N, N), position (B, K_max, 3), mask (B, K_max) -> (B,)
    """
    # The contrast is the Capon power at a true position over that at a point on a ring of directions around it, at the
    # true range, in dB. Points of a ring that come within half its smallest radius of another source are left out. P =
    # N / ||L^-1 a||^2 with one Cholesky factor a scene, R + delta I = L L^H, and all steering vectors as right-hand
    # sides. A matrix that is not positive definite gives NaN for its scene.
    _check_matrices(covariance, covariance, ("covariance", "covariance"), square=True)
    check_sources(position, mask)
    if covariance.shape[1] != array.n_elements or len(position) != len(covariance):
        raise ShapeError(
            f"covariance must have shape ({len(position)}, N, N), N = {array.n_elements} as position and array say, "
            f"got {tuple(covariance.shape)}"
        )
    if not (0 < loading < math.inf and 0 < margin_db < math.inf):
        raise ValueError(f"loading and margin_db must be positive, got {loading!r} and {margin_db!r}")
    if not ring_rad or not all(0 < radius < math.pi / 2 for radius in ring_rad):
        raise ValueError(f"ring_rad must hold radii between 0 and pi / 2 in radians, got {tuple(ring_rad)!r}")
    points, judged = _rings(position, mask, ring_rad)  # [B, K, 1 + J, 3], [B, K, J]
    steering = steering_vectors(array, *points.unbind(-1), wavefront=wavefront, dtype=covariance.dtype)
    n = array.n_elements
    trace = covariance.diagonal(dim1=1, dim2=2).real.sum(1)
    eye = torch.eye(n, dtype=covariance.dtype, device=covariance.device)
    lower, info = torch.linalg.cholesky_ex(covariance + (loading / n * _positive(trace))[:, None, None] * eye)
    solved = torch.linalg.solve_triangular(lower, steering.flatten(1, 2).mT, upper=False)  # [B, N, K (1 + J)]
    level = -10 * _squared(solved).sum(1).log10().unflatten(1, points.shape[1:3])
    short = (1 - (level[..., :1] - level[..., 1:]) / margin_db).clamp_min(0)
    loss = mean_over_sources(mean_over_sources(short, judged), judged.any(-1))
    return torch.where(info == 0, loss, torch.full_like(loss, math.nan))


def _rings(position: Tensor, mask: Tensor, ring_rad: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Each source and the points around it (B, K, 1 + J, 3), and which of these are free of other sources (B, K, J)."""
    where = torch.where(mask[..., None], position.detach().double(), torch.ones_like(position, dtype=torch.float64))
    angle = torch.arange(_RING_DIRECTIONS, dtype=torch.float64, device=where.device) * (2 * math.pi / _RING_DIRECTIONS)
    radius = torch.tensor(list(ring_rad), dtype=torch.float64, device=where.device)
    circle = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], -1)
    offset = (radius[:, None, None] * circle).flatten(0, 1)  # [J, 3]
    ring = where[:, :, None] + offset
    direction = direction_cosines(ring[..., 0], ring[..., 1])  # [B, K, J, 3]
    sources = direction_cosines(where[..., 0], where[..., 1])  # [B, K, 3]
    chord = (direction[:, :, :, None] - sources[:, None, None]).square().sum(-1).sqrt()  # [B, K, J, K]
    occupied = (chord < 2 * math.sin(min(ring_rad) / 4)) & mask[:, None, None]
    return torch.cat([where[:, :, None], ring], 2), mask[..., None] & ~occupied.any(-1)


@dataclass(frozen=True)
class ObjectiveOptions:
    """Weights of the terms."""

    nmse: float = 1.0  # Weight of the error of the trace-normalised covariance
    # Weight of the Poisson negative log-likelihood of the true sources under the expected counts
    intensity: float = 0.05
    offset: float = 0.1  # Weight of the Huber loss of the direction offsets, in units of the spacing of atoms
    # Weight of the permutation-invariant Huber loss of positions, for a backbone that predicts them
    position: float = 0.1
    alignment: float = 0.0  # Weight of the share of the predicted power outside the span of the true steering vectors
    orthogonality: float = 0.0  # Weight of how far the columns of the factor are from orthogonal
    contrast: float = 0.0  # Weight of the Capon power at the true sources over that around them
    chamfer: float = 0.0  # Weight of the distance of the two sets of directions, for a backbone that predicts positions

    def __post_init__(self) -> None:
        """Check the signs."""
        for name, weight in vars(self).items():
            if not weight >= 0:
                raise ValueError(f"{name} must be at least 0, got {weight!r}")


class Terms(NamedTuple):
    """A loss and what it is made of."""

    total: Tensor  # The weighted sum, for the gradient
    parts: dict[str, Tensor]  # Each term before its weight


class BackboneObjective:
    """The training loss of a backbone."""

    def __init__(self, options: ObjectiveOptions | None = None, cells: RangeCells | None = None) -> None:
        self.options, self.cells = options or ObjectiveOptions(), cells

    def __call__(self, estimate: CovarianceEstimate, scenes: Scenes) -> Terms:
        """Compare an estimate with the truth of the scenes; in float32."""
        weights, factor = self.options, estimate.factor
        true = scenes.true_factor().to(factor.dtype)
        parts = {"nmse": factor_nmse(factor, true).mean()}
        if weights.alignment:
            parts["alignment"] = subspace_alignment(factor, true).mean()
        if weights.orthogonality:
            parts["orthogonality"] = orthogonality(factor).mean()
        if weights.contrast:
            system, covariance = scenes.config, estimate.covariance()
            contrast = capon_peak_contrast(
                covariance, system.array, scenes.position, scenes.mask, wavefront=system.wavefront
            )
            parts["contrast"] = contrast.mean()
        if estimate.sources is not None and self.cells is not None:
            parts |= _count_terms(estimate.sources, scenes, self.cells)
        positions = getattr(estimate, "positions", None)
        if positions is not None:
            where, scale = scenes.position.to(positions.dtype), _scale(scenes.config.setup)
            parts["position"] = position_huber(positions, where, scenes.mask, scale=scale).mean()
            if weights.chamfer:
                parts["chamfer"] = angle_chamfer(positions, where, scenes.mask).mean()
        return Terms(reduce(torch.add, (getattr(weights, name) * term for name, term in parts.items())), parts)


def _scale(setup: Setup) -> tuple[float, float, float]:
    """The tolerance of a hit, that in range at half the farthest one; a range that is not scored does not count."""
    azimuth, elevation, r = setup.tolerance.limits
    return azimuth, elevation, r / (setup.region.range_m[1] / 2)


def _count_terms(found: SourceMap, scenes: Scenes, cells: RangeCells) -> dict[str, Tensor]:
    """Negative log-likelihood of a Poisson process (mean over scenes) and offset loss (mean over scenes of the mean
    over sources).
    """
    # -log p = sum_g exp(z_g) - sum_k z_(cell of k), up to a constant: smallest where exp(z) is the expected count.
    target = cells.targets(scenes.position)
    z = found.log_intensity.float().flatten(1)
    here = scenes.mask.to(z.dtype)
    likelihood = z.exp().sum(1) - (z.gather(1, target.cell) * here).sum(1)
    n_cells = len(cells)
    atom = target.cell // n_cells * cells.axes.n_range + target.cell % n_cells // cells.per_atom
    at = found.offset.float().flatten(1, 3).gather(1, atom[..., None].expand(-1, -1, 2))
    error = nn.functional.smooth_l1_loss(at, target.offset.to(at.device), beta=0.1, reduction="none").sum(-1)
    per_scene = (error * here).sum(1) / here.sum(1).clamp_min(1)
    return {"intensity": likelihood.mean(), "offset": per_scene.mean()}
