"""What can be wrong with a study."""

from __future__ import annotations

__all__ = ["StudyError", "TrialRejectedError"]


class StudyError(RuntimeError):
    """A study cannot be opened or go on; the message says why and what to do."""


class TrialRejectedError(RuntimeError):
    """A trial that went wrong by its own options (a loss that diverged, memory that ran out); the study goes on."""
