"""How far a command has come: a bar of tqdm on stderr, lines now and then in a log, nothing with ``--quiet``."""

from __future__ import annotations

import math
import sys
import threading
import time
from typing import TextIO

from tqdm import tqdm

_LOG_SECONDS = 20.0  # between two lines in a log
_TICK_SECONDS = 0.5  # between two looks at the clock of a bar on a terminal
_LOG_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Bar(tqdm):
    """A bar without tqdm's thread."""

    monitor_interval = 0


_Bar.set_lock(threading.RLock())


class _Lines(_Bar):
    """The same as lines, for what is no terminal."""

    @staticmethod
    def status_printer(file: TextIO) -> object:
        def print_status(text: str) -> None:
            file.write(text + "\n")
            file.flush()

        return print_status

    def close(self) -> None:
        """Nothing to take away: what is written stays."""
        self.disable = True


class ProgressBar:
    """The stages of a command, one bar at a time; a new stage takes the place of the last one.

    On a terminal the clock of the bar runs on between two reports, so that a long step is seen to go on.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._quiet, self._stream = quiet, stream or sys.stderr
        self._live = self._stream.isatty()
        self._bar: _Bar | None = None
        self._stage, self._written, self._note = "", -math.inf, ""
        self._lock = threading.RLock()  # of the bar, which the clock draws too
        self._ended: threading.Event | None = None  # ends the clock

    def __call__(self, stage: str, done: int, total: int, *, unit: str = "it", note: str = "") -> None:
        """Report ``done`` of ``total`` steps of a stage; ``note`` stands behind the time that is left."""
        if self._quiet:
            return
        with self._lock:
            if self._bar is None or stage != self._stage or total != self._bar.total:
                self._take_away()
                self._bar, self._stage = self._open(stage, done, total, unit), stage
            bar = self._bar
            changed, self._note = note != self._note, note
            bar.set_postfix_str(note, refresh=False)
            if self._live:
                if done != bar.n:
                    bar.update(done - bar.n)
                elif changed:
                    bar.refresh()
                return
            bar.n = done
            now = time.monotonic()
            if done == total or now - self._written >= _LOG_SECONDS:
                bar.display()
                self._written = now

    def waiting(self, stage: str) -> None:
        """A stage without steps: its time, on a terminal alone."""
        if self._quiet or not self._live:
            return
        with self._lock:
            self._take_away()
            bar_format = "{desc} [{elapsed}]"
            self._bar, self._stage = _Bar(desc=stage, leave=False, file=self._stream, bar_format=bar_format), stage
            self._run_clock()

    def _open(self, stage: str, done: int, total: int, unit: str) -> _Bar:
        """What an earlier run did (``done`` at the first call) does not count for the rate."""
        self._written = -math.inf
        if self._live:
            self._run_clock()
            return _Bar(
                total=total, initial=done, desc=stage, unit=unit, leave=False, dynamic_ncols=True, file=self._stream
            )
        return _Lines(
            total=total, initial=done, desc=stage, unit=unit, file=self._stream, bar_format=_LOG_FORMAT, delay=1e-9
        )

    def _run_clock(self) -> None:
        if self._ended is None:
            self._ended = threading.Event()
            threading.Thread(target=self._tick, args=(self._ended,), daemon=True).start()

    def _tick(self, ended: threading.Event) -> None:
        while not ended.wait(_TICK_SECONDS):
            with self._lock:
                if self._bar is not None and not ended.is_set():
                    try:
                        self._bar.refresh()
                    except (OSError, ValueError):  # nobody reads the stream any more, or it is closed
                        return

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if not self._quiet:
            with self._lock:
                _Bar.write(line, file=self._stream)
                self._stream.flush()

    def _take_away(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._ended is not None:
                self._ended.set()
                self._ended = None
            self._take_away()
