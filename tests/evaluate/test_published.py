"""The table of published scores: whole, by its own rule, and for the sets that it says."""

import math
import re
from importlib import resources

import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from timm.data import ImageNetInfo

from pipeline_lib.core.shards import Part, prompts_digest
from pipeline_lib.evaluate.published import TOP1, find_published, read_table
from pipeline_lib.model import imagenet_templates

SETS = read_table()["sets"]
ANSWERS = [
    pytest.param(name, metric, answer, id=f"{name}-{metric}-{answer['model'][:8]}")
    for name, one in SETS.items()
    for metric, answers in one["answers"].items()
    for answer in answers
]


@pytest.mark.parametrize(("name", "metric", "answer"), ANSWERS)
def test_values_and_tolerances_follow_from_the_published_runs(name, metric, answer):
    value, *others = answer["runs"].values()
    assert answer["value"] == value
    assert set(answer["runs"]) <= set(read_table()["sources"])
    assert answer["model"] in ("ViT-B-32-quickgelu/openai", "ViT-B-16-quickgelu/openai")
    least = 0.005 if SETS[name]["num_images"] < 2500 or not others else 0.003
    farthest = max((abs(other - value) for other in others), default=0)
    assert answer["tolerance"] == max(least, math.ceil(round((farthest + 0.001) * 1000, 3)) / 1000)
    if metric == TOP1:
        hits = value * SETS[name]["num_images"]
        assert hits == pytest.approx(round(hits), abs=0.07), "a share of this many images"


def test_imagenets_digests_are_those_of_the_installed_packages():
    """clip-benchmark's names and templates of ImageNet are open_clip's; timm lists which classes -A and -R have."""
    lists = {"imagenet1k": "imagenet", "imagenetv2": "imagenet", "imagenet_sketch": "imagenet"}
    order = ImageNetInfo("imagenet-1k").label_names()
    for name, stem in (lists | {"imagenet-a": "imagenet_a", "imagenet-r": "imagenet_r"}).items():
        wnids = (resources.files("timm.data") / f"_info/{stem}_synsets.txt").read_text().split()
        names = [called for wnid, called in zip(order, IMAGENET_CLASSNAMES, strict=True) if wnid in wnids]
        assert SETS[name]["prompts"] == prompts_digest(names, imagenet_templates())


def test_each_set_is_one_of_the_table_only():
    keys = [(one.get("prompts", name), one["num_images"]) for name, one in SETS.items()]
    assert len(set(keys)) == len(keys)
    for one in SETS.values():
        assert ("num_captions" in one) != bool(re.fullmatch("[0-9a-f]{64}", one.get("prompts", "")))


def part(name, num_samples, num_captions=0, **source):
    return Part(None, {"name": name, "num_samples": num_samples, "num_captions": num_captions, "source": source})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (part("mine", 50_000), "imagenet1k"),
        (part("mine", 10_000), "imagenetv2"),
        (part("imagenet1k", 49_999), None),
        (part("mine", 5_000, 25_010), None),
        (part("mine", 5_000, 25_010, folder="wds_mscoco_captions"), "mscoco_captions"),
        (part("mscoco_captions", 5_000, 25_010), "mscoco_captions"),
        (part("mscoco_captions", 5_000, 25_000), None),
        (part("flickr8k", 1_000, 5_000), "flickr8k"),
        (part("mine", 1_000, 5_000, folder="flickr30k"), "flickr30k"),
    ],
)
def test_a_set_is_recognised_by_what_it_is(found, expected, caplog):
    """Prompts and number of images; retrieval sets by name and both numbers."""
    prompts = {} if found.num_captions else {TOP1: SETS["imagenet1k"]["prompts"]}
    with caplog.at_level("INFO"):
        known = find_published(found, prompts)
    assert (known and known.name) == expected
    assert bool(caplog.messages) == (expected is None and found.name != "mine"), "told where it is nearly one"
    assert find_published(part("mine", 50_000), {TOP1: "0" * 64}) is None
