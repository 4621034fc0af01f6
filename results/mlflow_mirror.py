"""A mirror of the results in MLflow: one run per cell below one run per victim setting (`mlflow_runs` says which).

MLflow is a view: it can be deleted at any time and `sync` rebuilds it from Parquet. It is written through MLflow's
public client alone. Runs are known by the tag `cell_key` (a run's id cannot be chosen), so that writing twice adds
nothing. MLflow is imported where it is used; that takes seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from assay.results.errors import ResultsError
from assay.results.mlflow_folder import DATABASE, artifacts, identity, local_uri, set_aside_if_damaged
from assay.results.mlflow_runs import Writer, make_database
from assay.results.parquet import read_curves, read_records
from assay.results.schema import CURVES_FILE, ROWS_FILE

UI_HOST: Final = "127.0.0.1"  # this machine only
UI_PORT: Final = 5000
_LAST: Final = None  # what `close` puts behind the last row

_Queue = queue.SimpleQueue[dict[str, Any] | None]


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


def sync(
    outs: Sequence[Path],
    uri: str | None = None,
    experiment: str | None = None,
    tell: Callable[[str], None] = _to_stderr,
) -> dict[str, int]:
    """Bring MLflow up to date with the Parquet files of sweeps.

    Args:
        outs: the sweeps' folders.
        uri: a tracking server or database for all of them; by default each folder has its own, `OUT/mlflow.db`. A
            damaged `OUT/mlflow.db` is set aside and rebuilt.
        experiment: name of the MLflow experiment; by default each folder's name.
        tell: receives one line for each database that was set aside.

    Returns:
        `new`: runs of cells that were missing or had changed; `present`: runs of cells that were up to date.

    Raises:
        ResultsError: a sweep has no readable results, or MLflow cannot be reached.
    """
    counts = {"new": 0, "present": 0}
    for out in outs:
        rows = read_records(out)
        address = uri or local_uri(out)
        try:
            writer, remark = _open(out, address, experiment)
            if remark:
                tell(remark)
            new = _complete(writer, out, rows)
        except _mlflow_errors() as why:
            raise ResultsError(f"{_shown(address)}: MLflow failed ({_one_line(why)}); mend it and sync again") from why
        counts["new"] += new
        counts["present"] += len(rows) - new
    return counts


def ui_command(out: Path, host: str = UI_HOST, port: int = UI_PORT) -> list[str]:
    """Return the command that shows a sweep's local mirror in a browser; by default to this machine only."""
    return [
        *(sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)),
        *("--backend-store-uri", local_uri(out), "--no-serve-artifacts"),
        *("--default-artifact-root", artifacts(out)),
    ]


class Mirror:
    """Writes rows to MLflow as they come, in a niced process of its own: it neither blocks, slows nor fails the sweep.

    MLflow takes more processor time for a run than the driver for a cell, and would share the driver's interpreter.
    A damaged `OUT/mlflow.db` is set aside and rebuilt.

    Attributes:
        problem: one line saying why the mirror stopped or is behind (`sync` completes it), or, after `close`, that a
            damaged database was set aside; None while all is well.
    """

    def __init__(self, out: Path, uri: str | None = None, experiment: str | None = None) -> None:
        self.problem: str | None = None
        self._remark = ""
        self._sync = f"assay mlflow sync {out}" + (f" --mlflow-uri {_shown(uri)}" if uri else "")
        self._uri = uri or local_uri(out)
        self._first = {"out": str(out), "uri": self._uri, "experiment": experiment}
        self._queue: _Queue = queue.SimpleQueue()
        self._writer: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def put(self, row: Mapping[str, Any]) -> None:
        """Hand over one finished cell's row (the columns of `schema.ROW`); returns at once."""
        if self.problem is None:  # after a failure rows would only pile up
            self._queue.put(dict(row))

    def close(self, timeout_s: float = 60.0) -> None:
        """Finish from the sweep's Parquet files, which are written by now: late rows, curves and the parents' figures.

        Args:
            timeout_s: how long to wait; afterwards the rest is left to `sync`.
        """
        self._queue.put(_LAST)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.problem = self.problem or self._advice(f"not finished within {timeout_s:g} s")
            if self._writer is not None:
                self._writer.kill()
        self.problem = "; ".join(filter(None, (self._remark, self.problem))) or None

    def _work(self) -> None:
        # Whatever goes wrong in a mirror is no reason to lose a sweep, hence the widest net.
        try:
            with _start_writer() as self._writer:
                said = _feed(self._writer, self._first, itertools.chain(iter(self._queue.get, _LAST), [_LAST]))
            end = json.loads(said) if said else {"stopped": "its process died"}
            self._remark = end.get("remark", "")
            if stopped := end.get("stopped"):
                self.problem = self.problem or self._advice(f"stopped: {stopped}")
        except Exception as why:
            self.problem = self.problem or self._advice(f"stopped: {_one_line(why)}")

    def _advice(self, what: str) -> str:
        return f"MLflow mirror at {_shown(self._uri)} {what}; complete it with: {self._sync}"


def _start_writer() -> subprocess.Popen[str]:
    # The same packages as here, wherever this process found them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    # What it is to write travels by pipe, because an address may hold a password.
    return subprocess.Popen(  # noqa: S603 (our own module, no shell)
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the driver, which then closes the pipe
    )


def _feed(writer: subprocess.Popen[str], first: Mapping[str, Any], rows: Iterator[dict[str, Any] | None]) -> str:
    """Send all rows to the writer; return what it says at its end."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    try:
        for value in itertools.chain([first], rows):
            writer.stdin.write(json.dumps(value) + "\n")
            writer.stdin.flush()
        writer.stdin.close()
    except BrokenPipeError:  # it has ended; it said why
        with suppress(BrokenPipeError):
            writer.stdin.close()
    return writer.stdout.read().strip()


def _write_from(lines: Iterator[str]) -> str:
    """The writer's side: mirror the rows that come, then complete from Parquet.

    Returns:
        A JSON object: `stopped` says in one line what went wrong, `remark` what the user should know.
    """
    os.nice(19)  # the stages come first; Ray starts their workers at 15
    end: dict[str, str] = {}
    try:
        first = json.loads(next(lines))
        out = Path(first["out"])
        writer, end["remark"] = _open(out, first["uri"], first["experiment"])
        for row in map(json.loads, lines):
            if row is not _LAST:
                writer.leaf(row)
            elif (out / ROWS_FILE).is_file():  # without the end's mark the driver was killed: its successor goes on
                _complete(writer, out, read_records(out))
    except Exception as why:
        end["stopped"] = _one_line(why)
    return json.dumps(end)


def _open(out: Path, uri: str, experiment: str | None) -> tuple[Writer, str]:
    """Return a writer for a sweep, and a line for the user if its database had to be set aside."""
    out.mkdir(parents=True, exist_ok=True)
    remark = None
    if uri == local_uri(out):
        remark = set_aside_if_damaged(out)
        if not (out / DATABASE).exists():
            make_database(out / DATABASE)
    # A server keeps artifacts (there are none) where it likes; a database would name ./mlruns.
    folder = artifacts(out) if uri.startswith("sqlite:") else None
    return Writer(uri, experiment or out.resolve().name, folder, identity(out)), remark or ""


def _complete(writer: Writer, out: Path, rows: list[dict[str, Any]]) -> int:
    """Write all that is missing of a whole sweep; return the number of new or changed cells."""
    curves = read_curves(out) if (out / CURVES_FILE).is_file() else None
    return writer.sweep(rows, curves)


def _mlflow_errors() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def _shown(uri: str) -> str:
    """Return an address without the password that it may carry."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _one_line(why: BaseException) -> str:
    return _shown(" ".join(str(why).split()))[:200]


if __name__ == "__main__":
    sys.stdout.write(_write_from(iter(sys.stdin)))
