"""Studies are reopened with what they were made with; storages that cannot be used say what to do."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import subprocess
import sys
import time

import optuna
import pytest
from tuning_process import Waiting, config

from risfast.tune.options import Hpo2Config, HpoConfig, PrunerOptions, SamplerOptions, ScoreOptions, StudyError
from risfast.tune.storage import FileLock, open_storage, quiet, with_driver
from risfast.tune.study import join_study, open_study, slot_seed, work


def done(opened):
    return opened.jobs.state()[0]


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_whoever_joins_takes_the_options_of_the_study(storage, tmp_path):
    work(open_study(config(storage, 2, seed=5), tmp_path), Waiting(0.0), lambda line: None)
    own = HpoConfig(
        base=dataclasses.replace(HpoConfig().base, machine=dataclasses.replace(HpoConfig().base.machine, threads=3))
    )
    joined = join_study(storage, "risfast", tmp_path, own)
    assert joined.config.seed == 5
    assert joined.config.parameters == config(storage, 2).parameters
    assert joined.config.base.machine.threads == 3
    assert done(joined) == 2


def test_another_configuration_is_refused_by_name_and_machine_and_number_of_trials_are_free(tmp_path):
    open_study(config("journal", 2), tmp_path)
    changed = config("journal", 2, score=ScoreOptions(f1_weight=2.0))
    with pytest.raises(StudyError, match=r"other options \(score\.f1_weight\).*--join.*--name"):
        open_study(changed, tmp_path)
    open_study(config("journal", 9, beat_s=3.0), tmp_path)
    open_study(config("journal", 2, name="another", score=ScoreOptions(f1_weight=2.0)), tmp_path)


def tampered(folder, change):
    """A study whose card has been changed."""
    opened = open_study(config("journal", 2), folder)
    card = json.loads(opened.study.user_attrs["risfast"])
    change(card)
    opened.study.set_user_attr("risfast", json.dumps(card))


def test_a_study_of_another_version_or_space_is_refused(tmp_path):
    tampered(tmp_path / "version", lambda card: card.update(version="0.0.1"))
    with pytest.raises(StudyError, match=r"version 0\.0\.1.*install that version.*--name"):
        open_study(config("journal", 2), tmp_path / "version")
    with pytest.raises(StudyError, match=r"version 0\.0\.1"):
        join_study("journal", "risfast", tmp_path / "version", HpoConfig())
    tampered(tmp_path / "space", lambda card: card["space"].pop())
    with pytest.raises(
        StudyError, match=r"another search space \(only this command has optimiser.weight_decay\).*--name"
    ):
        open_study(config("journal", 2), tmp_path / "space")


def test_a_study_of_the_first_format_is_refused_by_its_space_or_by_what_its_trials_were_told(tmp_path):
    """Its space named options of other classes; where only a training was tuned, the noise power was told."""

    def earlier(card):
        card.update(format=1)
        card["config"]["read_out"] = "own"

    tampered(tmp_path / "same", earlier)
    for again in (open_study, lambda made, folder: join_study("journal", "risfast", folder, made)):
        with pytest.raises(StudyError, match=r"\(format 1, whose trials were told the noise power\).*another --name"):
            again(config("journal", 2), tmp_path / "same")

    def of_detection(card):
        earlier(card)
        card["space"] = ["covariance.loading in 0.001 | 0.01", *card["space"]]

    tampered(tmp_path / "other", of_detection)
    with pytest.raises(StudyError, match=r"another search space \(only the study has covariance\.loading\)"):
        open_study(config("journal", 2), tmp_path / "other")


def test_a_study_that_this_command_did_not_make_is_refused(tmp_path):
    opened = open_storage("journal", tmp_path)
    foreign = optuna.create_study(study_name="risfast", storage=opened.storage)
    with quiet():
        foreign.enqueue_trial({"x": 1.0})
    with pytest.raises(StudyError, match="was not made by this command; choose another --name"):
        open_study(config("journal", 2), tmp_path)


def test_joining_what_is_not_there_names_what_is(tmp_path):
    with pytest.raises(StudyError, match=r"holds no study \(study\.sqlite3 is missing\).*--storage"):
        join_study("sqlite", "risfast", tmp_path, HpoConfig())
    open_study(config("journal", 2), tmp_path)
    with pytest.raises(StudyError, match=r"no study 'other'; it holds risfast: .*--name"):
        join_study("journal", "other", tmp_path, HpoConfig())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://nobody@127.0.0.1:1/none", r"cannot be reached.*check that the server runs"),
        ("mysql://nobody@127.0.0.1:1/none", r"pip install 'risfast\[mysql\]'|cannot be reached"),
        ("oracle9://somewhere/x", r"driver.*use postgresql:// or mysql://"),
        ("postgres", r"'postgres' is not known: give sqlite, journal, or a URL"),
        ("postgresql://user:secret@host:port/x", r"not a database URL"),
    ],
)
def test_a_storage_out_of_reach_says_what_to_do_and_no_password(url, message, tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(StudyError, match=message) as caught:
        open_storage(url, tmp_path)
    assert "secret" not in str(caught.value)


def test_the_address_of_the_storage_is_not_kept_with_the_study(tmp_path):
    """It may hold a password, and whoever may read the study may not need to know it."""
    path = tmp_path / "elsewhere.sqlite3"
    opened = open_study(config(f"sqlite:///{path}", 2), tmp_path)
    assert path.is_file()
    assert "elsewhere" not in opened.study.user_attrs["risfast"]


def test_drivers_are_those_of_the_extras_unless_one_is_named():
    assert with_driver("postgresql://h/d") == "postgresql+psycopg://h/d"
    assert with_driver("mysql://h/d") == "mysql+pymysql://h/d"
    assert with_driver("postgresql+pg8000://h/d") == "postgresql+pg8000://h/d"


def test_a_damaged_journal_is_named(tmp_path):
    open_study(config("journal", 2), tmp_path)
    with (tmp_path / "study.journal").open("r+b") as stream:
        stream.seek(3)
        stream.write(b"\x00\x00")
    with pytest.raises(StudyError, match=r"study\.journal is damaged.*restore it from a backup, or start another"):
        open_study(config("journal", 2), tmp_path)


def test_a_line_that_a_killed_process_left_unfinished_is_cut_off(tmp_path):
    opened = open_study(config("journal", 2), tmp_path)
    with (tmp_path / "study.journal").open("ab") as stream:
        stream.write(b'{"op_code":4,"wor')
    work(opened, Waiting(0.0), lambda line: None)
    again = open_study(config("journal", 2), tmp_path)
    assert done(again) == 2


HOLD = """
import sys, time, pathlib
from risfast.tune.storage import FileLock
with FileLock(pathlib.Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_locked_journal_is_named_and_a_killed_holder_lets_go(tmp_path):
    path = tmp_path / "study.journal"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StudyError, match=r"study\.journal is locked: another process.*stop that process"):
            FileLock(path, timeout_s=0.2).acquire()
        holder.kill()
        holder.wait()
        began = time.monotonic()
        with FileLock(path, timeout_s=30.0).held():
            assert time.monotonic() - began < 30
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def append(path, count, byte):
    lock = FileLock(path)
    for _ in range(count):
        with lock.held(), path.open("ab") as stream:
            stream.write(byte)
            stream.flush()
            stream.write(byte)


def test_a_lock_keeps_two_processes_apart(tmp_path):
    path = tmp_path / "file"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append, args=(path, 200, byte)) for byte in (b"a", b"b")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    text = path.read_text()
    assert len(text) == 800
    assert set(text[i : i + 2] for i in range(0, 800, 2)) == {"aa", "bb"}


def test_seeds_differ_between_slots_and_studies():
    seeds = [slot_seed(study, slot) for study in range(4) for slot in range(50)]
    assert len(set(seeds)) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HpoConfig(objective="nmse"), "objective must be one of surrogate, mvdr_final; got 'nmse'"),
        (lambda: HpoConfig(what="all"), "what must be training or detection"),
        (lambda: HpoConfig(trials=0), "trials must be at least 1"),
        (lambda: HpoConfig(name=""), "name must not be empty"),
        (lambda: HpoConfig(seed=-1), "seed must lie in"),
        (lambda: HpoConfig(beat_s=0.0), "beat_s must be positive"),
        (lambda: HpoConfig(attempts=0), "attempts must be at least 1"),
        (lambda: ScoreOptions(scenes=1), "score.scenes must be at least 2"),
        (lambda: ScoreOptions(xyz_norm_m=0.0), "score.xyz_norm_m must be positive"),
        (lambda: ScoreOptions(f1_weight=-1.0), "score.f1_weight must be finite and at least 0"),
        (lambda: SamplerOptions(startup=0), "sampler.startup"),
        (lambda: SamplerOptions(candidates=0), "sampler.candidates"),
        (lambda: PrunerOptions(reduction=1), "pruner.reduction"),
        (lambda: PrunerOptions(startup=0), "pruner.startup"),
        (lambda: PrunerOptions(warmup=-1), "pruner.warmup"),
        (lambda: Hpo2Config(top=2), "top must be at least 3"),
        (lambda: Hpo2Config(top=99), "top must be at most study.trials"),
        (lambda: Hpo2Config(budget=0.5), "budget must be at least 1"),
        (lambda: Hpo2Config(resamples=1), "resamples must be at least 100"),
        (lambda: Hpo2Config(study=HpoConfig(objective="mvdr_final")), "stage 1 is a study of training by surrogate"),
    ],
)
def test_values_out_of_their_range_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
