"""After transfer learning: the owner turns a network for another task back into one that its verifier can query."""

from __future__ import annotations

from contextlib import nullcontext

from torch import nn

from assay.attacks.base import Adapted
from assay.attacks.parts.heads import fresh_head, layers, with_head
from assay.attacks.parts.training import FineTuning, only_trainable
from assay.tasks.lab import Lab


def recovered(surrogate: nn.Module, original: nn.Module, adapted: Adapted, lab: Lab) -> nn.Module:
    """Return the network in which the owner looks for the mark. Deterministic; not counted as the attack's cost.

    Args:
        surrogate: the adapted network; not changed.
        original: the owner's own network.
        adapted: what is known of the adaptation.
            `none`: the surrogate itself. `original_head`: the owner's last layer on the surrogate's body.
            `retrain_head`: a new head with the owner's classes, trained for a few epochs on the owner's data, with the
            same layers free as the transfer had (null embedding, section 8.4).
        lab: the owner's; `retrain_head` alone trains on its data.
    """
    name = adapted.head
    if adapted.recovery == "none":
        return surrogate
    head = original.get_submodule(name)
    if adapted.recovery == "original_head":
        return with_head(surrogate, name, head).eval()
    classes = head.get_parameter("weight").shape[0]
    model = with_head(surrogate, name, fresh_head(surrogate, name, classes, lab.plugin, "recovery", lab.seed))
    part = None if adapted.trained == ("",) else layers(model, adapted.trained)
    with nullcontext() if part is None else only_trainable(model, part):
        return lab.fit(model, lab.data.train, FineTuning(head=part), adapted.schedule, name="recovery").model
