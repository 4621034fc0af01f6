from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assay.orchestrator.command.cli import main
from assay.results import papers
from assay.results.claims import CLAIMS, Cells
from assay.results.claims.expressions import Expression, Part, least, mean
from assay.results.claims.marks import After, best_rival, marked, reach, worst_score
from assay.results.claims.verdict import Claim, Finding, Reading, judge, printed
from assay.results.example import make_failed, make_row
from assay.results.parquet import write_curves, write_rows

TASK, OTHER = "mnist-convnet-p", "cifar10-convnet-p"
IDS = (
    [f"S0-{i}" for i in range(1, 10)]
    + [f"S1-{i}" for i in range(1, 9)]
    + [f"S2-{i}" for i in range(1, 10)]
    + [f"S3-{i}" for i in range(1, 8)]
    + [f"S4-{i}" for i in range(1, 8)]
)
USP = marked("usp", beta=1.0)
PRUNED = USP.after("prune", ratio=0.8)


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    base = {"task": TASK, "method": "usp", "method_config": {"beta": 1.0}, "chance": 0.5}
    return make_row(**{**base, "cell_key": f"{number:04d}", **changes})


def victims(*scores: float, **changes: Any) -> list[dict[str, Any]]:
    attack = {"attack": "prune", "attack_config": {"ratio": 0.8}}
    return [row(i, victim_seed=i, score_after=s, **{**attack, **changes}) for i, s in enumerate(scores)]


def claim(*tests: Part, **more: Any) -> Claim:
    return Claim("S0-1", "a claim", **{"on": (TASK,), "tests": tests, **more})


def tight(found: Finding) -> Reading:
    """Return the comparison that decided."""
    assert found.tightest is not None
    return found.tightest


# --- the list ----------------------------------------------------------------------------------------------------


def test_every_claim_of_the_five_papers_is_there_once() -> None:
    ids = [claim.id for claim in CLAIMS]
    assert [name for name in ids if not name.endswith("b")] == IDS
    assert len(set(ids)) == len(ids)
    assert {name[:-1] for name in ids if name.endswith("b")} <= set(IDS)


@pytest.mark.parametrize("one", CLAIMS, ids=lambda one: one.id)
def test_a_claim_names_what_its_paper_prints(one: Claim) -> None:
    for choice in one.published:
        paper, table = papers.parse(choice.table)
        found = choice.numbers()
        assert found, f"no number of {choice.table} fits {choice.where} {choice.params}"
        assert all(f"{paper}/{table}" == number["table"] for number in found)
    assert one.published or one.figures


def test_published_numbers_are_the_printed_ones() -> None:
    (number,) = printed("usp_csp/5", method="csp", attack="prune-retrain", metric="wm_acc").numbers()
    assert number["value"] == pytest.approx(0.8740)
    assert "csp | prune-retrain" in number["text"]
    (number,) = printed("usp_csp/13", {"tau": 85}, method="csp", attack="fine-tune", metric="wm_acc").numbers()
    assert number["value"] == pytest.approx(0.8872)


# --- verdicts ----------------------------------------------------------------------------------------------------


def test_a_claim_holds_at_its_margin() -> None:
    found = judge(claim(PRUNED.score >= 0.9), Cells(victims(0.8, 0.9, 1.0)))
    assert found.verdict == "holds"
    assert tight(found).value == pytest.approx(0.9)
    assert tight(found).se == pytest.approx(0.1 / 3**0.5)
    assert (tight(found).n, tight(found).cells) == (3, ("0000", "0001", "0002"))
    assert found.borderline  # the margin lies within a standard error


def test_a_claim_fails_clearly() -> None:
    found = judge(claim(PRUNED.score >= 0.9), Cells(victims(0.5, 0.51, 0.52)))
    assert (found.verdict, found.borderline) == ("fails", False)


def test_one_victim_has_no_standard_error() -> None:
    found = judge(claim(PRUNED.score >= 0.9), Cells(victims(0.9)))
    assert (found.verdict, tight(found).se, found.borderline) == ("holds", None, False)


def test_all_parts_must_hold_and_the_tightest_is_shown() -> None:
    good, bad = PRUNED.score >= 0.5, PRUNED.loss <= 0.001
    assert judge(claim(good, bad), Cells(victims(0.9))).verdict == "fails"
    found = judge(claim(good, PRUNED.loss <= 0.011), Cells(victims(0.9)))
    assert found.verdict == "holds"
    assert tight(found).text == "acc loss(usp | prune ratio=0.8) <= 0.011"


def test_differences_are_taken_victim_by_victim() -> None:
    rows = [*victims(0.9, 0.5), row(9, victim_seed=0, score_before=0.7, attack="none")]
    for entry, before in zip(rows, (0.95, 0.6, 0.95), strict=True):
        entry["score_before"] = before
    found = judge(claim(USP.score - PRUNED.score <= 1.0), Cells(rows))
    assert tight(found).value == pytest.approx((0.05 + 0.1) / 2)


def test_attack_seeds_are_averaged_within_a_victim() -> None:
    rows = [
        row(i, victim_seed=i // 2, attack_seed=i % 2, attack="prune", attack_config={"ratio": 0.8}, score_after=s)
        for i, s in enumerate((0.0, 1.0, 1.0, 1.0))
    ]
    found = judge(claim(PRUNED.score >= 0.7), Cells(rows))
    assert (tight(found).value, tight(found).n) == (0.75, 2)


def test_a_task_that_refutes_outweighs_one_that_confirms() -> None:
    rows = victims(0.9) + [{**r, "task": OTHER, "cell_key": "x"} for r in victims(0.1)]
    found = judge(claim(PRUNED.score >= 0.5, on=(TASK, OTHER)), Cells(rows))
    assert (found.verdict, tight(found).task) == ("fails", OTHER)


def test_a_part_may_belong_to_one_task() -> None:
    rows = victims(0.9) + [{**r, "task": OTHER, "cell_key": "x"} for r in victims(0.1)]
    parts = ((PRUNED.score >= 0.5).on(TASK), (PRUNED.score <= 0.5).on(OTHER))
    assert judge(claim(*parts, on=(TASK, OTHER)), Cells(rows)).verdict == "holds"


# --- not tested --------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named() -> None:
    found = judge(claim(PRUNED.score >= 0.5, USP.after("distill").score >= 0.5), Cells(victims(0.9)))
    assert found.verdict == "not tested"
    assert found.reason == f"{TASK}: no cell of usp | distill"
    assert found.as_dict()["value"] is None


def test_a_failed_part_decides_even_if_another_is_missing() -> None:
    found = judge(claim(PRUNED.score >= 0.95, USP.after("distill").score >= 0.5), Cells(victims(0.9)))
    assert found.verdict == "fails"
    assert "no cell of usp | distill" in found.reason


def test_an_empty_sweep_says_which_grids_to_run() -> None:
    for one in CLAIMS:
        found = judge(one, Cells([]))
        assert found.verdict == "not tested"
        assert "shipped grids: claims-" in found.reason


@pytest.mark.parametrize("status", ["failed", "blocked", "not_applicable"])
def test_cells_that_did_not_run_are_a_reason_and_no_number(status: str) -> None:
    bad = make_failed(
        status, "it broke", task=TASK, method="usp", method_config={"beta": 1.0}, attack="prune",
        attack_config={"ratio": 0.8}, cell_key="bad", victim_seed=1, score_after=0.0, main_after=0.0,
    )  # fmt: skip
    found = judge(claim(PRUNED.score >= 0.5), Cells([bad]))
    assert found.verdict == "not tested"
    assert "it broke" in found.reason
    found = judge(claim(PRUNED.score >= 0.5), Cells([*victims(0.9), bad]))
    assert (found.verdict, tight(found).value, tight(found).n) == ("holds", 0.9, 1)
    assert "victim 1: it broke" in found.reason


@pytest.mark.parametrize("value", [None, float("nan")])
def test_figures_that_are_no_numbers_decide_nothing(value: float | None) -> None:
    rows = [{**entry, "score_after": value} for entry in victims(0.9, 0.9)]
    found = judge(claim(PRUNED.score >= 0.5, PRUNED.score <= 2), Cells(rows))
    assert found.verdict == "not tested"
    assert "s(usp | prune ratio=0.8) was not measured" in found.reason


def test_a_violated_control_voids_and_so_does_one_that_was_not_run() -> None:
    rate = PRUNED.reads_unmarked("det_rate")
    for metrics, why in (({"beside_det_rate": 0.4}, "violated"), ({}, "not run")):
        rows = [{**entry, "metrics": metrics} for entry in victims(0.9)]
        found = judge(claim(PRUNED.score >= 0.5, controls=(rate <= 0.3,)), Cells(rows))
        assert found.verdict == "not tested"
        assert f"control {why}" in found.reason
    rows = [{**entry, "metrics": {"beside_det_rate": 0.3}} for entry in victims(0.9)]
    assert judge(claim(PRUNED.score >= 0.5, controls=(rate <= 0.3,)), Cells(rows)).verdict == "holds"


def test_a_weak_unmarked_model_decides_nothing_about_accuracy() -> None:
    rows = [{**entry, "main_clean": 0.45} for entry in victims(0.9)]
    found = judge(claim(PRUNED.loss <= 0.5), Cells(rows))
    assert found.verdict == "not tested"
    assert "0.45" in found.reason
    assert judge(claim(PRUNED.score >= 0.5), Cells(rows)).verdict == "holds"


def test_settings_that_a_claim_does_not_tell_apart_are_not_mixed() -> None:
    rows = [*victims(0.9), {**victims(0.1, method_config={"beta": 1.0, "gamma": 2})[0], "cell_key": "x"}]
    found = judge(claim(PRUNED.score >= 0.5), Cells(rows))
    assert found.verdict == "not tested"
    assert "differ in gamma" in found.reason
    weak = {**victims(0.9, method_config={"beta": 1.0, "allow_weak": True})[0], "cell_key": "x"}
    assert tight(judge(claim(PRUNED.score >= 0.5), Cells([*victims(0.9), weak]))).n == 1
    twice = {**victims(0.9, clean_key="longer")[0], "cell_key": "x"}
    assert "trained in several ways" in judge(claim(PRUNED.score >= 0.5), Cells([*victims(0.9), twice])).reason


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("task_config", '{"epochs":8}'), ("method_version", 2),
        ("method_source", "ab12cd34ef56ab78"), ("attack_version", 2), ("numerics", '{"device":"cuda"}'), ("data", "x"),
    ],
)  # fmt: skip
def test_two_versions_of_a_cell_are_never_chosen_between(column: str, value: Any) -> None:
    other = {**victims(0.1)[0], column: value, "cell_key": "x", "metrics": {"a": 1.0, "b": 2.0}}
    rows = [*victims(0.9, 0.9), other]
    found = judge(claim(PRUNED.score >= 0.5), Cells(rows))
    assert found.verdict == "not tested"
    named = {"task_config": "epochs", "numerics": "device"}.get(column, column)
    assert f"several settings fit, which differ in {named}" in found.reason
    # The marked model is the same whatever attacked it.
    before = judge(claim(USP.score >= 0.5), Cells(rows))
    assert before.verdict == ("holds" if column == "attack_version" else "not tested")


def test_two_results_of_one_setting_are_ambiguous() -> None:
    twice = {**victims(0.1)[0], "cell_key": "x", "metrics": {"agreement": 0.9, "more": 2.0}}
    found = judge(claim(PRUNED.score >= 0.5), Cells([*victims(0.9), twice]))
    assert found.verdict == "not tested"
    assert "ambiguous: cells 0000 and x are two results of victim 0" in found.reason
    # A cell that measured more, and all else alike, is worth having.
    more = {**victims(0.9)[0], "cell_key": "x", "metrics": {"agreement": 0.9, "beside_det_rate": 0.2}}
    for rows in ([*victims(0.9), more], [more, *victims(0.9)]):
        assert only(PRUNED.reads_unmarked("det_rate"), Cells(rows)) == 0.2


# --- words -------------------------------------------------------------------------------------------------------


def attacked(*pairs: tuple[float, float], **changes: Any) -> tuple[Cells, dict[float, After]]:
    rows = [
        row(i, attack="prune", attack_config={"ratio": i / 10}, main_before=1.0, main_after=acc, score_after=score,
            **changes)
        for i, (acc, score) in enumerate(pairs)
    ]  # fmt: skip
    return Cells(rows), {i / 10: USP.after("prune", ratio=i / 10) for i in range(len(pairs))}


def only(expression: Expression, cells: Cells) -> float:
    (value,) = expression.measure(cells, TASK).by_victim.values()
    return value


def test_attacks_that_ruin_the_model_do_not_count_against_the_mark() -> None:
    cells, after = attacked((1.0, 0.9), (0.96, 0.8), (0.5, 0.1))
    assert only(worst_score(after.values(), "PR", lost=0.05), cells) == 0.8
    assert only(worst_score(after.values(), "PR"), cells) == 0.1
    cells, after = attacked((0.5, 0.1))
    assert only(worst_score(after.values(), "PR", lost=0.05), cells) == 1


def test_a_rival_counts_only_in_a_model_of_use() -> None:
    cells, after = attacked((0.5, 0.1), rival_score=0.9)
    assert only(best_rival(after.values(), "OW", lost=0.05), cells) == 0
    assert only(best_rival(after.values(), "OW"), cells) == 0.9


def test_the_overwriter_of_s4_6_has_the_owners_strength() -> None:
    def overwritten(strength: str | float, score: float) -> list[dict[str, Any]]:
        config = {"eta": 0.5, "start": "scratch", "strength": strength}
        return [
            row(
                cell_key=f"{strength} {epochs}",
                method="greedy-residuals",
                method_config=config,
                attack="overwrite",
                attack_config={"mode": "with_data", "lr": "last", "epochs": epochs},
                main_before=0.9,
                main_after=0.9,
                score_after=score,
                rival_score=1.5 - score,
            )
            for epochs in (4, 40, 80)
        ]

    (s4_6,) = (claim for claim in CLAIMS if claim.id == "S4-6")
    tuned, fixed = overwritten("auto", 0.5), overwritten(0.877, 1.0)
    assert [only(part.value, Cells([*tuned, *fixed])) for part in s4_6.tests] == [1.0, 0.5]
    assert all(part.value.measure(Cells(tuned), TASK).missing for part in s4_6.tests)


def test_reach_ends_at_the_first_loss() -> None:
    cells, after = attacked((1, 1.0), (1, 0.96), (1, 0.9), (1, 0.97))
    assert only(reach(after, "PR", 0.95), cells) == 0.1


def test_scores_are_normalised_by_chance() -> None:
    cells, after = attacked((1, 0.75), (1, 0.4))
    assert [only(a.norm, cells) for a in after.values()] == [0.5, 0]
    assert only(mean((a.norm for a in after.values()), "m"), cells) == 0.25
    assert only(least((a.norm for a in after.values()), "l"), cells) == 0


def test_shares_of_victims() -> None:
    found = judge(claim(PRUNED.score.below(0.5) >= 2 / 3), Cells(victims(0.4, 0.5, 0.1)))
    assert found.verdict == "holds"
    assert tight(found).value == pytest.approx(2 / 3)


def test_alternatives_stand_in_for_a_method_that_is_not_there() -> None:
    either = marked("cap", carriers=9) | marked("usp", beta=1.0)
    assert only(either.acc, Cells(victims(0.9))) == 0.97
    assert judge(claim((marked("cap") | marked("zhang")).acc >= 0), Cells(victims(0.9))).reason.endswith(
        "no cell of cap"
    )


def test_claims_are_counted_in_the_curve_of_their_scores() -> None:
    points = [
        {"stage_key": "attack-0", "stage": "attack", "curve": "claims marked", "step": step, "metric": m, "value": v}
        for step, (score, count) in enumerate(((0.0, 7.0), (0.5, 2.0), (0.8, 1.0)))
        for m, v in (("score", score), ("count", count))
    ]
    cells = Cells(victims(0.9), points)
    assert only(PRUNED.share_of_claims("marked", 0.5), cells) == pytest.approx(0.3)
    assert only(PRUNED.share_of_claims("marked", 0.8), cells) == pytest.approx(0.1)
    assert PRUNED.share_of_claims("unmarked", 0.5).measure(cells, TASK).missing


def test_a_pirate_whose_training_diverges_has_ruined_its_network_and_claims_nothing() -> None:
    points = [
        {"stage_key": "attack-0", "stage": "attack", "curve": "attack", "step": step, "metric": "main", "value": v}
        for step, v in ((1, 0.4), (2, 0.1))
    ]
    cells = Cells(victims(0.9, attack_key="attack-0", rival_score=None), points)
    assert only(PRUNED.acc_at_end, cells) == 0.1
    assert only(PRUNED.acc, cells) == 0.96  # the stolen copy
    assert only(PRUNED.rival_or_none, cells) == 0
    assert not PRUNED.acc_at_end.measure(Cells(victims(0.9)), TASK).by_victim
    assert only(PRUNED.rival_or_none, Cells(victims(0.9, rival_score=0.6))) == 0.6


def test_the_mean_of_a_training_curve() -> None:
    points = [
        {"stage_key": "embed-0", "stage": "embed", "curve": "train", "step": step, "metric": "perturbed", "value": v}
        for step, v in enumerate((1.0, 0.5))
    ]
    assert only(USP.over_training("perturbed"), Cells(victims(0.9), points)) == 0.75


def test_epochs_are_counted_to_nine_tenths_of_the_last_value() -> None:
    curves = {"task": (0.3, 0.9, 0.85, 1.0), "noise": (0.1, 0.2, 0.5, 0.5), "late": (None, 0.1, 0.1, 0.1)}
    points = [
        {"stage_key": "embed-0", "stage": "embed", "curve": "memory", "step": step, "metric": name, "value": v}
        for name, values in curves.items()
        for step, v in enumerate(values, 1)
        if v is not None
    ]
    cells = Cells(victims(0.9), points)
    assert only(USP.epochs_between("task", "noise"), cells) == 1
    assert only(USP.epochs_between("noise", "task"), cells) == -1
    assert only(USP.epochs_between("task", "late"), cells) == 0
    assert not USP.epochs_between("task", "none").measure(cells, TASK).by_victim


def test_a_pirate_is_there_when_mark_and_accuracy_are() -> None:
    curves = {"rival": (0.9, 0.5, 0.85, 0.9), "val_accuracy": (0.1, 0.95, 0.9, 0.97)}
    points = [
        {"stage_key": "attack-0", "stage": "attack", "curve": "pirate", "step": step, "metric": name, "value": v}
        for name, values in curves.items()
        for step, v in enumerate(values, 1)
    ]
    ran = {"main_before": 0.97, "attack_key": "attack-0", "attack_config": {"ratio": 0.8, "epochs": 4}}
    cells = Cells(victims(0.9, **ran), points)
    assert only(PRUNED.epochs_to_claim(0.8, lost=0.1), cells) == 3
    assert only(PRUNED.epochs_to_claim(0.8, lost=0.05), cells) == 4
    assert only(PRUNED.epochs_to_claim(0.95, lost=0.05), cells) == 5  # never
    early = PRUNED.epochs_to_claim(0.8, lost=0.1)
    assert only(early, Cells(victims(0.9, **ran, rival_score=None))) == 5  # diverged: no curve and no claim
    assert not early.measure(Cells(victims(0.9, **ran, rival_score=0.9)), TASK).by_victim  # its curve is not at hand


# --- a claim of the list, and the command ------------------------------------------------------------------------


def retrained(method: str, *scores: float) -> list[dict[str, Any]]:
    config = {"use_kld": True, "use_detector_loss": True, "detector_input": "log_softmax"}
    config |= {"beta": 1.0} if method == "usp" else {"beta": 0.1, "tau": 0.85}
    return [
        row(
            i, cell_key=f"{method}-{i}", method=method, method_config=config, attack="prune-retrain",
            attack_config={"unit": "weights", "ratio": 0.8, "lr": 0.01}, victim_seed=i, score_after=score,
        )
        for i, score in enumerate(scores)
    ]  # fmt: skip


def write(out: Path, rows: list[dict[str, Any]]) -> Path:
    write_rows(out, rows)
    write_curves(out, [])
    return out


def test_the_command_prints_every_claim_and_unites_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one", retrained("usp", 0.70, 0.72, 0.74))
    two = write(tmp_path / "two", retrained("csp", 0.80, 0.82, 0.85))
    assert main(["claims", str(one), str(two), "--json"]) == 0
    printed_json = json.loads(capsys.readouterr().out)
    assert [found["claim"] for found in printed_json] == [claim.id for claim in CLAIMS]
    found = next(found for found in printed_json if found["claim"] == "S0-5")
    assert (found["verdict"], found["n"], found["margin"]) == ("holds", 3, 0.03)
    assert found["value"] == pytest.approx((0.1 + 0.1 + 0.11) / 3)
    assert found["parts"][0]["cells"] == [f"csp-{i}" for i in range(3)] + [f"usp-{i}" for i in range(3)]
    assert found["published"][1]["value"] == pytest.approx(0.874)
    assert main(["claims", str(one)]) == 0
    text = capsys.readouterr().out
    assert "S4-7" in text
    assert f"{len(CLAIMS)} not tested" in text


def test_a_folder_without_a_sweep_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", str(tmp_path / "nowhere")]) == 2
    assert "no such file" in capsys.readouterr().err
