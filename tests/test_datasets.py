"""The samples are what they say: their sources are found where they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from risfast import Localizer, datasets
from risfast.cli import main
from risfast.evaluate import match
from risfast.io import read_results


def errors(found, sample):
    result = match(found.position, sample.position)
    assert (result.hits, result.n_estimated) == (result.n_true, result.n_true)
    return result.distance_m


def test_the_three_machines_are_found_from_the_call_and_from_the_files(tmp_path, monkeypatch):
    sample = datasets.three_machines()
    (found,) = Localizer.classical(sample.recording.setup).localize(sample.recording)
    assert float(errors(found, sample).max()) < 0.05
    pytest.importorskip("soundfile", reason="sound files need: pip install 'risfast[audio]'")
    monkeypatch.chdir(tmp_path)
    sound, places = datasets.write_three_machines(tmp_path)
    assert sound.stat().st_size < 2.1e6
    bands = ["--frequency-hz", "1000", "1500", "2200", "3100"]
    assert main(["locate", str(sound), "--positions", str(places), *bands, "--output", "a.json", "--no-picture"]) == 0
    assert float(errors(read_results("a.json").scenes[0], sample).max()) < 0.05


def test_the_transmitter_round_the_circle_is_where_it_was_put():
    sample = datasets.five_element_circle(bearings_deg=(62.0,))
    (found,) = Localizer.classical(sample.recording.setup).localize(sample.recording)
    assert len(found) == 1
    assert math.degrees(float(found.azimuth[0])) == pytest.approx(62.0, abs=1.0)


def test_the_sources_before_the_surface_are_found():
    sample = datasets.surface_measurement()
    (found,) = Localizer.from_pretrained().localize(sample.recording)
    assert float(np.median(errors(found, sample))) < 0.3


def test_sound_arrives_later_and_weaker_at_a_microphone_farther_away():
    sound = datasets.sound_at([[0, 0, 0], [0, 0, -3.43]], [[0, 0, 3.43]], 16000, snr_db=math.inf)
    np.testing.assert_allclose(np.roll(sound[:, 0], 160) / 2, sound[:, 1], atol=1e-9)
    again = datasets.sound_at([[0, 0, 0], [0, 0, -3.43]], [[0, 0, 3.43]], 16000, snr_db=math.inf, gains=[1.0, 2.0])
    np.testing.assert_allclose(again[:, 1].std(), again[:, 0].std(), rtol=1e-9)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"positions_m": [[0, 0]], "places_m": [[0, 0, 1]]}, "positions_m must have shape"),
        ({"positions_m": [[0, 0, 0]], "places_m": [0, 0, 1]}, "places_m must have shape"),
        ({"positions_m": [[0, 0, 0]], "places_m": [[0, 0, 1]], "gains": [1, 2]}, "gains must be 1 numbers"),
        ({"positions_m": [[0, 0, 0]], "places_m": [[0, 0, 0]]}, "places_m must not be those of microphones"),
        ({"positions_m": [[0, 0, 0]], "places_m": [[0, 0, 1]], "seconds": 0}, "seconds must be at least"),
        ({"positions_m": [[0, 0, 0]], "places_m": [[0, 0, 1]], "seconds": math.nan}, "seconds must be at least"),
    ],
)
def test_what_is_no_geometry_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        datasets.sound_at(**given)


@pytest.mark.parametrize("number", [0, 6, -1, 2.5])
def test_a_number_of_sources_that_the_model_is_not_for_is_refused(number):
    with pytest.raises(ValueError, match="n_sources must be 1 to 5"):
        datasets.surface_measurement(n_sources=number)


def test_samples_are_the_same_every_time():
    first, second = datasets.five_element_circle(), datasets.five_element_circle()
    assert torch.equal(first.recording.snapshots.read(), second.recording.snapshots.read())
