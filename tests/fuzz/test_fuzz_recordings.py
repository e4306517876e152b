"""Damaged and hostile files: one clear error each, nothing written, nothing run, little memory."""

from __future__ import annotations

import json
import os
import random
import resource
import tracemalloc
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.signal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.seeds import NO_FAULT_OF_SAMPLES, NO_FAULT_OF_SNAPSHOTS, OPTIONS, RECORDINGS, N, matrix
from risfast.errors import FileFormatError
from risfast.io import read_positions
from risfast.simulate import read

# From a list of its own: the table of all of Unicode takes hypothesis half a minute to make.
TEXT = st.text(alphabet="aZ09 _-./:;,%{}[]\"'\\\n\x00\x7f\u00e9\u2028\U0001f600", max_size=10)
# Few in CI, where they are the same each time; RISFAST_FUZZ_EXAMPLES=2000 looks for more.
SETTINGS = settings(
    max_examples=int(os.environ.get("RISFAST_FUZZ_EXAMPLES", "20")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MOST_BYTES = 600 << 20  # far below the gigabyte that may never be passed


def outcome(path, options):
    """Read all there is; None or the message of the one error that is allowed."""
    recording, problem = None, None
    try:
        recording = read(path, **{**OPTIONS, **options}).with_covariance()
    except ValueError as error:
        problem = error
    if recording is not None:
        assert recording.covariance.isfinite().all()
        return None
    no_fault = NO_FAULT_OF_SAMPLES if "block_size" in options else NO_FAULT_OF_SNAPSHOTS
    assert isinstance(problem, FileFormatError) or any(text in str(problem) for text in no_fault)
    assert str(problem)
    assert "\n" not in str(problem)
    return str(problem)


def damaged(content, kind, at, value, seed):
    """Content cut off, overwritten, zeroed, shuffled, with a huge number somewhere, or with bytes put in."""
    place = at % max(len(content), 1)
    chaos = random.Random(seed)
    if kind == "cut":
        return content[:place]
    if kind == "byte":
        return content[:place] + bytes([value]) + content[place + 1 :]
    if kind == "huge":
        return content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :]
    if kind == "zero":
        return content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :]
    if kind == "insert":
        return content[:place] + chaos.randbytes(value + 1) + content[place:]
    scattered = bytearray(content)
    for _ in range(20):
        scattered[chaos.randrange(len(scattered))] = chaos.randrange(256)
    return bytes(scattered)


_CORE = ("datatype", "num_channels", "frequency", "sample_rate", "dataset", "header_bytes", "trailing_bytes", "author")
SIGMF_NAMES = ["global", "captures", *(f"core:{name}" for name in _CORE)]
KINDS = ("cut", "byte", "huge", "zero", "insert", "scatter")


@pytest.fixture(params=sorted(RECORDINGS))
def good(request, tmp_path):
    if request.param in ("wav", "flac"):
        pytest.importorskip("soundfile", reason="soundfile is not installed (pip install soundfile)")
    path, options = RECORDINGS[request.param](tmp_path)
    assert outcome(path, options) is None, "the undamaged file must be read"
    return path, options, path.read_bytes()


@pytest.fixture(autouse=True)
def memory_is_bounded():
    """Peak of what Python and numpy allocate, and growth of what the process ever held."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_BYTES
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


@SETTINGS
@given(
    kind=st.sampled_from(KINDS),
    at=st.integers(0, 1 << 20),
    value=st.integers(0, 255),
    seed=st.integers(0, 1 << 30),
    near=st.booleans(),
)
def test_a_damaged_file_is_read_or_refused_with_one_clear_error(good, kind, at, value, seed, near):
    path, options, content = good
    at = at % 2048 if near else at  # headers are at the beginning
    path.write_bytes(damaged(content, kind, at, value, seed))
    there = sorted(path.parent.iterdir())
    outcome(path, options)
    assert sorted(path.parent.iterdir()) == there, "reading writes nothing"
    path.write_bytes(content)


@SETTINGS
@given(content=st.binary(max_size=3000), head=st.sampled_from([b"", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x93NUMPY"]))
@pytest.mark.parametrize("kind", ["npz", "mat", "hdf5", "acoular", "aiaa", "uvh5"])
def test_noise_is_refused_by_every_reader(tmp_path, kind, content, head):
    path = tmp_path / "noise.bin"
    path.write_bytes(head + content)
    assert "noise.bin" in outcome(path, {"format": kind})


@SETTINGS
@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(SIGMF_NAMES),
                inner | st.sampled_from(["cf32_le", "ci16_le", "rf32_be", 4, 1e300, "../x"]),
                max_size=6,
            )
        ),
        max_leaves=20,
    )
)
def test_any_json_as_sigmf_metadata_is_read_or_refused(tmp_path, document):
    (tmp_path / "x.sigmf-meta").write_text(json.dumps(document))
    (tmp_path / "x.sigmf-data").write_bytes(bytes(range(64)) * 8)
    outcome(tmp_path / "x.sigmf-meta", {})


@SETTINGS
@given(
    document=st.fixed_dictionaries({
        "global": st.fixed_dictionaries(
            {"core:datatype": st.sampled_from(["cf32_le", "ci16_be", "cu8", "rf64_le", "cf16_le", "", None])},
            optional={
                "core:num_channels": st.integers(-(10**20), 10**20) | st.integers(1, 6) | st.none() | TEXT,
                "core:sample_rate": st.floats() | st.integers() | TEXT,
                "core:dataset": TEXT | st.sampled_from(["../x", "/etc/passwd", "x.sigmf-data", ".."]),
                "core:trailing_bytes": st.integers(-5, 10**12),
                "core:metadata_only": st.booleans(),
            },
        ),
        "captures": st.lists(
            st.dictionaries(
                st.sampled_from(["core:frequency", "core:header_bytes", "core:datetime"]),
                st.integers(-(10**400), 10**400) | st.floats() | TEXT,
            )
            | st.integers(),
            max_size=3,
        ),
    })
)  # fmt: skip
def test_any_values_in_sigmf_metadata_are_read_or_refused(tmp_path, document):
    (tmp_path / "x.sigmf-meta").write_text(json.dumps(document))
    (tmp_path / "x.sigmf-data").write_bytes(bytes(range(64)) * 8)
    there = sorted(tmp_path.iterdir())
    outcome(tmp_path / "x.sigmf-meta", {"frequency_hz": None})
    assert sorted(tmp_path.iterdir()) == there


@SETTINGS
@given(
    shape=st.lists(st.integers(0, 6), min_size=0, max_size=4),
    dtype=st.sampled_from(["f8", "c16", "i2", "u1", "?", "S3", "U2", "M8[s]", "f2", "c8", ">f4", "V8"]),
    value=st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf]),
    field=st.sampled_from(["R", "X", "positions_m", "wavelength_m", "codes", "channel", "time_data", "frequency_hz"]),
    suffix=st.sampled_from([".npz", ".mat", ".h5"]),
)
def test_any_shape_type_and_value_of_any_field_is_read_or_refused(tmp_path, shape, dtype, value, field, suffix):
    values = np.full(shape, value).astype(complex if dtype[0] == "c" else float)
    with np.errstate(all="ignore"):
        try:
            values = values.astype(dtype) if dtype != "V8" else np.zeros(shape, "V8")
        except (ValueError, TypeError, OverflowError):
            values = np.zeros(shape, dtype)
    fields = {"R": matrix(), "positions_m": np.eye(N, 3), "wavelength_m": 0.3, field: values}
    if field in ("X", "time_data"):
        del fields["R"]
    path = tmp_path / f"x{suffix}"
    try:
        if suffix == ".npz":
            np.savez(path, **fields)
        elif suffix == ".mat":
            scipy.io.savemat(path, fields)
        else:
            with h5py.File(path, "w") as file:
                for name, item in fields.items():
                    file[name] = item
    except (TypeError, ValueError, NotImplementedError):
        return  # the writer does not know this type
    outcome(path, {"positions_m": None, "wavelength_m": None})


@SETTINGS
@given(
    text=st.text(alphabet="0123456789.,;xyz<>/=\"'pos# \n\t-e&!", max_size=200),
    suffix=st.sampled_from([".csv", ".xml", ".toml", ".txt"]),
)
def test_any_text_as_positions_is_read_or_refused(tmp_path, text, suffix):
    path = tmp_path / f"p{suffix}"
    path.write_text(text)
    try:
        values = read_positions(path)
    except FileFormatError as error:
        assert path.name in str(error)  # noqa: PT017  (a result is fine too)
    else:
        assert values.shape[1:] == (3,)
        assert np.isfinite(values).all()


def test_an_xml_that_would_grow_without_bound_is_refused(tmp_path):
    lines = ['<!DOCTYPE a [<!ENTITY b0 "x">']
    lines += [f'<!ENTITY b{i} "{f"&b{i - 1};" * 10}">' for i in range(1, 30)]
    (tmp_path / "bomb.xml").write_text("\n".join([*lines, "]><a>&b29;</a>"]))
    with pytest.raises(FileFormatError, match="declares entities"):
        read_positions(tmp_path / "bomb.xml")


@pytest.mark.parametrize("suffix", ["npz", "mat"])
def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path, suffix):
    """More zeros than may be held, compressed a thousand times."""
    path = tmp_path / f"bomb.{suffix}"
    rows, columns = 1 << 14, (1 << 10) + 8
    if suffix == "npz":
        import zipfile

        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("R.npy", "w") as stream:
            np.lib.format.write_array_header_1_0(
                stream, {"descr": "<c16", "fortran_order": False, "shape": (rows, columns)}
            )
            for _ in range(rows >> 4):
                stream.write(bytes(columns * 16 << 4))
    else:
        header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
        size = rows * columns * 16  # real numbers of 8 bytes, twice as many rows
        head = np.array([6, 8, 6, 0, 5, 8, 2 * rows, columns, (1 << 16) + 1, ord("R"), 9, size], "<u4").tobytes()
        engine = zlib.compressobj(9)
        body = engine.compress(np.array([14, len(head) + size], "<u4").tobytes() + head)
        body += b"".join(engine.compress(bytes(1 << 20)) for _ in range(size >> 20)) + engine.flush()
        path.write_bytes(header + np.array([15, len(body)], "<u4").tobytes() + body)
    assert path.stat().st_size < 2 << 20
    with pytest.raises(FileFormatError, match="may take"):
        read(path, **OPTIONS)
