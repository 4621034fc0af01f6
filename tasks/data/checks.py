"""What every data set must be, whoever reads it: inputs of its kind, labels of its classes, groups within them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from assay.tasks.data.datasets import DatasetInfo
from assay.tasks.data.splits import Labelled
from assay.tasks.data.text import FIRST_WORD
from assay.tasks.errors import BadInput

_WORDS = 2**24  # a data set's ids are counted in one table


def outside(labels: npt.NDArray[Any], classes: int) -> tuple[int, str] | None:
    """Return the first row whose label is none of 0..classes - 1, and what is wrong with it; None if all are."""
    wrong = (labels < 0) | (labels >= classes)
    if not wrong.any():
        return None
    row = int(np.argmax(wrong))
    return row, f"found label {labels[row]} among labels {labels.min()} to {labels.max()}, expected 0..{classes - 1}"


def check_info(info: DatasetInfo) -> None:
    """Check the facts of a data set that somebody adds.

    Raises:
        BadInput: facts that no network could be built for.
    """
    where, axes = f"data set {info.key}", {"image": 3, "text": 1}.get(info.kind)
    if axes is None:
        raise BadInput(f"{where}: kind {info.kind!r} (allowed: image, text)")
    if len(info.shape) != axes or min(info.shape) < 1:
        wanted = "(C, H, W) of an image" if axes == 3 else "(L,) of a text"
        raise BadInput(f"{where}: shape {info.shape}, expected {wanted}")
    if info.classes < 2:
        raise BadInput(f"{where}: {info.classes} classes, expected 2 or more")
    if info.kind == "text" and info.vocabulary <= FIRST_WORD:
        raise BadInput(
            f"{where}: a vocabulary of {info.vocabulary} words, expected more than {FIRST_WORD}: 0 is padding, 1 any "
            "word outside it"
        )
    if info.kind == "image" and not all(
        len(values) in (1, info.shape[0]) and all(map(np.isfinite, values)) for values in (info.mean, info.std)
    ):
        raise BadInput(
            f"{where}: mean {info.mean} and std {info.std}, expected a number for each of {info.shape[0]} channels"
        )
    if info.kind == "image" and min(info.std) <= 0:
        raise BadInput(f"{where}: std {info.std}, expected numbers above 0")


def check_part(info: DatasetInfo, name: str, part: Labelled) -> None:
    """Check what a loader returned as one part of its data set.

    Raises:
        BadInput: it is not as `register_dataset` says; names what was found: dtype, range, shape, row.
    """
    where = f"data set {info.key}, {name} part"
    if not isinstance(part, Labelled) or not all(isinstance(held, Tensor) for held in (part.inputs, part.labels)):
        raise BadInput(
            f"{where}: the loader returned {type(part).__name__}, expected Labelled(inputs, labels) of tensors"
        )
    if part.labels.dim() != 1:
        raise BadInput(f"{where}: labels of shape {tuple(part.labels.shape)}, expected a number for each input, (N,)")
    if part.inputs.dim() == 0 or tuple(part.inputs.shape[1:]) != info.shape:
        raise BadInput(f"{where}: inputs of shape {tuple(part.inputs.shape[1:])}, expected {info.shape}")
    if len(part.inputs) != len(part.labels) or not len(part):
        raise BadInput(f"{where}: {len(part.inputs)} inputs and {len(part.labels)} labels; expected as many, and some")
    (_check_pixels if info.kind == "image" else _check_ids)(where, part.inputs)
    _check_labels(where, part.labels, info.classes)
    if part.groups is not None:
        _check_groups(where, part.groups, part.labels)


def _check_pixels(where: str, inputs: Tensor) -> None:
    if inputs.dtype == torch.uint8:
        return
    low, high = _range(inputs)
    if inputs.dtype != torch.float32 or not (low >= 0 and high <= 1):  # not a number is in no range
        raise BadInput(
            f"{where}: images {_name(inputs)} from {low:g} to {high:g}, "
            "expected uint8 from 0 to 255, or float32 from 0 to 1"
        )


def _check_ids(where: str, inputs: Tensor) -> None:
    low, high = _range(inputs)
    if inputs.dtype not in (torch.int32, torch.int64) or low < 0 or high >= _WORDS:
        raise BadInput(
            f"{where}: texts {_name(inputs)} from {low:g} to {high:g}, expected ids int32 or int64 in 0..{_WORDS - 1}"
        )


def _check_labels(where: str, labels: Tensor, classes: int) -> None:
    if labels.dtype != torch.int64:
        low, high = _range(labels)
        raise BadInput(f"{where}: labels {_name(labels)} from {low:g} to {high:g}, expected int64 in 0..{classes - 1}")
    if found := outside(labels.cpu().numpy(), classes):
        row, why = found
        raise BadInput(f"{where}, row {row} (the first is 0): {why}")


def _check_groups(where: str, groups: Tensor, labels: Tensor) -> None:
    if groups.dtype != torch.int64 or groups.shape != labels.shape:
        raise BadInput(
            f"{where}: groups {_name(groups)} of shape {tuple(groups.shape)}, expected int64 {tuple(labels.shape)}"
        )
    names, member = torch.unique(groups, return_inverse=True)
    one = torch.empty_like(names).scatter_(0, member, labels)  # some label of each group
    if len(mixed := torch.nonzero(one[member] != labels)):
        row = int(mixed[0])
        raise BadInput(
            f"{where}, row {row} (the first is 0): group {int(groups[row])} has samples of the classes "
            f"{int(labels[row])} and {int(one[member[row]])}, expected groups within a class"
        )


def _range(values: Tensor) -> tuple[float, float]:
    real = values.abs() if values.is_complex() else values
    low, high = torch.aminmax(real if real.is_floating_point() else real.long())
    return float(low), float(high)


def _name(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
