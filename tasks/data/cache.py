"""Decoded arrays in a shared, memory-mapped cache: decoded once per machine, whatever the number of trials.

A cache entry is a folder of .npy files and a meta.json, written aside and put in place by one rename, so a reader sees
a whole entry or none and parallel writers cannot collide.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from assay.tasks.errors import AssayError

Arrays = dict[str, npt.NDArray[Any]]
ORDER = ("train_inputs", "train_labels", "test_inputs", "test_labels")
GROUPS = "train_groups"  # of data sets whose samples belong together in groups
_LAYOUT = 2  # raise it when decoding or the entry's files change


def cache_root() -> Path:
    """Return the cache folder: $ASSAY_CACHE, else `assay` in the XDG cache folder."""
    if own := os.environ.get("ASSAY_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "assay"


def digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 over the arrays' bytes, in a fixed order."""
    total = hashlib.sha256()
    for name in (*ORDER, GROUPS) if GROUPS in arrays else ORDER:
        total.update(np.ascontiguousarray(arrays[name]).data)
    return total.hexdigest()


class Entry:
    """One data set in the cache, named by its source files (path, size, time of change) and its decoder's code.

    Args:
        dataset: its key.
        sources: the files that are decoded.
        code: the source of the decoder, if it is none of ours.
    """

    def __init__(self, dataset: str, sources: Iterable[Path], code: str = "") -> None:
        facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
        name = hashlib.sha256(json.dumps([_LAYOUT, dataset, facts, code]).encode()).hexdigest()
        self.folder = cache_root() / "data" / f"{dataset}-{name[:16]}"

    def fingerprint(self, decode: Callable[[], Arrays]) -> str:
        """Return the digest of the arrays: from meta.json while the files' sizes and times agree with it."""
        meta = self._meta()
        if meta is None or meta["files"] != _stamps(self.folder):
            self.open(decode)
            meta = self._meta()
        if meta is None:
            raise AssayError(f"{self.folder}: the cache entry vanished while it was read; run again")
        return str(meta["sha256"])

    def open(self, decode: Callable[[], Arrays]) -> Arrays:
        """Return the arrays, memory-mapped copy-on-write; decode them if they are absent or damaged."""
        arrays = self._intact()
        if arrays is None:
            self._write(decode())
            arrays = self._intact()
        if arrays is None:
            raise AssayError(f"{self.folder}: the cache does not keep what is written to it; set ASSAY_CACHE elsewhere")
        return arrays

    def _meta(self) -> dict[str, Any] | None:
        try:
            meta = json.loads((self.folder / "meta.json").read_text("utf-8"))
            return meta if {"sha256", "files"} <= meta.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def _intact(self) -> Arrays | None:
        """Return the arrays if every byte of them is what was written."""
        meta = self._meta()
        try:
            # Copy-on-write, because torch refuses read-only memory; nothing reaches the file.
            arrays = {name: np.load(self.folder / f"{name}.npy", mmap_mode="c") for name in _names(self.folder)}
        except (OSError, ValueError, EOFError):
            return None
        if meta is None or digest(arrays) != meta["sha256"]:
            return None
        if meta["files"] != _stamps(self.folder):  # copied or touched, content the same
            _write_meta(self.folder, meta["sha256"])
        return arrays

    def _write(self, arrays: Arrays) -> None:
        parent = self.folder.parent
        parent.mkdir(parents=True, exist_ok=True)
        aside = parent / f".{self.folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        damaged = aside.with_name(f"{aside.name}.damaged")
        try:
            aside.mkdir()
            for name, array in arrays.items():
                np.save(aside / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
            _write_meta(aside, digest(arrays))
            with contextlib.suppress(FileNotFoundError):
                self.folder.rename(damaged)
            # Another process may have put its own copy there meanwhile; it is as good.
            with contextlib.suppress(OSError):
                aside.rename(self.folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(damaged, ignore_errors=True)


def _names(folder: Path) -> tuple[str, ...]:
    return (*ORDER, GROUPS) if (folder / f"{GROUPS}.npy").exists() else ORDER


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return size and time of change of each array's file; empty where one is missing."""
    try:
        stats = {name: (folder / f"{name}.npy").stat() for name in _names(folder)}
    except OSError:
        return {}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _write_meta(folder: Path, sha256: str) -> None:
    aside = folder / f".meta.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    aside.write_text(json.dumps({"sha256": sha256, "files": _stamps(folder)}, indent=1), "utf-8")
    os.replace(aside, folder / "meta.json")
