"""What MLflow's pages show of the experiment: its description, and saved views ("Views" above the run table).

Without a view the run table shows no number at all, since MLflow hides metrics, parameters and tags until one picks
them. A view is a tag of the experiment, written as MLflow's own page writes it (3.17; other versions leave it alone).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOTE = """One row is one configuration; below it, one run for each stage that was executed. See **Views** for tables.

- compare configurations: view *Configurations*, or filter `tags.kind = 'pipeline'`
- training curves: view *Training curves*, or filter `tags.stage = 'refine'` and sort by anything but the date
- metrics are `<set>/<name>`, all shares between 0 and 1 (not percent) but for distances; `_difference` is refined minus
  base on the same items, `_adjusted_p` its p-value with Holm's correction over all headlines
- a row holds the headlines and the verdict; everything else that was measured stands in the runs below it
- a row's tags `stage.<name>` say whether the stage was executed or reused, `stage.<name>.run_id` by which run
- tag `dvc.lock` is the SHA-256 of dvc.lock when the row's last stage began; `lineage sync` puts in that of the whole
"""
KIND = {"mlflow.experimentKind": "custom_model_development"}  # a sidebar with runs and models first
PREFIX = "mlflow.sharedViewState."
MAX_TAG = 5000  # characters; MLflow refuses a longer one
FIRST_COLUMNS = ("tags.`verdict`", "params.`refine.recipe`", "params.`refine.seed`")
WIDE = 300  # pixels, for a sentence
FLAT = {"orderByKey": "params.`refine.recipe`", "orderByAsc": True}  # by date, MLflow shows the rows above instead
CURVE_COLUMNS = ("params.`refine.recipe`", "metrics.`refine/loss`", "metrics.`refine/weight_displacement`")


def experiment_tags(now: int) -> dict[str, str]:
    """Return the tags of a new experiment."""
    return {
        "mlflow.note.content": NOTE,
        **KIND,
        f"{PREFIX}curves": _view("Training curves", "tags.stage = 'refine'", CURVE_COLUMNS, now, **FLAT),
        **configurations({}, (), now),
    }


def configurations(tags: Mapping[str, str], metrics: Iterable[str], now: int) -> dict[str, str]:
    """Return the view of rows with columns for `metrics` besides those that it has in `tags`; {} if it has them all."""
    name = f"{PREFIX}configurations"
    known = _columns(tags[name]) if name in tags else []
    columns = list(dict.fromkeys([*FIRST_COLUMNS, *known, *(f"metrics.`{metric}`" for metric in metrics)]))
    if columns == known:
        return {}
    text = _view("Configurations", "tags.kind = 'pipeline'", columns, now)
    return {name: text} if len(text) <= MAX_TAG else {}


def _view(name: str, search: str, columns: Sequence[str], now: int, **order: Any) -> str:
    """Return a view with the columns in this order, each as wide as its head."""
    widths = {column: WIDE if column == FIRST_COLUMNS[0] else 7 * len(column.split("`")[1]) + 36 for column in columns}
    shown = {"selectedColumns": list(columns), "columnOrder": list(columns), "columnWidths": widths}
    state = {"searchFilter": search, **order, **shown}
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def _columns(text: str) -> list[str]:
    return json.loads(json.loads(text)["state"])["selectedColumns"]
