"""What an attack returns is checked against its kind before anything is read: a wrong one fails its cell."""

from __future__ import annotations

from typing import Any

import pytest
from inline_sweep import executed

from assay.results.parquet import read_rows

PLUGIN = '''"""An attack of these tests."""

from assay.attacks.base import Attack, Outcome


class Odd(Attack):
    key, title, source, access, cheap = "odd", "Odd", "these tests", "weights", True
    kind = "{kind}"

    def run(self, victim, lab):
        return {outcome}
'''
GRID: dict[str, Any] = {
    "name": "outcomes",
    "tasks": ["digits-cnn-mini"],
    "methods": [{"uchida": {"allow_weak": True, "bits": 16}}],
    "attacks": ["none", "odd"],
    "profile": "smoke",
    "train": {"samples": 200, "epochs": 1, "test_samples": 50},
    "calibration": {"references": 1, "keys": 10},
}
WRONG = {
    "removal without a surrogate": ("removal", "Outcome()", "it leaves no surrogate"),
    "removal with a claim": (
        "removal", "Outcome(victim.module(), rival={'bits': 1})", "it leaves a rival claim, which another kind does",
    ),
    "ambiguity with nothing": ("ambiguity", "Outcome()", "it leaves neither a surrogate nor a rival claim"),
    "detection with a claim": (
        "detection", "Outcome(rival={'bits': 1}, report={'i': 1})", "it leaves a rival claim, which another kind does",
    ),
    "verification with a network": (
        "verification", "Outcome(victim.module())", "it leaves a surrogate, which another kind does",
    ),
    "detection without figures": ("detection", "Outcome()", "it leaves no report"),
    "a state dict": ("removal", "Outcome(victim.module().state_dict())", "surrogate is OrderedDict, not Module"),
    "a text for a figure": ("detection", "Outcome(report={'index': 'high'})", "report 'index' is str, not a number"),
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that runs the grid with an attack of some kind and outcome, in one folder for all."""
    folder = tmp_path_factory.mktemp("outcomes")

    def run(kind: str, outcome: str) -> dict[Any, Any]:
        plugin = folder / "odd.py"
        plugin.write_text(PLUGIN.format(kind=kind, outcome=outcome), "utf-8")
        out, _, report = executed(GRID, folder, [plugin])
        assert (report.failed, report.blocked, report.cells) == (1, 0, 2)
        rows = read_rows(out)
        assert set(rows.status[rows.attack == "none"]) == {"ok"}
        (row,) = rows[rows.attack == "odd"].to_dict("records")
        assert row["status"] == "failed"
        assert row["readings"] is None or set(row["readings"]) <= {"before", "clean"}
        assert "\n" not in row["reason"]
        return dict(row)

    return run


@pytest.mark.parametrize("name", WRONG)
def test_an_outcome_of_the_wrong_kind_fails_its_cell_with_one_line(name: str, ran: Any) -> None:
    kind, outcome, told = WRONG[name]
    assert ran(kind, outcome)["reason"] == f"the outcome is none of kind {kind}: {told}"


@pytest.mark.parametrize(("outcome", "found"), [("None", "NoneType"), ("victim.weights()", "dict")])
def test_what_is_no_outcome_at_all_is_named(outcome: str, found: str, ran: Any) -> None:
    assert ran("removal", outcome)["reason"] == f"odd: run() returned {found}, not an Outcome"
