"""From measurements to sources: the one path, and the localizer that walks it."""

from risfast.localize.array_calibration import ArrayCalibration, calibrate
from risfast.localize.live import ForgettingDetector, LiveLoop, LiveResult
from risfast.localize.localizer import Localizer
from risfast.localize.pipeline import (
    CandidateOptions,
    DecisionOptions,
    Localisation,
    MapOptions,
    PipelineOptions,
)

__all__ = [
    "ArrayCalibration",
    "CandidateOptions",
    "DecisionOptions",
    "ForgettingDetector",
    "LiveLoop",
    "LiveResult",
    "Localisation",
    "Localizer",
    "MapOptions",
    "PipelineOptions",
    "calibrate",
]
