"""What the page is made of, read from the folders of earlier stages and checked to belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline_lib.core import artifacts, config, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import MODELS, Paths
from pipeline_lib.report import near_duplicates
from pipeline_lib.report.near_duplicates import NearDuplicates
from pipeline_lib.report.settings import ReportSettings
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import CENTRED, Evaluation, Variant
from pipeline_lib.results.gap import Gap, compare_gaps
from pipeline_lib.results.guards import check_made_with, check_pair, check_parameters, check_weights
from pipeline_lib.results.paired import Paired, compare_few_shot, compare_measures, compare_probes
from pipeline_lib.results.parameters import read_parameters
from pipeline_lib.results.power import Resolution, resolution
from pipeline_lib.results.recorded import check_code
from pipeline_lib.results.shifts import Shifts, compare_shifts

OPENMOJI = (
    "All emojis designed by OpenMoji (openmoji.org) – the open-source emoji and icon project. License: CC BY-SA 4.0"
)


@dataclass(frozen=True)
class ReportInputs:
    """All that the page is made of."""

    base: Evaluation
    refined: Evaluation
    history: Sequence[Mapping[str, Any]]  # one row per step
    parts: Mapping[str, shards.Part]  # evaluated sets by name
    manifests: Mapping[str, Mapping[str, Any]]  # stage -> manifest of its output
    parameters: Mapping[str, Any]  # the sections of params.yaml that decide results
    certainty: Certainty
    num_examples: int
    title: str
    near_duplicate_cosine: float
    max_near_duplicate_share: float
    shards: Path
    teacher: Path

    @property
    def sets(self) -> list[str]:
        """Return the names of the evaluated sets; the first with captions is the one whose features are drawn."""
        return list(self.refined.sets)

    @property
    def with_captions(self) -> list[str]:
        """Return the sets that have retrieval."""
        measures = {name: Variant(self.refined).measures(name) for name in self.sets}
        return [name for name, found in measures.items() if any(measure.direction for measure in found)]

    @property
    def language(self) -> Mapping[str, Any] | None:
        """Return what reads the refined model's texts in place of the base's text tower; None where that still does."""
        return self.manifests["refine"]["model"].get("language")

    @property
    def uses_openmoji(self) -> bool:
        """Return whether images of OpenMoji are shown or evaluated, whose licence asks to be named."""
        formats = {part.manifest.get("source", {}).get("format") for part in self.parts.values()}
        return not formats.isdisjoint(("scenes", "openmoji"))

    @cached_property
    def comparison(self) -> list[Paired]:
        """Compare refined with base."""
        return compare_measures(Variant(self.base), Variant(self.refined), self.certainty, sets=self.sets)

    @cached_property
    def resolutions(self) -> list[Resolution]:
        """Return what the comparison could have shown of each headline, at the level of Holm's first step."""
        tested = [row.before for row in self.comparison if row.adjusted_p is not None]
        level = (1 - self.certainty.confidence) / max(1, len(tested))
        models = Variant(self.base), Variant(self.refined)
        return [resolution(*models, measure, level, self.certainty.seed) for measure in tested]

    @cached_property
    def shifts(self) -> list[Shifts]:
        """Gather the changes of zero-shot accuracy on sets and on their shifts (`data.evaluation.<name>.shift_of`)."""
        declared = {name: chosen.get("shift_of") for name, chosen in self.parameters["data"]["evaluation"].items()}
        shift_of = {name: source for name, source in declared.items() if source}
        return compare_shifts(Variant(self.base), Variant(self.refined), self.comparison, shift_of, self.certainty)

    @cached_property
    def probes(self) -> list[Paired]:
        """Compare the linear probes of refined and base."""
        return compare_probes(Variant(self.base), Variant(self.refined), self.certainty, sets=self.sets)

    @cached_property
    def few_shot(self) -> list[Paired]:
        """Compare the points of the few-shot curves of refined and base."""
        return compare_few_shot(Variant(self.base), Variant(self.refined), self.certainty, sets=self.sets)

    @cached_property
    def gaps(self) -> dict[str, Gap]:
        """Compare the modality gap on every set that has one."""
        found = {name: compare_gaps(self.base, self.refined, name, self.certainty) for name in self.with_captions}
        return {name: gap for name, gap in found.items() if gap}

    @cached_property
    def near_duplicates(self) -> NearDuplicates:
        """Find the evaluated images that nearly repeat one that was trained on.

        Raises:
            UserError: See `near_duplicates.find`.
        """
        return near_duplicates.find(self.base, self.parts, self.shards, self.teacher, self.near_duplicate_cosine)

    @cached_property
    def against_centring(self) -> list[Paired]:
        """Compare refined with the mean-centred base."""
        sets = [name for name in self.sets if CENTRED in self.base.sets[name]["variants"]]
        return compare_measures(Variant(self.base, CENTRED), Variant(self.refined), self.certainty, sets=sets)


def read_inputs(params_file: Path) -> ReportInputs:
    """Read what the stages before have written, as `paths` says.

    Raises:
        UserError: Something is missing, what was evaluated is not what lies in `paths.base` and `paths.refined`, or
            params.yaml or code are not what the outputs were made with.
    """
    paths, shown = config.load(params_file, Paths), config.load(params_file, ReportSettings)
    base, refined = (Evaluation(paths.eval / name) for name in MODELS)
    folders = paths.folders("base", "shard", "cache_teacher", "refine")
    manifests = {stage: artifacts.read_manifest(path, stage=stage) for stage, path in folders.items()}
    check_weights(base, refined, paths.refined, manifests["refine"])
    artifacts.check_file(paths.refined, artifacts.HISTORY, manifests["refine"])
    if base.results["weights_digest"] != manifests["base"]["model"]["weights_digest"]:
        raise UserError(f"{base.directory}: evaluated other weights than those in {paths.base}; run `dvc repro`")
    parameters = read_parameters(params_file)
    check_parameters(params_file, parameters, paths.refined, manifests["refine"])
    check_pair(params_file, parameters, base, refined)
    check_made_with(params_file, parameters, (paths.base, paths.shards))
    check_code(params_file.parent)
    parts = {name: shards.read_part(paths.shards / name) for name in refined.sets}
    for evaluation in (base, refined):
        for name, part in parts.items():
            if evaluation.sets.get(name, {}).get("digest") != part.digest:
                raise UserError(f"{evaluation.directory}: `{name}` is not what lies in {part.directory}; dvc repro")
    return ReportInputs(
        base=base,
        refined=refined,
        history=list(artifacts.read_jsonl(paths.refined / artifacts.HISTORY)),
        parts=parts,
        manifests=manifests,
        parameters=parameters,
        certainty=config.load_some(params_file, Certainty),
        num_examples=shown.num_examples,
        title=shown.title,
        near_duplicate_cosine=shown.near_duplicate_cosine,
        max_near_duplicate_share=shown.max_near_duplicate_share,
        shards=paths.shards,
        teacher=paths.teacher,
    )
