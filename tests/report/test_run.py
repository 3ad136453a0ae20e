"""The page as a whole: its order, its numbers, its bytes against a second run, and the same in a few numbers."""

import copy
import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline_lib import tracking
from pipeline_lib.core import artifacts, provenance
from pipeline_lib.report import page, tables
from pipeline_lib.report import run as report
from stages import report as stage
from tests import example_results


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
            assert f"{row.before.name} **{row.verdict}**: {page.percent(row.before.value)} →" in first


def test_the_header_says_what_was_run(written):
    folder, _, inputs = written
    header = (folder / report.MARKDOWN).read_text().split("## Verdict")[0]
    for line in (
        "- **base model**: demo: `lite0` and `minilm` with heads trained on 44 images",
        "- **data**: scenes in `openmoji`; 512 images with captions to train on",
        "- **recipe**: `clip_refine`, learning rate 5e-05, 8 steps of 64 pairs (1 epoch)",
        "- **evaluated on**: eval (120 images, 240 captions); to choose on: val (60 images, 120 captions)",
        "- **seed**: 0",
        "- [Provenance](#provenance)",
    ):
        assert f"\n{line}\n" in header
    assert len(inputs.history) == 8


def test_digests_stand_last_and_folded(written):
    folder, _, _ = written
    last = (folder / report.HTML).read_text().split('<section id="provenance">')[1]
    assert last.count("<table>") == last.count("<details>") == 4
    assert last.index("<details>") < last.index("<table>")


def test_copies_say_on_what_and_how_long_and_the_page_does_not(written, tmp_path, monkeypatch):
    folder, _, inputs = written
    monkeypatch.chdir(folder.parents[1])
    document = report.compose_page(inputs)
    copies = report.write_copies(document, tmp_path, "cpu, 2 threads; refine 0.6 min")
    for name, written_copy in copies.items():
        before, after = {report.HTML: ("<dt>computed on</dt><dd>", "</dd>")}.get(name, ("\n- **computed on**: ", ""))
        fact = f"{before}cpu, 2 threads; refine 0.6 min{after}"
        assert written_copy.read_text().replace(fact, "", 1) == (folder / name).read_text()
    assert set(copies) == {report.HTML, report.MARKDOWN}
    assert report.write_copies(document, tmp_path, "") == {}


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
    inputs = example_results.read_report_inputs(tmp_path / "copy", monkeypatch)
    report.run(inputs, Path("again"))
    assert artifacts.read_manifest(Path("again"))["digest"] == artifacts.read_manifest(folder)["digest"]
    assert artifacts.verify(folder) == []


def test_every_image_of_the_markdown_is_there(written):
    folder, _, _ = written
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (folder / report.MARKDOWN).read_text())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in {".png", ".jpg"}}
    assert set(named) == files
    figures = {Path(name).stem for name in files if name.endswith(".png")}
    assert figures == {"differences", "projection", "cosines", "gap_spectrum", "recall_eval", "training"} | {
        "few_shot",
        "wise_ft",
    }


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
    for name in ("base", "shard", "cache_teacher", "refine"):
        assert inputs.manifests[name]["digest"] in text
    for evaluation in (inputs.base, inputs.refined):
        assert evaluation.results["weights_digest"] in text
        assert evaluation.manifest["digest"] in text
    for name in ("base", "shard", "cache_teacher", "refine", "evaluate", "report"):
        assert f"| `{provenance.stage_digest(name)[:16]}`" in text
    assert "refine.learning_rate" in text
    assert "recipes.clip_refine.alpha" in text
    assert "| torch " in text
    assert not re.search(r"runtime\.|tracking\.|paths\.", text)


@pytest.mark.parametrize("options", [{"with_captions": False}, {"with_task": False}, {"centred": False}], ids=str)
def test_sets_without_captions_labels_or_centring_still_get_a_page(tmp_path, monkeypatch, options):
    example_results.make_project(tmp_path, **options)
    text = page.to_markdown(report.compose_page(example_results.read_report_inputs(tmp_path, monkeypatch)))
    assert ("zero-shot shape" in text) == options.get("with_task", True)
    assert ("## The modality gap" in text) == options.get("with_captions", True)
    if not options.get("centred", True):
        assert "Mean-centring, which costs nothing" not in text


def test_no_sweep_no_probe_no_curves_no_examples_no_history(project, monkeypatch):
    inputs = example_results.read_report_inputs(project, monkeypatch, history=[], num_examples=0)
    for evaluation in (inputs.base, inputs.refined):
        evaluation.results |= {"wise_ft": [], "linear_probe": {}, "few_shot": {}}
    titles = [section.title for section in report.compose_page(inputs).sections]
    assert "Examples" not in titles
    assert "What was forgotten" not in titles


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
    assert "each modality's mean over 60 images of `val`, none of them in the set shown." in gap


def test_a_set_too_small_for_the_gap_suite_has_none_in_the_headlines(written):
    _, _, inputs = written
    assert "eval/centroid_distance" in report.summary(inputs)
    small = copy.deepcopy(inputs.refined.results)
    inputs = dataclasses.replace(inputs, refined=copy.copy(inputs.refined))
    inputs.refined.results = small
    small["sets"]["eval"]["variants"]["plain"]["gap"] = {"raw_image_norm": 1.0, "raw_text_norm": 1.0}
    assert "eval/centroid_distance" not in report.summary(inputs)


def test_stage_writes_the_folder_and_prints_the_table(project, monkeypatch, capsys):
    """What is tracked carries the time that stages took, what lies there does not."""
    monkeypatch.chdir(project)
    params = Path("params.yaml").read_text()
    Path("params.yaml").write_text(params.replace("mode: best_effort", "mode: disabled"))
    logged = []
    texts = {}

    def log_artifact(self, path, folder="", *, on_row=False):
        logged.append((path.name, folder))
        assert on_row == (path.name == "report.html")
        texts[path.name] = path.read_bytes()

    monkeypatch.setattr(tracking.Run, "log_artifact", log_artifact)
    monkeypatch.setattr(tracking, "time_taken", lambda params_file, outputs: f"cpu; {', '.join(outputs)} 1.0 min")
    stage.main()
    took = "cpu; base, shard, cache_teacher, refine, evaluate@base, evaluate@refined 1.0 min"
    for name in (report.HTML, report.MARKDOWN):
        assert took in texts[name].decode()
        assert took not in Path("data/report", name).read_text()
    assert artifacts.read_manifest(Path("data/report"), stage="report")
    drawn = {"differences.png", "projection.png", "cosines.png", "gap_spectrum.png", "recall_eval.png", "training.png"}
    drawn |= {"few_shot.png", "wise_ft.png"}
    assert {name for name, folder in logged if folder == "figures"} == drawn, "MLflow has the figures"
    plots = yaml.safe_load((example_results.ROOT / "dvc.yaml").read_text())["plots"]
    assert "${paths.report}/figures" in plots, "and DVC"
    printed = capsys.readouterr().out
    assert "Mixed: of 3 headlines" in printed
    assert f"Computed on: {took}." in printed
