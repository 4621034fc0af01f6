"""What commands print for people."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from assay.orchestrator.command.console import say, show

if TYPE_CHECKING:
    from assay.orchestrator.checks.contracts import CheckResult
    from assay.orchestrator.execution.sweep import Report
    from assay.results.claims import Finding

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "methods": ("key", "title", "access", "not_for"),
    "attacks": ("key", "title", "kind", "access"),
    "tasks": ("key", "shape", "classes", "tables"),
    "grids": ("key", "title"),
}
_KEY_DIGITS = 12  # of a key that is printed to be typed again


def listing(what: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table with the columns that suit a terminal (`--json` has all)."""
    columns = [column for column in _COLUMNS[what] if any(column in row for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    show(table)


def data_text(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print which data sets are here, of what size, under which licence, and what uses them."""
    for row in rows:
        samples = f"{row['train']:,} + {row['test']:,}" if row["train"] else "?"
        size = f"{row['bytes'] / 1e6:.1f} MB" if row["bytes"] else ""
        state = "here" if row["present"] else "absent"
        say(f"{row['key']:<17} {state:<6} {samples:>16} samples if complete {size:>8}  {row['where']}".rstrip())
        papers = Counter(table.partition("/")[0] for table in row["tables"])
        tables = "".join(f"; tables of {paper}: {count}" for paper, count in sorted(papers.items()))
        say(f"    used by {len(row['tasks'])} tasks{tables}; licence: {row['licence']}")
        if row["problem"]:
            say(f"    {row['problem']}")


def verified_text(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print which data sets are what they should be."""
    for row in rows:
        samples = f"{row['train']:,} + {row['test']:,} samples" if row["train"] else "not read"
        state = "ok" if row["ok"] else "FAULTY"
        say(f"{row['key']:<17} {state:<6} {samples:>24}, {row['checksums']} checksums compared")
        for text in (*row["problems"], *row["notes"]):
            say(f"    {text}")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{', '.join(keys)}: {reason}" for reason, keys in _by_reason(value).items())
    if isinstance(value, list | tuple):
        return ", ".join(str(entry) for entry in value)
    return str(value)


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each reason once, with all that it holds for."""
    found: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        found.setdefault(str(reason), []).append(key)
    return found


# --- plan ------------------------------------------------------------------------------------------------------------


def plan_text(values: Mapping[str, Any]) -> None:
    """Print a plan."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in values["stages_by_kind"].items())
    say(
        (values["name"], "bold"),
        f" ({values['profile']}): {values['cells']} cells, {values['stages']} stages",
    )
    say(f"  stages: {kinds}; {values['cached']} cached, {values['to_execute']} to execute")
    estimate = values["estimate"]
    say(
        f"  estimate: {duration(estimate['worker_seconds'])} of one worker, "
        f"{duration(estimate['longest_path_seconds'])} on the longest path "
        + (f"(from {estimate['measured_stages']} stages done)" if estimate["measured_stages"] else "(from operations)")
    )
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in values["impossible"]:
        groups.setdefault(item["reason"], []).append(item)
    for reason, items in groups.items():
        entry = {axis: sorted({item[axis] for item in items}) for axis in ("method", "attack", "task")}
        _say_group("n/a", {**entry, "cells": sum(item["cells"] for item in items), "reason": reason})


def _say_group(what: str, entry: Mapping[str, Any], more: str = "") -> None:
    """Print the cells that share a reason on one line."""
    place = f"{'/'.join(entry['method'])} x {'/'.join(entry['attack'])} on {'/'.join(entry['task'])}"
    say(f"  {what}: {place} ({entry['cells']} cells): {entry['reason']}{more}")


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


# --- status ----------------------------------------------------------------------------------------------------------


def status_text(values: Mapping[str, Any]) -> None:
    """Print a status."""
    say((values["name"], "bold"), f" ({values['profile']}), {_progress(values)}")
    say(f"  {_stages(values)}, {values['cells']} cells")
    rows = values["rows"]
    for name in ("status", "outcomes") if rows else ():
        counts = ", ".join(f"{count} {word.replace('_', ' ')}" for word, count in rows[name].items() if count)
        say(f"  {name}: {counts or 'none yet'}")
    for name in ("failures", "not_applicable") if rows else ():
        for entry in rows[name]:
            told = name == "failures" and values["stages"] is not None
            more = f" (see: assay log {_shown(values['out'])} {entry['keys'][0][:_KEY_DIGITS]})" if told else ""
            _say_group(entry.get("status", name).replace("_", " "), entry, more)


def _progress(values: Mapping[str, Any]) -> str:
    if values["started"] is None:
        return "start not known"
    state = f"ended {values['ended']}" if values["ended"] else f"{len(values['running'])} stages at work"
    return f"started {values['started']}, {state}"


def _stages(values: Mapping[str, Any]) -> str:
    if values["stages"] is None:
        return "views alone, no store here"
    if values["committed_stages"] is None:
        return f"{values['stages']} stages; run the grid again to count those that are committed"
    return f"{values['committed_stages']} of {values['stages']} stages committed"


def report_text(report: Report, out: Path) -> None:
    """Print the end of a sweep and what to do next."""
    say(
        f"{report.cells} cells: {report.failed} failed, {report.blocked} blocked, "
        f"{report.not_applicable} not applicable; {report.stages} stages: "
        f"{report.executed} executed, {report.cached} cached; {duration(report.wall_s)}"
    )
    say(f"see: assay {'status' if report.failed_cells else 'table'} {_shown(out)}")


def _shown(out: Path | str) -> str:
    """Return a folder as it can be typed from here."""
    path = Path(out)
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


# --- log -------------------------------------------------------------------------------------------------------------


def log_text(values: Mapping[str, Any]) -> None:
    """Print what is known of a cell and its stages, or of one stage."""
    if cell := values["cell"]:
        seeds = f"seed {cell['victim_seed']}.{cell['attack_seed']}"
        say(("cell ", ""), (f"{cell['method']} x {cell['attack']} on {cell['task']}, {seeds}", "bold"))
        say(f"  key: {cell['cell_key']}")
        say(f"  {cell['method']}: {cell['method_config']}")
        say(f"  {cell['attack']}: {cell['attack_config']}")
        say(f"  {cell['status'].replace('_', ' ')}" + (f": {cell['reason']}" if cell["reason"] else ""))
    for stage in values["stages"]:
        _stage_text(stage)


def _stage_text(stage: Mapping[str, Any]) -> None:
    say((stage["label"], "bold"), f": {stage['status']}" + (f": {stage['reason']}" if stage["reason"] else ""))
    say(f"  key: {stage['key']}")
    if stage["started"]:
        say(f"  started {stage['started']}, ended {stage['ended']}")
    for name in ("environment", "costs", "result"):
        if stage[name]:
            say(f"  {name}: " + ", ".join(f"{key} {_figure(value)}" for key, value in stage[name].items()))
    for note in stage["notes"]:
        say(f"  note: {note}")
    for parent in stage["parents"]:
        say(f"  parent {parent['role']}: {parent['key'][:_KEY_DIGITS]} {parent['label']}")
    for name, curve in stage["curves"].items():
        _curve_text(name, curve)
    if stage["trace"]:
        for line in stage["trace"].rstrip().split("\n"):
            say(f"  {line}")


def _curve_text(name: str, curve: Mapping[str, Any]) -> None:
    shown = curve["shown"]
    part = f", {len(shown)} of them shown" if len(shown) < curve["steps"] else ""
    say(f"  curve {name}: {curve['steps']} steps{part}")
    columns = dict.fromkeys(column for row in shown for column in row)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", *columns):
        table.add_column(Text(column), justify="right", no_wrap=True)
    for row in shown:
        table.add_row("   ", *(Text(_figure(row.get(column))) for column in columns))
    show(table)


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# --- claims ----------------------------------------------------------------------------------------------------------

_COLOURS: Mapping[str, str] = {"holds": "green", "fails": "red", "not tested": "dim"}
_PUBLISHED = 3  # numbers of a claim that are spelled out; `--json` has all


def claims_text(found: Sequence[Finding]) -> None:
    """Print the verdict on each claim, the comparison that decided it, and what its paper prints."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_lines=False, padding=(0, 2, 1, 0))
    for column in ("claim", "verdict"):
        table.add_column(column, no_wrap=True)
    for column in ("decided by", "measured", "published"):
        table.add_column(column, min_width=12)  # wider than any number, which is never broken then
    for finding in found:
        word = finding.verdict + (", borderline" if finding.borderline else "")
        table.add_row(
            Text(finding.claim.id, "bold"),
            Text(word, _COLOURS[finding.verdict]),
            Text.assemble(finding.claim.title, "\n", (_decisive(finding), "dim")),
            Text(_measured(finding)),
            Text(_printed(finding)),
        )
    show(table)
    counts = Counter[str](finding.verdict for finding in found)
    say(", ".join(f"{counts[word]} {word}" for word in _COLOURS) + "; all comparisons: --json")


def _decisive(finding: Finding) -> str:
    tight = finding.tightest
    return finding.claim.note if tight is None else f"{tight.text} on {tight.task}"


def _measured(finding: Finding) -> str:
    """The figure of the comparison that decided, and what the verdict lacks; each failed comparison if it fails."""
    shown = [finding.tightest] if finding.verdict == "holds" else []
    if finding.verdict == "fails":
        shown = [r for r in finding.readings if r.role == "test" and r.verdict == "fails"]
    lines = []
    for reading in shown:
        if reading is not None and reading.value is not None:
            spread = "" if reading.se is None else f" ± {reading.se:.3f}"
            where = "" if len(shown) == 1 else f" {reading.text} on {reading.task}"
            lines.append(f"{reading.value:.3f}{spread} (n={reading.n}){where}")
    return "\n".join(lines + ([finding.reason] if finding.reason else []))


def _printed(finding: Finding) -> str:
    numbers = finding.published()
    lines = [f"{number['table']}: {number['text']} {number['value']:.3f}" for number in numbers[:_PUBLISHED]]
    lines += [f"and {len(numbers) - _PUBLISHED} more"] if len(numbers) > _PUBLISHED else []
    return "\n".join(lines + ([finding.claim.figures] if finding.claim.figures else []))


def check_line(result: CheckResult) -> None:
    """Print one contract check."""
    mark = {"kept": "ok     ", "broken": "broken ", "skipped": "skipped"}[result.status]
    say(f"{mark} {result.subject}: {result.name}: {result.text}")


def check_summary(results: Sequence[CheckResult]) -> None:
    """Print how many contract checks were kept."""
    counts = Counter(result.status for result in results)
    seconds = sum(result.wall_s for result in results)
    say(
        f"{len(results)} checks: {counts['kept']} kept, {counts['broken']} broken, {counts['skipped']} skipped; "
        f"{duration(seconds)}"
    )
