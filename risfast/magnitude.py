"""Squared magnitudes without square roots."""

from __future__ import annotations

from torch import Tensor

__all__ = ["squared_magnitude"]


def squared_magnitude(values: Tensor) -> Tensor:
    """|z|^2 = Re(z)^2 + Im(z)^2, elementwise.

    Parameters
    ----------
    values : complex tensor

    Returns
    -------
    real tensor
        Of the same shape.

    Notes
    -----
    ``abs().square()`` takes a guarded square root of every element first: on a processor that is six to ten times the
    work.
    """
    return values.real.square() + values.imag.square()
