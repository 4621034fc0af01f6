"""The content-addressed store of stages: the only truth. Tune's state, Parquet and MLflow are views of it.

store/<k[:2]>/<k>/record.json        what happened, plus model.safetensors and secret.safetensors
store/failures/<k>.json              the last failure of a stage that is not committed; never a result
store/scratch/<k>/                   rolling checkpoints of a stage at work; removed on commit
store/running/<k>.json               who works on the stage; a marker only, never a lock
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from assay.orchestrator.keys import SCHEMA
from assay.tasks.training.checkpoint import load_tree, save_tree

_KEY = re.compile(r"[0-9a-f]{64}")


class Store:
    """Committed stages under one folder. Commits are atomic renames: a stage is there whole or not at all.

    Any number of processes and nodes may work in one store; computing a stage twice is harmless, the first commit wins.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("failures", "scratch", "running", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def folder(self, key: str) -> Path:
        """Return the folder of a committed stage; `key` must be 64 hexadecimal digits (no path escapes the store)."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"not a stage key: {key!r}")
        return self.root / key[:2] / key

    def committed(self, key: str) -> bool:
        """Return whether the stage is there whole."""
        return (self.folder(key) / "record.json").exists()

    def committed_keys(self) -> set[str]:
        """Return the keys of all committed stages (one directory scan, for planning)."""
        found: set[str] = set()
        for shard in os.scandir(self.root):
            if len(shard.name) == 2 and shard.is_dir():
                found.update(entry.name for entry in os.scandir(shard.path) if _KEY.fullmatch(entry.name))
        return found

    def record(self, key: str) -> dict[str, Any]:
        """Return a committed stage's record.

        Raises:
            KeyError: the stage is not committed. A record that does not parse (a damaged disk) is set aside first, so
                that the stage counts as not computed.
        """
        path = self.folder(key) / "record.json"
        try:
            record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise KeyError(key) from None
        except ValueError:
            self.folder(key).rename(self.root / "tmp" / f"damaged-{key}-{uuid.uuid4().hex[:8]}")
            raise KeyError(key) from None
        return record

    def commit(
        self,
        key: str,
        record: Mapping[str, Any],
        model: Mapping[str, torch.Tensor] | None = None,
        trees: Mapping[str, dict[str, Any]] | None = None,
    ) -> bool:
        """Write a stage aside, sync it, rename it into place; return False if it was committed already.

        Args:
            key: the stage's content key.
            record: JSON values.
            model: a state dict under plain names, stored as model.safetensors.
            trees: further trees by name (`secret`, `rival`), stored as `<name>.safetensors`.
        """
        final = self.folder(key)
        aside = self.root / "tmp" / f"{key}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        aside.mkdir()
        try:
            if model is not None:
                # A copy of each tensor: safetensors refuses shared storage.
                plain = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.items()}
                save_file(plain, str(aside / "model.safetensors"))
            for name, tree in (trees or {}).items():
                save_tree(aside / f"{name}.safetensors", tree)
            text = json.dumps({"schema": SCHEMA, "key": key, **record}, allow_nan=False)
            (aside / "record.json").write_text(text, "utf-8")
            for file in aside.iterdir():
                _sync(file)
            _sync(aside)
            final.parent.mkdir(exist_ok=True)
            try:
                aside.rename(final)
            except OSError:
                if not self.committed(key):
                    raise
                if model is not None and not self.has_model(key):  # a surrogate that only now is needed
                    os.replace(aside / "model.safetensors", final / "model.safetensors")
                    _sync(final)
                return False
            _sync(final.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            self._forget(key)
        return True

    def model(self, key: str, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Return the committed state dict, on `device`."""
        return load_file(str(self.folder(key) / "model.safetensors"), device=str(device))

    def tree(self, key: str, name: str) -> dict[str, Any]:
        """Return a committed tree (`secret`, `rival`), tensors on the CPU, where secrets lie."""
        return load_tree(self.folder(key) / f"{name}.safetensors")

    def has_model(self, key: str) -> bool:
        """Return whether a committed stage holds a state dict."""
        return (self.folder(key) / "model.safetensors").exists()

    def has_tree(self, key: str, name: str) -> bool:
        """Return whether a committed stage holds the named tree."""
        return (self.folder(key) / f"{name}.safetensors").exists()

    # --- stages that are not committed -----------------------------------------------------------------------------

    def scratch(self, key: str) -> Path:
        """Return (and make) the stage's scratch folder; it survives a kill."""
        self.folder(key)
        path = self.root / "scratch" / key
        path.mkdir(parents=True, exist_ok=True)
        return path

    def begin(self, key: str, worker: str) -> None:
        """Note who works on a stage, so that a killed worker's stage can be named."""
        self.folder(key)
        write_json(self.root / "running" / f"{key}.json", {"key": key, "worker": worker})

    def running(self) -> Iterator[dict[str, Any]]:
        """Yield the markers of stages at work (or at work when their worker was killed)."""
        for path in (self.root / "running").glob("*.json"):
            try:
                yield json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                continue

    def clear_running(self, key: str | None = None) -> None:
        """Forget the marker of one stage, or all: those of a driver that is gone."""
        for path in (self.root / "running").glob(f"{key or '*'}.json"):
            path.unlink(missing_ok=True)

    def fail(self, key: str, kind: str, reason: str, trace: str) -> None:
        """Note why a stage failed. It is not a result: the next run tries the stage again."""
        self.folder(key)
        write_json(self.root / "failures" / f"{key}.json", {"key": key, "kind": kind, "reason": reason, "trace": trace})
        self._forget(key, keep_failure=True)

    def failure(self, key: str) -> dict[str, Any] | None:
        """Return the last failure of a stage, None if there is none."""
        try:
            failure: dict[str, Any] = json.loads((self.root / "failures" / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return failure

    def clear_failures(self) -> None:
        """Forget all failures; a new run tries the stages again."""
        for path in (self.root / "failures").glob("*.json"):
            path.unlink(missing_ok=True)

    def _forget(self, key: str, *, keep_failure: bool = False) -> None:
        (self.root / "running" / f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(self.root / "scratch" / key, ignore_errors=True)
        if not keep_failure:
            (self.root / "failures" / f"{key}.json").unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file by atomic rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    aside.write_text(json.dumps(value), "utf-8")
    os.replace(aside, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
