"""Positions of elements from acoular's XML, CSV and TOML."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from risfast.errors import FileFormatError
from risfast.io.guard import Array, parsing, read_whole

POSITION_SUFFIXES = (".xml", ".csv", ".txt", ".toml")


def read_positions(path: str | Path) -> Array:
    """Read the positions of the elements of an array.

    Parameters
    ----------
    path : str or Path
        ``.xml`` as acoular's ``MicGeom`` writes it (``<pos Name= x= y= z=/>``); ``.csv`` or ``.txt`` with x, y, z on
        each line, apart by commas, semicolons, tabs or blanks, a heading and lines with # skipped; or ``.toml`` as
        :func:`risfast.io.read_setup` reads it.

    Returns
    -------
    float64 array, shape (N, 3), metres

    Raises
    ------
    FileFormatError
        The file is missing, empty, damaged, of another format, or a line or element does not hold three numbers.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in POSITION_SUFFIXES:
        raise FileFormatError(f"{path}: positions are read from {', '.join(POSITION_SUFFIXES)}, not {suffix!r}")
    if suffix == ".toml":
        from risfast.io.setup_file import read_setup_parts  # noqa: PLC0415  (such files may name a table of positions)

        return read_setup_parts(path).array.positions_m.numpy()
    return read_table(path)


def read_table(path: Path) -> Array:
    """Positions (N, 3) in metres from acoular's XML, or else from lines of x, y and z; see :func:`read_positions`."""
    content = read_whole(path, "list of positions")
    rows = (_from_xml if path.suffix.lower() == ".xml" else _from_table)(path, content)
    if not rows:
        raise FileFormatError(f"{path}: there are no positions in it; expected x, y and z in metres of each element")
    return np.array(rows, dtype=np.float64)


def _number(text: str | None) -> float:
    """NaN for what is not there, or is no finite number."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _from_xml(path: Path, content: bytes) -> list[list[float]]:
    """With entities refused, so that a small file cannot grow, and nothing outside it is fetched."""
    rows: list[list[float]] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag != "pos":
            return
        values = [_number(attributes.get(axis)) for axis in "xyz"]
        if any(map(math.isnan, values)):
            given = ", ".join(f"{key}={value!r}" for key, value in attributes.items())
            raise FileFormatError(
                f"{path}: <pos> number {len(rows)} must have x, y and z as numbers of metres, found {given or 'none'}"
            )
        rows.append(values)

    def refuse(*_: Any) -> int:
        raise FileFormatError(f"{path}: it declares entities, which a list of positions does not need; remove them")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    with parsing(path, "XML"):
        parser.Parse(content, True)
    return rows


def _from_table(path: Path, content: bytes) -> list[list[float]]:
    rows: list[list[float]] = []
    heading_allowed = True
    with parsing(path, "a table"):
        for number, line in enumerate(content.decode("utf-8-sig").splitlines(), start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            delimiter = next((mark for mark in ";,\t" if mark in text), None)
            cells = next(csv.reader([text], delimiter=delimiter)) if delimiter else text.split()
            values = [_number(cell.strip()) for cell in cells]
            heading, heading_allowed = heading_allowed and all(map(math.isnan, values)), False
            if heading:
                continue
            if len(values) != 3 or any(map(math.isnan, values)):
                raise FileFormatError(
                    f"{path}: line {number} must hold x, y, z in metres, found {text[:80]!r}"
                    + ("; write decimal points, not commas" if delimiter == ";" and "," in text else "")
                )
            rows.append(values)
    return rows
