"""SigMF recordings, written by the sigmf package."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

from risfast.errors import FileFormatError
from risfast.io import SPEED_OF_LIGHT_M_S
from risfast.simulate import read

sigmf = pytest.importorskip("sigmf", reason="sigmf is not installed (pip install sigmf): it writes these recordings")

CHANNELS, LENGTH, CENTRE, RATE = 4, 1000, 2.4e9, 1e6
POSITIONS = np.random.default_rng(5).normal(size=(CHANNELS, 3))


def samples(seed=0):
    rng = np.random.default_rng(seed)
    return 0.2 * (rng.normal(size=(LENGTH, CHANNELS)) + 1j * rng.normal(size=(LENGTH, CHANNELS)))


def stored(values, datatype):
    """Complex samples as the numbers of a SigMF datatype, interleaved."""
    kind, order = datatype[1:].split("_") if "_" in datatype else (datatype[1:], "le")
    pairs = np.stack([values.real, values.imag], -1).reshape(len(values), -1)
    dtype = np.dtype({"le": "<", "be": ">"}[order] + kind[0] + str(int(kind[1:]) // 8))
    if dtype.kind == "f":
        return pairs.astype(dtype)
    full = 2.0 ** (8 * dtype.itemsize - 1)
    return np.round(pairs * full + (full if dtype.kind == "u" else 0)).astype(dtype)


def write(folder, values, datatype="cf32_le", captures=({"core:frequency": CENTRE},), **core):
    """Through sigmf.SigMFFile: validated metadata, and the data file beside."""
    data = folder / "some.sigmf-data"
    data.write_bytes(stored(values, datatype).tobytes())
    info = {"core:datatype": datatype, "core:sample_rate": RATE, "core:num_channels": values.shape[1], **core}
    recording = sigmf.SigMFFile(data_file=str(data), global_info=info)
    for start, capture in enumerate(captures):
        recording.add_capture(start * 10, metadata=dict(capture))
    recording.validate()
    recording.tofile(str(folder / "some.sigmf-meta"), overwrite=True)
    return folder / "some.sigmf-meta"


@pytest.mark.parametrize("datatype", ["cf32_le", "cf32_be", "cf64_le", "ci16_le", "ci16_be", "ci8", "cu8", "ci32_le"])
def test_every_datatype_reads_as_the_package_reads_it(tmp_path, datatype):
    meta = write(tmp_path, samples(), datatype)
    recording = read(meta, positions_m=POSITIONS)
    theirs = sigmf.fromfile(str(meta)).read_samples()
    assert recording.snapshots.shape == (LENGTH, CHANNELS)
    ours = recording.snapshots.read().numpy()
    np.testing.assert_array_equal(ours.astype(np.complex64), theirs)  # the package rounds to single precision


def test_the_samples_are_those_that_were_written_and_the_wavelength_is_the_captures(tmp_path):
    values = samples().astype(np.complex64)
    meta = write(tmp_path, values, **{"core:author": "somebody", "core:license": "CC0"})
    for path in (meta, meta.with_suffix(".sigmf-data")):
        recording = read(path, positions_m=POSITIONS)
        np.testing.assert_array_equal(recording.snapshots.read().numpy(), values)
        assert recording.array.wavelength_m == SPEED_OF_LIGHT_M_S / CENTRE
        assert recording.frequency_hz == CENTRE
        assert recording.provenance.details["author"] == "somebody"


def test_another_frequency_is_read_by_welch_off_the_centre(tmp_path):
    """A tone 125 kHz above the centre with one phase per channel: its covariance is of rank one."""
    phases = np.array([0.0, 0.5, 1.0, 1.5])
    tone = 0.5 * np.exp(2j * np.pi * 125e3 / RATE * np.arange(LENGTH))[:, None] * np.exp(1j * phases)
    meta = write(tmp_path, tone, "cf64_le")
    recording = read(meta, positions_m=POSITIONS, frequency_hz=CENTRE + 125e3, block_size=64)
    expected = 0.25 * np.exp(1j * (phases[:, None] - phases))
    np.testing.assert_allclose(recording.covariance[0], expected, rtol=1e-12, atol=1e-12)
    assert recording.frequency_hz == CENTRE + 125e3
    assert recording.array.wavelength_m == SPEED_OF_LIGHT_M_S / (CENTRE + 125e3)


def change(meta, **core):
    document = json.loads(meta.read_text())
    for name, value in core.items():
        document["global"][f"core:{name}"] = value
    meta.write_text(json.dumps(document))
    return meta


@pytest.mark.parametrize(
    ("core", "message"),
    [
        ({"num_channels": 3}, "no whole number of samples of 3 channels"),
        ({"num_channels": 0}, "core:num_channels must be a whole number of at least 1"),
        ({"num_channels": 10**30}, "core:num_channels must be a whole number"),
        ({"num_channels": 5}, "1000 x 5|800 x 5, and there are 4 elements"),
        ({"datatype": "cf16_le"}, "core:datatype must be such as cf32_le"),
        ({"datatype": 7}, "core:datatype must be such as cf32_le"),
        ({"datatype": "rf32_le"}, "choose the frequency"),
        ({"dataset": "../../etc/passwd"}, "plain name of a file beside"),
        ({"dataset": "/etc/passwd"}, "plain name of a file beside"),
        ({"dataset": "nothing.bin"}, "no such file"),
        ({"metadata_only": True}, "there are no samples"),
        ({"sample_rate": "fast"}, "core:sample_rate must be a finite number"),
        ({"trailing_bytes": -1}, "core:trailing_bytes must be a whole number"),
    ],
)
def test_wrong_metadata_are_named(tmp_path, core, message):
    meta = change(write(tmp_path, samples()), **core)
    with pytest.raises(FileFormatError, match=message):
        read(meta, positions_m=POSITIONS)


def test_samples_that_lie_elsewhere_are_not_read_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    meta = write(tmp_path, samples())
    data = meta.with_suffix(".sigmf-data")
    data.rename(tmp_path / "elsewhere" / "some.sigmf-data")
    data.symlink_to(tmp_path / "elsewhere" / "some.sigmf-data")
    with pytest.raises(FileFormatError, match="leads to another folder"):
        read(meta, positions_m=POSITIONS)


def test_captures_at_several_frequencies_are_refused_with_them(tmp_path):
    meta = write(tmp_path, samples(), captures=({"core:frequency": 1e9}, {"core:frequency": 2e9}))
    with pytest.raises(FileFormatError, match=r"different frequencies \(1e\+09, 2e\+09 Hz\)"):
        read(meta, positions_m=POSITIONS)


def test_missing_positions_say_what_to_do(tmp_path):
    with pytest.raises(FileFormatError, match="there is no such file"):
        read(tmp_path / "some.sigmf")
    with pytest.raises(FileFormatError, match=r"give the array with setup='setup\.toml', or positions_m="):
        read(write(tmp_path, samples()))
    meta = write(tmp_path, samples(), captures=({},))
    with pytest.raises(FileFormatError, match="wavelength is missing"):
        read(meta, positions_m=POSITIONS)
    assert read(meta, positions_m=POSITIONS, wavelength_m=0.1).array.wavelength_m == 0.1


def archive(folder, meta, members=()):
    """As the specification says: the two files in a folder of their name; and what else is given."""
    path = folder / "some.sigmf"
    with tarfile.open(path, "w") as tar:
        for name in (meta, meta.with_suffix(".sigmf-data")):
            tar.add(name, f"some/{name.name}")
        for member, content in members:
            tar.addfile(member, io.BytesIO(content) if content else None)
    return path


def member(name, kind=tarfile.REGTYPE, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


@pytest.mark.parametrize("datatype", ["cf32_le", "ci16_be"])
def test_an_archive_is_read_as_its_two_files(tmp_path, datatype):
    meta = write(tmp_path, samples(), datatype, **{"core:author": "somebody"})
    path = archive(tmp_path, meta, [member("some/", tarfile.DIRTYPE), member("some/notes.txt", content=b"hello")])
    beside, inside = (read(p, positions_m=POSITIONS) for p in (meta, path))
    before = sorted(tmp_path.iterdir())
    np.testing.assert_array_equal(inside.snapshots.read(), beside.snapshots.read())
    np.testing.assert_array_equal(inside.snapshots.read(100, 120), beside.snapshots.read(100, 120))
    assert inside.array == beside.array
    assert inside.provenance.details == beside.provenance.details
    assert sorted(tmp_path.iterdir()) == before
    several = read(path, positions_m=POSITIONS, frequency_hz=(CENTRE - 1e5, CENTRE + 1e5), block_size=32)
    np.testing.assert_allclose(several.frequencies_hz, CENTRE + RATE / 32 * np.arange(-3, 4))
    assert several.array.wavelength_m == SPEED_OF_LIGHT_M_S / several.frequencies_hz[-1]


def test_the_archive_that_the_package_writes_is_read(tmp_path):
    values = samples().astype(np.complex64)
    written = sigmf.fromfile(str(write(tmp_path, values)))
    written.archive(str(tmp_path / "theirs"))
    recording = read(tmp_path / "theirs.sigmf", positions_m=POSITIONS)
    np.testing.assert_array_equal(recording.snapshots.read(), values)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (member("/etc/x"), "leads out of the archive"),
        (member("some/../../x"), "leads out of the archive"),
        (member("some/a", tarfile.SYMTYPE, linkname="/etc/passwd"), "a link, device or hole"),
        (member("some/b.sigmf-data", tarfile.LNKTYPE, linkname="some/some.sigmf-data"), "a link, device or hole"),
        (member("some/c", tarfile.CHRTYPE), "a link, device or hole"),
        (
            member("some/other.sigmf-meta", content=b"{}"),
            "one .sigmf-meta and one .sigmf-data are read from an archive",
        ),
        (member("some/other.sigmf-data", content=b"0000"), "one .sigmf-meta and one .sigmf-data"),
        (member("x" * 100, size=1 << 40), "declared to have .* past the end|cannot be read"),
        (member("x", tarfile.XHDTYPE, size=1 << 40), "past the end|cannot be read"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path, more, message):
    with pytest.raises(FileFormatError, match=message):
        read(archive(tmp_path, write(tmp_path, samples()), [more]), positions_m=POSITIONS)


def test_an_archive_that_is_cut_off_names_other_files_or_is_none(tmp_path):
    meta = write(tmp_path, samples())
    path = archive(tmp_path, meta)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match=r"past the end of the archive|cannot be read as a SigMF archive"):
        read(path, positions_m=POSITIONS)
    path.write_bytes(b"no tar" * 500)
    with pytest.raises(FileFormatError, match="cannot be read as a SigMF archive"):
        read(path, positions_m=POSITIONS)
    path = archive(tmp_path, change(meta, dataset="other.bin"))
    with pytest.raises(FileFormatError, match="no place in an archive"):
        read(path, positions_m=POSITIONS)
    assert "core:dataset" in meta.read_text()
