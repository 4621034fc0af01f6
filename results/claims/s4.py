"""S4: greedy residuals (Liu, Weng, Zhu 2021), `greedy-residuals`."""

from __future__ import annotations

from typing import Final

from assay.results.claims.marks import After, Marked, best_rival, marked, reach, worst_score
from assay.results.claims.settings import BN28, BUDGETS, C32, FT, M28, MLP28, OW, SMALL, TRAIN, TXT, pruned
from assay.results.claims.verdict import Claim, printed

# A fixed strength, where a sweep has it beside `auto`, is for overwriting alone.
GREEDY: Final = marked("greedy-residuals", eta=0.5, start="scratch", strength="auto") | marked(
    "greedy-residuals", eta=0.5, start="scratch"
)
ALL: Final = GREEDY.but(eta=1.0)
RATIOS: Final = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_RATES: Final = (SMALL, TRAIN)


def moved(mark: Marked, lr: float) -> After:
    """Turn the network to another task with a new head, all layers trained."""
    return mark.after("transfer", f"transfer {lr:g}", head="replace", mode="all", lr=lr)


def permuted(nodes: int | str) -> After:
    """Let kernels of the layer that carries the bits change places, or `all` channels of every layer."""
    targets = "all" if nodes == "all" else "carrier-rows"
    return GREEDY.after("permute", f"permute {nodes}", targets=targets, n_nodes=nodes)


def scaled(factor: float) -> After:
    """Scale channels by one factor, which leaves the function as it is."""
    return GREEDY.after("scale", f"scale {factor:g}", law="constant", targets="all", factor=factor)


# An attacker under `auto` takes the strength that its own few steps ask for, which makes a budget of any length a whole
# one. With a number it is the owner's: those of the shipped grid on M28 and C32, and the paper's.
_SAME_STRENGTH = (
    marked("greedy-residuals", eta=0.5, strength=0.877)
    | marked("greedy-residuals", eta=0.5, strength=0.0548)
    | marked("greedy-residuals", eta=0.5, strength=0.01)
)
_OWN_STRENGTH = marked("greedy-residuals", eta=0.5).but(strength="auto")
_OVERWRITTEN = "greedy-residuals | OW 0.1, 1, 2"

_FORGED = GREEDY.after("forge", "200 signatures", procedure="search", draws=200)
_CLAIMED = GREEDY.after("false-claim", "200 signatures", mode="random", claims=200)

CLAIMS: Final = (
    Claim(
        "S4-1",
        "All of the bits on any kind of network, at most 1.8 points of accuracy",
        on=(M28, C32, MLP28, BN28, *TXT),
        tests=(GREEDY.score >= 1, GREEDY.drop <= 0.02),
        published=(
            printed("greedy_residuals/1", method=("clean", "greedy-residuals"), dataset=("cifar10", "trec", "imdb")),
        ),
        note="Caltech is not at hand; 8,000 images of tiny_imagenet_32 leave too little accuracy to decide anything.",
    ),
    Claim(
        "S4-2",
        "Transfer with a new head leaves every bit",
        on=(M28, C32),
        tests=(*(moved(GREEDY, lr).score >= 0.98 for lr in _RATES), FT(GREEDY, TRAIN).score >= 0.98),
        reports=tuple(moved(GREEDY, lr).reported("target_acc") for lr in _RATES),
        published=(printed("greedy_residuals/3", method="greedy-residuals", metric="wm_det_rate", dataset="cifar10"),),
    ),
    Claim(
        "S4-3",
        "Pruning destroys the task before the bits",
        on=(M28, C32),
        tests=tuple(
            worst_score(
                pruned(GREEDY, RATIOS, scope).values(), f"greedy-residuals | PR 0.3 to 0.95, {scope}", lost=0.10
            )
            >= 0.98
            for scope in ("global", "layer")
        ),
        figures="figure 4: the worst case breaks at a sparsity of 75 %, accuracy then 44.7",
    ),
    Claim(
        "S4-4",
        "Permuting a few kernels and scaling are harmless",
        on=(M28, C32),
        tests=(
            *(permuted(nodes).score >= 0.93 for nodes in (2, 3, 4)),
            *(scaled(factor).score >= 1 for factor in (0.1, 2.0, 10.0)),
        ),
        reports=(permuted("all").score, permuted("all").loss),
        published=(printed("greedy_residuals/4", dataset="cifar10"),),
        figures="the scaling table is lost in the text; the prose says 100 throughout",
        note="A victim's draws are its attack seeds: with --set attack_seeds=10 the mean is over ten of each. "
        "Permuting all channels keeps the function, too.",
    ),
    Claim(
        "S4-5",
        "Foreign signatures match at chance",
        on=(M28, C32),
        tests=(
            _FORGED.reported("draws_mean") >= 0.47,
            _FORGED.reported("draws_mean") <= 0.53,
            _FORGED.reported("draws_best") <= 0.66,
            _CLAIMED.share_of_claims("marked", 0.58) <= 0.03,
        ),
        figures="figure 5: about 50 % for 200 signatures; the forging table is lost in the text",
        note="A score of 0.58 has p <= 0.01 for 256 bits.",
    ),
    Claim(
        "S4-6",
        "Overwriting fails: the owner stays, the attacker's bits remain at chance",
        on=(M28, C32),
        tests=(
            worst_score((OW(_SAME_STRENGTH, c) for c in BUDGETS), _OVERWRITTEN, lost=0.05) >= 0.95,
            best_rival((OW(_SAME_STRENGTH, c) for c in BUDGETS), _OVERWRITTEN, lost=0.05) <= 0.65,
        ),
        reports=tuple(
            figure
            for mark in (_SAME_STRENGTH, _OWN_STRENGTH)
            for c in BUDGETS
            for figure in (OW(mark, c).score, OW(mark, c).rival, OW(mark, c).acc)
        ),
        published=(printed("greedy_residuals/7", method="greedy-residuals", dataset="cifar10"),),
        note="The attacker's strength is the owner's; with strength auto it takes what its own steps ask for.",
    ),
    Claim(
        "S4-7",
        "Taking only the largest half is better than taking all",
        on=(M28, C32),
        tests=(
            reach(pruned(GREEDY, RATIOS, "layer"), "PR per layer, eta=0.5", 0.95)
            - reach(pruned(ALL, RATIOS, "layer"), "PR per layer, eta=1", 0.95)
            >= 0.05,
            moved(GREEDY, TRAIN).score - moved(ALL, TRAIN).score >= 0,
        ),
        figures="figure 6: with eta 1 pruning breaks at a sparsity of 50 to 55 %; the table is lost in the text",
    ),
)
