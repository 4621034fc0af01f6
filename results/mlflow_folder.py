"""What the MLflow mirror keeps in a sweep's folder: a database, the sweep's identity, damaged databases set aside."""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Final

DATABASE: Final = "mlflow.db"
_IDENTITY: Final = "mlflow.json"
_COMPANIONS: Final = (
    "-journal",
    "-wal",
    "-shm",
)  # SQLite's own files: left behind, they would damage the next database
_DAMAGE: Final = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})


def local_uri(out: Path) -> str:
    """Return the address of the mirror inside a sweep's folder."""
    return f"sqlite:///{out.resolve() / DATABASE}"


def artifacts(out: Path) -> str:
    """Return the artifact location of a local mirror; nothing is ever stored there."""
    return (out.resolve() / "mlflow-artifacts").as_uri()


def identity(out: Path) -> str:
    """Return the sweep's identity: 32 hexadecimal digits, drawn once per folder; it moves with the folder.

    Every run that is mirrored from this folder carries it as the tag `sweep`.

    Raises:
        OSError: it is not there yet and the folder cannot be written.
    """
    path = out / _IDENTITY
    try:
        found = json.loads(path.read_text("utf-8"))["sweep"]
        if isinstance(found, str) and found:
            return found
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # drawn below; a damaged file is replaced
    out.mkdir(parents=True, exist_ok=True)
    drawn = uuid.uuid4().hex
    temporary = path.with_name(f".{path.name}.{drawn}.tmp")
    temporary.write_text(json.dumps({"sweep": drawn}) + "\n", "utf-8")
    temporary.replace(path)
    return drawn


def set_aside_if_damaged(out: Path) -> str | None:
    """Rename a damaged `OUT/mlflow.db` to `mlflow.db.damaged-<n>`, so that the mirror is built anew.

    Returns:
        One line saying so; None if the database is sound, absent, or busy.

    Raises:
        OSError: the file cannot be renamed.
    """
    path = out / DATABASE
    if not path.is_file() or not _damaged(path):
        return None
    aside = next(name for n in count(1) if not (name := out / f"{DATABASE}.damaged-{n}").exists())
    path.rename(aside)
    for suffix in _COMPANIONS:
        companion = out / f"{DATABASE}{suffix}"
        if companion.exists():
            companion.rename(out / f"{aside.name}{suffix}")
    return f"{path} was damaged; it is now {aside.name}, and the mirror is rebuilt from rows.parquet"


def _damaged(path: Path) -> bool:
    """Return whether SQLite itself finds the file damaged; other trouble (a lock, no access) is not damage."""
    if not os.access(path, os.R_OK):
        return False
    try:
        with closing(sqlite3.connect(path, timeout=0)) as database:
            return database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",)
    except sqlite3.DatabaseError as why:
        return (getattr(why, "sqlite_errorcode", 0) & 0xFF) in _DAMAGE
