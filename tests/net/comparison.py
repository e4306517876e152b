"""How close is close, why, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .answers import Answers

RECORDED = Path(__file__).parent / "recorded"


class Tolerance(NamedTuple):
    """``limit`` is absolute, times the recorded value, or times the largest value recorded beside it (``kind``)."""

    limit: float
    kind: str
    unit: str = ""


EXACT = Tolerance(0.0, "absolute")
# Another processor rounds otherwise in float32 (backbone and likelihood: relative 1e-7 on the way, as much as noise of
# that size on the measurements would do) and in float64 (operators: 1e-16). The scenes are steady: ten times that
# rounding moves no answer by a third of these. All are far below what the answers are worth: deviations of 1e-3 rad and
# more, and ranges known to per cent.
TOLERANCES = {
    "count": EXACT,  # sources of a scene: no scene stands at a threshold
    "azimuth": Tolerance(1e-6, "absolute", "rad"),
    "elevation": Tolerance(1e-6, "absolute", "rad"),
    "range": Tolerance(1e-5, "relative"),
    "power": Tolerance(1e-4, "relative"),
    "confidence": Tolerance(3e-5, "absolute"),  # follows range, and is a steep function of what the polish ends with
    "prominence_db": Tolerance(1e-3, "absolute", "dB"),  # the documented error of a map
    "deviation": Tolerance(1e-4, "relative"),  # of position: the inverse of a matrix of condition 1e3 and more
    "noise_power": Tolerance(1e-5, "relative"),
    "inputs": Tolerance(1e-6, "largest"),  # float64, rounded to float32
    "spectrum": Tolerance(2.3e-7, "relative"),  # 1e-6 dB: the documented error for complex128, of every method
    "spectrum_single": Tolerance(2.3e-6, "relative"),  # 1e-5 dB: float64 inside, rounded to float32 at both ends
    "plane": EXACT,  # the lowest of equal ones; no two planes of the set are closer than rounding without being equal
    "linear": Tolerance(1e-9, "largest"),  # float64 and interpolation; both are linear in what they are given
    "exact": EXACT,  # indices and copied values
    # Readers copy: the same numbers whatever the machine. Below: what they compute.
    "covariance": EXACT,
    "snapshots": EXACT,
    "codes": EXACT,
    "channel": EXACT,
    "positions_m": EXACT,
    "wavelength_m": EXACT,
    "frequency_hz": EXACT,
    "flagged": EXACT,
    "acoular/covariance": Tolerance(1e-12, "largest"),  # Welch: a Fourier transform in float64
    "uvh5/positions_m": Tolerance(1e-7, "absolute", "m"),  # Earth-centred coordinates of 6e6 m in float64, rotated
}

# The polish ends at the maximum of the likelihood of the measurements whatever the backbone's float32 rounds to; before
# it, that rounding stays in the answers (half of the limits above between processors with and without AVX2).
UNPOLISHED = {
    "azimuth": Tolerance(1e-5, "absolute", "rad"),
    "elevation": Tolerance(1e-5, "absolute", "rad"),
    "range": Tolerance(1e-4, "relative"),
    "power": Tolerance(1e-3, "relative"),
    "confidence": Tolerance(3e-4, "absolute"),
}


class Change(NamedTuple):
    """The largest deviation of one array, in units of its tolerance (infinite where it has no size)."""

    key: str
    excess: float
    text: str


def load(group: str) -> Answers:
    with np.load(RECORDED / f"{group}.npz", allow_pickle=False) as archive:
        return dict(archive)


def compare(group: str, recorded: Answers, found: Answers) -> list[Change]:
    """The largest deviation of each array, the worst first; an ``excess`` above 1 is a change."""
    tolerances = TOLERANCES | (UNPOLISHED if group == "unpolished" else {})
    changes = [_one_sided(key, key in recorded) for key in recorded.keys() ^ found.keys()]
    for key in recorded.keys() & found.keys():
        case = key.rpartition("/")[0]
        counts = [answers.get(f"{case}/count") for answers in (recorded, found)]
        old, new, scene = recorded[key], found[key], None
        if counts[0] is not None and counts[1] is not None and counts[0].shape == counts[1].shape:
            by_scene = key.rpartition("/")[2] in ("count", "noise_power")
            old, new, scene = (old, new, np.arange(len(old))) if by_scene else _same_scenes(old, new, *counts)
        changes.append(_deviation(key, old, new, scene, tolerances))
    return sorted(changes, key=lambda change: (-change.excess, change.key))


def report(changes: list[Change], most: int = 12) -> str:
    """Lines for people: what changed and by how much."""
    beyond = [change for change in changes if change.excess > 1]
    lines = [f"{len(beyond)} of {len(changes)} recorded arrays changed"]
    lines += [f"  {change.key}: {change.text}" for change in beyond[:most]]
    return "\n".join(lines + [f"  and {len(beyond) - most} more"] * (len(beyond) > most))


def _one_sided(key: str, was: bool) -> Change:
    return Change(key, np.inf, "is recorded and not answered any more" if was else "is answered and not recorded")


def _same_scenes(old, new, old_count, new_count):
    """The values of scenes with as many sources as recorded (the others are a change of "count"), and their scenes."""
    same = old_count == new_count
    scenes = [np.repeat(np.arange(len(count)), count) for count in (old_count, new_count)]
    return old[same[scenes[0]]], new[same[scenes[1]]], scenes[0][same[scenes[0]]]


def _deviation(
    key: str, old: np.ndarray, new: np.ndarray, scene: np.ndarray | None, tolerances: dict[str, Tolerance]
) -> Change:
    tolerance = tolerances.get(key) or tolerances[key.rpartition("/")[2]]
    if old.shape != new.shape or old.dtype != new.dtype:
        return Change(key, np.inf, f"{new.dtype} {new.shape}, recorded {old.dtype} {old.shape}")
    if old.size == 0:
        return Change(key, 0.0, "empty")
    with np.errstate(invalid="ignore"):  # infinity less infinity, which are equal
        apart = np.where((old == new) | ((old != old) & (new != new)), 0.0, np.abs(new - old))  # noqa: PLR0124
    apart = np.where(np.isnan(apart), np.inf, apart)
    scale = {"absolute": 1.0, "relative": np.abs(old), "largest": np.abs(old).max()}[tolerance.kind]
    allowed = np.broadcast_to(tolerance.limit * scale, apart.shape)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(apart == 0, 0.0, apart / allowed)
        size = apart / (scale if tolerance.kind != "absolute" else 1.0)
    at = np.unravel_index(int(ratio.argmax()), ratio.shape)
    of = {"absolute": "", "relative": " of the value", "largest": " of the largest"}[tolerance.kind]
    where = f"scene {scene[at[0]]}" if scene is not None else f"at {tuple(map(int, at))}"
    text = (
        f"{int((ratio > 1).sum())} of {old.size} values, largest change {np.broadcast_to(size, apart.shape)[at]:.2g} "
        f"{tolerance.unit}{of} (allowed {tolerance.limit:g}), {where}: {new[at]:.8g}, recorded {old[at]:.8g}"
    )
    return Change(key, float(ratio[at]), text)
