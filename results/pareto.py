"""What an attacker can choose between: accuracy against watermark score, cheapest removal, pay-offs.

A point is an attack configuration on one method and task, averaged over victim seeds; the attacker wants high accuracy
and a low score. Scores of different methods compare in SoK's normalisation (threshold at 0.5, full match at 1).
docs/protocol.md §16 defines the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from assay.results.configs import natural
from assay.results.decisions import Rules
from assay.results.merging import ATTACK, METHOD, TASK, Row, groups, labels, records
from assay.results.render import Keys, Table
from assay.results.statistics import over_victims

_DEFAULT: Final = Rules()
_FIGURES: Final = ("status", "outcome", "main_after", "main_before", "cost_share", "metrics")


def _legend(rules: Rules) -> tuple[str, ...]:
    return (
        f"hyper-volume: share of the box between {100 * rules.largest_loss:g} points below the victim's accuracy and "
        "all scores that attacks dominate, 0 robust to 1; scores in SoK's normalisation: threshold at 0.5, full match "
        "at 1",
        "robust: no configuration with a cost share below 1 removes the mark from half of the victims or more",
        "front: accuracy in percent · score; pay-off in SoK's game: the accuracy of a removal, of all else less the "
        "score",
    )


@dataclass(frozen=True)
class Point:
    """One attack configuration on one method and task.

    Attributes:
        name: the attack's key, with what tells it from the others on its task.
        main: accuracy of the surrogate, a mean over victims.
        main_before: accuracy of the victims.
        score: normalised watermark score of the surrogate, in [0, 1].
        removed: share of the cells whose outcome is `removed`.
        cost_share: device seconds over those of training; None if unknown.
        cells: keys of the cells behind it.
    """

    name: str
    main: float
    main_before: float
    score: float
    removed: float
    cost_share: float | None
    cells: tuple[str, ...]

    def inside(self, rules: Rules) -> bool:
        """Return whether the attacker may afford the loss of accuracy."""
        return self.main_before - self.main <= rules.largest_loss + 1e-9

    @property
    def pay_off(self) -> float:
        """What SoK's attacker gains: the accuracy where most cells are `removed`, else accuracy less score."""
        return self.main if self.removed >= 0.5 else self.main - self.score


def points(rows: pd.DataFrame) -> list[Point]:
    """Return the points of one method's cells on one task, baseline row included, in the order of their names.

    Args:
        rows: as returned by `parquet.read_rows`; cells without a result or a score are left out.

    Raises:
        ResultsError: the rows are of several tasks or methods, or of several settings of one.
    """
    return _points(_with_outcome(rows))


def _with_outcome(rows: pd.DataFrame) -> list[Row]:
    return [row for row in records(rows, _FIGURES) if row["status"] == "ok" and row["outcome"] is not None]


def _points(done: Sequence[Row]) -> list[Point]:
    found = []
    by_name: dict[str, list[Row]] = {}
    for row, name in zip(done, labels(done, ATTACK), strict=True):
        by_name.setdefault(name, []).append(row)
    for name, group in sorted(by_name.items(), key=lambda item: natural(item[0])):
        main, before, cost = (
            over_victims([row[column] for row in group], group)
            for column in ("main_after", "main_before", "cost_share")
        )
        score = over_victims([row["metrics"].get("score_sok") for row in group], group)
        if score.n:
            removed = sum(row["outcome"] == "removed" for row in group) / len(group)
            keys = tuple(str(row["cell_key"]) for row in group)
            share = cost.value if cost.n else None
            found.append(Point(name, main.value, before.value, score.value, removed, share, keys))
    return found


def front(candidates: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats: by falling accuracy, each with a strictly lower score than all before."""
    kept: list[Point] = []
    for point in sorted(candidates, key=lambda point: (-point.main, point.score)):
        if not kept or point.score < kept[-1].score:
            kept.append(point)
    return kept


def hypervolume(candidates: Iterable[Point], main_before: float, rules: Rules = _DEFAULT) -> float:
    """Return the share of the box [main_before - largest loss, main_before] x [0, 1] that attacks dominate.

    Args:
        candidates: points of one method.
        main_before: accuracy of the marked victims.
        rules: the largest loss; where none is allowed the box has no width, and the share is that of its height.

    Returns:
        0: robust against all of them, to 1: the mark vanishes at no loss of accuracy.
    """
    if rules.largest_loss == 0:
        return 1 - min((point.score for point in candidates if point.inside(rules)), default=1.0)
    low = main_before - rules.largest_loss
    volume, reached = 0.0, 1.0
    for point in front(candidates):
        width = min(point.main, main_before) - low
        if width > 0:
            volume += width * (reached - min(point.score, reached))
            reached = min(point.score, reached)
    return volume / rules.largest_loss


def cheapest_removals(candidates: Iterable[Point], rules: Rules = _DEFAULT) -> list[Point]:
    """Return the front of cost share against score among the points that keep the model of use; cheapest first."""
    affordable = [point for point in candidates if point.inside(rules) and point.cost_share is not None]
    kept: list[Point] = []
    for point in sorted(affordable, key=lambda point: (point.cost_share or 0.0, point.score)):
        if not kept or point.score < kept[-1].score:
            kept.append(point)
    return kept


def equilibrium(candidates: Sequence[Point]) -> Point | None:
    """Return the attack with the largest pay-off: the point at which SoK's zero-sum game compares methods."""
    return max(candidates, key=lambda point: (point.pay_off, -point.score), default=None)


def robustness(rows: pd.DataFrame, rules: Rules = _DEFAULT) -> Table:
    """Return one line per task and method: how much its attackers gain, by which attacks.

    Args:
        rows: as returned by `parquet.read_rows`.
        rules: those that the rows were decided by.
    """
    columns = ("task", "method", "hyper-volume", "robust", "front", "cheapest removal", "largest pay-off")
    done = _with_outcome(rows)
    names = {row["cell_key"]: lead for row, *lead in zip(done, labels(done, TASK), labels(done, METHOD), strict=True)}
    lines: list[tuple[tuple[str, Keys], ...]] = []
    for group in groups(done, TASK, METHOD).values():
        if found := _points(group):
            lead = ((name, ()) for name in names[group[0]["cell_key"]])
            lines.append((*lead, *_line(found, rules)))
    lines.sort(key=lambda line: [natural(name) for name, _ in line[:2]])
    texts = tuple(tuple(text for text, _ in line) for line in lines)
    keys = tuple(tuple(cells for _, cells in line) for line in lines)
    return Table("Robustness", columns, texts, _legend(rules), keys, lead=2, parted=False)


def _line(found: Sequence[Point], rules: Rules) -> Iterator[tuple[str, Keys]]:
    """Yield the texts of a line behind its lead, each with the cells behind it."""
    every = tuple(key for point in found for key in point.cells)
    yield f"{hypervolume(found, found[0].main_before, rules):.2f}", every
    yield "no" if _broken(found) else "yes", every
    ends = front(point for point in found if point.inside(rules))
    yield ", ".join(f"{p.name} ({100 * p.main:.1f} · {p.score:.2f})" for p in ends), _cells(ends)
    cheap = [point for point in cheapest_removals(found, rules) if point.removed >= 0.5][:1]
    yield ", ".join(f"{p.name} (share {p.cost_share:.2g})" for p in cheap) or "none", _cells(cheap)
    best = equilibrium(found)
    yield (f"{best.name} ({best.pay_off:.2f})", best.cells) if best else ("-", ())


def _cells(found: Iterable[Point]) -> Keys:
    return tuple(key for point in found for key in point.cells)


def _broken(found: Iterable[Point]) -> bool:
    """Whether an economical attack removes the mark from half of the victims or more."""
    return any(point.removed >= 0.5 and (point.cost_share or 0.0) < 1 for point in found)
