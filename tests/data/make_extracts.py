"""Makes the extracts in this folder from the test files that ship with pyuvdata.

    pip download --no-deps pyuvdata==3.2.3 pyuvdata==2.4.5      # one after the other
    pip install pyuvdata==3.2.3 acoular
    python tests/data/make_extracts.py FOLDER_OF_THE_WHEELS

The files are written by pyuvdata itself (and by acoular), so that they are what those programs write.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
DATA = "pyuvdata/data"
HERA = f"{DATA}/zen.2457698.40355.xx.HH.uvcA.uvh5"  # in 2.4.5 only
MWA = f"{DATA}/mwa_corr_fits_testfiles/1061315448_20130823175130_mini_vv_07_01.uvh5"
ATA = f"{DATA}/ata.LoA.C0352.uvh5_60647_62965_9760406_3c286_0001.uvh5"  # in 3.2.3 only


def unpack(wheels: Path, version: str, member: str, folder: Path) -> Path:
    (wheel,) = wheels.glob(f"pyuvdata-{version}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(member, folder))


def extract(source: Path, target: Path, *, checked: bool = True, **selection: object) -> None:
    """A part of a file, written again by pyuvdata."""
    from pyuvdata import UVData

    data = UVData()
    data.read(source, run_check=checked)
    data.select(run_check=checked, **selection)
    data.write_uvh5(target, clobber=True, run_check=checked, data_compression=None, flags_compression="lzf")


def main(wheels: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        hera = unpack(wheels, "2.4.5", HERA, folder)
        extract(hera, HERE / "hera19.uvh5", freq_chans=[380, 480, 520, 640])
        mwa = unpack(wheels, "3.2.3", MWA, folder)
        extract(mwa, HERE / "mwa128.uvh5", polarizations=[-5, -6])
        ata = unpack(wheels, "3.2.3", ATA, folder)
        extract(ata, HERE / "ata_garbage.uvh5", checked=False, freq_chans=[0, 8])
        licence = unpack(wheels, "2.4.5", "pyuvdata-2.4.5.dist-info/LICENSE", folder)
        shutil.copyfile(licence, HERE / "LICENSE.pyuvdata.txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
