"""What every backbone takes and returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from risfast.covariance import check_measurements, ls_covariance

if TYPE_CHECKING:
    from risfast.simulate.scenes import Scenes


@contextmanager
def single_precision() -> Iterator[None]:
    """Fresh parameters are float32 for the time of a block, whatever the default of torch is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


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
    pooled : tuple of F numbers, or None
        L snapshots that share one code, as those of an array that is sampled directly, in the place of as many rows:
        ``y`` holds R of them with sum_r y_r y_r^H = sum_l y_l y_l^H, which is all that the likelihood depends on. One
        number for each of F narrow bands; of several, ``y`` and ``channel`` hold F entries a scene, one after another.
        It need not be whole: segments that overlap are worth fewer snapshots than they are.

    Raises
    ------
    ShapeError, TypeError, ValueError
        See :func:`risfast.covariance.check_measurements`.
    """

    y: Tensor
    codes: Tensor
    channel: Tensor
    noise_power: Tensor | None = None
    pooled: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check that the shapes belong together."""
        check_measurements(self.y, self.codes, self.channel)
        if len(self.y) % self.bands:
            raise ValueError(f"y must hold {self.bands} bands of each scene, got {len(self.y)} entries")

    @classmethod
    def direct(
        cls,
        x: Tensor,
        *,
        whitening: Tensor | None = None,
        noise_power: Tensor | None = None,
        pooled: float | Sequence[float] | None = None,
    ) -> Measurement:
        """Snapshots of the elements themselves, as seen through an identity, or through what makes their noise white.

        Parameters
        ----------
        x : complex tensor, shape (B, L, N) or (B, F, L, N)
            Snapshots, of one band or of several; with ``pooled`` any rows whose outer products add up to those of so
            many snapshots.
        whitening : complex tensor, shape (B, N, N) or (B, F, N, N), optional
            W with W C W^H = I for noise of the covariance sigma^2 C; white noise by default.
        noise_power : real tensor, shape (B,), optional
            sigma^2.
        pooled : float, or one for each band, optional
            L, where that is not the number of rows.

        Returns
        -------
        Measurement
            Of at most N rows, however many snapshots there are; in complex128.

        Raises
        ------
        ValueError
            ``pooled`` is not of as many bands.
        """
        bands, n = (1 if x.ndim == 3 else x.shape[1]), x.shape[-1]
        x = x.to(torch.complex128).reshape(-1, *x.shape[-2:])
        if pooled is None:
            pooled = x.shape[1]
        snapshots = tuple(pooled) if isinstance(pooled, Sequence) else (pooled,) * bands
        if len(snapshots) != bands:
            raise ValueError(f"pooled must hold one number for each of {bands} bands, got {len(snapshots)}")
        channel = torch.eye(n, dtype=x.dtype, device=x.device)
        if whitening is not None:
            channel = whitening.to(x).expand(*whitening.shape[:-2], n, n).reshape(-1, n, n)
            if whitening.ndim == 3 and bands > 1:
                channel = channel.repeat_interleave(bands, 0)
            x = x @ channel.mT
        if x.shape[1] > n:
            x = torch.linalg.qr(x, mode="r").R
        if noise_power is not None and bands > 1 and noise_power.ndim == 1:
            noise_power = noise_power[:, None].expand(-1, bands)
        codes = torch.ones(1, dtype=x.dtype, device=x.device).expand(x.shape)
        return cls(x, codes, channel.expand(len(x), n, n), noise_power, snapshots)

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
        noise = scenes.noise_power if noise_known else None
        if scenes.config.sampling == "direct":
            return cls.direct(scenes.y, noise_power=noise)
        return cls(scenes.y, scenes.codes, scenes.channel, noise)

    def __len__(self) -> int:
        """B."""
        return len(self.y) // self.bands

    @property
    def bands(self) -> int:
        """F; 1 but for pooled snapshots."""
        return 1 if self.pooled is None else len(self.pooled)

    @property
    def n_snapshots(self) -> int:
        """L, of all bands together, rounded."""
        return self.y.shape[1] if self.pooled is None else round(sum(self.pooled))

    @property
    def weight(self) -> Tensor:
        """How many snapshots share a code, float64 (B F,): 1 unless they are pooled."""
        each = self.y.new_tensor(self.pooled or (1.0,), dtype=torch.float64)
        return each.repeat(len(self))

    @property
    def whitened(self) -> bool:
        """Whether it takes more than an identity from the elements to the rows."""
        eye = torch.eye(self.channel.shape[-1], dtype=self.channel.dtype, device=self.channel.device)
        return not torch.equal(self.channel, eye.expand_as(self.channel))

    @property
    def received(self) -> Tensor:
        """Mean power |y|^2 over snapshots and antennas, float64 (B F,)."""
        mean = torch.view_as_real(self.y.resolve_conj()).double().square().sum(-1).mean((1, 2))
        return mean if self.pooled is None else mean * (self.y.shape[1] / self.weight)

    @property
    def fields(self) -> Tensor:
        """Of pooled snapshots those of the elements, before their noise was made white, complex128 (B, R, N)."""
        return torch.linalg.solve(self.channel, self.y.mT).mT if self.whitened else self.y

    @property
    def covariance(self) -> Tensor:
        """Of what falls on the array, (B F, N, N): the sample covariance of pooled snapshots, else by least squares."""
        if self.pooled is None:
            return ls_covariance(self.y, self.codes, self.channel, noise_power=self.noise_power)
        return self.fields.mT @ self.fields.conj() / self.weight[:, None, None]

    def one_by_one(self) -> Measurement:
        """As many rows as there are snapshots, for what counts them: those that are missing are zero.

        Returns
        -------
        Measurement
            Of the same products.

        Raises
        ------
        ValueError
            Several bands, which do not share snapshots.
        """
        if self.pooled is None:
            return self
        if self.bands > 1:
            raise ValueError(f"snapshots of {self.bands} bands cannot stand one by one: take one band")
        rows = (0, 0, 0, self.n_snapshots - self.y.shape[1])
        y, codes = nn.functional.pad(self.y, rows), self.codes[:, :1].expand(-1, self.n_snapshots, -1)
        return Measurement(y, codes, self.channel, self.noise_power)

    def with_gains(self, gains: Tensor) -> Measurement:
        """The same as received by elements that are not alike.

        Parameters
        ----------
        gains : complex tensor, shape (N,)
            What each element makes of the wave that falls on it.

        Returns
        -------
        Measurement
            Of the same snapshots, with the gains in its channel.
        """
        return replace(self, channel=self.channel * gains.to(self.channel))

    def __getitem__(self, index: slice | Tensor) -> Measurement:
        """Some of the scenes."""
        noise = None if self.noise_power is None else self.noise_power[index]
        if self.bands > 1:
            index = torch.arange(len(self.y), device=self.y.device).view(-1, self.bands)[index].flatten()
        return Measurement(self.y[index], self.codes[index], self.channel[index], noise, self.pooled)

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
        return Measurement(self.y.to(device), self.codes.to(device), self.channel.to(device), noise, self.pooled)


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
