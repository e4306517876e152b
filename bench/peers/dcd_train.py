"""Training of the networks of a DCD-MUSIC checkout on scenes of a uniform linear array.

    python -m bench.peers.dcd_train --checkout FOLDER --method nf_subspacenet --out nf_subspacenet.safetensors

Network, differentiable peak finding and losses are the checkout's own; scenes come from here: exact spherical
wavefronts on a line that is as long as a side of the surface, over the ranges of the surface's field of view.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bench.peers.dcd_checkout import SPACING_WAVELENGTHS, Checkout, calm, load_checkout
from bench.peers.dcd_networks import MOST_SOURCES, LineOptions, build_network, write_weights
from risfast.geometry import SensorArray
from risfast.steering import steering_vectors

__all__ = ["LineScenes", "TrainOptions", "draw_line_scenes", "main", "train_network"]

_EIGENVALUES = 100.0  # their weight of the eigenvalue regularisation, relative to the learning rate
_MILESTONES = 3  # halvings of the learning rate


class LineScenes(NamedTuple):
    """Snapshots of a line, and where the sources are."""

    snapshots: Tensor  # (B, N, T) In the sign of risfast, of unit mean power
    angle: Tensor  # (B, K) From the centre: radians from broadside, and wavelengths
    distance: Tensor  # (B, K) From the centre: radians from broadside, and wavelengths


@dataclass(frozen=True)
class TrainOptions:
    """Options of the training."""

    steps: int = 3000  # Batches; the cascade takes half of them for angles, a quarter for ranges and a quarter for both
    batch: int = 16  # Scenes of one number of sources each
    learning_rate: float = 2e-3  # Of Adam at the start; halved three times
    snr_db: tuple[float, float] = (-5.0, 30.0)  # Of each scene, uniform
    angle_rad: float = math.radians(60)  # Sources lie within this of broadside
    seed: int = 0  # Of parameters and scenes

    def __post_init__(self) -> None:
        """Check every value."""
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1, got {self.steps} and {self.batch}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate!r}")
        if not self.snr_db[0] <= self.snr_db[1]:
            raise ValueError(f"snr_db must be (low, high), got {self.snr_db!r}")
        if not 0 < self.angle_rad <= math.pi / 2:
            raise ValueError(f"angle_rad must lie in (0, pi/2], got {self.angle_rad!r}")


def draw_line_scenes(
    line: LineOptions, options: TrainOptions, count: int, n_sources: int, generator: torch.Generator
) -> LineScenes:
    """Scenes of a line with exact spherical wavefronts and white Gaussian sources of equal power."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.complex128, generator=generator)

    angle = uniform(-options.angle_rad, options.angle_rad, count, n_sources)
    distance = uniform(line.near, line.far, count, n_sources)
    array = SensorArray.linear(line.n_elements, SPACING_WAVELENGTHS, 1.0)
    a = steering_vectors(array, angle, torch.zeros_like(angle), distance, dtype=torch.complex128)
    clean = a.mT @ gaussian(count, n_sources, line.n_snapshots) / math.sqrt(n_sources)
    noise = 10 ** (-uniform(*options.snr_db, count, 1, 1) / 20) * gaussian(count, line.n_elements, line.n_snapshots)
    x = clean + noise
    return LineScenes(x / x.abs().square().mean((1, 2), keepdim=True).sqrt(), angle, distance)


def train_network(
    checkout: Checkout,
    line: LineOptions,
    options: TrainOptions,
    report: Callable[[int, int, float], None] | None = None,
) -> nn.Module:
    """Train a network of the checkout."""
    if not line.centred:
        raise ValueError("training is for angles and ranges from the centre: centred must be True")
    generator = torch.Generator().manual_seed(options.seed)
    stdout, done = sys.stdout, 0
    with calm():
        torch.manual_seed(options.seed)
        network = build_network(checkout, line)
        for phase in _phases(checkout, network, line.method, options.steps):
            for loss in _phase(network, line, options, phase, generator):
                done += 1
                if report is not None:
                    with contextlib.redirect_stdout(stdout):
                        report(done, options.steps, loss)
    return network.eval()


class _Phase(NamedTuple):
    """Some steps of one objective: ``loss`` takes snapshots, angles and ranges to a summed loss, and eigenvalues'."""

    steps: int
    trained: nn.Module
    loss: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


def _phases(checkout: Checkout, network: Any, method: str, steps: int) -> list[_Phase]:
    cartesian = checkout.classes["CartesianLoss"]()
    if method == "nf_subspacenet":

        def both(x: Tensor, angle: Tensor, distance: Tensor) -> tuple[Tensor, Tensor | None]:
            found = network(x, angle.shape[1])
            return cartesian(found[0], angle, found[1], distance), found[3]

        return [_Phase(steps, network, both)]
    periodic = checkout.classes["RMSPELoss"](1.0)

    def angles(x: Tensor, angle: Tensor, distance: Tensor) -> tuple[Tensor, Tensor | None]:
        found = network.angle_extractor(x, angle.shape[1])
        return periodic(found[0], angle), found[2]

    def cascade(joint: bool) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]:
        def loss(x: Tensor, angle: Tensor, distance: Tensor) -> tuple[Tensor, Tensor | None]:
            found = network(x, angle.shape[1], train_angle_extractor=joint)
            return cartesian(found[0], angle, found[1], distance), found[3]

        return loss

    first, second = steps // 2, steps // 4
    return [
        _Phase(first, network.angle_extractor, angles),
        _Phase(second, network, cascade(False)),
        _Phase(steps - first - second, network, cascade(True)),
    ]


def _phase(
    network: nn.Module, line: LineOptions, options: TrainOptions, phase: _Phase, generator: torch.Generator
) -> Any:
    """Yield the loss of a scene after each step."""
    network.train()
    optimiser = torch.optim.Adam(phase.trained.parameters(), lr=options.learning_rate)
    every = max(math.ceil(phase.steps / (_MILESTONES + 1)), 1)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, every, 0.5)
    for _ in range(phase.steps):
        count = int(torch.randint(1, MOST_SOURCES + 1, (), generator=generator))
        scenes = draw_line_scenes(line, options, options.batch, count, generator)
        loss, eigenvalues = phase.loss(scenes.snapshots.conj().resolve_conj(), scenes.angle, scenes.distance)
        total = loss
        if eigenvalues is not None:
            total = total + _EIGENVALUES * options.learning_rate * eigenvalues
        optimiser.zero_grad()
        total.backward()
        finite = all(bool(p.grad.isfinite().all()) for p in phase.trained.parameters() if p.grad is not None)
        if finite:  # eigenvalues that meet have no derivative
            optimiser.step()
        schedule.step()
        yield float(loss.detach()) / options.batch


@dataclass(frozen=True)
class TrainCommand:
    """Options of the command."""

    checkout: Path
    """Folder of the checkout; its code is run."""
    out: Path
    """File of the weights, .safetensors."""
    method: Literal["nf_subspacenet", "dcd_music"] = "nf_subspacenet"
    """Which network."""
    elements: int = 12
    """Of a side of the surface, half a wavelength apart."""
    snapshots: int = 64
    """That the network is fed."""
    lags: int = 1
    """Of the autocorrelation that it looks at."""
    range_wavelengths: tuple[float, float] = (0.5 / 0.3, 10 / 0.3)
    """Nearest and farthest source."""
    train: TrainOptions = field(default_factory=TrainOptions)
    """How."""


def _train_to_file(command: TrainCommand, tell: Callable[[int, int, float], None]) -> None:
    if command.out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {command.out}")
    near, far = command.range_wavelengths
    line = LineOptions(command.method, command.elements, command.snapshots, command.lags, near, far)
    checkout = load_checkout(command.checkout)
    network = train_network(checkout, line, command.train, tell)
    write_weights(command.out, network, line, {"checkout": checkout.fingerprint, **asdict(command.train)})


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    import tyro

    command = tyro.cli(TrainCommand, prog="python -m bench.peers.dcd_train", args=arguments)
    began, losses = time.monotonic(), list[float]()

    def tell(step: int, steps: int, loss: float) -> None:
        losses.append(loss)
        if step % max(steps // 50, 1) == 0 or step == steps:
            left = (time.monotonic() - began) / step * (steps - step)
            mean = sum(losses) / len(losses)
            losses.clear()
            print(f"step {step}/{steps}  loss {mean:.4f}  {left:.0f} s left", file=sys.stderr, flush=True)

    try:
        _train_to_file(command, tell)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"dcd_train: {error}", file=sys.stderr)
        return 1
    print(command.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
