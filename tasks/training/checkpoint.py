"""Trees of tensors and plain values in one safetensors file: checkpoints and secrets, never pickles."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_TENSOR, _ITEMS, _BYTES = _RESERVED = ("__tensor__", "__items__", "__bytes__")


def _flatten(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        while name in tensors:  # the keys "a/b" and "a", "b" spell the same path
            name += "'"
        # A clone, because safetensors refuses tensors that share storage.
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(node, dict):
        if all(isinstance(key, str) and key not in _RESERVED for key in node):
            return {key: _flatten(value, f"{name}/{key}", tensors) for key, value in node.items()}
        return {_ITEMS: [[key, _flatten(value, f"{name}/{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return [_flatten(value, f"{name}/{i}", tensors) for i, value in enumerate(node)]
    if isinstance(node, bytes):
        return {_BYTES: node.hex()}
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"{name}: cannot store a {type(node).__name__}; use tensors, numbers, strings, bytes, dicts, lists")


def _restore(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_restore(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if _TENSOR in node:
        return tensors[node[_TENSOR]]
    if _BYTES in node:
        return bytes.fromhex(node[_BYTES])
    if _ITEMS in node:
        return {key: _restore(value, tensors) for key, value in node[_ITEMS]}
    return {key: _restore(value, tensors) for key, value in node.items()}


def save_tree(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree of dicts, lists, tensors, numbers, strings and bytes to `path`, by atomic rename.

    Tuples come back as lists; keys of dicts may be strings or integers.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(tree, "", tensors)
    # safetensors drops files without tensors on some readers; a dummy keeps the format uniform.
    tensors = tensors or {"empty": torch.zeros(0)}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        save_file(tensors, str(aside), metadata={"tree": json.dumps(skeleton)})
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load_tree(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_tree` wrote, tensors on `device`."""
    with safe_open(str(path), framework="pt", device=str(device)) as file:
        skeleton = json.loads(file.metadata()["tree"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    restored: dict[str, Any] = _restore(skeleton, tensors)
    return restored
