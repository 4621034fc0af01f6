"""Text: tokens, ids of a data set, and a vocabulary that knows the owner's training texts alone."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.tasks.data import cache, sources
from assay.tasks.data.checks import check_part
from assay.tasks.data.sources import DATASETS, DatasetInfo, fingerprint, load
from assay.tasks.data.splits import Labelled, split
from assay.tasks.data.text import FIRST_WORD, PADDING, UNKNOWN, encode, tokenise, vocabulary_table
from assay.tasks.errors import BadInput

REAL = os.environ.get("ASSAY_DATA")


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ASSAY_DATA", raising=False)
    sources._whole.cache_clear()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Great film!<br /><br />Don't miss it.", ["great", "film", "!", "don", "'t", "miss", "it", "."]),
        ("What 's the café's 'name' ?", ["what", "'s", "the", "café", "'s", "'", "name", "'", "?"]),
        ("in 1,000 km/h <BR>", ["in", "1", ",", "000", "km", "/", "h"]),
        (" \n", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert tokenise(text) == tokens


def test_ids_are_of_the_whole_set_cut_and_padded() -> None:
    train, test = encode([["b a", "c c c c"], ["d a"]], 3)
    assert train.dtype == np.int32
    assert (train.tolist(), test.tolist()) == ([[3, 2, 0], [4, 4, 4]], [[5, 2, 0]])
    # What lies beyond the cut is in no vocabulary.
    assert int(encode([["a a a zebra"], []], 3)[0].max()) == FIRST_WORD


def by_hand(rows: list[list[int]], owner: list[list[int]], vocabulary: int) -> list[list[int]]:
    """Encode by a dictionary of the owner's most frequent words, the slow and obvious way."""
    counts = Counter(word for row in owner for word in row if word >= FIRST_WORD)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - FIRST_WORD]
    number = {word: index for index, word in enumerate(ranked, FIRST_WORD)} | {PADDING: PADDING}
    return [[number.get(word, UNKNOWN) for word in row] for row in rows]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(2, 12), min_size=4, max_size=4), min_size=1), st.integers(3, 14))
def test_vocabulary_equals_counting_by_hand(rows: list[list[int]], vocabulary: int) -> None:
    owner = rows[: (len(rows) + 1) // 2]
    table = vocabulary_table(torch.tensor(owner, dtype=torch.int32), 13, vocabulary)
    assert table[torch.tensor(rows)].tolist() == by_hand(rows, owner, vocabulary)


def texts(total: int, words: int, seed: int = 0) -> Labelled:
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, words, (total, 12), generator=draws, dtype=torch.int32)
    return Labelled(ids, torch.randint(0, 3, (total,), generator=draws))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_owners_words_encode_all_parts(seed: int) -> None:
    train, test = texts(600, 3000), texts(60, 3500, seed=1)
    plain, worded = split(train, test, seed), split(train, test, seed, vocabulary=500)
    own = plain.owner.train.inputs.tolist()
    pairs = [
        (plain.owner.train, worded.owner.train), (plain.owner.held_out, worded.owner.held_out),
        (plain.attacker.train, worded.attacker.train), (plain.attacker.held_out, worded.attacker.held_out),
        (plain.test, worded.test),
    ]  # fmt: skip
    for before, after in pairs:
        assert after.inputs.dtype == torch.int64
        assert torch.equal(before.labels, after.labels)
        assert after.inputs.tolist() == by_hand(before.inputs.tolist(), own, 500)
    known = {word for row in own for word in row if word >= FIRST_WORD}
    stranger = ~torch.isin(plain.attacker.train.inputs, torch.tensor([*known, PADDING, UNKNOWN]))
    assert stranger.any()
    assert worded.attacker.train.inputs[stranger].eq(UNKNOWN).all()
    assert torch.equal(worded.attacker_view("same").train.inputs.max(), worded.owner.train.inputs.max())


def write_trec(root: Path, train: list[str], test: list[str], **columns: object) -> None:
    for part, rows in (("train", train), ("test", test)):
        table = {"text": rows, "coarse_label": [i % 6 for i in range(len(rows))]} | columns
        (root / "trec").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), root / f"trec/{part}.parquet")


TRAIN = ["What is gold ?", "Who wrote it ?", "Where is Gold's river ?", "How many ?", "Is it ?", "Why ?"]


def test_text_is_decoded_once_and_a_damaged_cache_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trec(tmp_path, TRAIN, TRAIN[:2])
    train, test = load("trec", tmp_path, None, None)
    assert (train.inputs.dtype, train.inputs.shape, len(test)) == (torch.int32, (6, 40), 2)
    first, ids = fingerprint("trec", tmp_path), train.inputs.clone()
    (entry,) = (tmp_path / "cache/data").iterdir()
    file = entry / "train_inputs.npy"
    data = bytearray(file.read_bytes())
    data[-3] ^= 255
    file.write_bytes(data)
    sources._whole.cache_clear()
    assert torch.equal(load("trec", tmp_path, None, None)[0].inputs, ids)
    assert fingerprint("trec", tmp_path) == first
    sources._whole.cache_clear()
    monkeypatch.setattr(sources, "decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(load("trec", tmp_path, None, None)[0].inputs, ids)
    assert cache.cache_root() == tmp_path / "cache"


def test_damaged_text_is_one_line(tmp_path: Path) -> None:
    write_trec(tmp_path / "a", ["x", None], ["y"])  # type: ignore[list-item]
    write_trec(tmp_path / "b", ["x"], ["y"], coarse_label=["NUM"])
    write_trec(tmp_path / "c", ["x"], ["y"], coarse_label=[6])
    (tmp_path / "d/trec").mkdir(parents=True)
    pq.write_table(pa.table({"sentence": ["x"], "label": [1]}), tmp_path / "d/trec/train.parquet")
    pq.write_table(pa.table({"sentence": ["x"], "label": [1]}), tmp_path / "d/trec/test.parquet")
    for root, words in [
        ("a", r"train.parquet, row 1 \(the first is 0\): the text is missing \(null\)"),
        ("b", r"train.parquet, row 0 .*: the label 'NUM' is a string, expected a whole number"),
        ("c", r"train.parquet, row 0 .*: found label 6 among labels 6 to 6, expected 0..5"),
        ("d", "expected the columns text and label or coarse_label, found sentence, label"),
    ]:
        with pytest.raises(BadInput, match=words) as error:
            load("trec", tmp_path / root, None, None)
        assert "\n" not in str(error.value)


def test_a_plugins_tokens_are_checked() -> None:
    info = DatasetInfo("words", (12,), 3, (), (), "?", "text", vocabulary=10)
    good = texts(5, 9)
    check_part(info, "training", good)
    for bad in (good.inputs.float(), -good.inputs - 1, good.inputs[:, :7]):
        with pytest.raises(BadInput, match="data set words"):
            check_part(info, "training", Labelled(bad, good.labels))


@pytest.mark.skipif(REAL is None, reason="needs TREC under $ASSAY_DATA")
def test_real_trec() -> None:
    root = Path(str(REAL))
    if not (root / "trec").is_dir():
        pytest.skip("no TREC under $ASSAY_DATA")
    train, test = load("trec", root, None, None)
    info = DATASETS["trec"]
    assert (len(train), len(test)) == info.counts
    assert torch.bincount(train.labels).tolist() == [86, 1250, 1162, 1223, 835, 896]
    assert torch.bincount(test.labels).tolist() == [9, 94, 138, 65, 81, 113]
    assert int((train.inputs > 0).sum(1).max()) < info.shape[0]  # every question is whole
    splits = split(train, test, 0, info.vocabulary)
    assert int(splits.owner.train.inputs.min()) == PADDING
    assert int(splits.test.inputs.max()) < info.vocabulary
    # The owner knows every word of its own, so that UNKNOWN occurs in the others' texts alone.
    assert not splits.owner.train.inputs.eq(UNKNOWN).any()
    assert splits.attacker.train.inputs.eq(UNKNOWN).any()
