"""A small good file of every format that the library reads, made by code, and how it is read.

Mutation (:mod:`tests.fuzz.mutate`) and the property tests of this folder start from these. What carries a checksum can
be signed again after it was changed: else nothing behind the checksum is ever tried.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import torch

from risfast import Localizer, SearchGrid
from risfast.evaluate.records import RecordPlace, ResultsFolder
from risfast.geometry import SensorArray
from risfast.io import (
    Recording,
    SceneDetails,
    Snapshots,
    read_options,
    read_positions,
    read_results,
    read_setup,
    write_options,
    write_recording,
    write_results,
)
from risfast.io.toml_file import read_toml, to_toml
from risfast.localize.confidence import FEATURES, HitModel
from risfast.localize.count import CountModel, save_counts
from risfast.localize.pipeline import PipelineOptions
from risfast.localize.refiner import build_refiner
from risfast.models import build_backbone
from risfast.models.files import save_model
from risfast.report.show import result_page
from risfast.setup import Setup
from risfast.simulate import SystemConfig, read
from risfast.simulate.shards import ShardSet, ShardSpec, write_shards
from risfast.simulate.system_file import read_system
from risfast.sources import Sources
from risfast.train.checkpoints import CheckpointFolder
from risfast.train.config import RunConfig
from risfast.train.runs import MetricsFile
from risfast.tune.options import HpoConfig
from risfast.tune.study import join_study, open_study

N = 4
OPTIONS = {"positions_m": np.eye(N, 3), "wavelength_m": 0.3}
Change = Callable[[bytes], bytes]


def tuning_config(storage, trials):
    return HpoConfig(storage=storage, trials=trials, parameters=("optimiser.lr", "optimiser.weight_decay"))


def matrix():
    X = np.random.default_rng(0).normal(size=(N, 20)) + 1j * np.random.default_rng(1).normal(size=(N, 20))
    return X @ X.conj().T


def make_npz(folder):
    np.savez(folder / "x.npz", R=matrix())
    return folder / "x.npz", {}


def make_compressed_npz(folder):
    np.savez_compressed(folder / "x.npz", X=np.ones((30, N), complex))
    return folder / "x.npz", {}


def make_mat(folder):
    scipy.io.savemat(folder / "x.mat", {"R": matrix(), "other": {"a": [1, 2]}, "text": "hello"})
    return folder / "x.mat", {}


def make_compressed_mat(folder):
    scipy.io.savemat(folder / "x.mat", {"R": matrix(), "other": np.arange(5)}, do_compression=True)
    return folder / "x.mat", {}


def make_hdf5(folder):
    with h5py.File(folder / "x.h5", "w") as file:
        file["R"] = matrix()
        file.create_dataset("more", data=np.arange(100.0), chunks=(10,), compression="gzip")
        file.attrs["wavelength_m"] = 0.1
    return folder / "x.h5", {}


def make_scenes(folder):
    array = SensorArray(OPTIONS["positions_m"], OPTIONS["wavelength_m"])
    setup = Setup(array, sampling="direct", speed_m_s=343.0)
    rows = Snapshots.of(np.ones((30, N), complex) + 1j * np.arange(30)[:, None])
    write_recording(folder / "x.h5", Recording(array, snapshots=rows, scenes=3, given=setup))
    return folder / "x.h5", {"positions_m": None, "wavelength_m": None}


def make_mat73(folder):
    with h5py.File(folder / "x.mat", "w", userblock_size=512) as file:
        file.create_dataset("X", data=np.ones((N, 30), complex), chunks=(N, 5), compression="gzip")
    return folder / "x.mat", {}


def make_acoular(folder):
    with h5py.File(folder / "x.h5", "w") as file:
        file["time_data"] = np.random.default_rng(0).normal(size=(400, N)).astype(np.float32)
        file["time_data"].attrs["sample_freq"] = 1000.0
    return folder / "x.h5", {"frequency_hz": 100.0, "block_size": 64}


def make_benchmark(folder):
    with h5py.File(folder / "x.h5", "w") as file:
        R = np.stack([matrix(), matrix()], -1)
        file["CsmData/csmReal"], file["CsmData/csmImaginary"] = R.real, R.imag
        file["CsmData/binCenterFrequenciesHz"] = np.array([100.0, 200.0])
        file["CsmData"].attrs["fftSign"] = 1
    return folder / "x.h5", {"frequency_hz": 100.0}


def make_uvh5(folder):
    source = Path(__file__).parents[1] / "data" / "hera19.uvh5"
    (folder / "x.uvh5").write_bytes(source.read_bytes())
    return folder / "x.uvh5", {"frequency_hz": 150.78e6, "positions_m": None, "wavelength_m": None}


def make_sigmf(folder):
    meta = {
        "global": {
            "core:datatype": "ci16_le",
            "core:num_channels": N,
            "core:sample_rate": 1e6,
            "core:version": "1.0.0",
        },
        "captures": [{"core:sample_start": 0, "core:frequency": 1e9}],
        "annotations": [],
    }
    (folder / "x.sigmf-meta").write_text(json.dumps(meta))
    (folder / "x.sigmf-data").write_bytes(np.arange(2 * N * 50, dtype="<i2").tobytes())
    return folder / "x.sigmf-meta", {}


def make_archive(folder):
    make_sigmf(folder)
    with tarfile.open(folder / "x.sigmf", "w") as tar:
        for name in ("x.sigmf-meta", "x.sigmf-data"):
            tar.add(folder / name, name)
            (folder / name).unlink()
    return folder / "x.sigmf", {}


def make_sound(folder, suffix):
    import soundfile

    values = np.random.default_rng(0).normal(size=(400, N)) * 0.1
    soundfile.write(folder / f"x.{suffix}", values, 1000)
    return folder / f"x.{suffix}", {"frequency_hz": 100.0, "block_size": 64}


def make_wav(folder):
    return make_sound(folder, "wav")


def make_flac(folder):
    return make_sound(folder, "flac")


RECORDINGS = {
    maker.__name__.removeprefix("make_"): maker
    for maker in (
        make_npz,
        make_compressed_npz,
        make_mat,
        make_compressed_mat,
        make_hdf5,
        make_scenes,
        make_mat73,
        make_acoular,
        make_benchmark,
        make_uvh5,
        make_sigmf,
        make_archive,
        make_wav,
        make_flac,
    )
}


# What is wrong with a measurement rather than with its file: no power at all, no codes; a frequency beyond its samples.
NO_FAULT_OF_SNAPSHOTS = ("no element has any power", "received behind a surface")
NO_FAULT_OF_SAMPLES = (
    *NO_FAULT_OF_SNAPSHOTS,
    "frequency_hz must lie within",
    "falls into the bin at 0 Hz, which has no phase",
)


def read_whole(path, options):
    """Everything in a recording, to its covariance."""
    recording = read(path, **{**OPTIONS, **options}).with_covariance()
    assert recording.covariance.isfinite().all()


@dataclass(frozen=True)
class Target:
    """A format: how a folder is filled with good files, which of them are changed, and what reads them."""

    make: Callable[[Path], Any]
    read: Callable[[Path, Any], Any]  # of the folder, and what ``make`` returned
    files: tuple[str, ...]
    kind: str = "bytes"  # or json, or toml: every second change is one of values
    head: int = 256  # bytes that count as the header
    no_fault: tuple[str, ...] = ()  # texts of a ValueError that is about the measurement, or another file than wanted
    resign: Callable[[Path, str, Change], None] | None = None  # changes what a checksum covers, and mends the checksum


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sealed(content: Mapping[str, Any], key: str = "sha256") -> bytes:
    """JSON with a checksum of its own."""
    content = {name: value for name, value in content.items() if name != key}
    text = json.dumps(content, sort_keys=True, allow_nan=False, indent=1).encode()
    return json.dumps({**content, key: _digest(text)}).encode()


def _resign_zip(folder: Path, name: str, change: Change) -> None:
    """A member of an archive is changed, and its length and sum are those of what it is now."""
    path, made = folder / name, io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        for number, info in enumerate(source.infolist()):
            data = source.read(info)
            target.writestr(info.filename, change(data) if number == 0 else data)
    path.write_bytes(made.getvalue())


def _resign_tar(folder: Path, name: str, change: Change) -> None:
    """The first header of an archive is changed, and its sum is right again."""
    data = (folder / name).read_bytes()
    head = bytearray(change(data[:512])[:512].ljust(512, b"\0"))
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    (folder / name).write_bytes(bytes(head) + data[512:])


def _resign_mat(folder: Path, name: str, change: Change) -> None:
    """What a compressed variable holds is changed and compressed again."""
    data = (folder / name).read_bytes()
    _, length = struct.unpack("<II", data[128:136])
    packed = zlib.compress(change(zlib.decompress(data[136 : 136 + length])))
    (folder / name).write_bytes(data[:128] + struct.pack("<II", 15, len(packed)) + packed + data[136 + length :])


def _resign_document(folder: Path, name: str, change: Change) -> None:
    """A JSON document is changed, and its own checksum is right again."""
    content = json.loads((folder / name).read_bytes())
    content.pop("sha256")
    (folder / name).write_bytes(_sealed(json.loads(change(json.dumps(content).encode()))))


def _resign_array(folder: Path, name: str, change: Change) -> None:
    """An array of a shard is changed, and the manifest vouches for it."""
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    content = json.loads((folder / "manifest.json").read_bytes())
    content["shards"][0]["files"][path.name] = {"bytes": path.stat().st_size, "sha256": _digest(path.read_bytes())}
    (folder / "manifest.json").write_bytes(_sealed(content))


def _resign_tensors(folder: Path, name: str, change: Change) -> None:
    """Tensors of a checkpoint are changed, and its state vouches for them."""
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    state = path.with_name("state.json")
    content = json.loads(state.read_bytes())
    content["files"][path.name] = _digest(path.read_bytes())
    state.write_bytes(_sealed(content))


def _resign_model(folder: Path, name: str, change: Change) -> None:
    """A file of a model is changed, and its card vouches for all of them."""
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    card = path.with_name("model.json")
    content = json.loads(card.read_bytes())
    content["sha256"] = _digest(path.with_name("model.safetensors").read_bytes())
    confidence = path.with_name("confidence.json")
    content["confidence_sha256"] = _digest(confidence.read_bytes()) if confidence.is_file() else None
    card.write_bytes(_sealed(content, "card_sha256"))


SYSTEM = SystemConfig(SensorArray.rectangular(3, 2), n_antennas=3, n_snapshots=4, n_sources=(1, 2))


def make_backbone(folder):
    """A small backbone with a calibration and options."""
    axes = {"n_azimuth": 5, "n_elevation": 3, "n_range": 2}
    sizes = {"steps": 2, "width": 2, "head_width": 2, "range_cells": 2, "columns": 4, "axes": axes}
    backbone = build_backbone("unrolled", SYSTEM.setup, sizes)
    save_model(folder, "unrolled", backbone.state_dict(), SYSTEM.setup, sizes, {"made": "by a test"})
    HitModel((0.1,) * len(FEATURES), 0.2).save(folder, {"scenes": 3})
    save_counts(folder, {"equal": CountModel(0.5, (0.1, 0.2))}, {"scenes": 3})
    write_options(folder / "options.toml", PipelineOptions())


def make_model(folder):
    """The same with a refiner that says that it helps, behind these very weights."""
    make_backbone(folder)
    refiner = build_refiner("refiner", SYSTEM.setup, {"channels": [8], "dilations": [2]})
    card = {
        "helps": True,
        "reading": {"maps": ["capon"], "threshold": 0.3},
        "grid": {name: axis.tolist() for name, axis in vars(SearchGrid.box(5, 3, (0.6, 2.0), 0.9, 0.4)).items()},
        "backbone": {"sha256": json.loads((folder / "model.json").read_bytes())["sha256"]},
    }
    save_model(folder / "refiner", "refiner", refiner.state_dict(), SYSTEM.setup, refiner.options(), card)


def load_model(folder, made):
    Localizer.load(folder)


def make_transformer(folder):
    sizes = {"n_antennas": 3, "width": 4, "n_heads": 2, "n_layers": 1, "hidden": 4, "n_columns": 2, "column_width": 4}
    backbone = build_backbone("transformer", SYSTEM.setup, sizes)
    save_model(folder, "transformer", backbone.state_dict(), SYSTEM.setup, backbone.options(), {})


def make_shards(folder):
    write_shards(folder, ShardSpec(SYSTEM, seed=1, count=3, shard_size=2, sample_covariance=True))


def read_shards(folder, made):
    ShardSet(folder).scenes(torch.arange(3))


def make_checkpoints(folder):
    for step in (1, 2):
        groups = {"weights": {"a": torch.ones(3, 4)}, "optimiser": {"step/a": torch.tensor(1.0), "n": torch.arange(3)}}
        CheckpointFolder(folder).save(step, groups, {"step": step, "best": {"value": None}, "none": [1.5, "x"]})


def read_checkpoints(folder, made):
    """Whatever is wrong with the last, there is the one before."""
    found, problems = CheckpointFolder(folder).read_latest()
    assert found is not None, "one of the two is always whole"
    assert found.step == 2 or problems


def make_metrics(folder):
    for step in range(5):
        MetricsFile(folder / "metrics.jsonl").append({"kind": "train", "step": step, "loss": 0.5, "parts": {"a": 1.0}})


def read_metrics(folder, made):
    MetricsFile(folder / "metrics.jsonl").cut(3)


def make_positions(suffix):
    rows = OPTIONS["positions_m"].tolist()
    lines = [f'<pos Name="P" x="{x}" y="{y}" z="{z}"/>' for x, y, z in rows]
    text = "\n".join(["<MicArray>", *lines, "</MicArray>"] if suffix == "xml" else [f"{x},{y},{z}" for x, y, z in rows])

    def make(folder):
        (folder / f"p.{suffix}").write_text(text)

    return make


PLACE = RecordPlace("set", 0, 6, "run", 0, 3)
SETUP_TEXT = """format = 1
sampling = "direct"
wavefront = "spherical"
speed_m_s = 343.0
[array]
frequency_hz = 1000.0
rectangular = {n_h = 3, n_v = 2, spacing_m = 0.1}
[region]
azimuth_deg = [-60.0, 60.0]
elevation_deg = [-30.0, 30.0]
range_m = [0.5, inf]
[tolerance]
azimuth_deg = 5.0
range_m = 1.0
"""
SYSTEM_TEXT = """format = 1
n_h = 3
n_v = 2
n_sources = [1, 2]
snr_db = [-5.0, 20.0]
code_kinds = ["random"]
[impairments]
code_phase_noise_rad = 0.1
"""


def make_file(name, text):
    def make(folder):
        (folder / name).write_text(text)

    return make


def make_results(name):
    """Two sources of one scene, with all details where the format holds them."""

    def make(folder):
        found = Sources.at(torch.tensor([[0.4, 0.1, 1.5], [-0.3, 0.0, 2.0]]).double(), torch.ones(2).double())
        axis, levels = torch.arange(3.0) + 1, torch.arange(6.0).reshape(2, 3) - 6
        details = SceneDetails(torch.eye(3).repeat(2, 1, 1), axis[:2], axis, levels, axis, levels)
        setup = Setup(SensorArray(OPTIONS["positions_m"], OPTIONS["wavelength_m"]), sampling="direct")
        write_results(folder / name, [found, Sources.empty()], setup, [details])

    return make


def show_results(path):
    return result_page(read_results(path), path.name)


def make_options(folder):
    write_options(folder / "options.toml", PipelineOptions())


def make_records(folder):
    """A record of an evaluation with its configuration."""
    results = ResultsFolder(folder, {"methods": {"a": {"x": 1}}, "scenes": 3})
    results.open()
    results.write(PLACE, {"count": np.arange(3), "hit": np.ones(3, bool)})


def read_records(folder, made):
    results = ResultsFolder(folder, {"methods": {"a": {"x": 1}}, "scenes": 3})
    results.open()
    results.read(PLACE)


def make_study(storage):
    def make(folder):
        open_study(tuning_config(storage, 2), folder).opened.close()

    return make


def read_study(storage):
    def read_it(folder, made):
        join_study(storage, "risfast", folder, HpoConfig()).opened.close()

    return read_it


def _recording(maker: Callable[[Path], Any], name: str, head: int = 256, **more: Any) -> Target:
    told = {"no_fault": NO_FAULT_OF_SNAPSHOTS, **more}
    return Target(maker, lambda folder, made: read_whole(*made), (name,), head=head, **told)


def _file(maker: Callable[[Path], Any], reader: Callable[[Path], Any], name: str, **more: Any) -> Target:
    return Target(maker, lambda folder, made: reader(folder / name), (name,), **more)


_TOML: dict[str, Any] = {"kind": "toml", "head": 128}
TARGETS: dict[str, Target] = {
    "npz": _recording(make_npz, "x.npz", resign=_resign_zip),
    "npz, compressed": _recording(make_compressed_npz, "x.npz", resign=_resign_zip),
    "MATLAB 5": _recording(make_mat, "x.mat"),
    "MATLAB 7": _recording(make_compressed_mat, "x.mat", resign=_resign_mat),
    "MATLAB 7.3": _recording(make_mat73, "x.mat", 3072),
    "HDF5": _recording(make_hdf5, "x.h5", 2048),
    "HDF5, scenes": _recording(make_scenes, "x.h5", 4096),
    "acoular": _recording(make_acoular, "x.h5", 2048, no_fault=NO_FAULT_OF_SAMPLES),
    "AIAA": _recording(make_benchmark, "x.h5", 4096),
    "UVH5": _recording(make_uvh5, "x.uvh5", 8192),
    "SigMF": _recording(make_sigmf, "x.sigmf-meta", kind="json"),
    "SigMF archive": _recording(make_archive, "x.sigmf", 1536, resign=_resign_tar),
    "WAV": _recording(make_wav, "x.wav", 64, no_fault=NO_FAULT_OF_SAMPLES),
    "FLAC": _recording(make_flac, "x.flac", 128, no_fault=NO_FAULT_OF_SAMPLES),
    "positions, CSV": _file(make_positions("csv"), read_positions, "p.csv", head=16),
    "positions, XML": _file(make_positions("xml"), read_positions, "p.xml", head=64),
    "setup": _file(make_file("setup.toml", SETUP_TEXT), read_setup, "setup.toml", **_TOML),
    "system": _file(make_file("system.toml", SYSTEM_TEXT), read_system, "system.toml", **_TOML),
    "options": _file(make_options, read_options, "options.toml", **_TOML),
    "results, JSON": _file(make_results("r.json"), show_results, "r.json", kind="json"),
    "results, CSV": _file(make_results("r.csv"), show_results, "r.csv"),
    "run configuration": _file(
        make_file("config.toml", to_toml(RunConfig())), partial(read_toml, RunConfig), "config.toml", **_TOML
    ),
    "model card": Target(make_model, load_model, ("model.json",), "json", resign=_resign_model),
    "model weights": Target(make_backbone, load_model, ("model.safetensors",), head=2048, resign=_resign_model),
    "confidence": Target(make_model, load_model, ("confidence.json",), "json", resign=_resign_model),
    "counts": Target(make_backbone, load_model, ("count.json",), "json"),
    "refiner": Target(
        make_model, load_model, ("refiner/model.json", "refiner/model.safetensors"), "json", resign=_resign_model
    ),
    "transformer": Target(make_transformer, load_model, ("model.json",), "json", resign=_resign_model),
    "manifest": Target(make_shards, read_shards, ("manifest.json",), "json", resign=_resign_document),
    "shards": Target(
        make_shards, read_shards, ("shard-00000/y.npy", "shard-00000/mask.npy"), head=128, resign=_resign_array
    ),
    "checkpoint state": Target(
        make_checkpoints, read_checkpoints, ("ckpt-00000002/state.json",), "json", resign=_resign_document
    ),
    "checkpoint tensors": Target(
        make_checkpoints,
        read_checkpoints,
        ("ckpt-00000002/weights.safetensors", "ckpt-00000002/optimiser.safetensors"),
        resign=_resign_tensors,
    ),
    "latest checkpoint": Target(make_checkpoints, read_checkpoints, ("LATEST",), head=8),
    "metrics": Target(make_metrics, read_metrics, ("metrics.jsonl",), head=80),
    "evaluation": Target(
        make_records, read_records, ("config.json",), "json", no_fault=("holds results of another configuration",)
    ),
    "evaluation record": Target(make_records, read_records, (f"records/{PLACE.file}",), head=512),
    "study, SQLite": Target(make_study("sqlite"), read_study("sqlite"), ("study.sqlite3",), head=4096),
    "study, journal": Target(make_study("journal"), read_study("journal"), ("study.journal",), head=512),
}
