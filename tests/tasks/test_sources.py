"""Data sources: every layout of the same pixels is the same data set; the cache is shared, checked and rebuilt."""

from __future__ import annotations

import functools
import gzip
import io
import multiprocessing
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from assay.tasks.data import cache, sources
from assay.tasks.data.inventory import data_status
from assay.tasks.data.sources import DATASETS, SOURCES, DatasetInfo, decode, fingerprint, load, register_dataset
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import BadInput, MissingData

REAL = os.environ.get("ASSAY_DATA")
COUNTS = {"train": 40, "test": 20}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ASSAY_DATA", raising=False)
    sources._whole.cache_clear()
    return tmp_path / "cache"


def pixels(shape: tuple[int, ...], part: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    rng = np.random.default_rng(len(part))
    return rng.integers(0, 256, (COUNTS[part], *shape), dtype=np.uint8), np.arange(COUNTS[part]) % 10


def write_idx(path: Path, values: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(root: Path, ending: str = "") -> None:
    for part, name in (("train", "train"), ("test", "t10k")):
        images, labels = pixels((28, 28), part)
        write_idx(root / f"MNIST/raw/{name}-images-idx3-ubyte{ending}", images)
        write_idx(root / f"MNIST/raw/{name}-labels-idx1-ubyte{ending}", labels.astype(np.uint8))


def write_parquet(
    path: Path,
    images: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    labels: npt.NDArray[np.int64],
    column: str = "img",
) -> None:
    encoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        encoded.append({"bytes": file.getvalue(), "path": "x.png"})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: encoded, "label": labels}), path)


def write_cifar(root: Path, column: str = "img") -> None:
    for part in COUNTS:
        images, labels = pixels((3, 32, 32), part)
        write_parquet(root / f"cifar10/{part}.parquet", images.transpose(0, 2, 3, 1), labels, column)


def write_cifar_binary(root: Path) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for part in COUNTS:
        images, labels = pixels((3, 32, 32), part)
        records = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], axis=1)
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] if part == "train" else ["test_batch.bin"]
        for name, share in zip(names, np.array_split(records, len(names)), strict=True):
            share.tofile(folder / name)


def test_mnist_layouts_are_one_data_set(tmp_path: Path) -> None:
    write_mnist(tmp_path / "plain")
    write_mnist(tmp_path / "zipped", ".gz")
    for part in COUNTS:
        images, labels = pixels((28, 28), part)
        write_parquet(tmp_path / f"parquet/mnist/{part}.parquet", images, labels, "image")
    roots = [tmp_path / name for name in ("plain", "zipped", "parquet")]
    assert len({fingerprint("mnist", root) for root in roots}) == 1
    for root in roots:
        train, test = load("mnist", root, None, None)
        images, labels = pixels((28, 28), "train")
        assert np.array_equal(train.inputs[:, 0].numpy(), images)
        assert np.array_equal(train.labels.numpy(), labels)
        assert (train.inputs.dtype, train.labels.dtype, len(test)) == (torch.uint8, torch.int64, 20)


def test_cifar_layouts_are_one_data_set(tmp_path: Path) -> None:
    write_cifar(tmp_path / "img")
    write_cifar(tmp_path / "image", "image")
    write_cifar_binary(tmp_path / "binary")
    roots = [tmp_path / name for name in ("img", "image", "binary")]
    assert len({fingerprint("cifar10", root) for root in roots}) == 1
    train, _ = load("cifar10", roots[2], None, None)
    assert np.array_equal(train.inputs.numpy(), pixels((3, 32, 32), "train")[0])


def test_pickled_cifar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(MissingData, match=r"pickled, and nothing is unpickled; .* assay data fetch cifar10") as error:
        load("cifar10", tmp_path, None, None)
    assert "\n" not in str(error.value)


def test_missing_data_says_what_where_and_how_to_get_it(tmp_path: Path) -> None:
    for call in (lambda: load("mnist", tmp_path, None, None), lambda: fingerprint("mnist", tmp_path)):
        with pytest.raises(MissingData) as error:
            call()
        text = str(error.value)
        assert "\n" not in text
        for words in ("mnist", str(tmp_path), "MNIST/raw", f"assay data fetch mnist --data-root {tmp_path}"):
            assert words in text
    with pytest.raises(MissingData, match=r"no data root .* assay data fetch cifar10 --data-root DIR"):
        load("cifar10", None, None, None)


def test_the_environment_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "data")
    monkeypatch.setenv("ASSAY_DATA", str(tmp_path / "data"))
    assert len(load("mnist", None, None, None)[0]) == 40
    with pytest.raises(MissingData):
        load("mnist", tmp_path / "elsewhere", None, None)


def entry(folder: Path) -> Path:
    (found,) = (folder / "data").iterdir()
    return found


def forbidden(*_: object) -> cache.Arrays:
    raise AssertionError("decoded again")


def test_data_are_decoded_once(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    first = fingerprint("mnist", tmp_path)
    monkeypatch.setattr(sources, "decode", forbidden)
    assert fingerprint("mnist", tmp_path) == first
    train, _ = load("mnist", tmp_path, None, None)
    train.inputs.zero_()  # mapped copy-on-write: a caller's mistake stays its own
    sources._whole.cache_clear()
    assert load("mnist", tmp_path, None, None)[0].inputs.any()
    assert sorted(file.name for file in entry(own_cache).iterdir()) == sorted(
        [*(f"{n}.npy" for n in cache.ORDER), "meta.json"]
    )


def test_planning_reads_the_note_and_not_the_arrays(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    first = fingerprint("mnist", tmp_path)
    monkeypatch.setattr(np, "load", forbidden)
    assert fingerprint("mnist", tmp_path) == first


def test_changed_sources_are_decoded_anew(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    first = fingerprint("mnist", tmp_path)
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))
    assert fingerprint("mnist", tmp_path) != first
    assert int(load("mnist", tmp_path, None, None)[0].inputs[-1, 0, -1, -1]) == data[-1]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "meta", "empty-meta"])
def test_a_damaged_cache_is_rebuilt(damage: str, tmp_path: Path, own_cache: Path) -> None:
    write_mnist(tmp_path)
    first = fingerprint("mnist", tmp_path)
    folder = entry(own_cache)
    file = folder / "train_inputs.npy"
    stamp = file.stat().st_mtime_ns
    data = bytearray(file.read_bytes())
    if damage == "flip":  # same size, same time
        data[-5] ^= 255
        file.write_bytes(data)
        os.utime(file, ns=(stamp, stamp))
    elif damage == "truncate":
        file.write_bytes(data[:-7])
    elif damage == "delete":
        file.unlink()
    else:
        (folder / "meta.json").write_text("{" if damage == "meta" else "{}")
    sources._whole.cache_clear()
    train, _ = load("mnist", tmp_path, None, None)
    assert np.array_equal(train.inputs[:, 0].numpy(), pixels((28, 28), "train")[0])
    assert fingerprint("mnist", tmp_path) == first
    assert [path.name for path in (own_cache / "data").iterdir()] == [folder.name]


def test_a_copied_cache_entry_is_checked_once_and_kept(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    first = fingerprint("mnist", tmp_path)
    for file in entry(own_cache).glob("*.npy"):
        os.utime(file, ns=(5, 5))
    monkeypatch.setattr(sources, "decode", forbidden)
    assert fingerprint("mnist", tmp_path) == first
    monkeypatch.setattr(np, "load", forbidden)
    assert fingerprint("mnist", tmp_path) == first


@pytest.mark.slow
def test_parallel_trials_share_one_entry(tmp_path: Path, own_cache: Path) -> None:
    write_mnist(tmp_path)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(functools.partial(fingerprint, "mnist"), [tmp_path] * 6)
    assert set(found) == {fingerprint("mnist", tmp_path)}
    assert len(list((own_cache / "data").iterdir())) == 1


def test_a_writer_that_comes_second_uses_the_firsts_entry(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    own = cache.Entry("mnist", sorted((tmp_path / "MNIST/raw").iterdir()))

    def decode_slowly() -> cache.Arrays:
        own.open(lambda: decode("mnist", tmp_path))  # another process finishes meanwhile
        return decode("mnist", tmp_path)

    arrays = own.open(decode_slowly)
    assert np.array_equal(arrays["train_labels"], pixels((28, 28), "train")[1])
    assert [path.name for path in own.folder.parent.iterdir()] == [own.folder.name]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "own"))
    assert cache.cache_root() == tmp_path / "own"
    monkeypatch.delenv("ASSAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "assay"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path.home() / ".cache" / "assay"


def test_damaged_sources_are_one_line(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a")
    file = tmp_path / "a/MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-9])
    write_cifar(tmp_path / "b")
    (tmp_path / "b/cifar10/train.parquet").write_bytes(b"PAR1 nothing")
    write_parquet(tmp_path / "c/cifar10/train.parquet", np.zeros((4, 8, 8, 3), np.uint8), np.arange(4))
    write_cifar(tmp_path / "d", "picture")
    write_cifar_binary(tmp_path / "e")
    with (tmp_path / "e/cifar-10-batches-bin/data_batch_3.bin").open("ab") as binary:
        binary.write(b"x")
    for part in ("train", "test"):
        images, labels = pixels((3, 32, 32), part)
        write_parquet(tmp_path / f"f/cifar10/{part}.parquet", images.transpose(0, 2, 3, 1), labels + 1)
    (tmp_path / "c/cifar10/test.parquet").write_bytes((tmp_path / "b/cifar10/test.parquet").read_bytes())
    for root, key, words in [
        ("a", "mnist", "train-images-idx3-ubyte"),
        ("b", "cifar10", "train.parquet"),
        ("c", "cifar10", "train.parquet"),
        ("d", "cifar10", "expected the columns img .* found picture, label"),
        ("e", "cifar10", "data_batch_3.bin"),
        ("f", "cifar10", "labels 1 to 10"),
    ]:
        with pytest.raises(BadInput, match=words) as error:
            load(key, tmp_path / root, None, None)
        assert "\n" not in str(error.value)


def test_idx_files_of_two_data_sets_and_labels_out_of_range_are_told(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    labels = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    write_idx(labels, np.array([0] * 19 + [10], np.uint8))
    with pytest.raises(BadInput, match=r"t10k-labels-idx1-ubyte, row 19 \(the first is 0\): found label 10 among"):
        load("mnist", tmp_path, None, None)
    write_idx(labels, np.zeros(19, np.uint8))
    with pytest.raises(
        BadInput, match=r"t10k-labels-idx1-ubyte: labels of shape \(19,\) beside images of shape \(20, 28"
    ):
        load("mnist", tmp_path, None, None)
    write_idx(labels, np.zeros(20, np.uint8))
    data = labels.read_bytes()
    for head in (b"\1\0\x08\1", b"\0\0\x0d\1"):
        labels.write_bytes(head + data[4:])
        with pytest.raises(BadInput, match=r"expected an IDX file of unsigned bytes, whole: it begins with 0"):
            load("mnist", tmp_path, None, None)


def test_a_label_out_of_range_names_the_cifar_file_and_its_record(tmp_path: Path) -> None:
    write_cifar_binary(tmp_path)
    file = tmp_path / "cifar-10-batches-bin/data_batch_2.bin"
    data = bytearray(file.read_bytes())
    data[3073 * 5] = 77
    file.write_bytes(data)
    with pytest.raises(
        BadInput, match=r"data_batch_2.bin, row 5 \(the first is 0\): found label 77 among labels 0 to 77"
    ):
        load("cifar10", tmp_path, None, None)


@pytest.mark.parametrize("folder", ["mnist/mnist", "mnist/data"])
def test_what_the_hubs_client_leaves_is_read(folder: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / "raw")
    images, labels = pixels((28, 28), "train")
    for number, half in enumerate((slice(0, 25), slice(25, 40))):
        write_parquet(tmp_path / folder / f"train-{number:05}-of-00002.parquet", images[half], labels[half], "image")
    images, labels = pixels((28, 28), "test")
    write_parquet(tmp_path / folder / "validation-00000-of-00001.parquet", images, labels, "image")
    assert fingerprint("mnist", tmp_path) == fingerprint("mnist", tmp_path / "raw")
    # A shard that is not there is told, with what is, and never trained without, whatever else is there.
    (tmp_path / folder / "train-00001-of-00002.parquet").unlink()
    write_mnist(tmp_path)
    with pytest.raises(MissingData) as error:
        load("mnist", tmp_path, None, None)
    assert str(error.value) == (
        f"mnist: {tmp_path / folder}: train-00001-of-00002.parquet is missing (1 of 2 shards are there); "
        f"put it right, or move these files elsewhere and fetch it with: assay data fetch mnist --data-root {tmp_path}"
    )
    row = next(row for row in data_status(tmp_path) if row["key"] == "mnist")
    assert (row["present"], row["problem"]) == (False, str(error.value))


def test_16_bit_grey_keeps_its_levels_or_is_refused(tmp_path: Path) -> None:
    """Digits of 17 levels, stored with 16 bits, became black and white."""
    for part in COUNTS:
        wide = np.random.default_rng(0).integers(0, 17, (20, 28, 28)).astype(np.uint16)
        write_parquet(tmp_path / f"mnist/{part}.parquet", wide * 4095, np.arange(20) % 10, "image")
    train, _ = load("mnist", tmp_path, None, None)
    assert len(torch.unique(train.inputs)) == 17
    wide[7] = np.arange(784).reshape(28, 28)
    write_parquet(tmp_path / "mnist/test.parquet", wide * 4095, np.arange(20) % 10, "image")
    with pytest.raises(
        BadInput, match=r"mnist/test.parquet, row 7 \(the first is 0\): .* found 16-bit grey of 784 levels"
    ):
        load("mnist", tmp_path, None, None)


def test_unknown_data_set() -> None:
    with pytest.raises(BadInput, match="did you mean 'mnist'"):
        load("minst", None, None, None)


@pytest.mark.parametrize("count", [50, 99, 512, 1437])
def test_subsets_are_stratified_exact_and_fixed(count: int) -> None:
    whole, _ = load("digits", None, None, None)
    part, test = load("digits", None, count, 60)
    assert (len(part), len(test)) == (count, 60)
    torch.manual_seed(count)
    assert torch.equal(part.inputs, load("digits", None, count, None)[0].inputs)
    shares = torch.bincount(part.labels) / count - torch.bincount(whole.labels) / len(whole)
    assert float(shares.abs().max()) <= 4 / count
    assert load("digits", None, 10**6, None)[0] is whole


def test_digits_are_complete_and_its_constants_are_those_of_the_training_part() -> None:
    train, test = load("digits", None, None, None)
    info = DATASETS["digits"]
    assert (len(train), len(test)) == info.counts
    values = train.inputs.double() / 255
    assert float(values.mean()) == pytest.approx(info.mean[0], abs=1e-4)
    assert float(values.std(correction=0)) == pytest.approx(info.std[0], abs=1e-4)
    assert fingerprint("digits", None) == fingerprint("digits", Path("/nowhere"))


def tiny(root: Path | None) -> tuple[Labelled, Labelled]:
    data = Labelled(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6) % 2)
    return data, data.take(slice(0, 2))


def test_a_plugin_adds_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (DATASETS, SOURCES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    info = DatasetInfo("tiny", (1, 4, 4), 2, (0.5,), (0.5,), "public domain")
    register_dataset(info, tiny)
    register_dataset(DatasetInfo("tiny", (1, 4, 4), 2, (0.5,), (0.5,), "public domain"), tiny)  # the file ran twice
    assert len(load("tiny", None, None, None)[0]) == 6
    assert len(fingerprint("tiny", None)) == 64
    with pytest.raises(BadInput, match="data set 'tiny' is registered already"):
        register_dataset(DatasetInfo("tiny", (1, 4, 4), 3, (0.5,), (0.5,), "?"), tiny)
    register_dataset(DatasetInfo("odd", (3, 4, 4), 2, (0.5,), (0.5,), "?"), tiny)
    with pytest.raises(
        BadInput, match=r"data set odd, training part: inputs of shape \(1, 4, 4\), expected \(3, 4, 4\)"
    ):
        load("odd", None, None, None)


@pytest.mark.skipif(REAL is None, reason="needs the real MNIST under $ASSAY_DATA")
def test_real_mnist_equals_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    assert REAL is not None
    if not (Path(REAL) / "MNIST/raw/t10k-labels-idx1-ubyte").exists():
        pytest.skip("no MNIST under $ASSAY_DATA")
    train, test = load("mnist", Path(REAL), None, None)
    theirs = MNIST(REAL, train=False)
    assert torch.equal(test.inputs[:, 0], theirs.data)
    assert torch.equal(test.labels, theirs.targets)
    assert (len(train), len(test)) == DATASETS["mnist"].counts
    values = train.inputs.float() / 255
    assert float(values.mean()) == pytest.approx(DATASETS["mnist"].mean[0], abs=1e-4)
    assert float(values.std()) == pytest.approx(DATASETS["mnist"].std[0], abs=1e-4)
