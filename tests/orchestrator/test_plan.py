"""Plans: what is shared, what is keyed, what changes a key and what must not."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from assay.attacks.base import Needs
from assay.attacks.prune import Prune
from assay.methods.uchida import Uchida
from assay.orchestrator.keys import content_key
from assay.orchestrator.planning.cost import Size, seconds, size
from assay.orchestrator.planning.grid import parse
from assay.orchestrator.planning.plan import Cell, Plan, Stage
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.store import Store
from assay.results.schema import STAGES
from assay.tasks.data.sources import fingerprint
from assay.tasks.errors import BadInput, MissingData

REGISTRY = Registry()
BASE: dict[str, Any] = {
    "tasks": ["digits-lenet5"],
    "methods": ["clean", "uchida", "adi"],
    "attacks": ["none", {"prune": {"ratio": [0.2, 0.8]}}],
    "seeds": 2,
    "profile": "smoke",
}


@pytest.fixture
def plan_of(tmp_path: Path) -> Any:
    def build(value: dict[str, Any], device: str = "cpu", threads: int = 1, root: Path | None = None) -> Plan:
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(value, sort_keys=False), "utf-8")
        return build_plan(parse(str(path), REGISTRY), REGISTRY, root, device, threads)

    return build


def attack_keys(plan: Plan) -> set[str]:
    return {stage.key for stage in plan.stages.values() if stage.kind == "attack"}


def test_stages_are_shared_by_cells(plan_of: Any) -> None:
    plan = plan_of(BASE)
    kinds = [stage.kind for stage in plan.stages.values()]
    # Per seed one paired clean model; three references, shared by the calibrations of both methods for all seeds.
    assert [kinds.count(kind) for kind in STAGES] == [2 + 3, 2, 3 * 2, 3 * 3 * 2]
    assert len(plan.cells) == 3 * 3 * 2
    assert len({cell.key for cell in plan.cells}) == len(plan.cells)


def test_parents_come_before_children(plan_of: Any) -> None:
    plan = plan_of(BASE)
    order = {key: place for place, key in enumerate(plan.stages)}
    for stage in plan.stages.values():
        assert all(order[parent] < order[stage.key] for parent in stage.parents)
        assert all(plan.critical[parent] > plan.critical[stage.key] for parent in stage.parents)


def test_entries_for_some_tasks_plan_what_a_grid_of_those_tasks_would(plan_of: Any) -> None:
    two = ["digits-lenet5", "digits-cnn-mini"]
    first, second = ({"bits": 32, "only": two[0]}, {"bits": 64, "only": two[1:]})
    prune = [{"prune": {"ratio": 0.2, "only": two[0]}}, {"prune": {"ratio": 0.8, "only": [two[1], "mnist-lenet5"]}}]
    plan = plan_of({**BASE, "tasks": two, "methods": [{"uchida": first}, {"uchida": second}, "adi"], "attacks": prune})
    alone = [
        plan_of({**BASE, "tasks": [task], "methods": [{"uchida": {"bits": bits}}, "adi"], "attacks": [attack]})
        for task, bits, attack in zip(
            two, (32, 64), ({"prune": {"ratio": 0.2}}, {"prune": {"ratio": 0.8}}), strict=True
        )
    ]
    assert {cell.key for cell in plan.cells} == {cell.key for own in alone for cell in own.cells}
    assert set(plan.stages) == {key for own in alone for key in own.stages}


def test_the_same_entry_for_two_tasks_and_for_all_is_one_entry(plan_of: Any) -> None:
    two = ["digits-lenet5", "digits-cnn-mini"]
    everywhere = {cell.key for cell in plan_of({**BASE, "tasks": two, "methods": ["uchida"]}).cells}
    for split in ([{"only": two[0]}, {"only": two[1]}], [{"only": two[0]}, {}]):
        plan = plan_of({**BASE, "tasks": two, "methods": [{"uchida": params} for params in split]})
        assert {cell.key for cell in plan.cells} == everywhere


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ([], "only is an empty list"),
        ("digits-lenet", "line 5: only: unknown task 'digits-lenet'; did you mean"),
    ],
)
def test_what_only_names_is_checked(plan_of: Any, only: Any, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        plan_of({**BASE, "methods": [{"uchida": {"only": only}}]})
    assert message in str(caught.value)


def test_order_and_nesting_change_no_key(plan_of: Any) -> None:
    plan = plan_of(BASE)
    shuffler = random.Random(3)
    for _ in range(5):
        other: dict[str, Any] = {
            "seeds": [1, 0],
            "attacks": [{"prune": {"ratio": 0.8}}, {"prune": {"ratio": 0.2}}, "none"],
            "methods": [{"adi": {}}, {"uchida": None, "clean": {}}],
            "profile": "smoke",
            "tasks": [{"digits-lenet5": {}}],
        }
        for axis in ("attacks", "methods"):
            shuffler.shuffle(other[axis])
        again = plan_of(other)
        assert set(again.stages) == set(plan.stages)
        assert {cell.key for cell in again.cells} == {cell.key for cell in plan.cells}


def test_writing_a_default_out_changes_no_key(plan_of: Any) -> None:
    default = Uchida(Uchida.Config(**Uchida.laptop)).config.bits
    spelled = plan_of({**BASE, "methods": ["clean", {"uchida": {"bits": default}}, "adi"]})
    assert set(spelled.stages) == set(plan_of(BASE).stages)


def test_splitting_a_grid_gives_the_same_keys(plan_of: Any) -> None:
    whole = plan_of(BASE)
    parts = [plan_of({**BASE, "methods": [method]}) for method in BASE["methods"]]
    assert set().union(*(part.stages for part in parts)) == set(whole.stages)


def test_a_repeated_entry_is_one_entry(plan_of: Any) -> None:
    doubled = plan_of({**BASE, "methods": [*BASE["methods"], "uchida"], "attacks": [*BASE["attacks"], "none"]})
    assert [cell.key for cell in doubled.cells] == [cell.key for cell in plan_of(BASE).cells]


def test_adding_an_attack_adds_only_its_stages(plan_of: Any) -> None:
    before = plan_of(BASE)
    after = plan_of({**BASE, "attacks": [*BASE["attacks"], {"prune": {"ratio": 0.5}}]})
    new = after.missing(before.stages)
    assert {after.stages[key].kind for key in new} == {"attack"}
    assert len(new) == 3 * 2


CHANGES: dict[str, dict[str, Any]] = {
    "method parameter": {"methods": ["clean", {"uchida": {"strength": 0.5}}, "adi"]},
    "epochs": {"train": {"epochs": 3}},
    "learning rate": {"train": {"lr": 0.5}},
    "batch size": {"train": {"batch_size": 32}},
    "optimizer": {"train": {"optimizer": "sgd"}},
    "precision": {"train": {"precision": "bf16"}},
    "augmentation": {"train": {"augment": "crop"}},
    "samples": {"train": {"samples": 400}},
    "seeds": {"seeds": [5, 6]},
    "attack seeds": {"attack_seeds": [3]},
    "architecture": {"tasks": ["digits-cnn-mini"]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_input_of_a_result_changes_its_keys(name: str, plan_of: Any) -> None:
    before, after = plan_of(BASE), plan_of({**BASE, **CHANGES[name]})
    of_uchida = [key for key in attack_keys(after) if after.stages[key].identity["method"]["key"] == "uchida"]
    assert of_uchida
    assert not set(of_uchida) & attack_keys(before)
    clean = {key for key, stage in after.stages.items() if stage.kind == "clean"}
    if name in ("method parameter", "attack seeds"):
        assert clean <= set(before.stages), "an unmarked model does not depend on this"


@pytest.mark.parametrize("change", [{"references": 2}, {"keys": 30}, {"processed": 1}])
def test_calibration_changes_nulls_and_their_models_alone(change: dict[str, Any], plan_of: Any) -> None:
    before = plan_of({**BASE, "calibration": {"references": 3}})
    after = plan_of({**BASE, "calibration": {"references": 3, **change}})

    def keys(plan: Plan, *kinds: str) -> set[str]:
        return {stage.key for stage in plan.stages.values() if stage.kind in kinds}

    assert keys(after, "embed", "attack") == keys(before, "embed", "attack")
    assert not keys(after, "calibrate") & keys(before, "calibrate")
    assert not {cell.key for cell in after.cells} & {cell.key for cell in before.cells}, "another null, another row"
    if "references" in change:
        assert keys(after, "clean") < keys(before, "clean")
    more = [after.stages[key] for key in keys(after, "clean") - keys(before, "clean")]
    assert [bool(stage.identity.get("processed")) for stage in more] == [True] * (3 * ("processed" in change))


def test_device_and_threads_are_part_of_the_numerics(plan_of: Any) -> None:
    before = set(plan_of(BASE).stages)
    assert not before & set(plan_of(BASE, device="cuda").stages)
    assert not before & set(plan_of(BASE, threads=2).stages)
    assert set(plan_of(BASE, device="cuda", threads=2).stages) == set(plan_of(BASE, device="cuda").stages)


def test_what_is_no_input_changes_no_key(plan_of: Any) -> None:
    before = set(plan_of(BASE).stages)
    assert set(plan_of({**BASE, "name": "another", "about": "a remark"}).stages) == before


def test_a_plugins_version_changes_its_keys_alone(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_of(BASE)
    monkeypatch.setattr(Uchida, "version", Uchida.version + 1)
    new = [after for key, after in plan_of(BASE).stages.items() if key not in before.stages]
    assert {stage.identity["method"]["key"] for stage in new} == {"uchida"}


def test_impossible_cells_say_why_and_cost_nothing(plan_of: Any) -> None:
    plan = plan_of({**BASE, "methods": ["uchida"], "tasks": ["digits-lenet5"], "attacks": ["none"], "seeds": 1})
    assert all(cell.attack_key and not cell.reason for cell in plan.cells)
    plan = plan_of({**BASE, "methods": [{"uchida": {"bits": 4096}}], "attacks": ["none"], "seeds": 1})
    assert not plan.stages
    assert [cell.reason for cell in plan.cells if "4096" in cell.reason]


def test_missing_walks_only_up_from_what_is_wanted(plan_of: Any) -> None:
    plan = plan_of(BASE)
    assert plan.missing(()) == set(plan.stages)
    ends = {key for cell in plan.cells for key in cell.stages}
    assert plan.missing(ends) == set(), "parents of committed attacks and nulls are not needed again"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"tasks": ["digits-lenet"]}, ["unknown task 'digits-lenet'", "did you mean 'digits-lenet5'?"]),
        ({"methods": [{"uchida": {"bit": 3}}]}, ["line", "uchida", "unknown field 'bit'", "did you mean 'bits'?"]),
        ({"methods": [{"uchida": {"bits": "many"}}]}, ["line", "uchida", "bits", "found 'many'"]),
        ({"train": {"epoch": 3}}, ["'epoch'", "did you mean 'epochs'?"]),
    ],
)
def test_a_mistake_is_told_in_one_line(change: dict[str, Any], parts: list[str], plan_of: Any) -> None:
    with pytest.raises(BadInput) as caught:
        plan_of({**BASE, **change})
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_a_missing_data_set_names_the_command(plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSAY_DATA", raising=False)
    with pytest.raises(MissingData, match=r"assay data fetch mnist") as caught:
        plan_of({**BASE, "tasks": ["mnist-lenet5"]}, root=tmp_path)
    assert "\n" not in str(caught.value)


def needs_of(plan: Plan, attack: str) -> list[Stage]:
    return [s for s in plan.stages.values() if s.kind == "attack" and s.identity["attack"]["key"] == attack]


def test_what_an_attack_declares_becomes_identity_and_parents(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_of(BASE)
    declared = Needs("weights", datasets=("digits",), unmarked=("null-0",))
    monkeypatch.setattr(Prune, "needs", lambda self, task, method: declared)
    after = plan_of(BASE)
    assert {s.key for s in needs_of(after, "none")} == {s.key for s in needs_of(before, "none")}
    for stage in needs_of(after, "prune"):
        assert stage.key not in before.stages
        assert stage.identity["other"] == {"digits": stage.identity["data"]}
        null = after.stages[stage.identity["unmarked"]["null-0"]]
        assert null.key in stage.parents
        assert null.identity["seed"] == stage.identity["seed"]
        assert null.key not in before.stages


def test_a_data_set_that_an_attack_misses_is_one_line(
    plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASSAY_DATA", raising=False)
    monkeypatch.setattr(Prune, "needs", lambda self, task, method: Needs("weights", datasets=("mnist",)))
    with pytest.raises(MissingData, match=r"assay data fetch mnist") as caught:
        plan_of(BASE, root=tmp_path)
    assert "\n" not in str(caught.value)


def test_peers_are_the_block_of_seeds_whatever_else_the_grid_asks_for(
    plan_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prune, "needs", lambda self, task, method: Needs("weights", peers=3))
    whole, one = plan_of({**BASE, "seeds": 3}), plan_of({**BASE, "seeds": [1]})
    for plan in (whole, one):
        for stage in needs_of(plan, "prune"):
            seeds = [plan.stages[key].identity["seed"] for key in stage.identity["peers"]]
            assert seeds == [0, 1, 2]
            assert stage.identity["embed"] in stage.identity["peers"]
            assert set(stage.identity["peers"]) <= set(stage.parents)
            assert len(stage.parents) == len(set(stage.parents))
    assert {s.key for s in needs_of(one, "prune")} < {s.key for s in needs_of(whole, "prune")}
    assert {cell.point["victim_seed"] for cell in one.cells} == {1}, "a peer is no cell"


def test_a_calibration_is_shared_by_all_victims_of_a_method(plan_of: Any) -> None:
    plan = plan_of({**BASE, "seeds": [3, 4, 5]})
    calibrations = {s.identity["method"]["key"]: s.key for s in plan.stages.values() if s.kind == "calibrate"}
    assert set(calibrations) == {"uchida", "adi"}, "nothing is verified of an unmarked model"
    for cell in plan.cells:
        assert cell.null_key == calibrations.get(cell.point["method"])
    other = plan_of({**BASE, "seeds": [7]})
    assert set(calibrations.values()) <= set(other.stages), "the same whatever the victims"


def test_embedding_waits_for_no_calibration(plan_of: Any) -> None:
    plan = plan_of(BASE)
    for stage in plan.stages.values():
        if stage.kind == "embed":
            assert [plan.stages[parent].label.split(" | ")[0] for parent in stage.parents] == ["clean clean"]


def test_an_attack_with_data_is_measured_by_what_the_data_give_alone(plan_of: Any) -> None:
    attacks = ["none", "fine-tune", {"overwrite": {"split": "same"}}]
    plan = plan_of({**BASE, "methods": ["uchida"], "attacks": attacks})
    (none,), (tune,), (write,) = (
        [s for s in needs_of(plan, key) if s.identity["seed"] == 0] for key in ("none", "fine-tune", "overwrite")
    )
    assert "scratch" not in none.identity
    scratch = [plan.stages[stage.identity["scratch"]] for stage in (tune, write)]
    assert [stage.identity["attacker"] for stage in scratch] == ["disjoint20", "same"]
    assert all(stage.kind == "clean" for stage in scratch)


def test_a_split_mode_without_its_data_is_impossible_and_says_why(plan_of: Any) -> None:
    grid = {**BASE, "methods": ["uchida"], "attacks": ["none", {"fine-tune": {"split": ["sok", "disjoint20"]}}]}
    for share, impossible in ((0.2, "sok"), (1 / 3, "disjoint20")):
        plan = plan_of({**grid, "train": {"attacker_share": share}})
        assert {cell.point["split"] for cell in plan.cells if cell.reason} == {impossible}
        assert all("attacker_share" in cell.reason for cell in plan.cells if cell.reason)


# --- chains ------------------------------------------------------------------------------------------------------

PRUNE: dict[str, Any] = {"prune": {"ratio": 0.5}}
ONE: dict[str, Any] = {**BASE, "methods": ["uchida"], "seeds": 1}


def test_a_chain_is_a_stage_for_each_link_on_what_the_one_before_leaves(plan_of: Any) -> None:
    plan = plan_of({**ONE, "attacks": [PRUNE, {"chain": [PRUNE, "fine-tune", "round"]}]})
    alone, cell = plan.cells
    first, second, third = (plan.stages[key] for key in cell.chain)
    assert alone.chain == (first.key,)
    assert cell.attack_key == third.key
    assert [stage.keep for stage in (first, second, third)] == [True, True, False]
    assert [stage.identity.get("link") for stage in (first, second, third)] == [None, 1, 2]
    assert [stage.identity.get("after") for stage in (first, second, third)] == [None, first.key, second.key]
    for stage, before in ((second, first), (third, second)):
        assert {cell.embed_key, before.key} <= set(stage.parents)
    assert [stage.label for stage in (first, third)] == [
        "attack prune | uchida | digits-lenet5 | seed 0",
        "attack round | uchida | digits-lenet5 | seed 0 | after fine-tune",
    ]


def test_a_chain_is_named_by_its_links(plan_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prune, "version", 7)
    chain = {"chain": ["overwrite", {"prune": {"split": "none"}}]}
    one, two = (cell.point for cell in plan_of({**ONE, "attacks": ["prune", chain]}).cells)
    assert (one["attack"], one["kind"], one["split"], one["attack_version"]) == ("prune", "removal", "disjoint20", 7)
    assert (two["attack"], two["kind"], two["split"], two["attack_version"]) == (
        "overwrite > prune", "ambiguity", "disjoint20+none", 7,
    )  # fmt: skip
    first, second = json.loads(two["attack_config"]).items()
    assert (first[0], first[1]["version"], second[0], second[1]["version"]) == ("1", 1, "2", 7)
    assert {**json.loads(one["attack_config"]), "split": "none", "version": 7} == second[1]


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        (["neural-cleanse", "prune"], "neural-cleanse (detection) leaves no model, so it cannot be a link of a chain"),
        (["prune", "false-claim"], "false-claim (verification) leaves no model, so it cannot be a link of a chain"),
        (["overwrite", "neural-cleanse"], ""),
        (["prune", "overwrite", "prune"], ""),
    ],
)
def test_only_the_last_link_may_leave_no_model(plan_of: Any, chain: list[str], reason: str) -> None:
    (cell,) = plan_of({**ONE, "methods": ["adi"], "attacks": [{"chain": chain}]}).cells
    assert cell.reason == reason
    assert len(cell.chain) == (0 if reason else len(chain))


@pytest.mark.parametrize("attack", ["neural-cleanse", "false-claim"])
def test_an_attack_that_leaves_no_model_is_an_attack_by_itself(plan_of: Any, attack: str) -> None:
    (cell,) = plan_of({**ONE, "methods": ["adi"], "attacks": [attack]}).cells
    assert cell.reason == ""


def test_the_first_link_of_a_chain_that_is_another_attack_elsewhere_is_kept_there_too(plan_of: Any) -> None:
    for attacks in ([{"chain": [PRUNE, "round"]}, PRUNE], [PRUNE, {"chain": [PRUNE, "round"]}]):
        kept = [stage.identity["attack"]["key"] for stage in plan_of({**ONE, "attacks": attacks}).stages.values()
                if stage.keep]  # fmt: skip
        assert kept == ["prune"]


# --- what a cell and a stage say ---------------------------------------------------------------------------------


def test_the_columns_of_a_cell(plan_of: Any) -> None:
    grid = {**BASE, "seeds": [4], "attack_seeds": [2], "attacks": ["none"], "train": {"samples": 400}}
    plan = plan_of({**grid, "name": "grid"}, threads=2)
    clean, uchida, adi = (dict(cell.point) for cell in plan.cells)
    task = json.loads(uchida.pop("task_config"))
    assert (task["dataset"], task["samples"], task["test_samples"]) == ("digits", 400, 256)
    assert json.loads(uchida.pop("method_config"))["bits"] == Uchida(Uchida.Config(**Uchida.laptop)).config.bits
    assert uchida == {
        "task": "digits-lenet5", "calibration_config": '{"keys":20,"processed":0,"references":3}', "dataset": "digits",
        "model": "lenet5", "profile": "smoke", "data": fingerprint("digits", None),
        "numerics": '{"device":"cpu","threads":2}', "method": "uchida", "method_version": Uchida.version,
        "method_source": "", "family": "bits", "attack": "none",
        "attack_config": '{"beside_unmarked":false,"split":"disjoint20"}', "attack_version": 1, "attack_source": "",
        "split": "disjoint20", "kind": "removal", "victim_seed": 4, "attack_seed": 2,
    }  # fmt: skip
    assert (clean["family"], adi["family"]) == ("none", "triggers")
    assert (plan.name, plan.profile) == ("grid", "smoke")
    labels = [stage.label for stage in plan.stages.values() if stage.kind == "attack"]
    assert labels[1] == "attack none | uchida | digits-lenet5 | seed 4.2"


def test_the_stages_of_a_cell_are_named_beside_it(plan_of: Any) -> None:
    plan = plan_of(BASE)
    stages = plan.stages
    for cell in plan.cells:
        assert stages[cell.embed_key].kind == "embed"
        assert stages[cell.clean_key].identity["train_seed"] == f"train|{cell.point['victim_seed']}"
        assert stages[cell.clean_key].key in stages[cell.embed_key].parents
        assert stages[cell.attack_key].identity["embed"] == cell.embed_key
        assert (cell.null_key is None) == (cell.point["method"] == "clean")
    (cell,) = plan_of({**ONE, "methods": [{"uchida": {"bits": 4096}}], "attacks": ["none"]}).cells
    assert (cell.clean_key, cell.embed_key, cell.chain, cell.null_key) == (None, None, (), None)


def test_the_references_of_a_shared_null_are_those_of_seed_0(plan_of: Any) -> None:
    plan = plan_of({**ONE, "seeds": [3]})
    (null,) = [stage for stage in plan.stages.values() if stage.kind == "calibrate"]
    roles = null.identity["unmarked"]
    assert list(roles) == ["clean", "reference-0", "reference-1", "reference-2"]
    assert null.identity["seed"] == 0
    assert set(null.parents) == set(roles.values())
    seeds = [(plan.stages[key].identity["seed"], plan.stages[key].identity["train_seed"]) for key in roles.values()]
    assert seeds == [(0, "train|0"), *((0, f"train|0|reference-{number}") for number in range(3))]
    assert null.label == "calibrate uchida | digits-lenet5"


def test_a_null_of_one_owner_follows_that_owners_mark(plan_of: Any) -> None:
    plan = plan_of({**ONE, "methods": ["csp"], "seeds": [3, 4], "attacks": ["none"]})
    nulls = [stage for stage in plan.stages.values() if stage.kind == "calibrate"]
    assert [stage.identity["seed"] for stage in nulls] == [3, 4]
    for stage, cell in zip(nulls, plan.cells, strict=True):
        assert cell.null_key == stage.key
        assert stage.identity["embed"] == cell.embed_key
        assert cell.embed_key in stage.parents
        assert stage.label == f"calibrate csp | digits-lenet5 | seed {stage.identity['seed']}"


def test_false_claims_wait_for_the_nulls_of_all_owners_that_they_accuse(plan_of: Any) -> None:
    plan = plan_of({**ONE, "methods": ["adi"], "attacks": ["none", "false-claim"]})
    none, claim = (plan.stages[cell.attack_key] for cell in plan.cells)
    assert "nulls" not in none.identity
    assert claim.identity["nulls"] == {plan.cells[1].embed_key: plan.cells[1].null_key}
    assert plan.cells[1].null_key in claim.parents
    assert "scratch" not in claim.identity, "it leaves no model that could be pointless"


def test_an_unmarked_model_is_attacked_beside_the_victim_where_an_attack_asks_for_it(
    plan_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of({**ONE, "methods": ["clean", "uchida"], "attacks": [{"prune": {"beside_unmarked": True}}]})
    clean, marked = (plan.stages[cell.attack_key] for cell in plan.cells)
    assert "beside" not in clean.identity, "nothing can be read"
    assert marked.identity["beside"] == plan.cells[1].clean_key
    assert marked.identity["beside"] in marked.parents
    monkeypatch.setattr(Prune, "needs", lambda self, task, method: Needs("weights", twin=True))
    chain = {"chain": [PRUNE, PRUNE]}
    plan = plan_of({**ONE, "methods": ["clean", "uchida"], "attacks": [chain]})
    clean, first = (plan.stages[cell.chain[0]] for cell in plan.cells)
    assert "twin" not in clean.identity
    assert first.identity["twin"] == clean.key
    assert clean.key in first.parents
    assert "twin" not in plan.stages[plan.cells[1].chain[1]].identity, "of the first link alone"


def test_an_attack_without_data_is_measured_by_nothing(plan_of: Any) -> None:
    plan = plan_of({**ONE, "attacks": [{"fine-tune": {"split": "none"}}, "fine-tune"]})
    assert ["scratch" in plan.stages[cell.attack_key].identity for cell in plan.cells if not cell.reason] == [
        "none" not in cell.point["split"] for cell in plan.cells if not cell.reason
    ]


def test_references_are_attacked_as_an_attacker_of_the_task_would(plan_of: Any) -> None:
    grid = {**ONE, "attacks": ["none"], "calibration": {"processed": 1}}
    for share, split in ((0.2, "disjoint20"), (1 / 3, "sok"), (0.4, "same")):
        plan = plan_of({**grid, "train": {"attacker_share": share}})
        made = [stage for stage in plan.stages.values() if "processed" in stage.identity]
        assert [stage.identity["attack"]["key"] for stage in made] == ["fine-tune", "distill", "prune"]
        assert {stage.identity["attack"]["config"]["split"] for stage in made} == {split}
        assert {plan.stages[stage.identity["processed"]].identity["train_seed"] for stage in made} == {
            "train|0|reference-0"
        }
        assert all(stage.parents == (stage.identity["processed"],) for stage in made)


def test_estimates_follow_the_passes_over_the_owners_data(plan_of: Any) -> None:
    grid = {
        **ONE, "attacks": ["none", {"fine-tune": {"epochs": 3}}], "calibration": {"processed": 1},
        "train": {"samples": 500, "epochs": 10},
    }  # fmt: skip
    plan = plan_of(grid)
    flops = size("digits", "lenet5").flops
    found = {stage.label.split(" | ")[0]: stage.seconds for stage in plan.stages.values()}
    expected = {  # the owner holds 400 samples; a backward pass counts as two
        "clean clean": 3 * 400 * 10, "clean reference-0": 3 * 400 * 10, "clean reference-0 fine-tune": 0.75 * 400 * 10,
        "clean reference-0 prune": 0, "calibrate uchida": 100 * 20 * 6, "embed uchida": 3 * 400 * 10,
        "attack none": 0, "attack fine-tune": 3 * 100 * 3, "clean scratch disjoint20": 0.75 * 400 * 10,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(
        {name: seconds(passes, flops, "cpu") for name, passes in expected.items()}
    )
    assert {stage.label for stage in plan.stages.values() if stage.cheap} == {
        "attack none | uchida | digits-lenet5 | seed 0"
    }
    # All 1,438 images where the grid takes more; on a GPU the same passes in less time.
    (clean, *_) = plan_of({**grid, "train": {"samples": 5000, "epochs": 10}}, device="cuda").stages.values()
    assert clean.seconds == pytest.approx(seconds(3 * 0.8 * 1438 * 10, flops, "cuda"))


@pytest.mark.parametrize(
    ("parameters", "resource"),
    [(999_999, "gpu.small"), (1_000_000, "gpu.medium"), (19_999_999, "gpu.medium"), (20_000_000, "gpu.large")],
)
def test_larger_networks_take_more_of_a_gpu(
    plan_of: Any, monkeypatch: pytest.MonkeyPatch, parameters: int, resource: str
) -> None:
    monkeypatch.setattr("assay.orchestrator.planning.cost.size", lambda dataset, model: Size(1e6, parameters))
    for device, wanted in (("cuda", resource), ("cpu", "cpu")):
        assert {stage.resource for stage in plan_of(ONE, device=device).stages.values()} == {wanted}


def test_the_same_attack_for_two_tasks_and_for_all_is_one_entry(plan_of: Any) -> None:
    two = ["digits-lenet5", "digits-cnn-mini"]
    everywhere = {cell.key for cell in plan_of({**ONE, "tasks": two, "attacks": ["prune"]}).cells}
    assert len(everywhere) == 2
    for split in ([{"only": two[0]}, {"only": two[1]}], [{"only": two[0]}, {}], [{}, {"only": two[0]}]):
        plan = plan_of({**ONE, "tasks": two, "attacks": [{"prune": params} for params in split]})
        assert {cell.key for cell in plan.cells} == everywhere
    (cell,) = plan_of({**ONE, "tasks": two, "attacks": [{"prune": {"only": two[1]}}]}).cells
    assert cell.point["task"] == two[1]


def test_tasks_that_differ_in_their_calibration_alone_are_two(plan_of: Any) -> None:
    tasks = ["digits-lenet5", {"digits-lenet5": {"calibration_keys": 30}}, "digits-lenet5"]
    plan = plan_of({**ONE, "tasks": tasks, "attacks": ["none"]})
    assert [json.loads(cell.point["calibration_config"])["keys"] for cell in plan.cells] == [20, 30]


def test_a_profile_of_the_grids_own_has_the_laptops_sizes(plan_of: Any) -> None:
    own = {**ONE, "profile": "mine", "profiles": {"mine": {"seeds": 1}}, "attacks": ["none"]}
    (mine,), (laptop,), (paper,) = (plan_of({**own, "profile": name}).cells for name in ("mine", "laptop", "paper"))
    shared = ("task_config", "calibration_config", "method_config")
    assert [mine.point[name] for name in shared] == [laptop.point[name] for name in shared]
    assert mine.point["profile"] == "mine"
    assert paper.point["task_config"] != laptop.point["task_config"]
    bits = json.loads(paper.point["method_config"])
    assert bits == Uchida.Config().model_dump(mode="json") != json.loads(laptop.point["method_config"])


def test_a_grid_without_any_cell_is_one_line(plan_of: Any) -> None:
    two = ["digits-lenet5", "digits-cnn-mini"]
    apart = {"methods": [{"uchida": {"only": two[0]}}], "attacks": [{"prune": {"only": two[1]}}]}
    with pytest.raises(BadInput, match="no cells; `only` keeps every method or every attack from the grid's tasks"):
        plan_of({**ONE, "tasks": two, **apart})


# --- what the store holds of a plan ------------------------------------------------------------------------------


def test_a_stage_is_done_when_the_store_holds_all_that_is_needed_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = content_key("attack")
    plain = Stage(key, "attack", {}, (), 1.0, False, "an attack")
    kept = replace(plain, keep=True)
    plan = Plan("p", "smoke", [Cell("c", {}, chain=(key,))], {key: kept})
    assert (plain.done(store), kept.done(store), plan.done(store)) == (False, False, set())
    store.commit(key, {"result": {"architecture": "lenet5"}})
    assert (plain.done(store), kept.done(store), plan.done(store)) == (True, False, set())
    assert replace(plan, stages={key: plain}).done(store) == {key}
    store.commit(key, {}, {"w": torch.ones(1)})
    assert (kept.done(store), plan.done(store)) == (True, {key})


def test_a_surrogate_that_cannot_be_kept_is_not_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = content_key("attack")
    kept = Stage(key, "attack", {}, (), 1.0, False, "an attack", keep=True)
    store.commit(key, {"result": {"architecture": None}})
    assert kept.done(store) is True
    (store.folder(key) / "record.json").write_text("{", "utf-8")
    assert kept.done(store) is False, "a damaged record is to be computed again"


def test_stages_and_cells_are_told_apart_by_their_keys_and_not_by_what_lies_behind() -> None:
    one, two = (Stage("k", "clean", identity, (), 1.0, False, "a") for identity in ({"seed": 0}, {"seed": 1}))
    assert one == two
    assert len({one, two, replace(one, key="other")}) == 2
    assert (one.resource, one.keep) == ("cpu", False)
    assert len({Cell("k", {"a": 1}), Cell("k", {"a": 1})}) == 1
    bare = Cell("k", {})
    assert (bare.attack_key, bare.stages, bare.reason) == (None, (), "")
    assert replace(bare, chain=("a", "b"), null_key="n").stages == ("a", "b", "n")


def test_the_critical_path_by_hand() -> None:
    def stage(key: str, seconds: float, *parents: str) -> Stage:
        return Stage(key, "attack", {}, parents, seconds, False, key)

    stages = [stage("a", 1.0), stage("b", 2.0, "a"), stage("c", 5.0, "a"), stage("d", 4.0, "b"), stage("e", 0.5)]
    plan = Plan("p", "smoke", [Cell("x", {}, chain=("d",)), Cell("y", {}, chain=("c",))], {s.key: s for s in stages})
    assert plan.critical == {"a": 7.0, "b": 6.0, "c": 5.0, "d": 4.0, "e": 0.5}
    assert plan.children == {"a": ["b", "c"], "b": ["d"], "c": [], "d": [], "e": []}
    assert plan.missing([]) == {"a", "b", "c", "d"}, "no cell asks for e"
    assert plan.missing(["b"]) == {"a", "c", "d"}
    assert plan.missing(["c", "b"]) == {"d"}
    assert plan.missing(["c", "d"]) == set()
