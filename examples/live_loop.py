"""A live loop: frames of a recording as they come from the disk, sources of each frame, and how late they are.

``python examples/live_loop.py`` runs it.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from risfast import DetectionOptions, PlanarArray, SearchGrid, Setup
from risfast.io import Recording, Snapshots, write_recording
from risfast.localize import ForgettingDetector, LiveLoop
from risfast.simulate import read
from risfast.steering import steering_vectors

ARRAY = PlanarArray.rectangular(8, 8)
GRID = SearchGrid.box(61, 41, (0.8, 1.3, 2.0, 3.5), math.radians(50), math.radians(25))
FRAMES, FRAME = 20, 256  # frames, and snapshots in each


def record(path: Path) -> None:
    """A source that moves from left to right while it comes nearer, as a recording on disk."""
    generator = torch.Generator().manual_seed(0)
    azimuth = torch.linspace(-0.5, 0.5, FRAMES, dtype=torch.float64)
    elevation, r = torch.full_like(azimuth, 0.1), torch.linspace(2.5, 1.0, FRAMES, dtype=torch.float64)
    a = steering_vectors(ARRAY, azimuth, elevation, r)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.complex64, generator=generator)

    frames = a[:, None] * noise(FRAMES, FRAME, 1) + 0.3 * noise(FRAMES, FRAME, ARRAY.n_elements)
    write_recording(path, Recording(ARRAY, snapshots=Snapshots.of(frames.reshape(-1, ARRAY.n_elements).numpy())))


def main() -> None:
    """Detect frame by frame, with a forgetting covariance. A recording can wait: no frame is dropped."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.h5"
        record(path)
        recording = read(path)
        assert recording.snapshots is not None
        row_bytes = ARRAY.n_elements * recording.snapshots.dtype.itemsize
        setup = Setup(recording.array, sampling="direct")
        detector = ForgettingDetector(setup, memory=0.2, grid=GRID, options=DetectionOptions(max_sources=1))
        times = []
        for result in LiveLoop(detector, drop="none").run(recording.snapshots.blocks(FRAME * row_bytes)):
            azimuth, elevation, r = result.sources.position[0].tolist()
            degrees = math.degrees(azimuth), math.degrees(elevation)
            times.append(1e3 * result.seconds)
            print(f"frame {result.frame:2d}: {degrees[0]:6.2f} {degrees[1]:6.2f} deg {r:5.2f} m  {times[-1]:6.1f} ms")
        print(f"median {np.median(times[1:]):.1f} ms a frame (the first one makes the plans)")


if __name__ == "__main__":
    main()
