"""A mirror of the results in MLflow: one run per cell below one run per (task, method, configuration).

MLflow is a view: it can be deleted at any time and `sync` rebuilds it from Parquet. Runs are known by the tag
`cell_key` (a run's id cannot be chosen), so that writing twice adds nothing. MLflow is imported where it is used; that
takes seconds.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from results.errors import ResultsError
from results.mlflow_runs import Writer
from results.parquet import read_curves, read_records
from results.schema import CURVES_FILE, ROWS_FILE

UI_PORT: Final = 5000
_LAST: Final = None  # what `close` puts behind the last row


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
    """Writes rows to MLflow as they come, on a thread of its own: it neither blocks nor fails the sweep.

    Attributes:
        problem: one line saying why the mirror stopped or is behind; None while all is well. `sync` completes it.
    """

    def __init__(self, out: Path, uri: str | None = None, experiment: str | None = None) -> None:
        self.problem: str | None = None
        self._out = out
        self._uri = uri or local_uri(out)
        self._experiment = experiment
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def put(self, row: Mapping[str, Any]) -> None:
        """Hand over one finished cell's row (the columns of `schema.ROW`); returns at once."""
        if self.problem is None:  # after a failure rows would only pile up
            self._queue.put(dict(row))

    def close(self, timeout_s: float = 30.0) -> None:
        """Finish from the sweep's Parquet files, which are written by now: late rows, curves and the parents' figures.

        Args:
            timeout_s: how long to wait; afterwards the rest is left to `sync`.
        """
        self._queue.put(_LAST)
        self._thread.join(timeout_s)
        if self._thread.is_alive() and self.problem is None:
            self.problem = self._advice(f"not finished within {timeout_s:g} s")

    def _work(self) -> None:
        # Whatever goes wrong in a mirror is no reason to lose a sweep, hence the widest net.
        try:
            writer = _open(self._out, self._uri, self._experiment)
            while (row := self._queue.get()) is not _LAST:
                writer.leaf(row)
            if (self._out / ROWS_FILE).is_file():
                _complete(writer, self._out, read_records(self._out))
        except Exception as why:
            self.problem = self._advice(f"stopped: {_one_line(why)}")

    def _advice(self, what: str) -> str:
        return f"MLflow mirror at {_shown(self._uri)} {what}; complete it with: assay mlflow sync {self._out}"


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
