"""Where mistakes stand, numbers as YAML 1.2 writes them, names, seeds, calibrations and chains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from assay.orchestrator.planning.grid import Entry, Grid, parse
from assay.orchestrator.planning.planner import build_plan
from assay.orchestrator.planning.registry import Registry
from assay.tasks.errors import BadInput

REGISTRY = Registry()
BASE = "tasks: [digits-lenet5]\nmethods: [uchida]\nattacks: [none]\n"


def grid_of(folder: Path, text: str | bytes, *settings: str, profile: str | None = None) -> Grid:
    path = folder / "grid.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse(str(path), REGISTRY, profile, settings)


def mistake(folder: Path, text: str | bytes, *settings: str) -> str:
    with pytest.raises(BadInput) as caught:
        grid_of(folder, text, *settings)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-2.5e+2", -250.0),
        ("1_000", 1000),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("2024-11-28", "2024-11-28"),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("yes", True),
    ],
)
def test_scalars(written: str, value: object) -> None:
    from assay.orchestrator.planning.written import value_of

    found = value_of(written)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("how", ["train", "--set", "task", "method"])
def test_an_exponent_without_a_point_is_a_number(how: str, tmp_path: Path) -> None:
    texts = {
        "train": (BASE + "train: {lr: 1e-3}", ()),
        "--set": (BASE, ("train.lr=1e-3",)),
        "task": (BASE.replace("[digits-lenet5]", "[{digits-lenet5: {lr: 1e-3}}]"), ()),
        "method": (BASE.replace("[uchida]", "[{uchida: {strength: [1e-3, 1e-2]}}]"), ()),
    }
    text, settings = texts[how]
    plan = build_plan(grid_of(tmp_path, text, *settings), REGISTRY, None)
    assert len(plan.cells) == (2 if how == "method" else 1)


MISTAKES: dict[str, tuple[str | bytes, tuple[str, ...], list[str]]] = {
    "train": (BASE + "train:\n  epochs: 2\n  lr: fast\n", (), ["grid.yaml, line 6: train: lr: found 'fast'"]),
    "train, unknown": (BASE + "train:\n  epochs: 2\n  lrr: 1\n", (), ["line 6", "'lrr'; did you mean 'lr'?"]),
    "train by --set": (BASE, ("train.lr=fast",), ["--set train.lr=fast: train: lr: found 'fast'"]),
    "train of a profile": (
        BASE + "profiles:\n  laptop:\n    train:\n      lr: fast\n",
        (),
        ["grid.yaml, line 7: train: lr: found 'fast'"],
    ),
    "train is no mapping": (BASE + "train: 5\n", (), ["line 4", "found a number (5)"]),
    "train of a profile is no mapping": (BASE + "profiles: {laptop: {train: 3}}", (), ["line 4", "a number (3)"]),
    "paper": (BASE + "train: {paper: nobody}", (), ["line 4: train", "unknown paper 'nobody'"]),
    "task": (
        "tasks:\n- digits-lenet5:\n    epochs: two\nmethods: [uchida]\nattacks: [none]",
        (),
        ["line 3: epochs: found 'two'"],
    ),
    "one value of an axis": (
        "tasks: [digits-lenet5]\nmethods:\n- uchida:\n    bits:\n    - 8\n    - 9.5\nattacks: [none]",
        (),
        ["line 6: uchida: bits: found 9.5"],
    ),
    "method by --set": (BASE, ("methods.uchida.bits=[8, many]",), ["--set methods.uchida.bits=[8, many]: uchida"]),
    "whole axis by --set": (BASE, ("methods=[uchda]",), ["--set methods=[uchda]: unknown method 'uchda'"]),
    "a method is no mapping": (BASE.replace("[uchida]", "{uchida: 3}"), (), ["line 2: uchida takes"]),
    "and --set on it": (BASE.replace("[uchida]", "{uchida: 3}"), ("methods.uchida.bits=8",), ["--set", "number (3)"]),
    "key that is no text": (BASE.replace("[digits-lenet5]", "[{1: {epochs: 2}}]"), (), ["line 1", "a number (1)"]),
    "empty entry": (BASE.replace("[uchida]", "[{}]"), (), ["line 2", "found a mapping ({})"]),
    "latin-1": (b"about: caf\xe9\n" + BASE.encode(), (), ["line 1: not in UTF-8 (byte 0xe9)"]),
    "control character": (BASE + "about: \x01", (), ["not valid YAML", "special characters"]),
    "alias of itself": (BASE + "about: &x [*x]", (), ["line 4", "contains itself"]),
    "depth": ("- " * 3000 + "x", (), ["nested too deeply"]),
    "profile": (BASE + "profile: [laptop]", (), ["line 4: unknown profile"]),
    "many digits": (BASE + "seeds: " + "9" * 5000, (), ["line 4", "a number of 5000 digits"]),
    "forgotten brackets": (BASE + "seeds: 20241128", (), ["line 4", "at most 1000", "in brackets: seeds: [20241128]"]),
    "seed beyond a column": (BASE + "seeds: [99999999999999999999]", (), ["line 4", "seeds from 0 to"]),
    "attack seeds": (BASE + "attack_seeds: 5000", (), ["line 4", "attack_seeds: [5000]"]),
    "calibration": (BASE + "calibration:\n  keys: 5\n", (), ["line 5: calibration: keys: found 5"]),
    "calibration, unknown": (BASE + "calibration: {key: 50}", (), ["line 4", "did you mean 'keys'?"]),
    "calibration by --set": (BASE, ("calibration.keyz=5",), ["--set calibration.keyz=5", "did you mean 'keys'?"]),
    "calibration of a task": (
        "tasks:\n- digits-lenet5:\n    references: 0\nmethods: [uchida]\nattacks: [none]",
        (),
        ["line 3: references: found 0"],
    ),
    "calibration twice": (
        BASE + "train: {references: 3}\ncalibration: {references: 4}\n",
        (),
        ["line 4: references is calibration.references", "line 5"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_carries_its_own_line_or_its_setting(name: str, tmp_path: Path) -> None:
    text, settings, parts = MISTAKES[name]
    said = mistake(tmp_path, text, *settings)
    assert len(said) < 600
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    "name", ["../../../escaped", "/etc/x", "..", ".hidden", "a/../../b", "a\\b", "a\tb", "x" * 101]
)
def test_a_name_is_plain_words(name: str, tmp_path: Path) -> None:
    assert "name" in mistake(tmp_path, BASE, f"name={name!r}")


@pytest.mark.parametrize("name", ["lr sweep [v2] [/old]", ":warning:", "café", "2024", "no-shortcuts"])
def test_plain_words_may_look_like_markup(name: str, tmp_path: Path) -> None:
    grid = grid_of(tmp_path, BASE + f"name: {name!r}\n")
    assert grid.name == name
    assert "/" not in grid.folder


def test_a_folder_is_never_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert parse("quickstart", REGISTRY).name == "quickstart"
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(BadInput, match="cannot read the grid file"):
        parse("mine.yaml", REGISTRY)


# --- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "settings", "calibration"),
    [
        ("calibration: {references: 3}", (), {"references": 3}),
        (
            "train: {references: 3, processed: 0, calibration_keys: 20}",
            (),
            {"references": 3, "processed": 0, "keys": 20},
        ),
        ("train: {references: 3}", ("calibration.references=10",), {"references": 10}),
        ("calibration: {references: 3}", ("train.references=10",), {"references": 10}),
        ("calibration: {keys: 20}", ("train={references: 10, epochs: 1}",), {"references": 10, "keys": 20}),
        (
            "calibration: {references: 3, keys: 20}\nprofiles: {laptop: {train: {references: 4}}}",
            (),
            {"references": 4, "keys": 20},
        ),
    ],
)
def test_a_calibration_is_apart_from_the_training(
    text: str, settings: tuple[str, ...], calibration: dict[str, int], tmp_path: Path
) -> None:
    grid = grid_of(tmp_path, BASE + text, *settings)
    assert grid.calibration == calibration
    assert not grid.train.keys() - {"epochs"}


def test_a_tasks_own_calibration(tmp_path: Path) -> None:
    text = BASE.replace("[digits-lenet5]", "[{digits-lenet5: {references: [2, 3], epochs: 1}}]")
    grid = grid_of(tmp_path, text + "calibration: {references: 9}")
    assert [(entry.params, entry.calibration) for entry in grid.tasks] == [
        ({"epochs": 1}, {"references": 2}),
        ({"epochs": 1}, {"references": 3}),
    ]


def test_both_spellings_plan_the_same_stages(tmp_path: Path) -> None:
    one = grid_of(tmp_path, BASE + "train: {references: 2, calibration_keys: 20, processed: 0}")
    other = grid_of(tmp_path, BASE + "calibration: {references: 2, keys: 20, processed: 0}")
    plans = [build_plan(grid, REGISTRY, None) for grid in (one, other)]
    assert plans[0].stages.keys() == plans[1].stages.keys()


# --- chains ----------------------------------------------------------------------------------------------------------

CHAIN = BASE.replace("[none]", "\n- none\n- chain: [fine-tune, prune: {ratio: [0.5, 0.8]}]")


def links(entry: Entry) -> list[tuple[str, dict[str, Any]]]:
    return [(link.key, link.params) for link in entry.links]


def test_a_list_within_a_chain_is_an_axis(tmp_path: Path) -> None:
    none, *chains = grid_of(tmp_path, CHAIN).attacks
    assert (none.key, none.links) == ("none", ())
    assert [(chain.key, chain.params) for chain in chains] == [("chain", {})] * 2
    assert [links(chain) for chain in chains] == [
        [("fine-tune", {}), ("prune", {"ratio": 0.5})],
        [("fine-tune", {}), ("prune", {"ratio": 0.8})],
    ]
    braces = CHAIN.replace("prune: {ratio: [0.5, 0.8]}", "{prune: {ratio: [0.5, 0.8]}}")
    assert [links(chain) for chain in grid_of(tmp_path, braces).attacks[1:]] == [links(chain) for chain in chains]


def test_a_setting_reaches_into_chains(tmp_path: Path) -> None:
    chains = grid_of(tmp_path, CHAIN, "attacks.prune.ratio=0.9").attacks[1:]
    assert [links(chain) for chain in chains] == [[("fine-tune", {}), ("prune", {"ratio": 0.9})]]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("prune:", "prunes:"), "line 5: unknown attack 'prunes'; did you mean 'prune'?"),
        (("0.8", "8.0"), "line 5: prune: ratio: found 8.0"),
        (("[fine-tune, prune: {ratio: [0.5, 0.8]}]", "[fine-tune]"), "at least two attacks"),
        (("[fine-tune, prune: {ratio: [0.5, 0.8]}]", "prune"), "found text ('prune')"),
        (("fine-tune,", "{fine-tune: {}, round: {}},"), "a link of a chain is one attack"),
        (("fine-tune,", "{chain: [round, round]},"), "not chains"),
        (("fine-tune,", "{fine-tune: {only: digits-lenet5}},"), "not within a chain"),
        (("fine-tune,", "3,"), "found a number (3)"),
    ],
)
def test_each_link_is_checked(change: tuple[str, str], part: str, tmp_path: Path) -> None:
    assert part in mistake(tmp_path, CHAIN.replace(*change))
