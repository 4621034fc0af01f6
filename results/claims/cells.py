"""Finding the cells that a claim is about: finished rows of one method and attack, by the parameters that it states."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from assay.results import configs
from assay.results.parquet import plain_curves, read_records
from assay.results.schema import CURVES_FILE

Row = Mapping[str, Any]

# Parameters that decide what is refused or measured besides, never what comes out.
_IMMATERIAL: Final = frozenset({"allow_weak", "beside_unmarked"})


class Missing(Exception):
    """What a claim needs is not in the sweep; the text says what."""


@dataclass(frozen=True)
class Choice:
    """Which cells: a method and maybe an attack, with the parameters that matter; others may have any one value.

    Attributes:
        method: key of the method.
        config: its parameters.
        attack: key of the attack; None: the marked victims themselves, whatever was done to them afterwards.
        attack_config: its parameters.
        label: how the cells are called.
    """

    method: str
    config: Mapping[str, Any] = field(default_factory=dict)
    attack: str | None = None
    attack_config: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def fits(self, row: Row) -> bool:
        """Return whether the parameters of a row of this method and attack agree with the stated ones."""
        if not _agree(row["method_config"], self.config):
            return False
        return self.attack is None or _agree(row["attack_config"], self.attack_config)


def _agree(text: str, stated: Mapping[str, Any]) -> bool:
    config = configs.flat(text)
    return all(name in config and configs.same(config[name], value) for name, value in stated.items())


@dataclass(frozen=True)
class Found:
    """The rows of a choice by victim seed, several where an attack was repeated; and remarks on what is not there."""

    by_victim: Mapping[int, Sequence[Row]]
    remarks: tuple[str, ...] = ()


class Cells:
    """Rows and curves of one or several sweeps, indexed."""

    def __init__(self, rows: Iterable[Row], curves: Iterable[Row] = ()) -> None:
        """Index rows as `parquet.read_records` gives them, and curves as `parquet.plain_curves` does."""
        self._curves = curves
        once = {row["cell_key"]: row for row in rows}
        self._rows: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in sorted(once.values(), key=lambda row: str(row["cell_key"])):
            self._rows[row["task"], row["method"]].append(row)
        self.tasks = frozenset(task for task, _ in self._rows)

    @staticmethod
    def read(outs: Iterable[Path]) -> Cells:
        """Return the cells of sweeps' folders.

        Raises:
            ResultsError: a folder holds no rows, or damaged ones.
        """
        folders = list(outs)
        rows = [row for out in folders for row in read_records(out)]
        return Cells(rows, [point for out in folders if (out / CURVES_FILE).is_file() for point in plain_curves(out)])

    def find(self, task: str, choice: Choice) -> Found:
        """Return the finished rows of a choice on a task.

        Raises:
            Missing: there are none, or several settings fit so that it is not clear which is meant.
        """
        of_method = self._rows.get((task, choice.method), [])
        fitting = [row for row in of_method if choice.attack in (None, row["attack"]) and choice.fits(row)]
        if not fitting:
            raise Missing(f"no cell of {choice.label}")
        done = [row for row in fitting if row["status"] == "ok"]
        if not done:
            row = fitting[0]
            raise Missing(f"{choice.label}: {row['status'].replace('_', ' ')}: {row['reason']}")
        _refuse_several(choice, done)
        by_victim: defaultdict[int, dict[int, Row]] = defaultdict(dict)
        # What was measured besides is worth having: of equal cells the one with the most figures counts.
        for row in sorted(done, key=lambda row: len(row["metrics"])):
            by_victim[row["victim_seed"]][0 if choice.attack is None else row["attack_seed"]] = row
        lost = {row["victim_seed"]: row for row in fitting if row["victim_seed"] not in by_victim}
        remarks = tuple(f"{choice.label}, victim {seed}: {row['reason']}" for seed, row in sorted(lost.items()))
        return Found({seed: list(rows.values()) for seed, rows in sorted(by_victim.items())}, remarks)

    def clean_accuracy(self, task: str) -> float | None:
        """Return the mean accuracy of the unmarked models of a task; None if there are none."""
        every = (row for (name, _), rows in self._rows.items() if name == task for row in rows)
        found = {row["clean_key"]: row["main_clean"] for row in every if row["main_clean"] is not None}
        return sum(found.values()) / len(found) if found else None

    def points(self, stage_key: str, curve: str) -> dict[int, dict[str, float]]:
        """Return a curve of a stage: its values by metric, by step; empty if there is none."""
        return self._by_stage.get((stage_key, curve), {})

    @cached_property
    def _by_stage(self) -> Mapping[tuple[str, str], dict[int, dict[str, float]]]:
        found: defaultdict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(dict)
        for point in self._curves:
            steps = found[point["stage_key"], point["curve"]]
            steps.setdefault(point["step"], {})[point["metric"]] = point["value"]
        return found


def _refuse_several(choice: Choice, rows: Sequence[Row]) -> None:
    """Raise `Missing` if rows differ in more than seeds."""
    for column in ("method_config",) if choice.attack is None else ("method_config", "attack_config"):
        texts = {_material(row[column]) for row in rows}
        if len(texts) > 1:
            names = ", ".join(configs.varying(sorted(texts)))
            raise Missing(
                f"{choice.label}: several settings fit, which differ in {names}; keep one of them in the sweep"
            )
    trained = defaultdict(set)
    for row in rows:
        trained[row["victim_seed"]].add(row["clean_key"])
    if any(len(keys) > 1 for keys in trained.values()):
        raise Missing(f"{choice.label}: the task was trained in several ways; keep one of them in the sweep")


def _material(text: str) -> str:
    return json.dumps({k: v for k, v in configs.flat(text).items() if k not in _IMMATERIAL}, sort_keys=True)
