"""From matrices to maps in plain torch: operands, epilogues, and the loop over scenes and tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops.devices import serves_kernels
from risfast.ops.domain import adjoint_of
from risfast.ops.evaluators import Evaluator, Operand
from risfast.ops.plan import Plan

EPILOGUES = ("linear", "reciprocal", "complement")
_SLICE_BYTES = 1 << 22  # of covariances that are checked at once


def _hermitian(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """(R + R^H)/2 in complex128, a view of its diagonal, tr(R)/N [b, 1], and the rounding of R in units of that."""
    r = (covariance + adjoint_of(covariance)).to(torch.complex128).mul_(0.5)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    # The rounding of a sample covariance of N elements moves its zero eigenvalues by a few N eps.
    rounding = 32 * covariance.shape[-1] * torch.finfo(covariance.dtype).eps
    return r, diagonal, diagonal.real.mean(-1, keepdim=True), rounding


def _refuse_indefinite(lifted: Tensor, rounding: float, first: int) -> None:
    """Raise where R, lifted by its rounding, has no Cholesky factor."""
    info = torch.linalg.cholesky_ex(lifted).info
    if bool((info > 0).any()):
        raise ValueError(
            f"R[{first + int(info.nonzero()[0, 0])}] is indefinite: it has an eigenvalue below "
            f"-{rounding:.1e} trace(R)/N; a covariance is positive semi-definite"
        )


def check_definite(covariance: Tensor) -> None:
    """Refuse covariances that are indefinite beyond their rounding.

    covariance (B, N, N)
    """
    step = max(1, _SLICE_BYTES // (16 * covariance.shape[-1] ** 2))
    for first in range(0, covariance.shape[0], step):
        r, diagonal, mean, rounding = _hermitian(covariance[first : first + step])
        diagonal.add_(rounding * mean)
        _refuse_indefinite(r, rounding, first)


def loaded_cholesky(covariance: Tensor, loading: float, first: int = 0) -> Tensor:
    """Lower Cholesky factor of (R + R^H)/2 + delta I, delta = loading tr(R)/N.

    covariance (b, N, N) -> (b, N, N)
    """
    r, diagonal, mean, rounding = _hermitian(covariance)
    if loading <= rounding:
        diagonal.add_(loading * mean)
        factor, info = torch.linalg.cholesky_ex(r)
        pivots = factor.diagonal(dim1=-2, dim2=-1).real.square().amin(-1)
        singular = (info > 0) | (pivots <= r.shape[-1] * torch.finfo(torch.float64).eps * mean[:, 0])
        if bool(singular.any()):
            scene = first + int(singular.nonzero()[0, 0])
            raise ValueError(
                f"loading = {loading:g} is too small: covariance R[{scene}] is singular or indefinite; pass "
                "loading > 0 (1e-2 is a good start)"
            )
        return factor
    diagonal.add_(rounding * mean)
    _refuse_indefinite(r, rounding, first)
    diagonal.add_((loading - rounding) * mean)
    return torch.linalg.cholesky_ex(r).L


def capon_operand(covariance: Tensor, loading: float, first: int = 0) -> Operand:
    """Operand with q = a^H (R + delta I)^-1 a."""
    # The inverse is complex128 whatever R is: in float64 the form loses nothing that matters, in complex64 the inverse
    # alone costs 0.014 dB.
    return Operand(torch.cholesky_inverse(loaded_cholesky(covariance, loading, first)), "hermitian")


def mean_power(factor: Tensor) -> Tensor:
    """Power of an element, tr(F F^H)/N.

    factor (b, N, K) -> (b,)
    """
    return torch.view_as_real(factor.resolve_conj()).double().square().sum((1, 2, 3)) / factor.shape[1]


def lowrank_delta(factor: Tensor, loading: Tensor | float) -> Tensor:
    """Loading of F F^H in its own unit; NaN where F is zero.

    factor (B, N, K) -> (B,)
    """
    mean = mean_power(factor)
    return torch.where(mean > 0, loading * mean, torch.nan)


def woodbury_factor(factor: Tensor, delta: Tensor) -> Tensor:
    """W with (F F^H + delta I)^-1 = (I - W W^H) / delta; on a GPU NaN where there is none.

    factor (b, N, K), delta (b,) -> (b, N, K)
    """
    # W = F C^-H with C C^H = F^H F + delta I: a K x K Cholesky factor, no division by small singular values. M. A.
    # Woodbury, "Inverting modified matrices", Statistical Research Group, Princeton, 1950.
    f = factor.to(torch.complex128)
    gram = adjoint_of(f) @ f + delta[:, None, None] * torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    lower, info = torch.linalg.cholesky_ex(gram, check_errors=not serves_kernels(factor))
    return poisoned(adjoint_of(torch.linalg.solve_triangular(lower, adjoint_of(f), upper=False)), info)


def woodbury_inverse(factor: Tensor, delta: Tensor) -> Tensor:
    """(F F^H + delta I)^-1.

    factor (b, N, K), delta (b,) -> (b, N, N)
    """
    w = woodbury_factor(factor, delta)
    eye = torch.eye(factor.shape[1], dtype=w.dtype, device=w.device)
    return (eye - w @ adjoint_of(w)) / delta[:, None, None]


def signal_subspace(covariance: Tensor, n_sources: int) -> Tensor:
    """Orthonormal basis of the leading eigenvectors, with first and second derivatives where eigenvalues coincide.

    covariance (B, N, N) -> (B, N, n_sources)
    """
    # It stays in complex128: rounding it to float32 would bury the nulls.
    values, vectors = torch.ops.risfast.eigenbasis(covariance.detach())
    noise, signal = vectors[..., :-n_sources], vectors[..., -n_sources:]
    if not (torch.is_grad_enabled() and covariance.requires_grad):
        return signal
    r = (covariance + adjoint_of(covariance)).to(torch.complex128) / 2
    # In the basis of the eigenvectors, which is held, the subspace is [I; X] with X the root 0 of a Riccati equation.
    # Two steps of its fixed point are exact to the second order, and eigenvalues on one side never meet each other:
    # G. W. Stewart, "Error and perturbation bounds for subspaces associated with certain eigenvalue problems", SIAM
    # Review 15, 1973.
    gap = values[:, None, -n_sources:] - values[:, :-n_sources, None]
    cross = adjoint_of(noise) @ r @ signal
    above = adjoint_of(signal) @ r @ signal - torch.diag_embed(values[:, -n_sources:]).to(r.dtype)
    below = adjoint_of(noise) @ r @ noise - torch.diag_embed(values[:, :-n_sources]).to(r.dtype)
    first = cross / gap
    moved = (cross + below @ first - first @ above) / gap
    basis = signal + noise @ moved
    lower = torch.linalg.cholesky_ex(adjoint_of(basis) @ basis).L
    return adjoint_of(torch.linalg.solve_triangular(lower, adjoint_of(basis), upper=False))


def poisoned(matrix: Tensor, info: Tensor) -> Tensor:
    """NaN where a factorisation has failed.

    matrix (b, N, K), info (b,)
    """
    return torch.where((info == 0)[:, None, None], matrix, torch.nan)


# Makes the operand of scenes start..stop: built a pass at a time, so that memory follows the pass and not the batch.
OperandOf = Callable[[int, int], Operand]


def scene_groups(plan: Plan) -> Iterator[tuple[int, int]]:
    """Scenes of each pass of a plan."""
    for start in range(0, plan.batch, plan.scenes_per_pass):
        yield start, min(start + plan.scenes_per_pass, plan.batch)


def reduce_planes(q: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """Extreme of the form over range planes, and the first plane that reaches it.

    q (b, R, ...) -> best (b, ...), plane (b, ...)
    """
    best = q[:, 0].clone()
    # Arithmetic on the comparison, in its own bytes, is several times faster on the CPU than masked assignment.
    small = q.shape[1] <= 255
    plane = torch.zeros_like(best, dtype=torch.uint8 if small else torch.int32)
    for i in range(1, q.shape[1]):
        value = q[:, i]
        better = value > best if largest else value < best
        step = better.view(torch.uint8) if small else better.to(torch.int32)
        torch.maximum(plane, step.mul_(i), out=plane)
        (torch.maximum if largest else torch.minimum)(best, value, out=best)
    return best, plane.to(torch.int32)


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """From a quadratic form q to power: scale q, scale / q, or scale / (offset - q)."""

    form: str  # One of :data:`EPILOGUES`
    scale: Tensor  # (B,) Positive, so that the best plane is known from q alone
    # Of the complement (N: the squared norm of a steering vector); not looked at otherwise. An int, because Triton
    # would round a Python float to float32 on its way to a float64 kernel
    offset: int = 0

    def __post_init__(self) -> None:
        """Refuse an unknown form."""
        if self.form not in EPILOGUES:
            raise ValueError(f"form must be one of {', '.join(EPILOGUES)}; got {self.form!r}")

    @property
    def largest(self) -> bool:
        """Whether the strongest power is at the largest q."""
        return self.form != "reciprocal"

    def power(self, q: Tensor, start: int, stop: int) -> Tensor:
        """Power from q [b, ...] of scenes start..stop."""
        scale = self.scale[start:stop].reshape(-1, *[1] * (q.ndim - 1))
        if self.form == "linear":
            return q * scale
        if self.form == "reciprocal":
            return scale / q
        # At an exact null rounding may pass it; the floor is what float64 resolves.
        return scale / (self.offset - q).clamp_min_(self.offset * 1e-15)

    def scale_on(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Scale on a device in the dtype of q."""
        if self.scale.shape != (batch,):
            raise ShapeError(f"scale must have shape ({batch},), one number a scene, got {tuple(self.scale.shape)}")
        return self.scale.to(device, dtype).contiguous()


def map_of(plan: Plan, evaluator: Evaluator, operand_of: OperandOf, epilogue: Epilogue) -> tuple[Tensor, Tensor]:
    """The strongest power over range planes and its plane, without the volume.

    -> power (B, G_az, G_el), plane (B, G_az, G_el)
    """
    n_az, n_el = plan.shape[:2]
    best = torch.empty(plan.batch, n_az, n_el, dtype=plan.dtype.to_real())
    plane = torch.empty(plan.batch, n_az, n_el, dtype=torch.int32)
    for start, stop in scene_groups(plan):
        for tile in evaluator.tiles(operand_of(start, stop)):
            values, indices = reduce_planes(tile.q, epilogue.largest)
            images = len(tile.places)
            for place, value, index in zip(tile.places, values.chunk(images), indices.chunk(images), strict=True):
                region = (slice(start, stop), place.azimuth, place.elevation)
                best[region] = place.oriented(epilogue.power(value, start, stop))
                plane[region] = place.oriented(index)
    return best, plane


def volume_of(plan: Plan, evaluator: Evaluator, operand_of: OperandOf, epilogue: Epilogue) -> Tensor:
    """Power on every point.

    -> (B, G_az, G_el, G_r)
    """
    shape = plan.shape if len(plan.shape) == 3 else (plan.shape[0], 1, 1)
    planes = torch.empty(plan.batch, shape[2], shape[0], shape[1], dtype=plan.dtype.to_real())
    for start, stop in scene_groups(plan):
        for tile in evaluator.tiles(operand_of(start, stop)):
            for place, q in zip(tile.places, tile.q.chunk(len(tile.places)), strict=True):
                planes[start:stop, :, place.azimuth, place.elevation] = place.oriented(epilogue.power(q, start, stop))
    return planes.permute(0, 2, 3, 1) if len(plan.shape) == 3 else planes.reshape(plan.batch, -1)


def plane_weights(weights: Tensor, plane: Tensor, n_planes: int) -> Tensor:
    """Weights put on their winning planes.

    weights (b, G_az, G_el), plane (b, G_az, G_el) -> (b, G_az, G_el, R)
    """
    out = torch.zeros(*weights.shape, n_planes, dtype=weights.dtype)
    return out.scatter_(-1, plane.long()[..., None], weights[..., None])
