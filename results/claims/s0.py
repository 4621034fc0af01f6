"""S0: unified and customised soft-label perturbation (Chien & Shen 2022), `usp` and `csp`."""

from __future__ import annotations

from typing import Final

from assay.results.claims.expressions import Figure, least, most
from assay.results.claims.marks import Marked, marked
from assay.results.claims.settings import C32, FT, KD, M28, PR, PRR, SMALL, T32, TRAIN
from assay.results.claims.verdict import Claim, printed

USP: Final = marked("usp", use_kld=True, use_detector_loss=True, beta=1.0, detector_input="log_softmax")
CSP: Final = marked("csp", use_kld=True, use_detector_loss=True, tau=0.85, detector_input="log_softmax")
BOTH: Final = (USP, CSP)
STUDENTS: Final = (None, "convnet-p-half", "convnet-p-quarter")
TAUS: Final = {tau: CSP.but(tau=tau) for tau in (0.75, 0.85, 0.95)}
_SAME_BLOCK = (
    "Victims of one block of seeds are each other's peers, so their matrices are one: n counts it several times."
)


def confused(mark: Marked, owners: int, figure: str = "misidentified") -> Figure:
    """Return a rate of cross-verification: keys read from their own models, or (`misidentified`) from others'."""
    return mark.after("cross-verify", f"{owners} keys", owners=owners).reported(figure)


CLAIMS: Final = (
    Claim(
        "S0-1",
        "Marking costs little accuracy and is detected almost surely",
        on=(M28, C32),
        tests=tuple(part for m in BOTH for part in (m.drop <= 0.03, m.score >= 0.90)),
        controls=tuple(m.reads_unmarked("det_rate") <= 0.15 for m in BOTH),
        published=(
            printed("usp_csp/5", method=("usp", "csp"), attack="none", metric=("main_acc", "wm_acc")),
            printed("usp_csp/5", method="clean", metric="main_acc"),
        ),
        note="The control reads each victim's own unmarked twin, which took no part in training the detector.",
    ),
    Claim(
        "S0-2",
        "Both survive distillation, whatever the student's size",
        on=(M28, C32),
        tests=tuple(
            part
            for m in BOTH
            for part in (
                least((KD(m, 4.0, s).score for s in STUDENTS), f"least s({m.name} | KD 4, three widths)") >= 0.85,
                KD(m, 4.0).reads("det_rate") - KD(m, 4.0).reads_unmarked("det_rate") >= 0.5,
            )
        ),
        reports=(KD(USP.but(detector_input="logits"), 4.0).reads("det_rate"),),
        published=(
            printed("usp_csp/5", method=("usp", "csp"), attack="distill"),
            printed("usp_csp/10", method=("usp", "csp"), attack="distill", metric="wm_acc"),
        ),
        note="The reported detector reads raw logits, whose common shift students do not inherit.",
    ),
    Claim(
        "S0-3",
        "Fine-tuning weakens them moderately, more at a larger rate",
        on=(M28, C32),
        tests=tuple(
            part
            for m in BOTH
            for part in (
                FT(m, SMALL).score >= 0.85,
                FT(m, TRAIN).score >= 0.75,
                FT(m, SMALL).score - FT(m, TRAIN).score >= 0,
            )
        ),
        published=(printed("usp_csp/14", method=("usp", "csp"), metric="wm_acc"),),
    ),
    Claim(
        "S0-4",
        "Pruning 80 % without retraining does not remove them",
        on=(M28, C32),
        tests=tuple(PR(m, 0.8).score >= 0.85 for m in BOTH),
        controls=tuple(PR(m, 0.8).reads_unmarked("det_rate") <= 0.3 for m in BOTH),
        reports=tuple(PR(m, 0.8).acc for m in BOTH),
        published=(printed("usp_csp/5", method=("usp", "csp"), attack="prune"),),
        note="The control prunes the unmarked model alike: a detector may fire at any broken network.",
    ),
    Claim(
        "S0-5",
        "After pruning and retraining csp keeps more than usp",
        on=(M28, C32),
        tests=(PRR(CSP, 0.8).score - PRR(USP, 0.8).score >= 0.03,),
        published=(printed("usp_csp/5", method=("usp", "csp"), attack="prune-retrain", metric="wm_acc"),),
    ),
    Claim(
        "S0-6",
        "usp cannot tell owners apart",
        on=(M28, C32),
        tests=(confused(USP, 3) >= 0.5,),
        published=(printed("usp_csp/4", method="usp", attack="cross-verify"),),
        note=_SAME_BLOCK,
    ),
    Claim(
        "S0-7",
        "csp can: its own detector is high, foreign ones low, and errors grow with the number of keys",
        on=(M28, C32, T32),
        tests=(
            confused(CSP, 4, "identified") >= 0.85,
            confused(CSP, 4) <= 0.25,
            (confused(USP, 3) - confused(CSP, 3) >= 0.2).on(M28, C32),
            (confused(CSP, 8) - confused(CSP, 3) >= 0).on(M28, C32),
        ),
        published=(printed("usp_csp/11", method="csp"), printed("usp_csp/12", {"n_models": (3, 7, 20)})),
        figures="tables 6 to 9 print five detectors by five models for each of four data sets",
        note=f"Signals are drawn, not chosen for |corr| <= 0.5; Tiny ImageNet has 20 classes. {_SAME_BLOCK}",
    ),
    Claim(
        "S0-8",
        "The re-embedding threshold has a sweet spot near 85 %",
        on=(M28, C32),
        tests=(
            FT(TAUS[0.85], TRAIN).score
            - most((FT(TAUS[tau], TRAIN).score for tau in (0.75, 0.95)), "largest s(csp tau=0.75, 0.95 | FT 0.01)")
            >= 0.05,
        ),
        controls=(
            most((m.over_training("perturbed") for m in TAUS.values()), "largest share of re-embedding over tau")
            - least((m.over_training("perturbed") for m in TAUS.values()), "least share")
            >= 1e-6,
        ),
        published=(printed("usp_csp/13", method="csp", attack="fine-tune", metric="wm_acc"),),
        note="The control: the threshold must have mattered, that is, changed how many steps of phase two re-embed.",
    ),
    Claim(
        "S0-9",
        "Without the divergence term the detector alone is not enough",
        on=(M28, C32),
        tests=(
            USP.score - USP.but(use_kld=False).score >= 0.10,
            USP.but(beta=0.0).score - USP.but(beta=0.0, use_kld=False).score >= 0.10,
        ),
        reports=tuple(
            figure
            for m in (CSP, CSP.but(use_kld=False), CSP.but(use_detector_loss=False))
            for figure in (m.score, KD(m, 4.0).score)
        ),
        published=(printed("usp_csp/15", method="usp", metric="wm_acc"),),
        note="Once with the detector's verdict in the loss (beta 1) and once without it (beta 0).",
    ),
)
