"""``risfast show``: a file of results as one page for a browser."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from risfast.cli.options import Command, Common, Flag, Flat, Opt, check_output
from risfast.cli.progress import ProgressBar


@dataclass(frozen=True)
class ShowCommand(Command):
    """Options of ``risfast show``."""

    HELP: ClassVar[str] = (
        "RESULT is a .json or .csv that locate or detect wrote with --output. A .json holds maps, range profiles and "
        "uncertainties, too; a .csv holds the sources alone. The page needs no network."
    )

    file: Annotated[Positional[Path], arg(metavar="RESULT")]  # The file of results.
    output: Opt[Path] = None  # Where the page goes; by default next to RESULT, as RESULT.html.
    overwrite: Flag = False  # Replace the page that is there.
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """Read, write the page, say where it is."""
        from risfast.io.durable import replace_file  # noqa: PLC0415 - help does not need them
        from risfast.io.results import read_results  # noqa: PLC0415
        from risfast.report.show import result_page  # noqa: PLC0415

        page = self.output or self.file.with_name(f"{self.file.name}.html")
        check_output(page, "--output", (".html", ".htm"), overwrite=self.overwrite)
        results = read_results(self.file)
        replace_file(page, result_page(results, self.file.name).encode())
        progress.close()
        print(f"page: {page}")
        return 0
