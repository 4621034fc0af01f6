from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.results import papers, tables
from assay.results.configs import label, natural, varying
from assay.results.decisions import Rules
from assay.results.errors import ResultsError
from assay.results.example import make_failed, make_row
from assay.results.parquet import frame_of
from assay.results.tables import Table, matrix, published, render, summary

FORMATS = ("md", "latex", "csv", "html")


def cell(table: Table, method: str, attack: str) -> str:
    line = next(row for row in table.rows if row[table.lead - 1] == method)
    return line[table.columns.index(attack)]


def sweep(*rows: dict[str, Any]) -> Table:
    return matrix(frame_of({**row, "cell_key": f"{i:04d}"} for i, row in enumerate(rows)))


# --- methods x attacks -------------------------------------------------------------------------------------------


def test_a_cell_leads_with_its_outcome_and_gives_means_over_victims() -> None:
    rows = [make_row(victim_seed=s, main_after=m, score_after=0.5) for s, m in enumerate((0.95, 0.96, 0.97))]
    table = sweep(*rows)
    # t(0.975, 2) = 4.303 times 1 / sqrt(3) points.
    assert cell(table, "ingrain", "none") == "retained 96.0±2.5 · 50.0±0.0"
    assert "n = 3 victim seeds unless stated" in table.notes
    assert table.keys[0][1] == ("0000", "0001", "0002")


def test_one_seed_has_no_interval() -> None:
    assert cell(sweep(make_row()), "ingrain", "none") == "retained 96.0 · 55.0"


def test_attack_seeds_do_not_count_as_victims() -> None:
    rows = [make_row(attack_seed=a, main_after=0.9 + a / 100) for a in range(5)]
    table = sweep(*rows)
    assert cell(table, "ingrain", "none") == "retained 92.0 · 55.0"
    assert "n = 1 victim seed unless stated" in table.notes


def test_mixed_outcomes_are_counted_and_ties_go_against_the_owner() -> None:
    rows = [make_row(victim_seed=s, outcome=o) for s, o in enumerate(("retained", "removed"))]
    assert cell(sweep(*rows), "ingrain", "none").startswith("removed 1/2 ")
    rows.append(make_row(victim_seed=2, outcome="retained"))
    assert cell(sweep(*rows), "ingrain", "none").startswith("retained 2/3 ")


def test_other_verdicts_are_shown_only_where_they_differ() -> None:
    assert "paper" not in cell(sweep(make_row()), "ingrain", "none")
    text = cell(sweep(make_row(verdict_paper=False), make_row(victim_seed=1)), "ingrain", "none")
    assert text.endswith(" paper: yes 1/2")
    text = cell(sweep(make_row(detected_after=False, outcome="removed", verdict_paper=False)), "ingrain", "none")
    assert text == "removed 96.0 · 55.0 SoK: yes"


def test_a_mark_that_was_never_there_is_not_called_removed_alone() -> None:
    rows = [
        make_row(victim_seed=s, attack="prune", outcome="removed", detected_before=s > 0, detected_after=False)
        for s in range(2)
    ]
    assert cell(sweep(*rows), "ingrain", "prune").startswith("removed unverified before 1/2 ")
    assert cell(sweep(rows[0]), "ingrain", "prune").startswith("removed unverified before ")
    assert "unverified" not in cell(sweep(rows[1]), "ingrain", "prune")
    unmarked = make_row(method="clean", attack="prune", outcome=None, detected_before=False, detected_after=False)
    assert "unverified" not in cell(sweep(unmarked), "clean", "prune")


def test_attacks_that_gain_nothing_over_their_own_data_are_marked() -> None:
    rows = [make_row(victim_seed=s, attack="distill", metrics={"pointless": float(s == 0)}) for s in range(2)]
    assert " pointless 1/2 " in cell(sweep(*rows), "ingrain", "distill")
    assert "pointless" not in cell(sweep(rows[1]), "ingrain", "distill")


def test_rival_claims_are_marked() -> None:
    rows = [make_row(victim_seed=s, attack="overwrite", rival_verified=s == 0, rival_score=0.9) for s in range(2)]
    assert cell(sweep(*rows), "ingrain", "overwrite").endswith(" rival verified 1/2")
    assert cell(sweep(rows[1]), "ingrain", "overwrite").endswith(" rival rejected")


@pytest.mark.parametrize(("status", "word"), [("failed", "failed"), ("blocked", "blocked"), ("not_applicable", "n/a")])
def test_a_cell_that_did_not_run_is_a_reason_and_no_number(status: str, word: str) -> None:
    table = sweep(make_failed(status, "the reason"), make_row(attack="prune"))
    assert cell(table, "ingrain", "none") == f"{word}: see [1]"
    assert table.notes[0] == f"[1] {word}: the reason"


def test_figures_of_a_failed_cell_are_never_shown() -> None:
    rows = [make_row(victim_seed=s, status="failed", reason="late", main_after=0.111) for s in range(2)]
    for fmt in FORMATS:
        assert "11.1" not in render(sweep(*rows), fmt)
    mixed = sweep(*rows, make_row(victim_seed=2))
    assert cell(mixed, "ingrain", "none") == "retained 96.0 · 55.0 [1]"
    assert mixed.notes[0] == "[1] failed (2 of 3 cells): late (assay log OUT attack-0)"


def test_configurations_that_vary_become_lines_and_columns() -> None:
    rows = [
        make_row(
            method_config={"strength": s, "carriers": 9}, attack="prune", attack_config={"ratio": r, "x": {"y": 1}}
        )
        for s in (8, 0.5)
        for r in (0.75, 0.5)
    ]
    table = sweep(*rows, make_row(method="clean"))
    assert table.columns == ("method", "none", "prune ratio=0.5", "prune ratio=0.75")
    assert [row[0] for row in table.rows] == ["clean", "ingrain strength=0.5", "ingrain strength=8"]
    assert table.rows[1][1] == "-"


def test_reasons_point_to_the_log_and_equal_ones_are_one_note() -> None:
    rows = [make_failed(victim_seed=s, attack=a, attack_key=f"{a}-{s}" * 9) for s in range(2) for a in "ab"]
    table = sweep(*rows)
    assert cell(table, "ingrain", "a") == cell(table, "ingrain", "b") == "failed: see [1]"
    reason = rows[0]["reason"]
    assert table.notes[0] == f"[1] failed: {reason} (assay log OUT {'a-0a-0a-0a-0'})"
    assert "assay log" not in sweep(make_failed("not_applicable", "no")).notes[0]


def test_the_legend_names_the_rules() -> None:
    notes = " ".join(matrix(frame_of([make_row()]), Rules(alpha=1e-4, largest_loss=0.02)).notes)
    assert "false claims at most 0.0001" in notes
    assert "at most 2 points of accuracy lost" in notes


def test_tasks_are_blocks_with_labels_of_their_own() -> None:
    one = make_row(attack="prune", attack_config={"ratio": 0.5})
    two = make_row(task="digits-lenet5", attack="prune", attack_config={"ratio": 0.8})
    table = sweep(one, two)
    assert table.columns == ("task", "method", "prune")
    assert [row[:2] for row in table.rows] == [("digits-lenet5", "ingrain"), ("mnist-mlp-1200x2", "ingrain")]


def test_no_rows_and_only_failures_render() -> None:
    empty = matrix(frame_of([]))
    assert empty.rows == ()
    assert empty.notes == ("no cells",)
    for table in (empty, sweep(make_failed(), make_failed(victim_seed=1))):
        for fmt in FORMATS:
            assert render(table, fmt).endswith("\n")


STATUS = st.sampled_from(["ok", "failed", "blocked", "not_applicable"])
CELLS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 3), STATUS, st.floats(0, 1)), max_size=20
)


@settings(max_examples=40, deadline=None)
@given(CELLS)
def test_every_cell_is_in_exactly_one_place(cells: list[tuple[str, str, int, str, float]]) -> None:
    rows = []
    for number, (method, attack, seed, status, rate) in enumerate(cells):
        names: dict[str, Any] = {"method": method, "attack": attack, "victim_seed": seed, "attack_seed": number}
        names["cell_key"] = f"k{number:03d}"
        ran = status == "ok"
        rows.append(make_row(**names, main_after=rate) if ran else make_failed(status, f"why {seed}", **names))
    table = matrix(frame_of(rows))
    placed = [key for line in table.keys for keys in line for key in keys]
    assert sorted(placed) == [row["cell_key"] for row in rows]
    (lines := list(csv.reader(io.StringIO(render(table, "csv"))))).pop(0)
    assert sum(len(re.findall(r"k\d{3}", line[-1])) for line in lines) == len(rows)
    by_status: dict[tuple[str, str], set[str]] = {(row["method"], row["attack"]): set() for row in rows}
    for row in rows:
        by_status[row["method"], row["attack"]].add(row["status"])
    for (method, attack), found in by_status.items():
        assert bool(re.search(r"\d\.\d", cell(table, method, attack))) is ("ok" in found)


# --- rendering ---------------------------------------------------------------------------------------------------

NASTY = Table(
    "50% of $x_1 & <b>",
    ("a|b", "c#d"),
    (("x_y & 100%", "<i>\\~^{}"), ("[1] é", "±3 `")),
    ("no_te <s>",),
    (((), ("k1", "k2")),) * 2,
)


def test_markdown_is_aligned_and_keeps_its_columns() -> None:
    lines = [line for line in render(NASTY, "md").splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)


def test_latex_escapes_every_active_character() -> None:
    text = render(NASTY, "latex")
    assert (
        r"x\_y \& 100\% & \textless{}i\textgreater{}\textbackslash{}\textasciitilde{}\textasciicircum{}\{\} \\" in text
    )
    assert r"\caption{50\% of \$x\_1 \& \textless{}b\textgreater{}}" in text
    assert r"{}[1]" in text  # else \\[1] would be a length
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1


def test_html_escapes_and_names_the_cells() -> None:
    text = render(NASTY, "html")
    assert "<i>" not in text
    assert "<s>" not in text
    assert "&lt;i&gt;" in text
    assert 'data-cells="k1 k2"' in text
    assert "http" not in text


def test_csv_carries_keys() -> None:
    rows = list(csv.reader(io.StringIO(render(NASTY, "csv"))))
    assert rows[0] == ["a|b", "c#d", "keys"]
    assert rows[1] == ["x_y & 100%", "<i>\\~^{}", "c#d=k1 k2"]


def test_wide_tables_are_cut_into_panels_that_repeat_the_methods() -> None:
    columns = ("method", *(f"attack-{i}" for i in range(12)))
    table = Table("t", columns, (("ingrain", *["x" * 30] * 12),), keys=(((),) * 13,))
    lines = [line for line in render(table, "md").splitlines() if line.startswith("|")]
    assert max(map(len, lines)) <= 141
    assert sum(line.startswith("| ingrain") for line in lines) == len(lines) // 3 == 4
    assert all(any(f"attack-{i} " in line for line in lines) for i in range(12))


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ResultsError, match="did you mean 'latex'"):
        render(NASTY, "latx")


# --- measured beside published -----------------------------------------------------------------------------------

INGRAIN = {"carriers": 1000, "strength": 4.0, "temperature": 10}
DISTILL = {"temperature": 5, "epochs": 20, "split": "disjoint20", "student": "mlp-800x2"}


def distilled(**changes: Any) -> dict[str, Any]:
    return make_row(**{"method_config": INGRAIN, "attack": "distill", "attack_config": DISTILL, **changes})


def beside(rows: list[dict[str, Any]], paper: str, table: str) -> list[dict[str, str]]:
    found = published(frame_of({**row, "cell_key": f"{i:04d}"} for i, row in enumerate(rows)), paper, table)
    return [dict(zip(found.columns, line, strict=True)) for line in found.rows]


def test_a_number_of_the_paper_meets_ours() -> None:
    rows = [distilled(victim_seed=s, main_after=0.95, score_after=0.55) for s in range(2)]
    tested = [line for line in beside(rows, "ingrain", "3") if line["measured"] != "not tested"]
    assert [line["metric"] for line in tested] == ["main_acc after", "wm_acc after"]
    main, score = tested
    frame = frame_of({**row, "cell_key": str(i)} for i, row in enumerate(rows))
    (remark,) = [note for note in published(frame, "ingrain", "3").notes if note.endswith("] epochs 20, not 500")]
    note = remark.split(" ")[0]
    assert (main["task"], main["method"], main["attack"]) == (
        *("mnist-mlp-1200x2", "ingrain D_S=1000 lambda=4", "distill temperature=5"),
    )
    assert (main["published"], main["measured"], main["n"], main["diff"]) == (
        *("95.80", f"95.00±0.00 {note}", "2", "-0.80"),
    )
    # (0.55 - 0.1) / (1 - 0.1) = 0.5: the paper prints watermark accuracy with chance at 0.
    assert (score["published"], score["measured"], score["diff"]) == ("33.90", f"50.00±0.00 {note}", "+16.10")
    assert main["cells"] == "0000 +1"


def test_another_setting_is_not_the_papers() -> None:
    other = distilled(attack_config={**DISTILL, "temperature": 4}, method_config={**INGRAIN, "strength": 3.0})
    assert {line["measured"] for line in beside([other], "ingrain", "3")} == {"not tested"}


def test_another_task_stands_in_a_column_of_its_own() -> None:
    rows = [distilled(task="digits-lenet5", dataset="digits", model="lenet5")]
    lines = beside(rows, "ingrain", "3")
    assert {line["measured"] for line in lines} == {"not tested"}
    line = next(line for line in lines if line["method"].endswith("D_S=1000 lambda=4") and line["elsewhere"])
    assert line["elsewhere"].startswith("digits-lenet5 96.00 n=1")
    assert line["diff"] == ""


def test_without_measurements_the_papers_numbers_remain() -> None:
    lines = beside([], "usp_csp", "5")
    assert len(lines) == 89
    assert {line["measured"] for line in lines} == {"not tested"}
    assert "elsewhere" not in lines[0]


def test_unattacked_figures_come_from_any_attack_once_per_victim() -> None:
    rows = [
        distilled(victim_seed=s, embed_key=f"e{s}", clean_key=f"c{s}", main_before=0.9 + s / 10, attack=attack)
        for s in range(2)
        for attack in ("distill", "prune")
    ]
    lines = beside(rows, "ingrain", "2")
    ours = next(line for line in lines if line["method"] == "ingrain D_S=1000 lambda=4")
    assert (ours["measured"].split("±")[0], ours["n"], ours["cells"]) == ("95.00", "2", "0000 +1")
    clean = [line for line in lines if line["method"] == "clean D_S=1000"][:2]
    assert [line["measured"] for line in clean] == ["98.00±0.00", "not tested"]  # a clean model has no score of ours


def test_failed_cells_are_not_measurements() -> None:
    rows = [distilled(status="failed", reason="late")]
    assert {line["measured"] for line in beside(rows, "ingrain", "3")} == {"not tested"}


def test_settings_that_the_paper_does_not_tell_apart_get_a_line_each() -> None:
    laws = {"walk": 0.9, "noise": 0.8}
    rows = [distilled(method_config={**INGRAIN, "law": law}, main_after=rate) for law, rate in laws.items()]
    tested = [line for line in beside(rows, "ingrain", "3") if line["metric"] == "main_acc after" and line["n"]]
    assert [line["measured"].split(" ")[0] for line in tested] == ["80.00", "90.00"]
    assert len(beside(rows, "ingrain", "3")) == len(papers.load("ingrain").query("table == '3'")) + 2


def test_rival_scores_and_indices_are_mapped() -> None:
    pirate = make_row(
        **{"task": "mnist-conv2-fc2", "dataset": "mnist", "model": "conv2-fc2", "method": "adi", "attack": "piracy"},
        rival_score=0.9,
        attack_config={"split": "pir5k"},
    )
    lines = beside([pirate], "null_embedding", "1")
    assert any(line["metric"] == "pirate_wm_acc after" and line["measured"].startswith("90.00") for line in lines)
    cleanse = {**pirate, "method": "null-embedding", "attack": "neural-cleanse", "metrics": {"anomaly_index": 1.5}}
    found = [line for line in beside([cleanse], "null_embedding", "5") if line["n"]]
    assert [line["measured"].split(" ")[0] for line in found] == ["1.50"]


def test_figures_of_a_verdict_are_found_before_and_after_the_attack() -> None:
    usp = make_row(
        **{"task": "cifar10-resnet18", "dataset": "cifar10", "model": "resnet18", "method": "usp", "attack": "none"},
        method_config={"use_kld": True, "use_detector_loss": True},
        attack_config={},
        metrics={"clean_kld": 2.1, "before_kld": 2.9, "after_kld": 0.7},
    )
    (found,) = [line for line in beside([usp], "usp_csp", "15") if line["metric"].startswith("kld") and line["n"]]
    assert (found["published"], found["measured"].split("±")[0]) == ("2.91", "2.90")
    assert papers.measured("usp_csp", "kld", "after", usp) == 0.7


def test_every_published_table_renders_for_a_full_sweep() -> None:
    frame = frame_of([distilled()])
    for paper in papers.PAPERS:
        for number in papers.numbers(paper):
            table = published(frame, paper, number)
            assert len(table.rows) >= (papers.load(paper)["table"] == number).sum()
            assert render(table, "md")


def test_unknown_table_is_refused() -> None:
    with pytest.raises(ResultsError, match="unknown table '8'"):
        published(frame_of([]), "ingrain", "8")


# --- labels and counts -------------------------------------------------------------------------------------------


def test_labels_name_what_varies() -> None:
    texts = ['{"a": 1, "b": {"c": [1, 2]}, "d": true}', '{"d": true, "a": 1.0, "b": {"c": [1, 3]}, "e": null}']
    names = varying(texts)
    assert names == ("b.c", "e")
    assert label("m", texts[1], names) == "m b.c=1,3 e=none"
    assert sorted(["r=0.75", "r=0.5", "r=10", "q"], key=natural) == ["q", "r=0.5", "r=0.75", "r=10"]
    with pytest.raises(ResultsError, match="no JSON"):
        varying(["{", "{}"])


def test_summary_counts_and_explains() -> None:
    rows = [make_row(), make_row(outcome="removed"), make_failed(), make_failed(victim_seed=1)]
    rows.append(make_failed("blocked", "parent"))
    frame = frame_of({**row, "cell_key": str(i)} for i, row in enumerate([*rows, make_failed("not_applicable", "no")]))
    found = summary(frame)
    assert found["cells"] == 6
    assert found["status"] == {"ok": 2, "failed": 2, "blocked": 1, "not_applicable": 1}
    assert found["outcomes"] == {"removed": 1, "retained": 1, "useless": 0, "failed": 0}
    assert [(f["status"], f["cells"], f["keys"]) for f in found["failures"]] == [
        ("failed", 2, ["2", "3"]),
        ("blocked", 1, ["4"]),
    ]
    assert found["not_applicable"][0]["reason"] == "no"
    assert found["failures"][0]["log"] is None
    assert summary(frame_of([make_failed(attack_key="a1")]))["failures"][0]["log"] == "a1"
    assert json.loads(json.dumps(found)) == found
    assert summary(frame_of([]))["cells"] == 0


def test_public_names() -> None:
    assert set(tables.__all__) >= {"Table", "matrix", "published", "render", "summary"}
