"""The commands on real folders: paths, statuses, logs, readers that write nothing, several grids, the MLflow page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from assay.orchestrator.command import serve
from assay.orchestrator.command.cli import main
from assay.results import mlflow_mirror, union
from assay.results.decisions import DEFAULT, Rules
from assay.results.mlflow_folder import local_uri
from assay.results.parquet import read_records, read_rows

TINY: dict[str, Any] = {
    "name": "tiny [v2] [/old]",
    "tasks": ["digits-cnn-mini"],
    "methods": ["clean"],
    "attacks": ["none"],
    "profile": "smoke",
    "train": {"epochs": 1, "samples": 100, "test_samples": 50},
    "calibration": {"references": 1, "keys": 10},
}
FAILING = {**TINY, "methods": [{"uchida": {"strength": 0.0, "bits": 16}}]}
INLINE = ("--executor", "inline", "--mlflow-uri", "http://127.0.0.1:9")
Capture = pytest.CaptureFixture[str]


def grid(folder: Path, values: dict[str, Any], name: str = "grid.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(values), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps: `fine`, in a folder whose name looks like markup, and `bad`, whose mark misses its gate."""
    folder = tmp_path_factory.mktemp("swept")
    assert main(["run", grid(folder, TINY), "-o", str(folder / "fine [/x]"), *INLINE]) == 0
    assert main(["run", grid(folder, FAILING), "-o", str(folder / "bad"), *INLINE]) == 1
    return folder


def said(capsys: Capture, *arguments: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == status
    printed = capsys.readouterr()
    if status == 2:
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        return printed.err
    return printed.out


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


# --- names and paths -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_names_that_look_like_markup_are_printed_as_they_are(swept: Path, capsys: Capture) -> None:
    for command in (["status", str(swept / "fine [/x]")], ["plan", str(swept / "grid.yaml")]):
        assert said(capsys, *command).startswith("tiny [v2] [/old] (smoke)")
    printed = said(capsys, "run", str(swept / "grid.yaml"), "-o", str(swept / "bad"), *INLINE, status=1)
    assert f"see: assay status {swept}/bad" in printed


@pytest.mark.slow
def test_a_folder_to_type_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    printed = said(capsys, "run", grid(tmp_path, TINY), *INLINE)
    assert "see: assay table 'runs/tiny [v2] [-old]'" in printed
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny [v2] [-old]"]


@pytest.mark.parametrize(
    ("option", "command"),
    [
        ("--data-root={}", ["plan", "GRID"]),
        ("-o={}", ["plan", "GRID"]),
        ("--plugin={}", ["plan", "GRID"]),
        ("{}", ["status"]),
    ],
)
def test_a_tilde_is_home_behind_every_option(
    option: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from assay.orchestrator.command.cli import _HANDLERS
    from assay.orchestrator.command.parser import build

    monkeypatch.setenv("HOME", str(tmp_path))
    found = build(_HANDLERS).parse_args([*command, option.format("~/a/../b")])
    values = [value for entry in vars(found).values() for value in (entry if isinstance(entry, list) else [entry])]
    assert tmp_path / "b" in values


def test_a_grid_behind_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    grid(tmp_path, TINY)
    assert "1 cells" in said(capsys, "plan", "~/grid.yaml")


def test_a_system_that_refuses_is_one_line(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "found a file" in said(capsys, "run", grid(tmp_path, TINY), "-o", str(file), *INLINE, status=2)
    inside = said(capsys, "run", grid(tmp_path, TINY), "-o", str(file / "x"), *INLINE, status=2)
    assert "Not a directory" in inside

    def full(*_: Any) -> int:
        raise OSError(28, os.strerror(28), str(tmp_path / "store"))

    monkeypatch.setitem(sys.modules["assay.orchestrator.command.cli"]._HANDLERS, "status", full)
    text = said(capsys, "status", "x", status=2)
    assert f"{tmp_path}/store: No space left on device; make room" in text


@pytest.mark.slow
@pytest.mark.parametrize(("name", "values", "status"), [("fine [/x]", TINY, 0), ("bad", FAILING, 1)])
def test_a_reader_that_leaves_does_not_change_the_status_of_a_sweep(
    name: str, values: dict[str, Any], status: int, swept: Path, tmp_path: Path
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "assay.orchestrator.command.cli", "run", grid(tmp_path, values)]
    ended = subprocess.run(
        [*command, "-o", str(swept / name), *INLINE], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(theirs)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_counts_the_plans_stages_not_the_stores(swept: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    shutil.copytree(swept / "fine [/x]", out)
    foreign = out / "store" / "aa" / ("a" * 64)
    foreign.mkdir(parents=True)
    (foreign / "record.json").write_text("{}")
    note = json.loads((out / "sweep.json").read_text())
    assert "3 stages; run the grid again" in said(capsys, "status", str(out)) or "stage_keys" in note
    row = read_records(out)[0]
    keys = [row["clean_key"], row["embed_key"], row["attack_key"]]
    (out / "sweep.json").write_text(json.dumps({**note, "stage_keys": keys}))
    assert "3 of 3 stages committed" in said(capsys, "status", str(out))
    assert json.loads(said(capsys, "status", str(out), "--json"))["committed_stages"] == 3


@pytest.mark.parametrize("keep_note", [True, False])
def test_reading_views_alone_changes_nothing(keep_note: bool, swept: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "views"
    shutil.copytree(swept / "bad", out)
    shutil.rmtree(out / "store")
    if not keep_note:
        (out / "sweep.json").unlink()
    before = snapshot(out)
    printed = said(capsys, "status", str(out))
    assert "views alone, no store here, 1 cells" in printed
    assert "1 blocked" in printed
    assert "see: assay log" not in printed, "there is no trace to be seen"
    assert "blocked" in said(capsys, "log", str(out), read_records(out)[0]["cell_key"][:10])
    assert "uchida" in said(capsys, "table", str(out))
    said(capsys, "plan", str(swept / "grid.yaml"), "-o", str(out))
    assert snapshot(out) == before


def test_reading_a_sweep_changes_nothing(swept: Path, capsys: Capture) -> None:
    before = snapshot(swept / "bad")
    for command in ("status", "table", "claims"):
        said(capsys, command, str(swept / "bad"))
    assert snapshot(swept / "bad") == before


# --- log -------------------------------------------------------------------------------------------------------------


def test_a_failure_leads_from_status_to_its_trace(swept: Path, capsys: Capture) -> None:
    status = said(capsys, "status", str(swept / "bad"))
    command = status.partition("(see: assay ")[2].partition(")")[0].split()
    printed = said(capsys, *command)
    assert "is below the gate" in printed
    assert "Traceback" in printed
    assert "NotEmbedded" in printed


def test_a_stage_says_what_it_is_made_of(swept: Path, capsys: Capture) -> None:
    out = swept / "fine [/x]"
    row = read_records(out)[0]
    values = json.loads(said(capsys, "log", str(out), row["attack_key"][:9], "--json"))
    (stage,) = values["stages"]
    assert values["cell"] is None
    assert (stage["key"], stage["status"]) == (row["attack_key"], "committed")
    assert {"role": "embed", "key": row["embed_key"]}.items() <= stage["parents"][0].items()
    assert "embed clean" in stage["parents"][0]["label"]
    text = said(capsys, "log", str(out), row["clean_key"])
    for part in ("clean clean", "environment: ", "costs: ", "curve "):
        assert part in text
    cell = said(capsys, "log", str(out), row["cell_key"][:12])
    assert "cell clean x none on digits-cnn-mini, seed 0.0" in cell
    assert row["attack_key"] in cell


def test_a_key_that_names_nothing_or_too_much(swept: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    for digit in "01":
        (out / "store" / "ab" / ("abcd" + digit * 60)).mkdir(parents=True)
    assert "names 2 keys" in said(capsys, "log", str(out), "abcd", status=2)
    assert "did you mean 'abcd11'" in said(capsys, "log", str(out), "abce11", status=2)
    assert "at least 4 digits" in said(capsys, "log", str(out), "ab", status=2)
    assert "0-9, a-f" in said(capsys, "log", str(out), "embed", status=2)
    assert "no such folder" in said(capsys, "log", str(tmp_path / "none"), "abcd", status=2)


def test_a_long_curve_is_shortened_to_its_ends_and_some_between() -> None:
    from assay.orchestrator.command.logs import _curves

    points = [{"curve": "task", "step": step, "main": step / 100} for step in range(1, 101)]
    found = _curves(points)["task"]
    assert found["steps"] == 100
    steps = [row["step"] for row in found["shown"]]
    assert (steps[0], steps[-1], len(steps)) == (1, 100, 6)


# --- several grids ---------------------------------------------------------------------------------------------------


def test_grids_are_united(swept: Path, tmp_path: Path, capsys: Capture) -> None:
    more = grid(tmp_path, {**TINY, "name": "more", "attacks": ["none", "prune"]})
    one, two, both = (
        json.loads(said(capsys, "plan", *grids, "--json"))
        for grids in ([more], [str(swept / "grid.yaml")], [more, str(swept / "grid.yaml")])
    )
    assert set(both["keys"]) == set(one["keys"]) | set(two["keys"])
    assert both["cells"] == 3
    assert both["name"] == "more+tiny [v2] [/old]"
    other = grid(tmp_path, {**TINY, "profile": "laptop"}, "other.yaml")
    assert "give one for all: --profile" in said(capsys, "plan", more, other, status=2)


# --- usage -----------------------------------------------------------------------------------------------------------


def test_version_schema_and_completion(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("assay ")
    assert "methods" in json.loads(said(capsys, "schema"))["properties"]
    for shell in ("bash", "zsh", "tcsh"):
        assert "mlflow" in said(capsys, "completion", shell)
    script = said(capsys, "completion", "bash")
    assert subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "quickstart", "-o", ""],
        ["plan", "quickstart", "--data-root", "~nobody-of-this-name/x"],
        ["table", "x", "--alpha", "2"],
        ["table", "x", "--largest-loss", "nan"],
        ["mlflow", "ui", "x", "--port", "0"],
        ["mlflow", "ui", "x", "--port", "99999999999999999999"],
        ["plan", "quickstart", "--threads", "²"],
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_a_reason_is_listed_once_with_all_that_it_holds_for(capsys: Capture) -> None:
    printed = said(capsys, "list", "methods")
    line = next(line for line in printed.splitlines() if line.startswith("deepipr"))
    assert line.count("passports need a convolution") == 1
    assert "alexnet, " in line


# --- MLflow's page ---------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_taken_port_is_one_line(port: int, tmp_path: Path, capsys: Capture) -> None:
    text = said(capsys, "mlflow", "ui", str(tmp_path), "--port", str(port), status=2)
    assert f"--port {port}: cannot listen there" in text
    assert "--host 192.0.2.1" in said(capsys, "mlflow", "ui", str(tmp_path), "--host", "192.0.2.1", status=2)


def test_where_the_page_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    asked: list[Any] = []

    def sync(outs: list[Path], uri: str | None = None) -> dict[str, int]:
        asked.append((outs, uri))
        return {}

    def show(command: list[str]) -> int:
        asked.append(command)
        return 0

    monkeypatch.setattr(mlflow_mirror, "sync", sync)
    monkeypatch.setattr(mlflow_mirror, "ui_command", lambda out, host, port: [str(out), host, str(port)])
    monkeypatch.setattr(serve, "serve", show)
    monkeypatch.setattr(serve, "check_port", lambda *_: None)
    one, two = tmp_path / "one", tmp_path / "two"
    said(capsys, "mlflow", "ui", str(one), "--host", "192.0.2.1", "--port", "5001")
    assert asked == [([one], None), [str(one), "192.0.2.1", "5001"]]
    asked.clear()
    said(capsys, "mlflow", "ui", str(one), str(two))
    assert asked == [([one, two], local_uri(one)), [str(one), "127.0.0.1", "5000"]]
    asked.clear()
    assert "the server shows it" in said(capsys, "mlflow", "ui", str(one), "--mlflow-uri", "http://user:secret@h:1")
    assert asked == [([one], "http://user:secret@h:1")]
    text = said(capsys, "mlflow", "ui", str(one), "--mlflow-uri", "sqlite:////x.db", status=2)
    assert "mlflow ui --backend-store-uri" in text


SERVER = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_server_and_its_workers(number: signal.Signals) -> None:
    begin = "import sys; from assay.orchestrator.command.serve import serve; "
    code = f"{begin}sys.exit(serve([sys.executable, '-c', {SERVER!r}]))"
    ours = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert ours.stdout is not None
    assert ours.stdout.readline() == "up\n"
    ours.send_signal(number)
    assert ours.wait(30) == 128 + number
    assert ours.stdout.read() == "", "nobody holds the pipe any more: server and worker are gone"
    ours.stdout.close()


def test_a_server_that_fails_is_a_failure() -> None:
    begun = time.monotonic()
    assert serve.serve([sys.executable, "-c", "raise SystemExit(3)"]) == 2
    assert time.monotonic() - begun < 10


def test_readers_of_several_folders_pass_on_the_rules(monkeypatch: pytest.MonkeyPatch, swept: Path) -> None:
    asked: list[tuple[list[Path], Rules]] = []

    def read(outs: list[Path], rules: Rules) -> pd.DataFrame:
        asked.append((outs, rules))
        return read_rows(outs[0])

    monkeypatch.setattr(union, "read", read)
    out = swept / "bad"
    assert main(["table", str(out), str(out), "--alpha", "0.01", "--largest-loss", "0.1"]) == 0
    assert main(["table", str(out)]) == 0
    assert asked == [([out, out], Rules(alpha=0.01, largest_loss=0.1)), ([out], DEFAULT)]
