"""Downloading: only what is known, only where told, and a failure is one line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torchvision.datasets
import torchvision.datasets.utils

from assay.tasks.data.fetch import _FETCHERS, fetch
from assay.tasks.data.sources import DATASETS
from assay.tasks.errors import BadInput, MissingData


def test_what_cannot_be_fetched_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'mnist'"):
        fetch("mnits", tmp_path)
    with pytest.raises(BadInput, match="needs no download"):
        fetch("digits", tmp_path)
    with pytest.raises(BadInput, match=r"data fetch lisa: its authors give it out .* lisa/train/<class>"):
        fetch("lisa", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match="--data-root"):
        fetch("mnist", None)


def test_every_set_is_fetched_or_says_how_to_get_it() -> None:
    wholes = {info.part_of or key: DATASETS[info.part_of or key] for key, info in DATASETS.items()}
    assert {key for key, info in wholes.items() if key not in _FETCHERS and not info.obtain} == {"digits", "phrases"}
    assert not {key for key in _FETCHERS if DATASETS[key].obtain}


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar5", "caltech101", "gtsrb26"])
def test_no_network_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service\nnot known")

    for kind in ("MNIST", "Caltech101"):
        monkeypatch.setattr(torchvision.datasets, kind, refuse)
    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", refuse)
    with pytest.raises(MissingData, match="the download failed") as caught:
        fetch(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_binary_cifar10_is_fetched_into_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(
        torchvision.datasets.utils,
        "download_and_extract_archive",
        lambda url, root, **kwargs: calls.append((url.rsplit("/", 1)[1], root)),
    )
    assert fetch("cifar10", tmp_path / "new") == tmp_path / "new"
    assert calls == [("cifar-10-binary.tar.gz", str(tmp_path / "new"))]


def test_the_hubs_files_become_the_text_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[tuple[str, str]] = []

    def download(repository: str, path: str, **where: str) -> str:
        assert where == {"repo_type": "dataset", "revision": "refs/convert/parquet"}
        wanted.append((repository, path))
        print("progress")  # noqa: T201
        (tmp_path / "hub").write_bytes(path.encode())
        return str(tmp_path / "hub")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    root = fetch("trec", tmp_path / "root")
    assert wanted == [("CogComp/trec", "default/train/0000.parquet"), ("CogComp/trec", "default/test/0000.parquet")]
    assert (root / "trec/test.parquet").read_bytes() == b"default/test/0000.parquet"
    assert sorted(path.name for path in (root / "trec").iterdir()) == ["test.parquet", "train.parquet"]


def test_the_hub_out_of_reach_and_its_client_missing_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> str:
        print("trying")  # noqa: T201
        raise FileNotFoundError("cannot find the file\nin the cache, and the hub is out of reach")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=refuse))
    with pytest.raises(MissingData, match="the download failed") as caught:
        fetch("imdb", tmp_path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""  # standard output is for --json
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadInput, match="pip install huggingface_hub"):
        fetch("imdb", tmp_path)
