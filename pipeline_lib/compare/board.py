"""The ranking of configurations: on which set, by what, with which differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline_lib.compare.candidates import Group
from pipeline_lib.compare.entries import Entries, compare, judge_rows
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import CENTRED, PLAIN, Evaluation, Variant
from pipeline_lib.results.paired import Verdict
from pipeline_lib.results.rivals import BASE, CHANCE, COMMONEST, MEAN_CENTRED, rank, rival_values


@dataclass(frozen=True)
class Rival:
    """What costs nothing and stands in the ranking beside the groups."""

    label: str
    values: Mapping[str, Mapping[str, float]]  # set -> key of a headline -> share; what it has no value for is left out
    base: Evaluation
    variant: str = ""  # of the base's features; empty: no model at all


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
        return self._headlines[name]

    @cached_property
    def _headlines(self) -> dict[str, dict[str, str]]:
        refined = [Variant(candidate.refined) for group in self.groups for candidate in group.candidates]
        found = {}
        for name in (*self._names("selection"), *self._names("sets")):
            labels = [{measure.key: measure.label for measure in one.headlines(name)} for one in refined]
            found[name] = {key: label for key, label in labels[0].items() if all(key in one for one in labels)}
        return found

    @cached_property
    def bases(self) -> dict[str, Evaluation]:
        """Return the distinct base models by the end of their row's label, which is empty for a single one."""
        found = {c.base.results["weights_digest"]: c.base for group in self.groups for c in group.candidates}
        return {f" {digest[:8]}" if len(found) > 1 else "": base for digest, base in found.items()}

    @cached_property
    def entries(self) -> dict[str, dict[str, Entries]]:
        """Return set -> label of the row -> key of the headline -> entry: groups, and bases mean-centred where known.

        Holm's correction is over all of them, within each set.
        """
        alpha = 1 - self.settings.confidence
        return {name: judge_rows(self._rows(name), list(self.keys(name)), alpha) for name in self.sets}

    def _rows(self, name: str) -> dict[str, Entries]:
        keys = list(self.keys(name))
        rows = {
            group.label: compare(
                [(Variant(c.base), Variant(c.refined)) for c in group.candidates], name, keys, self.settings
            )
            for group in self.groups
        }
        for suffix, base in self.bases.items():
            plain, centred = Variant(base), Variant(base, CENTRED)
            if list(centred.headlines(name)):
                rows[MEAN_CENTRED + suffix] = compare([(plain, centred)], name, keys, self.settings)
        return rows

    @cached_property
    def rivals(self) -> list[Rival]:
        """Return what costs nothing: each base as it is and mean-centred, chance, always the commonest class."""
        found = []
        for suffix, base in self.bases.items():
            by_set = {name: rival_values(base, name) for name in self.sets}
            for label in (BASE, MEAN_CENTRED, CHANCE, COMMONEST):
                values = {name: self._shared(name, values[label]) for name, values in by_set.items()}
                if any(values.values()):
                    variant = {BASE: PLAIN, MEAN_CENTRED: CENTRED}.get(label, "")
                    found.append(Rival(label + suffix, values, base, variant))
        return found

    def _shared(self, name: str, values: Mapping[str, float]) -> dict[str, float]:
        """Return the values of the headlines of a set that all groups have."""
        return {key: value for key, value in values.items() if key in self.keys(name)}

    def score(self, row: Group | Rival) -> float:
        """Return the mean difference from base over the headlines of the ranking sets; NaN where one has no value."""
        if isinstance(row, Group):
            scores = self.scores(row)
        else:
            base = [measure for name in self.ranking_sets for measure in Variant(row.base).headlines(name)]
            shared = [measure for measure in base if measure.key in self.keys(measure.set_name)]
            scores = [row.values.get(m.set_name, {}).get(m.key, math.nan) - m.value for m in shared]
        return float(np.mean(scores)) if scores else 0.0

    def scores(self, group: Group) -> list[float]:
        """Return the same by seed."""
        entries = [entry for name in self.ranking_sets for entry in self.entries[name][group.label].values()]
        return [float(score) for score in np.mean([entry.changes for entry in entries], axis=0)] if entries else []

    def verdicts(self, group: Group, names: Sequence[str]) -> list[Verdict]:
        """Return what became of each headline of the sets `names`."""
        return [entry.verdict for name in names for entry in self.entries[name][group.label].values()]

    def moved(self, group: Group, names: Sequence[str]) -> str:
        """Say how many headlines of the sets `names` rose or fell measurably, in words."""
        verdicts = self.verdicts(group, names)
        said = [f"{verdicts.count(kind)} {kind}" for kind in ("rose", "fell") if kind in verdicts]
        return f"of {len(verdicts)} headlines {' and '.join(said) or 'none moved'} measurably"

    def beats_base(self, group: Group) -> bool:
        """Return whether a headline of the ranking sets rose measurably, none fell, and the mean is higher."""
        verdicts = self.verdicts(group, self.ranking_sets)
        return "rose" in verdicts and "fell" not in verdicts and self.score(group) > 0

    @cached_property
    def ranked(self) -> list[Group]:
        """Return the groups, best first."""
        return sorted(self.groups, key=lambda group: (-self.score(group), group.label))

    @cached_property
    def ranked_rows(self) -> list[Group | Rival]:
        """Return groups and rivals together, best first; of equals what is free comes first, what has no score last."""
        rows: list[Group | Rival] = [*self.rivals, *self.ranked]
        return sorted(rows, key=lambda row: rank(self.score(row)))


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
