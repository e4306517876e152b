"""Arrays as TOML files."""

from __future__ import annotations

import csv
import difflib
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from risfast.errors import FileFormatError
from risfast.files import file_head
from risfast.geometry import PlanarArray

__all__ = ["read_array"]

_FORMS = ("rectangular", "positions_m", "positions_file")
_RECTANGULAR_KEYS = ("n_h", "n_v", "spacing_m", "wavelength_m")


def read_array(path: str | Path) -> PlanarArray:
    """Read an array of elements from a TOML file.

    Parameters
    ----------
    path : str or Path
        Holds one of three forms, all lengths in metres::

            [rectangular]                       # centred on the origin, in the x-y plane
            n_h = 12
            n_v = 12
            spacing_m = 0.15
            wavelength_m = 0.3

            wavelength_m = 0.3
            positions_m = [[0.0, 0.0, 0.0], [0.15, 0.0, 0.0]]

            wavelength_m = 0.3
            positions_file = "elements.csv"     # x, y, z on each line; beside the TOML file unless absolute

    Returns
    -------
    PlanarArray
        Its elements are in the order of the file; the covariance must have the same order.

    Raises
    ------
    FileFormatError
        The file is missing, empty, not TOML, holds none or several of the forms, or an unknown, missing or wrong key.
    """
    path = Path(path)
    file_head(path)
    try:
        with path.open("rb") as stream:
            document = tomllib.load(stream)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: not valid TOML: {error}") from error
    forms = [form for form in _FORMS if form in document]
    _refuse_unknown(document, (*_FORMS, "wavelength_m"), path, "")
    if len(forms) != 1:
        given = " and ".join(forms) if forms else "none of them"
        raise FileFormatError(f"{path}: give exactly one of [rectangular], positions_m, positions_file; got {given}")
    if forms == ["rectangular"]:
        return _rectangular(document, path)
    wavelength = _positive(document, "wavelength_m", path)
    positions = _listed(document["positions_m"], path) if forms == ["positions_m"] else _tabulated(document, path)
    return PlanarArray(torch.tensor(positions, dtype=torch.float64), wavelength)


def _rectangular(document: dict[str, Any], path: Path) -> PlanarArray:
    table = document["rectangular"]
    if not isinstance(table, dict):
        raise FileFormatError(f"{path}: rectangular must be a table, a line [rectangular], got {table!r}")
    if "wavelength_m" in document:
        raise FileFormatError(f"{path}: wavelength_m stands outside [rectangular]; move it below that line")
    _refuse_unknown(table, _RECTANGULAR_KEYS, path, " in [rectangular]")
    n_h, n_v = (_positive(table, key, path, whole=True) for key in ("n_h", "n_v"))
    spacing, wavelength = (_positive(table, key, path) for key in ("spacing_m", "wavelength_m"))
    return PlanarArray.rectangular(int(n_h), int(n_v), spacing, wavelength)


def _refuse_unknown(table: dict[str, Any], known: Sequence[str], path: Path, where: str) -> None:
    for key in table:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1)
        mend = f"; did you mean {near[0]} (lengths are in metres)?" if near else ""
        if key in ("grid", "azimuth", "elevation", "range") or key.endswith(("_deg", "_rad")):
            mend = "; the region to search is set on the command line, see --grid and --azimuth-deg"
        raise FileFormatError(f"{path}: unknown key {key!r}{where}{mend}; known keys are {', '.join(known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(table: dict[str, Any], key: str, path: Path, *, whole: bool = False) -> float:
    if key not in table:
        raise FileFormatError(f"{path}: the key {key} is missing")
    value = table[key]
    if not _is_number(value) or value <= 0 or (whole and not isinstance(value, int)):
        kind = "a whole number >= 1" if whole else "a positive number of metres"
        raise FileFormatError(f"{path}: {key} must be {kind}, got {value!r}")
    return float(value)


def _listed(rows: Any, path: Path) -> list[list[float]]:
    if not isinstance(rows, list) or not rows:
        raise FileFormatError(
            f"{path}: positions_m must be a list of [x, y, z] with at least one element, got {rows!r}"
        )
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 3 or not all(_is_number(value) for value in row):
            raise FileFormatError(f"{path}: positions_m[{index}] must be [x, y, z] in metres, got {row!r}")
    return rows


def _tabulated(document: dict[str, Any], path: Path) -> list[list[float]]:
    """Rows of a CSV file; one heading line and lines that start with # are skipped."""
    given = document["positions_file"]
    if not isinstance(given, str) or not given:
        raise FileFormatError(f"{path}: positions_file must be the name of a CSV file, got {given!r}")
    table = path.parent / given
    file_head(table)
    positions: list[list[float]] = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{table}: not a CSV file: {error}") from error
    heading_allowed = True
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line]
        if not any(cells) or cells[0].startswith("#"):
            continue
        values = [_parsed(cell) for cell in cells]
        if not (heading_allowed and all(value is None for value in values)):
            if len(values) != 3 or not all(_is_number(value) for value in values):
                raise FileFormatError(f"{table}: line {number} must hold x, y, z in metres, got {','.join(line)!r}")
            positions.append([value for value in values if value is not None])
        heading_allowed = False
    if not positions:
        raise FileFormatError(f"{table}: there are no element positions in it; each line holds x, y, z in metres")
    return positions


def _parsed(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
