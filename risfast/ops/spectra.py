"""From matrices to maps in plain torch: operands, epilogues, and the loop over scenes and tiles."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.ops.devices import serves_kernels
from risfast.ops.domain import adjoint_of
from risfast.ops.evaluators import Evaluator, Field, Operand
from risfast.ops.plan import Plan

EPILOGUES = ("linear", "reciprocal", "complement")
_SLICE_BYTES = 1 << 22  # of covariances that are checked at once
_SKETCHED = 512  # elements from which on it is asked whether a few snapshots span a covariance
_FACTOR_LOADING = 1e-4
_SKETCH = 144  # more than these
_TESTS = 8  # random vectors that check it
_MOST_WEAK = 1 / 16  # of a map in float32 that is computed again in float64
_MOST_BITS = 4  # of a float32 number that may be given up


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
        _refuse_indefinite(r.to(covariance.dtype), rounding, first)


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
    # Its own precision decides what its rounding does.
    _refuse_indefinite(r.to(covariance.dtype), rounding, first)
    diagonal.add_((loading - rounding) * mean)
    return torch.linalg.cholesky_ex(r).L


def sampled_factor(covariance: Tensor) -> Tensor | None:
    """F with R = F F^H to the rounding of R, where R is large and a few snapshots span it; else None.

    covariance (b, N, N) -> (b, N, K)
    """
    # R = Y (Omega^H Y)^+ Y^H with Y = R Omega for random Omega of more columns than the rank: the Nystrom method, J. A.
    # Tropp et al., "Practical sketching algorithms for low-rank matrix approximation", SIAM J. Matrix Anal. Appl. 38,
    # 2017. Columns beyond check it.
    n = covariance.shape[-1]
    if n < _SKETCHED:
        return None
    size = torch.linalg.matrix_norm(covariance).double().square()
    if bool(((n * mean_trace(covariance)).square() > _SKETCH * size).any()):  # the rank is at least tr(R)^2 / ||R||^2
        return None
    generator = torch.Generator().manual_seed(0)
    omega = torch.randn(n, _SKETCH + _TESTS, generator=generator, dtype=torch.complex128, device="cpu")
    omega = omega.to(covariance.device)
    step = max(1, _SLICE_BYTES // (16 * n))
    y = torch.cat([part.to(torch.complex128) @ omega for part in covariance.split(step, 1)], 1)
    tests, seen = y.split([_TESTS, _SKETCH], -1)
    eps = torch.finfo(covariance.dtype).eps
    values, vectors = torch.linalg.eigh(adjoint_of(omega[:, _TESTS:]) @ seen)
    kept = values > 16 * eps * values[:, -1:]
    scale = torch.where(kept, values.clamp_min(0), 1.0).rsqrt() * kept
    factor = seen @ (vectors * scale[:, None])
    rest = tests - factor @ (adjoint_of(factor) @ omega[:, :_TESTS])
    error = rest.abs().square().sum((-2, -1)) / _TESTS
    few = int(kept.sum(-1).max())
    return factor[..., -few:] if bool((error <= (4 * eps) ** 2 * size).all()) and few < _SKETCH else None


def capon_operand(covariance: Tensor, loading: float, first: int = 0) -> Operand:
    """Operand with q = m a^H (R + delta I)^-1 a for m = tr(R)/N, which stays inside float32 at any scale of R.

    covariance (b, N, N)
    """
    mean = mean_trace(covariance)
    # What a factor leaves out is of the rounding of R, and has to be small against the loading.
    factor = sampled_factor(covariance) if loading >= _FACTOR_LOADING else None
    if factor is None:
        # In complex64 the inverse alone costs 0.014 dB.
        inverse = torch.cholesky_inverse(loaded_cholesky(covariance, loading, first))
        return Operand(inverse.mul_(mean[:, None, None]), "hermitian")
    # (R + delta I)^-1 = (I - W W^H) / delta with delta = loading m
    rows = adjoint_of(woodbury_factor(factor, loading * mean))
    return Operand(rows, "rows", residual=covariance.shape[-1], unit=1 / loading)


def mean_trace(matrix: Tensor) -> Tensor:
    """tr(Q) / N of each scene, float64 [B]."""
    return matrix.diagonal(dim1=-2, dim2=-1).real.double().mean(-1)


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


class _PlaneNumbers:
    """Numbers of range planes in the last bits of a form: one vectorised extreme then finds both.

    They take a few units of the 15th digit, or of the 7th in float32.
    """

    def __init__(self, dtype: torch.dtype, planes: int, largest: bool) -> None:
        self.bits = (planes - 1).bit_length()
        # Planes too many for float32 widen it.
        self.dtype = torch.float64 if self.bits > _MOST_BITS else dtype
        self.integers = torch.int64 if self.dtype == torch.float64 else torch.int32
        self.largest, self.last = largest, planes - 1
        numbers = torch.arange(planes, dtype=self.integers)
        self.numbers = numbers.flip(0) if largest else numbers

    def extreme(self, q: Tensor) -> Tensor:
        """Extreme over planes with the number of the first that reaches it; q is overwritten.

        q (b, R, ...) -> (b, ...)
        """
        q = q.to(self.dtype)
        numbers = self.numbers.reshape(-1, *[1] * (q.ndim - 2))
        q.view(self.integers).bitwise_and_(-1 << self.bits).bitwise_or_(numbers)
        return q.amax(1) if self.largest else q.amin(1)

    def split(self, best: Tensor) -> tuple[Tensor, Tensor]:
        """Value, in the place of ``best``, and number of the plane."""
        integers = best.view(self.integers)
        plane = integers.bitwise_and((1 << self.bits) - 1).to(torch.int32)
        integers.bitwise_and_(-1 << self.bits)
        return best, self.last - plane if self.largest else plane


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
        """Whether the strongest power is at the largest value of a field."""
        return self.form == "linear"

    def field(self, evaluator: Evaluator, operand: Operand) -> Field:
        """What power is made of: q, or the residual offset - q."""
        if self.form == "complement":
            operand = dataclasses.replace(operand, residual=self.offset)
        return evaluator.field(operand)

    def power(self, value: Tensor, scale: Tensor) -> Tensor:
        """Power from values of a field and the scale of their scenes, which are broadcast."""
        if self.form == "linear":
            return value * scale
        # At an exact null rounding may pass a residual; the floor is what float64 resolves.
        return scale / (value.clamp_min(self.offset * 1e-15) if self.form == "complement" else value)

    def scale_on(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Scale on a device in the dtype of q."""
        if self.scale.shape != (batch,):
            raise ShapeError(f"scale must have shape ({batch},), one number a scene, got {tuple(self.scale.shape)}")
        return self.scale.to(device, dtype).contiguous()


def map_of(plan: Plan, evaluator: Evaluator, operand_of: OperandOf, epilogue: Epilogue) -> tuple[Tensor, Tensor]:
    """The strongest power over range planes and its plane, without the volume.

    -> power (B, G_az, G_el), plane (B, G_az, G_el)
    """
    n_az, n_el, _ = plan.shape
    power = torch.empty(plan.batch, n_az, n_el, dtype=plan.dtype.to_real())
    plane = torch.empty(plan.batch, n_az, n_el, dtype=torch.int32)
    for start, stop in scene_groups(plan):
        field, scale = epilogue.field(evaluator, operand_of(start, stop)), epilogue.scale[start:stop]
        at = _exact(field, plan, evaluator)
        best, number = _extreme(field, plan, evaluator, epilogue.largest, single=at is not None)
        if at is not None:
            weak = _weak(best, best.amax((1, 2)), plan)
            if weak is None:
                best, number = _extreme(field, plan, evaluator, epilogue.largest, single=False)
            else:
                value, plane_of = at(*weak).min(1)
                best[weak], number[weak] = value.to(best.dtype), plane_of.to(number.dtype)
        power[start:stop] = epilogue.power(best, scale[:, None, None])
        plane[start:stop] = number
    return power, plane


def _exact(field: Field, plan: Plan, evaluator: Evaluator) -> Callable[..., Tensor] | None:
    """What corrects a field in float32, where one is made: on a GPU its weak points would wait for the host."""
    return field.at if plan.weak > 0 and evaluator.domain.positions.device.type == "cpu" else None


def _weak(lowest: Tensor, largest: Tensor, plan: Plan) -> tuple[Tensor, ...] | None:
    """Scene, azimuth and elevation where a field has to be in float64; None where they are too many.

    lowest (b, G_az, G_el), largest (b,)
    """
    weak = (lowest < (largest * plan.weak)[:, None, None]).nonzero(as_tuple=True)
    return weak if len(weak[0]) <= _MOST_WEAK * lowest.numel() else None


def _extreme(field: Field, plan: Plan, evaluator: Evaluator, largest: bool, single: bool) -> tuple[Tensor, Tensor]:
    """Extreme of a field over range planes, and its plane.

    -> (b, G_az, G_el), (b, G_az, G_el)
    """
    n_az, n_el, n_r = plan.shape
    tiles = field.tiles(single)
    first = next(tiles)
    numbers = _PlaneNumbers(first.q.dtype, n_r, largest)
    shape = (first.q.shape[0] // len(first.places), *((n_el, n_az) if evaluator.elevation_first else (n_az, n_el)))
    box = torch.empty(shape, dtype=numbers.dtype)
    for tile in itertools.chain([first], tiles):
        for place, best in zip(tile.places, numbers.extreme(tile.q).chunk(len(tile.places)), strict=True):
            axes = (place.azimuth, place.elevation)
            box[:, *(axes[::-1] if evaluator.elevation_first else axes)] = place.oriented(best)
    return numbers.split(box.mT if evaluator.elevation_first else box)


def volume_of(plan: Plan, evaluator: Evaluator, operand_of: OperandOf, epilogue: Epilogue) -> Tensor:
    """Power on every point.

    -> (B, G_az, G_el, G_r)
    """
    shape = plan.shape if len(plan.shape) == 3 else (plan.shape[0], 1, 1)
    planes = torch.empty(plan.batch, shape[2], shape[0], shape[1], dtype=plan.dtype.to_real())
    for start, stop in scene_groups(plan):
        field, part = epilogue.field(evaluator, operand_of(start, stop)), planes[start:stop]
        at = _exact(field, plan, evaluator)
        _fill(part, field, evaluator, single=at is not None)
        if at is not None:
            weak = _weak(part.amin(1), part.amax((1, 2, 3)), plan)
            if weak is None:
                _fill(part, field, evaluator, single=False)
            else:
                part[weak[0], :, weak[1], weak[2]] = at(*weak).to(part.dtype)
        part.copy_(epilogue.power(part, epilogue.scale[start:stop, None, None, None]))
    return planes.permute(0, 2, 3, 1) if len(plan.shape) == 3 else planes.reshape(plan.batch, -1)


def _fill(planes: Tensor, field: Field, evaluator: Evaluator, single: bool) -> None:
    """Write a field into planes [b, R, G_az, G_el]."""
    for tile in field.tiles(single):
        for place, q in zip(tile.places, tile.q.chunk(len(tile.places)), strict=True):
            region = planes[:, :, place.azimuth, place.elevation]
            (region.mT if evaluator.elevation_first else region).copy_(place.oriented(q))


def plane_weights(weights: Tensor, plane: Tensor, n_planes: int) -> Tensor:
    """Weights put on their winning planes.

    weights (b, G_az, G_el), plane (b, G_az, G_el) -> (b, G_az, G_el, R)
    """
    out = torch.zeros(*weights.shape, n_planes, dtype=weights.dtype)
    return out.scatter_(-1, plane.long()[..., None], weights[..., None])
