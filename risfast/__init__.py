"""Near-field source localisation behind reconfigurable surfaces and arrays.

The operators are in :mod:`risfast.ops`; :func:`detect_sources` goes from a covariance to sources.
"""

from risfast.detect import DetectionOptions, Sources, detect_sources, detect_sources_lowrank
from risfast.geometry import PlanarArray, SearchGrid

__all__ = [
    "DetectionOptions",
    "PlanarArray",
    "SearchGrid",
    "Sources",
    "__version__",
    "detect_sources",
    "detect_sources_lowrank",
]

__version__ = "0.1.0"
