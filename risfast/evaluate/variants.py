"""The localizer with one stage changed or left out: what each stage brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from risfast.localize.pipeline import PipelineOptions

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One change to the localizer of a model."""

    title: str  # For tables
    # Options of :class:`risfast.localize.PipelineOptions` that differ, by their names with dots
    changes: Mapping[str, Any] = field(default_factory=dict)
    # Whether the sparse covariance fit without any training stands in for the model, with the default options
    classical: bool = False

    def of(self, options: PipelineOptions) -> PipelineOptions:
        """The changed options."""
        for name, value in self.changes.items():
            options = _changed(options, name, value)
        return options


def _changed(options: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return replace(options, **{first: _changed(getattr(options, first), rest, value) if rest else value})


_NO_CONFIDENCE = {"decision.least_confidence": 0.0}
_CAPON_RAW = {"candidates.source": "capon", "polished": False}
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "without_confidence": Variant("no calibrated confidence", _NO_CONFIDENCE),
        "without_posterior": Variant(
            "nor range posterior: the maximum of the likelihood", {**_NO_CONFIDENCE, "polish.range_points": 0}
        ),
        "without_births": Variant("polish without births", {"polish.births": 0}),
        "without_deaths": Variant(
            "polish of positions only: no births, no deaths",
            {**_NO_CONFIDENCE, "polish.births": 0, "polish.penalty": 0.0},
        ),
        "capon_polish": Variant("candidates from Capon peaks", {"candidates.source": "capon"}),
        "capon_raw": Variant("Capon peaks of the covariance, no polish", _CAPON_RAW),
        "capon_blend": Variant(
            "the same, a tenth of the sample covariance blended in", {**_CAPON_RAW, "map.blend": 0.1}
        ),
        "classical": Variant("classical fit instead of the trained backbone", classical=True),
        "classical_raw": Variant("classical fit, no polish", {"polished": False}, classical=True),
    }
)
"""By the name of the method, in the order of the table."""
