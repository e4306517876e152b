"""Classical and earlier methods from measurements to sources, behind one interface."""

from risfast.baselines.base import Baseline
from risfast.baselines.registry import BASELINES, CHECKOUT_BASELINES, build_baseline

__all__ = ["BASELINES", "CHECKOUT_BASELINES", "Baseline", "build_baseline"]
