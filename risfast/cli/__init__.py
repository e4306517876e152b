"""The command line, ``risfast``: the only place that prints.

A command is a class of :class:`risfast.cli.options.Command`, whose file is imported when it is run: a dataclass from
which tyro makes its options, and what runs them. Degrees and dB stop here.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any, NamedTuple, Union

from risfast import __version__

__all__ = ["COMMANDS", "main", "parse"]


class _Entry(NamedTuple):
    """Where a command is, and what the list of commands says of it."""

    module: str
    name: str
    about: str

    @property
    def kind(self) -> type[Any]:
        """The class of the command."""
        found: type[Any] = getattr(importlib.import_module(f"risfast.cli.{self.module}"), self.name)
        return found


COMMANDS = {
    name: _Entry(module, f"{name.capitalize()}Command", about)
    for name, module, about in (
        ("demo", "demo", "simulate scenes, localise their sources, print a table and draw pictures"),
        ("locate", "locate", "find the sources in a recording: a table, a picture, a file"),
        ("detect", "locate", "find the sources in a covariance, as locate --model none does"),
        ("show", "show", "look at a file of results: one page with map, 3D scene, range profiles and table"),
        ("calibrate", "calibrate", "find the gains (and positions) of an array from recordings of sources"),
        (
            "import",
            "import_file",
            "read a recording (.npz, .mat, .h5, .uvh5, SigMF, .wav); write .h5, .npz or .mat",
        ),
        ("doctor", "doctor", "check versions, devices, accuracy, speed and the disk, and say what to do"),
        ("evaluate", "evaluate", "measure methods against the bound on fixed scenes; tables and a report"),
        ("backbone", "training", "train a backbone, from measurements to covariance"),
        ("refiner", "training", "train a refiner on the maps of a trained backbone"),
        ("overfit", "training", "check that a backbone can learn a few scenes by heart, before it is trained"),
        ("shards", "training", "make scenes once and keep them in files, for training, validation and test"),
        ("hpo", "tuning", "tune the options of a training, or of the detection of a trained model"),
        ("hpo2", "tuning", "tune a training in two stages: many short ones, then the best of them, longer"),
    )
}
_OLD_SPELLINGS = {"--run": "--output", "--out": "--output", "--debug": "--verbose"}
_COMMON = ("--quiet", "--verbose", "--debug")
_COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")
_HELP = (
    "risfast COMMAND --help lists the options of a command; every command takes --quiet and --verbose. "
    "risfast --version prints the version, risfast --tyro-print-completion bash (or zsh, fish) a completion script."
)


class UsageError(ValueError):
    """What was typed cannot be understood; in one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    before = 0
    while before < len(arguments) and arguments[before] in _COMMON:
        before += 1
    common, rest = arguments[:before], arguments[before:]
    if not rest or rest[0] in ("-h", "--help", *_COMPLETION):
        return _overview(rest)
    if rest[0] == "--version":
        print(f"risfast {__version__}")
        return 0
    command = rest[0]
    if command in COMMANDS:
        return _run(command, [*rest[1:], *common])
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    print(f"risfast: there is no command {command!r}; {mend}", file=sys.stderr)
    return 2


def _run(command: str, arguments: list[str]) -> int:
    """Parse and run a command; every error becomes one line."""
    from risfast.cli.progress import ProgressBar  # noqa: PLC0415 - not for --version

    verbose = "--verbose" in arguments or "--debug" in arguments
    unseen = not {"--quiet", "-h", "--help"}.isdisjoint(arguments)
    try:
        with contextlib.closing(ProgressBar(quiet=unseen)) as progress:
            progress.waiting("loading")  # torch takes seconds where the disk is slow
            from risfast.cli.options import in_options, option_names  # noqa: PLC0415

            kind = COMMANDS[command].kind
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    try:
        options = parse(command, arguments)
        if options is None:
            return 0
        with contextlib.closing(ProgressBar(quiet=options.common.quiet)) as progress:  # gone before an error is told
            progress.waiting("loading")
            return int(options.run(progress))
    except BrokenPipeError:
        return _unread()
    except KeyboardInterrupt:
        print(f"interrupted{kind.RESUMES}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, OverflowError, MemoryError) as error:
        if verbose:
            traceback.print_exc()
        names = {**dict(option_names(kind)), **kind.IN_OPTIONS}
        told = " ".join(str(error).split()) or type(error).__name__
        print(f"risfast {command}: {in_options(told, names)}", file=sys.stderr)
        return 2


def _unread() -> int:
    """Nobody reads what is printed any more, as behind ``| head``: no error to tell, and no more to print."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    return 1


def parse(command: str, arguments: Sequence[str]) -> Any:
    """The options of a command; None where only its help was asked for, which is printed."""
    kind = COMMANDS[command].kind
    arguments = [_present(word, kind.OLD_SPELLINGS) for word in arguments]
    default = kind.defaults(arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            how = {} if default is None else {"default": default}
            return _understood(kind, f"risfast {command}", _description(COMMANDS[command]), arguments, **how)
    except SystemExit as ended:
        if not ended.code:
            return None
        raise UsageError(_one_line(complaint.getvalue())) from None


def _understood(program: Any, name: str, description: str, arguments: Sequence[str], **how: Any) -> Any:
    """What tyro makes of the arguments."""
    import tyro  # noqa: PLC0415

    from risfast.cli.options import option_registry  # noqa: PLC0415

    return tyro.cli(program, prog=name, description=description, args=arguments, registry=option_registry(), **how)


def _present(word: str, own: Mapping[str, str]) -> str:
    """An option in its present spelling."""
    name, equals, value = word.partition("=")
    return f"{own.get(name, _OLD_SPELLINGS.get(name, name))}{equals}{value}"


def _description(command: _Entry) -> str:
    return f"{command.about[0].upper()}{command.about[1:]}.\n\n{command.kind.HELP}".strip()


def _one_line(box: str) -> str:
    """What tyro writes into a box, in one line: the message, and the options that are near."""
    # The title stands in the frame; where the terminal knows no frames, in a part of its own.
    lines = [line.strip("│| ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    parts = [" ".join(part.split()) for part in re.split(r"\n[─-]{9,}\n", "\n".join(lines))]
    parts = parts if "╭" in box else parts[1:] or parts
    message = re.sub(r"^Error parsing [\w.]+: ", "", parts[0])
    near = [name for part in parts[1:] for name in re.findall(r"(?:^|, | )(--[a-z][\w.-]*)", part) if name != "--help"]
    if near and "nrecognized" in message:
        message += f"; did you mean {' or '.join(dict.fromkeys(near))}?"
    return message or "wrong usage; see --help"


def _overview(arguments: Sequence[str]) -> int:
    """The list of commands; with an option of tyro, the completion script of all of them."""
    import tyro  # noqa: PLC0415

    whole = bool(arguments) and arguments[0] in _COMPLETION
    commands: list[Any] = []
    for name, command in COMMANDS.items():
        kind, about = (command.kind, _description(command)) if whole else (make_dataclass(name, []), command.about)
        commands.append(Annotated[kind, tyro.conf.subcommand(name, description=about, prefix_name=False)])
    text = "Near-field source localisation behind surfaces and arrays.\n\n" + _HELP
    program: Any = Union[tuple(commands)]  # noqa: UP007 - made at run time
    try:
        with contextlib.redirect_stdout(sys.stdout if arguments else sys.stderr):
            _understood(program, "risfast", text, list(arguments) or ["--help"])
    except SystemExit as ended:
        if ended.code:
            return 2
    return 0 if arguments else 2
