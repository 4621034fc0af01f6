"""Finding the cells that a claim is about: finished rows of one method and attack, by the parameters that it states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from assay.results import configs, union
from assay.results.merging import ATTACK, IDENTITY, Row

# Parameters that decide what is refused or measured besides, never what comes out.
_IMMATERIAL: Final = frozenset({"allow_weak", "beside_unmarked"})
_OF_ATTACK: Final = frozenset({*ATTACK.columns, "kind"})
_BEFORE: Final = ("main_clean", "main_before", "score_before", "chance", "p_before")
_AFTER: Final = ("main_after", "score_after", "p_after", "rival_score", "rival_p")


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
        self._rows: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: str(row["cell_key"])):
            self._rows[row["task"], row["method"]].append(row)
        self.tasks = frozenset(task for task, _ in self._rows)

    @staticmethod
    def read(outs: Iterable[Path]) -> Cells:
        """Return the cells of sweeps' folders.

        Raises:
            ResultsError: a folder holds no rows, or damaged ones, or two results of one cell differ.
        """
        folders = list(outs)
        return Cells(union.rows(folders), union.curves(folders))

    def find(self, task: str, choice: Choice) -> Found:
        """Return the finished rows of a choice on a task.

        Raises:
            Missing: there are none, or several settings or results fit, so that it is not clear which is meant.
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
        repeated: defaultdict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in sorted(done, key=lambda row: len(row["metrics"])):
            repeated[row["victim_seed"], 0 if choice.attack is None else row["attack_seed"]].append(row)
        by_victim: dict[int, list[Row]] = {victim: [] for victim in sorted({victim for victim, _ in repeated})}
        for (victim, _), rows in repeated.items():
            by_victim[victim].append(_one(choice, rows))
        lost = {row["victim_seed"]: row for row in fitting if row["victim_seed"] not in by_victim}
        remarks = tuple(f"{choice.label}, victim {seed}: {row['reason']}" for seed, row in sorted(lost.items()))
        return Found(by_victim, remarks)

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
    columns = [name for name in IDENTITY if choice.attack is not None or name not in _OF_ATTACK]
    if names := [what for name in columns for what in _differing(rows, name)]:
        raise Missing(
            f"{choice.label}: several settings fit, which differ in {', '.join(names)}; keep one of them in the sweep"
        )
    trained = defaultdict(set)
    for row in rows:
        trained[row["victim_seed"]].add(row["clean_key"])
    if any(len(keys) > 1 for keys in trained.values()):
        raise Missing(f"{choice.label}: the task was trained in several ways; keep one of them in the sweep")


def _differing(rows: Sequence[Row], column: str) -> Sequence[str]:
    """Return in which parameters of a configuration rows differ, or the name of another column that differs."""
    values = {row[column] for row in rows}
    if len(values) < 2:
        return ()
    if None in values or not column.endswith("_config"):
        return (column,)
    return [name for name in configs.varying(sorted(values)) if name not in _IMMATERIAL]


def _one(choice: Choice, rows: Sequence[Row]) -> Row:
    """Return the last of the rows of one victim and attack seed: they come by the number of their figures.

    Raises:
        Missing: the figures of two rows differ although nothing that their rows hold tells them apart.
    """
    best = rows[-1]
    own = _figures(choice, best)
    for row in rows[:-1]:
        # Rows of schema version 2 do not say what differs; of those the one with the most figures counts.
        if best["task_config"] is not None and any(own.get(k, v) != v for k, v in _figures(choice, row).items()):
            raise Missing(
                f"{choice.label}: ambiguous: cells {row['cell_key']} and {best['cell_key']} are two results of victim "
                f"{row['victim_seed']}; keep one of them in the sweep"
            )
    return best


def _figures(choice: Choice, row: Row) -> dict[str, Any]:
    """Return what a row measured of the choice: of the marked victim alone, or of what the attack left too."""
    names = _BEFORE if choice.attack is None else (*_BEFORE, *_AFTER)
    prefixes = ("before_", "clean_") if choice.attack is None else ("",)
    metrics = {name: value for name, value in row["metrics"].items() if name.startswith(prefixes)}
    return metrics | {name: row[name] for name in names}
