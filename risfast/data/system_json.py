"""A system as plain JSON, for manifests, checkpoints and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch

from risfast.data.scenes import Coherence, SystemConfig
from risfast.geometry import PlanarArray
from risfast.sensing import Impairments

__all__ = ["array_from_json", "array_to_json", "differing_fields", "system_from_json", "system_to_json"]


def array_to_json(array: PlanarArray) -> dict[str, Any]:
    """Description of an array that :func:`array_from_json` turns back into the same one, to the last bit.

    Parameters
    ----------
    array : PlanarArray

    Returns
    -------
    dict
        ``n_h``, ``n_v``, ``spacing_m``, ``wavelength_m`` of a centred rectangular array, or ``positions_m`` (N rows of
        three numbers) and ``wavelength_m`` of any other.
    """
    lattice = array.lattice
    if lattice is not None:
        # the spacing that was asked for is the lattice's only up to rounding, so look for it among short decimals too
        for spacing in (lattice.spacing_h_m, lattice.spacing_v_m, round(lattice.spacing_h_m, 9)):
            if not spacing > 0:
                continue
            built = PlanarArray.rectangular(lattice.n_h, lattice.n_v, spacing, array.wavelength_m)
            if torch.equal(built.positions_m, array.positions_m):
                return {
                    "n_h": lattice.n_h,
                    "n_v": lattice.n_v,
                    "spacing_m": spacing,
                    "wavelength_m": array.wavelength_m,
                }
    return {"positions_m": array.positions_m.tolist(), "wavelength_m": array.wavelength_m}


def array_from_json(description: Mapping[str, Any]) -> PlanarArray:
    """The array that :func:`array_to_json` described.

    Parameters
    ----------
    description : mapping
        As :func:`array_to_json` returns it.

    Returns
    -------
    PlanarArray

    Raises
    ------
    ValueError, ShapeError
        A key is missing or unknown, or the values make no array.
    """
    given = set(description)
    if given == {"n_h", "n_v", "spacing_m", "wavelength_m"}:
        return PlanarArray.rectangular(**description)
    if given == {"positions_m", "wavelength_m"}:
        return PlanarArray(torch.tensor(description["positions_m"], dtype=torch.float64), description["wavelength_m"])
    raise ValueError(
        "an array is described by n_h, n_v, spacing_m, wavelength_m or by positions_m, wavelength_m; "
        f"got {', '.join(sorted(given)) or 'nothing'}"
    )


def system_to_json(config: SystemConfig) -> dict[str, Any]:
    """Every field of a system as JSON values: numbers, strings, lists and tables.

    Parameters
    ----------
    config : SystemConfig

    Returns
    -------
    dict
        By name of the field; the array as :func:`array_to_json` says, impairments and coherence as tables.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    values["array"] = array_to_json(config.array)
    values["impairments"] = asdict(config.impairments)
    values["coherence"] = asdict(config.coherence)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def system_from_json(description: Mapping[str, Any]) -> SystemConfig:
    """The system that :func:`system_to_json` described.

    Parameters
    ----------
    description : mapping
        As :func:`system_to_json` returns it.

    Returns
    -------
    SystemConfig

    Raises
    ------
    ValueError
        A field is missing or unknown, or a value is out of its range.
    """
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
    """Names of the entries in which two nested descriptions differ.

    Parameters
    ----------
    a, b : mapping
        JSON values; tables may be nested.

    Returns
    -------
    list of str
        Sorted; those of a nested table with its name and a dot before them.
    """
    found: list[str] = []
    for name in sorted(set(a) | set(b)):
        left, right = a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += [f"{name}.{inner}" for inner in differing_fields(left, right)]
        elif left != right:
            found.append(name)
    return found
