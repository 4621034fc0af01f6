"""A bundled text data set: short made-up sentences about four subjects, so that text runs anywhere without a download.

A sentence is built from templates whose subject words decide the class; words of other classes and filler words make it
less than trivial. It exists for quick starts, contract checks and tests, and says nothing about real language.
"""

from __future__ import annotations

import torch

from assay.tasks.data.splits import Labelled
from assay.tasks.data.text import encode
from assay.tasks.streams import stream

LENGTH = 16  # words of a sentence at most
COUNTS = (1_600, 400)  # training and test sentences
_NOISE = 0.15  # share of sentences that also name another subject
_SUBJECTS = (
    ("river", "boat", "harbour", "anchor", "tide", "sailor", "wave", "ferry"),
    ("oven", "bread", "pepper", "kettle", "butter", "onion", "recipe", "soup"),
    ("violin", "drum", "chorus", "melody", "concert", "rhythm", "piano", "opera"),
    ("garden", "maple", "seed", "hedge", "tulip", "meadow", "orchard", "moss"),
)
_TEMPLATES = (
    "yesterday the {0} was {1} and the {2} stayed {3}",
    "nobody knows why a {0} near the {2} looks so {1}",
    "we found one {1} {0} , but no {2} was {3} enough",
    "is the {3} {0} better than a {1} {2} ?",
)
_FILLERS = ("old", "bright", "quiet", "heavy", "strange", "small", "famous", "broken", "warm", "new")


def phrases() -> tuple[Labelled, Labelled]:
    """Return (training part, test part): ids int32 (N, 16) of one numbering, labels int64 (N,) in 0..3."""
    draws = stream("phrases")

    def pick(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (), generator=draws))]

    def sentence(label: int) -> str:
        first, second = pick(_SUBJECTS[label]), pick(_SUBJECTS[label])
        if float(torch.rand((), generator=draws)) < _NOISE:
            second = pick(_SUBJECTS[(label + 1) % len(_SUBJECTS)])
        return pick(_TEMPLATES).format(first, pick(_FILLERS), second, pick(_FILLERS))

    labels = [torch.arange(count) % len(_SUBJECTS) for count in COUNTS]
    texts = [[sentence(int(label)) for label in part] for part in labels]
    train, test = (torch.from_numpy(ids) for ids in encode(texts, LENGTH))
    return Labelled(train, labels[0]), Labelled(test, labels[1])
