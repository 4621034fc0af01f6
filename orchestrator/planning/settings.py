"""`--set K=V`: one setting of the command line, applied to a parsed grid."""

from __future__ import annotations

from typing import Any

import yaml

from assay.orchestrator.planning.calibration import ELSEWHERE, apart
from assay.orchestrator.planning.written import Places, Steps, kind, mapping, value_of
from assay.tasks.errors import BadInput, unknown

AXES = ("tasks", "methods", "attacks")
PLAIN = ("name", "tasks", "methods", "attacks", "seeds", "attack_seeds", "train", "calibration")  # that --set takes
CHAIN = "chain"  # of attacks, each on the surrogate of the one before


def apply(data: dict[str, Any], setting: str, places: Places) -> None:
    """Apply one `K=V` to a grid whose sections are in order; what it changes was written at `--set` from then on.

    Raises:
        BadInput: no such setting, or no YAML value; one line that opens with `--set`.
    """
    path, sign, text = setting.partition("=")
    where = f"--set {setting}"
    if not sign:
        raise BadInput(f"{where}: expected K=V, e.g. --set train.epochs=3")
    try:
        value = value_of(text)
    except (yaml.YAMLError, RecursionError):
        raise BadInput(f"{where}: {text!r} is no YAML value") from None
    steps = path.split(".")
    if steps[0] not in PLAIN:
        allowed = [*PLAIN, "train.<field>", "calibration.<field>", "methods.<key>.<parameter>"]
        raise unknown("setting", steps[0], allowed, where)
    if len(steps) == 1:
        _whole(data, steps[0], value, places, where)
    elif steps[0] in ("train", "calibration") and len(steps) == 2:
        section, name = steps
        if section == "train" and name in ELSEWHERE:
            section, name = "calibration", ELSEWHERE[name]
        data[section] = {**data[section], name: value}
        places.put((section, name), where)
    elif steps[0] in AXES and len(steps) == 3:
        _override(data, steps[0], steps[1], {steps[2]: value}, places, where)
    else:
        raise BadInput(
            f"{where}: expected seeds=, train.<field>=, calibration.<field>=, "
            "or methods|attacks|tasks.<key>.<parameter>="
        )


def _whole(data: dict[str, Any], name: str, value: Any, places: Places, where: str) -> None:
    places.put((name,), where)
    if name in ("train", "calibration"):
        value = mapping(value, name, where)
    if name == "train":
        moved = apart(value, ("train",), {}, ("calibration",), places)
        for field in moved:
            places.put(("calibration", field), where)
        data["calibration"] = {**data["calibration"], **moved}
    data[name] = value


def _override(data: dict[str, Any], axis: str, key: str, change: dict[str, Any], places: Places, where: str) -> None:
    """Change a parameter wherever an axis names `key`, within chains too."""
    written = data.get(axis) or []
    items = written if isinstance(written, list) else [written]
    if isinstance(written, dict):
        places.move((axis,), (axis, 0))
    found: list[str] = []
    data[axis] = _changed(items, key, change, (axis,), (places, where, found))
    if key not in found:
        raise unknown(axis.removesuffix("s"), key, dict.fromkeys(found), where)


def _changed(
    items: list[Any], key: str, change: dict[str, Any], at: Steps, notes: tuple[Places, str, list[str]]
) -> list[Any]:
    places, where, found = notes
    changed: list[Any] = []
    for index, item in enumerate(items):
        pairs = {item: {}} if isinstance(item, str) else item
        if not isinstance(pairs, dict):
            changed.append(item)
            continue
        new = dict(pairs)
        for name, params in pairs.items():
            found.append(str(name))
            if name == CHAIN and isinstance(params, list) and key != CHAIN:
                new[name] = _changed(params, key, change, (*at, index, CHAIN), notes)
            elif name == key:
                if params is not None and not isinstance(params, dict):
                    raise BadInput(f"{where}: {key} has no parameters, found {kind(params)}")
                new[name] = {**(params or {}), **change}
                for parameter in change:
                    places.put((*at, index, key, parameter), where)
        changed.append(item if new == pairs and isinstance(item, str) else new)
    return changed
