"""What is installed: one top-level name, with its data, beside a user's own packages of common names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("build")
    kept = ("src", "tasks", "methods", "attacks", "results", "orchestrator", "grids", "tests")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in kept:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        if "No module named 'setuptools'" in done.stderr or "Cannot import 'setuptools" in done.stderr:
            pytest.skip("pip cannot build offline here: setuptools is not installed")
        pytest.fail(done.stdout + done.stderr)
    return next((folder / "wheels").glob("*.whl"))


def test_the_wheel_holds_one_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"assay"}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"assay"}
    inside = {name.removeprefix("assay/") for name in names}
    assert "py.typed" in inside
    for folder, pattern in (("grids", "*.yaml"), ("results/published", "*.csv"), ("orchestrator", "*.py")):
        expected = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern)}
        assert expected
        assert expected <= inside
    assert not [name for name in inside if name.endswith(".parquet") or "tests/" in name or "conftest" in name]


def test_a_users_own_packages_of_common_names_stay_theirs(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    names = ("tasks", "methods", "attacks", "results", "grids", "orchestrator")
    for name in names:
        (target / name).mkdir(parents=True)
        (target / name / "__init__.py").write_text("OWNER = 'the user'\n", "utf-8")
    command = [
        *PIP,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
        "--target",
        str(target),
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    code = f"import assay, {', '.join(names)}\n"
    code += "import assay.orchestrator.planning.registry, assay.results.parquet\nprint(assay.__file__)\n"
    code += "".join(f"assert {name}.OWNER == 'the user'\n" for name in names)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == target / "assay" / "__init__.py"
