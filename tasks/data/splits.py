"""Data as tensors on the device, and who holds which part of it (docs/protocol.md §1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from assay.tasks.data.text import vocabulary_table
from assay.tasks.errors import BadInput
from assay.tasks.streams import stream

SplitMode = Literal[
    "disjoint20", "same", "fcw", "pir5k", "sok", "none", "ood", "limited-0.5", "limited-1", "limited-1.67", "limited-2",
    "limited-5", "limited-10", "limited-20",
]  # fmt: skip
ATTACKER_SHARE = 0.2  # of a training set; SoK's attacker holds a third


def to_model_input(inputs: Tensor) -> Tensor:
    """Turn stored inputs into what a model takes: uint8 images (N, C, H, W) to float32 in [0, 1]; token ids as is."""
    return inputs.float().div_(255.0) if inputs.dtype == torch.uint8 else inputs


def for_answers(inputs: Tensor) -> Tensor:
    """Turn stored inputs into what a model answers to, on the CPU with an image's channels innermost.

    Convolutions then answer 1.4 to 3 times the images per second, those with one channel too. On a GPU nothing moves.
    """
    ready = to_model_input(inputs)
    if ready.dim() != 4 or ready.device.type != "cpu":
        return ready
    # Not `contiguous`: it takes images of one channel for laid out as they should be, and convolutions do not.
    return torch.empty_like(ready, memory_format=torch.channels_last).copy_(ready)


def in_chunks(inputs: Tensor) -> tuple[Tensor, ...]:
    """Split inputs into batches for evaluation, as large as their device likes them.

    On the CPU activations of some hundred images stay in cache and in the allocator's arena; a thousand at once ran 3
    to 5 times slower per image on small convolutional nets.
    """
    return tuple(torch.split(inputs, 250 if inputs.device.type == "cpu" else 2000))


@dataclass(frozen=True)
class Labelled:
    """Labelled samples, resident on one device.

    Attributes:
        inputs: uint8 images (N, C, H, W), float32 images in pixel space [0, 1], or int64 token ids (N, L).
        labels: int64 class indices (N,).
        groups: int64 (N,), equal for samples that belong together (frames of one traffic sign) and so never come into
            two parts of a split; None: every sample stands alone.
    """

    inputs: Tensor
    labels: Tensor
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Labelled:
        """Return the samples at `index`, in that order."""
        return Labelled(self.inputs[index], self.labels[index], None if self.groups is None else self.groups[index])

    def of_class(self, label: int) -> Labelled:
        """Return the samples of one class, in their order."""
        return self.take(torch.nonzero(self.labels == label).flatten())

    def model_inputs(self) -> Tensor:
        """Return all inputs as a model takes them (images: float32 in [0, 1])."""
        return to_model_input(self.inputs)

    def to(self, device: torch.device) -> Labelled:
        """Return the same samples on `device`."""
        groups = None if self.groups is None else self.groups.to(device)
        return Labelled(self.inputs.to(device), self.labels.to(device), groups)

    @staticmethod
    def join(*parts: Labelled) -> Labelled:
        """Concatenate parts in the order given; of groups nothing is kept."""
        return Labelled(torch.cat([p.inputs for p in parts]), torch.cat([p.labels for p in parts]))


@dataclass(frozen=True)
class Party:
    """The data that one party holds: the owner, or an attacker under one split mode.

    Attributes:
        train: what the party trains on.
        held_out: the party's own validation data: probes, gates and checkpoint choice; never the test set.
        mode: `owner`, or the attacker's split mode.
        overlaps_owner: whether `train` contains samples of the owner's training set.
    """

    train: Labelled
    held_out: Labelled
    mode: str = "owner"
    overlaps_owner: bool = True

    def to(self, device: torch.device) -> Party:
        """Return the same holding on `device`."""
        return replace(self, train=self.train.to(device), held_out=self.held_out.to(device))


@dataclass(frozen=True)
class Splits:
    """One victim seed's split of a data set: owner, attacker (`disjoint20`) and test set; no sample is in two parts."""

    owner: Party
    attacker: Party
    test: Labelled
    seed: int

    def to(self, device: torch.device) -> Splits:
        """Return the same split on `device`."""
        return Splits(self.owner.to(device), self.attacker.to(device), self.test.to(device), self.seed)

    def attacker_view(self, mode: SplitMode) -> Party:
        """Return the attacker's data under a split mode.

        `disjoint20`: the held-out fifth. `same`: the owner's own training set. `pir5k`: 5,000 of the owner's training
        samples (1,000 where the owner has fewer than 20,000). `fcw`: 1,000 samples of the disjoint part (2,000 where
        the owner has 60,000 or more). `limited-p`: p % of the whole training set, out of the disjoint part. `sok`: the
        disjoint part, where that is a third. `none`: empty; `ood`: empty too, the attacker brings other data along.
        """
        if mode == "disjoint20":
            return self.attacker
        if mode == "sok":
            return replace(self.attacker, mode=mode)
        if mode in ("none", "ood"):
            empty = self.attacker.train.take(slice(0, 0))
            return Party(empty, empty, mode, overlaps_owner=False)
        generator = stream("split", mode, self.seed)
        if mode == "fcw":
            wanted = 2000 if len(self.owner.train) >= 60_000 else 1000
            index = torch.randperm(len(self.attacker.train), generator=generator)[:wanted]
            part = self.attacker.train.take(index.to(self.attacker.train.labels.device))
            return Party(part, self.attacker.held_out, mode, overlaps_owner=False)
        if mode.startswith("limited-"):
            return self._limited(float(mode.removeprefix("limited-")) / 100, mode, generator)
        if mode not in ("same", "pir5k"):
            raise BadInput(f"unknown split mode {mode!r} (allowed: {', '.join(get_args(SplitMode))})")
        whole = self.owner.train
        size = len(whole) if mode == "same" else min(len(whole), 5000 if len(whole) >= 20_000 else 1000)
        index = torch.randperm(len(whole), generator=generator)[:size]
        return _held(whole, index, validation_size(size), mode, overlaps_owner=True)

    def _limited(self, share: float, mode: str, generator: torch.Generator) -> Party:
        parts = (self.attacker.train, self.attacker.held_out)
        groups = [part.groups for part in parts if part.groups is not None]
        whole = replace(Labelled.join(*parts), groups=torch.cat(groups) if groups else None)
        total = len(whole) + len(self.owner.train) + len(self.owner.held_out)
        size = min(round(share * total), len(whole))
        index = torch.randperm(len(whole), generator=generator)[:size]
        return _held(whole, index, validation_size(size), mode, overlaps_owner=False)


def validation_size(total: int, floor: int = 200) -> int:
    """Return 10 % of `total`, raised to `floor` samples but never above 25 % (docs/protocol.md §1)."""
    return min(max(total // 10, floor), total // 4)


def stratified(
    labels: Tensor, share: float, generator: torch.Generator, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Split positions 0..N-1 into a part with `share` of every class and the rest, both in shuffled order.

    Args:
        labels: class indices (N,), on any device.
        share: in [0, 1]; each class contributes `round(share * n_class)` samples to the first part.
        generator: a CPU generator.
        groups: group of each sample (N,), within its class. With it each class contributes whole groups, a `share` of
            their number.
    """
    labels = labels.cpu()
    if groups is not None:
        names, member = torch.unique(groups.cpu(), return_inverse=True)
        whole, _ = stratified(labels.new_zeros(len(names)).scatter(0, member, labels), share, generator)
        taken = torch.zeros(len(names), dtype=torch.bool).index_fill(0, whole, True)[member]
        order = torch.randperm(len(labels), generator=generator)
        return order[taken[order]], order[~taken[order]]
    order = torch.randperm(len(labels), generator=generator)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = order[labels[order] == label]
        chosen[members[: round(share * len(members))]] = True
    return order[chosen[order]], order[~chosen[order]]


def _held(whole: Labelled, index: Tensor, size: int, mode: str, *, overlaps_owner: bool) -> Party:
    """Return a party that holds the samples at `index`, the first `size` of them held out.

    Of grouped samples whole groups are held out, in the order of their first members, until there are `size`.
    """
    place = torch.arange(len(index))
    if whole.groups is not None:
        _, member = torch.unique(whole.groups.cpu()[index], return_inverse=True)
        place = torch.full_like(place, len(index)).scatter_reduce(0, member, place, "amin")[member]
    out = place <= place.sort().values[size - 1] if size else torch.zeros(len(index), dtype=torch.bool)
    train, held_out = (whole.take(part.to(whole.labels.device)) for part in (index[~out], index[out]))
    return Party(train, held_out, mode, overlaps_owner)


def lacks(mode: SplitMode, share: float) -> str | None:
    """Return why an attacker that holds `share` of the training set cannot have the data of a split mode, or None."""
    wanted = {"disjoint20": ATTACKER_SHARE, "sok": 1 / 3}.get(mode)
    if mode.startswith("limited-"):
        enough = float(mode.removeprefix("limited-")) / 100 <= share + 1e-9
        return None if enough else f"split mode {mode} asks for more than attacker_share = {share:g}"
    if wanted is None or abs(share - wanted) < 0.005:
        return None
    return f"split mode {mode} gives the attacker {wanted:.3g} of the training set, and attacker_share is {share:g}"


def split(
    train: Labelled, test: Labelled, seed: int, vocabulary: int = 0, attacker_share: float = ATTACKER_SHARE
) -> Splits:
    """Split a training set for one victim seed: 80 % owner, 20 % attacker, stratified by class.

    docs/protocol.md §1 has the sizes.

    Each party's held-out part comes out of its own share: 10 %, raised to 200 samples (owner: 500), at most 25 %.
    Samples of one group stay together; shares then count groups.

    Args:
        train, test: the data set's parts.
        seed: the victim seed.
        vocabulary: of text: the vocabulary's size (`DatasetInfo.vocabulary`). It is taken from the owner's training
            texts and encodes all parts, int64. 0: inputs stay as they are.
        attacker_share: what the attacker gets instead of 20 %.
    """
    theirs, ours = stratified(train.labels, attacker_share, stream("split", "disjoint20", seed), train.groups)
    owner = _held(train, ours, validation_size(len(ours), 500), "owner", overlaps_owner=True)
    attacker = _held(train, theirs, validation_size(len(theirs)), "disjoint20", overlaps_owner=False)
    splits = Splits(owner, attacker, test, seed)
    return _in_owners_words(splits, vocabulary) if vocabulary else splits


def _in_owners_words(splits: Splits, vocabulary: int) -> Splits:
    """Return the same texts encoded by the vocabulary of the owner's training texts."""
    owner, attacker, test = splits.owner, splits.attacker, splits.test
    parts = (owner.train, owner.held_out, attacker.train, attacker.held_out, test)
    size = 1 + max(int(part.inputs.max()) for part in parts if len(part))
    table = vocabulary_table(owner.train.inputs, size, vocabulary)
    own, own_held, other, other_held, tested = (replace(part, inputs=table[part.inputs.long()]) for part in parts)
    return Splits(
        replace(owner, train=own, held_out=own_held),
        replace(attacker, train=other, held_out=other_held),
        tested,
        splits.seed,
    )
