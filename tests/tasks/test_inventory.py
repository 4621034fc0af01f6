"""What is here and whether it is intact."""

import hashlib
import io
import os
import struct
from pathlib import Path

import pytest
from PIL import Image

from assay.tasks.data.inventory import data_status, verify_data
from assay.tasks.errors import BadInput

REAL = os.environ.get("ASSAY_DATA")


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ASSAY_DATA", raising=False)


def write_mnist(root: Path) -> Path:
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    lines = []
    for part, count in (("train", 12), ("t10k", 4)):
        images = struct.pack(">HBB3I", 0, 8, 3, count, 28, 28) + bytes(count * 784)
        labels = struct.pack(">HBB1I", 0, 8, 1, count) + bytes(range(count - 4)) + bytes(4)
        for name, data in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            (folder / name).write_bytes(data)
            lines.append(f"{hashlib.sha256(data).hexdigest()}  MNIST/raw/{name}\n")
    (root / "SHA256SUMS").write_text("".join(lines))
    return folder


def test_status_tells_present_from_absent(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    rows = {row["key"]: row for row in data_status(tmp_path)}
    assert rows["mnist"]["present"]
    assert rows["mnist"]["where"] == str(folder)
    assert rows["mnist"]["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert (rows["mnist"]["train"], rows["mnist"]["test"]) == (60_000, 10_000)
    assert "mnist-lenet5" in rows["mnist"]["tasks"]
    assert rows["digits"]["present"]
    assert not rows["cifar10"]["present"]
    assert "assay data fetch cifar10" in rows["cifar10"]["problem"]
    assert all(row["licence"] for row in rows.values())
    assert not (tmp_path / "cache").exists()  # nothing was decoded


def test_verify_compares_checksums_and_counts(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    (row,) = verify_data(tmp_path, ["mnist"])
    assert (row["train"], row["test"], row["checksums"]) == (12, 4, 4)
    # Few samples whose checksums are as listed are a subset on purpose.
    few = "mnist: 12 training and 4 test samples; the complete set has 60,000 and 10,000"
    assert (row["ok"], row["notes"], row["problems"]) == (True, [few], [])
    file = folder / "t10k-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    (row,) = verify_data(tmp_path, ["mnist"])
    assert any("t10k-labels-idx1-ubyte: SHA-256" in problem for problem in row["problems"])
    assert few in row["problems"]
    (tmp_path / "SHA256SUMS").unlink()
    (row,) = verify_data(tmp_path, ["mnist"])
    assert (row["ok"], row["notes"], row["problems"]) == (False, [], [few])
    file.write_bytes(b"junk")
    (row,) = verify_data(tmp_path, ["mnist"])
    assert not row["ok"]
    assert row["train"] is None


def test_verify_takes_what_is_present_by_default_and_reports_what_is_missing(tmp_path: Path) -> None:
    whole = {"ok": True, "checksums": 0, "notes": [], "problems": []}
    assert verify_data(tmp_path) == [
        {"key": "digits", "train": 1438, "test": 359, **whole},
        {"key": "phrases", "train": 1600, "test": 400, **whole},
    ]
    (row,) = verify_data(tmp_path, ["cifar10"])
    assert not row["ok"]
    assert "assay data fetch cifar10" in row["problems"][0]


def test_verify_refuses_unknown_names_and_unreadable_lists(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'cifar5'"):
        verify_data(tmp_path, ["cifar50"])
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  a\nnonsense\n")
    with pytest.raises(BadInput, match="SHA256SUMS, line 2"):
        verify_data(tmp_path, ["digits"])


def test_folders_of_pictures_are_sized_and_compared_file_by_file(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), (10, 200, 30)).save(picture, "png")
    lines = []
    for part in ("train", "test"):
        for label in range(17):
            file = tmp_path / f"lisa/{part}/sign{label:02}/0.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(picture.getvalue())
            lines.append(f"{hashlib.sha256(picture.getvalue()).hexdigest()}  {file.relative_to(tmp_path)}\n")
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    row = next(row for row in data_status(tmp_path) if row["key"] == "lisa")
    assert (row["present"], row["bytes"]) == (True, 34 * len(picture.getvalue()))
    (row,) = verify_data(tmp_path, ["lisa"])
    assert (row["ok"], row["checksums"], row["train"]) == (True, 34, 17)


@pytest.mark.skipif(REAL is None, reason="needs data sets under $ASSAY_DATA")
def test_real_data_are_intact() -> None:
    root = Path(str(REAL))
    here = [row["key"] for row in data_status(root) if row["present"] and row["key"] in ("gtsrb", "trec")]
    if not here:
        pytest.skip("neither GTSRB nor TREC under $ASSAY_DATA")
    for row in verify_data(root, here):
        assert row["ok"], row["problems"]
