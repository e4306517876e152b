"""Tables of the suite for a paper: booktabs, one string each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from risfast.evaluate.figures import Interval

__all__ = ["latex_table", "latex_value"]

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "<": r"$<$",
    ">": r"$>$",
    "°": r"$^\circ$",
    "²": r"$^2$",
    "λ": r"$\lambda$",
    "é": r"\'e",
}


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def latex_value(value: Interval, form: str = "{:.3f}") -> str:
    """A number and its interval; a dash where there is none."""
    if not math.isfinite(value.value):
        return "--"
    text = form.format(value.value)
    if math.isfinite(value.low) and math.isfinite(value.high):
        text += f" [{form.format(value.low)}, {form.format(value.high)}]"
    return f"${text}$"


def latex_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        " & ".join(_escaped(column) for column in columns) + r" \\",
        r"\midrule",
        *(" & ".join([_escaped(row[0]), *row[1:]]) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
