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
- training curves: view *Training curves*, or filter `tags.stage = 'refine'` and sort by anything but the date; curves
  are `refine/<name>`, the learning rate in millionths, and what a run measured once is `refine_run/<name>`
- metrics are `<set>/<name>`, all shares between 0 and 1 (not percent) but for distances; `_difference` is refined minus
  base on the same items, `_adjusted_p` its p-value with Holm's correction over all headlines
- a row holds the headlines and the verdict; everything else that was measured stands in the runs below it
- a row's tags `stage.<name>` say whether the stage was executed or reused, `stage.<name>.run_id` by which run
- tag `dvc.lock` is the SHA-256 of dvc.lock when the row's last stage began; `lineage sync` puts in that of the whole
"""
KIND = {"mlflow.experimentKind": "custom_model_development"}  # a sidebar with runs and models first
PREFIX = "mlflow.sharedViewState."
CONFIGURATIONS = f"{PREFIX}configurations"
MAX_TAG = 5000  # characters; MLflow refuses a longer one
SENTENCE = "tags.`verdict`"
NEXT = ("params.`refine.recipe`", "params.`refine.learning_rate`", "params.`refine.seed`")
DETAILS = ("_difference", "_adjusted_p", "/centroid_distance")  # endings of numbers that stand behind the sentence
NARROW, WIDE = 146, 300  # pixels: of a number before the sentence, five of which have room on a page of 1,400; of that
FLAT: dict[str, Any] = {
    "orderByKey": "params.`refine.recipe`",
    "orderByAsc": True,
}  # by date, MLflow shows the rows above instead
CURVE_COLUMNS = ("params.`refine.recipe`", "metrics.`refine/loss`", "metrics.`refine_run/weight_displacement_percent`")


def experiment_tags(now: int) -> dict[str, str]:
    """Return the tags of a new experiment."""
    return {
        "mlflow.note.content": NOTE,
        **KIND,
        f"{PREFIX}curves": _view("Training curves", "tags.stage = 'refine'", CURVE_COLUMNS, now, **FLAT),
        **configurations({}, (), now),
    }


def changed_tags(tags: Mapping[str, str], now: int) -> dict[str, str]:
    """Return what an experiment with these tags lacks of description and views, or has in the form of another version.

    Columns that its view of configurations has for what was measured stay.
    """
    wanted = {**experiment_tags(now), **{name: text for name, text in tags.items() if name == CONFIGURATIONS}}
    wanted |= configurations(tags, (), now)
    return {name: text for name, text in wanted.items() if name not in tags or not _is_same(tags[name], text)}


def configurations(tags: Mapping[str, str], metrics: Iterable[str], now: int) -> dict[str, str]:
    """Return the view of rows with columns for `metrics` besides those that it has in `tags`; {} if it has them all."""
    known = _columns(tags[CONFIGURATIONS]) if CONFIGURATIONS in tags else []
    numbers = [column for column in known if column.startswith("metrics.")]
    numbers = list(dict.fromkeys([*numbers, *(f"metrics.`{metric}`" for metric in metrics)]))
    first = [column for column in numbers if not column.strip("`").endswith(DETAILS)]
    columns = list(dict.fromkeys([*first, SENTENCE, *NEXT, *numbers]))
    if columns == known:
        return {}
    text = _view("Configurations", "tags.kind = 'pipeline'", columns, now, narrow=first)
    return {CONFIGURATIONS: text} if len(text) <= MAX_TAG else {}


def _view(name: str, search: str, columns: Sequence[str], now: int, *, narrow: Sequence[str] = (), **order: Any) -> str:
    """Return a view with the columns in this order, each as wide as its head but those that shall be `narrow`."""
    widths = {column: 7 * len(column.split("`")[1]) + 36 for column in columns}
    widths |= dict.fromkeys(narrow, NARROW) | {SENTENCE: WIDE}
    shown = {"selectedColumns": list(columns), "columnOrder": list(columns), "columnWidths": widths}
    state = {"searchFilter": search, **order, **shown}
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def address(server: str, experiment_id: str, view: str, *, charts: bool = False) -> str:
    """Return the address of one of these views on MLflow's page, whose part for training models it opens."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{mode}&viewStateShareKey={view}"


def _columns(text: str) -> list[str]:
    return json.loads(json.loads(text)["state"])["selectedColumns"]


def _is_same(text: str, other: str) -> bool:
    """Return whether two tags say the same, apart from the time at which a view was saved."""
    if not (text.startswith("{") and other.startswith("{")):
        return text == other
    return json.loads(text)["state"] == json.loads(other)["state"]
