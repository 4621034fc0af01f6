"""The papers' printed numbers, and as data how their words translate into ours (see published/README.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import pandas as pd

from assay.results.configs import natural, same
from assay.results.decisions import chance_norm
from assay.results.errors import ResultsError, unknown

PAPERS: Final = ("function_coupled", "greedy_residuals", "ingrain", "null_embedding", "usp_csp")
COLUMNS: Final = (
    *("paper", "table", "dataset", "model", "method", "wm_params", "attack", "attack_params"),
    *("metric", "value", "unit", "stage", "note"),
)
_SCALE: Final = {"percent": 0.01, "fraction": 1.0, "index": 1.0, "count": 1.0}


@cache
def load(paper: str) -> pd.DataFrame:
    """Return a paper's printed numbers, one row each; treat the frame as read-only.

    `wm_params` and `attack_params` are dicts; `value` is a fraction for rates (`unit` percent or fraction, so that the
    papers join) and as printed for indices; `printed` is the text of the paper.

    Raises:
        ResultsError: unknown paper, or a file that is not as published/README.md says.
    """
    if paper not in PAPERS:
        raise unknown("paper", paper, PAPERS)
    source = resources.files("assay.results.published") / f"{paper}.csv"
    with source.open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    if tuple(frame.columns) != COLUMNS:
        raise ResultsError(f"{source}: columns {', '.join(frame.columns)}; expected {', '.join(COLUMNS)}")
    units = set(frame["unit"]) - set(_SCALE)
    if units:
        raise unknown("unit", min(units), _SCALE, str(source))
    frame["printed"] = frame["value"]
    frame["value"] = frame["value"].astype(float) * frame["unit"].map(_SCALE)
    for name in ("wm_params", "attack_params"):
        frame[name] = pd.Series([json.loads(text) for text in frame[name]], dtype=object)
    return frame


def numbers(paper: str) -> list[str]:
    """Return the numbers of a paper's tables, in their order."""
    return sorted(load(paper)["table"].unique(), key=natural)


def parse(reference: str) -> tuple[str, str]:
    """Return (paper, table number) of a reference such as `usp_csp/5`.

    Raises:
        ResultsError: it is not of that form, or there is no such paper or table.
    """
    paper, slash, number = reference.partition("/")
    if not slash or not number:
        raise ResultsError(f"table {reference!r}: write PAPER/NUMBER, as in usp_csp/5 (papers: {', '.join(PAPERS)})")
    check(paper, number)
    return paper, number


def check(paper: str, number: str) -> None:
    """Raise `ResultsError` unless the paper has a table of that number."""
    allowed = numbers(paper)
    if number not in allowed:
        raise unknown("table", number, allowed, paper)


# --- parameters --------------------------------------------------------------------------------------------------

Accepts = Callable[[Any, Any], bool]
UNSTATED: Final = object()


@dataclass(frozen=True)
class Rule:
    """How a published parameter compares with our configurations.

    Attributes:
        names: what we call it; the first that a configuration states with a value counts.
        accepts: (our value, theirs) -> whether they are the same setting.
        effort: how long something was trained; a difference is remarked but keeps the comparison.
        silent: what a configuration that does not state it means; `UNSTATED` agrees with everything.
    """

    names: tuple[str, ...]
    accepts: Accepts = same
    effort: bool = False
    silent: Any = UNSTATED


def _scaled(factor: float) -> Accepts:
    return lambda ours, theirs: same(ours, theirs * factor)


def _words(table: Mapping[Any, tuple[Any, ...]]) -> Accepts:
    return lambda ours, theirs: any(same(ours, word) for word in table.get(theirs, (theirs,)))


def _square(ours: Any, theirs: Any) -> bool:
    return str(theirs) == f"{ours}x{ours}"


def _within(ours: Any, theirs: Any) -> bool:
    low, high = (float(part) for part in theirs.removesuffix("x").split("-"))
    return isinstance(ours, int | float) and low <= ours <= high


# Keys are (method or attack, published parameter); "" stands for every method or attack without an entry of its own.
# A parameter mapped to None tells repetitions apart and is no setting.
WATERMARK: Final[Mapping[tuple[str, str], Rule | None]] = {
    ("", "instance"): None,
    ("", "run"): None,
    ("", "gamma"): Rule(("gamma",)),
    ("", "signal_len"): Rule(("signal_len",)),
    ("", "tau"): Rule(("tau",), _scaled(0.01)),
    ("", "kld_loss"): Rule(("use_kld",), silent=True),
    ("", "detector"): Rule(("use_detector_loss",), silent=True),
    ("", "r"): Rule(("r",)),
    ("", "pattern"): Rule(("pattern_size",), _square),
    ("", "D_S"): Rule(("carriers",)),
    ("lsb", "D_S"): Rule(("bits",), _scaled(3)),  # as much information as the carriers' labels
    ("sgn", "D_S"): Rule(("bits",), _scaled(3)),
    ("cor", "D_S"): Rule(("bits",), _scaled(3)),
    ("uchida", "D_S"): None,  # always 256 bits, whatever D_S
    ("clean", "D_S"): None,
    ("", "lambda"): Rule(("strength",)),
    ("", "T"): Rule(("temperature",)),
    ("", "bits"): Rule(("bits",)),
    ("", "eta"): Rule(("eta",)),
    ("", "mu"): Rule(("margin",)),
    ("", "scheme"): Rule(("scheme",), _words({2: (2, "2", "V2", "v2")})),
}
ATTACK: Final[Mapping[tuple[str, str], Rule | None]] = {
    ("", "lr"): Rule(("lr",)),
    ("distill", "lr"): Rule(("lr",), effort=True),
    ("prune-retrain", "lr"): Rule(("lr",), effort=True),
    ("", "epochs"): Rule(("epochs",), effort=True),
    ("", "trials"): Rule(("trials",), effort=True),
    ("", "recover_epochs"): Rule(("recovery_epochs",), effort=True),
    ("", "n_watermarks"): Rule(("keys", "draws"), effort=True),
    ("", "rate"): Rule(("ratio",)),
    ("", "temperature"): Rule(("temperature",)),
    ("", "student"): Rule(("student",)),
    ("", "data_frac"): Rule(("split",), _words({0.2: ("disjoint20",)})),
    ("", "data_n"): Rule(("split",), _words({5000: ("pir5k",)})),
    ("", "original_data"): Rule(("mode",), _words({True: ("with_data",), False: ("without_data",)})),
    ("", "digits"): Rule(("digits",)),
    ("", "speedup"): Rule(("speedup",), _within),
    ("", "nodes"): Rule(("n_nodes",)),
    ("", "target"): Rule(("target",)),
    ("", "layers"): Rule(
        ("mode", "layers"),
        _words({"last": ("added", "last"), "last-two": ("last_two_dense",), "dense": ("all_dense",)}),
    ),
    ("", "query_data"): Rule(("source",), _words({"imagenet": ("ood", "imagenet"), "youtube_faces": ("ood",)})),
    ("", "n_models"): Rule(("n_models",)),
    ("", "role"): Rule(("role",), silent="victim"),
    # One entry of a matrix of detectors and models; a configuration has no such entry.
    ("", "detector"): Rule(("detector",), silent=None),
    ("", "model"): Rule(("model",), silent=None),
}
METHODS: Final[Mapping[str, tuple[str, ...]]] = {"fcw": ("fcw-direct", "fcw-invisible")}
"""Published method keys that stand for several of ours."""


@dataclass(frozen=True)
class Agreement:
    """How a configuration compares with published parameters: `conflicts` forbid a comparison, `remarks` go with it."""

    conflicts: tuple[str, ...]
    remarks: tuple[str, ...]


def compare(
    key: str, config: Mapping[str, Any], stated: Mapping[str, Any], rules: Mapping[tuple[str, str], Rule | None]
) -> Agreement:
    """Compare one of our configurations with a row's parameters, by those that both sides state.

    Args:
        key: of the method or attack.
        config: our parameters, flattened.
        stated: the paper's.
        rules: `WATERMARK` or `ATTACK`.
    """
    conflicts: list[str] = []
    remarks: list[str] = []
    for name, theirs in stated.items():
        rule = rules.get((key, name), rules.get(("", name), UNSTATED))
        if rule is None:
            continue
        if not isinstance(rule, Rule):
            remarks.append(f"{name} {theirs} in the paper only")
            continue
        ours_name = next((n for n in rule.names if config.get(n) is not None), None)
        ours = rule.silent if ours_name is None else config[ours_name]
        if ours is UNSTATED:
            remarks.append(f"{name} {theirs} in the paper only")
        elif not rule.accepts(ours, theirs):
            difference = f"{ours_name or name} {'absent' if ours is None else ours}, not {theirs}"
            (remarks if rule.effort else conflicts).append(difference)
    return Agreement(tuple(conflicts), tuple(remarks))


# --- metrics -----------------------------------------------------------------------------------------------------

METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "wm_det_rate": ("wm_det_rate", "det_rate", "detection_rate"),
    "wm_identified_rate": ("wm_identified_rate", "identified_rate", "identified"),
    "wm_misidentified_rate": ("wm_misidentified_rate", "misidentified_rate", "misidentified"),
    "wm_f1": ("wm_f1", "f1"),
    "null_acc": ("null_acc", "null"),
    "true_acc": ("true_acc", "true"),
    "pirate_null_acc": ("pirate_null_acc", "rival_null_acc"),
    "pirate_true_acc": ("pirate_true_acc", "rival_true_acc"),
    "anomaly_index": ("anomaly_index",),
    "kld": ("kld",),
    "false_positive_rate": ("false_positive_rate",),
    "target_acc": ("target_acc",),
    "inject_ratio": ("inject_ratio",),
}
"""Names under which a figure may stand in a row's `metrics`, a verdict's with `before_` or `after_` in front."""


FIGURES: Final = (
    "main_clean", "main_before", "main_after", "score_before", "score_after", "chance", "rival_score", "metrics",
)  # fmt: skip
"""The columns of a row that `measured` reads."""


def measured(paper: str, metric: str, stage: str, row: Mapping[str, Any]) -> float | None:
    """Return our figure for a published metric as a fraction; None where it was not measured.

    Args:
        paper: whose definition holds; `ingrain` prints watermark accuracy with chance at 0.
        metric: the published metric.
        stage: `before`, `after` or `na`.
        row: a cell's, with at least `FIGURES`; null is None.
    """
    end = "after" if stage == "after" else "before"
    score, main, clean = row[f"score_{end}"], row[f"main_{end}"], row["main_clean"]
    if metric == "wm_acc" and paper == "ingrain":
        chance = row["chance"]
        return None if score is None or chance is None else chance_norm(score, chance)
    if metric == "wm_acc" or (metric == "wm_det_rate" and paper == "greedy_residuals"):
        return score
    if metric in ("pirate_wm_acc", "pirate_wm_det_rate"):
        return row["rival_score"]
    if metric == "main_acc":
        return main
    if metric in ("main_acc_change", "main_acc_preserving_rate"):
        if main is None or not clean:
            return None
        return main - clean if metric == "main_acc_change" else main / clean
    names = METRICS.get(metric, (metric,))
    order = [f"{end}_{name}" for name in names] + list(names)
    value = next((row["metrics"][name] for name in order if name in row["metrics"]), None)
    return None if value is None or math.isnan(value) else value
