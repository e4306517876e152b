"""Multi-channel sound files, WAV and FLAC, through libsndfile: samples in time, read in blocks."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.assemble import SPEED_OF_SOUND_M_S, FoundData, ReadOptions
from risfast.io.guard import Array, megabytes, need, parsing
from risfast.io.recording import Snapshots

_KIND = "WAV or FLAC"
_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
_WIDE = ("PCM_32", "DOUBLE")  # more digits than single precision has
_UNKNOWN_LENGTH = (0, 0xFFFFFFFF)  # of a data chunk that was written to a pipe


def read_audio(path: Path, options: ReadOptions) -> FoundData:
    """Samples in time, integers as -1 .. 1; positions come from the caller."""
    soundfile = need("soundfile", "reading .wav and .flac", "audio")
    _check_chunks(path)
    with parsing(path, _KIND):
        info = soundfile.info(str(path))
    shape = (int(info.frames), int(info.channels))
    declared = shape[0] * shape[1] * _BYTES.get(info.subtype, 0)
    if info.format == "FLAC":  # compressed; a block of at most 65535 samples a channel takes some bytes at least
        declared = shape[0] // 65535
    if min(shape) < 1 or declared > path.stat().st_size:
        raise FileFormatError(
            f"{path}: {shape[0]} samples of {shape[1]} channels are declared, and the file has "
            f"{megabytes(path.stat().st_size)}: it is empty, damaged or cut off"
        )
    kind = "float64" if info.subtype in _WIDE else "float32"

    def load(start: int, stop: int) -> Array:
        with parsing(path, _KIND), soundfile.SoundFile(str(path)) as sound:
            if (sound.frames, sound.channels) != shape:
                raise FileFormatError(f"{path}: the file has changed while it was read; is it still being written?")
            sound.seek(start)
            values: Array = sound.read(stop - start, dtype=kind, always_2d=True)
        if len(values) != stop - start:
            raise FileFormatError(f"{path}: the file ends after {start + len(values)} of {shape[0]} samples")
        return values

    return FoundData(
        path,
        f"{info.format} ({info.subtype})",
        {"samples": shape},
        time_data=Snapshots(shape, np.dtype(kind), load, str(path)),
        sample_rate_hz=float(info.samplerate),
        speed_m_s=SPEED_OF_SOUND_M_S,
        names={"time_data": "samples"},
    )


def _check_chunks(path: Path) -> None:
    """Refuse a RIFF file whose samples are declared to reach past its end."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) != b"RIFF":
            return
        at = 12
        while at + 8 <= size:
            stream.seek(at)
            name, length = struct.unpack("<4sI", stream.read(8))
            if name == b"data":
                if length not in _UNKNOWN_LENGTH and at + 8 + length > size:
                    raise FileFormatError(
                        f"{path}: {megabytes(length)} of samples are declared and {megabytes(size - at - 8)} are "
                        "there: the file is cut off, or its header damaged"
                    )
                return
            at += 8 + length + length % 2
    raise FileFormatError(f"{path}: a RIFF file without a data chunk: it is cut off or damaged")
