"""S1: function-coupled watermarks (Wen et al. 2023), `fcw-direct` and `fcw-invisible`."""

from __future__ import annotations

from typing import Final

from assay.results.claims.expressions import Expression, mean, most
from assay.results.claims.marks import After, Marked, marked, worst_score
from assay.results.claims.settings import C32, FT, M28, OW, PR, SMALL, TRAIN, pruned, rounds
from assay.results.claims.verdict import Claim, printed

_FULL: Final = {"masking": True, "ft_enhance": True}
DIRECT: Final = marked("fcw-direct", **_FULL)
INVISIBLE: Final = marked("fcw-invisible", r=0.5, **_FULL)
BOTH: Final = (DIRECT, INVISIBLE)
BLENDS: Final = {0.5: INVISIBLE, 0.7: INVISIBLE.but(r=0.7), 0.9: INVISIBLE.but(r=0.9)}
OTHERS: Final = (marked("zhang"), marked("adi"))
HARD: Final = (0.7, 0.8, 0.9)


def plain(mark: Marked) -> Marked:
    """Return the same mark without either enhancement."""
    return mark.but(masking=False, ft_enhance=False)


def gentle_overwrite(mark: Marked) -> After:
    """Overwrite at the paper's rate."""
    return mark.after("overwrite", "OW 1e-4", mode="with_data", lr=1e-4)


def moved(mark: Marked) -> After:
    """Turn the network to another task with its head kept: ten epochs at the small rate."""
    return mark.after("transfer", "transfer", head="reuse", mode="all", epochs=10, lr=SMALL)


def hardened(mark: Marked) -> Expression:
    """Return what the enhancements add to the score under heavy pruning."""
    gains = (PR(mark, ratio).score - PR(plain(mark), ratio).score for ratio in HARD)
    return mean(gains, f"mean gain of s({mark.name}) over PR 0.7, 0.8, 0.9")


def lead(mark: Marked) -> Expression:
    """Return how far the score stays above that of the best ordinary trigger mark, over four attacks."""
    attacks = (lambda m: FT(m, SMALL), moved, lambda m: PR(m, 0.8), gentle_overwrite)
    gaps = (a(mark).score - most((a(other).score for other in OTHERS), "largest s(zhang, adi)") for a in attacks)
    return mean(gaps, f"mean lead of s({mark.name}) over zhang and adi under four attacks")


CLAIMS: Final = (
    Claim(
        "S1-1",
        "The mark is always found and costs nothing, whatever the transparency",
        on=(M28, C32),
        tests=(
            *(part for m in (DIRECT, *BLENDS.values()) for part in (m.score >= 0.98, abs(m.drop) <= 0.02)),
            BLENDS[0.9].reads_unmarked("first_source_accuracy") - BLENDS[0.9].reads("first_source_accuracy") <= 0.05,
        ),
        published=(
            printed("function_coupled/1", dataset=("mnist", "cifar10")),
            printed("function_coupled/2", {"run": 1}, dataset=("mnist", "cifar10")),
        ),
        note="At r = 0.9 a trigger is almost a plain image of the base class: that class may lose 5 points at most.",
    ),
    Claim(
        "S1-2",
        "Fine-tuning does not remove it",
        on=(M28, C32),
        tests=tuple(rounds(m, lr).score >= 0.95 for m in BOTH for lr in (1e-5, SMALL)),
        published=(printed("function_coupled/4", attack="fine-tune"),),
    ),
    Claim(
        "S1-2b",
        "Fine-tuning at the rate of training does not remove it either",
        on=(M28, C32),
        tests=tuple(rounds(m, TRAIN).score >= 0.95 for m in BOTH),
        published=(printed("function_coupled/4", attack="fine-tune", method=("fcw-direct", "fcw-invisible")),),
        note="A second verdict on S1-2; the paper fine-tunes at 1e-5.",
    ),
    Claim(
        "S1-3",
        "Pruning kills the task before the mark",
        on=(M28, C32),
        tests=tuple(
            part
            for m in BOTH
            for part in (
                PR(m, 0.8).score >= 0.90,
                worst_score(pruned(m).values(), f"{m.name} | PR 0.1 to 0.9", lost=0.05) >= 0.90,
            )
        ),
        published=(printed("function_coupled/4", attack="prune"),),
        figures="figures 8 and 9",
    ),
    Claim(
        "S1-4",
        "Overwriting leaves the old mark intact and adds the new one",
        on=(M28, C32),
        tests=tuple(
            part for m in BOTH for part in (gentle_overwrite(m).score >= 0.90, gentle_overwrite(m).rival >= 0.90)
        ),
        published=(printed("function_coupled/3", dataset=("mnist", "cifar10")),),
    ),
    Claim(
        "S1-4b",
        "Overwriting with the owner's own budget and rate leaves the old mark intact",
        on=(M28, C32),
        tests=tuple(part for m in BOTH for part in (OW(m, 1).score >= 0.90, OW(m, 1).rival >= 0.90)),
        published=(printed("function_coupled/3", dataset=("mnist", "cifar10")),),
        note="A second verdict on S1-4; the paper overwrites at 1e-4.",
    ),
    Claim(
        "S1-5",
        "Masks and training-time fine-tuning make the mark more robust to pruning",
        on=(M28, C32),
        tests=tuple(hardened(m) >= 0.05 for m in BOTH),
        reports=tuple(PR(m, 0.9).score for mark in BOTH for m in (mark.but(masking=False), mark.but(ft_enhance=False))),
        figures="figures 10 to 12: Tiny ImageNet at 80 % pruning from below 10 to about 80",
    ),
    Claim(
        "S1-5b",
        "Masks and training-time fine-tuning make the mark more robust to fine-tuning",
        on=(M28, C32),
        tests=tuple(FT(m, TRAIN).score - FT(plain(m), TRAIN).score >= 0.05 for m in BOTH),
        reports=tuple(
            FT(m, TRAIN).score for mark in BOTH for m in (mark.but(masking=False), mark.but(ft_enhance=False))
        ),
        figures="figures 10 to 12: about 10 points, above 20 on CIFAR-100",
        note="The second half of S1-5.",
    ),
    Claim(
        "S1-6",
        "Transfer to another task keeps most of it",
        on=(M28, C32),
        tests=tuple(moved(m).score >= 0.70 for m in BOTH),
        reports=tuple(moved(m).acc for m in BOTH),
        published=(printed("function_coupled/4", attack="transfer"),),
        figures="figure 7",
        note="CIFAR-100 is replaced by ten classes of traffic signs (MNIST) and of tiny_imagenet_32 (CIFAR-10).",
    ),
    Claim(
        "S1-7",
        "It beats ordinary trigger marks",
        on=(M28, C32),
        tests=tuple(lead(m) >= 0.05 for m in BOTH),
        published=(
            printed(
                "function_coupled/4",
                method=("zhang", "adi", "fcw-direct", "fcw-invisible"),
                attack=("fine-tune", "transfer", "prune", "overwrite"),
            ),
        ),
    ),
    Claim(
        "S1-8",
        "An unmarked model practically never answers all triggers with the target",
        on=(M28, C32),
        tests=tuple(
            m.after("false-claim", "random claims", mode="random").share_of_claims("unmarked", 0.5) <= 0.01
            for m in BOTH
        ),
        reports=tuple(m.reads_unmarked("largest_share") for m in BOTH),
        figures="argued, no number",
        note="A claim draws its classes anew, and a target that the unmarked models at hand rarely answer. Reported: "
        "the share of the owner's triggers that an unmarked model gives to one and the same class, whichever.",
    ),
)
