"""The commands that read what sweeps left behind. None changes a folder, but for `mlflow`, which writes its mirror."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from assay.orchestrator.command.console import emit, say, say_json
from assay.tasks.errors import BadInput


def status(arguments: argparse.Namespace) -> int:
    """Say how far a sweep is and what failed."""
    from assay.orchestrator.command.display import status_text
    from assay.orchestrator.command.values import status_values

    values = status_values(arguments.out)
    if arguments.json:
        say_json(values)
    else:
        status_text(values)
    return 0


def log(arguments: argparse.Namespace) -> int:
    """Say what is known of one stage or cell."""
    from assay.orchestrator.command.display import log_text
    from assay.orchestrator.command.logs import log_values

    values = log_values(arguments.out, arguments.key)
    if arguments.json:
        say_json(values)
    else:
        log_text(values)
    return 0


def table(arguments: argparse.Namespace) -> int:
    """Print a table of one or several sweeps."""
    from assay.results.detection import detections
    from assay.results.embedding import embedding
    from assay.results.pareto import robustness
    from assay.results.render import render
    from assay.results.tables import matrix, published

    own = {None: matrix, "embedding": embedding, "robustness": robustness, "detection": detections}
    paper, slash, number = (arguments.table or "").partition("/")
    if arguments.table not in own and not slash:
        raise BadInput(f"--table {arguments.table}: expected PAPER/NUMBER, embedding, robustness or detection")
    rows = _rows(arguments)
    made = own[arguments.table](rows) if arguments.table in own else published(rows, paper, number)
    emit(render(made, arguments.format))
    return 0


def claims(arguments: argparse.Namespace) -> int:
    """Print the verdict on each published claim."""
    from assay.results.claims import CLAIMS, Cells, findings

    cells = Cells.read(arguments.out) if _rules(arguments) is None else _redecided(arguments)
    found = findings(cells, CLAIMS)
    if arguments.json:
        say_json([finding.as_dict() for finding in found])
    else:
        from assay.orchestrator.command.display import claims_text

        claims_text(found)
    return 0


def _rules(arguments: argparse.Namespace) -> Any:
    """Return the rules that the options ask for; None: those that the rows were decided by."""
    names = ("alpha", "largest_loss")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return importlib.import_module("assay.results.decisions").Rules(**given) if given else None


def _rows(arguments: argparse.Namespace) -> Any:
    """Return the rows of all folders, one for each cell."""
    try:
        union = importlib.import_module("assay.results.union")
    except ModuleNotFoundError:
        if len(arguments.out) > 1:
            raise BadInput("this assay reads one folder at a time") from None
        return importlib.import_module("assay.results.parquet").read_rows(arguments.out[0])
    return union.read(arguments.out, _rules(arguments))


def _redecided(arguments: argparse.Namespace) -> Any:
    """Return the cells of all folders, decided by other rules."""
    from assay.results.claims import Cells
    from assay.results.schema import ROW

    merging, union = (importlib.import_module(f"assay.results.{name}") for name in ("merging", "union"))
    return Cells(merging.records(_rows(arguments), ROW.names), union.curves(arguments.out))


def mlflow(arguments: argparse.Namespace) -> int:
    """Bring the MLflow mirror of sweeps up to date, or show it."""
    from assay.results import mlflow_mirror

    mirror: Any = mlflow_mirror
    outs: list[Path] = arguments.out
    uri = arguments.mlflow_uri
    if arguments.action == "sync":
        say_json(mirror.sync(outs, uri))
        return 0
    from assay.orchestrator.command.serve import check_port, serve

    if uri is None:
        check_port(arguments.host, arguments.port)
        # Several folders are shown together, in the first one's mirror.
        mirror.sync(outs, mirror.local_uri(outs[0]) if len(outs) > 1 else None)
        return serve(mirror.ui_command(outs[0], arguments.host, arguments.port))
    if not uri.startswith(("http://", "https://")):
        raise BadInput(
            "--mlflow-uri: `assay mlflow ui` shows the mirror in OUT; a database is shown by "
            "mlflow ui --backend-store-uri URI, a server by itself (http://…)"
        )
    mirror.sync(outs, uri)
    say("up to date; the server shows it itself, at the address of --mlflow-uri")
    return 0
