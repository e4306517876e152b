"""``risfast evaluate``: methods over fixed scenes, tables and a report."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from risfast.cli.options import Command, Common, Flag, Flat, Opt, refuse_existing
from risfast.cli.progress import ProgressBar

if TYPE_CHECKING:  # the suite is imported when it runs
    from risfast.report.outcome import SuiteOutcome


@dataclass(frozen=True)
class EvaluateCommand(Command):
    """Options of ``risfast evaluate``."""

    HELP: ClassVar[str] = (
        "Methods see the very same simulated scenes, beside greedy maximum likelihood and the Cramér-Rao bound. Ends "
        "with tables (CSV, and Parquet where pyarrow is installed) and one HTML page. A run that was interrupted goes "
        "on with the same command. Under torchrun every process takes its share of the scenes."
    )
    RESUMES: ClassVar[str] = "; the same command goes on"

    # main: every method, told neither the noise nor the number of sources. oracle, map, robustness, ablation: main and
    # this part. all: every part. quick: at most 200 scenes of main with the localizer and greedy ML. frozen: the 8
    # scenes that results/ are checked with.
    suite: Literal["all", "quick", "main", "oracle", "map", "robustness", "ablation", "frozen"] = "all"
    scenes: int = 1000  # Scenes of the main set; the other sets are shares of it.
    snapshots: tuple[int, ...] = (64, 16)  # Snapshots L of a scene; each makes a set of its own.
    # Methods: localizer, localizer_raw (without polish) and any baseline. Default: localizer, localizer_raw,
    # greedy_ml, sbl, ls_capon, and transformer_capon if there is a model for it.
    methods: tuple[str, ...] = ()
    seed: int = 0x6576616C  # Seed of the scenes; not one that the model was trained with.
    # default (the checkpoint that comes with the package), none (the classical fit, which needs no training), or the
    # folder of a model. It must be for the system.
    model: str = "default"
    # TOML file of a system of your own: array, antennas, codes, and where its sources are. By default the reference
    # distribution on the setup.
    system: Opt[Path] = None
    # TOML file of a setup: array, region, wavefront and tolerance of a hit. By default that of the system, or of the
    # model.
    setup: Opt[Path] = None
    device: str = "cpu"  # Device of the localizer; baselines run on the CPU.
    transformer: Opt[Path] = None  # Model folder of a transformer backbone, for transformer_capon.
    # Model folder of a refiner behind the model, whether it helps or not, for refined and refined_raw.
    refiner: Opt[Path] = None
    # Options of the localizer, as risfast hpo writes them; by default those that are stored with the model.
    options: Opt[Path] = None
    workers: int = 1  # Processes, of one thread each.
    resamples: int = 1000  # Resamples of the bootstrap intervals.
    output: Path = Path("risfast-evaluate")  # Folder of the results: records, tables and report.html.
    # A folder for copies of the small tables and a suite.json with command, seed and environment.
    export: Opt[Path] = None
    overwrite: Flag = False  # Replace the copies that are in the folder of --export.
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """Run the suite, or go on with it."""
        from risfast.evaluate.methods import DEFAULT_METHODS  # noqa: PLC0415
        from risfast.evaluate.suite import SuiteConfig, run_suite  # noqa: PLC0415
        from risfast.io.setup_file import read_setup  # noqa: PLC0415
        from risfast.models.pretrained import DEFAULT_MODEL  # noqa: PLC0415
        from risfast.report.outcome import finish  # noqa: PLC0415
        from risfast.simulate.system_file import read_system  # noqa: PLC0415

        methods = self.methods or (*DEFAULT_METHODS, *(("transformer_capon",) if self.transformer else ()))
        same = ("suite", "scenes", "snapshots", "seed", "device", "transformer", "refiner", "options")
        config = SuiteConfig(
            methods=methods,
            model={"default": DEFAULT_MODEL, "none": None}.get(self.model, Path(self.model)),
            system=None if self.system is None else read_system(self.system),
            setup=None if self.setup is None else read_setup(self.setup),
            **{name: getattr(self, name) for name in same},
        )
        if self.resamples < 1:
            raise ValueError(f"--resamples must be at least 1, got {self.resamples}")
        if self.export is not None:
            refuse_existing([self.export / "suite.json"], "--export", overwrite=self.overwrite)
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

        def tell(done: int, total: int, note: str) -> None:
            if rank == 0:
                progress("scenes by methods", done, total, unit="scenes", note=note)

        results = run_suite(config, self.output, workers=self.workers, rank=rank, world=world, report=tell)
        if rank:
            return 0
        outcome = finish(config, results, resamples=self.resamples, export=self.export, report=progress)
        progress.close()
        print(_outcome_text(outcome))
        return 0


_SHORT = {
    "f1": "F1",
    "f1_low_snr": "F1, SNR < 5 dB",
    "f1_high_snr": "F1, SNR >= 10 dB",
    "ghosts": "false alarms per scene",
    "count": "count right",
    "median": "median xyz error (m)",
    "over_bound": "rms of hits / bound",
    "near_recall": "recall, near, >= 5 dB",
    "time": "ms per scene",
}


def _outcome_text(outcome: SuiteOutcome) -> str:
    """The headline figures, and where everything is."""
    from risfast.report.tables import Sheet  # noqa: PLC0415

    lines = []
    for length in dict.fromkeys(row["snapshots"] for row in outcome.headline):
        own = [row for row in outcome.headline if row["snapshots"] == length]
        rows = []
        for name, title in _SHORT.items():
            cells = [row for row in own if row["name"] == name]
            values = [cells[0]["bound"], *(cell["value"] for cell in cells)]
            digits = 1 if name == "time" else 3
            rows.append([title, *(f"{value:.{digits}f}" if math.isfinite(value) else "-" for value in values)])
        methods = dict.fromkeys(row["method"] for row in own)
        lines += [Sheet([f"L = {length}", "bound", *methods], rows).text(), ""]
    lines += [f"report: {outcome.report}", f"tables: {outcome.tables}"]
    if outcome.exported is not None:
        lines.append(f"copies: {outcome.exported}")
    return "\n".join([*lines, *outcome.notes])
