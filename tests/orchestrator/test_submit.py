"""Submitting a job, with a client that only remembers."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from assay.orchestrator.execution import submit as module
from assay.orchestrator.execution.submit import submit
from assay.tasks.errors import BadInput


class Fake:
    """A job server: its log comes in pieces, the connection may break after some of them."""

    def __init__(self, log: list[str], status: str = "SUCCEEDED", code: int | None = 0, breaks: int = 0) -> None:
        self.log, self.status, self.code, self.breaks = log, status, code, breaks
        self.entrypoint: list[str] = []
        self.files: dict[str, int] = {}
        self.environment: dict[str, Any] = {}

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str:
        self.entrypoint, self.environment = shlex.split(entrypoint), runtime_env
        folder = Path(runtime_env["working_dir"])
        self.files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        return "job-7"

    def get_job_info(self, job_id: str) -> Any:
        assert job_id == "job-7"
        status = "RUNNING" if self.breaks >= 0 else self.status
        return SimpleNamespace(status=status, driver_exit_code=self.code)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.breaks -= 1
        for number, text in enumerate(self.log):
            if self.breaks >= 0 and number == 1:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.0)


def send(client: Any, grid: str = "quickstart", **options: Any) -> int:
    given = {"data_root": None, "out": "/shared/out", **options}
    return submit("http://head:8265", [grid, "--profile=smoke"], client=client, **given)


def test_the_package_holds_our_sources_the_grid_and_the_plugins_and_little_else(tmp_path: Path) -> None:
    (tmp_path / "my grid.yaml").write_text("name: x")
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(f"# {place}")
    client = Fake([])
    plugins = [str(tmp_path / place / "mine.py") for place in ("a", "b")]
    assert send(client, str(tmp_path / "my grid.yaml"), plugins=plugins, data_root="file:///shared/da%20ta") == 0
    assert {
        "assay/orchestrator/work/stages.py",
        "assay/tasks/training/trainer.py",
        "assay/methods/parts/statistics.py",
        "assay/attacks/base.py",
    } <= client.files.keys()
    assert {"given/my grid.yaml", "plugins/0/mine.py", "plugins/1/mine.py"} <= client.files.keys()
    assert {Path(name).suffix for name in client.files} <= {".py", ".yaml", ".csv"}
    assert sum(client.files.values()) < 5 * 2**20
    assert client.entrypoint == [
        *(
            "python",
            "-m",
            "assay.orchestrator.command.cli",
            "run",
            "given/my grid.yaml",
            "--profile=smoke",
            "-o",
            "/shared/out",
        ),
        *("--data-root", "/shared/da ta", "--plugin=plugins/0/mine.py", "--plugin=plugins/1/mine.py"),
        *("--address", "auto"),
    ]
    assert not Path(client.environment["working_dir"]).exists(), "the copy is removed"


def test_a_shipped_grid_goes_by_name() -> None:
    client = Fake([])
    send(client)
    assert client.entrypoint[4] == "quickstart"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_the_exit_status_is_the_sweeps(status: str, code: int | None, expected: int) -> None:
    assert send(Fake(["text"], status, code)) == expected


def test_a_broken_connection_neither_loses_nor_repeats_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert send(Fake(["one\n", "two\n", "three\n"], breaks=2)) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_without_following_it_returns_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert send(Fake(["text"]), follow=False) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "job-7" in captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": None}, "expected -o OUT"),
        ({"out": "runs/x"}, "-o runs/x: expected an absolute path"),
        ({"data_root": "s3://bucket/data"}, "--data-root s3://bucket/data: expected an absolute path"),
        ({"plugins": ["nowhere.py"]}, "--plugin nowhere.py: no such file"),
    ],
)
def test_paths_that_are_not_the_clusters_are_refused(options: dict[str, Any], message: str) -> None:
    client = Fake([])
    with pytest.raises(BadInput, match=message):
        send(client, **options)
    assert client.entrypoint == []


class Refusing:
    """A job server that answers with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def submit_job(self, **request: Any) -> str:
        raise self.error


@pytest.mark.parametrize("mode", ["", "token"])
def test_a_missing_token_is_explained_and_never_shown(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-secret")
    with pytest.raises(BadInput, match=r"HTTP 401.*RAY_AUTH_MODE=token") as caught:
        send(Refusing(RuntimeError("Request failed with status code 401: bad token the-secret\ntrace")))
    assert "the-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_where_nobody_answers_is_one_line() -> None:
    with pytest.raises(BadInput, match="--address http://head:8265: no Ray job server answers there") as caught:
        send(Refusing(ConnectionError("Failed to connect\nto Ray")))
    assert "\n" not in str(caught.value)
