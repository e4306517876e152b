"""The gallery: every script of ``docs/gallery`` as a page of the site and as a notebook.

    python docs/gallery_pages.py                      run all, store their pictures and what they print
    python docs/gallery_pages.py --notebooks FOLDER   write them as notebooks

A script is a docstring, whose first line is the question, and cells that begin with ``# %%``; comments at the start of
a cell are its text. It ends by saving one picture of its own name.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import html
import io
import json
import os
import re
import runpy
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent / "gallery"
RESULTS = FOLDER / "results"
SCRIPTS = sorted(FOLDER.glob("*.py"))


class Entry(NamedTuple):
    """A script of the gallery, read."""

    name: str
    question: str
    about: str
    cells: list[tuple[str, str]]  # Text and code


def read_entry(path: Path) -> Entry:
    """A script as its question, its introduction and its cells."""
    source = path.read_text(encoding="utf-8")
    question, _, about = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    cells = []
    for cell in re.split(r"^# %%\n", source, flags=re.M)[1:]:
        comment = re.match(r"(?:# ?.*\n)*", cell)
        text = re.sub(r"^# ?", "", comment[0] if comment else "", flags=re.M).strip()
        cells.append((text, cell[comment.end() if comment else 0 :].strip()))
    return Entry(path.stem, question.rstrip("."), about.strip(), cells)


def run_script(path: Path, folder: Path) -> str:
    """Run a script in a folder, where its picture goes; what it prints."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_path(str(path), run_name="__main__")
    finally:
        os.chdir(before)
    return printed.getvalue()


def page(entry: Entry) -> str:
    """The page of a script in Markdown, with its picture and what it printed."""
    parts = [f"# {entry.question}", entry.about, f"![The picture of this script]({entry.name}.png)"]
    for text, code in entry.cells:
        parts += [text] * bool(text) + [f"```python\n{code}\n```"] * bool(code)
    printed = (RESULTS / f"{entry.name}.txt").read_text(encoding="utf-8")
    parts.append(f"It prints:\n\n```text\n{printed}```")
    parts.append(f"As files: [{entry.name}.py]({entry.name}.py), [{entry.name}.ipynb]({entry.name}.ipynb)")
    return "\n\n".join(parts) + "\n"


def notebook(entry: Entry) -> str:
    """The notebook of a script (nbformat 4.5)."""
    cells: list[dict[str, Any]] = []

    def add(kind: str, text: str) -> None:
        own: dict[str, Any] = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}}
        code = {"execution_count": None, "outputs": []} if kind == "code" else {}
        cells.append({**own, **code, "source": text.splitlines(keepends=True)})

    add("markdown", f"# {entry.question}\n\n{entry.about}")
    for text, code in entry.cells:
        for kind, part in (("markdown", text), ("code", code)):
            if part:
                add(kind, part)
    add("code", "figure")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}, indent=1
    )


def index() -> str:
    """The gallery's list: questions with their pictures."""
    cards = [
        f'<a href="gallery/{path.stem}.html"><img src="gallery/{path.stem}.png" alt="" loading="lazy">'
        f"<span>{html.escape(read_entry(path).question)}</span></a>"
        for path in SCRIPTS
    ]
    return "\n".join(['<div class="gallery">', *cards, "</div>"])


def main() -> None:
    """Run all scripts and store what they made, or write notebooks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebooks", type=Path, metavar="FOLDER", help="write notebooks there, and run nothing")
    parser.add_argument("--only", default="", help="only scripts whose name holds this")
    options = parser.parse_args()
    for path in SCRIPTS:
        if options.only not in path.stem:
            continue
        if options.notebooks is not None:
            options.notebooks.mkdir(parents=True, exist_ok=True)
            (options.notebooks / f"{path.stem}.ipynb").write_text(notebook(read_entry(path)) + "\n", encoding="utf-8")
            continue
        RESULTS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            printed = run_script(path, Path(folder))
            (RESULTS / f"{path.stem}.png").write_bytes((Path(folder) / f"{path.stem}.png").read_bytes())
        (RESULTS / f"{path.stem}.txt").write_text(printed, encoding="utf-8")
        print(f"{path.stem}:\n{printed}")


if __name__ == "__main__":
    main()
