"""The promise of `strict`: over many unmarked models x never-embedded keys, how many false positives?

    python benchmarks/false_claims.py [--methods adi uchida ...] [--models 20] [--keys 100] [--out DIR] [--json]

A sweep of the attack `false-claim`: unmarked models that took part in no calibration are trained once and shared by
all methods; each method is calibrated as in any sweep, on other models and other keys; fresh keys are drawn and counted
where they verify. Printed with the exact two-sided 95 % interval, which must hold 1e-3 or lie below it. Pairs of one
key on many models are not independent, so the interval is a little too narrow. Running again resumes.

A scheme whose keys cannot be drawn without training has no random keys: its line says so. Exit status 1 if a method
breaks the promise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from assay.methods import METHODS
from assay.orchestrator.command.cli import main as assay
from assay.results.decisions import DEFAULT
from assay.results.parquet import read_records
from assay.results.statistics import clopper_pearson

RULES = ("paper", "sok", "strict")


def grid(folder: Path, args: argparse.Namespace) -> Path:
    """Write the grid: smoke training, but calibration as on a laptop."""
    value = {
        "name": "false-claims",
        "tasks": [args.task],
        "methods": [{key: {"allow_weak": True}} for key in args.methods],
        "attacks": [{"false-claim": {"accused": args.models, "claims": args.keys, "surrogate_epochs": 0}}],
        "seeds": [1],  # calibrations draw from the data of seed 0
        "profile": "smoke",
        "train": {"epochs": args.epochs},
        "calibration": {"references": 5, "keys": 100},
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False), "utf-8")
    return path


def line(row: dict[str, Any], models: int, keys: int) -> dict[str, Any]:
    """Return what one method's row says."""
    if row["status"] != "ok":
        return {"method": row["method"], "status": row["status"], "reason": row["reason"]}
    metrics, trials = dict(row["metrics"]), models * keys
    hits = {rule: round(metrics[f"false_{rule}_unmarked"]) for rule in RULES}
    low, high = clopper_pearson(hits["strict"], trials)
    return {
        "method": row["method"],
        "trials": trials,
        **hits,
        "interval": [low, high],
        "kept": low <= DEFAULT.alpha,
        "threshold": metrics["threshold_strict"],
        "best": metrics["best_claim_unmarked"],
    }


def show(result: dict[str, Any]) -> str:
    """Return one line for people."""
    if "reason" in result:
        return f"{result['method']:<18} {result['status']}: {result['reason']}"
    low, high = result["interval"]
    return (
        f"{result['method']:<18} {result['strict']} of {result['trials']} at strict, "
        f"95 % interval {low:.2e} ... {high:.2e} {'ok' if result['kept'] else 'BROKEN'}  "
        f"(paper {result['paper']}, sok {result['sok']}; "
        f"threshold {result['threshold']:.3f}, best claim {result['best']:.3f})"
    )


def main() -> int:
    """Run the sweep and print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=sorted(key for key in METHODS if key != "clean"))
    parser.add_argument("--task", default="digits-cnn-mini")
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "assay-false-claims")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    status = assay(["run", str(grid(args.out, args)), "-o", str(args.out), "--executor", "inline"])
    if status == 2:  # said in one line already
        return 2
    config = {"accused": args.models, "claims": args.keys}
    rows = [row for row in read_records(args.out) if config.items() <= json.loads(row["attack_config"]).items()]
    found = [line(row, args.models, args.keys) for row in sorted(rows, key=lambda row: str(row["method"]))]
    print(json.dumps(found) if args.json else "\n".join(show(result) for result in found))
    return 0 if all(result.get("kept", True) for result in found) else 1


if __name__ == "__main__":
    sys.exit(main())
