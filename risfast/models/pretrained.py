"""The checkpoint that comes with the package."""

from __future__ import annotations

from pathlib import Path

# A model folder as risfast.models.files writes it. CONTRIBUTING.md has the command that made it.
DEFAULT_MODEL = Path(__file__).parent.parent / "pretrained" / "default"

CONFIDENCE_FILE = "confidence.json"  # of a model folder: the calibration of its confidence
COUNT_FILE = "count.json"  # the same of the probability of each number of sources
