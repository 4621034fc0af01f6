"""Text as token ids: splitting, ids of a whole data set, and the owner's vocabulary.

A data set's ids name every word in it, in the words' own order, so they tell nothing of any part's frequencies. A model
sees the vocabulary of its owner's training set: the attacker's and the test texts are encoded by it, as it is published
with the model, and words that only they have are unknown to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PADDING = 0
UNKNOWN = 1
FIRST_WORD = 2

_BREAK = re.compile(r"<br\s*/?>")
# The endings that contractions leave (don't: don, 't), words and numbers, single signs.
_TOKEN = re.compile(r"'(?:s|t|re|ve|ll|d|m)\b|\w+|[^\w\s]")


def tokenise(text: str) -> list[str]:
    """Return the lower-case words and signs of a text, its `<br />` tags left out."""
    return _TOKEN.findall(_BREAK.sub(" ", text.lower()))


def encode(parts: Sequence[Sequence[str]], length: int) -> list[npt.NDArray[np.int32]]:
    """Return the parts of a data set as ids (N, length) of one numbering, cut at `length` or padded behind.

    Words are numbered from `FIRST_WORD` on in the order of their characters.
    """
    tokens = [[tokenise(text)[:length] for text in part] for part in parts]
    words = sorted({word for part in tokens for text in part for word in text})
    number = {word: index for index, word in enumerate(words, FIRST_WORD)}
    encoded = [np.full((len(part), length), PADDING, np.int32) for part in tokens]
    for ids, part in zip(encoded, tokens, strict=True):
        for row, text in zip(ids, part, strict=True):
            row[: len(text)] = [number[word] for word in text]
    return encoded


def vocabulary_table(tokens: Tensor, size: int, vocabulary: int) -> Tensor:
    """Return the id in the owner's vocabulary of each id in the data set, int64 (size,).

    Args:
        tokens: the owner's training texts, data-set ids of any shape.
        size: number of data-set ids.
        vocabulary: rows of the embedding. The most frequent `vocabulary - FIRST_WORD` words of `tokens` are numbered
            from `FIRST_WORD` on, equally frequent ones in the order of their data-set ids; all others are `UNKNOWN`.
    """
    counts = torch.bincount(tokens.flatten().long(), minlength=size)
    counts[:FIRST_WORD] = 0
    ranked = torch.sort(counts, descending=True, stable=True).indices[: vocabulary - FIRST_WORD]
    ranked = ranked[counts[ranked] > 0]
    table = torch.full((size,), UNKNOWN, device=tokens.device)
    table[PADDING] = PADDING
    table[ranked] = torch.arange(FIRST_WORD, FIRST_WORD + len(ranked), device=tokens.device)
    return table
