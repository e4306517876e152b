"""Arrays as people have them, each of half a wavelength between neighbours, at a wavelength of 1 m."""

import math

import torch

from risfast import SensorArray


def spaced(n, step=0.5):
    return (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * step


def on_axes(**values):
    columns = torch.broadcast_tensors(*(torch.as_tensor(values.get(axis, 0.0)) for axis in "xyz"))
    return torch.stack(columns, -1).double()


def ring(n, plane="xz"):
    return SensorArray.circular(n, 0.245 / math.sin(math.pi / n), 1.0, plane)


def fibonacci_sphere(n, radius=0.7):
    index = torch.arange(n, dtype=torch.float64) + 0.5
    up, turn = 1 - 2 * index / n, index * math.pi * (1 + math.sqrt(5))
    across = (1 - up.square()).sqrt()
    return SensorArray(radius * torch.stack([across * turn.sin(), up, across * turn.cos()], -1), 1.0)


def vogel_spiral(n, radius=0.8):
    index = torch.arange(n, dtype=torch.float64) + 0.5
    r, turn = radius * (index / n).sqrt(), index * math.pi * (1 + math.sqrt(5))
    return SensorArray(on_axes(x=r * turn.cos(), y=r * turn.sin()), 1.0)


arm = spaced(9)
ARRAYS = {
    "line": SensorArray.linear(8, 0.5, 1.0),
    "upright line": SensorArray(on_axes(y=spaced(8)), 1.0),
    "ring of 5": ring(5),
    "ring of 8": ring(8),
    "ring of 16": ring(16),
    "ring in front": ring(8, "xy"),
    "spiral": vogel_spiral(16),
    "cross": SensorArray(torch.cat([on_axes(x=arm), on_axes(y=arm[arm != 0])]), 1.0),
    "L": SensorArray(torch.cat([on_axes(x=spaced(6) + 1.25), on_axes(y=spaced(5) + 1.5)]), 1.0),
    "cube": SensorArray(torch.cartesian_prod(spaced(3, 0.45), spaced(3, 0.45), spaced(3, 0.45)), 1.0),
    "sphere": fibonacci_sphere(24),
}
