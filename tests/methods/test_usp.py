"""Unified soft-label perturbation: what it shares with the customized scheme, its reductions, and what it cannot do."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from assay.methods.csp import CSP
from assay.methods.embedding import embed, verify
from assay.methods.families.soft_label import SoftLabelMethod
from assay.methods.parts.detector import Detector, detector_loss
from assay.methods.parts.soft_label import SoftLabelRecipe, complete, divergence, fresh_detector
from assay.methods.reading import Reading
from assay.methods.usp import USP
from assay.tasks.calibration import Calibration
from assay.tasks.data.splits import Splits
from assay.tasks.errors import UnsupportedModel
from assay.tasks.lab import Lab
from assay.tasks.task import resolve_task
from assay.tasks.training.trainer import Recipe, fit, predict

CPU = torch.device("cpu")
TASK = resolve_task("digits-cnn-mini", "laptop", {})


def method(**config: Any) -> USP:
    return USP(USP.Config.model_validate({**USP.laptop, "references": 2, "processed": 0, **config}))


@pytest.fixture(scope="module")
def data() -> Splits:
    torch.set_num_threads(1)
    return TASK.data(None, 0, CPU)


@pytest.fixture(scope="module")
def models(data: Splits) -> dict[str, nn.Module]:
    def trained(name: str) -> nn.Module:
        return fit(TASK.build(name), data.owner.train, Recipe(), TASK.schedule, seed=name).model

    return {role: trained(f"train|{role}") for role in ("reference-0", "reference-1", "adversary")}


def lab(models: dict[str, nn.Module], data: Splits, folder: Path, seed: int = 0) -> Lab:
    return Lab(
        task=TASK, data=data.owner, role="owner", plugin="usp", seed=seed, device=CPU, scratch=folder,
        train_seed=f"train|{seed}", unmarked=lambda role: _copy(models[role]),
    )  # fmt: skip


def _copy(model: nn.Module) -> nn.Module:
    copied = TASK.build("copy")
    copied.load_state_dict(model.state_dict())
    return copied


def test_equal_answers_feel_no_divergence() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    marked = logits.clone().requires_grad_()
    value = divergence(marked, logits, 4.0)
    value.backward()
    assert marked.grad is not None
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert float(marked.grad.abs().max()) < 1e-6


@pytest.mark.parametrize(("kind", "moves"), [("log_softmax", False), ("logits", True)])
def test_a_common_shift_is_seen_by_raw_logits_alone(kind: Any, moves: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = Detector(4, [8], kind)
    marked, unmarked = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))

    def terms(shift: float) -> Tensor:
        moved = marked + shift
        return torch.stack([divergence(moved, unmarked, 4.0), detector_loss(detector, moved)]).detach()

    assert torch.allclose(terms(0.0), terms(3.0), atol=1e-5) is not moves


def test_ablations_leave_their_term_out(models: dict[str, nn.Module], data: Splits, tmp_path: Path) -> None:
    for config, names in (({"alpha": 0.0}, {"detection"}), ({"use_detector_loss": False}, {"divergence"})):
        recipe = method(**config).recipe(lab(models, data, tmp_path), {})
        assert isinstance(recipe, SoftLabelRecipe)
        assert set(recipe.perturbation(torch.randn(2, 10), torch.randn(2, 10))) == names


# --- training: reductions, who moves, what is polished ---------------------------------------------------------------

SHORT = TASK.but(schedule=TASK.schedule.but(epochs=1), samples=400)  # a network with batch norm


def untrained(few: Splits, folder: Path) -> Lab:
    """Return a lab whose unmarked models are initial networks; they are told apart all the same."""
    return Lab(
        task=SHORT, data=few.owner, role="owner", plugin="usp", seed=0, device=CPU, scratch=folder,
        train_seed="train|0", unmarked=lambda role: TASK.build(f"train|{role}"),
    )  # fmt: skip


def states(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.fixture(scope="module")
def few() -> Splits:
    torch.set_num_threads(1)
    return SHORT.data(None, 0, CPU)


def trained(own: SoftLabelMethod[Any], lab: Lab) -> tuple[nn.Module, SoftLabelRecipe]:
    """Train a mark of `own`, with all that its configuration says, up to the point where detectors are polished."""
    recipe = own.recipe(lab, own.draw(lab))
    assert isinstance(recipe, SoftLabelRecipe)
    return lab.fit(SHORT.build(lab.train_seed), lab.data.train, recipe, own.schedule(SHORT)).model, recipe


def test_a_reversed_divergence_pulls_the_other_way_round(few: Splits, tmp_path: Path) -> None:
    recipe = method(kl_direction="reverse", beta=0.0).recipe(untrained(few, tmp_path), {})
    assert isinstance(recipe, SoftLabelRecipe)
    marked, unmarked = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[2.0, 0.0, -1.0]])
    assert float(recipe.perturbation(marked, unmarked)["divergence"]) == pytest.approx(-0.02 * 1.088009, abs=1e-7)


def test_without_its_terms_the_marked_network_is_the_clean_one(few: Splits, tmp_path: Path) -> None:
    lab = untrained(few, tmp_path)
    clean = lab.fit(SHORT.build(lab.train_seed), few.owner.train, schedule=SHORT.schedule).model
    neutral, _ = trained(method(alpha=0.0, beta=0.0), lab)
    assert same(states(neutral), states(clean))
    assert not same(states(trained(method(), lab)[0]), states(clean))


def test_csp_without_a_signal_and_without_its_second_phase_is_usp(few: Splits, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"alpha": -0.02, "beta": 0.5, "detector_lr": 1e-3}
    lab = untrained(few, tmp_path)
    other = CSP(CSP.Config(gamma=0.0, epochs_embed=None, epochs_finetune=0, **shared))
    (own, first), (twin, second) = (trained(scheme, lab) for scheme in (method(**shared), other))
    assert same(states(own), states(twin))
    assert same(states(first.training.detector), states(second.training.detector))


def test_not_even_the_adversarys_statistics_move(few: Splits, tmp_path: Path) -> None:
    _, recipe = trained(method(), untrained(few, tmp_path))
    assert any(name.endswith("running_mean") for name in recipe.adversary.state_dict())
    assert same(states(recipe.adversary), states(TASK.build("train|adversary")))


def test_polishing_is_for_batch_norm_and_for_the_detector_alone(few: Splits, tmp_path: Path) -> None:
    lab = untrained(few, tmp_path)

    def moved(polish: int | None, network: nn.Module | None = None) -> bool:
        own = method(polish_epochs=polish, n_probe=20)
        model, recipe = trained(own, lab)
        if network is not None:
            recipe.adversary, model = copy.deepcopy(network), network
        weights, detector = states(model), states(recipe.training.detector)
        recipe.training.accuracy = 1.0  # a detector that rests is polished too
        assert recipe.finish(model) is model
        assert same(weights, states(model))
        return not same(detector, states(recipe.training.detector))

    plain = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    assert [moved(None), moved(0), moved(None, plain), moved(1, plain)] == [True, False, False, True]


def test_probes_negatives_and_null_models(few: Splits, tmp_path: Path) -> None:
    lab = untrained(few, tmp_path)
    held_out = [image.numpy().tobytes() for image in few.owner.held_out.inputs]

    def completed(**config: Any) -> dict[str, Any]:
        own = method(n_probe=20, references=3, processed=3, **config)
        secret = own.draw(lab)
        complete(secret, fresh_detector(own.config, lab).detector, own.config, lab)
        return secret

    for negatives, role in (("independent", "reference-2"), ("adversary", "adversary")):
        secret = completed(negatives=negatives)
        shown = [image.numpy().tobytes() for image in secret["probes"]]
        assert len(shown) == len(set(shown)) == 20
        assert set(shown) < set(held_out)
        assert torch.equal(secret["negatives"], predict(lab.unmarked(role), secret["probes"]))
        # reference-0 and reference-1, each fine-tuned, distilled and pruned too; not the one that shows negatives.
        assert len(secret["null_rates"]) == 8
        detector = Detector.from_tree(secret["detector"], CPU)
        hits = [int((detector(predict(lab.unmarked(f"reference-{i}"), secret["probes"])) > 0).sum()) for i in (0, 1)]
        assert secret["null_rates"][:2] == [count / 20 for count in hits]
        worst = round(20 * max(secret["null_rates"]))
        bound = 1.0 if worst == 20 else float(stats.beta.ppf(0.95, worst + 1, 20 - worst))
        assert secret["null_bound"] == pytest.approx(max(0.5, bound))


def test_a_party_without_held_out_samples_has_no_probes(few: Splits, tmp_path: Path) -> None:
    lab = untrained(few, tmp_path)
    lab.data = replace(few.owner, held_out=few.owner.held_out.take(slice(0, 0)))
    with pytest.raises(UnsupportedModel, match="held-out samples as probes"):
        complete({}, fresh_detector(method().config, lab).detector, method().config, lab)


def test_models_of_embedding_and_of_the_null_are_chosen_apart(few: Splits, tmp_path: Path) -> None:
    own = method(references=3, processed=1)
    assert own.needs(SHORT).unmarked == (
        "clean", "reference-0", "reference-1", "reference-0|fine-tune", "reference-0|distill", "reference-0|prune",
        "reference-2", "adversary",
    )  # fmt: skip
    lab = untrained(few, tmp_path)
    secret = own.draw(lab)
    complete(secret, fresh_detector(own.config, lab).detector, own.config, lab)
    for calibration, roles in (
        (Calibration(references=5, processed=0), ["reference-0", "reference-1", "reference-3", "reference-4"]),
        (Calibration(references=1, processed=0), ["reference-0"]),
    ):
        lab.calibration = calibration
        null = own.null(lab, secret)  # never the third, which supplied the negatives
        assert null.models == roles
        assert [len(scores) for scores in null.scores] == [1] * len(roles)
        assert null.trials == 2 * len(secret["probes"])


# --- verification ----------------------------------------------------------------------------------------------------


class Served(nn.Module):
    """Answers probe i, an image full of i, with row i of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.table[inputs[:, 0, 0, 0].long()]


def answers(marked: int, count: int = 100) -> Tensor:
    """Return logits (count, 3); of the first `marked` the first class is ahead of the second, of the others behind."""
    ahead = torch.where(torch.arange(count) < marked, 2.0, -2.0)
    return torch.stack([ahead, torch.zeros(count), torch.full((count,), 0.5)], 1)


def judged(secret: dict[str, Any], table: Tensor) -> Reading:
    return verify(method(), Served(table), secret)


def by_hand() -> dict[str, Any]:
    """Return a secret whose detector says "marked" where the first log-probability exceeds the second."""
    detector = Detector(3, [], "log_softmax")
    detector.load_state_dict({"layers.0.weight": torch.tensor([[1.0, -1.0, 0.0]]), "layers.0.bias": torch.zeros(1)})
    return {
        "detector": detector.tree(),
        "probes": torch.arange(100.0).view(100, 1, 1, 1),
        "negatives": answers(10),
        "null_rates": [0.1, 0.7, 0.2],
        "null_bound": 0.75,
    }


def test_a_reading_by_hand() -> None:
    secret = by_hand()
    reading = judged(secret, answers(85))
    assert (reading.metrics["det_rate"], reading.metrics["tnr"]) == (0.85, 0.9)
    assert (reading.hits, reading.trials, reading.score, reading.chance) == (175, 200, 0.875, 0.5)
    assert reading.accepted
    # The test is on the suspect's half alone: the other half is the owner's.
    assert reading.p_value == pytest.approx(float(stats.binom.sf(84, 100, 0.75)))
    assert judged(secret, answers(80)).score == 0.85
    assert not judged(secret, answers(80)).accepted  # "greater than 85 %"
    ranks = [judged(secret, answers(count)).metrics["p_models"] for count in (85, 70, 15, 5)]
    assert ranks == [1 / 4, 2 / 4, 3 / 4, 4 / 4]
    assert judged(secret, answers(0)).p_value == 1


def test_how_far_answers_are_from_an_ordinary_models_is_shown() -> None:
    secret = by_hand()
    assert judged(secret, answers(10)).metrics["kld"] == 0
    assert judged(secret, answers(10) + 5).metrics["kld"] == pytest.approx(0, abs=1e-5)
    log_p, log_q = ((answers(count).double() / 4).log_softmax(1) for count in (60, 10))
    expected = 16 * float((log_p.exp() * (log_p - log_q)).sum() / 100)
    assert judged(secret, answers(60)).metrics["kld"] == pytest.approx(expected, rel=1e-5)


def test_probabilities_give_the_same_reading_as_logits() -> None:
    secret, table = by_hand(), 3 * torch.randn(100, 3, generator=torch.Generator().manual_seed(3))
    first, second = judged(secret, table), judged(secret, table.softmax(1).clamp_min(1e-12).log())
    assert 0 < first.metrics["det_rate"] < 1
    assert (first.hits, first.p_value, first.accepted) == (second.hits, second.p_value, second.accepted)


@pytest.mark.slow
def test_students_inherit_the_mark_and_only_the_mark(
    models: dict[str, nn.Module], data: Splits, tmp_path: Path, student: Any
) -> None:
    own = method(n_probe=200)
    mark = embed(own, lab(models, data, tmp_path))
    heir, stranger = (
        verify(own, student(TASK, data, teacher), mark.secret) for teacher in (mark.model, _copy(models["reference-0"]))
    )
    assert heir.metrics["det_rate"] > stranger.metrics["det_rate"] + 0.5  # claim S0-2
    assert not stranger.accepted
    assert stranger.p_value > 1e-3


def test_tasks_it_cannot_mark_are_named() -> None:
    text = resolve_task("imdb-textcnn", "laptop", {})
    for scheme in (method(), CSP(CSP.Config())):
        assert scheme.supports(text) == f"{scheme.key} needs 3 classes or more, imdb-textcnn has 2"
        assert scheme.supports(resolve_task("trec-textcnn", "laptop", {})) is None


def test_owners_know_their_models_but_not_each_others(
    models: dict[str, nn.Module], data: Splits, tmp_path: Path
) -> None:
    own = method(n_probe=200)
    first, second = (embed(own, lab(models, data, tmp_path / str(seed), seed)) for seed in (0, 1))
    assert first.secret["key"] != second.secret["key"]
    for mark in (first, second):
        reading = verify(own, mark.model, mark.secret)
        assert reading.accepted
        assert reading.p_value < 1e-6
        assert reading.paper_threshold == 0.85
    clean = verify(own, _copy(models["reference-0"]), first.secret)
    assert not clean.accepted
    foreign = verify(own, second.model, first.secret)
    assert foreign.metrics["det_rate"] > clean.metrics["det_rate"], (
        "the paper's own table: usp cannot tell owners apart"
    )


def test_only_csp_has_a_signal() -> None:
    assert "signal" not in USP.Config.model_fields
    assert USP(USP.Config()).config.beta == 1.0
    assert CSP(CSP.Config()).config.beta == 0.1
