"""The laptop settings and the attacks that the claims of all papers share, by the names in which claims are written.

Three victims each, 10,000 training images (owner 8,000, attacker 2,000) and 2,000 test images. The tasks' own optimiser
is Adam at 1e-3, fine-tuning attacks run SGD with momentum 0.9: the rate at which SGD trains these networks (the papers'
own) is 0.01. That is `TRAIN`, and a tenth of it `SMALL`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from assay.results.claims.marks import After, Marked

M28: Final = "mnist-convnet-p"
C32: Final = "cifar10-convnet-p"
MLP28: Final = "mnist-mlp-400x2"
BN28: Final = "mnist-cnn-mini"  # with batch norm
G32: Final = "gtsrb-conv6-fc3-half"
G26: Final = "gtsrb26-conv6-fc3-half"  # without the 17 classes of `gtsrb17`
T32: Final = "tiny20-convnet-p-wide"
TXT: Final = ("trec-lstm", "imdb-textcnn")

GRIDS: Final[Mapping[str, str]] = {
    "S0": "claims-usp-csp", "S1": "claims-function-coupled", "S2": "claims-null-embedding", "S3": "claims-ingrain",
    "S4": "claims-greedy-residuals",
}  # fmt: skip
"""What the names of a paper's shipped grids begin with."""

TRAIN: Final = 0.01
SMALL: Final = 0.001
RATIOS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# Epochs of overwriting on the attacker's quarter of the owner's data. In units of the owner's steps they are 0.13, 1.3
# and 2.5 where the owner trains for 8 epochs, 0.08, 0.8 and 1.7 where it trains for 12: about 0.1, 1 and 2.
BUDGETS: Final[Mapping[float, int]] = {0.1: 4, 1: 40, 2: 80}


def FT(mark: Marked, lr: float) -> After:  # noqa: N802 (the names of the claims)
    """Fine-tune all layers on the attacker's data."""
    return mark.after("fine-tune", f"FT {lr:g}", mode="ftal", trials=0, lr=lr)


def rounds(mark: Marked, lr: float) -> After:
    """Fine-tune in ten rounds, each on top of the last."""
    return mark.after("fine-tune", f"FT x10 {lr:g}", mode="ftal", trials=10, lr=lr)


def PR(mark: Marked, ratio: float, scope: str = "global") -> After:  # noqa: N802
    """Prune a share of the weights."""
    name = f"PR {ratio:g}" if scope == "global" else f"PR {ratio:g} per {scope}"
    return mark.after("prune", name, ratio=ratio, scope=scope)


def pruned(mark: Marked, ratios: Iterable[float] = RATIOS, scope: str = "global") -> dict[float, After]:
    """Prune shares of the weights, one model for each."""
    return {ratio: PR(mark, ratio, scope) for ratio in ratios}


def PRR(mark: Marked, ratio: float) -> After:  # noqa: N802
    """Prune, then retrain."""
    return mark.after("prune-retrain", f"PRR {ratio:g}", unit="weights", ratio=ratio)


def KD(mark: Marked, temperature: float, student: str | None = None, **config: Any) -> After:  # noqa: N802
    """Distill into a student; None: the victim's architecture."""
    name = f"KD {temperature:g}" + (f" into {student}" if student else "")
    return mark.after("distill", name, temperature=temperature, student=student, alpha=0.9, **config)


def OW(mark: Marked, budget: float) -> After:  # noqa: N802
    """Overwrite with about `budget` times the owner's steps, at the owner's rate."""
    return mark.after("overwrite", f"OW {budget:g}", mode="with_data", lr="last", epochs=BUDGETS[budget])
