"""The bundled text data set: the same everywhere, learnable but not trivial, and a vocabulary that fits."""

from __future__ import annotations

import torch

from assay.tasks.data.phrases import COUNTS, LENGTH, phrases
from assay.tasks.data.sources import DATASETS, load


def test_sentences_are_the_same_whenever_they_are_made() -> None:
    first, second = phrases(), phrases()
    for one, other, count in zip(first, second, COUNTS, strict=True):
        assert one.inputs.shape == (count, LENGTH)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.labels.bincount(), torch.full((4,), count // 4))


def test_words_fit_into_the_vocabulary_and_name_their_subject_for_the_most_part() -> None:
    train, test = phrases()
    assert int(torch.cat([train.inputs, test.inputs]).max()) < DATASETS["phrases"].vocabulary
    # A word of the subject is in a sentence of another class only where it is noise.
    of_class = [set(train.inputs[train.labels == label].flatten().tolist()) for label in range(4)]
    assert all(of_class[a] != of_class[b] for a in range(4) for b in range(a))


def test_it_loads_without_any_data_root() -> None:
    train, test = load("phrases", None, None, None)
    assert (len(train.labels), len(test.labels)) == COUNTS
