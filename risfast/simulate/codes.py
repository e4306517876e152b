"""Phase codes of the surface: DFT beams, random, Hadamard and mixed codebooks, and their quantisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from risfast.geometry import PlanarArray
from risfast.simulate.streams import SceneRandom, Stream

CODE_KINDS = ("dft", "random", "hadamard", "mixed")
DFT_BEAMS = (16, 32, 64)
# Beams fall on ties between levels by design: snapping their phases to this fraction of a turn makes a tie exact, where
# the rounding of element positions would decide it.
_TURN_GRID = 2.0**32
_GOLDEN = (math.sqrt(5) - 1) / 2


def quantize_turns(turns: Tensor, bits: int | None) -> Tensor:
    """Round phases to the nearest of 2^bits levels, ties to the even level."""
    if bits is None:
        return turns
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
        raise ValueError(f"bits must be an integer from 1 to 16, or None for continuous phases; got {bits!r}")
    return (turns * 2**bits).round() / 2**bits


def _unit(turns: Tensor) -> Tensor:
    """exp(j 2 pi turns), complex128."""
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)


def _beam_split(n_beams: int, array: PlanarArray) -> tuple[int, int]:
    """Beams along x and along y: powers of two whose ratio is nearest to the aperture's, wider along x on a tie."""
    extent = array.positions_m[:, :2].amax(0) - array.positions_m[:, :2].amin(0)
    if float(extent[1]) == 0:
        return n_beams, 1
    if float(extent[0]) == 0:
        return 1, n_beams
    ratio = math.log2(float(extent[0] / extent[1]))
    exponent = int(math.log2(n_beams))
    splits = [(2**i, 2 ** (exponent - i)) for i in range(exponent, -1, -1)]
    return min(splits, key=lambda s: abs(math.log2(s[0] / s[1]) - ratio))


def _beam_turns(array: PlanarArray, n_beams: int) -> Tensor:
    """Phases in turns of separable DFT beams, (n_beams, N): directions that tile the direction cosines evenly."""
    n_x, n_y = _beam_split(n_beams, array)
    cosines = [(2 * torch.arange(n, dtype=torch.float64) - (n - 1)) / n for n in (n_x, n_y)]
    x, y = (array.positions_m[:, i] / array.wavelength_m for i in (0, 1))
    turns = cosines[0][:, None, None] * x + cosines[1][None, :, None] * y
    return (turns.reshape(n_beams, -1) * _TURN_GRID).round() / _TURN_GRID


def _choose_rows(count: int, n_snapshots: int, draws: SceneRandom | None, stream: int) -> Tensor:
    """Which of ``count`` (a power of two) codewords each snapshot takes: (B, L) in random order, or (L,) spread out."""
    # Every codeword is used once before any is used again.
    snapshot = torch.arange(n_snapshots)
    if draws is None:
        stride = round(_GOLDEN * count) | 1  # odd, so that it visits every row
        return snapshot * stride % count
    return draws.permutation(stream, count)[:, snapshot.to(draws.device) % count]


def _hadamard(rows: Tensor, n_elements: int) -> Tensor:
    """Rows of the Sylvester matrix of order >= N, cut to N columns: complex128, (..., N), +1 or -1."""
    overlap = rows[..., None] & torch.arange(n_elements, device=rows.device)
    for shift in (32, 16, 8, 4, 2, 1):
        overlap = overlap ^ (overlap >> shift)
    return (1 - 2 * (overlap & 1)).to(torch.complex128)


def make_codes(
    kind: str,
    n_snapshots: int,
    array: PlanarArray,
    *,
    bits: int | None = 3,
    n_beams: int | None = None,
    draws: SceneRandom | None = None,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Unit-modulus phase codes c_l of the surface.

    -> (B, L, N), or (L, N)
    """
    if kind not in CODE_KINDS:
        raise ValueError(f"kind must be one of {', '.join(CODE_KINDS)}; got {kind!r}")
    if n_snapshots < 1:
        raise ValueError(f"n_snapshots must be at least 1, got {n_snapshots}")
    quantize_turns(torch.zeros(0), bits)  # refuses bad bits, for the kinds that need none too
    if n_beams is None:
        n_beams = next((n for n in DFT_BEAMS if n >= n_snapshots), DFT_BEAMS[-1])
    if n_beams not in DFT_BEAMS:
        raise ValueError(f"n_beams must be one of {DFT_BEAMS} or None, got {n_beams!r}")
    return _codes(kind, n_snapshots, array, n_beams, bits, draws).to(dtype)


def _codes(
    kind: str, n_snapshots: int, array: PlanarArray, n_beams: int, bits: int | None, draws: SceneRandom | None
) -> Tensor:
    """Codes of one kind, complex128, (B, L, N) or (L, N)."""
    n = array.n_elements
    if kind == "dft":
        rows = _choose_rows(n_beams, n_snapshots, draws, Stream.BEAM_ORDER)
        return _unit(quantize_turns(_beam_turns(array, n_beams), bits)).to(rows.device)[rows]
    if kind == "hadamard":  # +1 and -1 are levels of every resolution
        order = 1 << (n - 1).bit_length()
        return _hadamard(_choose_rows(order, n_snapshots, draws, Stream.HADAMARD_ORDER), n)
    if draws is None:
        raise ValueError(f"kind {kind!r} is random: pass draws, e.g. risfast.simulate.SceneRandom(seed, indices)")
    if kind == "random":
        return _unit(quantize_turns(draws.uniform(Stream.RANDOM_CODE, (n_snapshots, n)), bits))
    codes = _codes("random", n_snapshots, array, n_beams, bits, draws)
    for first, other in ((0, "dft"), (2, "hadamard")):
        codes[:, first::3] = _codes(other, n_snapshots, array, n_beams, bits, draws)[:, first::3]
    return codes
