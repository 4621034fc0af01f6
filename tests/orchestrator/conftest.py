"""Makes `simulated_stages` importable here and in Ray's workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HERE = str(Path(__file__).parent)
sys.path.insert(0, _HERE)
os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (_HERE, os.environ.get("PYTHONPATH")) if part)
