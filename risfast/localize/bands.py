"""The likelihood of one narrow band or of several, for sources at the same places in all of them."""

from __future__ import annotations

import math
from copy import copy

import torch
from torch import Tensor

from risfast.localize.likelihood import Derivatives, Likelihood, SourceState, squared_magnitude
from risfast.models.base import Measurement
from risfast.setup import Setup

_SHARE = 0.1  # of what is received that each source of a band starts from
_REFITS = 6


def likelihood_of(
    measurement: Measurement, setup: Setup, dtype: torch.dtype = torch.complex64
) -> Likelihood | BandLikelihood:
    """What a polish maximises; ``dtype`` is that of products behind a surface, all others are in double precision."""
    if measurement.bands != setup.n_bands:
        raise ValueError(f"the measurement is of {measurement.bands} bands, and the setup of {setup.n_bands}")
    if setup.n_bands == 1:
        return Likelihood(measurement, setup.array, setup.wavefront, dtype=dtype)
    return BandLikelihood(measurement, setup)


class BandLikelihood:
    """The sum of the likelihoods of F narrow bands, with powers and noise of each, as :class:`Likelihood` has it.

    The snapshots of bands are independent, as those of Welch's method are where the bins are farther apart than the
    transform of the window is wide.
    """

    def __init__(self, measurement: Measurement, setup: Setup) -> None:
        wavelengths = torch.tensor(setup.wavelengths_m, dtype=torch.float64, device=measurement.y.device)
        wavenumbers = (2 * math.pi / wavelengths).repeat(len(measurement))
        self.each = Likelihood(measurement, setup.array, setup.wavefront, wavenumbers=wavenumbers)
        self.bands = setup.n_bands

    def __getitem__(self, index: Tensor) -> BandLikelihood:
        """The likelihood of some of the scenes, by their indices, ascending."""
        part = object.__new__(BandLikelihood)
        rows = index[:, None] * self.bands + torch.arange(self.bands, device=index.device)
        part.each, part.bands = self.each[rows.flatten()], self.bands
        return part

    def with_spreading(self, exponent: Tensor) -> BandLikelihood:
        """As :meth:`Likelihood.with_spreading`."""
        part = copy(self)
        part.each = self.each.with_spreading(exponent.repeat_interleave(self.bands))
        return part

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, F, N)."""
        rows, _, n = self.each.shape
        return rows // self.bands, self.bands, n

    @property
    def size(self) -> float:
        """How many numbers a scene is."""
        if not len(self.each.weight):
            return float(self.bands * self.shape[2])
        return float(self.each.weight[: self.bands].sum()) * self.shape[2]

    def seen(self, position: Tensor) -> Tensor:
        """Responses to sources of unit power.

        position (B, K, 3) -> (B, F, N, K)
        """
        return self.each.seen(position.repeat_interleave(self.bands, 0)).unflatten(0, (-1, self.bands))[:, :, 0]

    def value(self, state: SourceState) -> Tensor:
        """Log-likelihood (B,)."""
        return self.summed(self.each.value(state.by_band))

    def losses(self, state: SourceState) -> Tensor:
        """What the log-likelihood loses without each source (B, K)."""
        return self.summed(self.each.losses(state.by_band))

    def own_losses(self, state: SourceState, alike: float) -> Tensor:
        """The part of :meth:`losses` in bands where no other source has a response of this squared correlation."""
        by_band = state.by_band
        lost, responses = self.each.losses(by_band), self.each.seen(by_band.position)[:, 0]
        gram = squared_magnitude(responses.mH @ responses)
        norm = gram.diagonal(dim1=1, dim2=2).sqrt()
        others = by_band.mask[:, None] & ~torch.eye(gram.shape[1], dtype=torch.bool, device=gram.device)
        apart = (torch.where(others, gram, 0.0) / (norm[:, :, None] * norm[:, None])).amax(2) < alike
        return self.summed(torch.where(apart & by_band.mask, lost, 0.0))

    def correction(self, state: SourceState) -> Tensor:
        """Low-rank part of the inverse covariance of each band (B F, 1, N, K)."""
        return self.each.correction(state.by_band)

    def profile(self, others: SourceState, path: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of one more source along a path, at its best power in each band.

        path (B, J, 3) -> (B, J), (B, F, J)
        """
        gain, power = self.each.profile(others.by_band, path.repeat_interleave(self.bands, 0))
        return self.summed(gain), power.unflatten(0, (-1, self.bands))

    def refitted(self, state: SourceState) -> SourceState:
        """The same places with powers for them: a power that went to another source in a band can come back."""
        # The fixed point p <- p n / d of the likelihood's derivative, with n = |a^H R^-1 y|^2 and d = L a^H R^-1 a.
        each, state = self.each, state.by_band
        responses = each.seen(state.position)[:, 0]
        gram, matched = responses.mH @ responses, responses.mH @ each.y[:, 0]
        count = state.mask.sum(1).clamp_min(1)
        received = squared_magnitude(each.y).sum((1, 2, 3)) / (each.weight * each.shape[2])
        power = torch.maximum(state.power, (_SHARE * received / (each.shape[2] * count))[:, None])
        power, noise = torch.where(state.mask, power, 0.0), state.noise[:, None, None]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        for _ in range(_REFITS):
            # R^-1 = (I - A P (sigma^2 I + A^H A P)^-1 A^H) / sigma^2
            left = torch.linalg.solve(noise * eye + gram * power[:, None], torch.cat([gram, matched], 2))
            seen = noise * left  # A^H R^-1 (A, y) times sigma^2
            n = squared_magnitude(seen[..., gram.shape[-1] :]).sum(2) / state.noise[:, None].square()
            d = each.weight[:, None] * seen.diagonal(dim1=1, dim2=2).real / state.noise[:, None]
            power = power * torch.where(state.mask, n / d.clamp_min(1e-300), 0.0)
        power = torch.where(state.mask, power, state.power)
        shape = (-1, self.bands)
        position, mask = (v.unflatten(0, shape)[:, 0] for v in (state.position, state.mask))
        return SourceState(position, power.unflatten(0, shape), state.noise.unflatten(0, shape), mask)

    def derivatives(self, state: SourceState) -> Derivatives:
        """Value, gradient and Fisher information; powers and noise of different bands have none in common."""
        found, k, f = self.each.derivatives(state.by_band), state.mask.shape[1], self.bands
        gradient, information = (v.unflatten(0, (-1, f)) for v in (found.gradient, found.information))
        gradient = torch.cat(
            [gradient[..., : 3 * k].sum(1), gradient[..., 3 * k : 4 * k].flatten(1), gradient[..., 4 * k]], 1
        )
        b = len(gradient)
        places, across = information[..., : 3 * k, : 3 * k].sum(1), information[..., : 3 * k, 3 * k :]
        powers = information.new_zeros(b, f, k, f, k)
        powers.diagonal(dim1=1, dim2=3).copy_(information[..., 3 * k : 4 * k, 3 * k : 4 * k].permute(0, 2, 3, 1))
        with_noise = information.new_zeros(b, f, k, f)
        with_noise.diagonal(dim1=1, dim2=3).copy_(information[..., 3 * k : 4 * k, 4 * k].mT)
        powers, with_noise = powers.reshape(b, f * k, f * k), with_noise.reshape(b, f * k, f)
        noise = torch.diag_embed(information[..., 4 * k, 4 * k])
        across = torch.cat([across[..., :k].permute(0, 2, 1, 3).flatten(2), across[..., k].mT], 2)
        rest = torch.cat([torch.cat([powers, with_noise], 2), torch.cat([with_noise.mT, noise], 2)], 1)
        whole = torch.cat([torch.cat([places, across], 2), torch.cat([across.mT, rest], 2)], 1)
        # Sources that do not exist have a one on the diagonal in every band.
        absent = ~state.mask.repeat(1, 3)
        whole.diagonal(dim1=1, dim2=2)[:, : 3 * k].masked_fill_(absent, 1.0)
        return Derivatives(self.summed(found.value), gradient, whole)

    def summed(self, values: Tensor) -> Tensor:
        """Values of bands (B F, ...) as those of scenes (B, ...)."""
        return values.unflatten(0, (-1, self.bands)).sum(1)
