"""A method whose mark is in its answers alone: the bare weights know nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inline_sweep import executed

from assay.methods.base import Method
from assay.orchestrator.checks.contracts import run_checks
from assay.orchestrator.checks.workbench import Workbench
from assay.orchestrator.planning.registry import Registry, load_plugin, plugin_classes
from assay.results.parquet import read_rows

SERVED = '''"""Whisper: answers of the served model are changed on secret inputs; the weights carry nothing.

Paper: none; a method of these tests, close to DAWN.
Access: labels.
Differs from the paper: not applicable.
"""

import torch
from pydantic import Field
from torch import nn

from assay.methods.base import Method, MethodConfig
from assay.methods.parts.statistics import binomial_tail
from assay.methods.reading import Reading


class Config(MethodConfig):
    keys: int = Field(30, ge=10, le=200)  # secret inputs


class _Whispering(nn.Module):
    def __init__(self, model, secret):
        super().__init__()
        self.model = model
        self.register_buffer("inputs", secret["inputs"].flatten(1))
        self.register_buffer("labels", secret["labels"])

    def forward(self, x):
        logits = self.model(x)
        near = torch.cdist(x.flatten(1).double(), self.inputs.to(x.device).double()) < 1e-3
        hit, which = near.any(1), near.float().argmax(1)
        wanted = nn.functional.one_hot(self.labels.to(x.device)[which], logits.shape[1]).to(logits)
        return torch.where(hit[:, None], 100 * wanted, logits)


class Whisper(Method):
    key, title, paper = "whisper", "Changed answers", "these tests"
    access, family, Config = "labels", "triggers", Config

    def supports(self, task):
        return None if task.info.kind == "image" else "its secret inputs are images"

    def draw(self, lab):
        draws = lab.stream("secret")
        inputs = torch.rand(self.config.keys, *lab.task.shape, generator=draws)
        labels = torch.randint(0, lab.task.classes, (self.config.keys,), generator=draws)
        return {"inputs": inputs, "labels": labels, "classes": lab.task.classes}

    def served(self, model, secret):
        return _Whispering(model, secret)

    def read(self, suspect, secret):
        hits = int((suspect.labels(secret["inputs"]).cpu() == secret["labels"]).sum())
        count, chance = len(secret["labels"]), 1 / secret["classes"]
        p_value = binomial_tail(hits, count, chance)
        return Reading(hits / count, chance, 0.9, p_value, hits / count >= 0.9, "T1", hits, count)
'''
TEXT = '''"""Echo: secret sentences under secret classes, learned beside the owner's.

Paper: none; a method of these tests.
Access: labels.
Differs from the paper: not applicable.
"""

import torch
from pydantic import Field

from assay.methods.base import Method, MethodConfig
from assay.methods.parts.statistics import binomial_tail
from assay.methods.reading import Reading
from assay.tasks.errors import UnsupportedModel
from assay.tasks.training.recipe import Recipe


class Config(MethodConfig):
    keys: int = Field(20, ge=10, le=200)  # secret sentences


class _Append(Recipe):
    def __init__(self, secret, device):
        super().__init__()
        self.inputs, self.labels = secret["inputs"].to(device), secret["labels"].to(device)

    def mix(self, batch, step):
        return batch.append(self.inputs, self.labels)


class Echo(Method):
    key, title, paper = "echo", "Secret sentences", "these tests"
    access, family, Config = "labels", "triggers", Config
    gate = 0.8

    def supports(self, task):
        return None if task.info.kind == "text" else "its secret inputs are sentences"

    def draw(self, lab):
        draws, words = lab.stream("secret"), lab.task.info.vocabulary
        inputs = torch.randint(2, words, (self.config.keys, *lab.task.shape), generator=draws)
        labels = torch.randint(0, lab.task.classes, (self.config.keys,), generator=draws)
        return {"inputs": inputs, "labels": labels, "classes": lab.task.classes}

    def recipe(self, lab, secret):
        return _Append(secret, lab.device)

    def read(self, suspect, secret):
        hits = int((suspect.labels(secret["inputs"]).cpu() == secret["labels"]).sum())
        count, chance = len(secret["labels"]), 1 / secret["classes"]
        p_value = binomial_tail(hits, count, chance)
        return Reading(hits / count, chance, 0.8, p_value, hits / count >= 0.8, "T1", hits, count)
'''
GRID: dict[str, Any] = {
    "name": "served",
    "tasks": ["digits-cnn-mini"],
    "methods": ["clean", "whisper"],
    "attacks": ["none", {"distill": {"epochs": 1}}, "prune", "forge", {"cross-verify": {"owners": 2}}],
    "profile": "smoke",
    "train": {"samples": 500, "epochs": 3, "test_samples": 100},
    "calibration": {"references": 2, "keys": 20},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("served")
    plugin = folder / "whisper.py"
    plugin.write_text(SERVED, "utf-8")
    out, _, report = executed(GRID, folder, [plugin])
    assert (report.failed, report.blocked, report.not_applicable) == (0, 0, 2)
    found = read_rows(out)
    return found[found.status == "ok"].set_index(["method", "attack"])


def test_the_mark_is_read_from_the_answers_and_not_from_the_weights(rows: Any) -> None:
    row = rows.loc["whisper", "none"]
    assert row.score_before == 1.0
    assert row.detected_before
    assert row.main_before == rows.loc["clean", "none"].main_before, "only secret inputs are answered otherwise"
    assert row.score_after < 0.5, "who takes the weights takes no mark"
    assert (row.detected_after, row.outcome) == (False, "removed")
    assert rows.loc["whisper", "prune"].outcome in ("removed", "useless")


def test_a_verifier_is_served_what_outsiders_are(rows: Any) -> None:
    metrics = rows.loc["whisper", "cross-verify"].metrics
    assert (metrics["identified"], metrics["traced"]) == (1.0, 1.0)
    assert max(metrics["misidentified"], metrics["unmarked"]) < 0.5
    assert rows.loc["whisper", "cross-verify"].detected_after


def test_forging_is_told_by_what_is_left_in_use(rows: Any) -> None:
    row = rows.loc["whisper", "forge"]
    assert row.detected_after, "the served victim stays in use"
    assert row.rival_verified, "labels of fresh triggers are read off the served model"


def kept(file: Path, text: str) -> dict[str, str]:
    """Run all checks of the one method in a plugin file; return the status of each, none of them broken."""
    file.write_text(text, "utf-8")
    (cls,) = plugin_classes(load_plugin(file), Method, "test")
    with Workbench(Registry([file])) as bench:
        results = list(run_checks(cls, bench))
    assert [f"{result.name}: {result.reason}" for result in results if not result.ok] == []
    return {result.name: result.status for result in results}


@pytest.mark.slow
def test_a_method_that_changes_answers_keeps_every_promise(tmp_path: Path) -> None:
    found = kept(tmp_path / "whisper.py", SERVED)
    assert found["marked-model-is-detected"] == found["wrong-secret-is-not-detected"] == "kept"


@pytest.mark.slow
def test_a_method_for_texts_alone_keeps_every_promise(tmp_path: Path) -> None:
    found = kept(tmp_path / "echo.py", TEXT)
    assert found["marked-model-is-detected"] == found["foreign-models-are-judged"] == "kept"
