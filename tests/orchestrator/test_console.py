"""Standard output: whole lines, texts as they are, readers that leave, disks that are full, plugins that print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from assay.orchestrator.command.console import others_on_stderr, say, show

LONG = "0.123456789 " * 40
HOSTILE = "lr sweep [v2] [/old] :warning: [bold]x[/bold]"


def ran(code: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"from assay.orchestrator.command.console import *\n{code}"]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **options)


def test_what_people_wrote_is_no_markup_and_no_line_is_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    say((HOSTILE, "bold"), " ", LONG)
    table = Table(box=None, pad_edge=False)
    for title in ("name", "numbers"):
        table.add_column(title)
    table.add_row(Text(HOSTILE), Text(LONG))
    show(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{HOSTILE} {LONG}".rstrip()
    assert [line.split()[0] for line in lines[1:]] == ["name", "lr"]
    assert lines[2].endswith(LONG.rstrip())
    assert HOSTILE in lines[2]


def test_a_reader_that_leaves_is_no_error() -> None:
    ours, theirs = os.pipe()
    process = ran("[say('x' * 1000) for _ in range(1000)]; print('still', end='')", stdout=theirs)
    os.close(theirs)
    os.close(ours)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_line() -> None:
    code = "try: say('x')\nexcept AssayError as e: complain(str(e)); raise SystemExit(2)"
    with open("/dev/full", "w", encoding="utf-8") as full:
        process = ran(code, stdout=full)
    said = process.communicate()[1]
    assert (process.returncode, said.count("\n")) == (2, 1)
    assert "standard output: cannot write (No space left on device)" in said


def test_a_closed_or_narrow_output_is_usable() -> None:
    code = "from assay.orchestrator.command.console import *; prepare(); say('x')"
    closed = subprocess.run(
        ["/bin/sh", "-c", 'exec >&-; exec "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (closed.returncode, closed.stderr) == (0, "")
    narrow = ran("prepare(); say('± 3')", stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert narrow.communicate() == ("\\xb1 3\n", "")


def test_what_others_print_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with others_on_stderr():
        print("python")  # noqa: T201
        subprocess.run(["/bin/echo", "subprocess"], check=True)
    say("ours")
    printed = capfd.readouterr()
    assert printed.out == "ours\n"
    assert set(printed.err.split()) == {"python", "subprocess"}


@pytest.mark.slow
def test_a_plugin_that_prints_leaves_json_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from assay.orchestrator.command.cli import main

    plugin = tmp_path / "chatty.py"
    plugin.write_text("import os\nprint('hello')\nos.system('echo there')\n", "utf-8")
    assert main(["list", "grids", "--plugin", str(plugin), "--json"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)
    assert {"hello", "there"} <= set(printed.err.split())
