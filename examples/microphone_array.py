"""Microphone array: geometry and sound from acoular, risfast as the beamformer, acoular's own map beside it.

``python examples/microphone_array.py --picture maps.png`` runs it; ``--full`` takes the large grid.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import acoular
import numpy as np
import torch

from risfast import DetectionOptions, SearchGrid, detect_sources
from risfast.geometry import spherical_to_cartesian
from risfast.ops import mvdr_spectrum
from risfast.report.plots import SpectrumPanel, save_figure, spectrum_figure
from risfast.simulate import read

SAMPLE_RATE_HZ, BLOCK = 51200.0, 128
SOURCES = torch.tensor([[0.1, 0.05, 0.5], [-0.15, -0.1, 0.6]], dtype=torch.float64)  # azimuth, elevation, range
GEOMETRY = Path(acoular.__file__).parent / "xml" / "tub_vogel64.xml"


def simulate(path: Path) -> None:
    """Two uncorrelated noises in the near field, a quarter of a second."""
    mics = acoular.MicGeom(file=str(GEOMETRY))
    length = int(SAMPLE_RATE_HZ / 4)
    parts = [
        acoular.PointSource(
            signal=acoular.WNoiseGenerator(sample_freq=SAMPLE_RATE_HZ, num_samples=length, seed=seed),
            mics=mics,
            loc=tuple(place),
        )
        for seed, place in enumerate(spherical_to_cartesian(SOURCES).tolist())
    ]
    acoular.WriteH5(source=acoular.SourceMixer(sources=parts), file=str(path)).save()


def acoulars_map(
    covariance: torch.Tensor, grid: SearchGrid, frequency_hz: float, loading: float = 1e-2
) -> tuple[np.ndarray, float]:
    """BeamformerCapon on the same covariance and points, in risfast's scale; and its time without the distances."""
    n = covariance.shape[-1]
    loaded = covariance.numpy() + loading * np.trace(covariance).real / n * np.eye(n)
    points = acoular.ImportGrid()
    points.pos = np.ascontiguousarray(spherical_to_cartesian(grid.points()).reshape(-1, 3).numpy().T)
    mics = acoular.MicGeom(file=str(GEOMETRY))
    steer = acoular.SteeringVector(grid=points, mics=mics, steer_type="classic", env=acoular.Environment(c=343.0))
    _ = steer.rm, steer.r0  # distances, and below a first call for the compiler, are left out of the time
    for _ in range(2):
        spectra = acoular.PowerSpectraImport(csm=loaded[None].copy(), frequencies=frequency_hz)
        former = acoular.BeamformerCapon(freq_data=spectra, steer=steer, cached=False)
        started = time.perf_counter()
        power = n * np.asarray(former.synthetic(frequency_hz, 0))
        seconds = time.perf_counter() - started
    return power.reshape(grid.shape), seconds


def timed(call: Callable[[], torch.Tensor], repeats: int = 5) -> tuple[torch.Tensor, float, float]:
    """The result, the seconds of the first call, in which the plans are made, and the median of those after it."""
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - started)
    return result, seconds[0], statistics.median(seconds[1:])


def main() -> None:
    """Simulate, read, localise, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="361 x 241 x 7 points in place of 61 x 41 x 5")
    parser.add_argument("--frequency-hz", type=float, default=8000.0, help="a multiple of 400 (default: 8000)")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw both maps")
    options = parser.parse_args()
    shape = (361, 241, 7) if options.full else (61, 41, 5)
    acoular.config.global_caching = "none"
    ranges = torch.linspace(0.4, 0.8, shape[2], dtype=torch.float64)
    grid = SearchGrid.box(*shape[:2], ranges, 0.3, 0.2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.h5"
        simulate(path)
        recording = read(path, positions_m=GEOMETRY, frequency_hz=options.frequency_hz, block_size=BLOCK)
    R, array = recording.covariance, recording.array
    assert R is not None
    power, first, seconds = timed(lambda: mvdr_spectrum(R, array, grid, reduce="none"))
    found = detect_sources(R, array, grid, options=DetectionOptions(max_sources=2))[0].position
    for source in found.tolist():
        print("source at azimuth {:.4f} rad, elevation {:.4f} rad, range {:.4f} m".format(*source))
    theirs, their_seconds = acoulars_map(R[0], grid, options.frequency_hz)
    difference = float(np.abs(10 * np.log10(power[0].numpy() / theirs)).max())
    print(f"largest difference between the maps: {difference:.6f} dB")
    print(
        f"risfast {1e3 * seconds:.1f} ms ({1e3 * first:.1f} ms the first time, with its plans), "
        f"acoular {1e3 * their_seconds:.1f} ms: {their_seconds / seconds:.0f} times"
    )
    if options.picture:
        panels = [
            SpectrumPanel(f"{name}, {1e3 * cost:.1f} ms", values.amax(-1), found)
            for name, values, cost in (
                ("risfast", power[0], seconds),
                ("acoular", torch.from_numpy(theirs), their_seconds),
            )
        ]
        save_figure(spectrum_figure(panels, grid.azimuth_rad, grid.elevation_rad, SOURCES), options.picture)
        print(f"picture: {options.picture}")


if __name__ == "__main__":
    main()
