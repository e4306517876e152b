"""What :func:`risfast.io.write_results` wrote, read back."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from risfast.errors import FileFormatError
from risfast.io.guard import load_json, naming, parsing, read_whole
from risfast.setup import Setup
from risfast.sources import Sources

MOST_SCENES, MOST_SOURCES = 20_000, 200_000  # in one file

_WHAT = "results of risfast locate"
_MEND = "write them again with risfast locate or detect, --output FILE.json or FILE.csv"
_NEEDED = ("azimuth_deg", "elevation_deg", "range_m", "power_db")
_LIMITS: dict[str, tuple[float, float]] = {  # of what may stand in a column, or in a part of the details
    "azimuth_deg": (-360.0, 360.0),
    "elevation_deg": (-360.0, 360.0),
    "range_m": (0.0, 1e12),
    "power_db": (-3000.0, 3000.0),
    "confidence": (0.0, 1.0),
    "prominence_db": (-3000.0, 3000.0),
    "map_db": (-3000.0, 3000.0),
    "profile_db": (-3000.0, 3000.0),
    "position_covariance": (-1e100, 1e100),
}
_MAY_BE_MISSING = {"range_m", "power_db", "confidence", "prominence_db"}


@dataclass(frozen=True, eq=False)
class SceneDetails:
    """What is known of a scene besides its sources; every part may be None.

    Attributes
    ----------
    position_covariance : float64 tensor, shape (K, 3, 3)
        Of (azimuth, elevation, range) in radians and metres.
    azimuth_deg, elevation_deg : float64 tensors, shape (G_az,) and (G_el,)
        Axes of the map.
    map_db : float64 tensor, shape (G_az, G_el)
        Power in dB relative to its maximum.
    range_m : float64 tensor, shape (G_r,)
        Axis of the range profiles.
    profile_db : float64 tensor, shape (K, G_r)
        Power over range in the direction of each source, in dB relative to the maximum of each.
    """

    position_covariance: Tensor | None = None
    azimuth_deg: Tensor | None = None
    elevation_deg: Tensor | None = None
    map_db: Tensor | None = None
    range_m: Tensor | None = None
    profile_db: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """Values of JSON; levels stand in rows of text, to a tenth of a decibel, so that a file stays readable."""
        values: dict[str, Any] = {}
        for name, tensor in vars(self).items():
            if tensor is None:
                continue
            rows = tensor.double().cpu()
            if name == "position_covariance":
                values[name] = rows.tolist()
            else:
                texts = [" ".join(f"{value:.5g}" for value in row) for row in rows.reshape(-1, rows.shape[-1]).tolist()]
                values[name] = texts if rows.ndim == 2 else texts[0]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SceneDetails:
        """What :meth:`to_json` gave; None in place of a number is infinite.

        Parameters
        ----------
        values : mapping

        Returns
        -------
        SceneDetails

        Raises
        ------
        ValueError
            A part that is unknown, not of numbers, out of its limits, or does not fit to another; it is named.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"must be an object, got {values!r:.60}")
        unknown = sorted(values.keys() - vars(cls()).keys())
        if unknown:
            raise ValueError(f"{unknown[0]:.60} is no part of the details; they are {', '.join(vars(cls()))}")
        found = {name: _part(name, value) for name, value in values.items()}
        for name, axes in (("map_db", ("azimuth_deg", "elevation_deg")), ("profile_db", (None, "range_m"))):
            named = [axis for axis in axes if axis is not None]
            there = [part for part in (name, *named) if part in found]
            if there and len(there) <= len(named):
                raise ValueError(f"{', '.join((name, *named))} must come together, only {', '.join(there)} came")
            shape = [None if axis is None else len(found[axis]) for axis in axes] if there else []
            for side, (expected, axis) in enumerate(zip(shape, axes, strict=False)):
                if found[name].ndim != 2 or expected not in (None, found[name].shape[side]):
                    raise ValueError(f"{name} must fit to its axis {axis}, got the shape {tuple(found[name].shape)}")
        return cls(**found)


def _part(name: str, value: Any) -> Tensor:
    """One tensor of the details: the axes from a text, levels from texts, covariances from nested lists."""
    if not value or not isinstance(value, str | list):
        raise ValueError(f"{name} must hold numbers, got {value!r:.60}")
    if name == "position_covariance":
        rows = [row for matrix in value for row in matrix] if all(_is_square(matrix) for matrix in value) else []
        if not rows:
            raise ValueError(f"{name} must hold 3 x 3 numbers for each source, got {value!r:.60}")
        numbers = [math.inf if item is None else _number(name, item) for row in rows for item in row]
        return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 3, 3)
    if name.endswith("_db") != isinstance(value, list) or not all(isinstance(row, str) for row in value):
        raise ValueError(
            f"{name} must be {'texts' if name.endswith('_db') else 'a text'} of numbers, got {value!r:.60}"
        )
    texts = value if isinstance(value, list) else [value]
    levels = [[_number(name, word) for word in row.split()] for row in texts]
    if not levels[0] or len({len(row) for row in levels}) > 1:
        raise ValueError(f"{name} must have rows of one length, at least 1")
    return torch.tensor(levels if isinstance(value, list) else levels[0], dtype=torch.float64)


def _check_sources(details: SceneDetails, count: int) -> None:
    """Refuse details that are of another number of sources."""
    for name in ("position_covariance", "profile_db"):
        part: Tensor | None = getattr(details, name)
        if part is not None and len(part) != count:
            raise ValueError(f"{name} must be of {count} sources as the scene is, got {len(part)}")


def _is_square(matrix: Any) -> bool:
    return (
        isinstance(matrix, list) and len(matrix) == 3 and all(isinstance(row, list) and len(row) == 3 for row in matrix)
    )


@dataclass(frozen=True, eq=False)
class Results:
    """The content of a file of results: sources by scene, the setup and the details where the file holds them."""

    scenes: list[Sources]
    setup: Setup | None = None
    details: tuple[SceneDetails, ...] = ()  # Of the first scenes


def read_results(path: str | Path) -> Results:
    """Sources from a file that :func:`risfast.io.write_results` or ``risfast locate --output`` wrote.

    Parameters
    ----------
    path : str or Path
        ``.json`` or ``.csv``, of at most 16 MB, 20 000 scenes and 200 000 sources. Only .json holds maps, range
        profiles, position covariances, the setup, and scenes without sources behind the last that has some.

    Returns
    -------
    Results
        ``scenes``, one Sources each; ``setup`` and ``details`` where the file holds them.

    Raises
    ------
    FileFormatError
        There is no such file, it is no file of results, or its name ends in something else.
    OSError
        It cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv"):
        raise FileFormatError(f"{path}: results are read from .json and .csv; {_MEND}")
    return _read_json(path) if suffix == ".json" else _read_csv(path)


def _number(name: str, value: Any) -> float:
    """A number as it stands in the file, within the limits of its column; NaN where it may be missing and is."""
    if value in (None, "") and name in _MAY_BE_MISSING:
        return math.nan
    low, high = _LIMITS[name]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r:.60}")
    return number


def _source(row: Mapping[str, Any]) -> list[float]:
    """The columns of one source as :class:`Sources` has them, still in degrees and decibels."""
    missing = [name for name in _NEEDED if name not in row]
    if missing:
        raise ValueError(f"{missing[0]} is missing; {_MEND}")
    at_edge = row.get("at_edge", 0)
    if at_edge not in (False, True, "0", "1"):
        raise ValueError(f"at_edge must be true or false, or 0 or 1 in a .csv, got {at_edge!r:.60}")
    return [*(_number(name, row.get(name)) for name in (*_NEEDED, "confidence", "prominence_db")), float(at_edge)]


def _sources(rows: Sequence[Sequence[float]]) -> Sources:
    """One scene."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)
    azimuth, elevation, r, power, confidence, prominence, at_edge = table.T.contiguous()
    # Minus infinity in dB is written as nothing.
    linear = (10 ** (power / 10)).nan_to_num(0.0)
    return Sources(azimuth.deg2rad(), elevation.deg2rad(), r, linear, confidence, prominence, at_edge.bool())


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Let what is wrong with a value say where it stands."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _check_count(scenes: int, sources: int) -> None:
    if scenes > MOST_SCENES or sources > MOST_SOURCES:
        raise ValueError(
            f"a file may hold {MOST_SCENES} scenes and {MOST_SOURCES} sources, got {scenes} and {sources}; "
            "split it, or read it with another program"
        )


def _read_json(path: Path) -> Results:
    document = load_json(path, _WHAT)
    with naming(path, _WHAT):
        scenes, details = document.get("scenes"), document.get("details", [])
        if not isinstance(scenes, list) or not all(isinstance(rows, list) for rows in scenes):
            raise ValueError(f"scenes must be a list with a list of sources for each, got {scenes!r:.60}; {_MEND}")
        _check_count(len(scenes), sum(map(len, scenes)))
        found = []
        for number, rows in enumerate(scenes):
            values = []
            for index, row in enumerate(rows):
                with _at(f"scenes, {number}, source {index}"):
                    if not isinstance(row, Mapping):
                        raise ValueError(f"must be an object, got {row!r:.60}")
                    values.append(_source(row))
            found.append(_sources(values))
        if not isinstance(details, list) or len(details) > len(scenes):
            raise ValueError(f"details must be a list of at most one for each of {len(scenes)} scenes")
        known = []
        for number, one in enumerate(details):
            with _at(f"details, {number}"):
                known.append(SceneDetails.from_json(one))
                _check_sources(known[-1], len(found[number]))
        setup = document.get("setup")
        return Results(found, None if setup is None else Setup.from_json(setup), tuple(known))


def _read_csv(path: Path) -> Results:
    data = read_whole(path, _WHAT)
    with naming(path, _WHAT):
        reader = _lines(path, data.decode("utf-8"))
        _, names = next(reader, (1, []))
        missing = [name for name in ("scene", *_NEEDED) if name not in names]
        if missing or len(set(names)) < len(names):
            raise ValueError(f"its first line must name {', '.join(('scene', *_NEEDED))}, each once; {_MEND}")
        by_scene: dict[int, list[list[float]]] = {}
        for count, (line, row) in enumerate(reader, 1):
            with _at(f"line {line}"):
                if len(row) != len(names):
                    raise ValueError(f"must have {len(names)} values as the first line has names, got {len(row)}")
                values = dict(zip(names, row, strict=True))
                text = values["scene"].strip()
                if not (text.isascii() and text.isdecimal()) or len(text) > 9:
                    raise ValueError(f"scene must be a whole number from 0, got {values['scene']!r:.60}")
                _check_count(int(text) + 1, count)
                by_scene.setdefault(int(text), []).append(_source(values))
        return Results([_sources(by_scene.get(scene, [])) for scene in range(max(by_scene, default=-1) + 1)])


def _lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Every line that is not empty, with its number."""
    reader = csv.reader(io.StringIO(text, newline=""))
    while True:
        with parsing(path, "a table of sources", f"line {reader.line_num + 1}"):
            row = next(reader, None)
        if row is None:
            return
        if row:
            yield reader.line_num, row
