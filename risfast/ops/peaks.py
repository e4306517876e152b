"""Local maxima of a spectrum volume and non-maximum suppression: what is taken, what is given, and the checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from risfast.errors import ShapeError


# The fields named index and count hide methods of tuple, which no one calls on these; hence the ignored assignments.
class Peaks(NamedTuple):
    """Local maxima, best first.

    Attributes
    ----------
    index : int64 tensor, shape (B, k, 3)
        Grid indices (azimuth, elevation, range); -1 in empty slots.
    value : float tensor, shape (B, k)
        Values of the volume there; -inf in empty slots.
    count : int64 tensor, shape (B,)
        Filled slots, at most k.
    """

    index: Tensor  # type: ignore[assignment]
    value: Tensor
    count: Tensor  # type: ignore[assignment]


class Selection(NamedTuple):
    """Candidates that survive suppression, best first.

    Attributes
    ----------
    index : int64 tensor, shape (B, k)
        Indices into the P candidates; -1 in empty slots.
    count : int64 tensor, shape (B,)
        Filled slots, at most k.
    """

    index: Tensor  # type: ignore[assignment]
    count: Tensor  # type: ignore[assignment]


def local_maxima_3d(
    volume: Tensor,
    *,
    window: Sequence[int] = (7, 7, 3),
    k: int = 64,
    threshold: float | None = None,
    full_circle: bool = False,
) -> Peaks:
    """The k highest local maxima of each volume of a batch.

    Parameters
    ----------
    volume : float32 or float64 tensor, shape (B, G_az, G_el, G_r) or (G_az, G_el, G_r)
        Any strides; a permuted view of a dense tensor (range planes first, say) is read in place. Points at -inf are
        never maxima (a mask can be laid over a volume so).
    window : 3 odd ints
        Size of the neighbourhood in points along azimuth, elevation and range; clipped at the border, where points
        can be maxima too.
    k : int
        Slots per scene, >= 1. Of more than k maxima the k highest are returned, and ``count`` is k.
    threshold : float, optional
        Only points above it (strictly, in the dtype of ``volume``) are maxima; they are compared with every neighbour.
    full_circle : bool
        Azimuth goes round: the first point follows the last, and no point is there twice. Windows have no border in
        azimuth then. Of an axis whose last point repeats its first, give ``volume[..., :-1, :, :]``.

    Returns
    -------
    Peaks
        Without the batch axis if ``volume`` has none. Best first, ties to the lowest linear index.

    Raises
    ------
    ShapeError
        ``volume`` is not 3D or 4D.
    TypeError, ValueError
        Wrong dtype; a window size that is not odd and positive; k < 1; a NaN threshold; NaN in the volume.

    Notes
    -----
    A point is kept iff no point of its clipped window has a larger value, or an equal value and a lower linear index
    (i_az G_el + i_el) G_r + i_r. So a convex plateau of any extent, such as a constant volume, gives exactly one
    maximum, its first point, provided that the window spans at least 3 points along each axis. A winding plateau can
    give several: each of its points that has no plateau point of lower index in its window, such as both tips of a V.

    The result has no gradient; gather from ``volume`` at ``index`` where one is needed.
    """
    _check_float("volume", volume)
    if volume.ndim not in (3, 4):
        raise ShapeError(f"volume must have shape (B, G_az, G_el, G_r) or (G_az, G_el, G_r), got {tuple(volume.shape)}")
    sizes = tuple(window)
    if len(sizes) != 3 or not all(isinstance(s, int) and s > 0 and s % 2 == 1 for s in sizes):
        raise ValueError(f"window must be 3 odd positive ints (azimuth, elevation, range), got {window!r}")
    _check_k(k)
    if threshold is not None and math.isnan(threshold):
        raise ValueError("threshold must be a number or None, got NaN")
    batched = volume if volume.ndim == 4 else volume[None]
    floor = None if threshold is None else float(threshold)
    given = batched.detach()
    if full_circle and given.numel():
        found = _maxima_on_circle(given, sizes, k, floor)
    else:
        found = Peaks(*torch.ops.risfast.local_maxima_3d(given, sizes, k, floor))
    return found if volume.ndim == 4 else Peaks(*(field[0] for field in found))


def _maxima_on_circle(volume: Tensor, window: tuple[int, ...], k: int, floor: float | None) -> Peaks:
    """Local maxima under windows that go across the ends of the azimuth axis."""
    # They are among those of windows that end there. What those hold beside stands within half a window of an end, one
    # in a cell of half a window at most: with that many slots more the best k cannot be missed.
    n_az, n_el, n_r = volume.shape[1:]
    reach = [min(size // 2, n - 1) for size, n in zip(window, volume.shape[1:], strict=True)]
    at_ends = 2 * math.ceil(n_el / (reach[1] + 1)) * math.ceil(n_r / (reach[2] + 1))
    found = Peaks(*torch.ops.risfast.local_maxima_3d(volume, window, k + at_ends * (reach[0] > 0), floor))
    steps = [torch.arange(-half, half + 1, device=volume.device) for half in reach]
    offsets = torch.stack(torch.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    around = found.index.clamp_min(0)[:, :, None] + offsets  # [B, slots, window, 3]
    az, el, r = around[..., 0] % n_az, around[..., 1].clamp(0, n_el - 1), around[..., 2].clamp(0, n_r - 1)
    scene = torch.arange(len(volume), device=volume.device)[:, None, None]
    linear = (az * n_el + el) * n_r + r
    own = linear[..., len(offsets) // 2, None]
    value = found.value[..., None]
    other = volume[scene, az, el, r]
    beaten = ((other > value) | ((other == value) & (linear < own))).any(-1)
    kept = (found.index[..., 0] >= 0) & ~beaten
    # Those that are kept come first, in the order that they have.
    order = (~kept).to(torch.int8).argsort(dim=1, stable=True)[:, :k]
    filled = kept.gather(1, order)
    index = torch.where(filled[..., None], found.index.gather(1, order[..., None].expand(-1, -1, 3)), -1)
    best = found.value.gather(1, order)
    # The slots of a scene that could not be ranked hold NaN, as on a GPU without checks.
    best = torch.where(filled | best.isnan(), best, torch.full_like(best, -math.inf))
    return Peaks(index, best, filled.sum(1))


def nms_3d(
    position: Tensor,
    score: Tensor,
    *,
    separation: Sequence[float],
    k: int = 20,
    on_sphere: bool = False,
    valid: Tensor | None = None,
) -> Selection:
    """Greedy non-maximum suppression with a box in (azimuth, elevation, range).

    Parameters
    ----------
    position : float32 or float64 tensor, shape (B, P, 3) or (P, 3)
        Azimuth and elevation in radians, range in metres; a range may be infinite, the far field.
    score : float32 or float64 tensor, shape (B, P) or (P,)
        Higher is better; -inf marks an absent candidate, whose position is not looked at.
    separation : 3 floats
        (radians, radians, metres), >= 0; inf leaves a coordinate out of the decision. A candidate is suppressed if it
        is within the separation (inclusive) of an already kept one in all three coordinates.
    k : int
        Slots per scene, >= 1: the search stops after k kept candidates.
    on_sphere : bool
        Measure azimuth differences as angles on the sphere: round the circle, and the less the nearer to a pole.
    valid : bool tensor, shape of ``score``, optional
        False marks an absent candidate.

    Returns
    -------
    Selection
        Without the batch axis if ``score`` has none. By descending score, ties to the lowest index.

    Raises
    ------
    ShapeError
        The shapes do not match.
    TypeError, ValueError
        Wrong dtype or device; a negative or NaN separation; k < 1; a NaN score, or a position that is not finite (a
        range of +inf apart), among the present candidates.

    Notes
    -----
    Differences are taken in the dtype of ``position``, and the separation is rounded to it. Two infinite ranges are
    equal, and infinitely far from any other. No gradient.

    The great-circle angle d between two directions obeys hav(d) = hav(el - el') + cos el cos el' hav(az - az'). On the
    sphere the angle whose haversine is the last term is compared with the separation in azimuth: for equal elevations
    that is d itself. The box holds every direction that is no farther than the smaller of its two angles. Azimuths may
    be turns apart; elevations beyond +-pi/2 have no meaning.
    """
    _check_candidates(position, score, valid)
    limits = tuple(float(s) for s in separation)
    if len(limits) != 3 or not all(s >= 0 for s in limits):
        raise ValueError(f"separation must be 3 numbers >= 0 (radians, radians, metres), got {separation!r}")
    _check_k(k)
    ranked = score.detach()
    if valid is not None:
        ranked = torch.where(valid, ranked, -math.inf)
    where = position.detach()
    if score.ndim == 1:
        where, ranked = where[None], ranked[None]
    kept = Selection(*torch.ops.risfast.nms_3d(where, ranked, limits, k, bool(on_sphere)))
    return kept if score.ndim == 2 else Selection(*(field[0] for field in kept))


def _check_float(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}; convert it with .float() or .double()")


def _check_k(k: int) -> None:
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be an int of at least 1, got {k!r}")


def _check_candidates(position: Tensor, score: Tensor, valid: Tensor | None) -> None:
    """Types, shapes and devices of what nms_3d is given."""
    _check_float("position", position)
    _check_float("score", score)
    if score.ndim not in (1, 2):
        raise ShapeError(f"score must have shape (B, P) or (P,), got {tuple(score.shape)}")
    if position.shape != (*score.shape, 3):
        raise ShapeError(
            f"position must have shape {(*score.shape, 3)} to match score {tuple(score.shape)}, "
            f"got {tuple(position.shape)}; its last axis is (azimuth, elevation, range)"
        )
    if valid is not None and (not isinstance(valid, Tensor) or valid.dtype != torch.bool):
        raise TypeError(f"valid must be a bool tensor or None, got {getattr(valid, 'dtype', type(valid).__name__)}")
    if valid is not None and valid.shape != score.shape:
        raise ShapeError(f"valid must have the shape of score, {tuple(score.shape)}, got {tuple(valid.shape)}")
    devices = {t.device for t in (position, score, valid) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"position, score and valid must be on one device, got {', '.join(sorted(map(str, devices)))}")


def reject_nan(found: bool) -> None:
    """Refuse a volume that holds NaN."""
    if found:
        raise ValueError(
            "volume must not hold NaN, which has no order; replace NaN by -inf (never a maximum) "
            "or mend the spectrum that it came from"
        )


def reject_bad_candidates(nan_score: bool, bad_position: bool) -> None:
    """Refuse candidates that cannot be ranked or placed."""
    if nan_score:
        raise ValueError("score must not hold NaN, which has no order; give absent candidates the score -inf")
    if bad_position:
        raise ValueError(
            "position must be finite (a range may be +inf) wherever score is above -inf; it is not there. "
            "Give such candidates the score -inf, or mark them absent with valid"
        )


def sphere_coordinates(position: Tensor) -> Tensor:
    """What differences on the sphere are taken of: w cos(az / 2), w sin(az / 2) with w^2 = cos el, elevation, range.

    position (..., 3) -> (..., 4)
    """
    # The angle d between two directions obeys hav(d) = hav(el - el') + cos el cos el' hav(az - az'). The root of the
    # last term is a cross product of the first two coordinates: it knows no seam, and azimuths fade out at a pole.
    azimuth, elevation = position[..., :1].double(), position[..., 1:2].double()
    weight = elevation.cos().clamp_min(0).sqrt()
    half = azimuth / 2
    return torch.cat([weight * half.cos(), weight * half.sin(), position[..., 1:].double()], -1).to(position.dtype)


def box_limits(separation: Sequence[float], on_sphere: bool, dtype: torch.dtype) -> Tensor:
    """What the absolute differences in azimuth (on the sphere its cross product), elevation and range may be, [3]."""
    azimuth, *others = separation
    if on_sphere:
        azimuth = math.sin(azimuth / 2) if azimuth < math.pi else math.inf
    return torch.tensor([azimuth, *others], dtype=torch.float64, device="cpu").to(dtype)
