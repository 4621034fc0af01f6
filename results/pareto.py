"""What an attacker can choose between (protocol 2.8): accuracy against watermark score, cheapest removal, pay-offs.

A point is an attack configuration on one method and task, averaged over victim seeds; the attacker wants high accuracy
and a low score. Scores of different methods compare in SoK's normalisation (threshold at 0.5, full match at 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from assay.results import configs
from assay.results.render import Keys, Table
from assay.results.statistics import over_victims

MAX_LOSS = 0.05  # the largest loss of accuracy of an attack that succeeds, one-sided
_LEGEND = (
    "hyper-volume: share of the box between 5 points below the victim's accuracy and all scores that attacks dominate, "
    "0 robust to 1; scores in SoK's normalisation: threshold at 0.5, full match at 1",
    "robust: no configuration with a cost share below 1 removes the mark from half of the victims or more",
    "front: accuracy in percent · score; pay-off in SoK's game: the accuracy of a removal, of all else less the score",
)


@dataclass(frozen=True)
class Point:
    """One attack configuration on one method and task.

    Attributes:
        attack, config: its key and canonical configuration.
        main: accuracy of the surrogate, a mean over victims.
        main_before: accuracy of the victims.
        score: normalised watermark score of the surrogate, in [0, 1].
        removed: share of the cells whose outcome is `removed`.
        cost_share: device seconds over those of training; None if unknown.
        cells: keys of the cells behind it.
    """

    attack: str
    config: str
    main: float
    main_before: float
    score: float
    removed: float
    cost_share: float | None
    cells: tuple[str, ...]

    @property
    def inside(self) -> bool:
        """Whether the attacker may afford the loss of accuracy."""
        return self.main_before - self.main <= MAX_LOSS + 1e-9

    @property
    def pay_off(self) -> float:
        """What SoK's attacker gains: the accuracy where most cells are `removed`, else accuracy less score."""
        return self.main if self.removed >= 0.5 else self.main - self.score


def points(rows: pd.DataFrame) -> list[Point]:
    """Return the points of one method's cells on one task, baseline row included, in the order of their names.

    Args:
        rows: as returned by `parquet.read_rows`; cells without a result or a score are left out.
    """
    done = rows[(rows["status"] == "ok") & rows["outcome"].notna()].copy()
    done["_score"] = [metrics.get("score_sok", float("nan")) for metrics in done["metrics"]]
    found = []
    for (attack, config), group in done.groupby(["attack", "attack_config"], sort=True):
        victims = group["victim_seed"].astype(int)
        columns = ("main_after", "main_before", "_score", "cost_share")
        means = {name: over_victims(group[name].astype(float), victims) for name in columns}
        if means["_score"].n:
            share = means["cost_share"].value if means["cost_share"].n else None
            removed = float((group["outcome"] == "removed").mean())
            main, before, score = (means[name].value for name in columns[:3])
            keys = tuple(str(key) for key in group["cell_key"])
            found.append(Point(str(attack), str(config), main, before, score, removed, share, keys))
    return found


def front(candidates: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats: by falling accuracy, each with a strictly lower score than all before."""
    kept: list[Point] = []
    for point in sorted(candidates, key=lambda point: (-point.main, point.score)):
        if not kept or point.score < kept[-1].score:
            kept.append(point)
    return kept


def hypervolume(candidates: Iterable[Point], main_before: float) -> float:
    """Return the share of the box [main_before - 0.05, main_before] x [0, 1] that attacks dominate.

    Args:
        candidates: points of one method.
        main_before: accuracy of the marked victims.

    Returns:
        0: robust against all of them, to 1: the mark vanishes at no loss of accuracy.
    """
    low = main_before - MAX_LOSS
    volume, reached = 0.0, 1.0
    for point in front(candidates):
        width = min(point.main, main_before) - low
        if width > 0:
            volume += width * (reached - min(point.score, reached))
            reached = min(point.score, reached)
    return volume / MAX_LOSS


def cheapest_removals(candidates: Iterable[Point]) -> list[Point]:
    """Return the front of cost share against score among the points that keep the model of use; cheapest first."""
    affordable = [point for point in candidates if point.inside and point.cost_share is not None]
    kept: list[Point] = []
    for point in sorted(affordable, key=lambda point: (point.cost_share or 0.0, point.score)):
        if not kept or point.score < kept[-1].score:
            kept.append(point)
    return kept


def equilibrium(candidates: Sequence[Point]) -> Point | None:
    """Return the attack with the largest pay-off: the point at which SoK's zero-sum game compares methods."""
    return max(candidates, key=lambda point: (point.pay_off, -point.score), default=None)


def robustness(rows: pd.DataFrame) -> Table:
    """Return one line per task and method: how much its attackers gain, by which attacks.

    Args:
        rows: as returned by `parquet.read_rows`.
    """
    columns = ("task", "method", "hyper-volume", "robust", "front", "cheapest removal", "largest pay-off")
    texts: list[tuple[str, ...]] = []
    keys: list[tuple[Keys, ...]] = []
    for (task, method, _), group in rows.groupby(["task", "method", "method_config"], sort=True):
        found = points(group)
        if not found:
            continue
        names = _names(found)
        ends = front(point for point in found if point.inside)
        cheap = [point for point in cheapest_removals(found) if point.removed >= 0.5][:1]
        best = equilibrium(found)
        before = found[0].main_before
        shown = ", ".join(f"{names[p]} ({100 * p.main:.1f} · {p.score:.2f})" for p in ends)
        texts.append((
            str(task), str(method), f"{hypervolume(found, before):.2f}", "no" if _broken(found) else "yes", shown,
            ", ".join(f"{names[p]} (share {p.cost_share:.2g})" for p in cheap) or "none",
            f"{names[best]} ({best.pay_off:.2f})" if best else "-",
        ))  # fmt: skip
        every = tuple(key for point in found for key in point.cells)
        of_best = best.cells if best else ()
        keys.append(
            (
                (),
                (),
                every,
                every,
                tuple(k for p in ends for k in p.cells),
                tuple(k for p in cheap for k in p.cells),
                of_best,
            )
        )
    return Table("Robustness", columns, tuple(texts), _LEGEND, tuple(keys), lead=2, parted=False)


def _broken(found: Iterable[Point]) -> bool:
    """Whether an economical attack removes the mark from half of the victims or more."""
    return any(point.removed >= 0.5 and (point.cost_share or 0.0) < 1 for point in found)


def _names(found: Sequence[Point]) -> dict[Point, str]:
    names: dict[Point, str] = {}
    for attack in dict.fromkeys(point.attack for point in found):
        own = [point for point in found if point.attack == attack]
        differ = configs.varying(point.config for point in own)
        names |= {point: configs.label(attack, point.config, differ) for point in own}
    return names
