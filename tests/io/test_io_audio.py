"""Multi-channel WAV and FLAC: every sample as it was written, wrong files refused in their own words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wideband import spherical

from risfast.errors import FileFormatError
from risfast.io import SPEED_OF_SOUND_M_S, read
from risfast.io.assemble import ReadOptions
from risfast.io.formats.audio import read_audio

soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed (pip install soundfile)")

RATE, LENGTH, N = 16000, 4000, 5
POSITIONS = np.random.default_rng(2).uniform(-0.05, 0.05, (N, 3))
# Bits of the whole numbers of a subtype; floats keep what they are.
SUBTYPES = [("wav", "PCM_16", 16), ("wav", "PCM_24", 24), ("wav", "PCM_32", 32), ("wav", "FLOAT", 0)]
SUBTYPES += [("wav", "DOUBLE", 0), ("flac", "PCM_16", 16), ("flac", "PCM_24", 24)]


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return spherical(POSITIONS, [(0.3, 0.1, 0.8)], RATE, LENGTH)


def write(path: Path, values: np.ndarray, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, values, RATE, subtype=subtype)
    return path


@pytest.mark.parametrize(("suffix", "subtype", "bits"), SUBTYPES)
def test_every_sample_comes_as_it_was_written(
    tmp_path: Path, sound: np.ndarray, suffix: str, subtype: str, bits: int
) -> None:
    if bits:
        whole = np.round(sound * 2.0 ** (bits - 1)).astype(np.int64)
        expected = whole / 2.0 ** (bits - 1)
        stored = (whole << (16 if bits == 16 else 32) - min(bits, 32)).astype(np.int16 if bits == 16 else np.int32)
    else:
        stored = expected = sound.astype(np.float32 if subtype == "FLOAT" else np.float64)
    samples = read_audio(write(tmp_path / f"x.{suffix}", stored, subtype), ReadOptions()).time_data
    assert samples is not None
    assert samples.shape == (LENGTH, N)
    np.testing.assert_array_equal(samples.read(), expected)
    np.testing.assert_array_equal(samples.read(1234, 1300), expected[1234:1300])


def test_a_wav_file_is_read_by_its_content_to_covariances(tmp_path: Path, sound: np.ndarray) -> None:
    path = write(tmp_path / "x.wav", sound, "DOUBLE").rename(tmp_path / "recording")
    np.savetxt(tmp_path / "array.csv", POSITIONS, delimiter=",")
    recording = read(path, positions_m=tmp_path / "array.csv", frequency_hz=(1000.0, 4000.0))
    assert recording.speed_m_s == SPEED_OF_SOUND_M_S
    assert recording.provenance.format == "WAV (DOUBLE)"
    assert recording.covariance.shape[2:] == (N, N)
    assert recording.array.wavelength_m == SPEED_OF_SOUND_M_S / recording.frequencies_hz[-1]
    block = int(RATE / (recording.frequencies_hz[1] - recording.frequencies_hz[0]))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(block) / block)
    frames = [sound[start : start + block] for start in range(0, LENGTH - block + 1, block // 2)]
    lines = np.array([np.fft.rfft(window[:, None] * frame, axis=0) / window.sum() for frame in frames])
    for frequency, matrix in zip(recording.frequencies_hz, recording.covariance[0], strict=True):
        line = lines[:, round(frequency * block / RATE)]
        np.testing.assert_allclose(matrix, 2 * line.T @ line.conj() / len(frames), rtol=1e-9, atol=1e-15)
    assert read(path, positions_m=POSITIONS, frequency_hz=2000.0, speed_m_s=340.0).array.wavelength_m == 0.17


def test_what_is_missing_or_wrong_is_named(tmp_path: Path, sound: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.wav", sound)
    with pytest.raises(FileFormatError, match="has 5 channels, but the array has 4 elements"):
        read(path, positions_m=POSITIONS[:4], frequency_hz=2000.0)
    with pytest.raises(FileFormatError, match="positions of the elements are missing"):
        read(path, frequency_hz=2000.0)
    with pytest.raises(FileFormatError, match=r"4000 samples in time of 5 channels at 16000 Hz; choose the frequency"):
        read(path, positions_m=POSITIONS)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(FileFormatError, match=r"needs the package soundfile.*risfast\[audio\]"):
        read(path, positions_m=POSITIONS, frequency_hz=2000.0)


def declared(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + value.to_bytes(4, "little") + content[at + 4 :]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content[:-1000], "samples are declared and .* are there"),
        (lambda content: declared(content, content.index(b"data") + 4, 1 << 31), "samples are declared and"),
        (lambda content: content[: content.index(b"data")], "without a data chunk"),
        (
            lambda content: declared(content, content.index(b"data") + 4, 0)[: content.index(b"data") + 8],
            "empty, damaged",
        ),
        (
            lambda content: content[:20] + b"\x77\x77" + content[22:],
            "cannot be read as WAV or FLAC",
        ),
    ],
)
def test_a_damaged_wav_is_refused(tmp_path: Path, sound: np.ndarray, spoil: Any, message: str) -> None:
    path = write(tmp_path / "x.wav", sound)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(FileFormatError, match=message):
        read(path, positions_m=POSITIONS, frequency_hz=2000.0)


@pytest.mark.parametrize("left", [0.9, 0.2])
def test_a_cut_flac_is_refused(tmp_path: Path, sound: np.ndarray, left: float) -> None:
    path = write(tmp_path / "x.flac", sound)
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content))])
    with pytest.raises(FileFormatError, match=r"ends after|cannot be read as WAV or FLAC"):
        read(path, positions_m=POSITIONS, frequency_hz=2000.0)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, sound: np.ndarray) -> None:
    path = write(tmp_path / "x.wav", sound)
    samples = read_audio(path, ReadOptions()).time_data
    assert samples is not None
    write(path, sound[:100])
    with pytest.raises(FileFormatError, match="the file has changed"):
        samples.read()
