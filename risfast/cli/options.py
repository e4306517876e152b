"""What the commands share: their common options, how free options and files are typed, and messages in their words."""

from __future__ import annotations

import re
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar, get_type_hints

import tyro

if TYPE_CHECKING:
    import torch

    from risfast.cli.progress import ProgressBar

_T = TypeVar("_T")
Unset = tyro.conf.arg(help_behavior_hint="")
"""Marks an option whose default says nothing."""
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, Unset]
"""A switch without an opposite: --quiet."""
Opt = Annotated[_T | None, tyro.conf.DisallowNone, Unset]
"""What need not be given."""
Flat = tyro.conf.arg(name="")
"""Marks a dataclass whose options stand without a prefix."""
Whole = tyro.conf.FlagConversionOff
"""Marks a configuration whose booleans take a value: --machine.tensorboard True."""


@dataclass(frozen=True)
class Common:
    """Options of every command."""

    quiet: Flag = False  # Print results only: no progress, no notes.
    verbose: Flag = False  # Show where an error happened, and every note.


@dataclass(frozen=True)
class Command(ABC):
    """A command: its fields, of which ``common`` is one, are its options."""

    HELP: ClassVar[str] = ""  # What the help says besides its line in the list of commands
    RESUMES: ClassVar[str] = ""  # What is said behind "interrupted"
    OLD_SPELLINGS: ClassVar[Mapping[str, str]] = {}
    IN_OPTIONS: ClassVar[Mapping[str, str]] = {}  # Options by what messages of the library call them, if not the field

    @classmethod
    def defaults(cls, arguments: Sequence[str]) -> Self | None:
        """What the options are that are not given, where that depends on those that are."""
        return None

    @abstractmethod
    def run(self, progress: ProgressBar) -> int:
        """Do it; the exit status."""


def option_registry() -> tyro.constructors.ConstructorRegistry:
    """How a table of free options is given: NAME=VALUE ..., the values in TOML, dots in a name for tables inside."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _table(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        if info.type is not dict and getattr(info.type, "__origin__", None) is not dict:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="[NAME=VALUE ...]",
            instance_from_str=table_of,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda table: [f"{name}={value}" for name, value in table.items()],
        )

    return registry


def table_of(items: Sequence[str]) -> dict[str, Any]:
    """The table that NAME=VALUE items stand for; a bare word is a string, dots in a name make tables inside."""
    table: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"expected NAME=VALUE, got {item!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *tables, last = name.split(".")
        inner = table
        for step in tables:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return table


def usable_device(name: str) -> torch.device:
    """The device of that name; a ValueError if torch cannot use it on this machine."""
    import torch  # noqa: PLC0415 - help and versions do not need it

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name!r} cannot be used on this machine: {reason}") from error
    return device


def check_output(path: Path | None, option: str, suffixes: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a result that could not be written, or that would replace another one, before the work is done."""
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        wanted = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}" if len(suffixes) > 1 else suffixes[0]
        raise ValueError(f"{option} must end in {wanted}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"{option}: the folder {path.parent} does not exist; make it first")
    if path.suffix.lower() == ".parquet":
        from risfast.io.guard import need  # noqa: PLC0415

        need("pyarrow", "writing .parquet", "parquet")
    refuse_existing([path], option, overwrite=overwrite)


def refuse_existing(paths: Sequence[Path], option: str, *, overwrite: bool) -> None:
    """Refuse to replace what is there, unless that is what was asked for."""
    if overwrite:
        return
    for path in paths:
        if path.exists():
            raise ValueError(f"{path} exists: give another {option}, or --overwrite to replace it")


def option_names(kind: type[Any], prefix: str = "", root: str = "") -> Iterator[tuple[str, str]]:
    """Every field of a command as the code calls it, with the option that sets it."""
    hints = get_type_hints(kind, include_extras=True)
    for item in fields(kind):
        hint = hints[item.name]
        metadata = getattr(hint, "__metadata__", ())
        plain = getattr(hint, "__origin__", hint) if metadata else hint
        if is_dataclass(plain):
            flat = any(extra is Flat for extra in metadata)
            inner = root if flat else f"{root}{item.name}."
            yield from option_names(plain, prefix if flat else f"{prefix}{item.name}.", inner)  # type: ignore[arg-type]
        else:
            named = next((extra.name for extra in metadata if getattr(extra, "name", None)), item.name)
            yield f"{root}{item.name}", f"--{prefix}{named}".replace("_", "-")


def in_options(message: str, names: Mapping[str, str]) -> str:
    """A message of the library in the words of the command line: ``max_sources`` becomes ``--max-sources``."""
    # What is certainly an option: a name at the start of the message, with a dot (optimiser.lr), before ``=``, or where
    # the message says what to give. Elsewhere it may be a variable in a file.
    every, dotted = _one_of(names), _one_of(name for name in names if "." in name)
    message = re.sub(
        rf"{_ALONE}({every})=({_VALUE})?", lambda m: f"{names[m[1]]} {_typed(m[2] or '')}".rstrip(), message
    )
    message = re.sub(rf"{_ALONE}({dotted}){_END}", lambda m: names[m[1]], message)
    message = re.sub(rf"^({every})(?= must | is )", lambda m: names[m[1]], message)
    long = re.compile(rf"{_ALONE}({_one_of(name for name in names if '_' in name)}){_END}")
    return _MEND.sub(lambda m: long.sub(lambda name: names[name[1]], m[0]), message)


_ALONE = r"(?<![\w./\\'\"-])"
_END = r"(?![\w/\\'\"=]|\.\w)"
_MEND = re.compile(r"\b(?:give|choose|take|set|with)\b[^;(]*")
_VALUE = r"\([^)]*\)|\{[^}]*\}|'[^']*'|\"[^\"]*\"|[\w.+-]*\w"


def _typed(value: str) -> str:
    """A value of Python as it is typed on a command line: (3, 5) becomes 3 5, {'a': B} becomes a=B."""
    if value.startswith("{"):
        return value.strip("{}").replace("'", "").replace(": ", "=").replace(",", "")
    return value.strip("()'\"").rstrip(", ").replace(",", "")


def _one_of(names: Iterable[str]) -> str:
    """A pattern of all names, the longest first; of none, one that matches nothing."""
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"
