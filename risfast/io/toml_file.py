"""Frozen dataclasses to TOML and back, with every unknown or mistyped key refused by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from risfast.errors import FileFormatError
from risfast.io.guard import load_toml, naming

_T = TypeVar("_T")

NONE = "none"  # TOML has no null


def as_table(config: Any, *, complete: bool = False) -> dict[str, Any]:
    """A dataclass and all inside it as plain tables, lists, numbers, booleans and strings."""
    table: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if value is not None:
            table[item.name] = _plain(value, item.name, complete)
        elif complete or item.default is not None:
            table[item.name] = NONE
    return table


def _plain(value: Any, name: str, complete: bool) -> Any:
    if value is None:
        raise ValueError(f"{name} is None, which TOML cannot hold")
    if is_dataclass(value):
        return as_table(value, complete=complete)
    if isinstance(value, tuple | list):
        return [_plain(item, name, complete) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}", complete) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def from_table(kind: type[_T], table: Mapping[str, Any], where: str = "", *, base: _T | None = None) -> _T:
    """The dataclass ``kind`` from the tables that :func:`as_table` made; missing fields keep their default."""
    renewed = getattr(kind, "renewed", None)  # of a class that has lost fields since files were written
    if renewed is not None:
        table = renewed(table)
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]  # kind is a dataclass
    unknown = sorted(set(table) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        mend = f"; did you mean {near[0]}?" if near else ";"
        raise ValueError(f"{where}{unknown[0]} is not an option{mend} known here: {', '.join(known)}")
    for name in (name for name in known if name not in table):
        if base is not None and is_dataclass(getattr(base, name)):
            raise ValueError(f"the table [{where}{name}] is missing")
        if base is None and known[name].default is MISSING and known[name].default_factory is MISSING:
            raise ValueError(f"{where}{name} is missing")
    given = {
        name: _typed(hints[name], value, f"{where}{name}", None if base is None else getattr(base, name))
        for name, value in table.items()
    }
    if base is None:
        return kind(**given)
    try:
        return replace(base, **given)  # type: ignore[type-var]  # kind is a dataclass
    except ValueError as error:
        raise ValueError(f"{error} (in [{where[:-1]}])" if where else str(error)) from error


def _typed(hint: Any, value: Any, where: str, base: Any = None) -> Any:
    """``value`` as the annotation says: tuples from lists, dataclasses from tables, floats from integers."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) or dict in (origin, hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table, got {value!r}")
        table: dict[str, Any] = dict(value)
        return from_table(hint, table, f"{where}.", base=base) if is_dataclass(hint) else table  # type: ignore[arg-type]
    if origin in (Union, UnionType):
        if NoneType in arguments and value == NONE:
            return None
        kinds = [kind for kind in arguments if kind is not NoneType]
        return _typed(kinds[0], value, where, base) if len(kinds) == 1 else value
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
    if origin is Literal and value not in arguments:
        raise ValueError(f"{where} must be one of {', '.join(map(str, arguments))}; got {value!r}")
    return value


def to_toml(config: Any) -> str:
    """The text of a TOML file."""
    return tomli_w.dumps(as_table(config))


def read_toml(kind: type[_T], path: Path) -> _T:
    """The dataclass in a TOML file."""
    with naming(path):
        return from_table(kind, load_toml(path, "options"))


def read_toml_table(path: Path, what: str, written: int, mend: str = "") -> dict[str, Any]:
    """What a TOML file of ``format = written`` holds besides its format."""
    table = load_toml(path, what)
    found = table.pop("format", None)
    if found != written or isinstance(found, bool):
        given = "the key format is missing" if found is None else f"format {found!r}"
        raise FileFormatError(f"{path}: {given}, and this version reads {what} with format = {written}{mend}")
    return table
