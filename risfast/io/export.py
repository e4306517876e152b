"""Results, covariances and spectra as files that others read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from risfast.errors import FileFormatError, ShapeError
from risfast.geometry import SearchGrid
from risfast.io.assemble import layout
from risfast.io.durable import finite_json, replace_file, replacing
from risfast.io.guard import HELD_BYTES, megabytes, need
from risfast.io.recording import Recording
from risfast.io.setup_file import SETUP_VARIABLE, setup_bytes
from risfast.setup import Setup

if TYPE_CHECKING:
    from risfast.io.results import SceneDetails
    from risfast.sources import Sources

RESULT_SUFFIXES = (".json", ".csv", ".parquet", ".mat")
RECORDING_SUFFIXES = (".h5", ".hdf5", ".npz", ".mat")

COLUMNS: dict[str, type] = {
    "scene": np.int64,
    "source": np.int64,
    "azimuth_deg": float,
    "elevation_deg": float,
    "range_m": float,
    "x_m": float,
    "y_m": float,
    "z_m": float,
    "power_db": float,
    "confidence": float,
    "prominence_db": float,
    "at_edge": bool,
}


def source_rows(scenes: Sequence[Sources]) -> list[dict[str, Any]]:
    """One flat record per source for people, in degrees, metres and dB.

    Parameters
    ----------
    scenes : sequence of Sources
        One per measurement.

    Returns
    -------
    list of dict
        Keys scene, source (both from 0), azimuth_deg, elevation_deg, range_m (NaN where it is not determined), x_m,
        y_m, z_m (NaN with it), power_db (10 log10 of the linear power), confidence, prominence_db (both NaN where there
        is none), at_edge.
    """
    return [
        {
            "scene": scene,
            "source": index,
            "azimuth_deg": math.degrees(float(found.azimuth[index])),
            "elevation_deg": math.degrees(float(found.elevation[index])),
            "range_m": float(found.range[index]),
            **dict(zip(("x_m", "y_m", "z_m"), xyz[index], strict=True)),
            "power_db": 10 * math.log10(power) if (power := float(found.power[index])) > 0 else -math.inf,
            "confidence": float(found.confidence[index]),
            "prominence_db": float(found.prominence_db[index]),
            "at_edge": bool(found.at_edge[index]),
        }
        for scene, found in enumerate(scenes)
        for xyz in [found.xyz_m.tolist()]
        for index in range(len(found))
    ]


def write_results(
    path: str | Path,
    scenes: Sequence[Sources],
    setup: Setup | None = None,
    details: Sequence[SceneDetails] = (),
) -> None:
    """Write sources, one record each.

    Parameters
    ----------
    path : str or Path
        ``.json``, ``scenes`` with a list of records for each; ``.csv``, one line a record; ``.parquet`` (needs
        pyarrow), a table with typed columns; ``.mat`` (version 5) with a variable per column, all (K, 1) doubles, and
        ``n_scenes``. The columns are scene and source (from 0), azimuth_deg, elevation_deg, range_m, x_m, y_m,
        z_m, power_db, confidence, prominence_db, at_edge. A range that the data do not determine (nor x, y and z
        with it), or a confidence that there is not, is null in .json, empty in .csv and NaN in the others.
    scenes : sequence of Sources
        One per measurement. A scene without sources is an empty list in .json, and has no record in the others.
    setup : Setup, optional
        What they were found under: ``setup`` in .json, in the metadata of .parquet and, as text of JSON, in .mat.
    details : sequence of SceneDetails
        Of the first scenes, maps, range profiles and position covariances for ``risfast show``; only .json holds them.

    Raises
    ------
    FileFormatError
        The name ends in something else, or pyarrow is not installed.
    OSError
        The file cannot be written; what was there before is still there.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in RESULT_SUFFIXES:
        raise FileFormatError(f"{path}: results are written as {', '.join(RESULT_SUFFIXES)}")
    rows, described = source_rows(scenes), {} if setup is None else {"setup": setup.to_json()}
    if suffix == ".json":
        by_scene: list[list[dict[str, Any]]] = [[] for _ in scenes]
        for row in rows:
            by_scene[row["scene"]].append(row)
        more = {"details": [one.to_json() for one in details]} if details else {}
        text = json.dumps(finite_json({**described, "scenes": by_scene, **more}), indent=2, allow_nan=False)
        replace_file(path, f"{text}\n".encode())
    elif suffix == ".csv":
        replace_file(path, _csv(rows))
    else:
        columns: dict[str, Any] = {name: np.array([row[name] for row in rows], kind) for name, kind in COLUMNS.items()}
        texts = {name: json.dumps(value, allow_nan=False) for name, value in described.items()}
        if suffix == ".parquet":
            _write_parquet(path, columns, {"n_scenes": str(len(scenes)), "writer": "risfast", **texts})
            return
        variables: dict[str, Any] = {name: values.astype(float)[:, None] for name, values in columns.items()}
        _write_mat(path, {**variables, "n_scenes": float(len(scenes)), **texts})


def _csv(rows: list[dict[str, Any]]) -> bytes:
    """At the edge is 0 or 1, and what is not finite is left empty, as spreadsheets and numpy read it."""
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, list(COLUMNS))
    writer.writeheader()
    writer.writerows({**finite_json(row), "at_edge": int(row["at_edge"])} for row in rows)
    return sink.getvalue().encode()


def _write_parquet(path: Path, columns: dict[str, Any], metadata: dict[str, str]) -> None:
    arrow = need("pyarrow", "writing .parquet", "parquet")
    parquet = need("pyarrow.parquet", "writing .parquet", "parquet")
    sink = io.BytesIO()
    parquet.write_table(arrow.table(columns).replace_schema_metadata(metadata), sink)
    replace_file(path, sink.getvalue())


def _write_mat(path: Path, variables: dict[str, Any]) -> None:
    from scipy.io import savemat  # noqa: PLC0415  (slow to import)

    sink = io.BytesIO()
    savemat(sink, variables, do_compression=True)
    replace_file(path, sink.getvalue())


def write_recording(path: str | Path, recording: Recording) -> None:
    """Write a recording so that :func:`risfast.simulate.read`, MATLAB, numpy or h5py can read it.

    Parameters
    ----------
    path : str or Path
        ``.h5`` holds everything, of any size: snapshots are copied in blocks, and the provenance is an attribute.
        ``.npz``, or ``.mat`` (version 5; ``load`` in MATLAB gives ``covariance`` (N, N), or (N, N, B) with pages last,
        ``positions_m`` (N, 3), ``wavelength_m`` and so on) hold what fits into memory; several bands are not for
        .mat.
    recording : Recording
        Its fields become variables of the same name; B = 1 is written as a plain (N, N) matrix, or (L, M) snapshots.
        Its setup becomes ``risfast_setup``, the bytes of JSON (``jsondecode(char(risfast_setup))`` in MATLAB).

    Raises
    ------
    FileFormatError
        The name ends in something else, or snapshots or several bands do not fit into the format.
    OSError
        The file cannot be written; what was there before is still there.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in RECORDING_SUFFIXES:
        raise FileFormatError(f"{path}: a recording is written as {', '.join(RECORDING_SUFFIXES)}")
    if recording.n_bands > 1 and suffix == ".mat":
        raise FileFormatError(f"{path}: covariances of {recording.n_bands} bands are written as .h5 or .npz")
    snapshots = recording.snapshots
    variables = _variables(recording)
    if suffix in (".h5", ".hdf5"):
        with replacing(path) as beside:
            _write_hdf5(beside, variables, recording)
        return
    if snapshots is not None:
        size = len(snapshots) * snapshots.shape[1] * snapshots.dtype.itemsize
        if size > HELD_BYTES:
            raise FileFormatError(f"{path}: {megabytes(size)} of snapshots are written as .h5 only")
        values = snapshots.read().numpy()
        variables["snapshots"] = values.reshape(_snapshot_shape(recording, *values.shape))
    if suffix == ".npz":
        sink = io.BytesIO()
        np.savez(sink, **variables)
        replace_file(path, sink.getvalue())
        return
    _write_mat(path, _pages_last(path, variables, recording.n_elements))


def _snapshot_shape(recording: Recording, rows: int, columns: int) -> tuple[int, ...]:
    scenes = recording.scenes
    return (rows, columns) if scenes == 1 else (scenes, rows // scenes, columns)


def _pages_last(path: Path, variables: dict[str, Any], n_elements: int) -> dict[str, Any]:
    """As MATLAB users expect a batch; refused where it could be read the other way round."""
    given: list[str] = [name for name in ("covariance", "snapshots", "codes", "channel") if name in variables]
    batches = [name for name in given if variables[name].ndim == 3]
    turned = dict(variables)
    for name in batches:
        turned[name] = np.moveaxis(variables[name], 0, -1)
    mistaken = "covariance" in batches and turned["covariance"].shape[2] == n_elements
    if "snapshots" in batches:
        shapes = {name: turned[name].shape for name in given}
        mistaken = layout(shapes, n_elements, pages_last=True) != (-1, dict.fromkeys(shapes, False))
    if mistaken:
        raise FileFormatError(
            f"{path}: batches of these sizes cannot be told from their transpose in .mat; write .h5 or .npz"
        )
    return turned


def _variables(recording: Recording) -> dict[str, Any]:
    """Everything but snapshots, as arrays."""
    variables: dict[str, Any] = {
        "positions_m": recording.array.positions_m.numpy(),
        "wavelength_m": recording.array.wavelength_m,
    }
    if recording.covariance is not None:
        covariance = recording.covariance.numpy()
        one = len(covariance) == 1 and recording.n_bands == 1
        variables["covariance"] = covariance[0] if one else covariance
    if recording.effective_snapshots is not None:
        variables["effective_snapshots"] = np.array(recording.effective_snapshots)
    if recording.n_bands > 1:
        del variables["wavelength_m"]
        variables["wavelengths_m"] = np.array(recording.wavelengths_m)
        if recording.frequencies_hz is not None:
            variables["frequencies_hz"] = np.array(recording.frequencies_hz)
    for name in ("codes", "channel"):
        values = getattr(recording, name)
        if values is not None:
            variables[name] = values.reshape(values.shape[-2:]).numpy() if recording.scenes == 1 else values.numpy()
    for name in ("frequency_hz", "speed_m_s"):
        if getattr(recording, name) is not None:
            variables[name] = getattr(recording, name)
    try:
        setup: Setup | None = recording.setup
    except ValueError:  # nobody gave one and none can be derived, as for a plane that is tilted in elevation
        setup = recording.given
    if setup is not None:
        variables[SETUP_VARIABLE] = setup_bytes(setup)
    return variables


def _write_hdf5(path: Path, variables: dict[str, Any], recording: Recording) -> None:
    import h5py  # noqa: PLC0415  (a heavy import that few need)

    with h5py.File(path, "w") as file:
        for name, values in variables.items():
            file[name] = values
        for name in ("positions_m", "wavelength_m", "wavelengths_m"):
            if name in file:
                file[name].attrs["units"] = "m"
        described = {**asdict(recording.provenance), "flagged": [astuple(item) for item in recording.flagged]}
        file.attrs["provenance"] = json.dumps(described)
        snapshots = recording.snapshots
        if snapshots is not None:
            shape = _snapshot_shape(recording, *snapshots.shape)
            target = file.create_dataset("snapshots", shape, snapshots.dtype)
            start = 0
            for block in snapshots.blocks(multiple_of=math.prod(shape[1:-1])):  # rows, or whole scenes
                part = block.numpy().reshape(-1, *shape[1:])
                target[start : start + len(part)] = part
                start += len(part)


def write_spectrum(
    path: str | Path, power: Tensor, grid: SearchGrid, *, plane: Tensor | None = None, name: str = "power"
) -> None:
    """Write a spectrum as HDF5 with its axes as dimension scales, in their units.

    Parameters
    ----------
    path : str or Path
        Ends in ``.h5`` or ``.hdf5``.
    power : real tensor, shape (B, G_az, G_el) or (B, G_az, G_el, G_r)
        Linear power; a single scene may come without B.
    grid : SearchGrid
    plane : integer tensor, shape (B, G_az, G_el), optional
        Index of the winning range plane of a map; its range is written beside it as ``range_of_maximum``.
    name : str
        Of the dataset.

    Raises
    ------
    FileFormatError
        The name ends in something else.
    ShapeError
        ``power`` or ``plane`` does not belong to the grid.
    OSError
        The file cannot be written; what was there before is still there.

    Notes
    -----
    Datasets ``azimuth`` and ``elevation`` in degrees, ``range`` in metres, ``power`` (attribute units = "1", linear)
    with its axes labelled scene, azimuth, elevation and range. MATLAB's ``h5read`` shows the axes in reverse order.
    """
    import h5py  # noqa: PLC0415

    path = Path(path)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise FileFormatError(f"{path}: a spectrum is written as .h5 or .hdf5")
    values = power.detach().cpu()
    flat, full = grid.shape[:2], grid.shape
    if tuple(values.shape) in (flat, full):
        values = values[None]
    if tuple(values.shape[1:]) not in (flat, full):
        raise ShapeError(f"power must be (B, {flat[0]}, {flat[1]}) or with {full[2]} ranges, got {tuple(power.shape)}")
    if plane is not None and tuple(plane.reshape(-1, *flat).shape) != (len(values), *flat):
        raise ShapeError(f"plane must be {(len(values), *flat)}, got {tuple(plane.shape)}")
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        axes = (grid.azimuth_rad.rad2deg(), grid.elevation_rad.rad2deg(), grid.range_m)
        for label, axis, units in zip(("azimuth", "elevation", "range"), axes, ("deg", "deg", "m"), strict=True):
            file[label] = axis.numpy()
            file[label].attrs["units"] = units
            file[label].make_scale(label)
        _labelled(file, name, values.numpy(), "1")
        if plane is not None:
            ranges = grid.range_m[plane.reshape(-1, *flat).long().cpu()]
            _labelled(file, "range_of_maximum", ranges.numpy(), "m")
    replace_file(path, sink.getvalue())


def _labelled(file: Any, name: str, values: Any, units: str) -> None:
    dataset = file.create_dataset(name, data=values, compression="gzip", shuffle=True)
    dataset.attrs["units"] = units
    dataset.dims[0].label = "scene"
    for axis, label in enumerate(("azimuth", "elevation", "range")[: values.ndim - 1], start=1):
        dataset.dims[axis].label = label
        dataset.dims[axis].attach_scale(file[label])
    if math.prod(values.shape):
        dataset.attrs["maximum"] = float(values.max())
