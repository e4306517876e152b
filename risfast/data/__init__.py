"""Scenes: counter-based random numbers and the generator of the reference system."""

from risfast.data.random import SceneRandom
from risfast.data.scenes import Coherence, Scenes, SystemConfig, generate_scenes

__all__ = ["Coherence", "SceneRandom", "Scenes", "SystemConfig", "generate_scenes"]
