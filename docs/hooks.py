"""What the site holds besides its pages: pictures and figures, taken from where the project keeps them.

A page that holds ``<!-- table: accuracy -->`` gets the table of that name, made from recorded results when the site is
built; so no figure is typed twice. Pictures are linked where they are in the repository and copied by the build.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
CARD = ROOT / "risfast" / "pretrained" / "default" / "model.json"
PICTURES = "pictures"  # their folder on the site
NBSP = "\u00a0"  # keeps a figure and its unit on one line

MARKER = re.compile(r"<!-- table: (\w+) -->")
PICTURE_LINK = re.compile(r"\]\((?:\.\./)+bench/results/([\w.-]+\.png)\)")

_OPERATORS = {"mvdr": "mvdr_spectrum", "mvdr_lowrank": "mvdr_spectrum_lowrank"}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "cpu.json").read_text())
    return found


def accuracy_table() -> str:
    """Largest errors of the operators against float64 on the reference grid, and the bounds they are held to."""
    rows = [
        [
            f"`{_OPERATORS.get(row['operation'], row['operation'])}`",
            row["wavefront"],
            row["dtype"],
            row["method"],
            f"{row['peaks_db']:.1e}",
            f"{row['random_db']:.1e}",
            f"{row['bound_db']:.0e}",
            f"{row['loading']:g}",
        ]
        for row in _recorded()["accuracy"]
    ]
    head = ["operator", "wavefront", "type", "method", "dB at peaks", "dB at random points", "bound, dB", "loading"]
    return _table(head, rows)


def speed_table() -> str:
    """Times of risfast and of the peers that it is measured against, where there is one."""
    record, rows = _recorded(), []
    for work in record["times"]:
        own, *peers = ((name, entry["cpu_median_s"]) for name, entry in work["contestants"].items())
        processor = work.get("measured", record)["cpu"].replace("(R)", "").replace(" Processor", "").replace("@ ", "")
        for peer, seconds in peers:
            ratio = f"{seconds / own[1]:.3g}{NBSP}x"
            rows.append([work["work"], _duration(own[1]), peer, _duration(seconds), ratio, processor])
    return _table(["work", "risfast", "peer", "time of the peer", "ratio", "processor"], rows)


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}{NBSP}ms" if seconds < 1 else f"{seconds:.3g}{NBSP}s"


def history_table() -> str:
    """Times of each commit that was measured, newest first."""
    with (RESULTS / "history.csv").open(newline="", encoding="utf-8") as stream:
        head, *rows = csv.reader(stream)
    return _table([name.replace("_", " ") for name in head], [[row[0][:10], *row[1:]] for row in rows[::-1]])


def checkpoint_table() -> str:
    """What the checkpoint that comes with the package saw, and reached on unseen scenes, from its card."""
    card = json.loads(CARD.read_text())
    trained = card["trained"]
    rows = [
        [
            name.removeprefix("L"),
            f"{figures['nmse_mean']:.3f} / {figures['nmse_median']:.3f}",
            f"{figures['f1']:.3f}",
            f"{figures['precision']:.2f}",
            f"{figures['recall']:.2f}",
        ]
        for name, figures in card["test"]["sets"].items()
    ]
    saw = (
        f"Its last training saw {trained['scenes']} scenes in {trained['seconds'] / 60:.0f} minutes "
        f"({trained['device']}). "
        f"On {card['test']['scenes']} unseen scenes for each number of snapshots:"
    )
    return f"{saw}\n\n" + _table(["snapshots", "covariance NMSE, mean / median", "F1", "precision", "recall"], rows)


def _gallery() -> Any:
    """The module beside this file; mkdocs loads hooks as files, without their folder on the path."""
    spec = importlib.util.spec_from_file_location("gallery_pages", Path(__file__).with_name("gallery_pages.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GALLERY = _gallery()

TABLES: dict[str, Callable[[], str]] = {
    "gallery": GALLERY.index,
    "history": history_table,
    "accuracy": accuracy_table,
    "speed": speed_table,
    "checkpoint": checkpoint_table,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures of recorded results, and the gallery, to the site."""
    from mkdocs.structure.files import File, InclusionLevel  # noqa: PLC0415  (the tables can be made without mkdocs)

    for path in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"{PICTURES}/{path.name}", abs_src_path=str(path)))
    for path in GALLERY.SCRIPTS:
        entry, place = GALLERY.read_entry(path), f"gallery/{path.stem}"
        hidden = {"inclusion": InclusionLevel.NOT_IN_NAV}
        files.append(File.generated(config, f"{place}.md", content=GALLERY.page(entry), **hidden))
        files.append(File.generated(config, f"{place}.ipynb", content=GALLERY.notebook(entry), **hidden))
        files.append(File.generated(config, f"{place}.py", abs_src_path=str(path), **hidden))
        picture = GALLERY.RESULTS / f"{path.stem}.png"
        files.append(File.generated(config, f"{place}.png", abs_src_path=str(picture), **hidden))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables, and point links of pictures at their copies."""
    folder = posixpath.dirname(page.file.src_uri)
    copies = posixpath.relpath(PICTURES, folder or ".")
    markdown = PICTURE_LINK.sub(lambda found: f"]({copies}/{found[1]})", markdown)
    return MARKER.sub(lambda found: TABLES[found[1]](), markdown)
