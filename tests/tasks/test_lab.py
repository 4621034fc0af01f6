"""The lab: streams named after the plugin, training that is counted and resumable without mixing up two trainings."""

from pathlib import Path

import torch
from torch import nn

from assay.tasks.data.splits import Labelled, Party
from assay.tasks.lab import Lab
from assay.tasks.networks.architectures import Normalize
from assay.tasks.networks.classic import MLP
from assay.tasks.streams import stream
from assay.tasks.task import Task
from assay.tasks.training.recipe import Batch, Recipe, Terms, Wrapped
from assay.tasks.training.schedule import Schedule
from assay.tasks.training.trainer import fit

DATA = Labelled(torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8), torch.arange(20) % 2)


def lab(scratch: Path, plugin: str = "adi") -> Lab:
    return Lab(
        task=Task(dataset="digits", model="cnn-mini"), data=Party(DATA, DATA), role="owner", plugin=plugin, seed=0,
        device=torch.device("cpu"), scratch=scratch, train_seed="clean|0", checkpoint_s=0.0,
    )  # fmt: skip


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP((1, 4, 4), 2, Normalize((0.5,), (0.5,)), (8,), 0.5)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_streams_carry_the_plugins_name(tmp_path: Path) -> None:
    drawn = torch.rand(3, generator=lab(tmp_path).stream("secret"))
    assert torch.equal(drawn, torch.rand(3, generator=stream("adi", "secret", 0)))


def test_training_is_counted_and_recorded(tmp_path: Path) -> None:
    own = lab(tmp_path)
    own.fit(network(), DATA, schedule=Schedule(epochs=2, batch_size=10))
    assert own.meter.forward_samples == 40
    assert own.meter.steps == 4
    assert [(row["curve"], row["step"]) for row in own.curves] == [("train", 1), ("train", 2)]
    assert "task" in own.curves[0]
    assert "epoch" not in own.curves[0]


def test_two_trainings_of_one_name_are_two_trainings(tmp_path: Path) -> None:
    class Heavy(Recipe):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def loss(self, model: nn.Module, batch: Batch) -> Terms:
            return {"task": self.factor * super().loss(model, batch)["task"]}

    schedule = Schedule(epochs=2, optimizer="sgd", lr=0.1)
    plain = [fit(network(), DATA, Heavy(f), schedule, seed="clean|0").model for f in (1.0, 3.0)]
    for _ in range(2):  # the second time as a stage that starts again over its scratch folder
        own = lab(tmp_path)
        for factor, expected in zip((1.0, 3.0), plain, strict=True):
            assert torch.equal(weights(own.fit(network(), DATA, Heavy(factor), schedule).model), weights(expected))
        assert own.meter.steps == 4


def test_other_plugins_trainings_are_apart(tmp_path: Path) -> None:
    for plugin in ("adi", "adi|key-0", "adi|key-1"):
        lab(tmp_path, plugin).fit(network(), DATA, schedule=Schedule(epochs=1))
    assert len(list(tmp_path.iterdir())) == 3


def test_names_open_streams_of_their_own(tmp_path: Path) -> None:
    own = lab(tmp_path)
    runs = [own.fit(network(), DATA, schedule=Schedule(epochs=1), name=name).model for name in ("train", "detector")]
    assert not torch.equal(weights(runs[0]), weights(runs[1]))
    shared = own.fit(network(), DATA, schedule=Schedule(epochs=1), name="student", seed="clean|0").model
    assert torch.equal(weights(shared), weights(runs[0]))


def test_a_run_has_its_own_schedule_and_shares_the_rest(tmp_path: Path) -> None:
    own = lab(tmp_path)
    other = own.under(Schedule(epochs=3))
    assert (own.schedule, other.schedule.epochs) == (own.task.schedule, 3)
    other.fit(network(), DATA)
    assert len(own.curves) == 3
    assert own.meter is other.meter


def test_a_keys_lab_has_streams_and_scratch_of_its_own_and_keeps_no_curve(tmp_path: Path) -> None:
    own = lab(tmp_path)
    keys = [own.for_key(index) for index in (0, 1)]
    assert [key.plugin for key in keys] == ["adi|key-0", "adi|key-1"]
    assert torch.equal(
        torch.rand(2, generator=keys[0].stream("x")), torch.rand(2, generator=stream("adi|key-0", "x", 0))
    )
    for key in keys:
        key.fit(network(), DATA, schedule=Schedule(epochs=1))
    assert own.curves == []
    assert own.meter.steps == 2, "what drawing keys costs is counted"


def test_an_attacker_varies_and_watches_the_main_run_alone(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Noted(Wrapped):
        def before_epoch(self, model: nn.Module, epoch: int) -> None:
            seen.append(("varied", epoch))

    own = lab(tmp_path)
    own.vary, own.watch = Noted, (lambda epoch, model, means: seen.append(("watched", epoch)),)
    own.fit(network(), DATA, schedule=Schedule(epochs=1), name="detector")
    assert seen == []
    own.fit(network(), DATA, schedule=Schedule(epochs=2))
    assert seen == [("varied", 0), ("watched", 0), ("varied", 1), ("watched", 1)]
