"""Which scenes the suite runs over, and which methods with which knowledge.

All sets share one seed, and a scene's draws depend on its index alone: scene i of a mismatched set has the sources,
the channel, the codes and the noise of scene i of the nominal one, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from risfast.evaluate.methods import VARIANTS, takes_bands
from risfast.simulate.impairments import Impairments
from risfast.simulate.scenes import Coherence, SystemConfig

CHUNK = 16  # scenes that go through a method together, and into one record
SUITES = ("all", "quick", "main", "oracle", "map", "robustness", "ablation", "frozen")
FROZEN_SCENES = 8
QUICK_SCENES = 200
MAP_SNR_DB = (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
MAP_SOURCES = (1, 2, 3, 4, 5)

_CORE = ("localizer", "localizer_raw", "greedy_ml")
_PAIR = ("localizer", "greedy_ml")
# Directions around which close pairs are placed.
_CENTRES_DEG = (-45.0, -22.5, 0.0, 22.5, 45.0)


@dataclass(frozen=True)
class Run:
    """One method with one knowledge over the first scenes of each cell of a set."""

    method: str
    knowledge: str  # One of :data:`risfast.evaluate.methods.KNOWLEDGE`
    scenes: int  # A multiple of :data:`CHUNK`, or all of the cell

    @property
    def label(self) -> str:
        """Names its records."""
        return self.method if self.knowledge == "blind" else f"{self.method}@{self.knowledge}"


@dataclass(frozen=True)
class SceneSet:
    """Scenes of one or several distributions."""

    name: str
    title: str  # For tables and the report
    cells: tuple[SystemConfig, ...]  # The distributions; their ``n_snapshots`` is replaced by that of the run
    scenes: int  # Of each cell
    runs: tuple[Run, ...]


def _whole_chunks(count: int, scenes: int) -> int:
    return min(-(-count // CHUNK) * CHUNK, scenes)


def _chosen(names: Sequence[str], methods: Sequence[str]) -> tuple[str, ...]:
    """Those of ``names`` that are among the methods; all methods where there is none."""
    return tuple(name for name in names if name in methods) or tuple(methods)


def scene_sets(
    suite: str, scenes: int, methods: Sequence[str], system: SystemConfig | None = None
) -> tuple[SceneSet, ...]:
    """The sets of a suite."""
    nominal = system or SystemConfig()
    few = {"frozen": FROZEN_SCENES, "quick": QUICK_SCENES}
    if suite in few:
        scenes, methods = min(scenes, few[suite]), _chosen(_CORE, methods)
    runs = _blind(methods, scenes)
    if suite in ("all", "oracle"):
        runs += _oracles(methods, _whole_chunks(-(-scenes // 2), scenes))
    sets = [SceneSet("main", "reference distribution", (nominal,), scenes, runs)]
    if suite in ("all", "map"):  # every number of sources at every SNR, number of sources by number of sources
        cells = [replace(nominal, n_sources=(k, k), snr_db=(snr, snr)) for k in MAP_SOURCES for snr in MAP_SNR_DB]
        count = max(-(-scenes // 25), 1)
        pair = _blind(_chosen(_PAIR, methods), count)
        sets.append(SceneSet("map", "fixed number of sources and SNR", tuple(cells), count, pair))
    if suite in ("all", "ablation") and "localizer" in methods:  # the first scenes of the main set once more
        stages = tuple(
            name for name in VARIANTS if not name.startswith(("refined", "localizer_count")) or name in methods
        )
        count = _whole_chunks(-(-scenes // 2), scenes)
        sets.append(SceneSet("ablation", "stages of the localizer", (nominal,), count, _blind(stages, count)))
    if suite in ("all", "robustness"):
        count = _whole_chunks(-(-scenes // 4), scenes)
        sets += _mismatches(nominal, _chosen(_CORE, methods), count)
    if nominal.wavelengths_m is not None:
        sets = [replace(each, runs=tuple(run for run in each.runs if takes_bands(run.method))) for each in sets]
    return tuple(sets)


def _blind(methods: Sequence[str], scenes: int) -> tuple[Run, ...]:
    return tuple(Run(method, "blind", scenes) for method in methods)


def _oracles(methods: Sequence[str], scenes: int) -> tuple[Run, ...]:
    """Every method told K; the core methods told the noise too; fits that start at, or read, the truth."""
    runs = [Run(method, "count", scenes) for method in methods]
    runs += [Run(m, knowledge, scenes) for m in _chosen(_PAIR, methods) for knowledge in ("noise", "count_noise")]
    extra = [Run("ml_from_truth", "count", scenes), Run("true_capon", "blind", scenes)]
    return (*runs, *(run for run in extra if run.method not in methods))


def _close(nominal: SystemConfig, half_width_deg: float) -> tuple[SystemConfig, ...]:
    """Two sources in one small box of directions, for boxes over the field of view."""
    half = math.radians(half_width_deg)
    return tuple(
        replace(
            nominal,
            n_sources=(2, 2),
            azimuth_rad=(math.radians(centre) - half, math.radians(centre) + half),
            elevation_rad=(-half, half),
        )
        for centre in _CENTRES_DEG
    )


def _mismatches(nominal: SystemConfig, methods: Sequence[str], scenes: int) -> list[SceneSet]:
    wavelength = nominal.array.wavelength_m

    def impaired(**effects: Any) -> tuple[SystemConfig, ...]:
        return (replace(nominal, impairments=Impairments(**effects)),)

    cells: dict[str, tuple[str, tuple[SystemConfig, ...]]] = {
        "codes_2_bit": ("2-bit codes", (replace(nominal, code_bits=2),)),
        "codes_1_bit": ("1-bit codes", (replace(nominal, code_bits=1),)),
        "code_phase_6_deg": ("code phase error, 6° rms", impaired(code_phase_noise_rad=math.radians(6))),
        "code_phase_17_deg": ("code phase error, 17° rms", impaired(code_phase_noise_rad=math.radians(17))),
        "dropped_5": ("5 % of the elements dead", impaired(dropped_elements=0.05)),
        "dropped_20": ("20 % of the elements dead", impaired(dropped_elements=0.2)),
        "position_60": ("element positions off by λ/60 rms", impaired(position_jitter_m=wavelength / 60)),
        "position_20": ("element positions off by λ/20 rms", impaired(position_jitter_m=wavelength / 20)),
        "wavelength_1": ("wavelength off by 1 % rms", impaired(wavelength_jitter=0.01)),
        "wavelength_3": ("wavelength off by 3 % rms", impaired(wavelength_jitter=0.03)),
        "coherent": ("two coherent sources", (replace(nominal, coherence=Coherence(1.0, 2, 1.0)),)),
        "unequal": ("power falling as 1/r²", (replace(nominal, gain="inverse_range"),)),
        "close_8_deg": ("two sources within 8° by 8°", _close(nominal, 4.0)),
        "close_4_deg": ("two sources within 4° by 4°", _close(nominal, 2.0)),
    }
    sets = []
    if nominal.sampling == "direct":  # without codes
        cells = {name: cell for name, cell in cells.items() if not name.startswith("codes_")}
    for name, (title, systems) in cells.items():
        each = max(-(-scenes // len(systems)), 1)
        sets.append(SceneSet(name, title, systems, each, _blind(methods, each)))
    return sets
