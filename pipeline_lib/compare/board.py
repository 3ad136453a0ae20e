"""The ranking of configurations: on which set, by what, with which differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline_lib.compare.candidates import Group
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.report import figures
from pipeline_lib.results import statistics
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import CENTRED, Evaluation, Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import Verdict, item_differences, judge
from pipeline_lib.results.statistics import Interval

MEAN_CENTRED = "mean-centred"


@dataclass(frozen=True)
class Entry:
    """One headline of one group: its value by seed, the seeds' mean difference from base with an interval."""

    measure: Measure
    values: tuple[float, ...]  # by seed, shares
    difference: Interval
    p_value: float
    verdict: Verdict = "still"

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Return the standard deviation over seeds; None of a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def drawn(self, label: str) -> figures.Difference:
        """Return the difference with its interval, and that of each seed, in percentage points."""
        base = self.mean - self.difference.value
        value, low, high = self.difference
        seeds = tuple(100 * (seed - base) for seed in self.values)
        return figures.Difference(label, (100 * value, 100 * low, 100 * high), self.verdict, seeds)


@dataclass(frozen=True)
class Board:
    """The groups, best first, with everything they are compared by."""

    groups: Sequence[Group]
    settings: Certainty

    @cached_property
    def ranking_sets(self) -> list[str]:
        """Return the selection parts that all groups share and that have headlines; else the evaluation sets."""
        shared = [name for name in self._names("selection") if self.keys(name)]
        return shared or self._names("sets")

    @property
    def is_honest(self) -> bool:
        """Return whether the ranking uses other images than the evaluation sets."""
        return not set(self.ranking_sets) & set(self._names("sets"))

    @cached_property
    def sets(self) -> list[str]:
        """Return all sets that all groups share, the ranking ones first."""
        return [*self.ranking_sets, *(name for name in self._names("sets") if name not in self.ranking_sets)]

    def _names(self, kind: str) -> list[str]:
        """Return the sets of a kind that every candidate was evaluated on, with the same images."""
        candidates = [candidate for group in self.groups for candidate in group.candidates]
        digests = [{name: one.get("digest") for name, one in getattr(c.refined, kind).items()} for c in candidates]
        return [name for name, digest in digests[0].items() if all(d.get(name) == digest for d in digests)]

    def keys(self, name: str) -> dict[str, str]:
        """Return the headlines of a set that all groups have: key -> label."""
        found = [
            {measure.key: measure.label for measure in Variant(candidate.refined).headlines(name)}
            for group in self.groups
            for candidate in group.candidates
        ]
        return {key: label for key, label in found[0].items() if all(key in one for one in found)}

    @cached_property
    def bases(self) -> dict[str, Evaluation]:
        """Return the distinct base models by the end of their row's label, which is empty for a single one."""
        found = {c.base.results["weights_digest"]: c.base for group in self.groups for c in group.candidates}
        return {f" {digest[:8]}" if len(found) > 1 else "": base for digest, base in found.items()}

    @cached_property
    def entries(self) -> dict[str, dict[str, dict[str, Entry]]]:
        """Return set -> label of the row -> key of the headline -> entry: groups, and bases mean-centred where known.

        Holm's correction is over all of them, within each set.
        """
        return {name: self._judge(self._rows(name)) for name in self.sets}

    def _rows(self, name: str) -> dict[str, dict[str, Entry]]:
        rows = {group.label: self._entries(group, name) for group in self.groups}
        for suffix, base in self.bases.items():
            plain, centred = Variant(base), Variant(base, CENTRED)
            if list(centred.headlines(name)):
                keys = list(self.keys(name))
                rows[MEAN_CENTRED + suffix] = _compare([(plain, centred)], name, keys, self.settings)
        return rows

    def _entries(self, group: Group, name: str) -> dict[str, Entry]:
        pairs = [(Variant(candidate.base), Variant(candidate.refined)) for candidate in group.candidates]
        return _compare(pairs, name, list(self.keys(name)), self.settings)

    def _judge(self, rows: dict[str, dict[str, Entry]]) -> dict[str, dict[str, Entry]]:
        flat = [(label, key, entry) for label, by_key in rows.items() for key, entry in by_key.items()]
        adjusted, alpha = statistics.holm([entry.p_value for _, _, entry in flat]), 1 - self.settings.confidence
        judged: dict[str, dict[str, Entry]] = {label: {} for label in rows}
        for (label, key, entry), p in zip(flat, adjusted, strict=True):
            judged[label][key] = replace(entry, verdict=judge(entry.difference, p, alpha))
        return judged

    def score(self, group: Group) -> float:
        """Return the mean difference from base over the headlines of the ranking sets."""
        scores = self.scores(group)
        return float(np.mean(scores)) if scores else 0.0

    def scores(self, group: Group) -> list[float]:
        """Return the same by seed."""
        entries = [e for name in self.ranking_sets for e in self.entries[name][group.label].values()]
        changes = [np.array(entry.values) - (entry.mean - entry.difference.value) for entry in entries]
        return [float(score) for score in np.mean(changes, axis=0)] if changes else []

    def moved(self, group: Group, names: Sequence[str]) -> str:
        """Say how many headlines of the sets `names` rose or fell measurably, in words."""
        verdicts = [entry.verdict for name in names for entry in self.entries[name][group.label].values()]
        said = [f"{verdicts.count(kind)} {kind}" for kind in ("rose", "fell") if kind in verdicts]
        return f"of {len(verdicts)} headlines {' and '.join(said) or 'none moved'} measurably"

    @cached_property
    def ranked(self) -> list[Group]:
        """Return the groups, best first."""
        return sorted(self.groups, key=lambda group: (-self.score(group), group.label))


def _compare(
    pairs: Sequence[tuple[Variant, Variant]], name: str, keys: Sequence[str], settings: Certainty
) -> dict[str, Entry]:
    """Compare (before, after) pairs by the headlines of a set, their item-wise differences averaged over the pairs."""
    measures = {m.key: m for m in pairs[0][1].headlines(name) if m.key in keys}
    differences = {}
    for key, measure in measures.items():
        means = [item_differences(before, after, measure) for before, after in pairs]
        differences[key] = means[0]._replace(values=np.mean([mean.values for mean in means], axis=0))
    tests = statistics.paired_tests(
        differences,
        pairs[0][1].evaluation.all_sets[name]["num_images"],
        num_samples=settings.bootstrap_samples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    by_seed = [{m.key: m.value for m in after.headlines(name)} for _, after in pairs]
    return {
        key: Entry(
            measure,
            tuple(values[key] for values in by_seed),
            Interval(tests[key].difference, tests[key].low, tests[key].high),
            tests[key].p_value,
        )
        for key, measure in measures.items()
    }


def make_board(groups: Sequence[Group], params_file: Path) -> Board:
    """Make a board that is as sure as section `evaluate` of `params_file` asks for.

    Raises:
        UserError: The groups share no set.
    """
    labels = [group.label for group in groups]
    assert len(set(labels)) == len(labels), f"groups share a label, by which entries are found: {labels}"
    board = Board(groups, config.load_some(params_file, Certainty))
    if not board.sets:
        raise UserError("nothing to compare: the evaluations have no set in common with the same images")
    return board


# --- tables and page -------------------------------------------------------------------------------------------------
