"""Samples that are in memory, to a :class:`Recording` as a file of them would be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from risfast.errors import ShapeError
from risfast.geometry import SensorArray
from risfast.io.assemble import SPEED_OF_SOUND_M_S, FoundData, ReadOptions, assemble
from risfast.io.bands import MOST_BANDS
from risfast.io.guard import held_dtype
from risfast.io.recording import Recording, Snapshots
from risfast.setup import Setup


def from_samples(
    samples: Any,
    sample_rate_hz: float,
    positions_m: Any = None,
    *,
    frequency_hz: float | Sequence[float] | None = None,
    third_octave: float | Sequence[float] | None = None,
    setup: Setup | SensorArray | str | Path | None = None,
    speed_m_s: float | None = None,
    block_size: int | None = None,
    most_bands: int = MOST_BANDS,
    flagged: Iterable[int] = (),
) -> Recording:
    """Covariances of narrow bands from the samples in time of an array, as :func:`risfast.simulate.read` of a file.

    Parameters
    ----------
    samples : real array or tensor, shape (L, N)
        One row for each instant, one column for each element, in the order of the positions.
    sample_rate_hz : float
    positions_m : array_like (N, 3) or path, optional
        In metres; a path is acoular's XML, CSV or TOML. Or ``setup`` has them.
    frequency_hz : float, list of float or (float, float), optional
        A frequency, a list of them, or as a tuple (low, high) a band with all of its bins.
    third_octave : float or list of float, optional
        Bands by their nominal centre in hertz, in place of ``frequency_hz``.
    setup : Setup, SensorArray or path, optional
        In place of ``positions_m``.
    speed_m_s : float, optional
        Of the waves; by default that of the setup, or 343.
    block_size : int, optional
        Samples of a segment of Welch's method; by default as :func:`risfast.simulate.read` chooses it.
    most_bands : int
        Of a band with more bins than its share of so many, that share is taken, evenly.
    flagged : iterable of int
        Elements to leave out.

    Returns
    -------
    Recording
        With ``covariance``, ``wavelengths_m`` and ``effective_snapshots``; ``provenance.notes`` say what was chosen,
        and what the samples show.

    Raises
    ------
    TypeError
        Samples that are not real numbers: complex snapshots of one narrow band go to a localizer as they are.
    ShapeError
        Samples that are not (L, N), or of another number of elements than there are positions.
    ValueError
        No positions, or no frequency; samples that are not finite, or have no energy in the bands; options that cannot
        be met.
    """
    values = np.asarray(samples)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"samples must be real numbers, samples in time, got {values.dtype}")
    if values.ndim != 2 or not values.size:
        raise ShapeError(f"samples must have shape (L, N), one row for each instant, got {values.shape}")
    if setup is None and positions_m is None:
        raise ValueError("give positions_m (N, 3), or setup")
    if frequency_hz is None and third_octave is None:
        raise ValueError("give frequency_hz, as (low, high) for a band, or third_octave")
    if positions_m is not None and not isinstance(positions_m, str | Path):
        positions_m = np.asarray(positions_m, dtype=np.float64)
        if positions_m.shape != (values.shape[1], 3):
            turned = "; samples look transposed" if positions_m.shape == (values.shape[0], 3) else ""
            raise ShapeError(
                f"positions_m must have shape ({values.shape[1]}, 3), as samples have {values.shape[1]} columns, got "
                f"{positions_m.shape}{turned}"
            )
    options = ReadOptions(
        setup=setup,
        positions_m=positions_m,
        frequency_hz=frequency_hz,
        third_octave=third_octave,
        speed_m_s=speed_m_s,
        sample_rate_hz=sample_rate_hz,
        block_size=block_size,
        most_bands=most_bands,
        flagged=flagged,
    )
    found = FoundData(
        Path("memory"),
        "samples in memory",
        {"samples": values.shape},
        time_data=Snapshots.of(values.astype(held_dtype(values.dtype), copy=False)),
        speed_m_s=SPEED_OF_SOUND_M_S,
        names={"time_data": "samples"},
    )
    return assemble(found, options)
