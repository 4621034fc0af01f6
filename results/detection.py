"""Detection attacks over models: are marked ones told from unmarked ones? (protocol 2.3)"""

from __future__ import annotations

import pandas as pd

from assay.results import configs
from assay.results.render import Keys, Table
from assay.results.statistics import auc, wilson

UNMARKED = "clean"  # the method whose models carry no mark
_LEGEND = (
    "flagged: of how many models the attack says that they carry a trigger, with Wilson's 95 % interval",
    "AUC: how often a marked model's figure exceeds an unmarked one's, ties count half; - without unmarked models",
)


def detections(rows: pd.DataFrame, figure: str = "index") -> Table:
    """Return one line per task, detection attack and method.

    Args:
        rows: as returned by `parquet.read_rows`; cells whose metrics have `flagged` and the figure count. Rows of the
            method `clean` are the unmarked models.
        figure: the metric that ranks models, larger is more suspicious.
    """
    done = rows[rows["status"] == "ok"]
    done = done[[{"flagged", figure} <= metrics.keys() for metrics in done["metrics"]]]
    texts: list[tuple[str, ...]] = []
    keys: list[tuple[Keys, ...]] = []
    for (task, attack), block in done.groupby(["task", "attack"], sort=True):
        names = configs.varying(block["attack_config"].unique())
        for config, group in block.groupby("attack_config", sort=True):
            plain = [m[figure] for m in group.loc[group["method"] == UNMARKED, "metrics"]]
            for method, cells in group.groupby("method", sort=True):
                own = [metrics[figure] for metrics in cells["metrics"]]
                hits = sum(metrics["flagged"] > 0 for metrics in cells["metrics"])
                low, high = wilson(hits, len(own))
                share = f"{hits}/{len(own)} ({100 * low:.0f}-{100 * high:.0f} %)"
                area = f"{auc(own, plain):.2f}" if plain and method != UNMARKED else "-"
                texts.append((str(task), configs.label(str(attack), str(config), names), str(method), share, area))
                behind: Keys = tuple(cells["cell_key"])
                keys.append(((), (), (), behind, behind))
    columns = ("task", "attack", "method", "flagged", "AUC")
    return Table("Detection", columns, tuple(texts), _LEGEND, tuple(keys), lead=3)
