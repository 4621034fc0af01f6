"""What every attack promises. A check's docstring is the promise that a user reads."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch

from assay.attacks.base import Attack, Claims, Outcome, Victim
from assay.methods.base import Method
from assay.methods.suspect import Access, less_than
from assay.orchestrator.checks.workbench import (
    BenchLab,
    ContractBroken,
    Interrupted,
    NotTested,
    Workbench,
    difference,
    laptop,
    on_cpu,
    restrict,
    scrambled,
)
from assay.tasks.data.splits import Party, SplitMode
from assay.tasks.errors import AccessDenied, AssayError, BrokenOutcome
from assay.tasks.training.checkpoint import load_tree, save_tree
from assay.tasks.training.trainer import predict


def _victim(bench: Workbench, cls: type[Attack[Any]]) -> type[Method[Any]]:
    """Return the first registered method whose marked model the attack applies to; real methods first."""
    reasons = []
    for method in sorted(bench.registry.methods.values(), key=lambda method: method.access == "nothing"):
        reason = laptop(cls).supports(bench.short_task(method), laptop(method))
        if reason is None:
            return method
        reasons.append(f"{method.key}: {reason}")
    raise ContractBroken(f"supports() refuses every method ({'; '.join(reasons)})")


def _data(bench: Workbench, cls: type[Attack[Any]], method: type[Method[Any]], split: SplitMode | None = None) -> Party:
    return bench.splits(bench.short_task(method)).attacker_view(split or laptop(cls).config.split)


def _run(
    bench: Workbench, cls: type[Attack[Any]], method: type[Method[Any]], *, access: Access | None = None, **options: Any
) -> tuple[Outcome, BenchLab]:
    """Attack a copy of a method's briefly trained model; `options` go to the lab, but for `data` and `settings`."""
    data = options.pop("data", None)
    data = _data(bench, cls, method) if data is None else data
    attack: Attack[Any] = laptop(cls, **options.pop("settings", {}))
    model = options.pop("model", None)
    model = copy.deepcopy(bench.short_mark(method)[0].model) if model is None else model
    task = bench.short_task(method)
    lab = bench.lab(cls.key, task, role="attacker", data=data, **options)
    lab.train_seed = f"attack|{cls.key}|{lab.seed}"
    scheme = laptop(method, allow_weak=True)
    needed = attack.needs(task, scheme)
    restrict(lab, needed.unmarked, needed.datasets)
    if needed.access != "weights":
        model = scheme.served(model, bench.short_mark(method)[0].secret)
    victim = Victim(model, access or needed.access, task, scheme, lab.meter)
    outcome = attack.run(victim, lab)
    if outcome.claims is not None:
        outcome.claims = Claims(list(itertools.islice(outcome.claims.evidence, 20)), outcome.claims.suspects)
    return outcome, lab


def _first_run(bench: Workbench, cls: type[Attack[Any]]) -> tuple[Outcome, BenchLab]:
    def run() -> tuple[Outcome, BenchLab]:
        with scrambled(1):
            return _run(bench, cls, _victim(bench, cls))

    return bench.once(("attack", cls), run)


def runs_or_says_why(bench: Workbench, cls: type[Attack[Any]]) -> None:
    """On every registered method the attack runs, or `supports` gives the reason; victim and data stay as they were."""
    for method in bench.registry.methods.values():
        try:
            runs_on(bench, cls, method)
        except NotTested:
            continue


def runs_on(bench: Workbench, cls: type[Attack[Any]], method: type[Method[Any]]) -> None:
    """Check one pair of `runs_or_says_why`.

    Raises:
        NotTested: the attack does not apply to the method, for a reason.
        ContractBroken: it fails, or touches the victim or the data.
    """
    if reason := laptop(cls).supports(bench.short_task(method), laptop(method)):
        raise NotTested(reason)
    model = copy.deepcopy(bench.short_mark(method)[0].model).eval()

    def look() -> list[Any]:
        flags: list[Any] = [module.training for module in model.modules()]
        grads: list[Any] = [[p.requires_grad, p.grad is None] for p in model.parameters()]
        return [{name: value.clone() for name, value in model.state_dict().items()}, flags, grads]

    data = _data(bench, cls, method)

    def hold() -> list[torch.Tensor]:
        parts = (data.train, data.held_out)
        return [part.clone() for whole in parts for part in (whole.inputs, whole.labels)]

    before, held = look(), hold()
    try:
        outcome, _ = _run(bench, cls, method, model=model, data=data)
    except ContractBroken:
        raise
    except AssayError as error:
        raise ContractBroken(f"fails on {method.key}: {error}; let supports() say why it does not apply") from None
    if moved := difference(before, look(), "the victim"):
        raise ContractBroken(f"changes the victim marked by {method.key} ({moved}); work on victim.module()")
    if outcome.rival is not None and (moved := difference(outcome.rival, on_cpu(outcome.rival), "rival")):
        raise ContractBroken(f"leaves a rival secret of {method.key} that is {moved}; secrets lie on the CPU")
    if difference(held, hold()):
        raise ContractBroken("changes the attacker's data in place, which other attacks share; work on a copy")


def outcome_fits_its_kind(bench: Workbench, cls: type[Attack[Any]]) -> None:
    """The outcome has what its kind promises: surrogate, storable rival secret, finite figures, or claims or peers."""
    outcome = _first_run(bench, cls)[0]
    try:
        outcome.checked(cls.kind)
    except BrokenOutcome as why:
        raise ContractBroken(str(why)) from None
    method = _victim(bench, cls)
    needed = laptop(cls).needs(bench.short_task(method), laptop(method))
    if cls.kind == "verification" and not (outcome.claims or needed.peers):
        raise ContractBroken("a verification attack must return Outcome(claims=...) or declare peers in needs()")
    for name, value in outcome.report.items():
        if not math.isfinite(value):
            raise ContractBroken(f"report[{name!r}] is {value}; give a finite number or leave it out")
    if outcome.rival is not None:
        file = bench.scratch() / "rival.safetensors"
        try:
            save_tree(file, outcome.rival)
        except TypeError as error:
            raise ContractBroken(f"the rival secret cannot be stored: {error}") from None
        if moved := difference(outcome.rival, load_tree(file), "rival"):
            raise ContractBroken(f"the rival secret changes in the store ({moved}); tuples come back as lists")


def surrogate_is_sound(bench: Workbench, cls: type[Attack[Any]]) -> None:
    """A surrogate's weights and answers are finite; with `structure="same"` it loads into the plain architecture."""
    outcome, task = _first_run(bench, cls)[0], bench.short_task(_victim(bench, cls))
    if outcome.surrogate is None:
        raise NotTested("leaves the victim in use")
    state = outcome.surrogate.state_dict()
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise ContractBroken(f"the surrogate's {name} holds values that are not finite")
    answers = predict(outcome.surrogate, bench.splits(task).test.inputs[:8])
    if answers.shape[0] != 8 or not bool(torch.isfinite(answers).all()):
        raise ContractBroken(f"the surrogate answers {tuple(answers.shape)} logits, not all finite")
    if outcome.structure == "same":
        try:
            task.architecture(task.model).load_state_dict(state)
        except RuntimeError as error:
            text = " ".join(str(error).split())[:200]
            raise ContractBroken(
                f'structure="same", but the surrogate does not load into {task.model}: {text}'
            ) from None


def attacking_is_deterministic(bench: Workbench, cls: type[Attack[Any]]) -> None:
    """Two runs with one seed leave the same bits, whatever the global generators' state, which they restore."""
    # First unwatched: what it loads for the first time (scikit-learn with the digits, and rich with that) may draw.
    first = _first_run(bench, cls)
    with scrambled(2, watch=True):
        second = _run(bench, cls, _victim(bench, cls))
    _same(first, second, "two runs with one seed differ")


def stopping_and_resuming_changes_nothing(bench: Workbench, cls: type[Attack[Any]]) -> None:
    """An attack killed in every training run and started again leaves the same bits as one that ran through."""
    scratch, killed = bench.scratch(), set[str]()
    while True:
        try:
            with scrambled(3 + len(killed)):
                resumed = _run(
                    bench, cls, _victim(bench, cls), scratch=scratch, kill=True, killed=killed, checkpoint_s=0.0
                )
            break
        except Interrupted:
            continue
    if not killed:
        raise NotTested("trains nothing for more than an epoch")
    _same(_first_run(bench, cls), resumed, "a resumed run differs; put all state in Recipe.state_dict()")


def _same(one: tuple[Outcome, BenchLab], other: tuple[Outcome, BenchLab], what: str) -> None:
    def weights(outcome: Outcome) -> dict[str, Any]:
        return dict(outcome.surrogate.state_dict()) if outcome.surrogate is not None else {}

    for name, a, b in (
        ("weights", weights(one[0]), weights(other[0])),
        ("rival", one[0].rival, other[0].rival),
        ("report", one[0].report, other[0].report),
        ("claims", _evidence(one[0]), _evidence(other[0])),
        ("curves", one[1].curves, other[1].curves),
        ("costs", one[1].meter.costs(), other[1].meter.costs()),
    ):
        if moved := difference(a, b, name):
            raise ContractBroken(f"{what} ({moved})")


def _evidence(outcome: Outcome) -> list[Any]:
    return list(outcome.claims.evidence) if outcome.claims is not None else []


def declared_needs_suffice(bench: Workbench, cls: type[Attack[Any]]) -> None:
    """The attack gets along with its declared `access` to the victim, and needs it."""
    method = _victim(bench, cls)
    try:
        _first_run(bench, cls)
    except AccessDenied as error:
        raise ContractBroken(f"{error}; declare access = the most that `run` asks for") from None
    if cls.access == "nothing":
        return
    try:
        _run(bench, cls, method, access=less_than(cls.access))
    except AccessDenied:
        return
    raise ContractBroken(
        f"declares access to {cls.access} but runs with {less_than(cls.access)}; declare what it needs"
    )


def declared_data_suffice(bench: Workbench, cls: type[Attack[Any]]) -> None:
    """An attack that declares `uses_data = False` runs without any data."""
    if cls.uses_data:
        raise NotTested("declares that it needs data")
    method = _victim(bench, cls)
    try:
        _run(bench, cls, method, data=_data(bench, cls, method, "none"))
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ContractBroken(f"without data it fails ({text}); set uses_data = True") from None


def identity_settings_change_nothing(bench: Workbench, cls: type[Attack[Any]]) -> None:
    """Under its `identity` settings the surrogate gives the victim's logits, to 1e-4 of their size."""
    if cls.identity is None:
        raise NotTested("declares no identity settings")
    method = _victim(bench, cls)
    inputs = bench.splits(bench.short_task(method)).test.inputs
    outcome, _ = _run(bench, cls, method, settings=cls.identity)
    if outcome.surrogate is None:
        raise NotTested("leaves the victim in use")
    before = predict(copy.deepcopy(bench.short_mark(method)[0].model), inputs)
    after = predict(outcome.surrogate, inputs)
    if before.shape != after.shape or not torch.allclose(
        before, after, rtol=1e-4, atol=1e-4 * float(before.abs().max())
    ):
        raise ContractBroken(f"settings {cls.identity} should leave the victim's answers as they are")


ATTACK_CHECKS = (
    runs_or_says_why,
    outcome_fits_its_kind,
    surrogate_is_sound,
    attacking_is_deterministic,
    stopping_and_resuming_changes_nothing,
    declared_needs_suffice,
    declared_data_suffice,
    identity_settings_change_nothing,
)
