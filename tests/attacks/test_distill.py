"""Distillation: the loss of its paper, the teacher's view, and what a query costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attack_range import Range, SignMark, TriggerMark
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from assay.attacks.distill import Config, Distill, Distillation, distillation_loss
from assay.methods.base import MethodConfig
from assay.methods.embedding import verify
from assay.tasks.errors import AccessDenied
from assay.tasks.streams import global_stream
from assay.tasks.training.meter import Meter
from assay.tasks.training.trainer import evaluate, predict


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(6, 10, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(0.5, 20))
def test_no_loss_and_no_gradient_where_student_and_teacher_agree(seed: int, temperature: float) -> None:
    teacher = logits(seed)
    student = (teacher + 5).requires_grad_()  # equal up to a constant, as log-probabilities are
    loss = distillation_loss(student, teacher, temperature)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-4)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-4


def test_loss_against_the_formula() -> None:
    student, teacher, T = logits(1).double(), logits(2).double(), 4.0
    p, q = (teacher / T).softmax(1), (student / T).softmax(1)
    expected = T**2 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation_loss(student, teacher, T)) == pytest.approx(float(expected), rel=1e-12)
    assert float(distillation_loss(student, teacher, T, "wrt")) == pytest.approx(float(expected) / 10, rel=1e-12)
    assert float(distillation_loss(student, teacher, T, squared=False)) == pytest.approx(
        float(expected) / 16, rel=1e-12
    )


def test_gradient_size_hardly_depends_on_the_temperature() -> None:
    norms = []
    for temperature in (4.0, 8.0):
        student = logits(1, 0.3).requires_grad_()
        distillation_loss(student, logits(2, 0.3), temperature).backward()
        assert student.grad is not None
        norms.append(float(student.grad.norm()))
    assert norms[0] / norms[1] == pytest.approx(1, abs=0.2)


def test_alpha_zero_is_plain_training(field: Range) -> None:
    victim = field.victim("logits")
    student = field.run(Distill, victim, alpha=0.0, epochs=2).surrogate
    lab = field.lab("distill")
    with global_stream("distill", "init", 7):
        plain = field.task.architecture("cnn-mini")
    data = field.splits.attacker
    schedule = field.task.schedule.but(epochs=2)
    trained = lab.fit(plain, data.train, None, schedule, validation=data.held_out, select="val_best")
    assert field.digest(trained.model) == field.digest(student)
    assert victim.meter.queries == 0


@pytest.mark.parametrize(("view", "times"), [("augmented", 3), ("fixed", 1)])
def test_queries(field: Range, view: Any, times: int) -> None:
    victim = field.victim("logits")
    field.run(Distill, victim, epochs=3, teacher_view=view)
    assert victim.meter.queries == times * len(field.splits.attacker.train)


def test_both_views_agree_without_augmentation(field: Range) -> None:
    students = [field.run(Distill, epochs=2, teacher_view=view).surrogate for view in ("augmented", "fixed")]
    assert torch.allclose(students[0].fc1.weight, students[1].fc1.weight, atol=1e-4)


def test_the_student_learns_the_victims_answers(field: Range) -> None:
    student = field.run(Distill, alpha=1.0, epochs=30).surrogate
    inputs = field.splits.test.model_inputs()
    with torch.no_grad():
        agree = (student(inputs).argmax(1) == field.model(inputs).argmax(1)).float().mean()
    assert float(agree) > 0.6


def test_another_architecture(field: Range) -> None:
    outcome = field.run(Distill, student="lenet5", epochs=1)
    assert outcome.structure == "other_arch"
    assert type(outcome.surrogate).__name__ == "LeNet5"
    assert field.run(Distill, epochs=0).structure == "same"


def test_the_recipe_from_scratch_spans_the_victims_epochs(field: Range) -> None:
    schedule = Distill(Config(schedule="scratch"))._schedule(field.task)
    assert (schedule.epochs, schedule.lr, schedule.batch_size) == (5, 0.1, 64)
    longer = Distill(Config(epochs=6, schedule="scratch"))._schedule(field.task)
    assert [longer.lr_at(epoch) for epoch in range(6)] == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.0008])


def test_an_interrupted_run_reports_the_same_queries(field: Range) -> None:
    first = Distillation(field.victim("logits"), Config(), None)
    first.victim.logits(field.splits.attacker.train.inputs[:30])
    resumed = field.victim("logits")
    resumed.meter.add(Meter(queries=5))  # asked again before training, as in the first run
    second = Distillation(resumed, Config(), None)
    second.load_state_dict(first.state_dict())
    assert resumed.meter.queries == 35
    assert second.state_dict() == first.state_dict()


def test_soft_answers_alone_are_seen(field: Range) -> None:
    victim = field.victim(Distill.access)
    with pytest.raises(AccessDenied):
        victim.module()


def test_unknown_student_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match="did you mean 'lenet5'"):
        Config(student="lenet")


def test_a_student_for_other_inputs_is_refused(field: Range, monkeypatch: pytest.MonkeyPatch) -> None:
    from assay.attacks.parts import students

    monkeypatch.setattr(students, "kind_of", lambda key: "text" if key == "lenet5" else "image")
    method = SignMark(MethodConfig())
    assert "takes text inputs" in str(Distill(Config(student="lenet5")).supports(field.task, method))
    assert Distill(Config(student="cnn-mini")).supports(field.task, method) is None


def test_nothing_to_train_on_is_said(field: Range) -> None:
    assert "no data" in str(Distill(Config(split="none")).supports(field.task, SignMark(MethodConfig())))


def test_loss_terms_follow_their_weights(field: Range) -> None:
    from assay.tasks.training.recipe import Batch

    part = field.splits.attacker.train.take(slice(0, 40))
    batch = Batch(part.model_inputs(), part.labels, torch.arange(40), 40)
    student = field.task.build("student")
    terms = Distillation(field.victim("logits"), Config(alpha=0.75), None).loss(student, batch)
    hard = F.cross_entropy(student(batch.inputs), batch.labels)
    soft = distillation_loss(student(batch.inputs), field.model(batch.inputs), 4.0)
    assert float(terms["task"].detach()) == pytest.approx(0.25 * float(hard.detach()), rel=1e-4)
    assert float(terms["soft"].detach()) == pytest.approx(0.75 * float(soft.detach()), rel=1e-4)


class Shifted(nn.Module):
    """A network whose every answer carries a signal: the same small shift of the logits."""

    def __init__(self, network: nn.Module, shift: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shift", shift)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        answered: torch.Tensor = self.network(inputs) + self.shift
        return answered


def test_a_student_keeps_a_signal_in_the_answers(field: Range) -> None:
    signal = torch.tensor([1.0, -1.0] * 5)
    settings: dict[str, Any] = {"alpha": 1.0, "epochs": 12}
    plain = field.run(Distill, **settings).surrogate
    taught = field.run(Distill, field.victim("logits", model=Shifted(field.model, signal)), **settings).surrogate
    inputs = field.splits.test.inputs
    difference = (predict(taught, inputs) - predict(plain, inputs)).mean(0)
    assert float((difference - difference.mean()).dot(signal)) / 10 > 0.4


def test_a_student_loses_a_mark_in_images_that_it_never_saw(field: Range) -> None:
    method = TriggerMark(MethodConfig())
    model, secret = field.marked(method, epochs=8, lr=5e-3)
    assert verify(method, model, secret).score > 0.9
    student = field.run(Distill, field.victim("logits", method, model), epochs=12).surrogate
    assert evaluate(student, field.splits.test) > 0.8
    assert verify(method, student, secret).score < 0.4
