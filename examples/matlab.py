"""A MATLAB user's path: snapshots and positions from a .mat file, the covariance and the sources back as .mat.

    python examples/matlab.py [MEASURED.mat [FOLDER]]

Without a file, one is made as MATLAB would save it: ``data`` (N x L), ``pos`` (3 x N, metres), ``lambda`` (metres). In
MATLAB, ``load sources.mat`` gives azimuth_deg, elevation_deg, range_m, power_db and confidence, and
``load covariance.mat`` the matrix ``covariance`` with ``positions_m`` and ``wavelength_m``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import scipy.io
import torch

from risfast import PlanarArray, SearchGrid, detect_sources
from risfast.io import write_recording, write_results
from risfast.simulate import read
from risfast.steering import steering_vectors

FIELDS = {"snapshots": "data", "positions_m": "pos", "wavelength_m": "lambda"}


def measure(path: Path) -> None:
    """Two sources before a planar array, saved the way MATLAB users keep their data."""
    array = PlanarArray.rectangular(8, 8)
    places = torch.tensor([[0.3, 0.1, 1.5], [-0.4, -0.1, 2.5]], dtype=torch.float64)
    a = steering_vectors(array, *places.unbind(-1), dtype=torch.complex128).numpy()
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)

    data = a.T @ noise(2, 400) + 0.1 * noise(array.n_elements, 400)
    scipy.io.savemat(path, {"data": data, "pos": array.positions_m.numpy().T, "lambda": array.wavelength_m})


def main() -> None:
    """Read, localise, write."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("measured.mat")
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else source.parent
    if not source.exists():
        measure(source)
    recording = read(source, fields=FIELDS).with_covariance()
    for note in recording.provenance.notes:
        print(f"note: {note}")
    assert recording.covariance is not None
    scenes = detect_sources(recording.covariance, recording.array, SearchGrid.training())
    for azimuth, elevation, r in scenes[0].position.tolist():
        print(f"azimuth {np.degrees(azimuth):.2f} deg, elevation {np.degrees(elevation):.2f} deg, range {r:.3f} m")
    write_results(folder / "sources.mat", scenes, recording.setup)
    write_recording(folder / "covariance.mat", recording)
    print(f"written: {folder / 'sources.mat'}, {folder / 'covariance.mat'}")


if __name__ == "__main__":
    main()
