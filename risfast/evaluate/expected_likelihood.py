"""The log-likelihood of an assumed model as the truth expects it, its derivatives, and the pseudo-true parameters.

    g(theta) = -sum_l tr(R_l^-1 S_l) + log det R_l,      R_l = R_l(theta) assumed, S_l true

is that, and up to a constant the negative Kullback-Leibler divergence of the assumed model from the true one.
Everything follows from Gram matrices of the responses b_lk, whitened by R_l: along the parameters of a source

    dR = p (D b^H + b D^H),      D = db/dazimuth, db/delevation, db/d(1/range), and b / 2 for its log power.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from risfast.localize.likelihood import SINGULAR, Likelihood, SourceState, climb
from risfast.steering import steering_phase_gradient

# Longest step of a coordinate in (azimuth, elevation, 1/range, log power), and of the log noise.
_LONGEST = (0.08, 0.08, 0.25, 1.5)
_LONGEST_NOISE = 1.0
_MOST_STEPS = 60
_SETTLED = 1e-9  # of the log-likelihood, by one more step: 5e-5 of a standard deviation
_ROUNDING = 1e-12  # of the value, relative
_DAMPING_FIRST, _DAMPING_LEAST, _DAMPING_UP, _DAMPING_DOWN = 1e-2, 1e-4, 10.0, 0.1
_FARTHEST = 1e3  # times the farthest source: beyond, waves are plane, and the range is infinite


@dataclass(frozen=True, eq=False)
class Expected:
    """The expected log-likelihood of B scenes and its derivatives along the parameters of :meth:`SourceState.moved`."""

    # Rows and columns of sources that do not exist are zero.

    # (B,) Natural logarithm, without the constant -L M log(pi); NaN where a covariance R_l is not definite
    value: Tensor
    gradient: Tensor  # (B, P)
    hessian: Tensor  # (B, P, P) Expected second derivatives; minus the information where the model is right
    # (B, P, P) Covariance of the gradient of the log-likelihood of snapshots; the information where the model is right
    score: Tensor

    def take(self, scenes: Tensor) -> Expected:
        """Some of the scenes, by their indices.

        scenes (b,)
        """
        return Expected(*(getattr(self, f.name)[scenes] for f in fields(self)))


class ExpectedLikelihood:
    """An assumed likelihood under another truth.

    factor (B, L, M, J), noise (B,)
    """

    def __init__(self, likelihood: Likelihood, factor: Tensor, noise: Tensor) -> None:
        self.likelihood, self.factor, self.noise = likelihood, factor, noise

    def __getitem__(self, scenes: Tensor) -> ExpectedLikelihood:
        """The same of some of the scenes, by their indices."""
        if len(scenes) == len(self.noise):
            return self
        return ExpectedLikelihood(self.likelihood[scenes], self.factor[scenes], self.noise[scenes])

    def expected(self, state: SourceState) -> Expected:
        """The expected log-likelihood and its derivatives."""
        # With Q = R^-1, T = Q S Q and W = T - Q: the gradient is tr(W dR_i), the score covariance B is tr(dR_i T dR_j
        # T), and the Hessian -B + tr(dR_i W dR_j W) + tr(W dR_ij), each summed over the snapshots. Whitened by R = C
        # C^H, T becomes Z = C^-1 S C^-H, Q becomes I, and the identity becomes N = C^-1 C^-H.
        k = state.mask.shape[1]
        p = torch.where(state.mask, state.power, 0.0)
        columns = self.likelihood.seen(state.position, derivatives=True)  # b and its derivatives  [B, L, M, 4, K]
        inverse_factor, logdet = _inverse_factor(columns[..., 0, :], p, state.noise)
        white = inverse_factor @ columns.flatten(3)
        n = inverse_factor @ inverse_factor.mH
        seen = inverse_factor @ self.factor
        z = seen @ seen.mH + self.noise[:, None, None, None] * n
        turned = z @ white
        excess = turned - white  # W columns, whitened
        both = [(white.mH @ v).unflatten(3, (4, k)).unflatten(2, (4, k)) for v in (turned, excess)]  # Gram matrices
        own = both[1].sum(1).diagonal(dim1=2, dim2=4).real  # d_c b^H W d_e b of one source  [B, 4, 4, K]
        bent = self._bends(state, inverse_factor.mH @ excess[..., :k])
        smooth = n @ turned
        zn = z @ n
        edges = [_columns(turned, smooth, k), _columns(excess, smooth - n @ white, k)]
        corners = [(v * v.mT).sum((1, 2, 3)).real for v in (zn, zn - n)]
        score, rest = (
            _bordered(_pairs(gram), edge, corner) for gram, edge, corner in zip(both, edges, corners, strict=True)
        )
        scale = torch.cat([p / 2, p.repeat(1, 3), state.noise[:, None]], 1)
        score, hessian = (v * scale[:, :, None] * scale[:, None] for v in (score, rest - score))
        curvature = _curvature(own, bent) * p[:, None, None]  # of one source each; zero between sources
        hessian[:, :-1, :-1] += torch.diag_embed(curvature, dim1=2, dim2=4).flatten(3).flatten(1, 2)
        by_noise = state.noise * (zn - n).diagonal(dim1=-2, dim2=-1).real.sum((1, 2))
        hessian[:, -1, -1] += by_noise
        gradient = torch.cat([2 * own[:, 0].flatten(1), torch.ones_like(logdet)[:, None]], 1) * scale
        gradient[:, -1] = by_noise
        value = -logdet - z.diagonal(dim1=-2, dim2=-1).real.sum((1, 2))
        order = torch.cat([torch.arange(k, 4 * k), torch.arange(k), torch.tensor([4 * k])]).to(p.device)
        return Expected(value, gradient[:, order], hessian[:, order][:, :, order], score[:, order][:, :, order])

    def _bends(self, state: SourceState, excess: Tensor) -> Tensor:
        """sum_l 2 Re(b^H W d_ce b) [B, 3, 3, K] of the second derivatives of b, for W b [B, L, M, K]."""
        # The sum of Phi^H W b stands against the second derivatives of the steering vectors themselves.
        phi, array = self.likelihood.phi, self.likelihood.array
        back = (phi.flatten(1, 2).mT @ excess.flatten(1, 2).conj().to(phi.dtype)).mT.to(torch.complex128)  # [B, K, N]
        positions = array.positions_m.to(back.device)
        with torch.inference_mode(False), torch.enable_grad():
            at = [v.clone().requires_grad_() for v in state.position.detach().unbind(-1)]
            phase, slope = steering_phase_gradient(
                positions, at[0], at[1], 1 / at[2], array.wavenumber, self.likelihood.wavefront
            )
            against = back.detach().clone() * torch.polar(torch.ones_like(phase), phase.detach())
            # d_ce a = (j phase_ce - phase_c phase_e) a; the first part is the gradient of a sum over the elements
            turned = (slope * against.imag[:, :, None]).sum((0, 1, 3))
            second = [torch.autograd.grad(one, at, retain_graph=True, materialize_grads=True) for one in turned]
        bent = torch.stack([torch.stack(row) for row in second])  # [3, 3, B, K]
        slope = slope.detach()
        outer = (slope * against.real[:, :, None]) @ slope.mT  # [B, K, 3, 3]
        return -2 * (bent.permute(2, 0, 1, 3) + outer.permute(0, 2, 3, 1))


def _inverse_factor(response: Tensor, power: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """C^-1 [B, L, M, M] of R_l = C C^H, and the sum of log det R_l [B]; NaN where a covariance is not definite."""
    scaled = response * power.sqrt()[:, None, None]
    r = scaled @ scaled.mH
    r.diagonal(dim1=-2, dim2=-1).add_(noise[:, None, None])
    found = torch.linalg.cholesky_ex(r)
    factor = torch.where((found.info > 0)[..., None, None], torch.nan, found.L)
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    logdet = 2 * factor.diagonal(dim1=-2, dim2=-1).real.log().sum((1, 2))
    return torch.linalg.solve_triangular(factor, eye, upper=False), logdet


def _pairs(gram: Tensor) -> Tensor:
    """sum_l tr(E_i X E_j X) [B, 4 K, 4 K] of E = d b^H + b d^H, from the Gram matrices of X [B, L, 4, K, 4, K]."""
    # d is b or one of its derivatives. Of the four terms, d_i b_i^H X d_j b_j^H X gives (b_i^H X d_j)(b_j^H X d_i), and
    # so on; two are the conjugates of the others.
    across = torch.einsum("bliej,blcij->bciej", gram[:, :, 0], gram[:, :, :, :, 0].conj())
    along = (gram * gram[:, :, :1, :, :1].conj()).sum(1)
    return 2 * (across + along).real.flatten(3).flatten(1, 2)


def _curvature(own: Tensor, bent: Tensor) -> Tensor:
    """tr(W dR_ij) / p [B, 4, 4, K] of second derivatives of one source, the log power first."""
    # Along two coordinates dR_ij = p (d_ij b b^H + d_i b d_j b^H + ..); along the log power every derivative comes
    # again.
    result = 2 * own
    result[:, 0, 0] = own[:, 0, 0]
    result[:, 1:, 1:] += bent
    return result


def _columns(x: Tensor, y: Tensor, k: int) -> Tensor:
    """2 Re sum_l b_i^H x^H y d_i [B, 4 K] of columns [B, L, M, 4 K], the first K of which are those of b."""
    gram = x[..., :k].flatten(1, 2).mH @ y.flatten(1, 2)  # [B, K, 4 K]
    return 2 * gram.unflatten(2, (4, k)).diagonal(dim1=1, dim2=3).real.flatten(1)


def _bordered(block: Tensor, edge: Tensor, corner: Tensor) -> Tensor:
    """The symmetric matrices [B, P + 1, P + 1] of a block [B, P, P], an edge [B, P] and a corner [B]."""
    last = torch.cat([edge, corner[:, None]], 1)
    return torch.cat([torch.cat([block, edge[:, None]], 1), last[..., None]], 2)


@dataclass(frozen=True, eq=False)
class PseudoTrue:
    """The parameters of B scenes of which the model diverges least from the truth."""

    state: SourceState  # The pseudo-true sources and noise
    expected: Expected  # There
    free: Tensor  # (B, P) False for an inverse range that ended at its limit: the wave is best taken for plane
    converged: Tensor  # (B,) Whether the search has come to an end


def pseudo_true_parameters(likelihood: ExpectedLikelihood, state: SourceState) -> PseudoTrue:
    """The maximum of the expected log-likelihood that lies uphill of a state."""
    # Newton's method on the expected log-likelihood, with the absolute values of the eigenvalues of the Hessian, so
    # that it leaves saddle points, and with damping that grows after a step that would lower the value (J. Nocedal and
    # S. J. Wright, Numerical Optimization, 2006, section 3.4).
    k = state.mask.shape[1]
    at = likelihood.expected(state)
    floor = torch.where(state.mask, state.position[..., 2], torch.inf).amin(1) / _FARTHEST
    floor = torch.where(floor.isfinite(), floor, 0.0)  # a scene without sources
    converged = torch.zeros_like(floor, dtype=torch.bool)

    def propose(active: Tensor, here: SourceState, now: Expected, damping: Tensor) -> tuple[Tensor, Tensor]:
        step, gain = _step(now, _free(here, now.gradient, floor[active]), damping, k)
        converged[active] = gain <= _SETTLED
        return step, gain > _SETTLED

    def evaluate(active: Tensor, here: SourceState, _: Expected, step: Tensor) -> tuple[SourceState, Expected]:
        moved = here.moved(step)
        moved.position[..., 2] = torch.maximum(moved.position[..., 2], floor[active][:, None])
        return moved, likelihood[active].expected(moved)

    def judge(there: Tensor, before: Tensor, damping: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        better = there >= before - _ROUNDING * before.abs()  # False for NaN
        less = damping * _DAMPING_DOWN
        less = torch.where(less < _DAMPING_LEAST, 0.0, less)
        more = (damping * _DAMPING_UP).clamp_min(_DAMPING_FIRST)
        return better, torch.where(better, less, more), torch.ones_like(better)

    active = at.value.isfinite().nonzero()[:, 0]
    damping = torch.zeros_like(floor)
    state, at = climb(state, at, damping, active, _MOST_STEPS, propose=propose, evaluate=evaluate, judge=judge)
    return PseudoTrue(state, at, _free(state, at.gradient, floor), converged)


def _free(state: SourceState, gradient: Tensor, floor: Tensor) -> Tensor:
    """All but the inverse ranges that are at their limit and would go on."""
    k = state.mask.shape[1]
    held = (state.position[..., 2] <= floor[:, None]) & (gradient[:, 2 * k : 3 * k] <= 0)
    free = torch.ones_like(gradient, dtype=torch.bool)
    free[:, 2 * k : 3 * k] = ~held
    return free


def _step(at: Expected, free: Tensor, damping: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A step [B, P], cut to the longest in each parameter, and what a whole Newton step would gain [B]."""
    diagonal = at.score.diagonal(dim1=1, dim2=2)
    scale = torch.where(free & (diagonal > 0), diagonal.rsqrt(), 0.0)
    value, vector = torch.linalg.eigh(-at.hessian * scale[:, :, None] * scale[:, None])
    along = (vector.mT @ (scale * at.gradient)[..., None])[..., 0]
    size = value.abs()
    known = size > SINGULAR * size.shape[1]
    gain = torch.where(known, along.square() / size, 0.0).sum(1) / 2
    along = torch.where(known, along / (size + damping[:, None]), 0.0)
    step = scale * (vector @ along[..., None])[..., 0]
    longest = [limit for limit in _LONGEST for _ in range(k)] + [_LONGEST_NOISE]
    bound = torch.tensor(longest, dtype=step.dtype, device=step.device)
    return torch.maximum(torch.minimum(step, bound), -bound), gain
