"""A setup inside a file of measurements: its JSON as bytes, the one type that every format holds alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from risfast.errors import FileFormatError
from risfast.setup import Setup

__all__ = ["SETUP_VARIABLE", "parse_setup", "setup_bytes"]

Array = np.ndarray[Any, np.dtype[Any]]

SETUP_VARIABLE = "risfast_setup"
"""Name of the variable; ``jsondecode(char(risfast_setup))`` in MATLAB."""


def setup_bytes(setup: Setup) -> Array:
    """JSON of a setup as a uint8 array, shape (length,)."""
    return np.frombuffer(json.dumps(setup.to_json(), allow_nan=False).encode(), np.uint8)


def parse_setup(path: Path, values: Array) -> Setup:
    """The setup of :func:`setup_bytes`, or an error that names the file."""
    if values.dtype != np.uint8:
        raise FileFormatError(f"{path}: {SETUP_VARIABLE!r} must hold the bytes of JSON, found {values.dtype}")
    try:
        description = json.loads(values.tobytes())
        if not isinstance(description, dict):
            raise ValueError(f"it must be an object, found {description!r:.60}")
        return Setup.from_json(description)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileFormatError(
            f"{path}: {SETUP_VARIABLE!r} is no setup of this version ({error}); give one with setup=, which takes its "
            "place"
        ) from error
