"""The Capon spectrum inside a plain torch training loop: it is differentiable in the covariance.

The elements of an array have unknown gains and phases. A calibration of each element is learned so that the spectrum at
the known places of a few training sources is as high as it can be beside the mean of the map.

    python examples/torch_training.py
"""

from __future__ import annotations

import math

import torch

from risfast import PlanarArray, SearchGrid
from risfast.ops import mvdr_spectrum
from risfast.steering import steering_vectors

ARRAY = PlanarArray.rectangular(6, 6)
GRID = SearchGrid.box(25, 13, (1.0, 2.0), math.radians(48), math.radians(24))


class Calibration(torch.nn.Module):
    """One complex factor per element; the first phase is the reference."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.log_gain = torch.nn.Parameter(torch.zeros(n))
        self.phase = torch.nn.Parameter(torch.zeros(n))

    def forward(self, R: torch.Tensor) -> torch.Tensor:
        """R of calibrated elements: D R D^H, with the trace of R."""
        gain = self.log_gain - self.log_gain.mean()
        d = torch.polar(gain.exp(), self.phase - self.phase[0])
        return d[:, None] * R * d.conj()


def training_set(generator: torch.Generator, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariances of single sources at grid points, seen through wrong gains and phases; and the phases."""
    n = ARRAY.n_elements
    phases = 0.6 * torch.randn(n, generator=generator)
    gains = (0.1 * torch.randn(n, generator=generator)).exp()
    a = steering_vectors(ARRAY, *GRID.points().reshape(-1, 3)[index].unbind(-1))
    x = a * torch.polar(gains, phases)
    return x[:, :, None] * x[:, None].conj() + 0.05 * torch.eye(n), phases - phases[0]


def main() -> None:
    """Train, and print how the error of the phases falls."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(GRID.size, (16,), generator=generator)
    R, phases = training_set(generator, index)
    layer = Calibration(ARRAY.n_elements)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)

    def phase_error() -> float:
        left = layer.phase - layer.phase[0] + phases
        return float(torch.polar(torch.ones_like(left), left).angle().detach().square().mean().sqrt())

    print(f"step   0: phase error {phase_error():.3f} rad")
    for step in range(1, 121):
        power = mvdr_spectrum(layer(R), ARRAY, GRID, reduce="none").flatten(1)
        loss = (power.mean(1).log() - power[torch.arange(len(index)), index].log()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 40 == 0:
            print(f"step {step:3d}: loss {float(loss.detach()):.3f}, phase error {phase_error():.3f} rad")


if __name__ == "__main__":
    main()
