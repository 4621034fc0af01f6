"""The commands that read what sweeps left behind. None changes a folder, but for `mlflow`, which writes its mirror."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.orchestrator.command.console import emit, say, say_json
from assay.tasks.errors import BadInput

if TYPE_CHECKING:
    from assay.results.decisions import Rules


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
    from assay.results import union
    from assay.results.named import named_table
    from assay.results.render import render

    rules = _rules(arguments)
    emit(render(named_table(union.read(arguments.out, rules), arguments.table, rules), arguments.format))
    return 0


def claims(arguments: argparse.Namespace) -> int:
    """Print the verdict on each published claim."""
    from assay.results.claims import CLAIMS, Cells, findings

    found = findings(Cells.read(arguments.out, _rules(arguments)), CLAIMS)
    if arguments.json:
        say_json([finding.as_dict() for finding in found])
    else:
        from assay.orchestrator.command.display import claims_text

        claims_text(found)
    return 0


def _rules(arguments: argparse.Namespace) -> Rules:
    """Return the rules that the options ask for; what is not given is the default."""
    from assay.results.decisions import Rules

    names = ("alpha", "largest_loss")
    return Rules(**{name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None})


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
