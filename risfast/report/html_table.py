"""Tables of the report as HTML: cells with their intervals, and the table around them."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from risfast.evaluate.figures import Interval
from risfast.report.charts import DASH

__all__ = ["difference_html", "html_table", "value_html"]


def value_html(value: Interval, form: str = "{:.3f}") -> str:
    """A number with its interval in small print."""
    if not math.isfinite(value.value):
        return DASH
    text = form.format(value.value)
    if math.isfinite(value.low) and math.isfinite(value.high):
        text += f"<small>{form.format(value.low)} … {form.format(value.high)}</small>"
    return text


def difference_html(value: Interval, form: str = "{:+.3f}", *, less_is_better: bool = False) -> str:
    """A difference with its interval; coloured where the interval excludes zero."""
    if not math.isfinite(value.value):
        return DASH
    better, worse = (value.high < 0, value.low > 0) if less_is_better else (value.low > 0, value.high < 0)
    style = "better" if better else "worse" if worse else ""
    text = value_html(Interval(*(_unsigned_zero(v, form) for v in value)), form).replace("-", "\u2212")
    return f'<span class="{style}">{text}</span>' if style else text


def _unsigned_zero(value: float, form: str) -> float:
    """Nothing that rounds to zero shows a minus."""
    return 0.0 if math.isfinite(value) and float(form.format(value)) == 0 else value


def html_table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], caption: str) -> str:
    """A table in a card of its own, with its caption below."""
    head = "".join(f'<th{_bound(name)} scope="col">{name}</th>' for name in heads)
    body = "".join(
        f"<tr{style}>" + "".join(f"<td{_bound(heads[i])}>{cell}</td>" for i, cell in enumerate(cells)) + "</tr>"
        for style, cells in rows
    )
    name = html.escape(caption.split(".", maxsplit=1)[0])
    return (
        f'<div class="card"><div class="scroll"><table><caption>{name}</caption><thead><tr>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="under">{caption}</p></div>'
    )


def _bound(head: str) -> str:
    return ' class="bound"' if head.startswith("bound") else ""
