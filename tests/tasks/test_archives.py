"""Layouts as the authors publish them, and folders of classes: small copies of each, read back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from assay.tasks.data import sources
from assay.tasks.data.archives import layouts
from assay.tasks.data.sources import DATASETS, fingerprint, load
from assay.tasks.errors import BadInput, MissingData

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ASSAY_DATA", raising=False)
    sources._whole.cache_clear()


def paint(file: Path, colour: int, size: tuple[int, int] = (36, 30)) -> None:
    """Write an image of one colour; the file's ending says the format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour % 256, colour // 256, 7)).save(file)


def colours(inputs: torch.Tensor) -> list[int]:
    """Return what `paint` was given, of images of any size."""
    middle = inputs[:, :, inputs.shape[2] // 2, inputs.shape[3] // 2].int()
    assert middle[:, 2].eq(7).all()
    return (middle[:, 0] + 256 * middle[:, 1]).tolist()


def read(key: str, root: Path) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return colours and labels of both parts, checked for shape and type."""
    train, test = load(key, root, None, None)
    for part in (train, test):
        assert part.inputs.shape[1:] == DATASETS[key].shape
        assert (part.inputs.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
    return colours(train.inputs), train.labels.tolist(), colours(test.inputs), test.labels.tolist()


@pytest.mark.parametrize("key", ["lisa", "gtsrb", "caltech101"])
@pytest.mark.parametrize("held", ["test", "val"])
def test_a_tree_of_classes(key: str, held: str, tmp_path: Path) -> None:
    classes = DATASETS[key].classes
    for label in range(classes):
        paint(tmp_path / f"{key}/train/{label}/a.png", label)
        paint(tmp_path / f"{key}/train/{label}/b.PNG", label + 256)
        (tmp_path / f"{key}/train/{label}/notes.csv").write_text("no picture")
    paint(tmp_path / f"{key}/{held}/10/c.png", 300)
    train_x, train_y, test_x, test_y = read(key, tmp_path)
    # Folders named by numbers are in the order of the numbers: 2 before 10.
    assert train_y == [label for label in range(classes) for _ in range(2)]
    assert train_x == [colour for label in range(classes) for colour in (label, label + 256)]
    assert (test_x, test_y) == ([300], [10])


def test_a_tree_must_have_the_sets_classes(tmp_path: Path) -> None:
    for label in range(16):
        paint(tmp_path / f"lisa/train/{label}/a.png", label)
    paint(tmp_path / "lisa/test/0/a.png", 0)
    with pytest.raises(BadInput, match=r"lisa/train: 16 folders of classes, expected 17"):
        load("lisa", tmp_path, None, None)
    paint(tmp_path / "lisa/train/16/a.png", 16)
    paint(tmp_path / "lisa/test/17/a.png", 0)
    with pytest.raises(BadInput, match=r"lisa/test/17: a class that the training part lacks"):
        load("lisa", tmp_path, None, None)


def test_what_is_no_picture_is_one_line(tmp_path: Path) -> None:
    for label in range(17):
        paint(tmp_path / f"lisa/train/{label}/a.png", label)
    (tmp_path / "lisa/test/0").mkdir(parents=True)
    (tmp_path / "lisa/test/0/a.png").write_bytes(b"GIF?")
    with pytest.raises(BadInput, match=r"test/0/a.png: expected an image that fits \(3, 32, 32\)") as error:
        load("lisa", tmp_path, None, None)
    assert "\n" not in str(error.value)


def test_a_class_without_pictures_is_refused(tmp_path: Path) -> None:
    for label in range(17):
        paint(tmp_path / f"lisa/train/{label}/a.png", label)
    paint(tmp_path / "lisa/test/0/a.png", 0)
    (tmp_path / "lisa/train/5/a.png").rename(tmp_path / "lisa/train/5/a.txt")
    with pytest.raises(BadInput, match=r"lisa/train/5: a class without a picture \(.bmp, "):
        load("lisa", tmp_path, None, None)


def test_a_tree_of_a_set_of_one_size_is_not_resized(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in range(10):
            paint(tmp_path / f"cifar10/{part}/{label}/a.png", label, (40, 32))
    with pytest.raises(BadInput, match=r"train/0/a.png: expected an image that fits \(3, 32, 32\): found 40x32 pixels"):
        load("cifar10", tmp_path, None, None)


def test_other_sizes_are_resized_or_cut(tmp_path: Path) -> None:
    """A wide picture, red on the left third and the right: cut to a square none of it is left, stretched it stays."""
    for key in ("caltech101", "lisa"):
        for part in ("train", "test"):
            for label in range(DATASETS[key].classes):
                file = tmp_path / f"{key}/{part}/{label:03}/a.png"
                file.parent.mkdir(parents=True)
                image = np.zeros((32, 96, 3), np.uint8)
                image[:, :30, 0] = image[:, -30:, 0] = 255
                Image.fromarray(image).save(file)
    assert not load("caltech101", tmp_path, None, None)[0].inputs.any()
    stretched = load("lisa", tmp_path, None, None)[0].inputs[0, 0]
    assert stretched[:, 0].eq(255).all()
    assert stretched[:, 16].eq(0).all()


@pytest.mark.parametrize(("key", "step"), [("tiny_imagenet", 1), ("tiny_imagenet_32", 2)])
def test_tiny_imagenet(key: str, step: int, tmp_path: Path) -> None:
    base = tmp_path / "tiny-imagenet-200"
    names = [f"n{number:08}" for number in range(200)]
    for number, name in enumerate(names):
        paint(base / f"train/{name}/images/{name}_0.JPEG".replace(".JPEG", ".png"), number, (64, 64))
    for row in range(4):
        paint(base / f"val/images/val_{row}.png", 10 + row, (64, 64))
    notes = base / "val/val_annotations.txt"
    notes.write_text("".join(f"val_{row}.png\t{names[10 + row]}\t0\t0\t9\t9\n" for row in range(4)))
    train_x, train_y, test_x, test_y = read(key, tmp_path)
    assert train_x == list(range(0, 200, step))
    assert train_y == list(range(200 // step))
    assert test_x == list(range(10, 14, step))
    assert test_y == [colour // step for colour in test_x]
    sources._whole.cache_clear()
    for name in ("../images/val_0.png", "..", "/etc/passwd"):
        notes.write_text(f"{name}\t{names[10]}\t0\t0\t9\t9\n")
        with pytest.raises(BadInput, match="which is not in this folder"):
            load(key, tmp_path, None, None)
    notes.write_text(f"val_0.png\t{names[10]}\n\nval_1.png\tn99\n")
    with pytest.raises(
        BadInput, match=r"val_annotations.txt, line 3: found class 'n99', which the training part lacks"
    ):
        load(key, tmp_path, None, None)
    notes.write_text("nonsense\n")
    with pytest.raises(BadInput, match=r"val_annotations.txt, line 1: expected columns, found 'nonsense'"):
        load(key, tmp_path, None, None)


@pytest.mark.parametrize("training", ["Final_Training/Images", "Training"])
def test_gtsrb_keeps_tracks_together(training: str, tmp_path: Path) -> None:
    base = tmp_path / "gtsrb"
    for label in range(43):
        for track in range(2):
            for frame in range(3):
                paint(base / f"GTSRB/{training}/{label:05}/{track:05}_{frame:05}.ppm", label)
    for row in range(3):
        paint(base / f"GTSRB/Final_Test/Images/{row:05}.ppm", row)
    (base / "GT-final_test.csv").write_text(
        "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
        + "".join(f"{row:05}.ppm;36;30;5;5;30;25;{40 + row}\n" for row in range(3))
    )
    train_x, train_y, test_x, test_y = read("gtsrb", tmp_path)
    assert train_x == train_y == [label for label in range(43) for _ in range(6)]
    assert (test_x, test_y) == ([0, 1, 2], [40, 41, 42])
    groups = load("gtsrb", tmp_path, None, None)[0].groups
    assert groups is not None
    assert torch.unique_consecutive(groups, return_counts=True)[1].tolist() == [3] * 86  # tracks of two classes differ
    first = fingerprint("gtsrb", tmp_path)
    (entry,) = (tmp_path / "cache/data").iterdir()
    (entry / "train_groups.npy").unlink()  # a damaged cache
    sources._whole.cache_clear()
    again = load("gtsrb", tmp_path, None, None)[0].groups
    assert again is not None
    assert torch.equal(again, groups)
    assert fingerprint("gtsrb", tmp_path) == first
    notes = base / "GT-final_test.csv"
    for wrong in ("43", "-1", "stop", ""):
        text = notes.read_text()
        notes.write_text(text.replace(";41\n", f";{wrong}\n"))
        with pytest.raises(BadInput, match=rf"GT-final_test.csv, line 3: found class '{wrong}', expected 0..42"):
            load("gtsrb", tmp_path, None, None)
        notes.write_text(text)


@pytest.mark.parametrize(
    ("key", "folder"), [("caltech101", "101_ObjectCategories"), ("caltech256", "256_ObjectCategories")]
)
def test_caltech_holds_out_the_last_fifth_of_each_class(key: str, folder: str, tmp_path: Path) -> None:
    classes = DATASETS[key].classes
    for label in range(classes):
        for number in range(6 if label else 11):
            paint(tmp_path / f"{key}/{folder}/{label:03}.name/image_{number:04}.png", 0)
    _, train_y, _, test_y = read(key, tmp_path)
    assert np.bincount(train_y).tolist() == [8] + [4] * (classes - 1)  # int(0.8 n), as the released code cuts
    assert np.bincount(test_y).tolist() == [3] + [2] * (classes - 1)


def test_imagenet100_takes_the_first_hundred_classes_of_more(tmp_path: Path) -> None:
    for number in range(103):
        paint(tmp_path / f"imagenet/train/n{number:08}/a.png", number)
        paint(tmp_path / f"imagenet/val/n{number:08}/b.png", number)
    train_x, train_y, test_x, test_y = read("imagenet100", tmp_path)
    assert train_x == train_y == test_x == test_y == list(range(100))


def test_cifar100_reads_the_fine_labels_of_every_layout(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    folder = tmp_path / "binary/cifar-100-binary"
    folder.mkdir(parents=True)
    (tmp_path / "hub/cifar100").mkdir(parents=True)
    for part, count in (("train", 120), ("test", 100)):
        images = draws.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        fine = np.arange(count) % 100
        records = np.concatenate([(fine // 5)[:, None], fine[:, None], images.reshape(count, -1)], 1)
        records.astype(np.uint8).tofile(folder / f"{part}.bin")
        encoded = [{"bytes": png(image.transpose(1, 2, 0)), "path": ""} for image in images]
        table = pa.table({"img": encoded, "coarse_label": fine // 5, "fine_label": fine})
        half = count // 2  # shards, as the hub has them
        for number, shard in enumerate((table.slice(0, half), table.slice(half))):
            pq.write_table(shard, tmp_path / f"hub/cifar100/{part}-{number:05}-of-00002.parquet")
        if part == "train":
            expected = torch.from_numpy(images), torch.from_numpy(fine)
    train, _ = load("cifar100", tmp_path / "binary", None, None)
    assert torch.equal(train.inputs, expected[0])
    assert torch.equal(train.labels, expected[1])
    assert fingerprint("cifar100", tmp_path / "hub") == fingerprint("cifar100", tmp_path / "binary")
    (tmp_path / "python/cifar-100-python").mkdir(parents=True)
    with pytest.raises(MissingData, match="pickled, and nothing is unpickled"):
        load("cifar100", tmp_path / "python", None, None)


def png(image: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def test_two_parts_of_gtsrb_share_no_class_and_keep_its_tracks(tmp_path: Path) -> None:
    for label in range(43):
        for part in ("train", "test"):
            paint(tmp_path / f"gtsrb/{part}/{label:05}/00000_00000.png", label, (32, 32))
    few, many = read("gtsrb17", tmp_path), read("gtsrb26", tmp_path)
    assert many[0] == many[1] == many[2] == many[3] == list(range(26))
    assert few[0] == few[2] == list(range(26, 43))  # the pictures
    assert few[1] == few[3] == list(range(17))  # their labels, numbered anew
    whole, rest = load("gtsrb", tmp_path, None, None)[0], load("gtsrb17", tmp_path, None, None)[0]
    assert whole.groups is not None
    assert rest.groups is not None
    assert rest.groups.tolist() == whole.groups[26:].tolist()


def test_cifar5_is_the_first_half_of_cifar10(tmp_path: Path) -> None:
    for label in range(10):
        for part in ("train", "test"):
            paint(tmp_path / f"cifar10/{part}/{label}/a.png", label, (32, 32))
    _, labels, _, _ = read("cifar10", tmp_path)
    assert labels == list(range(10))
    train_x, train_y, test_x, test_y = read("cifar5", tmp_path)
    assert train_x == train_y == test_x == test_y == [0, 1, 2, 3, 4]
    assert fingerprint("cifar5", tmp_path) != fingerprint("cifar10", tmp_path)
    # A smoke profile's subset of it is stratified like any other.
    assert sorted(load("cifar5", tmp_path, 4, None)[0].labels.tolist())[-1] <= 4
    with pytest.raises(MissingData, match=r"cifar10/train.parquet .* assay data fetch cifar5"):
        load("cifar5", tmp_path / "nowhere", None, None)


def missing(key: str) -> str:
    with pytest.raises(MissingData) as error:
        load(key, Path("/nowhere"), None, None)
    return str(error.value)


def test_every_set_says_how_to_get_it() -> None:
    for key, info in DATASETS.items():
        if key in ("digits", "phrases"):
            continue
        text = missing(key)
        assert (info.obtain or f"assay data fetch {key} ") in text
        assert "\n" not in text
        for layout in layouts(info):
            assert layout.wanted in text


@pytest.mark.parametrize("folder", ["lisa/train/0", "lisa/test/0", "lisa"])
def test_half_a_tree_is_missing(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(MissingData, match=r"lisa/\{train,test\}/<class>/"):
        load("lisa", tmp_path, None, None)
