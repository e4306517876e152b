"""The bearing of an emitter from five coherent channels of a circle of antennas, as in a SigMF recording.

``python examples/direction_finding.py RECORDING.sigmf-meta`` reads yours; without a file it first simulates one, of an
emitter at 433.92 MHz. ``docs/pages/direction-finding.md`` goes through it step by step.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np

from risfast import Localizer, Setup
from risfast.io import SPEED_OF_LIGHT_M_S, Recording, read
from risfast.ops import mvdr_spectrum
from risfast.report.plots import SpectrumPanel, direction_figure, save_figure

CHANNELS, FREQUENCY_HZ, SAMPLE_RATE_HZ = 5, 433.92e6, 240e3


def circle(radius_m: float, first_deg: float = 0.0, counterclockwise: bool = False) -> np.ndarray:
    """Positions (5, 3) of the antennas: x to the east, y up, z to the north, in the order of the channels."""
    turn = (-1 if counterclockwise else 1) * 2 * math.pi / CHANNELS
    bearing = math.radians(first_deg) + turn * np.arange(CHANNELS)
    return radius_m * np.stack([np.sin(bearing), np.zeros(CHANNELS), np.cos(bearing)], 1)


def simulate(path: Path, positions_m: np.ndarray, emitters: list[tuple[float, float]], seconds: float = 0.05) -> None:
    """A SigMF recording of BPSK emitters, each a bearing in degrees and an SNR in dB."""
    random = np.random.default_rng(4)
    count = round(seconds * SAMPLE_RATE_HZ)
    wavenumber = 2 * math.pi * FREQUENCY_HZ / SPEED_OF_LIGHT_M_S
    samples = random.standard_normal((count, CHANNELS, 2)) @ [1, 1j] / math.sqrt(2)
    for bearing_deg, snr_db in emitters:
        direction = np.array([math.sin(math.radians(bearing_deg)), 0.0, math.cos(math.radians(bearing_deg))])
        symbols = random.choice([-1.0, 1.0], count // 4 + 1).repeat(4)[:count]
        carrier = np.exp(2j * math.pi * (random.uniform() + random.uniform(-0.1, 0.1) * np.arange(count)))
        wave = 10 ** (snr_db / 20) * symbols * carrier
        samples += wave[:, None] * np.exp(1j * wavenumber * positions_m @ direction)
    samples.astype("<c8").tofile(path.with_suffix(".sigmf-data"))
    described = {
        "global": {
            "core:datatype": "cf32_le",
            "core:version": "1.0.0",
            "core:sample_rate": SAMPLE_RATE_HZ,
            "core:num_channels": CHANNELS,
        },
        "captures": [{"core:sample_start": 0, "core:frequency": FREQUENCY_HZ}],
        "annotations": [],
    }
    path.write_text(json.dumps(described, indent=2))


def find(recording: Recording, picture: Path | None) -> None:
    """Print the bearings, with their deviations, and draw them."""
    setup = Setup(recording.array, wavefront="planar", sampling="direct")
    localizer = Localizer.classical(setup)
    assert recording.snapshots is not None
    samples = recording.snapshots.read()
    result = localizer.analyse(samples)
    sources, covariances = result.sources[0], result.position_covariance
    assert covariances is not None
    for source, covariance in zip(sources, covariances[0], strict=True):
        deviation = math.degrees(math.sqrt(float(covariance[0, 0])))
        bearing = math.degrees(source.azimuth) % 360
        print(
            f"emitter at {bearing:.2f} deg, deviation {deviation:.2f} deg, {10 * math.log10(source.power):.1f} dB, "
            f"confidence {source.confidence:.2f}"
        )
    print({0: "no emitter", 1: "no second emitter"}.get(len(sources), f"{len(sources)} emitters"))
    for note in result.notes:
        print(f"note: {note}")
    if picture is not None:
        grid = setup.search_grid()
        covariance = recording.with_covariance().covariance
        power = mvdr_spectrum(covariance, setup.array, grid, wavefront="planar").power[0]
        panel = SpectrumPanel("bearings", power, sources.position)
        save_figure(direction_figure(panel, grid.azimuth_rad, grid.elevation_rad), picture)
        print(f"picture: {picture}")


def main() -> None:
    """Read, or simulate and read; find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", nargs="?", type=Path, help="SigMF metadata (.sigmf-meta) of five channels")
    parser.add_argument("--radius-m", type=float, default=0.28, help="from the centre of the circle to an antenna")
    parser.add_argument("--first-deg", type=float, default=0.0, help="bearing of the antenna of the first channel")
    parser.add_argument("--counterclockwise", action="store_true", help="channels go round this way, seen from above")
    parser.add_argument("--second-deg", type=float, help="bearing of a second emitter, 10 dB weaker, of the simulation")
    parser.add_argument("--picture", type=Path, default=Path("bearings.png"))
    options = parser.parse_args()
    positions = circle(options.radius_m, options.first_deg, options.counterclockwise)
    if options.recording is not None:
        find(read(options.recording, positions_m=positions), options.picture)
        return
    emitters = [(62.0, 15.0)] + ([] if options.second_deg is None else [(options.second_deg, 5.0)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simulated.sigmf-meta"
        simulate(path, positions, emitters)
        find(read(path, positions_m=positions), options.picture)


if __name__ == "__main__":
    main()
