"""``risfast doctor``: look at the machine and say what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from risfast.cli.options import Command, Common, Flat, Opt
from risfast.cli.progress import ProgressBar
from risfast.errors import FileFormatError

__all__ = ["DoctorCommand"]


@dataclass(frozen=True)
class DoctorCommand(Command):
    """Options of ``risfast doctor``."""

    HELP: ClassVar[str] = "Ends with status 1 if anything fails."

    folder: Path = Path()
    """Where results are to be written."""
    device: Opt[str] = None
    """The only device to look at, cpu or cuda; all by default."""
    common: Annotated[Common, Flat] = field(default_factory=Common)

    def run(self, progress: ProgressBar) -> int:
        """1 if anything fails."""
        from risfast.cli.doctor_report import examine  # noqa: PLC0415 - it times the operators

        if not self.folder.is_dir():
            raise FileFormatError(f"--folder {self.folder}: there is no such folder")
        checks = examine(self.folder, self.device)
        for check in checks:
            print(f"{check.status:<4}  {check.name}: {check.found}")
            if check.mend:
                print(f"      -> {check.mend}")
        failed = sum(check.status == "fail" for check in checks)
        warned = sum(check.status == "warn" for check in checks)
        print(f"{failed} failed, {warned} to know, {len(checks) - failed - warned} well")
        return 1 if failed else 0
