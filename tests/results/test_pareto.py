"""Fronts and hypervolumes on sets made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.results.decisions import Rules
from assay.results.errors import ResultsError
from assay.results.example import make_failed, make_row
from assay.results.pareto import Point, cheapest_removals, equilibrium, front, hypervolume, points, robustness
from assay.results.parquet import frame_of


def point(main: float, score: float, *, share: float | None = 0.1, removed: float = 0.0, before: float = 0.9) -> Point:
    return Point("prune", main, before, score, removed, share, ())


def test_the_front_of_a_set_made_by_hand() -> None:
    best, middle, low = point(0.90, 0.8), point(0.88, 0.5), point(0.80, 0.1)
    beaten = [point(0.89, 0.8), point(0.87, 0.5), point(0.85, 0.6), point(0.79, 0.1), point(0.90, 0.9)]
    assert front([*beaten, low, middle, best]) == [best, middle, low]


def test_the_hypervolume_of_single_points() -> None:
    assert hypervolume([point(0.90, 0.0)], 0.9) == pytest.approx(1.0)
    assert hypervolume([point(0.95, 0.0)], 0.9) == pytest.approx(1.0), "a better surrogate is worth no more"
    assert hypervolume([point(0.875, 0.4)], 0.9) == pytest.approx(0.5 * 0.6)
    assert hypervolume([point(0.84, 0.0)], 0.9) == 0.0, "outside the box"
    assert hypervolume([point(0.90, 1.0)], 0.9) == 0.0
    assert hypervolume([], 0.9) == 0.0


def test_two_steps_add_up() -> None:
    # Half the width down to 0.2, and all of it down to 0.6: 1 * 0.4 + 0.5 * 0.4.
    assert hypervolume([point(0.875, 0.2), point(0.90, 0.6)], 0.9) == pytest.approx(0.4 + 0.2)


@given(st.lists(st.tuples(st.floats(0.8, 1.0), st.floats(0, 1)), max_size=12))
def test_more_attacks_never_make_a_method_more_robust(pairs: list[tuple[float, float]]) -> None:
    candidates = [point(*pair) for pair in pairs]
    kept = front(candidates)
    whole = hypervolume(candidates, 0.9)
    assert whole == pytest.approx(hypervolume(kept, 0.9))
    assert -1e-9 <= whole <= 1 + 1e-9
    assert hypervolume(candidates[:-1], 0.9) <= whole + 1e-9
    assert all(any(k.main >= c.main and k.score <= c.score for k in kept) for c in candidates)


def test_the_cheapest_removal_leaves_a_useful_model() -> None:
    cheap, dear = point(0.89, 0.6, share=0.01), point(0.89, 0.1, share=2.0)
    useless, unknown = point(0.5, 0.0, share=0.0), point(0.89, 0.0, share=None)
    assert cheapest_removals([dear, useless, unknown, cheap]) == [cheap, dear]


def test_a_success_counts_by_its_accuracy_and_all_else_less_the_score() -> None:
    failed, removed = point(0.95, 0.9), point(0.86, 0.45, removed=1.0)
    assert equilibrium([failed, removed]) == removed
    assert equilibrium([failed, point(0.86, 0.45, removed=0.4)]).pay_off == pytest.approx(0.41)  # type: ignore[union-attr]
    assert equilibrium([]) is None


def row(attack: str, seed: int, main: float, score: float, **more: Any) -> dict[str, Any]:
    return make_row(**{
        "cell_key": f"{attack}-{seed}-{len(more)}", "outcome": "removed", "attack": attack, "victim_seed": seed,
        "main_after": main, "main_before": 0.9, "cost_share": 0.5, "metrics": {"score_sok": score}, **more,
    })  # fmt: skip


def test_points_are_means_over_victims_of_cells_with_a_score() -> None:
    rows = frame_of([
        row("prune", 0, 0.8, 0.2, cell_key="a"), row("prune", 1, 0.9, 0.4, outcome="retained", cell_key="b"),
        make_failed(attack="distill"), row("none", 0, 0.9, 1.0, metrics={}),
    ])  # fmt: skip
    (only,) = points(rows)
    assert (only.name, only.removed, only.cells) == ("prune", 0.5, ("a", "b"))
    assert [only.main, only.score] == pytest.approx([0.85, 0.3])


def test_points_of_two_settings_are_refused() -> None:
    rows = frame_of([row("prune", 0, 0.8, 0.2), row("prune", 1, 0.9, 0.4, method_version=2)])
    with pytest.raises(ResultsError, match="differ in method_version"):
        points(rows)


def test_the_robustness_table_names_the_attacks_and_their_cells() -> None:
    rows = frame_of([
        row("prune", 0, 0.88, 0.2, method="adi", cost_share=0.01),
        row("none", 0, 0.9, 1.0, outcome="retained", method="adi"),
        row("prune", 1, 0.88, 0.2, method="csp", cost_share=2.0),
    ])  # fmt: skip
    table = robustness(rows)
    adi, csp = (dict(zip(table.columns, line, strict=True)) for line in table.rows)
    assert (adi["hyper-volume"], adi["robust"], csp["robust"]) == ("0.48", "no", "yes"), (
        "dearer than training is no threat"
    )
    assert adi["front"] == "none (90.0 · 1.00), prune (88.0 · 0.20)"
    assert adi["cheapest removal"] == "prune (share 0.01)"
    assert adi["largest pay-off"] == "prune (0.88)"
    assert table.keys[0][5] == ("prune-0-2",)


def test_settings_of_a_method_are_lines_that_say_what_differs() -> None:
    rows = frame_of(
        row("prune", 0, 0.88, 0.2, method="adi", method_config={"triggers": n}, cell_key=f"{n}") for n in (10, 100)
    )
    assert [line[1] for line in robustness(rows).rows] == ["adi triggers=10", "adi triggers=100"]


def test_the_largest_loss_is_a_rule() -> None:
    rows = frame_of([row("prune", 0, 0.82, 0.0, method="adi")])
    strict, lenient = (robustness(rows, rules) for rules in (Rules(), Rules(largest_loss=0.1)))
    assert (strict.rows[0][2], lenient.rows[0][2]) == ("0.00", "0.20")
    assert "between 10 points below" in lenient.notes[0]
    assert hypervolume([point(0.9, 0.3), point(0.8, 0.0)], 0.9, Rules(largest_loss=0)) == pytest.approx(0.7)
