"""Assay from Python: run a grid, read what sweeps left, decide it anew. The names that `import assay` offers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import yaml

from assay.attacks.base import Attack
from assay.methods.base import Method
from assay.orchestrator.execution.executor import Options
from assay.orchestrator.execution.sweep import Report, run_sweep
from assay.orchestrator.planning.classes import pack_classes
from assay.orchestrator.planning.grid import Grid, parse, parse_text
from assay.orchestrator.planning.plan import Stage
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.work.bench import Context
from assay.results import union
from assay.results.claims import CLAIMS, Cells, findings
from assay.results.decisions import Rules, redecide
from assay.results.named import named_table
from assay.results.render import render
from assay.results.schema import CURVE

Plugin = type[Method[Any]] | type[Attack[Any]] | str | Path
Format = Literal["md", "latex", "csv", "html"]


@dataclass(frozen=True)
class Sweep:
    """What sweeps left in one folder or several; everything is read from their Parquet files.

    Attributes:
        outs: the folders.
        report: how the run ended that made them; None of sweeps that were only read.
        rules: what readings are decided by.
    """

    outs: tuple[Path, ...]
    report: Report | None = None
    rules: Rules = field(default_factory=Rules)

    @property
    def rows(self) -> pd.DataFrame:
        """One row per cell (`results.schema`)."""
        return union.read(self.outs, self.rules)

    @property
    def curves(self) -> pd.DataFrame:
        """The curves of all stages in long form."""
        return pd.DataFrame(union.curves(self.outs), columns=CURVE.names)

    @property
    def nulls(self) -> pd.DataFrame:
        """Scores of never-embedded keys on unmarked models."""
        return union.nulls(self.outs)

    def table(self, name: str | None = None, fmt: Format = "md") -> str:
        """Return a table as text.

        Args:
            name: `PAPER/NUMBER`, `embedding`, `robustness` or `detection`; None: methods x attacks.
            fmt: how it is written.

        Raises:
            ResultsError: there is no such table, or the rows cannot stand in one.
        """
        return render(named_table(self.rows, name, self.rules), fmt)

    def claims(self) -> pd.DataFrame:
        """Return each published claim with its verdict: holds, fails or not tested, and why."""
        found = findings(Cells.read(self.outs, self.rules), CLAIMS)
        return pd.DataFrame([finding.as_dict() for finding in found])


class _Silent:
    """A listener for notebooks: problems are in the rows."""

    def on_start(self, stage: Stage) -> None:
        """Nothing is said."""

    def on_done(self, stage: Stage, status: str) -> None:
        """Nothing is said."""

    def on_note(self, text: str) -> None:
        """Nothing is said."""


def run(  # noqa: PLR0913 (all but the grid are named, and optional)
    grid: Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    plugins: Sequence[Plugin] = (),
    profile: str | None = None,
    settings: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    executor: Literal["tune", "inline"] = "tune",
    workers: int | None = None,
    address: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    mlflow_uri: str | None = None,
) -> Sweep:
    """Run a grid; running it again into the same folder resumes it. The same as `assay run`.

    Args:
        grid: what a grid file holds, as a mapping; or a file, or the name of a shipped grid.
        out: the sweep's folder; None: `runs/<name>`.
        plugins: methods and attacks beside the shipped ones: classes, a notebook's own among them, or plugin files.
        profile: replaces the grid's own.
        settings: overrides by dotted name, e.g. `{"train.epochs": 3}`.
        data_root: folder of the data sets; None: `$ASSAY_DATA`.
        executor: `tune`, Ray Tune on this machine or at `address`; `inline`, in this process.
        workers: stages at work at once; None: one per core or GPU slot.
        address: of a running Ray cluster.
        device: `auto` is cuda if there is one.
        mlflow_uri: tracking server of the mirror; None: `OUT/mlflow.db`.

    Raises:
        BadInput: the grid or a plugin cannot be used as written.

    Example:
        >>> sweep = assay.run({"tasks": ["digits-cnn-mini"], "methods": ["uchida"], "attacks": ["none", "prune"]})
        >>> print(sweep.table())
    """
    files = tuple(Path(plugin).expanduser().resolve() for plugin in plugins if not isinstance(plugin, type))
    classes = [plugin for plugin in plugins if isinstance(plugin, type)]
    registry = Registry(files, classes)
    parsed = _parsed(grid, registry, profile, [f"{name}={_yaml(value)}" for name, value in (settings or {}).items()])
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    root = None if data_root is None else Path(data_root).expanduser().resolve()
    plan = build_plan(parsed, registry, root, chosen)
    folder = Path(out or Path("runs") / parsed.name).expanduser().resolve()
    context = Context(
        str(folder), None if root is None else str(root), tuple(map(str, files)), chosen, classes=pack_classes(classes)
    )
    options = Options(executor=executor, workers=workers, address=address)
    if threading.current_thread() is not threading.main_thread():
        options = Options(executor="inline", workers=workers)  # Ray Tune needs the main thread for signals
    report = run_sweep(plan, parsed, context, options, _Silent(), mlflow_uri)
    return Sweep((folder,), report)


def _parsed(
    grid: Mapping[str, Any] | str | Path, registry: Registry, profile: str | None, settings: Sequence[str]
) -> Grid:
    if isinstance(grid, Mapping):
        text = yaml.safe_dump({"name": "notebook", **grid}, sort_keys=False, allow_unicode=True)
        return parse_text("grid", text, registry, profile, settings)
    return parse(str(grid), registry, profile, settings)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()


def read(*outs: str | Path, rules: Rules | None = None) -> Sweep:
    """Return what one or several sweeps left; several folders are one.

    Args:
        outs: folders of sweeps.
        rules: what readings are decided by; None: the default rules.
    """
    return Sweep(tuple(Path(out).expanduser() for out in outs), rules=rules or Rules())


def decide(rows: pd.DataFrame, rules: Rules, nulls: pd.DataFrame) -> pd.DataFrame:
    """Return rows decided anew by other rules, from their readings and nulls alone; nothing is executed.

    Raises:
        ResultsError: the rows hold no readings, or a null is missing.
    """
    return redecide(rows, nulls, rules)
