"""The pattern of a dual embedding: what a signature expands to, how it is stamped, and how often a suspect obeys it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.methods.parts.signature import bits, num
from assay.methods.suspect import Suspect

MOST_SAMPLES = 8192  # stamped at once: bounds the memory of a query, whatever the number of keys


@dataclass(frozen=True)
class Pattern:
    """What a signature stands for.

    Attributes:
        signs: int8 (H, W): +1 where the pattern is 1, -1 where it is 0, 0 where it leaves the pixel alone.
        row, col: upper left corner of the square.
        label: the class y_W that the inverted pattern forces.
    """

    signs: Tensor
    row: int
    col: int
    label: int


def pattern(signature: bytes, size: int, shape: tuple[int, int, int], classes: int) -> Pattern:
    """Return the pattern of a signature (Algorithms 1 and 2): bits row by row, position and label, each by its hash."""
    _, height, width = shape
    row = num("null-embedding/row", signature, height - size + 1)
    col = num("null-embedding/col", signature, width - size + 1)
    square = bits("null-embedding/bits", signature, size * size).view(size, size).to(torch.int8)
    signs = torch.zeros(height, width, dtype=torch.int8)
    signs[row : row + size, col : col + size] = 2 * square - 1
    return Pattern(signs, row, col, num("null-embedding/label", signature, classes))


def stamp(inputs: Tensor, signs: Tensor, extreme: float) -> Tensor:
    """Return `x (+) [p, lambda]` (Definition 1): lambda where the sign is +1, -lambda where it is -1, else the image.

    Args:
        inputs: float images (N, C, H, W).
        signs: of one pattern (H, W), or broadcastable to the images; negated for the inverted pattern.
        extreme: lambda, in pixel space; may lie far outside [0, 1].
    """
    return torch.where(signs == 0, inputs, signs.to(inputs.dtype) * extreme)


class Examination:
    """Puts stamped probe images to a suspect and counts right answers, for many keys at once.

    Parts of a dual embedding (Definition 2): `null`, F(x (+) [p, lambda]) = y; `true`, F(x (+) [inv(p), lambda]) = y_W.

    Attributes:
        inputs: probe images as a model takes them (n, C, H, W).
        targets: right answers under the null pattern (n,): true labels, or the suspect's own answers when unstamped.
        labels: true labels (n,).
        extreme: lambda.
        exclude_target: leave images of class y_W out of the true part.
    """

    def __init__(
        self, suspect: Suspect, inputs: Tensor, targets: Tensor, labels: Tensor, extreme: float, exclude_target: bool
    ) -> None:
        self.suspect, self.extreme, self.exclude_target = suspect, extreme, exclude_target
        self.inputs, self.targets, self.labels = inputs, targets, labels

    def first(self, count: int | None) -> Examination:
        """Return the same questions about the first `count` probes alone; about all of them if `count` is None."""
        inputs, targets, labels = self.inputs[:count], self.targets[:count], self.labels[:count]
        return Examination(self.suspect, inputs, targets, labels, self.extreme, self.exclude_target)

    def counts(self, keys: Sequence[Pattern], part: str, least: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return (right, asked) per key, each int64 (keys,), for the `null` or the `true` part.

        A key whose share of right answers can no longer reach `least` is dropped early; its count is then an upper
        bound that lies below `least`, so comparing with `least` gives the same answer as asking everything.
        """
        device = self.inputs.device
        forced = torch.tensor([key.label for key in keys], device=device)
        signs = torch.stack([key.signs for key in keys]).to(device)
        sign = 1 if part == "null" else -1
        counted = torch.ones(len(keys), len(self.inputs), dtype=torch.bool, device=device)
        if part == "true" and self.exclude_target:
            counted = self.labels != forced.unsqueeze(1)
        asked = counted.sum(1)
        right = asked.clone()
        alive = torch.arange(len(keys), device=device)
        # The fewest wrong answers that can drop a key: asking for fewer at a time would only cost more calls.
        stride = max(16, int((1 - least) * len(self.inputs)) + 1)
        begin = 0
        while begin < len(self.inputs) and len(alive):
            place = slice(begin, begin + min(stride, max(1, MOST_SAMPLES // len(alive))))
            stamped = stamp(self.inputs[place], sign * signs[alive, None, None], self.extreme)
            answers = self.suspect.labels(stamped.flatten(0, 1)).to(device).view(len(alive), -1)
            wanted = self.targets[place] if part == "null" else forced[alive].unsqueeze(1)
            right[alive] -= ((answers != wanted) & counted[alive, place]).sum(1)
            begin = place.stop
            alive = alive[share(right[alive], asked[alive]) >= least]
        return right, asked

    def count(self, key: Pattern, part: str) -> tuple[int, int]:
        """Return (right, asked) of one key."""
        right, asked = self.counts([key], part)
        return int(right), int(asked)

    def reach(self, keys: Sequence[Pattern], least: float) -> list[bool]:
        """Return for each key whether both parts reach `least`, asking no more than the decision needs."""
        reached = [False] * len(keys)
        candidates = list(range(len(keys)))
        for part in ("true", "null"):  # the true part first: a wrong key almost never forces its class
            if least <= 0 or not candidates:
                break
            right, asked = self.counts([keys[i] for i in candidates], part, least)
            kept = (share(right, asked) >= least).tolist()
            candidates = [i for i, keep in zip(candidates, kept, strict=True) if keep]
        for i in candidates:
            reached[i] = True
        return reached


def share(right: Tensor, asked: Tensor) -> Tensor:
    """Return right / asked in double precision, 0 where nothing was asked."""
    return right.double() / asked.clamp_min(1)
