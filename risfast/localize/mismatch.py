"""How many sources there are where the array, or the room, is not quite what the model says.

Gains and positions of elements that are a little off, reflections, and loudspeakers that are no points give a strong
source a signature that is not exactly a steering vector. The likelihood of point sources explains what is left of it by
more sources, all of them heard in the snapshots of the first. But one signal, however its signature is bent, has a
covariance of rank one: a model whose sources have signatures of their own, near their steering vectors, explains the
same data with fewer. What no source explains, such as late reverberation, may be signals of any signature, at a price.
All are weighed by their evidence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from risfast.localize.likelihood import Likelihood, SourceState, squared_magnitude

# Part of a signature that may lie off its steering vector: beyond it there is no point source to speak of.
MOST_BENT = 0.65
LEAST_SNAPSHOTS = 2.0  # times the sources: fewer snapshots cannot tell signals from signatures
_MORE_SIGNALS = (0, 1, 2, 4)  # than sources, that the evidence is tried with


class Bent(NamedTuple):
    """Sources with signatures of their own, of B scenes and F bands each."""

    evidence: Tensor  # (B F,) Log-evidence, without that of positions and powers
    fewer: Tensor  # (B F,) What one source fewer could have at the most
    mismatch: Tensor  # (B F, K) Part of the power of a signature that lies off its steering vector, less that of noise


def bent_evidence(likelihood: Likelihood, state: SourceState, price: float) -> Bent:
    """The evidence of as many signals as there are sources, whose signatures stray from their steering vectors.

    ``state`` is by band; ``price`` is what a signal that is no source has to gain besides the cost of its signature.
    """
    # The likelihood is that of the leading eigenvectors (T. W. Anderson, "Asymptotic theory for principal component
    # analysis", 1963; M. E. Tipping and C. M. Bishop, "Probabilistic principal component analysis", 1999). Which
    # rotation of them belongs to the sources, only nearness to their steering vectors can say (an orthogonal Procrustes
    # problem). Deviations are Gaussian, their variance the one that fits best, and integrated over.
    y, weight = likelihood.y[:, 0], likelihood.weight
    n, k = y.shape[1], state.mask.shape[1]
    value, vector = torch.linalg.eigh(y @ y.mH / weight[:, None, None])
    value, vector = value.flip(1).clamp_min(0), vector.flip(2)
    count = state.mask.sum(1)
    steering = likelihood.seen(state.position)[:, 0]
    square = squared_magnitude(steering).sum(1).clamp_min(1e-300)
    target = steering * torch.where(state.mask, state.power, 0.0).sqrt()[:, None]
    alone = _alone(steering, square, state.mask)
    best: Bent | None = None
    for more in _MORE_SIGNALS:
        rank = count + more
        if int(rank.max()) >= min(n, float(weight.min())):
            continue
        floor, free = _principal(value, weight, rank)
        lead = torch.arange(n, device=y.device) < rank[:, None]
        root = torch.where(lead, (value - floor[:, None]).clamp_min(0), 0.0).sqrt()
        signal = (vector * root[:, None])[..., : k + more]
        left, _, right = torch.linalg.svd(signal.mH @ target, full_matrices=False)
        turn = torch.where(state.mask[:, None], left @ right, 0.0)
        signature = signal @ turn
        along = squared_magnitude((steering.conj() * signature).sum(1)) / square
        whole = squared_magnitude(signature).sum(1)
        noise = (floor / weight)[:, None]  # variance of an element of a signature that is estimated
        off = (whole - along).clamp_min(0) / (n - 1)
        cost = torch.where(state.mask, _cost(off / noise, n), 0.0).sum(1)
        if more:  # what is left of the signals
            rest = signal - signature @ turn.mH
            clutter = torch.linalg.eigvalsh(rest.mH @ rest)[:, -more:].clamp_min(0) / n
            cost = cost + _cost(clutter / noise, n).sum(1) + more * price
        bent = ((n - 1) * (off - noise)).clamp_min(0) / (whole * alone).clamp_min(1e-300)
        # One source fewer is one signal more that is none.
        weakest = root.square().gather(1, (rank - 1).clamp_min(0)[:, None])[:, 0] / n
        fewer = torch.maximum(_principal(value, weight, rank - 1)[1], free - _cost(weakest / noise[:, 0], n) - price)
        found = Bent(free - cost, fewer, torch.where(state.mask, bent, 0.0))
        if best is None:
            best = found
        else:
            better = found.evidence > best.evidence
            best = Bent(
                torch.where(better, found.evidence, best.evidence),
                torch.maximum(found.fewer, best.fewer),
                torch.where(better[:, None], found.mismatch, best.mismatch),
            )
    if best is None:  # as many sources as elements
        nothing = torch.full_like(weight, -torch.inf)
        return Bent(nothing, nothing, torch.zeros_like(state.power))
    return best


def _alone(steering: Tensor, square: Tensor, mask: Tensor) -> Tensor:
    """Part of each steering vector (B, N, K) that no other has, (B, K): where two sources look alike, what is off
    counts for more.
    """
    both = mask[:, :, None] & mask[:, None]
    eye = torch.eye(mask.shape[1], dtype=steering.dtype, device=steering.device)
    unit = steering / square.sqrt()[:, None]
    gram = torch.where(both, unit.mH @ unit, eye) + 1e-9 * eye
    return 1 / torch.linalg.inv_ex(gram).inverse.diagonal(dim1=1, dim2=2).real


def _cost(excess: Tensor, n: int) -> Tensor:
    """What it costs to integrate over n - 1 deviations whose squares are so many times the noise."""
    return (n - 1) * torch.where(excess > 1, excess.clamp_min(1).log() + 1, excess)


def _principal(value: Tensor, weight: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Noise and log-likelihood (B,) of so many signals in matrices of eigenvalues (B, N), descending."""
    n = value.shape[1]
    lead = torch.arange(n, device=value.device) < count[:, None]
    floor = torch.where(lead, 0.0, value).sum(1) / (n - count).clamp_min(1)
    floor = floor.clamp_min(1e-12 * value.sum(1) / n).clamp_min(1e-300)
    logs = torch.where(lead, value.clamp_min(1e-300).log(), floor.log()[:, None]).sum(1)
    return floor, -weight * (logs + n)
