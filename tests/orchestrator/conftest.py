"""Makes `simulated_stages` importable in Ray's workers; pytest's own path is in setup.cfg."""

from __future__ import annotations

import os
from pathlib import Path

_SUPPORT = str(Path(__file__).parents[1] / "support")
os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (_SUPPORT, os.environ.get("PYTHONPATH")) if part)
