"""Near-field source localisation behind reconfigurable surfaces and arrays.

The operators are in :mod:`risfast.ops`; :func:`detect_sources` goes from a covariance to sources, and
:class:`Localizer` from snapshots to sources.
"""

import logging
from typing import TYPE_CHECKING, Any

from risfast.detect import DetectionOptions, Sources, detect_sources, detect_sources_lowrank
from risfast.geometry import PlanarArray, Region, SearchGrid, SensorArray
from risfast.setup import Setup, Tolerance

if TYPE_CHECKING:
    from risfast.localize import Localizer

__all__ = [
    "DetectionOptions",
    "Localizer",
    "PlanarArray",
    "Region",
    "SearchGrid",
    "SensorArray",
    "Setup",
    "Sources",
    "Tolerance",
    "__version__",
    "detect_sources",
    "detect_sources_lowrank",
]

__version__ = "0.2.0.dev0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until the application says where messages go


def __getattr__(name: str) -> Any:
    """The localizer brings the networks with it: it is imported when it is asked for, not with the operators."""
    if name == "Localizer":
        from risfast.localize import Localizer  # noqa: PLC0415

        return Localizer
    raise AttributeError(f"module 'risfast' has no attribute {name!r}")
