"""What `assay list tasks` shows: all that the papers use, with the tables that use it, and nothing impossible."""

from __future__ import annotations

import csv
import json
from importlib import resources
from typing import Any

import pytest

from assay.orchestrator.planning.catalogue import list_tasks, published_tasks
from assay.tasks.errors import UnsupportedModel
from assay.tasks.task import named_tasks, resolve_task

PAPERS = ("function_coupled", "greedy_residuals", "ingrain", "null_embedding", "usp_csp")


@pytest.fixture(scope="module")
def listed() -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in list_tasks()}


def printed(paper: str) -> list[dict[str, str]]:
    with (resources.files("assay.results.published") / f"{paper}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("paper", PAPERS)
def test_every_printed_network_is_a_task_with_its_tables(paper: str, listed: dict[str, dict[str, Any]]) -> None:
    for row in printed(paper):
        table, attack = f"{paper}/{row['table']}", json.loads(row["attack_params"])
        wanted = {"victim": f"{row['dataset']}-{row['model']}"}
        if "student" in attack:
            wanted["student"] = f"{row['dataset']}-{attack['student']}"
        if "target" in attack:
            wanted["target"] = f"{attack['target']}-{row['model']}"
        for role, key in wanted.items():
            assert table in listed[key]["roles"][role], f"{key} as {role} of {table}"
            assert table in listed[key]["tables"]
            assert listed[key]["published"]


def test_nothing_is_called_published_that_is_not(listed: dict[str, dict[str, Any]]) -> None:
    tables = {f"{paper}/{row['table']}" for paper in PAPERS for row in printed(paper)}
    for key, row in listed.items():
        assert set(row["tables"]) <= tables
        assert row["published"] == bool(row["tables"]) == (key in published_tasks())
    assert listed["digits-cnn-mini"]["roles"] == {}


def test_published_tasks_come_first_and_tables_in_their_order(listed: dict[str, dict[str, Any]]) -> None:
    flags = [row["published"] for row in listed.values()]
    assert flags == sorted(flags, reverse=True)
    assert sum(flags) == len(published_tasks())
    own = [table for table in listed["cifar10-resnet18"]["tables"] if table.startswith("usp_csp")]
    assert own[:3] + own[-1:] == ["usp_csp/2", "usp_csp/3", "usp_csp/4", "usp_csp/15"]


def test_rows_are_plain_values(listed: dict[str, dict[str, Any]]) -> None:
    assert json.loads(json.dumps(list(listed.values()))) == list(listed.values())
    assert (listed["trec-lstm"]["kind"], listed["mnist-lenet5"]["kind"]) == ("text", "image")


def test_what_cannot_be_built_is_not_listed(listed: dict[str, dict[str, Any]]) -> None:
    left_out = set(named_tasks()) - set(listed)
    assert "mnist-vgg16" in left_out
    for key in left_out:
        task = resolve_task(key, "smoke", {})
        with pytest.raises(UnsupportedModel):
            task.architecture(task.model)
