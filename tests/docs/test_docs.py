"""The documentation's promises: its code runs and prints what it says, its commands and links exist, the site builds.

A page is run block by block in one namespace, in an empty folder. A ```text block right after a ```python block is what
that block prints. ``<!-- needs: NAME -->`` above a block leaves it out where that package is not installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import risfast.ops
from risfast.cli import COMMANDS, parse

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS / "pages").as_posix(): path for path in sorted(DOCS.glob("pages/**/*.md"))}
README = ROOT / "README.md"  # tests/docs/test_readme.py runs its Python blocks, and looks at what they find

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NEEDS = re.compile(r"<!-- needs: ([\w, ]+) -->\n+$")
# The function plan and its module share a path: the module would be shown.
OPERATORS = {name: f"risfast.ops.{name}" for name in risfast.ops.__all__} | {"plan": "risfast.ops.plan.plan"}
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block: its text, the line of its first character, what it needs, and what it says that it prints."""

    code: str
    line: int
    missing: list[str]
    printed: str | None


def fenced(path, language):
    """Text of all blocks of a language."""
    return [found[2] for found in FENCE.finditer(path.read_text()) if found[1] == language]


def python_blocks(path):
    text = path.read_text()
    blocks = []
    found = list(FENCE.finditer(text))
    for number, fence in enumerate(found):
        if fence[1] != "python":
            continue
        named = NEEDS.search(text[: fence.start()])
        needs = [name.strip() for name in named[1].split(",")] if named else []
        missing = [name for name in needs if importlib.util.find_spec(name) is None]
        after = found[number + 1] if number + 1 < len(found) else None
        follows = after is not None and after[1] == "text" and text[fence.end() : after.start()].isspace()
        line = text[: fence.start(2)].count("\n")
        blocks.append(Block(fence[2], line, missing, after[2] if follows else None))
    return blocks


def run(block, path, namespace):
    """What a block prints; errors point to the line of the page."""
    code = compile("\n" * block.line + block.code, str(path), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        exec(code, namespace)
    return stream.getvalue()


@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if python_blocks(path)])
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # acoular warns where numpy is there before it
    path = PAGES[page]
    namespace = {"__name__": "page"}
    left_out = []
    for block in python_blocks(path):
        if block.missing:
            left_out.append(f"line {block.line} needs {', '.join(block.missing)}")
            continue
        printed = run(block, path, namespace)
        if block.printed is not None:
            assert printed == block.printed, f"{page}, the block that starts at line {block.line + 1}"
    if left_out:
        pytest.skip(f"the rest of the page ran; left out: {'; '.join(left_out)}")


def test_every_python_block_of_the_readme_has_a_test_of_its_own():
    tested = re.findall(r"positions_printed_by\((\d+)\)", (ROOT / "tests" / "docs" / "test_readme.py").read_text())
    assert sorted(map(int, tested)) == list(range(len(fenced(README, "python"))))


# ---- commands


def commands():
    """Arguments of every ``risfast`` in the shell blocks, as a shell would see them."""
    for name, path in {"README.md": README, **PAGES}.items():
        for text in fenced(path, "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|\|\||;", line):
                    words = [word for word in shlex.split(part, comments=True) if word != "&"]
                    names = [at for at, word in enumerate(words) if word in ("risfast", "risfast-train")]
                    # A database and its owner have the name of the program too.
                    starts = [at + 1 for at in names if at == 0 or words[at + 1 : at + 2] in ([c] for c in COMMANDS)]
                    for start in starts:
                        yield pytest.param(words[start:], id=f"{name}: {' '.join(words[start:])}")


def launches():
    """Arguments of every ``torchrun`` in the shell blocks and in CONTRIBUTING."""
    pages = [text for path in (README, *PAGES.values()) for text in fenced(path, "bash")]
    for line in "\n".join([*pages, (ROOT / "CONTRIBUTING.md").read_text()]).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "torchrun --" in line else []
        if "torchrun" in words:
            yield pytest.param(words[words.index("torchrun") + 1 :], id=line.strip())


@pytest.mark.parametrize("words", list(launches()))
def test_torchrun_hands_every_option_of_a_training_on(words):
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    assert given.module
    assert given.training_script == "risfast"
    assert given.training_script_args == words[words.index("risfast") + 1 :]


@pytest.mark.parametrize("arguments", list(commands()))
def test_a_command_is_one_that_the_program_knows(arguments):
    if arguments[0].startswith("--"):
        assert arguments[0] in ("--version", "--help", "--tyro-print-completion", "--tyro-write-completion")
        return
    assert parse(arguments[0], arguments[1:]) is not None  # UsageError if it does not fit


def test_the_table_of_commands_lists_all_of_them():
    text = PAGES["command-line.md"].read_text()
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", table)) == set(COMMANDS)


# ---- pages


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    path = PAGES[page]
    text = FENCE.sub("", path.read_text())
    for link in LINK.findall(text):
        target, _, _anchor = link.partition("#")
        assert "://" in link or not target or (path.parent / target).is_file(), link


def test_every_page_is_in_the_navigation_and_the_navigation_has_no_other():
    listed = re.findall(r"^ +- .*: (\S+\.md)$", (DOCS / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(PAGES)


def test_every_operator_is_in_the_reference():
    directives = re.findall(r"^::: (risfast\.ops\.[\w.]+)$", PAGES["reference/operators.md"].read_text(), re.M)
    assert sorted(directives) == sorted(OPERATORS.values())


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_hold_what_was_recorded(hooks):
    recorded = json.loads((ROOT / "bench" / "results" / "cpu.json").read_text())
    rows = hooks.accuracy_table().splitlines()[2:]
    assert len(rows) == len(recorded["accuracy"]) > 0
    for row, entry in zip(rows, recorded["accuracy"], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:4] == [entry["wavefront"], entry["dtype"], entry["method"]]
        assert float(cells[4]) == pytest.approx(entry["peaks_db"], rel=0.05)
        assert float(cells[6]) == entry["bound_db"]
    rows = hooks.speed_table().splitlines()[2:]
    ratios = [ratio["cpu_median"] for entry in recorded["times"] for ratio in entry["ratios"].values()]
    assert len(rows) == len(ratios) > 0
    for row, ratio in zip(rows, ratios, strict=True):
        assert float(row.strip("|").split("|")[-2].strip().removesuffix("x")) == pytest.approx(ratio, rel=5e-3)


def test_every_marker_names_a_table(hooks):
    used = {name for path in PAGES.values() for name in hooks.MARKER.findall(path.read_text())}
    assert used == set(hooks.TABLES)
    for make in hooks.TABLES.values():
        assert make().count("\n") > 1


# ---- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as CI builds it: a warning is an error."""
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(name, reason="the site needs: pip install 'risfast[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(DOCS / "mkdocs.yml"), "-d", str(folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_without_warnings_and_holds_every_page(site):
    assert all((site / Path(page).with_suffix(".html")).is_file() for page in PAGES)


def test_no_page_of_the_site_asks_the_network_for_anything(site):
    asks = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")
    pages = list(site.rglob("*.html"))
    assert pages
    for page in pages:
        assert asks.findall(page.read_text()) == [], page.name


def test_docstrings_are_read_as_they_are_meant(site):
    operators = (site / "reference" / "operators.html").read_text()
    for path in OPERATORS.values():
        assert f'id="{path}"' in operators
    for page in (site / "reference").glob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text())
        assert not re.search(r":(?:func|class|meth|mod|data):", text), f"{page.name} shows a role as it is written"
        assert not re.search(r"={4,} +={4,}", text), f"{page.name} shows the rules of a table"
        assert not re.search(r"\w::$", text, re.M), f"{page.name} shows the mark of a literal block"
