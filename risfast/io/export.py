"""Results, covariances and spectra as files that others read."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from risfast.durable import replace_file
from risfast.errors import FileFormatError, ShapeError
from risfast.files import source_rows, write_sources
from risfast.geometry import SearchGrid
from risfast.io.guard import HELD_BYTES, megabytes, need
from risfast.io.recording import Recording

if TYPE_CHECKING:
    from risfast.detect import Sources

__all__ = ["RECORDING_SUFFIXES", "RESULT_SUFFIXES", "write_recording", "write_results", "write_spectrum"]

RESULT_SUFFIXES = (".json", ".csv", ".parquet", ".mat")
RECORDING_SUFFIXES = (".h5", ".hdf5", ".npz", ".mat")

_COLUMNS = ("scene", "source", "azimuth_deg", "elevation_deg", "range_m", "power_db", "confidence")
_WHOLE = ("scene", "source")


def write_results(path: str | Path, scenes: Sequence[Sources]) -> None:
    """Write sources, one record each.

    Parameters
    ----------
    path : str or Path
        ``.json`` or ``.csv`` as :func:`risfast.files.write_sources` writes them; ``.parquet`` (needs pyarrow), a table
        with typed columns; ``.mat`` (version 5) with a variable per column, all (K, 1) doubles, and ``n_scenes``. The
        columns are scene and source (from 0), azimuth_deg, elevation_deg, range_m, power_db, confidence.
    scenes : sequence of Sources
        One per covariance.

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
    if suffix in (".json", ".csv"):
        write_sources(path, scenes)
        return
    rows = source_rows(scenes)
    columns = {name: np.array([row[name] for row in rows], np.int64 if name in _WHOLE else float) for name in _COLUMNS}
    if suffix == ".parquet":
        _write_parquet(path, columns, len(scenes))
        return
    variables: dict[str, Any] = {name: values.astype(float)[:, None] for name, values in columns.items()}
    _write_mat(path, {**variables, "n_scenes": float(len(scenes))})


def _write_parquet(path: Path, columns: dict[str, Any], n_scenes: int) -> None:
    arrow = need("pyarrow", "writing .parquet", "parquet")
    parquet = need("pyarrow.parquet", "writing .parquet", "parquet")
    table = arrow.table(columns).replace_schema_metadata({"n_scenes": str(n_scenes), "writer": "risfast"})
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    replace_file(path, sink.getvalue())


def _write_mat(path: Path, variables: dict[str, Any]) -> None:
    from scipy.io import savemat  # noqa: PLC0415  (slow to import)

    sink = io.BytesIO()
    savemat(sink, variables, do_compression=True)
    replace_file(path, sink.getvalue())


def write_recording(path: str | Path, recording: Recording) -> None:
    """Write a recording so that :func:`risfast.data.read`, MATLAB, numpy or h5py can read it.

    Parameters
    ----------
    path : str or Path
        ``.mat`` (version 5; ``load`` in MATLAB gives ``covariance`` (N, N), or (N, N, B) with pages last,
        ``positions_m`` (N, 3), ``wavelength_m`` and so on), ``.npz``, or ``.h5`` (any size; snapshots are copied in
        blocks).
    recording : Recording
        Its fields become variables of the same name; B = 1 is written as a plain (N, N) matrix.

    Raises
    ------
    FileFormatError
        The name ends in something else, or snapshots do not fit into the format.
    OSError
        The file cannot be written; what was there before is still there.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in RECORDING_SUFFIXES:
        raise FileFormatError(f"{path}: a recording is written as {', '.join(RECORDING_SUFFIXES)}")
    snapshots = recording.snapshots
    variables = _variables(recording)
    if suffix in (".h5", ".hdf5"):
        _beside(path, lambda beside: _write_hdf5(beside, variables, recording))
        return
    if snapshots is not None:
        size = len(snapshots) * snapshots.shape[1] * snapshots.dtype.itemsize
        if size > HELD_BYTES:
            raise FileFormatError(f"{path}: {megabytes(size)} of snapshots are written as .h5 only")
        variables["snapshots"] = snapshots.read().numpy()
    if suffix == ".npz":
        sink = io.BytesIO()
        np.savez(sink, **variables)
        replace_file(path, sink.getvalue())
        return
    if variables.get("covariance", np.empty(0)).ndim == 3:
        variables["covariance"] = np.moveaxis(variables["covariance"], 0, -1)
        if variables["covariance"].shape[2] == recording.n_elements:
            raise FileFormatError(
                f"{path}: {recording.n_elements} matrices of as many rows cannot be told from their transpose in .mat; "
                "write .h5 or .npz"
            )
    _write_mat(path, variables)


def _variables(recording: Recording) -> dict[str, Any]:
    """Everything but snapshots, as arrays."""
    variables: dict[str, Any] = {
        "positions_m": recording.array.positions_m.numpy(),
        "wavelength_m": recording.array.wavelength_m,
    }
    if recording.covariance is not None:
        covariance = recording.covariance.numpy()
        variables["covariance"] = covariance[0] if len(covariance) == 1 else covariance
    for name in ("codes", "channel"):
        values = getattr(recording, name)
        if values is not None:
            variables[name] = values.numpy()
    if recording.frequency_hz is not None:
        variables["frequency_hz"] = recording.frequency_hz
    return variables


def _provenance(recording: Recording) -> str:
    source = recording.provenance
    return json.dumps({
        "path": source.path,
        "format": source.format,
        "details": source.details,
        "notes": source.notes,
        "flagged": [[item.index, item.name, item.reason] for item in recording.flagged],
    })  # fmt: skip


def _write_hdf5(path: Path, variables: dict[str, Any], recording: Recording) -> None:
    import h5py  # noqa: PLC0415  (a heavy import that few need)

    with h5py.File(path, "w") as file:
        for name, values in variables.items():
            file[name] = values
        file["positions_m"].attrs["units"] = file["wavelength_m"].attrs["units"] = "m"
        file.attrs["provenance"] = _provenance(recording)
        snapshots = recording.snapshots
        if snapshots is not None:
            target = file.create_dataset("snapshots", snapshots.shape, snapshots.dtype)
            start = 0
            for block in snapshots.blocks():
                target[start : start + len(block)] = block.numpy()
                start += len(block)


def _beside(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file that is too large for memory beside its place, and rename it."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


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
        degrees = [("azimuth", grid.azimuth_rad.rad2deg(), "deg"), ("elevation", grid.elevation_rad.rad2deg(), "deg")]
        axes = [*degrees, ("range", grid.range_m, "m")]
        for label, axis, units in axes:
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
