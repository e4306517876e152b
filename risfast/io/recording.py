"""What every reader returns: a :class:`Recording`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError, ShapeError
from risfast.geometry import PlanarArray

__all__ = ["Flagged", "Provenance", "Recording", "Snapshots"]

Array = np.ndarray[Any, np.dtype[Any]]
Load = Callable[[int, int], Array]

BLOCK_BYTES = 32 << 20  # a few of these exist at a time: the block as stored, as numbers, and the one before


@dataclass(frozen=True, eq=False)
class Snapshots:
    """Samples of all elements, one row per instant, read from the file in blocks.

    Attributes
    ----------
    shape : (int, int)
        Snapshots L and channels C.
    dtype : numpy dtype
        Of the numbers that come out: complex64, complex128, float32 or float64.
    opened : callable
        Opens the source for reading: a context manager of a function ``load(start, stop)`` to an array
        (stop - start, C). The file is open only while it is read.
    source : str
        The file and the variable, for errors.
    held : bool
        Whether all of it is in memory.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    opened: Callable[[], AbstractContextManager[Load]]
    source: str = "memory"
    held: bool = False

    @classmethod
    def of(cls, values: Array, source: str = "memory") -> Snapshots:
        """Samples that are in memory already, shape (L, C).

        Parameters
        ----------
        values : array, shape (L, C)
        source : str
            For errors.

        Returns
        -------
        Snapshots
        """
        shape = (values.shape[0], values.shape[1])
        return cls(shape, values.dtype, lambda: nullcontext(lambda start, stop: values[start:stop]), source, held=True)

    def __len__(self) -> int:
        """L."""
        return self.shape[0]

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Some rows.

        Parameters
        ----------
        start, stop : int
            From the first up to but without the last; to the end by default.

        Returns
        -------
        tensor, shape (stop - start, C), on the CPU

        Raises
        ------
        ValueError
            The rows are not within 0 .. L.
        FileFormatError
            They hold NaN or infinite values, or the file is damaged or has changed.
        """
        end = len(self) if stop is None else stop
        if not 0 <= start <= end <= len(self):
            raise ValueError(f"start and stop must lie within 0 .. {len(self)}, got {start} and {end}")
        with self.opened() as load:
            return _finite(load(start, end), start, self.source)

    def blocks(self, block_bytes: int = BLOCK_BYTES, *, multiple_of: int = 1) -> Iterator[Tensor]:
        """All rows in order, in tensors (rows, C) of at most about ``block_bytes``.

        Parameters
        ----------
        block_bytes : int
            Size of a block; at least ``multiple_of`` rows are read.
        multiple_of : int
            Every block but the last has a multiple of so many rows.

        Yields
        ------
        tensor, shape (rows, C), on the CPU

        Raises
        ------
        FileFormatError
            As :meth:`read`.
        """
        row = max(self.shape[1] * self.dtype.itemsize, 1)
        step = max(block_bytes // row // multiple_of, 1) * multiple_of
        with self.opened() as load:
            for start in range(0, len(self), step):
                yield _finite(load(start, min(start + step, len(self))), start, self.source)


def _finite(values: Array, start: int, source: str) -> Tensor:
    # The sum is finite if all values are (an overflow of the sum is looked at again): one pass without a mask.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = values.size > 0 and not np.isfinite(values.sum())
    if suspicious and not np.isfinite(values).all():
        rows, columns = np.nonzero(~np.isfinite(values))
        raise FileFormatError(
            f"{source}: the samples hold {len(rows)} values that are NaN or infinite, the first in row "
            f"{start + rows[0]}, "
            f"column {columns[0]}; cut that stretch out, or leave a broken element out with flagged=({columns[0]},)"
        )
    return torch.from_numpy(np.ascontiguousarray(values))


@dataclass(frozen=True)
class Flagged:
    """An element of the file that the recording does without.

    Attributes
    ----------
    index : int
        Its place in the file, from 0.
    name : str
        Its name in the file, or its index.
    reason : str
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class Provenance:
    """Where a recording came from.

    Attributes
    ----------
    path : str
        The file, as it was given.
    format : str
        What it was read as.
    details : dict
        What the file says of itself: instrument, channel, time, polarisation, author, licence, as far as given.
    notes : tuple of str
        What the reader did that the file does not say by itself, such as turning a transposed matrix.
    """

    path: str
    format: str
    details: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Recording:
    """Measurements of one array at one wavelength.

    Exactly one of ``covariance`` and ``snapshots`` is there.

    Attributes
    ----------
    array : PlanarArray
        Positions of the elements in metres, and the wavelength in metres; flagged elements are not in it.
    covariance : complex tensor, shape (B, N, N), or None
        Hermitian. B integration times, or files' batches.
    snapshots : Snapshots or None
        L rows, complex, of the N elements; with ``channel``, of the M antennas behind the surface of N elements.
    codes : complex tensor, shape (L, N), or None
        Phase codes of the surface, one a snapshot.
    channel : complex tensor, shape (M, N), or None
        From the surface to the antennas.
    frequency_hz : float or None
        Where the file or the caller gave it.
    provenance : Provenance
    flagged : tuple of Flagged
        Elements of the file that were left out.

    Raises
    ------
    ShapeError
        The parts do not belong together.
    """

    array: PlanarArray
    covariance: Tensor | None = None
    snapshots: Snapshots | None = None
    codes: Tensor | None = None
    channel: Tensor | None = None
    frequency_hz: float | None = None
    provenance: Provenance = field(default_factory=lambda: Provenance("", "memory"))
    flagged: tuple[Flagged, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        n = self.array.n_elements
        if (self.covariance is None) == (self.snapshots is None):
            raise ShapeError("a recording holds either covariance or snapshots, exactly one of them")
        if self.covariance is not None and self.covariance.shape[1:] != (n, n):
            raise ShapeError(f"covariance must be (B, {n}, {n}), got {tuple(self.covariance.shape)}")
        if self.snapshots is not None:
            seen = n if self.channel is None else self.channel.shape[0]
            if self.snapshots.shape[1] != seen:
                raise ShapeError(f"snapshots must be (L, {seen}), got {self.snapshots.shape}")
        if self.channel is not None and (self.channel.ndim != 2 or self.channel.shape[1] != n):
            raise ShapeError(f"channel must be (M, {n}), got {tuple(self.channel.shape)}")
        if self.codes is not None:
            length = None if self.snapshots is None else len(self.snapshots)
            if self.codes.ndim != 2 or self.codes.shape[1] != n or (length or len(self.codes)) != len(self.codes):
                raise ShapeError(f"codes must be (L = {length}, {n}), got {tuple(self.codes.shape)}")

    @property
    def n_elements(self) -> int:
        """N."""
        return self.array.n_elements

    def without(self, elements: Sequence[int], reason: str = "left out by hand") -> Recording:
        """The same without some elements.

        Parameters
        ----------
        elements : sequence of int
            Their indices in this recording, which without flagged elements are those in the file.
        reason : str
            For ``flagged``.

        Returns
        -------
        Recording

        Raises
        ------
        ValueError
            An index does not exist, no element is left, or the recording is of a surface (with codes or a channel).
        """
        gone = sorted(set(elements))
        if not gone:
            return self
        if not all(0 <= index < self.n_elements for index in gone) or len(gone) >= self.n_elements:
            raise ValueError(f"elements must be some, not all, of 0 .. {self.n_elements - 1}, got {gone}")
        if self.codes is not None or self.channel is not None:
            raise ValueError("elements of a surface with codes or a channel cannot be left out: they still reflect")
        out = {item.index for item in self.flagged}
        original = [i for i in range(self.n_elements + len(out)) if i not in out]  # place in the file
        keep = torch.tensor([i for i in range(self.n_elements) if i not in gone])
        flagged = (*self.flagged, *(Flagged(original[i], str(original[i]), reason) for i in gone))
        covariance = self.covariance
        return replace(
            self,
            array=PlanarArray(self.array.positions_m[keep], self.array.wavelength_m),
            covariance=None if covariance is None else covariance[:, keep][:, :, keep],
            snapshots=None if self.snapshots is None else _columns(self.snapshots, keep.numpy()),
            flagged=tuple(sorted(flagged, key=lambda item: item.index)),
        )

    def with_covariance(self) -> Recording:
        """The same with the sample covariance in place of the snapshots.

        R = 1/L sum_l x_l x_l^H, accumulated in complex128 over blocks, so that the length does not matter to memory.
        Elements without any power are left out and listed in ``flagged``.

        Returns
        -------
        Recording
            ``covariance`` complex128 (1, N, N). A recording that has a covariance comes back as it is.

        Raises
        ------
        ValueError
            The snapshots belong to antennas behind a surface (``channel``), whose covariance is not that of the array;
            or they hold values that are not finite; or no element has any power.
        """
        if self.snapshots is None:
            return self
        if self.channel is not None:
            raise ValueError(
                "these snapshots were received behind a surface; use risfast.Localizer with codes and channel"
            )
        total = torch.zeros(self.n_elements, self.n_elements, dtype=torch.complex128)
        for block in self.snapshots.blocks(BLOCK_BYTES // 4):
            values = block.to(torch.complex128)
            total += values.mT @ values.conj()
        covariance = (total / max(len(self.snapshots), 1))[None]
        dead = torch.nonzero(covariance[0].diagonal().real == 0)[:, 0].tolist()
        if len(dead) == self.n_elements:
            raise ValueError("snapshots hold zeros only: no element has any power")
        return replace(self, covariance=covariance, snapshots=None).without(dead, "no power")


def _columns(snapshots: Snapshots, keep: Array) -> Snapshots:
    """Some of the channels."""
    opened = snapshots.opened

    class Chosen(AbstractContextManager[Load]):
        def __enter__(self) -> Load:
            self._source = opened()
            load = self._source.__enter__()
            return lambda start, stop: load(start, stop)[:, keep]

        def __exit__(self, *problem: Any) -> None:
            self._source.__exit__(*problem)

    return Snapshots((len(snapshots), len(keep)), snapshots.dtype, Chosen, snapshots.source)
