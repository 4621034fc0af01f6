"""The command line, `assay COMMAND …`: from arguments to an exit status.

Exit status: 0 success; 1 the sweep finished with failed cells (or a check failed); 2 bad input or a system that
refuses, one line, no traceback; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

import shtab

from assay.orchestrator.command import commands, readers
from assay.orchestrator.command.console import complain, emit, flush, prepare
from assay.orchestrator.command.parser import build
from assay.results.errors import ResultsError
from assay.tasks.errors import AssayError

# What a system answers that a person can mend; any other answer is a fault of ours and shows where.
_REFUSALS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
        errno.EIO, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ELOOP, errno.ESTALE, errno.EFBIG,
    }
)  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _completion(arguments: argparse.Namespace) -> int:
    """Print what makes a shell complete our words."""
    emit(shtab.complete(build(_HANDLERS), arguments.shell))
    return 0


_HANDLERS = {
    "list": commands.listing,
    "plan": commands.plan,
    "run": commands.run,
    "submit": commands.submit,
    "status": readers.status,
    "log": readers.log,
    "table": readers.table,
    "claims": readers.claims,
    "mlflow": readers.mlflow,
    "check": commands.check,
    "data": commands.data,
    "schema": commands.schema,
    "completion": _completion,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    prepare()
    try:
        arguments = _parsed(argv)
        status: int = arguments.command(arguments)
    except (AssayError, ResultsError) as error:
        complain(f"assay: {error}")
        return 2
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        complain(f"assay: {_refusal(error)}")
        return 2
    except KeyboardInterrupt:
        complain("assay: interrupted; what is committed is kept, run the same command again to go on")
        return 130
    return status


<<<<<<< HEAD
def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        return build(_HANDLERS).parse_args(argv)
    except SystemExit:
        flush()  # the help that was asked for
        raise


def _refusal(error: OSError) -> str:
    """Return in one line what the system refused, and where."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = f"{names[0]}: " if names else ""
    after = "; make room and run the same command again: what is committed is kept" if error.errno in _FULL else ""
    return f"{where}{error.strerror or os.strerror(error.errno or 0)}{after}"
=======
def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (the command line speaks here)


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=None, ensure_ascii=False))


# --- commands; imports are inside, because torch, Ray and MLflow take seconds ----------------------------------------


def _registry(plugins: Sequence[str]) -> Any:
    from assay.orchestrator.planning.registry import Registry

    return Registry([Path(plugin) for plugin in plugins])


def _list(arguments: argparse.Namespace) -> int:
    from assay.orchestrator.planning import catalogue

    what = arguments.what
    if what in ("methods", "attacks"):
        rows = getattr(catalogue, f"list_{what}")(_registry(arguments.plugin))
    else:
        _registry(arguments.plugin)  # plugins may add data sets and architectures
        rows = catalogue.list_tasks() if what == "tasks" else catalogue.list_grids()
    if arguments.json:
        _print_json(rows)
    else:
        from assay.orchestrator.command.display import listing

        listing(what, rows)
    return 0


def _planned(arguments: argparse.Namespace) -> Any:
    from assay.orchestrator.planning.grid import parse
    from assay.orchestrator.planning.planner import build_plan

    registry = _registry(arguments.plugin)
    grid = parse(arguments.grid, registry, arguments.profile, arguments.set)
    root = Path(arguments.data_root) if arguments.data_root else None
    return grid, build_plan(grid, registry, root, _device(arguments.device), arguments.threads)


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _plan(arguments: argparse.Namespace) -> int:
    from assay.orchestrator.command.display import plan_text, plan_values

    _, plan = _planned(arguments)
    values = plan_values(plan, Path(arguments.out) if arguments.out else None)
    if arguments.json:
        _print_json(values)
    else:
        plan_text(values)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from assay.orchestrator.command.progress import Progress
    from assay.orchestrator.execution.driver import Options
    from assay.orchestrator.execution.sweep import run_sweep
    from assay.orchestrator.work.bench import Context

    grid, plan = _planned(arguments)
    out = Path(arguments.out or f"runs/{grid.name}").resolve()
    plugins = tuple(str(Path(plugin).resolve()) for plugin in arguments.plugin)
    root = str(Path(arguments.data_root).resolve()) if arguments.data_root else None
    context = Context(str(out), root, plugins, _device(arguments.device), arguments.threads)
    options = Options(
        executor=arguments.executor, workers=arguments.workers, pack=not arguments.no_pack, address=arguments.address
    )
    with Progress(plan, out, quiet=arguments.json) as progress:
        report = run_sweep(plan, grid, context, options, progress, arguments.mlflow_uri, arguments.set)
    for problem in report.problems:
        _say(f"assay: {problem}")
    if arguments.json:
        _print_json(report.as_dict())
    else:
        from assay.orchestrator.command.display import report_text

        report_text(report, out)
    return 1 if report.failed_cells else 0


def _submit(arguments: argparse.Namespace) -> int:
    from assay.orchestrator.execution.submit import submit
    from assay.orchestrator.planning.grid import parse
    from assay.orchestrator.planning.planner import check_grid

    # Bad input is told here, not in a job's log; the data lie on the cluster.
    registry = _registry(arguments.plugin)
    check_grid(parse(arguments.grid, registry, arguments.profile, arguments.set), registry)
    extra = [f"--{name}={getattr(arguments, name)}" for name in ("profile", "device") if getattr(arguments, name)]
    extra += [f"--set={setting}" for setting in arguments.set]
    extra += [f"--workers={arguments.workers}"] if arguments.workers else []
    extra += [f"--threads={arguments.threads}"] if arguments.threads > 1 else []
    extra += ["--no-pack"] if arguments.no_pack else []
    return submit(
        arguments.address,
        [arguments.grid, *extra],
        data_root=arguments.data_root,
        out=arguments.out,
        plugins=tuple(arguments.plugin),
        follow=not arguments.detach,
    )


def _status(arguments: argparse.Namespace) -> int:
    from assay.orchestrator.command.display import status_text, status_values

    values = status_values(Path(arguments.out))
    if arguments.json:
        _print_json(values)
    else:
        status_text(values)
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from assay.results.detection import detections
    from assay.results.embedding import embedding
    from assay.results.pareto import robustness
    from assay.results.render import render
    from assay.results.tables import matrix, published
    from assay.results.union import read

    rows = read(Path(out) for out in arguments.out)
    own = {None: matrix, "embedding": embedding, "robustness": robustness, "detection": detections}
    if arguments.table in own:
        table = own[arguments.table](rows)
    else:
        paper, slash, number = arguments.table.partition("/")
        if not slash:
            raise BadInput(f"--table {arguments.table}: expected PAPER/NUMBER, embedding, robustness or detection")
        table = published(rows, paper, number)
    _print(render(table, arguments.format))
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    from assay.results.claims import CLAIMS, Cells, findings

    found = findings(Cells.read(Path(out) for out in arguments.out), CLAIMS)
    if arguments.json:
        _print_json([finding.as_dict() for finding in found])
    else:
        from assay.orchestrator.command.display import claims_text

        claims_text(found)
    return 0


def _mlflow(arguments: argparse.Namespace) -> int:
    import subprocess

    from assay.results.mlflow_mirror import sync, ui_command

    out = Path(arguments.out)
    if arguments.action == "ui":
        sync(out, arguments.mlflow_uri)
        return subprocess.call(ui_command(out))  # noqa: S603 (our own command, no shell)
    _print_json(sync(out, arguments.mlflow_uri))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from assay.orchestrator.checks.contracts import check_file
    from assay.orchestrator.command.display import check_line, check_summary

    results = check_file(Path(arguments.file), check_line, _device(arguments.device))
    check_summary(results)
    return 0 if all(result.ok for result in results) else 1


def _data(arguments: argparse.Namespace) -> int:
    from assay.orchestrator.command.display import data_text, verified_text
    from assay.tasks.data.fetch import fetch
    from assay.tasks.data.inventory import data_status, verify_data
    from assay.tasks.data.sources import data_root

    root = Path(arguments.data_root) if arguments.data_root else None
    if arguments.action == "fetch":
        for name in arguments.names:
            fetch(name, data_root(root))
    if arguments.action == "list":
        from assay.orchestrator.planning.catalogue import data_uses

        rows = [{**row, "tables": data_uses(row["key"])} for row in data_status(root)]
    else:
        rows = verify_data(root, arguments.names)
    if arguments.json:
        _print_json(rows)
    else:
        (data_text if arguments.action == "list" else verified_text)(rows)
    return 0 if all(row.get("ok", True) for row in rows) else 1


# --- arguments -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Errors of usage in one line, exit status 2."""

    def error(self, message: str) -> Any:
        """Say what is wrong and where help is."""
        _say(f"{self.prog}: {message} (see: {self.prog} --help)")
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="assay", description="Experiments on watermarks of neural networks, distributed with Ray Tune."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, handler: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=handler)
        return sub

    listing = command("list", _list, "list methods, attacks, tasks or shipped grids")
    listing.add_argument("what", choices=("methods", "attacks", "tasks", "grids"))
    _common(listing, "json", "plugin")

    plan = command("plan", _plan, "show cells, stages, what is cached, what is impossible and why, and the cost")
    _common(plan, "grid", "json", "plugin", "out", "data-root", "numerics")

    run = command("run", _run, "execute a grid; running the same command again resumes it")
    _common(run, "grid", "json", "plugin", "out", "data-root", "numerics", "execution")
    run.add_argument("--address", help="an existing Ray cluster (`auto`, or HOST:PORT); default: this machine")
    run.add_argument("--executor", choices=("tune", "inline"), default="tune", help="inline: in this process, no Ray")
    run.add_argument("--mlflow-uri", help="MLflow tracking server; default: sqlite in OUT/mlflow.db")

    submit = command("submit", _submit, "run a grid as a Ray job on a cluster and follow its log")
    _common(submit, "grid", "plugin", "out", "data-root", "numerics", "execution")
    submit.add_argument("--address", required=True, help="the cluster's job server, e.g. http://HEAD:8265")
    submit.add_argument("--detach", action="store_true", help="return at once instead of following the log")

    status = command("status", _status, "progress of a sweep, failures with reasons")
    _common(status, "OUT", "json")

    table = command("table", _table, "methods x attacks, or a published table with measured beside published")
    _common(table, "OUTS")
    table.add_argument(
        "--table",
        metavar="PAPER/NUMBER",
        help="e.g. usp_csp/5; embedding; robustness; detection; default: the sweep's own matrix",
    )
    table.add_argument("--format", choices=("md", "latex", "csv", "html"), default="md")

    claims = command("claims", _claims, "each published claim: holds, fails, or not tested and why")
    _common(claims, "OUTS", "json")

    mlflow = command("mlflow", _mlflow, "rebuild or open the MLflow mirror of a sweep")
    mlflow.add_argument("action", choices=("sync", "ui"))
    _common(mlflow, "OUT")
    mlflow.add_argument("--mlflow-uri", help="MLflow tracking server; default: sqlite in OUT/mlflow.db")

    check = command("check", _check, "run the contract tests on somebody's own method or attack")
    _common(check, "PLUGIN.py", "device")

    data = command("data", None, "which data sets are here, whether they are whole; download some")
    actions = data.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser, dest="action")
    for action, text, count in (
        ("list", "what is here, in which layout, under which licence", None),
        ("verify", "check counts, checksums and that every sample decodes (default: all)", "*"),
        ("fetch", "download into the data root", "+"),
    ):
        sub = actions.add_parser(action, help=text, description=text)
        sub.set_defaults(command=_data, names=[])
        if count:
            sub.add_argument("names", nargs=count, metavar="NAME")
        _common(sub, "json", "data-root")
    return parser


def _common(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add options that several commands share, each defined once."""
    for name in names:
        _OPTIONS[name](parser)


def _numerics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", help="laptop, paper, smoke, or one of the grid's own")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="override, e.g. train.epochs=3")
    _common(parser, "device")
    parser.add_argument(
        "--threads", type=_positive, default=1, help="torch threads per stage on the CPU (changes bits)"
    )


def _execution(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_positive, help="stages at work at once; default: one per core or GPU slot")
    parser.add_argument("--no-pack", action="store_true", help="one stage per trial")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


_OPTIONS: dict[str, Any] = {
    "grid": lambda p: p.add_argument("grid", metavar="GRID", help="a YAML file, or the name of a shipped grid"),
    "OUT": lambda p: p.add_argument("out", metavar="OUT", help="a sweep's folder"),
    "OUTS": lambda p: p.add_argument("out", metavar="OUT", nargs="+", help="sweeps' folders; their cells are united"),
    "out": lambda p: p.add_argument("-o", "--out", metavar="OUT", help="the sweep's folder; default: runs/<name>"),
    "json": lambda p: p.add_argument("--json", action="store_true", help="one JSON value on standard output"),
    "plugin": lambda p: p.add_argument("--plugin", action="append", default=[], metavar="FILE"),
    "data-root": lambda p: p.add_argument("--data-root", metavar="DIR", help="data sets; default: $ASSAY_DATA"),
    "PLUGIN.py": lambda p: p.add_argument("file", metavar="PLUGIN.py"),
    "device": lambda p: p.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda if here"
    ),
    "numerics": _numerics,
    "execution": _execution,
}
>>>>>>> tables


if __name__ == "__main__":
    sys.exit(main())
