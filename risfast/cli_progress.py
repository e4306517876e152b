"""How far a command has come: one line on stderr."""

from __future__ import annotations

import time
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """One line on stderr that says how far the work has come; on a terminal it is overwritten in place.

    Parameters
    ----------
    stream : text file
        Where the line goes. Where it is no terminal, only the first and the last step of a stage are written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._stage = ""
        self._started = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report ``done`` of ``total`` steps of a stage."""
        if stage != self._stage:
            self._stage, self._started = stage, time.monotonic()
        line = f"{stage}: {done}/{total}, {time.monotonic() - self._started:.0f} s"
        if self._live:
            self._stream.write(f"\r\x1b[K{line}")
        elif done in (0, total):
            self._stream.write(line + "\n")  # a log wants the start and the end of each stage, not every step
        self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._live and self._stage:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
