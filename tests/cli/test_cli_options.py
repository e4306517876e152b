"""The options of every command are those of a stored list: a name that changes breaks the commands of everyone.

``python tests/cli/test_cli_options.py`` writes the list anew, where a change is meant.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from unittest import mock

import pytest

from risfast.cli import COMMANDS, main

STORED = Path(__file__).parents[1] / "data" / "cli_options.json"
ENTRY = re.compile(r"^│ (-h, --help|--[a-z][\w.-]*|\[?[A-Z]+\]?)( |$)", re.M)


class Terminal(io.StringIO):
    """What knows the frames that tyro draws."""

    encoding = "utf-8"


def help_text(command: str) -> str:
    """What the command's --help prints on a terminal of 80 columns."""
    out = Terminal()
    with mock.patch.dict(os.environ, {"COLUMNS": "80"}), contextlib.redirect_stdout(out):
        assert main([command, "--help"]) == 0
    return out.getvalue()


def offered(command: str) -> list[str]:
    """Positional arguments and options, in the order of the help text."""
    return [found[1].removeprefix("-h, ") for found in ENTRY.finditer(help_text(command))]


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_those_of_the_stored_list(command: str) -> None:
    assert offered(command) == json.loads(STORED.read_text())[command]


def test_the_list_names_every_command() -> None:
    assert list(json.loads(STORED.read_text())) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_common_options_and_explains_each_of_its_own(command: str) -> None:
    assert {"--help", "--quiet", "--verbose"} <= set(offered(command))
    # An option without words shows its name (and its default) only. Those of configurations have classes of their own.
    own = {f"--{item.name}".replace("_", "-") for item in fields(COMMANDS[command].kind)}
    text = re.sub(r"\(default:[^)]*\)", "", help_text(command))
    entries = re.split(r"\n│ (?=-h, --help|--[a-z]|\[?[A-Z]+\]? )", re.sub(r"[╭╰]─.*", "", text))[1:]
    for entry in entries:
        lines = entry.replace("│", "").splitlines()
        words = re.sub(r"^(-h, )?\S+( [A-Z|a-z_{},\[\]=.]+)*?(  +|$)", "", lines[0]) + " ".join(lines[1:])
        assert lines[0].split()[0] not in own or re.search(r"[a-z]{2}", words), f"{command}: {lines[0]}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_into_80_columns(command: str) -> None:
    lines = help_text(command).splitlines()
    assert max(len(line) for line in lines if line.startswith(("│", "╭"))) <= 80


def test_the_list_of_commands_names_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"[•*] (\S+) ", capsys.readouterr().out)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["doctor", "--help"], ["import", "--help"]])
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    heavy = (
        "matplotlib",
        "optuna",
        "safetensors",
        "risfast.train",
        "risfast.tune",
        "risfast.models",
        "risfast.simulate",
    )
    code = (
        f"import sys, risfast.cli\nassert risfast.cli.main({arguments!r}) == 0\n"
        f"print('heavy:', [m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_importing_the_command_line_loads_no_parser() -> None:
    code = "import sys, risfast.cli; print([m for m in ('tyro', 'risfast.train') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_completion_script_knows_every_command_and_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tyro-print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for command in COMMANDS:
        assert f"'{command}'" in script
    assert "--optimiser.lr" in script
    assert "--no-picture" in script


def regenerate() -> None:
    """Write the list as the program is now."""
    STORED.write_text(json.dumps({command: offered(command) for command in COMMANDS}, indent=1) + "\n")


if __name__ == "__main__":
    regenerate()
