"""Where a study lives: SQLite, a journal file, or a database server; one error for each way it can be out of reach."""

from __future__ import annotations

import errno
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.pool import NullPool

from risfast.io.guard import short_text
from risfast.tune.options import StudyError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_T = TypeVar("_T")

_DRIVERS = {"postgresql": ("psycopg", "postgres"), "mysql": ("pymysql", "mysql"), "mariadb": ("pymysql", "mysql")}
_CONNECT_S = 10
_LOCK_S = 60.0
_TABLES_TRIES = 8  # workers that start together all make the tables; the slower ones try again


class FileLock:
    """A lock of the operating system on a file beside: whoever dies, however, lets go of it."""

    def __init__(self, path: Path, timeout_s: float = _LOCK_S) -> None:
        self._guarded, self._file, self._timeout_s = path, path.with_name(f"{path.name}.lock"), timeout_s
        self._descriptor = -1

    def acquire(self) -> bool:
        """Take the lock; an error after the timeout, or where the file system has none."""
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        began, pause = time.monotonic(), 1e-3
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                held = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
                if held and time.monotonic() - began <= self._timeout_s:
                    time.sleep(pause)
                    pause = min(2 * pause, 0.1)
                    continue
                os.close(descriptor)
                if not held:
                    raise StudyError(
                        f"{self._file} cannot be locked ({error.strerror}): this file system has no locks; put the "
                        "study in a database with --storage postgresql://..., or on another disk"
                    ) from error
                raise StudyError(
                    f"{self._guarded} is locked: another process has held {self._file} for {self._timeout_s:g} s; "
                    "stop that process (fuser shows it) and run the same command again"
                ) from error
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let go."""
        os.close(self._descriptor)
        self._descriptor = -1

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the time of a block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


class _JournalLock(FileLock):
    """The same; a last line that a killed process left unfinished is cut off, for no other may write behind it."""

    def acquire(self) -> bool:
        super().acquire()
        if self._guarded.is_file():
            _cut_unfinished(self._guarded)
        return True


def _cut_unfinished(path: Path) -> None:
    with path.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        if end == 0:
            return
        stream.seek(end - 1)
        if stream.read(1) == b"\n":
            return
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)


@dataclass(frozen=True)
class Opened:
    """A storage, and what keeps its steps apart where it does not do so itself."""

    storage: BaseStorage
    where: str  # For people, without a password
    alone: Callable[[], Any]  # Makes a context in which this process alone changes the states of trials

    def close(self) -> None:
        """Let go of the connections to a server."""
        if isinstance(self.storage, RDBStorage):
            self.storage.engine.dispose()


def with_driver(url: str) -> str:
    """The URL with the driver that the extras of this package install, unless it names one."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        known = repr(url) if url.isidentifier() else "that was given"  # what is no name may hold a password
        raise StudyError(
            f"storage {known} is not known: give sqlite, journal, or a URL such as postgresql://user@host/database"
        )
    if scheme in _DRIVERS:
        return f"{scheme}+{_DRIVERS[scheme][0]}://{rest}"
    return url


def open_storage(storage: str, folder: Path) -> Opened:
    """Open the storage of a study, which may be new."""
    if storage in ("sqlite", "journal"):
        folder.mkdir(parents=True, exist_ok=True)
        return _sqlite(folder / "study.sqlite3") if storage == "sqlite" else _journal(folder / "study.journal")
    return _database(with_driver(storage))


def _sqlite(path: Path) -> Opened:
    # SQLite has no row locks: two workers could both start a waiting trial.
    lock = FileLock(path)
    with lock.held():
        found = _relational(f"sqlite:///{path}", str(path), {"connect_args": {"timeout": 60}, "poolclass": NullPool})
    return Opened(found, str(path), lock.held)


def _journal(path: Path) -> Opened:
    lock = _JournalLock(path) if fcntl is not None else JournalFileOpenLock(str(path))
    try:
        backend = JournalFileBackend(str(path), lock)  # type: ignore[arg-type]  # the base class is not public
        return Opened(JournalStorage(backend), str(path), nullcontext)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise StudyError(_damaged(path, error)) from error


def _database(url: str) -> Opened:
    try:
        parsed = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):  # whose text may hold the password
        raise StudyError(
            f"the storage {url.partition('://')[0]}://... is not a database URL: it looks like "
            "postgresql://user@host/name, with the port a number and special characters of a password as %40"
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return _sqlite(Path(parsed.database))
    where = parsed.set(query={}).render_as_string(hide_password=True)  # a query may hold a password too
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.get_backend_name() in _DRIVERS:
        options["connect_args"] = {"connect_timeout": _CONNECT_S}
    return Opened(_relational(url, where, options), where, nullcontext)


def _relational(url: str, where: str, options: dict[str, Any]) -> RDBStorage:
    name = sqlalchemy.make_url(url).get_backend_name()
    extra = _DRIVERS.get(name, ("", ""))[1]
    for attempt in range(_TABLES_TRIES):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (ModuleNotFoundError, NoSuchModuleError, ImportError) as error:
            mend = f"pip install 'risfast[{extra}]'" if extra else "use postgresql:// or mysql://"
            raise StudyError(f"{where} needs a driver that is not installed ({error}); {mend}") from error
        except sqlalchemy.exc.OperationalError as error:
            raise _without_secrets(StudyError(_unreachable(where, error)), url) from None
        except (ProgrammingError, IntegrityError) as error:  # another worker made the same table first
            if attempt == _TABLES_TRIES - 1:
                raise _without_secrets(StudyError(_unreachable(where, error)), url) from None
            time.sleep(0.05 * 2**attempt)
        except (SQLAlchemyError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise _without_secrets(StudyError(_damaged(where, error)), url) from None
    raise AssertionError("unreachable")


def _without_secrets(error: StudyError, url: str) -> StudyError:
    """The same error without what a driver repeated of a URL: its password, and all that stands behind ``?``."""
    parsed, text = sqlalchemy.make_url(url), str(error)
    values = [value for given in parsed.query.values() for value in ([given] if isinstance(given, str) else given)]
    for secret in filter(None, (parsed.password, *values)):
        for form in (str(secret), quote(str(secret), safe=""), quote_plus(str(secret))):
            text = text.replace(form, "***")
    return StudyError(text)


def _damaged(where: Path | str, error: BaseException) -> str:
    return f"{where} is damaged ({short_text(error)}): restore it from a backup, or start another study"


def _unreachable(where: str, error: BaseException) -> str:
    reason = str(getattr(error, "orig", error)).strip().splitlines()
    return (
        f"the storage {where} cannot be reached or used: {reason[0] if reason else error}; check that the server runs, "
        "that host, port, name and password are right, and that the database exists"
    )


@contextmanager
def reachable(where: str) -> Iterator[None]:
    """Turn a storage that breaks off within a block into an error that says so."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, DBAPIError) as error:
        raise StudyError(_unreachable(where, error.__cause__ or error)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:  # text that Optuna keeps, read back
        raise StudyError(_damaged(where, error)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's notices that an interface is experimental: its version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
