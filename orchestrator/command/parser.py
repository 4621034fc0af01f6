"""The arguments of every command; each option is defined once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import shtab

from assay.orchestrator.command.console import complain, emit

SHELLS = ("bash", "zsh", "tcsh")


class Parser(argparse.ArgumentParser):
    """Errors of usage in one line, exit status 2."""

    def error(self, message: str) -> Any:
        """Say what is wrong and where help is."""
        complain(f"{self.prog}: {message} (see: {self.prog} --help)")
        raise SystemExit(2)


class _Version(argparse.Action):
    """`--version`, looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        emit(f"assay {version('assay')}")
        parser.exit()


def path(text: str) -> Path:
    """Return the folder or file that an option names, absolute; the one way from an option to a path."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found ''")
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links; a tilde before the name of nobody
        raise argparse.ArgumentTypeError(f"{text!r} is no path ({error})") from None


def _whole(least: int, most: int = 10**9) -> Any:
    """Return a converter to whole numbers within bounds."""

    def whole(text: str) -> int:
        plain = text.isascii() and text.isdigit() and len(text) <= 10
        if not plain or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, found {text!r}")
        return int(text)

    return whole


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return value


def build(handlers: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Return the parser of `assay`.

    Args:
        handlers: the function of each command, by its name; the parsed arguments carry it as `command`.
    """
    parser = Parser(
        prog="assay", description="Experiments on watermarks of neural networks, distributed with Ray Tune."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, text: str, *options: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=handlers[name])
        _common(sub, *options)
        return sub

    listing = command("list", "list methods, attacks, tasks or shipped grids", "json", "plugin")
    listing.add_argument("what", choices=("methods", "attacks", "tasks", "grids"))
    text = "show cells, stages, what is cached, what is impossible and why, and the cost"
    command("plan", text, "GRIDS", "json", "plugin", "out", "data-root", "numerics")
    text = "execute grids; running the same command again resumes it"
    run = command("run", text, "GRIDS", "json", "plugin", "out", "data-root", "numerics", "execution")
    run.add_argument("--address", help="an existing Ray cluster (`auto`, or HOST:PORT); default: this machine")
    run.add_argument("--executor", choices=("tune", "inline"), default="tune", help="inline: in this process, no Ray")
    _common(run, "mlflow-uri")
    _submit(command)
    command("status", "progress of a sweep, failures with reasons", "OUT", "json")
    log = command("log", "a stage's record, curve and parents, or the trace of its failure", "OUT", "json")
    log.add_argument("key", metavar="KEY", help="the first digits of the key of a stage or a cell")
    _readers(command)
    command("check", "run the contract tests on somebody's own method or attack", "PLUGIN.py", "device")
    _data(commands, handlers)
    command("schema", "JSON Schema of grids, for editors", "plugin")
    completion = command("completion", "print what makes a shell complete the words of assay")
    completion.add_argument("shell", choices=SHELLS)
    return parser


def _submit(command: Any) -> None:
    # The folders lie on the cluster: nothing of their paths is resolved here.
    submit = command("submit", "run a grid as a Ray job on a cluster and follow its log", "GRID", "plugin")
    submit.add_argument("-o", "--out", metavar="OUT", help="the sweep's folder on the cluster, an absolute path")
    submit.add_argument("--data-root", metavar="DIR", help="data sets on the cluster; default: its $ASSAY_DATA")
    _common(submit, "numerics", "execution")
    submit.add_argument("--address", required=True, help="the cluster's job server, e.g. http://HEAD:8265")
    submit.add_argument("--detach", action="store_true", help="return at once instead of following the log")


def _readers(command: Any) -> None:
    table = command("table", "methods x attacks, or a published table with measured beside published", "OUTS", "rules")
    table.add_argument(
        "--table",
        metavar="PAPER/NUMBER",
        help="e.g. usp_csp/5; embedding; robustness; detection; default: the sweep's own matrix",
    )
    table.add_argument("--format", choices=("md", "latex", "csv", "html"), default="md")
    command("claims", "each published claim: holds, fails, or not tested and why", "OUTS", "rules", "json")
    mlflow = command("mlflow", "rebuild or open the MLflow mirror of sweeps")
    mlflow.add_argument("action", choices=("sync", "ui"))
    _common(mlflow, "OUTS", "mlflow-uri")
    mlflow.add_argument("--host", default="127.0.0.1", help="address to serve `ui` on; default: %(default)s")
    mlflow.add_argument("--port", type=_whole(1, 65535), default=5000, help="default: %(default)s")


def _data(commands: Any, handlers: Mapping[str, Any]) -> None:
    text = "which data sets are here, whether they are whole; download some"
    data = commands.add_parser("data", help=text, description=text)
    actions = data.add_subparsers(required=True, metavar="ACTION", parser_class=Parser, dest="action")
    for action, text, count in (
        ("list", "what is here, in which layout, under which licence", None),
        ("verify", "check counts, checksums and that every sample decodes (default: all)", "*"),
        ("fetch", "download into the data root", "+"),
    ):
        sub = actions.add_parser(action, help=text, description=text)
        sub.set_defaults(command=handlers["data"], names=[])
        if count:
            sub.add_argument("names", nargs=count, metavar="NAME")
        _common(sub, "json", "data-root")


def _common(parser: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        _OPTIONS[name](parser)


def _file(action: argparse.Action) -> None:
    action.complete = shtab.FILE  # type: ignore[attr-defined]


def _folder(action: argparse.Action) -> None:
    action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def _numerics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", help="laptop, paper, smoke, or one of the grid's own")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="override, e.g. train.epochs=3")
    _common(parser, "device")
    parser.add_argument(
        "--threads", type=_whole(1), default=1, help="torch threads per stage on the CPU (changes bits)"
    )


def _execution(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_whole(1), help="stages at work at once; default: one per core or GPU slot")
    parser.add_argument("--no-pack", action="store_true", help="one stage per trial")


def _rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--alpha", type=_fraction, help="false-claim rate of the strict verdict; default: 0.001; nothing is executed"
    )
    parser.add_argument(
        "--largest-loss",
        type=_fraction,
        help="largest loss of accuracy of an attack that succeeds, a fraction; default: 0.05",
    )


_OPTIONS: dict[str, Any] = {
    "GRID": lambda p: _file(p.add_argument("grid", metavar="GRID", help="a YAML file, or the name of a shipped grid")),
    "GRIDS": lambda p: _file(
        p.add_argument(
            "grid", metavar="GRID", nargs="+", help="a YAML file, or the name of a shipped grid; cells are united"
        )
    ),
    "OUT": lambda p: _folder(p.add_argument("out", metavar="OUT", type=path, help="a sweep's folder")),
    "OUTS": lambda p: _folder(
        p.add_argument("out", metavar="OUT", type=path, nargs="+", help="sweeps' folders; their cells are united")
    ),
    "out": lambda p: _folder(
        p.add_argument("-o", "--out", metavar="OUT", type=path, help="the sweep's folder; default: runs/<name>")
    ),
    "json": lambda p: p.add_argument("--json", action="store_true", help="one JSON value on standard output"),
    "plugin": lambda p: _file(
        p.add_argument(
            "--plugin", action="append", default=[], metavar="FILE", type=path, help="your own methods and attacks"
        )
    ),
    "data-root": lambda p: _folder(
        p.add_argument("--data-root", metavar="DIR", type=path, help="data sets; default: $ASSAY_DATA")
    ),
    "PLUGIN.py": lambda p: _file(p.add_argument("file", metavar="PLUGIN.py", type=path)),
    "mlflow-uri": lambda p: p.add_argument(
        "--mlflow-uri", metavar="URI", help="MLflow tracking server; default: sqlite in OUT/mlflow.db"
    ),
    "device": lambda p: p.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda if here"
    ),
    "rules": _rules,
    "numerics": _numerics,
    "execution": _execution,
}
