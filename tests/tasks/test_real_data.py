"""Every data set that is at hand: whole, in range, split into parts that share nothing. Decoded in the shared cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from assay.tasks.data.sources import DATASETS, load
from assay.tasks.data.splits import split
from assay.tasks.errors import MissingData

REAL = os.environ.get("ASSAY_DATA")


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="needs data sets under $ASSAY_DATA")
@pytest.mark.parametrize("key", ["cifar5", "cifar10", "gtsrb", "imdb", "mnist", "tiny_imagenet_32", "trec"])
def test_real_data_load_and_split(key: str) -> None:
    root, info = Path(str(REAL)), DATASETS[key]
    try:
        train, test = load(key, root, None, None)
    except MissingData:
        pytest.skip(f"no {key} under $ASSAY_DATA")
    for part, complete in zip((train, test), info.counts or (), strict=True):
        assert part.inputs.shape[1:] == info.shape
        assert torch.unique(part.labels).tolist() == list(range(info.classes))
        assert len(part) <= complete
    splits = split(train, test, 0, info.vocabulary)
    held = (splits.owner.train, splits.owner.held_out, splits.attacker.train, splits.attacker.held_out)
    assert sum(map(len, held)) == len(train)
    if info.kind == "text":
        assert int(splits.attacker.train.inputs.max()) < info.vocabulary
        # The owner's vocabulary is numbered without gaps: no row of it is a word that only others have.
        ids = torch.unique(splits.owner.train.inputs)
        assert torch.equal(ids[ids >= 2], torch.arange(2, int(ids.max()) + 1))
        assert int(splits.attacker.train.inputs.max()) <= int(ids.max())
    else:
        pixels = train.inputs.double().div_(255)
        for channel, (mean, std) in enumerate(zip(info.mean, info.std, strict=True)):
            assert float(pixels[:, channel].mean()) == pytest.approx(mean, abs=0.01)
            assert float(pixels[:, channel].std()) == pytest.approx(std, abs=0.01)
    if train.groups is not None:
        tracks = [set(part.groups.tolist()) for part in held if part.groups is not None]
        assert sum(map(len, tracks)) == len(set().union(*tracks)) == len(torch.unique(train.groups))
