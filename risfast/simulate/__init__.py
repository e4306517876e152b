"""Scenes: counter-based random numbers and the generator of the reference system; :func:`read` for measured data."""

from typing import Any

from risfast.simulate.scenes import Coherence, Scenes, SystemConfig, generate_scenes
from risfast.simulate.streams import SceneRandom

__all__ = ["Coherence", "SceneRandom", "Scenes", "SystemConfig", "generate_scenes", "read"]


def __getattr__(name: str) -> Any:
    """The readers are imported when they are asked for, not with the scenes."""
    if name == "read":
        from risfast.io.reading import read  # noqa: PLC0415

        return read
    raise AttributeError(f"module 'risfast.simulate' has no attribute {name!r}")
