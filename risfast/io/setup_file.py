"""Setups as TOML files, in metres and degrees, and as bytes of JSON inside files of measurements."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from risfast.errors import FileFormatError
from risfast.geometry import Region, SensorArray
from risfast.io.durable import replace_file
from risfast.io.guard import Array, inside, load_toml, naming, short_text
from risfast.io.positions import read_table
from risfast.setup import Sampling, Setup, Tolerance, array_to_json, check_elements
from risfast.steering import WAVEFRONTS, Wavefront

SETUP_FILE_FORMAT = 1

_TOP_KEYS = ("format", "wavefront", "sampling", "speed_m_s", "gains", "array", "region", "tolerance")
_ANGLES = {"azimuth_deg": 360.0, "elevation_deg": 90.0}
_BOX = ("x_m", "y_m", "z_m")
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
_EXACT_DIGITS = 17  # a number with more digits than a double needs is converted to radians from its digits


@dataclass(frozen=True)
class SetupParts:
    """What a setup file says; None is what it leaves out."""

    array: SensorArray
    region: Region | None = None  # As in :class:`risfast.setup.Setup`, or None
    wavefront: Wavefront | None = None  # As in :class:`risfast.setup.Setup`, or None
    sampling: Sampling | None = None  # As in :class:`risfast.setup.Setup`, or None
    speed_m_s: float | None = None  # As in :class:`risfast.setup.Setup`, or None
    tolerance: Tolerance | None = None  # As in :class:`risfast.setup.Setup`, or None
    wavelengths_m: tuple[float, ...] | None = None  # Of several bands
    gains: tuple[complex, ...] | None = None  # As in :class:`risfast.setup.Setup`, or None

    def setup(self, **changes: Any) -> Setup:
        """The setup, with some fields in place of the file's; what is left out takes the defaults of a setup."""
        given = {field.name: getattr(self, field.name) for field in fields(self)} | changes
        return Setup(**{name: value for name, value in given.items() if value is not None})


def read_setup(path: str | Path) -> Setup:
    """Read a setup from a TOML file.

    Parameters
    ----------
    path : str or Path
        Lengths in metres, angles in degrees. Only ``format`` and ``[array]`` must be there::

            format = 1
            wavefront = "spherical"         # "fresnel", "planar"
            sampling = "surface"            # "direct": the array is sampled itself
            speed_m_s = 299792458.0
            gains = [[1.0, 0.0], [0.9, 0.1]]  # [real, imaginary] of each element, as a calibration found it; not above

            [array]
            wavelength_m = 0.3              # or frequency_hz, with speed_m_s above; several bands of an array that is
                                            # sampled itself: wavelengths_m = [0.3, 0.28] or frequencies_hz = [...]

            [array.rectangular]             # centred on the origin, in the x-y plane
            n_h = 12
            n_v = 12
            spacing_m = 0.15

            [region]                        # what is left out is derived from the array
            azimuth_deg = [-60.0, 60.0]
            elevation_deg = [-30.0, 30.0]
            range_m = [0.5, inf]
            # or a box: x_m = [-2.0, 2.0], y_m = [-1.0, 1.5], z_m = [0.5, 6.0]

            [tolerance]                     # of a hit
            azimuth_deg = 5.0
            elevation_deg = 5.0
            range_m = 1.0

        In place of ``[array.rectangular]``: ``[array.linear]`` with n and spacing_m along x, ``[array.circular]`` with
        n, radius_m and plane = "xz", "xy" or "yz", or in ``[array]`` itself ``positions_m = [[x, y, z], ...]`` or
        ``positions_file = "elements.csv"`` (x, y, z on each line; beside the TOML file unless absolute).

        The ``array.toml`` of earlier versions, without ``format``, is read too.

    Returns
    -------
    Setup
        Its elements are in the order of the file; measurements must have the same order.

    Raises
    ------
    FileFormatError
        The file is missing, empty, not TOML, of another format, or holds an unknown, missing or wrong key.
    """
    parts = read_setup_parts(path)
    with naming(Path(path), "a setup"):
        try:
            return parts.setup()
        except ValueError as error:
            where = "; it stands in the table [region]" if "region" in str(error) else ""
            raise FileFormatError(f"{path}: {error}{where}") from error


def read_setup_parts(path: str | Path) -> SetupParts:
    """What a setup file says, and what it does not; see :func:`read_setup` for the format and the errors."""
    path = Path(path)
    with naming(path, "a setup"):
        return _parts_of(path, load_toml(path, "setup", _Written))


def _parts_of(path: Path, values: dict[str, Any]) -> SetupParts:
    document = _Table(path, "", values)
    if "format" not in values and "array" not in values:
        return SetupParts(_old_array(document))
    found = values.get("format")
    if found is None:
        raise document.wrong(f"the key format is missing; put format = {SETUP_FILE_FORMAT} in its first line")
    if found != SETUP_FILE_FORMAT or isinstance(found, bool):
        raise document.wrong(
            f"format {found!r}, and this version reads {SETUP_FILE_FORMAT}; read it with the risfast that wrote it, or "
            "write it again"
        )
    document.refuse_unknown(_TOP_KEYS)
    speed = document.positive("speed_m_s", "metres per second") if "speed_m_s" in values else None
    table = document.table("array")
    bands = _bands(table, speed)
    array = _array(table, speed, bands)
    return SetupParts(
        array,
        _region(document.table("region"), array) if "region" in values else None,
        document.choice("wavefront", WAVEFRONTS) if "wavefront" in values else None,
        document.choice("sampling", get_args(Sampling)) if "sampling" in values else None,
        speed,
        _tolerance(document, array) if "tolerance" in values else None,
        bands if bands is not None and len(bands) > 1 else None,
        _gains(document) if "gains" in values else None,
    )


def write_setup(path: str | Path, setup: Setup) -> None:
    """Write a setup so that :func:`read_setup` gives an equal one, to the last bit.

    Parameters
    ----------
    path : str or Path
        Ends in .toml; an existing file is replaced.
    setup : Setup

    Raises
    ------
    FileFormatError
        The name ends in something else.
    OSError
        The file cannot be written; what was there before is still there.

    Notes
    -----
    Angles are the shortest number of degrees that is read as the same radians. Where no double is (there are more
    radians than degrees among them), they have the further digits that decide it.
    """
    path = Path(path)
    if path.suffix.lower() != ".toml":
        raise FileFormatError(f"{path}: a setup is written as .toml")
    array = array_to_json(setup.array)
    region, tolerance = setup.region, setup.tolerance
    lines = [
        "# A setup of risfast: lengths in metres, angles in degrees.",
        f"format = {SETUP_FILE_FORMAT}",
        f'wavefront = "{setup.wavefront}"',
        f'sampling = "{setup.sampling}"',
        *([] if setup.speed_m_s is None else [f"speed_m_s = {float(setup.speed_m_s)!r}"]),
    ]
    if setup.gains is not None:
        lines += ["gains = [", *(f"    [{gain.real!r}, {gain.imag!r}]," for gain in setup.gains), "]"]
    wavelength = array.pop("wavelength_m")
    bands = setup.n_bands > 1
    lines += [
        "",
        "[array]",
        f"wavelengths_m = {list(setup.wavelengths_m)!r}" if bands else f"wavelength_m = {wavelength!r}",
    ]
    if "positions_m" in array:
        lines += ["positions_m = [", *(f"    {row!r}," for row in array["positions_m"]), "]"]
    else:
        lines += ["", "[array.rectangular]", *(f"{name} = {value!r}" for name, value in array.items())]
    lines += [
        "",
        "[region]",
        f"azimuth_deg = [{', '.join(map(_degrees, region.azimuth_rad))}]",
        f"elevation_deg = [{', '.join(map(_degrees, region.elevation_rad))}]",
        f"range_m = {list(region.range_m)!r}",
        *(f"{key} = {list(side)!r}" for key, side in zip(_BOX, region.box or (), strict=False)),
        "",
        "[tolerance]",
        f"azimuth_deg = {_degrees(tolerance.azimuth_rad)}",
        f"elevation_deg = {_degrees(tolerance.elevation_rad)}",
        f"range_m = {float(tolerance.range_m)!r}",
    ]
    replace_file(path, ("\n".join(lines) + "\n").encode())


class _Written(float):
    """A number of a TOML file that remembers its digits."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> _Written:
        """Parse."""
        self = super().__new__(cls, text)
        self.text = text
        return self

    def __repr__(self) -> str:
        """As in the file."""
        return self.text


def _radians(value: float) -> float:
    """Radians of degrees: ``math.radians``, unless the number has digits that a double cannot hold."""
    if not isinstance(value, _Written) or not math.isfinite(value):
        return math.radians(value)
    exact = Decimal(value.text)
    if len(exact.normalize().as_tuple().digits) <= _EXACT_DIGITS:
        return math.radians(value)
    with localcontext() as context:
        context.prec = 50
        return float(exact * _PI / 180)


def _degrees(radians: float) -> str:
    """The shortest number of degrees, as written, that :func:`_radians` turns back into the very same radians."""
    near = math.degrees(radians)
    rounded = [round(near, digits) for digits in range(16)]
    for value in (*rounded, near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf)):
        if math.radians(value) == radians:
            return repr(value)
    with localcontext() as context:
        for context.prec in range(_EXACT_DIGITS + 1, 50):
            exact = str(Decimal(radians) * 180 / _PI)
            if _radians(_Written(exact)) == radians:
                return exact
    raise AssertionError(f"no degrees for {radians!r}")  # fifty digits are three times those of a double


@dataclass(frozen=True)
class _Table:
    """A table of the file, and the sentences about what is wrong in it."""

    path: Path
    name: str
    values: dict[str, Any]

    def wrong(self, text: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {text}")

    @property
    def where(self) -> str:
        return f" in [{self.name}]" if self.name else ""

    def refuse_unknown(self, known: Sequence[str], mends: dict[str, str] | None = None) -> None:
        for key in self.values:
            if key in known:
                continue
            near = difflib.get_close_matches(key, known, n=1)
            mend = f"; did you mean {near[0]}?" if near else ""
            mend = (mends or {}).get(key, mend)
            raise self.wrong(f"unknown key {key!r}{self.where}{mend}; known keys are {', '.join(known)}")

    def need(self, key: str) -> Any:
        if key not in self.values:
            raise self.wrong(f"the key {key} is missing{self.where}")
        return self.values[key]

    def table(self, key: str) -> _Table:
        value = self.need(key)
        name = self.under(key)
        if not isinstance(value, dict):
            raise self.wrong(f"{name} must be a table, a line [{name}], got {value!r}")
        return _Table(self.path, name, value)

    def positive(self, key: str, unit: str = "metres") -> float:
        value = self.need(key)
        if not _is_number(value) or value <= 0:
            raise self.wrong(f"{key}{self.where} must be a positive number of {unit}, got {value!r}")
        return float(value)

    def whole(self, key: str) -> int:
        value = self.need(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(f"{key}{self.where} must be a whole number >= 1, got {value!r}")
        return value

    def choice(self, key: str, among: Sequence[str]) -> Any:
        value = self.need(key)
        if value not in among:
            raise self.wrong(f"{key}{self.where} must be one of {', '.join(among)}; got {value!r}")
        return value

    def plane(self, key: str) -> Any:
        return self.choice(key, ("xz", "xy", "yz")) if key in self.values else "xz"

    def under(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_form(table: _Table, forms: Sequence[str]) -> str:
    given = [form for form in forms if form in table.values]
    if len(given) != 1:
        names = ", ".join(form if form.startswith("positions") else f"[{table.under(form)}]" for form in forms)
        raise table.wrong(f"give exactly one of {names}; got {' and '.join(given) or 'none of them'}")
    return given[0]


_SHAPES: dict[str, dict[str, Callable[[_Table, str], Any]]] = {
    "rectangular": {"n_h": _Table.whole, "n_v": _Table.whole, "spacing_m": _Table.positive},
    "linear": {"n": _Table.whole, "spacing_m": _Table.positive},
    "circular": {"n": _Table.whole, "radius_m": _Table.positive, "plane": _Table.plane},
}
_FORMS = (*_SHAPES, "positions_m", "positions_file")
_WAVES = ("wavelength_m", "frequency_hz", "wavelengths_m", "frequencies_hz")
_OLD_FORMS = ("rectangular", "positions_m", "positions_file")


def _gains(document: _Table) -> tuple[complex, ...]:
    pairs = document.values["gains"]
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)) for pair in pairs
    ):
        raise document.wrong(f"gains must be a list of [real, imaginary], one pair for each element, got {pairs!r:.80}")
    return tuple(complex(*pair) for pair in pairs)


def _bands(table: _Table, speed: float | None) -> tuple[float, ...] | None:
    """Wavelengths of several bands; None where [array] gives one."""
    key = next((key for key in ("wavelengths_m", "frequencies_hz") if key in table.values), None)
    if key is None:
        return None
    both = [name for name in _WAVES if name in table.values]
    if len(both) > 1:
        raise table.wrong(f"{' and '.join(both)} are both there in [array]; give one of them")
    values = table.values[key]
    if not isinstance(values, list) or not values or not all(_is_number(value) and value > 0 for value in values):
        raise table.wrong(f"{key}{table.where} must be a list of positive numbers, got {values!r:.80}")
    if key == "wavelengths_m":
        return tuple(map(float, values))
    return tuple(_known_speed(table, key, speed) / value for value in values)


def _array(table: _Table, speed: float | None, bands: Sequence[float] | None) -> SensorArray:
    table.refuse_unknown((*_FORMS, *_WAVES))
    form = _one_form(table, _FORMS)
    wavelength = _wavelength(table, speed) if bands is None else min(bands)
    if form not in _SHAPES:
        return _positions(table, form, wavelength)
    inside = table.table(form)
    outside = dict.fromkeys(_WAVES, "; it stands in [array], above the line [array.*]")
    inside.refuse_unknown(tuple(_SHAPES[form]), outside)
    return _shaped(inside, form, wavelength)


def _shaped(inside: _Table, form: str, wavelength: float) -> SensorArray:
    given = {key: read(inside, key) for key, read in _SHAPES[form].items()}
    check_elements(*given.values())
    array: SensorArray = getattr(SensorArray, form)(**given, wavelength_m=wavelength)
    return array


def _wavelength(table: _Table, speed: float | None) -> float:
    both = [key for key in ("wavelength_m", "frequency_hz") if key in table.values]
    if len(both) > 1:
        raise table.wrong("wavelength_m and frequency_hz are both there in [array]; give one of them")
    if both != ["frequency_hz"]:
        return table.positive("wavelength_m")
    frequency = table.positive("frequency_hz", "hertz")
    return _known_speed(table, "frequency_hz", speed) / frequency


def _known_speed(table: _Table, key: str, speed: float | None) -> float:
    if speed is None:
        raise table.wrong(
            f"{key} in [array] needs speed_m_s, the speed of the waves, in front of the tables (299792458 for radio "
            "waves, 343 for sound in air)"
        )
    return speed


def _old_array(document: _Table) -> SensorArray:
    """The array of a file without a format, as versions before the setup wrote it."""
    region = "; the region to search stands in [region] of a file with format = 1"
    angles = {
        key: region
        for key in document.values
        if key in ("grid", "region", "azimuth", "elevation", "range") or key.endswith(("_deg", "_rad"))
    }
    document.refuse_unknown((*_OLD_FORMS, "wavelength_m"), angles)
    form = _one_form(document, _OLD_FORMS)
    if form != "rectangular":
        return _positions(document, form, document.positive("wavelength_m"))
    table = document.table("rectangular")
    if "wavelength_m" in document.values:
        raise document.wrong("wavelength_m stands outside [rectangular]; move it below that line")
    table.refuse_unknown(("n_h", "n_v", "spacing_m", "wavelength_m"), angles)
    return _shaped(table, form, table.positive("wavelength_m"))


def _positions(table: _Table, form: str, wavelength: float) -> SensorArray:
    rows = table.values[form]
    if form == "positions_file":
        if not isinstance(rows, str) or not rows:
            raise table.wrong(f"positions_file must be the name of a CSV file, got {rows!r}")
        positions = read_table(inside(table.path.parent, rows))
        check_elements(len(positions))
        return SensorArray(torch.from_numpy(positions), wavelength)
    if not isinstance(rows, list) or not rows:
        raise table.wrong(f"positions_m must be a list of [x, y, z] with at least one element, got {rows!r}")
    check_elements(len(rows))
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 3 or not all(_is_number(value) for value in row):
            raise table.wrong(f"positions_m[{index}] must be [x, y, z] in metres, got {row!r}")
    return SensorArray(torch.tensor(rows, dtype=torch.float64), wavelength)


def _region(table: _Table, array: SensorArray) -> Region:
    """The intervals that are given, and those of the array for the others."""
    table.refuse_unknown((*_ANGLES, "range_m", *_BOX))
    given: dict[str, Any] = {}
    for key, limit in _ANGLES.items():
        if key in table.values:
            low, high = _interval(table, key, f"[lowest, highest] in degrees within +-{limit:g}", -limit, limit)
            given[key.replace("_deg", "_rad")] = (_radians(low), _radians(high))
    if "range_m" in table.values:
        low, high = _interval(table, "range_m", "[nearest, farthest] in metres, above 0; inf is far", 0, math.inf)
        if not 0 < low < math.inf:
            raise table.wrong(f"range_m in [region] must start at a finite range above 0, got [{low!r}, {high!r}]")
        given["range_m"] = (float(low), float(high))
    missing = [name for name in ("azimuth_rad", "elevation_rad", "range_m") if name not in given]
    box = _box(table)
    if box is not None:
        return replace(box, **given)
    try:
        return replace(Region.of(array), **given) if missing else Region(**given)
    except ValueError as error:
        names = ", ".join(name.replace("_rad", "_deg") for name in missing) or "it"
        raise table.wrong(f"[region]: {error}; give {names} in [region]") from error


def _box(table: _Table) -> Region | None:
    """The region of x_m, y_m and z_m; None where they are not there."""
    there = [key for key in _BOX if key in table.values]
    if not there:
        return None
    if len(there) < 3:
        missing = ", ".join(key for key in _BOX if key not in there)
        raise table.wrong(f"a box needs x_m, y_m and z_m in [region]; {missing} is missing")
    inf = math.inf
    try:
        return Region.box_m(*(_interval(table, key, "[lowest, highest] in metres", -inf, inf) for key in _BOX))
    except ValueError as error:
        raise table.wrong(f"[region]: {error}") from error


def _interval(table: _Table, key: str, words: str, lowest: float, highest: float) -> tuple[float, float]:
    pair = table.values[key]
    numbers = isinstance(pair, list) and len(pair) == 2 and all(_is_number(v) or v == math.inf for v in pair)
    if not numbers or not all(lowest <= value <= highest for value in pair):
        raise table.wrong(f"{key} in [region] must be {words}, got {pair!r}")
    if pair[0] > pair[1]:
        raise table.wrong(f"{key} in [region] is inside out: {pair!r}; the lower end comes first")
    return pair[0], pair[1]


def _tolerance(document: _Table, array: SensorArray) -> Tolerance:
    table = document.table("tolerance")
    table.refuse_unknown((*_ANGLES, "range_m"))
    derived = Tolerance.of(array.wavelength_m, document.values.get("wavefront", "spherical"))
    given: dict[str, float] = {}
    for key, limit in (("azimuth_deg", 360.0), ("elevation_deg", 180.0), ("range_m", math.inf)):
        value = table.values.get(key)
        if value is None:
            continue
        if not (_is_number(value) or value == limit == math.inf) or not 0 <= value <= limit:
            metres = "a number of metres, at least 0, or inf"
            words = metres if key == "range_m" else f"a number of degrees from 0 to {limit:g}"
            raise table.wrong(f"{key} in [tolerance] must be {words}, got {value!r}")
        given[key.replace("_deg", "_rad")] = float(value) if key == "range_m" else _radians(value)
    return replace(derived, **given)


SETUP_VARIABLE = "risfast_setup"
"""Name of the variable; ``jsondecode(char(risfast_setup))`` in MATLAB."""


def setup_bytes(setup: Setup) -> Array:
    """JSON of a setup as a uint8 array, shape (length,)."""
    return np.frombuffer(json.dumps(setup.to_json(), allow_nan=False).encode(), np.uint8)


def parse_setup(path: Path, values: Array) -> Setup:
    """The setup of :func:`setup_bytes`, or an error that names the file."""
    if values.dtype != np.uint8:
        raise FileFormatError(f"{path}: {SETUP_VARIABLE!r} must hold the bytes of JSON, found {values.dtype}")
    try:
        description = json.loads(values.tobytes())
        if not isinstance(description, dict):
            raise ValueError(f"it must be an object, found {description!r:.60}")
        return Setup.from_json(description)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RuntimeError) as error:
        raise FileFormatError(
            f"{path}: {SETUP_VARIABLE!r} is no setup of this version ({short_text(error)}); give one with setup=, "
            "which takes its place"
        ) from error
