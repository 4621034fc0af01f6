"""What every watermarking method promises. A check's docstring is the promise that a user reads."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from assay.methods.base import Method, Secret
from assay.methods.embedding import Mark, verify
from assay.methods.reading import Reading
from assay.methods.suspect import Suspect, less_than
from assay.orchestrator.checks.workbench import (
    BenchLab,
    ContractBroken,
    Interrupted,
    NotTested,
    Workbench,
    difference,
    laptop,
    restrict,
    scrambled,
    shortened,
)
from assay.tasks.errors import AccessDenied, Diverged, NotEmbedded, UnsupportedModel
from assay.tasks.streams import global_stream
from assay.tasks.task import Task
from assay.tasks.training.checkpoint import load_tree, save_tree

KEYS = 40  # fresh secrets
MEAN_P = 0.3  # least mean of p-values under "not marked"; exact tests have 1/2, discrete ones more
_FOREIGN = {"image": ("mlp-800x2", "lenet5"), "text": ("textcnn", "lstm")}  # small networks, each another family
LEVEL = 1e-3  # largest p-value of evidence; the false-claim rate of the strict rule


def _verify(cls: type[Method[Any]], model: nn.Module, secret: Secret) -> Reading:
    return verify(laptop(cls), model, secret)


def _owners(cls: type[Method[Any]], mark: Mark) -> Reading:
    """Read a mark from its own model, as it is served."""
    method: Method[Any] = laptop(cls)
    return verify(method, method.served(mark.model, mark.secret).eval(), mark.secret)


def _verifies_something(cls: type[Method[Any]]) -> None:
    if cls.access == "nothing":
        raise NotTested("declares access to nothing, so there is no mark to read")


def _owners_reading(bench: Workbench, cls: type[Method[Any]]) -> Reading:
    mark = bench.marked(cls)
    return bench.once(("reading", cls), lambda: _owners(cls, mark))


def _short_reading(bench: Workbench, cls: type[Method[Any]]) -> Reading:
    mark = bench.short_mark(cls)[0]
    return bench.once(("short reading", cls), lambda: _owners(cls, mark))


def _fresh_keys(bench: Workbench, cls: type[Method[Any]]) -> Sequence[Secret]:
    if not cls.shares_null:
        raise NotTested("shares_null is False: a secret cannot be drawn without training")

    def draw() -> Sequence[Secret]:
        lab = bench.lab(cls.key, bench.task(cls), role="claimant")
        return [laptop(cls).draw(lab.for_key(index)) for index in range(KEYS)]

    return bench.once(("fresh keys", cls), draw)


def embeds_from_its_streams(bench: Workbench, cls: type[Method[Any]]) -> None:
    """A short embedding runs through, and no part of its recipe draws from a global generator."""
    bench.short_mark(cls)  # its lab watches every part


def fresh_keys_are_nobodys(bench: Workbench, cls: type[Method[Any]]) -> None:
    """Secrets for the null are drawn without any owner's secret, and no two are alike."""
    _verifies_something(cls)
    if not cls.shares_null:
        raise NotTested("reads its null with each owner's secret")
    lab = bench.lab(cls.key, bench.short_task(cls), role="claimant")
    keys = [laptop(cls).draw(lab.for_key(index)) for index in range(10)]
    if not all(keys):
        raise ContractBroken(
            "draw() gives a claimant an empty secret; a scheme whose secrets cannot be drawn without training sets "
            "shares_null = False"
        )
    if any(difference(keys[0], key) is None for key in keys[1:]):
        raise ContractBroken("draw() gives two claimants one secret; draw with generator=lab.stream('secret')")


def null_is_whole(bench: Workbench, cls: type[Method[Any]]) -> None:
    """`null` reads every key from every unmarked model that the calibration names, as scores in [0, 1]."""
    _verifies_something(cls)
    lab = bench.lab(cls.key, bench.short_task(cls), role="claimant")
    restrict(lab, (*laptop(cls).needs(lab.task).unmarked, *lab.calibration.roles), laptop(cls).needs(lab.task).datasets)
    null = laptop(cls).null(lab, None if cls.shares_null else bench.short_mark(cls)[0].secret)
    unknown = set(null.models) - set(lab.calibration.roles)
    if not null.models or unknown:
        raise ContractBroken(f"null() reads {null.models}; expected some of {lab.calibration.roles}")
    counts = {len(scores) for scores in (*null.scores, *null.hits)}
    if len(null.scores) != len(null.models) or len(null.hits) != len(null.models) or len(counts) != 1 or 0 in counts:
        raise ContractBroken(f"null() has {sorted(counts)} scores and hits of {len(null.models)} models; one per key")
    if not all(0 <= score <= 1 for scores in null.scores for score in scores):
        raise ContractBroken("null() has scores outside [0, 1]")


def marked_model_is_detected(bench: Workbench, cls: type[Method[Any]]) -> None:
    """The owner's secret verifies in the owner's own marked model, with p <= 1e-3 (the `strict` rule's level)."""
    _verifies_something(cls)
    reading = _owners_reading(bench, cls)
    if not (reading.applicable and reading.accepted and reading.p_value <= LEVEL):
        raise ContractBroken(f"its own mark is not detected after embedding on {bench.task(cls).key}: {_told(reading)}")


def reading_is_well_formed(bench: Workbench, cls: type[Method[Any]]) -> None:
    """Score and threshold are fractions, 0 <= chance < 1, 0 < p <= 1, and a counted score is hits / trials."""
    reading = _short_reading(bench, cls)
    for name, value, low, high in (
        ("score", reading.score, 0.0, 1.0),
        ("chance", reading.chance, 0.0, 1.0),
        ("p_value", reading.p_value, 0.0, 1.0),
    ):
        if not (type(value) is float and low <= value <= high):
            raise ContractBroken(f"{name} is {value!r}; expected a float in [{low}, {high}]")
    if reading.p_value == 0 or reading.chance == 1:
        raise ContractBroken(f"p_value must be above 0 and chance below 1: {_told(reading)}")
    if type(reading.accepted) is not bool or not reading.test:
        raise ContractBroken(f"accepted must be a bool and test a name, got {reading.accepted!r} and {reading.test!r}")
    if reading.trials and (reading.hits is None or not 0 <= reading.hits <= reading.trials):
        raise ContractBroken(f"{reading.hits} hits of {reading.trials} trials; expected 0 <= hits <= trials")


def unmarked_model_is_not_detected(bench: Workbench, cls: type[Method[Any]]) -> None:
    """The owner's secret does not verify in models that were never marked."""
    _verifies_something(cls)
    secret = bench.marked(cls).secret
    for role in ("clean", "stranger") if cls.embeds else ("stranger",):
        reading = _verify(cls, bench.unmarked(bench.task(cls), role)[0], secret)
        if reading.accepted or reading.p_value <= LEVEL:
            raise ContractBroken(f"the owner's secret verifies in an unmarked model ({role}): {_told(reading)}")


def wrong_secret_is_not_detected(bench: Workbench, cls: type[Method[Any]]) -> None:
    """Fresh secrets that were never embedded do not verify in the marked model."""
    _verifies_something(cls)
    mark, keys = bench.marked(cls), _fresh_keys(bench, cls)
    method: Method[Any] = laptop(cls)
    suspect = Suspect(method.served(mark.model, mark.secret).eval(), cls.access, cls.key)
    # Scores for all, as in calibration; whole readings, which may take long, for a few.
    threshold = _owners_reading(bench, cls).paper_threshold
    above = sum(method.score(suspect, key)[0] >= threshold for key in keys)
    if above > len(keys) // 20:
        raise ContractBroken(f"{above} of {len(keys)} secrets never embedded reach the threshold {threshold:g}")
    readings = [verify(method, method.served(mark.model, mark.secret), key) for key in keys[:3]]
    wrong = [v for v in readings if v.accepted or v.p_value <= LEVEL]
    if wrong:
        raise ContractBroken(f"{len(wrong)} of {len(readings)} secrets never embedded verify, e.g. {_told(wrong[0])}")


def p_values_are_honest(bench: Workbench, cls: type[Method[Any]]) -> None:
    """On an unmarked model, p-values of fresh secrets are uniform or larger."""
    _verifies_something(cls)
    if cls.family not in ("bits", "triggers"):
        raise NotTested(f"p-values of the family {cls.family!r} are ranks among fresh secrets")
    model = bench.unmarked(bench.task(cls), "stranger")[0]
    values = [_verify(cls, model, key).p_value for key in _fresh_keys(bench, cls)]
    mean, small = sum(values) / len(values), sum(value < 0.01 for value in values)
    if mean < MEAN_P or small > max(3, len(values) // 20):
        raise ContractBroken(
            f"p-values of {len(values)} fresh secrets on an unmarked model have mean {mean:.2f} (expected at least "
            f"{MEAN_P}) and {small} below 0.01 (expected about {0.01 * len(values):.1f}): the test claims too much"
        )


def secret_comes_from_its_stream(bench: Workbench, cls: type[Method[Any]]) -> None:
    """`draw` depends on `lab.stream("secret", ...)` alone: global generators do not move it, another seed does."""
    task = bench.short_task(cls)
    method: Method[Any] = laptop(cls)

    def draw(state: int, seed: int) -> Secret:
        with scrambled(state):
            return method.draw(bench.lab(cls.key, task, seed))

    first = draw(1, 0)
    if moved := difference(first, draw(2, 0)):
        raise ContractBroken(f"two draws with one seed differ ({moved}); draw with generator=lab.stream('secret')")
    if first and difference(first, draw(1, 1)) is None:
        raise ContractBroken("draws the same secret for every seed; draw with generator=lab.stream('secret')")


def embedding_is_deterministic(bench: Workbench, cls: type[Method[Any]]) -> None:
    """Two embeddings with one seed give the same bits, whatever the global generators' state, which they restore."""
    first = bench.short_mark(cls)
    with scrambled(2, watch=True):
        second = bench.embed(cls, bench.short_task(cls))
    _same(first, second, "two embeddings with one seed differ")


def stopping_and_resuming_changes_nothing(bench: Workbench, cls: type[Method[Any]]) -> None:
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


def secret_survives_storage(bench: Workbench, cls: type[Method[Any]]) -> None:
    """The secret comes back from the store bit for bit, and gives the same reading."""
    mark = bench.short_mark(cls)[0]
    file = bench.scratch() / "secret.safetensors"
    try:
        save_tree(file, mark.secret)
    except TypeError as error:
        raise ContractBroken(f"the secret cannot be stored: {error}") from None
    stored = load_tree(file)
    if moved := difference(mark.secret, stored, "secret"):
        raise ContractBroken(f"the secret changes in the store ({moved}); tuples come back as lists: keep lists")
    first, second = asdict(_short_reading(bench, cls)), asdict(_owners(cls, Mark(mark.model, stored)))
    if moved := difference(first, second, "reading"):
        raise ContractBroken(f"the stored secret gives another reading ({moved})")


def clean_samples_keep_their_order(bench: Workbench, cls: type[Method[Any]]) -> None:
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


def marked_model_is_plain(bench: Workbench, cls: type[Method[Any]]) -> None:
    """The released model's state dict loads into a fresh network of the task and gives the same outputs."""
    task, mark = bench.short_task(cls), bench.short_mark(cls)[0]
    fresh = task.build("fresh").to(bench.device)
    if moved := difference(_shapes(fresh), _shapes(mark.model), "state dict"):
        raise ContractBroken(
            f"the marked model is not the plain architecture ({moved}); undo surgery in Recipe.finish()"
        )
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


def double_precision_runs(bench: Workbench, cls: type[Method[Any]]) -> None:
    """The network in training and the released one run after `.double()`: every tensor is a parameter or a buffer."""
    mark, lab = bench.short_mark(cls)
    inputs = bench.splits(bench.short_task(cls)).test.model_inputs()[:8]
    inputs = inputs.double() if inputs.is_floating_point() else inputs  # token ids stay whole numbers
    for model in (mark.model, *lab.prepared[:1]):
        try:
            with torch.no_grad():
                finite = bool(torch.isfinite(copy.deepcopy(model).eval().double()(inputs)).all())
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise ContractBroken(f"fails after .double() ({text}); use register_buffer for constant tensors") from None
        if not finite:
            raise ContractBroken("gives values that are not finite after .double()")


def verifying_only_reads(bench: Workbench, cls: type[Method[Any]]) -> None:
    """Reading changes neither weights nor modes nor the secret, draws nothing, and says the same twice."""
    mark = bench.short_mark(cls)[0]
    first = asdict(_short_reading(bench, cls))
    model, secret = copy.deepcopy(mark.model).eval(), copy.deepcopy(mark.secret)

    def look() -> list[Any]:
        flags: list[Any] = [module.training for module in model.modules()]
        grads: list[Any] = [[p.requires_grad, p.grad is None] for p in model.parameters()]
        return [{name: value.clone() for name, value in model.state_dict().items()}, flags, grads]

    before = look()
    with scrambled(2, watch=True):
        second = asdict(_owners(cls, Mark(model, secret)))
    if moved := difference(before, look(), "the suspect"):
        raise ContractBroken(f"reading changes the suspect ({moved}); work on suspect.weights() or suspect.module()")
    if moved := difference(mark.secret, secret, "the secret"):
        raise ContractBroken(f"reading changes the secret ({moved})")
    if moved := difference(first, second, "the reading"):
        raise ContractBroken(f"two verifications differ ({moved}); draw with a generator from tasks.streams.stream")


def declared_access_suffices(bench: Workbench, cls: type[Method[Any]]) -> None:
    """`read` gets along with the declared access, and needs it."""
    _verifies_something(cls)
    method: Method[Any] = laptop(cls)
    try:
        mark = bench.short_mark(cls)[0]
        _short_reading(bench, cls)
    except AccessDenied as error:
        raise ContractBroken(f"{error}; declare access = the most that `read` asks for") from None
    less = less_than(cls.access)
    try:
        method.read(Suspect(method.served(mark.model, mark.secret), less, cls.key), mark.secret)
    except (AccessDenied, UnsupportedModel):
        return
    raise ContractBroken(f"declares access to {cls.access} but reads the mark from {less}; declare what it needs")


def foreign_models_are_judged(bench: Workbench, cls: type[Method[Any]]) -> None:
    """A suspect of another architecture or with other classes gets a reading that does not claim it, never an error."""
    task, mark = bench.short_task(cls), bench.short_mark(cls)[0]
    other = next(name for name in _FOREIGN[task.info.kind] if name != task.model)
    with global_stream("foreign models"):
        suspects = {other: task.architecture(other), "one class less": _with_classes(task, task.classes - 1)}
    for name, model in suspects.items():
        try:
            reading = _verify(cls, model.to(bench.device), mark.secret)
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ContractBroken(f"a suspect with {name} raises {text}; raise UnsupportedModel in read()") from None
        if not math.isfinite(reading.score) or reading.accepted:
            raise ContractBroken(f"a suspect with {name} that was never trained is claimed: {_told(reading)}")


def _with_classes(task: Task, classes: int) -> nn.Module:
    """Return the task's network with its last dense layer replaced by one with another number of classes."""
    model = task.architecture(task.model)
    name, head = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Linear(head.in_features, classes))
    return model


def weak_mark_is_refused(bench: Workbench, cls: type[Method[Any]]) -> None:
    """Embedding without training raises `NotEmbedded`, or the mark verifies all the same."""
    _verifies_something(cls)
    task = shortened(bench.task(cls), epochs=0)
    try:
        mark, _ = bench.embed(cls, task, allow_weak=False)
    except (NotEmbedded, Diverged):
        return
    reading = _owners(cls, mark)
    if not reading.accepted:
        raise ContractBroken(f"embed returned a mark that does not verify: {_told(reading)}; set `gate`")


def _told(reading: Reading) -> str:
    why = "" if reading.applicable else f", not applicable: {reading.reason}"
    return f"score {reading.score:.3f}, p {reading.p_value:.2g}, accepted {reading.accepted}{why}"


METHOD_CHECKS = (
    embeds_from_its_streams,
    fresh_keys_are_nobodys,
    null_is_whole,
    marked_model_is_detected,
    unmarked_model_is_not_detected,
    wrong_secret_is_not_detected,
    p_values_are_honest,
    reading_is_well_formed,
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
