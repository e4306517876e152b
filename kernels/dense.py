"""Dense analysis on a GPU: steering vectors made on the fly in tiles, times the columns of a factor.

    q_g = sum_k |w_k^H a_g|^2,    W [B, N, K],  K = 1 .. N

for any array, any wavefront, box grids and lists of points. Neither the steering matrix nor, when the best plane is
asked for, the volume is ever stored. A full-rank a^H R^-1 a is this with W = L^-H from R = L L^H: its column k is zero
below row k, and ``triangular`` leaves out what is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.errors import ShapeError
from risfast.geometry import direction_cosines
from risfast.ops.domain import Domain
from risfast.ops.spectra import Epilogue
from risfast.steering import check_wavefront, farthest

from .device import (
    first_best,
    keep_best,
    load_complex,
    load_points,
    plus_conjugate_product,
    power_of,
    steering_tile,
    store_best,
)
from .launch import (
    Outputs,
    check_extent,
    check_operands,
    dot_precision,
    interleaved,
    launch,
    map_or_volume,
    power_and_plane,
    written,
)


@triton.jit
def dense_analysis_kernel(  # type: ignore[no-untyped-def]
    factor_ptr,  # [B, N, K, 2]
    position_ptr,  # [3, N] wavelengths
    direction_ptr,  # [3, G]
    range_ptr,  # [R] or [G], wavelengths
    scale_ptr,  # [B]
    best_ptr,  # [B, G]
    plane_ptr,  # [B, G]
    volume_ptr,  # [B, R, G]
    offset,
    B,
    N,
    K,
    G,
    R,
    range_step_plane,
    range_step_point,
    point_blocks,
    WAVEFRONT: tl.constexpr,
    TRIANGULAR: tl.constexpr,
    EPILOGUE: tl.constexpr,
    VOLUME: tl.constexpr,
    PRECISION: tl.constexpr,
    SCENES: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """q, epilogue and best plane of BLOCK_G directions of SCENES scenes, over all planes and columns.

    Tile [BLOCK_G, SCENES * BLOCK_K] of products w_k^H a_g, real and imaginary, summed over elements BLOCK_N at a time.
    Reads the factors of its scenes from the caches; writes power and plane (the volume instead, if asked).
    8 N K + 4 K flops a point and scene, ceil(K / BLOCK_K) N / SCENES steering elements; 8 bytes a direction, or 4 R.
    """
    pid = tl.program_id(0)
    g = pid % point_blocks * BLOCK_G + tl.arange(0, BLOCK_G)  # [BLOCK_G]
    scene = (pid // point_blocks * SCENES).to(tl.int64) + tl.arange(0, SCENES)  # [SCENES]
    column = tl.arange(0, SCENES * BLOCK_K)  # scene, then k within the block
    column_scene = (pid // point_blocks * SCENES).to(tl.int64) + column // BLOCK_K  # [SCENES * BLOCK_K]
    u = load_points(direction_ptr, g, G)  # of [BLOCK_G]
    scale = tl.load(scale_ptr + scene, mask=scene < B, other=1.0)[None, :]  # [1, SCENES]
    there = (g < G)[:, None] & (scene < B)[None, :]  # [BLOCK_G, SCENES]
    best, plane = first_best(tl.zeros([BLOCK_G, SCENES], tl.float32), EPILOGUE)
    for index in range(0, R):
        r = tl.load(range_ptr + index * range_step_plane + g * range_step_point, mask=g < G, other=1.0)  # [BLOCK_G]
        q = tl.zeros([BLOCK_G, SCENES], tl.float32)
        for first_k in range(0, K, BLOCK_K):
            k = first_k + column % BLOCK_K  # [SCENES * BLOCK_K]
            column_there = (k < K) & (column_scene < B)
            re = tl.zeros([BLOCK_G, SCENES * BLOCK_K], tl.float32)
            im = tl.zeros([BLOCK_G, SCENES * BLOCK_K], tl.float32)
            last_n = tl.minimum(N, first_k + BLOCK_K) if TRIANGULAR else N
            for first_n in range(0, last_n, BLOCK_N):
                n = first_n + tl.arange(0, BLOCK_N)  # [BLOCK_N]
                a_re, a_im = steering_tile(u, r, position_ptr, n, N, WAVEFRONT)  # [BLOCK_G, BLOCK_N]
                # Rows beyond N are zero in the factor, so what the steering vector holds there does not matter.
                entry = factor_ptr + 2 * ((column_scene[None, :] * N + n[:, None]) * K + k[None, :])
                w_there = (n < N)[:, None] & column_there[None, :]
                w_re, w_im = load_complex(entry, w_there)  # [BLOCK_N, SCENES * BLOCK_K]
                re, im = plus_conjugate_product(a_re, a_im, w_re, w_im, re, im, PRECISION)
            q += tl.sum(tl.reshape(re * re + im * im, [BLOCK_G, SCENES, BLOCK_K]), axis=2)
        if VOLUME:
            out = volume_ptr + (scene[None, :] * R + index) * G + g[:, None]
            tl.store(out, power_of(q, scale, offset, EPILOGUE), mask=there)
        else:
            best, plane = keep_best(best, plane, q, index, EPILOGUE)
    if not VOLUME:
        out = scene[None, :] * G + g[:, None]
        store_best(best_ptr + out, plane_ptr + out, best, plane, scale, offset, there, EPILOGUE)


@dataclass(frozen=True, eq=False)
class DensePoints:
    """Array and points of the dense kernel, float32 on one device; made once and kept with a plan."""

    positions: Tensor  # (3, N) Wavelengths
    direction: Tensor  # (3, G) Unit vectors; G = G_az G_el of a box, azimuth first
    range: Tensor  # (R,) of a box, (G,) of a list, in wavelengths; at most :func:`risfast.steering.farthest`
    shape: tuple[int, ...]  # (G_az, G_el, R) of a box, (G,) of a list
    wavefront: str

    @classmethod
    def build(cls, domain: Domain, device: torch.device | str) -> DensePoints:
        """Points of a domain, computed in float64."""
        check_wavefront(domain.wavefront)
        per_wavelength = domain.wavenumber / (2 * torch.pi)
        azimuth, elevation = domain.azimuth, domain.elevation
        if domain.box:
            azimuth, elevation = torch.meshgrid(azimuth, elevation, indexing="ij")
        direction = direction_cosines(azimuth, elevation).reshape(-1, 3)

        def stored(values: Tensor) -> Tensor:
            return values.to(device, torch.float32).contiguous()

        positions = stored((domain.positions * per_wavelength).mT)
        ranges = stored((domain.range * per_wavelength).clamp_max(farthest(torch.float32)))
        return cls(positions, stored(direction.mT), ranges, domain.shape, domain.wavefront)

    @property
    def is_box(self) -> bool:
        """Whether the range planes are shared by all directions."""
        return len(self.shape) == 3

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """As the kernels take them."""
        return self.positions, self.direction, self.range

    @property
    def planes(self) -> tuple[int, int, int]:
        """Planes R, and the steps in ``range`` from plane to plane and from point to point."""
        return (self.shape[2], 1, 0) if self.is_box else (1, 0, 1)

    def outputs(self, batch: int, volume: bool) -> Outputs:
        """Memory for a map or a volume of these points."""
        if not volume and not self.is_box:
            raise ValueError("the best plane is that of a box grid; a list of points has no planes, ask for the volume")
        shape = (batch, self.shape[2], *self.shape[:2]) if self.is_box else (batch, *self.shape)
        return map_or_volume(shape, volume, torch.float32, self.positions.device)


def dense_configuration(columns: int, batch: int) -> dict[str, int]:
    """Pinned tile for a number of columns: with few of them, several scenes share each steering vector."""
    if columns > 16:
        return {"SCENES": 1, "BLOCK_G": 128, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 8}
    if batch > 1:
        return {"SCENES": 2, "BLOCK_G": 128, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 8}
    return {"SCENES": 1, "BLOCK_G": 64, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4}


def dense_power(
    factor: Tensor,
    points: DensePoints,
    epilogue: Epilogue,
    volume: bool = False,
    *,
    triangular: bool = False,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Power of the best plane and its index, both [B, G_az, G_el]; or on every point, and no index.

    factor (B, N, K) -> power (B, G_az, G_el), (B, G_az, G_el, R) or (B, G), plane
    """
    device = check_operands(dense_analysis_kernel, factor=factor, points=points.positions)
    n, size = points.positions.shape[1], points.direction.shape[1]
    if factor.ndim != 3 or factor.shape[1] != n or factor.shape[2] < 1:
        mend = "; it looks transposed, pass factor.mT" if factor.ndim == 3 and factor.shape[2] == n else ""
        raise ShapeError(f"factor must have shape (B, {n}, K) with K >= 1, got {tuple(factor.shape)}{mend}")
    if factor.dtype != torch.complex64:
        raise TypeError(
            f"factor must be complex64, got {factor.dtype}; the dense kernel computes in float32, "
            "risfast.ops on CPU tensors in float64"
        )
    batch, _, columns = factor.shape
    check_extent(points=size, factor=2 * n * columns)
    outputs = points.outputs(batch, volume)
    configuration = dense_configuration(columns, batch)
    blocks = triton.cdiv(size, configuration["BLOCK_G"])
    operands = interleaved(factor), *points.arguments, *written(epilogue, outputs, batch)
    sizes = batch, n, columns, size, *points.planes, blocks
    constants = {"WAVEFRONT": points.wavefront, "TRIANGULAR": triangular, "EPILOGUE": epilogue.form, "VOLUME": volume}
    constants |= {"PRECISION": dot_precision(precision), **configuration}
    programs = blocks * triton.cdiv(batch, configuration["SCENES"]) if points.shape[-1] else 0
    launch(dense_analysis_kernel, programs, device, *operands, *sizes, **constants)
    return power_and_plane(outputs)
