"""The table of embeddings: what marking cost and what reads by chance."""

from __future__ import annotations

from typing import Any

from assay.results.embedding import embedding
from assay.results.example import make_failed, make_row
from assay.results.parquet import frame_of


def row(seed: int, attack: str = "none", **more: Any) -> dict[str, Any]:
    return make_row(
        **{
            "cell_key": f"{more.get('method', 'adi')}-{attack}-{seed}",
            "embed_key": f"embed-{more.get('method', 'adi')}-{seed}",
            "victim_seed": seed,
            "method": "adi",
            "attack": attack,
            **more,
        }
    )


def lines(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    table = embedding(frame_of(rows))
    return [dict(zip(table.columns, line, strict=True)) for line in table.rows]


def test_means_are_over_victims_and_the_worst_p_value_counts() -> None:
    common: dict[str, Any] = {
        "main_clean": 0.95,
        "metrics": {"clean_score": 0.1, "clean_strict": 0.0, "embed_work_share": 2.0},
    }
    found = lines([
        row(0, main_before=0.93, p_before=1e-9, embed_cost_share=1.0, **common),
        row(1, main_before=0.91, p_before=1e-5, embed_cost_share=3.0, detected_before=False, **common),
    ])  # fmt: skip
    (line,) = found
    assert line["drop"].startswith("3.0")
    assert (line["clean"], line["p"], line["verified"], line["falsely"]) == ("95.0±0.0", "1.0e-05", "1/2", "0/2")
    assert (line["work"], line["time"]) == ("2.00", "2.00")
    assert line["best fresh"] == "-"


def test_false_claims_add_the_best_key_and_are_no_marked_models_of_their_own() -> None:
    claims = row(0, "false-claim", metrics={"best_claim_marked": 0.37})
    table = embedding(frame_of([row(0), claims, row(1), make_failed(method="adi", cell_key="x")]))
    (line,) = (dict(zip(table.columns, texts, strict=True)) for texts in table.rows)
    assert (line["best fresh"], line["verified"]) == ("37.0", "2/2")
    behind = dict(zip(table.columns, table.keys[0], strict=True))
    assert behind["best fresh"] == ("adi-false-claim-0",)
    assert set(behind["score"]) == {"adi-none-0", "adi-none-1"}


def test_unmarked_models_are_no_line_and_configurations_are_named_by_what_differs() -> None:
    found = lines([
        row(0, method="clean"),
        row(0, method="csp", method_config={"beta": 0.1, "tau": 0.85}, cell_key="a"),
        row(0, method="csp", method_config={"beta": 1.0, "tau": 0.85}, cell_key="b"),
    ])  # fmt: skip
    assert [line["method"] for line in found] == ["csp beta=0.1", "csp beta=1"]
