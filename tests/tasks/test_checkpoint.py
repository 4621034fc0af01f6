"""Trees survive the file: any nesting, every dtype in use, shared storage; nothing is ever pickled."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors import safe_open

from assay.tasks.training.checkpoint import load_tree, save_tree

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    values = torch.randint(0, 2 if dtype is torch.bool else 200, shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype)


TENSORS: SearchStrategy[torch.Tensor] = st.builds(
    tensor, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99)
)
LEAVES: SearchStrategy[Any] = st.one_of(
    TENSORS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
)
NAMES = st.text("ab/_{}. ", max_size=4)
NODES: SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(NAMES, inner, max_size=3),
        st.dictionaries(st.integers(), inner, max_size=3),
    ),
    max_leaves=8,
)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape
        return same and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, list) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, NODES, max_size=4))
def test_round_trip(tree: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "tree.safetensors"
        save_tree(path, tree)
        assert equal(tree, load_tree(path))
        assert [file.name for file in path.parent.iterdir()] == ["tree.safetensors"]


def test_shared_and_non_contiguous_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tree = {"base": base, "same": base, "turned": base.T, "row": base[1], "grad": base.clone().requires_grad_()}
    save_tree(tmp_path / "t", tree)
    back = load_tree(tmp_path / "t")
    assert all(torch.equal(tree[name].detach(), back[name]) for name in tree)
    assert not back["grad"].requires_grad


def test_a_save_does_not_change_or_alias_what_it_saved(tmp_path: Path) -> None:
    value = torch.ones(3)
    save_tree(tmp_path / "t", {"value": value})
    value.zero_()
    assert load_tree(tmp_path / "t")["value"].tolist() == [1, 1, 1]


def test_keys_that_look_like_the_format_itself(tmp_path: Path) -> None:
    for key in ("__tensor__", "__items__", "__bytes__"):
        tree = {"a": {key: "x", "other": torch.ones(1)}, key: 3}
        save_tree(tmp_path / "t", tree)
        assert equal(tree, load_tree(tmp_path / "t"))


def test_paths_that_spell_alike(tmp_path: Path) -> None:
    tree = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "a/b'": torch.full((1,), 2.0)}
    save_tree(tmp_path / "t", tree)
    assert equal(tree, load_tree(tmp_path / "t"))


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    save_tree(tmp_path / "t", {"values": [float("inf"), float("-inf"), float("nan")], "step": 0.1 + 0.2})
    back = load_tree(tmp_path / "t")
    assert back["values"][:2] == [float("inf"), float("-inf")]
    assert back["values"][2] != back["values"][2]
    assert back["step"] == 0.1 + 0.2


def test_objects_are_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "t"
    save_tree(path, {"a": 1})
    with pytest.raises(TypeError, match="/b/1: cannot store a set"):
        save_tree(path, {"b": [1, {2}]})
    assert load_tree(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["t"]


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    save_tree(tmp_path / "t", {"model": {"w": torch.ones(2)}, "epoch": 3})
    with safe_open(str(tmp_path / "t"), framework="pt") as file:
        assert list(file.keys()) == ["/model/w"]
        assert json.loads(file.metadata()["tree"])["epoch"] == 3
