"""Which data sets are here, and whether they are what they should be: for `assay data list` and `assay data verify`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from assay.tasks.data.sources import DATASETS, SOURCES, Source, data_root, decode
from assay.tasks.errors import BadInput, MissingData, unknown
from assay.tasks.task import named_tasks

CHECKSUMS = "SHA256SUMS"


def data_status(root: Path | None) -> list[dict[str, Any]]:
    """Return one object per data set, cheaply: no file is decoded.

    Fields: key; kind; present; where (folder of its files, or the package that brings it); train, test (samples of the
    complete set, if known); bytes (of its files); licence; tasks (keys that use it); problem (why it is absent, with
    the command that fetches it or how else to get it, or "").
    """
    return [_status(key, root) for key in sorted(DATASETS)]


def _status(key: str, root: Path | None) -> dict[str, Any]:
    info, source = DATASETS[key], SOURCES[key]
    train, test = info.counts or (None, None)
    files: tuple[Path, ...] = ()
    problem = ""
    try:
        files = tuple(_files(source, root))
    except MissingData as why:
        problem = str(why)
    return {
        "key": key,
        "kind": info.kind,
        "present": not problem,
        "where": "" if problem else str(files[0].parent) if files else "comes with the installation",
        "train": train,
        "test": test,
        "bytes": sum(path.stat().st_size for path in files),
        "licence": info.licence,
        "tasks": [task for task in named_tasks() if task.startswith(f"{key}-")],
        "problem": problem,
    }


def _files(source: Source, root: Path | None) -> Iterator[Path]:
    """Yield the files that a data set is read from; of folders all that is in them.

    Raises:
        MissingData: they are not there.
    """
    for path in source.finder(data_root(root)) if source.finder else ():
        if path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())
        else:
            yield path


def verify_data(root: Path | None, names: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Check data sets thoroughly: checksums where the root lists them, decodability, shapes, labels and counts.

    Args:
        root: the data root; None: $ASSAY_DATA.
        names: data sets by key; none: all that are present.

    Returns:
        One object per data set: key, ok, train, test (samples decoded), checksums (files compared), notes and problems
        (texts). Fewer or more samples than the complete set has are a problem, unless the root lists checksums of all
        its files and they agree: then it is a subset on purpose, and a note.

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
    source, info = SOURCES[key], DATASETS[key]
    counts: tuple[int | None, int | None] = (None, None)
    problems: list[str] = []
    notes: list[str] = []
    compared = 0
    try:
        files = list(_files(source, root))
        compared, problems = _compare(files, sums)
        arrays = decode(key, root)
        counts = (len(arrays["train_labels"]), len(arrays["test_labels"]))
        if info.counts and counts != info.counts:
            meant = compared == len(files) > 0 and not problems
            (notes if meant else problems).append(
                f"{key}: {counts[0]:,} training and {counts[1]:,} test samples; "
                f"the complete set has {info.counts[0]:,} and {info.counts[1]:,}"
            )
    except BadInput as why:
        problems.append(str(why))
    train, test = counts
    return {
        "key": key, "ok": not problems, "train": train, "test": test, "checksums": compared, "notes": notes,
        "problems": problems,
    }  # fmt: skip


def _compare(files: Iterable[Path], sums: dict[Path, str]) -> tuple[int, list[str]]:
    """Return how many of the files have a checksum, and what is wrong with them."""
    compared, problems = 0, []
    for path in files:
        if (expected := sums.get(path.resolve())) is None:
            continue
        compared += 1
        if (found := _sha256(path)) != expected:
            problems.append(f"{path}: SHA-256 is {found[:12]}…, {CHECKSUMS} says {expected[:12]}…")
    return compared, problems


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
