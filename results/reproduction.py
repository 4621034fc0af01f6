"""Measured beside published: one line per number that a paper prints, with ours next to it where there is one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pandas as pd

from assay.results import papers
from assay.results.configs import flat, label, natural, varying
from assay.results.merging import ATTACK, METHOD, TASK, Row, groups, one_each, records, suffixes
from assay.results.render import Keys, Table, percent
from assay.results.statistics import Mean, over_victims

_NOT_TESTED: Final = "not tested"
_COLUMNS: Final = ("task", "method", "attack", "metric", "published", "measured", "n", "diff", "elsewhere", "cells")
_UNATTACKED: Final = frozenset({"main_acc", "main_acc_change", "main_acc_preserving_rate", "wm_acc", "wm_det_rate"})
_CLEAN: Final = frozenset({"main_acc", "target_acc"})
_LEGEND: Final = (
    "rates in percent; measured: mean ± the 95 % t half-width over n victim seeds; diff: measured - published, points",
    "'not tested': no cell with this data set, model, method, attack and parameters; what only one side states is not "
    "compared, and a difference in training length is remarked",
    "elsewhere: another task or setting than the paper's, given for orientation and not compared",
)


@dataclass(frozen=True)
class _Setting:
    """The cells of one experiment: they differ in seeds alone. `name` says what tells it from the others."""

    task: str
    dataset: str
    model: str
    name: str
    method_config: Mapping[str, Any]
    attack_config: Mapping[str, Any]
    rows: list[Row]


class _Match(NamedTuple):
    setting: _Setting
    conflicts: tuple[str, ...]
    remarks: tuple[str, ...]
    mean: Mean
    keys: Keys


class _Sweep:
    """A sweep's finished cells, grouped into settings; built once per table."""

    def __init__(self, rows: pd.DataFrame) -> None:
        every = records(rows.sort_values("cell_key"), ("clean_key", "embed_key", "status", *papers.FIGURES))
        self._done = [row for row in every if row["status"] == "ok"]
        self._settings: dict[tuple[str, str | None], list[_Setting]] = {}
        self._figures: dict[tuple[int, str, str, str], tuple[Mean, Keys]] = {}

    def settings(self, method: str, attack: str | None) -> list[_Setting]:
        """Return the settings of a method under an attack; None: of the unattacked marked models, one row for each."""
        if (method, attack) not in self._settings:
            self._settings[method, attack] = list(_settings(self._rows(method, attack)))
        return self._settings[method, attack]

    def figure(self, setting: _Setting, entry: Mapping[Any, Any]) -> tuple[Mean, Keys]:
        """Return our figure for a published number, with the cells that measured it; computed once per setting."""
        what = (id(setting), entry["paper"], entry["metric"], entry["stage"])
        if what not in self._figures:
            values = [papers.measured(*what[1:], row) for row in setting.rows]
            known = (row["cell_key"] for row, value in zip(setting.rows, values, strict=True) if value is not None)
            self._figures[what] = over_victims(values, setting.rows), tuple(known)
        return self._figures[what]

    def _rows(self, method: str, attack: str | None) -> Iterator[Row]:
        if attack is not None:
            yield from (row for row in self._done if (row["method"], row["attack"]) == (method, attack))
        elif method == "clean":  # every sweep trains unmarked models beside its marked ones
            found = [row for row in self._done if row["main_clean"] is not None]
            yield from _unattacked(
                ({**row, **_NO_METHOD, "main_before": row["main_clean"]} for row in found), "clean_key"
            )
        else:
            yield from _unattacked((row for row in self._done if row["method"] == method), "embed_key")


_NO_ATTACK: Final[Row] = {
    **dict.fromkeys((*ATTACK.columns, "kind")), "attack": "none", "attack_config": "{}", "attack_seed": 0,
}  # fmt: skip
"""What the row of an unattacked model says of the attack."""
_NO_METHOD: Final[Row] = {
    **dict.fromkeys((*METHOD.columns, "family", "score_before")), "method": "clean", "method_config": "{}",
}  # fmt: skip
"""What the row of an unmarked model says of the method."""


def _unattacked(rows: Iterable[Row], stage: str) -> Iterator[Row]:
    """Yield one row per model and profile: attacks on one model share its unattacked figures."""
    for group in groups(({**row, **_NO_ATTACK} for row in rows), TASK, METHOD).values():
        yield from one_each(group, stage)


def _settings(rows: Iterable[Row]) -> Iterator[_Setting]:
    """Yield the settings of one method and attack, by task and name."""
    every = list(rows)
    names: dict[str, list[str]] = {}
    for aspect in (METHOD, ATTACK, TASK):
        for row, more in zip(every, suffixes(every, aspect), strict=True):
            names.setdefault(row["cell_key"], []).append(more.strip())
    found = []
    for group in groups(every, TASK, METHOD, ATTACK).values():
        first = group[0]
        name = " ".join(part for part in names[first["cell_key"]] if part)
        where = (first["task"], first["dataset"], first["model"], name)
        found.append(_Setting(*where, flat(first["method_config"]), flat(first["attack_config"]), group))
    yield from sorted(found, key=lambda setting: (setting.task, natural(setting.name)))


def published(rows: pd.DataFrame, paper: str, table: str) -> Table:
    """Return a paper's table with our figures beside it.

    A number is compared with cells of the same data set, model, method and attack whose parameters agree wherever both
    sides state them (`papers.WATERMARK`, `papers.ATTACK`). Several of our settings that agree give a line each.

    Args:
        rows: as returned by `parquet.read_rows`.
        paper: key of the paper, as in `papers.PAPERS`.
        table: number of its table.

    Raises:
        ResultsError: no such paper or table.
    """
    papers.check(paper, table)
    printed = papers.load(paper)
    entries = printed[printed["table"] == table].to_dict("records")
    names = _Names(entries)
    sweep = _Sweep(rows)
    notes: list[str] = []
    texts: list[tuple[str, ...]] = []
    keys: list[tuple[Keys, ...]] = []
    for entry in entries:
        matches = list(_matches(sweep, entry))
        exact = [m for m in matches if not m.conflicts and m.setting.dataset == entry["dataset"]]
        exact = [m for m in exact if m.setting.model == entry["model"]]
        elsewhere = [] if exact else _elsewhere(matches)
        lines: list[_Match | None] = [*exact] or [None]
        for match in lines:
            line, cells = _line(entry, match, len(exact) > 1, elsewhere, notes)
            line = (*names.of(entry), *line)
            texts.append(line)
            keys.append(cells)
    remarks = [f"[{number}] {note}" for number, note in enumerate(notes, start=1)]
    legend = (*remarks, *names.constants(), *_LEGEND)
    whole = Table(f"{paper}, table {table}", _COLUMNS, tuple(texts), legend, tuple(keys), lead=4, parted=False)
    return whole if any(line[8] for line in texts) else _without_elsewhere(whole)


class _Names:
    """How a table's lines are named: by the parameters that vary within it; the others stand in a note."""

    def __init__(self, entries: list[dict[Any, Any]]) -> None:
        self._stated: dict[tuple[str, str, str], list[str]] = {}
        for entry in entries:
            for plugin, params in (("method", "wm_params"), ("attack", "attack_params")):
                key = (_task(entry), plugin, entry[plugin])
                self._stated.setdefault(key, []).append(json.dumps(entry[params]))
        self._varying = {key: varying(texts) for key, texts in self._stated.items()}

    def of(self, entry: Mapping[Any, Any]) -> tuple[str, str, str, str]:
        """Return a number's task, method, attack and metric."""
        task = _task(entry)
        stage = "" if entry["stage"] == "na" else f" {entry['stage']}"
        method, attack = (
            label(entry[plugin], json.dumps(entry[params]), self._varying[task, plugin, entry[plugin]])
            for plugin, params in (("method", "wm_params"), ("attack", "attack_params"))
        )
        return task, method, attack, f"{entry['metric']}{stage}"

    def constants(self) -> Iterator[str]:
        """Return one note per task with the parameters that are the same in all of its lines."""
        tasks: dict[str, list[str]] = {}
        for (task, plugin, key), texts in self._stated.items():
            constant = [name for name in flat(texts[0]) if name not in self._varying[task, plugin, key]]
            if constant:
                tasks.setdefault(task, []).append(label(key, texts[0], constant))
        for task, parts in tasks.items():
            yield f"in the paper, on {task}: {'; '.join(parts)}"


def _matches(sweep: _Sweep, entry: Mapping[Any, Any]) -> Iterator[_Match]:
    """Return every setting of the entry's method and attack that measured the metric, with all differences."""
    # A number without attack, or before one, belongs to the marked model, whatever else was done to it.
    plain = entry["stage"] == "before" or (entry["stage"] == "na" and entry["attack"] == "none")
    unattacked = plain and entry["metric"] in _UNATTACKED
    if entry["method"] == "clean" and entry["metric"] not in _CLEAN:
        return  # an unmarked model has no score of ours: its verdict is "not applicable", not a measured 0
    for method in papers.METHODS.get(entry["method"], (entry["method"],)):
        for setting in sweep.settings(method, None if unattacked else entry["attack"]):
            mark = papers.compare(method, setting.method_config, entry["wm_params"], papers.WATERMARK)
            stated = {} if unattacked and entry["attack"] != "none" else entry["attack_params"]
            attack = papers.compare(entry["attack"], setting.attack_config, stated, papers.ATTACK)
            mean, keys = sweep.figure(setting, entry)
            if mean.n:
                remarks = (*mark.remarks, *attack.remarks)
                yield _Match(setting, (*mark.conflicts, *attack.conflicts), remarks, mean, keys)


def _elsewhere(matches: list[_Match]) -> list[_Match]:
    """Return for each task what may stand for orientation: agreeing parameters, or else the only setting there is."""
    tasks: dict[str, list[_Match]] = {}
    for match in matches:
        tasks.setdefault(match.setting.task, []).append(match)
    chosen = []
    for found in tasks.values():
        agreeing = [match for match in found if not match.conflicts]
        candidates = agreeing or found
        chosen += candidates if len(candidates) == 1 else []
    return chosen


def _line(
    entry: Mapping[Any, Any], match: _Match | None, several: bool, elsewhere: list[_Match], notes: list[str]
) -> tuple[tuple[str, ...], tuple[Keys, ...]]:
    index = entry["unit"] == "index"
    value = f"{entry['value']:.2f}" if index else f"{100 * entry['value']:.2f}"
    value += _mark([f"the paper's row: {entry['note']}"] if entry["note"] else [], notes)
    if match is None:
        ours = (_NOT_TESTED, "", "")
        cells: Keys = tuple(key for other in elsewhere for key in other.keys)
    else:
        setting = [match.setting.name] if several and match.setting.name else []
        marks = _mark([*setting, *match.remarks], notes)
        factor = 1 if index else 100
        difference = f"{factor * (match.mean.value - entry['value']):+.2f}"
        ours = (f"{_figure(match.mean, index)}{marks}", str(match.mean.n), difference)
        cells = match.keys
    other = "; ".join(
        f"{m.setting.task} {_figure(m.mean, index)} n={m.mean.n}{_mark([*m.conflicts, *m.remarks], notes)}"
        for m in elsewhere
    )
    shown = f"{cells[0][:8]}{f' +{len(cells) - 1}' if len(cells) > 1 else ''}" if cells else ""
    place = "measured" if match else "elsewhere"
    return (value, *ours, other, shown), tuple(cells if name == place else () for name in _COLUMNS)


def _task(entry: Mapping[Any, Any]) -> str:
    return f"{entry['dataset']}-{entry['model']}"


def _figure(mean: Mean, index: bool) -> str:
    if not index:
        return percent(mean, 2)
    return f"{mean.value:.2f}" + ("" if mean.half is None else f"±{mean.half:.2f}")


def _mark(remarks: list[str], notes: list[str]) -> str:
    """Return a footnote mark for remarks, or nothing; equal footnotes are one."""
    if not remarks:
        return ""
    text = "; ".join(remarks)
    if text not in notes:
        notes.append(text)
    return f" [{notes.index(text) + 1}]"


def _without_elsewhere(table: Table) -> Table:
    drop = table.columns.index("elsewhere")
    return Table(
        table.title,
        tuple(name for i, name in enumerate(table.columns) if i != drop),
        tuple(tuple(text for i, text in enumerate(row) if i != drop) for row in table.rows),
        table.notes[:-1],  # the last line of the legend explains the column
        tuple(tuple(cells for i, cells in enumerate(row) if i != drop) for row in table.keys),
        table.lead,
        table.parted,
    )
