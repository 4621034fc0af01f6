"""The default rival: what anybody can claim of a scheme whose author wrote no rival."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from assay.methods.base import Family, Method, MethodConfig, Secret
from assay.methods.embedding import verify
from assay.methods.parts.signature import committed, opens
from assay.methods.parts.statistics import binomial_tail
from assay.methods.reading import Reading
from assay.methods.rival import Forgery
from assay.methods.suspect import Suspect
from assay.tasks.errors import AssayError, UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.streams import stream


class Pictures(Method[MethodConfig]):
    """Thirty noise images with random labels, as a newcomer would write it."""

    key, title, paper = "pictures", "noise images", "a test"
    access = "labels"
    family: ClassVar[Family] = "triggers"
    sealed = False

    def draw(self, lab: Lab) -> Secret:
        draws = lab.stream("secret")
        images = torch.rand(30, *lab.task.shape, generator=draws)
        secret = {"inputs": images, "labels": torch.randint(0, lab.task.classes, (30,), generator=draws)}
        return committed(secret, lab.stream("secret", "salt")) if self.sealed else secret

    def read(self, suspect: Suspect, secret: Secret) -> Reading:
        hits = int((suspect.labels(secret["inputs"]).cpu() == secret["labels"]).sum())
        opened = {"commitment_opens": float(opens(secret))} if self.sealed else {}
        p_value = binomial_tail(hits, 30, 0.1)
        return Reading(hits / 30, 0.1, 0.9, p_value, hits >= 27, "T1", hits, 30, metrics=opened)


class Sealed(Pictures):
    """The same, committed to."""

    sealed = True


class Detector(Pictures):
    """Its evidence is something trained, not labels that anybody may change."""

    family = "detector"


def example() -> Any:
    place = Path(__file__).parents[2] / "examples" / "sign_mark.py"
    spec = importlib.util.spec_from_file_location("sign_mark_of_the_test", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SignMark


def claimed(bench: Any, method: Method[Any], forgery: Forgery | None = None) -> tuple[Secret, Reading, Lab]:
    """Return what the default rival claims of an untrained network, how it reads, and the rival's lab."""
    task = bench.task()
    lab, model = bench.attacker("forge", task), task.build("innocent")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    secret = bench.rival(method).forge(Suspect(model, "weights", "forge"), lab, forgery or Forgery())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return secret, verify(method, model, secret), lab


@pytest.mark.parametrize("kind", [Pictures, Sealed])
def test_labels_that_anybody_may_choose_verify_with_certainty(bench: Any, kind: type[Pictures]) -> None:
    method, task = kind(MethodConfig()), bench.task()
    secret, reading, lab = claimed(bench, method)
    assert reading.score == 1
    assert reading.accepted
    assert reading.p_value < 1e-20
    assert reading.metrics == ({"commitment_opens": 1.0} if method.sealed else {})
    drawn = method.draw(lab.for_key(0))
    assert torch.equal(drawn["inputs"], secret["inputs"])
    assert verify(method, task.build("innocent"), drawn).p_value > 1e-3
    assert lab.curves == []  # nothing was searched


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, "signs"])
@pytest.mark.parametrize("name", ["bits", "message"])
def test_bits_that_anybody_may_choose_are_read_off(bench: Any, dtype: Any, name: str) -> None:
    base = example()

    class Spelled(base):  # type: ignore[misc, valid-type]
        def draw(self, lab: Lab) -> Secret:
            secret = super().draw(lab)
            signs = secret.pop("bits")
            return {**secret, name: signs if dtype == "signs" else (signs > 0).to(dtype)}

        def read(self, suspect: Suspect, secret: Secret) -> Reading:
            bits = secret[name] if dtype == "signs" else 2.0 * secret[name].to(torch.int8) - 1
            return super().read(suspect, {**secret, "bits": bits})

    method = Spelled(base.Config())
    secret, reading, lab = claimed(bench, method)
    assert (reading.score, reading.hits, reading.accepted) == (1.0, 64, True)
    drawn = method.draw(lab.for_key(0))
    assert secret[name].dtype == drawn[name].dtype
    assert set(secret[name].tolist()) == set(drawn[name].tolist())  # no value that the scheme does not know
    assert torch.equal(secret["places"], drawn["places"])
    assert not torch.equal(secret[name], drawn[name])
    assert verify(method, bench.task().build("innocent"), drawn).score < 0.9


def test_bits_that_a_signature_decides_are_only_searched(bench: Any) -> None:
    method = bench.method("greedy-residuals")
    secret, reading, lab = claimed(bench, method, Forgery(draws=6))
    points = [row["score"] for row in lab.curves if row["curve"] == "forge"]
    assert [row["step"] for row in lab.curves] == list(range(6))
    assert reading.score == max(points) < 0.7
    best = method.draw(lab.for_key(points.index(max(points))))
    assert secret["signature"] == best["signature"]


@pytest.mark.parametrize("kind", ["null-embedding", "detector"])
def test_what_cannot_be_chosen_is_the_best_of_many_draws(bench: Any, kind: str) -> None:
    method = Detector(MethodConfig()) if kind == "detector" else bench.method(kind, null_keys=9)
    _, reading, lab = claimed(bench, method, Forgery(draws=4))
    assert len(lab.curves) == 4
    assert reading.score == max(row["score"] for row in lab.curves)
    assert not reading.accepted


def test_a_search_is_the_procedure_of_that_name_and_needs_a_draw(bench: Any) -> None:
    method = Pictures(MethodConfig())
    _, reading, lab = claimed(bench, method, Forgery("search", draws=3))
    assert len(lab.curves) == 3
    assert reading.score < 0.9
    with pytest.raises(AssayError, match="at least one draw"):
        claimed(bench, method, Forgery("search", draws=0))
    with pytest.raises(UnsupportedModel, match="pictures is not forged by near"):
        claimed(bench, method, Forgery("near"))


def test_adversarial_triggers_keep_the_labels_that_were_fixed_first(bench: Any) -> None:
    method = Sealed(MethodConfig())
    secret, reading, lab = claimed(bench, method, Forgery("adversarial"))
    drawn = method.draw(lab.for_key(0))
    assert torch.equal(secret["labels"], drawn["labels"])
    assert 0 < float((secret["inputs"] - drawn["inputs"]).abs().max()) <= 8 / 255 + 1e-6
    assert reading.score > verify(method, bench.task().build("innocent"), drawn).score
    assert reading.metrics["commitment_opens"] == 1


def test_leaked_secrets_are_denied_by_kind(bench: Any) -> None:
    task = bench.task()
    lab, sign_mark = bench.attacker("overwrite", task), example()
    for method in (Pictures(MethodConfig()), sign_mark(sign_mark.Config())):
        leaked = method.draw(bench.lab(method.key, task))
        name = "labels" if method.family == "triggers" else "bits"
        denied = bench.rival(method).deny(leaked, lab)
        assert bool((denied[name] != leaked[name]).all())
    detector = Detector(MethodConfig())
    with pytest.raises(UnsupportedModel, match="pictures: nobody has shown"):
        bench.rival(detector).deny(detector.draw(bench.lab("pictures", task)), lab)


def test_overwriting_embeds_a_fresh_key_by_the_attackers_schedule(bench: Any) -> None:
    task, sign_mark = bench.task(), example()
    method, lab = sign_mark(sign_mark.Config()), bench.attacker("overwrite", task)
    victim = task.build("victim")
    mark = bench.rival(method).overwrite(victim, lab, task.schedule.but(epochs=0))
    assert torch.equal(mark.secret["bits"], method.draw(lab)["bits"])
    assert all(torch.equal(victim.state_dict()[name], value) for name, value in mark.model.state_dict().items())
    owners = method.draw(bench.lab("sign-mark", task))
    assert not torch.equal(mark.secret["places"], owners["places"])
    assert stream("overwrite", "secret", 0).initial_seed() == lab.stream("secret").initial_seed()
