"""Options of the pipeline as TOML files, as tuning writes them and the localizer reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tomli_w

from risfast.errors import FileFormatError
from risfast.io.durable import replace_file
from risfast.io.guard import naming
from risfast.io.toml_file import as_table, from_table, read_toml_table

if TYPE_CHECKING:
    from risfast.localize.pipeline import PipelineOptions

OPTIONS_FILE_FORMAT = 1

_T = TypeVar("_T")


def read_options(path: str | Path) -> PipelineOptions:
    """Read options of the pipeline from a TOML file.

    Parameters
    ----------
    path : str or Path
        As :func:`write_options` writes it: ``format = 1``, and a table for each group of options. A key that is left
        out keeps its default; the tables must all be there. ``"none"`` is None.

    Returns
    -------
    PipelineOptions

    Raises
    ------
    FileFormatError
        The file is missing, empty, not TOML, of another format, or holds an unknown key, lacks a table, or has a value
        of the wrong type or out of its range; the message names the key.
    """
    from risfast.localize.pipeline import PipelineOptions  # noqa: PLC0415  (the layer above: known where one is read)

    return read_options_as(PipelineOptions(), path)


def read_options_as(default: _T, path: str | Path) -> _T:
    """Options of the class of ``default``, any frozen dataclass; file and errors are those of :func:`read_options`."""
    path = Path(path)
    table = read_toml_table(
        path,
        "options",
        OPTIONS_FILE_FORMAT,
        "; write them again with this version (risfast.io.write_options), or read them with the one that wrote them",
    )
    with naming(path):
        return from_table(type(default), table, base=default)


def write_options(path: str | Path, options: PipelineOptions | Any) -> None:
    """Write options so that :func:`read_options` gives equal ones.

    Parameters
    ----------
    path : str or Path
        Ends in .toml; an existing file is replaced.
    options : PipelineOptions
        Or any frozen dataclass, for :func:`read_options_as`. Every field is written.

    Raises
    ------
    FileFormatError
        The name ends in something else.
    OSError
        The file cannot be written; what was there before is still there.
    ValueError
        None within a list or a mapping, which TOML cannot hold.
    """
    path = Path(path)
    if path.suffix.lower() != ".toml":
        raise FileFormatError(f"{path}: options are written as .toml")
    document = {"format": OPTIONS_FILE_FORMAT, **as_table(options, complete=True)}
    replace_file(path, tomli_w.dumps(document).encode())
