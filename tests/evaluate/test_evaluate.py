"""The evaluation on synthetic features (its pure core) and, through the stage, on a tiny model and real shards."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file
from scipy import stats

from pipeline_lib import metrics, model
from pipeline_lib.core import artifacts, config, runtime, shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.evaluate import evaluation, probes, published, retrieval, scoring, wise_ft, zero_shot
from pipeline_lib.evaluate.embedded import Directions, EmbeddedSet, EmbeddedTask, modality_means
from pipeline_lib.evaluate.embedding import Embedder
from pipeline_lib.evaluate.inputs import EvaluationInputs, open_inputs, open_model
from pipeline_lib.evaluate.measured import Measured, headline_values, metric_values, with_intervals
from pipeline_lib.evaluate.probes import Labelled
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.results.folders import Evaluation, Variant
from pipeline_lib.results.measure import Measure
from pipeline_lib.results.statistics import Mean
from stages import evaluate as evaluate_stage
from stages import shard as shard_stage
from tests.tiny_model import write_tiny_clip

ROOT = Path(__file__).parents[2]
RANKS = ("median", "geometric_mean")
SETTINGS = dataclasses.replace(
    config.load(ROOT / "params.yaml", EvaluateSettings), bootstrap_samples=50, prompt="a photo of a {}"
)
COLOURS = {"red": (200, 40, 40), "green": (40, 190, 60), "blue": (50, 60, 220)}


def make_set(*, images=30, per_image=2, width=8, seed=0, name="eval", captions=None, hashes=None, with_task=True):
    """Synthetic features with a gap; four classes."""
    generator = torch.Generator().manual_seed(seed)
    per = [per_image] * images if isinstance(per_image, int) else per_image
    index = torch.arange(images).repeat_interleave(torch.tensor(per))
    classes = torch.randn(4, width, generator=generator)
    labels = torch.arange(images) % 4
    image = classes[labels] + torch.randn(images, width, generator=generator)
    text = image[index] + torch.randn(len(index), width, generator=generator) - 1
    prompts = classes[:, None] + 0.3 * torch.randn(4, 3, width, generator=generator)
    task = EmbeddedTask(("a", "b", "c", "d"), labels, {"single": prompts[:, :1], "ensemble": prompts})
    return EmbeddedSet(
        name=name,
        digest="0" * 64,
        keys=tuple(f"key{i}" for i in range(images)),
        image_hashes=tuple(hashes or (f"sha{i}" for i in range(images))),
        captions=tuple(captions or (f"caption {i}" for i in range(len(index)))),
        text_image_index=index,
        raw_image_features=9 * image,
        raw_text_features=7 * text,
        logit_scale=30.0,
        tasks={"kind": task} if with_task else {},
    )


# ---- scoring ----


def by_key(measures):
    """Measures of a block by key, whether their items are beside them or they are as results.json stores them."""
    read = [one.measure if isinstance(one, Measured) else Measure.read("eval", one) for one in measures]
    return {measure.key: measure for measure in read}


def test_classes_of_one_name_are_told_apart():
    hits, labels = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 2, 1])
    block = zero_shot._per_class(("crane", "owl", "crane"), labels, hits, torch.tensor([0, 0, 2]))
    assert [row["class"] for row in block["per_class"]] == ["owl", "crane (2)", "crane (0)"]
    assert [row["true"] for row in block["confusions"]] == ["owl", "crane (2)"]


def test_block_holds_what_the_metrics_say():
    one = make_set()
    block, _ = scoring.score(one, SETTINGS)
    scored = with_intervals({"plain": block}, one.num_images, SETTINGS)["plain"]
    recall = metrics.retrieval_recall(one.raw_image_features, one.raw_text_features, one.text_image_index)
    measures = by_key(scored["measures"])
    assert {name: measures[name].value for name in recall} == pytest.approx(recall)
    classes = metrics.class_embeddings(one.tasks["kind"].raw_prompt_features["ensemble"])
    found = metrics.classify(one.raw_image_features, classes, one.tasks["kind"].labels, 30.0)
    top1 = (found.prediction == one.tasks["kind"].labels).double().mean().item()
    by_class = scored["classes"]["kind"]
    assert measures["zero_shot_kind_top1"].value == pytest.approx(top1)
    assert measures["zero_shot_kind_mean_per_class"].value == pytest.approx(
        np.mean([row["top1"] for row in by_class["per_class"]])
    )
    assert sum(row["num_images"] for row in by_class["per_class"]) == one.num_images
    assert sum(row["count"] for row in by_class["confusions"]) == round((1 - top1) * one.num_images)
    expected = metrics.gap_suite(one.raw_image_features, one.raw_text_features[::2], seed=SETTINGS.seed)
    assert {name: scored["gap"][name] for name in expected} == pytest.approx(expected)
    assert scored["gap"]["raw_image_norm"] == pytest.approx(one.raw_image_features.norm(dim=1).mean().item())
    for key in ("text_to_image_recall_at_1", "zero_shot_kind_top1", "zero_shot_kind_mean_per_class"):
        assert measures[key].low <= measures[key].value <= measures[key].high
        assert measures[key].low < measures[key].high
    json.dumps(scored, allow_nan=False)
    assert "retrieval_distinct" not in scored


def test_items_are_what_the_headlines_are_means_of():
    """A paired test of two models starts from these arrays, so their means must be the headlines."""
    one = make_set(per_image=[1 + i % 3 for i in range(30)])
    block, items = scoring.score(one, SETTINGS)
    measures = by_key(block["measures"]).values()
    found = headline_values(measures)
    assert set(found) == {"image_to_text_log_rank", "text_to_image_log_rank", "zero_shot_kind_top1"}
    for key in ("image_to_text_log_rank", "text_to_image_log_rank"):
        assert items[key].mean() == pytest.approx(found[key])
    assert items["zero_shot.kind.ensemble.hit_at_1"].mean() == pytest.approx(found["zero_shot_kind_top1"])
    assert len(items["text_to_image_rank"]) == len(scoring.common_items(one)["text_image_index"]) == len(one.captions)
    ranks = {average: by_key(block["measures"])[f"text_to_image_{average}_rank"].value for average in RANKS}
    assert ranks["median"] == np.median(items["text_to_image_rank"])
    assert ranks["geometric_mean"] == pytest.approx(stats.gmean(items["text_to_image_rank"]))
    score = 1 - np.log(items["text_to_image_rank"]) / np.log(one.num_images)
    np.testing.assert_allclose(items["text_to_image_log_rank"], score, atol=1e-6)
    assert found.items() <= metric_values(measures, block["gap"]).items()


def test_images_without_a_label_are_left_out_of_the_task_and_of_nothing_else():
    one = make_set()
    task, missing = one.tasks["kind"], torch.tensor([0, 7, 8])
    unlabelled = dataclasses.replace(task, labels=task.labels.index_fill(0, missing, -1))
    one = dataclasses.replace(one, tasks={"kind": unlabelled})
    block, items = scoring.score(one, SETTINGS)
    common = scoring.common_items(one)
    kept = [row for row in range(one.num_images) if row not in missing]
    classes = metrics.class_embeddings(task.raw_prompt_features["ensemble"])
    found = metrics.classify(one.raw_image_features[kept], classes, task.labels[kept], 30.0)
    top1 = next(one for one in block["measures"] if one.measure.key == "zero_shot_kind_top1")
    assert top1.measure.value == pytest.approx(found.ranks.hit_at(1).mean().item())
    assert top1.mean.image_index.tolist() == common[top1.measure.image_index].tolist() == kept
    assert common["zero_shot.kind.label"].tolist() == task.labels[kept].tolist()
    assert len(items["zero_shot.kind.ensemble.hit_at_1"]) == 27
    assert len(items["image_to_text_rank"]) == 30


def test_a_task_with_an_image_without_a_label_is_scored_and_says_so(inside, caplog):
    part = read_part(inside, "eval")
    entries = part.shards[0].samples()
    entries[3] = dataclasses.replace(entries[3], labels={})
    one = embedder(inside).embed(part)
    assert one.tasks["class"].labels[3] == -1
    assert (one.tasks["class"].labels >= 0).sum() == 49
    scored = evaluation.evaluate(
        embedder(inside), "refined", EvaluationInputs([part], read_part(inside, "val")), SETTINGS
    )
    assert "eval: 1 of 50 images have no label of `class`: not scored" in caplog.text
    found = scored.results["sets"]["eval"]["variants"]["plain"]["classes"]["class"]
    assert sum(row["num_images"] for row in found["per_class"]) == 49
    assert 3 not in scored.items["eval"]["linear_probe.class.image_index"]


def test_recall_at_one_is_measured_even_if_not_asked_for():
    block, _ = scoring.score(make_set(), dataclasses.replace(SETTINGS, recall_at=(3,)))
    assert {"image_to_text_recall_at_1", "image_to_text_recall_at_3"} <= set(by_key(block["measures"]))


def test_a_set_has_blocks_only_for_what_it_carries():
    classes_only = make_set(per_image=[0] * 30, captions=["unused"])
    classes_only = dataclasses.replace(classes_only, captions=())
    block, items = scoring.score(classes_only, SETTINGS)
    assert set(block) == {"measures", "classes", "gap"}
    assert {one.measure.kind for one in block["measures"]} == {"zero_shot", "calibration"}
    assert set(block["gap"]) == {"raw_image_norm"}
    assert not any(key.startswith("image_to_text") for key in items)
    block, _ = scoring.score(make_set(with_task=False), SETTINGS)
    assert set(block) == {"measures", "gap"}
    assert {one.measure.kind for one in block["measures"]} == {"log_rank", "recall", "caption_recall", "rank"}
    block, _ = scoring.score(make_set(with_task=False, per_image=[2] + [1] * 29), SETTINGS)
    assert {one.measure.kind for one in block["measures"]} == {"log_rank", "recall", "rank"}, "one image has captions"
    block, _ = scoring.score(make_set(per_image=[0] + [1] * 29), SETTINGS)
    assert "recall" not in {one.measure.kind for one in block["measures"]}, (
        "an image without captions cannot be searched for"
    )


def test_repeated_images_and_captions_are_counted_and_left_out_of_a_second_recall():
    hashes = [f"sha{i}" for i in range(30)]
    captions = [f"caption {i}" for i in range(60)]
    hashes[5] = hashes[3]  # goes, with its captions 10 and 11
    captions[20] = captions[0]  # goes; image 10 keeps its caption 21
    captions[40] = captions[41] = captions[2]  # both captions of image 20 go, and so it goes as well
    captions[50] = captions[10]  # stays: the first of its kind went with image 5
    one = make_set(hashes=hashes, captions=captions)
    assert one.duplicates == {"images": 1, "captions": 4}
    images, texts = retrieval.distinct_rows(one)
    assert images.tolist() == [i for i in range(30) if i not in (5, 20)]
    assert texts.tolist() == [j for j in range(60) if j not in (10, 11, 20, 40, 41)]
    block, _ = scoring.score(one, SETTINGS)
    place = {image: row for row, image in enumerate(images.tolist())}
    index = torch.tensor([place[i] for i in one.text_image_index[texts].tolist()])
    recall = metrics.retrieval_recall(one.raw_image_features[images], one.raw_text_features[texts], index)
    scored = with_intervals(block, one.num_images, SETTINGS)["retrieval_distinct"]
    distinct = by_key(scored["measures"])
    assert {name: distinct[f"distinct_{name}"].value for name in recall} == pytest.approx(recall)
    assert (scored["num_images"], scored["num_captions"]) == (28, 55)
    recall_at_1 = distinct["distinct_text_to_image_recall_at_1"]
    assert 0 <= recall_at_1.low < recall_at_1.high <= 1
    assert not any(one.is_headline or one.is_metric or one.is_tested or one.items for one in distinct.values())


def test_captions_are_searched_with_captions_where_images_have_two():
    """Against a loop: images with one caption ask nothing, and theirs is a candidate of `any`."""
    one = make_set(per_image=[1 + i % 3 for i in range(30)], with_task=False)
    block, items = scoring.score(one, SETTINGS)
    index, text = one.text_image_index.tolist(), torch.nn.functional.normalize(one.raw_text_features, dim=1)
    rows = [[row for row, image in enumerate(index) if image == number] for number in range(30)]
    pairs = [of_image[:2] for of_image in rows if len(of_image) > 1]
    pair_hits = [
        max(pairs, key=lambda other: float(text[first] @ text[other[1]]))[1] == second for first, second in pairs
    ]
    any_hits = [
        index[max((j for j in range(len(index)) if j != i), key=lambda j: float(text[i] @ text[j]))] == index[i]
        for i in range(len(index))
        if len(rows[index[i]]) > 1
    ]
    measures, common = by_key(block["measures"]), scoring.common_items(one)
    for kind, hits, candidates, chance in (
        ("pair", pair_hits, 20, 1 / 20),
        ("any", any_hits, 59, np.mean([1 / 59] * 20 + [2 / 59] * 30)),
    ):
        measure = measures[f"caption_{kind}_recall_at_1"]
        assert measure.value == pytest.approx(np.mean(hits))
        assert 0 < measure.value < 1
        assert (measure.num_candidates, measure.chance) == (candidates, pytest.approx(chance))
        assert measure.label.endswith(f"R@1, of {candidates}")
        assert not measure.is_headline
        assert not measure.is_tested
        np.testing.assert_array_equal(items[measure.items], hits)
        assert len(common[measure.image_index]) == len(hits)
    scored = by_key(with_intervals(block, one.num_images, SETTINGS)["measures"])["caption_any_recall_at_1"]
    assert 0 <= scored.low < scored.value < scored.high <= 1


def test_captions_of_several_images_count_as_wrong_and_are_left_out_of_a_second_search():
    """Caption 0 stands at image 10 again, which keeps one caption and so asks nothing in the second search."""
    captions = [f"caption {i}" for i in range(60)]
    captions[20] = captions[0]
    one = make_set(captions=captions)
    one.raw_text_features[20] = one.raw_text_features[0]
    block, items = scoring.score(one, SETTINGS)
    assert items["caption_any_hit_at_1"][[0, 20]].tolist() == [0, 0]
    kept = [row for row in range(60) if row != 20]
    alone = dataclasses.replace(
        one,
        captions=tuple(captions[row] for row in kept),
        text_image_index=one.text_image_index[kept],
        raw_text_features=one.raw_text_features[kept],
    )
    expected = by_key(scoring.score(alone, SETTINGS)[0]["measures"])
    found = by_key(block["retrieval_distinct"]["measures"])
    for key, candidates in (("caption_pair_recall_at_1", 29), ("caption_any_recall_at_1", 58)):
        distinct = found[f"distinct_{key}"]
        assert (distinct.value, distinct.chance) == (expected[key].value, expected[key].chance)
        assert distinct.num_candidates == candidates
        assert not distinct.items
        assert not distinct.image_index


def test_centring_takes_its_means_from_another_set_alone():
    one, other = make_set(images=200), make_set(images=200, seed=0, name="refine")
    shifted = dataclasses.replace(other, raw_text_features=-other.raw_text_features)
    gaps = []
    for source in (other, shifted):
        block, _ = scoring.score(one, SETTINGS, modality_means(source))
        gaps.append(block["gap"]["centroid_distance"])
        assert "raw_image_norm" not in block["gap"]
    plain, _ = scoring.score(one, SETTINGS)
    assert gaps[0] < 0.3 * plain["gap"]["centroid_distance"] < gaps[1]


def test_class_directions_are_centred_like_captions():
    one = make_set()
    means = modality_means(make_set(seed=1, name="val"))
    prompts = one.tasks["kind"].raw_prompt_features["ensemble"]
    expected = torch.stack([metrics.mean_centre(of_class, means.text).mean(0) for of_class in prompts])
    found = Directions.of(one, means).classes(prompts)
    assert torch.allclose(found, torch.nn.functional.normalize(expected, dim=1), atol=1e-6)


# ---- forgetting ----


def test_stratified_halves_share_out_every_class():
    labels = np.array([0] * 5 + [1] * 4 + [2])
    first, second = probes.stratified_halves(labels, seed=0)
    assert sorted([*first, *second]) == list(range(10))
    assert np.bincount(labels[first]).tolist() == [3, 2, 1]
    assert np.bincount(labels[second]).tolist() == [2, 2]
    assert not np.array_equal(first, probes.stratified_halves(labels, seed=1)[0])


def test_linear_probe_equals_scikit_learn_with_the_chosen_strength():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 20))
    labels = generator.integers(3, size=240)
    features = centres[labels] + 3 * generator.normal(size=(240, 20))
    train, validation, test = (Labelled(features[x], labels[x], x) for x in np.split(np.arange(240), [80, 140]))
    probe = probes.linear_probe(train, validation, test, np.arange(140, 240))
    scaler = StandardScaler().fit(train.features)
    accuracies = {
        c: LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(train.features), train.labels)
        .score(scaler.transform(validation.features), validation.labels)
        for c in probes.STRENGTHS
    }  # fmt: skip
    assert accuracies[probe.strength] == max(accuracies.values())
    scaler = StandardScaler().fit(features[:140])
    classifier = LogisticRegression(C=probe.strength, max_iter=1000).fit(scaler.transform(features[:140]), labels[:140])
    assert probe.top1.value == classifier.score(scaler.transform(test.features), test.labels)
    assert probe.num_train == 140
    assert 0.45 < probe.top1.value < 1
    assert probe.top1.image_index.tolist() == list(range(140, 240))


def test_interpolation_goes_from_base_to_refined():
    base = {"w": torch.tensor([0.0, 2.0]), "steps": torch.tensor(3)}
    refined = {"w": torch.tensor([1.0, 4.0]), "steps": torch.tensor(5)}
    assert wise_ft.interpolate(base, refined, 0.25)["w"].tolist() == [0.25, 2.5]
    assert torch.equal(wise_ft.interpolate(base, refined, 0.0)["w"], base["w"])
    assert torch.equal(wise_ft.interpolate(base, refined, 1.0)["w"], refined["w"])
    assert wise_ft.interpolate(base, refined, 0.25)["steps"] == 5
    with pytest.raises(UserError, match="different tensors"):
        wise_ft.interpolate({"w": torch.zeros(3), "steps": torch.tensor(3)}, refined, 0.5)


# ---- a tiny model on images ----


def draw(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 25, (40, 40, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two tiny models, one refined from the other; images with captions and labels; a set of classes."""
    root = tmp_path_factory.mktemp("project")
    (root / "photos/images").mkdir(parents=True)
    rows = []
    for i in range(120):
        name = list(COLOURS)[i % 3]
        draw(root / f"photos/images/{i}.png", COLOURS[name], i)
        captions = [f"picture number {i}", f"it is {name} and has {i} dots"][: 1 + i % 2]
        rows.append({"image": f"{i}.png", "captions": captions, "label": name})
    lists = {"refine": range(40), "val": range(40, 70), "eval": range(70, 120)}
    for part, numbers in lists.items():
        (root / f"photos/{part}.txt").write_text("".join(f"{i}\n" for i in numbers))
    (root / "photos/set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(24):
        folder = root / "more/colours" / ("crimson", "lime", "navy")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder / f"{i}.png", list(COLOURS.values())[i % 3], 1000 + i)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["evaluate"]["prompt"] = SETTINGS.prompt
    params["data"] = {
        "format": "jsonl",
        "root": "photos",
        "images": "images",
        "annotations": "set.jsonl",
        "parts": {part: f"{part}.txt" for part in lists},
        "limit": None,
        "evaluation_root": "more",
        "evaluation": {"colours": {"format": "image_folder", "path": "colours"}},
    }
    params["evaluate"] |= {"batch_size": 16, "bootstrap_samples": 50, "wise_ft": [0.5]}
    params["runtime"] |= {"num_workers": 0, "num_threads": 1, "device": "cpu"}
    params["tracking"]["mode"] = "disabled"
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "data/base").mkdir(parents=True)
    (root / "data/base/trained_on.jsonl").write_text("")
    write_model(root / "data/base", "base", seed=0)
    base = model.load(root / "data/base")
    write_model(root / "data/refined", "refine", seed=1, refined_from=base.facts["weights_digest"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        shard_stage.main()
    return root


def write_model(directory: Path, stage: str, seed: int, **facts) -> None:
    write_tiny_clip(directory, seed=seed)
    artifacts.write_manifest(directory, stage, model={**model.load(directory).facts, **facts})


@pytest.fixture
def inside(project, monkeypatch):
    monkeypatch.chdir(project)
    return project


@pytest.fixture(scope="module")
def evaluated(project):
    """The project after the stage has run for both models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        evaluate_stage.main()
    return project


def embedder(root: Path, **changes) -> Embedder:
    settings = {
        "clip": model.load(root / "data/base"),
        "batch_size": 16,
        "prompt": "a photo of a {}",
        "ensemble": "set",
    }
    return Embedder(**{**settings, **changes})


def read_part(root: Path, name: str) -> shards.Part:
    return shards.read_part(root / "data/shards" / name)


def test_features_are_those_of_the_model_one_by_one(inside):
    """Sorting, cutting, batching and embedding repetitions once change nothing: each row is its own input's."""
    part, clip = read_part(inside, "eval"), model.load(inside / "data/base")
    one = embedder(inside).embed(part)
    entries = [(shard, entry) for shard in part.shards for entry in shard.samples()]
    assert one.num_images == 50
    assert len(one.captions) == 75
    with torch.no_grad():
        for row, (shard, entry) in enumerate(entries):
            pixels = torch.from_numpy(clip.decode(shard.read_image(entry), 10**8))[None]
            assert torch.allclose(one.raw_image_features[row], clip.encode_image(pixels)[0], atol=1e-5)
        for row, caption in enumerate(one.captions):
            assert caption in entries[one.text_image_index[row]][1].captions
            assert torch.allclose(one.raw_text_features[row], clip.encode_text(clip.tokenize([caption]))[0], atol=1e-5)
        task, facts = one.tasks["class"], part.tasks["class"]
        assert task.raw_prompt_features["single"].shape == (3, 1, 16)
        for k, classname in enumerate(task.classnames):
            for p, template in enumerate(facts["templates"]):
                expected = clip.encode_text(clip.tokenize([template.replace("{}", classname)]))[0]
                assert torch.allclose(task.raw_prompt_features["ensemble"][k, p], expected, atol=1e-5)
    named = [task.classnames[label] for label in task.labels]
    assert named == [list(COLOURS)[int(entry.key) % 3] for _, entry in entries]


def test_features_do_not_depend_on_workers_and_hardly_on_batches(inside):
    part = read_part(inside, "colours")
    features = embedder(inside).embed_images(part)
    assert torch.equal(features, embedder(inside, num_workers=2).embed_images(part))
    assert torch.allclose(features, embedder(inside, batch_size=5).embed_images(part), atol=1e-5)


def test_openai_templates_serve_where_a_set_has_none_or_they_are_asked_for(inside):
    one = embedder(inside, ensemble="openai").embed(read_part(inside, "colours"))
    assert one.tasks["class"].raw_prompt_features["ensemble"].shape == (3, 80, 16)


def test_both_ensembles_can_be_measured_beside_the_single_prompt(inside):
    part = read_part(inside, "colours")
    kinds = {ensemble: embedder(inside, ensemble=ensemble).embed(part) for ensemble in ("set", "openai", "both")}
    found = {name: one.tasks["class"].raw_prompt_features for name, one in kinds.items()}
    assert found["both"].keys() == {"single", "ensemble", "imagenet"}
    assert torch.allclose(found["both"]["ensemble"], found["set"]["ensemble"], atol=1e-5)
    assert torch.allclose(found["both"]["imagenet"], found["openai"]["ensemble"], atol=1e-5)
    block, items = scoring.score(kinds["both"], SETTINGS)
    measures = by_key(block["measures"])
    top1 = measures["zero_shot_class_imagenet_top1"].value
    assert metric_values(measures.values(), {})["zero_shot_class_imagenet_top1"] == top1
    assert items["zero_shot.class.imagenet.hit_at_1"].mean() == pytest.approx(top1)
    assert set(headline_values(measures.values())) == {"zero_shot_class_top1"}, (
        "the set's own templates make the headline"
    )


def test_texts_that_mean_nothing_are_refused_too(inside):
    maker = embedder(inside)
    with torch.no_grad():
        maker.clip.module.text_projection.zero_()
    with pytest.raises(UserError, match="text features of `colours`: 12 of 12 are zero"):
        maker.embed(read_part(inside, "colours"))


def test_what_is_equal_is_embedded_once(inside, monkeypatch):
    part = read_part(inside, "colours")
    entries = part.shards[0].samples()
    twice = [*entries, dataclasses.replace(entries[2], key="again")]
    monkeypatch.setattr(shards.Shard, "samples", lambda self: twice)
    maker = embedder(inside)
    passes = []
    encode = maker.clip.encode_image
    monkeypatch.setattr(maker.clip, "encode_image", lambda pixels: passes.append(len(pixels)) or encode(pixels))
    features = maker.embed_images(part)
    assert sum(passes) == 32  # 24 distinct images in two passes of 16
    assert torch.equal(features[-1], features[2])
    texts = maker._embed_texts(part, ["A dog ", "a cat", "a dog", "a cat"])
    assert torch.equal(texts[0], texts[2])  # one sequence of tokens
    assert torch.equal(texts[1], texts[3])


def test_texts_longer_than_the_context_are_counted_by_kind(inside, tmp_path):
    """Six tokens: start, four, end; a digit is one.

    Of `it is <colour> and has 71 dots` three are left, and of `picture number 100` and its followers two (10 and 11).
    """
    maker = embedder(inside, clip=model.load(write_tiny_clip(tmp_path / "short", context_length=6)))
    found = maker.count_truncated(read_part(inside, "eval"))
    counts = {"num_texts": 75, "num_truncated": 45, "num_distinct": 45, "num_distinct_read": 5}
    assert found["captions"] == {"context_length": 6, **counts}
    assert found["class prompts"]["num_truncated"] == found["class prompts"]["num_texts"]  # `a photo of a <colour>`
    assert found["class prompts"]["num_distinct_read"] < found["class prompts"]["num_distinct"]
    whole = embedder(inside).count_truncated(read_part(inside, "eval"))
    assert {kind: (facts["num_texts"], facts["num_truncated"]) for kind, facts in whole.items()} == {
        kind: (found[kind]["num_texts"], 0) for kind in ("captions", "class prompts")
    }


def test_a_process_without_a_share_embeds_nothing(inside):
    """More processes than distinct texts or images."""
    part, mine = read_part(inside, "eval"), embedder(inside)
    assert mine._run_texts(part, mine.clip.tokenize(["a"])[:0]).shape == (0, mine.clip.embed_dim)
    assert mine._run_images(part, []).shape == (0, mine.clip.embed_dim)


def test_prompts_that_two_sets_share_are_embedded_once(inside, monkeypatch):
    maker, asked = embedder(inside), []
    tokenize = maker.clip.tokenize
    monkeypatch.setattr(maker.clip, "tokenize", lambda texts: asked.append(texts) or tokenize(texts))
    first, second = (maker.embed(read_part(inside, name)).tasks["class"] for name in ("eval", "val"))
    assert any(text.startswith("a photo of a") for text in asked[0])
    assert not any(text.startswith("a photo of a") for text in asked[1])
    assert torch.equal(first.raw_prompt_features["ensemble"], second.raw_prompt_features["ensemble"])


def test_an_image_that_cannot_be_read_ends_the_stage_by_name(inside):
    part = read_part(inside, "colours")
    part.manifest = {**part.manifest, "max_image_pixels": 100}
    with pytest.raises(UserError, match=r"24 of 24 images cannot be read.*crimson/0: cannot be decoded: Image size"):
        embedder(inside).embed_images(part)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda visual: visual.proj.fill_(float("nan")), "image features of `colours`: 24 of 24 are not finite"),
        (lambda visual: visual.proj.zero_(), "image features of `colours`: 24 of 24 are zero"),
        (
            lambda visual: (visual.ln_post.weight.zero_(), visual.ln_post.bias.fill_(1)),
            "image features of `colours`: all 24 are the",
        ),
    ],
)
def test_features_that_mean_nothing_are_refused(inside, damage, message):
    maker = embedder(inside)
    with torch.no_grad():
        damage(maker.clip.module.visual)
    with pytest.raises(UserError, match=message):
        maker.embed_images(read_part(inside, "colours"))


def test_prompt_without_a_place_for_the_class_is_refused(inside):
    with pytest.raises(UserError, match=r"evaluate\.prompt: 'a photo' must hold \{\} once"):
        embedder(inside, prompt="a photo").embed(read_part(inside, "colours"))


def test_a_stop_is_obeyed_between_passes(inside, monkeypatch):
    monkeypatch.setattr(runtime, "stop_requested", lambda: True)
    with pytest.raises(runtime.Stopped):
        embedder(inside).embed_images(read_part(inside, "colours"))


# ---- the stage ----


def test_stage_writes_results_items_features_and_metrics(evaluated):
    for name in ("base", "refined"):
        folder = evaluated / "data/eval" / name
        assert artifacts.verify(folder) == []
        manifest = artifacts.read_manifest(folder, stage="evaluate")
        results = artifacts.read_json(folder / "results.json")
        assert results["model"] == name
        source = artifacts.read_manifest(evaluated / "data" / name)
        assert results["weights_digest"] == manifest["weights_digest"] == source["model"]["weights_digest"]
        assert set(results["sets"]) == {"eval", "colours"}
        assert set(results["selection"]) == {"val"}
        assert results["sets"]["eval"]["num_images"] == 50
        assert set(results["sets"]["eval"]["variants"]) == {"plain", "mean_centred"}
        assert set(results["sets"]["colours"]["variants"]["plain"]) == {"measures", "classes", "gap"}
        assert set(results["selection"]["val"]["variants"]) == {"plain"}, "its own means would flatter it"
        flat = artifacts.read_json(evaluated / f"data/eval/{name}.json")
        for set_name, numbers in flat.items():
            assert all(math.isfinite(value) for value in numbers.values())
            assert all(re.fullmatch(r"[\w\-./ ]+", key) for key in (set_name, *numbers)), "MLflow takes no other names"
        assert set(flat) == {"eval", "colours", "val"}
        items = load_file(folder / "items/eval.safetensors")
        assert items["image_to_text_hit_at_1"].mean() == pytest.approx(flat["eval"]["image_to_text_recall_at_1"])
        features = load_file(folder / "features/eval.safetensors")
        assert features["raw_image_features"].shape == (50, 16)
        assert features["raw_text_features"].shape == (75, 16)
        assert not (folder / "features/val.safetensors").exists()
        centred = (
            metrics.mean_centre(torch.tensor(features["raw_image_features"]), torch.tensor(features["image_mean"])),
            metrics.mean_centre(torch.tensor(features["raw_text_features"]), torch.tensor(features["text_mean"])),
        )
        first = np.unique(features["text_image_index"], return_index=True)[1]
        expected = results["sets"]["eval"]["variants"]["mean_centred"]["gap"]["centroid_distance"]
        assert metrics.centroid_distance(centred[0], centred[1][first]).item() == pytest.approx(expected, rel=1e-5)
    assert not list((evaluated / ".checkpoints").glob("evaluate-*")), "a finished stage leaves no work behind"


def test_means_come_from_the_training_part_which_is_never_evaluated(evaluated):
    """Not from the small selection part: the noise of its means would be the baseline's gap."""
    for name in ("base", "refined"):
        folder = evaluated / "data/eval" / name
        centring = artifacts.read_json(folder / "results.json")["centring"]
        assert centring == {"part": "refine", "num_images": 40, "num_captions": 60}
        maker = embedder(evaluated, clip=model.load(evaluated / "data" / name))
        training = maker.embed(read_part(evaluated, "refine"))
        features = load_file(folder / "features/eval.safetensors")
        for key, raw in (("image_mean", training.raw_image_features), ("text_mean", training.raw_text_features)):
            mean = torch.nn.functional.normalize(raw, dim=1).mean(0)
            assert np.allclose(features[key], mean, atol=1e-6)


def test_a_sample_of_a_large_part_keeps_no_other_entry_in_memory(inside):
    part = read_part(inside, "refine")
    embedder(inside).embed_sample(part, 12)
    assert sum(isinstance(value, list) for shard in part.shards for value in vars(shard).values()) == 0
    part.shards[0].samples()
    assert sum(isinstance(value, list) for shard in part.shards for value in vars(shard).values()) == 1


def test_of_a_large_training_part_a_fixed_sample_is_embedded(inside, monkeypatch, caplog):
    part = read_part(inside, "refine")
    whole, sample = embedder(inside).embed(part), embedder(inside).embed_sample(part, 12)
    assert sample.num_images == 12
    assert sample.captions == embedder(inside).embed_sample(part, 12).captions, "the same in every run"
    rows = [whole.image_hashes.index(sha) for sha in sample.image_hashes]
    assert rows == sorted(rows) != list(range(12))
    assert torch.allclose(sample.raw_image_features, whole.raw_image_features[rows], atol=1e-6)
    kept = [row for row, image in enumerate(whole.text_image_index.tolist()) if image in rows]
    assert sample.captions == tuple(whole.captions[row] for row in kept)
    assert torch.allclose(sample.raw_text_features, whole.raw_text_features[kept], atol=1e-6)
    assert [rows[i] for i in sample.text_image_index.tolist()] == whole.text_image_index[kept].tolist()
    paths, maker = config.load(Path("params.yaml"), Paths), embedder(inside)
    inputs = open_inputs(paths.shards, SETTINGS)
    monkeypatch.setattr(evaluation, "CENTRING_SAMPLES", 5)
    selection = maker.embed(inputs.selection)
    assert evaluation._centring(maker, inputs, selection).num_images == 5
    assert evaluation._centring(maker, dataclasses.replace(inputs, training=None), selection) is selection
    silent = dataclasses.replace(selection, captions=())
    assert evaluation._centring(maker, dataclasses.replace(inputs, training=None), silent) is None
    assert "val has no captions, so there is no mean-centred variant" in caplog.text


def test_linear_probe_says_what_it_was_trained_on(evaluated):
    results = artifacts.read_json(evaluated / "data/eval/base/results.json")
    probe = results["linear_probe"]
    assert probe["eval"]["class"]["trained_on"] == ["refine", "val"]
    assert (probe["eval"]["class"]["num_train"], probe["eval"]["class"]["num_test"]) == (70, 50)
    assert probe["colours"]["class"]["trained_on"] == ["half of colours"]
    assert (probe["colours"]["class"]["num_train"], probe["colours"]["class"]["num_test"]) == (12, 12)
    for set_name, tasks in probe.items():
        items = load_file(evaluated / f"data/eval/base/items/{set_name}.safetensors")
        assert items["linear_probe.class.correct"].mean() == pytest.approx(tasks["class"]["measure"]["value"])
        assert len(set(items["linear_probe.class.image_index"].tolist())) == tasks["class"]["num_test"]
    assert probe["eval"]["class"]["measure"]["value"] > 0.6  # colour is linear in a random network's features


def test_curves_and_temperatures_say_what_they_are_learned_from(evaluated):
    for name in ("base", "refined"):
        results = artifacts.read_json(evaluated / f"data/eval/{name}/results.json")
        flat = artifacts.read_json(evaluated / f"data/eval/{name}.json")
        assert results["few_shot"]["eval"]["class"]["drawn_from"] == ["refine", "val"]
        assert results["few_shot"]["colours"]["class"]["drawn_from"] == ["half of colours"]
        for set_name, source in (("eval", "val"), ("colours", "the other half")):
            found = by_key(results["sets"][set_name]["variants"]["plain"]["measures"])
            assert found["zero_shot_class_temperature"].label == f"zero-shot class temperature, refitted on {source}"
            assert {"few_shot_class_gda_16", "zero_shot_class_ece_refitted"} <= flat[set_name].keys()
            assert "zero_shot_class_ece_base_scale" not in flat[set_name], "the logit scale is the base's"
        assert not any("few_shot" in key or "refitted" in key for key in flat["val"])
        assert results["class_groups"] == {}, "three classes are too few"


def test_wise_ft_mixes_are_evaluated_on_every_set_and_leave_the_model_as_it_was(evaluated):
    base, refined = (artifacts.read_json(evaluated / f"data/eval/{m}/results.json") for m in ("base", "refined"))
    assert "wise_ft" not in base
    (row,) = refined["wise_ft"]
    assert row["mix"] == 0.5
    assert set(row["sets"]) == {"eval", "colours", "val"}
    assert set(row["sets"]["eval"]) == {
        "image_to_text_log_rank",
        "text_to_image_log_rank",
        "zero_shot_class_top1",
    }


def test_the_ends_of_the_wise_ft_sweep_are_the_two_models(evaluated, monkeypatch):
    monkeypatch.chdir(evaluated)
    paths = config.load(Path("params.yaml"), Paths)
    clip, base_weights, _ = open_model("refined", paths, torch.device("cpu"))
    before = model.weights_digest(clip.module.state_dict())
    inputs = dataclasses.replace(open_inputs(paths.shards, SETTINGS), base_weights=base_weights)
    rows = wise_ft.sweep(embedder(evaluated, clip=clip), inputs, dataclasses.replace(SETTINGS, wise_ft=(0.0, 1.0)))
    assert model.weights_digest(clip.module.state_dict()) == before
    for row, name in zip(rows, ("base", "refined"), strict=True):
        variant = Variant(Evaluation(evaluated / "data/eval" / name))
        for set_name, values in row["sets"].items():
            measures = variant.measures(set_name)
            assert values == pytest.approx(headline_values(measures))
            expected = metric_values(measures, variant.block(set_name, "gap"))
            expected = {key: value for key, value in expected.items() if not key.endswith("_ece_refitted")}
            assert row["metrics"][set_name] == pytest.approx(expected), "temperatures are not swept"


def test_stage_gives_the_same_bytes_again(evaluated, monkeypatch):
    monkeypatch.chdir(evaluated)
    before = {m: artifacts.read_manifest(evaluated / "data/eval" / m)["digest"] for m in ("base", "refined")}
    evaluate_stage.main(Path("params.yaml"), "refined")
    after = {m: artifacts.read_manifest(evaluated / "data/eval" / m)["digest"] for m in ("base", "refined")}
    assert before == after


def test_a_stopped_evaluation_goes_on_from_what_was_embedded(evaluated, monkeypatch, caplog):
    """Stopped inside the sweep of the mixes and started again: only the unfinished set is run again, to equal bytes."""
    monkeypatch.chdir(evaluated)
    params = Path("again.yaml")
    params.write_text(Path("params.yaml").read_text().replace("data/eval", "data/eval_again"))
    passes, stop_after = [], 20
    for name in ("encode_image", "encode_text"):
        encode = getattr(model.Clip, name)
        monkeypatch.setattr(model.Clip, name, lambda *given, encode=encode: passes.append(1) or encode(*given))
    monkeypatch.setattr(runtime, "stop_requested", lambda: len(passes) > stop_after)
    with pytest.raises(runtime.Stopped):
        evaluate_stage.main(params, "refined")
    assert not Path("data/eval_again").exists()
    stop_after = 10**9
    whole, passes[:] = len(passes), []
    with caplog.at_level("INFO"):
        evaluate_stage.main(params, "refined")
    assert "resumed: val.images were embedded" in caplog.text
    resumed, passes[:] = len(passes), []
    shutil.rmtree("data/eval_again")
    evaluate_stage.main(params, "refined")
    assert resumed < len(passes) < whole + resumed + 4, "at most the passes of one unfinished set are run again"
    first, second = (artifacts.read_manifest(Path(f"data/{name}/refined"))["digest"] for name in ("eval", "eval_again"))
    assert first == second


def test_known_answers_beside_a_set_are_held_to_the_base_model(evaluated, tmp_path, monkeypatch, caplog):
    """From the file beside the set, or the table of published ones, to the end of the stage."""
    root = tmp_path / "project"
    shutil.copytree(evaluated, root)
    monkeypatch.chdir(root)
    measured = artifacts.read_json(Path("data/eval/base.json"))
    answer = {"value": measured["colours"]["zero_shot_class_top1"], "tolerance": 1e-6}
    recall = {"value": measured["eval"]["text_to_image_recall_at_1"], "tolerance": 1e-6}
    other = {"value": 0.9, "tolerance": 0.0, "model": "ViT-L-14/openai"}
    Path("photos/eval.known_answers.json").write_text(json.dumps({"text_to_image_recall_at_1": recall}))
    colours = {"zero_shot_class_top1": [answer | {"prompts": "0" * 8}, answer, other]}
    Path("more/colours/known_answers.json").write_text(json.dumps(colours))
    shard_stage.main()
    manifest = shards.read_part(Path("data/shards/colours")).manifest
    published_of = {"num_images": manifest["num_samples"], "prompts": manifest["tasks"]["class"]["prompts"]}
    weights = artifacts.read_json(Path("data/eval/base/results.json"))["weights_digest"]
    wrong = {"model": weights, "value": 1.5, "tolerance": 0.003, "runs": {"a table": 1.5}}
    table = {"sets": {"hues": {**published_of, "answers": {"zero_shot_class_top1": [wrong]}}}}
    monkeypatch.setattr(published, "read_table", lambda: table)
    evaluate_stage.main(Path("params.yaml"), "base")
    found = artifacts.read_json(Path("data/eval/base/results.json"))["known_answers"]
    row = {"set": "colours", "metric": "zero_shot_class_top1", "value": answer["value"]}
    published_row = row | {"expected": 1.5, "tolerance": 0.003, "source": "published: hues"}
    assert found["missed"] == [published_row], "a published score stops nothing"
    assert [(one["set"], one["source"]) for one in found["met"]] == [
        ("eval", "known_answers.json"),
        ("colours", "known_answers.json"),
    ]
    assert "known answer of zero_shot_class_top1 is skipped: it is for prompts 00000000, measured was" in caplog.text
    assert "is published to score 1.5 ± 0.003 on hues" in caplog.text
    digest = shards.read_part(Path("data/shards/colours")).digest
    Path("photos/eval.known_answers.json").write_text(json.dumps({"text_to_image_recall_at_1": recall | {"value": 2}}))
    shard_stage.main()
    assert shards.read_part(Path("data/shards/colours")).digest == digest
    shutil.rmtree("data/eval")
    with pytest.raises(
        UserError, match=r"eval: the base model scores text_to_image_recall_at_1 0\..* known answer is 2 "
    ):
        evaluate_stage.main(Path("params.yaml"), "base")
    assert not Path("data/eval").exists(), "a missed answer leaves no result"


def test_the_log_says_how_long_each_part_took(evaluated, monkeypatch, caplog):
    monkeypatch.chdir(evaluated)
    with caplog.at_level("INFO"):
        evaluate_stage.main(Path("params.yaml"), "base")
    (line,) = [line for line in caplog.messages if "time of each part" in line]
    found = dict(re.findall(r"(\w+) ([\d.]+) s(?:, |$)", line))
    assert line.startswith("base: time of each part: ")
    assert {"embed", "retrieval", "zero_shot", "gap", "intervals", "linear_probe", "few_shot"} <= found.keys()
    assert list(map(float, found.values())) == sorted(map(float, found.values()), reverse=True)


def test_a_missing_refined_model_is_an_error_and_never_replaced_by_base(inside, monkeypatch):
    """The published evaluation silently used the un-refined model where there was no checkpoint."""
    params = (inside / "params.yaml").read_text()
    missing = inside / "missing.yaml"
    missing.write_text(params.replace("data/refined", "data/no_such_model").replace("data/eval", "data/eval_missing"))
    with pytest.raises(UserError, match="data/no_such_model is missing or unfinished"):
        evaluate_stage.main(missing, "refined")
    swapped = inside / "swapped.yaml"
    swapped.write_text(params.replace("data/refined", "data/base").replace("data/eval", "data/eval_missing"))
    with pytest.raises(UserError, match="written by stage `base`, expected `refine`"):
        evaluate_stage.main(swapped, "refined")
    assert not (inside / "data/eval_missing").exists()


def test_a_model_refined_from_another_base_is_refused(inside):
    write_model(inside / "data/stranger", "refine", seed=3, refined_from="0" * 64)
    paths = dataclasses.replace(config.load(inside / "params.yaml", Paths), refined=Path("data/stranger"))
    with pytest.raises(UserError, match="was not refined from the model in data/base"):
        open_model("refined", paths, torch.device("cpu"))


def test_a_refined_model_with_other_preprocessing_or_activation_is_refused(inside):
    """Its own manifest fits, but its numbers would not be comparable with the base's."""
    base = model.load(inside / "data/base").facts["weights_digest"]
    paths = config.load(inside / "params.yaml", Paths)
    for name, section, change, named in (
        ("other_activation", "model_cfg", {"quick_gelu": True}, "quick_gelu"),
        ("other_preprocessing", "preprocess_cfg", {"mean": [0.1, 0.2, 0.3]}, "preprocess"),
    ):
        path = write_tiny_clip(inside / "data" / name, seed=1) / model.CONFIG
        found = json.loads(path.read_text())
        found[section] |= change
        path.write_text(json.dumps(found))
        facts = model.load(path.parent).facts
        artifacts.write_manifest(path.parent, "refine", model={**facts, "refined_from": base})
        with pytest.raises(UserError, match=rf"data/{name}: .*{named}.* differ from what data/base recorded"):
            open_model("refined", dataclasses.replace(paths, refined=Path("data", name)), torch.device("cpu"))


def test_weights_changed_after_they_were_written_are_refused(inside):
    write_model(inside / "data/edited", "base", seed=3)
    clip = model.load(inside / "data/edited")
    with torch.no_grad():
        clip.module.visual.proj.mul_(1.01)
    model.save_weights(clip.module.state_dict(), inside / "data/edited" / model.WEIGHTS)
    paths = dataclasses.replace(config.load(inside / "params.yaml", Paths), base=Path("data/edited"))
    with pytest.raises(UserError, match="weights_digest"):
        open_model("base", paths, torch.device("cpu"))


def test_selection_part_and_sets_must_be_there(inside):
    with pytest.raises(
        UserError, match=r"evaluate\.selection: there is no part or set `calib`; .*: val, eval, colours"
    ):
        open_inputs(inside / "data/shards", dataclasses.replace(SETTINGS, selection="calib"))
    (inside / "data/only_training").mkdir()
    artifacts.write_manifest(inside / "data/only_training", "shard", parts={"refine": "", "val": ""})
    with pytest.raises(UserError, match="nothing to evaluate on"):
        open_inputs(inside / "data/only_training", SETTINGS)


@pytest.mark.parametrize("name", ["refine", "base"])
def test_nothing_is_chosen_on_what_a_model_was_trained_on(inside, name):
    """Such a ranking would call itself honest."""
    with pytest.raises(
        UserError, match=rf"evaluate\.selection: models are trained on `{name}`; .*: val, eval, colours"
    ):
        open_inputs(inside / "data/shards", dataclasses.replace(SETTINGS, selection=name))


def test_training_parts_are_never_evaluated_on(inside):
    inputs = open_inputs(inside / "data/shards", SETTINGS)
    assert [part.name for part in inputs.sets] == ["eval", "colours"]
    inputs = open_inputs(inside / "data/shards", dataclasses.replace(SETTINGS, selection="eval"))
    assert [part.name for part in inputs.sets] == ["colours"]


@pytest.mark.slow
def test_command_line_says_in_one_sentence_what_is_missing(inside):
    params = (inside / "params.yaml").read_text().replace("data/refined", "data/no_such_model")
    (inside / "missing.yaml").write_text(params)
    command = [sys.executable, "-m", "stages.evaluate", "refined", "--params", "missing.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=inside, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: data/no_such_model/manifest.json: no such file")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_write_what_one_does(evaluated):
    params = yaml.safe_load((evaluated / "params.yaml").read_text())
    params["runtime"]["processes"] = 2
    params["paths"]["eval"] = "data/eval_of_two"
    (evaluated / "two.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "stages.evaluate", "refined", "--params", "two.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=evaluated, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not (evaluated / "data/eval_of_two/base").exists()
    folders = [evaluated / "data" / name for name in ("eval", "eval_of_two")]
    one, two = (load_file(folder / "refined/features/eval.safetensors") for folder in folders)
    for key in one:
        assert np.allclose(one[key], two[key], atol=1e-5)
    one, two = (artifacts.read_json(folder / "refined.json") for folder in folders)
    assert one["eval"].keys() == two["eval"].keys()
    assert two["eval"]["zero_shot_class_top1"] == pytest.approx(one["eval"]["zero_shot_class_top1"], abs=0.05)


def test_measures_get_their_intervals_everywhere():
    mean = Mean(np.array([1.0, 0.0]), np.arange(2))
    share = Measured(Measure("eval", "a", "A", "recall", mean.value, k=1), mean)
    rank = Measured(Measure("eval", "b", "B", "rank", 3.0, is_share=False))
    block = with_intervals({"x": [rank, share], "y": {"z": share, "c": 3}, "d": [1]}, 2, SETTINGS)
    assert block["x"] == [
        {"key": "b", "label": "B", "kind": "rank", "value": 3.0, "is_share": False},
        block["y"]["z"],
    ]
    assert Measure.read("eval", block["y"]["z"]).interval == (0.5, 0.0, 1.0)
    assert (block["y"]["c"], block["d"]) == (3, [1])
