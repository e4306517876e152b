"""What the loggers under ``risfast`` are told, and that nothing is printed where nobody asked."""

from __future__ import annotations

import logging

import numpy as np
import torch

from risfast import Localizer, Region, SensorArray, Setup
from risfast.io import read
from risfast.steering import steering_vectors

ARRAY = SensorArray.rectangular(4, 4, 0.05, 0.1)


def covariance():
    place = (torch.tensor([value]) for value in (0.2, 0.1, 0.6))
    a = steering_vectors(ARRAY, *place)
    return (a.mT @ a.conj() + 0.01 * torch.eye(16)).to(torch.complex128)


def test_reading_and_localising_say_what_they_did(tmp_path, caplog, capsys):
    held = {"positions_m": ARRAY.positions_m.numpy(), "wavelength_m": 0.1}
    np.savez(tmp_path / "one.npz", covariance=covariance().numpy(), **held)
    localizer = Localizer.classical(Setup(ARRAY, Region((-1, 1), (-0.5, 0.5), (0.2, 2.0)), sampling="direct"))
    with caplog.at_level(logging.INFO, logger="risfast"):
        recording = read(tmp_path / "one.npz")
        localizer.localize(covariance(), snapshots=50)
    told = {record.name: record.getMessage() for record in reversed(caplog.records)}
    assert told["risfast.io"].startswith(f"read {tmp_path / 'one.npz'} as npz: Recording(1 scenes, covariances")
    assert told["risfast.localize"].startswith("1 scenes, 1 sources; ")
    assert repr(recording) in told["risfast.io"]
    assert repr(localizer) == f"Localizer({type(localizer.backbone).__name__}, direct, {ARRAY!r})"
    assert capsys.readouterr() == ("", "")


def test_the_library_has_a_handler_that_keeps_quiet():
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("risfast").handlers)
