"""Customized soft-label perturbation: signal, losses, phases, resuming, and the mark end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from assay.methods.csp import CSP, CSPConfig, CSPRecipe, signal, spread
from assay.methods.embedding import Mark, embed, verify
from assay.methods.families.soft_label import SoftLabelRival
from assay.methods.parts.detector import Detector, DetectorTraining
from assay.methods.parts.soft_label import SoftLabelRecipe, fresh_detector
from assay.methods.reading import Reading
from assay.methods.rival import Forgery, RivalConfig
from assay.methods.suspect import Suspect
from assay.tasks.calibration import Calibration
from assay.tasks.data.splits import Labelled, Party, Splits
from assay.tasks.errors import AccessDenied
from assay.tasks.lab import Lab
from assay.tasks.task import Task, resolve_task
from assay.tasks.training.checkpoint import load_tree, save_tree
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Recipe, Rolling, State, Terms, evaluate, fit

CPU = torch.device("cpu")


def method(**config: Any) -> CSP:
    return CSP(CSP.Config.model_validate({**CSP.laptop, **config}))


# --- signal ----------------------------------------------------------------------------------------------------------


def test_anchor_signals() -> None:
    assert signal(b"owner", 10) == [-1, 1, 0, 1, -1, 0, 0, 1, -1, 0]
    assert signal(b"owner", 5) == [-1, 1, 0, 1, -1]
    assert signal(b"user-1", 10) == [1, 0, -1, 0, 1, -1, 0, 1, 0, -1]


@given(st.binary(max_size=40), st.integers(2, 60))
def test_signals_are_balanced_and_never_constant(key: bytes, length: int) -> None:
    values = signal(key, length)
    assert sum(values) == 0
    assert values.count(1) == values.count(-1) == max(1, round(length / 3))
    assert values == signal(key, length)


def test_unmapped_labels_carry_nothing() -> None:
    whole = spread([1, -1, 0], [7, 2, 4], 9)
    assert whole.tolist() == [0, 0, -1, 0, 0, 0, 0, 1, 0]


def test_anchor_perturbed_cross_entropy() -> None:
    logits, label = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    offset = 2 * spread([1, 0, -1], [0, 1, 2], 3)
    assert float(F.cross_entropy(logits - offset, label)) == pytest.approx(2.407606, abs=1e-6)
    assert float(F.cross_entropy(logits, label)) == pytest.approx(0.407606, abs=1e-6)


# --- recipe ----------------------------------------------------------------------------------------------------------


def tiny_net(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10))


@pytest.fixture(scope="module")
def tiny() -> Labelled:
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 10, (120,), generator=draws)
    inputs = torch.rand(120, 1, 4, 4, generator=draws)
    inputs[torch.arange(120), 0, labels // 4, labels % 4] += 1
    return Labelled(inputs, labels)


SCHEDULE = Schedule(epochs=6, batch_size=32, lr=5e-3, drops=(4 / 6,))


def lab_of(train: Labelled, seed: int = 0, **fields: Any) -> Lab:
    """Return an owner's lab on digits with samples of its own."""
    given = {
        "task": resolve_task("digits-lenet5", "laptop", {}), "data": Party(train, train.take(slice(0, 0)), "owner"),
        "role": "owner", "scratch": Path("nowhere"), "train_seed": "train|0", **fields,
    }  # fmt: skip
    return Lab(plugin="csp", seed=seed, device=CPU, **given)


def recipe_of(kind: type[SoftLabelRecipe] = CSPRecipe, shift: float = 0.0, **config: Any) -> SoftLabelRecipe:
    own = CSPConfig.model_validate({"detector_lr": 1e-2, **config})
    nothing = Labelled(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long))
    lab = lab_of(nothing, unmarked=lambda role: tiny_net(9))
    secret = {"signal": signal(b"owner", 10), "labels": list(range(10)), "gamma": own.gamma}
    recipe = CSPRecipe(own, lab, secret, 4 / 6) if kind is CSPRecipe else kind(own, lab, secret)
    if isinstance(recipe, CSPRecipe):
        recipe.offset += own.gamma * shift
    with torch.random.fork_rng():
        torch.manual_seed(5)
        recipe.training = DetectorTraining(Detector(10, [16, 8], "log_softmax"), own.detector_lr, 140)
    return recipe


def trained(tiny: Labelled, recipe: Recipe, schedule: Schedule = SCHEDULE, **options: Any) -> Any:
    return fit(tiny_net(1), tiny, recipe, schedule, seed="t", **options)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_without_its_terms_it_is_the_clean_run(tiny: Labelled) -> None:
    neutral = trained(tiny, recipe_of(gamma=0.0, alpha=0.0, beta=0.0)).model
    assert same_weights(neutral, trained(tiny, Recipe()).model)
    ablated = trained(tiny, recipe_of(gamma=0.0, use_kld=False, use_detector_loss=False)).model
    assert same_weights(ablated, neutral)
    assert not same_weights(trained(tiny, recipe_of(gamma=0.0)).model, neutral)
    assert not same_weights(trained(tiny, recipe_of(alpha=0.0, beta=0.0)).model, neutral)


def test_without_signal_embedding_is_the_unified_scheme(tiny: Labelled) -> None:
    embedding = SCHEDULE.but(epochs=4, drops=())
    customized, unified = recipe_of(gamma=0.0), recipe_of(SoftLabelRecipe)
    customized.embed_share = 1.0  # type: ignore[attr-defined]
    first, second = (trained(tiny, recipe, embedding).model for recipe in (customized, unified))
    assert same_weights(first, second)
    assert same_weights(customized.training.detector, unified.training.detector)


def test_threshold_of_the_second_phase(tiny: Labelled) -> None:
    branches = {}
    for tau in (0.0, 1.0):
        history = trained(tiny, recipe_of(tau=tau)).history
        branches[tau] = [row["perturbed"] for row in history]
        assert ["divergence" in row for row in history] == [True] * 4 + [False] * 2
    assert branches == {0.0: [1, 1, 1, 1, 0, 0], 1.0: [1] * 6}
    same = [trained(tiny, recipe_of(tau=tau, gamma=0.0)).model for tau in (0.0, 1.0)]
    assert same_weights(*same)


def test_each_epoch_of_the_second_phase_follows_what_the_detector_got_right_before(tiny: Labelled) -> None:
    always = trained(tiny, recipe_of(tau=1.0)).history
    known = always[4]["detector_accuracy"]  # read at the start of the first epoch of phase two
    assert 0.5 < known <= 1
    for tau, perturbed in ((known + 1e-6, 1.0), (known - 1e-6, 0.0)):  # curves are means in single precision
        history = trained(tiny, recipe_of(tau=tau)).history
        assert [row["detector_accuracy"] for row in history[:5]] == [row["detector_accuracy"] for row in always[:5]]
        assert history[4]["perturbed"] == perturbed
        assert history[5]["perturbed"] == float(history[5]["detector_accuracy"] <= tau)


def test_without_signal_or_threshold_the_second_phase_is_plain_fine_tuning(tiny: Labelled) -> None:
    class Unified(SoftLabelRecipe):
        """The unified scheme, and from the fifth epoch on cross-entropy alone."""

        def terms(self, state: State, marked: Tensor, unmarked: Tensor, labels: Tensor) -> Terms:
            terms = super().terms(state, marked, unmarked, labels)
            return terms if self.epoch < 4 else {"task": terms["task"]}

    customized, unified = recipe_of(gamma=0.0, tau=0.0), recipe_of(Unified)
    assert same_weights(trained(tiny, customized).model, trained(tiny, unified).model)
    assert same_weights(customized.training.detector, unified.training.detector)


def test_a_constant_in_the_signal_changes_nothing(tiny: Labelled) -> None:
    first, second = recipe_of(), recipe_of(shift=2.0)
    a, b = trained(tiny, first).model, trained(tiny, second).model
    for own, other in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(own, other, atol=1e-3, rtol=1e-3)


def test_the_adversary_never_moves(tiny: Labelled) -> None:
    recipe = recipe_of()
    trained(tiny, recipe)
    assert same_weights(recipe.adversary, tiny_net(9))
    assert recipe.adversary_samples == 6 * 120


def test_the_signal_is_added_to_the_answers(tiny: Labelled) -> None:
    marked = trained(tiny, recipe_of(tau=1.0, gamma=3.0), SCHEDULE.but(epochs=60)).model
    clean = trained(tiny, Recipe(), SCHEDULE.but(epochs=60)).model
    with torch.no_grad():
        shift = (marked(tiny.inputs) - clean(tiny.inputs)).mean(0)
    code = spread(signal(b"owner", 10), list(range(10)), 10)
    assert torch.corrcoef(torch.stack([shift, code]))[0, 1] > 0.7


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize("epoch_of_death", [1, 4, 5])
def test_a_resumed_run_is_bitwise_the_same(tiny: Labelled, tmp_path: Path, epoch_of_death: int) -> None:
    def kill(epoch: int, model: nn.Module, means: dict[str, float]) -> None:
        if epoch == epoch_of_death:
            raise Killed

    whole = recipe_of()
    reference = trained(tiny, whole)
    rolling = Rolling(tmp_path / "train.safetensors", 0)
    with pytest.raises(Killed):
        trained(tiny, recipe_of(), resume=rolling, observers=[kill])
    assert rolling.path.exists()
    resumed_recipe = recipe_of()
    resumed = trained(tiny, resumed_recipe, resume=rolling)
    assert same_weights(reference.model, resumed.model)
    assert same_weights(whole.training.detector, resumed_recipe.training.detector)
    assert whole.adversary_samples == resumed_recipe.adversary_samples
    assert whole.training.accuracy == resumed_recipe.training.accuracy
    assert reference.history == resumed.history


# --- configuration ---------------------------------------------------------------------------------------------------


def test_a_positive_alpha_is_refused() -> None:
    with pytest.raises(ValidationError, match="alpha"):
        CSP.Config(alpha=0.01)


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({}, range(10)),
        ({"signal_len": 4}, range(4)),
        ({"labels": [7, 2, 4]}, [7, 2, 4]),
        ({"labels": [9, 0, 5, 1], "signal_len": 4}, [9, 0, 5, 1]),
    ],
)
def test_the_dictionary_says_which_labels_carry_the_signal(config: dict[str, Any], labels: Any, tiny: Labelled) -> None:
    own = method(gamma=3.0, **config)
    lab = lab_of(tiny, unmarked=resolve_task("digits-lenet5", "laptop", {}).build)
    secret = own.draw(lab)
    assert secret["labels"] == list(labels)
    assert secret["signal"] == signal(secret["key"], len(labels))
    recipe = own.recipe(lab, secret)
    assert isinstance(recipe, CSPRecipe)
    assert recipe.offset.tolist() == [
        3.0 * secret["signal"][secret["labels"].index(label)] if label in labels else 0.0 for label in range(10)
    ]


def test_every_user_has_a_signal_of_its_own(tiny: Labelled) -> None:
    users = [method().draw(lab_of(tiny, seed)) for seed in range(20)]
    assert len({user["key"] for user in users}) == 20
    assert len({tuple(user["signal"]) for user in users}) == 20  # of 10!/(4! 3! 3!) = 4200
    assert all(user["signal"] == signal(user["key"], 10) for user in users)


def test_schedule_joins_the_phases() -> None:
    paper = CSP(CSP.Config()).schedule(resolve_task("cifar10-resnet18", "paper", {}))
    rates = [paper.lr_at(epoch) for epoch in (0, 79, 80, 119, 120, 239)]
    assert paper.epochs == 240
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    laptop = method().schedule(resolve_task("mnist-lenet5", "laptop", {}))
    assert laptop.epochs == 12
    assert [laptop.lr_at(epoch) for epoch in (0, 7, 8, 11)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert method(epochs_finetune=0).schedule(resolve_task("mnist-lenet5", "laptop", {})).drops == ()


def test_supports_says_why() -> None:
    task = resolve_task("digits-lenet5", "laptop", {})
    assert method().supports(task) is None
    assert "distinct labels" in (method(signal_len=11).supports(task) or "")
    assert "distinct labels" in (method(labels=[1, 1, 2]).supports(task) or "")
    assert {"clean", "adversary", "reference-4"} < set(method().needs(task).unmarked)


def test_a_null_model_is_left_besides_the_one_that_supplies_the_negatives() -> None:
    with pytest.raises(ValidationError, match="references"):
        CSP.Config(references=1)


# --- end to end ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task() -> Task:
    return resolve_task("digits-lenet5", "laptop", {"epochs": 10})


@pytest.fixture(scope="module")
def data(task: Task) -> Splits:
    torch.set_num_threads(1)
    return task.data(None, 0, CPU)


@pytest.fixture(scope="module")
def lab(task: Task, data: Splits, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    models: dict[str, nn.Module] = {}

    def unmarked(role: str) -> nn.Module:
        if role not in models:
            name = "train|0" if role == "clean" else f"train|{role}|0"
            folder = tmp_path_factory.mktemp(role)
            own = Lab(
                task=task, data=data.owner, role="owner", plugin="clean", seed=0, device=CPU, scratch=folder,
                train_seed=name,
            )  # fmt: skip
            models[role] = own.fit(task.build(name), data.owner.train).model
        return _copy(task, models[role])

    return Lab(
        task=task, data=data.owner, role="owner", plugin="csp", seed=0, device=CPU,
        scratch=tmp_path_factory.mktemp("csp"), train_seed="train|0",
        calibration=Calibration(references=3, processed=0), unmarked=unmarked,
    )  # fmt: skip


def _copy(task: Task, model: nn.Module) -> nn.Module:
    copied = task.build("copy")
    copied.load_state_dict(model.state_dict())
    return copied


@pytest.fixture(scope="module")
def mark(lab: Lab) -> Mark:
    return embed(three(), lab)


def three() -> CSP:
    """Return the method with three references, all as they were trained."""
    return method(references=3, processed=0)


def read(model: nn.Module, secret: dict[str, Any]) -> Reading:
    return verify(three(), model, secret)


def test_marked_is_detected_and_clean_is_not(task: Task, data: Splits, lab: Lab, mark: Mark, tmp_path: Path) -> None:
    save_tree(tmp_path / "secret.safetensors", mark.secret)
    secret = load_tree(tmp_path / "secret.safetensors")
    before = torch.get_rng_state()
    reading = read(mark.model, secret)
    assert torch.equal(torch.get_rng_state(), before)
    assert reading == read(mark.model, mark.secret)
    assert reading.accepted
    assert reading.score >= 0.9
    assert reading.p_value < 1e-6
    assert reading.metrics["commitment_opens"] == 1.0
    assert reading.metrics["p_models"] == pytest.approx(1 / 3)
    assert reading.hits is not None
    assert reading.trials is not None
    assert reading.score == reading.hits / reading.trials
    null = three().null(lab, secret)
    assert null.models == ["reference-0", "reference-1"]  # the third supplied the negatives
    assert null.scores == [[read(lab.unmarked(role), secret).score] for role in null.models]
    assert 0.4 < max(max(scores) for scores in null.scores) < reading.score
    for role in ("clean", "reference-0", "reference-2"):
        assert not read(lab.unmarked(role), secret).accepted
    assert evaluate(mark.model, data.test) > evaluate(lab.unmarked("clean"), data.test) - 0.05


def test_the_model_behind_the_negatives_scores_one_half(lab: Lab, mark: Mark) -> None:
    reading = read(lab.unmarked("reference-2"), mark.secret)
    assert reading.score == pytest.approx(0.5)
    assert reading.metrics["det_rate"] == pytest.approx(1 - reading.metrics["tnr"])


def test_probes_are_the_owners_held_out_samples(data: Splits, mark: Mark) -> None:
    held_out = {image.numpy().tobytes() for image in data.owner.held_out.inputs}
    assert {image.numpy().tobytes() for image in mark.secret["probes"]} <= held_out
    assert len(mark.secret["probes"]) == len(data.owner.held_out)


def test_other_classes_shapes_and_access(mark: Mark) -> None:
    few = resolve_task("digits-lenet5", "laptop", {}).architecture("lenet5")
    few.fc3 = nn.Linear(84, 7)
    assert not read(few, mark.secret).applicable
    colour = resolve_task("cifar10-lenet5", "laptop", {}).build("x")
    assert not read(colour, mark.secret).applicable
    with pytest.raises(AccessDenied):
        three().read(Suspect(few, "labels", "csp"), mark.secret)


def test_students_inherit_the_mark_and_only_the_mark(
    task: Task, data: Splits, lab: Lab, mark: Mark, student: Any
) -> None:
    teachers = (mark.model, lab.unmarked("clean"))
    heir, stranger = (read(student(task, data, teacher), mark.secret) for teacher in teachers)
    assert heir.accepted
    assert heir.p_value < 1e-3
    assert not stranger.accepted
    assert stranger.p_value > 1e-3


@pytest.fixture
def attacker(task: Task, data: Splits, tmp_path: Path) -> Lab:
    return Lab(  # knows no unmarked model
        task=task, data=data.attacker, role="attacker", plugin="attack", seed=7, device=CPU, scratch=tmp_path,
        train_seed="attack|7",
    )  # fmt: skip


def rival_of(own: CSP) -> SoftLabelRival:
    return SoftLabelRival(own, RivalConfig())


def test_forging_succeeds_and_leaves_the_victim_alone(data: Splits, mark: Mark, attacker: Lab) -> None:
    before = [weight.clone() for weight in mark.model.parameters()]
    suspect = Suspect(mark.model, "logits", "csp", attacker.meter)
    claim = rival_of(three()).forge(suspect, attacker, Forgery())
    assert all(torch.equal(a, b) for a, b in zip(before, mark.model.parameters(), strict=True))
    assert attacker.meter.queries == len(data.attacker.train)
    reading = read(mark.model, claim)
    assert reading.metrics["det_rate"] > 0.5
    assert reading.metrics["commitment_opens"] == 1.0
    assert claim["signal"] != mark.secret["signal"]


def test_overwriting_brings_a_detector_of_its_own(task: Task, mark: Mark, attacker: Lab) -> None:
    rival = rival_of(three()).overwrite(_copy(task, mark.model), attacker, task.schedule.but(epochs=3))
    assert len(rival.secret["null_rates"]) == 1  # the attacker trains two references, no more
    assert set(rival.secret) == set(mark.secret)
    weights = [secret["detector"]["weights"]["layers.0.weight"] for secret in (mark.secret, rival.secret)]
    assert not torch.equal(*weights)
    assert read(rival.model, rival.secret).applicable
    assert not same_weights(rival.model, mark.model)


def test_the_make_of_the_detector_is_its_stream(lab: Lab) -> None:
    torch.manual_seed(1)
    first = fresh_detector(three().config, lab).detector
    torch.manual_seed(2)
    assert same_weights(first, fresh_detector(three().config, lab).detector)
    hidden = [layer for layer in first.layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in hidden] == [
        (10, 128), (128, 128), (128, 64), (64, 32), (32, 1),
    ]  # fmt: skip
