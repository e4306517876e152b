"""One source anywhere: how often it is found once, where it is, also at the poles, at seams and on edges.

``python -m bench.everywhere`` takes 2000 places each in the region of a sphere, a ring and a plane (the plane needs a
quarter of an hour; ``--places`` takes fewer). It prints how many were missed, found twice or found elsewhere, and the
first of them, and exits with 1 where there was any. A range is judged where one was reported for a source within 2 m:
farther out, or where the range is said not to be determined, only the direction is.
"""

from __future__ import annotations

import argparse
import math
import sys

import torch

from risfast import SensorArray, Setup, detect_sources
from risfast.geometry import direction_cosines
from risfast.steering import steering_vectors


def ball(n: int) -> torch.Tensor:
    """Points in a ball of 0.3 m, the same each time."""
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    return 0.3 * points / points.norm(dim=1, keepdim=True) * torch.rand(n, 1, dtype=torch.float64, generator=generator)


ARRAYS = {
    "sphere": SensorArray(ball(40), 0.3),
    "ring": SensorArray.circular(16, 0.35, 0.3),
    "plane": SensorArray.rectangular(8, 8, 0.14, 0.3),
}


def places(setup: Setup, count: int) -> torch.Tensor:
    """Positions over the region, every fourth at a pole or an end of an axis, or within a hair of it."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    region = setup.region
    position = torch.zeros(count, 3, dtype=torch.float64)
    for axis, (low, high) in enumerate((region.azimuth_rad, region.elevation_rad)):
        # uniform on the sphere; an end of an axis, exactly or nearly, in every fourth
        position[:, axis] = (
            low + (high - low) * drawn(count)
            if axis == 0
            else (torch.asin(math.sin(low) + (math.sin(high) - math.sin(low)) * drawn(count)))
        )
        end = torch.tensor([low, high], dtype=torch.float64)[(drawn(count) < 0.5).long()]
        inward = (
            torch.sign((low + high) / 2 - end)
            * torch.tensor([0.0, 1e-9, 1e-4, 0.03]).double()[torch.randint(4, (count,), generator=generator)]
        )
        special = (torch.arange(count) % 4 == 0) if axis == 1 else (torch.arange(count) % 4 == 1)
        position[:, axis] = torch.where(special, end + inward, position[:, axis])
    near, far = region.inverse_range[1], region.inverse_range[0]
    position[:, 2] = 1 / (far + (near - far) * drawn(count))
    return position


def wrong(name: str, count: int) -> list[str]:
    """Sources that were not found exactly once within the tolerance."""
    setup = Setup(ARRAYS[name], sampling="direct")
    grid, tolerance = setup.search_grid(), setup.tolerance
    found_wrong = []
    position = places(setup, count)
    n = setup.array.n_elements
    for start in range(0, count, 50):
        true = position[start : start + 50]
        a = steering_vectors(setup.array, *true.unbind(-1), dtype=torch.complex128)
        covariance = a[:, :, None] * a.conj()[:, None, :] + 0.05 * torch.eye(n)
        for place, found in zip(true, detect_sources(covariance, setup, grid), strict=True):
            here = [round(math.degrees(v), 4) for v in place[:2].tolist()] + [round(float(place[2]), 3)]
            if len(found) != 1:
                found_wrong.append(f"{here}: {len(found)} detections")
                continue
            directions = direction_cosines(*torch.stack([place, found.position[0]]).T[:2])
            angle = float((directions[0] - directions[1]).norm())
            range_off = abs(float(found.range[0]) - float(place[2]))
            determined = not math.isnan(float(found.range[0])) and float(place[2]) < 2.0
            if angle > tolerance.azimuth_rad or (determined and range_off > tolerance.range_m):
                found_wrong.append(f"{here}: {math.degrees(angle):.2f} deg, {range_off:.2f} m off")
    return found_wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.everywhere", description=__doc__)
    parser.add_argument("arrays", nargs="*", metavar="ARRAY", help=f"some of {', '.join(ARRAYS)}; all by default")
    parser.add_argument("--places", type=int, default=2000)
    parser.add_argument("--show", type=int, default=10, help="how many of those that were wrong are printed")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.arrays) - ARRAYS.keys())
    if unknown or given.places < 1:
        parser.error(f"unknown array {unknown[0]!r}" if unknown else "--places must be at least 1")
    torch.set_num_threads(1)
    total = 0
    for name in given.arrays or ARRAYS:
        bad = wrong(name, given.places)
        total += len(bad)
        print(
            f"{name:8} {given.places - len(bad)} of {given.places} found once within the tolerance",
            flush=True,
        )
        for line in bad[: given.show]:
            print(f"    {line}")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
