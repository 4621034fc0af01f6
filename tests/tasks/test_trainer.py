"""The training loop: exact resuming, one order of clean samples, and nothing left behind."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.tasks.data.splits import Labelled
from assay.tasks.networks.architectures import Normalize
from assay.tasks.networks.classic import MLP, MiniCNN
from assay.tasks.training.checkpoint import load_tree
from assay.tasks.training.meter import Meter
from assay.tasks.training.numerics import has_fast_bf16, settle
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import Batch, Recipe, Rolling, State, Trained, evaluate, fit, predict, training_mode

SHAPE = (3, 8, 8)
NORMALIZE = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def samples(total: int = 70, seed: int = 0) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 256, (total, *SHAPE), dtype=torch.uint8, generator=generator)
    return Labelled(inputs, (inputs[:, 0, 0, 0] // 64).long())


def network(kind: str = "cnn", dropout: float = 0.5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        norm = Normalize(*NORMALIZE)
        return MLP(SHAPE, 4, norm, (24,), dropout) if kind == "mlp" else MiniCNN(SHAPE, 4, norm)


class Noisy(Recipe):
    """Appends triggers drawn from a generator of its own and keeps a running weight: state that must survive."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.weight = torch.ones(())

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        self.extra = torch.rand(3, *SHAPE, generator=self.generator)

    def mix(self, batch: Batch, step: int) -> Batch:
        return batch.append(self.extra, torch.full((3,), step % 4))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        task = super().loss(model, batch)["task"]
        return {"task": task, "size": 1e-3 * self.weight * next(model.parameters()).square().sum()}

    def after_step(self, model: nn.Module, batch: Batch) -> None:
        self.weight = self.weight * 0.99

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.weight = state["weight"]


class Killed(Exception):
    """Stands for a killed worker."""


def kill_after(epochs: int) -> Any:
    def observer(epoch: int, model: nn.Module, means: dict[str, float]) -> None:
        if epoch == epochs:
            raise Killed

    return observer


def assert_same(one: nn.Module, other: nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


RUNS: dict[str, tuple[str, dict[str, Any], type[Recipe]]] = {
    "sgd-bn": ("cnn", {"optimizer": "sgd", "lr": 0.05, "nesterov": True, "weight_decay": 5e-4}, Recipe),
    "adam-bn": ("cnn", {"optimizer": "adam", "lr": 0.01}, Recipe),
    "adamw-drops": ("cnn", {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01, "drops": (0.5,)}, Recipe),
    "adadelta-dropout": ("mlp", {"optimizer": "adadelta", "lr": 0.1}, Recipe),
    "adam-dropout": ("mlp", {"optimizer": "adam", "lr": 0.01}, Recipe),
    "augmented": ("cnn", {"augment": "crop-flip"}, Recipe),
    "recipe-with-state": ("cnn", {"augment": "crop"}, Noisy),
    "channels-last": ("cnn", {"channels_last": True, "augment": "crop-flip"}, Noisy),
    "channels-last-sgd": ("cnn", {"channels_last": True, "optimizer": "sgd", "lr": 0.05}, Recipe),
    "bf16": ("cnn", {"precision": "bf16", "channels_last": True}, Recipe),
}


@pytest.mark.parametrize("select", ["last", "val_best"])
@pytest.mark.parametrize("run", RUNS)
def test_stop_save_load_continue_equals_one_run(run: str, select: Any, tmp_path: Path) -> None:
    kind, changes, recipe = RUNS[run]
    schedule = Schedule(epochs=4, batch_size=16).but(**changes)
    data, validation = samples(), samples(30, seed=1)

    def train(meter: Meter, **more: Any) -> Trained:
        return fit(
            network(kind), data, recipe(), schedule, seed="s", validation=validation, select=select, meter=meter, **more
        )

    whole_meter, resumed_meter = Meter(), Meter()
    whole = train(whole_meter)
    rolling = Rolling(tmp_path / "r.safetensors", every_s=0)
    with pytest.raises(Killed):
        train(Meter(), resume=rolling, observers=[kill_after(2)])
    assert load_tree(rolling.path)["epoch"] == 2
    torch.manual_seed(99)  # the new process has another global state
    resumed = train(resumed_meter, resume=rolling)
    assert_same(whole.model, resumed.model)
    assert whole.history == resumed.history
    assert whole_meter == resumed_meter
    assert whole.chosen_epoch == resumed.chosen_epoch


def test_a_finished_run_is_taken_back_without_a_step(tmp_path: Path) -> None:
    rolling = Rolling(tmp_path / "r.safetensors", every_s=3600)
    seen: list[int] = []

    def stop_at_two(epoch: int, model: nn.Module, means: dict[str, float]) -> bool:
        seen.append(epoch)
        return epoch == 1

    meters = [Meter(), Meter()]
    runs = [
        fit(
            network(),
            samples(),
            Recipe(),
            Schedule(epochs=5),
            seed="s",
            observers=[stop_at_two],
            resume=rolling,
            meter=m,
        )
        for m in meters
    ]
    assert seen == [0, 1]
    assert_same(runs[0].model, runs[1].model)
    assert runs[0].history == runs[1].history
    assert runs[0].chosen_epoch == runs[1].chosen_epoch == 2
    assert meters[0] == meters[1]


@pytest.mark.parametrize("change", ["seed", "schedule", "weights", "recipe"])
def test_the_checkpoint_of_another_run_is_not_continued(change: str, tmp_path: Path) -> None:
    rolling = Rolling(tmp_path / "r.safetensors")
    fit(network(), samples(), Recipe(), Schedule(epochs=2), seed="s", resume=rolling)
    model, schedule = network(), Schedule(epochs=2, lr=0.02 if change == "schedule" else 1e-3)
    if change == "weights":
        with torch.no_grad():
            next(model.parameters())[0].add_(1)
    recipe = Noisy if change == "recipe" else Recipe
    seed = "t" if change == "seed" else "s"
    fresh = fit(copy.deepcopy(model), samples(), recipe(), schedule, seed=seed)
    assert_same(fresh.model, fit(model, samples(), recipe(), schedule, seed=seed, resume=rolling).model)


def test_a_checkpoint_cut_short_is_trained_again(tmp_path: Path) -> None:
    rolling = Rolling(tmp_path / "r.safetensors")
    whole = fit(network(), samples(), Recipe(), Schedule(epochs=2), seed="s", resume=rolling)
    rolling.path.write_bytes(rolling.path.read_bytes()[:100])
    assert_same(whole.model, fit(network(), samples(), Recipe(), Schedule(epochs=2), seed="s", resume=rolling).model)


class Recorder(Recipe):
    """Writes down the clean part of every batch; may append samples and scramble the global generator."""

    def __init__(self, extra: int) -> None:
        self.extra = extra
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def mix(self, batch: Batch, step: int) -> Batch:
        torch.rand(self.extra)
        return batch.append(torch.rand(self.extra, *SHAPE), torch.zeros(self.extra).long()) if self.extra else batch

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.seen.append((batch.index, batch.inputs[: batch.clean], batch.labels[: batch.clean]))
        assert len(batch.inputs) == len(batch.labels) == batch.clean + self.extra
        return super().loss(model, batch)


def test_every_recipe_sees_the_same_clean_samples_in_the_same_order() -> None:
    schedule, rows = Schedule(epochs=2, batch_size=16, augment="crop-flip"), []
    for extra in (0, 1, 7):
        recorder = Recorder(extra)
        fit(network(), samples(), recorder, schedule, seed="s")
        rows.append(recorder.seen)
    assert len(rows[0]) == 2 * 5
    for other in rows[1:]:
        for one, two in zip(rows[0], other, strict=True):
            assert all(map(torch.equal, one, two))


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_the_global_generator_neither_matters_nor_moves(kind: str) -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        models.append(fit(network(kind), samples(), Recipe(), Schedule(epochs=2, augment="crop"), seed="s").model)
        assert torch.equal(before, torch.random.get_rng_state())
    assert_same(*models)
    other = fit(network(kind), samples(), Recipe(), Schedule(epochs=2, augment="crop"), seed="t").model
    assert not torch.equal(next(other.parameters()), next(models[0].parameters()))


def test_the_generator_is_put_back_after_an_error() -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(Killed):
        fit(network("mlp"), samples(), Recipe(), Schedule(epochs=2), seed="s", observers=[kill_after(0)])
    assert torch.equal(before, torch.random.get_rng_state())


class Foreign(Recipe):
    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        return [*model.parameters(), nn.Parameter(torch.ones(1))]


def test_parameters_must_be_the_models() -> None:
    with pytest.raises(ValueError, match=r"Foreign\.parameters: 1 parameters are not the model's"):
        fit(network(), samples(), Foreign(), Schedule(epochs=1), seed="s")


def test_frozen_modules_neither_move_nor_drift() -> None:
    model = network()
    assert isinstance(model, MiniCNN)
    for parameter in [*model.conv1.parameters(), *model.bn1.parameters()]:
        parameter.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trained = fit(model, samples(), Recipe(), Schedule(epochs=2, optimizer="sgd", weight_decay=0.1), seed="s").model
    for name, value in trained.state_dict().items():
        frozen = name.startswith(("conv1", "bn1"))
        assert torch.equal(value, before[name]) is frozen, name
    training_mode(model)
    assert not model.bn1.training
    assert model.bn2.training
    assert model.training


@pytest.mark.parametrize(("kind", "steps"), [("cnn", 2), ("mlp", 3)])
def test_a_last_batch_of_one_is_dropped_where_batch_norm_forbids_it(kind: str, steps: int) -> None:
    recorder, meter = Recorder(0), Meter()
    fit(network(kind), samples(33), recorder, Schedule(epochs=1, batch_size=16), seed="s", meter=meter)
    assert len(recorder.seen) == meter.steps == steps
    assert meter.forward_samples == meter.backward_samples == 32 + (steps - 2)


class Scripted(Recipe):
    """Sets the weights so that epoch e has a given accuracy on the validation set."""

    def __init__(self, biases: list[int]) -> None:
        self.biases = biases

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        self.epoch = epoch

    def step(self, state: State, batch: Batch) -> dict[str, Tensor]:
        head = state.model.fc2
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
            head.bias[self.biases[self.epoch]] = 1
        return {"task": torch.zeros(())}


def test_val_best_is_the_earliest_best_and_never_the_start() -> None:
    # The validation set has classes 0, 1, 1, 2, 2: predicting 1 or 2 is best, 0 worse, 3 always wrong.
    labels = torch.tensor([0, 1, 1, 2, 2])
    validation = Labelled(samples(5).inputs, labels)
    schedule = Schedule(epochs=5, batch_size=70)
    run = fit(
        network(), samples(), Scripted([0, 2, 1, 2, 0]), schedule, seed="s", validation=validation, select="val_best"
    )
    assert run.chosen_epoch == 2
    assert [row["val_accuracy"] for row in run.history] == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.2])
    assert int(predict(run.model, validation.inputs).argmax(1)[0]) == 2
    worse = fit(network(), samples(), Scripted([3] * 5), schedule, seed="s", validation=validation, select="val_best")
    assert worse.chosen_epoch == 1  # epoch 0, the untouched start, is no candidate
    last = fit(network(), samples(), Scripted([0, 2, 1, 2, 0]), schedule, seed="s", validation=validation)
    assert last.chosen_epoch == 5


def test_no_validation_samples_means_the_last_epoch() -> None:
    empty = samples(10).take(slice(0, 0))
    run = fit(network(), samples(), Recipe(), Schedule(epochs=2), seed="s", validation=empty, select="val_best")
    assert run.chosen_epoch == 2
    assert "val_accuracy" not in run.history[0]


def test_validating_changes_nothing_but_the_record() -> None:
    plain = fit(network("mlp"), samples(), Recipe(), Schedule(epochs=2), seed="s")
    judged = fit(network("mlp"), samples(), Recipe(), Schedule(epochs=2), seed="s", validation=samples(20))
    assert_same(plain.model, judged.model)


class Exploding(Recipe):
    def __init__(self, at: int) -> None:
        self.at = at

    def before_epoch(self, model: nn.Module, epoch: int) -> None:
        self.factor = float("inf") if epoch == self.at else 1.0

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"task": super().loss(model, batch)["task"] * self.factor}


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    rolling = Rolling(tmp_path / "r")
    for _ in range(2):  # also when taken back from the checkpoint
        run = fit(network(), samples(), Exploding(1), Schedule(epochs=5), seed="s", resume=rolling)
        assert run.diverged
        assert len(run.history) == 2
    assert not fit(network(), samples(), Exploding(9), Schedule(epochs=2), seed="s").diverged


def test_weights_that_are_not_finite_after_the_last_step_count_as_diverged() -> None:
    class LastStep(Recipe):
        def after_step(self, model: nn.Module, batch: Batch) -> None:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))

    run = fit(network(), samples(16), LastStep(), Schedule(epochs=1, batch_size=16), seed="s")
    assert all(value == value for value in run.history[0].values())
    assert run.diverged


def test_observers_see_every_epoch_and_any_may_stop() -> None:
    seen: list[tuple[str, int]] = []

    def watch(name: str, stop_at: int) -> Any:
        def observer(epoch: int, model: nn.Module, means: dict[str, float]) -> bool:
            assert {"task", "lr", "epoch"} <= means.keys()
            seen.append((name, epoch))
            return epoch == stop_at

        return observer

    run = fit(network(), samples(), Recipe(), Schedule(epochs=9), seed="s", observers=[watch("a", 1), watch("b", 7)])
    assert seen == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert run.chosen_epoch == len(run.history) == 2
    assert not run.diverged


def test_observers_are_not_billed_and_do_not_disturb() -> None:
    def measure(epoch: int, model: nn.Module, means: dict[str, float]) -> None:
        torch.rand(3)
        evaluate(model, samples(40))

    plain, watched = Meter(), Meter()
    one = fit(network("mlp"), samples(), Recipe(), Schedule(epochs=2), seed="s", meter=plain)
    two = fit(network("mlp"), samples(), Recipe(), Schedule(epochs=2), seed="s", meter=watched, observers=[measure])
    assert_same(one.model, two.model)
    assert plain == watched
    assert plain.as_dict() == {"forward_samples": 140, "backward_samples": 140, "steps": 2, "queries": 0}


def test_bf16_runs_the_forward_pass_in_bf16_and_keeps_fp32_weights() -> None:
    kinds: list[torch.dtype] = []

    class Look(Recipe):
        def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            kinds.append(model(batch.inputs).dtype)
            return super().loss(model, batch)

    run = fit(network(), samples(), Look(), Schedule(epochs=1, precision="bf16"), seed="s")
    assert set(kinds) == {torch.bfloat16}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_channels_last_is_used_inside_and_gone_afterwards() -> None:
    layouts: list[bool] = []

    class Look(Recipe):
        def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            layouts.append(batch.inputs.is_contiguous(memory_format=torch.channels_last))
            return super().loss(model, batch)

    run = fit(network(), samples(), Look(), Schedule(epochs=1, channels_last=True), seed="s")
    assert all(layouts)
    assert all(p.is_contiguous() for p in run.model.parameters())


def test_learning_rate_falls_where_the_schedule_says() -> None:
    schedule = Schedule(epochs=8, lr=1.0, drops=(0.25, 0.5), drop_factor=0.1)
    assert [schedule.lr_at(e) for e in range(8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01])
    assert schedule.last_lr == pytest.approx(0.01)
    run = fit(network(), samples(), Recipe(), Schedule(epochs=2, lr=0.5, drops=(0.5,), optimizer="sgd"), seed="s")
    assert [row["lr"] for row in run.history] == pytest.approx([0.5, 0.05])


def test_no_epochs_and_no_samples_leave_the_model_alone() -> None:
    for data, epochs in ((samples(), 0), (samples().take(slice(0, 0)), 3)):
        run = fit(network(), data, Recipe(), Schedule(epochs=epochs), seed="s")
        assert_same(run.model, network())
        assert run.history == []
        assert run.chosen_epoch == 0
        assert not run.model.training


def test_training_learns() -> None:
    data = samples(200)
    run = fit(network("mlp"), data, Recipe(), Schedule(epochs=60, batch_size=32, lr=5e-3), seed="s")
    assert evaluate(run.model, data) > 0.9 > evaluate(network("mlp"), data)
    assert run.history[-1]["task"] < 0.5 * run.history[0]["task"]


def test_predict_restores_the_mode_and_matches_one_pass() -> None:
    model = network("mlp").train()
    inputs = samples(301).inputs  # more than one chunk
    logits = predict(model, inputs)
    assert model.training
    with torch.no_grad():
        assert torch.allclose(logits, model.eval()(inputs.float() / 255), atol=1e-6)
    assert not logits.requires_grad
    assert evaluate(model, samples(0)) == 0.0


def test_meter_counts_gradients_apart() -> None:
    model, meter = network("mlp"), Meter()
    inputs = torch.rand(6, *SHAPE)
    with meter.watch(model):
        model(inputs)
        with torch.no_grad():
            model(inputs[:2])
    model(inputs)
    assert (meter.forward_samples, meter.backward_samples, meter.work) == (8, 6, 20)


def test_a_sample_is_one_however_often_it_is_used() -> None:
    data, meter = samples(), Meter()
    for schedule, part in (
        (Schedule(epochs=2, augment="crop-flip"), data.take(slice(0, 40))),
        (Schedule(), data.take(slice(0, 0))),  # nothing there
        (Schedule(epochs=0), data),  # nothing done
    ):
        fit(network("mlp"), part, Recipe(), schedule, seed="s", validation=data.take(slice(30, 55)), meter=meter)
    # 40 of training and 15 more of validation, in whatever order and layout.
    assert meter.costs() == {**meter.as_dict(), "unique_samples": 55}
    meter.touch(data.inputs.flip(0)[:20].contiguous(memory_format=torch.channels_last))
    other = Meter(queries=3)
    other.touch(data.inputs[60:])
    meter.add(other)
    assert (meter.queries, meter.unique_samples) == (3, 70)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiling_changes_rounding_alone_and_leaves_a_plain_network() -> None:
    plain, compiled = (
        # Without dropout, whose draws a compiled network makes in an order of its own.
        fit(network("mlp", 0.0), samples(), Recipe(), Schedule(epochs=2, batch_size=35, compile=flag), seed="s")
        for flag in (False, True)
    )
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    for one, other in zip(plain.history, compiled.history, strict=True):
        assert other["task"] == pytest.approx(one["task"], rel=1e-5)
    assert compiled.model._compiled_call_impl is None


def test_automatic_precision_is_that_of_the_device_and_never_part_of_a_key() -> None:
    device = torch.device("cpu")
    chosen = settle(Schedule(precision="auto"), device)
    assert chosen.precision == ("bf16" if has_fast_bf16(device) else "fp32")
    assert settle(Schedule(precision="fp32"), device).precision == "fp32"
    automatic, named = (
        fit(network(), samples(), Recipe(), Schedule(epochs=1, precision=p), seed="s").model
        for p in ("auto", chosen.precision)
    )
    assert_same(automatic, named)
