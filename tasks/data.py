"""Data as tensors on the device, and who holds which part of it (`spec: protocol, data splits`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tasks.errors import BadInput
from tasks.streams import stream

SplitMode = Literal["disjoint20", "same", "fcw", "pir5k", "none"]


def to_model_input(inputs: Tensor) -> Tensor:
    """Turn stored inputs into what a model takes: uint8 images (N, C, H, W) to float32 in [0, 1]; token ids as is."""
    return inputs.float().div_(255.0) if inputs.dtype == torch.uint8 else inputs


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
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Labelled:
        """Return the samples at `index`, in that order."""
        return Labelled(self.inputs[index], self.labels[index])

    def of_class(self, label: int) -> Labelled:
        """Return the samples of one class, in their order."""
        return self.take(torch.nonzero(self.labels == label).flatten())

    def model_inputs(self) -> Tensor:
        """Return all inputs as a model takes them (images: float32 in [0, 1])."""
        return to_model_input(self.inputs)

    def to(self, device: torch.device) -> Labelled:
        """Return the same samples on `device`."""
        return Labelled(self.inputs.to(device), self.labels.to(device))

    @staticmethod
    def join(*parts: Labelled) -> Labelled:
        """Concatenate parts in the order given."""
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
        the owner has 60,000 or more). `none`: empty.
        """
        if mode == "disjoint20":
            return self.attacker
        if mode == "none":
            empty = self.attacker.train.take(slice(0, 0))
            return Party(empty, empty, mode, overlaps_owner=False)
        generator = stream("split", mode, self.seed)
        if mode == "fcw":
            wanted = 2000 if len(self.owner.train) >= 60_000 else 1000
            index = torch.randperm(len(self.attacker.train), generator=generator)[:wanted]
            part = self.attacker.train.take(index.to(self.attacker.train.labels.device))
            return Party(part, self.attacker.held_out, mode, overlaps_owner=False)
        if mode not in ("same", "pir5k"):
            raise BadInput(f"unknown split mode {mode!r} (allowed: disjoint20, same, fcw, pir5k, none)")
        whole = self.owner.train
        size = len(whole) if mode == "same" else min(len(whole), 5000 if len(whole) >= 20_000 else 1000)
        index = torch.randperm(len(whole), generator=generator)[:size].to(whole.labels.device)
        val = validation_size(size)
        return Party(whole.take(index[val:]), whole.take(index[:val]), mode, overlaps_owner=True)


def validation_size(total: int, floor: int = 200) -> int:
    """Return 10 % of `total`, raised to `floor` samples but never above 25 % (protocol 2.1)."""
    return min(max(total // 10, floor), total // 4)


def stratified(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split positions 0..N-1 into a part with `share` of every class and the rest, both in shuffled order.

    Args:
        labels: class indices (N,), on any device.
        share: in [0, 1]; each class contributes `round(share * n_class)` samples to the first part.
        generator: a CPU generator.
    """
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=generator)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = order[labels[order] == label]
        chosen[members[: round(share * len(members))]] = True
    return order[chosen[order]], order[~chosen[order]]


def split(train: Labelled, test: Labelled, seed: int) -> Splits:
    """Split a training set for one victim seed: 80 % owner, 20 % attacker, stratified by class (protocol 2.1).

    Each party's held-out part comes out of its own share: 10 %, raised to 200 samples (owner: 500), at most 25 %.
    """
    theirs, ours = stratified(train.labels, 0.2, stream("split", "disjoint20", seed))
    device = train.labels.device

    def hold(index: Tensor, floor: int, mode: str) -> Party:
        cut = validation_size(len(index), floor)
        index = index.to(device)
        return Party(train.take(index[cut:]), train.take(index[:cut]), mode, overlaps_owner=mode == "owner")

    return Splits(hold(ours, 500, "owner"), hold(theirs, 200, "disjoint20"), test, seed)
