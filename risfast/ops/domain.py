"""Where an operator is evaluated: array, wavefront and points, which plans are kept for, and their mirror symmetry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from risfast.geometry import direction_cosines
from risfast.steering import steering_phase

# Two elements (or nodes) count as mirror images below this fraction of the array's size: the phase error of treating
# them so, below 1e-9 rad on any array smaller than a thousand wavelengths, is less than float64 loses elsewhere.
_MIRROR_TOLERANCE = 1e-13
# Bytes of one tile of products: a few of these fit a core's own cache beside the matrix.
TILE_BYTES = 1 << 20
# Sign of each class (rows) in each image (columns: itself, -azimuth, -elevation, both).
SIGN_TABLE = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))


def adjoint_of(matrix: Tensor) -> Tensor:
    """Conjugate transpose with the conjugation carried out.

    matrix (..., N, K) -> (..., K, N)
    """
    # Inside a custom op under compilation the lazy conjugation of ``.mH`` is not honoured and would be lost.
    return matrix.mT.conj().resolve_conj()


@dataclass(frozen=True, eq=False)
class Domain:
    """Array, wavefront and the points to evaluate; every tensor is float64 on the CPU."""

    positions: Tensor  # [N, 3] m
    wavenumber: float  # rad/m
    wavefront: str
    azimuth: Tensor  # [G_az] or [G], rad
    elevation: Tensor  # [G_el] or [G], rad
    range: Tensor  # [G_r] or [G], m
    box: bool  # Whether the three axes span a grid, or are the coordinates of a list of points
    mirror: MirrorBasis = field(init=False)  # The symmetries that array and axes share

    def __post_init__(self) -> None:
        """Find the mirror symmetries that array and axes share."""
        flips = (self.box and antisymmetric(self.azimuth), self.box and antisymmetric(self.elevation))
        object.__setattr__(self, "mirror", MirrorBasis.find(self.positions, *flips))

    @property
    def n_elements(self) -> int:
        """N."""
        return int(self.positions.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """(G_az, G_el, G_r) of a box, (G,) of a list of points."""
        if self.box:
            return self.azimuth.numel(), self.elevation.numel(), self.range.numel()
        return (self.azimuth.numel(),)

    def steering(self, azimuth: Tensor, elevation: Tensor, range_m: Tensor) -> Tensor:
        """Steering vectors at coordinates that broadcast against each other.

        -> (..., N)
        """
        azimuth, elevation, range_m = torch.broadcast_tensors(azimuth, elevation, range_m)
        direction = direction_cosines(azimuth, elevation)
        phase = steering_phase(self.positions, direction, range_m, self.wavenumber, self.wavefront)
        # torch.polar takes a scalar code path; cos and sin of float64 are vectorised.
        return torch.complex(phase.cos(), phase.sin())


def antisymmetric(axis: Tensor) -> bool:
    """Whether an angular axis is its own mirror image, to far less than any phase that matters.

    axis (G,)
    """
    return bool((axis + axis.flip(0)).abs().max() <= 1e-12)


@dataclass(frozen=True, eq=False)
class MirrorBasis:
    """Real orthogonal change of element basis that splits steering vectors by their mirror symmetry."""

    # Where an array maps onto itself under x -> -x, the steering vector at -azimuth is that at +azimuth with its
    # elements permuted, so its even part is the same and its odd part changes sign. With both mirrors, four classes
    # (even-even, odd-even, even-odd, odd-odd in azimuth and elevation) serve the four mirror images of a point at once:
    # a quarter of the steering vectors, and a quarter of the multiplications by any matrix.

    orbits: Tensor  # (n_orbits, 4) Each row: an element and its images under x -> -x, y -> -y and both
    # (4, n_orbits) Normalisation of the orbit's combination in each class; 0 where the class does not hold it
    scale: Tensor
    sizes: tuple[int, int, int, int]  # Elements of the basis in each class; they add up to N
    flips: tuple[bool, bool]  # Whether azimuth and elevation are mirrored

    @classmethod
    def find(cls, positions: Tensor, azimuth_flip: bool, elevation_flip: bool) -> MirrorBasis:
        """Basis for the mirrors that an array has among those asked for.

        positions (N, 3)
        """
        n = positions.shape[0]
        identity = torch.arange(n)
        by_x = _mirror_permutation(positions, 0) if azimuth_flip else None
        by_y = _mirror_permutation(positions, 1) if elevation_flip else None
        flips = (by_x is not None, by_y is not None)
        px = identity if by_x is None else by_x
        py = identity if by_y is None else by_y
        images = torch.stack([identity, px, py, px[py]], 1)
        orbits = images[images.min(1).values == identity]  # the lowest index of an orbit stands for it
        signs = torch.tensor(SIGN_TABLE, dtype=torch.float64)
        # Squared norm of sum_i chi_i e_orbit(i): images that coincide add up before they are squared.
        same = (orbits[:, :, None] == orbits[:, None, :]).double()
        norm2 = torch.einsum("ci,oij,cj->co", signs, same, signs)
        keep = norm2 > 0.5
        # Without a mirror, its images coincide for every element, so that class is empty by itself.
        scale = torch.where(keep, norm2.clamp_min(0.5).rsqrt(), torch.zeros_like(norm2))
        sizes = tuple(int(s) for s in keep.sum(1))
        return cls(orbits, scale, (sizes[0], sizes[1], sizes[2], sizes[3]), flips)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Start of each class in the basis, and N."""
        total = [0]
        for size in self.sizes:
            total.append(total[-1] + size)
        return tuple(total)

    @property
    def images(self) -> int:
        """Points that one point stands for: 1, 2 or 4."""
        return (1 + self.flips[0]) * (1 + self.flips[1])

    @property
    def trivial(self) -> bool:
        """No mirror is used; the basis is a permutation of the elements' own order, in fact the identity."""
        return not any(self.flips)

    def split(self, vectors: Tensor) -> list[Tensor]:
        """Coordinates of vectors in each of the four classes.

        vectors (..., N) -> (..., size)
        """
        if self.trivial:
            empty = vectors[..., :0]
            return [vectors, empty, empty, empty]
        images = vectors.index_select(-1, self.orbits.mT.flatten().to(vectors.device))
        v0, vx, vy, vxy = images.unflatten(-1, (4, -1)).unbind(-2)
        plus_x, minus_x, plus_y, minus_y = v0 + vx, v0 - vx, vy + vxy, vy - vxy
        whole = (plus_x + plus_y, minus_x + minus_y, plus_x - plus_y, minus_x - minus_y)
        real = vectors.real.dtype
        parts = []
        for part, scale in zip(whole, self.scale, strict=True):
            kept = scale > 0  # on the CPU: indexing by it then waits for no device
            held = part if bool(kept.all()) else part[..., kept]
            parts.append(held * scale[kept].to(vectors.device, real))
        return parts

    def transform(self, vectors: Tensor) -> Tensor:
        """Vectors in the basis, T^T v, classes one after the other.

        vectors (..., N)
        """
        return vectors if self.trivial else torch.cat(self.split(vectors), -1)

    def transform_matrix(self, matrix: Tensor) -> Tensor:
        """Matrices in the basis, T^T M T.

        matrix (..., N, N)
        """
        return matrix if self.trivial else self.transform(self.transform(matrix).mT).mT

    def restore_matrix(self, matrix: Tensor) -> Tensor:
        """Matrices out of the basis, T M T^T: the inverse of :meth:`transform_matrix`.

        matrix (..., N, N)
        """
        if self.trivial:
            return matrix
        basis = self.transform(torch.eye(sum(self.sizes), dtype=matrix.real.dtype)).to(matrix.dtype)  # row n: T[n, :]
        return basis @ matrix @ basis.mT


def _mirror_permutation(positions: Tensor, axis: int) -> Tensor | None:
    """Index of each element's image under negation of one coordinate; None if an image is missing."""
    mirrored = positions.clone()
    mirrored[:, axis] = -mirrored[:, axis]
    nearest = torch.cdist(mirrored, positions, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    size = max(float(positions.abs().max()), 1e-300)
    if float(nearest.values.max()) > _MIRROR_TOLERANCE * size:
        return None
    if nearest.indices.unique().numel() != positions.shape[0]:
        return None
    return nearest.indices


@lru_cache(maxsize=64)
def _domain_from_bytes(
    blobs: tuple[bytes, bytes, bytes, bytes], wavenumber: float, wavefront: str, box: bool
) -> Domain:
    def tensor(blob: bytes) -> Tensor:
        return torch.frombuffer(bytearray(blob), dtype=torch.float64) if blob else torch.empty(0, dtype=torch.float64)

    positions, azimuth, elevation, r = map(tensor, blobs)
    return Domain(positions.reshape(-1, 3), wavenumber, wavefront, azimuth, elevation, r, box)


def domain_of(
    positions: Tensor, axes: tuple[Tensor, Tensor, Tensor], wavenumber: float, wavefront: str, box: bool
) -> Domain:
    """The domain with given contents: equal boxes give the same object, so that its plans are found again.

    positions (N, 3)
    """
    tensors = (positions, *axes)
    blobs = tuple(t.detach().to("cpu", torch.float64).contiguous().numpy().tobytes() for t in tensors)
    if box:
        return _domain_from_bytes((blobs[0], blobs[1], blobs[2], blobs[3]), wavenumber, wavefront, box)
    # A list of points rarely comes twice and may be long: it is not kept.
    where, azimuth, elevation, r = (t.detach().to("cpu", torch.float64) for t in tensors)
    return Domain(where, wavenumber, wavefront, azimuth, elevation, r, box)


def tiles(low: int, high: int, bytes_per_point: int) -> Iterator[tuple[int, int]]:
    """Ranges of points whose temporaries stay in the cache."""
    step = max(32, TILE_BYTES // max(bytes_per_point, 1))
    for start in range(low, high, step):
        yield start, min(start + step, high)


class HalfAxis:
    """The half of an axis that has to be computed: all of it, or the part at or above zero where it is mirrored.

    axis (G,)
    """

    def __init__(self, axis: Tensor, mirrored: bool) -> None:
        self.count = axis.numel()
        self.mirrored = mirrored
        self.half = (self.count + 1) // 2 if mirrored else self.count
        self.values = axis[self.count - self.half :]

    def place(self, low: int, high: int, image: bool) -> slice:
        """Where some values of the half lie on the axis, or their mirror images, which run backwards."""
        first = self.count - self.half
        return slice(self.half - high, self.half - low) if image else slice(first + low, first + high)

    def unfold(self, upper: Tensor, lower: Tensor, dim: int) -> Tensor:
        """The whole axis from values at the half and at its mirror image; the centre is taken from the half."""
        if not self.mirrored:
            return upper
        image = lower.narrow(dim, self.count % 2, self.count - self.half).flip(dim)
        return torch.cat([image, upper], dim)

    def fold(self, whole: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Adjoint of :meth:`unfold`."""
        upper = whole.narrow(dim, self.count - self.half, self.half)
        if not self.mirrored:
            return upper, torch.zeros_like(upper)
        lower = torch.zeros_like(upper)
        outer = self.count - self.half
        lower.narrow(dim, self.count % 2, outer).copy_(whole.narrow(dim, 0, outer).flip(dim))
        return upper, lower


class PointSet:
    """A list of points without symmetry."""

    def __init__(self, domain: Domain, dtype: torch.dtype) -> None:
        self.domain, self.dtype = domain, dtype
        self.offsets: tuple[int, ...] = (0, *[domain.n_elements] * 4)
        self.images = 1
        self.classes: tuple[int, ...] = (0,)
        self.count = domain.azimuth.numel()

    def steering(self, low: int, high: int) -> Tensor:
        """Steering vectors of some points.

        -> (high - low, N)
        """
        d = self.domain
        return d.steering(d.azimuth[low:high], d.elevation[low:high], d.range[low:high]).to(self.dtype)


class NodeSet:
    """Nodes over azimuth x elevation on every range plane, flattened in the order (azimuth, range, elevation)."""

    def __init__(self, domain: Domain, azimuth: Tensor, elevation: Tensor, dtype: torch.dtype, keep: bool) -> None:
        self.domain, self.dtype = domain, dtype
        flips = domain.mirror.flips
        self.azimuth, self.elevation = HalfAxis(azimuth, flips[0]), HalfAxis(elevation, flips[1])
        self.offsets = domain.mirror.offsets
        self.images = 4 if any(flips) else 1
        self.classes = tuple(c for c in range(4) if (flips[0] or c % 2 == 0) and (flips[1] or c < 2))
        self.columns = domain.range.numel() * self.elevation.half  # nodes per azimuth
        self.count = self.azimuth.half * self.columns
        self._kept = self._table() if keep else None

    @staticmethod
    def stored_bytes(domain: Domain, n_azimuth: int, n_elevation: int, dtype: torch.dtype) -> int:
        """Bytes that ``keep`` costs."""
        flips = domain.mirror.flips
        half = [(n + 1) // 2 if flip else n for n, flip in zip((n_azimuth, n_elevation), flips, strict=True)]
        return half[0] * half[1] * domain.range.numel() * domain.n_elements * dtype.itemsize

    @property
    def cached_bytes(self) -> int:
        """Bytes of the stored steering vectors."""
        return 0 if self._kept is None else self._kept.numel() * self._kept.element_size()

    def _table(self) -> Tensor:
        """All steering vectors, made a tile at a time: the temporaries of one pass would be ten times the table."""
        table = torch.empty(self.count, self.domain.n_elements, dtype=self.dtype)
        for low, high in tiles(0, self.count, table.element_size() * self.domain.n_elements):
            table[low:high] = self.steering_at(torch.arange(low, high))
        return table

    def steering_at(self, index: Tensor) -> Tensor:
        """Steering vectors of nodes by their index, in the mirror basis.

        index (n,) -> (n, N)
        """
        azimuth, rest = index // self.columns, index % self.columns
        plane, elevation = rest // self.elevation.half, rest % self.elevation.half
        d = self.domain
        a = d.steering(self.azimuth.values[azimuth], self.elevation.values[elevation], d.range[plane])
        return d.mirror.transform(a).to(self.dtype)

    def steering(self, low: int, high: int) -> Tensor:
        """Steering vectors of some nodes, in the mirror basis.

        -> (high - low, N)
        """
        return self.steering_at(torch.arange(low, high)) if self._kept is None else self._kept[low:high]

    def to_box(self, images: Tensor, azimuth_low: int, azimuth_high: int) -> tuple[Tensor, Tensor]:
        """Values at some azimuths of the half axis as part of the box: there, and at their mirror images.

        images (images, b, g) -> upper, lower (b, R, azimuth_high - azimuth_low, G_el)
        """
        shape = (*images.shape[:2], azimuth_high - azimuth_low, self.domain.range.numel(), self.elevation.half)
        return self.unfold(images.reshape(shape).transpose(2, 3))

    def unfold(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The same from values plane by plane.

        v (images, b, R, azimuths, half G_el) -> upper, lower (b, R, azimuths, G_el)
        """
        if self.images == 1:
            return v[0], v[0, :, :, :0]
        upper = self.elevation.unfold(v[0], v[2], -1)
        lower = self.elevation.unfold(v[1], v[3], -1) if self.azimuth.mirrored else upper[:, :, :0]
        return upper, lower.flip(2)

    def from_box(self, values: Tensor) -> Tensor:
        """Adjoint of :meth:`to_box` over all azimuths.

        values (b, R, n_azimuth, n_elevation) -> (images, b, count)
        """
        return self.fold(values).transpose(2, 3).reshape(self.images, values.shape[0], self.count)

    def fold(self, values: Tensor) -> Tensor:
        """Adjoint of :meth:`unfold` over all azimuths.

        values (b, R, n_azimuth, n_elevation) -> (images, b, R, half G_az, half G_el)
        """
        if self.images == 1:
            return values[None]
        upper, lower = self.azimuth.fold(values, 2)
        (at, below), (beside, opposite) = self.elevation.fold(upper, 3), self.elevation.fold(lower, 3)
        return torch.stack([at, beside, below, opposite])
