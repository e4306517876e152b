"""From a Fisher information matrix to what it says about the coordinates of sources, where it is singular as well."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SINGULAR", "UNBOUNDED", "coordinate_covariance"]

# Eigenvalues of the Fisher information, scaled to a unit diagonal, that rounding cannot tell from zero; and the part
# of a coordinate that must lie in their space for it to count as unbounded.
SINGULAR = 1e-12
UNBOUNDED = 1e-9


def coordinate_covariance(information: Tensor, k: int) -> Tensor:
    """Covariances of the coordinates of each source.

    Parameters
    ----------
    information : float64 tensor, shape (B, 4 K + 1, 4 K + 1)
        Of the parameters of :meth:`risfast.source_state.SourceState.moved`.
    k : int
        K.

    Returns
    -------
    float64 tensor, shape (B, K, 3, 3)
        Blocks of the inverse. A coordinate that the data do not determine has an infinite variance, and no covariance
        with the others (Stoica and Marzetta, "Parameter estimation problems with singular information matrices", IEEE
        Trans. SP 49, 2001).
    """
    diagonal = information.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = information * scale[:, :, None] * scale[:, None]
    value, vector = torch.linalg.eigh(scaled)
    null = value <= SINGULAR * value.shape[1]
    inverse = (vector * torch.where(null, 0.0, 1 / value)[:, None]) @ vector.mT
    inverse = inverse * scale[:, :, None] * scale[:, None]
    unbounded = (vector.square() * null[:, None]).sum(2) > UNBOUNDED  # [B, P]
    blocks = inverse[:, : 3 * k, : 3 * k].unflatten(1, (3, k)).unflatten(3, (3, k))
    blocks = blocks.diagonal(dim1=2, dim2=4).permute(0, 3, 1, 2)
    lost = unbounded[:, : 3 * k].unflatten(1, (3, k)).mT  # [B, K, 3]
    blocks = torch.where(lost[..., None] | lost[..., None, :], 0.0, blocks)
    return blocks + torch.diag_embed(torch.where(lost, torch.inf, 0.0)).nan_to_num(nan=0.0, posinf=torch.inf)
