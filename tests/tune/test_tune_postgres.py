"""A study on a real PostgreSQL server, which the tests start from the distribution's packages (postgresql)."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from test_tune_jobs import assert_each_slot_is_done_once, finished, kill_workers, trials_of
from tuning_process import Waiting, config

from risfast.tune.options import StudyError
from risfast.tune.storage import quiet
from risfast.tune.study import open_study, work

pytestmark = pytest.mark.slow


def programs():
    """The folder of the server's programs; newest version first."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    return folders[0] if folders else None


def user():
    """Whom the server runs as: it refuses root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server():
    """URL of an empty database on a server of its own."""
    pytest.importorskip("psycopg")
    bin_folder = programs()
    if bin_folder is None:
        pytest.skip("needs the PostgreSQL server (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="risfast-postgres-"))
    name, port = user(), free_port()
    if name is not None:
        shutil.chown(folder, name)

    def run(*command):
        subprocess.run(
            [str(item) for item in command], user=name, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120
        )

    data = folder / "data"
    try:
        run(bin_folder / "initdb", "-D", data, "-U", "risfast", "-A", "trust", "--no-sync")
        options = f"-p {port} -k {folder} -h 127.0.0.1 -c fsync=off"
        run(bin_folder / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql://risfast@127.0.0.1:{port}/postgres"
        finally:
            run(bin_folder / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def test_four_workers_killed_at_random_lose_and_double_no_trial(server, tmp_path):
    kill_workers(server, tmp_path, trials=80, kills=20, seed=2)


def test_a_study_goes_on_with_the_same_command(server, tmp_path):
    for trials in (2, 4):
        with open_study(config(server, trials, name="continued"), tmp_path) as opened:
            work(opened, Waiting(0.0), lambda line: None)
            assert_each_slot_is_done_once(opened, trials)


def test_a_slot_that_two_workers_enqueued_is_done_once(server, tmp_path):
    with open_study(config(server, 1, name="doubled"), tmp_path) as opened:
        with quiet():
            for _ in range(2):
                opened.study.enqueue_trial({}, user_attrs={"slot": 0, "attempt": 0})
        work(opened, Waiting(0.0), lambda line: None)
        assert_each_slot_is_done_once(opened, 1)
        assert len(trials_of(opened)) == 2
        assert len(finished(opened)) == 1


def test_a_database_that_does_not_exist_is_named(server, tmp_path):
    with pytest.raises(StudyError, match=r'database "nowhere" does not exist.*the database exists'):
        open_study(config(server.replace("/postgres", "/nowhere"), 1), tmp_path)
