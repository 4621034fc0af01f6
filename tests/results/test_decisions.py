"""Decisions: rules on one reading (protocol 2.2 and 2.3), and on rows, at once or later from Parquet alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.results import parquet
from assay.results.decisions import (
    DEFAULT,
    DERIVED_METRICS,
    Decision,
    Null,
    Rules,
    Thresholds,
    ambiguity,
    chance_norm,
    classify,
    decide,
    decided,
    null_points,
    nulls_of,
    redecide,
    sok_norm,
    succeeded,
    thresholds,
)
from assay.results.errors import ResultsError
from assay.results.example import make_failed, make_null, make_row
from assay.results.schema import DERIVED_COLUMNS, Reading

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
RATES = st.floats(0, 1)


def reading(score: float = 0.9, p_value: float = 1e-9, chance: float = 0.1, **changes: Any) -> Reading:
    plain: dict[str, Any] = {
        "score": score, "chance": chance, "p_value": p_value, "hits": None, "trials": None, "paper_threshold": 0.9,
        "accepted": score >= 0.9, "applicable": True, "reason": "",
    }  # fmt: skip
    return {**plain, **changes}  # type: ignore[typeddict-item]


UNREADABLE = reading(0.0, 1.0, 0.0, applicable=False, accepted=False, paper_threshold=1.0, reason="layer missing")


# --- rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, float("nan"), True, "0.1", None])
def test_a_false_claim_rate_lies_between_0_and_1(alpha: Any) -> None:
    with pytest.raises(ResultsError, match=f"^alpha is {alpha!r}; a false-claim rate between 0 and 1 is needed"):
        Rules(alpha=alpha)


@pytest.mark.parametrize("loss", [-0.01, 1.01, float("nan"), 5, False])
def test_a_largest_loss_is_a_fraction(loss: Any) -> None:
    with pytest.raises(ResultsError, match=f"^largest_loss is {loss!r}; a fraction from 0 to 1 is needed"):
        Rules(largest_loss=loss)
    assert Rules(largest_loss=0).largest_loss == 0
    assert Rules(largest_loss=1).largest_loss == 1


def test_the_default_rules_are_those_of_the_protocol() -> None:
    assert Rules() == DEFAULT == Rules(alpha=1e-3, largest_loss=0.05)


# --- one reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "p_value", "expected"),
    [
        (0.8, 1e-3, Decision(False, True, True)),  # p = alpha is enough
        (0.8, 1.1e-3, Decision(False, True, False)),
        (0.6, 1e-9, Decision(False, True, False)),
        (0.7, 1e-9, Decision(False, True, True)),  # each threshold itself is reached
        (0.5, 1e-9, Decision(False, True, False)),
        (0.49, 1e-9, Decision(False, False, False)),
        (0.95, 0.5, Decision(True, True, False)),  # the paper's rule and SoK's ask for no p-value
    ],
)
def test_strict_needs_both_the_threshold_and_the_p_value(score: float, p_value: float, expected: Decision) -> None:
    limits = Thresholds(paper=0.9, sok=0.5, strict=0.7, rare=0.8)
    assert decide(reading(score, p_value), limits, DEFAULT) == expected


def test_the_papers_rule_is_the_papers_own_and_not_its_threshold() -> None:
    limits = Thresholds(paper=0.9, sok=0.5, strict=0.7, rare=0.8)
    assert decide(reading(0.9, accepted=False), limits, DEFAULT).paper is False


def test_what_cannot_be_read_verifies_by_no_rule() -> None:
    limits = Thresholds(paper=0.0, sok=0.0, strict=0.0, rare=0.0)
    assert decide(reading(1.0, applicable=False), limits, DEFAULT) == Decision(False, False, False)
    lost = {**reading(), "score": None, "p_value": None, "accepted": False}
    assert decide(lost, limits, DEFAULT) == Decision(False, False, False)


def test_without_a_null_only_the_paper_decides() -> None:
    limits = thresholds("none", None, reading(0.1), DEFAULT)
    assert decide(reading(1.0), limits, DEFAULT) == Decision(True, None, None)
    assert decide(UNREADABLE, limits, DEFAULT) == Decision(False, False, False)
    assert thresholds("none", make_null(), reading(0.1), DEFAULT) == limits


def test_thresholds_by_hand() -> None:
    null = Null([[0.3, 0.4]], [[3, 4]], 10, ["reference-0"])
    found = thresholds("bits", null, reading(0.5, chance=0.5, paper_threshold=0.8), Rules(alpha=0.011))
    # Mean 3.5 and deviation 0.5: 4.3224, and 62 of the grid's steps of 70/999 are 4.344. Of ten coins P(>= 9) = 0.0107
    # is at most 0.011, and no count is as rare as 1e-6.
    assert found.sok == pytest.approx(62 * 70 / 999 / 10)
    assert found == Thresholds(paper=0.8, sok=found.sok, strict=0.9, rare=1.1)


def test_thresholds_of_one_null_are_computed_once_for_each_rule_and_owner() -> None:
    null, on_clean = make_null(), reading(0.1)
    first = thresholds("triggers", null, on_clean, DEFAULT)
    assert thresholds("triggers", null, dict(on_clean), Rules(largest_loss=0.5)) is first
    others = [
        thresholds("triggers", null, on_clean, Rules(alpha=1e-2)),
        thresholds("bits", null, on_clean, DEFAULT),
        thresholds("triggers", null, reading(0.1, chance=0.5), DEFAULT),
        thresholds("triggers", null, reading(0.1, paper_threshold=0.4), DEFAULT),
    ]
    assert first not in others


def test_a_chance_level_that_is_not_known_counts_as_none() -> None:
    null = make_null()
    unknown = thresholds("triggers", null, {**reading(0.1), "chance": None}, DEFAULT)
    assert unknown == thresholds("triggers", null, reading(0.1, chance=0.0), DEFAULT)


@pytest.mark.parametrize(
    ("after", "verified", "expected"),
    [
        (0.90, False, "removed"), (0.90, True, "retained"), (0.80, False, "useless"), (0.80, True, "failed"),
        (0.85, False, "removed"),  # five points exactly are still allowed
        (0.8499, False, "useless"),
        (0.99, False, "removed"),  # one-sided: a better surrogate is no failure
    ],
)  # fmt: skip
def test_outcome_classes(after: float, verified: bool, expected: str) -> None:
    assert classify(0.90, after, verified, DEFAULT) == expected


def test_the_largest_loss_is_a_rule() -> None:
    assert classify(0.90, 0.80, False, Rules(largest_loss=0.1)) == "removed"
    assert classify(0.90, 0.89, False, Rules(largest_loss=0)) == "useless"
    assert classify(0.90, 0.90, False, Rules(largest_loss=0)) == "removed"


@given(RATES, RATES, RATES, RATES, st.booleans())
def test_a_larger_loss_allowed_never_turns_a_useful_model_into_a_useless_one(
    before: float, after: float, one: float, other: float, verified: bool
) -> None:
    low, high = (Rules(largest_loss=loss) for loss in sorted((one, other)))
    if classify(before, after, verified, low) in ("removed", "retained"):
        assert classify(before, after, verified, high) == classify(before, after, verified, low)


def test_what_a_rival_claim_leads_to() -> None:
    found = {(owner, rival): ambiguity(owner, rival) for owner in (True, False) for rival in (True, False)}
    assert found == {
        (True, True): "piracy", (False, True): "takeover", (False, False): "corruption", (True, False): "none",
    }  # fmt: skip


def success(kind: str, after: float, owner: bool, rival: bool | None = None) -> bool | None:
    return succeeded(kind, 0.9, after, owner, rival, DEFAULT)


def test_removal_succeeds_with_class_removed_alone() -> None:
    assert success("removal", 0.9, owner=False) is True
    assert success("removal", 0.9, owner=True) is False
    assert success("removal", 0.5, owner=False) is False


@pytest.mark.parametrize("owner", [True, False])
def test_ambiguity_succeeds_with_a_verified_claim_on_a_useful_model_whatever_the_owner_reads(owner: bool) -> None:
    assert success("ambiguity", 0.9, owner, rival=True) is True
    assert success("ambiguity", 0.9, owner, rival=False) is False
    assert success("ambiguity", 0.7, owner, rival=True) is False
    assert success("ambiguity", 0.9, owner, rival=None) is None


def test_one_model_alone_decides_no_detection_and_no_verification() -> None:
    for kind in ("detection", "verification"):
        assert success(kind, 0.9, owner=True) is None


@given(st.floats(0.01, 0.98), RATES, RATES)
def test_soks_score_maps_the_threshold_to_a_half_and_a_full_match_to_one(t: float, one: float, other: float) -> None:
    tau = round(t, 2)
    assert sok_norm(tau, tau) == pytest.approx(0.5)
    assert sok_norm(1.0, tau) == pytest.approx(1.0)
    low, high = sorted((one, other))
    assert 0 <= sok_norm(low, tau) <= sok_norm(high, tau) <= 1


def test_soks_threshold_is_rounded_up_to_two_digits() -> None:
    assert sok_norm(0.62, 0.611) == pytest.approx(0.5)
    assert sok_norm(0.61, 0.61) == pytest.approx(0.5), "an exact hundredth stays"


def test_a_threshold_out_of_reach_leaves_a_score_of_at_most_a_half() -> None:
    assert sok_norm(1.0, 1.0) == 0.5
    assert sok_norm(0.9, 1.0) == 0.0


def test_chance_is_nothing_and_a_full_match_is_all() -> None:
    assert [chance_norm(score, 0.1) for score in (0.1, 0.55, 1.0, 0.05)] == [0.0, pytest.approx(0.5), 1.0, 0.0]
    assert chance_norm(1.0, 1.0) is None


# --- one row -----------------------------------------------------------------------------------------------------


def measured(**changes: Any) -> dict[str, Any]:
    return {**make_row(), **changes}


def test_the_example_is_decided_as_its_columns_say() -> None:
    row = make_row()
    found = decided(row, make_null())
    assert {name: found[name] for name in DERIVED_COLUMNS} == {name: row[name] for name in DERIVED_COLUMNS}


def test_the_figures_of_a_row_by_hand() -> None:
    # Chance 0.1 of 100 trials; mean 10.1 and variance 2.69 are less than the binomial's, so that P(X >= 21) decides.
    found = decided(make_row(metrics={"agreement": 0.9, "main_scratch": 0.96}), make_null())["metrics"]
    assert found == pytest.approx(
        {
            "agreement": 0.9, "main_scratch": 0.96, "pointless": 1.0, "success": 0.0,
            # 10.1 + 1.6449 * 1.6401 = 12.798 is reached by the 64th step of 202/999.
            "threshold_paper": 0.5, "threshold_sok": 64 * 202 / 999 / 100, "threshold_strict": 0.21,
            "threshold_rare": 0.28,
            "clean_score": 0.11, "clean_p_value": 0.4, "clean_paper": 0.0, "clean_sok": 0.0, "clean_strict": 0.0,
            "before_paper": 1.0, "before_sok": 1.0,
            # (0.275 + 0.5 - 0.13) / 0.87, and (0.55 - 0.1) / 0.9.
            "score_sok": 0.645 / 0.87, "score_chance": 0.5,
            "null_mean": 0.101, "null_key_sd": 0.0165529, "null_model_sd": 0.001,
        },
        rel=1e-5,
    )  # fmt: skip


def with_readings(**readings: Reading) -> dict[str, Reading]:
    return {"before": reading(1.0), "clean": reading(0.11, 0.4), "after": reading(0.55, 1e-4), **readings}


def test_a_rival_claim_fills_its_columns_and_names_what_it_leads_to() -> None:
    readings = with_readings(after=reading(0.15, 0.2), rival=reading(0.95))
    found = decided(measured(kind="ambiguity", readings=readings), make_null())
    assert (found["rival_score"], found["rival_p"], found["rival_verified"]) == (0.95, 1e-9, True)
    assert (found["detected_after"], found["verdict_sok"], found["outcome"]) == (False, True, "removed")
    metrics = found["metrics"]
    assert (metrics["rival_paper"], metrics["rival_sok"], metrics["success"]) == (1.0, 1.0, 1.0)
    assert {name: metrics[name] for name in metrics if name.startswith("ambiguity_")} == {"ambiguity_takeover": 1.0}


def test_a_mark_that_cannot_be_read_after_the_attack_has_no_figures_and_is_removed() -> None:
    found = decided(measured(readings=with_readings(after=UNREADABLE)), make_null())
    assert (found["score_after"], found["p_after"]) == (None, None)
    assert (found["detected_after"], found["verdict_paper"], found["outcome"]) == (False, False, "removed")
    assert (found["score_before"], found["chance"], found["detected_before"]) == (1.0, 0.1, True)
    assert found["metrics"]["score_chance"] == 0.0


def test_an_unmarked_model_as_a_method_is_never_verified_and_has_no_outcome() -> None:
    readings = dict.fromkeys(("before", "clean", "after"), UNREADABLE)
    found = decided(measured(family="none", readings=readings, metrics={}), None)
    assert {name for name, value in found.items() if value is not None} == {
        "detected_before", "detected_after", "verdict_paper", "verdict_sok", "metrics",
    }  # fmt: skip
    assert not found["detected_before"]
    assert not found["detected_after"]
    assert found["metrics"] == {"threshold_paper": 1.0, "threshold_sok": 1.0, "threshold_strict": 1.0}


def test_a_method_without_a_null_decides_nothing_but_by_its_paper() -> None:
    found = decided(measured(family="none", null_key=None), None)
    assert found["verdict_paper"] is True
    assert [found[name] for name in ("detected_before", "detected_after", "verdict_sok", "outcome")] == [None] * 4
    assert not {"success", "score_sok", "clean_strict", "null_mean"} & found["metrics"].keys()


def test_a_surrogate_of_another_task_is_worth_its_accuracy_there() -> None:
    lost = reading(0.1, 0.5)
    row = measured(main_after=0.1, readings=with_readings(after=lost))
    assert decided(row, make_null())["outcome"] == "useless"
    for own, twin, expected in ((0.80, 0.84, "removed"), (0.80, 0.86, "useless"), (0.2, None, "removed")):
        target = {"target_acc": own} | ({} if twin is None else {"target_acc_unmarked": twin})
        assert decided({**row, "metrics": target}, make_null())["outcome"] == expected


def test_readings_beside_the_surrogate_become_figures() -> None:
    readings = with_readings(beside=reading(0.3, 1e-4), as_left=reading(0.15, 0.5))
    found = decided(measured(readings=readings), make_null())["metrics"]
    assert (found["beside_score"], found["beside_p_value"], found["beside_strict"]) == (0.3, 1e-4, 1.0)
    assert found["detected_as_left"] == 0.0
    readings = with_readings(beside=UNREADABLE, clean=UNREADABLE)
    found = decided(measured(readings=readings), make_null())["metrics"]
    assert not any(name.startswith(("beside_", "clean_", "before_")) for name in found)


def test_a_reading_of_a_name_that_is_not_known_yet_changes_nothing() -> None:
    one = decided(measured(readings=with_readings()), make_null())
    assert decided(measured(readings=with_readings(canonical=reading(1.0))), make_null()) == one


def test_a_cell_whose_attack_failed_keeps_what_is_known_of_its_victim() -> None:
    row = make_failed(readings={"before": reading(0.8, 1e-5)}, main_before=0.9)
    found = decided(row, None)
    known = {name: value for name, value in found.items() if value is not None}
    assert known == {"score_before": 0.8, "p_before": 1e-5, "chance": 0.1, "metrics": {}}
    assert set(decided(make_failed(), None)) == {*DERIVED_COLUMNS, "metrics"}


def test_half_a_measurement_is_refused_in_one_line() -> None:
    for name in ("before", "clean"):
        readings = with_readings()
        del readings[name]
        with pytest.raises(ResultsError, match=r"^cell c+: a reading 'after' needs 'before' and 'clean' beside it$"):
            decided(measured(readings=readings), make_null())


def test_deciding_twice_is_deciding_once() -> None:
    row = measured(metrics={"agreement": 0.9, "pointless": 1.0, "threshold_strict": 7.0, "ambiguity_piracy": 1.0})
    once = decided(row, make_null())
    assert decided({**row, **once}, make_null()) == once
    assert once["metrics"].keys() - DERIVED_METRICS == {"agreement"}
    assert not {"pointless", "ambiguity_piracy"} & once["metrics"].keys(), "what is no longer true is gone"


# --- tables of rows ----------------------------------------------------------------------------------------------

READINGS = st.builds(reading, RATES, st.sampled_from([1e-9, 1e-3, 1.1e-3, 0.4]), st.sampled_from([0.1, 0.5]))


@st.composite
def nulls(draw: Any) -> Null:
    models, keys, trials = draw(st.integers(1, 4)), draw(st.integers(1, 8)), draw(st.integers(1, 40))
    counts = st.lists(st.integers(0, trials), min_size=keys, max_size=keys)
    hits = draw(st.lists(counts, min_size=models, max_size=models))
    roles = draw(st.permutations([f"reference-{i}|prune" if i % 2 else f"reference-{i + 9}" for i in range(models)]))
    return Null([[count / trials for count in model] for model in hits], hits, trials, list(roles))


@st.composite
def rows(draw: Any, number: int, keys: list[str]) -> dict[str, Any]:
    readings = {name: draw(READINGS) for name in ("before", "clean", "after")}
    readings |= {name: draw(READINGS) for name in draw(st.sets(st.sampled_from(["rival", "beside", "as_left"])))}
    figures = {"agreement": 0.9, "main_scratch": 0.5, "target_acc": draw(RATES), "target_acc_unmarked": draw(RATES)}
    shown = draw(st.sets(st.sampled_from(sorted(figures))))
    return make_row(
        cell_key=f"cell-{number}", null_key=draw(st.sampled_from(keys)), main_after=draw(RATES), readings=readings,
        family=draw(st.sampled_from(["bits", "triggers", "detector", "keys"])),
        kind=draw(st.sampled_from(["removal", "ambiguity", "detection", "verification"])),
        metrics={name: figures[name] for name in shown},
    )  # fmt: skip


@st.composite
def sweeps(draw: Any) -> tuple[list[dict[str, Any]], dict[str, Null]]:
    known = {f"null-{i}": draw(nulls()) for i in range(draw(st.integers(1, 2)))}
    return [draw(rows(i, sorted(known))) for i in range(draw(st.integers(1, 4)))], known


def points(known: dict[str, Null]) -> list[dict[str, Any]]:
    return [point for key, null in known.items() for point in null_points(key, "ingrain", "mnist-mlp-1200x2", null)]


def written(out: Path, plain: list[dict[str, Any]], known: dict[str, Null]) -> tuple[pd.DataFrame, pd.DataFrame]:
    parquet.write_rows(out, plain)
    parquet.write_nulls(out, points(known))
    return parquet.read_rows(out), parquet.read_nulls(out)


def bits(frame: pd.DataFrame) -> list[dict[str, Any]]:
    plain = frame[["cell_key", *DERIVED_COLUMNS, "metrics"]].sort_values("cell_key").to_dict("records")
    return [{str(k): repr(dict(sorted(v.items())) if isinstance(v, dict) else v) for k, v in r.items()} for r in plain]


ALPHAS = st.sampled_from([1e-6, 1e-4, 1e-3, 0.01, 0.3])


@settings(max_examples=15, deadline=None)
@given(sweep=sweeps(), alpha=ALPHAS, loss=RATES, seed=st.integers(0, 99))
def test_deciding_from_parquet_gives_the_bits_of_deciding_at_once(
    tmp_path_factory: pytest.TempPathFactory, sweep: Any, alpha: float, loss: float, seed: int
) -> None:
    plain, known = sweep
    rules = Rules(alpha, loss)
    whole, default = ([{**r, **decided(r, known[r["null_key"]], own)} for r in plain] for own in (rules, DEFAULT))
    frame, table = written(tmp_path_factory.mktemp("out"), default, known)
    expected = bits(parquet.frame_of(whole))
    assert bits(redecide(frame, table, rules)) == expected
    assert list(redecide(frame, table, rules).dtypes) == list(frame.dtypes)
    # Neither the order of rows and points, nor reading two folders that share nulls, moves a bit.
    twice = pd.concat([table.sample(frac=1, random_state=seed), table])
    assert bits(redecide(frame.sample(frac=1, random_state=seed), twice, rules)) == expected
    assert bits(redecide(redecide(frame, table, Rules(0.5, 0.5)), table, rules)) == expected


@settings(max_examples=40, deadline=None)
@given(sweep=sweeps(), pair=st.tuples(ALPHAS, ALPHAS))
def test_a_higher_false_claim_rate_never_unverifies(sweep: Any, pair: tuple[float, float]) -> None:
    plain, known = sweep
    low, high = (Rules(alpha=alpha) for alpha in sorted(pair))
    for row in plain:
        fewer, more = (decided(row, known[row["null_key"]], rules) for rules in (low, high))
        for name in ("detected_before", "detected_after", "rival_verified"):
            assert more[name] or not fewer[name]
        for name in ("clean_strict", "beside_strict", "detected_as_left"):
            assert more["metrics"].get(name, 0) >= fewer["metrics"].get(name, 0)
        unmoved = ("verdict_paper", "verdict_sok", "score_after", "chance")
        assert [more[name] for name in unmoved] == [fewer[name] for name in unmoved]


@settings(max_examples=40, deadline=None)
@given(sweep=sweeps(), pair=st.tuples(RATES, RATES))
def test_a_larger_loss_never_takes_a_success_away(sweep: Any, pair: tuple[float, float]) -> None:
    plain, known = sweep
    low, high = (Rules(largest_loss=loss) for loss in sorted(pair))
    for row in plain:
        fewer, more = (decided(row, known[row["null_key"]], rules) for rules in (low, high))
        assert more["metrics"].get("success", 0) >= fewer["metrics"].get("success", 0)
        if fewer["outcome"] == "removed":
            assert more["outcome"] == "removed"
        assert more["detected_after"] == fewer["detected_after"]


COUNTED = {
    "false_strict_unmarked": 2.0, "false_sok_marked_rate": 0.1, "false_paper_surrogate_upper": 0.2,
    "identified_strict": 1.0, "misidentified_strict": 0.0, "unmarked_strict": 0.0,
}  # fmt: skip
KEPT = {"claims": 20.0, "best_claim_unmarked": 0.3, "identified": 1.0, "misidentified_score": 0.1, "traced": 1.0}


def test_what_was_counted_at_the_default_rate_is_left_out_at_another(tmp_path: Path) -> None:
    row = make_row(kind="verification", metrics={**COUNTED, **KEPT})
    frame, table = written(tmp_path, [row], {"null-0": make_null()})
    own = redecide(frame, table)["metrics"][0]
    assert own.keys() >= COUNTED.keys() | KEPT.keys()
    assert redecide(frame, table, Rules(largest_loss=0.5))["metrics"][0].keys() == own.keys()
    assert redecide(frame, table, Rules(alpha=1e-4))["metrics"][0].keys() == own.keys() - COUNTED.keys()


def test_nothing_of_a_table_changes_in_place(tmp_path: Path) -> None:
    frame, table = written(tmp_path, [make_row(metrics={"agreement": 0.9})], {"null-0": make_null()})
    redecide(frame, table, Rules(alpha=1e-9))
    assert frame["metrics"][0] == {"agreement": 0.9}
    assert frame["detected_after"][0]


def test_cells_without_a_result_and_methods_without_a_null_pass_through(tmp_path: Path) -> None:
    unmarked = dict.fromkeys(("before", "clean", "after"), UNREADABLE)
    plain = [
        make_row(cell_key="clean", family="none", null_key=None, readings=unmarked),
        make_failed(cell_key="failed", null_key="never-made", score_before=0.4, main_before=0.9),
        make_failed(cell_key="impossible", status="not_applicable"),
    ]
    frame, table = written(tmp_path, plain, {})
    found = redecide(frame, table).set_index("cell_key")
    assert found["detected_after"]["clean"] == False  # noqa: E712 (a flag that may be null)
    assert found["detected_after"].isna().to_dict() == {"clean": False, "failed": True, "impossible": True}
    assert found["outcome"].isna().all()
    assert found["score_before"]["failed"] == 0.4, "what an older assay noted of the victim stays"


def test_no_rows_are_decided_too(tmp_path: Path) -> None:
    frame, table = written(tmp_path, [], {})
    assert redecide(frame, table).columns.tolist() == frame.columns.tolist()


def test_rows_without_readings_or_null_are_refused_in_one_line(tmp_path: Path) -> None:
    plain = [make_row(cell_key=key) for key in "ab"]
    frame, table = written(tmp_path, plain, {})
    with pytest.raises(
        ResultsError, match=r"^2 cells \(a, …\): null null-0 is not in nulls\.parquet; read the nulls of"
    ):
        redecide(frame, table)
    frame, table = written(tmp_path, [plain[0], make_row(cell_key="b", readings=None)], {"null-0": make_null()})
    with pytest.raises(
        ResultsError, match=r"^cell b: no readings, so nothing can be decided anew; an older assay"
    ) as why:
        redecide(frame, table)
    assert "\n" not in str(why.value)


def test_what_an_older_assay_wrote_is_read_but_not_decided_anew() -> None:
    sweep = sorted(REFERENCE.glob("*/rows.parquet"))[0].parent
    with pytest.raises(ResultsError, match="no readings"):
        redecide(parquet.read_rows(sweep), parquet.read_nulls(sweep))


def test_nulls_come_back_as_they_were(tmp_path: Path) -> None:
    # In the order of the calibration, which is not that of the names.
    one = Null(
        [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], [[1, 2], [3, 4], [5, 6]], 10, ["reference-2", "reference-10", "a|b"]
    )
    known = {"z": one, "a": make_null()}
    parquet.write_nulls(tmp_path, points(known)[::-1])
    assert nulls_of(parquet.read_nulls(tmp_path)) == known


def test_a_hundred_thousand_rows_take_seconds() -> None:
    row = make_row()
    frame = parquet.frame_of([{**row, "cell_key": f"{i}"} for i in range(2000)])
    table = pd.DataFrame(points({"null-0": make_null()}))
    redecide(frame.head(1), table)
    started = time.process_time()
    redecide(frame, table, Rules(alpha=0.01))
    assert time.process_time() - started < 0.5, "50 times as many in under 25 s even on a slow machine"
