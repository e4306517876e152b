"""What every reader returns: a :class:`Recording`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from risfast.errors import FileFormatError, ShapeError
from risfast.geometry import SensorArray
from risfast.io.guard import Array, megabytes
from risfast.setup import Sampling, Setup

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
    load : callable
        ``load(start, stop)`` reads some rows into an array (stop - start, C). The file is open only while it is read.
    source : str
        The file and the variable, for errors.
    held : bool
        Whether all of it is in memory.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    load: Callable[[int, int], Array]
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
        return cls(shape, values.dtype, lambda start, stop: values[start:stop], source, held=True)

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
        return _finite(self.load(start, end), start, self.source)

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
        for start in range(0, len(self), step):
            yield self.read(start, min(start + step, len(self)))

    def columns(self, keep: Array) -> Snapshots:
        """Some of the channels, by their indices.

        Parameters
        ----------
        keep : integer array

        Returns
        -------
        Snapshots
        """
        shape = (len(self), len(keep))
        return Snapshots(shape, self.dtype, lambda start, stop: self.load(start, stop)[:, keep], self.source)


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
    """Measurements of one array in one narrow band or several: one scene, or several of the same size.

    Exactly one of ``covariance`` and ``snapshots`` is there.

    Attributes
    ----------
    array : SensorArray
        Positions of the elements in metres, and the (shortest) wavelength in metres; flagged elements are not in it.
    covariance : complex tensor, shape (B, N, N), of F > 1 bands (B, F, N, N), or None
        Hermitian. B integration times, or files' batches.
    snapshots : Snapshots or None
        L rows, complex, of the N elements; with ``channel``, of the M antennas behind the surface of N elements. Of
        several scenes, B L rows, scene after scene.
    codes : complex tensor, shape (L, N) or (B, L, N), or None
        Phase codes of the surface, one a snapshot; (L, N) are those of every scene.
    channel : complex tensor, shape (M, N) or (B, M, N), or None
        From the surface to the antennas.
    frequency_hz : float or None
        Of one band, where the file or the caller gave it.
    provenance : Provenance
    flagged : tuple of Flagged
        Elements of the file that were left out.
    scenes : int
        B of the snapshots.
    speed_m_s : float or None
        Of the waves, where the file or the caller gave it.
    given : Setup or None
        The setup that the file or the caller gave; :attr:`setup` is the one to use.
    wavelengths_m : tuple of float
        Of the F bands, in the order of the covariances; by default the array's alone.
    frequencies_hz : tuple of float, or None
        Of the F bands, where they are known.
    effective_snapshots : tuple of float, or None
        Of a covariance, where it is known: how many independent snapshots each band is the mean of. Overlapping
        segments of Welch's method are worth fewer than there are.

    Raises
    ------
    ShapeError
        The parts do not belong together.
    """

    array: SensorArray
    covariance: Tensor | None = None
    snapshots: Snapshots | None = None
    codes: Tensor | None = None
    channel: Tensor | None = None
    frequency_hz: float | None = None
    provenance: Provenance = field(default_factory=lambda: Provenance("", "memory"))
    flagged: tuple[Flagged, ...] = ()
    scenes: int = 1
    speed_m_s: float | None = None
    given: Setup | None = None
    wavelengths_m: tuple[float, ...] = ()
    frequencies_hz: tuple[float, ...] | None = None
    effective_snapshots: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        n, several = self.array.n_elements, self.scenes
        self._fill_bands()
        if (self.covariance is None) == (self.snapshots is None):
            raise ShapeError("a recording holds either covariance or snapshots, exactly one of them")
        inner = (n, n) if self.n_bands == 1 else (self.n_bands, n, n)
        if self.covariance is not None and self.covariance.shape[1:] != inner:
            raise ShapeError(
                f"covariance must be (B, {', '.join(map(str, inner))}), got {tuple(self.covariance.shape)}"
            )
        if self.snapshots is not None and self.n_bands > 1:
            raise ShapeError(f"snapshots are of one band, and there are {self.n_bands} wavelengths_m")
        for name in ("codes", "channel"):
            values = getattr(self, name)
            row = "L" if name == "codes" else "M"
            if values is not None and (values.ndim not in (2, 3) or values.shape[-1] != n):
                raise ShapeError(f"{name} must be ({row}, {n}) or (B, {row}, {n}), got {tuple(values.shape)}")
            if values is not None and values.ndim == 3 and values.shape[0] != several:
                raise ShapeError(f"{name} must be of {several} scenes like snapshots, got {tuple(values.shape)}")
        if self.snapshots is None:
            return
        seen = n if self.channel is None else self.channel.shape[-2]
        if self.snapshots.shape[1] != seen:
            raise ShapeError(f"snapshots must be (L, {seen}), got {self.snapshots.shape}")
        if several < 1 or len(self.snapshots) % several:
            raise ShapeError(f"snapshots of {several} scenes must be (B L, {seen}), got {self.snapshots.shape}")
        if self.codes is not None and self.codes.shape[-2] != self.n_snapshots:
            raise ShapeError(f"codes must be (L = {self.n_snapshots}, {n}), got {tuple(self.codes.shape)}")

    def _fill_bands(self) -> None:
        """Wavelengths and frequencies of the bands, each from what is there."""
        wavelengths = tuple(self.wavelengths_m) or (self.array.wavelength_m,)
        frequencies = self.frequencies_hz
        if frequencies is None and self.frequency_hz is not None:
            frequencies = (self.frequency_hz,)
        for name, values in (("frequencies_hz", frequencies), ("effective_snapshots", self.effective_snapshots)):
            if values is not None and len(values) != len(wavelengths):
                raise ShapeError(f"{name} must be {len(wavelengths)} numbers, as wavelengths_m, got {len(values)}")
        if min(wavelengths) != self.array.wavelength_m:
            raise ShapeError(
                f"the shortest of wavelengths_m must be the array's, {self.array.wavelength_m!r}, got "
                f"{min(wavelengths)!r}"
            )
        object.__setattr__(self, "wavelengths_m", wavelengths)
        object.__setattr__(self, "frequencies_hz", frequencies)
        if frequencies is not None and len(frequencies) == 1:
            object.__setattr__(self, "frequency_hz", frequencies[0])

    def __repr__(self) -> str:
        """Counts in place of the values."""
        length = "covariances" if self.snapshots is None else f"{self.n_snapshots} snapshots"
        bands = f" in {self.n_bands} bands" if self.n_bands > 1 else ""
        return f"Recording({self.n_scenes} scenes, {length}{bands}, {self.sampling}, {self.array!r})"

    @property
    def n_bands(self) -> int:
        """F."""
        return len(self.wavelengths_m)

    @property
    def n_scenes(self) -> int:
        """B."""
        return self.scenes if self.covariance is None else len(self.covariance)

    @property
    def n_snapshots(self) -> int | None:
        """L of each scene; None of a covariance."""
        return None if self.snapshots is None else len(self.snapshots) // self.scenes

    @property
    def sampling(self) -> Sampling:
        """Through a surface where there are codes or a channel, else directly."""
        return "direct" if self.codes is None and self.channel is None else "surface"

    @property
    def setup(self) -> Setup:
        """The problem that was measured: what the file or the caller gave, else what follows from the array.

        A ``ValueError`` says to give the region of an array for which none can be derived.
        """
        own: dict[str, Any] = {"array": self.array, "wavelengths_m": self.wavelengths_m}
        if self.given is None:
            return Setup(**own, sampling=self.sampling, speed_m_s=self.speed_m_s)
        return self.given.replace(**own, speed_m_s=self.given.speed_m_s or self.speed_m_s)

    def scene_batch(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Snapshots, codes and channel of all scenes in memory, as the localizer takes them.

        Returns
        -------
        y : complex tensor, shape (B, L, M)
        codes : complex tensor, shape (B, L, N), or None
        channel : complex tensor, shape (B, M, N), or None

        Raises
        ------
        ValueError
            The recording is a covariance.
        FileFormatError
            Samples that are not finite.
        """
        if self.snapshots is None:
            raise ValueError("this recording is a covariance, it has no snapshots")
        y = self.snapshots.read().reshape(self.scenes, -1, self.snapshots.shape[1])
        codes, channel = (
            None if values is None else values.expand(self.scenes, *values.shape[-2:])
            for values in (self.codes, self.channel)
        )
        return y, codes, channel

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
        covariance, given = self.covariance, self.given
        array = SensorArray(self.array.positions_m[keep], self.array.wavelength_m)
        if given is not None and given.gains is not None:
            gains = tuple(given.gains[index] for index in keep.tolist())
            given = given.replace(array=array, wavelengths_m=given.wavelengths_m, gains=gains)
        return replace(
            self,
            array=array,
            given=given,
            covariance=None if covariance is None else covariance[..., keep, :][..., keep],
            snapshots=None if self.snapshots is None else self.snapshots.columns(keep.numpy()),
            flagged=tuple(sorted(flagged, key=lambda item: item.index)),
        )

    def with_covariance(self) -> Recording:
        """The same with the sample covariance in place of the snapshots.

        R = 1/L sum_l x_l x_l^H of each scene, accumulated in complex128 over blocks, so that the length does not matter
        to memory. Elements without any power in all scenes are left out and listed in ``flagged``.

        Returns
        -------
        Recording
            ``covariance`` complex128 (B, N, N), of ``effective_snapshots`` L. A recording that has a covariance comes
            back as it is.

        Raises
        ------
        ValueError
            The snapshots were received through a surface (``codes``, ``channel``), so that their covariance is not that
            of the array; or no element has any power.
        FileFormatError
            They hold values that are not finite, or so large that their powers are not.
        """
        if self.snapshots is None:
            return self
        if self.sampling == "surface":
            raise ValueError(
                "these snapshots were received behind a surface; use risfast.Localizer with codes and channel"
            )
        length, step = len(self.snapshots) // self.scenes, max(BLOCK_BYTES // 4 // (16 * self.n_elements), 1)
        covariance = torch.zeros(self.scenes, self.n_elements, self.n_elements, dtype=torch.complex128)
        for scene in range(self.scenes):
            end = (scene + 1) * length
            for start in range(scene * length, end, step):
                values = self.snapshots.read(start, min(start + step, end)).to(torch.complex128)
                covariance[scene] += values.mT @ values.conj()
        covariance /= max(length, 1)
        if not bool(torch.view_as_real(covariance).isfinite().all()):
            raise FileFormatError(f"{self.snapshots.source}: the snapshots are so large that their powers overflow")
        dead = torch.nonzero(covariance.diagonal(dim1=1, dim2=2).real.amax(0) == 0)[:, 0].tolist()
        if len(dead) == self.n_elements:
            raise ValueError("snapshots hold zeros only: no element has any power")
        made = replace(self, covariance=covariance, snapshots=None, scenes=1, effective_snapshots=(float(length),))
        return made.without(dead, "no power")


def raw_snapshots(
    path: Path,
    offset: int,
    shape: tuple[int, int],
    width: int,
    stored: np.dtype[Any],
    convert: Callable[[Array], Array],
) -> Snapshots:
    """Rows of ``width`` stored numbers each, from byte ``offset`` on."""
    # Plain reads into a buffer rather than a memory map: pages of a map count as memory of the process for as long as
    # the system likes, a buffer is there once.
    row = width * stored.itemsize
    needed, there = offset + shape[0] * row, path.stat().st_size
    if needed > there:
        raise FileFormatError(
            f"{path}: {shape[0]} rows of {row} bytes from byte {offset} on are declared, {megabytes(needed)}, but the "
            f"file ends after {megabytes(there)}: it is cut off, or the number of rows or channels is wrong"
        )

    def load(start: int, stop: int) -> Array:
        values = np.fromfile(path, stored, (stop - start) * width, offset=offset + start * row)
        if len(values) != (stop - start) * width:
            raise FileFormatError(f"{path}: the file ended while it was read; is it still being written?")
        return convert(values.reshape(-1, width))

    return Snapshots(shape, convert(np.empty((0, width), stored)).dtype, load, str(path))
