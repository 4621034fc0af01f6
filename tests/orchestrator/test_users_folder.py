"""Whole sweeps on Ray, called in a user's own folder whose files bear common names, and under `uv run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from assay.results.parquet import read_rows

ROOT = Path(__file__).parents[2]
GRID = {
    "name": "tiny",
    "tasks": ["digits-cnn-mini"],
    "methods": [{"uchida": {"allow_weak": True, "bits": 16}}],
    "attacks": ["none"],
    "seeds": 1,
    "profile": "smoke",
    "train": {"samples": 200, "epochs": 1, "test_samples": 50, "references": 1, "calibration_keys": 10},
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: packages and modules of our folders' names, some of which cannot be imported."""
    for name in ("methods", "results", "attacks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for name in ("tasks", "grids", "orchestrator"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the user\\'s own')\n", "utf-8")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(GRID), "utf-8")
    return tmp_path


def called(folder: Path, *arguments: str, **environment: str) -> str:
    """Run the command line there as its installed script does, without the folder on the path; return its output."""
    code = "import sys; from assay.orchestrator.command.cli import main; sys.exit(main())"
    # `-P`, because `-c` would put the folder on the driver's own path.
    command = [sys.executable, "-P", "-c", code, *arguments]
    given = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


RUN = ("run", "tiny.yaml", "-o", "out", "--workers", "2", "--mlflow-uri", "http://127.0.0.1:9", "--json")


def test_a_folder_with_our_folders_names_on_the_path(folder: Path) -> None:
    path = os.pathsep.join([".", str(ROOT / "src")])
    ended = json.loads(called(folder, *RUN, PYTHONPATH=path).splitlines()[-1])
    assert (ended["failed"], ended["blocked"]) == (0, 0)
    assert ended["executed"] == ended["stages"]
    assert set(read_rows(folder / "out").status) == {"ok"}
    assert "uchida" in called(folder, "table", "out", PYTHONPATH=path)
    assert "sign-mark" in called(folder, "check", str(ROOT / "examples" / "sign_mark.py"), PYTHONPATH=path)


def test_third_party_names_in_the_folder_do_not_reach_workers(folder: Path) -> None:
    for name in ("torch", "pandas", "numpy", "assay", "pydantic"):
        (folder / f"{name}.py").write_text("raise ImportError('the user\\'s own')\n", "utf-8")
    ended = json.loads(called(folder, *RUN).splitlines()[-1])
    assert (ended["failed"], ended["blocked"]) == (0, 0)
    assert ended["executed"] == ended["stages"]


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="plays uv with a shell")
def test_under_uv_run_workers_start(folder: Path) -> None:
    """Ray looks for an ancestor called `uv run`; a shell of that name runs the file `run`."""
    (folder / "uv").symlink_to("/bin/sh")
    code = "import sys; from assay.orchestrator.command.cli import main; sys.exit(main())"
    quoted = " ".join(f"'{part}'" for part in (sys.executable, "-P", "-c", code, *RUN))
    (folder / "run").write_text(f"{quoted}\nexit $?\n", "utf-8")
    given = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    given.pop("RAY_ENABLE_UV_RUN_RUNTIME_ENV", None)
    done = subprocess.run(
        ["./uv", "run"], cwd=folder, env=given, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == 0
