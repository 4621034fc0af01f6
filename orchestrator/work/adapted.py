"""Judging a surrogate of another task: its worth there, and how the owner reads its mark (docs/protocol.md §14)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from assay.attacks.base import Outcome
from assay.attacks.parts.heads import with_head
from assay.attacks.parts.recovery import recovered
from assay.methods.suspect import Access
from assay.orchestrator.work.bench import Bench
from assay.tasks.training.trainer import evaluate


@dataclass(frozen=True)
class Seen:
    """What a surrogate is judged by.

    Attributes:
        old: a network that answers with the owner's classes: figures on the owner's task.
        suspect: what the owner's verifier reads; None if it could only query logits of another task.
        worth: accuracy on the surrogate's own task, and that of the same attack on the unmarked twin where it was run.
    """

    old: nn.Module
    suspect: nn.Module | None
    worth: tuple[float, float | None]


def seen(bench: Bench, outcome: Outcome, victim: nn.Module, access: Access) -> Seen | None:
    """Return what an adapted surrogate is judged by, None for any other; the owner's recovery is no attack cost."""
    surrogate, adapted = outcome.surrogate, outcome.adapted
    if surrogate is None or adapted is None:
        return None
    surrogate = surrogate.to(bench.device).eval()
    seed = bench.identity["seed"]
    lab = bench.lab("recovery", seed, f"recovery|{seed}", "owner", bench.splits.owner)
    suspect = recovered(surrogate, victim, adapted, lab)
    answers = outcome.structure == "same" or adapted.recovery != "none"
    old = suspect if answers else with_head(surrogate, adapted.head, victim.get_submodule(adapted.head)).eval()
    twin = bench.identity.get("twin")
    reference = bench.store.record(twin)["result"]["report"]["target_acc"] if twin else None
    worth = evaluate(surrogate, adapted.test), reference
    return Seen(old, suspect if answers or access == "weights" else None, worth)
