"""The same scenes in other units, orders and phases: how far the localizer's answers move.

``python -m bench.equivariance`` localises 200 scenes of the reference system, by the shipped model and by the classical
fit, and again with

- units of snapshots, codes and channel between 1e-30 and 1e30, of each scene,
- antennas, snapshots or elements in another order,
- a phase of each snapshot, and of each antenna,
- scenes in another order and in batches of other sizes.

It prints for each how many scenes have other sources, the largest difference of a direction (radians) and of a range
(relative), and how large both are beside the standard deviation of the estimate. Sources may come and go where a
confidence lies within 1e-3 of its threshold. It exits with 1 where others do, or where something moves by more than
1e-4 and by more than a hundredth of its standard deviation: the polish ends where the likelihood hardly rises.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from risfast import Localizer, SensorArray
from risfast.geometry import direction_cosines
from risfast.localize.pipeline import Localisation
from risfast.simulate import SystemConfig, generate_scenes

SCENES, SEED, AT_ONCE = 200, 20261130, 16
MOST, MOST_DEVIATIONS, NEAR_THRESHOLD = 1e-4, 1e-2, 1e-3


class Case(NamedTuple):
    """Snapshots, codes and channel of some scenes, and the array whose elements the codes are of."""

    y: Tensor
    codes: Tensor
    channel: Tensor
    array: SensorArray

    def take(self, scenes: Tensor) -> Case:
        return Case(self.y[scenes], self.codes[scenes], self.channel[scenes], self.array)


class Difference(NamedTuple):
    """What a transformation changed."""

    name: str
    scenes: int
    others: int  # scenes with other sources
    excused: int  # of them, by a confidence beside its threshold
    direction_rad: float
    range_relative: float
    deviations: float  # the largest of both in standard deviations, of what moved by more than :data:`MOST`

    @property
    def wrong(self) -> bool:
        return self.others > self.excused or self.deviations > MOST_DEVIATIONS

    def line(self) -> str:
        counts = f"{self.name:32}{self.scenes:8}{self.others:8}{self.excused:9}"
        return f"{counts}{self.direction_rad:13.1e}{self.range_relative:13.1e}{self.deviations:13.1e}"


HEADER = f"{'':32}{'scenes':>8}{'others':>8}{'excused':>9}{'direction':>13}{'range':>13}{'deviations':>13}"


def transformed(case: Case, random: torch.Generator) -> Iterator[tuple[str, Case]]:
    """The same scenes as somebody else might have written them down."""
    scenes, n_snapshots, n_antennas = case.y.shape

    def order(n: int) -> Tensor:
        return torch.randperm(n, generator=random)

    def units() -> Tensor:
        return 10 ** (60 * torch.rand(scenes, 1, 1, dtype=torch.float64, generator=random) - 30)

    def turned(*shape: int) -> Tensor:
        angle = 2 * torch.pi * torch.rand(*shape, dtype=torch.float64, generator=random)
        return torch.polar(torch.ones_like(angle), angle)

    yield "snapshots in other units", case._replace(y=case.y * units())
    yield "codes in other units", case._replace(codes=case.codes * units())
    yield "channel in other units", case._replace(channel=case.channel * units())
    new = order(n_antennas)
    yield "antennas in another order", case._replace(y=case.y[:, :, new], channel=case.channel[:, new])
    new = order(n_snapshots)
    yield "snapshots in another order", case._replace(y=case.y[:, new], codes=case.codes[:, new])
    new = order(case.array.n_elements)
    array = SensorArray(case.array.positions_m[new], case.array.wavelength_m)
    yield "elements in another order", Case(case.y, case.codes[:, :, new], case.channel[:, :, new], array)
    yield "a phase of each snapshot", case._replace(y=case.y * turned(scenes, n_snapshots, 1))
    phase = turned(scenes, n_antennas)
    yield "a phase of each antenna", case._replace(y=case.y * phase[:, None], channel=case.channel * phase[..., None])


def localised(localizer: Localizer, case: Case, at_once: int = AT_ONCE) -> list[Localisation]:
    """Every so many scenes, with progress on a terminal."""
    found = []
    for start in range(0, len(case.y), at_once):
        part = case.take(torch.arange(start, min(start + at_once, len(case.y))))
        found.append(localizer.analyse(part.y, part.codes, part.channel, array=part.array))
        if sys.stderr.isatty():
            print(f"\r{start + len(part.y)} of {len(case.y)} scenes ", end="", file=sys.stderr, flush=True)
    return found


def answers(found: list[Localisation]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Position, its standard deviation and confidence of the sources of each scene."""
    each = [pair for one in found for pair in zip(one.sources, one.position_covariance or (), strict=True)]
    return [
        (s.position.double(), c.diagonal(dim1=1, dim2=2).sqrt(), torch.as_tensor(s.confidence).double())
        for s, c in each
    ]


def compared(
    name: str, found: list[tuple[Tensor, ...]], usual: list[tuple[Tensor, ...]], threshold: float
) -> Difference:
    """How far the sources of the same scenes are apart."""
    others = excused = 0
    direction = off = deviations = 0.0
    for (there, _, sure), (here, deviation, usually) in zip(found, usual, strict=True):
        unknown, before = (int(at[:, 2].isnan().sum()) for at in (there, here))
        if len(there) != len(here) or unknown != before or bool(torch.cat([there, here])[:, :2].isnan().any()):
            others += 1
            excused += bool(((torch.cat([sure, usually]) - threshold).abs() < NEAR_THRESHOLD).any())
            continue
        if not len(here):
            continue
        apart = torch.cdist(*(direction_cosines(p[:, 0], p[:, 1]) for p in (there, here)))
        angle, near = apart.min(0)
        ratio = (there[near, 2] / here[:, 2] - 1).abs()
        ratio = torch.where(there[near, 2].isnan() & here[:, 2].isnan(), 0.0, ratio).nan_to_num(torch.inf)
        direction, off = max(direction, float(angle.max())), max(off, float(ratio.max()))
        moved = torch.stack([angle / deviation[:, :2].amax(1), ratio * here[:, 2] / deviation[:, 2]])
        moved = torch.where(torch.stack([angle, ratio]) > MOST, moved, 0.0)
        moved = torch.where(ratio.isinf(), torch.inf, moved)  # another source's range
        deviations = max(deviations, float(moved.nan_to_num(0.0).max()))
    return Difference(name, len(usual), others, excused, direction, off, deviations)


def differences(localizer: Localizer, system: SystemConfig, scenes: int) -> Iterator[Difference]:
    """One for each transformation."""
    made = generate_scenes(system, SEED, range(scenes))
    arrays = (tensor.to(torch.complex128) for tensor in (made.y, made.codes, made.channel))
    case = Case(*arrays, system.setup.array)
    random = torch.Generator().manual_seed(SEED)
    threshold = localizer.options.decision.least_confidence
    usual = answers(localised(localizer, case))
    for name, other in transformed(case, random):
        yield compared(name, answers(localised(localizer, other)), usual, threshold)
    new = torch.randperm(scenes, generator=random)
    found = answers(localised(localizer, case.take(new)))
    yield compared("scenes in another order", [found[int(i)] for i in new.argsort()], usual, threshold)
    for at_once in (1, 7):
        yield compared(f"in batches of {at_once}", answers(localised(localizer, case, at_once)), usual, threshold)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.equivariance", description=__doc__)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--snapshots", type=int, default=16)
    given = parser.parse_args(arguments)
    if given.scenes < 1 or given.snapshots < 1:
        parser.error("--scenes and --snapshots must be at least 1")
    torch.set_num_threads(1)
    system = SystemConfig(n_snapshots=given.snapshots)
    wrong = False
    kinds = {"shipped model": Localizer.from_pretrained(), "classical fit": Localizer.classical(system.setup)}
    for title, localizer in kinds.items():
        print(f"{title}{HEADER[len(title) :]}", flush=True)
        for difference in differences(localizer, system, given.scenes):
            print(difference.line(), flush=True)
            wrong = wrong or difference.wrong
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
