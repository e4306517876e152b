"""Scoring of estimates against the truth."""

from risfast.evaluate.matching import Match, Summary, Tolerance, match, summarise

__all__ = ["Match", "Summary", "Tolerance", "match", "summarise"]
