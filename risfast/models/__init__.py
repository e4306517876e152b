"""Backbones: from measurements to the covariance that the surface receives."""

from risfast.models.base import Backbone, CovarianceEstimate, Measurement, SourceMap
from risfast.models.registry import BACKBONES, build_backbone

__all__ = ["BACKBONES", "Backbone", "CovarianceEstimate", "Measurement", "SourceMap", "build_backbone"]
