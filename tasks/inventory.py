"""Which data sets are here, and whether they are what they should be: for `assay data list` and `assay data verify`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.errors import BadInput, MissingData, unknown
from tasks.sources import DATASETS, SOURCES, data_root, decode
from tasks.task import named_tasks

CHECKSUMS = "SHA256SUMS"


def data_status(root: Path | None) -> list[dict[str, Any]]:
    """Return one object per data set, cheaply: no file is decoded.

    Fields: key; present; where (folder of its files, or the package that brings it); train, test (samples of the
    complete set); bytes (of its files); licence; tasks (keys that use it); problem (why it is absent, with the command
    that fetches it, or "").
    """
    return [_status(key, root) for key in sorted(DATASETS)]


def _status(key: str, root: Path | None) -> dict[str, Any]:
    info, source = DATASETS[key], SOURCES[key]
    train, test = info.counts or (None, None)
    files: tuple[Path, ...] = ()
    problem = ""
    try:
        files = source.finder(data_root(root)) if source.finder else ()
    except MissingData as why:
        problem = str(why)
    return {
        "key": key,
        "present": not problem,
        "where": "" if problem else str(files[0].parent) if files else "comes with the installation",
        "train": train,
        "test": test,
        "bytes": sum(path.stat().st_size for path in files),
        "licence": info.licence,
        "tasks": [task for task in named_tasks() if task.startswith(f"{key}-")],
        "problem": problem,
    }


def verify_data(root: Path | None, names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Check data sets thoroughly: checksums where the root lists them, decodability, shapes, labels and counts.

    Args:
        root: the data root; None: $ASSAY_DATA.
        names: data sets by key; none: all that are present.

    Returns:
        One object per data set: key, ok, train, test (samples decoded), checksums (files compared), problems (texts).

    Raises:
        BadInput: an unknown name, or a `SHA256SUMS` that cannot be read as one.
    """
    wanted = list(names)
    for name in wanted:
        if name not in DATASETS:
            raise unknown("data set", name, DATASETS)
    wanted = wanted or [row["key"] for row in data_status(root) if row["present"]]
    sums = _checksums(data_root(root))
    return [_verify(name, root, sums) for name in wanted]


def _verify(key: str, root: Path | None, sums: dict[Path, str]) -> dict[str, Any]:
    problems: list[str] = []
    counts: tuple[int | None, int | None] = (None, None)
    compared = 0
    source, info = SOURCES[key], DATASETS[key]
    try:
        for path in source.finder(data_root(root)) if source.finder else ():
            if (expected := sums.get(path.resolve())) is None:
                continue
            compared += 1
            if (found := _sha256(path)) != expected:
                problems.append(f"{path}: SHA-256 is {found[:12]}…, {CHECKSUMS} says {expected[:12]}…")
        arrays = decode(key, root)
        counts = (len(arrays["train_labels"]), len(arrays["test_labels"]))
        if info.counts and counts != info.counts:
            problems.append(f"{key}: {counts[0]} training and {counts[1]} test samples, expected {info.counts}")
    except BadInput as why:
        problems.append(str(why))
    train, test = counts
    return {
        "key": key, "ok": not problems, "train": train, "test": test, "checksums": compared, "problems": problems,
    }  # fmt: skip


def _checksums(root: Path | None) -> dict[Path, str]:
    """Return the root's checksums by resolved path; none where it has no list."""
    if root is None or not (root / CHECKSUMS).is_file():
        return {}
    sums = {}
    for number, line in enumerate((root / CHECKSUMS).read_text("utf-8").splitlines(), 1):
        value, _, name = line.strip().partition(" ")
        name = name.lstrip(" *")
        if not line.strip():
            continue
        if len(value) != 64 or not name:
            raise BadInput(
                f"{root / CHECKSUMS}, line {number}: expected `<sha256>  <file>`, found {line.strip()[:60]!r}"
            )
        sums[(root / name).resolve()] = value.lower()
    return sums


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
