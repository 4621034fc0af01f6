"""The store: whole or not at all, first commit wins, damage is noticed, no path escapes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from assay.orchestrator.keys import SCHEMA, canonical, content_key
from assay.orchestrator.store import Store, out_of_room, write_json

KEY = content_key({"a": 1})


def test_keys_ignore_order_and_notice_values() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    different = [{"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"a": [1]}, {"b": 1}]
    assert len({content_key(value) for value in different}) == len(different)
    with pytest.raises(ValueError, match=r"Out of range|not JSON compliant"):
        canonical({"a": float("nan")})


def test_a_commit_comes_back_bit_for_bit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = {"w": torch.randn(3, 4), "n": torch.tensor(3), "shared": torch.arange(6.0)[::2]}
    store.commit(KEY, {"result": {"main": 0.1}}, model, {"secret": {"bits": torch.tensor([1, 0]), "name": "x"}})
    assert store.committed(KEY)
    assert store.record(KEY)["result"] == {"main": 0.1}
    assert all(torch.equal(value, store.model(KEY)[name]) for name, value in model.items())
    assert store.tree(KEY, "secret")["name"] == "x"
    assert store.has_tree(KEY, "secret")
    assert not store.has_tree(KEY, "rival")
    assert store.committed_keys() == {KEY}


def test_the_first_commit_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.commit(KEY, {"result": 1})
    assert not store.commit(KEY, {"result": 2})
    assert store.record(KEY)["result"] == 1
    assert not list((tmp_path / "tmp").iterdir()), "nothing is left aside"


def test_a_failed_commit_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=r"Out of range|not JSON compliant"):
        store.commit(KEY, {"result": float("nan")})
    assert not store.committed(KEY)
    assert store.committed_keys() == set()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_damaged_record_counts_as_not_computed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit(KEY, {"result": 1})
    (store.folder(KEY) / "record.json").write_text("{", "utf-8")
    with pytest.raises(KeyError):
        store.record(KEY)
    assert not store.committed(KEY)
    assert store.commit(KEY, {"result": 2})


@pytest.mark.parametrize("key", ["../../etc/passwd", "a" * 63, "A" * 64, "", "a" * 64 + "/.."])
def test_no_path_escapes_the_store(key: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for act in (store.folder, store.scratch, lambda k: store.begin(k, "me"), lambda k: store.fail(k, "e", "r", "t")):
        with pytest.raises(ValueError, match="not a stage key"):
            act(key)


def test_failures_are_no_results_and_are_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(KEY, "me")
    assert [marker["key"] for marker in store.running()] == [KEY]
    store.fail(KEY, "error", "why", "trace")
    assert not store.committed(KEY)
    assert not list(store.running())
    failure = store.failure(KEY)
    assert failure is not None
    assert failure["reason"] == "why"
    store.commit(KEY, {"result": 1})
    assert store.failure(KEY) is None
    store.fail(KEY, "error", "why", "trace")
    store.clear_failures()
    assert store.failure(KEY) is None


def test_scratch_survives_until_the_commit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.scratch(KEY) / "train.safetensors").write_bytes(b"x")
    assert (Store(tmp_path).scratch(KEY) / "train.safetensors").exists()
    store.commit(KEY, {"result": 1})
    assert not (tmp_path / "scratch" / KEY).exists()
    shutil.rmtree(tmp_path / "scratch")  # somebody made room
    assert store.scratch(KEY).is_dir()


WRITER = """
import sys, torch
from pathlib import Path
from assay.orchestrator.keys import content_key
from assay.orchestrator.store import Store
root, who = Path(sys.argv[1]), int(sys.argv[2])
for number in range(40):
    Store(root).commit(content_key(number), {"result": who}, {"w": torch.full((64,), float(who))})
"""


@pytest.mark.slow
def test_writers_at_the_same_time_never_mix(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), who]) for who in "12"]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    store = Store(tmp_path)
    for number in range(40):
        key = content_key(number)
        assert torch.equal(store.model(key)["w"], torch.full((64,), float(store.record(key)["result"])))


# --- what a surrogate that is needed later, a reader, a full disk ask of it --------------------------------------

OTHER = content_key({"a": 2})


def test_a_model_that_only_now_is_needed_is_added_to_the_first_commit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.commit(KEY, {"result": 1}) is True
    assert not store.has_model(KEY)
    assert store.commit(KEY, {"result": 2}, {"w": torch.ones(2)}) is False
    assert store.has_model(KEY)
    assert store.commit(KEY, {"result": 3}, {"w": torch.zeros(2)}) is False
    assert store.commit(KEY, {"result": 4}) is False
    assert store.record(KEY)["result"] == 1
    assert store.model(KEY)["w"].tolist() == [1.0, 1.0]
    assert sorted(path.name for path in store.folder(KEY).iterdir()) == ["model.safetensors", "record.json"]
    assert not list((tmp_path / "tmp").iterdir())


def test_a_record_names_its_key_and_schema(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit(KEY, {"result": 1}, trees={"rival": {"n": 3}})
    assert store.record(KEY) == {"schema": SCHEMA, "key": KEY, "result": 1}
    assert store.has_tree(KEY, "rival")
    assert not store.has_model(KEY)
    with pytest.raises(KeyError, match=OTHER):
        store.record(OTHER)


def test_a_commit_is_on_the_disk_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, synced = Store(tmp_path), []

    def sync(path: Path) -> None:
        synced.append((path.name.split("-")[0], store.committed(KEY)))

    monkeypatch.setattr("assay.orchestrator.store._sync", sync)
    store.commit(KEY, {"result": 1}, trees={"secret": {"n": 1}})
    files = [("record.json", False), ("secret.safetensors", False)]
    assert sorted(synced[:2]) == files
    assert synced[2:] == [(KEY, False), (KEY[:2], True)], "then the folder itself; after the rename, the one above it"
    synced.clear()
    store.commit(KEY, {"result": 1}, {"w": torch.ones(2)})
    assert (KEY, True) in synced[3:], "a model that was added"


def test_what_is_synced_is_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((handle, os.fstat(handle).st_ino)))
    store = Store(tmp_path)
    store.commit(KEY, {"result": 1})
    folder = store.folder(KEY)
    wanted = [path.stat().st_ino for path in (folder / "record.json", folder, folder.parent)]
    assert [inode for _, inode in synced] == wanted
    for handle, _ in synced:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


def test_a_commit_that_cannot_be_renamed_fails_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.scratch(KEY)
    store.begin(KEY, "me")

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        store.commit(KEY, {"result": 1})
    assert not store.committed(KEY)
    assert not list((tmp_path / "tmp").iterdir())
    assert (tmp_path / "scratch" / KEY).is_dir()
    assert [marker["worker"] for marker in store.running()] == ["me"]


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    reader = Store(tmp_path / "store", reading=True)
    assert reader.committed_keys() == set()
    assert not (tmp_path / "store").exists()
    assert not reader.committed(KEY)
    assert list(reader.failures()) == list(reader.running()) == []
    writer = Store(tmp_path / "store")
    writer.commit(KEY, {"result": 1})
    record = writer.folder(KEY) / "record.json"
    record.write_text("{", "utf-8")
    with pytest.raises(KeyError):
        reader.record(KEY)
    assert record.read_text("utf-8") == "{"
    with pytest.raises(KeyError):
        writer.record(KEY)
    assert not record.exists()
    assert [path.name[: 8 + 64] for path in (tmp_path / "store" / "tmp").iterdir()] == [f"damaged-{KEY}"]
    assert writer.committed_keys() == set()
    assert Store(tmp_path / "store").root == tmp_path / "store"


def test_only_stages_are_found_in_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in (KEY, OTHER):
        store.commit(key, {"result": 1})
    (tmp_path / "ab").write_text("a file")
    (tmp_path / KEY[:2] / "notes").mkdir()
    (tmp_path / "long" / ("a" * 64)).mkdir(parents=True)
    assert store.committed_keys() == {KEY, OTHER}


def test_markers_of_stages_at_work_are_forgotten_one_by_one_or_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in (KEY, OTHER):
        store.begin(key, f"of {key[:4]}")
    assert sorted(marker["worker"] for marker in store.running()) == sorted(f"of {key[:4]}" for key in (KEY, OTHER))
    store.clear_running(KEY)
    assert [marker["key"] for marker in store.running()] == [OTHER]
    (tmp_path / "running" / f"{KEY}.json").write_text("{", "utf-8")  # its worker was killed while it wrote
    assert [marker["key"] for marker in store.running()] == [OTHER]
    store.clear_running()
    assert list(store.running()) == []
    assert not list((tmp_path / "running").iterdir())
    store.clear_running(KEY)


def test_failures_are_told_in_the_order_of_their_keys(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in sorted((KEY, OTHER), reverse=True):
        (store.scratch(key) / "train.safetensors").write_bytes(b"x")
        store.fail(key, "error", f"why {key[:4]}", "trace")
    failed = [
        {"key": key, "kind": "error", "reason": f"why {key[:4]}", "trace": "trace"} for key in sorted((KEY, OTHER))
    ]
    (tmp_path / "failures" / "notes.json").write_text('{"key": "of somebody else"}', "utf-8")
    assert list(store.failures()) == failed
    assert not list((tmp_path / "scratch").iterdir()), "a stage that failed begins anew"
    (tmp_path / "failures" / f"{KEY}.json").write_text("{", "utf-8")
    assert store.failure(KEY) is None
    assert [failure["key"] for failure in store.failures()] == [OTHER]
    store.clear_failures()
    assert list(store.failures()) == []


def test_small_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text("utf-8")) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["small.json"]


def test_a_full_disk_is_known_by_its_number_or_by_its_text_however_deep_it_lies() -> None:
    full, quota = OSError(errno.ENOSPC, "x"), OSError(errno.EDQUOT, "x")
    for error in (full, quota, RuntimeError("I/O error: No space left on device (os error 28)")):
        assert out_of_room(error) is True
        for link in ("__cause__", "__context__"):
            outer = ValueError("outer")
            setattr(outer, link, error)
            assert out_of_room(outer) is True
    assert out_of_room(OSError(errno.EACCES, "x")) is False
    assert out_of_room(ValueError("disk")) is False
    assert out_of_room(None) is False
