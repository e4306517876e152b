"""Recordings that are larger than the memory one wants to give them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

CHANNELS = 8
ROW_BYTES = {"cf32": 8 * CHANNELS, "ci16": 4 * CHANNELS, "hdf5": 8 * CHANNELS}
LARGEST_MB = 150  # what reading may add, whatever the size of the file: a few blocks of 32 MiB
LARGEST_PROCESS_MB = 500

# VmHWM belongs to the process alone; ru_maxrss would begin with the peak of the process that started it.
READ = """
import re, sys
from pathlib import Path
import numpy as np
from risfast.simulate import read

def peak_mb():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

for path in sys.argv[2:]:
    recording = read(path, positions_m=np.eye(int(sys.argv[1]), 3), wavelength_m=0.1)
    recording.snapshots.read(0, 10)
    before = peak_mb()
    rows, power = 0, 0.0
    for block in recording.snapshots.blocks():
        rows += len(block)
        power += float(block[::4096].abs().square().sum())
    print(rows, power, peak_mb() - before, peak_mb())
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a single process is known on Linux only"
)


def sparse_sigmf(folder, kind, rows):
    """A file with a hole: as long as a real one, of zeros that take no room on the disk."""
    meta = {
        "global": {"core:datatype": f"{kind}_le", "core:num_channels": CHANNELS, "core:version": "1.0.0"},
        "captures": [{"core:sample_start": 0, "core:frequency": 1e9}],
        "annotations": [],
    }
    (folder / f"{kind}.sigmf-meta").write_text(json.dumps(meta))
    with (folder / f"{kind}.sigmf-data").open("wb") as stream:
        stream.truncate(ROW_BYTES[kind] * rows)
    return folder / f"{kind}.sigmf-meta"


def sparse_hdf5(folder, rows):
    """Space is set aside at once and never filled."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        kind = h5py.h5t.py_create(np.dtype(np.complex64))
        h5py.h5d.create(file.id, b"snapshots", kind, h5py.h5s.create_simple((rows, CHANNELS)), dcpl=plan)
    return path


def assert_read_in_blocks(folder, size_bytes):
    """All three formats, each ``size_bytes`` long, in one process."""
    rows = {kind: size_bytes // row for kind, row in ROW_BYTES.items()}
    paths = [sparse_sigmf(folder, kind, rows[kind]) for kind in ("cf32", "ci16")]
    paths.append(sparse_hdf5(folder, rows["hdf5"]))
    done = subprocess.run(
        [sys.executable, "-c", READ, str(CHANNELS), *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(int(line[0]), float(line[1])) for line in lines] == [
        (rows[kind], 0.0) for kind in ("cf32", "ci16", "hdf5")
    ]
    for _, _, grown, peak in lines:
        assert int(grown) < LARGEST_MB < size_bytes >> 20
        assert int(peak) < LARGEST_PROCESS_MB


def test_a_recording_is_read_in_a_fraction_of_its_size(tmp_path):
    assert_read_in_blocks(tmp_path, 192 << 20)


SOUND = """
import re, sys
from pathlib import Path
import numpy as np
from risfast.errors import FileFormatError
from risfast.simulate import read

def peak_mb():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

before = 0
for path in sys.argv[1:]:
    channels = 8
    try:
        read(path, positions_m=np.eye(channels, 3), frequency_hz=(800.0, 5000.0), block_size=512)
        raise SystemExit("silence has covariances")
    except FileFormatError as error:
        assert "no energy" in str(error), error
    print(peak_mb() - before, peak_mb())
    before = peak_mb()
"""


def test_a_sound_file_is_read_to_all_of_its_bands_in_a_fraction_of_its_size(tmp_path):
    """Of a short file first, which imports and warms up what there is to; then of 192 MB of silence."""
    pytest.importorskip("soundfile", reason="soundfile is not installed (pip install soundfile)")
    paths = []
    for name, rows in (("short", 16000), ("long", (192 << 20) // (2 * CHANNELS))):
        size = rows * 2 * CHANNELS
        head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, CHANNELS, 16000,
                           16000 * 2 * CHANNELS, 2 * CHANNELS, 16, b"data", size)  # fmt: skip
        paths.append(tmp_path / f"{name}.wav")
        with paths[-1].open("wb") as stream:
            stream.write(head)
            stream.truncate(len(head) + size)
    done = subprocess.run([sys.executable, "-c", SOUND, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, peak = map(int, done.stdout.splitlines()[-1].split())
    assert grown < LARGEST_MB
    assert peak < LARGEST_PROCESS_MB


@pytest.mark.slow
def test_ten_gigabytes_are_read_within_five_hundred_megabytes(tmp_path):
    assert_read_in_blocks(tmp_path, 10_000_000_000)
