"""The doctor finds what is broken, and says what to do."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from risfast.cli import doctor, main
from risfast.cli.doctor import Check, examine


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The speed is measured for an instant, on a small grid."""
    monkeypatch.setattr(doctor, "_SPEED_SECONDS", 0.0)
    monkeypatch.setattr(doctor.SearchGrid, "reference", doctor.SearchGrid.training)


def by_name(checks):
    return {check.name: check for check in checks}


def test_a_machine_that_works_has_no_failure_and_every_operator_is_within_its_bound(tmp_path):
    checks = examine(tmp_path, "cpu")
    assert {check.status for check in checks} <= {"well", "warn"}
    names = by_name(checks)
    for operator in (
        "mvdr_spectrum", "mvdr_spectrum_lowrank", "bartlett_spectrum", "music_spectrum", "analysis", "synthesis",
        "local_maxima_3d",
    ):  # fmt: skip
        assert names[f"{operator} on cpu"].status == "well"
    assert "dB of float64" in names["mvdr_spectrum on cpu"].found
    assert "ms a Capon map" in names["speed on cpu"].found
    assert not list(tmp_path.iterdir())


def test_a_wrong_operator_is_caught_with_its_error_in_decibel(tmp_path, monkeypatch):
    right = doctor.mvdr_spectrum

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        return result * 10**0.05 if isinstance(result, torch.Tensor) else result

    monkeypatch.setattr(doctor, "mvdr_spectrum", wrong)
    check = by_name(examine(tmp_path, "cpu"))["mvdr_spectrum on cpu"]
    assert check.status == "fail"
    assert "wrong by up to 0.5 dB" in check.found
    assert check.mend


def test_an_operator_that_gives_nan_or_raises_is_caught(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no kernel image")

    right = doctor.music_spectrum
    monkeypatch.setattr(doctor, "bartlett_spectrum", broken)
    monkeypatch.setattr(doctor, "music_spectrum", lambda *a, **k: right(*a, **k) * float("nan"))
    names = by_name(examine(tmp_path, "cpu"))
    assert (names["bartlett_spectrum on cpu"].status, names["bartlett_spectrum on cpu"].found) == (
        "fail",
        "no kernel image",
    )
    assert names["music_spectrum on cpu"].status == "fail"


@pytest.mark.parametrize("name", ["synthesis", "local_maxima_3d"])
def test_of_the_operators_after_the_maps_the_one_that_raises_is_named(tmp_path, monkeypatch, name):
    def broken(*args, **options):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(doctor, name, broken)
    found = [check for check in examine(tmp_path, "cpu") if check.status == "fail"]
    assert [(check.name, check.found) for check in found] == [(f"{name} on cpu", "no kernel image")]


def test_a_device_that_is_not_there_fails_and_is_not_used(tmp_path):
    checks = examine(tmp_path, "nonsense")
    names = by_name(checks)
    assert names["device nonsense"].status == "fail"
    assert not any(name.endswith("on nonsense") for name in names)


def test_missing_packages_and_a_full_disk_are_named(tmp_path, monkeypatch):
    right = doctor._version_of
    monkeypatch.setattr(doctor, "_version_of", lambda name: None if name == "h5py" else right(name))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    names = by_name(examine(tmp_path, "cpu"))
    assert names["packages"] == Check("packages", "fail", "h5py missing", "pip install h5py")
    assert names["disk"].status == "warn"
    assert "make room" in names["disk"].mend


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    assert by_name(examine(tmp_path, "cpu"))[f"writing to {tmp_path}"].status == "fail"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    check = doctor._writable(tmp_path / "missing")
    assert check.status == "fail"
    assert "No such file" in check.found
    assert "choose a folder" in check.mend


def test_the_command_says_all_and_returns_1_on_a_failure(tmp_path, capsys, monkeypatch):
    assert main(["doctor", "--folder", str(tmp_path), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "mvdr_spectrum on cpu" in printed
    assert "0 failed" in printed
    assert main(["doctor", "--folder", str(tmp_path), "--device", "nonsense"]) == 1
    assert "-> choose another --device" in capsys.readouterr().out
    assert main(["doctor", "--folder", str(tmp_path / "missing")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
