"""A mirror of the results in MLflow: one run per cell below one run per (task, method, configuration).

MLflow is a view: it can be deleted at any time and `sync` rebuilds it from Parquet. Runs are known by the tag
`cell_key` (a run's id cannot be chosen), so that writing twice adds nothing. MLflow is imported where it is used; that
takes seconds.
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
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from assay.results.errors import ResultsError
from assay.results.mlflow_runs import Writer
from assay.results.parquet import read_curves, read_records
from assay.results.schema import CURVES_FILE, ROWS_FILE

UI_PORT: Final = 5000
_LAST: Final = None  # what `close` puts behind the last row
_GATHER_S: Final = 1.0  # how long rows wait for company: runs are written far faster together

_Queue = queue.SimpleQueue[dict[str, Any] | None]


def local_uri(out: Path) -> str:
    """Return the address of the mirror inside a sweep's folder."""
    return f"sqlite:///{out.resolve() / 'mlflow.db'}"


def sync(out: Path, uri: str | None = None, experiment: str | None = None) -> dict[str, int]:
    """Bring MLflow up to date with a sweep's Parquet files.

    Args:
        out: the sweep's folder.
        uri: a tracking server or database; default `sqlite:///OUT/mlflow.db`.
        experiment: name of the MLflow experiment; default the folder's name.

    Returns:
        `new`: runs of cells that were missing or had changed; `present`: runs of cells that were up to date.

    Raises:
        ResultsError: the sweep has no readable results, or MLflow cannot be reached.
    """
    address = uri or local_uri(out)
    rows = read_records(out)
    try:
        writer = _open(out, address, experiment)
        new = _complete(writer, out, rows)
    except _mlflow_errors() as why:
        raise ResultsError(f"{_shown(address)}: MLflow failed ({_one_line(why)}); start it and sync again") from why
    return {"new": new, "present": len(rows) - new}


def ui_command(out: Path, port: int = UI_PORT) -> list[str]:
    """Return the command that shows a sweep's mirror in a browser, reachable from this machine only."""
    return [
        *(sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", local_uri(out), "--no-serve-artifacts"),
        *("--default-artifact-root", _artifacts(out)),
    ]


class Mirror:
    """Writes rows to MLflow as they come, in a process of its own: it neither blocks, slows nor fails the sweep.

    MLflow takes more processor time for a run than the driver for a cell, and would share the driver's interpreter.

    Attributes:
        problem: one line saying why the mirror stopped or is behind; None while all is well. `sync` completes it.
    """

    def __init__(self, out: Path, uri: str | None = None, experiment: str | None = None) -> None:
        self.problem: str | None = None
        self._out = out
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

    def close(self, timeout_s: float = 120.0) -> None:
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

    def _work(self) -> None:
        # Whatever goes wrong in a mirror is no reason to lose a sweep, hence the widest net.
        try:
            with _start_writer() as self._writer:
                said = _feed(self._writer, self._first, _batches(self._queue))
            if said or self._writer.returncode:
                self.problem = self.problem or self._advice(f"stopped: {said or 'its process died'}")
        except Exception as why:
            self.problem = self.problem or self._advice(f"stopped: {_one_line(why)}")

    def _advice(self, what: str) -> str:
        return f"MLflow mirror at {_shown(self._uri)} {what}; complete it with: assay mlflow sync {self._out}"


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


def _batches(rows: _Queue) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows that come within a moment of each other, until the last has come."""
    ended = False
    while not ended:
        batch = [rows.get()]
        until = time.monotonic() + _GATHER_S
        with suppress(queue.Empty):
            while batch[-1] is not _LAST:
                batch.append(rows.get(timeout=max(until - time.monotonic(), 0)))
        ended = batch[-1] is _LAST
        yield [row for row in batch if row is not None]


def _feed(writer: subprocess.Popen[str], first: Mapping[str, Any], batches: Iterator[list[dict[str, Any]]]) -> str:
    """Send all rows to the writer; return what it says at its end (nothing, if all went well)."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    try:
        for value in itertools.chain([first], batches, [_LAST]):
            writer.stdin.write(json.dumps(value) + "\n")
            writer.stdin.flush()
        writer.stdin.close()
    except BrokenPipeError:  # it has ended; it said why
        with suppress(BrokenPipeError):
            writer.stdin.close()
    return writer.stdout.read().strip()


def _write_from(lines: Iterator[str]) -> str:
    """The writer's side: mirror the rows that come, then complete from Parquet; return what went wrong, in one line."""
    os.nice(19)  # the stages come first; Ray starts their workers at 15
    try:
        first = json.loads(next(lines))
        out = Path(first["out"])
        writer = _open(out, first["uri"], first["experiment"])
        for batch in map(json.loads, lines):
            if batch is not _LAST:
                for row in batch:
                    writer.leaf(row)
                writer.flush()
            elif (out / ROWS_FILE).is_file():  # without the end's mark the driver was killed: its successor goes on
                _complete(writer, out, read_records(out))
    except Exception as why:
        return _one_line(why)
    return ""


def _open(out: Path, uri: str, experiment: str | None) -> Writer:
    out.mkdir(parents=True, exist_ok=True)
    # A server keeps artifacts (there are none) where it likes; a local database would name ./mlruns.
    folder = _artifacts(out) if uri.startswith("sqlite:") else None
    return Writer(uri, experiment or out.resolve().name, folder)


def _complete(writer: Writer, out: Path, rows: list[dict[str, Any]]) -> int:
    """Write all that is missing of a whole sweep; return the number of new or changed cells."""
    curves = read_curves(out) if (out / CURVES_FILE).is_file() else None
    return writer.sweep(rows, curves)


def _artifacts(out: Path) -> str:
    return (out.resolve() / "mlflow-artifacts").as_uri()


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
