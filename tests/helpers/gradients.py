"""A loss with its gradient."""

from __future__ import annotations


def gradient_of(loss, x):
    """Value and gradient of the sum over scenes."""
    x = x.clone().requires_grad_()
    value = loss(x)
    value.sum().backward()
    return value.detach(), x.grad
