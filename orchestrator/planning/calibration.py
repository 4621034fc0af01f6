"""The grid's section `calibration`: how many unmarked models and fresh keys tell how a score behaves without a mark."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from assay.orchestrator.planning.written import Places, Steps, mapping
from assay.tasks.errors import BadInput
from assay.tasks.training.schedule import Frozen

# Names under which `train` and a task's own parameters take the same settings.
ELSEWHERE = {"references": "references", "processed": "processed", "calibration_keys": "keys"}


class Calibration(Frozen):
    """What may stand in the section; a field that is left out follows from the profile."""

    references: int | None = Field(None, ge=1, description="unmarked models")
    keys: int | None = Field(None, ge=10, description="fresh keys read from each of them")
    processed: int | None = Field(None, ge=0, description="references that are fine-tuned, distilled and pruned too")


def apart(params: dict[str, Any], at: Steps, given: dict[str, Any], to: Steps, places: Places) -> dict[str, Any]:
    """Take the settings of the calibration out of `params`, written at `at`; return `given`, at `to`, with them.

    Raises:
        BadInput: a setting is given both ways.
    """
    found = dict(given)
    for name, field in ELSEWHERE.items():
        if name not in params:
            continue
        if field in found:
            raise BadInput(
                f"{places.where(*at, name)}: {name} is calibration.{field}, which is given too "
                f"({places.where(*to, field)}); keep one"
            )
        found[field] = params.pop(name)
        places.move((*at, name), (*to, field))
    return found


def sections(layer: dict[str, Any], at: Steps, places: Places) -> dict[str, dict[str, Any]]:
    """Return `train` and `calibration` of a grid or of a profile, each setting in the section that it belongs to."""
    found = {name: mapping(layer.get(name), name, places.where(*at, name)) for name in ("train", "calibration")}
    found["calibration"] = apart(found["train"], (*at, "train"), found["calibration"], (*at, "calibration"), places)
    return found
