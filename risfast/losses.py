"""What a network is trained on: one function a term, and their weighted sum.

Every term takes a batch and gives one number a scene, (B,), zero at perfection; the order of the sources never matters.
Scenes may hold different numbers of sources: absent ones are masked, or zero columns of a factor, and a scene without
any adds nothing to a term that compares with sources. Gradients are finite wherever the inputs are, corners included;
inputs that are not finite make the term of their scene so, for the training loop to see.

Terms between sets of positions live in ``risfast.set_losses``, those of maps in ``risfast.map_losses``; all are offered
here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import PlanarArray, direction_cosines
from risfast.map_losses import blob_heatmap, focal_heatmap, intensity_nll
from risfast.set_losses import angle_chamfer, assign_sources, check_sources, mean_over_sources, position_huber
from risfast.steering import Wavefront, steering_vectors

__all__ = [
    "angle_chamfer",
    "assign_sources",
    "blob_heatmap",
    "capon_peak_contrast",
    "covariance_nmse",
    "factor_nmse",
    "focal_heatmap",
    "intensity_nll",
    "orthogonality",
    "position_huber",
    "subspace_alignment",
    "total_loss",
]

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


def covariance_nmse(
    covariance: Tensor, target: Tensor, *, diagonal_weight: float = 1.0, off_diagonal_weight: float = 1.0
) -> Tensor:
    """Normalised squared error of a covariance: sum w |R - R_true|^2 / sum w |R_true|^2.

    Parameters
    ----------
    covariance, target : complex tensors, shape (B, N, N)
        As they are to be compared: both from :func:`risfast.covariance.effective_covariance` with the same options,
        which is where trace, loading and shrinkage are settled.
    diagonal_weight, off_diagonal_weight : float >= 0, not both 0
        w on the diagonal and off it. The diagonal holds powers alone, the rest holds where they come from.

    Returns
    -------
    real tensor, shape (B,)
        0 at the target, 1 for the zero matrix; 0 where the weighted target is zero.

    Raises
    ------
    ShapeError, TypeError, ValueError
        Shapes that disagree, not complex, a negative weight or two zeros.
    """
    _check_matrices(covariance, target, ("covariance", "target"), square=True)
    if not (0 <= diagonal_weight < math.inf and 0 <= off_diagonal_weight < math.inf):
        raise ValueError(f"the weights must be finite and >= 0, got {diagonal_weight!r} and {off_diagonal_weight!r}")
    if diagonal_weight == off_diagonal_weight == 0:
        raise ValueError("diagonal_weight and off_diagonal_weight are both 0: nothing is left to compare")
    eye = torch.eye(target.shape[-1], dtype=target.real.dtype, device=target.device)
    weight = off_diagonal_weight + (diagonal_weight - off_diagonal_weight) * eye
    energy = (weight * _squared(target)).sum((1, 2))
    error = (weight * _squared(covariance - target)).sum((1, 2))
    return torch.where(energy > 0, error / _positive(energy), torch.zeros_like(error))


def factor_nmse(F_hat: Tensor, F_true: Tensor) -> Tensor:
    """Normalised squared error of F F^H after both covariances are scaled to the same trace, without an N x N matrix.

    With R = F F^H / ||F||_F^2: ||R_hat - R||^2 / ||R||^2, where ||R_hat||^2, ||R||^2 and <R_hat, R> are the squared
    norms of the Gram matrices F_hat^H F_hat, F^H F and F_hat^H F.

    Parameters
    ----------
    F_hat : complex tensor, shape (B, N, K_f)
        Any K_f and any scale.
    F_true : complex tensor, shape (B, N, K)
        Columns sqrt(p_k) a_k; zero columns are absent sources.

    Returns
    -------
    real tensor, shape (B,)
        0 at the truth, 1 for a zero factor, up to 2 + for a prediction that shares nothing with it; 0 where F_true is
        zero. Exact to some 1e-6 in complex64.

    Raises
    ------
    ShapeError, TypeError
        Shapes that disagree, or not complex.
    """
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

    P = A (A^H A)^-1 A^H projects on the true steering vectors, so that ||P F_hat||^2 = ||C^-1 A^H F_hat||^2 with the
    K x K Cholesky factor C C^H = A^H A; nothing that is learned is decomposed.

    Parameters
    ----------
    F_hat : complex tensor, shape (B, N, K_f)
        Any K_f and any scale.
    F_true : complex tensor, shape (B, N, K)
        Columns proportional to the steering vectors of the true sources, of any power; zero columns are absent ones.

    Returns
    -------
    real tensor, shape (B,)
        0 where F_hat lies in the span, 1 where it is orthogonal to it or zero; 0 where F_true is zero. Sources that
        coincide span what one of them does.

    Raises
    ------
    ShapeError, TypeError
        Shapes that disagree, or not complex.

    Notes
    -----
    The signal-subspace projector of R. O. Schmidt, "Multiple emitter location and signal parameter estimation", IEEE
    Trans. AP 34, 1986 (MUSIC). A covariance that misses a source but adds nothing scores 0: it complements
    :func:`factor_nmse`, it does not replace it.
    """
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

    sum_{i != j} |f_i^H f_j|^2 / sum_{i != j} ||f_i||^2 ||f_j||^2.

    Parameters
    ----------
    F_hat : complex tensor, shape (B, N, K_f)
        Any K_f and any scale.

    Returns
    -------
    real tensor, shape (B,)
        0 for orthogonal columns, and where fewer than two carry power; 1 where all are parallel.

    Raises
    ------
    ShapeError, TypeError
        Not (B, N, K_f), or not complex.

    Notes
    -----
    The double soft orthogonality of N. Bansal, X. Chen, Z. Wang, NeurIPS 2018, weighted by power, so that columns
    without any need not point anywhere. The denominator is raised by 1e-6 of the squared trace, which bounds the
    gradient where one column holds nearly all power.
    """
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

    The contrast is the Capon power at a true position over that at a point on a ring of directions around it, at the
    true range, in dB. Points of a ring that come within half its smallest radius of another source are left out.

    Parameters
    ----------
    covariance : complex tensor, shape (B, N, N)
        Effective covariance, Hermitian and positive semi-definite, element order as in ``array``.
    array : PlanarArray
        N elements.
    position : real tensor, shape (B, K_max, 3)
        True azimuth, elevation (radians), range (metres).
    mask : bool tensor, shape (B, K_max)
        True where there is a source.
    loading : float > 0
        Diagonal loading, relative to trace / N.
    wavefront : {"spherical", "fresnel", "planar"}
        See :func:`risfast.steering.steering_vectors`.
    ring_rad : floats > 0
        Radii of the rings in radians, eight points each.
    margin_db : float > 0
        Contrast that is enough.

    Returns
    -------
    real tensor, shape (B,)
        0 where every source stands ``margin_db`` above its rings, 1 for a flat spectrum (the identity, or zero), more
        where a ring is above its source; 0 without sources.

    Raises
    ------
    ShapeError, TypeError, ValueError
        Shapes or dtypes that do not belong together, an option out of its range.

    Notes
    -----
    P = N / ||L^-1 a||^2 with one Cholesky factor a scene, R + delta I = L L^H, and all steering vectors as right-hand
    sides. A matrix that is not positive definite gives NaN for its scene.
    """
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


def total_loss(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of the terms, averaged over the batch: sum_i w_i mean_b term_i[b].

    Parameters
    ----------
    terms : mapping of str to real tensor, shape (B,)
        One number a scene each.
    weights : mapping of str to float
        One for each term, finite and >= 0; a term of weight 0 takes no part, whatever its value.

    Returns
    -------
    real scalar tensor

    Raises
    ------
    ShapeError, ValueError
        Terms and weights that do not name the same, a negative weight, no weight above 0, terms of different shapes or
        without scenes.
    """
    if set(terms) != set(weights):
        raise ValueError(f"terms and weights must name the same, got {sorted(terms)} and {sorted(weights)}")
    if not all(0 <= w < math.inf for w in weights.values()) or not any(weights.values()):
        raise ValueError(f"weights must be finite, >= 0 and not all 0, got {dict(weights)}")
    sizes = {name: tuple(term.shape) for name, term in terms.items()}
    if len(set(sizes.values())) != 1 or any(len(size) != 1 or size[0] == 0 for size in sizes.values()):
        raise ShapeError(f"terms must all have one shape (B,), B >= 1, got {sizes}")
    parts = [weights[name] * term.mean() for name, term in terms.items() if weights[name] > 0]
    return torch.stack(parts).sum()
