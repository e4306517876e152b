"""Where random numbers come from: the streams of a scene, and what a source of random numbers must offer.

``risfast.data.random.SceneRandom`` is such a source. Each effect draws from a stream of its own, so that switching one
on never changes the numbers of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Draws", "Stream"]


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


class Draws(Protocol):
    """Random numbers of a batch of B scenes; each result has B in front of ``shape``."""

    @property
    def device(self) -> torch.device:
        """Device of the results."""

    @property
    def batch(self) -> int:
        """B."""

    def uniform(self, stream: int, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in (0, 1).

        Parameters
        ----------
        stream : int
            One of :class:`Stream`. The same stream gives the same numbers again.
        shape : sequence of int
            Of the numbers of one scene.

        Returns
        -------
        float64 tensor, shape (B, *shape)
        """

    def normal(self, stream: int, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal numbers.

        Parameters
        ----------
        stream, shape
            As :meth:`uniform` takes them.

        Returns
        -------
        float64 tensor, shape (B, *shape)
        """

    def complex_normal(self, stream: int, shape: Sequence[int] = ()) -> Tensor:
        """Circular complex normal numbers of unit variance.

        Parameters
        ----------
        stream, shape
            As :meth:`uniform` takes them.

        Returns
        -------
        complex128 tensor, shape (B, *shape)
        """

    def permutation(self, stream: int, count: int) -> Tensor:
        """A random order of 0 .. count - 1.

        Parameters
        ----------
        stream : int
            As :meth:`uniform` takes it.
        count : int
            Entries.

        Returns
        -------
        int64 tensor, shape (B, count)
        """
