"""What :func:`risfast.io.write_results` wrote, read back."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError
from risfast.io.guard import need
from risfast.setup import Setup
from risfast.sources import Sources

_NEEDED = ("azimuth_deg", "elevation_deg", "range_m", "power_db")


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
        """

        def tensor(value: Any) -> Tensor:
            if isinstance(value, str):
                return torch.tensor([float(word) for word in value.split()], dtype=torch.float64)
            if value and isinstance(value[0], str):
                return torch.stack([tensor(row) for row in value])
            array = np.array(value, dtype=float)  # None becomes NaN
            return torch.from_numpy(np.where(np.isnan(array), np.inf, array).reshape(-1, 3, 3))

        return cls(**{name: tensor(value) for name, value in values.items()})


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
        ``.json``, ``.csv``, ``.parquet`` (needs pyarrow) or ``.mat``. Only .json holds maps, range profiles and
        position covariances.

    Returns
    -------
    Results
        ``scenes``, one Sources each; ``setup`` and ``details`` where the file holds them.

    Raises
    ------
    FileFormatError
        The file is no file of results, or another ending.
    FileNotFoundError, OSError
        There is no such file, or it cannot be read.
    """
    path = Path(path)
    readers = {".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet, ".mat": _read_mat}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FileFormatError(f"{path}: results are read from {', '.join(readers)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        return reader(path)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise FileFormatError(f"{path}: is no file of results of risfast locate ({error})") from error


def _number(value: Any, missing: float = math.nan) -> float:
    """A number as it stands in the file, where what is not finite is None or empty."""
    return missing if value is None or value == "" else float(value)


def _sources(rows: Sequence[Mapping[str, Any]]) -> Sources:
    """The rows of one scene."""
    missing = [name for name in _NEEDED if rows and name not in rows[0]]
    if missing:
        raise ValueError(f"the column {missing[0]} is missing")
    columns = {name: torch.tensor([_number(row[name]) for row in rows], dtype=torch.float64) for name in _NEEDED}
    for name in ("confidence", "prominence_db"):
        columns[name] = torch.tensor([_number(row.get(name)) for row in rows], dtype=torch.float64)
    return Sources(
        columns["azimuth_deg"].deg2rad(),
        columns["elevation_deg"].deg2rad(),
        columns["range_m"],
        (10 ** (columns["power_db"] / 10)).nan_to_num(0.0),  # -inf dB is written as nothing
        columns["confidence"],
        columns["prominence_db"],
        torch.tensor([bool(int(_number(row.get("at_edge"), 0.0))) for row in rows], dtype=torch.bool),
    )


def _by_scene(rows: Sequence[Mapping[str, Any]], count: int | None, setup: Any) -> Results:
    """Rows of all scenes together; scenes without a row have no sources."""
    scene_of = [int(_number(row["scene"])) for row in rows]
    total = count if count is not None else max(scene_of, default=-1) + 1
    grouped: list[list[Mapping[str, Any]]] = [[] for _ in range(total)]
    for scene, row in zip(scene_of, rows, strict=True):
        grouped[scene].append(row)
    return Results([_sources(own) for own in grouped], _setup(setup))


def _setup(description: Any) -> Setup | None:
    return None if description is None else Setup.from_json(description)


def _read_json(path: Path) -> Results:
    document = json.loads(path.read_text(encoding="utf-8"))
    details = tuple(SceneDetails.from_json(values) for values in document.get("details", ()))
    return Results([_sources(rows) for rows in document["scenes"]], _setup(document.get("setup")), details)


def _read_csv(path: Path) -> Results:
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
        if not set(_NEEDED) <= set(reader.fieldnames or ()):
            raise ValueError(f"its first line must name {', '.join(_NEEDED)}")
    return _by_scene(rows, None, None)


def _read_parquet(path: Path) -> Results:
    parquet = need("pyarrow.parquet", "reading .parquet", "parquet")
    table = parquet.read_table(path)
    said = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    setup = json.loads(said["setup"]) if "setup" in said else None
    return _by_scene(table.to_pylist(), int(said["n_scenes"]), setup)


def _read_mat(path: Path) -> Results:
    from scipy.io import loadmat  # noqa: PLC0415  (slow to import)

    variables = loadmat(path)
    names = [name for name, value in variables.items() if isinstance(value, np.ndarray) and value.shape[1:] == (1,)]
    columns = {name: variables[name][:, 0].tolist() for name in names if variables[name].dtype.kind == "f"}
    length = len(columns["azimuth_deg"])
    rows = [{name: values[row] for name, values in columns.items() if len(values) == length} for row in range(length)]
    setup = json.loads(variables["setup"].item()) if "setup" in variables else None
    return _by_scene(rows, int(variables["n_scenes"].item()), setup)
