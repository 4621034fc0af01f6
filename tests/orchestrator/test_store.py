"""The store: whole or not at all, first commit wins, damage is noticed, no path escapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from assay.orchestrator.keys import canonical, content_key
from assay.orchestrator.store import Store

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


WRITER = """
import sys, torch
from pathlib import Path
from assay.orchestrator.keys import content_key
from assay.orchestrator.store import Store
root, who = Path(sys.argv[1]), int(sys.argv[2])
for number in range(40):
    Store(root).commit(content_key(number), {"result": who}, {"w": torch.full((64,), float(who))})
"""


def test_writers_at_the_same_time_never_mix(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), who]) for who in "12"]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    store = Store(tmp_path)
    for number in range(40):
        key = content_key(number)
        assert torch.equal(store.model(key)["w"], torch.full((64,), float(store.record(key)["result"])))
