"""OpenMoji's single pictures: every concept once in each split, as no scene shows it, with its name as its class."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import openmoji, scenes
from pipeline_lib.sources.openmoji_concepts import find_concepts
from pipeline_lib.sources.place import Place

ROOT = Path(__file__).parents[2]


def open_split(split, **more):
    return openmoji.open_set(
        Place(name="data.evaluation.x", format="openmoji", root=ROOT / "data/openmoji", split=split, **more)
    )


def pixels(sample):
    return np.asarray(sample.image.paint())


@pytest.mark.parametrize("split", openmoji.SPLITS)
def test_every_concept_is_asked_once_by_its_own_name(split):
    source = open_split(split)
    samples = list(source.samples)
    concepts, _ = find_concepts()
    names = source.tasks["name"].classnames
    assert [names[sample.labels["name"]] for sample in samples] == [concept.phrase for concept in concepts]
    assert len({sample.key for sample in samples}) == len(samples) == len({*names}) > 1000
    assert not any(sample.captions for sample in samples)


def test_categories_are_asked_of_the_coloured_pictures_alone():
    moved, lines = open_split("moved"), open_split("lines")
    concepts, _ = find_concepts()
    names = moved.tasks["category"].classnames
    assert [names[one.labels["category"]] for one in moved.samples] == [concept.category for concept in concepts]
    assert len(names) == 6
    assert list(lines.tasks) == ["name"]


def test_no_scene_has_the_size_or_the_background_of_a_moved_picture():
    """So that no picture to be named was trained on, whatever the model was trained on before."""
    asked = [one.image for one in open_split("moved").samples]
    source = scenes.open_set(Place(name="data", format="scenes", root=ROOT / "data/openmoji"))
    shown = [one.image for one in source.samples if one.split != "val" or not one.labels]
    for trait in (lambda image: image.background, lambda image: image.pictures[0].size):
        assert not {trait(image) for image in asked} & {trait(image) for image in shown}
    assert len({(image.pictures[0].x, image.pictures[0].y) for image in asked}) > 400


def test_line_drawings_are_the_black_of_the_picture():
    sample = next(one for one in open_split("lines").samples if one.key == "lines-whale")
    found = pixels(sample)
    coloured = np.asarray(openmoji.DrawnImage(sample.image.pictures, "white", "").paint())
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()
    np.testing.assert_array_equal(found[..., 0], np.minimum(255, coloured.max(axis=2).astype(int) * 255 // 100))
    assert (found.min(), np.median(found)) == (0, 255)


def test_images_are_png_files_of_the_models_size():
    with Image.open(io.BytesIO(next(iter(open_split("moved").samples)).image.read())) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (96, 96))


@pytest.mark.parametrize("split", [None, "test"])
def test_one_of_its_splits_must_be_named(split):
    with pytest.raises(UserError, match=r"data\.evaluation\.x\.split: format openmoji has moved and lines"):
        open_split(split)
