"""Every file that once broke a reader, by the name of what it did."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from safetensors.torch import load_file, save_file

from fuzz.mutate import outcome
from fuzz.seeds import PLACE, TARGETS, make_records, read_records
from risfast import Localizer
from risfast.cli import main
from risfast.errors import FileFormatError
from risfast.io import Recording, Snapshots, read_options, read_setup
from risfast.io.durable import OwnedError, owned, sealed_json
from risfast.io.guard import inside, load_json, read_whole
from risfast.io.toml_file import read_toml
from risfast.models.files import read_card
from risfast.simulate import read
from risfast.simulate.shards import ShardSet
from risfast.simulate.system_file import read_system
from risfast.train.checkpoints import CheckpointFolder
from risfast.train.config import RunConfig
from risfast.train.runs import MetricsFile
from risfast.tune.options import StudyError
from risfast.tune.storage import open_storage

SEALS = {"model.json": "card_sha256", "manifest.json": "sha256", "state.json": "sha256"}


def made(name, folder):
    TARGETS[name].make(folder)
    return folder


def rewritten(path, change):
    """A document with another content, sealed again where it has a seal."""
    content = json.loads(path.read_bytes())
    content = change(content) or content
    seal = SEALS.get(path.name)
    path.write_bytes(sealed_json(content, seal) if seal in content else json.dumps(content).encode())


def resealed_weights(folder, tensors):
    """Other weights, for which the card vouches."""
    save_file(tensors, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    rewritten(folder / "model.json", lambda card: card.update(sha256=digest))


@pytest.mark.parametrize("kind", ["setup", "options", "system", "run configuration"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"format = 1\nseed = " + b"9" * 5000, "not valid TOML"),  # more digits than Python takes
        (b"format = 1\nx = " + b"[" * 3000 + b"]" * 3000, "not valid TOML|deeper"),
        (b"format = 1\nx = " + b"{a=" * 100 + b"1" + b"}" * 100, "deeper than 64"),
        (b"format = 1\nx = \xff", "not valid TOML"),
        (b"", "is empty"),
    ],
)
def test_toml_of_any_kind_is_bounded(kind, text, message, tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(text)
    read = {"setup": read_setup, "options": read_options, "system": read_system}.get(
        kind, lambda path: read_toml(RunConfig, path)
    )
    with pytest.raises(FileFormatError, match=message):
        read(path)


@pytest.mark.parametrize(
    "text",
    [b'{"a": NaN}', b'{"a": 1e999}', b'{"a": -Infinity}', b"[1]", b"\xff", b"{", b'{"a": %s}' % (b"9" * 5000)],
    ids=["nan", "too large", "infinite", "no object", "not UTF-8", "cut off", "digits"],
)
def test_json_that_is_no_json_is_refused(text, tmp_path):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(FileFormatError, match=r"x\.json: (damaged, )?not a card"):
        load_json(tmp_path / "x.json", "a card")


def test_json_that_is_nested_or_long_is_refused_before_it_is_walked(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a":' * 70 + "1" + "}" * 70)
    with pytest.raises(FileFormatError, match="deeper than 64"):
        load_json(path, "a card")
    path.write_text('{"a":' * 10**5)
    with pytest.raises(FileFormatError, match="not a card"):
        load_json(path, "a card")
    with path.open("wb") as stream:
        stream.truncate(17 << 20)
    with pytest.raises(FileFormatError, match=r"17\.8 MB are no card"):
        load_json(path, "card")


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    began = time.monotonic()
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(FileFormatError, match="not a file"):
            read_whole(path, "card")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "/etc/passwd", "a\\b", "c:x", "a\0b"])
def test_names_stay_in_their_folder(name, tmp_path):
    with pytest.raises(FileFormatError, match="plain name"):
        inside(tmp_path, name)


def test_links_that_lead_out_of_a_folder_are_not_followed(tmp_path):
    (tmp_path / "secret.csv").write_text("1,2,3\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.csv").symlink_to(tmp_path / "secret.csv")
    for name, message in (("p.csv", "leads to another folder"), ("../secret.csv", "plain name")):
        setup = tmp_path / "in" / "setup.toml"
        setup.write_text(f"format = 1\n[array]\nwavelength_m = 0.1\npositions_file = '{name}'\n")
        with pytest.raises(FileFormatError, match=message):
            read_setup(setup)
    model = made("model card", tmp_path / "in")
    (model / "model.safetensors").rename(tmp_path / "elsewhere")
    (model / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileFormatError, match="leads to another folder"):
        Localizer.load(model)


@pytest.mark.parametrize("shape", ["n_h = 100000\nn_v = 100000\nspacing_m = 0.1", "n_h = 8193\nn_v = 1\nspacing_m = 1"])
def test_a_file_that_asks_for_a_huge_array_is_refused_before_it_is_made(shape, tmp_path):
    (tmp_path / "setup.toml").write_text(f"format = 1\n[array]\nwavelength_m = 0.1\n[array.rectangular]\n{shape}\n")
    read = outcome(lambda: read_setup(tmp_path / "setup.toml"))
    assert "8192 at most" in read.detail
    assert read.grown < 100 << 20


CARDS = {
    "steps": ({"steps": 10**9}, "larger than anything"),
    "width": ({"width": 1500}, "more than the .* numbers"),
    "atoms": ({"axes": {"n_azimuth": 10**6, "n_elevation": 10**4, "n_range": 9}}, "more memory than maps may"),
    "text": ({"steps": "2"}, "another kind"),
    "a list for a table": ({"axes": [1, 2]}, "not of the kind"),
    "unknown": ({"stepz": 2}, "unknown field"),
    "negative": ({"columns": -3}, "at least 1"),
    "half": ({"width": 2.5}, "model.json: "),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_whose_sizes_are_not_those_of_its_weights_is_refused_before_anything_is_built(name, tmp_path):
    folder = made("model card", tmp_path)
    options, message = CARDS[name]
    rewritten(folder / "model.json", lambda card: card["options"].update(options))
    read = outcome(lambda: Localizer.load(folder))
    assert read.kind == "refused"
    assert "model.json" in read.detail
    with pytest.raises(FileFormatError, match=message):
        Localizer.load(folder)
    assert read.grown < 200 << 20
    assert read.seconds < 5


def test_a_card_vouches_for_itself_its_weights_and_its_calibration(tmp_path):
    folder = made("model card", tmp_path)
    Localizer.load(folder)
    card = json.loads((folder / "model.json").read_bytes())
    (folder / "model.json").write_bytes(json.dumps({**card, "made": "by another"}).encode())
    with pytest.raises(FileFormatError, match=r"model\.json: damaged.*card_sha256"):
        read_card(folder)
    (folder / "model.json").write_bytes(json.dumps({k: v for k, v in card.items() if k != "card_sha256"}).encode())
    with pytest.raises(FileFormatError, match=r"model\.json: damaged.*card_sha256"):
        read_card(folder)
    made("model card", folder)
    confidence = folder / "confidence.json"
    good = confidence.read_bytes()
    confidence.write_bytes(good.replace(b"0.2", b"0.3"))
    with pytest.raises(FileFormatError, match=r"confidence\.json: damaged, or of other weights"):
        Localizer.load(folder)
    confidence.unlink()
    with pytest.raises(FileFormatError, match=r"confidence\.json: missing"):
        Localizer.load(folder)
    confidence.write_bytes(good)
    assert Localizer.load(folder).calibration is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value * torch.nan, "must hold finite real numbers"),
        (lambda value: value.to(torch.int64), "must hold finite real numbers"),
        (lambda value: value.double(), "must be torch.float32, found torch.float64"),
        (lambda value: value[:, None], "another architecture"),
    ],
    ids=["NaN", "integers", "double", "shape"],
)
def test_weights_that_are_not_finite_or_of_another_type_are_refused(change, message, tmp_path):
    folder = made("model card", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    resealed_weights(folder, {**tensors, "exponents": change(tensors["exponents"])})
    with pytest.raises(FileFormatError, match=rf"model\.safetensors.*{message}"):
        Localizer.load(folder)


REFINERS = {
    "no reading": lambda card: card.pop("reading"),
    "a grid out of order": lambda card: card["grid"].update(azimuth_rad=[2.0, 1.0]),
    "a grid of words": lambda card: card["grid"].update(range_m=["x"]),
    "an unknown way to read": lambda card: card["reading"].update(tHreshold=1),
    "no backbone": lambda card: card.update(backbone={}),
    "another backbone": lambda card: card["backbone"].update(sha256="0"),
    "another name": lambda card: card.update(name="inf"),
    "options": lambda card: card["options"].update(dilations=[[1]]),
}


@pytest.mark.parametrize("name", REFINERS)
def test_a_refiner_whose_card_is_odd_is_refused_by_file(name, tmp_path):
    folder = made("refiner", tmp_path)

    def change(card):
        REFINERS[name](card)

    rewritten(folder / "refiner" / "model.json", change)
    with pytest.raises(FileFormatError, match=r"refiner/model\.json"):
        Localizer.load(folder)


MANIFESTS = {
    "numbers beyond any float": lambda manifest: manifest["set"]["system"].update(
        array={"positions_m": [[10**400, 0, 0]], "wavelength_m": 1}
    ),
    "no set": lambda manifest: manifest.pop("set"),
    "shards that are a number": lambda manifest: manifest.update(shards=7),
    "a shard that is a number": lambda manifest: manifest.update(shards=[7, 8]),
    "an entry without files": lambda manifest: manifest["shards"][0].pop("files"),
    "a file without a length": lambda manifest: manifest["shards"][0]["files"]["y.npy"].pop("bytes"),
    "a count beyond memory": lambda manifest: manifest["set"].update(count=10**15, shard_size=1),
    "a shard elsewhere": lambda manifest: manifest["shards"][0].update(name="../shard-00000"),
    "a system of words": lambda manifest: manifest["set"]["system"].update(n_antennas="many"),
    "a huge array": lambda manifest: manifest["set"]["setup"]["array"].update(n_h=10**6, n_v=10**6),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_signed_and_odd_is_refused(name, tmp_path):
    folder = made("manifest", tmp_path)

    def change(manifest):
        MANIFESTS[name](manifest)

    rewritten(folder / "manifest.json", change)
    read = outcome(lambda: ShardSet(folder))
    assert read.kind == "refused", read.detail
    assert "manifest.json" in read.detail
    assert read.grown < 100 << 20


def test_an_array_of_a_shard_whose_header_is_no_python_is_refused(tmp_path):
    folder = made("shards", tmp_path)
    path = folder / "shard-00000" / "y.npy"
    data = path.read_bytes()
    path.write_bytes(data[:11] + b"(((" + data[14:])
    content = json.loads((folder / "manifest.json").read_bytes())
    content["shards"][0]["files"]["y.npy"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_bytes(sealed_json(content))
    with pytest.raises(FileFormatError, match=r"y\.npy.*cannot be read as a NumPy array"):
        ShardSet(folder)


STATES = {
    "files that are a number": lambda state: state.update(files=7),
    "no files": lambda state: state.pop("files"),
    "a state that is a list": lambda state: state.update(state=[1]),
    "a file elsewhere": lambda state: state["files"].update({"../../LATEST": "0"}),
    "another step": lambda state: state.update(step=9),
    "another format": lambda state: state.update(format={}),
}


@pytest.mark.parametrize("name", STATES)
def test_a_checkpoint_that_is_signed_and_odd_is_named_and_the_one_before_is_used(name, tmp_path):
    folder = made("checkpoint state", tmp_path)

    def change(state):
        STATES[name](state)

    rewritten(folder / "ckpt-00000002" / "state.json", change)
    found, problems = CheckpointFolder(folder).read_latest()
    assert found.step == 1
    assert len(problems) == 1
    assert "ckpt-00000002" in problems[0]


def test_a_marker_of_a_checkpoint_before_all_that_are_there_is_none(tmp_path):
    folder = made("checkpoint state", tmp_path)
    (folder / "LATEST").write_text("ckpt-00000000\n")
    found, problems = CheckpointFolder(folder).read_latest()
    assert (found.step, problems) == (2, [])
    (folder / "LATEST").write_bytes(b"x" * 10**6)
    found, problems = CheckpointFolder(folder).read_latest()
    assert found.step == 2
    assert "LATEST" in problems[0]


@pytest.mark.parametrize("line", ['{"step": 1, "loss": NaN}', '{"step": 1, "loss": 1e999}'])
def test_a_line_of_metrics_that_is_not_finite_is_named(line, tmp_path):
    made("metrics", tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(FileFormatError, match=r"metrics\.jsonl: line 1 is damaged .*is not finite"):
        MetricsFile(path).read()


@pytest.mark.parametrize("name", ["metrics", "latest checkpoint"])
def test_a_link_out_of_the_folder_of_a_run_is_not_followed(name, tmp_path):
    (tmp_path / "in").mkdir()
    folder = made(name, tmp_path / "in")
    path = folder / TARGETS[name].files[0]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    if name == "metrics":
        with pytest.raises(FileFormatError, match="leads to another folder"):
            MetricsFile(path).read()
    else:
        _, (problem,) = CheckpointFolder(folder).read_latest()
        assert "leads to another folder" in problem


@pytest.mark.parametrize("line", ["7", "[]", '{"loss": 1}', '{"step": "3"}', '{"step": 1.5}', "[" * 10**5])
def test_a_line_of_metrics_without_a_step_is_named(line, tmp_path):
    made("metrics", tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(FileFormatError, match="line 1 is damaged"):
        MetricsFile(path).cut(3)


@pytest.mark.parametrize("part", ["config.json", "environment.json", "records", "a record"])
def test_no_part_of_an_evaluation_is_a_link_to_another_folder(part, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    make_records(folder)
    read_records(folder, None)
    place = folder / "records" / PLACE.file if part == "a record" else folder / part
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    before = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(FileFormatError, match="leads to another folder"):
        read_records(folder, None)
    assert [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] == before


def test_the_configuration_of_an_evaluation_without_methods_is_refused(tmp_path):
    for methods in (7, "x", None, [1]):
        make_records(tmp_path)
        rewritten(tmp_path / "config.json", lambda config, methods=methods: config.update(methods=methods))
        with pytest.raises(FileFormatError, match=r"config\.json"):
            read_records(tmp_path, None)
        (tmp_path / "config.json").unlink()
        (tmp_path / "records" / PLACE.file).unlink()
        for path in sorted(tmp_path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_the_journal_of_a_study_whose_text_is_damaged_is_named(tmp_path):
    made("study, journal", tmp_path)
    path = tmp_path / "study.journal"
    data = path.read_bytes()
    for at in (20, len(data) // 2, len(data) - 40):
        path.write_bytes(data[:at] + b"\x00{" + data[at + 2 :])
        with pytest.raises(StudyError, match=r"study\.journal|damaged"):
            TARGETS["study, journal"].read(tmp_path, None)


@pytest.mark.parametrize("suffix", ["npz", "h5", "mat"])
def test_a_file_of_very_many_variables_is_refused_before_they_are_looked_through(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    if suffix == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(10_001):
                archive.writestr(f"v{number}.npy", b"")
    elif suffix == "h5":
        with h5py.File(path, "w") as file:
            for number in range(10_001):
                file.create_group(f"g{number}")
    else:
        scipy.io.savemat(path, {f"v{number}": 1.0 for number in range(10_002)})
    with pytest.raises(FileFormatError, match="more than 10000 variables"):
        read(path)


@pytest.mark.parametrize("where", ["dataset", "attribute"])
def test_numbers_of_an_odd_bit_layout_are_refused_before_they_are_converted(where, tmp_path):
    """One damaged byte in the type of a dataset, from which libhdf5 wrote past its buffer."""
    odd = h5py.h5t.IEEE_F64LE.copy()
    odd.set_ebias(511)
    record = h5py.h5t.create(h5py.h5t.COMPOUND, 16)
    record.insert(b"r", 0, odd)  # h5py takes it for one of 16 bytes, over the next
    record.insert(b"i", 8, h5py.h5t.IEEE_F64LE)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        space = h5py.h5s.create_simple((3, 3))
        if where == "dataset":
            h5py.h5d.create(file.id, b"R", record, space)
        else:
            file["R"] = np.eye(3)
            h5py.h5a.create(file.id, b"wavelength_m", odd, h5py.h5s.create(h5py.h5s.SCALAR))
    how = {"positions_m": np.eye(3)}
    with pytest.raises(FileFormatError, match="not standard" if where == "dataset" else "wavelength"):
        read(tmp_path / "x.h5", **how)
    assert read(tmp_path / "x.h5", wavelength_m=0.1, **how) if where == "attribute" else True


@pytest.mark.parametrize("length", [0, 2**64 - 16], ids=["nothing", "round the end"])
def test_a_heap_of_texts_that_does_not_end_is_refused(length, tmp_path):
    """Damaged bytes in an attribute's text, from which libhdf5 never came back."""
    path, how = tmp_path / "x.h5", {"positions_m": np.eye(3), "wavelength_m": 0.1}
    with h5py.File(path, "w") as file:
        file["R"] = np.eye(3)
        file.attrs["note"] = "a text"
    assert read(path, **how)
    data = bytearray(path.read_bytes())
    first = data.index(b"GCOL") + 16
    data[first : first + 2] = int(length > 0).to_bytes(2, "little")
    data[first + 8 : first + 16] = length.to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=f"the heap of its texts has an object of {length} bytes"):
        read(path, **how)


def test_snapshots_whose_powers_overflow_are_refused():
    from risfast.geometry import SensorArray

    rows = Snapshots.of(np.full((3, 2), 1e300 + 0j), "loud.npz: 'X'")
    with pytest.raises(FileFormatError, match=r"loud\.npz.*overflow"):
        Recording(SensorArray(np.eye(2, 3), 0.3), snapshots=rows).with_covariance()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cr3t@127.0.0.1:1/none",
        "postgresql://127.0.0.1:1/none?user=me&password=s3cr3t",
        "postgresql://me:s3cr3t@host:port/x",
        "postgresql://host:port/x?password=s3cr3t",
        "postgresql:/me:s3cr3t@host/x",
        "oracle9://me:s3cr3t@somewhere/x?password=s3cr3t",
        "mysql://me:s3cr3t@127.0.0.1:1/none?ssl_key=s3cr3t",
    ],
)
def test_no_password_of_a_storage_is_ever_told(url, tmp_path, capsys):
    with pytest.raises(StudyError) as caught:
        open_storage(url, tmp_path).close()
    told = str(caught.value)
    cause = caught.value
    while cause is not None and not cause.__suppress_context__:
        cause = cause.__cause__ or cause.__context__
        told += str(cause)
    assert "s3cr3t" not in told
    assert main(["hpo", "--storage", url, "--output", str(tmp_path / "study")]) == 2
    shown = capsys.readouterr()
    assert "s3cr3t" not in shown.out + shown.err
    assert not any(b"s3cr3t" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "arguments",
    [
        ["locate", "FILE"],
        ["detect", "FILE", "--setup", "FILE"],
        ["import", "FILE", "OUT"],
        ["locate", "GOOD", "--options", "FILE"],
        ["backbone", "--config", "FILE", "--output", "OUT"],
        ["locate", "GOOD", "--setup", "FILE"],
    ],
    ids=lambda arguments: " ".join(arguments[:3:2]),
)
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, b"[" * 5000, b"PK\x03\x04" + bytes(50), b"{}"],
    ids=["empty", "ff", "[", "zip", "{}"],
)
def test_the_command_line_shows_one_line_for_a_bad_file(arguments, content, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.toml").write_bytes(content)
    Path("bad.npz").write_bytes(content)
    np.savez("good.npz", X=np.ones((5, 3), complex), positions_m=0.1 * np.eye(3), wavelength_m=0.3)
    names = {"FILE": "bad.toml" if "--config" in arguments or "GOOD" in arguments else "bad.npz"}
    names |= {"GOOD": "good.npz", "OUT": "out.h5"}
    assert main([names.get(word, word) for word in arguments]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "bad." in told
    assert "Traceback" not in told


OWNER = """
import sys, time
from pathlib import Path
from risfast.io.durable import owned
with owned(Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_one_process_owns_a_folder_and_whoever_dies_lets_go(tmp_path):
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "in\n"
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        for _ in range(20):
            with (
                pytest.raises(OwnedError, match=rf"at work in another process \(host .* pid {other.pid}\)"),
                owned(tmp_path),
            ):
                pytest.fail("two processes in one folder")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        other.kill()
        other.wait()
        assert list(tmp_path.iterdir()), "a killed process cannot clean up"
        with owned(tmp_path):
            assert f"pid {os.getpid()}" in (tmp_path / ".owner").read_text()
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), owned(tmp_path):
        raise RuntimeError
    with owned(tmp_path):
        pass


def test_an_owner_that_is_a_link_or_a_folder_is_named_with_its_mend(tmp_path):
    (tmp_path / ".owner").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OwnedError, match=r"is no plain file.*remove it"), owned(tmp_path):
        pytest.fail("a link was followed")
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / ".owner").unlink()
    (tmp_path / ".owner").mkdir()
    with pytest.raises(OwnedError, match=r"is no plain file.*remove it"), owned(tmp_path):
        pytest.fail("a folder was taken")


def test_a_folder_is_owned_and_let_go_without_what_only_posix_has(tmp_path, monkeypatch):
    closed = []

    def close(descriptor):
        closed.append(descriptor)
        os.close(descriptor)

    here = {name: value for name, value in vars(os).items() if name not in ("pread", "pwrite", "kill", "O_NOFOLLOW")}
    monkeypatch.setattr("risfast.io.durable.os", SimpleNamespace(**{**here, "name": "nt", "close": close}))
    monkeypatch.setattr("risfast.io.durable._locked", lambda descriptor: None)
    unlink = Path.unlink

    def unlink_closed(path, missing_ok=False):
        assert closed, "a file that is open cannot be removed"
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_closed)
    (tmp_path / ".owner").write_text("damaged, and longer than what takes its place, whatever the name of the host")
    with owned(tmp_path):
        text = (tmp_path / ".owner").read_text()
        assert text == f"host {socket.gethostname()} pid {os.getpid()}\n"
    assert not list(tmp_path.iterdir())
    (tmp_path / ".owner").write_text(text.replace(f"pid {os.getpid()}", f"pid {os.getppid()}"))
    with pytest.raises(OwnedError, match="if that process is gone, remove"), owned(tmp_path):
        pytest.fail("it may still run")


def test_where_there_are_no_locks_the_process_that_is_named_decides(tmp_path, monkeypatch):
    monkeypatch.setattr("risfast.io.durable._locked", lambda descriptor: None)
    here = socket.gethostname()
    for text, free in (
        ("", True),
        ("host gone pid 1\n", False),
        (f"host {here} pid 1\n", False),
        (f"host {here} pid {2**22 + 5}\n", True),
        ("damaged", True),
    ):
        (tmp_path / ".owner").write_text(text)
        if free:
            with owned(tmp_path):
                pass
        else:
            with pytest.raises(OwnedError, match="if that process is gone, remove"), owned(tmp_path):
                pytest.fail("it may still run")
