"""Scenes in files: the same scenes, and nothing but them."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from risfast.covariance import ls_covariance
from risfast.errors import FileFormatError
from risfast.geometry import PlanarArray
from risfast.setup import Setup, array_from_json, array_to_json
from risfast.simulate import Coherence, SystemConfig, generate_scenes
from risfast.simulate.impairments import Impairments
from risfast.simulate.shards import ShardSet, ShardSpec, read_manifest, write_manifest, write_shards
from risfast.simulate.system_file import system_from_json, system_to_json
from risfast.train.batches import ShardSource, shard_folder

SYSTEM = SystemConfig(
    array=PlanarArray.rectangular(3, 2),
    n_antennas=4,
    n_snapshots=5,
    n_sources=(0, 2),
    coherence=Coherence(0.5),
)
SPEC = ShardSpec(SYSTEM, seed=7, count=11, shard_size=4)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_shards(folder, dataclasses.replace(SPEC, sample_covariance=True))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def assert_same_scenes(a, b) -> None:
    for item in dataclasses.fields(a):
        if item.name != "config":
            left, right = getattr(a, item.name), getattr(b, item.name)
            assert left.dtype == right.dtype, item.name
            assert torch.equal(left, right), item.name


def test_what_is_read_is_what_is_generated(original: Path) -> None:
    found = ShardSet(original, SYSTEM)
    assert len(found) == 11
    assert found.seed == 7
    assert_same_scenes(found.scenes(torch.arange(11)), generate_scenes(SYSTEM, 7, range(11)))
    order = torch.tensor([10, 0, 3, 4, 4, 7])
    read, made = found.scenes(order), generate_scenes(SYSTEM, 7, order)
    assert torch.equal(read.position, made.position)
    assert torch.equal(read.indices, order)
    assert torch.equal(read.channel, generate_scenes(SYSTEM, 7, range(11)).channel[order])  # H is always there, whole


def test_sample_covariances_are_kept_on_request_only(original: Path, tmp_path: Path) -> None:
    scenes = generate_scenes(SYSTEM, 7, range(11))
    expected = ls_covariance(scenes.y, scenes.codes, scenes.channel, noise_power=scenes.noise_power)
    assert torch.equal(ShardSet(original).sample_covariance(torch.arange(11)), expected)
    write_shards(tmp_path / "plain", SPEC)
    with pytest.raises(ValueError, match="holds no sample covariances"):
        ShardSet(tmp_path / "plain").sample_covariance(torch.arange(2))


def test_the_manifest_says_what_is_there(original: Path) -> None:
    manifest = json.loads((original / "manifest.json").read_text())
    assert manifest["set"]["seed"] == 7
    assert manifest["set"]["count"] == 11
    assert [entry["count"] for entry in manifest["shards"]] == [4, 4, 3]
    assert system_to_json(system_from_json(manifest["set"]["system"])) == system_to_json(SYSTEM)
    sizes = sum(file["bytes"] for entry in manifest["shards"] for file in entry["files"].values())
    assert sizes >= dataclasses.replace(SPEC, sample_covariance=True).size_bytes()


def test_a_set_knows_the_problem_that_its_scenes_pose(original: Path) -> None:
    found = ShardSet(original)
    assert found.setup == SYSTEM.setup
    assert Setup.from_json(json.loads((original / "manifest.json").read_text())["set"]["setup"]) == SYSTEM.setup


def made_earlier(folder: Path, **changes) -> None:
    """Turn a set into one of format 1, which had no setup."""
    manifest = read_manifest(folder)
    del manifest["set"]["setup"]
    manifest["set"] |= {"format": 1, **changes}
    write_manifest(folder, manifest)


def test_a_set_of_an_earlier_version_is_read_and_completed_with_the_setup_of_its_system(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 4:
            raise Stopped

    write_shards(tmp_path / "whole", SPEC)
    with pytest.raises(Stopped):
        write_shards(tmp_path / "part", SPEC, report=stop)
    made_earlier(tmp_path / "part")
    write_shards(tmp_path / "part", SPEC)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    made_earlier(tmp_path / "whole")
    found = ShardSet(tmp_path / "whole", SYSTEM)
    assert found.setup == SYSTEM.setup
    assert_same_scenes(found.scenes(torch.arange(11)), generate_scenes(SYSTEM, 7, range(11)))
    made_earlier(tmp_path / "whole", system={"n_antennas": 4})
    with pytest.raises(FileFormatError, match=r"manifest\.json"):
        ShardSet(tmp_path / "whole")


def test_a_setup_that_contradicts_the_system_is_refused_by_its_field(folder: Path) -> None:
    manifest = read_manifest(folder)
    manifest["set"]["setup"]["wavefront"] = "planar"
    write_manifest(folder, manifest)
    with pytest.raises(FileFormatError, match="the wavefront of the setup is not that of the system"):
        ShardSet(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Stopped(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [0, 3, 4, 7, 10])
def test_an_interrupted_set_is_completed_to_the_same_bytes(after: int, tmp_path: Path) -> None:
    write_shards(tmp_path / "whole", SPEC)

    def stop(done: int, total: int) -> None:
        if done >= after:
            raise Stopped

    with pytest.raises(Stopped):
        write_shards(tmp_path / "part", SPEC, report=stop)
    with pytest.raises(FileFormatError, match=r"manifest\.json.* of 3 shards are there"):
        ShardSet(tmp_path / "part")
    seen = []
    write_shards(tmp_path / "part", SPEC, report=lambda done, total: seen.append((done, total)))
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert seen[0][0] == max(after - 1, 0) // 4 * 4  # complete shards are not made again
    assert seen[-1] == (11, 11)


def test_what_a_kill_leaves_behind_is_made_again(tmp_path: Path) -> None:
    write_shards(tmp_path / "whole", SPEC)

    def stop(done: int, total: int) -> None:
        if done > 4:
            raise Stopped

    with pytest.raises(Stopped):
        write_shards(tmp_path / "part", SPEC, report=stop)
    renamed = tmp_path / "part" / "shard-00001"  # killed after its renaming, before the manifest knew
    renamed.mkdir()
    (renamed / "y.npy").write_bytes(b"whatever")
    write_shards(tmp_path / "part", SPEC)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def write_in_threads(folder: Path, ranks: list[int], world: int, **options) -> None:
    with ThreadPoolExecutor(len(ranks)) as pool:  # stand for processes: they meet in the folder alone
        for done in [pool.submit(write_shards, folder, MANY, rank=r, world=world, **options) for r in ranks]:
            done.result(timeout=60)


MANY = dataclasses.replace(SPEC, count=23, shard_size=3)  # eight shards


@pytest.mark.parametrize("world", [2, 3, 9])
def test_several_processes_make_the_files_of_one(world: int, tmp_path: Path) -> None:
    write_shards(tmp_path / "one", MANY)
    write_in_threads(tmp_path / "several", list(range(world)), world)
    assert contents(tmp_path / "several") == contents(tmp_path / "one")  # and no file besides


def test_a_set_begun_by_several_is_completed_by_any_number(tmp_path: Path) -> None:
    write_shards(tmp_path / "one", MANY)
    folder = tmp_path / "several"
    write_shards(folder, MANY)
    manifest = read_manifest(folder)
    for number, entry in enumerate(manifest["shards"]):  # as if killed: two are entered, and others done ahead of them
        if number in (1, 4, 6):
            (folder / f".shard-{number:05d}.json").write_text(json.dumps(entry))
        elif number != 0:
            shutil.rmtree(folder / f"shard-{number:05d}")
    write_manifest(folder, {**manifest, "shards": manifest["shards"][:2]})
    before = (folder / "shard-00004" / "y.npy").stat().st_mtime_ns
    write_in_threads(folder, [0, 1], 2)
    assert contents(folder) == contents(tmp_path / "one")
    assert (folder / "shard-00004" / "y.npy").stat().st_mtime_ns == before  # not made again


def test_the_others_make_nothing_before_the_first_has_said_what_the_set_is(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", SPEC)
    with pytest.raises(ValueError, match="another set"):
        write_shards(tmp_path / "set", MANY, rank=1, world=2)
    with pytest.raises(ValueError, match=r"rank must lie in \[0, 2\)"):
        write_shards(tmp_path / "none", SPEC, rank=2, world=2)
    assert not (tmp_path / "none").exists()


def test_a_damaged_entry_is_refused_by_name(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        write_shards(tmp_path, SPEC, report=stop)
    (tmp_path / ".shard-00000.json").write_bytes(b"{")
    with pytest.raises(FileFormatError, match=r"\.shard-00000\.json: damaged"):
        write_shards(tmp_path, SPEC)


def test_another_set_in_the_folder_is_refused_by_what_differs(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"another set of shards \(sample_covariance, seed differ\)"):
        write_shards(folder, dataclasses.replace(SPEC, seed=8))
    with pytest.raises(ValueError, match=r"system\.n_antennas"):
        write_shards(folder, dataclasses.replace(SPEC, system=dataclasses.replace(SYSTEM, n_antennas=5)))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_shards(tmp_path, SPEC)
    with pytest.raises(FileFormatError, match=r"manifest\.json: missing"):
        ShardSet(tmp_path)


ARRAYS = ("y", "codes", "channel", "noise_power", "snr_db", "position", "mask", "power", "coherent")


@pytest.mark.parametrize("name", [*ARRAYS, "sample_covariance"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "swap"])
def test_a_damaged_file_is_refused_by_name(name: str, damage: str, folder: Path) -> None:
    path = folder / "shard-00001" / f"{name}.npy"
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "remove":
        path.unlink()
    else:  # another set of the same shapes
        other = folder.parent / "other"
        write_shards(other, dataclasses.replace(SPEC, seed=3, sample_covariance=True))
        shutil.copy(other / "shard-00001" / f"{name}.npy", path)
    with pytest.raises(FileFormatError) as caught:
        ShardSet(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "format", "edit"])
def test_a_damaged_manifest_is_refused_by_name(damage: str, folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    if damage == "remove":
        path.unlink()
    else:
        changed = {
            "flip": text.replace('"seed": 7', '"seed": 6'),
            "truncate": text[:-20],
            "format": text.replace('"format": 2', '"format": 9'),
            "edit": text.replace('"n_antennas": 4', '"n_antennas": 3'),
        }[damage]
        assert changed != text
        path.write_text(changed)
    with pytest.raises(FileFormatError, match=r"manifest\.json"):
        ShardSet(folder)


def test_a_cut_file_is_refused_even_without_checksums(folder: Path) -> None:
    path = folder / "shard-00002" / "y.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FileFormatError, match=r"shard-00002.y\.npy"):
        ShardSet(folder, verify=False)


def test_a_set_of_another_system_is_refused_by_what_differs(original: Path) -> None:
    with pytest.raises(ValueError, match=r"another system: array\.wavelength_m, n_snapshots differ"):
        ShardSet(
            original,
            dataclasses.replace(
                SYSTEM, n_snapshots=6, array=PlanarArray.rectangular(3, 2, spacing_m=0.15, wavelength_m=0.2)
            ),
        )


def test_a_scene_that_is_not_there_is_refused(original: Path) -> None:
    found = ShardSet(original)
    for index in (-1, 11):
        with pytest.raises(IndexError, match=r"0 \.\. 10"):
            found.scenes(torch.tensor([index]))


@pytest.mark.parametrize("name", ["count", "shard_size"])
def test_a_set_without_scenes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        dataclasses.replace(SPEC, **{name: 0})


def test_scenes_of_several_bands_are_refused() -> None:
    bands = dataclasses.replace(SPEC.system, sampling="direct", wavelengths_m=(0.3, 0.4))
    with pytest.raises(ValueError, match="one band, and the system has 2"):
        dataclasses.replace(SPEC, system=bands)


def test_a_full_disk_leaves_the_complete_shards(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, count=60, shard_size=50)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # less than the channels of fifty scenes
    try:
        with pytest.raises(OSError, match="cannot write shard 0"):
            write_shards(tmp_path / "set", spec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["manifest.json"]
    write_shards(tmp_path / "set", spec)
    assert len(ShardSet(tmp_path / "set")) == 60


def test_a_set_that_the_disk_has_no_room_for_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the disk has"):
        write_shards(tmp_path / "set", dataclasses.replace(SPEC, count=10**13))
    assert list((tmp_path / "set").iterdir()) == []


# --- systems as JSON


@pytest.mark.parametrize(
    "array",
    [
        PlanarArray.rectangular(),
        PlanarArray.rectangular(3, 5, 0.1, 0.23),
        PlanarArray.linear(7, 1 / 3, 0.5),
        PlanarArray(torch.tensor(np.random.default_rng(0).normal(size=(5, 3))), 0.1),
        PlanarArray(torch.tensor([[0.0, 0.0, 0.0]]), 1.0),
    ],
)
def test_an_array_survives_json_to_the_last_bit(array: PlanarArray) -> None:
    again = array_from_json(json.loads(json.dumps(array_to_json(array))))
    assert torch.equal(again.positions_m, array.positions_m)
    assert again.wavelength_m == array.wavelength_m


def test_the_reference_array_is_described_in_four_numbers() -> None:
    assert array_to_json(PlanarArray.rectangular()) == {
        "n_h": 12,
        "n_v": 12,
        "spacing_m": 0.15,
        "wavelength_m": 0.3,
    }


def test_a_system_survives_json() -> None:
    system = dataclasses.replace(
        SYSTEM,
        impairments=Impairments(0.1, 0.2, 0.3, 0.01, 0.02, 0.005, 0.3, 0.01),
        coherence=Coherence(0.5, 3, 0.8),
        code_bits=None,
        gain="inverse_range",
    )
    again = system_from_json(json.loads(json.dumps(system_to_json(system))))
    assert dataclasses.replace(again, array=system.array) == system


@pytest.mark.parametrize("change", [{"extra": 1}, {"n_antennas": None}])
def test_a_system_with_other_fields_is_refused(change: dict) -> None:
    description = {**system_to_json(SYSTEM), **change}
    if None in change.values():
        description.pop(next(iter(change)))
    with pytest.raises(ValueError, match=next(iter(change))):
        system_from_json(description)
    with pytest.raises(ValueError, match="an array is described by"):
        array_from_json({"n_h": 3})


# --- training from shards


def system_of(n: int) -> SystemConfig:
    return dataclasses.replace(SYSTEM, n_snapshots=n)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    for n in (5, 6):
        write_shards(shard_folder(folder, "train", n), ShardSpec(system_of(n), 7, 10, 4))
    return folder


def test_an_epoch_shows_every_scene_once_in_an_order_of_its_own(shards: Path) -> None:
    source = ShardSource(shards, system_of, (5, 6))
    device = torch.device("cpu")
    epochs = [source.scenes(5, torch.arange(10 * e, 10 * e + 10), device).indices for e in range(3)]
    assert all(torch.equal(order.sort().values, torch.arange(10)) for order in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    across = source.scenes(6, torch.arange(8, 13), device)  # a batch over the border of two epochs
    again = ShardSource(shards, system_of, (6,))
    parts = [again.scenes(6, torch.tensor([i]), device) for i in range(8, 13)]
    assert torch.equal(across.y, torch.cat([part.y for part in parts]))
    assert across.config.n_snapshots == 6


def test_shards_that_a_run_is_judged_on_or_that_are_missing_are_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match="judged on"):
        ShardSource(shards, system_of, (5,), judged_on={7})
    with pytest.raises(FileFormatError, match="L9"):
        ShardSource(shards, system_of, (5, 9))
    with pytest.raises(ValueError, match="another system: n_antennas"):
        ShardSource(shards, lambda n: dataclasses.replace(system_of(n), n_antennas=3), (5,))
