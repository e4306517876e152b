"""Evaluation of the lag method on a GPU: trigonometric polynomials in sin(az), their epilogue and the best plane.

For one elevation q = sum_D x_D cos + y_D sin of k D_h spacing sin(az) cos(el), with rows x and y of n_h coefficients:
at -az the sine part changes sign, so each row serves both.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from risfast.ops.spectra import Epilogue

from .device import first_best, keep_best, power_of, store_best
from .lag_tables import LagTables
from .launch import Outputs, check_operands, launch, written

MOST_COLUMNS = {torch.float32: 64, torch.float64: 32}  # of elements, whose tables fit the registers
_MOST_SCENES = 8  # scenes of one evaluation program, which share its tables


@triton.jit
def _tables(table_ptr, a, half_az, N_H: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """Rows 1 .. N_H - 1 of [N_H, half G_az] at azimuths a, as a tuple that stays in registers."""
    values = ()
    for lag in tl.static_range(1, N_H):
        value = tl.load(table_ptr + lag * half_az + a, mask=a < half_az, other=0.0)
        # Triton's compiler knows no unpacking in tuple displays, nor annotations of local names.
        values = values + (value,)  # type: ignore[assignment] # noqa: RUF005
    return values


@triton.jit
def _sums(x, y, nothing0, nothing1, cos0, sin0, cos1, sin1, N_H: tl.constexpr, TAIL: tl.constexpr) -> Any:  # type: ignore[no-untyped-def]
    """Cosine and sine sums of the rows at x and y, for both blocks of azimuths; the second is empty without TAIL."""
    constant = tl.load(x)
    even0, odd0 = nothing0 + constant, nothing0
    even1, odd1 = nothing1 + constant, nothing1
    for lag in tl.static_range(1, N_H):
        x_lag = tl.load(x + lag)
        y_lag = tl.load(y + lag)
        even0 += x_lag * cos0[lag - 1]
        odd0 += y_lag * sin0[lag - 1]
        if TAIL > 0:
            even1 += x_lag * cos1[lag - 1]
            odd1 += y_lag * sin1[lag - 1]
    return even0, odd0, even1, odd1


@triton.jit
def _store_plane(  # type: ignore[no-untyped-def]
    out,
    a,
    half_az,
    G_az,
    even,
    odd,
    scale,
    offset,
    MIRROR_AZ: tl.constexpr,
    CENTRE: tl.constexpr,
    EPILOGUE: tl.constexpr,
) -> None:
    """Powers at azimuths a of a row of the volume and at their mirror images; CENTRE if a may be its own."""
    tl.store(out + (G_az - half_az) + a, power_of(even + odd, scale, offset, EPILOGUE), mask=a < half_az)
    if MIRROR_AZ:
        beside = a < half_az
        if CENTRE:
            beside &= a >= G_az % 2
        tl.store(out + (half_az - 1) - a, power_of(even - odd, scale, offset, EPILOGUE), mask=beside)


@triton.jit
def _keep_both(  # type: ignore[no-untyped-def]
    best, plane, image, image_plane, even, odd, r, MIRROR_AZ: tl.constexpr, EPILOGUE: tl.constexpr
) -> Any:
    """Best forms and planes at azimuths and at their mirror images, after plane r."""
    best, plane = keep_best(best, plane, even + odd, r, EPILOGUE)
    if MIRROR_AZ:
        image, image_plane = keep_best(image, image_plane, even - odd, r, EPILOGUE)
    return best, plane, image, image_plane


@triton.jit
def _store_both(  # type: ignore[no-untyped-def]
    best_ptr,
    plane_ptr,
    a,
    half_az,
    G_az,
    found,
    scale,
    offset,
    MIRROR_AZ: tl.constexpr,
    CENTRE: tl.constexpr,
    EPILOGUE: tl.constexpr,
) -> None:
    """The map at azimuths a of a row and at their mirror images; CENTRE if a may be its own."""
    best, plane, image, image_plane = found
    # Scalars first, so that the pointers of a block are not kept in its lanes.
    powers, planes = best_ptr + (G_az - half_az), plane_ptr + (G_az - half_az)
    store_best(powers + a, planes + a, best, plane, scale, offset, a < half_az, EPILOGUE)
    if MIRROR_AZ:
        beside = a < half_az
        if CENTRE:
            beside &= a >= G_az % 2
        powers, planes = best_ptr + (half_az - 1), plane_ptr + (half_az - 1)
        store_best(powers - a, planes - a, image, image_plane, scale, offset, beside, EPILOGUE)


@triton.jit
def lag_evaluate_kernel(  # type: ignore[no-untyped-def]
    rows_ptr,  # [2, G_el, B, R, N_H]
    cos_ptr,  # [half G_el, N_H, half G_az]
    sin_ptr,  # [half G_el, N_H, half G_az]
    scale_ptr,  # [B]
    best_ptr,  # [B, G_el, G_az]
    plane_ptr,  # [B, G_el, G_az]
    volume_ptr,  # [B, R, G_el, G_az]
    offset,
    B,
    R,
    G_az,
    G_el,
    half_az,
    half_el,
    chunks,
    N_H: tl.constexpr,
    SCENES: tl.constexpr,
    MIRROR_AZ: tl.constexpr,
    IMAGES: tl.constexpr,
    BLOCK_A: tl.constexpr,
    TAIL: tl.constexpr,
    EPILOGUE: tl.constexpr,
    VOLUME: tl.constexpr,
) -> None:
    """Power and best plane at one elevation and its mirror image, of BLOCK_A + TAIL half-azimuths and SCENES scenes.

    Cosines and sines [N_H - 1] x [BLOCK_A + TAIL] stay in registers; the rows are scalars; TAIL may be 0.
    Reads the rows once per block of azimuths; writes power and plane (the volume instead, if asked), azimuth fastest.
    2 (N_H - 1) fused operations per pair of mirrored points and plane; 8 bytes per point of the map, 4 R of the volume.
    """
    pid = tl.program_id(0)
    e = pid % half_el
    first_a = pid // half_el % chunks * (BLOCK_A + TAIL)
    first_scene = pid // half_el // chunks * SCENES
    dtype: tl.constexpr = rows_ptr.dtype.element_ty
    table = e * N_H * half_az
    a0 = first_a + tl.arange(0, BLOCK_A)  # [BLOCK_A]
    cos0, sin0 = _tables(cos_ptr + table, a0, half_az, N_H), _tables(sin_ptr + table, a0, half_az, N_H)
    nothing0 = tl.zeros([BLOCK_A], dtype)
    a1, cos1, sin1, nothing1 = a0, cos0, sin0, nothing0
    if TAIL > 0:
        a1 = first_a + BLOCK_A + tl.arange(0, TAIL)  # [TAIL]
        cos1, sin1 = _tables(cos_ptr + table, a1, half_az, N_H), _tables(sin_ptr + table, a1, half_az, N_H)
        nothing1 = tl.zeros([TAIL], dtype)
    for item in range(0, SCENES * IMAGES):
        scene = (first_scene + item // IMAGES).to(tl.int64)
        if scene < B:
            # The mirror image of elevation (G_el - half + e) is half - 1 - e; without one, half is G_el.
            el = G_el - half_el + e
            if item % IMAGES == 1:
                el = half_el - 1 - e
            scale = tl.load(scale_ptr + scene)
            best0, plane0 = first_best(nothing0, EPILOGUE)
            best1, plane1 = first_best(nothing1, EPILOGUE)
            image0, image_plane0, image1, image_plane1 = best0, plane0, best1, plane1
            for r in range(0, R):
                x = rows_ptr + ((el.to(tl.int64) * B + scene) * R + r) * N_H
                y = rows_ptr + (((el + G_el).to(tl.int64) * B + scene) * R + r) * N_H
                even0, odd0, even1, odd1 = _sums(x, y, nothing0, nothing1, cos0, sin0, cos1, sin1, N_H, TAIL)
                if VOLUME:
                    out = volume_ptr + ((scene * R + r) * G_el + el) * G_az
                    _store_plane(out, a0, half_az, G_az, even0, odd0, scale, offset, MIRROR_AZ, True, EPILOGUE)
                    if TAIL > 0:
                        _store_plane(out, a1, half_az, G_az, even1, odd1, scale, offset, MIRROR_AZ, False, EPILOGUE)
                else:
                    best0, plane0, image0, image_plane0 = _keep_both(
                        best0, plane0, image0, image_plane0, even0, odd0, r, MIRROR_AZ, EPILOGUE
                    )
                    if TAIL > 0:
                        best1, plane1, image1, image_plane1 = _keep_both(
                            best1, plane1, image1, image_plane1, even1, odd1, r, MIRROR_AZ, EPILOGUE
                        )
            if not VOLUME:
                row, planes = best_ptr + (scene * G_el + el) * G_az, plane_ptr + (scene * G_el + el) * G_az
                found = (best0, plane0, image0, image_plane0)
                _store_both(row, planes, a0, half_az, G_az, found, scale, offset, MIRROR_AZ, True, EPILOGUE)
                if TAIL > 0:
                    found = (best1, plane1, image1, image_plane1)
                    _store_both(row, planes, a1, half_az, G_az, found, scale, offset, MIRROR_AZ, False, EPILOGUE)


def lag_configuration(n_h: int, dtype: torch.dtype) -> dict[str, int]:
    """Pinned tile of the evaluation: as many azimuths per lane as the 2 (n_h - 1) tables leave registers for."""
    for most, block, tail in ((12, 128, 64), (16, 128, 0), (32, 64, 0), (64, 32, 0)):
        if n_h <= most <= MOST_COLUMNS[dtype]:
            return {"BLOCK_A": block, "TAIL": tail, "num_warps": 2 if dtype == torch.float64 else 1}
    raise ValueError(
        f"the lag kernels ship no configuration for {n_h} columns in {dtype} (at most {MOST_COLUMNS[dtype]}); "
        "use method='chebyshev' or 'dense', or the CPU implementation of method='lag'"
    )


def lag_evaluate(rows: Tensor, tables: LagTables, epilogue: Epilogue, outputs: Outputs) -> None:
    """Fill the map and the winning planes [B, G_el, G_az], or the volume [B, R, G_el, G_az], whichever is there.

    rows (2, G_el, B, R, n_h)
    """
    configuration = lag_configuration(tables.n_h, tables.dtype)
    device = check_operands(lag_evaluate_kernel, rows=rows, tables=tables.cosines, power=outputs[0])
    batch, planes, n_h = rows.shape[2:]
    half_el, _, half_az = tables.cosines.shape
    chunks = triton.cdiv(half_az, configuration["BLOCK_A"] + configuration["TAIL"])
    scenes = min(_MOST_SCENES, triton.next_power_of_2(max(batch, 1)))
    operands = rows, tables.cosines, tables.sines, *written(epilogue, outputs, batch)
    sizes = batch, planes, tables.n_azimuth, tables.n_elevation, half_az, half_el, chunks
    constants = {"N_H": n_h, "SCENES": scenes, "MIRROR_AZ": tables.mirror_azimuth}
    constants |= {"IMAGES": 2 if tables.mirror_elevation else 1, "EPILOGUE": epilogue.form}
    constants |= {"VOLUME": outputs[2] is not None, **configuration}
    programs = half_el * chunks * triton.cdiv(batch, scenes)
    launch(lag_evaluate_kernel, programs, device, *operands, *sizes, **constants)
