"""The comparison: grouping, means and spreads against numpy, the ranking's split, and real DVC revisions and queue."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline_lib import compare
from pipeline_lib.compare import ablate, board, comparison, entries
from pipeline_lib.compare.__main__ import _folder, main
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from pipeline_lib.lineage import revisions
from pipeline_lib.params import whole_file
from pipeline_lib.params.ablations import CHANGES
from pipeline_lib.refine import recipes
from pipeline_lib.report import page
from pipeline_lib.results import statistics
from pipeline_lib.results.folders import Variant
from pipeline_lib.results.paired import item_differences
from tests import example_results

ROOT = example_results.ROOT
RUNS = {
    "refine-0": {"seed": 0},
    "refine-1": {"seed": 1},
    "hycd-0": {"seed": 0, "recipe": "hycd", "gain": 0.5, "loss": 0.2},
    "worse": {"seed": 0, "recipe": "rafa", "gain": -1.0, "loss": 0.0},
}
HEADLINE = "image_to_text_log_rank"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, options in RUNS.items():
        example_results.make_project(root / name, **options)
    return root


@pytest.fixture
def candidates(folders):
    return [compare.read_folder(name, folders / name) for name in RUNS]


@pytest.fixture
def ranking(folders, candidates):
    return board.make_board(compare.group(candidates), folders / "worse" / "params.yaml")


def value(candidate, name, model="refined"):
    results = getattr(candidate, model).results
    group = "sets" if name in results["sets"] else "selection"
    measures = results[group][name]["variants"]["plain"]["measures"]
    return next(measure["value"] for measure in measures if measure["key"] == HEADLINE)


# ---- grouping ----


def test_seeds_of_one_configuration_are_one_group(candidates):
    groups = compare.group(reversed(candidates))
    assert {g.label: [c.name for c in g.candidates] for g in groups} == {
        "clip_refine": ["refine-0", "refine-1"],
        "hycd": ["hycd-0"],
        "rafa": ["worse"],
    }


def test_groups_are_told_apart_by_what_differs(candidates):
    one, other = candidates[0], compare.read_folder("x", candidates[0].refined.directory.parents[2])
    other.parameters["refine"]["learning_rate"] = 1e-4
    other.parameters["recipes"]["clip_refine"]["alpha"] = 0.1
    labels = [group.label for group in compare.group([one, other])]
    assert labels == ["clip_refine, learning_rate 5e-05, alpha 0.5", "clip_refine, learning_rate 0.0001, alpha 0.1"]


def test_what_is_measured_beside_the_compared_numbers_makes_no_other_configuration(candidates):
    """A sweep or probes for one seed only: still two seeds of one configuration, named by what changes results."""
    candidates[0].parameters["evaluate"] |= {"wise_ft": [], "linear_probe": False, "few_shot": None}
    candidates[1].parameters["evaluate"] |= {"wise_ft": [0.5], "linear_probe": True}
    [group] = compare.group(candidates[:2])
    assert [c.name for c in group.candidates] == ["refine-0", "refine-1"]
    assert "wise_ft" not in group.label


def test_one_seed_with_two_results_is_not_averaged(candidates):
    """Equal parameters, other weights: other code or another machine. Each stands alone under its own name."""
    twin = compare.read_folder("twin", candidates[0].refined.directory.parents[2])
    twin.refined.results["weights_digest"] = "0" * 64
    labels = [group.label for group in compare.group([candidates[0], twin])]
    assert labels == ["clip_refine (refine-0)", "clip_refine (twin)"]
    same = compare.read_folder("copy", candidates[0].refined.directory.parents[2])
    assert len(compare.group([candidates[0], same])[0].candidates) == 1


def again(candidate, name):
    """The candidate read anew under a name, as other weights, so that its parameters can be changed."""
    found = compare.read_folder(name, candidate.refined.directory.parents[2])
    found.refined.results["weights_digest"] = artifacts.sha256_bytes(name.encode())
    return found


@pytest.mark.parametrize(("written", "read_back"), [(1, 1.0), ([0, 0.5], [0.0, 0.5])])
def test_a_number_is_the_same_configuration_with_and_without_its_point(candidates, written, read_back):
    whole, pointed = again(candidates[0], "whole"), again(candidates[1], "pointed")
    whole.parameters["recipes"]["clip_refine"]["rafa_weight"] = written
    pointed.parameters["recipes"]["clip_refine"]["rafa_weight"] = read_back
    [group] = compare.group([whole, pointed])
    assert (group.label, [c.seed for c in group.candidates]) == ("clip_refine", [0, 1])


def test_a_key_that_an_old_revision_lacks_is_null(candidates):
    old, new = again(candidates[0], "old"), again(candidates[1], "new")
    del old.parameters["refine"]["max_steps"]
    assert new.parameters["refine"]["max_steps"] is None
    [group] = compare.group([old, new])
    assert [c.name for c in group.candidates] == ["old", "new"]
    new.parameters["refine"]["max_steps"] = 3
    assert [g.label for g in compare.group([old, new])] == ["clip_refine", "clip_refine, max_steps 3"]


def test_two_folders_of_one_name_keep_their_own_numbers(folders, tmp_path):
    """Equal parameters and names, other weights: every table tells them apart."""
    for place, gain in (("a", 1.0), ("b", -1.0)):
        example_results.make_project(tmp_path / place / "run", gain=gain)
    found = [compare.read_folder("run", tmp_path / place / "run") for place in ("a", "b")]
    ranking = board.make_board(compare.group(found), folders / "worse" / "params.yaml")
    assert {g.label for g in ranking.groups} == {"clip_refine (run)", "clip_refine (run 2)"}
    for group, candidate in zip(ranking.groups, found, strict=True):
        entry = ranking.entries["val"][group.label][HEADLINE]
        assert entry.values == (value(candidate, "val"),)
    assert [row.cells[0].text for row in comparison._runs(ranking).rows] == ["run", "run 2"]


def test_labels_are_unique_whatever_differs(candidates):
    """Parameters of one last name: the candidates' names tell apart what these do not."""
    one, other = again(candidates[0], "one"), again(candidates[0], "other")
    one.parameters["base"]["twist"] = other.parameters["shard"]["twist"] = 1
    labels = [group.label for group in compare.group([one, other])]
    assert labels == ["clip_refine, twist 1 (one)", "clip_refine, twist 1 (other)"]


def test_a_board_of_equal_labels_is_a_mistake(candidates, folders):
    groups = [dataclasses.replace(one, label="same") for one in compare.group(candidates)]
    with pytest.raises(AssertionError, match="same"):
        board.make_board(groups, folders / "worse" / "params.yaml")


# ---- the board ----


def test_means_spreads_and_differences_equal_numpy(ranking, candidates):
    for name in ("val", "eval"):
        entry = ranking.entries[name]["clip_refine"][HEADLINE]
        values = [value(candidate, name) for candidate in candidates[:2]]
        assert entry.values == pytest.approx(values)
        assert entry.mean == pytest.approx(np.mean(values))
        assert entry.spread == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
        assert entry.difference.value == pytest.approx(np.mean(values) - value(candidates[0], name, "base"), abs=1e-6)
    assert ranking.entries["eval"]["hycd"][HEADLINE].spread is None


def test_ranked_on_val_by_the_mean_difference(ranking):
    assert ranking.ranking_sets == ["val"]
    assert ranking.sets == ["val", "eval"]
    assert [group.label for group in ranking.ranked][-1] == "rafa"
    scores = [ranking.score(group) for group in ranking.ranked]
    assert scores == sorted(scores, reverse=True)
    expected = np.mean([e.difference.value for e in ranking.entries["val"]["hycd"].values()])
    assert scores[[g.label for g in ranking.ranked].index("hycd")] == pytest.approx(expected)
    assert compare.ranked_on(ranking).startswith("Ranked on val,")
    refine = next(group for group in ranking.groups if group.label == "clip_refine")
    by_seed = [
        np.mean([entry.values[seed] - entry.mean + entry.difference.value for entry in found])
        for found in [list(ranking.entries["val"]["clip_refine"].values())]
        for seed in (0, 1)
    ]
    assert ranking.scores(refine) == pytest.approx(by_seed)
    assert ranking.score(refine) == pytest.approx(np.mean(by_seed))


def test_verdict_says_how_much_of_the_first_place_is_measurable(ranking):
    best = ranking.ranked[0]
    verdicts = [entry.verdict for entry in ranking.entries["eval"][best.label].values()]
    rose, fell = verdicts.count("rose"), verdicts.count("fell")
    assert rose
    said = " and ".join(f"{count} {word}" for count, word in ((rose, "rose"), (fell, "fell")) if count)
    assert comparison.verdict(ranking).endswith(f" On eval, of 3 headlines {said} measurably with it.")
    found = ranking.entries["val"][best.label]
    found |= {key: dataclasses.replace(entry, verdict="still") for key, entry in found.items()}
    assert ranking.moved(best, ["val"]) == "of 3 headlines none moved measurably"


def test_a_large_family_of_tests_still_finds_what_is_certain(ranking):
    """No floor under the p-values: resamples had one, beyond which Holm's factor left nothing to be found."""
    p_values = [entry.p_value for entry in ranking.entries["eval"]["clip_refine"].values()]
    assert min(p_values) * 2000 < 0.05


def test_without_a_selection_part_the_page_warns(candidates, folders):
    for candidate in candidates:
        for evaluation in (candidate.base, candidate.refined):
            evaluation.results["selection"] = {}
    ranking = board.make_board(compare.group(candidates), folders / "worse" / "params.yaml")
    assert ranking.ranking_sets == ["eval"]
    assert "the best of many looks better than it is" in compare.ranked_on(ranking)


def test_sets_with_other_images_are_not_compared(candidates, folders):
    candidates[0].refined.results["sets"]["eval"]["digest"] = "other"
    ranking = board.make_board(compare.group(candidates), folders / "worse" / "params.yaml")
    assert ranking.sets == ["val"]


def test_nothing_in_common_is_said(candidates, folders):
    for kind in ("sets", "selection"):
        for one in candidates[0].refined.results[kind].values():
            one["digest"] = "other"
    with pytest.raises(UserError, match="no set in common"):
        board.make_board(compare.group(candidates), folders / "worse" / "params.yaml")


def family_of(ranking):
    return {group.label for group in ranking.groups}


def test_where_no_configuration_beats_the_base_that_is_the_first_sentence(folders, candidates):
    ranking = board.make_board(compare.group(candidates[-1:]), folders / "worse" / "params.yaml")
    assert comparison.verdict(ranking).startswith(
        "**It does not beat the base measurably on val.** Nearest is `rafa`: −"
    )
    free = [rival.label for rival in ranking.rivals if ranking.score(rival) > 0]
    assert all(f"{label.capitalize()}, which is free, stands before" in comparison.verdict(ranking) for label in free)
    worse = [*candidates[-1:], dataclasses.replace(candidates[-1], name="again", parameters=other_rate(candidates[-1]))]
    assert comparison.verdict(board.make_board(compare.group(worse), folders / "worse" / "params.yaml")).startswith(
        "**None of the 2 configurations beats the base measurably on val.**"
    )


def test_a_first_that_also_fell_does_not_hide_one_that_beats_the_base(ranking):
    first, second = ranking.ranked[:2]
    for group, verdicts in ((first, ("rose", "rose", "fell")), (second, ("rose", "still", "still"))):
        found = ranking.entries["val"][group.label]
        for key, verdict in zip(list(found), verdicts, strict=True):
            found[key] = dataclasses.replace(found[key], verdict=verdict)
    assert not ranking.beats_base(first)
    said = comparison.verdict(ranking)
    assert said.startswith(f"First is `{first.label}`: +")
    assert (
        "of 3 headlines 2 rose and 1 fell measurably. The first that beats the base, with no measurable fall, is "
        in said
    )
    assert f"is `{second.label}`: +" in said


def test_what_has_no_value_for_a_headline_is_ranked_last(ranking):
    commonest = next(rival for rival in ranking.rivals if rival.label == "the commonest class")
    assert np.isnan(ranking.score(commonest))
    assert ranking.ranked_rows[-1] is commonest
    assert "which is free" not in comparison.verdict(ranking)


def other_rate(candidate):
    return {**candidate.parameters, "refine": {**candidate.parameters["refine"], "learning_rate": 1}}


def test_several_seeds_are_judged_by_their_spread_as_well(ranking):
    """The interval is never narrower than that over images, and the p-value never smaller than the exact one."""
    group = next(group for group in ranking.groups if group.label == "clip_refine")
    for key in ranking.keys("eval"):
        entry = ranking.entries["eval"]["clip_refine"][key]
        pairs = [(Variant(c.base), Variant(c.refined)) for c in group.candidates]
        differences = [item_differences(*pair, entry.before).value for pair in pairs]
        assert entry.changes == pytest.approx(differences, abs=1e-6)
        assert entry.spread == pytest.approx(np.std(differences, ddof=1), abs=1e-6)
        averaged = entries.compare(pairs, "eval", [key], ranking.settings)[key]
        assert averaged.difference == entry.difference
        single = entries.compare(pairs[:1], "eval", [key], ranking.settings)[key]
        assert single.spread is None
    points = dict(zip([g.label for g in ranking.ranked], comparison.verdict_points(ranking).items, strict=True))
    assert points["clip_refine"][0].startswith("`clip_refine`, 2 seeds: ")
    assert points["hycd"][0].endswith("What another seed would give is not known.")


def test_table_holds_base_mean_centred_and_every_group(ranking, candidates):
    table = comparison.table(ranking, "eval")
    labels = [row.cells[0].text for row in table.rows]
    assert sorted(labels) == sorted(
        ["base", "mean-centred", "chance", "the commonest class", *(group.label for group in ranking.ranked)]
    )
    assert [label for label in labels if label in family_of(ranking)] == [group.label for group in ranking.ranked]
    scores = [ranking.score(row) for row in ranking.ranked_rows]
    assert scores == sorted(scores, reverse=True)
    assert labels.index("chance") > labels.index("base"), "without a model it is worse"
    by_name = {row.cells[0].text: row for row in table.rows}
    entry = ranking.entries["eval"]["clip_refine"][HEADLINE]
    assert by_name["clip_refine"].cells[2].text == f"{page.percent(entry.mean)} ± {page.percent(entry.spread)}"
    assert by_name["base"].cells[2].text == page.percent(value(candidates[0], "eval", "base"))
    assert by_name["rafa"].cells[2].tone == "fell"
    family = ranking.entries["eval"]
    assert list(family) == ["clip_refine", "hycd", "rafa", "mean-centred"]
    p_values = [entry.p_value for by_key in family.values() for entry in by_key.values()]
    adjusted = statistics.holm(p_values)
    for entry, p in zip((e for by_key in family.values() for e in by_key.values()), adjusted, strict=True):
        assert (entry.verdict != "still") == (p < 0.05 and not entry.objection)  # free baselines are judged alike
    assert by_name["clip_refine"].cells[1].text == "2"


def test_page_shows_equations_grid_and_runs(ranking, tmp_path):
    compare.write_comparison(ranking, tmp_path / "out")
    markdown = (tmp_path / "out" / comparison.MARKDOWN).read_text()
    for recipe in ("clip_refine", "hycd", "rafa"):
        assert recipes.RECIPES[recipe].__doc__.split("\n")[0] in markdown
    for name in RUNS:
        assert name in markdown
    spread = np.std(ranking.scores(next(g for g in ranking.groups if g.label == "clip_refine")), ddof=1)
    assert re.search(rf"\| clip_refine +\|.* 0, 1 \| +[+−][\d.]+ ± {page.percent(spread)} \|", markdown)
    html = (tmp_path / "out" / comparison.HTML).read_text()
    assert "Ranked on val" in html
    assert "/tmp" not in html
    assert artifacts.verify(tmp_path / "out") == []


def test_command_line_takes_named_folders(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [f"a={folders / 'refine-0'}", str(folders / "worse"), "--params", str(folders / "worse/params.yaml")]
    main([*arguments, "--output", "out"])
    assert (tmp_path / "out" / comparison.HTML).is_file()
    printed = capsys.readouterr().out
    assert "is clip_refine: " in printed.replace("\n", " ")
    assert "clip_refine, one seed: " in printed
    assert max(len(line) for line in printed.splitlines()) <= 100


def test_a_folder_may_have_an_equals_sign_in_its_name(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders / "refine-0", tmp_path / "runs/lr=5e-5")
    assert _folder("runs/lr=5e-5").name == "lr=5e-5"
    named = _folder("first=runs/lr=5e-5")
    assert (named.name, named.refined.directory) == ("first", Path("runs/lr=5e-5/data/eval/refined"))


def test_folder_without_an_evaluation_is_named(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with pytest.raises(UserError, match=r"data/eval/base/manifest\.json: no such file"):
        compare.read_folder("x", tmp_path)


# ---- ablations ----


def test_seeds():
    assert ablate.parse_seeds("0..2") == [0, 1, 2]
    assert ablate.parse_seeds("4") == [4]
    assert ablate.parse_seeds("3,1") == [3, 1]
    assert ablate.parse_seeds("2..2") == [2]
    assert ablate.parse_seeds("1,0,01,0") == [1, 0]
    with pytest.raises(UserError, match="--seeds"):
        ablate.parse_seeds("0-2")
    with pytest.raises(UserError, match=r"--seeds: 2\.\.0 holds no seed; write 0\.\.2"):
        ablate.parse_seeds("2..0")


OF_THE_USER = {  # parameters of somebody with a GPU, a server and other habits
    "processes: 1": "processes: 8",
    "device: auto": "device: cuda",
    "mode: best_effort": "mode: required",
    "bootstrap_samples: 1000": "bootstrap_samples: 2000",
    "limit: null": "limit: 300",
    "root: data/openmoji": "root: data/mine",
    "learning_rate: 5e-5": "learning_rate: 2e-5",
}


def params_with(folder, changes):
    """The project's params.yaml with texts replaced."""
    text = (ROOT / "params.yaml").read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "params.yaml").write_text(text)
    return folder / "params.yaml"


def planned(params_file):
    """What is set on top of params.yaml by each experiment, without the seed; and what is said."""
    found, notes = ablate.plan(params_file, ROOT / CHANGES, [0])
    assert all(one.changes["refine.seed"] == 0 for one in found)
    return {one.name: {k: v for k, v in one.changes.items() if k != "refine.seed"} for one in found}, notes


def test_plan_of_the_shipped_ablations_covers_every_recipe():
    changes, [note] = planned(ROOT / "params.yaml")
    chosen = {sets.get("refine.recipe", "clip_refine") for sets in changes.values()}
    assert chosen == set(recipes.RECIPES) - {"llm2clip"}  # whose ablation is another set-up, with a language model
    assert changes["clip-refine-seed0"] == {}
    assert changes["hycd-seed0"] == {"refine.recipe": "hycd"}
    assert changes["rafa-paper-reduction-seed0"] == {"recipes.clip_refine.reduction": "paper"}
    assert "coco_vit_b32, flickr8k, llm2clip, llm2clip_coco" in note
    assert "coco_vit_b32.yaml params.yaml && dvc repro`" in note


def test_plan_leaves_everything_else_the_users(tmp_path):
    """Another machine, data, tracking or learning rate: the same experiments, which set the named keys and no other."""
    params = params_with(tmp_path, OF_THE_USER)
    assert planned(params) == planned(ROOT / "params.yaml")
    for one in ablate.plan(params, ROOT / CHANGES, [0])[0]:
        assert (one.parameters["refine.learning_rate"], one.parameters["data.limit"]) == (2e-5, 300)


def test_plan_has_every_rate_of_the_chosen_ablations():
    found, _ = ablate.plan(ROOT / "params.yaml", ROOT / CHANGES, [0, 1], [2e-5, 1e-4], ["hycd", "clip_refine"])
    names = [
        f"{recipe}-lr{rate}-seed{seed}"
        for recipe in ("clip-refine", "hycd")
        for rate in ("2e-05", "0.0001")
        for seed in (0, 1)
    ]
    assert [one.name for one in found] == names
    assert [one.parameters["refine.learning_rate"] for one in found] == [2e-5, 2e-5, 1e-4, 1e-4] * 2
    assert found[0].changes == {"refine.learning_rate": 2e-5, "refine.seed": 0}
    with pytest.raises(UserError, match="--only: no ablation `hicd`; there are clip_refine, "):
        ablate.plan(ROOT / "params.yaml", ROOT / CHANGES, [0], only=["hicd"])


@pytest.mark.parametrize("text", ["fast", "1e-5,", "0", "-1e-5", "nan", "inf"])
def test_rates_are_positive_numbers(text):
    assert ablate.parse_rates("") == []
    assert ablate.parse_rates("1e-5,2e-5,1e-5") == [1e-5, 2e-5]
    with pytest.raises(UserError, match=r"--rates: .* is no learning rate; write them like 2e-5,5e-5,1e-4"):
        ablate.parse_rates(text)


def test_plan_has_every_seed():
    found, _ = ablate.plan(ROOT / "params.yaml", ROOT / CHANGES, [3, 1])
    assert [one.name for one in found][:2] == ["clip-refine-seed3", "clip-refine-seed1"]
    assert [one.parameters["refine.seed"] for one in found] == [3, 1] * (len(found) // 2)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"recipe: clip_refine\n": "recipe: hycd\n"}, "hycd"),
        ({"reduction: mean # mean | paper": "reduction: paper"}, "clip_refine"),
    ],
    ids=["its key decides nothing of the configuration's recipe", "its value is the configuration's"],
)
def test_plan_has_no_run_twice(tmp_path, changes, same):
    experiments, [_, note] = planned(params_with(tmp_path, changes))
    everything = planned(ROOT / "params.yaml")[0].keys()
    assert experiments.keys() == everything - {"rafa-paper-reduction-seed0"}
    assert experiments[f"{same.replace('_', '-')}-seed0"] == {}
    name = f"{ROOT / CHANGES}: rafa_paper_reduction"
    assert note == f"{name}: left out; with this params.yaml it makes the same run as `{same}`."


def write_changes(folder, **entries):
    """A changes.yaml with these ablations."""
    path = folder / "changes.yaml"
    path.write_text(json.dumps({name: {"sentence": "Mine.", "changes": each} for name, each in entries.items()}))
    return path


def test_plan_has_every_recipe_of_the_users_params_and_entries_of_their_own(tmp_path):
    """A recipe without a file in ablations/, a block that is replaced, and an entry that is a recipe's ablation."""
    params = params_with(tmp_path, {"  feature_kd: {}\n": "  mine: {weight: 1.0}\n  feature_kd: {}\n"})
    prior = {"kind": "uniform", "mean": 0.0, "std": 1.0, "shared": True, "decay": "none"}
    own = {
        "longer": {"refine.epochs": 3},
        "uniform": {"refine.recipe": "rafa", "recipes.rafa.prior": prior},
        "twin": {"refine.recipe": "mine"},
        "elsewhere": {"data.root": "data/elsewhere"},
    }
    changes = write_changes(tmp_path, **own)
    found, notes = ablate.plan(params, changes, [0])
    sets = {one.name: {k: v for k, v in one.changes.items() if k != "refine.seed"} for one in found}
    assert sets["mine-seed0"] == {"refine.recipe": "mine"}
    assert sets["longer-seed0"] == own["longer"]
    assert sets["uniform-seed0"] == {
        "refine.recipe": "rafa",
        "recipes.rafa.prior.kind": "uniform",
        "recipes.rafa.prior.mean": 0.0,
        "recipes.rafa.prior.std": 1.0,
        "recipes.rafa.prior.shared": True,
        "recipes.rafa.prior.decay": "none",
    }
    assert not {"twin-seed0", "elsewhere-seed0"} & sets.keys()
    assert notes == [
        "Other data or models, not part of the grid: elsewhere; "
        f"`cp {tmp_path}/elsewhere.yaml params.yaml && dvc repro` runs one.",
        f"{changes}: twin: left out; with this params.yaml it makes the same run as `mine`.",
    ]


def test_experiment_is_reused_only_where_what_decides_its_results_is_equal(tmp_path):
    wanted = ablate.plan(ROOT / "params.yaml", ROOT / CHANGES, [0])[0][0]
    where_and_how = {
        "device: auto": "device: cuda",
        "mode: best_effort": "mode: disabled",
        "report: data/report": "report: data/page",
        "num_examples: 8": "num_examples: 2",
        "contrastive_raw: {scale: 100.0}": "contrastive_raw: {scale: 50.0}",
    }
    assert ablate.differences(wanted, params_with(tmp_path, where_and_how)) == []
    assert ablate.differences(wanted, params_with(tmp_path, OF_THE_USER)) == [
        "data.root=data/mine",
        "data.limit=300",
        "refine.learning_rate=2e-05",
        "evaluate.bootstrap_samples=2000",
    ]
    own_block = {"reduction: mean # mean | paper": "reduction: paper"}
    assert ablate.differences(wanted, params_with(tmp_path, own_block)) == ["recipes.clip_refine.reduction=paper"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("x", {}, "changes.yaml: x.changes: names no key"),
        ("x", {"refine.rate": 1}, "params.yaml: `refine.rate` is missing, which .*changes.yaml: x needs; add it"),
        ("x", {"refine.recipe": "mine"}, "params.yaml: `recipes.mine` is missing, which .*changes.yaml: x needs"),
        ("x", {"recipes.hycd": {"alpha": 1.0}}, "changes.yaml: x: replaces a block without `recipes.hycd.logits`"),
        ("clip_refine", {"refine.epochs": 2}, "changes.yaml: clip_refine: has the name of a recipe .*rename it"),
        ("hycd", {"refine.epochs": 2}, "changes.yaml: hycd: has the name of a recipe .*rename it"),
    ],
)
def test_plan_refuses_what_it_cannot_run(tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message):
        ablate.plan(ROOT / "params.yaml", write_changes(tmp_path, **{name: changes}), [0])


def test_plan_refuses_a_folder_without_ablations(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/changes.yaml: No such file.*run from the project's folder"):
        ablate.plan(ROOT / "params.yaml", tmp_path / "changes.yaml", [0])


def test_plan_is_told_with_what_is_there():
    experiments, _ = ablate.plan(ROOT / "params.yaml", ROOT / CHANGES, [0])
    there = {
        "contrastive-seed0": ablate.Found("1" * 40, []),
        "hycd-seed0": ablate.Found("2" * 40, ["refine.learning_rate=2e-05"]),
    }
    lines = ablate.plan_table(experiments, there).splitlines()
    by_name = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if "-seed0 " in line}
    assert re.fullmatch("nothing: params.yaml as it is +to run", by_name["clip-refine-seed0"])
    assert re.fullmatch("refine.recipe=contrastive +there already", by_name["contrastive-seed0"])
    assert by_name["hycd-seed0"].endswith("to run again, was made with refine.learning_rate=2e-05")
    assert lines[-1] == "Kept under another name: hycd-seed0-2222222."


@pytest.fixture
def dvc(monkeypatch):
    """The commands that would run, with `there` by name before and `made` after (None: made but not listed); a command
    with `failing` fails.
    """
    fake = SimpleNamespace(commands=[], there={}, made={}, failing="nothing")

    def run_dvc(*arguments, capture=True):
        fake.commands.append(" ".join(arguments))
        made = {name: fake.made.get(name, ablate.Found("3" * 40, [])) for name in arguments[4:5]}
        fake.there |= {name: found for name, found in made.items() if found}
        if fake.failing in arguments:
            raise UserError("failed")

    monkeypatch.setattr(ablate, "run_dvc", run_dvc)
    monkeypatch.setattr(ablate, "look", lambda planned: dict(fake.there))
    return fake


def test_missing_and_outdated_experiments_run_by_themselves(dvc):
    """The outdated one is kept; one failure does not stop the others and is told at the end."""
    dvc.there = {"contrastive-seed0": ablate.Found("1" * 40, []), "hycd-seed0": ablate.Found("2" * 40, ["x=1"])}
    dvc.failing = "rafa-seed0"
    with pytest.raises(UserError, match=r"^rafa-seed0: failed"):
        ablate.run(ROOT / "params.yaml", ROOT / CHANGES, [0])
    ran = [command.split()[4] for command in dvc.commands if command.startswith("exp run")]
    planned_names = [one.name for one in ablate.plan(ROOT / "params.yaml", ROOT / CHANGES, [0])[0]]
    assert ran == [name for name in planned_names if name != "contrastive-seed0"]
    assert len(dvc.commands) == len(ran) + 1
    assert not any("contrastive-seed0" in command.split() for command in dvc.commands)
    command = 'exp run --temp --name hycd-seed0 --set-param refine.recipe="hycd" --set-param refine.seed=0'
    assert dvc.commands[dvc.commands.index(command) - 1] == "exp rename hycd-seed0 hycd-seed0-2222222"


def test_the_grid_stops_where_parameters_or_code_changed_under_it(dvc):
    dvc.made = {"contrastive-seed0": ablate.Found("1" * 40, ["refine.epochs=2"])}
    with pytest.raises(UserError, match=r"contrastive-seed0: got refine.epochs=2, .* run this again"):
        ablate.run(ROOT / "params.yaml", ROOT / CHANGES, [0])
    assert "contrastive-seed0" in dvc.commands[-1]


def test_the_grid_stops_where_another_commit_was_made_under_it(dvc):
    """The experiment ran, but belongs to the commit before."""
    dvc.made = {"contrastive-seed0": None}
    with pytest.raises(UserError, match=r"contrastive-seed0: .* not among .* current commit.*run this again"):
        ablate.run(ROOT / "params.yaml", ROOT / CHANGES, [0])
    assert "contrastive-seed0" in dvc.commands[-1]


@pytest.mark.parametrize(
    ("printed", "reason"), [("", "exit code 3"), ("\n  \n", "exit code 3"), ("first\nlast\n", "last")]
)
def test_a_command_that_fails_is_told_by_its_last_line(printed, reason):
    code = f"import sys; sys.stderr.write({printed!r}); sys.exit(3)"
    with pytest.raises(UserError, match=rf": {reason}$"):
        revisions.run_command(sys.executable, "-c", code)


# ---- real DVC ----

STAGE = "import sys; from pathlib import Path; from tests import example_results; example_results.fill_project(Path())"


def test_a_folder_whose_parameters_were_changed_after_its_run_is_refused(tmp_path):
    example_results.make_project(tmp_path)
    assert compare.read_folder("mine", tmp_path).seed == 0
    params = tmp_path / "params.yaml"
    text = params.read_text()
    assert text.count("recipe: clip_refine\n") == 1
    params.write_text(text.replace("recipe: clip_refine\n", "recipe: hycd\n"))
    with pytest.raises(UserError, match=r"params\.yaml: not what made .*refine\.recipe is hycd, was clip_refine"):
        compare.read_folder("mine", tmp_path)


def test_evaluations_of_other_models_images_or_settings_are_refused(tmp_path):
    """Each would put one configuration's numbers under another's name."""
    example_results.make_project(tmp_path / "mine")
    example_results.make_project(tmp_path / "other", gain=0.5)
    data, other = tmp_path / "mine/data", tmp_path / "other/data"
    for name, replaced, message in (
        ("weights", "refined", r"eval/refined: evaluated other weights than those of data/refined and its base"),
        ("base", "eval/base", r"eval/base: evaluated other weights"),
        ("images", "eval/base", r"eval/base and .*eval/refined: `(val|eval)` has other images"),
    ):
        copy = shutil.copytree(tmp_path / "mine", tmp_path / name)
        target = copy / "data" / replaced
        if name == "weights":
            shutil.rmtree(target)
            shutil.copytree(other / replaced, target)
        else:
            results = artifacts.read_json(target / "results.json")
            if name == "base":
                results["weights_digest"] = "0" * 64
            else:
                next(iter(results["sets"].values()))["digest"] = "0" * 64
            (target / "results.json").write_text(json.dumps(results))
            manifest = artifacts.read_manifest(target)
            facts = {key: value for key, value in manifest.items() if key not in ("stage", "files", "digest")}
            artifacts.write_manifest(target, "evaluate", **facts)
        with pytest.raises(UserError, match=message):
            compare.read_folder(name, copy)
    shutil.rmtree(data / "refined")  # as `dvc pull data/eval` leaves it
    assert compare.read_folder("mine", tmp_path / "mine").seed == 0
    params = tmp_path / "mine/params.yaml"
    params.write_text(params.read_text().replace("confidence: 0.95", "confidence: 0.9"))
    with pytest.raises(UserError, match=r"not what made .*eval/base: evaluate\.confidence is 0\.9, was 0\.95"):
        compare.read_folder("mine", tmp_path / "mine")


LOCK = """
stages:
  base:
    params: {params.yaml: {data: {limit: null}}}
    outs: [{path: data/base, md5: b}]
  refine:
    deps: [{path: data/base, md5: b}, {path: pipeline_lib/losses.py, md5: l}]
    outs: [{path: data/refined, md5: r}]
  evaluate@refined:
    deps: [{path: data/refined, md5: r}]
  report:
    params: {params.yaml: {refine: {seed: 99}}}
  gone:
    params: {params.yaml: {refine: {seed: 98}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("limit: null", "limit: 3", "params.yaml is not what stage `base` was run with: data.limit is None, was 3"),
        ("[{path: data/refined, md5: r}]\n  report", "[{path: data/refined, md5: q}]\n  report", "stage `evaluate@refined` read another data/refined than lies there"),  # noqa: E501
        ("data/base, md5: b}, ", "data/base, md5: c}, ", "stage `refine` read another data/base"),
        ("stages:", "stages:", None),  # what the report and stages of other times were run with does not matter
    ],
)  # fmt: skip
def test_a_commit_whose_parameters_or_models_are_not_those_evaluated_is_refused(
    folders, tmp_path, monkeypatch, caplog, old, new, message
):
    """Its params.yaml and dvc.lock are what a revision has; the evaluation lies in the cache."""
    source = folders / "refine-0"
    assert old in LOCK
    texts = {"params.yaml": (source / "params.yaml").read_text(), "dvc.lock": LOCK.replace(old, new)}
    files = SimpleNamespace(
        read_text=texts.__getitem__, get=lambda name, target, recursive: shutil.copytree(source / name, target)
    )
    monkeypatch.setattr(revisions, "open_revision", lambda project, revision: files)
    if message is None:
        assert compare.read_revisions(["mine"], tmp_path)[0].seed == 0
    else:
        with pytest.raises(UserError, match=f"^mine: {re.escape(message)}"):
            compare.read_revisions(["mine"], tmp_path)
        assert compare.read_revisions(["mine"], tmp_path / "again", leave_out=True) == []
        assert f"left out: mine: {message}" in caplog.text


def test_data_that_an_experiment_would_lack_are_refused_before_the_first(tmp_path, monkeypatch):
    """DVC copies to an experiment's folder what git or itself has: tracked, added to DVC, or elsewhere is well."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    params = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", params)
    text = params.read_text()
    assert "root: data/openmoji" in text
    ablate.check_inputs(params)  # what is not there at all is for the stage to say
    (tmp_path / "data/openmoji").mkdir(parents=True)
    (tmp_path / "data/openmoji/mine.jpg").touch()
    with pytest.raises(UserError, match=r"data\.root `data/openmoji` .*\(data/openmoji/mine\.jpg\).*absolute path"):
        ablate.check_inputs(params)
    (tmp_path / "data/openmoji.dvc").touch()
    ablate.check_inputs(params)
    (tmp_path / "data/openmoji.dvc").unlink()
    params.write_text(text.replace("root: data/openmoji", f"root: {tmp_path}/data/openmoji"))
    ablate.check_inputs(params)
    params.write_text(text)
    subprocess.run(["git", "add", "data"], check=True)
    ablate.check_inputs(params)


@pytest.fixture
def dvc_project(tmp_path, monkeypatch):
    """A git and DVC repository with one stage that makes data/eval from params.yaml."""
    monkeypatch.chdir(tmp_path)
    for key, text in {"GIT_AUTHOR": "a", "GIT_COMMITTER": "a"}.items():
        monkeypatch.setenv(f"{key}_NAME", text)
        monkeypatch.setenv(f"{key}_EMAIL", f"{text}@b")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    example_results.make_project(tmp_path)
    shutil.rmtree(tmp_path / "data")
    stage = {
        "cmd": f'rm -rf data && python -c "{STAGE}"',
        "deps": ["stages/evaluate.py"],
        "params": ["refine", "recipes"],
        "outs": ["data/eval"],
    }
    (tmp_path / "dvc.yaml").write_text(whole_file.dump_document({"stages": {"evaluate": stage}}))
    (tmp_path / ".gitignore").write_text("/data\n")
    params = whole_file.load_document((tmp_path / "params.yaml").read_text())
    params["recipes"] = {name: params["recipes"][name] for name in ("clip_refine", "hycd")}
    (tmp_path / "params.yaml").write_text(whole_file.dump_document(params))
    (tmp_path / "ablations").mkdir()
    (tmp_path / CHANGES).write_text("# none\n")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/evaluate.py").write_text("CODE = 1\n")
    for command in ("git init -q", "dvc init -q", "dvc repro -q", "git add -A", "git commit -qm first"):
        run(*command.split())
    return tmp_path


def run(*command):
    command = [sys.executable, "-m", *command] if command[0] == "dvc" else command
    subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_ablations_run_as_experiments_and_are_read_from_the_dvc_cache(dvc_project, capsys):
    """Each planned experiment runs once, and again where parameters changed; nothing else runs, nothing is lost."""
    names = ["clip-refine-seed0", "hycd-seed0"]
    run("dvc", "exp", "run", "--queue", "--name", "of-the-user", "--set-param", "refine.seed=7")
    main(["queue", "--seeds", "0", "--output", "out"])
    assert "eval, %  " in capsys.readouterr().out
    markdown = (dvc_project / "out" / comparison.MARKDOWN).read_text()
    assert "2 configurations, 2 runs" in markdown
    assert names[0] in markdown
    shutil.rmtree(dvc_project / "data")
    main(["--revs", "HEAD", names[1], "--output", "again"])
    assert "2 configurations, 2 runs" in (dvc_project / "again" / comparison.MARKDOWN).read_text()
    with pytest.raises(UserError, match="nowhere: no evaluation to read"):
        compare.read_revisions(["nowhere"], dvc_project / "scratch")

    assert ablate.run(Path("params.yaml"), CHANGES, [0]) == names
    assert capsys.readouterr().out.count("there already") == 2
    assert sorted(revisions.current_experiments()) == names

    params = dvc_project / "params.yaml"
    params.write_text(params.read_text().replace("learning_rate: 5e-5", "learning_rate: 2e-5"))
    assert ablate.run(Path("params.yaml"), CHANGES, [0]) == names
    assert capsys.readouterr().out.count("to run again, was made with refine.learning_rate=5e-05") == 2
    found = compare.read_revisions(sorted(revisions.current_experiments()), dvc_project / "all")
    rates = {c.name: c.parameters["refine"]["learning_rate"] for c in found}
    assert [rates.pop(name) for name in names] == [2e-5, 2e-5]
    assert {name.rpartition("-")[0]: rate for name, rate in rates.items()} == dict.fromkeys(names, 5e-5)

    (dvc_project / "stages/evaluate.py").write_text("CODE = 2\n")
    planned, _ = ablate.plan(Path("params.yaml"), CHANGES, [0])
    assert [one.differences for one in ablate.look(planned).values()] == [["other stages/evaluate.py"]] * 2
    assert re.search("of-the-user .* Queued", revisions.run_dvc("queue", "status"))
