"""What the mirror keeps in a sweep's folder."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from assay.results.mlflow_folder import identity, set_aside_if_damaged


def make_database(path: Path, rows: int = 2000) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t (x TEXT)")
        database.executemany("INSERT INTO t VALUES (?)", [("x" * 100,)] * rows)
        database.commit()


def test_an_identity_is_drawn_once_and_moves_with_the_folder(tmp_path: Path) -> None:
    first = identity(tmp_path / "a")
    assert len(first) == 32
    assert identity(tmp_path / "a") == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert identity(tmp_path / "b") == first
    assert identity(tmp_path / "a") != first


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sweep": 1}', '{"sweep": ""}'])
def test_a_damaged_identity_is_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "mlflow.json").write_text(text)
    drawn = identity(tmp_path)
    assert len(drawn) == 32
    assert identity(tmp_path) == drawn
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.json"]


@pytest.mark.parametrize("damage", ["random", "short", "middle"])
def test_a_damaged_database_is_set_aside_with_its_companions(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "mlflow.db"
    make_database(path)
    whole = path.read_bytes()
    broken = {
        "random": os.urandom(5000),
        "short": whole[: len(whole) // 2],
        "middle": whole[:8192] + os.urandom(8192) + whole[16384:],
    }[damage]
    path.write_bytes(broken)
    (tmp_path / "mlflow.db-wal").write_bytes(b"")
    remark = set_aside_if_damaged(tmp_path)
    assert remark is not None
    assert "mlflow.db.damaged-1" in remark
    assert "\n" not in remark
    assert not path.exists()
    assert (tmp_path / "mlflow.db.damaged-1").read_bytes() == broken
    assert not (tmp_path / "mlflow.db-wal").exists(), "it would be taken for the next database's"
    path.write_bytes(b"no database either" * 100)
    assert "mlflow.db.damaged-2" in (set_aside_if_damaged(tmp_path) or "")
    assert (tmp_path / "mlflow.db.damaged-1").read_bytes() == broken


def test_a_sound_an_empty_an_absent_and_a_busy_database_stay(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert set_aside_if_damaged(tmp_path) is None
    path.touch()  # SQLite's empty database
    assert set_aside_if_damaged(tmp_path) is None
    make_database(path)
    before = path.read_bytes()
    assert set_aside_if_damaged(tmp_path) is None
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert set_aside_if_damaged(tmp_path) is None
    assert path.read_bytes() == before
