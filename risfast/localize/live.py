"""A live loop: frames of snapshots in, sources out, and what is done when frames come too fast."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, NamedTuple

from torch import Tensor

from risfast.detect import DetectionOptions, detect_sources
from risfast.errors import ShapeError
from risfast.geometry import SearchGrid
from risfast.ops import checks
from risfast.setup import Setup
from risfast.sources import Sources

Drop = Literal["oldest", "none"]


class LiveResult(NamedTuple):
    """Sources of one frame, and how late they are.

    Attributes
    ----------
    frame : int
        Which frame this is, counted from 0 as they came.
    sources : Sources
        Without any source where the frame could not be located.
    latency_s : float
        From when the frame was there to when its sources were.
    seconds : float
        That locating it took.
    dropped : int
        Frames that were left out since the result before.
    error : str
        Why the frame could not be located; empty where it could.
    """

    frame: int
    sources: Sources
    latency_s: float
    seconds: float
    dropped: int = 0
    error: str = ""


@dataclass(frozen=True)
class LiveLoop:
    """Locates frames as they come, one after the other.

    A thread takes frames from their source; those that came while another was located wait. A result is late by at most
    (waiting + 1) times what locating one frame takes and the caller does between two results; where none is left out
    by (waiting + 2) times, because one more frame then waits for room.

    Parameters
    ----------
    locate : callable
        From a frame to its :class:`~risfast.Sources`: a :class:`ForgettingDetector`, or
        ``lambda y: localizer.localize(y)[0]``.
    waiting : int
        Frames that may wait, at least 1.
    drop : {"oldest", "none"}
        What happens to a frame that comes when so many wait: the oldest of them is left out, which results say; or
        the source is not asked for another one, as is right for a recording.
    on_error : {"raise", "skip"}
        Whether a frame that cannot be located ends the loop, or is told and left. This is of errors of values, types,
        arithmetic and run time, as an unsolvable system is; any other ends the loop.

    Raises
    ------
    ValueError
        ``waiting`` is no whole number from 1, or an unknown word.

    Examples
    --------
    >>> for result in LiveLoop(ForgettingDetector(setup)).run(frames):  # doctest: +SKIP
    ...     print(result.frame, result.sources, result.latency_s, result.dropped)
    """

    locate: Callable[[Any], Sources]
    waiting: int = 1
    drop: Drop = "oldest"
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        """Check the words."""
        waiting: Any = self.waiting
        if isinstance(waiting, bool) or not isinstance(waiting, Integral) or waiting < 1:
            raise ValueError(f"waiting must be a whole number, at least 1, got {self.waiting!r}")
        for name, known in (("drop", ("oldest", "none")), ("on_error", ("raise", "skip"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")

    def run(self, frames: Iterable[Any]) -> Iterator[LiveResult]:
        """Locate every frame, or those that there is time for.

        Parameters
        ----------
        frames : iterable
            Whatever ``locate`` takes; asked for the next frame in a thread of its own.

        Yields
        ------
        LiveResult
            In the order of the frames. An error of ``frames`` is raised behind the last of them.

        Raises
        ------
        ValueError
            A frame that cannot be located, where such errors are to be raised; it is named.
        TypeError, ArithmeticError, RuntimeError
            The same, as ``locate`` raised it, with the frame in a note.
        """
        line = _Line(self.waiting, self.drop)
        thread = threading.Thread(target=line.fill, args=(frames,), name="risfast-live", daemon=True)
        thread.start()
        next_frame = 0
        try:
            while (waited := line.take()) is not None:
                number, came, frame = waited
                began, error = time.perf_counter(), ""
                try:
                    sources = self.locate(frame)
                except (ValueError, TypeError, ArithmeticError, RuntimeError) as problem:
                    if self.on_error == "raise":
                        if isinstance(problem, ValueError):
                            raise ValueError(f"frame {number}: {problem}") from problem
                        problem.add_note(f"frame {number} could not be located")
                        raise
                    sources, error = Sources.empty(), str(problem) or type(problem).__name__
                now = time.perf_counter()
                yield LiveResult(number, sources, now - came, now - began, number - next_frame, error)
                next_frame = number + 1
        finally:
            line.close()
        if line.problem is not None:
            raise line.problem


class _Line:
    """Frames that wait, with their numbers and when they came."""

    def __init__(self, length: int, drop: Drop) -> None:
        self._waiting: queue.Queue[tuple[int, float, Any] | None] = queue.Queue(length)
        self._drop, self._closed = drop, threading.Event()
        self.problem: BaseException | None = None

    def fill(self, frames: Iterable[Any]) -> None:
        """In a thread: put every frame in the line, and None behind the last."""
        try:
            for number, frame in enumerate(frames):
                if not self._put((number, time.perf_counter(), frame), self._drop):
                    return
        except BaseException as error:  # told to whoever takes the frames
            self.problem = error
        self._put(None, "none")

    def _put(self, entry: tuple[int, float, Any] | None, drop: Drop) -> bool:
        """Whether it stands in the line; False once that is closed."""
        while not self._closed.is_set():
            try:
                self._waiting.put(entry, timeout=0.0 if drop == "oldest" else _POLL_S)
                return True
            except queue.Full:
                if drop == "oldest":
                    with suppress(queue.Empty):  # it was just taken to be located
                        self._waiting.get_nowait()
        return False

    def take(self) -> tuple[int, float, Any] | None:
        """The next frame; None behind the last."""
        return self._waiting.get()

    def close(self) -> None:
        """No frame is wanted any more."""
        self._closed.set()


_POLL_S = 0.1


class ForgettingDetector:
    """Sources of the latest frames, by the Capon map of a covariance that forgets.

    Parameters
    ----------
    setup : Setup
        Of an array that is sampled directly.
    memory : float
        Share of the covariance of the frames before that stays in each frame's, in [0, 1).
    grid : SearchGrid, optional
        That of the setup by default.
    options : DetectionOptions, optional

    Raises
    ------
    ValueError
        ``memory`` is out of its range.
    """

    def __init__(
        self,
        setup: Setup,
        memory: float = 0.2,
        grid: SearchGrid | None = None,
        options: DetectionOptions | None = None,
    ) -> None:
        if not isinstance(memory, int | float) or not 0 <= memory < 1:
            raise ValueError(f"memory must lie in [0, 1), got {memory!r}")
        self.setup, self.memory, self.options = setup, memory, options
        self.grid = setup.search_grid() if grid is None else grid
        self._covariance: Tensor | None = None

    def __call__(self, frame: Tensor) -> Sources:
        """Sources of one frame.

        Parameters
        ----------
        frame : complex tensor, shape (L, N)
            Snapshots; a frame that is refused leaves no trace in those after it.

        Returns
        -------
        Sources

        Raises
        ------
        ShapeError, TypeError, ValueError
            Another number of elements, no snapshot, numbers that are not complex, or values that are not finite.
        """
        frame = checks.complex_tensor(frame, "frame")
        if frame.ndim != 2 or frame.shape[1] != self.setup.array.n_elements or not len(frame):
            n = self.setup.array.n_elements
            raise ShapeError(f"frame must have shape (L, {n}) with L >= 1, got {tuple(frame.shape)}")
        covariance = frame.mT @ frame.conj() / len(frame)
        if self._covariance is not None:
            covariance = self.memory * self._covariance + (1 - self.memory) * covariance
        found = detect_sources(covariance, self.setup, self.grid, options=self.options)[0]
        self._covariance = covariance
        return found
