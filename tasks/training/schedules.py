"""The training schedules of the five papers as data, the laptop's and the smoke test's, and how attacks' epochs scale.

`PAPERS` holds what each paper says of each network that it trains, victims and students alike; where a paper is silent
the comment says so and names what fills the gap. Fields are those of `tasks.training.schedule.Schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from assay.tasks.data.datasets import BUILT_IN
from assay.tasks.errors import BadInput, unknown

Settings = Mapping[str, Any]
# Some classes of a data set train as all of them do, unless said otherwise.
_WHOLE: Mapping[str, str] = {info.key: info.part_of for info in BUILT_IN if info.part_of}

# --- unified and customized soft-label perturbation (usp_csp), sections 6.2, 6.6 and A.3 ------------------------------
# Neither optimiser nor augmentation is stated: those of its CosWM runs, and the usual crop and flip.
_USP: Settings = {
    "epochs": 160, "batch_size": 512, "optimizer": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 5e-4,
    "drops": [0.5, 0.75], "augment": "crop-flip",
}  # fmt: skip
# Drops at 60, 120, 150 of csp's 150 + 120 epochs. A share of 1 is where its second phase begins.
_USP_100: Settings = {**_USP, "epochs": 150, "batch_size": 256, "drops": [0.4, 0.8, 1.0], "drop_factor": 0.2}
# Starts at 0.001, a hundredth of the others' rate and Adam's usual one: Adam. Drops at 60, 120, 160.
_USP_TINY: Settings = {
    **_USP_100, "optimizer": "adam", "lr": 1e-3, "nesterov": False, "weight_decay": 0.0, "drops": [0.4, 0.8, 160 / 150],
}  # fmt: skip

# --- function-coupled watermarks (function_coupled) -------------------------------------------------------------------
# The paper states no schedule. ResNet-18 and LeNet-5: the released code's for Tiny ImageNet, 40 epochs with drops at
# 15, 25 and 35. VGG-16 on CIFAR-100 would stay far below the printed 73 % with it: the attacks' recipe "from scratch".
_COUPLED: Settings = {
    "epochs": 40, "batch_size": 128, "optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4,
    "drops": [15 / 40, 25 / 40, 35 / 40], "augment": "crop-flip",
}  # fmt: skip
SCRATCH: Settings = {
    "epochs": 60, "batch_size": 64, "optimizer": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 5e-4,
    "drops": [20 / 60, 35 / 60, 50 / 60], "drop_factor": 0.2, "augment": "crop-flip",
}  # fmt: skip

# --- piracy resistant watermarks (null_embedding), table 14 and A.3 ---------------------------------------------------
# `decay` is the rule of that time's Keras, lr / (1 + decay * step), whose plain SGD has no momentum; one epoch has 391
# steps of 128 images on CIFAR-10, 307 on GTSRB, 2,935 on YouTube Faces. No augmentation is mentioned.
_PIRACY: Settings = {"batch_size": 128, "optimizer": "sgd", "momentum": 0.0}

# --- distillation and ingrain (ingrain), section 5.1 ------------------------------------------------------------------
# Adadelta's rho 0.95 and epsilon 1e-8 are `tasks.training.trainer.build_optimizer`'s. No augmentation is mentioned.
_INGRAIN_MLP: Settings = {"epochs": 500, "batch_size": 128, "optimizer": "adadelta", "lr": 0.1}
_INGRAIN_CNN: Settings = {
    "epochs": 500, "batch_size": 128, "optimizer": "sgd", "lr": 0.01, "drop_every": 10, "drop_factor": 0.95,
}  # fmt: skip

# --- greedy residuals (greedy_residuals), section 4.1 and the released code -------------------------------------------
_GREEDY_TEXT: Settings = {
    "epochs": 200, "batch_size": 64, "optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4, "drops": [0.5, 0.75],
}  # fmt: skip
_GREEDY: Settings = {**_GREEDY_TEXT, "augment": "crop-flip"}
_GREEDY_IMAGES = ("cifar10", "cifar100", "caltech101", "caltech256", "imagenet100")
_GREEDY_MODELS = ("alexnet", "alexnet-bn", "resnet18", "resnet18-nobn")

PAPERS: Mapping[str, Mapping[str, Settings]] = {
    "usp_csp": {
        "cifar10-resnet18": _USP,
        "cifar5-resnet18": _USP,
        "cifar100-resnet18": _USP_100,
        "tiny_imagenet-resnet18": _USP_TINY,
        # students
        "cifar10-mobilenetv2": _USP,
        "cifar10-preresnet20": _USP,
        "cifar10-shufflenetv2": _USP,
    },
    "function_coupled": {
        "mnist-lenet5": {**_COUPLED, "augment": "none"},
        "cifar10-resnet18": _COUPLED,
        "cifar100-vgg16": SCRATCH,
        "tiny_imagenet-resnet18": _COUPLED,
    },
    "null_embedding": {
        "mnist-conv2-fc2": {**_PIRACY, "epochs": 300, "lr": 0.001},
        "cifar10-conv6-fc3": {**_PIRACY, "epochs": 500, "lr": 0.05, "decay": 1e-4 * 391},
        "gtsrb-conv6-fc3": {**_PIRACY, "epochs": 120, "lr": 0.02, "decay": 2e-5 * 307},
        "youtube_faces-deepid": {
            "batch_size": 128, "optimizer": "adam", "epochs": 10, "lr": 0.001, "decay": 1e-7 * 2935,
        },
        "lisa-conv6-fc3": {**_PIRACY, "epochs": 200, "lr": 0.01},  # the student's
    },
    "ingrain": {
        "mnist-mlp-1200x2": _INGRAIN_MLP,
        "cifar10-cnn-4conv2fc": _INGRAIN_CNN,
        # students
        "mnist-mlp-800x2": _INGRAIN_MLP,
        "cifar10-cnn-3conv2fc": _INGRAIN_CNN,
    },
    "greedy_residuals": {
        **{f"{dataset}-{model}": _GREEDY for dataset, model in product(_GREEDY_IMAGES, _GREEDY_MODELS)},
        **{f"{dataset}-{model}": _GREEDY_TEXT for dataset, model in product(("imdb", "trec"), ("lstm", "textcnn"))},
    },
}  # fmt: skip

# Networks and data sets that no paper trains together.
_UNPUBLISHED: Settings = {"epochs": 60, "batch_size": 128, "optimizer": "sgd", "lr": 0.01, "drops": [0.5, 0.75]}
_UNPUBLISHED_BY_DATASET: Mapping[str, Settings] = {
    "digits": {"batch_size": 64, "lr": 0.05},
    "imdb": _GREEDY_TEXT,
    "trec": _GREEDY_TEXT,
    **{
        dataset: {"weight_decay": 5e-4, "augment": "crop-flip"}
        for dataset in (*_GREEDY_IMAGES, "cifar5", "tiny_imagenet", "tiny_imagenet_32")
    },
}

# One up and down of the rate, for nets that Adam's constant rate leaves far from done in a laptop's epochs.
_CYCLE: Settings = {"warmup": 0.2, "anneal": "linear"}
# Two CPU cores and minutes instead of days: general first, then per data set, then per `<dataset>-<model>`.
_LAPTOP: Settings = {"epochs": 12, "batch_size": 128, "optimizer": "adam", "lr": 1e-3}
_LAPTOP_MORE: Mapping[str, Settings] = {
    "digits": {"batch_size": 64, "lr": 2e-3},
    "phrases": {"batch_size": 64, "lr": 2e-3},
    "mnist": {"epochs": 8},
    "fashion-mnist": {"epochs": 8},
    "mnist-mlp-400x2": {"epochs": 60},  # ingrain's carriers are learnt through dropout
    "mnist-conv2-fc2": {**_CYCLE, "epochs": 4, "lr": 2e-3},
    # On one CPU thread an epoch of the owner's 36,000 images takes some 50 s, 27 s in bf16.
    "cifar10-resnet8": {
        **_CYCLE, "epochs": 20, "optimizer": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 5e-4,
        "augment": "crop-flip", "precision": "auto",
    },
    # A mirrored traffic sign is another sign. Six convolutions without batch norm take two epochs to start at all.
    "gtsrb": {
        **_CYCLE, "epochs": 30, "batch_size": 64, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.1, "warmup": 0.1,
        "augment": "crop", "precision": "auto",
    },
    "lisa": {"epochs": 30, "augment": "crop"},
    "trec": {"batch_size": 64},
    "imdb": {"epochs": 4, "batch_size": 64, "precision": "auto"},
}  # fmt: skip
_SMOKE: Settings = {"epochs": 6, "batch_size": 64, "optimizer": "adam", "lr": 2e-3}


def settings(dataset: str, model: str, profile: str, paper: str | None = None) -> dict[str, Any]:
    """Return the fields of a task's schedule under a profile; a profile that is not built in is a laptop's.

    Args:
        dataset: key of the data set.
        model: key of the architecture.
        profile: `paper`, `laptop`, `smoke`, or a grid's own.
        paper: under `paper`, whose schedule; by default the first of `PAPERS` that trains the pair.

    Raises:
        BadInput: there is no such paper, or it does not train this network on these data.
    """
    key = f"{dataset}-{model}"
    if paper is not None and (not isinstance(paper, str) or paper not in PAPERS):
        raise unknown("paper", str(paper), PAPERS)
    if paper is not None and key not in PAPERS[paper]:
        raise BadInput(f"{paper} trains no {key} (it trains: {', '.join(sorted(PAPERS[paper]))})")
    if profile == "smoke":
        return dict(_SMOKE)
    if profile != "paper":
        return {**_LAPTOP, **_more(_LAPTOP_MORE, dataset, ""), **_more(_LAPTOP_MORE, dataset, f"-{model}")}
    own = (_more(PAPERS[name], dataset, f"-{model}") for name in ([paper] if paper else PAPERS))
    general = {**_UNPUBLISHED, **_more(_UNPUBLISHED_BY_DATASET, dataset, "")}
    return dict(next((entry for entry in own if entry), general))


def _more(table: Mapping[str, Settings], dataset: str, ending: str) -> Settings:
    """Return what a table says of a data set, or else of the whole that it is a part of."""
    whole = f"{_WHOLE.get(dataset, dataset)}{ending}"
    return table.get(f"{dataset}{ending}", table.get(whole, {}))


def victim_epochs(paper: str, dataset: str, model: str) -> int:
    """Return how long a paper trains such a victim: this pair, else the same data set, else the paper's first.

    Args:
        paper: a key of `PAPERS`, or `wrt` for attacks whose numbers come from the watermark robustness toolbox.
        dataset: key of the data set.
        model: key of the architecture.

    Raises:
        BadInput: there is no such paper.
    """
    if paper == "wrt":
        return int(SCRATCH["epochs"])
    if paper not in PAPERS:
        raise unknown("paper", paper, (*PAPERS, "wrt"))
    trained = PAPERS[paper]
    places = (dataset, _WHOLE.get(dataset, dataset))
    near = next((key for place in places for key in trained if key.startswith(f"{place}-")), next(iter(trained)))
    return int((_more(trained, dataset, f"-{model}") or trained[near])["epochs"])


def scaled_epochs(attack_epochs: int, paper_epochs: int, task_epochs: int) -> int:
    """Return an attack's epochs on a task that trains shorter than its paper's victims: the same share, at least 3.

    100 of the 160 epochs of a victim are 12 of 20. A task that trains as long as the paper's victims, or longer, gets
    the paper's number.

    Args:
        attack_epochs: of the attack, in the paper.
        paper_epochs: of the victim's training, in the same paper (`victim_epochs`).
        task_epochs: of the victim's training here.
    """
    if task_epochs >= paper_epochs:
        return attack_epochs
    return max(3, round(attack_epochs * task_epochs / paper_epochs))
