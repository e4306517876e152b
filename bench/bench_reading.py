"""Reading recordings in blocks, from the page cache; the peers are the sigmf package and h5py on the same files.

    python -m pytest bench/bench_reading.py --benchmark-only -m full

``extra_info`` holds megabytes per second and the growth of the peak memory of the process in megabytes, which for the
peers is the size of the file. RISFAST_BENCH_READING_MB sets the size of each file (default 512).
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from risfast.simulate import read

pytestmark = pytest.mark.full
CHANNELS = 16
SIZE_BYTES = int(os.environ.get("RISFAST_BENCH_READING_MB", "512")) << 20
POSITIONS = np.random.default_rng(0).normal(size=(CHANNELS, 3))
OPTIONS = {"positions_m": POSITIONS, "wavelength_m": 0.1}


def write_sigmf(folder: Path, datatype: str) -> Path:
    """Random samples, repeated until the file is large enough."""
    rng = np.random.default_rng(0)
    rows = 1 << 14
    part = rng.normal(size=(rows, 2 * CHANNELS)).astype("<f4")
    values = (part * 1000).astype("<i2") if datatype == "ci16_le" else part
    with (folder / "x.sigmf-data").open("wb") as stream:
        for _ in range(max(SIZE_BYTES // values.nbytes, 1)):
            stream.write(values.tobytes())
    meta = {
        "global": {
            "core:datatype": datatype,
            "core:num_channels": CHANNELS,
            "core:sample_rate": 1e6,
            "core:version": "1.0.0",
        },
        "captures": [{"core:sample_start": 0, "core:frequency": 3e9}],
        "annotations": [],
    }
    (folder / "x.sigmf-meta").write_text(json.dumps(meta))
    return folder / "x.sigmf-meta"


def write_hdf5(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = 1 << 14
    part = (rng.normal(size=(rows, CHANNELS)) + 1j * rng.normal(size=(rows, CHANNELS))).astype(np.complex64)
    count = max(SIZE_BYTES // part.nbytes, 1)
    with h5py.File(folder / "x.h5", "w") as file:
        target = file.create_dataset("snapshots", (rows * count, CHANNELS), np.complex64)
        for index in range(count):
            target[index * rows : (index + 1) * rows] = part
    return folder / "x.h5"


WRITERS = {
    "sigmf-cf32": lambda folder: write_sigmf(folder, "cf32_le"),
    "sigmf-ci16": lambda folder: write_sigmf(folder, "ci16_le"),
    "hdf5": write_hdf5,
}


def in_blocks(path: Path) -> int:
    """Every sample once, as a consumer of blocks sees it; the number of rows."""
    return sum(len(block) for block in read(path, **OPTIONS).snapshots.blocks())


def covariance(path: Path) -> int:
    return int(read(path, **OPTIONS).with_covariance().covariance.shape[-1])


def whole_by_peer(path: Path) -> int:
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return len(file["snapshots"][()])
    sigmf = pytest.importorskip("sigmf", reason="sigmf is not installed (pip install sigmf)")
    return len(sigmf.fromfile(str(path)).read_samples())


@pytest.fixture(scope="module", params=sorted(WRITERS))
def recorded(request, tmp_path_factory):
    path = WRITERS[request.param](tmp_path_factory.mktemp("reading"))
    yield path
    for item in path.parent.iterdir():
        item.unlink()


@pytest.mark.benchmark(group="reading", timer=time.perf_counter)
@pytest.mark.parametrize("reader", [in_blocks, covariance, whole_by_peer], ids=lambda call: call.__name__)
def test_reading(benchmark, recorded, reader):
    data = recorded.with_suffix(".sigmf-data") if recorded.suffix == ".sigmf-meta" else recorded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = benchmark.pedantic(reader, args=(recorded,), rounds=5, warmup_rounds=1)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert rows > 0
    benchmark.extra_info["peak_growth_MB"] = round(grown / 1024)
    if benchmark.stats:
        benchmark.extra_info["MB_per_s"] = round(data.stat().st_size / 1e6 / benchmark.stats.stats.median)
