"""Plants small faults (mutants) in modules that must not be wrong, and counts those that their fast tests catch.

    python benchmarks/mutants.py [--module splits …] [--sample 20] [--seed 0] [--processes 2] [--json]

Faults: a comparison or its boundary swapped, a constant one more or one less, a flag, + and -, `and` and `or`, a `not`
added or taken away, `return None`, a statement deleted. Annotations, docstrings, texts and decorators are left alone.
Each mutant lives in a temporary copy of the tree, where the module's tests run until the first one fails. The same seed
plants the same mutants. Mutants known to change nothing are listed with reasons in `mutants_equivalent.yaml`.

Exit status 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import yaml

ROOT: Final = Path(__file__).parents[1]
EQUIVALENT: Final = Path(__file__).with_name("mutants_equivalent.yaml")
NURSERY: Final = Path(__file__).with_name("mutants_nursery.py")
MODULES: Final = {  # the file, and the fast tests that answer for it
    "decisions": ("results/decisions.py", ["tests/results/test_decisions.py"]),
    "rules": ("results/rules.py", ["tests/results/test_decisions.py"]),
    "thresholds": ("results/thresholds.py", ["tests/results/test_thresholds.py"]),
    "nulls": ("results/nulls.py", ["tests/results/test_thresholds.py", "tests/results/test_decisions.py"]),
    "null": ("methods/null.py", ["tests/methods/test_null.py"]),
    "schema": ("results/schema.py", ["tests/results/test_parquet.py"]),
    "splits": ("tasks/data/splits.py", ["tests/tasks/test_splits.py"]),
    "planner": ("orchestrator/planning/planner.py", ["tests/orchestrator/test_plan.py"]),
    "points": ("orchestrator/planning/points.py", ["tests/orchestrator/test_plan.py"]),
    "plan": (
        "orchestrator/planning/plan.py",
        ["tests/orchestrator/test_plan.py", "tests/orchestrator/test_scheduler.py"],
    ),
    "scheduler": ("orchestrator/execution/scheduler.py", ["tests/orchestrator/test_scheduler.py"]),
    "store": ("orchestrator/store.py", ["tests/orchestrator/test_store.py"]),
}
PROCESSES: Final = 2  # at most: the tests use memory, and each has one thread
PATIENCE: Final = 5.0  # a mutant that takes so many times as long as the sound module hangs
LEAST_S: Final = 60.0

# The first failure is enough: Hypothesis would spend minutes on finding a smaller one.
_PLUGIN: Final = """
from hypothesis import Phase, settings
settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None, deadline=None)
settings.load_profile("mutants")
"""

_COMPARED: Final[dict[type[ast.cmpop], tuple[str, tuple[str, ...]]]] = {  # token -> what replaces it
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
_ARITHMETIC: Final[dict[type[ast.operator], tuple[str, str]]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
}


class Unusable(Exception):
    """Nothing can be measured; one line says why."""


@dataclass(frozen=True, order=True)
class Mutant:
    """One fault: the bytes `start` to `end` of a file become `text`."""

    file: str
    start: int
    end: int
    text: str
    line: int
    kind: str

    def apply(self, source: bytes) -> bytes:
        """Return the module with the fault in it."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def change(self, source: bytes) -> tuple[str, str]:
        """Return the lines that the fault touches, before and after, without indentation."""
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.end)
        last = len(source) if last < 0 else last
        old = source[first:last]
        new = source[first : self.start] + self.text.encode() + source[self.end : last]
        return old.decode().strip(), new.decode().strip()


class _Planter(ast.NodeVisitor):
    """Collects the mutants of one module."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: set[Mutant] = set()

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _plant(self, kind: str, span: tuple[int, int], text: str) -> None:
        start, end = span
        line = self.source.count(b"\n", 0, start) + 1
        self.found.add(Mutant(self.file, start, end, text, line, kind))

    def _between(self, kind: str, left: ast.expr, right: ast.expr, token: str, texts: Sequence[str]) -> None:
        """Replace the operator that stands between two operands."""
        begin, stop = self._span(left)[1], self._span(right)[0]
        pattern = r"\s+".join(map(re.escape, token.split()))
        match = re.search(pattern, self.source[begin:stop].decode())
        assert match is not None
        for text in texts:
            self._plant(kind, (begin + match.start(), begin + match.end()), text)

    def visit(self, node: ast.AST) -> None:
        """Delete statements of some kinds; all else is by type."""
        if isinstance(node, ast.AugAssign | ast.Raise | ast.Delete | ast.Break | ast.Continue):
            self._delete(node)
        super().visit(node)

    # What is left alone.

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Texts are for people."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Visit the value, not the annotation."""
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        """Leave annotations alone."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Visit defaults and body, not decorators and annotations."""
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._body(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Visit the body, not decorators and bases."""
        self._body(node.body)

    def _body(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    # What is changed.

    def visit_Compare(self, node: ast.Compare) -> None:
        """Swap a comparison: its boundary, and its direction."""
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            token, texts = _COMPARED[type(op)]
            self._between("comparison", left, right, token, texts)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Swap + and -, * and /; texts and paths, which would fail by themselves, stay."""
        texts = any(
            isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str))
            for part in (node.left, node.right)
        )
        if type(node.op) in _ARITHMETIC and not texts:
            token, text = _ARITHMETIC[type(node.op)]
            self._between("arithmetic", node.left, node.right, token, [text])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Swap `and` and `or`."""
        token, text = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between("and/or", left, right, token, [text])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Take a `not` away."""
        if isinstance(node.op, ast.Not):
            self._plant("not", (self._span(node)[0], self._span(node.operand)[0]), "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Make a number one more and one less, and turn a flag."""
        if isinstance(node.value, bool):
            self._plant("flag", self._span(node), str(not node.value))
        elif isinstance(node.value, int | float):
            for value in (node.value + 1, node.value - 1):
                self._plant("constant", self._span(node), f"({value!r})" if value < 0 else repr(value))

    def visit_If(self, node: ast.If) -> None:
        """Turn a condition, unless it is for type checkers."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """Turn a condition."""
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """Turn a condition."""
        self._negate(node.test)
        self.generic_visit(node)

    def _negate(self, test: ast.expr) -> None:
        if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr | ast.Subscript):
            start, end = self._span(test)
            self._plant("not", (start, end), f"(not ({self.source[start:end].decode()}))")

    def visit_Return(self, node: ast.Return) -> None:
        """Return None."""
        if node.value is not None:
            if not (isinstance(node.value, ast.Constant) and node.value.value is None):
                self._plant("return", self._span(node.value), "None")
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        """Delete a call; docstrings and the `...` of protocols stay."""
        if not isinstance(node.value, ast.Constant):
            self._delete(node)
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Delete what changes an object; a variable that is never set would fail by itself."""
        if any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._delete(node)
        self.generic_visit(node)

    def _delete(self, node: ast.stmt) -> None:
        self._plant("statement", self._span(node), "pass")


def mutants(file: str, source: bytes) -> list[Mutant]:
    """Return all mutants of a module, in the order of their places."""
    planter = _Planter(file, source)
    planter.visit(ast.parse(source))
    return sorted(planter.found)


def sample(found: Sequence[Mutant], count: int | None, seed: int) -> list[Mutant]:
    """Return `count` of the mutants (None: all), the same ones for the same seed."""
    if count is None or count >= len(found):
        return list(found)
    return sorted(random.Random(seed).sample(found, count))  # noqa: S311 -- no secret


@dataclass(frozen=True)
class Equivalent:
    """A mutant that changes nothing: the file, its line before and after, and why."""

    file: str
    before: str
    after: str
    why: str


def read_equivalent() -> list[Equivalent]:
    """Return the mutants known to change nothing."""
    return [Equivalent(**entry) for entry in yaml.safe_load(EQUIVALENT.read_text("utf-8")) or []]


# --- running -----------------------------------------------------------------------------------------------------


def copy_tree(root: Path, target: Path) -> None:
    """Copy what git tracks or would track, links as links."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        source = root / name
        if source.is_symlink() or source.exists():  # a deleted file is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


Verdict = Literal["caught", "hung", "survived"]


class Nursery:
    """A copy of the tree, and a process whose forks run tests there (`mutants_nursery.py`).

    Args:
        tree: the copy; beside it lies the plugin.
    """

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._said = tree.parent / f"{tree.name}.log"
        path = os.pathsep.join([str(tree / "src"), str(tree.parent)])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.setdefault("OMP_NUM_THREADS", "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(NURSERY), str(self._said)],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, tests: Sequence[str], limit_s: float) -> Verdict:
        """Run tests until the first one fails.

        Raises:
            Unusable: pytest did not run any test, for a reason that is not the module's; or nothing runs it any more.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        arguments = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "assay_mutants_plugin"]
        arguments += ["--hypothesis-seed=0", *tests]
        self._process.stdin.write(json.dumps([arguments, limit_s]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Unusable("the process that runs the tests was ended from outside")
        status = json.loads(answer)
        if status is None:
            return "hung"
        if status in (4, 5):
            said = " ".join(self._said.read_text("utf-8").split())[-200:]
            raise Unusable(f"pytest ran no test of {' '.join(tests)}: {said}")
        return "survived" if status == 0 else "caught"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Result:
    """What became of a mutant."""

    module: str
    mutant: Mutant
    verdict: Verdict
    before: str
    after: str

    def text(self) -> str:
        """Return one line, and the change for one that survived."""
        head = f"{self.verdict:9}{self.mutant.file}:{self.mutant.line} {self.mutant.kind}"
        if self.verdict != "survived":
            return head
        change = difflib.ndiff(self.before.splitlines(), self.after.splitlines())
        return "\n".join([head, *(f"    {line}" for line in change if line[0] in "+-")])


def examine(
    module: str, planted: Sequence[Mutant], nurseries: queue.SimpleQueue[Nursery], processes: int
) -> Iterator[Result]:
    """Yield what becomes of each mutant of a module; first the sound module must pass.

    Raises:
        Unusable: the module's tests fail as it is.
    """
    file, tests = MODULES[module]
    source = (ROOT / file).read_bytes()

    def tested(mutant: Mutant | None, limit_s: float) -> Verdict:
        nursery = nurseries.get()
        try:
            (nursery.tree / file).write_bytes(mutant.apply(source) if mutant else source)
            return nursery.run(tests, limit_s)
        finally:
            (nursery.tree / file).write_bytes(source)
            nurseries.put(nursery)

    started = time.monotonic()
    if tested(None, 3600.0) != "survived":
        raise Unusable(f"{module}: {' '.join(tests)} fail without a mutant; mend them first")
    limit_s = max(LEAST_S, PATIENCE * (time.monotonic() - started))
    with ThreadPoolExecutor(processes) as pool:
        for mutant, verdict in zip(planted, pool.map(lambda m: tested(m, limit_s), planted), strict=True):
            yield Result(module, mutant, verdict, *mutant.change(source))


def plan(names: Sequence[str], count: int | None, seed: int) -> dict[str, list[Mutant]]:
    """Return the mutants to plant by module, without those known to change nothing.

    Raises:
        Unusable: a module is not there, or an entry of the list of equivalent mutants matches none.
    """
    known = read_equivalent()
    planted: dict[str, list[Mutant]] = {}
    for name in names:
        file, _ = MODULES[name]
        if not (ROOT / file).is_file():
            raise Unusable(f"{name}: {file} is not there; mend MODULES in {Path(__file__).name}")
        source = (ROOT / file).read_bytes()
        found = mutants(file, source)
        excused = {(entry.before, entry.after) for entry in known if entry.file == file}
        changes = {mutant: mutant.change(source) for mutant in found}
        if stale := excused - set(changes.values()):
            raise Unusable(f"{EQUIVALENT.name}: no mutant of {file} turns {min(stale)[0]!r} into {min(stale)[1]!r}")
        planted[name] = sample([mutant for mutant in found if changes[mutant] not in excused], count, seed)
    return planted


def main() -> int:
    """Plant, test, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--module", nargs="+", choices=MODULES, default=list(MODULES), metavar="M", help="of: %(choices)s"
    )
    parser.add_argument("--sample", type=int, help="so many mutants of each module; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, choices=range(1, PROCESSES + 1), default=PROCESSES)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.nice(10)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="assay-mutants-") as folder, contextlib.ExitStack() as stack:
        try:
            planted = plan(arguments.module, arguments.sample, arguments.seed)
            nurseries: queue.SimpleQueue[Nursery] = queue.SimpleQueue()
            (Path(folder) / "assay_mutants_plugin.py").write_text(_PLUGIN, "utf-8")
            for number in range(arguments.processes):
                copy_tree(ROOT, Path(folder) / str(number))
                nursery = Nursery(Path(folder) / str(number))
                stack.callback(nursery.close)
                nurseries.put(nursery)
            for module, found in planted.items():
                for result in examine(module, found, nurseries, arguments.processes):
                    results.append(result)
                    print(result.text(), file=sys.stderr if arguments.json else sys.stdout, flush=True)
        except Unusable as why:
            print(f"mutants: {why}", file=sys.stderr)
            return 2
    if arguments.json:
        print(json.dumps([asdict(result) for result in results]))
    else:
        for module in arguments.module:
            verdicts = [result.verdict for result in results if result.module == module]
            print(f"{module:12} {len(verdicts) - verdicts.count('survived')} of {len(verdicts)} caught")
    return int(any(result.verdict == "survived" for result in results))


if __name__ == "__main__":
    sys.exit(main())
