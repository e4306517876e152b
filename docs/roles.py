"""Docstrings for a site in Markdown: roles become links, simple tables and literal blocks become Markdown's."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
RULE = re.compile(r"^ *=+(?: +=+)+ *$")
SEVERAL = re.compile(r"^(\w+(?:, \w+)+)( : .*|)$")
LITERAL = re.compile(r"(?<=\S)::$", re.M)  # announces an indented block, which Markdown takes for code by itself


def _identifier(name: str, obj: Object) -> str:
    """Full path of what a role names, seen from an object; the best guess where it is not defined there."""
    if name.startswith("risfast"):
        return name
    first, _, rest = name.partition(".")
    scope: Object | None = obj
    while scope is not None:
        if first in scope.members:
            return f"{scope.path}.{name}"
        if first in scope.imports:
            return f"{scope.imports[first]}{'.' if rest else ''}{rest}"
        scope = scope.parent if isinstance(scope.parent, Object) else None
    package = obj.module.path.rpartition(".")[0] or obj.module.path
    return f"{package}.{name}"


def linked(text: str, obj: Object) -> str:
    """The text with each role as a link, if the site has its target, and else as code."""

    def link(found: re.Match[str]) -> str:
        short, name = found.groups()
        shown = name.rpartition(".")[2] if short else name
        return f'<autoref optional identifier="{_identifier(name, obj)}"><code>{shown}</code></autoref>'

    return ROLE.sub(link, text)


def _cells(line: str, starts: list[int]) -> str:
    ends = [*starts[1:], len(line)]
    cells = [line[a:b].strip().replace("|", "\\|") for a, b in zip(starts, ends, strict=True)]
    return "| " + " | ".join(cells) + " |"


def tabulated(text: str) -> str:
    """The text with simple tables (rules of equals signs above and below the head, and at the end) in Markdown."""
    out: list[str] = []
    rules, starts = 0, [0]
    for line in text.splitlines():
        found = RULE.match(line)
        if found:
            rules += 1
            starts = [m.start() for m in re.finditer("=+", line)]
            if rules == 2:
                out.append("| " + " | ".join(["---"] * len(starts)) + " |")
            rules %= 3
        else:
            out.append(_cells(line, starts) if rules else line)
    return "\n".join(out)


def separated(text: str) -> str:
    """The text with an entry for each parameter of "a, b : type": together they would all get the default of a."""
    out: list[str] = []
    lines = text.splitlines()
    inside = False
    for number, line in enumerate(lines):
        if line.startswith("---"):
            inside = lines[number - 1] == "Parameters"
        names = SEVERAL.match(line)
        if not (inside and names):
            out.append(line)
            continue
        rest = lines[number + 1 :]
        body = rest[: next((i for i, other in enumerate(rest) if other and not other.startswith(" ")), len(rest))]
        *others, last = names[1].split(", ")
        for name in others:
            out += [name + names[2], *(row for row in body if row)]
        out.append(last + names[2])
    return "\n".join(out)


class Roles(Extension):
    """Rewrites every docstring as it is read."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once for every object of the package."""
        if obj.docstring is not None:
            text = LITERAL.sub(":", tabulated(separated(obj.docstring.value)))
            obj.docstring.value = linked(text, obj)
