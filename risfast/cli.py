"""The command line, ``risfast-train``: the only place that prints.

One function per subcommand, and one frozen dataclass with its options. Degrees and dB stop here.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from risfast import __version__
from risfast.cli_detect import DetectCommand, add_detect, check_device, search_grid
from risfast.cli_io import add_doctor, add_import
from risfast.cli_progress import Progress
from risfast.cli_train import COMMANDS as TRAINING
from risfast.cli_train import run_training_command
from risfast.demo_options import GRIDS, DemoOptions

__all__ = ["DetectCommand", "Progress", "build_parser", "main", "search_grid"]


def run_demo_command(options: DemoOptions, progress: Progress) -> int:
    """Simulate, localise, compare, and say where the pictures are.

    Parameters
    ----------
    options : DemoOptions
    progress : Progress
        Told of every few scenes.

    Returns
    -------
    int
        Exit status 0; what goes wrong raises.

    Raises
    ------
    ValueError
        The device cannot be used here.
    OSError
        The folder for the pictures cannot be made or written.
    """
    from risfast.demo import explanation, format_scores, run_demo  # noqa: PLC0415 - only where it runs

    check_device(options.device)
    report = run_demo(options, progress)
    progress.close()
    print(format_scores(report))
    print()
    print(explanation(report))
    print()
    for description, path in report.pictures.items():
        print(f"{description}: {path}")
    return 0


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = DemoOptions()
    parser = commands.add_parser(
        "demo",
        help="simulate scenes of the reference system, localise their sources, print a table and draw pictures",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--scenes", type=int, default=defaults.scenes, metavar="B", help="number of scenes")
    add("--seed", type=int, default=defaults.seed, help="the same seed gives the same scenes")
    add("--snapshots", type=int, default=defaults.snapshots, metavar="L", help="snapshots per scene")
    add("--grid", choices=tuple(GRIDS), default=defaults.grid, help="search grid")
    add("--output", type=Path, default=defaults.output, metavar="FOLDER", help="folder for the pictures")
    add("--device", default=defaults.device, help="where to compute, cpu or cuda")
    parser.set_defaults(run=run_demo_command, options=DemoOptions)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand; each sets ``run`` and the dataclass ``options`` that it takes."""
    parser = argparse.ArgumentParser(prog="risfast-train", description="Near-field source localisation.")
    parser.add_argument("--version", action="version", version=f"risfast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    add_detect(commands)
    add_import(commands)
    add_doctor(commands)
    for name, text in TRAINING.items():  # listed here, parsed by their own generator
        commands.add_parser(name, help=text, add_help=False)
    for subparser in commands.choices.values():
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        Exit status: 0 if all went well, 2 after an error, which stands on stderr in one line; 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in TRAINING:
        return run_training_command(arguments)
    given = vars(build_parser().parse_args(arguments))
    run, options_type = given.pop("run"), given.pop("options")
    progress = Progress(sys.stderr)
    try:
        names = {item.name for item in fields(options_type)}
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if name in names}
        status: int = run(options_type(**values), progress)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        progress.close()
        if given["debug"]:
            traceback.print_exc()
        else:
            print(f"risfast-train {given['command']}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        progress.close()
        print("interrupted", file=sys.stderr)
        return 130
    return status
