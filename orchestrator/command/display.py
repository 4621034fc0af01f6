"""What commands print for people, with rich; and the values behind `--json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from assay.orchestrator.planning.cost import corrected
from assay.orchestrator.store import Store
from assay.results.schema import STAGES
from assay.tasks.errors import BadInput

if TYPE_CHECKING:
    from assay.orchestrator.checks.contracts import CheckResult
    from assay.orchestrator.execution.sweep import Report
    from assay.orchestrator.planning.plan import Plan
    from assay.results.claims import Finding

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "methods": ("key", "title", "access", "not_for"),
    "attacks": ("key", "title", "kind", "access"),
    "tasks": ("key", "shape", "classes", "tables"),
    "grids": ("key", "title"),
}


def listing(what: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table with the columns that suit a terminal (`--json` has all)."""
    console = Console()
    columns = [column for column in _COLUMNS[what] if any(column in row for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console.print(table)


def data_text(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print which data sets are here, of what size, under which licence, and what uses them."""
    for row in rows:
        samples = f"{row['train']:,} + {row['test']:,}" if row["train"] else "?"
        size = f"{row['bytes'] / 1e6:.1f} MB" if row["bytes"] else ""
        state = "here" if row["present"] else "absent"
        _plain(f"{row['key']:<17} {state:<6} {samples:>16} samples if complete {size:>8}  {row['where']}".rstrip())
        papers = Counter(table.partition("/")[0] for table in row["tables"])
        tables = "".join(f"; tables of {paper}: {count}" for paper, count in sorted(papers.items()))
        _plain(f"    used by {len(row['tasks'])} tasks{tables}; licence: {row['licence']}")
        if row["problem"]:
            _plain(f"    {row['problem']}")


def verified_text(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print which data sets are what they should be."""
    for row in rows:
        samples = f"{row['train']:,} + {row['test']:,} samples" if row["train"] else "not read"
        state = "ok" if row["ok"] else "FAULTY"
        _plain(f"{row['key']:<17} {state:<6} {samples:>24}, {row['checksums']} checksums compared")
        for text in (*row["problems"], *row["notes"]):
            _plain(f"    {text}")


def _plain(text: str) -> None:
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {entry}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(entry) for entry in value)
    return str(value)


# --- plan ------------------------------------------------------------------------------------------------------------


def plan_values(plan: Plan, out: Path | None) -> dict[str, Any]:
    """Return what `assay plan` says: counts, cached stages, impossible cells with reasons, estimated cost."""
    store = Store(out / "store") if out and (out / "store").is_dir() else None
    have = plan.done(store) if store else set()
    missing = plan.missing(have)
    measured = 0
    if store and have:
        plan, measured = corrected(plan, store, have)
    kinds = Counter(stage.kind for stage in plan.stages.values())
    names = ("method", "attack", "task")
    impossible = Counter((*(cell.point[name] for name in names), cell.reason) for cell in plan.cells if cell.reason)
    seconds = sum(plan.stages[key].seconds for key in missing)
    return {
        "name": plan.name,
        "profile": plan.profile,
        "cells": len(plan.cells),
        "stages": len(plan.stages),
        "stages_by_kind": {kind: kinds[kind] for kind in STAGES},
        "cached": len(have),
        "to_execute": len(missing),
        "impossible": [
            {"method": method, "attack": attack, "task": task, "reason": reason, "cells": count}
            for (method, attack, task, reason), count in sorted(impossible.items())
        ],
        "estimate": {
            "worker_seconds": round(seconds, 1),
            "longest_path_seconds": round(max((plan.critical[key] for key in missing), default=0.0), 1),
            "measured_stages": measured,
        },
        "keys": sorted(plan.stages),
    }


def plan_text(values: Mapping[str, Any]) -> None:
    """Print a plan."""
    console = Console()
    kinds = ", ".join(f"{count} {kind}" for kind, count in values["stages_by_kind"].items())
    console.print(
        f"[bold]{values['name']}[/bold] ({values['profile']}): {values['cells']} cells, {values['stages']} stages"
    )
    console.print(f"  stages: {kinds}; {values['cached']} cached, {values['to_execute']} to execute")
    estimate = values["estimate"]
    console.print(
        f"  estimate: {duration(estimate['worker_seconds'])} of one worker, "
        f"{duration(estimate['longest_path_seconds'])} on the longest path "
        + (f"(from {estimate['measured_stages']} stages done)" if estimate["measured_stages"] else "(from operations)")
    )
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in values["impossible"]:
        groups.setdefault(item["reason"], []).append(item)
    for reason, items in groups.items():
        entry = {axis: sorted({item[axis] for item in items}) for axis in ("method", "attack", "task")}
        _say_group(console, "n/a", {**entry, "cells": sum(item["cells"] for item in items), "reason": reason})


def _say_group(console: Console, what: str, entry: Mapping[str, Any]) -> None:
    """Print the cells that share a reason on one line."""
    place = f"{'/'.join(entry['method'])} x {'/'.join(entry['attack'])} on {'/'.join(entry['task'])}"
    text = f"  {what}: {place} ({entry['cells']} cells): {entry['reason']}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


# --- status ----------------------------------------------------------------------------------------------------------


def status_values(out: Path) -> dict[str, Any]:
    """Return what `assay status` says of an output folder, while its sweep runs or after it.

    Raises:
        BadInput: the folder holds no sweep.
    """
    try:
        sweep = json.loads((out / "sweep.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise BadInput(f"{out}: no sweep here (no readable sweep.json); assay run GRID -o {out} makes one") from None
    from assay.results.parquet import read_rows
    from assay.results.tables import summary

    store = Store(out / "store")
    rows = read_rows(out) if (out / "rows.parquet").exists() else None
    return {
        "name": sweep["name"],
        "profile": sweep["profile"],
        "started": sweep.get("started"),
        "ended": sweep.get("ended"),
        "cells": sweep["cells"],
        "stages": sweep["stages"],
        "committed_stages": len(store.committed_keys()),
        "running": sorted(str(marker["key"])[:12] for marker in store.running()) if not sweep.get("ended") else [],
        "rows": summary(rows) if rows is not None else {},
    }


def status_text(values: Mapping[str, Any]) -> None:
    """Print a status."""
    console = Console()
    state = f"ended {values['ended']}" if values["ended"] else f"{len(values['running'])} stages at work"
    console.print(f"[bold]{values['name']}[/bold] ({values['profile']}), started {values['started']}, {state}")
    console.print(f"  {values['committed_stages']} of {values['stages']} stages committed, {values['cells']} cells")
    rows = values["rows"]
    for name in ("status", "outcomes") if rows else ():
        counts = ", ".join(f"{count} {word.replace('_', ' ')}" for word, count in rows[name].items() if count)
        console.print(f"  {name}: {counts or 'none yet'}", highlight=False)
    for name in ("failures", "not_applicable") if rows else ():
        for entry in rows[name]:
            _say_group(console, name.replace("_", " "), entry)


def report_text(report: Report, out: Path) -> None:
    """Print the end of a sweep and what to do next."""
    console = Console()
    console.print(
        f"{report.cells} cells: {report.failed} failed, {report.blocked} blocked, "
        f"{report.not_applicable} not applicable; {report.stages} stages: "
        f"{report.executed} executed, {report.cached} cached; {duration(report.wall_s)}",
        highlight=False,
    )
    shown = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    console.print(f"see: assay table {shown}", highlight=False)


# --- claims ----------------------------------------------------------------------------------------------------------

_COLOURS: Mapping[str, str] = {"holds": "green", "fails": "red", "not tested": "dim"}
_PUBLISHED = 3  # numbers of a claim that are spelled out; `--json` has all


def claims_text(found: Sequence[Finding]) -> None:
    """Print the verdict on each claim, the comparison that decided it, and what its paper prints."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)  # a file or a pipe has no width of its own
    table = Table(box=None, pad_edge=False, header_style="bold", show_lines=False, padding=(0, 2, 1, 0))
    for column in ("claim", "verdict", "decided by", "measured", "published"):
        table.add_column(column, ratio=None if column in ("claim", "verdict") else 1, overflow="fold")
    for finding in found:
        word = finding.verdict + (", borderline" if finding.borderline else "")
        table.add_row(
            f"[bold]{finding.claim.id}[/bold]",
            f"[{_COLOURS[finding.verdict]}]{word}[/]",
            f"{finding.claim.title}\n[dim]{escape(_decisive(finding))}[/dim]",
            escape(_measured(finding)),
            escape(_printed(finding)),
        )
    console.print(table, highlight=False)
    counts = Counter[str](finding.verdict for finding in found)
    console.print(
        ", ".join(f"{counts[word]} {word}" for word in _COLOURS) + "; all comparisons: --json", highlight=False
    )


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
    console = Console()
    mark = {"kept": "ok     ", "broken": "broken ", "skipped": "skipped"}[result.status]
    text = f"{mark} {result.subject}: {result.name}: {result.text}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def check_summary(results: Sequence[CheckResult]) -> None:
    """Print how many contract checks were kept."""
    counts = Counter(result.status for result in results)
    seconds = sum(result.wall_s for result in results)
    Console().print(
        f"{len(results)} checks: {counts['kept']} kept, {counts['broken']} broken, {counts['skipped']} skipped; "
        f"{duration(seconds)}",
        highlight=False,
    )
