from __future__ import annotations

from typing import Any

import pytest

from assay.orchestrator.planning.registry import Registry
from assay.results import papers
from assay.results.errors import ResultsError
from assay.results.papers import ATTACK, WATERMARK, compare

ROWS = {"usp_csp": 502, "function_coupled": 110, "null_embedding": 169, "ingrain": 2326, "greedy_residuals": 270}


@pytest.mark.parametrize("paper", papers.PAPERS)
def test_every_printed_number_is_read_and_identified(paper: str) -> None:
    frame = papers.load(paper)
    assert len(frame) == ROWS[paper]
    text = frame.assign(wm_params=frame["wm_params"].map(str), attack_params=frame["attack_params"].map(str))
    identity = ["table", "dataset", "model", "method", "wm_params", "attack", "attack_params", "metric", "stage"]
    assert not text.duplicated(identity).any()


@pytest.mark.parametrize("paper", papers.PAPERS)
def test_rates_join_as_fractions(paper: str) -> None:
    frame = papers.load(paper)
    rates = frame[frame["unit"].isin(["percent", "fraction"]) & ~frame["metric"].str.endswith("_change")]
    assert rates["value"].between(0, 1.01).all()  # preserving rates may pass 1
    assert (rates["value"] > 0.5).any()


@pytest.mark.parametrize("paper", papers.PAPERS)
def test_every_published_parameter_has_a_rule(paper: str) -> None:
    frame = papers.load(paper)
    for column, rules in (("wm_params", WATERMARK), ("attack_params", ATTACK)):
        stated = {name for params in frame[column] for name in params}
        # Query counts are absolute there and relative to the owner's data here.
        assert {name for name in stated if ("", name) not in rules} <= {"queries"}


def test_unknown_names_are_one_line_with_the_nearest() -> None:
    with pytest.raises(ResultsError, match="did you mean 'usp_csp'"):
        papers.parse("usp_cps/5")
    with pytest.raises(ResultsError, match="usp_csp: unknown table '99'"):
        papers.parse("usp_csp/99")
    with pytest.raises(ResultsError, match="PAPER/NUMBER"):
        papers.parse("usp_csp")
    assert papers.parse("null_embedding/sec7.3") == ("null_embedding", "sec7.3")


@pytest.mark.parametrize(
    ("key", "ours", "theirs", "conflict"),
    [
        ("distill", {"temperature": 5}, {"temperature": 5}, False),
        ("distill", {"temperature": 5.0}, {"temperature": 5}, False),
        ("distill", {"temperature": 4}, {"temperature": 5}, True),
        ("distill", {"temperature": None}, {"temperature": 5}, False),
        ("distill", {"epochs": 20}, {"epochs": 500}, False),
        ("distill", {"lr": 1e-3}, {"lr": 0.1}, False),
        ("fine-tune", {"lr": 1e-3}, {"lr": 0.01}, True),
        ("prune", {"ratio": 0.8}, {"rate": 0.8}, False),
        ("prune-retrain", {"split": "same"}, {"data_frac": 0.2}, True),
        ("prune-retrain", {"split": "disjoint20"}, {"data_frac": 0.2}, False),
        ("expand", {"speedup": 2.5}, {"speedup": "2.5-3x"}, False),
        ("expand", {"speedup": 4.0}, {"speedup": "2.5-3x"}, True),
        ("overwrite", {"mode": "without_data"}, {"original_data": True}, True),
        ("none", {}, {"role": "victim"}, False),
        ("none", {}, {"role": "extracted"}, True),
        ("cross-verify", {}, {"detector": 1, "model": 2}, True),
    ],
)
def test_attack_parameters(key: str, ours: dict[str, Any], theirs: dict[str, Any], conflict: bool) -> None:
    assert bool(compare(key, ours, theirs, ATTACK).conflicts) is conflict


@pytest.mark.parametrize(
    ("key", "ours", "theirs", "conflict"),
    [
        ("ingrain", {"strength": 4.0, "carriers": 1000}, {"lambda": 4, "D_S": 1000}, False),
        ("ingrain", {"strength": 0.5, "carriers": 1000}, {"lambda": 4, "D_S": 1000}, True),
        ("csp", {"tau": 0.85}, {"tau": 85}, False),
        ("csp", {"tau": 0.8}, {"tau": 85}, True),
        ("sgn", {"bits": 3000}, {"D_S": 1000}, False),
        ("uchida", {"bits": 256}, {"D_S": 5000, "bits": 256}, False),
        ("null-embedding", {"pattern_size": 6}, {"pattern": "6x6"}, False),
        ("null-embedding", {"pattern_size": 4}, {"pattern": "6x6"}, True),
        ("usp", {}, {"detector": False, "kld_loss": True}, True),
        ("usp", {"use_detector_loss": False}, {"detector": False}, False),
        ("deepipr", {"scheme": "V2"}, {"scheme": 2}, False),
        ("usp", {}, {"instance": 3}, False),
    ],
)
def test_watermark_parameters(key: str, ours: dict[str, Any], theirs: dict[str, Any], conflict: bool) -> None:
    assert bool(compare(key, ours, theirs, WATERMARK).conflicts) is conflict


def test_names_of_ours_are_settings_that_exist() -> None:
    registry = Registry()
    plugins: tuple[Any, ...] = (*registry.methods.values(), *registry.attacks.values())
    fields = {name for plugin in plugins for name in plugin.Config.model_fields}
    for rules in (WATERMARK, ATTACK):
        for (_, published), rule in rules.items():
            unknown = set(rule.names if rule else ()) - fields - {published}
            assert not unknown, f"{published}: no method or attack has a setting {unknown}"


def test_differences_in_training_length_are_remarked() -> None:
    found = compare("distill", {"epochs": 20}, {"epochs": 500, "queries": 7}, ATTACK)
    assert found.conflicts == ()
    assert found.remarks == ("epochs 20, not 500", "queries 7 in the paper only")
