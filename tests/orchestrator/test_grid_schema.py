"""The JSON Schema of grids: shipped grids fit it, mistakes do not."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from assay.orchestrator.planning.catalogue import shipped_grids
from assay.orchestrator.planning.grid import TOP, parse
from assay.orchestrator.planning.grid_schema import grid_schema
from assay.orchestrator.planning.registry import Registry
from assay.orchestrator.planning.written import value_of
from assay.tasks.errors import BadInput

REGISTRY = Registry()
BASE = "tasks: [digits-lenet5]\nmethods: [uchida]\nattacks: [none]\n"


@pytest.fixture(scope="module")
def schema() -> Any:
    found = grid_schema(REGISTRY)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.mark.parametrize("name", sorted(shipped_grids()))
def test_a_shipped_grid_fits(name: str, schema: Any) -> None:
    schema.validate(value_of(shipped_grids()[name].read_text("utf-8")))


def test_it_knows_every_key_of_a_grid(schema: Any) -> None:
    assert set(schema.schema["properties"]) == set(TOP)


FITTING = [
    BASE,
    BASE + "name: x\nabout: y\nseeds: [3]\nattack_seeds: 2\ncalibration: {references: 3}\ntrain: {lr: 1e-3}",
    BASE + "profiles: {laptop: {seeds: 1, calibration: {keys: 20}, train: {drops: [0.5]}}, own: }",
    BASE.replace("[none]", "[{chain: [fine-tune, prune: {ratio: [0.5, 0.8]}]}]"),
    BASE.replace("[uchida]", "[{uchida: {bits: [8, 16], only: digits-lenet5}}]"),
    BASE.replace("[digits-lenet5]", "{digits-lenet5: {epochs: [1, 2], references: 2}}"),
    "tasks: digits-lenet5\nmethods: {uchida: }\nattacks: none",
]
MISTAKEN = [
    BASE + "seed: 3",
    BASE + "seeds: 20241128",
    BASE + "train: {epoch: 3}",
    BASE + "train: {lr: fast}",
    BASE + "calibration: {keys: 1}",
    BASE + "profiles: {laptop: {name: x}}",
    BASE.replace("uchida", "uchda"),
    BASE.replace("[uchida]", "[{uchida: {bit: 8}}]"),
    BASE.replace("[uchida]", "[{uchida: {bits: eight}}]"),
    BASE.replace("[none]", "[{chain: [fine-tune]}]"),
    BASE.replace("[none]", "[{chain: [fine-tune, prunes]}]"),
    BASE.replace("digits-lenet5", "digits-lenet"),
    BASE.replace("[none]", "[]"),
]


@pytest.mark.parametrize("text", FITTING)
def test_what_the_parser_takes_fits(text: str, schema: Any, tmp_path: Any) -> None:
    (tmp_path / "grid.yaml").write_text(text, "utf-8")
    parse(str(tmp_path / "grid.yaml"), REGISTRY)
    schema.validate(value_of(text))


@pytest.mark.parametrize("text", MISTAKEN)
def test_what_the_parser_refuses_does_not(text: str, schema: Any, tmp_path: Any) -> None:
    (tmp_path / "grid.yaml").write_text(text, "utf-8")
    with pytest.raises(BadInput):
        parse(str(tmp_path / "grid.yaml"), REGISTRY)
    assert not schema.is_valid(value_of(text))
