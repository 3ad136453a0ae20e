"""The report: its verdict against cases worked by hand, its page against the arrays, its bytes against a second run."""

import copy
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline_lib import tracking
from pipeline_lib.core import artifacts, config, provenance
from pipeline_lib.core.errors import UserError
from pipeline_lib.report import figures, page, pictures, tables, verdict
from pipeline_lib.report import run as report
from pipeline_lib.report.inputs import read_inputs
from pipeline_lib.report.page import Gallery, Table
from pipeline_lib.results import folders as results
from pipeline_lib.results.certainty import Certainty
from pipeline_lib.results.folders import Gap, Interval, Measure, Paired
from pipeline_lib.results.statistics import Mean
from tests import example_results


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    example_results.write(root)
    return root


def read(root, monkeypatch, **changes):
    monkeypatch.chdir(root)
    return dataclasses.replace(read_inputs(Path("params.yaml")), **changes)


@pytest.fixture(scope="module")
def written(project):
    """The page as a stage writes it, with the terminal's text."""
    with pytest.MonkeyPatch.context() as patch:
        inputs = read(project, patch)
        report.run(inputs, Path("data/report"))
        return project / "data/report", report.terminal_table(inputs), inputs


def paired(verdict, p=0.5, name="R@1"):
    measure = Measure("eval", name, name, Interval(0.2, 0.1, 0.3), is_headline=True)
    return Paired(measure, measure, Interval(0.0, -0.1, 0.1), p, p, verdict)


# ---- the verdict ----


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("rose", "rose"), "Better: all 2 headlines rose."),
        (("rose", "still", "still"), "Better: of 3 headlines, 1 rose and 2 did not move measurably."),
        (("rose", "fell", "still"), "Mixed: of 3 headlines, 1 rose, 1 fell and 1 did not move measurably."),
        (("fell", "still"), "Worse: of 2 headlines, 1 fell and 1 did not move measurably."),
        (("still",), "No measurable change in the one headline."),
        (("still",) * 4, "No measurable change in any of the 4 headlines."),
        ((), "Nothing to compare: no headline was measured on both models."),
    ],
)
def test_sentence_begins_with_the_conclusion(verdicts, expected):
    assert verdict.sentence([paired(kind) for kind in verdicts]) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("rose", "still"), "**it wins**, measurably ahead on eval: R@1 and behind on none."),
        (("fell", "still"), "**it loses**, measurably behind on eval: R@1 and ahead on none."),
        (("rose", "fell"), "**it wins some and loses some**, ahead on eval: R@1, behind on eval: R@1."),
        (("still", "still"), "**no measurable difference** on any of the 2 headlines."),
        (("rose",) * 5, "**it wins**, measurably ahead on 5 of 5 headlines and behind on none."),
    ],
)
def test_accuracy_against_mean_centring(verdicts, expected):
    assert verdict.accuracy_verdict([paired(kind) for kind in verdicts]) == expected


@pytest.mark.parametrize(
    ("base", "free", "refined", "change", "against_free", "says"),
    [
        (0.8, 0.1, 0.05, (-0.8, -0.7), (-0.06, -0.04), "**narrowed**: **beats it on the gap**; on accuracy,"),
        (0.8, 0.1, 0.5, (-0.4, -0.2), (0.3, 0.5), "**narrowed**: **does not beat it on the gap** and must win"),
        (0.8, 0.1, 0.05, (-0.8, -0.7), (-0.06, 0.01), "**narrowed**: **does not beat it on the gap**"),
        (0.1, 0.1, 0.3, (0.1, 0.3), (0.1, 0.3), "**widened**: **does not beat it on the gap**"),
        (0.1115, 0.1407, 0.133, (0.01, 0.03), (-0.02, -0.01), "**widened**: **does not beat it on the gap**"),
        (0.1115, 0.1407, 0.1, (-0.02, 0.01), (-0.06, -0.03), "**did not change measurably**: **does not beat it"),
    ],
)
def test_gap_follows_its_interval_and_is_held_against_base_and_free_baseline(
    base, free, refined, change, against_free, says
):
    intervals = [Interval(sum(ends) / 2, *ends) for ends in (change, against_free)]
    gap = Gap("eval", base, refined, free, 0.07, *intervals)
    text = verdict.gap_verdict(gap, [paired("still")], Certainty(confidence=0.95, bootstrap_samples=100, seed=0))
    moved, beats = re.fullmatch(r"(\*\*.*\*\*): (.*)", says).groups()
    assert text.startswith(f"The gap on eval {moved}: centroid distance {page.number(base)} → {page.number(refined)};")
    assert f"({page.level(0.95)}: {tables.signed(change[0])} to {tables.signed(change[1])})" in text
    assert "Two samples of one distribution would lie 0.070 apart." in text
    assert f"brings it to {page.number(free)}, so refinement {beats}" in text


def test_gap_without_a_free_baseline_is_still_told():
    change = Interval(-0.1, -0.2, -0.05)
    text = verdict.gap_verdict(
        Gap("eval", 0.3, 0.2, None, 0.07, change, None), [], Certainty(confidence=0.95, bootstrap_samples=100, seed=0)
    )
    assert text.startswith("The gap on eval **narrowed**: centroid distance 0.300 → 0.200;")
    assert "free" not in text
    assert text.endswith("0.070 apart.")


def test_what_would_have_been_found_is_told_with_its_power():
    """Four headlines with intervals of ±10 points: 1.7 half-widths, and not the one that half of such changes clear."""
    still, settings = paired("still"), Certainty(confidence=0.95, bootstrap_samples=100, seed=0)
    text = verdict._resolution([still, paired("rose"), still, still], settings)
    assert "a true change of 17.0 points would be found in four cases of five (80\u00a0% power)" in text
    assert "a true change of 14.3 points" in verdict._resolution([still], settings)
    assert verdict._resolution([paired("rose")], settings) == ""


# ---- the page ----


def test_verdict_comes_first_and_names_every_headline(written):
    folder, terminal, inputs = written
    markdown = (folder / report.MARKDOWN).read_text()
    sections = re.findall(r"^## (.*)", markdown, flags=re.MULTILINE)
    assert sections[:2] == ["Verdict", "Before and after"]
    assert sections[-1] == "Provenance"
    first = markdown.split("## Before and after")[0]
    assert "Mixed: of 3 headlines, 2 rose and 1 fell." in first
    assert terminal.startswith("Mixed: of 3 headlines, 2 rose and 1 fell.")
    for row in inputs.comparison:
        if row.before.is_headline:
            assert f"{row.before.name} **{row.verdict}**: {page.percent(row.before.interval.value)} →" in first


def test_html_and_markdown_hold_the_same_numbers(written):
    folder, terminal, inputs = written
    html, markdown = ((folder / name).read_text() for name in (report.HTML, report.MARKDOWN))
    for row in inputs.comparison:
        for shown in (row.before.interval, row.after.interval):
            assert f">{page.percent(shown.value)}</span>" in html
            for text in (markdown, terminal):
                assert f"{page.percent(shown.value)} [{page.percent(shown.low)}, {page.percent(shown.high)}]" in text


def test_html_is_one_small_file_that_names_no_place(written):
    folder, _, _ = written
    html = (folder / report.HTML).read_text()
    assert len(html) < 1_500_000
    for text in (html, (folder / report.MARKDOWN).read_text()):
        assert "/tmp" not in text
        assert str(Path.home()) not in text
    assert not re.search(r'(src|href)="(?!#|data:)', html)


def test_the_same_inputs_in_another_place_give_the_same_bytes(written, tmp_path, monkeypatch):
    folder, _, _ = written
    shutil.copytree(folder.parents[1], tmp_path / "copy")
    inputs = read(tmp_path / "copy", monkeypatch)
    report.run(inputs, Path("again"))
    assert artifacts.read_manifest(Path("again"))["digest"] == artifacts.read_manifest(folder)["digest"]
    assert artifacts.verify(folder) == []


def test_every_picture_of_the_markdown_is_there(written):
    folder, _, _ = written
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (folder / report.MARKDOWN).read_text())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in {".png", ".jpg"}}
    assert set(named) == files
    figures = {Path(name).stem for name in files if name.endswith(".png")}
    assert figures == {"differences", "projection", "cosines", "gap_spectrum", "recall_eval", "training", "wise_ft"}


def test_terminal_table_fits_100_columns(written):
    _, terminal, _ = written
    assert max(len(line) for line in terminal.splitlines()) <= 100


def test_attribution_where_openmoji_is_shown(written):
    folder, _, _ = written
    assert (folder / report.HTML).read_text().count("CC BY-SA 4.0") == 2
    assert "All emojis designed by OpenMoji" in (folder / report.MARKDOWN).read_text()


def test_provenance_names_weights_outputs_parameters_and_packages(written):
    folder, _, inputs = written
    text = (folder / report.MARKDOWN).read_text()
    for stage in ("base", "shard", "cache_teacher", "refine"):
        assert inputs.manifests[stage]["digest"] in text
    for evaluation in (inputs.base, inputs.refined):
        assert evaluation.results["weights_digest"] in text
        assert evaluation.manifest["digest"] in text
    for stage in ("base", "shard", "cache_teacher", "refine", "evaluate", "report"):
        assert f"| `{provenance.stage_digest(stage)[:16]}`" in text
    assert "refine.learning_rate" in text
    assert "recipes.clip_refine.alpha" in text
    assert "| torch " in text
    assert not re.search(r"runtime\.|tracking\.|paths\.", text)


# ---- what may be missing ----


@pytest.mark.parametrize("options", [{"with_captions": False}, {"with_task": False}, {"centred": False}], ids=str)
def test_sets_without_captions_labels_or_centring_still_get_a_page(tmp_path, monkeypatch, options):
    example_results.write(tmp_path, **options)
    text = page.to_markdown(report.build(read(tmp_path, monkeypatch)))
    assert ("zero-shot shape" in text) == options.get("with_task", True)
    assert ("## The modality gap" in text) == options.get("with_captions", True)
    if not options.get("centred", True):
        assert "Mean-centring, which costs nothing" not in text


def test_no_sweep_no_probe_no_examples_no_history(project, monkeypatch):
    inputs = read(project, monkeypatch, history=[], num_examples=0)
    for evaluation in (inputs.base, inputs.refined):
        evaluation.results["wise_ft"], evaluation.results["linear_probe"] = [], {}
    titles = [section.title for section in report.build(inputs).sections]
    assert "Examples" not in titles
    assert "What was forgotten" not in titles


def test_other_weights_than_those_evaluated_are_refused(tmp_path, monkeypatch):
    example_results.write(tmp_path)
    manifest = json.loads((tmp_path / "data/refined/manifest.json").read_text())
    artifacts.write_manifest(
        tmp_path / "data/refined", "refine", model={**manifest["model"], "weights_digest": "0" * 64}
    )
    with pytest.raises(
        UserError, match="data/eval/refined: evaluated other weights than those of data/refined and its base"
    ):
        read(tmp_path, monkeypatch)


def test_other_pictures_than_those_evaluated_are_refused(tmp_path, monkeypatch):
    example_results.write(tmp_path)
    path = tmp_path / "data/shards/eval"
    manifest = artifacts.read_manifest(path)
    facts = {key: value for key, value in manifest.items() if key not in {"stage", "files", "digest", "source"}}
    artifacts.write_manifest(path, "shard", **facts, source={"format": "jsonl"})
    with pytest.raises(UserError, match="data/eval/base: `eval` is not what lies in data/shards/eval"):
        read(tmp_path, monkeypatch)


PRIOR = {"kind": "normal", "mean": 0, "std": 1, "shared": True, "decay": "none"}


def change(root, **changes):
    """params.yaml of `root` with other values of `refine`, or of the recipe's block."""
    params = config.read_params(root / "params.yaml")
    for key, value in changes.items():
        block = params["refine"] if key in params["refine"] else params["recipes"]["clip_refine"]
        assert key in block
        block[key] = value
    (root / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 7}, "refine.seed is 7, was 0"),
        ({"learning_rate": 0.5, "epochs": 3}, "refine.epochs is 3, was 1; refine.learning_rate is 0.5, was 5e-05"),
        ({"betas": [0.9, 0.98]}, r"refine.betas is \[0.9, 0.98\], was \[0.9, 0.999\]"),
        ({"alpha": 0.25}, "recipes.clip_refine.alpha is 0.25, was 0.5"),
        ({"prior": {**PRIOR, "kind": "uniform"}}, "recipes.clip_refine.prior.kind is uniform, was normal"),
        ({"recipe": "hycd"}, "refine.recipe is hycd, was clip_refine"),
    ],
)
def test_parameters_that_did_not_make_the_refined_model_are_refused(tmp_path, monkeypatch, changes, said):
    example_results.write(tmp_path)
    change(tmp_path, **changes)
    message = rf"params\.yaml: not what made data/refined: .*{said}; run `dvc repro`"
    with pytest.raises(UserError, match=message):
        read(tmp_path, monkeypatch)


def test_the_same_parameters_in_another_spelling_are_the_same(tmp_path, monkeypatch):
    example_results.write(tmp_path)
    change(tmp_path, rafa_weight=1, alpha=0.50, eps=0.00000001, prior=PRIOR)
    assert read(tmp_path, monkeypatch).parameters["recipes"]["clip_refine"]["rafa_weight"] == 1


# ---- pictures ----


def gallery(inputs, title):
    return next(block for block in pictures.examples(inputs) if isinstance(block, Gallery) and block.title == title)


def test_examples_are_those_whose_rank_changed_most(project, monkeypatch):
    inputs = read(project, monkeypatch, num_examples=5)
    before, after = (e.items("eval")["image_to_text_rank"] for e in (inputs.base, inputs.refined))
    by_ratio = sorted(range(len(before)), key=lambda row: (-before[row] / after[row], row))
    found = gallery(inputs, "Rank improved most").examples
    assert [example.lines[0] for example in found] == [f"place {before[i]:g} → {after[i]:g}" for i in by_ratio[:5]]
    assert [example.caption for example in found] == [f"thing number {i} <b>" for i in by_ratio[:5]]
    worse = gallery(inputs, "Rank worsened most").examples
    assert all(float(e.lines[0].split()[1]) < float(e.lines[0].split()[3]) for e in worse)


def test_nearest_caption_equals_a_slow_search():
    rng = np.random.default_rng(0)
    features = {"raw_image_features": rng.normal(size=(6, 4)), "raw_text_features": rng.normal(size=(9, 4))}
    for image, caption in pictures.nearest_caption(features, [1, 4]).items():
        one = features["raw_image_features"][image]
        scores = [one @ text / np.linalg.norm(text) / np.linalg.norm(one) for text in features["raw_text_features"]]
        assert caption == int(np.argmax(scores))


def test_thumbnail_is_small_and_on_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (1000, 500), (255, 0, 0, 0)).save(buffer, "PNG")
    thumb = Image.open(io.BytesIO(pictures.thumbnail(buffer.getvalue())))
    assert thumb.size == (pictures.THUMBNAIL, pictures.THUMBNAIL // 2)
    assert min(thumb.getpixel((0, 0))) > 250


def test_pairs_and_cosines_equal_loops():
    rng = np.random.default_rng(0)
    image, text = (results.unit(rng.normal(size=(5, 3))) for _ in range(2))
    found = pictures.cosines(image, text)
    assert found["pairs"] == pytest.approx([image[i] @ text[i] for i in range(5)])
    assert sorted(found["non-pairs"]) == pytest.approx(
        sorted(image[i] @ text[j] for i in range(5) for j in range(5) if i != j)
    )
    assert sorted(found["image–image"]) == pytest.approx(
        sorted(image[i] @ image[j] for i in range(5) for j in range(i))
    )


def ringed(monkeypatch, inputs):
    """The mix that the figure marks, and what the page says of it."""
    drawn = []
    real = figures.wise_ft_curve
    monkeypatch.setattr(
        figures, "wise_ft_curve", lambda curves, chosen: drawn.append(chosen) or real(curves, chosen=chosen)
    )
    blocks = pictures.wise_ft(inputs)
    return drawn[0], next(block.text for block in blocks if hasattr(block, "text")), blocks


def test_the_mix_is_chosen_on_val_and_read_on_eval(project, monkeypatch):
    inputs = read(project, monkeypatch)
    curves = {name: results.wise_curve(inputs.base, inputs.refined, [name]) for name in ("eval", "val")}
    best = {name: results.best_mix(curve) for name, curve in curves.items()}
    assert best["val"] != best["eval"], "else this test could not see where the choice is made"
    chosen, text, blocks = ringed(monkeypatch, inputs)
    assert chosen == best["val"]
    _, zero_shot, retrieval = next(point for point in curves["eval"] if point[0] == chosen)
    assert text.startswith(f"The ringed mix, {chosen:g}, has the best mean of both, chosen on val. On eval it gives ")
    assert f"{page.points(zero_shot / 100)} points zero-shot and {page.points(retrieval / 100)} points retr" in text
    table = blocks[-1].blocks[0]
    assert [row.cells[0].text for row in table.rows] == ["0", "0.25", "0.5", "0.75", "1"]
    gaps = [float(row.cells[3].text) for row in table.rows]
    assert gaps == sorted(gaps, reverse=True), "the example's gap narrows with the mix"


@pytest.mark.parametrize(("gone", "kind"), [("zero_shot", "retrieval"), ("retrieval", "zero-shot accuracy")])
def test_the_mix_is_chosen_on_whatever_val_measures(project, monkeypatch, gone, kind):
    """A set of captions has no classes: its part `val` chooses by retrieval, and the evaluation sets by nothing."""
    inputs = read(project, monkeypatch)
    for evaluation in (inputs.base, inputs.refined):
        del evaluation.results["selection"]["val"]["variants"]["plain"][gone]
    curve = results.wise_curve(inputs.base, inputs.refined, ["val"])
    column = 1 if gone == "retrieval" else 2
    assert all(point[3 - column] is None for point in curve)
    best = max(curve, key=lambda point: (point[column], -point[0]))[0]
    chosen, text, _ = ringed(monkeypatch, inputs)
    assert chosen == results.best_mix(curve) == best
    assert f"{kind} than the base" in text if best == 0 else f"has the best {kind}, chosen on val" in text


def test_no_mix_is_named_where_there_is_nothing_to_choose_it_on(project, monkeypatch):
    inputs = read(project, monkeypatch)
    for evaluation in (inputs.base, inputs.refined):
        evaluation.results["selection"] = {}
    chosen, text, _ = ringed(monkeypatch, inputs)
    assert chosen is None
    assert text.startswith("No mix is named the best: there is no other part to choose it on, and eval should judge")


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (0.0, "No mix has a better mean of both than the base itself (ringed), chosen on val."),
        (
            0.5,
            "The ringed mix, 0.5, has the best mean of both, chosen on val. On eval it gives −1.0 points zero-shot and "
            "+1.5 points retrieval against base. `python -m pipeline_lib.export` with `--mix 0.5` writes",
        ),
        (1.0, "The refined model itself (ringed) has the best mean of both, chosen on val: on eval +2.0 points zero-"),
    ],
)
def test_a_mix_that_is_no_mix_is_called_what_it_is(chosen, says):
    curve = [(0.0, 0.0, 0.0), (0.5, -1.0, 1.5), (1.0, 2.0, 2.0)]
    assert pictures._chosen_mix("eval", curve, chosen, "mean of both, chosen on val").startswith(says)


def test_the_gap_stands_with_its_interval_floor_and_centring_part(written):
    folder, _, inputs = written
    markdown = (folder / report.MARKDOWN).read_text()
    verdict_, gap = markdown.split("## Before and after")[0], markdown.split("## The modality gap")[1]
    found = inputs.gaps["eval"]
    assert "The gap on eval **narrowed**" in verdict_
    for text in (verdict_, gap):
        assert f"{tables.signed(found.change.low)} to {tables.signed(found.change.high)}" in text
    assert re.search(
        rf"of two samples of one distribution +\| +[\d.]+ +\| +[\d.]+ +\| +{page.number(found.floor)} ", gap
    )
    assert "each modality's mean over 60 pictures of `val`, none of them in the set shown." in gap


def test_probes_stand_beside_the_headlines_and_are_no_headlines(project, monkeypatch):
    inputs = read(project, monkeypatch)
    (row,) = inputs.probes
    assert row.before.name not in [one.before.name for one in inputs.comparison]
    (table,) = [block for block in tables.linear_probe(inputs) if isinstance(block, Table)]
    cells = [str(cell) for cell in table.rows[0].cells]
    before, after = (e.results["linear_probe"]["eval"]["shape"]["top1"]["value"] for e in (inputs.base, inputs.refined))
    assert cells[0] == "eval: shape"
    assert cells[1].startswith(page.percent(before))
    assert cells[2].startswith(page.percent(after))
    assert cells[3].startswith(page.points(after - before))
    assert verdict.probe_verdict(inputs.probes) in page.to_markdown(report.build(inputs))


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        ((), ""),
        (("still",), "it **did not move measurably** on the one task."),
        (("still", "still"), "it **did not move measurably** on any of 2 tasks."),
        (("fell", "still"), "it **fell** on eval: kind 0 (−1.0 points), did not move measurably on 1 more."),
        (("fell", "rose"), "it **fell** on eval: kind 0 (−1.0 points), **rose** on eval: kind 1 (−1.0 points)."),
    ],
)
def test_what_the_probe_says(verdicts, says):
    rows = [paired(one, name=f"linear probe kind {i} top-1") for i, one in enumerate(verdicts)]
    rows = [dataclasses.replace(row, difference=Interval(-0.01, -0.02, 0.0)) for row in rows]
    assert verdict.probe_verdict(rows).endswith(says)


def test_class_means_carry_paired_intervals(written):
    """Means over classes resample images too; their difference is that of the printed numbers."""
    _, _, inputs = written
    row = next(row for row in inputs.comparison if row.before.key == "zero_shot_shape_mean_per_class")
    assert row.difference.value == pytest.approx(row.after.interval.value - row.before.interval.value, abs=1e-6)
    assert row.difference.low < row.difference.value < row.difference.high
    labels = inputs.base.items("eval")["zero_shot.shape.label"]
    hits = inputs.base.items("eval")["zero_shot.shape.ensemble.hit_at_1"]
    assert Mean(hits, np.arange(len(hits)), labels).value == pytest.approx(
        np.mean([hits[labels == label].mean() for label in np.unique(labels)])
    )


def test_worst_classes_come_with_what_they_are_taken_for(written):
    _, _, inputs = written
    table = next(iter(tables.worst_classes(inputs, "eval")))
    shares = [float(row.cells[3].text) for row in table.rows]
    assert shares == sorted(shares)
    assert re.search(r"\w+ \(\d+\)", table.rows[0].cells[4].text)


def test_a_set_too_small_for_the_gap_suite_has_none_in_the_headlines(written):
    from stages import report as stage

    _, _, inputs = written
    assert "eval/centroid_distance" in stage.summary(inputs)
    small = copy.deepcopy(inputs.refined.results)
    inputs = dataclasses.replace(inputs, refined=copy.copy(inputs.refined))
    inputs.refined.results = small
    small["sets"]["eval"]["variants"]["plain"]["gap"] = {"raw_image_norm": 1.0, "raw_text_norm": 1.0}
    assert "eval/centroid_distance" not in stage.summary(inputs)


def test_stage_writes_the_folder_and_prints_the_table(project, monkeypatch, capsys):
    from stages import report as stage

    monkeypatch.chdir(project)
    params = Path("params.yaml").read_text()
    Path("params.yaml").write_text(params.replace("mode: best_effort", "mode: disabled"))
    logged = []
    monkeypatch.setattr(tracking.Run, "log_artifact", lambda self, path, folder="": logged.append((path.name, folder)))
    stage.main()
    assert artifacts.read_manifest(Path("data/report"), stage="report")
    drawn = {"differences.png", "projection.png", "cosines.png", "gap_spectrum.png", "recall_eval.png", "training.png"}
    assert {name for name, folder in logged if folder == "figures"} == drawn | {"wise_ft.png"}, "MLflow has the figures"
    plots = yaml.safe_load((example_results.ROOT / "dvc.yaml").read_text())["plots"]
    assert "${paths.report}/figures" in plots, "and DVC"
    assert "Mixed: of 3 headlines" in capsys.readouterr().out
