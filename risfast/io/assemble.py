"""From what a reader found in a file, and what the caller adds, to a checked :class:`Recording`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError
from risfast.geometry import SensorArray
from risfast.io.bands import MOST_BANDS, BandRequest
from risfast.io.guard import Array, as_numbers, held_dtype, inventory, naming, shape_text
from risfast.io.inspection import grating_note
from risfast.io.positions import read_positions
from risfast.io.recording import Flagged, Provenance, Recording, Snapshots
from risfast.io.setup_file import SetupParts, read_setup_parts
from risfast.io.time_data import BandReader
from risfast.setup import Setup, check_elements

SPEED_OF_LIGHT_M_S = 299_792_458.0
SPEED_OF_SOUND_M_S = 343.0  # in dry air at 20 degrees Celsius; acoular's default too


@dataclass(frozen=True)
class ReadOptions:
    """What the caller knows better than the file, or what the file does not say; see :func:`risfast.simulate.read`."""

    format: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    setup: Setup | SensorArray | str | Path | None = None
    positions_m: Any = None
    wavelength_m: float | None = None
    frequency_hz: Any = None
    speed_m_s: float | None = None
    sample_rate_hz: float | None = None
    polarization: str | None = None
    block_size: int | None = None
    flagged: Iterable[int] = ()
    third_octave: Any = None
    most_bands: int = MOST_BANDS
    request: BandRequest | None = field(init=False, default=None)  # of frequency_hz or third_octave

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before any file is opened."""
        for name in ("wavelength_m", "speed_m_s", "sample_rate_hz"):
            value = getattr(self, name)
            if value is not None and not (_is_real(value) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        object.__setattr__(self, "request", BandRequest.of(self.frequency_hz, self.third_octave))
        if self.several and self.wavelength_m is not None:
            raise ValueError("wavelength_m is of one band: give speed_m_s with several frequencies")
        for name in ("block_size", "most_bands"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.request is not None and len(self.request.intervals) > self.most_bands:
            raise ValueError(
                f"third_octave names {len(self.request.intervals)} bands, and most_bands is {self.most_bands}: ask for "
                "fewer, or for more bands in all"
            )
        if self.setup is not None and self.positions_m is not None:
            raise ValueError("give setup (or array) or positions_m, not both")
        flagged = tuple(self.flagged)
        if not all(isinstance(index, int) and index >= 0 for index in flagged):
            raise ValueError(f"flagged must be indices of elements, from 0, got {flagged!r}")
        object.__setattr__(self, "flagged", flagged)

    @property
    def several(self) -> bool:
        """Whether bands were asked for, not the one at a single frequency."""
        return self.request is not None and not self.request.one

    def check_one(self, path: Path, what: str) -> float | None:
        """The single frequency that was asked for, of a format that has no more."""
        if self.several:
            raise FileFormatError(f"{path}: of {what} one frequency is read at a time: give frequency_hz as one number")
        return None if self.request is None else self.request.points[0]


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


@dataclass(eq=False)
class FoundData:
    """What a reader found. Positions are (N, 3) in metres, or None; times and covariances still unchecked."""

    path: Path
    format: str  # For people
    holds: Mapping[str, tuple[int, ...]]  # Everything in the file with its shape
    covariance: Array | None = None  # (N, N), (B, N, N), or with pages last; of F bands (F, N, N) or (B, F, N, N)
    snapshots: Snapshots | None = None  # Rows of complex samples at one frequency; rows of samples in time
    time_data: Snapshots | None = None  # Rows of complex samples at one frequency; rows of samples in time
    batch: Array | None = None  # Snapshots of several scenes, three axes, in place of ``snapshots``
    sample_rate_hz: float | None = None
    positions_m: Array | None = None
    wavelength_m: float | None = None
    frequency_hz: float | None = None
    chosen: bool = False  # whether frequency_hz is the one of the file's that comes nearest to what was asked for
    speed_m_s: float | None = None
    wavelengths_m: Array | None = None  # (F,), as the next two
    frequencies_hz: Array | None = None
    effective_snapshots: Array | None = None
    codes: Array | None = None
    channel: Array | None = None
    setup: Setup | None = None  # That the file itself describes
    names: dict[str, str] = field(default_factory=dict)  # field -> name in the file
    pages_last: bool = False  # Whether a batch may come with its matrices last, as in MATLAB
    details: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # As in :class:`risfast.io.Provenance`
    flagged: list[Flagged] = field(default_factory=list)  # What the file itself marks
    element_names: list[str] | None = None

    def name(self, what: str) -> str:
        """What the file calls a field."""
        return self.names.get(what, what)

    def inventory(self) -> str:
        """Everything in the file with its shape."""
        return inventory(self.holds)

    @property
    def n_bands(self) -> int:
        """F, of the covariances; 1 where nothing says more."""
        series = (self.wavelengths_m, self.frequencies_hz)
        return max([len(values) for values in series if values is not None], default=1)


def assemble(found: FoundData, options: ReadOptions) -> Recording:
    """Check everything and put it together; see :func:`risfast.simulate.read` for the errors."""
    given = _parts(found, options)
    _check_sampling(found, given)
    positions = _positions(found, options, given)
    bands = _bands(found, options, given, positions)
    with naming(found.path):
        check_elements(len(positions))
    array = SensorArray(torch.from_numpy(positions), min(bands.wavelengths_m))
    n = array.n_elements
    flagged = [flag for flag in found.flagged if flag.index < n]
    scenes, snapshots = 1, None
    if found.batch is not None:
        scenes, snapshots, codes, channel = arrange(found, n)
    else:
        codes, channel = _matrix(found, "codes", array), _matrix(found, "channel", array)
        snapshots = None if found.snapshots is None else _oriented(found, found.snapshots, channel, n)
    matrix = None
    if bands.covariance is not None:
        matrix, dead = _covariance(found, bands.covariance, n, {flag.index for flag in flagged})
        flagged += [Flagged(index, _element_name(found, index), "no power") for index in dead]
    speed = _speed(found, options, given)
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        name = found.name("speed_m_s")
        raise FileFormatError(f"{found.path}: {name!r} must be a positive number, found {speed!r}; give speed_m_s")
    if codes is None and channel is None:
        grating = grating_note(positions, bands.wavelengths_m, speed)
        found.notes += [] if grating is None else [grating]
    provenance = Provenance(str(found.path), found.format, found.details, tuple(found.notes))
    with naming(found.path):
        recording = Recording(
            array,
            matrix,
            snapshots,
            codes,
            channel,
            provenance=provenance,
            scenes=scenes,
            speed_m_s=speed,
            wavelengths_m=bands.wavelengths_m,
            frequencies_hz=bands.frequencies_hz,
            effective_snapshots=bands.effective,
        )
        if given is not None and given != SetupParts(given.array):  # it says more than the array
            own = {"array": array, "wavelengths_m": bands.wavelengths_m}
            setup = given.setup(**own, sampling=given.sampling or recording.sampling)
            recording = replace(recording, given=setup)
        return _without(recording, found, flagged, options)


def _parts(found: FoundData, options: ReadOptions) -> SetupParts | None:
    """What the caller's setup says, else the file's, and what it leaves open."""
    setup = options.setup
    if isinstance(setup, str | Path):
        return read_setup_parts(setup)
    if setup is None:
        setup = found.setup
    if isinstance(setup, Setup):
        given = {item.name: getattr(setup, item.name) for item in fields(SetupParts)}
        return SetupParts(**given | {"wavelengths_m": setup.wavelengths_m if setup.n_bands > 1 else None})
    return None if setup is None else SetupParts(setup)


def _check_sampling(found: FoundData, given: SetupParts | None) -> None:
    """Refuse a setup that is about another measurement. A covariance is one of the elements, however it came about."""
    there = [name for name in ("codes", "channel") if getattr(found, name) is not None]
    if given is None or given.sampling is None:
        return
    if given.sampling == "direct" and there:
        raise FileFormatError(
            f"{found.path}: sampling: the setup says direct, but {' and '.join(map(found.name, there))} of a surface "
            "are in the file; give sampling = 'surface' in the setup, or leave them out of the file"
        )
    missing = [name for name in ("codes", "channel") if name not in there]
    if given.sampling == "surface" and missing and (found.snapshots is not None or found.batch is not None):
        raise FileFormatError(
            f"{found.path}: sampling: the setup says surface, but there is no {' and no '.join(missing)} in the file "
            f"(it holds {found.inventory()}); name the variable with fields={{{missing[0]!r}: NAME}}, or give sampling "
            "= 'direct' in the setup if the snapshots are of the elements themselves"
        )


def _without(recording: Recording, found: FoundData, given: list[Flagged], options: ReadOptions) -> Recording:
    """Leave out what is flagged in the file, dead, or named by the caller."""
    known = {flag.index for flag in given}
    by_hand = [
        Flagged(index, _element_name(found, index), "left out by hand")
        for index in sorted(set(options.flagged))
        if index not in known
    ]
    flagged = sorted([*given, *by_hand], key=lambda flag: flag.index)
    left = recording.without([flag.index for flag in flagged])
    return replace(left, flagged=tuple(flagged))  # with their names and reasons


def _element_name(found: FoundData, index: int) -> str:
    return found.element_names[index] if found.element_names else str(index)


def _positions(found: FoundData, options: ReadOptions, setup: SetupParts | None) -> Array:
    """(N, 3) in metres, from the caller or from the file."""
    given = options.positions_m
    if options.setup is not None and setup is not None:
        return setup.array.positions_m.numpy()
    if isinstance(given, str | Path):
        return read_positions(given)
    values = found.positions_m if given is None else np.asarray(given, dtype=np.float64)
    if values is None and setup is not None:  # the file's own, where it has no positions beside it
        return setup.array.positions_m.numpy()
    if values is None:
        raise FileFormatError(
            f"{found.path}: the positions of the elements are missing: there is no positions_m in the file (it holds "
            f"{found.inventory()}); give the array with setup='setup.toml', or positions_m= an array (N, 3) or an "
            ".xml, .csv or .toml file, or name the variable with fields={'positions_m': NAME}"
        )
    name = found.name("positions_m") if given is None else "positions_m"
    if values.dtype.kind not in "iuf":
        raise FileFormatError(f"{found.path}: {name!r} must hold real numbers of metres, found {values.dtype}")
    values = values.astype(np.float64)
    if values.ndim == 2 and values.shape[0] == 3 != values.shape[1]:
        found.notes.append(f"{name} was {shape_text(values.shape)} and is turned to {shape_text(values.shape[::-1])}")
        values = values.T
    if values.ndim != 2 or values.shape[1] != 3 or len(values) < 1:
        raise FileFormatError(
            f"{found.path}: {name!r} must be (N, 3), x, y and z in metres of each element, found "
            f"{shape_text(values.shape)}"
        )
    if not np.isfinite(values).all():
        raise FileFormatError(f"{found.path}: {name!r} holds positions that are NaN or infinite")
    return np.ascontiguousarray(values)


def _wavelength(found: FoundData, options: ReadOptions, setup: SetupParts | None, frequency: float | None) -> float:
    """In metres: the caller's, then the frequency's, then the file's."""
    if options.wavelength_m is not None:
        return options.wavelength_m
    if options.setup is not None and setup is not None:
        return setup.array.wavelength_m
    speed = options.speed_m_s or found.speed_m_s
    for name, value in (("wavelength_m", found.wavelength_m), ("frequency_hz", frequency), ("speed_m_s", speed)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise FileFormatError(
                f"{found.path}: {found.name(name)!r} must be a positive number, found {value!r}; give wavelength_m"
            )
    if options.frequency_hz is None and found.wavelength_m is not None:
        return found.wavelength_m
    if options.frequency_hz is None and setup is not None:
        return setup.array.wavelength_m
    if frequency is None or speed is None:
        missing = "a frequency" if frequency is None else "the speed of the waves"
        raise FileFormatError(
            f"{found.path}: the wavelength is missing: the file holds neither wavelength_m nor {missing} (it holds "
            f"{found.inventory()}); give wavelength_m, or frequency_hz and speed_m_s, or a setup, or name the variable "
            "with fields={'wavelength_m': NAME}"
        )
    return speed / frequency


def _speed(found: FoundData, options: ReadOptions, given: SetupParts | None) -> float | None:
    """Of the waves: the caller's, then the setup's, then the file's."""
    return options.speed_m_s or (given.speed_m_s if given else None) or found.speed_m_s


@dataclass(frozen=True)
class _Bands:
    """The narrow bands of a recording; the covariance is (.., N, N), or (B, F, N, N) of several."""

    covariance: Array | None
    wavelengths_m: tuple[float, ...]
    frequencies_hz: tuple[float, ...] | None
    effective: tuple[float, ...] | None


def _bands(found: FoundData, options: ReadOptions, given: SetupParts | None, positions: Array) -> _Bands:
    """From samples in time by Welch's method, else as the file has them."""
    if found.time_data is not None:
        return _from_time(found, options, given, positions)
    if found.covariance is not None and (_in_bands(found.covariance) or found.n_bands > 1):
        return _several(found, options, given)
    if options.several and not found.chosen:
        raise FileFormatError(
            f"{found.path}: several frequencies are made of samples in time, and the file holds {found.inventory()}; "
            "give frequency_hz as one number"
        )
    if given is not None and given.wavelengths_m is not None:
        raise FileFormatError(
            f"{found.path}: the setup is of {len(given.wavelengths_m)} bands, and the file holds one; give "
            "wavelength_m in the setup, or a file with covariances (F, N, N)"
        )
    own = found.chosen or options.request is None
    frequency = found.frequency_hz if own else options.frequency_hz
    if found.chosen and options.request is not None and options.request.one:
        found.notes += _nearest_note(options.request.points[0], frequency)
    wavelength = _wavelength(found, options, given, frequency)
    return _Bands(found.covariance, (wavelength,), None if frequency is None else (frequency,), _effective(found, 1))


def _in_bands(covariance: Array) -> bool:
    """Whether these can be (B, F, N, N)."""
    return covariance.ndim == 4 and covariance.shape[2] == covariance.shape[3]


def _nearest_note(wanted: float, frequency: float | None) -> list[str]:
    if frequency in (None, wanted):
        return []
    return [f"{frequency:g} Hz is the nearest frequency in the file to {wanted:g} Hz"]


def _effective(found: FoundData, bands: int) -> tuple[float, ...] | None:
    """Numbers of independent snapshots that the file gives, one for each band."""
    values = found.effective_snapshots
    if values is None or found.covariance is None:
        return None
    if len(values) != bands or not (np.isfinite(values) & (values > 0)).all():
        raise FileFormatError(
            f"{found.path}: {found.name('effective_snapshots')!r} must be {bands} positive numbers, one for each band, "
            f"found {values.tolist()!r:.80}"
        )
    return tuple(values.tolist())


def _several(found: FoundData, options: ReadOptions, given: SetupParts | None) -> _Bands:
    """Covariances of several bands that the file holds."""
    values, name = found.covariance, found.name("covariance")
    assert values is not None
    if found.pages_last or values.ndim not in (3, 4):
        raise FileFormatError(
            f"{found.path}: {name!r} is {shape_text(values.shape)}; covariances of several bands are (F, N, N) or "
            "(B, F, N, N), in .npz or .h5"
        )
    batch = values if values.ndim == 4 else values[None]
    bands, speed = batch.shape[1], _speed(found, options, given)
    frequencies = found.frequencies_hz
    if options.setup is not None and given is not None and given.wavelengths_m is not None:
        wavelengths = np.array(given.wavelengths_m)
    elif found.wavelengths_m is not None and options.speed_m_s is None:
        wavelengths = found.wavelengths_m
    elif frequencies is not None and speed is not None:
        wavelengths = speed / np.where(frequencies > 0, frequencies, np.nan)
    else:
        raise FileFormatError(
            f"{found.path}: the wavelengths of {bands} bands are missing: the file holds neither wavelengths_m nor "
            f"frequencies_hz with speed_m_s (it holds {found.inventory()}); give them with a setup"
        )
    for what, series in (("wavelengths_m", wavelengths), ("frequencies_hz", frequencies)):
        if series is not None and (len(series) != bands or not (np.isfinite(series) & (series > 0)).all()):
            raise FileFormatError(
                f"{found.path}: {found.name(what)!r} must be {bands} positive numbers, one for each band of {name!r} "
                f"({shape_text(values.shape)}), found {series.tolist()!r:.80}"
            )
    if options.request is not None and not found.chosen:
        raise FileFormatError(
            f"{found.path}: the file holds {bands} bands, and all of them are read: give no frequency_hz"
        )
    hertz = None if frequencies is None else tuple(frequencies.tolist())
    return _Bands(batch, tuple(wavelengths.tolist()), hertz, _effective(found, bands))


def _from_time(found: FoundData, options: ReadOptions, given: SetupParts | None, positions: Array) -> _Bands:
    """Welch's covariances [1, N, N], or [1, F, N, N], of samples in time, and what the samples show of their faults."""
    samples, n = found.time_data, len(positions)
    assert samples is not None
    rate, speed = options.sample_rate_hz or found.sample_rate_hz, _speed(found, options, given)
    request = options.request
    if request is None and given is not None and given.wavelengths_m is not None and speed is not None:
        request = BandRequest(points=tuple(sorted(speed / value for value in given.wavelengths_m)))
    if rate is None or not (math.isfinite(rate) and rate > 0):
        raise FileFormatError(f"{found.path}: the sample rate is missing or not positive ({rate}); give sample_rate_hz")
    if samples.shape[1] != n:
        raise FileFormatError(
            f"{found.path}: {found.name('time_data')!r} has {samples.shape[1]} channels, but the array has {n} "
            "elements; give the positions of all channels in their order, with flagged= those to leave out"
        )
    if request is None:
        raise FileFormatError(
            f"{found.path}: {found.name('time_data')!r} holds {len(samples)} samples in time of {n} channels at "
            f"{rate:g} Hz; choose the frequency of the covariance, several, or a band with frequency_hz or third_octave"
        )
    # A single frequency may come with a wavelength, or with a setup that has one.
    own = options.wavelength_m is not None or (options.setup is not None and (given is None or not given.wavelengths_m))
    own = request.one and (own or speed is None)
    if speed is None and not own:
        raise FileFormatError(f"{found.path}: the speed of the waves is missing, for wavelengths; give speed_m_s")
    reach = float(np.linalg.norm(positions - positions.mean(0), axis=1).max())
    travel = 0.0 if speed is None else 2 * reach / speed
    centre = (found.frequency_hz or 0.0) if samples.dtype.kind == "c" else 0.0
    names = found.element_names or [str(index) for index in range(n)]
    reader = BandReader(found.path, samples, rate, travel, centre)
    bands = reader.read(request, options.block_size, options.most_bands, names)
    found.notes += bands.notes
    frequencies = bands.frequencies_hz
    if own or speed is None:
        wavelengths = [_wavelength(found, options, given, float(frequencies[0]))]
    elif (frequencies <= 0).any():
        raise FileFormatError(f"{found.path}: {frequencies.min():g} Hz has no wavelength; give a positive frequency_hz")
    else:
        wavelengths = (speed / frequencies).tolist()
    covariance = bands.covariance if len(frequencies) == 1 else bands.covariance[None]
    effective = (bands.effective,) * len(frequencies)
    return _Bands(covariance, tuple(wavelengths), tuple(frequencies.tolist()), effective)


def _matrix(found: FoundData, what: str, array: SensorArray) -> Tensor | None:
    """Codes or channel as a complex tensor (?, N)."""
    values: Array | None = getattr(found, what)
    if values is None:
        return None
    name, n = found.name(what), array.n_elements
    numbers = as_complex(values, found.path, name)
    if numbers.ndim == 2 and numbers.shape[0] == n != numbers.shape[1]:
        found.notes.append(f"{name} was {shape_text(numbers.shape)} and is turned to {shape_text(numbers.shape[::-1])}")
        numbers = numbers.T
    if numbers.ndim != 2 or numbers.shape[1] != n or len(numbers) < 1:
        raise FileFormatError(
            f"{found.path}: {name!r} ({what}) must have {n} columns, one for each of {array}, found "
            f"{shape_text(values.shape)}; if the array is another one, give it with setup"
        )
    return _tensor(found, what, numbers)


def _oriented(found: FoundData, snapshots: Snapshots, channel: Tensor | None, n: int) -> Snapshots:
    """(L, N), or (L, M) behind a surface; turned where only the other way round fits, and complex."""
    name, seen = found.name("snapshots"), n if channel is None else channel.shape[0]
    rows, columns = snapshots.shape
    if columns != seen and rows == seen:
        if not snapshots.held:
            raise FileFormatError(
                f"{found.path}: {name!r} is {rows} x {columns}, one row per element; it is read in blocks of "
                f"snapshots, so save it the other way round, {columns} x {rows}"
            )
        found.notes.append(f"{name} was {rows} x {columns} and is turned to {columns} x {rows}")
        snapshots = Snapshots.of(np.ascontiguousarray(snapshots.read().numpy().T), snapshots.source)
    elif columns != seen:
        kind = "elements" if channel is None else "antennas of the channel"
        raise FileFormatError(
            f"{found.path}: {name!r} is {rows} x {columns}, and there are {seen} {kind}: expected (L, {seen}); if "
            "these are other positions, give the right ones with setup or positions_m"
        )
    if len(snapshots) == 0:
        raise FileFormatError(f"{found.path}: {name!r} holds no snapshots")
    if snapshots.dtype.kind != "c":
        raise FileFormatError(
            f"{found.path}: {name!r} is real; snapshots are complex. If these are samples in time, name them so: "
            f"fields={{'time_data': {name!r}}} with sample_rate_hz and frequency_hz"
        )
    return snapshots


def _covariance(found: FoundData, values: Array, n: int, known: set[int]) -> tuple[Tensor, list[int]]:
    """(B, N, N) or (B, F, N, N), checked, and the elements that are dead in all of them."""
    name = found.name("covariance")
    numbers = as_complex(values, found.path, name)
    bands = numbers.shape[:2] if _in_bands(numbers) else None
    numbers = numbers if bands is None else numbers.reshape(-1, *numbers.shape[2:])
    batch = as_batch(numbers, found.path, name, pages_last=found.pages_last, n_elements=n).copy()
    for index in known:  # what is flagged may hold anything, and is cut out anyway
        batch[:, index, :] = 0
        batch[:, :, index] = 0
    matrix = as_hermitian(batch, found.path, name, real=numbers.dtype.kind != "c")
    power = matrix.diagonal(dim1=1, dim2=2).real
    if bool((power < 0).any()):
        raise FileFormatError(
            f"{found.path}: {name!r} has negative powers on its diagonal (element {int(power.amin(0).argmin())}), so "
            "it is not a covariance"
        )
    dead = torch.nonzero(power.amax(0) == 0)[:, 0].tolist()
    shaped = matrix if bands is None else matrix.reshape(*bands, n, n)
    return shaped, [index for index in dead if index not in known]


# Deviation from Hermitian symmetry, relative to the largest entry, that rounding to single precision or a printout with
# five digits can leave; anything above it means that the matrix is something else.
_HERMITIAN_TOLERANCE = 1e-4


def as_complex(raw: Any, path: Path, name: str) -> Array:
    """A plain real or complex array, also from the (real, imag) records of MATLAB and others."""
    if isinstance(raw, np.ndarray):
        raw = as_numbers(raw)
    if not isinstance(raw, np.ndarray) or raw.dtype.kind not in "iufc":
        what = f"dtype {raw.dtype}" if isinstance(raw, np.ndarray) else type(raw).__name__
        raise FileFormatError(f"{path}: {name!r} must be a full array of real or complex numbers, got {what}")
    return raw.astype(held_dtype(raw.dtype))


def as_batch(values: Array, path: Path, name: str, *, pages_last: bool, n_elements: int | None) -> Array:
    """(B, N, N) from (N, N), (B, N, N) or, where MATLAB's pages are possible, (N, N, B)."""
    shape = " x ".join(map(str, values.shape))
    if values.size == 0:
        raise FileFormatError(f"{path}: {name!r} is empty ({shape or 'no shape'})")
    if values.ndim == 2 and values.shape[0] == values.shape[1]:
        batch = values[None]
    elif values.ndim == 3 and pages_last and values.shape[0] == values.shape[1] != values.shape[2]:
        batch = np.moveaxis(values, -1, 0)
    elif values.ndim == 3 and values.shape[1] == values.shape[2]:
        batch = values
    else:
        raise FileFormatError(f"{path}: {name!r} has shape {shape}; {_shape_mend(values, n_elements)}")
    if n_elements is not None and batch.shape[-1] != n_elements:
        raise FileFormatError(
            f"{path}: {name!r} holds {batch.shape[-1]} x {batch.shape[-1]} matrices, but the array has {n_elements} "
            "elements; give the array that the covariance was measured with"
        )
    return batch


def _shape_mend(values: Array, n_elements: int | None) -> str:
    """What a wrong shape most likely is."""
    expected = "expected one covariance (N, N) or a batch (B, N, N)"
    if values.ndim == 2:
        rows, columns = values.shape
        by_columns = n_elements == columns if n_elements in (rows, columns) else rows >= columns
        formula = "X.T @ X.conj() / L" if by_columns else "X @ X.conj().T / L"
        layout = f"{rows} snapshots of {columns}" if by_columns else f"{columns} snapshots of {rows}"
        return (
            f"{expected}. It is not square: these look like snapshots ({layout} elements); save R = {formula} instead"
        )
    if values.ndim == 3 and values.shape[0] == values.shape[1]:
        return f"{expected}. The batch comes last here: save numpy.moveaxis(R, -1, 0)"
    if values.ndim == 3 and values.shape[-1] == 2 and values.dtype.kind != "c":
        return f"{expected}. It looks like real and imaginary parts side by side: save R[..., 0] + 1j * R[..., 1]"
    return expected


def as_hermitian(batch: Array, path: Path, name: str, *, real: bool) -> Tensor:
    """Checked and made exactly Hermitian."""
    bad = int(batch.size - np.isfinite(batch).sum())
    if bad:
        raise FileFormatError(f"{path}: {name!r} holds {bad} values that are NaN or infinite")
    mirrored = np.conj(np.swapaxes(batch, -1, -2))
    scale = np.abs(batch).max(axis=(-1, -2))
    deviation = np.abs(batch - mirrored).max(axis=(-1, -2)) / np.where(scale > 0, scale, 1)
    worst = int(deviation.argmax())
    if deviation[worst] > _HERMITIAN_TOLERANCE:
        mend = ""
        if real:
            mend = "; it is real, its imaginary part may have been lost on the way"
        elif np.abs(batch - np.swapaxes(batch, -1, -2)).max() <= _HERMITIAN_TOLERANCE * scale.max():
            mend = "; it is symmetric, so the conjugate in R = E[x x^H] may have been forgotten"
        raise FileFormatError(
            f"{path}: {name!r} is not Hermitian: R and R^H differ by {deviation[worst]:.1e} of the largest entry "
            f"(matrix {worst} of {len(batch)}){mend}"
        )
    single = batch.dtype in (np.complex64, np.float32)
    return torch.from_numpy(((batch + mirrored) / 2).astype(np.complex64 if single else np.complex128))


Shapes = Mapping[str, tuple[int, ...]]


def layout(shapes: Shapes, n_elements: int, *, pages_last: bool) -> tuple[int, dict[str, bool]] | None:
    """Axis of the scenes, and which fields must be transposed for all to fit together; None if they cannot."""
    # Where both axes fit, as where the sides are equal, the one with fewer fields to transpose is meant, else the
    # first.
    axes = (0, -1) if pages_last else (0,)
    fitting = [(axis, turned) for axis in axes if (turned := _turned(shapes, n_elements, axis)) is not None]
    return min(fitting, key=lambda choice: sum(choice[1].values()), default=None)


def _turned(shapes: Shapes, n_elements: int, axis: int) -> dict[str, bool] | None:
    scenes = shapes["snapshots"][axis]
    inner = {}
    for name, shape in shapes.items():
        if len(shape) == 3 and shape[axis] != scenes:
            return None
        inner[name] = shape if len(shape) == 2 else (shape[1:] if axis == 0 else shape[:-1])
    turned: dict[str, bool] = {}
    antennas = n_elements
    if "channel" in inner:
        if n_elements not in inner["channel"]:
            return None
        turned["channel"] = inner["channel"][1] != n_elements
        antennas = inner["channel"][0 if not turned["channel"] else 1]
    if antennas not in inner["snapshots"]:
        return None
    turned["snapshots"] = inner["snapshots"][1] != antennas
    length = inner["snapshots"][0 if not turned["snapshots"] else 1]
    if "codes" in inner:
        if inner["codes"] not in ((length, n_elements), (n_elements, length)):
            return None
        turned["codes"] = inner["codes"] != (length, n_elements)
    return turned


def arrange(found: FoundData, n_elements: int) -> tuple[int, Snapshots, Tensor | None, Tensor | None]:
    """Number of scenes, their snapshots one after the other, codes and channel with the scene first."""
    given = {"snapshots": found.batch, "codes": found.codes, "channel": found.channel}
    values = {
        name: as_complex(value, found.path, found.name(name)) for name, value in given.items() if value is not None
    }
    shapes = {name: value.shape for name, value in values.items()}
    shown = ", ".join(f"{found.name(name)} {shape_text(shape)}" for name, shape in shapes.items())
    if any(value.ndim not in (2, 3) or value.size == 0 for value in values.values()):
        raise FileFormatError(f"{found.path}: scenes of snapshots must be (B, L, M) and not empty, found {shown}")
    chosen = layout(shapes, n_elements, pages_last=found.pages_last)
    if chosen is None:
        seen = "y (B, L, M), codes (B, L, N) and channel (B, M, N)" if "channel" in shapes else "snapshots (B, L, N)"
        raise FileFormatError(
            f"{found.path}: {shown} do not belong together for N = {n_elements} elements: expected {seen}; if the "
            "array is another one, give it with setup"
        )
    axis, turned = chosen
    for name, value in values.items():
        batch = np.moveaxis(value, axis, 0) if value.ndim == 3 else value
        values[name] = batch.swapaxes(-1, -2) if turned[name] else batch
        if values[name].shape != shapes[name]:
            found.notes.append(
                f"{found.name(name)} was {shape_text(shapes[name])} and is turned to {shape_text(values[name].shape)}"
            )
    y = values["snapshots"]
    if y.dtype.kind != "c":
        raise FileFormatError(f"{found.path}: {found.name('snapshots')!r} is real; snapshots are complex")
    rows = np.ascontiguousarray(y).reshape(-1, y.shape[2])
    snapshots = Snapshots.of(rows, f"{found.path}: {found.name('snapshots')!r}")
    codes, channel = (_tensor(found, name, values.get(name)) for name in ("codes", "channel"))
    return len(y), snapshots, codes, channel


def _tensor(found: FoundData, name: str, values: Array | None) -> Tensor | None:
    if values is None:
        return None
    if not np.isfinite(values).all():
        raise FileFormatError(f"{found.path}: {found.name(name)!r} ({name}) holds values that are NaN or infinite")
    return torch.from_numpy(np.ascontiguousarray(values.astype(np.result_type(values.dtype, np.complex64))))
