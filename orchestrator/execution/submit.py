"""Running a sweep as a Ray job: our own sources travel, data and results are paths on the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from assay.tasks.errors import BadInput

_PACKAGES = ("assay",)
_SUFFIXES = {".py", ".yaml", ".csv"}
_LEFT_OUT = {"__pycache__", "reference"}  # measured sweeps are no code
_LARGEST_BYTES = 5 * 2**20  # a package larger than this holds something that is no source
_RETRY_S = 2.0
_ENDED = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}
# What workers must know before they import Ray; the driver's own are set in `orchestrator.execution.tune_driver`.
_ENVIRONMENT = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "PYTHONUNBUFFERED": "1"}


class Client(Protocol):
    """What we use of `ray.job_submission.JobSubmissionClient`."""

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        """Start a job; return its id."""

    def get_job_info(self, job_id: str) -> Any:
        """Return an object with `status` and `driver_exit_code`."""

    def tail_job_logs(self, job_id: str) -> Any:
        """Return an asynchronous iterator over the log, from its beginning to the job's end."""


def submit(
    address: str,
    argv: Sequence[str],
    *,
    data_root: str | None,
    out: str | None,
    plugins: Sequence[str] = (),
    follow: bool = True,
    client: Client | None = None,
) -> int:
    """Run `assay run` on a cluster as a job, and follow its log.

    The job outlives this process; following it ends with Ctrl-C, the job does not.

    Args:
        address: of the cluster's job server, e.g. `http://HEAD:8265`.
        argv: the grid (a file here, or the name of a shipped one), then further options of `assay run`.
        data_root: folder of the data sets on the cluster, an absolute path or a `file://` URI; None: its `$ASSAY_DATA`.
        out: the sweep's folder on the cluster, alike; every node must see it.
        plugins: plugin files here; they travel with the job.
        follow: wait for the end.
        client: for tests.

    Returns:
        The exit status of the sweep; 0 at once if it is not followed.

    Raises:
        BadInput: a path that is none of the cluster's, no job server at the address, or a token is missing.
    """
    if out is None:
        raise BadInput("submit: expected -o OUT, a folder that every node of the cluster sees")
    options = [
        "-o",
        _on_cluster("-o", out),
        *(["--data-root", _on_cluster("--data-root", data_root)] if data_root else []),
    ]
    with tempfile.TemporaryDirectory(prefix="assay-job-") as folder, _explained(address):
        grid, staged = _stage(Path(folder), argv[0], plugins)
        options += [f"--plugin={plugin}" for plugin in staged]
        command = [
            "python",
            "-m",
            "assay.orchestrator.command.cli",
            "run",
            grid,
            *argv[1:],
            *options,
            "--address",
            "auto",
        ]
        client = client or _connect(address)
        environment = {"working_dir": folder, "env_vars": dict(_ENVIRONMENT)}
        job = client.submit_job(entrypoint=shlex.join(command), runtime_env=environment)
    _say(f"job {job} runs on {address}; stopping this command does not stop it (ray job stop does)")
    if not follow:
        return 0
    with _explained(address):
        return _follow(client, job)


def _on_cluster(option: str, path: str) -> str:
    """Return the absolute path that a path or a `file://` URI names on the cluster."""
    parts = urlparse(path)
    plain = unquote(parts.path) if parts.scheme == "file" and not parts.netloc else path
    if not plain.startswith("/"):
        raise BadInput(f"{option} {path}: expected an absolute path or a file:// URI on the cluster")
    return plain


def _stage(folder: Path, grid: str, plugins: Sequence[str]) -> tuple[str, list[str]]:
    """Copy sources, grid and plugins; return the grid's and the plugins' names inside the folder."""
    for package in _PACKAGES:
        found = importlib.util.find_spec(package)
        for origin in (found.submodule_search_locations or ()) if found else ():
            shutil.copytree(origin, folder / package, ignore=_ignored, dirs_exist_ok=True)
    if Path(grid).is_file():
        (folder / "given").mkdir()
        grid = str(Path(shutil.copy(grid, folder / "given")).relative_to(folder))
    staged = []
    for number, plugin in enumerate(plugins):
        if not Path(plugin).is_file():
            raise BadInput(f"--plugin {plugin}: no such file")
        place = folder / "plugins" / str(number)  # two plugins may have one name
        place.mkdir(parents=True)
        staged.append(str(Path(shutil.copy(plugin, place)).relative_to(folder)))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > _LARGEST_BYTES:
        raise BadInput(f"submit: the package has {size / 2**20:.1f} MiB, at most {_LARGEST_BYTES / 2**20:.0f} travel")
    return grid, staged


def _ignored(folder: str, names: list[str]) -> set[str]:
    return {
        name
        for name in names
        if name in _LEFT_OUT or not (Path(folder, name).is_dir() or Path(name).suffix in _SUFFIXES)
    }


def _connect(address: str) -> Client:
    from ray.job_submission import JobSubmissionClient

    client: Client = JobSubmissionClient(address)
    return client


def _follow(client: Client, job: str) -> int:
    """Print the log as it grows, across broken connections; return the job's exit status."""
    log = _Log()
    while True:
        with contextlib.suppress(RuntimeError, OSError):  # the connection broke: read again, print from where we were
            asyncio.run(log.tail(client, job))
        info = client.get_job_info(job)
        status = str(getattr(info.status, "value", info.status))
        if status in _ENDED:
            code = getattr(info, "driver_exit_code", None)
            return _ENDED[status] if code is None else int(code)
        time.sleep(_RETRY_S)


class _Log:
    """A job's log on standard output; each character once, however often it is sent."""

    def __init__(self) -> None:
        self.printed = 0

    async def tail(self, client: Client, job: str) -> None:
        """Print what is new until the log ends or the connection breaks."""
        seen = 0
        async for text in client.tail_job_logs(job):
            seen += len(text)
            if seen > self.printed:
                sys.stdout.write(text[-(seen - self.printed) :])
                sys.stdout.flush()
                self.printed = seen


@contextmanager
def _explained(address: str) -> Iterator[None]:
    """Turn what can go wrong between here and the cluster into one line; no token is ever part of it."""
    try:
        yield
    except (ConnectionError, OSError) as error:
        raise BadInput(f"--address {address}: no Ray job server answers there ({type(error).__name__})") from None
    except Exception as error:
        if type(error).__name__ != "AuthenticationError" and "401" not in str(error):
            if not isinstance(error, RuntimeError):
                raise
            said = " ".join(str(error).split())  # what the job server answered, e.g. that no agent is there yet
            raise BadInput(f"--address {address}: the cluster did not take the job ({said})") from None
        given = "does not know the token given" if os.environ.get("RAY_AUTH_MODE") == "token" else "wants a token"
        raise BadInput(
            f"--address {address}: the cluster {given} (HTTP 401); set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the one that `ray get-auth-token --generate` made on the cluster"
        ) from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (a part of the command line)
