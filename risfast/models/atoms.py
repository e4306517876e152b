"""A grid of atoms over (sin azimuth, sin elevation, 1/range), and the analysis-synthesis pair on it.

On a fixed grid both maps are one real matrix and its transpose, between the powers of the atoms and the entries of a
Hermitian matrix. Mirror symmetries that array and grid share split it into four blocks, and each block has far fewer
significant singular values than atoms, for the aperture band-limits the outer products: the map is kept as two thin
factors, where these are much smaller than the map itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from risfast.geometry import REFERENCE_AZIMUTH_RAD, REFERENCE_ELEVATION_RAD, Region, SensorArray, uniform_axis
from risfast.ops.domain import SIGN_TABLE, Domain, MirrorBasis, NodeSet
from risfast.setup import Setup

# Singular values of a block that are kept, relative to its largest. The test of the maps holds their error below
# 1e-3 of the largest entry, 60 dB down, where the reference system's noise begins 20 dB down. The largest one of a
# block grows with the root of the number of atoms, and what is left out may be wrong by that times |p|, however fine
# the grid: on more atoms than these, the reference grid's, the cut stays where it is there.
_RANK_TOLERANCE = 1e-3
_RANK_ATOMS = 3750
# A product of two rows reads the matrix twice; a part of it that stays in the second-level cache is read once.
_FEW_ROWS = 2
_PART_BYTES = 1 << 19
# Steps between atoms: in angle in beam widths (wavelength / extent), in range by the phase of the outermost element.
# The reference system's 25 x 15 x 10.
_STEP_BEAMS = 0.397
_STEP_PHASE_RAD = 3.02
# More atoms than a grid's maps are made for: they would take long, or this much memory.
MOST_ATOMS, _LEAST_ATOMS, _TABLE_BYTES = 10_000, 1000, 1 << 29
_MOST_ENTRIES = 1 << 33  # of all outer products, whatever was asked for: with symmetries, 8 GB
# Blocks of more atoms are kept whole: finding their significant singular values would take longer than they save.
_COMPRESSED_ATOMS = 1200
_STEEPEST_RAD = math.radians(85.0)  # at the poles every azimuth is the same direction


@dataclass(frozen=True)
class AtomAxes:
    """Where the atoms are: uniform in sin(azimuth), sin(elevation) and 1/range.

    An azimuth that reaches beyond +-90 degrees is uniform in itself.

    Parameters
    ----------
    n_azimuth, n_elevation, n_range : int
        Atoms along each axis; 1 stands in the middle of the interval, of range at its far end.
    azimuth_rad, elevation_rad : (float, float)
        Ends of the axes. One number stands for the interval from minus to plus it.
    range_m : (float, float)
        Nearest and farthest; the farthest may be infinite.

    Raises
    ------
    ValueError
        A count below 1, or an interval that makes no region.
    """

    n_azimuth: int = 25
    n_elevation: int = 15
    n_range: int = 10
    azimuth_rad: tuple[float, float] = (-REFERENCE_AZIMUTH_RAD, REFERENCE_AZIMUTH_RAD)
    elevation_rad: tuple[float, float] = (-REFERENCE_ELEVATION_RAD, REFERENCE_ELEVATION_RAD)
    range_m: tuple[float, float] = (0.5, 10.0)

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("n_azimuth", "n_elevation", "n_range"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        for name in ("azimuth_rad", "elevation_rad"):
            value = getattr(self, name)
            if isinstance(value, int | float):
                object.__setattr__(self, name, (-value, value))
        region = self.region  # checks the intervals
        for name in ("azimuth_rad", "elevation_rad", "range_m"):
            object.__setattr__(self, name, getattr(region, name))

    @classmethod
    def of(cls, setup: Setup, most_atoms: int | None = None) -> AtomAxes:
        """As dense as the reference grid is for its surface: by the aperture in angle, by curvature in range.

        Parameters
        ----------
        setup : Setup
        most_atoms : int, optional
            By default so many as maps of all pairs of elements have room for.

        Returns
        -------
        AtomAxes
            Over the setup's region; coarser in every coordinate where it would have too many atoms.
        """
        region = setup.region
        spans = [_reach(low, high) for low, high in (region.azimuth_rad, region.elevation_rad)]
        steps = [
            span * extent / setup.array.wavelength_m / _STEP_BEAMS
            for span, extent in zip(spans, setup.extents_m, strict=True)
        ]
        far, near = region.inverse_range
        steps.append((near - far) * setup.curvature_rad_m / _STEP_PHASE_RAD)
        excess = math.prod(max(step, 1.0) for step in steps) / (most_atoms or _most_atoms(setup))
        if excess > 1:
            steps = [step / excess ** (1 / max(sum(s > 1 for s in steps), 1)) if step > 1 else step for step in steps]
        n_az, n_el, n_r = (math.ceil(step - 1e-2) + 1 for step in steps)
        return cls(n_az, n_el, n_r, region.azimuth_rad, region.elevation_rad, region.range_m)

    @property
    def region(self) -> Region:
        """Where the atoms are."""
        return Region(self.azimuth_rad, self.elevation_rad, self.range_m)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G_az, G_el, G_r)."""
        return self.n_azimuth, self.n_elevation, self.n_range

    @property
    def by_sine(self) -> bool:
        """Whether azimuth is uniform in its sine."""
        return _within_front(*self.azimuth_rad)

    @property
    def coordinates(self) -> tuple[Tensor, Tensor]:
        """sin(azimuth) (or azimuth) [G_az] and sin(elevation) [G_el], float64, antisymmetric where the ends are."""
        low, high = self.azimuth_rad
        if self.by_sine:
            azimuth = uniform_axis(math.sin(low), math.sin(high), self.n_azimuth)
        else:
            # The ends of a full circle are one direction.
            count = self.n_azimuth + self.region.full_circle
            azimuth = uniform_axis(low, high, count, closed=self.region.full_circle)
        low, high = (min(max(e, -_STEEPEST_RAD), _STEEPEST_RAD) for e in self.elevation_rad)
        return azimuth, uniform_axis(math.sin(low), math.sin(high), self.n_elevation)

    def angles(self, coordinates: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Directions from coordinates.

        Parameters
        ----------
        coordinates : pair of real tensors
            Values of :attr:`coordinates`, of any shape.

        Returns
        -------
        azimuth, elevation : tensors of the same shapes
            Radians.
        """
        azimuth, elevation = coordinates
        return (azimuth.clamp(-1, 1).asin() if self.by_sine else azimuth), elevation.clamp(-1, 1).asin()

    def coordinates_of(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of directions.

        Parameters
        ----------
        position : real tensor, shape (..., 2) or (..., 3)
            Azimuth and elevation in radians, and what follows.

        Returns
        -------
        pair of tensors, shape (...)
            As :attr:`coordinates` has them.
        """
        azimuth, elevation = position[..., 0], position[..., 1]
        if self.by_sine:
            return azimuth.sin(), elevation.sin()
        middle = sum(self.azimuth_rad) / 2
        return middle + torch.remainder(azimuth - middle + math.pi, 2 * math.pi) - math.pi, elevation.sin()

    @property
    def inverse_range(self) -> Tensor:
        """1/range [G_r], float64, decreasing: ranges increase."""
        far, near = self.region.inverse_range
        if self.n_range == 1:
            return torch.tensor([far], dtype=torch.float64)
        return torch.linspace(near, far, self.n_range, dtype=torch.float64)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Steps of the coordinates and of 1/range, the last negative; 1 along an axis with one atom."""
        axes = (*self.coordinates, self.inverse_range)
        first, second, third = (float(axis[-1] - axis[0]) / (len(axis) - 1) if len(axis) > 1 else 1.0 for axis in axes)
        return first, second, third


def _most_atoms(setup: Setup) -> int:
    region = setup.region
    flips = (sum(region.azimuth_rad) == 0, sum(region.elevation_rad) == 0)
    images = MirrorBasis.find(setup.array.positions_m, *flips).images
    fitting = _TABLE_BYTES * images // (4 * setup.array.n_elements**2)
    return min(max(fitting, _LEAST_ATOMS), MOST_ATOMS)


def _within_front(low: float, high: float) -> bool:
    return low >= -math.pi / 2 - 1e-12 and high <= math.pi / 2 + 1e-12


def _reach(low: float, high: float) -> float:
    """Length of an angular interval in its own coordinate."""
    return math.sin(high) - math.sin(low) if _within_front(low, high) else high - low


@dataclass(frozen=True)
class _Block:
    """One of the four families of blocks: pairs of mirror classes whose product has the same sign in each image."""

    pairs: tuple[tuple[int, int], ...]  # classes (s, t), s <= t
    left: Tensor | None  # [count, rank]; None is the identity
    right: Tensor  # [rank, entries], packed blocks of all pairs


@lru_cache(maxsize=4)
def _built(array: SensorArray, axes: AtomAxes, wavefront: str) -> tuple[NodeSet, tuple[_Block, ...]]:
    azimuth, elevation = axes.angles(axes.coordinates)
    ranges = 1 / axes.inverse_range
    domain = Domain(array.positions_m, array.wavenumber, wavefront, azimuth, elevation, ranges, True)
    nodes = NodeSet(domain, domain.azimuth, domain.elevation, torch.complex128, keep=False)
    offsets = nodes.offsets
    steering = nodes.steering(0, nodes.count)
    classes = [steering[:, offsets[c] : offsets[c + 1]] for c in range(4)]
    grams = [part @ part.mH for part in classes] if nodes.count <= _COMPRESSED_ATOMS else []
    blocks = []
    for family in range(4):
        pairs = tuple((c, c ^ family) for c in range(4) if c <= c ^ family and min(classes[c].shape[1], 1))
        pairs = tuple((s, t) for s, t in pairs if classes[t].shape[1])
        if not pairs:
            continue
        left = None
        if nodes.count <= _COMPRESSED_ATOMS:
            gram = torch.stack([(grams[s] * grams[t].conj()).real for s, t in pairs]).sum(0)
            values, vectors = torch.linalg.eigh(gram)
            left = vectors[:, _significant(values, math.prod(axes.shape))].float()
        right = []
        for s, t in pairs:
            outer = (classes[s][:, :, None] * classes[t].conj()[:, None, :]).to(torch.complex64)
            packed = _packed(outer, s == t)
            right.append(packed if left is None else left.mT @ packed)
        blocks.append(_Block(pairs, left, torch.cat(right, 1)))
    return nodes, tuple(blocks)


def _significant(values: Tensor, n_atoms: int) -> Tensor:
    """Which eigenvalues of a block's Gram matrix (squares of its singular values), ascending, are kept."""
    return values > _RANK_TOLERANCE**2 * min(1.0, _RANK_ATOMS / n_atoms) * values[-1]


def _packed(block: Tensor, hermitian: bool) -> Tensor:
    """Block [b, n, m] as real numbers [b, entries] whose inner product is Re tr(A^H B)."""
    # A Hermitian one needs n^2: its real part is symmetric and its imaginary part antisymmetric, so their sum holds
    # both, and products of the one with the other add up to nothing.
    if hermitian:
        return (block.real + block.imag).flatten(1)
    return torch.view_as_real(block).flatten(1)


def _unpacked(entries: Tensor, n: int, m: int, hermitian: bool) -> Tensor:
    """Adjoint and inverse of :func:`_packed`."""
    if hermitian:
        both = entries.reshape(-1, n, n)
        return torch.complex((both + both.mT) / 2, (both - both.mT) / 2)
    return torch.view_as_complex(entries.reshape(-1, n, m, 2))


def _times_transposed(few: Tensor, matrix: Tensor) -> Tensor:
    """Product few @ matrix^T, in parts where that saves reading the matrix twice."""
    if few.shape[0] != _FEW_ROWS or few.device.type != "cpu":
        return few @ matrix.mT
    rows = max(_PART_BYTES // (matrix.shape[1] * matrix.element_size()), 1)
    return torch.cat([few @ part.mT for part in matrix.split(rows)], 1)


class AtomGrid(nn.Module):
    """Analysis and synthesis on a grid of atoms, for matrices in the mirror basis of the array."""

    # All matrices are in the basis of :class:`risfast.ops.domain.MirrorBasis`: multiply sensing operators by it once
    # (:meth:`transform`). float32 throughout; the maps drop singular values below 1e-3 of the largest, on grids of more
    # than 3750 atoms below 1e-3 of the largest that so many would have.

    characters: Tensor

    def __init__(self, setup: Setup, axes: AtomAxes | None = None) -> None:
        super().__init__()
        self.setup, self.axes = setup, axes or AtomAxes.of(setup)
        self.array, self.wavefront = setup.array, setup.wavefront
        count = math.prod(self.axes.shape)
        if count * setup.array.n_elements**2 > _MOST_ENTRIES:
            raise ValueError(
                f"{count} atoms for {setup.array.n_elements} elements take more memory than maps may; ask for fewer "
                "along the axes"
            )
        self._nodes, blocks = _built(self.array, self.axes, self.wavefront)
        self._slices = [slice(start, stop) for start, stop in pairwise(self._nodes.offsets)]
        self.pairs = tuple(block.pairs for block in blocks)
        for i, block in enumerate(blocks):
            if block.left is not None:
                self.register_buffer(f"left_{i}", block.left, persistent=False)
            self.register_buffer(f"right_{i}", block.right, persistent=False)
        characters = torch.tensor(SIGN_TABLE, dtype=torch.float32)[:, : self._nodes.images]
        # Families in use, by the class of their sign: s xor t.
        self.families = tuple(pairs[0][0] ^ pairs[0][1] for pairs in self.pairs)
        self.register_buffer("characters", characters[list(self.families)].contiguous(), persistent=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G_az, G_el, G_r)."""
        return self.axes.shape

    def transform(self, vectors: Tensor) -> Tensor:
        """Vectors in the mirror basis: for a sensing operator whose rows they are, Phi T.

        vectors (..., N) -> (..., N)
        """
        return self._nodes.domain.mirror.transform(vectors)

    def synthesis(self, power: Tensor) -> Tensor:
        """sum_g p_g a_g a_g^H.

        power (B, G_az, G_el, G_r) -> (B, N, N)
        """
        images = self._nodes.from_box(power.permute(0, 3, 1, 2))
        by_family = torch.einsum("fi,ibg->fbg", self.characters, images)
        slices, n_elements = self._slices, self.array.n_elements
        result = torch.zeros(len(power), n_elements, n_elements, dtype=torch.complex64, device=power.device)
        for i, pairs in enumerate(self.pairs):
            left = getattr(self, f"left_{i}", None)
            entries = (by_family[i] if left is None else by_family[i] @ left) @ getattr(self, f"right_{i}")
            start = 0
            for s, t in pairs:
                rows, columns = slices[s], slices[t]
                n, m = rows.stop - rows.start, columns.stop - columns.start
                size = n * m * (1 if s == t else 2)
                block = _unpacked(entries[:, start : start + size], n, m, s == t)
                start += size
                result[:, rows, columns] = block
                if s != t:
                    result[:, columns, rows] = block.mH
        return result

    @property
    def entries(self) -> int:
        """Entries of a matrix that :meth:`products` computes, and :meth:`analysis` looks at."""
        return sum((s.stop - s.start) * (self.array.n_elements - s.start) for s in self._slices)

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """left^H right where that is Hermitian, as far as :meth:`analysis` looks at it: of four equal classes 5/8.

        left, right (B, J, N) -> (B, N, N)
        """
        rows = []
        for part in self._slices:
            if part.stop > part.start:
                block = left[..., part].mH @ right[..., part.start :]
                rows.append(nn.functional.pad(torch.view_as_real(block), (0, 0, part.start, 0)))
        return torch.view_as_complex(torch.cat(rows, 1))

    def analysis(self, matrix: Tensor) -> Tensor:
        """a_g^H Q a_g for every atom, the adjoint of :meth:`synthesis`.

        matrix (B, N, N) -> (B, G_az, G_el, G_r)
        """
        slices = self._slices
        by_family = []
        for i, pairs in enumerate(self.pairs):
            parts = [_packed(matrix[:, slices[s], slices[t]], s == t) for s, t in pairs]
            entries = _times_transposed(torch.cat(parts, 1), getattr(self, f"right_{i}"))
            both = 1.0 if pairs[0][0] == pairs[0][1] else 2.0  # the block and its conjugate
            left = getattr(self, f"left_{i}", None)
            by_family.append(both * (entries if left is None else entries @ left.mT))
        images = torch.einsum("fi,fbg->ibg", self.characters, torch.stack(by_family))
        nodes = self._nodes
        upper, lower = nodes.to_box(images, 0, nodes.azimuth.half)
        if nodes.azimuth.mirrored:
            upper = torch.cat([lower[:, :, : nodes.azimuth.count - nodes.azimuth.half], upper], 2)
        return upper.permute(0, 2, 3, 1)


_FAR = 1e6  # nearest ranges that a single atom of a region without end stands at


class CellTargets(NamedTuple):
    """Where the true sources of a batch fall."""

    cell: Tensor  # (B, K) Flat index of the cell in (azimuth, elevation, range cell)
    # (B, K, 2) Position of the source relative to its atom, in spacings of the axes' coordinates, within +-1/2
    offset: Tensor


class RangeCells(nn.Module):
    """Each atom's interval of 1/range, divided into cells of equal length in range.

    edges, centres (cells + 1,) and (cells,)
    """

    # Far out a step of 1/range is metres long: the cells resolve there what a tolerance in metres asks for.

    edges: Tensor
    centres: Tensor

    def __init__(self, axes: AtomAxes, per_atom: int) -> None:
        super().__init__()
        self.axes, self.per_atom = axes, per_atom
        inverse = axes.inverse_range
        middle = 1 / ((inverse[1:] + inverse[:-1]) / 2)
        bounds = torch.cat([1 / inverse[:1], middle, 1 / inverse[-1:]])  # [G_r + 1], increasing
        if bounds[0].isinf():  # one atom, at infinity; a difference of places must be a number
            bounds = torch.full_like(bounds, _FAR * axes.range_m[0])
        fraction = torch.arange(per_atom, dtype=torch.float64) / per_atom
        edges = bounds[:-1, None] + fraction * bounds.diff()[:, None]
        if bounds[-1].isinf():  # an interval without end has cells of equal length in 1/range
            edges[-1] = bounds[-2] / (1 - fraction)
        edges = torch.cat([edges.flatten(), bounds[-1:]])
        centres = (edges[1:] + edges[:-1]) / 2
        centres[-1] = centres[-1].clamp_max(2 * edges[-2])
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("centres", centres, persistent=False)

    def __len__(self) -> int:
        """Cells of range."""
        return self.axes.n_range * self.per_atom

    def targets(self, position: Tensor) -> CellTargets:
        """Cells that sources fall in; those outside the grid go to the nearest cell.

        position (B, K, 3)
        """
        position = position.double()
        n_az, n_el, _ = self.axes.shape
        index, offset = [], []
        coordinates = self.axes.coordinates_of(position)
        for i, n in enumerate((n_az, n_el)):
            first = self.axes.coordinates[i][0].to(position.device)
            place = (coordinates[i] - first) / self.axes.spacing[i]
            nearest = place.round().clamp(0, n - 1)
            index.append(nearest.long())
            offset.append((place - nearest).clamp(-0.5, 0.5))
        cell = torch.bucketize(position[..., 2].contiguous(), self.edges[1:-1])
        flat = (index[0] * n_el + index[1]) * len(self) + cell
        return CellTargets(flat, torch.stack(offset, -1).float())
