"""Plans: what is shared, what is keyed, what changes a key and what must not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from assay.attacks.base import Needs
from assay.attacks.prune import Prune
from assay.methods.uchida import Uchida
from assay.orchestrator.planning.grid import parse
from assay.orchestrator.planning.plan import Plan, Stage
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.results.schema import STAGES
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
