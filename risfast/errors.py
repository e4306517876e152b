"""Exceptions that name the argument, what was expected and what came."""

from __future__ import annotations


class ShapeError(ValueError):
    """An array argument has the wrong shape; the message names it and the likely mend."""


class FileFormatError(ValueError):
    """A file cannot be read as what it was given for; the message names the file, the field and the mend."""
