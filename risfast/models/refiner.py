"""A U-Net that redraws a spectrum: from a map in dB to how likely each direction holds a source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from risfast.errors import ShapeError
from risfast.geometry import SearchGrid
from risfast.ops import local_maxima_3d

_GROUP = 8  # channels normalised together
_PRIOR = 0.01  # share of cells that hold a source, where an untrained network starts


def spectrum_map_db(power: Tensor, *, floor_db: float = -40.0) -> Tensor:
    """A spectrum as the refiner takes it: dB below its maximum, cut off at the floor, scaled to 0 .. 1.

    Parameters
    ----------
    power : real tensor, shape (B, G_az, G_el)
        Linear power, such as that of :class:`risfast.ops.Spectrum`. Its scale does not matter.
    floor_db : float < 0
        What becomes 0; the maximum becomes 1.

    Returns
    -------
    float32 tensor, shape (B, G_az, G_el)

    Raises
    ------
    ShapeError, ValueError
        Not (B, G_az, G_el), or a floor that is not negative; power that is NaN, infinite or negative, or zero all over.
    """
    _check_map(power, "power")
    if not -math.inf < floor_db < 0:
        raise ValueError(f"floor_db must be negative, got {floor_db!r}")
    highest = power.flatten(1).amax(1)
    good = power.isfinite().flatten(1).all(1) & (power >= 0).flatten(1).all(1) & (highest > 0)
    if not bool(good.all()):
        scene = int((~good).nonzero()[0, 0])
        raise ValueError(f"power must be finite, >= 0 and not zero all over; power[{scene}] is not")
    least = 10 ** (floor_db / 10)  # the cut comes before the logarithm, whose gradient has a pole at 0
    level = (power.double() / highest.double()[:, None, None]).clamp_min(least).log10() * 10
    return (1 - level / floor_db).to(torch.float32)


@dataclass(frozen=True)
class RefinerOptions:
    """Size of the network; the defaults make about 700 thousand parameters.

    Attributes
    ----------
    n_maps : int
        Maps that come in; the first is the Capon map.
    channels : ints, multiples of 8
        Features at each level; each level halves the map.
    dilations : ints
        Of the convolutions at the bottom, one after the other.

    Raises
    ------
    ValueError
        A value is not a positive integer, or a number of channels no multiple of 8.
    """

    n_maps: int = 1
    channels: tuple[int, ...] = (32, 64, 128)
    dilations: tuple[int, ...] = (2, 4)

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("channels", "dilations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # from a file they come as lists
            if not all(isinstance(v, int) and v >= 1 for v in getattr(self, name)):
                raise ValueError(f"{name} must be integers of at least 1, got {getattr(self, name)!r}")
        if not self.channels or any(c % _GROUP for c in self.channels):
            raise ValueError(f"channels must be one or more multiples of {_GROUP}, got {self.channels!r}")
        if not (isinstance(self.n_maps, int) and self.n_maps >= 1):
            raise ValueError(f"n_maps must be an integer of at least 1, got {self.n_maps!r}")


def _convolution(inside: int, outside: int, dilation: int = 1) -> nn.Sequential:
    """3 x 3, normalised over groups of channels: a scene's result does not depend on its batch."""
    convolution = nn.Conv2d(inside, outside, 3, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(outside // _GROUP, outside), nn.ReLU())


def _level(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(_convolution(inside, outside), _convolution(outside, outside))


class SpectrumRefiner(nn.Module):
    """A U-Net with a dilated bottom and skips, on maps of any size.

    Parameters
    ----------
    options : RefinerOptions or None
        Size of the network.

    Notes
    -----
    O. Ronneberger, P. Fischer, T. Brox, "U-Net", MICCAI 2015; dilated bottom after F. Yu, V. Koltun, ICLR 2016. Maps
    whose sizes the levels do not divide are extended with zeros, which stand for the floor of
    :func:`spectrum_map_db`, and the result is cut. The last bias starts at the logit of 0.01 (T.-Y. Lin et al., ICCV
    2017).
    """

    def __init__(self, options: RefinerOptions | None = None) -> None:
        super().__init__()
        self._options = options or RefinerOptions()
        channels = self._options.channels
        steps = zip((self._options.n_maps, *channels), channels, strict=False)
        self.down = nn.ModuleList(_level(inside, outside) for inside, outside in steps)
        self.bottom = nn.Sequential(*(_convolution(channels[-1], channels[-1], d) for d in self._options.dilations))
        pairs = list(zip(channels[:0:-1], channels[-2::-1], strict=True))  # (128, 64), (64, 32)
        self.widen = nn.ModuleList(nn.ConvTranspose2d(low, high, 2, stride=2) for low, high in pairs)
        self.up = nn.ModuleList(_level(2 * high, high) for _, high in pairs)
        self.last = nn.Conv2d(channels[0], 1, 1)
        assert self.last.bias is not None  # it is made with one
        nn.init.constant_(self.last.bias, math.log(_PRIOR / (1 - _PRIOR)))

    def options(self) -> dict[str, Any]:
        """What the network was made with, as plain values."""
        return asdict(self._options)

    def logits(self, maps: Tensor) -> Tensor:
        """As :meth:`forward`, before the sigmoid: what the focal loss takes.

        Parameters
        ----------
        maps : real tensor, shape (B, n_maps, G_az, G_el), or (B, G_az, G_el) for one map
            As :meth:`forward` takes them.

        Returns
        -------
        real tensor, shape (B, G_az, G_el)
            In the precision of the weights.

        Raises
        ------
        ShapeError, TypeError
            As :meth:`forward`.
        """
        x = self._checked(maps)
        n_az, n_el = x.shape[-2:]
        step = 2 ** (len(self._options.channels) - 1)
        x = nn.functional.pad(x, (0, -n_el % step, 0, -n_az % step))
        skips: list[Tensor] = []
        for depth, level in enumerate(self.down):
            x = level(x if depth == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        x = self.bottom(skips.pop())
        for widen, level in zip(self.widen, self.up, strict=True):
            x = level(torch.cat([widen(x), skips.pop()], 1))
        return self.last(x)[:, 0, :n_az, :n_el].to(self.last.weight.dtype)

    def forward(self, maps: Tensor) -> Tensor:
        """How likely each cell holds a source.

        Parameters
        ----------
        maps : real tensor, shape (B, n_maps, G_az, G_el), or (B, G_az, G_el) for one map
            The first from :func:`spectrum_map_db`.

        Returns
        -------
        real tensor, shape (B, G_az, G_el), in 0 .. 1
            In the precision of the weights.

        Raises
        ------
        ShapeError, TypeError
            Maps of another number or of no size, or not real.
        """
        return self.logits(maps).sigmoid()

    def _checked(self, maps: Tensor) -> Tensor:
        """(B, n_maps, G_az, G_el) in the precision of the weights."""
        if not maps.is_floating_point():
            raise TypeError(f"maps must be a real floating-point tensor, got {maps.dtype}")
        wanted = self._options.n_maps
        x = maps[:, None] if maps.ndim == 3 and wanted == 1 else maps
        if x.ndim != 4 or x.shape[1] != wanted or 0 in x.shape[2:]:
            raise ShapeError(
                f"maps must have shape (B, {wanted}, G_az, G_el){' or (B, G_az, G_el)' if wanted == 1 else ''}, "
                f"got {tuple(maps.shape)}"
            )
        return x.to(self.last.weight.dtype)


# The fields named index and count hide methods of tuple, which no one calls on these; hence the ignored assignments.
class Candidates(NamedTuple):
    """Peaks of a refined map, best first.

    Attributes
    ----------
    position : float64 tensor, shape (B, k, 3)
        Azimuth, elevation (radians) and range (metres) of grid points; NaN in empty slots.
    score : real tensor, shape (B, k)
        The map there; -inf in empty slots.
    count : int64 tensor, shape (B,)
        Filled slots, at most k.
    """

    position: Tensor
    score: Tensor
    count: Tensor  # type: ignore[assignment]


def decode_peaks(
    refined: Tensor,
    plane: Tensor,
    grid: SearchGrid,
    *,
    threshold: float = 0.3,
    window: Sequence[int] = (5, 5),
    k: int = 8,
) -> Candidates:
    """Candidates from the maxima of a refined map: directions from the map, ranges from the spectrum behind it.

    Parameters
    ----------
    refined : real tensor, shape (B, G_az, G_el)
        From :class:`SpectrumRefiner`.
    plane : int tensor, shape (B, G_az, G_el)
        The range plane that won in each direction, as :class:`risfast.ops.Spectrum` says.
    grid : SearchGrid
        Of both.
    threshold : float
        Only points above it are candidates.
    window : 2 odd ints
        Neighbourhood (azimuth, elevation) in which a candidate is the maximum.
    k : int
        Most candidates of a scene.

    Returns
    -------
    Candidates
        On grid points: a local refinement on the covariance belongs after it.

    Raises
    ------
    ShapeError, TypeError, ValueError
        Shapes that do not belong together, NaN, a window that is not odd, k < 1, or a plane that is not in the grid.
    """
    _check_map(refined, "refined")
    if refined.shape[1:] != grid.shape[:2]:
        raise ShapeError(
            f"refined must have shape (B, G_az, G_el) with {grid.shape[:2]} as the grid says, "
            f"got {tuple(refined.shape)}"
        )
    if plane.shape != refined.shape:
        raise ShapeError(f"plane must have the shape of refined, {tuple(refined.shape)}, got {tuple(plane.shape)}")
    if plane.is_floating_point() or plane.is_complex():
        raise TypeError(f"plane must hold integers, got {plane.dtype}")
    if plane.numel() and not bool(((plane >= 0) & (plane < grid.shape[2])).all()):
        raise ValueError(f"plane must lie in 0 .. {grid.shape[2] - 1}, the range planes of the grid")
    peaks = local_maxima_3d(refined[..., None], window=(*window, 1), k=k, threshold=threshold)
    i_az, i_el = peaks.index[..., 0].clamp_min(0), peaks.index[..., 1].clamp_min(0)
    scene = torch.arange(len(refined), device=refined.device)[:, None]
    axes = [axis.to(refined.device) for axis in (grid.azimuth_rad, grid.elevation_rad, grid.range_m)]
    found = torch.stack([axes[0][i_az], axes[1][i_el], axes[2][plane[scene, i_az, i_el].long()]], -1)
    filled = torch.arange(k, device=refined.device) < peaks.count[:, None]
    return Candidates(torch.where(filled[..., None], found, math.nan), peaks.value, peaks.count)


@dataclass(frozen=True)
class GuardOptions:
    """What a refined map must look like to be believed.

    Attributes
    ----------
    min_spread : float
        Least difference between its highest and its lowest value: a flat map says nothing.
    saturation : float
        A value above this is saturated.
    max_saturated : float
        Largest share of saturated cells.
    threshold : float
        Peaks are counted above this.
    max_peaks : int
        Most peaks.
    window : (int, int)
        Neighbourhood (azimuth, elevation) in which a peak is the maximum.

    Raises
    ------
    ValueError
        A share or a level outside [0, 1], or ``max_peaks`` below 1.
    """

    min_spread: float = 0.1
    saturation: float = 0.9
    max_saturated: float = 0.1
    threshold: float = 0.3
    max_peaks: int = 12
    window: tuple[int, int] = (5, 5)

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("min_spread", "saturation", "max_saturated", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)!r}")
        if not (isinstance(self.max_peaks, int) and self.max_peaks >= 1):
            raise ValueError(f"max_peaks must be an integer of at least 1, got {self.max_peaks!r}")


class GuardResult(NamedTuple):
    """Which maps can be believed.

    Attributes
    ----------
    ok : bool tensor, shape (B,)
        On the CPU.
    reasons : tuple of tuples of str
        What is wrong with each map; empty where ``ok``.
    """

    ok: Tensor
    reasons: tuple[tuple[str, ...], ...]


def guard(refined: Tensor, options: GuardOptions | None = None) -> GuardResult:
    """Whether refined maps can be believed, or detection should go on without them.

    Parameters
    ----------
    refined : real tensor, shape (B, G_az, G_el)
        From :class:`SpectrumRefiner`; may hold anything.
    options : GuardOptions or None

    Returns
    -------
    GuardResult
        A map fails if it is not finite or leaves 0 .. 1, is flat, is saturated over a large part, or has no peak or
        too many.

    Raises
    ------
    ShapeError, TypeError
        Not a real (B, G_az, G_el).
    """
    _check_map(refined, "refined")
    limits = options or GuardOptions()
    maps = refined.detach().to("cpu", torch.float64)
    finite = maps.isfinite().flatten(1).all(1)
    maps = torch.where(finite[:, None, None], maps, torch.zeros_like(maps))
    lowest, highest = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
    saturated = (maps > limits.saturation).double().flatten(1).mean(1)
    peaks = local_maxima_3d(
        maps[..., None], window=(*limits.window, 1), k=limits.max_peaks + 1, threshold=limits.threshold
    ).count
    reasons: list[tuple[str, ...]] = []
    for scene in range(len(maps)):
        if not bool(finite[scene]):
            reasons.append(("it holds NaN or infinite values",))
            continue
        low, high, share, count = (float(figure[scene]) for figure in (lowest, highest, saturated, peaks))
        found = {
            f"it reaches from {low:.3g} to {high:.3g}, out of 0 .. 1": low < 0 or high > 1,
            f"it is flat: its values span {high - low:.3g}": high - low < limits.min_spread,
            f"it is saturated in {share:.0%} of its cells": share > limits.max_saturated,
            f"it has no peak above {limits.threshold:g}": count == 0,
            f"it has more than {limits.max_peaks} peaks above {limits.threshold:g}": count > limits.max_peaks,
        }
        reasons.append(tuple(reason for reason, holds in found.items() if holds))
    return GuardResult(torch.tensor([not r for r in reasons], dtype=torch.bool), tuple(reasons))


def _check_map(values: Tensor, name: str) -> None:
    if not values.is_floating_point():
        raise TypeError(f"{name} must be a real floating-point tensor, got {values.dtype}")
    if values.ndim != 3 or 0 in values.shape[1:]:
        raise ShapeError(f"{name} must have shape (B, G_az, G_el), got {tuple(values.shape)}")
