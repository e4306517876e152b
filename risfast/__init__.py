"""Near-field source localisation behind reconfigurable surfaces and arrays.

The operators are in :mod:`risfast.ops`; :func:`detect_sources` goes from a covariance to sources, and
:class:`Localizer` from snapshots to sources.
"""

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from risfast.detect import DetectionOptions, Sources, detect_sources, detect_sources_lowrank
    from risfast.geometry import PlanarArray, Region, SearchGrid, SensorArray
    from risfast.localize import Localizer
    from risfast.setup import Setup, Tolerance

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


# Imported when they are asked for: torch takes seconds, and the command line says before that it is loading.
_MODULES = {
    "detect": ("DetectionOptions", "Sources", "detect_sources", "detect_sources_lowrank"),
    "geometry": ("PlanarArray", "Region", "SearchGrid", "SensorArray"),
    "localize": ("Localizer",),
    "setup": ("Setup", "Tolerance"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name from its module, or a module or folder of the package."""
    if name in _HOME:
        value = getattr(importlib.import_module(f"risfast.{_HOME[name]}"), name)
    elif importlib.util.find_spec(f"risfast.{name}") is not None:
        value = importlib.import_module(f"risfast.{name}")
    else:
        raise AttributeError(f"module 'risfast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
