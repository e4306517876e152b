"""``risfast-train evaluate``: methods over fixed scenes, tables and a report."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:  # the suite is imported when it runs, not by every start of risfast-train
    from risfast.evaluate.outcome import Outcome
    from risfast.evaluate.suite import Progress

__all__ = ["EvaluateOptions", "evaluate_command", "progress_text"]

_DESCRIPTION = """\
Find out how good localisation is: methods over fixed simulated scenes, on the very same scenes, beside greedy maximum
likelihood and the Cramér-Rao bound. Ends with tables (CSV, and Parquet where pyarrow is installed) and one HTML page.

A run that was interrupted goes on with the same command. Under torchrun every process takes its share of the scenes.
--debug shows the traceback of an error."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of ``risfast-train evaluate``."""

    suite: Literal["all", "quick", "main", "oracle", "map", "robustness", "ablation", "frozen"] = "all"
    """main: all methods, nothing told. oracle, map, robustness, ablation: that and one more part. all: everything.
    quick: at most 200 scenes of main with the localizer and greedy ML. frozen: the 8 scenes that results/ are checked
    with."""
    scenes: int = 1000
    """Scenes of the main set; the other sets are shares of it."""
    snapshots: tuple[int, ...] = (64, 16)
    """Snapshots L of a scene; each makes a set of its own."""
    methods: tuple[str, ...] = ()
    """Methods: localizer, localizer_raw (without polish) and any baseline. Default: localizer, localizer_raw,
    greedy_ml, sbl, ls_capon, and transformer_capon if there is a model for it."""
    seed: int = 0x6576616C
    """Of the scenes; not one that the model was trained with."""
    model: Path | None = None
    """Model folder of the localizer; by default the checkpoint that comes with the package."""
    transformer: Path | None = None
    """Model folder of a transformer backbone, for transformer_capon."""
    dcd_checkout: Path | None = None
    """Folder of a checkout of https://github.com/aradgast/DCD-MUSIC, for the methods nf_subspacenet and dcd_music.
    Its code is run."""
    dcd_weights: tuple[Path, ...] = ()
    """Weights for them, a file each: python -m risfast.baselines.dcd_train makes them."""
    workers: int = 1
    """Processes, of one thread each."""
    resamples: int = 1000
    """Of the bootstrap intervals."""
    out: Path = Path("risfast-evaluate")
    """Folder of the results: records, tables and report.html."""
    export: Path | None = None
    """A folder for copies of the small tables and a suite.json with command, seed and environment."""


class _Line:
    """One live line on stderr; in a log, a line every so often."""

    _BETWEEN_S = 20.0

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._live, self._last = stream, stream.isatty(), -math.inf

    def __call__(self, text: str, *, last: bool = False) -> None:
        now = time.monotonic()
        if now - self._last < (0.2 if self._live else self._BETWEEN_S) and not last:
            return
        self._last = now
        self._stream.write(f"\r\x1b[K{text}" if self._live else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """End the line."""
        if self._live:
            self._stream.write("\n")
            self._stream.flush()


def progress_text(progress: Progress) -> str:
    """Scenes done, their rate and the time left in one line; what is not known yet is a dash.

    Parameters
    ----------
    progress : Progress
        Of :func:`risfast.evaluate.suite.run_suite`.

    Returns
    -------
    str
        Without a line end.
    """
    rate = f"{progress.per_s:.1f} scenes/s" if math.isfinite(progress.per_s) else "- scenes/s"
    left = "-"
    if math.isfinite(progress.seconds_left):
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
    note = f"  [{progress.note}]" if progress.note else ""
    return f"{progress.done}/{progress.total} scenes by methods  {rate}  {left} left{note}"


def evaluate_command(arguments: Sequence[str]) -> int:
    """Run the suite.

    Parameters
    ----------
    arguments : sequence of str
        Those after ``evaluate``.

    Returns
    -------
    int
        0.

    Raises
    ------
    ValueError, OSError, RuntimeError
        What the command line shows in one line.
    """
    import tyro  # noqa: PLC0415  (only the commands that generate their options need it)

    options = tyro.cli(
        EvaluateOptions,
        prog="risfast-train evaluate",
        description=_DESCRIPTION,
        args=arguments,
        config=(tyro.conf.FlagConversionOff,),
    )
    from risfast.evaluate.methods import DEFAULT_METHODS  # noqa: PLC0415
    from risfast.evaluate.outcome import finish  # noqa: PLC0415
    from risfast.evaluate.suite import SuiteConfig, run_suite  # noqa: PLC0415
    from risfast.models.pretrained import DEFAULT_MODEL  # noqa: PLC0415

    methods = options.methods or (*DEFAULT_METHODS, *(("transformer_capon",) if options.transformer else ()))
    config = SuiteConfig(
        suite=options.suite,
        scenes=options.scenes,
        snapshots=options.snapshots,
        methods=methods,
        seed=options.seed,
        model=options.model or DEFAULT_MODEL,
        transformer=options.transformer,
        dcd_checkout=options.dcd_checkout,
        dcd_weights=options.dcd_weights,
    )
    if options.resamples < 1:
        raise ValueError(f"--resamples must be at least 1, got {options.resamples}")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    line = _Line(sys.stderr)

    def tell(progress: Progress) -> None:
        if rank == 0:
            line(progress_text(progress), last=progress.done == progress.total)

    try:
        results = run_suite(config, options.out, workers=options.workers, rank=rank, world=world, report=tell)
        if rank:
            return 0
        outcome = finish(
            config,
            results,
            resamples=options.resamples,
            export=options.export,
            report=lambda stage, done, total: line(f"{stage}: {done}/{total}", last=done == total),
        )
    finally:
        line.close()
    print(outcome_text(outcome))
    return 0


_SHORT = {
    "f1": "F1",
    "f1_low_snr": "F1, SNR < 5 dB",
    "f1_high_snr": "F1, SNR >= 10 dB",
    "ghosts": "ghosts per scene",
    "count": "count right",
    "median": "median xyz error (m)",
    "over_bound": "rms of hits / bound",
    "near_recall": "recall, <= 5 m, >= 5 dB",
    "time": "ms per scene",
}


def outcome_text(outcome: Outcome) -> str:
    """The headline figures, and where everything is.

    Parameters
    ----------
    outcome : Outcome
        Of :func:`risfast.evaluate.outcome.finish`.

    Returns
    -------
    str
        Lines of a table, paths, and notes.
    """
    lines = []
    for length in dict.fromkeys(row["snapshots"] for row in outcome.headline):
        own = [row for row in outcome.headline if row["snapshots"] == length]
        methods = list(dict.fromkeys(row["method"] for row in own))
        lines.append(f"{f'L = {length}':26}{'bound':>10}" + "".join(f"{method:>18}" for method in methods))
        for name, title in _SHORT.items():
            cells = {row["method"]: row for row in own if row["name"] == name}
            bound = cells[methods[0]]["bound"]
            shown = [_number(bound, name, 10), *(_number(cells[m]["value"], name, 18) for m in methods)]
            lines.append(f"{title:26}" + "".join(shown))
        lines.append("")
    lines += [f"report: {outcome.report}", f"tables: {outcome.tables}"]
    if outcome.exported is not None:
        lines.append(f"copies: {outcome.exported}")
    return "\n".join([*lines, *outcome.notes])


def _number(value: float, name: str, width: int) -> str:
    text = "-" if not math.isfinite(value) else f"{value:.1f}" if name == "time" else f"{value:.3f}"
    return f"{text:>{width}}"
