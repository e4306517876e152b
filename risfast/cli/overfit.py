"""``risfast overfit``: the gate that a backbone has to pass before it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from risfast.cli.options import Common, Flag, Flat, Opt, Whole, refuse_existing
from risfast.cli.progress import Progress
from risfast.cli.training import ABOUT_CONFIG, from_file
from risfast.train.overfit import OverfitConfig, overfit

__all__ = ["Options", "defaults", "run"]

HELP = "One that cannot is not worth training. Ends with status 1 if the gate is not passed."


@dataclass(frozen=True)
class Options:
    """Options of ``risfast overfit``."""

    output: Path = Path("risfast-overfit")
    """Folder for overfit.json."""
    overwrite: Flag = False
    """Replace the overfit.json that is there."""
    config: Annotated[Opt[Path], arg(help=ABOUT_CONFIG)] = None
    common: Annotated[Common, Flat] = field(default_factory=Common)
    gate: Annotated[OverfitConfig, Flat, Whole] = field(default_factory=OverfitConfig)


def defaults(arguments: Sequence[str]) -> Options:
    """Those of the file that ``--config`` names."""
    return Options(gate=from_file(OverfitConfig, arguments))


def run(options: Options, progress: Progress) -> int:
    """1 if the backbone does not pass."""
    config = options.gate
    refuse_existing([options.output / "overfit.json"], "--output", overwrite=options.overwrite)

    def report(step: int, steps: int, nmse: float) -> None:
        progress("learning by heart", step, steps, unit="steps", note=f"NMSE {nmse:.4f}")

    outcome = overfit(config, report, folder=options.output)
    progress.close()
    verdict = "below" if outcome.passed else "NOT below"
    print(
        f"{config.backbone.name}: NMSE {outcome.nmse_mean:.4f} mean, {outcome.nmse_median:.4f} median on "
        f"{config.scenes} learned scenes at step {outcome.step}, {verdict} the gate of {config.gate:g}"
    )
    return 0 if outcome.passed else 1
