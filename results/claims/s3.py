"""S3: ingrain (Yang, Dang, Chang 2019) beside capacity abuse and the weight marks."""

from __future__ import annotations

from typing import Final

from assay.results.claims.marks import After, Marked, marked
from assay.results.claims.settings import C32, FT, KD, MLP28, SMALL, TRAIN
from assay.results.claims.verdict import Claim, printed

_M = 500
_STUDENTS: Final = {MLP28: "mlp-300x2", C32: None}


def ingrain(strength: float, carriers: int = _M, *, augment: bool = True) -> Marked:
    """Return ingrain at a coefficient λ with m carriers."""
    mark = marked("ingrain", strength=strength, carriers=carriers, augment_carriers=augment, law="walk")
    return mark.but(strength=strength, carriers=carriers)


def cap(carriers: int = _M) -> Marked:
    """Return capacity abuse: the method itself or, what is the same, ingrain at λ = 0."""
    return marked("cap", carriers=carriers) | ingrain(0.0, carriers)


def taught(mark: Marked, temperature: float = 10.0, task: str = MLP28) -> After:
    """Distill as the paper does, for the setting of a task."""
    return KD(mark, temperature, _STUDENTS[task], epochs=40 if task == MLP28 else None)


NOISE: Final = marked("ingrain", strength=0.0, carriers=_M, law="uniform", carrier_repeat=1, augment_carriers=True)
_BOTH = ("train_accuracy", "carrier_accuracy")
LAMBDAS: Final = (0.5, 2.0, 8.0)
SIZES: Final = (200, 500, 1000)
_PAPER = {"temperature": 10, "D_S": 1000}

CLAIMS: Final = (
    Claim(
        "S3-1",
        "Distillation erases every earlier mark at no cost",
        on=(MLP28,),
        tests=(
            *(part for t in (5.0, 10.0) for part in (taught(cap(), t).norm <= 0.10, taught(cap(), t).loss <= 0.03)),
            taught(marked("uchida")).readable <= 0,
        ),
        published=(printed("ingrain/3", {"D_S": 1000, "temperature": (5, 10)}, method="cap", dataset="mnist"),),
        note="cap is ingrain at strength 0 where the sweep has no method of that name.",
    ),
    Claim(
        "S3-2",
        "Ingrain keeps a substantial part",
        on=(MLP28, C32),
        tests=tuple(
            part.on(task)
            for task, margin in ((MLP28, 0.10), (C32, 0.03))
            for part in (
                taught(ingrain(2.0), task=task).norm - taught(cap(), task=task).norm >= margin,
                taught(ingrain(2.0), task=task).p.below(1e-3) >= 1,
            )
        ),
        reports=(
            taught(ingrain(2.0)).acc,
            taught(cap()).acc,
            taught(ingrain(2.0), task=C32).acc,
            taught(cap(), task=C32).acc,
        ),
        published=(
            printed("ingrain/3", {**_PAPER, "lambda": 2}, metric="wm_acc"),
            printed("ingrain/3", _PAPER, method="cap", metric="wm_acc"),
        ),
        note="Fair only if the students' accuracies lie within 0.05 of each other.",
    ),
    Claim(
        "S3-3",
        "The coefficient trades accuracy for robustness; before any attack the mark is perfect at every one",
        on=(MLP28,),
        tests=(
            taught(ingrain(8.0)).norm - taught(ingrain(0.5)).norm >= 0.05,
            ingrain(0.5).acc - ingrain(8.0).acc >= 0.01,
            *(ingrain(strength).norm >= 0.98 for strength in LAMBDAS),
            ingrain(0.5).drop <= 0.03,
        ),
        published=(
            printed("ingrain/3", _PAPER, method="ingrain", metric="wm_acc", dataset="mnist"),
            printed("ingrain/2", {"D_S": 1000}, method="ingrain", metric="main_acc", dataset="mnist"),
        ),
    ),
    Claim(
        "S3-4",
        "More carriers survive less",
        on=(MLP28,),
        tests=(taught(ingrain(2.0, 200)).norm - taught(ingrain(2.0, 1000)).norm >= 0.05,),
        reports=(taught(ingrain(2.0, 500)).norm,),
        published=(printed("ingrain/3", {"temperature": 10, "lambda": 2}, metric="wm_acc", dataset="mnist"),),
    ),
    Claim(
        "S3-5",
        "Against other attacks it matches capacity abuse, and a large coefficient is worse",
        on=(MLP28,),
        tests=(
            FT(ingrain(0.5), SMALL).norm >= 0.95,
            FT(ingrain(0.5), TRAIN).norm - FT(ingrain(8.0), TRAIN).norm >= 0.03,
            *(
                m.after("round", "round 2", digits=2).norm >= 0.98
                for m in (cap(), *(ingrain(strength) for strength in LAMBDAS))
            ),
        ),
        reports=(FT(cap(), SMALL).norm, FT(cap(), TRAIN).norm),
        published=(
            printed("ingrain/4", {"D_S": 1000}, method=("cap", "ingrain"), metric="wm_acc", attack="fine-tune"),
            printed("ingrain/4", {"D_S": 1000}, method=("cap", "ingrain"), metric="wm_acc", attack="round"),
        ),
    ),
    Claim(
        "S3-5b",
        "Rounding erases marks in the lower digits of the weights",
        on=(MLP28,),
        tests=(marked("lsb").after("round", "round 2", digits=2).norm <= 0.05,),
        published=(printed("ingrain/4", {"D_S": 1000}, method="lsb", metric="wm_acc", attack="round"),),
        note="The part of S3-5 that needs lsb.",
    ),
    Claim(
        "S3-6",
        "The mark rides on in-distribution predictions: without poisoning it is already partly there",
        on=(MLP28,),
        tests=(ingrain(2.0, augment=False).norm >= 0.10, taught(ingrain(2.0, augment=False)).norm >= 0.05),
        figures="figures 3, 6 and 7",
    ),
    Claim(
        "S3-7",
        "Random carriers are memorised late",
        on=(C32,),
        tests=(NOISE.epochs_between(*_BOTH) >= 2,),
        controls=(NOISE.norm >= 0.5,),
        reports=(cap().epochs_between(*_BOTH),),
        figures="figure 1",
        note="Noise is shown once per epoch; the random walk beside it is shown four times in the laptop profile.",
    ),
)
