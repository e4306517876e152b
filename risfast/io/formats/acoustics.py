"""Microphone arrays: acoular's time data, and the files of the AIAA array methods benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.assemble import SPEED_OF_SOUND_M_S, FoundData, ReadOptions
from risfast.io.bands import BandRequest
from risfast.io.formats.hdf5 import Hdf5Container
from risfast.io.guard import Array, check_held, inventory, shape_text
from risfast.io.recording import Snapshots


def read_acoular(path: Path, options: ReadOptions) -> FoundData:
    """Samples in time as acoular's ``WriteH5`` stores them; positions come from the caller."""
    container = Hdf5Container(path)
    name = options.fields.get("time_data", "time_data")
    samples = _time_data(container, name)
    return FoundData(
        path,
        "time data of acoular",
        container.holds,
        time_data=samples,
        sample_rate_hz=_attribute(container, name, "sample_freq"),
        speed_m_s=SPEED_OF_SOUND_M_S,
        names={"time_data": name},
    )


def _time_data(container: Hdf5Container, name: str) -> Snapshots:
    _expect(container, name)
    rows = container.rows(name)
    if rows is None or rows.dtype.kind != "f":
        raise FileFormatError(
            f"{container.path}: {name!r} must be real samples (time x channels), found "
            f"{shape_text(container.holds[name])}"
        )
    return rows


def _expect(container: Hdf5Container, name: str) -> None:
    if name not in container.holds:
        raise FileFormatError(f"{container.path}: there is no {name!r}; the file holds {inventory(container.holds)}")


def _attribute(container: Hdf5Container, name: str, attribute: str) -> float | None:
    value = container.attributes(name).get(attribute)
    if value is None:
        return None
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "iuf":
        raise FileFormatError(
            f"{container.path}: the attribute {attribute!r} of {name!r} must be a number, found {value!r:.60}"
        )
    return float(number.reshape(-1)[0])


def read_benchmark(path: Path, options: ReadOptions) -> FoundData:
    """Cross-spectral matrices or samples of the AIAA array methods benchmark."""
    # "Array Methods HDF5 File Definitions", revision 2.4, 2016: matrices (N, N, F), positions (N, 3). The matrix is
    # ``csmReal + fftSign j csmImaginary``, as acoular reads it: fftSign is the sign in the exponent of the transform.
    container = Hdf5Container(path)
    holds = container.holds
    found = FoundData(path, "AIAA array benchmark", holds, speed_m_s=SPEED_OF_SOUND_M_S, names={})
    positions = "MetaData/ArrayAttributes/microphonePositionsM"
    if positions in holds:
        found.positions_m = container.load(positions)
        found.names["positions_m"] = positions
    speed = _attribute(container, "MeasurementData", "speedOfSoundMPerS")
    if "MeasurementData/speedOfSoundMPerS" in holds:
        value = container.load("MeasurementData/speedOfSoundMPerS")
        speed = float(value.reshape(-1)[0]) if value.size == 1 and value.dtype.kind in "iuf" else None
    if speed is not None:
        found.speed_m_s = speed
    else:
        found.notes.append(f"the file does not give the speed of sound; {SPEED_OF_SOUND_M_S:g} m/s unless given")
    if "CsmData/csmReal" not in holds:
        name = "MicrophoneData/microphoneDataPa"
        found.time_data = _time_data(container, name)
        found.names["time_data"] = name
        found.sample_rate_hz = _attribute(container, name, "sampleRateHz")
        return found
    _read_matrix(container, found, options)
    return found


def _read_matrix(container: Hdf5Container, found: FoundData, options: ReadOptions) -> None:
    path, holds = container.path, container.holds
    names = ("CsmData/csmReal", "CsmData/csmImaginary", "CsmData/binCenterFrequenciesHz")
    for name in names:
        _expect(container, name)
    frequencies = np.asarray(container.load(names[2]), dtype=np.float64).reshape(-1)
    shape = holds[names[0]]
    if len(shape) != 3 or holds[names[1]] != shape or shape[0] != shape[1] or shape[2] != len(frequencies):
        mend = (
            "; it looks as if its axes were reversed (MATLAB does that): write (N, N, F)"
            if (len(shape) == 3 and shape[1] == shape[2] and shape[0] == len(frequencies))
            else ""
        )
        raise FileFormatError(
            f"{path}: csmReal and csmImaginary must be (N, N, F) with F = {len(frequencies)} frequencies, found "
            f"{shape_text(shape)} and {shape_text(holds[names[1]])}{mend}"
        )
    sign = _attribute(container, "CsmData", "fftSign")
    if sign not in (-1.0, 1.0):
        raise FileFormatError(f"{path}: the attribute fftSign of CsmData must be -1 or 1, found {sign}")
    found.names["covariance"] = "CsmData"
    found.chosen = True

    def matrix(index: int) -> Array:
        part = (slice(None), slice(None), index)
        return container.load(names[0], part) + sign * 1j * container.load(names[1], part)

    if options.request is None or not options.several:
        index = choose_frequency(path, frequencies, None if options.request is None else options.request.points[0])
        found.covariance, found.frequency_hz = matrix(index), float(frequencies[index])
        return
    chosen, notes = choose_frequencies(path, frequencies, options.request, options.most_bands)
    check_held(path, "the covariances of all bands", (len(chosen), *shape[:2]), 16)
    found.notes += notes
    if len(chosen) == 1:
        found.covariance, found.frequency_hz = matrix(chosen[0]), float(frequencies[chosen[0]])
    else:
        found.covariance = np.stack([matrix(index) for index in chosen])
        found.frequencies_hz = frequencies[chosen]


def choose_frequencies(path: Path, frequencies: Array, wanted: BandRequest, most: int) -> tuple[list[int], list[str]]:
    """Indices of the file's frequencies (F,) in the bands that were asked for, increasing in frequency, and notes."""
    if not len(frequencies) or not np.isfinite(frequencies).all():
        raise FileFormatError(f"{path}: the frequencies of the file are missing or not finite")
    low, high = wanted.ends
    if high < frequencies.min() or low > frequencies.max():
        raise FileFormatError(
            f"{path}: {low:g} .. {high:g} Hz is outside of what the file holds, {frequencies.min():g} to "
            f"{frequencies.max():g} Hz; choose others with frequency_hz"
        )
    order = np.argsort(frequencies)
    chosen, notes = wanted.choose(frequencies[order], most)
    return [int(order[index]) for index in chosen], notes


def choose_frequency(path: Path, frequencies: Array, wanted: float | None) -> int:
    """Index of the frequency that was asked for; it must be one of the file's, or next to it.

    frequencies (F,)
    """
    if not len(frequencies) or not np.isfinite(frequencies).all():
        raise FileFormatError(f"{path}: the frequencies of the file are missing or not finite")
    if wanted is None:
        if len(frequencies) == 1:
            return 0
        raise FileFormatError(
            f"{path}: the file holds {len(frequencies)} frequencies from {frequencies.min():g} to "
            f"{frequencies.max():g} Hz; choose one with frequency_hz"
        )
    index = int(np.abs(frequencies - wanted).argmin())
    spacing = float(np.diff(np.sort(frequencies)).max()) if len(frequencies) > 1 else abs(float(frequencies[0])) * 1e-3
    if abs(float(frequencies[index]) - wanted) > spacing:
        raise FileFormatError(
            f"{path}: frequency_hz = {wanted:g} is outside of what the file holds, {frequencies.min():g} to "
            f"{frequencies.max():g} Hz"
        )
    return index
