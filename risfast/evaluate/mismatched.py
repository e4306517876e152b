"""The misspecified Cramér-Rao bound: what an estimator reaches whose model of the system is wrong.

    truth       y_l ~ CN(0, S_l)                the codes, elements and waves that there are
    assumed     y_l ~ CN(0, R_l(theta))         the nominal ones

An estimator that maximises the assumed likelihood does not settle around the truth but around the pseudo-true
parameters theta_0, which minimise the Kullback-Leibler divergence sum_l tr(R_l^-1 S_l) + log det R_l. About them its
covariance is at least A^-1 B A^-1, with A the expected Hessian of the assumed log-likelihood and B the covariance of
its gradient, both under the truth. Its error has a bias, theta_0 less the truth, besides.

C. D. Richmond and L. L. Horowitz, "Parameter bounds on estimation accuracy under model misspecification", IEEE
Transactions on Signal Processing 63(9), 2015. S. Fortunati, F. Gini, M. S. Greco and C. D. Richmond, "Performance
bounds for parameter estimation under misspecified models", IEEE Signal Processing Magazine 34(6), 2017.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from risfast.covariance import SensingOperator
from risfast.evaluate.bounds import SourceBound, of_range, position_variance, true_state
from risfast.evaluate.expected_likelihood import Expected, ExpectedLikelihood, pseudo_true_parameters
from risfast.geometry import SensorArray, spherical_to_cartesian
from risfast.localize.likelihood import Likelihood, SourceState, position_blocks, scaled_inverse
from risfast.models.base import Measurement
from risfast.simulate.impairments import Impairments, impair_codes, impaired_steering
from risfast.simulate.streams import SceneRandom, Stream

if TYPE_CHECKING:
    from risfast.simulate.scenes import Scenes

_SCENES_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class MismatchedBound(SourceBound):
    """Bound of the sources of B scenes for an estimator with a wrong model; NaN where there is no source.

    ``covariance`` is about the pseudo-true position, ``bias`` that less the true one, and ``position_m`` holds both. A
    coordinate that the assumed model does not determine, or of which the pseudo-true range is infinite, has an infinite
    variance, covariances of zero, and a bias of NaN.

    Attributes
    ----------
    found : bool tensor, shape (B,)
        Whether the pseudo-true parameters were found. Where the search from the truth does not converge, or ends where
        the divergence has no minimum, all is NaN: the theory says nothing there.
    """

    found: Tensor = field(kw_only=True)


def true_responses(scenes: Scenes, seed: int | None = None) -> tuple[Tensor, SourceState]:
    """What the antennas really see of the sources of simulated scenes, impairments and coherence included.

    -> factor (B, L, M, J)
    """
    config, state = scenes.config, true_state(scenes)
    coherent = config.coherence.probability > 0 and bool(scenes.coherent.any())
    if seed is None:
        if coherent or config.impairments != Impairments():
            raise ValueError(
                "seed must be that of the scenes: their impairments and coherent phases are drawn from it; got None"
            )
        seed = 0  # of which nothing is drawn
    draws = SceneRandom(seed, scenes.indices.to(scenes.y.device), scenes.y.device)
    position = state.position.clone()
    position[..., 2] = 1 / position[..., 2]
    steering = impaired_steering(config.array, position, config.wavefront, config.impairments, draws)  # [B, K, N]
    codes = impair_codes(scenes.codes.to(torch.complex128), config.array, config.impairments, draws)
    power = torch.where(state.mask, state.power, 0.0)
    columns = power.sqrt()[..., None] * steering
    if coherent:
        columns = _with_common(columns, scenes, draws)
    operator = SensingOperator(codes, scenes.channel.to(torch.complex128))
    return operator.project(columns.mT), state


def _with_common(columns: Tensor, scenes: Scenes, draws: SceneRandom) -> Tensor:
    """Columns [B, K + 1, N] of what each source sends alone, and of what the coherent ones send together."""
    # The symbols are those of :func:`risfast.simulate.channels.source_symbols`.
    share = torch.where(scenes.coherent, scenes.config.coherence.correlation, 0.0).double()
    turn = 2 * torch.pi * draws.uniform(Stream.COHERENT_PHASE, (share.shape[1], 1))[..., 0]
    common = (torch.polar(share.sqrt(), turn)[..., None] * columns).sum(1, keepdim=True)
    return torch.cat([(1 - share).sqrt()[..., None] * columns, common], 1)


def mismatched_bound(
    scenes: Scenes, seed: int | None = None, *, wavefront: str | None = None, array: SensorArray | None = None
) -> MismatchedBound:
    """Bound of an estimator that takes simulated scenes for what they are not.

    It knows the scenes' nominal codes and channel, and takes their sources for independent.

    Parameters
    ----------
    scenes : Scenes
        B scenes; B may be 0.
    seed : int, optional
        The one they were generated with; see :func:`true_responses`.
    wavefront : {"spherical", "fresnel", "planar"}, optional
        What the estimator assumes; by default the wavefront of the scenes.
    array : SensorArray, optional
        What the estimator takes the surface for, of as many elements; by default the nominal array.

    Returns
    -------
    MismatchedBound

    Raises
    ------
    ValueError
        The scenes need a seed, or an unknown wavefront.

    Notes
    -----
    Impairments are held fixed: bias and covariance are those of new symbols and new noise through this very system.
    With a planar wavefront no range is determined, and :attr:`MismatchedBound.position_m` is infinite.
    """
    b, k = scenes.mask.shape
    device = scenes.mask.device
    covariance = torch.full((b, k, 3, 3), torch.nan, dtype=torch.float64, device=device)
    found = torch.ones(b, dtype=torch.bool, device=device)
    result = MismatchedBound(covariance, covariance[..., 0, 0].clone(), covariance[..., 0].clone(), found=found)
    # Scenes with as many sources go together, without the slots that none of them uses.
    for index in scenes.n_sources.argsort(stable=True).split(_SCENES_AT_ONCE) if b else ():
        part = _part(scenes, index)
        used = part.mask.any(0).nonzero()[:, 0]
        if not len(used):
            continue
        factor, state = true_responses(part, seed)
        measurement = Measurement.of(part).one_by_one()
        likelihood = Likelihood(measurement, array or scenes.config.array, wavefront or scenes.config.wavefront)
        bound = mismatched_cramer_rao_bound(likelihood, state.columns(used), factor)
        result.found[index] = bound.found
        for name in ("covariance", "bias", "position_m"):
            getattr(result, name)[index[:, None], used] = getattr(bound, name)
    return result


def _part(scenes: Scenes, which: Tensor) -> Scenes:
    tensors = {f.name: getattr(scenes, f.name)[which] for f in fields(scenes) if f.name != "config"}
    return replace(scenes, **tensors)


def mismatched_cramer_rao_bound(likelihood: Likelihood, state: SourceState, factor: Tensor) -> MismatchedBound:
    """Bound of every source of B scenes, for the maximum of an assumed likelihood under another truth.

    Parameters
    ----------
    likelihood : Likelihood
        The assumed sensing operators, array and wavefront; the snapshots themselves do not matter.
    state : SourceState
        The true sources and the true sigma^2. The search for the pseudo-true parameters starts here.
    factor : complex128 tensor, shape (B, L, M, J)
        F_l of the true covariances S_l = F_l F_l^H + sigma^2 I.

    Returns
    -------
    MismatchedBound
        Where the assumed model is the true one, the bias is zero and the covariance that of
        :func:`risfast.evaluate.bounds.cramer_rao_bound`.

    Notes
    -----
    A^-1 B A^-1 in (azimuth, elevation, 1/range, log powers, log noise), carried over to range at the pseudo-true
    point. Where A is singular its pseudo-inverse takes the place of the inverse, and the coordinates that are not
    determined are unbounded, as in :func:`risfast.evaluate.bounds.cramer_rao_bound`. The pseudo-true point is the one
    that Newton's method reaches from the truth: the divergence may have other minima.
    """
    at = pseudo_true_parameters(ExpectedLikelihood(likelihood, factor, state.noise), state)
    k = state.mask.shape[1]
    covariance, lost, minimal = _sandwich(at.expected, at.free, k)
    found = at.converged & minimal
    r = 1 / at.state.position[..., 2]
    covariance = of_range(covariance, r) + torch.diag_embed(torch.where(lost, torch.inf, 0.0))
    here = torch.cat([at.state.position[..., :2], r[..., None]], -1)
    true = torch.cat([state.position[..., :2], 1 / state.position[..., 2:]], -1)
    position = _position_rms(covariance, here, true, lost)
    there = state.mask & found[:, None]
    bias = torch.where(lost, torch.nan, here - true)
    return MismatchedBound(
        torch.where(there[..., None, None], covariance, torch.nan),
        torch.where(there, position, torch.nan),
        torch.where(there[..., None], bias, torch.nan),
        found=found,
    )


def _sandwich(at: Expected, free: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """A^-1 B A^-1 of the positions [B, K, 3, 3], which are not determined, and where -A has no negative part."""
    # Parameters that are not free stay as they are.
    both = free[:, :, None] & free[:, None]
    curvature = torch.where(both, -at.hessian, 0.0).nan_to_num(nan=0.0)
    inverse, lost, minimal = scaled_inverse(curvature, definite=False)
    return *position_blocks(inverse @ at.score.nan_to_num(nan=0.0) @ inverse, lost, k), minimal


def _position_rms(covariance: Tensor, here: Tensor, true: Tensor, lost: Tensor) -> Tensor:
    """Root mean square distance from the true point of errors about another; infinite where that is not determined."""
    variance = position_variance(covariance, here[..., 1], here[..., 2])
    apart = (spherical_to_cartesian(here) - spherical_to_cartesian(true)).square().sum(-1)
    return torch.where(lost.any(-1), torch.inf, (variance + apart).sqrt())
