"""From what a reader found in a file, and what the caller adds, to a checked :class:`Recording`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError
from risfast.geometry import SensorArray
from risfast.io.guard import Array, as_numbers, held_dtype, inventory, naming, shape_text
from risfast.io.positions import read_positions
from risfast.io.recording import Flagged, Provenance, Recording, Snapshots
from risfast.io.setup_file import SetupParts, read_setup_parts
from risfast.io.welch import narrowband_covariance
from risfast.setup import Setup

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
    frequency_hz: float | None = None
    speed_m_s: float | None = None
    sample_rate_hz: float | None = None
    polarization: str | None = None
    block_size: int = 256
    flagged: Iterable[int] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before any file is opened."""
        for name in ("wavelength_m", "speed_m_s", "sample_rate_hz"):
            value = getattr(self, name)
            if value is not None and not (_is_real(value) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.frequency_hz is not None and not (_is_real(self.frequency_hz) and math.isfinite(self.frequency_hz)):
            raise ValueError(f"frequency_hz must be a finite number of hertz, got {self.frequency_hz!r}")
        if self.setup is not None and self.positions_m is not None:
            raise ValueError("give setup (or array) or positions_m, not both")
        flagged = tuple(self.flagged)
        if not all(isinstance(index, int) and index >= 0 for index in flagged):
            raise ValueError(f"flagged must be indices of elements, from 0, got {flagged!r}")
        object.__setattr__(self, "flagged", flagged)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


@dataclass(eq=False)
class FoundData:
    """What a reader found. Positions are (N, 3) in metres, or None; times and covariances still unchecked."""

    path: Path
    format: str  # For people
    holds: Mapping[str, tuple[int, ...]]  # Everything in the file with its shape
    covariance: Array | None = None  # (N, N), (B, N, N), or with pages last
    snapshots: Snapshots | None = None  # Rows of complex samples at one frequency; rows of samples in time
    time_data: Snapshots | None = None  # Rows of complex samples at one frequency; rows of samples in time
    batch: Array | None = None  # Snapshots of several scenes, three axes, in place of ``snapshots``
    sample_rate_hz: float | None = None
    positions_m: Array | None = None
    wavelength_m: float | None = None
    frequency_hz: float | None = None
    chosen: bool = False  # whether frequency_hz is the one of the file's that comes nearest to what was asked for
    speed_m_s: float | None = None
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


def assemble(found: FoundData, options: ReadOptions) -> Recording:
    """Check everything and put it together; see :func:`risfast.simulate.read` for the errors."""
    given = _parts(found, options)
    _check_sampling(found, given)
    positions = _positions(found, options, given)
    own = found.chosen or options.frequency_hz is None
    frequency = found.frequency_hz if own else options.frequency_hz
    covariance = found.covariance
    if found.time_data is not None:
        covariance, frequency = _from_time(found, options, frequency)
    if found.chosen and options.frequency_hz not in (None, frequency):
        found.notes.append(f"{frequency:g} Hz is the nearest frequency in the file to {options.frequency_hz:g} Hz")
    array = SensorArray(torch.from_numpy(positions), _wavelength(found, options, given, frequency))
    n = array.n_elements
    flagged = [flag for flag in found.flagged if flag.index < n]
    scenes, snapshots = 1, None
    if found.batch is not None:
        scenes, snapshots, codes, channel = arrange(found, n)
    else:
        codes, channel = _matrix(found, "codes", array), _matrix(found, "channel", array)
        snapshots = None if found.snapshots is None else _oriented(found, found.snapshots, channel, n)
    matrix = None
    if covariance is not None:
        matrix, dead = _covariance(found, covariance, n, {flag.index for flag in flagged})
        flagged += [Flagged(index, _element_name(found, index), "no power") for index in dead]
    provenance = Provenance(str(found.path), found.format, found.details, tuple(found.notes))
    speed = options.speed_m_s or (given.speed_m_s if given else None) or found.speed_m_s
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        name = found.name("speed_m_s")
        raise FileFormatError(f"{found.path}: {name!r} must be a positive number, found {speed!r}; give speed_m_s")
    with naming(found.path):
        recording = Recording(
            array, matrix, snapshots, codes, channel, frequency, provenance, scenes=scenes, speed_m_s=speed
        )
        if given is not None and given != SetupParts(given.array):  # it says more than the array
            setup = given.setup(array=array, sampling=given.sampling or recording.sampling)
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
        return SetupParts(setup.array, setup.region, setup.wavefront, setup.sampling, setup.speed_m_s, setup.tolerance)
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


def _from_time(found: FoundData, options: ReadOptions, frequency: float | None) -> tuple[Array, float]:
    """Welch's covariance [1, N, N] of samples in time, and its frequency."""
    samples = found.time_data
    assert samples is not None
    rate = options.sample_rate_hz or found.sample_rate_hz
    if rate is None or not (math.isfinite(rate) and rate > 0):
        raise FileFormatError(f"{found.path}: the sample rate is missing or not positive ({rate}); give sample_rate_hz")
    if frequency is None:
        raise FileFormatError(
            f"{found.path}: {found.name('time_data')!r} holds {len(samples)} samples in time of {samples.shape[1]} "
            f"channels at {rate:g} Hz; choose the frequency of the covariance with frequency_hz"
        )
    centre = 0.0 if samples.dtype.kind != "c" else (found.frequency_hz or 0.0)
    matrix, actual, segments = narrowband_covariance(samples, rate, frequency - centre, block_size=options.block_size)
    found.notes.append(f"covariance by Welch at {centre + actual:g} Hz, {segments} segments of {options.block_size}")
    return matrix.numpy()[None], centre + actual


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
    """(B, N, N), checked, and the elements that are dead in all of them."""
    name = found.name("covariance")
    numbers = as_complex(values, found.path, name)
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
    return matrix, [index for index in dead if index not in known]


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
