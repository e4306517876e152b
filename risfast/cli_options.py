"""What generated command lines share: how a table of free options is typed."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

__all__ = ["option_registry", "table_of"]


def option_registry() -> Any:
    """How a table of free options is given: NAME=VALUE ..., the values in TOML, dots in a name for tables inside.

    Returns
    -------
    tyro.constructors.ConstructorRegistry
        For the ``registry`` of ``tyro.cli``.
    """
    import tyro  # noqa: PLC0415  (only the commands that generate their options need it)

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
    """The table that NAME=VALUE items stand for.

    Parameters
    ----------
    items : sequence of str
        Values in TOML; a bare word is a string. Dots in a name make tables inside.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        An item without ``=``.
    """
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
