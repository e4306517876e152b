"""The localizer with one stage changed or left out: what each stage brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from risfast.localize import Localizer, LocalizerOptions

__all__ = ["VARIANTS", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One change to the localizer of a model.

    Parameters
    ----------
    title : str
        For tables.
    options : mapping
        Fields of :class:`risfast.localize.LocalizerOptions` that differ.
    polish_options : mapping
        Fields of :class:`risfast.polish.PolishOptions` that differ.
    polish : bool
        Whether the likelihood polish runs at all.
    classical : bool
        Whether the sparse covariance fit without any training stands in for the model.
    """

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    polish_options: Mapping[str, Any] = field(default_factory=dict)
    polish: bool = True
    classical: bool = False

    def build(self, localizer: Localizer) -> Localizer:
        """The changed localizer.

        Parameters
        ----------
        localizer : Localizer
            Of the model, with the options that the change is from.

        Returns
        -------
        Localizer
        """
        options = self.of(localizer.options)
        if self.classical:
            return Localizer.classical(localizer.array, options)
        return Localizer(localizer.backbone, localizer.array, options, localizer.hits, localizer.refiner)

    def of(self, options: LocalizerOptions) -> LocalizerOptions:
        """The changed options.

        Parameters
        ----------
        options : LocalizerOptions

        Returns
        -------
        LocalizerOptions
        """
        return replace(options, **self.options, polish=replace(options.polish, **self.polish_options))


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "without_confidence": Variant("no calibrated confidence", {"least_confidence": 0.0}),
        "without_posterior": Variant(
            "nor range posterior: the maximum of the likelihood", {"least_confidence": 0.0}, {"range_points": 0}
        ),
        "without_births": Variant("polish without births", {}, {"births": 0}),
        "without_deaths": Variant(
            "polish of positions only: no births, no deaths", {"least_confidence": 0.0}, {"births": 0, "penalty": 0.0}
        ),
        "capon_polish": Variant("candidates from Capon peaks", {"read_out": "capon"}),
        "capon_raw": Variant("Capon peaks of the covariance, no polish", {"read_out": "capon"}, polish=False),
        "capon_blend": Variant(
            "the same, a tenth of the sample covariance blended in", {"read_out": "capon", "blend": 0.1}, polish=False
        ),
        "classical": Variant("classical fit instead of the trained backbone", classical=True),
        "classical_raw": Variant("classical fit, no polish", polish=False, classical=True),
    }
)
"""By the name of the method, in the order of the table."""
