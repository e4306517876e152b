"""What every backbone takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from risfast.covariance import check_measurements

if TYPE_CHECKING:
    from risfast.simulate.scenes import Scenes


@dataclass(frozen=True)
class Measurement:
    """What the base station knows of B scenes. Ground truth has no place here.

    Attributes
    ----------
    y : complex tensor, shape (B, L, M)
        Snapshots.
    codes : complex tensor, shape (B, L, N)
        Nominal phase codes.
    channel : complex tensor, shape (B, M, N)
        H.
    noise_power : real tensor, shape (B,), or None
        sigma^2, linear; None where it is not known and has to be estimated.

    Raises
    ------
    ShapeError, TypeError, ValueError
        See :func:`risfast.covariance.check_measurements`.
    """

    y: Tensor
    codes: Tensor
    channel: Tensor
    noise_power: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the shapes belong together."""
        check_measurements(self.y, self.codes, self.channel)

    @classmethod
    def of(cls, scenes: Scenes, *, noise_known: bool = False) -> Measurement:
        """The measurements of simulated scenes, without their answers.

        Parameters
        ----------
        scenes : Scenes
            B scenes.
        noise_known : bool
            Whether sigma^2 is told.

        Returns
        -------
        Measurement
        """
        return cls(scenes.y, scenes.codes, scenes.channel, scenes.noise_power if noise_known else None)

    def __len__(self) -> int:
        """B."""
        return self.y.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Measurement:
        """Some of the scenes."""
        noise = None if self.noise_power is None else self.noise_power[index]
        return Measurement(self.y[index], self.codes[index], self.channel[index], noise)

    def to(self, device: torch.device | str) -> Measurement:
        """The same on another device.

        Parameters
        ----------
        device : device
            Where every tensor goes.

        Returns
        -------
        Measurement
        """
        noise = None if self.noise_power is None else self.noise_power.to(device)
        return Measurement(self.y.to(device), self.codes.to(device), self.channel.to(device), noise)


@dataclass(frozen=True)
class SourceMap:
    """Expected number of sources in each cell of a grid.

    Attributes
    ----------
    log_intensity : real tensor, shape (B, G_az, G_el, G_cells)
        Logarithm of the expected number of sources in each cell: azimuth x elevation atoms, and the cells of range.
    offset : real tensor, shape (B, G_az, G_el, G_r, 2)
        Expected direction of the source relative to that of each atom, in units of the spacing of atoms in
        (sin azimuth, sin elevation).
    """

    log_intensity: Tensor
    offset: Tensor


@dataclass(frozen=True)
class CovarianceEstimate:
    """A backbone's answer.

    Attributes
    ----------
    factor : complex tensor, shape (B, N, K_f)
        F of the covariance R = F F^H of what the surface receives: positive semi-definite by construction.
    power : real tensor, shape (B, G_az, G_el, G_r), or None
        Power of each atom, where the backbone has atoms.
    noise_power : real tensor, shape (B,), or None
        sigma^2, as given or as estimated.
    sources : SourceMap or None
        Where the backbone expects sources, if it says so by itself.
    """

    factor: Tensor
    power: Tensor | None = None
    noise_power: Tensor | None = None
    sources: SourceMap | None = None

    def covariance(self) -> Tensor:
        """R = F F^H, complex (B, N, N)."""
        return self.factor @ self.factor.mH


class Backbone(Protocol):
    """A ``torch.nn.Module`` from measurements to a covariance."""

    def forward(self, measurement: Measurement) -> CovarianceEstimate:
        """Estimate the covariance that the surface receives, for each scene."""
        ...

    def __call__(self, measurement: Measurement) -> CovarianceEstimate:
        """As :meth:`forward`."""
        ...
