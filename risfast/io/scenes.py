"""Several scenes in one file: snapshots, codes and channel with a scene axis, first or (in MATLAB's files) last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError
from risfast.io.guard import shape_text
from risfast.io.matrices import as_complex
from risfast.io.recording import Snapshots

if TYPE_CHECKING:
    from risfast.io.fields import Found

__all__ = ["arrange", "layout"]

Array = np.ndarray[Any, np.dtype[Any]]
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


def arrange(found: Found, n_elements: int) -> tuple[int, Snapshots, Tensor | None, Tensor | None]:
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


def _tensor(found: Found, name: str, values: Array | None) -> Tensor | None:
    if values is None:
        return None
    if not np.isfinite(values).all():
        raise FileFormatError(f"{found.path}: {found.name(name)!r} ({name}) holds values that are NaN or infinite")
    return torch.from_numpy(np.ascontiguousarray(values.astype(np.result_type(values.dtype, np.complex64))))
