"""Frozen dataclasses to TOML and back, with every unknown or mistyped key refused by name."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from risfast.errors import FileFormatError

__all__ = ["as_table", "from_table", "read_toml", "to_toml"]

T = TypeVar("T")


def as_table(config: Any) -> dict[str, Any]:
    """A dataclass and all inside it as plain tables, lists, numbers, booleans and strings.

    Parameters
    ----------
    config : dataclass

    Returns
    -------
    dict of str to value
        A field whose value and default are None is left out.

    Raises
    ------
    ValueError
        A field is None where its default is not: TOML could not say so.
    """
    table: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if value is None:
            if item.default is not None:
                raise ValueError(f"{item.name} is None, which TOML cannot hold")
            continue
        table[item.name] = _plain(value)
    return table


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return as_table(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def from_table(kind: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """The dataclass ``kind`` from the tables that :func:`as_table` made; fields that are not there keep their default.

    Parameters
    ----------
    kind : dataclass type
    table : mapping of str to value
    where : str
        Put before the names of keys in messages.

    Returns
    -------
    kind

    Raises
    ------
    ValueError
        A key is unknown, a value has the wrong type, or the dataclass refuses it. The message names the key.
    """
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]  # kind is a dataclass
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{where}{unknown[0]} is not an option; known here: {', '.join(known)}")
    for name, item in known.items():
        if name not in table and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{where}{name} is missing")
    return kind(**{name: _typed(hints[name], value, f"{where}{name}") for name, value in table.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotation says: tuples from lists, dataclasses from tables, floats from integers."""
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table, got {value!r}")
        return from_table(hint, value, f"{where}.")  # type: ignore[arg-type]  # a class, not an instance
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(arguments[0], item, where) for item in value)
        if len(value) != len(arguments):
            raise ValueError(f"{where} must hold {len(arguments)} values, got {value!r}")
        return tuple(_typed(kind, item, where) for kind, item in zip(arguments, value, strict=True))
    if hint in (int, float, bool, str):
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
        return value
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table, got {value!r}")
        return dict(value)
    if arguments and origin is not None and str(origin) == "typing.Literal" and value not in arguments:
        raise ValueError(f"{where} must be one of {', '.join(map(str, arguments))}; got {value!r}")
    return value


def to_toml(config: Any) -> str:
    """The text of a TOML file.

    Parameters
    ----------
    config : dataclass

    Returns
    -------
    str

    Raises
    ------
    ValueError
        As :func:`as_table`.
    """
    return tomli_w.dumps(as_table(config))


def read_toml(kind: type[T], path: Path) -> T:
    """The dataclass in a TOML file.

    Parameters
    ----------
    kind : dataclass type
    path : Path

    Returns
    -------
    kind

    Raises
    ------
    FileFormatError
        The file is not TOML, or does not hold what the dataclass wants.
    """
    try:
        return from_table(kind, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError) as error:
        raise FileFormatError(f"{path}: {error}") from error
