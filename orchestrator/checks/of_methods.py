"""What every watermarking method promises. A check's docstring is the promise that a user reads."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from assay.methods.verdict import STRICT_ALPHA, Verdict
from torch import nn

from assay.methods.base import Mark, Method, Secret
from assay.methods.suspect import Access, Suspect
from assay.orchestrator.checks.workbench import (
    Bench,
    BenchLab,
    ContractBroken,
    Interrupted,
    NotTested,
    difference,
    laptop,
    scrambled,
    shortened,
)
from assay.tasks.errors import AccessDenied, Diverged, NotEmbedded
from assay.tasks.streams import global_stream
from assay.tasks.task import Task
from assay.tasks.training.checkpoint import load_tree, save_tree

MEAN_P = 0.3  # least mean of p-values under "not marked"; exact tests have 1/2, discrete ones more
_LESS: dict[Access, Access] = {"weights": "logits", "logits": "labels", "labels": "nothing"}


def _verify(cls: type[Method], model: nn.Module, secret: Secret) -> Verdict:
    method: Method = laptop(cls)
    return method.verify(Suspect(model, cls.access, cls.key), secret)


def _verifies_something(cls: type[Method]) -> None:
    if cls.access == "nothing":
        raise NotTested("declares access to nothing, so there is no mark to read")


def _owners_verdict(bench: Bench, cls: type[Method]) -> Verdict:
    mark = bench.marked(cls)
    return bench.once(("verdict", cls), lambda: _verify(cls, mark.model, mark.secret))


def _short_verdict(bench: Bench, cls: type[Method]) -> Verdict:
    mark = bench.short_mark(cls)[0]
    return bench.once(("short verdict", cls), lambda: _verify(cls, mark.model, mark.secret))


def _null_keys(bench: Bench, cls: type[Method]) -> Sequence[Secret]:
    def draw() -> Sequence[Secret]:
        task, mark = bench.task(cls), bench.marked(cls)
        keys = laptop(cls).null_keys(task, bench.splits(task).owner, mark.secret, bench.lab(cls.key, task))
        fresh = [key for key in keys if difference(key, mark.secret)]
        if not fresh:
            raise NotTested("null_keys offers no secret but the owner's: a secret cannot be drawn without training")
        return fresh

    return bench.once(("null keys", cls), draw)


def null_keys_are_nobodys(bench: Bench, cls: type[Method]) -> None:
    """Never-embedded keys are drawn without any owner's secret, and no two are alike."""
    if not cls.shares_null():
        raise NotTested("calibrates for each owner by thresholds() of its own")
    task = bench.short_task(cls)
    keys = laptop(cls).null_keys(task, bench.splits(task).owner, {}, bench.lab(cls.key, task))
    if len(keys) < 2 or not all(keys):
        raise ContractBroken(
            f"null_keys() without an owner's secret offers {len(keys)} keys, {sum(not key for key in keys)} of them "
            "empty; a scheme whose keys cannot be drawn without training overrides thresholds()"
        )
    if any(difference(keys[0], key) is None for key in keys[1:]):
        raise ContractBroken("null_keys() offers a key twice; draw each with a lab of lab_for_key(lab, index)")


def marked_model_is_detected(bench: Bench, cls: type[Method]) -> None:
    """The owner's secret verifies in the owner's own marked model, with p <= 1e-3 (the `strict` rule's level)."""
    _verifies_something(cls)
    verdict = _owners_verdict(bench, cls)
    if not (verdict.applicable and verdict.detected and verdict.p_value <= STRICT_ALPHA):
        raise ContractBroken(f"its own mark is not detected after embedding on {bench.task(cls).key}: {_told(verdict)}")


def verdict_is_well_formed(bench: Bench, cls: type[Method]) -> None:
    """Score and threshold are fractions, 0 <= chance < 1, 0 < p <= 1, and a counted score is matches / trials."""
    verdict = _short_verdict(bench, cls)
    for name, value, low, high in (
        ("score", verdict.score, 0.0, 1.0),
        ("chance", verdict.chance, 0.0, 1.0),
        ("p_value", verdict.p_value, 0.0, 1.0),
    ):
        if not (type(value) is float and low <= value <= high):
            raise ContractBroken(f"{name} is {value!r}; expected a float in [{low}, {high}]")
    if verdict.p_value == 0 or verdict.chance == 1:
        raise ContractBroken(f"p_value must be above 0 and chance below 1: {_told(verdict)}")
    if type(verdict.detected) is not bool or not verdict.test:
        raise ContractBroken(f"detected must be a bool and test a name, got {verdict.detected!r} and {verdict.test!r}")
    if verdict.trials and (verdict.matches is None or not 0 <= verdict.matches <= verdict.trials):
        raise ContractBroken(f"{verdict.matches} matches of {verdict.trials} trials; expected 0 <= matches <= trials")


def unmarked_model_is_not_detected(bench: Bench, cls: type[Method]) -> None:
    """The owner's secret does not verify in models that were never marked."""
    _verifies_something(cls)
    secret = bench.marked(cls).secret
    for role in ("clean", "stranger"):
        verdict = _verify(cls, bench.unmarked(bench.task(cls), role)[0], secret)
        if verdict.detected or verdict.p_value <= STRICT_ALPHA:
            raise ContractBroken(f"the owner's secret verifies in an unmarked model ({role}): {_told(verdict)}")


def wrong_secret_is_not_detected(bench: Bench, cls: type[Method]) -> None:
    """Fresh secrets that were never embedded do not verify in the marked model."""
    _verifies_something(cls)
    mark, keys = bench.marked(cls), _null_keys(bench, cls)
    method: Method = laptop(cls)
    suspect = Suspect(mark.model, cls.access, cls.key)
    # Scores for all, as in calibration; whole verdicts, which may take long, for a few.
    threshold = _owners_verdict(bench, cls).threshold
    above = sum(method.score(suspect, key)[0] >= threshold for key in keys)
    if above > len(keys) // 20:
        raise ContractBroken(f"{above} of {len(keys)} secrets never embedded reach the threshold {threshold:g}")
    verdicts = [method.verify(suspect, key) for key in keys[:3]]
    wrong = [v for v in verdicts if v.detected or v.p_value <= STRICT_ALPHA]
    if wrong:
        raise ContractBroken(f"{len(wrong)} of {len(verdicts)} secrets never embedded verify, e.g. {_told(wrong[0])}")


def p_values_are_honest(bench: Bench, cls: type[Method]) -> None:
    """On an unmarked model, p-values of fresh secrets are uniform or larger."""
    _verifies_something(cls)
    if cls.family not in ("bits", "triggers"):
        raise NotTested(f"p-values of the family {cls.family!r} are ranks among fresh secrets")
    model = bench.unmarked(bench.task(cls), "stranger")[0]
    values = [_verify(cls, model, key).p_value for key in _null_keys(bench, cls)]
    mean, small = sum(values) / len(values), sum(value < 0.01 for value in values)
    if mean < MEAN_P or small > max(3, len(values) // 20):
        raise ContractBroken(
            f"p-values of {len(values)} fresh secrets on an unmarked model have mean {mean:.2f} (expected at least "
            f"{MEAN_P}) and {small} below 0.01 (expected about {0.01 * len(values):.1f}): the test claims too much"
        )


def secret_comes_from_its_stream(bench: Bench, cls: type[Method]) -> None:
    """`draw` depends on `lab.stream("secret", ...)` alone: global generators do not move it, another seed does."""
    task = bench.short_task(cls)
    method: Method = laptop(cls)
    data = bench.splits(task).owner

    def draw(state: int, seed: int) -> Secret:
        with scrambled(state):
            return method.draw(task, data, bench.lab(cls.key, task, seed))

    first = draw(1, 0)
    if moved := difference(first, draw(2, 0)):
        raise ContractBroken(f"two draws with one seed differ ({moved}); draw with generator=lab.stream('secret')")
    if first and difference(first, draw(1, 1)) is None:
        raise ContractBroken("draws the same secret for every seed; draw with generator=lab.stream('secret')")


def embedding_is_deterministic(bench: Bench, cls: type[Method]) -> None:
    """Two embeddings with one seed give the same bits, whatever the global generators' state, which they restore."""
    first = bench.short_mark(cls)
    with scrambled(2, watch=True):
        second = bench.embed(cls, bench.short_task(cls))
    _same(first, second, "two embeddings with one seed differ")


def stopping_and_resuming_changes_nothing(bench: Bench, cls: type[Method]) -> None:
    """An embedding killed in every training run and started again gives the same bits as one that ran through."""
    task = bench.short_task(cls)
    scratch, killed = bench.scratch(), set[str]()
    while True:
        try:
            with scrambled(3 + len(killed)):
                resumed = bench.embed(cls, task, scratch=scratch, kill=True, killed=killed, checkpoint_s=0.0)
            break
        except Interrupted:
            continue
    if not killed:
        raise NotTested("embedding trains nothing")
    _same(bench.short_mark(cls), resumed, "a resumed embedding differs; put all state in Recipe.state_dict()")


def _same(one: tuple[Mark, BenchLab], other: tuple[Mark, BenchLab], what: str) -> None:
    for name, a, b in (
        ("weights", dict(one[0].model.state_dict()), dict(other[0].model.state_dict())),
        ("secret", one[0].secret, other[0].secret),
        ("curves", one[1].curves, other[1].curves),
        ("costs", one[1].meter.costs(), other[1].meter.costs()),
    ):
        if moved := difference(a, b, name):
            raise ContractBroken(f"{what} ({moved})")


def secret_survives_storage(bench: Bench, cls: type[Method]) -> None:
    """The secret comes back from the store bit for bit, and gives the same verdict."""
    mark = bench.short_mark(cls)[0]
    file = bench.scratch() / "secret.safetensors"
    try:
        save_tree(file, mark.secret)
    except TypeError as error:
        raise ContractBroken(f"the secret cannot be stored: {error}") from None
    stored = load_tree(file)
    if moved := difference(mark.secret, stored, "secret"):
        raise ContractBroken(f"the secret changes in the store ({moved}); tuples come back as lists: keep lists")
    first, second = _short_verdict(bench, cls).as_dict(), _verify(cls, mark.model, stored).as_dict()
    if moved := difference(first, second, "verdict"):
        raise ContractBroken(f"the stored secret gives another verdict ({moved})")


def clean_samples_keep_their_order(bench: Bench, cls: type[Method]) -> None:
    """Training sees the clean samples that the unmarked model saw, in the same order, so methods compare in pairs."""
    task = bench.short_task(cls)
    drawn = bench.short_mark(cls)[1].drawn.get("train")
    if drawn is None:
        raise NotTested("embedding has no training run of its own")
    reference = bench.unmarked(task, "clean")[1].drawn["train"]
    for position, what in enumerate(("positions", "labels")):
        ours = torch.cat([step[position] for step in drawn])
        theirs = torch.cat([step[position] for step in reference])
        common = min(len(ours), len(theirs))
        if not torch.equal(ours[:common], theirs[:common]):
            raise ContractBroken(
                f"the {what} of the clean samples differ from the unmarked model's: give lab.fit the owner's "
                "data.train unchanged and add samples in Recipe.mix"
            )


def marked_model_is_plain(bench: Bench, cls: type[Method]) -> None:
    """The released model's state dict loads into a fresh network of the task and gives the same outputs."""
    task, mark = bench.short_task(cls), bench.short_mark(cls)[0]
    fresh = task.build("fresh").to(bench.device)
    if moved := difference(_shapes(fresh), _shapes(mark.model), "state dict"):
        raise ContractBroken(f"the marked model is not the plain architecture ({moved}); undo surgery in finish()")
    state = mark.model.state_dict()
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ContractBroken(f"{broken[0]} holds values that are not finite")
    fresh.load_state_dict(state)
    inputs = bench.splits(task).test.model_inputs()[:8]
    if mark.model.training:
        raise ContractBroken("the marked model is in train mode; return it in eval mode")
    with torch.no_grad():
        if not torch.equal(fresh.eval()(inputs), mark.model(inputs)):
            raise ContractBroken("a plain network with the marked weights answers otherwise than the marked model")


def _shapes(model: nn.Module) -> dict[str, list[Any]]:
    return {name: [str(value.dtype), *value.shape] for name, value in model.state_dict().items()}


def double_precision_runs(bench: Bench, cls: type[Method]) -> None:
    """The network in training and the released one run after `.double()`: every tensor is a parameter or a buffer."""
    mark, lab = bench.short_mark(cls)
    inputs = bench.splits(bench.short_task(cls)).test.model_inputs()[:8].double()
    for model in (mark.model, *lab.prepared[:1]):
        try:
            with torch.no_grad():
                finite = bool(torch.isfinite(copy.deepcopy(model).eval().double()(inputs)).all())
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise ContractBroken(f"fails after .double() ({text}); use register_buffer for constant tensors") from None
        if not finite:
            raise ContractBroken("gives values that are not finite after .double()")


def verifying_only_reads(bench: Bench, cls: type[Method]) -> None:
    """`verify` changes neither weights nor modes nor the secret, draws nothing, and says the same twice."""
    mark = bench.short_mark(cls)[0]
    first = _short_verdict(bench, cls).as_dict()
    model, secret = copy.deepcopy(mark.model).eval(), copy.deepcopy(mark.secret)

    def look() -> list[Any]:
        flags: list[Any] = [module.training for module in model.modules()]
        grads: list[Any] = [[p.requires_grad, p.grad is None] for p in model.parameters()]
        return [{name: value.clone() for name, value in model.state_dict().items()}, flags, grads]

    before = look()
    with scrambled(2, watch=True):
        second = _verify(cls, model, secret).as_dict()
    if moved := difference(before, look(), "the suspect"):
        raise ContractBroken(f"verify changes the suspect ({moved}); work on suspect.weights() or suspect.module()")
    if moved := difference(mark.secret, secret, "the secret"):
        raise ContractBroken(f"verify changes the secret ({moved})")
    if moved := difference(first, second, "the verdict"):
        raise ContractBroken(f"two verifications differ ({moved}); draw with a generator from tasks.streams.stream")


def declared_access_suffices(bench: Bench, cls: type[Method]) -> None:
    """`read` gets along with the declared access, and needs it."""
    _verifies_something(cls)
    method: Method = laptop(cls)
    try:
        mark = bench.short_mark(cls)[0]
        _short_verdict(bench, cls)
    except AccessDenied as error:
        raise ContractBroken(f"{error}; declare access = the most that `read` asks for") from None
    less = _LESS[cls.access]
    try:
        method.verify(Suspect(mark.model, less, cls.key), mark.secret)
    except AccessDenied:
        return
    raise ContractBroken(f"declares access to {cls.access} but reads the mark from {less}; declare what it needs")


def foreign_models_are_judged(bench: Bench, cls: type[Method]) -> None:
    """A suspect of another architecture or with other classes gets a verdict that does not claim it, never an error."""
    task, mark = bench.short_task(cls), bench.short_mark(cls)[0]
    other = "mlp-800x2" if task.model != "mlp-800x2" else "lenet5"
    with global_stream("foreign models"):
        suspects = {other: task.architecture(other), "one class less": _with_classes(task, task.classes - 1)}
    for name, model in suspects.items():
        try:
            verdict = _verify(cls, model.to(bench.device), mark.secret)
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ContractBroken(f"a suspect with {name} raises {text}; raise UnsupportedModel in read()") from None
        if not math.isfinite(verdict.score) or verdict.detected:
            raise ContractBroken(f"a suspect with {name} that was never trained is claimed: {_told(verdict)}")


def _with_classes(task: Task, classes: int) -> nn.Module:
    """Return the task's network with its last dense layer replaced by one with another number of classes."""
    model = task.architecture(task.model)
    name, head = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Linear(head.in_features, classes))
    return model


def weak_mark_is_refused(bench: Bench, cls: type[Method]) -> None:
    """Embedding without training raises `NotEmbedded`, or the mark verifies all the same."""
    _verifies_something(cls)
    task = shortened(bench.task(cls), epochs=0)
    try:
        mark, _ = bench.embed(cls, task, allow_weak=False)
    except (NotEmbedded, Diverged):
        return
    verdict = _verify(cls, mark.model, mark.secret)
    if not verdict.detected:
        raise ContractBroken(f"embed returned a mark that does not verify: {_told(verdict)}; set `gate`")


def _told(verdict: Verdict) -> str:
    why = "" if verdict.applicable else f", not applicable: {verdict.reason}"
    return f"score {verdict.score:.3f}, p {verdict.p_value:.2g}, detected {verdict.detected}{why}"


METHOD_CHECKS = (
    null_keys_are_nobodys,
    marked_model_is_detected,
    unmarked_model_is_not_detected,
    wrong_secret_is_not_detected,
    p_values_are_honest,
    verdict_is_well_formed,
    secret_comes_from_its_stream,
    embedding_is_deterministic,
    stopping_and_resuming_changes_nothing,
    clean_samples_keep_their_order,
    secret_survives_storage,
    marked_model_is_plain,
    double_precision_runs,
    verifying_only_reads,
    declared_access_suffices,
    foreign_models_are_judged,
    weak_mark_is_refused,
)
