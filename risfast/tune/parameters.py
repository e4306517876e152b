"""What a parameter of a search space may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the table of a space needs no study
    from optuna.trial import Trial

__all__ = ["Choice", "Float", "Int", "Parameter"]


@dataclass(frozen=True)
class Float:
    """A number between two bounds."""

    low: float  # The bounds, both included
    high: float  # The bounds, both included
    log: bool = False  # Uniform in the logarithm, where low > 0; uniform otherwise

    def suggest(self, trial: Trial, name: str) -> float:
        """A value from the study's sampler."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        return isinstance(value, float | int) and self.low <= value <= self.high

    def __str__(self) -> str:
        """For people."""
        return f"{self.low:g} .. {self.high:g}{', logarithmic' if self.log else ''}"


@dataclass(frozen=True)
class Int:
    """A whole number between two bounds."""

    low: int  # The bounds, both included
    high: int  # The bounds, both included
    step: int = 1  # Distance of neighbours, counted from ``low``

    def suggest(self, trial: Trial, name: str) -> int:
        """A value from the study's sampler."""
        return trial.suggest_int(name, self.low, self.high, step=self.step)

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        return isinstance(value, int) and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def __str__(self) -> str:
        """For people."""
        return f"{self.low} .. {self.high}{f' by {self.step}' if self.step > 1 else ''}"


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[float | int | str, ...]  # In their order

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value from the study's sampler."""
        return trial.suggest_categorical(name, self.values)

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        return value in self.values

    def __str__(self) -> str:
        """For people."""
        return " | ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in self.values)


Parameter = Float | Int | Choice
