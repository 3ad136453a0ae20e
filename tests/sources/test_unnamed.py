"""Images that no row names: found wherever they lie below the image folder, whatever part, split or limit takes."""

import shutil
from pathlib import Path

import pytest

from pipeline_lib.sources import unnamed
from pipeline_lib.sources.formats import open_source
from tests.small_sets import coco, data, flickr, image_file, jsonl, listed, open_for_evaluation, write, write_shards

ROWS = [{"image": f"a/{n}.jpg", "caption": f"number {n}"} for n in range(4)]
SETS = {
    "flickr": (flickr, "Images"),
    "coco": (coco, "val2017"),
    "jsonl": (lambda folder: jsonl(folder, ROWS), "."),
}


def found(source):
    return unnamed.find_unnamed(source.image_folder, source.all_samples)


@pytest.mark.parametrize("kind", SETS)
def test_what_no_row_names_is_counted_and_the_first_are_named(tmp_path, kind, monkeypatch):
    make, images = SETS[kind]
    folder = make(tmp_path / "set") / images
    assert found(open_source(data(tmp_path / "set", kind))) == (0, ())
    for name in ("z.jpg", "deep/er/1.PNG", "2.webp", "note.txt", "._0.jpg", ".thumbs/3.jpg", "half\udcff.jpg"):
        write(folder / name, image_file(99))
    monkeypatch.setattr(unnamed, "BATCH", 2)
    for limit in (None, 1):
        count, first = found(open_source(data(tmp_path / "set", kind, limit=limit)))
        assert count == 4
        assert set(first) < {"z.jpg", "deep/er/1.PNG", "2.webp", "half\\udcff.jpg"}
        assert len(first) == 3
    monkeypatch.setattr(unnamed, "MAX_FILES", 3)
    assert found(open_source(data(tmp_path / "set", kind))).num_images < 4


def test_images_of_another_split_are_named(tmp_path):
    flickr(tmp_path / "set")
    source = open_for_evaluation(tmp_path / "set", "flickr", split="val.txt")
    assert len(list(source.samples)) == 1
    assert found(source) == (0, ())


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_log_and_the_manifest_say_it_and_nothing_fails(caplog):
    jsonl(Path("set"), ROWS)
    parts = {"refine": 0.5, "val": 0.5}
    before = write_shards(data("set", "jsonl", parts=parts))
    assert "unnamed_images" not in before["counts"]["data"]
    shutil.rmtree("shards")
    write(Path("set/b.jpg"), image_file(7))
    after = write_shards(data("set", "jsonl", parts=parts))
    assert after["counts"]["data"]["unnamed_images"] == {"num_images": 1, "first": ["b.jpg"]}
    assert "data: no row names 1 images in set: b.jpg" in caplog.text
    assert after["parts"] == before["parts"]
    assert listed("quarantine.jsonl") == []
