"""One entrance to every format: :func:`read`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from risfast.errors import FileFormatError
from risfast.geometry import SensorArray
from risfast.io.assemble import FoundData, ReadOptions, assemble
from risfast.io.bands import MOST_BANDS
from risfast.io.formats.acoustics import read_acoular, read_benchmark
from risfast.io.formats.audio import read_audio
from risfast.io.formats.hdf5 import Hdf5Container
from risfast.io.formats.mat5 import Mat5Container
from risfast.io.formats.npz import NpzContainer
from risfast.io.formats.sigmf import read_sigmf
from risfast.io.formats.uvh5 import read_uvh5
from risfast.io.guard import Array, content_of, file_head, held_dtype, shape_text
from risfast.io.recording import Recording, Snapshots
from risfast.io.setup_file import SETUP_VARIABLE, parse_setup
from risfast.setup import Setup

if TYPE_CHECKING:
    Container = Hdf5Container | Mat5Container | NpzContainer

_LOG = logging.getLogger("risfast.io")

FIELDS: dict[str, tuple[str, ...]] = {
    "covariance": ("covariance", "R"),
    "snapshots": ("snapshots", "y", "X"),
    "time_data": ("time_data",),
    "positions_m": ("positions_m", "positions"),
    "wavelength_m": ("wavelength_m", "wavelength"),
    "frequency_hz": ("frequency_hz", "frequency"),
    "speed_m_s": ("speed_m_s",),
    "sample_rate_hz": ("sample_rate_hz", "fs"),
    "wavelengths_m": ("wavelengths_m",),
    "frequencies_hz": ("frequencies_hz",),
    "effective_snapshots": ("effective_snapshots",),
    "codes": ("codes",),
    "channel": ("channel", "H"),
}
"""The fields of a recording, and the names under which .npz, .mat and .h5 files are expected to hold them."""

_NUMBERS = ("wavelength_m", "frequency_hz", "speed_m_s", "sample_rate_hz")
_SERIES = ("wavelengths_m", "frequencies_hz", "effective_snapshots")  # one number for each band
_SMALL_BYTES = 16 << 20
_DATA = ("covariance", "snapshots", "time_data")


def read(
    path: str | Path,
    *,
    format: str | None = None,
    fields: Mapping[str, str] | None = None,
    setup: Setup | SensorArray | str | Path | None = None,
    array: SensorArray | Setup | str | Path | None = None,
    positions_m: Any = None,
    wavelength_m: float | None = None,
    frequency_hz: float | Sequence[float] | None = None,
    third_octave: float | Sequence[float] | None = None,
    speed_m_s: float | None = None,
    sample_rate_hz: float | None = None,
    polarization: str | None = None,
    block_size: int | None = None,
    most_bands: int = MOST_BANDS,
    flagged: Iterable[int] = (),
) -> Recording:
    """Read a measurement from a file of any format that is known: snapshots, or covariances.

    ========== ======================== ==============================================================================
    format     file                     what is in it
    ========== ======================== ==============================================================================
    npz        .npz                     variables, see ``fields``
    mat        .mat, version 5 to 7.3   variables
    hdf5       .h5, .hdf5               datasets, or attributes of the file for single numbers
    acoular    .h5                      ``time_data`` of acoular: samples in time, see ``frequency_hz``
    aiaa       .h5                      cross-spectral matrices, or samples, of the AIAA array benchmark
    uvh5       .uvh5                    visibilities of a radio telescope that points at the zenith
    sigmf      .sigmf-meta, -data,      multi-channel samples, cf32, ci16 and others
               .sigmf
    audio      .wav, .flac              sound of several channels (needs soundfile); positions with ``positions_m``
    ========== ======================== ==============================================================================

    Parameters
    ----------
    path : str or Path
    format : str, optional
        One of the above; by default what the content looks like.
    fields : mapping of str to str, optional
        Names of variables: ``{"covariance": "Rxx", "positions_m": "mic/xyz"}``. Fields are covariance, snapshots,
        time_data, positions_m, wavelength_m, frequency_hz, speed_m_s, sample_rate_hz, codes, channel; and of several
        bands wavelengths_m, frequencies_hz, effective_snapshots.
    setup : Setup, SensorArray or path, optional
        The setup (or the array alone) in place of the file's; a path is a TOML file, see
        :func:`risfast.io.read_setup`. It must fit the data: as many elements, and codes and channel where it says that
        a surface was sampled through.
    array : SensorArray, Setup or path, optional
        Another name of ``setup``.
    positions_m : array_like (N, 3) or path, optional
        In place of a setup, in metres; a path is acoular's XML, CSV or TOML.
    wavelength_m : float, optional
    frequency_hz : float, list of float or (float, float), optional
        Which frequency, where the file has several; the bin of Welch's covariance of samples in time; or, with
        ``speed_m_s``, what gives the wavelength. Of samples in time and AIAA matrices there may be many: a list (or an
        array) is of single frequencies, a tuple (low, high) is a band with all of its bins.
    third_octave : float or list of float, optional
        Bands by their nominal centre in hertz, such as [1000, 1250], in place of ``frequency_hz``; each has all of its
        bins. IEC 61260: exact centres 1000 * 10^(k/10) Hz, edges 10^(1/20) to either side.
    speed_m_s : float, optional
        Of the waves. By default 343 for sound files and for acoular and AIAA files that do not say, that of light for
        UVH5 and SigMF.
    sample_rate_hz : float, optional
        Of samples in time, where the file does not say.
    polarization : str, optional
        Of visibilities, such as "xx" or "rr".
    block_size : int, optional
        Samples of a segment of Welch's method (Hann window, half overlapping). By default 256 of a single
        frequency. Otherwise the power of two from which on bins are narrow, bin width * aperture / speed <= 0.1, and
        no wider than the band or the gaps that were asked for; but no longer than leaves N / 2, and 32, segments. It is
        longer still, up to a product of 0.025, while that leaves 4 N, and 64.
    most_bands : int
        Of a band with more bins than its share of so many, that share is taken, evenly.
    flagged : iterable of int
        Elements to leave out, by their index in the file.

    Returns
    -------
    Recording
        Of one scene or several: snapshots (L, M) or (B, L, M) with codes (L, N) or (B, L, N) and channel (M, N) or
        (B, M, N); covariances (N, N) or (B, N, N), of F bands (F, N, N) or (B, F, N, N) with ``wavelengths_m``,
        complex64 if the file is in single precision, exactly Hermitian,
        complex also where they are real and symmetric. In .mat files B may come last, MATLAB's pages; where both fit,
        it is first. Elements that are flagged in the file, are dead or were named are left out; snapshots of large
        files stay on the disk until they are read in blocks.

        Samples in time are read once, for all bands, whatever their length. ``provenance.notes`` say what was chosen
        and what the samples show: a DC offset, clipping, channels 30 dB from the others, clocks that drift, bands
        without energy (left out), elements that are too far apart.

    Raises
    ------
    FileFormatError
        Whatever is wrong with the file: the message names the file, the field, what was found and how to map it.
    ValueError
        An option that cannot be met.

    Notes
    -----
    MATLAB 7.3 files are HDF5 with every axis reversed. For a Hermitian matrix that is a conjugation, which would mirror
    every source without a trace, so such files are turned back.

    Nothing is unpickled, no file is opened from within another, and declared sizes are checked before memory is taken.
    """
    if setup is not None and array is not None:
        raise ValueError("setup and array are two names of the same: give one of them")
    chosen = array if setup is None else setup
    waves = (wavelength_m, frequency_hz, speed_m_s, sample_rate_hz, polarization)
    bands = (third_octave, most_bands)
    options = ReadOptions(format, dict(fields or {}), chosen, positions_m, *waves, block_size, flagged, *bands)
    if format is not None and format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    unknown = [name for name in options.fields if name not in FIELDS]
    if unknown:
        raise ValueError(f"fields: unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    path = Path(path)
    kind = format or _recognise(path)
    recording = assemble(FORMATS[kind](path, options), options)
    _LOG.info("read %s as %s: %r", path, kind, recording)
    for note in recording.provenance.notes:
        _LOG.info("%s: %s", path.name, note)
    return recording


def _recognise(path: Path) -> str:
    """The format of a file by its content; the name decides only between formats without a signature."""
    if path.suffix in (".sigmf-meta", ".sigmf-data", ".sigmf"):
        return "sigmf"
    content = content_of(path)
    if content == "HDF5":
        return _hdf5_layout(Hdf5Container(path))
    by_content = {"MATLAB": "mat", "NumPy zip": "npz", "WAV or FLAC": "audio"}
    if content in by_content:
        return by_content[content]
    mend = ""
    if content.startswith(("a single NumPy", "a Python pickle")) or path.suffix.lower() in (".csv", ".txt"):
        mend = "; save it with numpy.savez(path, R=R)"
    elif path.suffix.lower() in (".npz", ".mat", ".h5", ".hdf5"):
        mend = f" (its first bytes are {file_head(path)[:8]!r}): the name is wrong, or the file damaged"
    raise FileFormatError(
        f"{path}: this is {content}, not one of {', '.join(FORMATS)}{mend}. A file whose beginning is damaged can be "
        "tried with format="
    )


def _hdf5_layout(container: Hdf5Container) -> str:
    holds = container.holds
    if "Data/visdata" in holds or "Header/ant_1_array" in holds:
        return "uvh5"
    if "CsmData/csmReal" in holds or "MicrophoneData/microphoneDataPa" in holds:
        return "aiaa"
    if "time_data" in holds and "sample_freq" in container.attributes("time_data"):
        return "acoular"
    return "mat" if container.pages_last else "hdf5"


def _read_mat(path: Path, options: ReadOptions) -> FoundData:
    content = content_of(path)
    if content not in ("MATLAB", "HDF5"):
        raise FileFormatError(f"{path}: not a .mat file of version 5 to 7.3, but {content}")
    container: Container = Mat5Container(path) if content == "MATLAB" else Hdf5Container(path)
    return _read_variables(container, options)


def _read_variables(container: Container, options: ReadOptions) -> FoundData:
    """Fields by their names, as mapped or as expected."""
    path, holds = container.path, container.holds
    found = FoundData(path, container.kind, holds, pages_last=container.pages_last)
    attributes = container.attributes("/") if isinstance(container, Hdf5Container) else {}
    for field, expected in FIELDS.items():
        name = options.fields.get(field)
        if name is not None and name not in holds:
            raise FileFormatError(
                f"{path}: {field} is mapped to {name!r}, which is not there; the file holds {found.inventory()}"
            )
        usual = [candidate for candidate in expected if candidate in holds]
        if name is None and len(usual) > 1:
            raise FileFormatError(
                f"{path}: {field}: both {' and '.join(map(repr, usual))} are there; choose with "
                f"fields={{{field!r}: {usual[0]!r}}}"
            )
        if name is not None or usual:
            found.names[field] = name if name is not None else usual[0]
    _one_kind_of_data(found, options)
    for field in _NUMBERS:
        number = next((attributes[name] for name in FIELDS[field] if name in attributes), None)
        if field in found.names:
            number = container.load(found.names[field])
        if number is not None:
            setattr(found, field, _single_number(found, field, number))
    for field in _SERIES:
        if field in found.names:
            setattr(found, field, _series(found, field, container.load(found.names[field])))
    for field in ("covariance", "positions_m", "codes", "channel"):
        if field in found.names:
            setattr(found, field, container.load(found.names[field]))
    if SETUP_VARIABLE in holds and options.setup is None:
        found.setup = parse_setup(path, container.load(SETUP_VARIABLE))
    for field in ("snapshots", "time_data"):
        if field == "snapshots" and field in found.names and len(holds[found.names[field]]) == 3:
            found.batch = container.load(found.names[field])
        elif field in found.names:
            setattr(found, field, _samples(container, found, found.names[field]))
    return found


def _one_kind_of_data(found: FoundData, options: ReadOptions) -> None:
    there = [field for field in _DATA if field in found.names]
    mapped = [field for field in there if field in options.fields]
    if len(mapped) == 1:
        for field in there:
            if field not in mapped:
                del found.names[field]
    elif not there:
        raise FileFormatError(
            f"{found.path}: there is neither a covariance ({' or '.join(FIELDS['covariance'])}) nor snapshots "
            f"({' or '.join(FIELDS['snapshots'])}) in the file; it holds {found.inventory()}. Name one with "
            "fields={'covariance': NAME} or fields={'snapshots': NAME}"
        )
    elif len(there) > 1:
        names = " and ".join(f"{found.names[field]!r} ({field})" for field in there)
        raise FileFormatError(f"{found.path}: {names} are there; choose one with fields={{{there[0]!r}: NAME}}")


def _single_number(found: FoundData, field: str, value: Any) -> float:
    values = np.asarray(value)
    if values.size != 1 or values.dtype.kind not in "iuf":
        raise FileFormatError(
            f"{found.path}: {found.name(field)!r} ({field}) must be a single number, found "
            f"{shape_text(values.shape)} of {values.dtype}"
        )
    return float(values.reshape(-1)[0])


def _series(found: FoundData, field: str, value: Any) -> Array:
    """One number for each band, shape (F,)."""
    values = np.asarray(value)
    if values.dtype.kind not in "iuf" or values.size != max(values.shape, default=1) or not values.size:
        raise FileFormatError(
            f"{found.path}: {found.name(field)!r} ({field}) must be a list of numbers, one for each band, found "
            f"{shape_text(values.shape)} of {values.dtype}"
        )
    return values.reshape(-1).astype(np.float64)


def _samples(container: Container, found: FoundData, name: str) -> Snapshots:
    """In blocks where the file allows it, else whole; small ones that may have to be turned are held too."""
    rows = container.rows(name)
    source = f"{container.path}: {name!r}"
    if rows is not None and (rows.shape[0] * rows.shape[1] * rows.dtype.itemsize > _SMALL_BYTES):
        return rows
    values = np.asarray(container.load(name))
    if values.ndim != 2 or values.dtype.kind not in "iufc":
        raise FileFormatError(
            f"{source} must be (L, N), one row per snapshot, found {shape_text(values.shape)} of {values.dtype}"
        )
    return Snapshots.of(values.astype(held_dtype(values.dtype)), source)


FORMATS: dict[str, Callable[[Path, ReadOptions], FoundData]] = {
    "npz": lambda path, options: _read_variables(NpzContainer(path), options),
    "mat": _read_mat,
    "hdf5": lambda path, options: _read_variables(Hdf5Container(path), options),
    "acoular": read_acoular,
    "aiaa": read_benchmark,
    "uvh5": read_uvh5,
    "sigmf": read_sigmf,
    "audio": read_audio,
}
"""Readers by the name of their format."""
