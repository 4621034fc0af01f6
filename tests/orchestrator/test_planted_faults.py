"""Each contract check catches its fault: a sound plugin keeps the promise, with a fault planted it does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from assay.attacks.base import Attack
from assay.methods import METHODS
from assay.methods.base import Method
from assay.orchestrator.checks import (
    common as contracts_common,
)
from assay.orchestrator.checks import (
    of_attacks as contracts_attacks,
)
from assay.orchestrator.checks import (
    of_methods as contracts_methods,
)
from assay.orchestrator.checks.contracts import check_file, run_check, run_checks
from assay.orchestrator.checks.workbench import Workbench, difference
from assay.orchestrator.planning.registry import load_plugin, plugin_classes
from assay.tasks.errors import BadInput

Write = Callable[[str, str, type[Any]], type[Any]]

EXAMPLE = (Path(__file__).parents[2] / "examples" / "sign_mark.py").read_text("utf-8")
ATTACK = '''"""Shake: add a little Gaussian noise to every weight.

Paper: none; an attack of these tests.
Access: weights.
Differs from the paper: none known.
"""

import torch
from pydantic import Field

from assay.attacks.base import Attack, AttackConfig, Outcome
from assay.tasks.training.recipe import Recipe


class Config(AttackConfig):
    noise_std: float = Field(0.01, ge=0)


class _Plain(Recipe):
    scale = 1.0

    def loss(self, model, batch):
        return {name: self.scale * term for name, term in super().loss(model, batch).items()}


class Shake(Attack):
    key, title, source = "shake", "Weight noise", "these tests"
    access, uses_data, Config = "weights", False, Config
    identity = {"noise_std": 0.0}

    def run(self, victim, lab):
        model, draws = victim.module(), lab.stream("noise")
        with torch.no_grad():
            for weight in model.parameters():
                weight += self.config.noise_std * torch.randn(weight.shape, generator=draws)
        if self.config.noise_std and len(lab.data.train):
            lab.fit(model, lab.data.train, _Plain(), victim.task.schedule.but(lr=0.0, momentum=0.0))
        return Outcome(model)
'''
READ = '        read = weight.flatten().cpu()[secret["places"].cpu()].sign()\n'
DRAW = "    def draw(self, lab):\n"
NULL = (
    "    def null(self, lab, secret):\n        from assay.methods.null import Null\n\n        return Null({})\n\n"
    + DRAW
)
RECIPE = "    def recipe(self, lab, secret):\n"
HINGE = '        return {**super().loss(model, batch), "mark": self.config.strength * hinge}\n'

METHOD_FAULTS = [
    ("says_what_it_is", "Differs from the paper:", "Differences:"),
    ("is_named_like_its_file", '"sign-mark"', '"sign-marks"'),
    ("has_sound_settings", "Field(0.02, gt=0)", "0.02"),
    ("has_sound_settings", "Field(1.0, ge=0)", "Field(ge=0)"),
    ("has_sound_settings", "Field(1.0, ge=0)", "Field(-1.0, ge=0)"),
    ("refuses_what_is_out_of_range", "le=4096)", "le=4096, strict=False)"),
    ("marked_model_is_detected", "strength: float = Field(1.0", "strength: float = Field(0.0"),
    ("unmarked_model_is_not_detected", READ, '        read = secret["bits"].cpu()\n'),
    ("wrong_secret_is_not_detected", READ, '        read = secret["bits"].cpu()\n'),
    ("p_values_are_honest", "binomial_tail(hits, bits, 0.5)", "binomial_tail(hits, bits, 0.35)"),
    ("reading_is_well_formed", "Reading(hits / bits,", "Reading(hits,"),
    ("secret_comes_from_its_stream", "(self.config.bits,), generator=draws)", "(self.config.bits,))"),
    ("secret_comes_from_its_stream", 'lab.stream("secret")', "torch.Generator().manual_seed(7)"),
    ("embedding_is_deterministic", "self.name, self.config =", "self.noise = torch.rand(()); self.name, self.config ="),
    (
        "stopping_and_resuming_changes_nothing",
        HINGE,
        "        self.steps = getattr(self, 'steps', 0) + 1\n" + HINGE.replace("* hinge", "* hinge * self.steps"),
    ),
    (
        "clean_samples_keep_their_order",
        RECIPE,
        RECIPE
        + "        import dataclasses\n"
        + "        lab.data = dataclasses.replace(lab.data, train=lab.data.train.take(slice(5, None)))\n",
    ),
    ("secret_survives_storage", "list(weight.shape)", "tuple(weight.shape)"),
    (
        "marked_model_is_plain",
        "    def loss(self",
        "    def finish(self, model):\n        return torch.nn.Sequential(model)\n\n    def loss(self",
    ),
    (
        "double_precision_runs",
        "    def loss(self",
        "    def prepare_model(self, model):\n"
        "        eye = torch.eye(10)\n"
        "        model.register_forward_hook(lambda module, args, output: output @ eye)\n"
        "        return model\n\n    def loss(self",
    ),
    ("verifying_only_reads", READ, READ + '        secret["reads"] = secret.get("reads", 0) + 1\n'),
    ("declared_access_suffices", '"weights", "bits"', '"logits", "bits"'),
    ("declared_access_suffices", 'suspect.weights().get(secret["layer"])', 'torch.ones(secret["shape"])'),
    ("foreign_models_are_judged", 'weight is None or list(weight.shape) != secret["shape"]', "False"),
    ("fresh_keys_are_nobodys", 'lab.stream("secret")', "torch.Generator().manual_seed(7)"),
    ("fresh_keys_are_nobodys", DRAW, DRAW + "        if lab.role == 'claimant':\n            return {}\n"),
    ("null_is_whole", DRAW, NULL.format("[[0.5]], [[32]], 64, ['stranger']")),
    ("null_is_whole", DRAW, NULL.format("[], [], 64, []")),
    ("null_is_whole", DRAW, NULL.format("[[0.5, 0.5]], [[32]], 64, ['reference-0']")),
    ("null_is_whole", DRAW, NULL.format("[[0.5]], [[32]], 64, ['reference-0', 'reference-1']")),
    ("null_is_whole", DRAW, NULL.format("[[1.5]], [[96]], 64, ['reference-0']")),
    ("null_is_whole", DRAW, DRAW + "        lab.unmarked('stranger')\n"),
    ("embedding_is_deterministic", DRAW, DRAW + "        lab.unmarked('reference-0')\n"),
    ("weak_mark_is_refused", "    access, family", "    gate = 0.0\n    access, family"),
]
ATTACK_FAULTS = [
    ("runs_or_says_why", "victim.module()", "victim._Oracle__model"),
    (
        "runs_or_says_why",
        "        with torch.no_grad():\n",
        "        lab.data.train.labels[:3] = 0\n        with torch.no_grad():\n",
    ),
    ("runs_or_says_why", "model, draws = victim.module(), ", "lab.unmarked('clean'); model, draws = victim.module(), "),
    ("runs_or_says_why", "model, draws = victim.module(), ", "lab.other('digits'); model, draws = victim.module(), "),
    ("outcome_fits_its_kind", "return Outcome(model)", "return Outcome()"),
    ("surrogate_is_sound", "self.config.noise_std * torch", "float('nan') * torch"),
    ("surrogate_is_sound", "return Outcome(model)", "return Outcome(torch.nn.Sequential(model))"),
    ("attacking_is_deterministic", "(weight.shape, generator=draws)", "(weight.shape)"),
    (
        "stopping_and_resuming_changes_nothing",
        "        return {name: self.scale",
        "        self.scale += 1\n        return {name: self.scale",
    ),
    ("declared_needs_suffice", 'access, uses_data, Config = "weights"', 'access, uses_data, Config = "labels"'),
    ("declared_needs_suffice", "victim.module()", 'victim.task.build("x")'),
    (
        "declared_data_suffice",
        "if self.config.noise_std and len(lab.data.train):",
        "if int(lab.data.train.labels[0]) >= 0:",
    ),
    ("identity_settings_change_nothing", '"noise_std": 0.0', '"noise_std": 0.5'),
]


@pytest.fixture(scope="module")
def bench() -> Iterator[Workbench]:
    """A bench with one shipped method, so that attacks have a victim soon."""
    few: Any = SimpleNamespace(methods={"uchida": METHODS["uchida"]}, attacks={})
    with Workbench(few) as made:
        yield made


@pytest.fixture
def plugin(tmp_path: Path) -> Write:
    """Write a plugin and return the one class it defines."""

    def write(name: str, text: str, base: type[Any]) -> type[Any]:
        file = tmp_path / name
        file.write_text(text, "utf-8")
        (cls,) = plugin_classes(load_plugin(file), base, "test")
        return cls

    return write


def _check(name: str, *modules: Any) -> Any:
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def _names(faults: list[tuple[str, str, str]]) -> list[str]:
    return [f"{name}-{number}" for number, (name, _, _) in enumerate(faults)]


@pytest.mark.parametrize(("name", "sound", "faulty"), METHOD_FAULTS, ids=_names(METHOD_FAULTS))
def test_fault_in_a_method_is_caught(bench: Workbench, plugin: Write, name: str, sound: str, faulty: str) -> None:
    assert EXAMPLE.count(sound) == 1 or name == "secret_survives_storage"
    check = _check(name, contracts_methods, contracts_common)
    good = plugin("sign_mark.py", EXAMPLE, Method)
    assert run_check(good, check, bench).status == "kept"
    bad = plugin("sign_mark.py", EXAMPLE.replace(sound, faulty, 1), Method)
    result = run_check(bad, check, bench)
    assert result.status == "broken"
    assert result.reason
    assert "\n" not in result.reason


@pytest.mark.parametrize(("name", "sound", "faulty"), ATTACK_FAULTS, ids=_names(ATTACK_FAULTS))
def test_fault_in_an_attack_is_caught(bench: Workbench, plugin: Write, name: str, sound: str, faulty: str) -> None:
    assert ATTACK.count(sound) == 1
    check = _check(name, contracts_attacks)
    assert run_check(plugin("shake.py", ATTACK, Attack), check, bench).status == "kept"
    result = run_check(plugin("shake.py", ATTACK.replace(sound, faulty), Attack), check, bench)
    assert result.status == "broken"
    assert result.reason


@pytest.mark.parametrize(("drawing", "status"), [("if not _LOADED", "kept"), ("if True", "broken")])
def test_what_is_imported_on_first_use_may_draw_and_the_attack_may_not(
    bench: Workbench, plugin: Write, drawing: str, status: str
) -> None:
    """The check may be a process's first: a library that draws while it is imported is none of the attack's doing."""
    body = "        model, draws = victim.module(), "
    first = f"        {drawing}:\n            _LOADED.append(random.random())\n"
    text = ATTACK.replace("import torch\n", "import random\n\nimport torch\n\n_LOADED = []\n", 1)
    result = run_check(
        plugin("shake.py", text.replace(body, first + body), Attack),
        contracts_attacks.attacking_is_deterministic,
        bench,
    )
    assert result.status == status
    assert result.status == "kept" or "draws from a global generator" in result.reason


def test_broken_plugin_is_told_with_its_line(bench: Workbench, plugin: Write) -> None:
    bad = plugin("sign_mark.py", EXAMPLE.replace('lab.stream("secret")', "lab.strem('secret')"), Method)
    line = 1 + EXAMPLE[: EXAMPLE.index('lab.stream("secret")')].count("\n")
    result = run_check(bad, contracts_methods.secret_comes_from_its_stream, bench)
    assert result.status == "broken"
    assert result.reason.endswith(f"(sign_mark.py:{line})")


MIX = "    def mix(self, batch, step):\n        {}\n        return batch\n\n"
ONCE = {
    "drawing from the global generator": (
        MIX.format("torch.rand(())"),
        "embeds-from-its-streams",
        "Recipe.mix draws from a global generator, .*lab.stream.*",
    ),
    "drawing from NumPy's": (
        MIX.format("__import__('numpy').random.rand()"),
        "embeds-from-its-streams",
        "Recipe.mix draws from a global generator, .*lab.stream.*",
    ),
    "a wrong call": (
        MIX.format("batch.append(batch.inputs)"),
        "embeds-from-its-streams",
        r"TypeError: .*missing 1 required positional argument.* \(sign_mark.py:{line}\)",
    ),
}


@pytest.mark.parametrize("fault", ONCE)
def test_one_fault_of_a_recipe_is_reported_once(bench: Workbench, plugin: Write, fault: str) -> None:
    part, name, told = ONCE[fault]
    text = EXAMPLE.replace("    def loss(self", part + "    def loss(self")
    line = 2 + text[: text.index("    def mix(self")].count("\n")
    results = list(run_checks(plugin("sign_mark.py", text, Method), bench))
    broken = [result for result in results if not result.ok]
    assert [result.name for result in broken] == [name]
    assert re.fullmatch(told.replace("{line}", str(line)), broken[0].reason)
    again = [result for result in results if result.reason == f"the same fault as in {name}"]
    assert {result.status for result in again} == {"skipped"}
    assert "marked-model-is-detected" in [result.name for result in again]


def test_file_without_plugin_is_bad_input(tmp_path: Path) -> None:
    file = tmp_path / "nothing.py"
    file.write_text("x = 1\n", "utf-8")
    with pytest.raises(BadInput, match="defines no subclass"):
        check_file(file)


@pytest.mark.parametrize(
    ("one", "other", "place"),
    [
        ({"a": 1}, {"a": 1.0}, "/a"),
        ({"a": [1, 2]}, {"a": (1, 2)}, "/a"),
        ({"a": b"x"}, {"a": b"y"}, "/a"),
        ([float("nan")], [float("nan")], None),
        ([1, 2], [1], "the value"),
    ],
)
def test_difference_sees_types_and_values(one: Any, other: Any, place: str | None) -> None:
    found = difference(one, other)
    assert (found is None) if place is None else (found or "").startswith(place)
