"""The seam of attacks: what an outcome may hold for its kind, and what an attack may use of a victim."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
import yaml
from attack_range import Range, SignMark
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.attacks import ATTACKS
from assay.attacks.base import Adapted, Attack, Claims, Kind, Needs, Outcome, Victim
from assay.attacks.forge import Forge
from assay.attacks.overwrite import Overwrite
from assay.methods import METHODS
from assay.methods.base import Method
from assay.orchestrator.planning.grid import parse
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.work.bench import Bench, Context
from assay.orchestrator.work.stages import execute
from assay.tasks.data.splits import Labelled
from assay.tasks.errors import BrokenOutcome
from assay.tasks.lab import Lab
from assay.tasks.task import resolve_task
from assay.tasks.training.schedule import Schedule

KINDS: tuple[Kind, ...] = get_args(Kind)
TEST = Labelled(torch.zeros(1, 1, 2, 2), torch.zeros(1).long())
# One well-formed value of every part.
PARTS: dict[str, Any] = {
    "surrogate": nn.Linear(2, 2),
    "restored": nn.Linear(2, 2),
    "adapted": Adapted(TEST, "fc", ("",), "none", Schedule(epochs=1)),
    "rival": {"bits": torch.ones(4)},
    "claims": Claims([], {}),
    "report": {"index": 1.0},
}
ALLOWED: dict[Kind, set[str]] = {
    "removal": {"surrogate", "restored", "adapted", "report"},
    "ambiguity": {"surrogate", "restored", "adapted", "rival", "report"},
    "detection": {"surrogate", "restored", "adapted", "report"},
    "verification": {"claims", "report"},
}


def lacking(kind: Kind, parts: set[str]) -> bool:
    """Return whether parts are too few for a kind: the rule as the docstring of `Outcome` tells it."""
    needed: dict[Kind, tuple[str, ...]] = {
        "removal": ("surrogate",), "ambiguity": ("surrogate", "rival"), "detection": ("report",), "verification": (),
    }  # fmt: skip
    alone = bool({"restored", "adapted"} & parts) and "surrogate" not in parts
    return alone or (bool(needed[kind]) and not parts & set(needed[kind]))


def fault(kind: Kind, **parts: Any) -> str:
    """Return the complaint about an outcome, which is one line."""
    with pytest.raises(BrokenOutcome) as raised:
        Outcome(**parts).checked(kind)
    text = str(raised.value)
    assert text.startswith(f"the outcome is none of kind {kind}: ")
    assert "\n" not in text
    return text.removeprefix(f"the outcome is none of kind {kind}: ")


@given(kind=st.sampled_from(KINDS), parts=st.sets(st.sampled_from(sorted(PARTS))))
def test_an_outcome_is_its_kinds_if_it_holds_enough_and_nothing_foreign(kind: Kind, parts: set[str]) -> None:
    outcome = Outcome(**{name: PARTS[name] for name in parts})
    if parts <= ALLOWED[kind] and not lacking(kind, parts):
        assert outcome.checked(kind) is outcome
    else:
        with pytest.raises(BrokenOutcome, match=f"none of kind {kind}"):
            outcome.checked(kind)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("removal", "it leaves no surrogate"),
        ("ambiguity", "it leaves neither a surrogate nor a rival claim"),
        ("detection", "it leaves no report"),
    ],
)
def test_what_is_missing_is_said(kind: Kind, text: str) -> None:
    assert fault(kind) == text
    assert Outcome().checked("verification").claims is None, "an attack that compares peers leaves nothing"


@pytest.mark.parametrize(
    ("kind", "part", "text"),
    [
        ("removal", "rival", "a rival claim"),
        ("removal", "claims", "claims"),
        ("ambiguity", "claims", "claims"),
        ("detection", "rival", "a rival claim"),
        ("detection", "claims", "claims"),
        ("verification", "surrogate", "a surrogate"),
        ("verification", "rival", "a rival claim"),
    ],
)
def test_what_another_kind_leaves_is_said(kind: Kind, part: str, text: str) -> None:
    enough = {"removal": "surrogate", "ambiguity": "rival", "detection": "report", "verification": "claims"}[kind]
    said = fault(kind, **{enough: PARTS[enough], part: PARTS[part]})
    assert said == f"it leaves {text}, which another kind does"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("part", "value", "text"),
    [
        ("surrogate", nn.Linear(2, 2).state_dict(), "surrogate is OrderedDict, not Module"),
        ("restored", "fc", "restored is str, not Module"),
        ("adapted", {"head": "fc"}, "adapted is dict, not Adapted"),
        ("rival", torch.ones(3), "rival is Tensor, not dict"),
        ("claims", [{"bits": 1}], "claims is list, not Claims"),
        ("claims", Claims(3, {}), "evidence is int, not Iterable"),  # type: ignore[arg-type]
        ("claims", Claims([], {"other-0": {}}), "suspect 'other-0' is dict, not Module"),  # type: ignore[dict-item]
        ("report", [1.0], "report is list, not dict"),
        ("report", {"index": "high"}, "report 'index' is str, not a number"),
        ("report", {"flagged": True}, "report 'flagged' is bool, not a number"),
        ("report", {"index": torch.ones(())}, "report 'index' is Tensor, not a number"),
        ("structure", "other", "structure is 'other', not same, changed or other_arch"),
    ],
)
def test_a_part_of_the_wrong_type_is_said(kind: Kind, part: str, value: Any, text: str) -> None:
    assert text in fault(kind, **{**{name: PARTS[name] for name in ("surrogate", "report")}, part: value})


def test_every_fault_is_in_the_one_line() -> None:
    said = fault("removal", rival=3, report={"a": None, "b": "x"})
    assert said == (
        "it leaves no surrogate; it leaves a rival claim, which another kind does; rival is int, not dict; "
        "report 'a' is NoneType, not a number; report 'b' is str, not a number"
    )


# --- what an attack may use ------------------------------------------------------------------------------------------


def laptop(cls: type[Any], **changes: Any) -> Any:
    return cls(cls.Config(**{**cls.laptop, **changes}))


@pytest.mark.parametrize("key", sorted(ATTACKS))
def test_no_attack_asks_for_the_owners_key_by_default(key: str) -> None:
    cls, task = ATTACKS[key], resolve_task("digits-cnn-mini", "smoke", {})
    for method in METHODS.values():
        for attack in (laptop(cls), cls(cls.Config())):
            needed = attack.needs(task, laptop(method))
            assert (needed.access, needed.data, needed.key) == (cls.access, cls.uses_data, False)


def reachable(*roots: Any) -> list[torch.Tensor]:
    """Return every tensor on a public path from the roots, through attributes and containers."""
    front, found, seen = list(roots), list[torch.Tensor](), set[int]()
    while front:
        one = front.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, nn.Module):
            front += one.state_dict().values()
        elif isinstance(one, dict):
            front += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set):
            front += one
        elif hasattr(one, "__dict__"):
            front += [value for name, value in vars(one).items() if not name.startswith("_")]
    return found


GRID = {
    "name": "secrets",
    "tasks": ["digits-cnn-mini"],
    "methods": [{"adi": {"allow_weak": True}}],
    "attacks": [{"overwrite": {"mode": ["with_data", "without_data", "victim_labels", "leaked_key"]}}, "forge"],
    "seeds": 1,
    "profile": "smoke",
    "train": {"samples": 500, "epochs": 1, "test_samples": 100},
}


@pytest.fixture(scope="module")
def spied(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a small grid with a spy in the place of its attacks; return what each was handed, and the owner's secret."""
    folder = tmp_path_factory.mktemp("secrets")
    grid, registry = folder / "grid.yaml", Registry()
    grid.write_text(yaml.safe_dump(GRID), "utf-8")
    plan, context, seen = build_plan(parse(str(grid), registry), registry, None), Context(str(folder / "out")), {}

    def spy(self: Attack[Any], victim: Victim, lab: Lab) -> Outcome:
        found = [tensor.clone() for tensor in reachable(victim, lab)]
        seen[f"{self.key} {getattr(self.config, 'mode', '')}".strip()] = (victim.leaked, found)
        for tensor in reachable(victim.leaked):
            tensor.zero_()  # an attacker may do with its copy what it likes
        return Outcome(victim.module())

    with pytest.MonkeyPatch.context() as patch:
        for attack in (Overwrite, Forge):
            patch.setattr(attack, "run", spy)
        for kind in ("clean", "embed", "attack"):
            for stage in plan.stages.values():
                assert stage.kind != kind or execute(stage, context) == "executed", stage.label
    last = next(stage for stage in plan.stages.values() if stage.kind == "attack")
    return seen, Bench(last, context).secret(last.identity["embed"])


@pytest.mark.parametrize(
    "attack", ["overwrite with_data", "overwrite without_data", "overwrite victim_labels", "forge"]
)
def test_a_secret_that_is_not_declared_is_not_reached(spied: tuple[dict[str, Any], Any], attack: str) -> None:
    seen, secret = spied
    hidden = [tensor for tensor in reachable(secret) if tensor.numel() >= 16]
    leaked, found = seen[attack]
    assert hidden, "there is something to find"
    assert leaked is None
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in itertools.product(found, hidden))


def test_a_leaked_secret_is_whole_and_a_copy(spied: tuple[dict[str, Any], Any]) -> None:
    seen, secret = spied
    leaked, found = seen["overwrite leaked_key"]
    kept = [tensor for tensor in reachable(secret) if tensor.numel() >= 16]
    assert leaked.keys() == secret.keys()
    assert all(bool(tensor.any()) for tensor in kept), "the store's secret is not the attacker's"
    for part in kept:
        assert any(part.shape == tensor.shape and torch.equal(part, tensor) for tensor in found)


def test_undeclared_needs_are_the_least() -> None:
    assert Needs("labels") == Needs("labels", data=False, datasets=(), unmarked=(), key=False, peers=0, twin=False)


# --- what training leaves behind -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["distill", "extract", "fine-tune", "overwrite", "piracy", "prune-retrain", "transfer"])
def test_every_epoch_leaves_one_point_of_history(field: Range, key: str) -> None:
    attack = laptop(ATTACKS[key], epochs=3)
    lab = field.lab(key, data=field.splits.attacker_view(attack.config.split))
    outcome = attack.run(field.victim(attack.access), lab).checked(attack.kind)
    points = [row for row in lab.curves if row["curve"] == "train"]
    assert [point["step"] for point in points] == [1, 2, 3]
    for point in points:
        assert point.keys() - {"curve", "step", "lr", "val_accuracy"}, "no term of the loss"
        assert point["lr"] > 0
    assert lab.meter.unique_samples > 0
    assert lab.meter.steps >= 3
    assert outcome.surrogate is not None
    assert not outcome.surrogate.training


def test_a_method_is_shown_without_any_key(field: Range) -> None:
    method: Method[Any] = SignMark(SignMark.Config())
    assert vars(field.victim("weights", method).method) == {"config": method.config}
