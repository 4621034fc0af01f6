"""Passports: the layer's arithmetic, where layers are found, the schemes end to end, forging and overwriting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from assay.methods.deepipr import DeepIPR
from assay.methods.embedding import Mark, embed, verify
from assay.methods.families.passports import PassportRival
from assay.methods.parts.passport import (
    PassportLayer,
    matched_signs,
    materialise,
    private_affine,
    sign_loss,
    signature,
    text_bits,
)
from assay.methods.parts.passport_sites import Material, choose_sites, find_sites, layer_inputs, shuffled_channels
from assay.methods.rival import Forgery
from assay.methods.suspect import Suspect
from assay.results.decisions import DEFAULT, Null, decide, thresholds
from assay.tasks.calibration import Calibration
from assay.tasks.data.splits import Splits
from assay.tasks.errors import AssayError, BadInput, CapacityError, NotEmbedded, UnsupportedModel
from assay.tasks.lab import Lab, Role
from assay.tasks.task import Task, resolve_task
from assay.tasks.training.checkpoint import load_tree, save_tree
from assay.tasks.training.trainer import Recipe, evaluate, predict

CPU = torch.device("cpu")
PLAIN = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}


@pytest.fixture(scope="module")
def task() -> Task:
    return resolve_task("digits-cnn-mini", "laptop", {"epochs": 9})


@pytest.fixture(scope="module")
def data(task: Task) -> Splits:
    torch.set_num_threads(1)
    return task.data(None, 0, CPU)


@pytest.fixture(scope="module")
def make_lab(task: Task, data: Splits, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Lab]:
    def make(plugin: str = "deepipr", seed: int = 0, role: Role = "owner", **changes: Any) -> Lab:
        own: dict[str, Any] = {"task": task, "data": data.attacker if role == "attacker" else data.owner, **changes}
        if role != "attacker":
            # Untrained networks stand in for unmarked ones: their signs know as little of any signature.
            own |= {"unmarked": task.build, "calibration": Calibration(references=2, keys=20, processed=0)}
        folder = tmp_path_factory.mktemp("lab")
        return Lab(plugin=plugin, seed=seed, role=role, device=CPU, scratch=folder, train_seed=f"train|{seed}", **own)

    return make


def rival(scheme: DeepIPR, **config: Any) -> PassportRival:
    return PassportRival(scheme, PassportRival.Config(**config))


def method(**config: object) -> DeepIPR:
    return DeepIPR(DeepIPR.Config.model_validate({**DeepIPR.laptop, **config}))


@pytest.fixture(scope="module")
def mark(make_lab: Callable[..., Lab]) -> Mark:
    return embed(method(), make_lab())


def layer_with(passport: Tensor, bits: Tensor, kernel: list[int], **geometry: object) -> PassportLayer:
    return PassportLayer("conv", "norm", kernel, {**PLAIN, **geometry}, passport, -passport, bits)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_anchor_scale_and_bias() -> None:
    weight = torch.tensor([[1.0, -1.0], [0.5, 0.5]]).view(2, 2, 1, 1)
    scale = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]]]).unsqueeze(0)
    bias = torch.stack([torch.full((2, 2), 0.5), torch.full((2, 2), -0.5)]).unsqueeze(0)
    layer = PassportLayer("conv", "norm", [2, 2, 1, 1], PLAIN, scale, bias, torch.ones(2, dtype=torch.int8))
    gamma, beta = layer.affine(weight)
    torch.testing.assert_close(gamma, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(beta, torch.tensor([1.0, 0.0]))
    # A scale of 0 has no sign: one match of two.
    weights = {"conv.weight": weight, "norm.weight": torch.ones(2)}
    assert matched_signs(weights, [layer], shipped=False).tolist() == [False, True]


def test_anchor_sign_loss() -> None:
    gamma = torch.tensor([0.05, -0.2, -0.3, 0.02])
    bits = torch.tensor([1, -1, 1, -1], dtype=torch.int8)
    assert float(sign_loss(gamma, bits, 0.1, 0.1, 0.0)) == pytest.approx(0.057, abs=1e-7)
    assert float(sign_loss(gamma, bits, 0.0, 0.1, 1e-5)) == pytest.approx(1.329e-6, rel=1e-4)
    assert float(sign_loss(gamma, bits, 0.1, 0.1, 1e-5)) == pytest.approx(0.05700133, abs=1e-8)
    weights = {"conv.weight": torch.zeros(4, 1, 1, 1), "norm.weight": gamma}
    layer = layer_with(torch.zeros(1, 1, 1, 1), bits, [4, 1, 1, 1])
    assert matched_signs(weights, [layer], shipped=True).float().mean() == 0.5


def test_anchor_signature_text() -> None:
    text = "this is my signature"
    bits = text_bits(text)
    assert len(bits) == 160
    assert "".join(str((int(b) + 1) // 2) for b in bits[:16]) == "0111010001101000"
    drawn = signature(text, 256, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:160], bits)
    assert set(drawn.tolist()) == {-1, 1}
    with pytest.raises(CapacityError, match="160 channels"):
        signature(text, 159, torch.Generator())


@given(st.text(max_size=12))
def test_bits_of_a_text_are_those_of_its_bytes(text: str) -> None:
    bits = ((text_bits(text) + 1) // 2).tolist()
    places = [bits[start : start + 8] for start in range(0, len(bits), 8)]
    assert bytes(sum(bit << (7 - place) for place, bit in enumerate(byte)) for byte in places) == text.encode()


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_patch_equals_convolution(
    kernel: int, stride: int, padding: int, dilation: int, groups: int, seed: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    passport = torch.rand(1, 4, 7, 6, generator=draws) * 2 - 1
    weight = torch.randn(6, 4 // groups, kernel, kernel, generator=draws)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = layer_with(passport, torch.ones(6), list(weight.shape), **geometry)
    expected = F.conv2d(passport, weight, None, stride, padding, dilation, groups).mean((0, 2, 3))
    gamma, beta = layer.affine(weight)
    torch.testing.assert_close(gamma, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(beta, -expected, atol=1e-5, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.1, 50))
def test_scaling_and_negating_a_passport(seed: int, factor: float) -> None:
    draws = torch.Generator().manual_seed(seed)
    passport, weight = torch.randn(1, 3, 4, 4, generator=draws), torch.randn(9, 3, 3, 3, generator=draws)
    bits = signature("", 9, draws)
    weights = {"conv.weight": weight, "norm.weight": torch.ones(9)}

    def share(made_of: Tensor) -> float:
        layer = layer_with(made_of, bits, [9, 3, 3, 3])
        return float(matched_signs(weights, [layer], shipped=False).float().mean())

    gamma = layer_with(passport, bits, [9, 3, 3, 3]).affine(weight)[0]
    scaled = layer_with(factor * passport, bits, [9, 3, 3, 3]).affine(weight)[0]
    torch.testing.assert_close(scaled, factor * gamma, rtol=1e-4, atol=1e-4)
    assert share(factor * passport) == share(passport)
    assert share(-passport) == pytest.approx(1 - share(passport))


def test_shuffled_channels_take_each_source_once() -> None:
    activations = torch.arange(3 * 8, dtype=torch.float32).view(3, 8, 1, 1)
    passport = shuffled_channels(activations, torch.Generator().manual_seed(1)).flatten().long()
    assert len(set(passport.tolist())) == 8
    per_image = torch.bincount(passport // 8, minlength=3)
    assert sorted(per_image.tolist()) == [2, 3, 3]


# --- where passports live --------------------------------------------------------------------------------------------


def test_layers_are_found_by_structure(task: Task) -> None:
    assert [(s.conv, s.norm) for s in find_sites(task.build("a"), task.shape)] == [("conv1", "bn1"), ("conv2", "bn2")]
    resnet = resolve_task("cifar10-resnet18", "paper", {})
    sites = find_sites(resnet.build("a"), resnet.shape)
    chosen = choose_sites(sites, "auto")
    assert len(sites) == 20
    assert len(chosen) == 5
    assert sum(site.outputs[0] for site in chosen) == 2560
    assert any("shortcut" in site.conv for site in chosen)


def test_a_norm_behind_something_else_is_no_site() -> None:
    between = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    assert [site.conv for site in find_sites(between, (1, 8, 8))] == ["3"]


def test_supports_says_why() -> None:
    for key in ("digits-lenet5", "digits-mlp-1200x2"):
        reason = method().supports(resolve_task(key, "laptop", {}))
        assert reason is not None
        assert "batch norm" in reason
    mini = resolve_task("digits-cnn-mini", "laptop", {})
    assert method().supports(mini) is None
    assert "channels" in (method(text="five!").supports(mini) or "")


def test_unknown_layer_names_the_nearest(task: Task, data: Splits, make_lab: Callable[..., Lab]) -> None:
    with pytest.raises(BadInput, match="did you mean 'conv2'"):
        method(layers=["conv3"]).draw(make_lab())


def test_image_passports_are_activations(task: Task, data: Splits, make_lab: Callable[..., Lab]) -> None:
    lab = make_lab()
    model = task.build("clean")
    sites = find_sites(model, task.shape)
    images = data.owner.held_out.take(slice(0, 100)).model_inputs()
    seen = layer_inputs(model, images, sites)
    torch.testing.assert_close(seen["conv1"], model.get_submodule("normalize")(images))
    secret = method(key_type="image", layers=["conv2"]).draw(lab)
    passport = secret["layers"][0]["scale_passport"]
    assert (seen["conv2"] == passport).flatten(1).all(1).sum() == 1
    shuffled = method(key_type="shuffle", layers=["conv2"]).draw(lab)["layers"][0]["scale_passport"]
    channels = seen["conv2"].flatten(0, 1)
    assert all((channels == channel).flatten(1).all(1).any() for channel in shuffled[0])
    assert not (seen["conv2"] == shuffled).flatten(1).all(1).any()


# --- training --------------------------------------------------------------------------------------------------------


def test_alpha_zero_gives_no_sign_gradient() -> None:
    gamma = torch.tensor([0.5, -0.5], requires_grad=True)
    sign_loss(gamma, torch.tensor([-1, 1], dtype=torch.int8), 0.0, 0.1, 0.0).backward()
    assert gamma.grad is not None
    assert gamma.grad.abs().sum() == 0


def test_public_pass_ignores_passports_and_private_does_not(task: Task, data: Splits, mark: Mark) -> None:
    images = data.test.take(slice(0, 50)).inputs
    before = predict(mark.model, images)
    layers = [PassportLayer(**layer) for layer in mark.secret["layers"]]
    affine = private_affine(mark.model, layers)
    private = torch.func.functional_call(mark.model, affine, (images.float() / 255,))
    assert torch.equal(predict(mark.model, images), before)
    assert not torch.allclose(private, before)


def test_released_networks_are_plain(task: Task, data: Splits, make_lab: Callable[..., Lab], mark: Mark) -> None:
    fresh = task.build("fresh")
    fresh.load_state_dict(mark.model.state_dict())
    assert torch.equal(predict(fresh, data.test.inputs), predict(mark.model, data.test.inputs))


def test_v1_releases_what_its_passports_give(task: Task, data: Splits, make_lab: Callable[..., Lab]) -> None:
    scheme, lab = method(scheme="V1", allow_weak=True), make_lab()
    secret = scheme.draw(lab)
    recipe = scheme.recipe(lab, secret)
    model = task.build("start")
    owned = {id(weight) for weight in recipe.parameters(model)}
    assert id(model.get_parameter("bn2.weight")) not in owned
    assert id(model.get_parameter("bn1.weight")) in owned
    trained = lab.fit(model, data.owner.train, recipe, task.schedule.but(epochs=2)).model
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    materialise(trained, [PassportLayer(**layer) for layer in secret["layers"]])
    for name, value in trained.state_dict().items():  # a memory format may change the order of a sum
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before["bn2.weight"], torch.ones(32), atol=0.1)


def test_clean_samples_keep_their_order(task: Task, data: Splits, make_lab: Callable[..., Lab]) -> None:
    class Watch:
        def __init__(self, recipe: Recipe) -> None:
            self.seen: list[Tensor] = []
            inner = recipe.step

            def step(state: object, batch: object) -> object:
                self.seen.append(batch.index.clone())  # type: ignore[attr-defined]
                return inner(state, batch)  # type: ignore[arg-type]

            recipe.step = step  # type: ignore[assignment, method-assign]

    seen = []
    scheme = method(scheme="V3", keys=20)
    for recipe in (Recipe(), scheme.recipe(make_lab(), scheme.draw(make_lab()))):
        watch = Watch(recipe)
        make_lab().fit(task.build("x"), data.owner.train.take(slice(0, 200)), recipe, task.schedule.but(epochs=1))
        seen.append(torch.cat(watch.seen))
    assert torch.equal(*seen)


def test_no_training_is_no_mark(task: Task, data: Splits, make_lab: Callable[..., Lab]) -> None:
    untrained = task.but(schedule=task.schedule.but(epochs=0).model_dump())
    with pytest.raises(NotEmbedded):
        embed(method(scheme="V1"), make_lab(task=untrained))


def test_same_streams_same_model(task: Task, data: Splits, make_lab: Callable[..., Lab]) -> None:
    short = task.but(schedule=task.schedule.but(epochs=1).model_dump())
    marks = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        state = torch.get_rng_state()
        marks.append(embed(method(scheme="V3", allow_weak=True), make_lab(task=short)))
        assert torch.equal(torch.get_rng_state(), state)
    first, second = (m.model.state_dict() for m in marks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert marks[0].secret["commitment"] == marks[1].secret["commitment"]


# --- end to end ------------------------------------------------------------------------------------------------------


def test_marked_is_detected_clean_and_wrong_are_not(
    task: Task, data: Splits, mark: Mark, make_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    scheme, lab = method(), make_lab()
    save_tree(tmp_path / "secret.safetensors", mark.secret)
    secret = load_tree(tmp_path / "secret.safetensors")
    suspect = Suspect(mark.model, scheme.access, scheme.key)
    before = {name: value.clone() for name, value in mark.model.state_dict().items()}
    reading = scheme.read(suspect, secret)
    assert reading.accepted
    assert reading.score >= 0.98
    assert reading.p_value < 1e-4
    assert reading.metrics["commitment_opens"] == 1.0
    assert all(torch.equal(value, before[name]) for name, value in mark.model.state_dict().items())
    null = Null(**asdict(scheme.null(make_lab(role="claimant"), None)))
    clean = verify(scheme, task.build("reference-9"), secret)
    limits = thresholds(scheme.family, null, asdict(clean), DEFAULT)
    assert decide(asdict(reading), limits, DEFAULT).strict
    assert not clean.accepted
    assert not decide(asdict(clean), limits, DEFAULT).strict
    assert evaluate(mark.model, data.test) > 0.9
    fresh = [scheme.draw(lab.for_key(index)) for index in range(20)]
    rejected = [scheme.score(suspect, key)[0] < limits.strict for key in fresh]
    assert sum(rejected) >= 18  # of 20


def test_null_p_values_are_not_too_small(task: Task, data: Splits, make_lab: Callable[..., Lab]) -> None:
    scheme, lab = method(fidelity_samples=0), make_lab()
    keys = [scheme.draw(lab.for_key(index)) for index in range(100)]
    innocent = task.build("innocent")
    values = torch.tensor([verify(scheme, innocent, key).p_value for key in keys])
    assert values.mean() >= 0.35
    assert (values < 0.01).float().mean() <= 0.05


def test_other_architectures_are_not_applicable(data: Splits, mark: Mark) -> None:
    scheme = method()
    for key in ("digits-lenet5", "digits-resnet8"):
        other = resolve_task(key, "laptop", {}).build("x")
        reading = verify(scheme, other, mark.secret)
        assert not reading.applicable
        assert reading.p_value == 1
        assert reading.reason


def test_trigger_images_have_a_test_of_their_own(task: Task, data: Splits, make_lab: Callable[..., Lab]) -> None:
    scheme = method(scheme="V3", keys=20)
    longer = task.but(schedule=task.schedule.but(epochs=8).model_dump())
    mark = embed(scheme, make_lab(task=longer))
    metrics = verify(scheme, mark.model, mark.secret).metrics
    assert metrics["key_score"] >= 0.9
    assert metrics["p_keys"] < 1e-10


def test_forging_succeeds_without_touching_the_victim(
    task: Task, data: Splits, mark: Mark, make_lab: Callable[..., Lab]
) -> None:
    scheme, lab = method(), make_lab("forge", 3, "attacker")
    suspect = Suspect(mark.model, scheme.access, scheme.key)
    before = {name: value.clone() for name, value in mark.model.state_dict().items()}
    claim = rival(scheme).forge(suspect, lab, Forgery(draws=1))
    reading = scheme.read(suspect, claim)
    assert reading.score == 1.0
    assert abs(reading.metrics["fidelity_gap"]) < 0.02
    assert reading.metrics["commitment_opens"] == 1.0
    assert claim["commitment"] != mark.secret["commitment"]
    assert all(torch.equal(value, before[name]) for name, value in mark.model.state_dict().items())


def test_overwriting_needs_no_model_of_the_owner(
    task: Task, data: Splits, mark: Mark, make_lab: Callable[..., Lab]
) -> None:
    scheme = method(key_type="shuffle")
    lab = make_lab("overwrite", 3, "attacker")  # knows no unmarked model
    victim = task.build("copy")
    victim.load_state_dict(mark.model.state_dict())
    untouched = rival(scheme).overwrite(victim, lab, task.schedule.but(epochs=0))
    assert torch.equal(predict(untouched.model, data.test.inputs), predict(mark.model, data.test.inputs))
    own = torch.cat([layer["bits"] for layer in mark.secret["layers"]])
    new = torch.cat([layer["bits"] for layer in untouched.secret["layers"]])
    assert 0.15 < (own != new).float().mean() < 0.85


# --- forging by training ----------------------------------------------------------------------------------------------


def procedures(make_lab: Callable[..., Lab], mark: Mark, procedure: str, flips: float = 0.25) -> tuple[Any, Any, Lab]:
    """Return a forged secret, its reading, and the forger's lab."""
    scheme, lab = method(), make_lab("forge", 3, "attacker")
    suspect = Suspect(mark.model, scheme.access, scheme.key)
    leaked = mark.secret if procedure in PassportRival.leaking else None
    forged = rival(scheme, flips=flips, epochs=2).forge(suspect, lab, Forgery(procedure, 3, leaked))
    return forged, scheme.read(suspect, forged), lab


@pytest.mark.parametrize("procedure", PassportRival.procedures)
def test_each_procedure_claims_signs_that_are_not_the_owners(
    procedure: str, mark: Mark, make_lab: Callable[..., Lab]
) -> None:
    forged, reading, lab = procedures(make_lab, mark, procedure)
    points = [row for row in lab.curves if row["curve"] == "forge"]
    assert len(points) == (3 if procedure == "random" else 1)
    assert all(-1 <= point["fidelity_gap"] <= 1 for point in points)
    assert all(("distance" in point) is (procedure == "near") for point in points)
    assert reading.metrics["commitment_opens"] == 1
    assert reading.score in [point["score"] for point in points]
    own, claimed = (torch.cat([layer["bits"] for layer in secret["layers"]]) for secret in (mark.secret, forged))
    turned = int((own != claimed).sum())
    if procedure == "near":
        assert turned == len(own) // 4
    else:
        assert turned > 0
    if procedure == "random":
        assert reading.score == 1  # the claim is what the passports happen to give


def test_nearby_passports_start_from_the_owners(mark: Mark, make_lab: Callable[..., Lab]) -> None:
    lab, suspect = make_lab("forge", 3, "attacker"), Suspect(mark.model, "weights", "deepipr")
    with pytest.raises(AssayError, match="near starts from the owner's passports"):
        rival(method()).forge(suspect, lab, Forgery("near"))
    with pytest.raises(UnsupportedModel, match="deepipr is not forged by magic"):
        rival(method()).forge(suspect, lab, Forgery("magic"))


def test_forging_trains_for_half_of_the_papers_epochs_as_a_share(task: Task) -> None:
    schedule = rival(method()).schedule(task)
    assert (schedule.epochs, schedule.optimizer, schedule.batch_size) == (round(9 * 100 / 200), "sgd", 64)
    assert (schedule.lr, schedule.momentum, schedule.weight_decay) == (0.01, 0.9, 5e-4)
    assert rival(method(), epochs=7, lr=0.1).schedule(task).epochs == 7


@pytest.mark.parametrize("key_type", ["random", "shuffle"])
def test_a_null_draws_its_keys_as_anybody_would(
    key_type: str, task: Task, make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, lab, passes = method(key_type=key_type, images=3), make_lab(role="claimant"), []
    of = Material.of

    def counted(*given: Any) -> Material:
        passes.append(1)
        return of(*given)

    monkeypatch.setattr(Material, "of", counted)
    null = scheme.null(lab, None)
    assert len(passes) <= 1  # the images pass once for all keys; shapes are known from before
    key = scheme.draw(lab.for_key(3))
    read = [scheme.score(Suspect(lab.unmarked(role), "weights", "deepipr"), key)[0] for role in null.models]
    assert [scores[3] for scores in null.scores] == read
    assert (len(null.scores), len(null.scores[0])) == (2, 20)


def test_an_owners_private_branch_must_work(mark: Mark, make_lab: Callable[..., Lab]) -> None:
    strange = [{**layer, "scale_passport": -layer["scale_passport"]} for layer in mark.secret["layers"]]
    secret = {**mark.secret, "layers": strange}  # through these passports every scale has the wrong sign
    with pytest.raises(NotEmbedded, match="private branch loses"):
        method().recipe(make_lab(), secret).finish(mark.model)
    for scheme, role in ((method(allow_weak=True), "owner"), (method(), "attacker")):
        assert scheme.recipe(make_lab(role=role), secret).finish(mark.model) is mark.model


def test_material_needs_a_site() -> None:
    with pytest.raises(UnsupportedModel, match="behind the first"):
        choose_sites([], "auto")
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.BatchNorm2d(2))
    material = Material.of(model, find_sites(model, (1, 5, 5)), None)
    assert material.geometries[0]["padding"] == "same"
