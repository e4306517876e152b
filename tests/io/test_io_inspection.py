"""What recordings show of their faults: found where it is, named, and not where it is not."""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np
import pytest
from wideband import spherical

from risfast.io import read

RATE, LENGTH, N = 16000.0, 32000, 8
POSITIONS = np.stack([0.03 * np.arange(N), np.zeros(N), np.zeros(N)], 1)
ONE = [(0.4, 0.1, 0.9)]
TWO = [*ONE, (-0.6, 0.2, 1.3)]


def notes_of(folder: Any, values: np.ndarray, band: Any = (800.0, 5000.0), **options: Any) -> tuple[str, ...]:
    path = folder / "sound.h5"
    with h5py.File(path, "w") as file:
        file["time_data"] = values
        file["time_data"].attrs["sample_freq"] = RATE
    return read(path, positions_m=POSITIONS, frequency_hz=band, **options).provenance.notes


def the(word: str, notes: tuple[str, ...]) -> str:
    found = [note for note in notes if word in note]
    assert len(found) == 1, notes
    return found[0]


def faults(notes: tuple[str, ...]) -> list[str]:
    return [note for note in notes if not note.startswith("covariance") and "bins within" not in note]


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return spherical(POSITIONS, TWO, RATE, LENGTH)


@pytest.mark.parametrize("kind", [np.float64, np.float32, "int16"])
def test_a_sound_recording_has_no_faults(tmp_path: Any, sound: np.ndarray, kind: Any) -> None:
    """Whole numbers of a quiet recording repeat their largest value, and that is no clipping."""
    values = np.round(sound * 40).astype(np.float32) if kind == "int16" else sound.astype(kind)
    assert faults(notes_of(tmp_path, values)) == []


def test_an_offset_is_named(tmp_path: Any, sound: np.ndarray) -> None:
    values = sound.copy()
    values[:, [1, 4]] += [0.05, -0.02]
    assert "the mean of channels 1, 4 is up to 0.4" in the("DC", notes_of(tmp_path, values))


def test_clipping_is_named_with_its_share(tmp_path: Any, sound: np.ndarray) -> None:
    values = sound.copy()
    limit = 0.2
    values[:, 3] = values[:, 3].clip(-limit, limit)
    values[:, 6] = values[:, 6].clip(-math.inf, 3 * limit)  # which nothing reaches
    share = (np.abs(sound[:, 3]) >= limit).mean()
    assert sound[:, 6].max() < 3 * limit
    note = the("clipping", notes_of(tmp_path, values, block_size=256))
    assert "channel 3," in note
    assert f"{share:.2%}" in note


def test_clipping_is_counted_over_blocks(tmp_path: Any, sound: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from risfast.io import welch

    values = sound.clip(-0.2, 0.2)
    whole = the("clipping", notes_of(tmp_path, values))
    monkeypatch.setattr(welch, "_BLOCK_BYTES", 16 * N * 700)
    assert the("clipping", notes_of(tmp_path, values)) == whole
    assert "channels 0, 1, 2, 3, 4, 5, 6, 7" in whole


def test_a_dead_channel_is_left_out_and_weak_and_strong_ones_are_named(tmp_path: Any, sound: np.ndarray) -> None:
    values = sound * 10 ** (np.array([0, 0, -34, 0, 0, 41, -29, 0]) / 20)
    values[:, 7] = 0
    notes = notes_of(tmp_path, values)
    assert "channel 2: up to 34 dB below" in the("below", notes)
    assert "channel 5: up to 41 dB above" in the("above", notes)
    recording = read(tmp_path / "sound.h5", positions_m=POSITIONS, frequency_hz=(800.0, 5000.0))
    assert [flag.index for flag in recording.flagged] == [7]
    assert recording.covariance.shape[-1] == 7


@pytest.mark.parametrize("drift", [{5: 10.0}, {2: -30.0}, {0: 100.0}, {4: 20.0, 6: 20.0, 7: 20.0}])
def test_a_clock_that_drifts_is_found_with_its_rate(tmp_path: Any, drift: dict[int, float]) -> None:
    values = spherical(POSITIONS, ONE, RATE, 2 * LENGTH, drift_ppm=drift, snr_db=15.0)
    note = the("clock drift", notes_of(tmp_path, values))
    named = note.split("the phase of channel")[1].split(" turns")[0].removeprefix("s").strip()
    assert named == ", ".join(map(str, drift))
    ppm = float(note.split("by up to ")[1].split(" ppm")[0])
    assert ppm == pytest.approx(abs(next(iter(drift.values()))), rel=0.1)


def test_a_clock_is_found_at_a_single_frequency(tmp_path: Any) -> None:
    values = spherical(POSITIONS, ONE, RATE, 2 * LENGTH, drift_ppm={3: 40.0})
    assert "channel 3 " in the("clock drift", notes_of(tmp_path, values, 3000.0))


def test_what_stands_still_has_no_drift(tmp_path: Any) -> None:
    """One source, two, and two that speak by turns; at several levels of noise."""
    moments = np.arange(LENGTH) / RATE
    turns = np.stack([np.sin(2 * np.pi * moments / 1.4) > 0, np.sin(2 * np.pi * moments / 0.9 + 1) > 0]).astype(float)
    halves = np.stack([moments < 1, moments >= 1]).astype(float)
    for seed in range(12):
        for places, envelopes in ((ONE, None), (TWO, None), (TWO, turns), (TWO, halves), (TWO, 0.2 + halves)):
            how: dict[str, Any] = {"snr_db": (0.0, 10.0, 30.0)[seed % 3], "seed": seed, "envelopes": envelopes}
            assert faults(notes_of(tmp_path, spherical(POSITIONS, places, RATE, LENGTH, **how))) == []


def test_a_short_recording_is_one_segment_and_that_is_said(tmp_path: Any, sound: np.ndarray) -> None:
    assert "of rank one" in the("one segment", notes_of(tmp_path, sound[:300], 3000.0))


def test_elements_too_far_apart_are_said_with_the_frequency(tmp_path: Any, sound: np.ndarray) -> None:
    assert not any("half a wavelength" in note for note in notes_of(tmp_path, sound, (800.0, 5700.0)))
    note = the("half a wavelength", notes_of(tmp_path, sound, [2000.0, 5800.0, 7000.0], block_size=256))
    assert "0.03 m apart" in note
    assert "in 2 of 3 bands (above 5717 Hz)" in note
