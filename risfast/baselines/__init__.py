"""Classical and earlier methods from measurements to sources, behind one interface."""

from risfast.baselines.base import Baseline
from risfast.baselines.registry import BASELINES, build_baseline

__all__ = ["BASELINES", "Baseline", "build_baseline"]
