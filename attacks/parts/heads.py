"""The last layer of a stolen network, and what else of it an attacker trains when turning it to another task."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from assay.attacks.parts.graph import logit_layer
from assay.tasks.errors import UnsupportedModel
from assay.tasks.streams import global_stream
from assay.tasks.task import Task

Part = Literal["added", "last_two_dense", "all_dense", "all"]
"""What a transfer trains: the new head, the last two dense layers, every dense layer, or everything."""


def with_head(model: nn.Module, name: str, head: nn.Module) -> nn.Module:
    """Return a copy of `model` with a copy of `head` in the place of the layer `name`."""
    changed = copy.deepcopy(model)
    changed.set_submodule(name, copy.deepcopy(head))
    return changed


def fresh_head(model: nn.Module, name: str, classes: int, *names: str | int) -> nn.Linear:
    """Return a dense layer from the inputs of layer `name` to `classes` logits, initialised under named streams."""
    old = model.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise UnsupportedModel(f"layer {name} gives the logits and is no dense layer")
    with global_stream(*names), torch.device("cpu"):
        head = nn.Linear(old.in_features, classes)
    return head.to(old.weight.device)


@lru_cache(maxsize=256)
def dense_layers(dataset: str, model: str) -> tuple[str, ...]:
    """Return the names of an architecture's dense layers, the head among them; known without a trained network."""
    network = Task(dataset=dataset, model=model).build("dense layers")
    return tuple(name for name, module in network.named_modules() if isinstance(module, nn.Linear))


def repeats_added(dataset: str, model: str, mode: Part) -> str | None:
    """Return why a mode would only repeat `added` on an architecture, or None."""
    if mode in ("added", "all") or len(dense_layers(dataset, model)) > 1:
        return None
    return f"{model} has one dense layer, so mode {mode} is the same as added"


def trained_layers(model: nn.Module, mode: Part) -> tuple[str, ...]:
    """Return the names of the layers that a transfer trains, the head last; `("",)` is the whole network.

    Raises:
        UnsupportedModel: the network has one dense layer, so the mode would repeat `added`.
    """
    if mode == "all":
        return ("",)
    head = logit_layer(model)
    others = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != head]
    if mode == "added":
        return (head,)
    if not others:
        raise UnsupportedModel(f"{type(model).__name__} has one dense layer, so {mode} is the same as added")
    return (*(others[-1:] if mode == "last_two_dense" else others), head)


def layers(model: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """Return the named layers of `model` as one module, for `only_trainable` and `FineTuning`."""
    return nn.ModuleList([model.get_submodule(name) for name in names])
