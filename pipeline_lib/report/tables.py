"""The tables of the page: before and after, everything measured, the gap, the data, provenance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline_lib.core import artifacts, provenance
from pipeline_lib.report import page
from pipeline_lib.report.inputs import OPENMOJI, Inputs
from pipeline_lib.report.page import Cell, Fold, Row, Table, Text
from pipeline_lib.results import folders as results
from pipeline_lib.results.folders import CENTRED, Paired, Variant

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


def before_after(inputs: Inputs) -> Table:
    """Every share measured per item, base and refined, with the paired difference; headlines lead."""
    rows: list[Row] = []
    for name in inputs.sets:
        rows.append(page.group(_set_title(inputs, name)))
        rows += [_paired_row(row) for row in inputs.comparison if row.before.set_name == name]
    return Table(
        ("percent", "base", "refined", "difference", "p"),
        tuple(rows),
        note=f"In small type: {page.level(inputs.certainty.confidence)} bootstrap intervals over pictures, of the "
        "difference over the same pictures. Headlines are set in bold and carry a p-value (Holm). Zero-shot uses the "
        "template ensemble unless it says otherwise.",
    )


def _paired_row(row: Paired, label: str = "") -> Row:
    cells = (
        Cell(label or row.before.label),
        share(row.before.interval),
        share(row.after.interval),
        Cell(
            page.points(row.difference.value),
            (page.points(row.difference.low), page.points(row.difference.high)),
            row.verdict if row.verdict != "still" else "",
        ),
        Cell("" if row.adjusted_p is None else page.p_value(row.adjusted_p).replace("< 0.", "<.")),  # in 100 columns
    )
    return Row(cells, "strong" if row.before.is_headline else "plain")


def share(interval: results.Interval) -> Cell:
    """A share as percent, with its interval."""
    return Cell(page.percent(interval.value), (page.percent(interval.low), page.percent(interval.high)))


def _set_title(inputs: Inputs, name: str) -> str:
    counts = inputs.refined.sets[name]
    texts = f", {counts['num_captions']:,} captions" if counts.get("num_captions") else ""
    return f"{name} ({counts['num_images']:,} pictures{texts})"


def detail(inputs: Inputs) -> tuple[Any, ...]:
    """What is neither headline nor tested: median ranks, calibration, means per class, the mean-centred baseline."""
    rows: list[Row] = []
    for name in inputs.sets:
        columns = [Variant(inputs.base), Variant(inputs.base, CENTRED), Variant(inputs.refined)]
        values = [_numbers(variant, name) for variant in columns]
        rows.append(page.group(name))
        rows += [Row((Cell(label), *(Cell(v.get(label, "–")) for v in values))) for label in values[0]]
    everything = Table(("", "base", "mean-centred", "refined"), tuple(rows))
    worst = [table for name in inputs.sets for table in worst_classes(inputs, name)]
    return (
        Fold("Everything that was measured", (everything,)),
        *((Fold("Classes and confusions", tuple(worst)),) if worst else ()),
    )


def worst_classes(inputs: Inputs, name: str) -> Iterator[Table]:
    """The classes that the refined model gets wrong most, and what it takes them for."""
    before = inputs.base.block(name, "zero_shot")
    for task, prompts in inputs.refined.block(name, "zero_shot").items():
        scores = prompts["ensemble"]
        was = {row["class"]: row["top1"] for row in before[task]["ensemble"].get("per_class", [])}
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
            header = (f"{name}: {task}, worst classes", "pictures", "base, %", "refined, %", "often taken for")
            yield page.grid(header, rows, text_columns=(0, 4))


def _numbers(variant: Variant, set_name: str) -> dict[str, str]:
    shares = {f"{m.label}, %": page.percent(m.interval.value) for m in variant.measures(set_name)}
    retrieval = variant.evaluation.block(set_name, "retrieval", variant.name)
    ranks = {
        f"{label} median rank": page.number(retrieval[f"{direction}_median_rank"], 1)
        for direction, label in results.DIRECTIONS.items()
        if f"{direction}_median_rank" in retrieval
    }
    calibration = {
        f"zero-shot {task} calibration error ({prompt}), %": page.percent(scores["ece"])
        for task, prompts in variant.evaluation.block(set_name, "zero_shot", variant.name).items()
        for prompt, scores in sorted(prompts.items())
        if "ece" in scores
    }
    distinct = variant.evaluation.block(set_name, "retrieval_distinct", variant.name)
    without = {
        f"{label} R@1 without repetitions, %": page.percent(distinct[f"{direction}_recall_at_1"]["value"])
        for direction, label in results.DIRECTIONS.items()
        if distinct
    }
    return shares | ranks | without | calibration


def gap(inputs: Inputs) -> tuple[Any, ...]:
    """The gap suite on every set with captions: base, mean-centred, refined."""
    tables = [_gap_table(inputs, name) for name in inputs.with_captions if inputs.refined.block(name, "gap")]
    rest = tuple(tables[1:])
    return (*tables[:1], *((Fold("The gap on the other sets", rest),) if rest else ()))


def _gap_table(inputs: Inputs, name: str) -> Table:
    blocks = [
        inputs.base.block(name, "gap"),
        inputs.base.block(name, "gap", CENTRED),
        inputs.refined.block(name, "gap"),
    ]
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
    """A plain number with its sign: 0.17 -> +0.170, signed zero as 0.000."""
    text = page.number(abs(value))
    return text if not float(text) else f"{'+' if value > 0 else '−'}{text}"


def _gap_note(inputs: Inputs, name: str) -> str:
    note, found, centring = "On unit-length features. ", inputs.gaps.get(name), inputs.base.results.get("centring")
    if found:
        note += (
            "Centroid distance, refined minus base, less the noise of so few pictures: "
            f"{signed(found.change.value)} ({page.level(inputs.certainty.confidence)}: "
            f"{signed(found.change.low)} to {signed(found.change.high)}, paired bootstrap). Two samples of "
            "one distribution differ by chance: a distance near theirs is none. "
        )
    if centring:
        note += (
            f"Mean-centring subtracts each modality's mean over {centring['num_images']:,} pictures of "
            f"`{centring['part']}`, none of them in the set shown. "
        )
    return note


def linear_probe(inputs: Inputs) -> tuple[Any, ...]:
    """What the image tower still knows."""
    names = [row.before.name.replace("linear probe ", "").removesuffix(" top-1") for row in inputs.probes]
    rows = [_paired_row(row, name) for row, name in zip(inputs.probes, names, strict=True)]
    if not rows:
        return ()
    explain = (
        "A linear classifier trained on the frozen picture features: what the image tower still knows, whatever the "
        "captions say."
    )
    table = Table(
        ("linear probe top-1, %", "base", "refined", "difference", "p"),
        tuple(rows),
        note="Same pictures, McNemar's exact test. The probes are no headlines: Holm's correction here is over the "
        f"{len(rows)} of them.",
    )
    return (Text(explain), table)


def data(inputs: Inputs) -> tuple[Any, ...]:
    """What was evaluated on, and what was left out."""
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
    header = ("set", "pictures", "captions", "identical pictures", "identical captions", "filtered", "quarantined")
    return (
        page.grid(
            header,
            rows,
            note="Identical ones count as wrong answers of each other, which lowers recall for every model alike. "
            "Filtered: left out on purpose, pictures that were trained on among them. Quarantined: unreadable.",
        ),
    )


def sources(inputs: Inputs) -> tuple[Any, ...]:
    """Where the numbers come from: digests, models, parameters, packages."""
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
    parameters = {name: [f"`{value}`"] for name, value in results.flat(inputs.parameters).items()}
    return (
        page.grid(
            ("stage", "output", "code"),
            digests,
            text_columns=(0, 1, 2),
            note="Output: digest of the manifest, which lists every file with its SHA-256. Code: the first digits of "
            "the digest of the stage's source files when this page was made.",
        ),
        Fold("Models", (page.grid(("", "base", "refined"), facts, text_columns=(0, 1, 2)),)),
        Fold("Parameters", (page.grid(("params.yaml", "value"), parameters, text_columns=(0, 1)),)),
        Fold("Packages", (page.grid(("package", "version"), versions, text_columns=(0, 1)),)),
        *((Text(OPENMOJI, quiet=True),) if inputs.uses_openmoji else ()),
    )


def _plain(value: Any) -> str:
    """A manifest's value as code, a mapping as `key: value` pairs."""
    if value is None:
        return "–"
    return f"`{artifacts.canonical_json(value) if isinstance(value, dict | list) else value}`"
