"""Chains: an attack on an attack's surrogate, link by link, and what the links share with other cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from inline_sweep import Remembering, executed, planned

from assay.orchestrator.planning.plan import Plan
from assay.orchestrator.planning.united import unite
from assay.orchestrator.store import Store
from assay.results.parquet import read_rows
from assay.results.tables import matrix

PRUNE: dict[str, Any] = {"prune": {"ratio": 0.5}}
TUNE: dict[str, Any] = {"fine-tune": {"epochs": 1}}
GRID: dict[str, Any] = {
    "name": "chains",
    "tasks": ["digits-cnn-mini"],
    "methods": [{"uchida": {"allow_weak": True, "bits": 16}}],
    "attacks": [
        PRUNE,
        "overwrite",
        {"chain": [PRUNE, TUNE]},
        {"chain": [PRUNE, TUNE, {"round": {"digits": 2}}]},
        {"chain": ["overwrite", {"prune": {"ratio": [0.3, 0.6]}}]},
        {"chain": ["expand", "prune"]},
        {"chain": ["neural-cleanse", "prune"]},
    ],
    "profile": "smoke",
    "train": {"samples": 400, "epochs": 2, "test_samples": 100},
    "calibration": {"references": 1, "keys": 10},
}
TWO = "prune > fine-tune"
THREE = "prune > fine-tune > round"
EXPANDED = "expand leaves an architecture that is not stored; put it last in the chain"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, pd.DataFrame]:
    out, plan, report = executed(GRID, tmp_path_factory.mktemp("chains"))
    assert (report.cells, report.failed, report.blocked, report.not_applicable) == (8, 0, 0, 2)
    return out, plan, read_rows(out)


def cells(plan: Plan, attack: str) -> list[Any]:
    return [cell for cell in plan.cells if cell.point["attack"] == attack]


def record(out: Path, key: str) -> dict[str, Any]:
    return Store(out / "store").record(key)


def test_each_chain_is_a_row_with_its_links_and_a_column_of_its_own(finished: Any) -> None:
    _, _, rows = finished
    assert sorted(rows.attack) == sorted(
        ["prune", "overwrite", TWO, THREE, *2 * ["overwrite > prune"], "expand > prune", "neural-cleanse > prune"]
    )
    done = rows[rows.status == "ok"].set_index("attack")
    assert set(done.index) == {"prune", "overwrite", TWO, THREE, "overwrite > prune"}
    assert done.score_after.between(0, 1).all()
    assert '"1":{' in done.attack_config[THREE]
    assert '"3":{' in done.attack_config[THREE]
    assert (done.kind[THREE], done.kind["overwrite > prune"].iloc[0]) == ("removal", "ambiguity")
    assert len(matrix(rows).columns) == 1 + 8


def test_costs_of_the_links_add_up(finished: Any) -> None:
    out, plan, rows = finished
    for name in (TWO, THREE):
        (cell,) = cells(plan, name)
        row = rows.set_index("cell_key").loc[cell.key]
        each = [record(out, key)["costs"] for key in cell.chain]
        assert len(each) == name.count(">") + 1
        for cost in ("forward_samples", "backward_samples", "queries", "wall_s", "device_s"):
            assert row[cost] == pytest.approx(sum(link[cost] for link in each), abs=1e-12)
        assert row.unique_samples == max(link["unique_samples"] for link in each)
        assert row.cost_share == pytest.approx(row.device_s / record(out, cell.clean_key)["costs"]["device_s"])
        clean = record(out, cell.clean_key)["costs"]
        passes = [costs["forward_samples"] + 2 * costs["backward_samples"] for costs in (*each, clean)]
        assert row.metrics["work_share"] == pytest.approx(sum(passes[:-1]) / passes[-1])


def test_links_are_shared_and_only_what_is_attacked_again_is_kept(finished: Any) -> None:
    out, plan, _ = finished
    (alone,), (two,), (three,) = (cells(plan, name) for name in ("prune", TWO, THREE))
    assert alone.chain == two.chain[:1]
    assert two.chain == three.chain[:2]
    store, attacks = Store(out / "store"), [stage for stage in plan.stages.values() if stage.kind == "attack"]
    kept = {stage.key for stage in attacks if store.has_model(stage.key)}
    assert kept == {*three.chain[:2], *(cell.chain[0] for cell in cells(plan, "overwrite > prune"))}
    assert kept < {stage.key for stage in attacks if stage.keep}, "what leaves no plain network keeps none"
    assert len({stage.label for stage in attacks}) == len(attacks) - 1, "two ratios share a label, nothing else does"


def test_a_link_attacks_what_the_one_before_left(finished: Any) -> None:
    out, plan, _ = finished
    (three,) = cells(plan, THREE)
    store = Store(out / "store")
    pruned, tuned = (store.model(key) for key in three.chain[:2])
    zeros = [int((value == 0).sum()) for value in pruned.values() if value.dim() > 1]
    assert sum(zeros) > 0.4 * sum(value.numel() for value in pruned.values())
    assert any(not pruned[name].equal(tuned[name]) for name in pruned)
    identities = [plan.stages[key].identity for key in three.chain]
    assert [identity.get("after") for identity in identities] == [None, *three.chain[:2]]
    assert [identity.get("link") for identity in identities] == [None, 1, 2]


def test_an_earlier_rival_is_carried_along(finished: Any) -> None:
    out, plan, rows = finished
    store = Store(out / "store")
    first = store.tree(cells(plan, "overwrite")[0].attack_key, "rival")
    for cell in cells(plan, "overwrite > prune"):
        row = rows.set_index("cell_key").loc[cell.key]
        assert 0 <= row.rival_score <= 1
        assert [name for name in row.metrics if name.startswith("ambiguity_")]
        carried = store.tree(cell.attack_key, "rival")
        assert carried.keys() == first.keys()


def test_what_a_forger_leaves_in_use_is_attacked_with_the_claim_kept(tmp_path: Path) -> None:
    attacks = ["forge", "prune", {"chain": ["forge", "prune"]}]
    out, _, report = executed({**GRID, "attacks": attacks}, tmp_path)
    assert (report.failed, report.blocked, report.not_applicable) == (0, 0, 0)
    rows: Any = read_rows(out).set_index("attack")
    both = rows.loc["forge > prune"]
    assert (both.main_after, both.score_after) == (rows.main_after["prune"], rows.score_after["prune"])
    assert 0 <= both.rival_score <= 1
    assert pd.isna(rows.rival_score["prune"])
    assert executed({**GRID, "attacks": attacks}, tmp_path)[2].executed == 0


def test_a_student_of_another_architecture_is_attacked_as_what_it_is(tmp_path: Path) -> None:
    student = {"distill": {"epochs": 1, "student": "mlp-800x2"}}
    attacks = [{"chain": [student, PRUNE, {"distill": {"epochs": 1}}]}]
    out, plan, report = executed({**GRID, "attacks": attacks}, tmp_path)
    assert (report.failed, report.blocked, report.not_applicable) == (0, 0, 0)
    (cell,) = plan.cells
    found = [record(out, key)["result"]["architecture"] for key in cell.chain]
    assert found == ["mlp-800x2", "mlp-800x2", "cnn-mini"]
    assert executed({**GRID, "attacks": attacks}, tmp_path)[2].executed == 0


def test_after_a_change_of_architecture_there_is_nothing_to_attack(finished: Any) -> None:
    rows = finished[2].set_index("attack")
    row = rows.loc["expand > prune"]
    assert (row.status, row.reason) == ("not_applicable", EXPANDED)
    assert pd.isna(row.main_after)
    row = rows.loc["neural-cleanse > prune"]
    assert row.status == "not_applicable"
    assert pd.isna(row.attack_key)
    assert row.reason == "neural-cleanse (detection) leaves no model, so it cannot be a link of a chain"


def test_running_again_executes_nothing(finished: Any, tmp_path: Path) -> None:
    out = finished[0]
    listener = Remembering()
    _, _, report = executed(GRID, out.parent, listener=listener)
    assert (report.executed, report.cached, listener.done) == (0, report.stages, [])


def test_a_kept_surrogate_that_is_missing_is_computed_again(tmp_path: Path) -> None:
    out, plan, _ = executed({**GRID, "attacks": [{"chain": [PRUNE, TUNE]}]}, tmp_path)
    (cell,) = plan.cells
    model = Store(out / "store").folder(cell.chain[0]) / "model.safetensors"
    bits, told = model.read_bytes(), record(out, cell.chain[0])
    model.unlink()
    listener = Remembering()
    executed({**GRID, "attacks": [{"chain": [PRUNE, TUNE]}]}, tmp_path, listener=listener)
    assert listener.labels == ["attack prune | uchida"]
    assert model.read_bytes() == bits
    assert record(out, cell.chain[0]) == told, "the first record stands"


def test_a_chain_after_its_first_attack_alone(tmp_path: Path) -> None:
    out, _, _ = executed({**GRID, "attacks": [PRUNE]}, tmp_path)
    alone = read_rows(out)
    listener = Remembering()
    _, _, report = executed({**GRID, "attacks": [PRUNE, {"chain": [PRUNE, TUNE]}]}, tmp_path, listener=listener)
    assert report.failed == 0
    assert listener.labels == [
        "attack fine-tune | uchida | after prune", "attack prune | uchida", "clean scratch disjoint20",
    ]  # fmt: skip
    rows = read_rows(out).query("attack == 'prune'").reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, alone)


@pytest.mark.parametrize("turn", [1, -1])
def test_of_united_grids_a_link_is_kept_if_one_of_them_asks_for_it(tmp_path: Path, turn: int) -> None:
    made = [planned({**GRID, "attacks": [attack]}, tmp_path) for attack in (PRUNE, {"chain": [PRUNE, TUNE]})][::turn]
    _, plan = unite([grid for grid, _ in made], [plan for _, plan in made])
    (chain,) = cells(plan, TWO)
    assert [plan.stages[key].keep for key in chain.chain] == [True, False]
