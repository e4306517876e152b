"""A system as plain JSON, for manifests, checkpoints and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from risfast.setup import array_from_json, array_to_json
from risfast.simulate.impairments import Impairments
from risfast.simulate.scenes import Coherence, SystemConfig

__all__ = ["differing_fields", "system_from_json", "system_to_json"]


def system_to_json(config: SystemConfig) -> dict[str, Any]:
    """Every field of a system as JSON values: numbers, strings, lists and tables."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    values["array"] = array_to_json(config.array)
    values["impairments"] = asdict(config.impairments)
    values["coherence"] = asdict(config.coherence)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def system_from_json(description: Mapping[str, Any]) -> SystemConfig:
    """The system that :func:`system_to_json` described."""
    expected = {f.name for f in fields(SystemConfig)}
    if set(description) != expected:
        wrong = sorted(set(description) ^ expected)
        raise ValueError(f"a system has the fields {', '.join(sorted(expected))}; missing or unknown: {wrong}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in description.items()
    }
    values["array"] = array_from_json(description["array"])
    values["impairments"] = Impairments(**description["impairments"])
    values["coherence"] = Coherence(**description["coherence"])
    return SystemConfig(**values)


def differing_fields(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names of the entries in which two nested descriptions differ."""
    found: list[str] = []
    for name in sorted(set(a) | set(b)):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += [f"{name}.{inner}" for inner in differing_fields(left, right)]
        elif left != right:
            found.append(name)
    return found
