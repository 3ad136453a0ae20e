"""The tables of the page: before and after, everything measured, the gap, the data, provenance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from pipeline_lib.core import artifacts, provenance
from pipeline_lib.core.truncation import truncated_share
from pipeline_lib.report import page
from pipeline_lib.report.header import set_size
from pipeline_lib.report.inputs import OPENMOJI, ReportInputs
from pipeline_lib.report.page import Cell, Fold, Row, Table, Text
from pipeline_lib.results.folders import CENTRED, Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.paired import Paired
from pipeline_lib.results.parameters import dotted_keys
from pipeline_lib.results.rivals import BASE, CHANCE, COMMONEST, MEAN_CENTRED, rank, rival_values
from pipeline_lib.results.shifts import Shifts
from pipeline_lib.results.statistics import Interval

WORST_CLASSES = 10
GAP_LABELS = {
    "centroid_distance": "centroid distance\u00a0↓",
    "centroid_floor": "that of two samples of one distribution",
    "centroid_mse_e3": "centroid distance as mean square, ×10⁻³\u00a0↓",
    "relative_modality_gap": "relative modality gap\u00a0↓",
    "alignment": "alignment, mean squared distance of pairs\u00a0↓",
    "pair_cosine": "mean cosine of pairs\u00a0↑",
    "linear_separability": "linear separability (½: none)\u00a0↓",
    "modality_purity_at_10": "own modality among 10 neighbours (½: mixed)\u00a0↓",
    "frechet_mean": "Fréchet distance, centroids\u00a0↓",
    "frechet_covariance": "Fréchet distance, shapes\u00a0↓",
    "uniformity": "uniformity, both modalities\u00a0↓",
    "uniformity_image": "uniformity, images\u00a0↓",
    "uniformity_text": "uniformity, texts\u00a0↓",
    "uniformity_cross": "uniformity, between modalities\u00a0↓",
    "gap_share_top_1": "share of the gap in 1 dimension",
    "gap_share_top_2": "share of the gap in 2 dimensions",
    "gap_share_top_8": "share of the gap in 8 dimensions",
}


def before_after_table(inputs: ReportInputs) -> Table:
    """Return every share measured per item, base and refined, with the paired difference; headlines lead.

    Groups of choices have a table of their own.
    """
    rows: list[Row] = []
    for name in inputs.sets:
        rows.append(page.group(_set_title(inputs, name)))
        rows += [paired_row(row) for row in inputs.comparison if row.before.set_name == name and not _of_group(row)]
    return Table(
        ("percent", "base", "refined", "difference", "p"),
        tuple(rows),
        note=f"In small type: {page.level(inputs.certainty.confidence)} bootstrap intervals over images, of the "
        "difference over the same images. Headlines are set in bold and carry a p-value (Holm). Zero-shot uses the "
        "template ensemble unless it says otherwise.",
    )


def rivals_table(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return the headlines of the refined model among what costs nothing, best first by their mean."""
    measures = [measure for name in inputs.sets for measure in Variant(inputs.base).headlines(name)]
    if not measures:
        return ()
    by_set = {name: rival_values(inputs.base, name) for name in inputs.sets}
    refined = {name: {m.key: m.value for m in Variant(inputs.refined).headlines(name)} for name in inputs.sets}
    rows = {"refined": [refined[m.set_name].get(m.key) for m in measures]}
    for rival in (BASE, MEAN_CENTRED, CHANCE, COMMONEST):
        rows[rival] = [by_set[m.set_name][rival].get(m.key) for m in measures]
    scores = {}
    for name, values in rows.items():
        changes = [math.nan if value is None else value - m.value for value, m in zip(values, measures, strict=True)]
        if not np.isnan(changes).all():
            scores[name] = float(np.mean(changes))
    labels = [m.name if len(inputs.sets) > 1 else m.label for m in measures]
    return (
        Table(
            ("against what is free, %", *labels, "mean minus base, points"),
            tuple(_rival_row(name, rows[name], scores[name]) for name in sorted(scores, key=lambda n: rank(scores[n]))),
            note="Best first; what has no value for some headline has no mean either, and stands last. Chance: answers "
            "by lot. The commonest class: always that answer.",
        ),
    )


def _rival_row(name: str, values: Sequence[float | None], score: float) -> Row:
    cells = (Cell("–" if value is None else page.percent(value)) for value in values)
    return Row((Cell(name), *cells, Cell(page.points(score))), "strong" if name == "refined" else "plain")


def _of_group(row: Paired) -> bool:
    return row.before.kind == "choice" and bool(row.before.task)


def paired_row(row: Paired, label: str = "") -> Row:
    """Return a measure before and after, with the paired difference and, of a headline, the p-value."""
    cells = (
        Cell(label or row.before.label),
        share(row.before.interval),
        share(row.after.interval),
        Cell(
            page.points(row.difference.value),
            (page.points(row.difference.low), page.points(row.difference.high)),
            row.verdict if row.verdict != "still" else "",
        ),
        Cell("" if row.adjusted_p is None else page.p_value(row.adjusted_p)),
    )
    return Row(cells, "strong" if row.before.is_headline else "plain")


def shift_tables(inputs: ReportInputs) -> tuple[Table, ...]:
    """Return, for each set that has shifts, the change of zero-shot accuracy on it, on each of them, and on average."""
    return tuple(_shift_table(found, inputs.certainty.confidence) for found in inputs.shifts)


def _shift_table(found: Shifts, confidence: float) -> Table:
    before, after = (
        page.percent(fmean(getattr(row, side).value for row in found.shifts)) for side in ("before", "after")
    )
    change = Cell(page.points(found.mean.value), (page.points(found.mean.low), page.points(found.mean.high)))
    mean = Row((Cell(f"mean of {len(found.shifts)} shifts"), Cell(before), Cell(after), change, Cell("")), "strong")
    rows = [paired_row(row, row.before.set_name) for row in (found.source, *found.shifts)]
    return Table(
        (
            f"Shifts of {found.source.before.set_name}, {found.source.before.label}, %",
            "base",
            "refined",
            "difference",
            "p",
        ),
        (*rows, *([mean] if len(found.shifts) > 1 else [])),
        note="The first row is the set itself, the others are its shifts. The interval of the mean "
        f"({page.level(confidence)}) takes the shifts as they are and resamples the images of each by themselves; no p "
        "is given, as it is no headline.",
    )


def share(interval: Interval) -> Cell:
    """Write a share as percent, with its interval."""
    return Cell(page.percent(interval.value), (page.percent(interval.low), page.percent(interval.high)))


def _set_title(inputs: ReportInputs, name: str) -> str:
    return f"{name} ({set_size(inputs.refined.sets[name])})"


def detail_tables(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return everything measured, mean-centred too, then classes and confusions; all of it starts folded."""
    rows: list[Row] = []
    for name in inputs.sets:
        columns = [Variant(inputs.base), Variant(inputs.base, CENTRED), Variant(inputs.refined)]
        values = [_numbers(variant, name) for variant in columns]
        rows.append(page.group(name))
        labels = dict.fromkeys(label for column in values for label in column)
        rows += [Row((Cell(label), *(Cell(column.get(label, "–")) for column in values))) for label in labels]
    everything = Table(("", "base", "mean-centred", "refined"), tuple(rows))
    worst = [table for name in inputs.sets for table in worst_classes(inputs, name)]
    return (
        Fold("Everything that was measured", (everything,)),
        *((Fold("Classes and confusions", tuple(worst)),) if worst else ()),
    )


def worst_classes(inputs: ReportInputs, name: str) -> Iterator[Table]:
    """Yield, by task, the classes that the refined model gets wrong most and what it takes them for."""
    before = Variant(inputs.base).block(name, "classes")
    for task, scores in Variant(inputs.refined).block(name, "classes").items():
        was = {row["class"]: row["top1"] for row in before[task].get("per_class", [])}
        mistakes: dict[str, list[str]] = {}
        for row in scores.get("confusions", []):
            mistakes.setdefault(row["true"], []).append(f"{row['predicted']} ({row['count']})")
        rows = {
            row["class"]: [
                str(row["num_images"]),
                page.percent(was[row["class"]]),
                page.percent(row["top1"]),
                ", ".join(mistakes.get(row["class"], [])[:3]),
            ]
            for row in scores.get("per_class", [])[:WORST_CLASSES]
        }
        if rows:
            header = (f"{name}: {task}, worst classes", "images", "base, %", "refined, %", "often taken for")
            yield page.grid(header, rows, text_columns=(0, 4))


def _numbers(variant: Variant, set_name: str) -> dict[str, str]:
    measures = variant.measures(set_name)
    rest = [measure for measure in measures if not measure.has_interval]
    shown = [
        *(measure for measure in measures if measure.has_interval),
        *(measure for measure in rest if not measure.is_share),
        *(measure for measure in variant.distinct(set_name) if measure.k == 1),
        *(measure for measure in rest if measure.is_share),
    ]
    return dict(_number(measure) for measure in shown)


def _number(measure: Measure) -> tuple[str, str]:
    """Return what the row of a measure is called, and its number."""
    if measure.is_share:
        return f"{measure.label}, %", page.percent(measure.value)
    return measure.label, page.number(measure.value, 2 if measure.kind == "temperature" else 1)


def gap_tables(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return the gap suite on every set with captions: base, mean-centred, refined."""
    tables = [_gap_table(inputs, name) for name in inputs.with_captions if Variant(inputs.refined).block(name, "gap")]
    rest = tuple(tables[1:])
    return (*tables[:1], *((Fold("The gap on the other sets", rest),) if rest else ()))


def _gap_table(inputs: ReportInputs, name: str) -> Table:
    variants = (Variant(inputs.base), Variant(inputs.base, CENTRED), Variant(inputs.refined))
    blocks = [variant.block(name, "gap") for variant in variants]
    order = [key for key in GAP_LABELS if key in blocks[0]] + [key for key in blocks[0] if key not in GAP_LABELS]
    rows = {
        GAP_LABELS.get(key, key.replace("_", " ")): [page.number(block.get(key)) for block in blocks] for key in order
    }
    return page.grid(
        (name, "base", "mean-centred", "refined"),
        rows,
        note=f"{_gap_note(inputs, name)}The arrow shows where the modalities lie closer together or mix more; closer "
        "is not by itself better.",
    )


def signed(value: float) -> str:
    """Write a plain number with its sign: 0.17 -> +0.170, signed zero as 0.000."""
    text = page.number(abs(value))
    return text if not float(text) else f"{'+' if value > 0 else '−'}{text}"


def _gap_note(inputs: ReportInputs, name: str) -> str:
    spaces = "Texts of base and refined model live in different spaces. " if inputs.language else ""
    note, found, centring = (
        f"On unit-length features. {spaces}",
        inputs.gaps.get(name),
        inputs.base.results.get("centring"),
    )
    if found:
        note += (
            "Centroid distance, refined minus base, less the noise of so few images: "
            f"{signed(found.change.value)} ({page.level(inputs.certainty.confidence)}: "
            f"{signed(found.change.low)} to {signed(found.change.high)}, paired bootstrap). Two samples of "
            "one distribution differ by chance: a distance near theirs is none. "
        )
    if centring:
        note += (
            f"Mean-centring subtracts each modality's mean over {centring['num_images']:,} images of "
            f"`{centring['part']}`, none of them in the set shown. "
        )
    return note


def probe_tables(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return what the image tower still knows."""
    rows = [paired_row(row, f"{row.before.set_name}: {row.before.task}") for row in inputs.probes]
    if not rows:
        return ()
    explain = (
        "A linear classifier trained on the frozen image features: what the image tower still knows, whatever the "
        "captions say."
    )
    table = Table(
        ("linear probe top-1, %", "base", "refined", "difference", "p"),
        tuple(rows),
        note="Same images, exact sign flips, copies of an image as one (without copies that is McNemar's exact test). "
        f"The probes are no headlines: Holm's correction here is over the {len(rows)} of them.",
    )
    return (Text(explain), table)


def data_table(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return what was evaluated on, and what was left out."""
    rows = {}
    for name in inputs.sets:
        block, counts = inputs.refined.sets[name], inputs.parts[name].manifest.get("counts", {})
        double = block.get("duplicates") or {}
        rows[name] = [
            f"{block['num_images']:,}",
            f"{block.get('num_captions', 0):,}",
            f"{double.get('images', 0):,}",
            f"{double.get('captions', 0):,}",
            f"{counts.get('filtered', 0):,}",
            f"{counts.get('quarantined', 0):,}",
        ]
    header = ("set", "images", "captions", "identical images", "identical captions", "filtered", "quarantined")
    return (
        page.grid(
            header,
            rows,
            note="Identical ones count as wrong answers of each other, which lowers recall for every model alike. "
            "Filtered: left out on purpose, images that were trained on among them. Quarantined: unreadable, or beyond "
            "a limit of section `shard`, as with a caption of too many characters.",
        ),
        *truncation_tables(inputs),
        *_known_answers(inputs.base.results.get("known_answers") or {}),
    )


def truncation_tables(inputs: ReportInputs) -> tuple[Table, ...]:
    """Return how many texts of each kind and set are longer than each model reads; no table without texts."""
    models = [{name: block["truncated"] for name, block in one.sets.items()} for one in (inputs.base, inputs.refined)]
    kinds = [(name, kind) for name in inputs.sets for kind in models[0][name]]
    if not kinds:
        return ()
    rows = {}
    for name, kind in kinds:
        of_models = [model[name][kind] for model in models]
        cut = [f"{facts['num_truncated']:,} ({page.percent(truncated_share(facts))}\u00a0%)" for facts in of_models]
        rows[f"{name}: {kind}"] = [f"{of_models[0]['num_texts']:,}", *cut]
    (name, kind), readers = kinds[0], ("base", "refined")
    tokens = [f"{who}: over {of[name][kind]['context_length']} tokens" for who, of in zip(readers, models, strict=True)]
    return (
        page.grid(
            ("texts longer than the model reads", "texts", *tokens),
            rows,
            note="Of such a text the model reads the beginning. Where two models cut differently, a gain on long texts "
            "is partly that.",
        ),
    )


def _known_answers(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Any, ...]:
    """Return what the base is known to score on the sets, and what it scored; nothing where nothing is known."""
    rows = [
        Row(
            (
                Cell(f"{row['set']}: {row['metric'].replace('_', ' ')}"),
                Cell(page.number(row["value"], 4)),
                Cell(f"{page.number(row['expected'], 4)} ± {row['tolerance']:g}"),
                Cell(verdict, tone="fell" if verdict == "missed" else ""),
                Cell(row["source"]),
            )
        )
        for verdict in ("missed", "met")
        for row in found.get(verdict, ())
    ]
    missed = len(found.get("missed", ()))
    warning = Text(
        f"**The base model misses {missed} of {len(rows)} known scores**, published ones of sets that are recognised. "
        "Check its weights and their activation, the preprocessing and the data before you trust the other numbers.",
        lead=True,
    )
    table = Table(("known of the base", "measured", "expected", "", "from"), tuple(rows), text_columns=(0, 3, 4))
    return (*((warning,) if missed else ()), *((table,) if rows else ()))


def provenance_tables(inputs: ReportInputs) -> tuple[Any, ...]:
    """Return where the numbers come from: digests, models, parameters, packages."""
    models = {stage: inputs.manifests[stage]["model"] for stage in ("base", "refine")}
    facts = {
        name.replace("_", " "): [_plain(model.get(name)) for model in models.values()]
        for name in sorted({*models["base"], *models["refine"]})
    }
    outputs = {stage: (stage, manifest["digest"]) for stage, manifest in inputs.manifests.items()}
    outputs |= {
        f"evaluate {e.results['model']}": ("evaluate", e.manifest["digest"]) for e in (inputs.base, inputs.refined)
    }
    digests = {
        name: [f"`{digest}`", f"`{provenance.stage_digest(stage)[:16]}`"] for name, (stage, digest) in outputs.items()
    }
    digests["report"] = ["this page", f"`{provenance.stage_digest('report')[:16]}`"]
    versions = {name: [version] for name, version in provenance.package_versions().items()}
    parameters = {name: [f"`{value}`"] for name, value in dotted_keys(inputs.parameters).items()}
    outputs_and_code = page.grid(
        ("stage", "output", "code"),
        digests,
        text_columns=(0, 1, 2),
        note="Output: digest of the manifest, which lists every file with its SHA-256. Code: the first digits of "
        "the digest of the stage's source files when this page was made.",
    )
    return (
        Fold("Outputs and code", (outputs_and_code,)),
        Fold("Models", (page.grid(("", "base", "refined"), facts, text_columns=(0, 1, 2)),)),
        Fold("Parameters", (page.grid(("params.yaml", "value"), parameters, text_columns=(0, 1)),)),
        Fold("Packages", (page.grid(("package", "version"), versions, text_columns=(0, 1)),)),
        *((Text(OPENMOJI, quiet=True),) if inputs.uses_openmoji else ()),
    )


def _plain(value: Any) -> str:
    """Return a manifest's value as code, a mapping as `key: value` pairs."""
    if value is None:
        return "–"
    return f"`{artifacts.canonical_json(value) if isinstance(value, dict | list) else value}`"
