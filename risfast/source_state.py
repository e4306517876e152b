"""Sources and noise of scenes as parameters of a likelihood, and its derivatives with respect to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Derivatives", "SourceState"]


@dataclass(frozen=True)
class SourceState:
    """Sources and noise of B scenes, float64.

    Attributes
    ----------
    position : tensor, shape (B, K, 3)
        Azimuth, elevation (radians), 1/range (1/metres).
    power : tensor, shape (B, K)
        p_k > 0, linear.
    noise : tensor, shape (B,)
        sigma^2 > 0, linear.
    mask : bool tensor, shape (B, K)
        Which of the sources exist; the others are not looked at.
    """

    position: Tensor
    power: Tensor
    noise: Tensor
    mask: Tensor

    @property
    def n_parameters(self) -> int:
        """4 K + 1: the three coordinates and the log power of each source, coordinate by coordinate; log noise."""
        return 4 * self.mask.shape[1] + 1

    def take(self, scenes: Tensor) -> SourceState:
        """Some of the scenes, by their indices.

        Parameters
        ----------
        scenes : int64 tensor, shape (b,)
            Which, from 0.

        Returns
        -------
        SourceState
            Of b scenes, in that order.
        """
        return SourceState(self.position[scenes], self.power[scenes], self.noise[scenes], self.mask[scenes])

    def columns(self, used: Tensor) -> SourceState:
        """Some of the slots of sources, by their indices.

        Parameters
        ----------
        used : int64 tensor, shape (k,)
            Which, from 0; the same in every scene.

        Returns
        -------
        SourceState
            Of the same scenes, with k slots.
        """
        return SourceState(self.position[:, used], self.power[:, used], self.noise, self.mask[:, used])

    def moved(self, step: Tensor) -> SourceState:
        """The state after a step in the parameters; those of sources that do not exist stay.

        Parameters
        ----------
        step : float64 tensor, shape (B, 4 K + 1)
            Azimuths and elevations (radians), 1/ranges (1/metres) and log powers (natural logarithm), K of each, then
            the log noise.

        Returns
        -------
        SourceState
            Positions move by the step; powers and noise grow by a factor, so that they stay positive.
        """
        k = self.mask.shape[1]
        by_source = torch.where(self.mask[:, None], step[:, : 4 * k].unflatten(1, (4, k)), 0.0)
        return replace(
            self,
            position=self.position + by_source[:, :3].mT,
            power=self.power * by_source[:, 3].exp(),
            noise=self.noise * step[:, 4 * k].exp(),
        )


@dataclass(frozen=True)
class Derivatives:
    """Log-likelihood with first derivatives and expected second ones.

    Attributes
    ----------
    value : tensor, shape (B,)
    gradient : tensor, shape (B, P)
        With respect to the parameters of :meth:`SourceState.moved`; 0 for sources that do not exist.
    information : tensor, shape (B, P, P)
        Fisher information; rows and columns of sources that do not exist are those of the identity.
    """

    value: Tensor
    gradient: Tensor
    information: Tensor

    def take(self, scenes: Tensor) -> Derivatives:
        """Some of the scenes, by their indices.

        Parameters
        ----------
        scenes : int64 tensor, shape (b,)
            Which, from 0.

        Returns
        -------
        Derivatives
            Of b scenes, in that order.
        """
        return Derivatives(self.value[scenes], self.gradient[scenes], self.information[scenes])
