"""The papers' schedules: complete, as printed, and how an attack's epochs follow a shorter victim's."""

from __future__ import annotations

import csv
import json
from importlib import resources

import pytest

from assay.tasks.errors import BadInput
from assay.tasks.task import named_tasks, resolve_task
from assay.tasks.training.schedule import Schedule, parse
from assay.tasks.training.schedules import PAPERS, scaled_epochs, settings, victim_epochs


def printed(paper: str) -> set[str]:
    """Return the networks that a paper prints numbers for, `<dataset>-<model>`, students among them."""
    found = set()
    with (resources.files("assay.results.published") / f"{paper}.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.add(f"{row['dataset']}-{row['model']}")
            if student := json.loads(row["attack_params"]).get("student"):
                found.add(f"{row['dataset']}-{student}")
    return found


@pytest.mark.parametrize("paper", PAPERS)
def test_every_printed_network_has_a_schedule(paper: str) -> None:
    missing = printed(paper) - set(PAPERS[paper])
    assert not missing
    # What is listed beyond: the student of the transfer from GTSRB to LISA, whose numbers stand under GTSRB.
    assert set(PAPERS[paper]) - printed(paper) == ({"lisa-conv6-fc3"} if paper == "null_embedding" else set())


def schedule(dataset: str, model: str, profile: str = "paper", paper: str | None = None) -> Schedule:
    return parse(Schedule, settings(dataset, model, profile, paper))


def test_rates_are_those_that_the_papers_print() -> None:
    def rates(one: Schedule, *epochs: int) -> list[float]:
        return [one.lr_at(epoch - 1) for epoch in epochs]  # the papers count from 1

    greedy = schedule("caltech101", "alexnet")
    assert greedy.epochs == 200
    assert rates(greedy, 1, 100, 101, 150, 151, 200) == pytest.approx([0.01, 0.01, 0.001, 0.001, 1e-4, 1e-4])
    usp = schedule("cifar10", "resnet18", paper="usp_csp")
    assert (usp.epochs, usp.batch_size) == (160, 512)
    assert rates(usp, 80, 81, 120, 121) == pytest.approx([0.1, 0.01, 0.01, 0.001])
    hundred = schedule("cifar100", "resnet18", paper="usp_csp")
    assert rates(hundred, 60, 61, 120, 121, 150) == pytest.approx([0.1, 0.02, 0.02, 0.004, 0.004])
    ingrain = schedule("cifar10", "cnn-4conv2fc")
    assert rates(ingrain, 10, 11, 500) == pytest.approx([0.01, 0.0095, 0.01 * 0.95**49])
    traffic = schedule("gtsrb", "conv6-fc3")
    # Keras: 2e-5 a step; 119 epochs of 307 steps lie before the last one.
    assert traffic.last_lr == pytest.approx(0.02 / (1 + 2e-5 * 119 * 307))


def test_second_phases_drop_where_the_paper_says() -> None:
    """CSP trains 150 + 120 epochs on CIFAR-100 and Tiny ImageNet; shares count the first phase."""
    for dataset, last in (("cifar100", 150), ("tiny_imagenet", 160)):
        one = schedule(dataset, "resnet18", paper="usp_csp")
        assert [round(share * one.epochs) for share in one.drops] == [60, 120, last]


def test_a_network_of_several_papers_takes_the_schedule_asked_for() -> None:
    epochs = {paper: schedule("cifar10", "resnet18", paper=paper).epochs for paper in PAPERS if paper != "ingrain"
              and paper != "null_embedding"}  # fmt: skip
    assert epochs == {"usp_csp": 160, "function_coupled": 40, "greedy_residuals": 200}
    assert schedule("cifar10", "resnet18") == schedule("cifar10", "resnet18", paper="usp_csp")
    chosen = resolve_task("cifar10-resnet18", "paper", {"paper": "greedy_residuals", "epochs": 3})
    assert (chosen.schedule.epochs, chosen.schedule.batch_size) == (3, 64)
    # It says whose paper to follow, and changes nothing where no paper is followed.
    plain = resolve_task("cifar10-resnet18", "laptop", {})
    assert resolve_task("cifar10-resnet18", "laptop", {"paper": "greedy_residuals"}) == plain


@pytest.mark.parametrize(
    ("paper", "words"),
    [
        ("usp_cps", ["unknown paper 'usp_cps'", "did you mean 'usp_csp'"]),
        ("ingrain", ["ingrain trains no cifar10-resnet18", "cifar10-cnn-4conv2fc"]),
        (3, ["unknown paper '3'"]),
    ],
)
@pytest.mark.parametrize("profile", ["paper", "laptop"])
def test_a_wrong_paper_is_one_line(paper: object, words: list[str], profile: str) -> None:
    with pytest.raises(BadInput) as error:
        resolve_task("cifar10-resnet18", profile, {"paper": paper}, "grid.yaml: tasks")
    text = str(error.value)
    assert text.startswith("grid.yaml: tasks: ")
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize("profile", ["paper", "laptop", "smoke"])
def test_nothing_is_mirrored_that_a_mirror_changes(profile: str) -> None:
    for key in named_tasks():
        task = resolve_task(key, profile, {})
        if task.info.kind == "text":
            assert task.schedule.augment == "none", key
        elif task.dataset in ("digits", "gtsrb", "lisa", "mnist"):
            assert task.schedule.augment != "crop-flip", key


def test_attacks_keep_their_share_of_the_training() -> None:
    # The examples of the rule's own definition and its edges.
    assert scaled_epochs(100, 160, 20) == 12
    assert scaled_epochs(25, 500, 60) == 3
    assert scaled_epochs(10, 40, 8) == 3
    assert scaled_epochs(160, 160, 12) == 12
    assert scaled_epochs(1, 200, 199) == 3
    for task_epochs in (160, 400):
        assert scaled_epochs(100, 160, task_epochs) == 100
        assert scaled_epochs(1, 160, task_epochs) == 1


def test_victims_epochs_come_from_the_nearest_network_of_the_same_paper() -> None:
    assert victim_epochs("usp_csp", "cifar10", "resnet18") == 160
    assert victim_epochs("usp_csp", "cifar100", "resnet8") == 150
    assert victim_epochs("null_embedding", "gtsrb", "lenet5") == 120
    assert victim_epochs("null_embedding", "digits", "lenet5") == 300
    assert victim_epochs("ingrain", "mnist", "convnet-p") == 500
    assert victim_epochs("wrt", "mnist", "lenet5") == 60
    with pytest.raises(BadInput, match="unknown paper 'sok'"):
        victim_epochs("sok", "mnist", "lenet5")


def test_claims_settings_on_a_laptop() -> None:
    small, long = schedule("mnist", "convnet-p", "laptop"), schedule("mnist", "mlp-400x2", "laptop")
    assert (small.optimizer, small.lr, small.epochs) == ("adam", 1e-3, 8)
    assert (long.optimizer, long.lr, long.epochs) == ("adam", 1e-3, 60)
    assert schedule("cifar10", "convnet-p", "laptop").epochs == 12
