"""Killed drivers and workers cost nothing but time: the short form of benchmarks/kill.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILL = Path(__file__).parents[2] / "benchmarks" / "kill.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rows_survive_kills_of_drivers_and_workers_bit_for_bit() -> None:
    command = [sys.executable, str(KILL), "--drivers", "2", "--workers", "2", "--nodes", "0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout)
    assert counts["drivers"]["drivers_killed"] == 2
    assert counts["workers"]["workers_killed"] >= 1
    assert counts["drivers"]["cells"] == counts["workers"]["cells"] == 12
