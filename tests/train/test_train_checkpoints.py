"""Checkpoints: whole or not there, verified, and the one before when the last is damaged."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch

from risfast.errors import FileFormatError
from risfast.train.checkpoints import CheckpointFolder

FILES = ("weights.safetensors", "optimiser.safetensors", "state.json")


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(step)
    return {
        "weights": {"a": torch.randn(3, 4), "b": torch.randn(5).half(), "z": torch.randn(2, dtype=torch.complex64)},
        "optimiser": {"step/a": torch.tensor(float(step)), "n": torch.arange(3)},
    }


def filled(folder: Path, steps: int = 3, keep: int = 3) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder, keep)
    for step in range(1, steps + 1):
        checkpoints.save(step, tensors(step), {"step": step, "loss": 0.1 * step, "none": None})
    return checkpoints


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_read_is_what_was_saved_to_the_last_bit(tmp_path: Path) -> None:
    found, problems = filled(tmp_path / "new" / "deeper").read_latest()
    assert problems == []
    assert found is not None
    assert found.step == 3
    assert found.state == {"step": 3, "loss": 0.1 * 3, "none": None}
    for name, group in tensors(3).items():
        assert found.tensors[name].keys() == group.keys()
        for key, value in group.items():
            assert found.tensors[name][key].dtype == value.dtype
            assert torch.equal(found.tensors[name][key], value)


def test_there_is_nothing_before_the_first(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none").read_latest() == (None, [])


def test_the_latest_few_and_the_protected_stay(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path, keep=2)
    for step in range(1, 7):
        checkpoints.save(step, tensors(step), {}, frozenset({2}))
    assert checkpoints.steps() == [2, 5, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LATEST", "ckpt-00000002", "ckpt-00000005", "ckpt-00000006"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(name: str, damage: str, tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    path = checkpoints.path(3) / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"flip": flipped, "truncate": data[:-1], "empty": b""}[damage])
    found, problems = checkpoints.read_latest()
    assert found is not None
    assert found.step == 2
    assert len(problems) == 1
    assert str(path) in problems[0]


def test_a_state_that_was_edited_is_damaged(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    path = checkpoints.path(3) / "state.json"
    content = json.loads(path.read_text())
    content["state"]["loss"] = 0.0
    path.write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match="damaged"):
        checkpoints.read(3)


def test_a_checkpoint_under_another_name_is_damaged(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    shutil.rmtree(checkpoints.path(3))
    shutil.copytree(checkpoints.path(2), checkpoints.path(3))
    with pytest.raises(FileFormatError, match=r"state\.json"):
        checkpoints.read(3)


def test_if_all_are_damaged_the_run_does_not_silently_start_again(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    for step in checkpoints.steps():
        (checkpoints.path(step) / "weights.safetensors").write_bytes(b"")
    with pytest.raises(FileFormatError, match="no intact checkpoint") as caught:
        checkpoints.read_latest()
    assert all(checkpoints.path(step).name in str(caught.value) for step in (1, 2, 3))


def test_another_format_is_refused(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    path = checkpoints.path(3) / "state.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(FileFormatError, match="format 9"):
        checkpoints.read(3)


def test_what_a_kill_leaves_behind_is_ignored_and_replaced(tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    half = tmp_path / ".ckpt-00000004.tmp"  # killed while it was written
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    shutil.copytree(checkpoints.path(3), checkpoints.path(4))  # killed between its renaming and its marking
    found, problems = checkpoints.read_latest()
    assert (found.step if found else None, problems) == (3, [])
    checkpoints.save(4, tensors(4), {"step": 4})
    found, problems = checkpoints.read_latest()
    assert (found.step if found else None, problems) == (4, [])
    assert not half.exists()


@pytest.mark.parametrize("marker", ["", "ckpt-00000009\n", "\x00\xff garbage"])
def test_a_damaged_marker_does_not_hide_the_checkpoints(marker: str, tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    (tmp_path / "LATEST").write_text(marker, encoding="latin-1")
    found, _ = checkpoints.read_latest()
    assert found is not None
    assert found.step == 3


@pytest.mark.parametrize("room", [50, 400, 1200])
def test_a_full_disk_leaves_the_checkpoints_as_they_were(room: int, tmp_path: Path) -> None:
    checkpoints = filled(tmp_path)
    before = contents(tmp_path)
    big = {"weights": {"a": torch.zeros(100)}, "optimiser": {"a": torch.zeros(1000)}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(OSError, match="cannot write the checkpoint of step 4"):
            checkpoints.save(4, big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before
    checkpoints.save(4, big, {})
    found, problems = checkpoints.read_latest()
    assert (found.step if found else None, problems) == (4, [])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        CheckpointFolder(tmp_path / "file" / "checkpoints").save(1, tensors(1), {})
