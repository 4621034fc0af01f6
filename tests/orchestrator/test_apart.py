"""Results of other code or other settings are other cells: they stand beside the older ones, never in one mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from inline_sweep import Remembering, executed

from assay.attacks.prune import Prune
from assay.methods.uchida import Uchida
from assay.orchestrator.command.cli import main
from assay.orchestrator.planning.plan import Stage
from assay.results.parquet import read_rows
from assay.results.tables import matrix

EXAMPLE = Path(__file__).parents[2] / "examples" / "sign_mark.py"
GRID: dict[str, Any] = {
    "name": "apart",
    "tasks": ["digits-cnn-mini"],
    "methods": [{"uchida": {"allow_weak": True, "bits": 16}}],
    "attacks": ["none", "prune"],
    "profile": "smoke",
    "train": {"samples": 300, "epochs": 2, "test_samples": 100},
    "calibration": {"references": 1, "keys": 10},
}
SHAKE = '''"""Shake: add noise to every weight."""

import torch

from assay.attacks.base import Attack, Outcome


class Shake(Attack):
    key, title, source, access, cheap = "shake", "Weight noise", "these tests", "weights", True

    def run(self, victim, lab):
        model, draws = victim.module(), lab.stream("noise")
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=draws)
        return Outcome(model)
'''


def status(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["status", str(out), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def is_whole(out: Path, cells: int, stages: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Insist that `status` says n of n, whatever else the folder holds."""
    said = status(out, capsys)
    assert (said["cells"], said["committed_stages"], said["stages"]) == (cells, stages, stages)
    assert main(["status", str(out)]) == 0
    assert f"{stages} of {stages} stages committed, {cells} cells" in capsys.readouterr().out


def told_apart(rows: pd.DataFrame, lines: int, columns: int) -> None:
    """Insist that the table has a place for each kind of cell, each of one victim."""
    table = matrix(rows)
    assert (len(table.rows), len(table.columns) - table.lead) == (lines, columns)
    assert "n=" not in "".join(text for line in table.rows for text in line)
    assert sorted(key for line in table.keys for keys in line for key in keys) == sorted(rows.cell_key)
    assert all(len(keys) <= 1 for line in table.keys for keys in line)


def test_a_raised_version_of_a_method_is_another_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _, _ = executed(GRID, tmp_path)
    monkeypatch.setattr(Uchida, "version", Uchida.version + 1)
    listener = Remembering()
    _, plan, _ = executed(GRID, tmp_path, listener=listener)
    assert listener.labels == ["attack none | uchida", "attack prune | uchida", "calibrate uchida", "embed uchida"]
    rows = read_rows(out)
    assert sorted(rows.method_version) == sorted(2 * [Uchida.version - 1, Uchida.version])
    told_apart(rows, lines=2, columns=2)
    is_whole(out, 2, len(plan.stages), capsys)


def test_a_raised_version_of_an_attack_is_another_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, _ = executed(GRID, tmp_path)
    monkeypatch.setattr(Prune, "version", Prune.version + 1)
    listener = Remembering()
    executed(GRID, tmp_path, listener=listener)
    assert listener.labels == ["attack prune | uchida"]
    told_apart(read_rows(out), lines=1, columns=3)


def test_an_edited_plugin_file_of_the_same_version_is_another_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin, grid = tmp_path / "sign_mark.py", {**GRID, "methods": [{"sign-mark": {"allow_weak": True}}]}
    text = EXAMPLE.read_text("utf-8")
    plugin.write_text(text, "utf-8")
    out, _, _ = executed(grid, tmp_path, [plugin])
    plugin.write_text(text.replace("margin: float = Field(0.02", "margin: float = Field(0.02  "), "utf-8")
    listener = Remembering()
    _, plan, _ = executed(grid, tmp_path, [plugin], listener=listener)
    assert "embed sign-mark" in listener.labels
    assert not [label for label in listener.labels if label.startswith("clean")]
    rows = read_rows(out)
    assert rows.method_source.nunique() == 2
    assert rows.method_version.nunique() == rows.method_config.nunique() == 1
    told_apart(rows, lines=2, columns=2)
    is_whole(out, 2, len(plan.stages), capsys)


def test_an_edited_attack_file_is_another_attack(tmp_path: Path) -> None:
    plugin, grid = tmp_path / "shake.py", {**GRID, "attacks": ["none", "shake"]}
    plugin.write_text(SHAKE, "utf-8")
    out, _, _ = executed(grid, tmp_path, [plugin])
    plugin.write_text(SHAKE.replace("0.01 *", "0.5 *"), "utf-8")
    listener = Remembering()
    executed(grid, tmp_path, [plugin], listener=listener)
    assert listener.labels == ["attack shake | uchida"]
    rows = read_rows(out)
    shaken = rows[rows.attack == "shake"]
    assert shaken.attack_source.nunique() == shaken.main_after.nunique() == 2
    told_apart(rows, lines=1, columns=3)


def test_a_file_edited_after_the_sweep_began_gives_no_result(tmp_path: Path) -> None:
    plugin = tmp_path / "shake.py"
    plugin.write_text(SHAKE, "utf-8")

    class Editing(Remembering):
        def on_done(self, stage: Stage, status: str) -> None:
            super().on_done(stage, status)
            plugin.write_text(SHAKE.replace("0.01 *", "0.5 *"), "utf-8")

    grid = {**GRID, "attacks": ["shake"]}
    out, _, report = executed(grid, tmp_path, [plugin], listener=Editing())
    assert report.failed == 1
    (row,) = read_rows(out).to_dict("records")
    assert row["reason"] == f"{plugin} was edited after the sweep began; run the same command again"
    assert executed(grid, tmp_path, [plugin])[2].failed == 0


def test_other_settings_of_training_into_the_same_folder_are_another_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _, _ = executed(GRID, tmp_path)
    _, plan, report = executed(GRID, tmp_path, settings=["train.epochs=1"])
    assert report.executed == len(plan.stages), "nothing of the longer training is the shorter one's"
    rows = read_rows(out)
    assert sorted(json.loads(text)["schedule"]["epochs"] for text in rows.task_config) == [1, 1, 2, 2]
    table = matrix(rows)
    assert [line[0] for line in table.rows] == [
        "digits-cnn-mini schedule.epochs=1",
        "digits-cnn-mini schedule.epochs=2",
    ]
    told_apart(rows, lines=2, columns=2)
    is_whole(out, 2, len(plan.stages), capsys)
