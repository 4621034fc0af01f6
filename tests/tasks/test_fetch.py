"""Downloading: only what is known, only where told, and a failure is one line."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torchvision.datasets
import torchvision.datasets.utils

from tasks.errors import BadInput, MissingData
from tasks.fetch import fetch


def test_what_cannot_be_fetched_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'mnist'"):
        fetch("mnits", tmp_path)
    with pytest.raises(BadInput, match="needs no download"):
        fetch("digits", tmp_path)
    with pytest.raises(BadInput, match="--data-root"):
        fetch("mnist", None)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_no_network_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr(torchvision.datasets, "MNIST", refuse)
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
