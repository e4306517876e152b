"""Losses of maps over a grid, and the targets they are held to; ``risfast.losses`` offers them too."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import SearchGrid
from risfast.set_losses import check_sources

__all__ = ["blob_heatmap", "focal_heatmap", "intensity_nll"]


def focal_heatmap(logits: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of a map against soft targets, summed over the cells, per unit of target.

    With p = sigmoid(logit): sum_g alpha_t |t - p|^gamma (-t ln p - (1 - t) ln(1 - p)) / max(1, sum_g t), where
    alpha_t = alpha t + (1 - alpha) (1 - t).

    Parameters
    ----------
    logits : real tensor, shape (B, ...)
        Before the sigmoid, where nothing can saturate.
    target : real tensor of the same shape, in [0, 1]
        See :func:`blob_heatmap`.
    alpha : float in [0, 1]
        Weight of what is a source; 1 - alpha goes to the background.
    gamma : float, 0 or >= 1
        How little cells count that are nearly right.

    Returns
    -------
    real tensor, shape (B,)
        0 where p = t, for soft targets too (gamma > 0).

    Raises
    ------
    ShapeError, ValueError
        Shapes that differ, an option or a target out of its range.

    Notes
    -----
    T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017; for targets between 0 and 1 in the form of
    X. Li et al., "Generalized focal loss", NeurIPS 2020 (there without alpha).
    """
    if logits.shape != target.shape or logits.ndim < 2:
        raise ShapeError(
            f"logits and target must share a shape (B, ...), got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha!r}")
    if not (gamma == 0 or 1 <= gamma < math.inf):
        raise ValueError(f"gamma must be 0 or at least 1 (between, the gradient has a pole), got {gamma!r}")
    if not bool(((target >= 0) & (target <= 1)).all()):
        raise ValueError("target must lie in [0, 1]")
    t = target.to(logits.dtype)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, t, reduction="none")
    weight = alpha * t + (1 - alpha) * (1 - t)
    cell = weight * (t - logits.sigmoid()).abs().pow(gamma) * entropy
    return cell.flatten(1).sum(1) / t.flatten(1).sum(1).clamp_min(1)


def blob_heatmap(
    position: Tensor,
    mask: Tensor,
    grid: SearchGrid,
    *,
    sigma_rad: tuple[float, float] = (math.radians(2.0), math.radians(2.0)),
) -> Tensor:
    """A Gaussian blob around the direction of each source, the largest where they overlap.

    max_k exp(-(azimuth - azimuth_k)^2 / (2 sigma_az^2) - (elevation - elevation_k)^2 / (2 sigma_el^2)), with azimuth
    differences wrapped to +-pi.

    Parameters
    ----------
    position : real tensor, shape (B, K_max, 3)
        Azimuth, elevation in radians; the range is not looked at.
    mask : bool tensor, shape (B, K_max)
        True where there is a source.
    grid : SearchGrid
        Its azimuth and elevation axes.
    sigma_rad : pair of positive floats
        Widths in radians; the default is one cell of the training grid in azimuth.

    Returns
    -------
    real tensor, shape (B, G_az, G_el), in [0, 1]
        In the dtype and on the device of ``position``; zero without sources.

    Raises
    ------
    ShapeError, TypeError, ValueError
        Shapes or dtypes that do not belong together, a width that is not positive.

    Notes
    -----
    The target of X. Zhou, D. Wang, P. Krähenbühl, "Objects as points", 2019, with widths in angle instead of in cells.
    """
    check_sources(position, mask)
    if len(sigma_rad) != 2 or not all(0 < s < math.inf for s in sigma_rad):
        raise ValueError(f"sigma_rad must be two positive widths in radians, got {sigma_rad!r}")
    azimuth, elevation = (axis.to(position.device) for axis in (grid.azimuth_rad, grid.elevation_rad))
    where = position.double()
    off_az = azimuth - where[..., :1]  # [B, K, G_az]
    off_az = (off_az - 2 * math.pi * (off_az / (2 * math.pi)).round()) / sigma_rad[0]
    off_el = (elevation - where[..., 1:2]) / sigma_rad[1]  # [B, K, G_el]
    blob = (off_az.square()[..., :, None] + off_el.square()[..., None, :]).div(-2).exp()
    blob = torch.where(mask[..., None, None], blob, torch.zeros_like(blob))
    empty = blob.new_zeros(len(blob), 1, *blob.shape[2:])  # the maximum of no blobs is 0
    return torch.cat([blob, empty], 1).amax(1).to(position.dtype)


def intensity_nll(log_intensity: Tensor, expected_counts: Tensor) -> Tensor:
    """Negative log-likelihood of a Poisson point process, above its least value for these counts.

    sum_g exp(z_g) - t_g z_g - (t_g - t_g ln t_g): the likelihood of t_g sources where exp(z_g) are expected, less what
    z = ln t attains (0 ln 0 = 0).

    Parameters
    ----------
    log_intensity : real tensor, shape (B, G) or (B, ...)
        z, the logarithm of the expected number of sources in each cell; -inf where none can be.
    expected_counts : real tensor of the same shape, >= 0
        t: 1 in the cell of each source, or its spread over several cells.

    Returns
    -------
    real tensor, shape (B,)
        0 where exp(z) = t in every cell. Without sources, the number of sources that were expected.

    Raises
    ------
    ShapeError, ValueError
        Shapes that differ, a negative or NaN count.

    Notes
    -----
    D. J. Daley, D. Vere-Jones, "An Introduction to the Theory of Point Processes", 2003, section 7.1.
    """
    if log_intensity.shape != expected_counts.shape or log_intensity.ndim < 2:
        raise ShapeError(
            "log_intensity and expected_counts must share a shape (B, ...), got "
            f"{tuple(log_intensity.shape)} and {tuple(expected_counts.shape)}"
        )
    t = expected_counts.to(log_intensity.dtype)
    if not bool((t >= 0).all()):
        raise ValueError("expected_counts must be >= 0 and not NaN")
    occupied = t > 0
    z = torch.where(occupied, log_intensity, torch.zeros_like(log_intensity))  # 0 * -inf must not arise
    surprise = torch.where(occupied, t * (z - torch.where(occupied, t, torch.ones_like(t)).log()), torch.zeros_like(z))
    return (log_intensity.exp() - t - surprise).flatten(1).sum(1)
