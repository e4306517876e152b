"""Counter-based random numbers: a draw is a function of (seed, scene index, stream, position), never of history.

So the same (seed, index) gives the same scene for any batch size and any split into batches, on any device, and
drawing more numbers from one stream never shifts another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from enum import IntEnum

import torch
from torch import Tensor


class Stream(IntEnum):
    """The independent random streams of a scene. Values are part of what a seed means: never renumber them."""

    SOURCE_COUNT = 0
    POSITION = 1
    SNR = 2
    CODE_KIND = 3
    BEAM_ORDER = 4
    RANDOM_CODE = 5
    HADAMARD_ORDER = 6
    RICIAN_FACTOR = 7
    LINE_OF_SIGHT = 8
    SCATTERING = 9
    SYMBOLS = 10
    COMMON_SYMBOL = 11
    COHERENT_PHASE = 12
    COHERENT_SCENE = 13
    NOISE = 14
    CODE_PHASE_NOISE = 15
    AMPLITUDE_JITTER = 16
    DROPPED_ELEMENTS = 17
    WAVELENGTH_JITTER = 18
    SPACING_JITTER = 19
    POSITION_JITTER = 20
    CODE_OFFSET = 21
    POINTING_OFFSET = 22


_WORD = 0xFFFFFFFF
# Multipliers, key increments and round count of Philox-4x32-10 (Salmon et al. 2011, table 2).
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MAX_STREAM = 2**32
_STREAMS_OF_A_BAND = 256


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox-4x32-10: four random 32-bit words for every 128-bit counter."""
    # Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. For a fixed key it is a
    # bijection of the counter, so that different counters never give the same block. Torch has no unsigned 64-bit
    # arithmetic: products wrap in int64, and a shift followed by a mask takes their high word whatever the sign.
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (
            (product1 >> 32).bitwise_and_(_WORD).bitwise_xor_(c1).bitwise_xor_(k0),
            (product0 >> 32).bitwise_and_(_WORD).bitwise_xor_(c3).bitwise_xor_(k1),
        )
        c1, c3 = product1.bitwise_and_(_WORD), product0.bitwise_and_(_WORD)
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


class SceneRandom:
    """Random numbers of a batch of scenes.

    indices (B,)
    """

    # Each draw names a ``stream``. Two draws from one stream return the same numbers, and the shorter one is a prefix
    # of the longer (in row-major order). The words are the same on every device; ``normal`` may differ between devices
    # in the last bits of log, cos and sin. Every result is float64 or int64.

    def __init__(self, seed: int, indices: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int, got {type(seed).__name__}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2^64), got {seed}")
        index = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices))
        if index.numel() == 0:
            index = index.long()
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise TypeError(f"indices must be integers, got {index.dtype}")
        if index.ndim != 1:
            raise ValueError(f"indices must be 1D, one scene each, got shape {tuple(index.shape)}")
        if index.numel() and int(index.min()) < 0:
            raise ValueError(f"indices must be >= 0, got {int(index.min())}")
        self.indices = index.to(device=device, dtype=torch.int64)
        self._key = (seed & _WORD, seed >> 32)
        self._first_stream = 0

    def of_band(self, band: int) -> SceneRandom:
        """Streams of the same scenes for what differs between narrow bands; those of band 0 are the scenes' own."""
        part = copy(self)
        part._first_stream = band * _STREAMS_OF_A_BAND
        return part

    @property
    def device(self) -> torch.device:
        """Device of every draw."""
        return self.indices.device

    @property
    def batch(self) -> int:
        """Number of scenes B."""
        return int(self.indices.numel())

    def words(self, stream: int, count: int) -> Tensor:
        """Independent uniform 32-bit words.

        -> (B, count)
        """
        if not 0 <= stream < _MAX_STREAM:
            raise ValueError(f"stream must lie in [0, 2^32), got {stream}")
        block = torch.arange(-(-count // 4), device=self.device)
        stream += self._first_stream
        index = self.indices[:, None]
        counter = (block, torch.full_like(block, stream), index & _WORD, index >> 32)
        return torch.stack(philox(counter, self._key), -1).flatten(1)[:, :count]

    def uniform(self, stream: int, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in the open interval (0, 1), in steps of 2^-32.

        -> (B, *shape)
        """
        words = self.words(stream, math.prod(shape))
        return words.double().add_(0.5).mul_(2.0**-32).reshape(self.batch, *shape)

    def integers(self, stream: int, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Integers uniform in low <= n < high, to within 2^-32.

        -> (B, *shape)
        """
        if not 0 < high - low <= _WORD:
            raise ValueError(f"high must exceed low by 1 to 2^32 - 1, got low = {low} and high = {high}")
        return (self.uniform(stream, shape) * (high - low)).long() + low

    def complex_normal(self, stream: int, shape: Sequence[int] = ()) -> Tensor:
        """Circular complex normal numbers of unit variance, |z| < 4.8.

        -> (B, *shape)
        """
        # G. E. P. Box, M. E. Muller, "A note on the generation of random normal deviates", Ann. Math. Statist. 29,
        # 1958.
        pairs = self.uniform(stream, (math.prod(shape), 2))
        z = torch.polar((-pairs[..., 0].log()).sqrt(), 2 * math.pi * pairs[..., 1])
        return z.reshape(self.batch, *shape)

    def normal(self, stream: int, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal numbers, |x| < 6.8: the parts of :meth:`complex_normal`, scaled.

        -> (B, *shape)
        """
        count = math.prod(shape)
        z = self.complex_normal(stream, (-(-count // 2),))
        return torch.view_as_real(z).flatten(1)[:, :count].mul(math.sqrt(2.0)).reshape(self.batch, *shape)

    def permutation(self, stream: int, count: int) -> Tensor:
        """A random order of 0 .. count - 1.

        -> (B, count)
        """
        return self.words(stream, count).argsort(dim=1, stable=True)
