"""Forging: the search over fresh keys, and the claim's form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_range import Range, SignMark, TriggerMark

from assay.attacks.base import Victim
from assay.attacks.forge import Config, Forge
from assay.methods.base import Method, MethodConfig, Secret
from assay.methods.clean import Clean
from assay.methods.deepipr import DeepIPR
from assay.methods.embedding import verify
from assay.methods.parts.passport import PassportLayer, fidelity_gap
from assay.methods.parts.passport_forging import flipped
from assay.methods.rival import Forgery, Rival, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.errors import AssayError
from assay.tasks.lab import Lab
from assay.tasks.training.meter import Meter
from assay.tasks.training.trainer import evaluate


def test_the_best_of_the_draws_is_claimed(field: Range) -> None:
    method = SignMark(MethodConfig())
    lab = field.lab("forge")
    outcome = Forge(Config(procedure="search", draws=200)).run(field.victim("weights", method), lab)
    assert outcome.rival is not None
    scores = [row["score"] for row in lab.curves]
    assert len(scores) == 200
    assert method.read(Suspect(field.model, "weights", "signs"), outcome.rival).score == max(scores)
    # Bits of 64 draws each: mean 1/2, and the best of 200 about 2.75 standard deviations above it.
    assert abs(sum(scores) / 200 - 0.5) < 0.02
    assert 0.6 < max(scores) < 0.75
    assert outcome.surrogate is None
    assert outcome.report == {"draws": 200, "draws_mean": sum(scores) / 200, "draws_best": max(scores)}


def test_draws_are_fresh_and_repeatable(field: Range) -> None:
    claims = [field.run(Forge, procedure="search", draws=1, seed=seed).rival["bits"].tolist() for seed in (1, 1, 2)]
    assert claims[0] == claims[1]
    assert claims[0] != claims[2]


def test_nothing_to_forge_is_said(field: Range) -> None:
    assert "verifies nothing" in str(Forge(Config()).supports(field.task, Clean(MethodConfig())))


def test_triggers_are_changed_until_they_verify(field: Range) -> None:
    method = TriggerMark(MethodConfig())
    victim = field.victim("weights", method)
    attack = Forge(Config(procedure="adversarial"))
    assert attack.supports(field.task, method) is None
    rival = attack.run(victim, field.lab("forge")).rival
    assert rival is not None
    honest = field.run(Forge, victim, procedure="search", draws=1).rival
    assert torch.equal(rival["labels"], honest["labels"])  # fixed before the network is seen
    assert float((rival["inputs"] - honest["inputs"]).abs().max()) <= 8 / 255 + 1e-6
    score = method.read(Suspect(field.model, "labels", "noise"), rival).score
    assert score > method.read(Suspect(field.model, "labels", "noise"), honest).score
    assert "has none" in str(attack.supports(field.task, SignMark(MethodConfig())))


def test_a_search_can_be_asked_of_any_method(field: Range) -> None:
    class Solving(Rival[RivalConfig]):
        def claim(self, victim: Suspect, lab: Lab, forgery: Forgery) -> Secret:
            raise AssertionError("the closed form was not asked for")

    class Closed(SignMark):
        rival = Solving

    outcome = field.run(Forge, field.victim("weights", Closed(MethodConfig())), procedure="search", draws=3)
    assert outcome.report["draws"] == 3


def test_keys_that_need_training_cannot_be_searched(field: Range) -> None:
    class Trained(SignMark):
        shares_null = False

    said = Forge(Config(procedure="search")).supports(field.task, Trained(MethodConfig()))
    assert "cannot be drawn without training" in str(said)
    assert Forge(Config()).supports(field.task, Trained(MethodConfig())) is None


# --- passports -------------------------------------------------------------------------------------------------------


def passports(**config: Any) -> DeepIPR:
    return DeepIPR(DeepIPR.Config.model_validate({**DeepIPR.laptop, "key_type": "shuffle", **config}))


def forge_passports(field: Range, scheme: DeepIPR, leaked: Any = None, **config: Any) -> tuple[Any, Any]:
    """Forge in a lab that has no unmarked model, as in a sweep; return the outcome and the reading of the claim.

    `flips`, `epochs` and `lr` are settings of the rival, the others of the attack.
    """

    def none(role: str) -> Any:
        raise AssertionError(f"a forger has no unmarked model {role}")

    victim = Victim(field.model, "weights", field.task, scheme, Meter(), leaked)
    before = field.digest(field.model)
    rival: dict[str, Any] = {name: config.pop(name) for name in ("flips", "epochs", "lr") if name in config}
    outcome = Forge(Config(**config, rival=rival)).run(victim, field.lab("forge", unmarked=none)).checked("ambiguity")
    assert field.digest(field.model) == before
    assert outcome.surrogate is None
    assert outcome.rival is not None
    return outcome, verify(scheme, field.model, outcome.rival)


def bits_of(secret: Any) -> torch.Tensor:
    return torch.cat([layer["bits"] for layer in secret["layers"]])


def through(field: Range, secret: Any) -> float:
    """Return the accuracy through a secret's passports on the test set, which no forger sees."""
    return evaluate(field.model, field.splits.test) + fidelity_gap(
        field.model, [PassportLayer(**layer) for layer in secret["layers"]], field.splits.test
    )


def public_signs(field: Range, secret: Any) -> torch.Tensor:
    scales = [field.model.get_parameter(f"{layer['norm']}.weight") for layer in secret["layers"]]
    return torch.where(torch.cat(scales) < 0, -1, 1)


@pytest.mark.parametrize(("share", "turned"), [(0.0, 0), (0.29, 29), (1.0, 100)])
def test_exactly_the_asked_share_of_signs_is_turned(share: float, turned: int) -> None:
    signs = (torch.arange(100) % 2 * 2 - 1).to(torch.int8)
    changed = flipped(signs, share, torch.Generator().manual_seed(0))
    assert int((changed != signs).sum()) == turned
    assert changed.abs().eq(1).all()


def test_random_passports_claim_the_signs_they_give_and_the_best_of_them_is_kept(field: Range) -> None:
    outcome, reading = forge_passports(field, passports(), procedure="random", draws=4)
    assert (outcome.report["draws"], outcome.report["draws_mean"], reading.score) == (4, 1, 1)
    assert reading.metrics["fidelity_gap"] == outcome.report["forged_fidelity_gap"]
    assert through(field, outcome.rival) < evaluate(field.model, field.splits.test) - 0.05
    # Passports that ship with the network leave only its public scale to be read.
    shipped, _ = forge_passports(field, passports(scheme="V1"), procedure="random", draws=1)
    assert torch.equal(bits_of(shipped.rival).long(), public_signs(field, shipped.rival))


def test_scale_and_bias_trained_under_turned_signs_give_working_passports(field: Range) -> None:
    settings = {"procedure": "reverse", "epochs": 15, "lr": 0.05}
    outcome, reading = forge_passports(field, passports(alpha=1.0), flips=0.5, **settings)
    claimed, public = bits_of(outcome.rival), public_signs(field, outcome.rival)
    assert int((claimed != public).sum()) == len(public) // 2
    assert reading.score == 1
    untrained, _ = forge_passports(field, passports(alpha=1.0), flips=0.5, **{**settings, "epochs": 0})
    own = evaluate(field.model, field.splits.test)
    assert through(field, untrained.rival) < own - 0.05
    assert through(field, outcome.rival) > own - 0.04


def test_near_passports_leave_the_owners_and_turn_the_signs(field: Range) -> None:
    scheme = passports(alpha=1.0)
    leaked = forge_passports(field, scheme, procedure="random", draws=1)[0].rival  # signs and passports that agree
    kept = [layer["scale_passport"].clone() for layer in leaked["layers"]]
    start, _ = forge_passports(field, scheme, leaked, procedure="near", epochs=0)
    assert start.report["forged_distance"] == pytest.approx(1e-3, rel=0.1)
    outcome, reading = forge_passports(field, scheme, leaked, procedure="near", epochs=40, lr=0.05)
    assert reading.score == 1
    assert through(field, outcome.rival) > through(field, leaked) - 0.03
    assert outcome.report["forged_distance"] > 0.3
    turned, reading = forge_passports(field, scheme, leaked, procedure="near", flips=0.2, epochs=3)
    claimed, owners = bits_of(turned.rival), bits_of(leaked)
    assert int((claimed != owners).sum()) == len(owners) // 5
    assert reading.score < 1, "three epochs turn no sign"
    assert all(torch.equal(layer["scale_passport"], old) for layer, old in zip(leaked["layers"], kept, strict=True))
    with pytest.raises(AssayError, match="none were given"):
        forge_passports(field, scheme, None, procedure="near")


def test_only_near_passports_are_given_the_owners(field: Range) -> None:
    def key(method: Method[Any], procedure: str) -> bool:
        return bool(Forge(Config(procedure=procedure)).needs(field.task, method).key)

    ways = ("own", "search", "random", "reverse", "near")
    assert [way for way in ways if key(passports(), way)] == ["near"]
    assert not key(SignMark(MethodConfig()), "near"), "a scheme without passports leaks nothing by that name"


def test_passports_are_forged_where_there_are_some(field: Range) -> None:
    def said(method: Method[Any], **config: Any) -> str | None:
        return Forge(Config(**config)).supports(field.task, method)

    for procedure in ("random", "reverse", "near"):
        assert f"signs is not forged by {procedure}" in str(said(SignMark(MethodConfig()), procedure=procedure))
        assert said(passports(), procedure=procedure) is None
        assert "no data" in str(said(passports(), procedure=procedure, split="none"))


def test_a_search_for_passports_needs_no_model_of_the_owner(field: Range) -> None:
    outcome, _ = forge_passports(field, passports(), procedure="search", draws=3)
    assert outcome.report["draws"] == 3


def test_settings_of_a_procedure_belong_to_the_rival(field: Range) -> None:
    reverse = Forge(Config(procedure="reverse", rival={"flips": 0.5}))
    assert reverse.supports(field.task, passports()) is None
    assert Forge(Config(rival={"flips": 1.5})).supports(field.task, passports()) is not None
    said = str(Forge(Config(procedure="revers")).supports(field.task, passports()))
    assert "did you mean 'reverse'" in said
    assert "allowed: adversarial, near, own, random, reverse, search" in said
