"""Recordings with their setup, and of several scenes: read, checked against the data, written and read again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch

from risfast import Localizer
from risfast.errors import FileFormatError, ShapeError
from risfast.geometry import Region, SensorArray
from risfast.io import Recording, Snapshots, read, write_recording, write_setup
from risfast.setup import Setup, Tolerance

N, L, M, B = 6, 9, 4, 3
ARRAY = SensorArray.rectangular(3, 2)
REGION = Region((-0.7, 1 / 3), (-0.25, 0.25), (0.5, math.inf))
SURFACE = Setup(ARRAY, REGION, "fresnel", "surface", 3e8, Tolerance(0.1, 0.2, 0.3))
DIRECT = SURFACE.replace(sampling="direct")
PLACE = {"positions_m": ARRAY.positions_m.numpy(), "wavelength_m": ARRAY.wavelength_m}


def complex_normal(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


SCENES = {
    "y": complex_normal(B, L, M),
    "codes": complex_normal(B, L, N, seed=1),
    "channel": complex_normal(B, M, N, seed=2),
}
SCENE = {name: values[0] for name, values in SCENES.items()}
COVARIANCE = {"R": np.eye(N) + 0.1}


def write_hdf5(path: Path, values: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value


WRITERS = {".npz": lambda path, values: np.savez(path, **values), ".mat": scipy.io.savemat, ".h5": write_hdf5}


@pytest.fixture(params=sorted(WRITERS))
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A function from variables to the path of a file of one kind."""

    def to(**values: Any) -> Path:
        path = tmp_path / f"x{request.param}"
        WRITERS[request.param](path, values)
        return path

    return to


def assert_scenes(recording: Recording, expected: dict[str, np.ndarray]) -> None:
    for found, name in zip(recording.scene_batch(), ("y", "codes", "channel"), strict=True):
        np.testing.assert_array_equal(found, expected[name].reshape(-1, *expected[name].shape[-2:]))


@pytest.mark.parametrize("scenes", [2, B, L])
def test_matlab_pages_of_direct_snapshots_are_scenes(tmp_path: Path, scenes: int) -> None:
    """(L, N, B) as MATLAB has it, or (N, L, B); by 5 and by 7.3, whose axes stand in reverse in the file."""
    x = complex_normal(scenes, L, N, seed=5)
    pages = np.moveaxis(x, 0, -1)
    for name, values in (("rows", pages), ("columns", pages.swapaxes(0, 1))):
        scipy.io.savemat(tmp_path / f"{name}.mat", {"snapshots": values, **PLACE})
        with h5py.File(tmp_path / f"{name}73.mat", "w", userblock_size=512) as file:
            for variable, value in {"snapshots": values, **PLACE}.items():
                file[variable] = np.atleast_2d(value).T
                file[variable].attrs["MATLAB_class"] = np.bytes_("double")
        for path in (tmp_path / f"{name}.mat", tmp_path / f"{name}73.mat"):
            recording = read(path)
            assert recording.n_scenes == scenes
            np.testing.assert_array_equal(recording.scene_batch()[0], x)
    found = Localizer.classical(recording.setup).localize(recording)
    assert len(found) == scenes


def test_the_setup_follows_from_the_data_where_nobody_gives_one(write: Any) -> None:
    assert read(write(**SCENE, **PLACE)).setup == Setup(ARRAY, sampling="surface")
    assert read(write(X=SCENES["codes"][0], **PLACE)).setup == Setup(ARRAY, sampling="direct")
    path = write(**COVARIANCE, **PLACE, speed_m_s=343.0)
    assert read(path).setup == Setup(ARRAY, sampling="direct", speed_m_s=343.0)
    assert read(path, speed_m_s=1500).setup.speed_m_s == 1500


@pytest.mark.parametrize("name", ["setup", "array"])
def test_a_setup_that_is_given_is_the_one(write: Any, tmp_path: Path, name: str) -> None:
    write_setup(tmp_path / "setup.toml", SURFACE)
    path = write(**SCENE)
    for given in (SURFACE, tmp_path / "setup.toml", str(tmp_path / "setup.toml")):
        recording = read(path, **{name: given})
        assert recording.setup == SURFACE
        assert recording.array == ARRAY
        assert_scenes(recording, SCENE)
    assert read(path, **{name: ARRAY}).setup == Setup(ARRAY, sampling="surface")
    assert read(write(**COVARIANCE), **{name: SURFACE}).setup == SURFACE


def test_a_file_of_a_setup_that_does_not_name_the_sampling_takes_that_of_the_data(write: Any, tmp_path: Path) -> None:
    toml = tmp_path / "setup.toml"
    toml.write_text("format = 1\n[array]\nwavelength_m = 0.3\nrectangular = { n_h = 3, n_v = 2, spacing_m = 0.15 }\n")
    assert read(write(**SCENE), setup=toml).setup == Setup(ARRAY, sampling="surface")
    assert read(write(X=SCENE["codes"]), setup=toml).setup == Setup(ARRAY, sampling="direct")
    toml.write_text("[rectangular]\nn_h = 3\nn_v = 2\nspacing_m = 0.15\nwavelength_m = 0.3\n")
    assert read(write(X=SCENE["codes"]), array=toml).setup == Setup(ARRAY, sampling="direct")


@pytest.mark.parametrize(
    ("values", "setup", "words"),
    [
        (SCENE, DIRECT, "sampling: the setup says direct, but codes and channel .*give sampling = 'surface'"),
        (SCENES, DIRECT, "sampling: the setup says direct"),
        ({"y": SCENE["y"]}, SURFACE, "sampling: .* no codes and no channel .*fields=.*or give sampling = 'direct'"),
        ({"y": SCENE["y"], "codes": SCENE["codes"]}, SURFACE, "there is no channel in the file"),
        ({"X": SCENES["codes"]}, SURFACE, "there is no codes and no channel"),
        (SCENE, Setup(SensorArray.rectangular(5, 2)), "'codes' .* 10 columns.*if the array is another one"),
        (
            COVARIANCE,
            Setup(SensorArray.rectangular(3, 3)),
            "6 x 6 matrices, but the array has 9 elements; give the array",
        ),
        ({"X": SCENE["codes"]}, Setup(SensorArray.rectangular(4, 2), sampling="direct"), "there are 8 elements"),
        (SCENES, Setup(SensorArray.rectangular(4, 2)), "do not belong together for N = 8.*give it with setup"),
    ],
)
def test_a_setup_that_contradicts_the_data_is_one_error(write: Any, values: Any, setup: Setup, words: str) -> None:
    path = write(**values)
    with pytest.raises(FileFormatError, match=words) as caught:
        read(path, setup=setup)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_array_that_nobody_gives_is_asked_for(write: Any) -> None:
    with pytest.raises(FileFormatError, match=r"positions of the elements are missing.*setup='setup.toml'"):
        read(write(**SCENE))
    with pytest.raises(ValueError, match="two names of the same"):
        read(write(**SCENE), setup=SURFACE, array=ARRAY)
    with pytest.raises(ValueError, match="not both"):
        read(write(**SCENE), setup=SURFACE, positions_m=PLACE["positions_m"])


def test_an_array_without_a_derivable_region_is_read_and_its_setup_asks_for_the_region(write: Any) -> None:
    tilted = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 2, 2], [1, 2, 2]])
    path = write(**COVARIANCE, positions_m=tilted, wavelength_m=0.3)
    with pytest.raises(ValueError, match="give the region"):
        _ = read(path).setup
    write_recording(path, read(path))  # without a setup
    assert read(path).n_elements == N
    setup = Setup(SensorArray(tilted, 0.3), REGION, sampling="direct")
    assert read(path, setup=setup).setup == setup


@pytest.mark.parametrize("suffix", sorted(WRITERS))
@pytest.mark.parametrize(
    ("values", "setup"), [(SCENE, SURFACE), (SCENES, SURFACE), (COVARIANCE, DIRECT), ({"X": SCENES["codes"]}, DIRECT)]
)
def test_the_setup_travels_with_a_recording(tmp_path: Path, suffix: str, values: Any, setup: Setup) -> None:
    np.savez(tmp_path / "first.npz", **values)
    recording = read(tmp_path / "first.npz", setup=setup)
    write_recording(tmp_path / f"second{suffix}", recording)
    again = read(tmp_path / f"second{suffix}")
    assert again.setup == again.given == setup
    assert again.speed_m_s == setup.speed_m_s
    assert (again.n_scenes, again.n_snapshots) == (recording.n_scenes, recording.n_snapshots)
    if recording.snapshots is not None:
        for found, expected in zip(again.scene_batch(), recording.scene_batch(), strict=True):
            assert (found is None) == (expected is None)
            assert found is None or torch.equal(found, expected)


def test_the_setup_of_a_recording_without_some_elements_is_of_those_that_are_left(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **COVARIANCE)
    recording = read(tmp_path / "x.npz", setup=DIRECT, flagged=[1])
    assert recording.setup == DIRECT.replace(array=SensorArray(np.delete(PLACE["positions_m"], 1, 0), 0.3))
    write_recording(tmp_path / "y.h5", recording)
    assert read(tmp_path / "y.h5").setup == recording.setup


def test_positions_beside_a_stored_setup_are_the_ones_that_count(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **COVARIANCE)
    write_recording(tmp_path / "y.npz", read(tmp_path / "x.npz", setup=DIRECT))
    with np.load(tmp_path / "y.npz") as archive:
        variables = dict(archive)
    assert json.loads(variables["risfast_setup"].tobytes()) == DIRECT.to_json()
    moved = SensorArray(2 * variables["positions_m"], 0.3)
    np.savez(tmp_path / "moved.npz", **{**variables, "positions_m": moved.positions_m.numpy()})
    assert read(tmp_path / "moved.npz").setup == DIRECT.replace(array=moved)
    del variables["positions_m"], variables["wavelength_m"]
    np.savez(tmp_path / "alone.npz", **variables)
    assert read(tmp_path / "alone.npz").setup == DIRECT
    assert read(tmp_path / "alone.npz", setup=ARRAY).setup == Setup(ARRAY, sampling="direct", speed_m_s=3e8)


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (np.frombuffer(b"{", np.uint8), "'risfast_setup' is no setup of this version"),
        (np.frombuffer(b"[1]", np.uint8), "must be an object"),
        (
            np.frombuffer(json.dumps({**DIRECT.to_json(), "format": 9}).encode(), np.uint8),
            "format 9, this version reads",
        ),
        (np.frombuffer(json.dumps({**DIRECT.to_json(), "array": 3}).encode(), np.uint8), "no setup of this version"),
        (np.ones(3), "must hold the bytes of JSON"),
    ],
)
def test_a_damaged_setup_in_a_file_is_named_and_can_be_replaced(tmp_path: Path, stored: Any, words: str) -> None:
    np.savez(tmp_path / "x.npz", **COVARIANCE, **PLACE, risfast_setup=stored)
    with pytest.raises(FileFormatError, match=words):
        read(tmp_path / "x.npz")
    assert read(tmp_path / "x.npz", setup=DIRECT).setup == DIRECT


def test_files_without_a_stored_setup_are_read_as_before(write: Any) -> None:
    recording = read(write(**COVARIANCE, **PLACE, frequency_hz=1e9))
    assert (recording.given, recording.speed_m_s, recording.scenes) == (None, None, 1)


def test_several_scenes_come_back_one_by_one(write: Any) -> None:
    recording = read(write(**SCENES, **PLACE))
    assert (recording.n_scenes, recording.n_snapshots) == (B, L)
    assert_scenes(recording, SCENES)
    assert_scenes(read(write(**SCENE, **PLACE)), SCENE)


def test_the_localizer_takes_the_scenes_of_a_recording(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **SCENES)
    localizer = Localizer.classical(Setup(ARRAY, Region((-0.2, 0.2), (-0.1, 0.1), (0.5, 1.0))))
    recording = read(tmp_path / "x.npz", setup=localizer.setup)
    expected = localizer.localize(SCENES["y"], SCENES["codes"], SCENES["channel"], polish=False)
    assert len(expected) == B
    for found, one in zip(localizer.localize(recording, polish=False), expected, strict=True):
        torch.testing.assert_close(found.position, one.position, rtol=0, atol=0, equal_nan=True)


def test_codes_and_channel_may_be_those_of_every_scene(write: Any) -> None:
    recording = read(write(y=SCENES["y"], codes=SCENE["codes"], channel=SCENE["channel"], **PLACE))
    assert_scenes(recording, {**SCENES, **{name: np.stack([SCENE[name]] * B) for name in ("codes", "channel")}})


def test_matlab_pages_of_columns_are_turned_and_said_so(tmp_path: Path) -> None:
    pages = {name: np.moveaxis(values, 0, -1).swapaxes(0, 1) for name, values in SCENES.items()}
    pages["channel"] = np.moveaxis(SCENES["channel"], 0, -1)
    scipy.io.savemat(tmp_path / "x.mat", {**pages, **PLACE})
    recording = read(tmp_path / "x.mat")
    assert_scenes(recording, SCENES)
    assert any("y was 4 x 9 x 3 and is turned to 3 x 9 x 4" in note for note in recording.provenance.notes)


def test_scenes_of_an_array_that_is_sampled_directly_make_a_covariance_each(write: Any) -> None:
    X = SCENES["codes"]
    recording = read(write(X=X, **PLACE))
    assert recording.sampling == "direct"
    covariance = recording.with_covariance()
    expected = [sum(np.outer(x, x.conj()) for x in scene) / L for scene in X]
    np.testing.assert_allclose(covariance.covariance, expected, rtol=1e-12)
    assert covariance.n_scenes == B
    assert read(write(X=X, **PLACE), flagged=[2]).with_covariance().covariance.shape == (B, N - 1, N - 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": SCENES["y"].real}, "real; snapshots are complex"),
        ({"y": SCENES["y"][:2]}, "do not belong together"),
        ({"codes": SCENES["codes"][:, :5]}, "do not belong together"),
        ({"channel": SCENES["channel"][:, :, :3]}, "do not belong together"),
        ({"channel": np.full((B, M, N), np.nan)}, r"'channel' \(channel\) holds values that are NaN"),
        ({"y": np.zeros((0, L, M), complex)}, "not empty|empty|no snapshots"),
        ({"codes": np.ones(3)}, "must be .B, L, M."),
    ],
)
def test_scenes_that_do_not_belong_together_are_named(tmp_path: Path, change: Any, words: str) -> None:
    np.savez(tmp_path / "x.npz", **{**SCENES, **change}, **PLACE)
    with pytest.raises(FileFormatError, match=words) as caught:
        read(tmp_path / "x.npz")
    assert "x.npz" in str(caught.value)


def test_snapshots_through_codes_alone_make_no_covariance(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=SCENE["codes"], codes=SCENE["codes"], **PLACE)
    with pytest.raises(ValueError, match="received behind a surface"):
        read(tmp_path / "x.npz").with_covariance()


def test_batches_that_matlab_could_mistake_are_refused(tmp_path: Path) -> None:
    square = Recording(ARRAY, snapshots=Snapshots.of(complex_normal(N * N, N)), scenes=N)
    with pytest.raises(FileFormatError, match=r"cannot be told from their transpose in \.mat"):
        write_recording(tmp_path / "x.mat", square)
    write_recording(tmp_path / "x.h5", square)
    assert torch.equal(read(tmp_path / "x.h5").scene_batch()[0], square.scene_batch()[0])


def test_a_recording_refuses_scenes_that_do_not_belong_together() -> None:
    rows = Snapshots.of(complex_normal(B * L, N))
    with pytest.raises(ShapeError, match="snapshots of 4 scenes"):
        Recording(ARRAY, snapshots=rows, scenes=4)
    with pytest.raises(ShapeError, match=r"codes must be \(L = 9, 6\)"):
        Recording(ARRAY, snapshots=rows, scenes=B, codes=torch.ones(8, N))
    with pytest.raises(ShapeError, match="channel must be of 3 scenes"):
        Recording(ARRAY, snapshots=rows, scenes=B, channel=torch.ones(2, N, N))
    with pytest.raises(ValueError, match="a covariance, it has no snapshots"):
        Recording(ARRAY, covariance=torch.eye(N)[None]).scene_batch()
