"""The reader: exact bytes at each offset, whatever process asks, and every change of a file is found."""

import json
import os
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

from pipeline_lib.core import artifacts, shards
from pipeline_lib.core.errors import UserError
from tests.small_sets import coco, data, image_file, img2dataset, settings, write_shards

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.fixture
def part(tmp_path):
    """Six images with 36 captions in two tars."""
    coco(tmp_path / "coco")
    write_shards(data(tmp_path / "coco", "coco", parts={"refine": 1.0}))
    return shards.read_part(tmp_path / "shards/refine")


def test_what_a_part_says_of_itself(part):
    assert (part.name, part.num_samples, part.num_captions) == ("refine", 6, 36)
    assert [(s.num_samples, s.num_captions) for s in part.shards] == [(4, 23), (2, 13)]
    assert part.digest == part.manifest["digest"]
    assert part.manifest["max_caption_chars"] == len("caption 6 of 19")
    assert part.max_image_pixels == settings().max_image_pixels
    assert part.tasks == {}


def test_entries_give_the_images_and_all_captions(part):
    entries = list(part.entries())
    assert entries == [entry for shard in part.shards for entry in shard.samples()]
    assert [e.key for e in entries] == [f"{9 * n + 1:012d}" for n in range(6)]
    assert [len(e.captions) for e in entries] == [5, 6, 7, 5, 6, 7]
    images = [shard.read_image(entry) for shard in part.shards for entry in shard.samples()]
    assert images == [image_file(n) for n in range(6)]
    assert [e.sha256 for e in entries] == [artifacts.sha256_bytes(image_file(n)) for n in range(6)]


def _last_image(shard):
    return os.getpid(), shard.read_image(shard.samples()[-1])


def test_other_processes_read_too(part):
    shard = part.shards[0]
    assert pickle.loads(pickle.dumps(shard)) == shard
    with ProcessPoolExecutor(1) as pool:
        pid, data = pool.submit(_last_image, shard).result()
    assert pid != os.getpid()
    assert data == image_file(3)


def test_digests_are_16_bytes_and_differ(part):
    keys = {shards.text_digest(entry.key) for entry in part.entries()}
    captions = {shards.text_digest(caption) for entry in part.entries() for caption in entry.captions}
    assert (len(keys), len(captions)) == (6, 36)
    assert {len(digest) for digest in keys | captions} == {16}


def test_every_change_is_found(part):
    tar = part.shards[0].path
    content = bytearray(tar.read_bytes())
    entry = part.shards[0].samples()[1]
    content[entry.offset + 5] ^= 1
    tar.write_bytes(content)
    assert shards.read_part(part.directory).name == "refine"  # same size: not seen on opening,
    with pytest.raises(UserError, match=r"00000.tar: 000000000010: bytes .* are not the image that was indexed"):
        part.shards[0].read_image(entry)  # but on reading,
    assert artifacts.verify(part.directory) == [f"{tar}: SHA-256 differs from the manifest"]  # and by a full check


def test_a_cut_tar_is_refused(part):
    tar = part.shards[0].path
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"00000.tar: \d+ bytes, the manifest says"):
        shards.read_part(part.directory)
    tar.unlink()
    with pytest.raises(UserError, match=r"00000.tar: no such file, but .* lists it; run `dvc repro shard`"):
        shards.read_part(part.directory)
    with pytest.raises(UserError, match="no such file"):
        part.shards[0].read_image(part.shards[0].samples()[0])


def test_a_changed_index_or_manifest_is_refused(part):
    shard = part.shards[1]
    shard.index_path.write_text(shard.index_path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="1 lines, the manifest says 2"):
        shard.samples()
    with pytest.raises(UserError, match=rf"{shard.index_path.name}: .* bytes, manifest says .*dvc repro -f shard"):
        shards.read_part(part.directory)
    path = part.directory / "manifest.json"
    path.write_text(json.dumps({**part.manifest, "num_samples": 7}))
    with pytest.raises(UserError, match="digest does not fit"):
        shards.read_part(part.directory)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: [],
        lambda fields: {**fields, "more": 1},
        lambda fields: {name: value for name, value in fields.items() if name != "sha256"},
        lambda fields: {**fields, "offset": "512"},
        lambda fields: {**fields, "size": True},
        lambda fields: {**fields, "key": None},
        lambda fields: {**fields, "captions": "a dog"},
        lambda fields: {**fields, "captions": [None]},
        lambda fields: {**fields, "labels": []},
        lambda fields: {**fields, "labels": {"class": "0"}},
    ],
)
def test_a_line_that_is_no_entry_is_named(part, change):
    path = part.shards[0].index_path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + json.dumps(change(json.loads(lines[1]))) + "\n")
    found = shards.read_index(path)
    assert next(found).line() == lines[0]
    with pytest.raises(UserError, match=r"00000.jsonl: line 2 is no entry of an index; run `dvc repro -f shard`"):
        next(found)


def test_what_is_no_part(part, tmp_path):
    with pytest.raises(UserError, match="missing or unfinished"):
        shards.read_part(tmp_path / "shards/eval")
    with pytest.raises(UserError, match="not a part of sharded data"):
        shards.read_part(tmp_path / "shards")


def test_tars_in_place_are_read_where_they_lie(tmp_path):
    img2dataset(tmp_path / "tars")
    write_shards(data("tars", "webdataset", parts={"refine": 1.0}))
    part = shards.read_part(tmp_path / "shards/refine")
    assert [str(s.path) for s in part.shards] == ["tars/00000.tar", "tars/00001.tar"]
    assert [shard.read_image(e) for shard in part.shards for e in shard.samples()] == [
        image_file(10 * shard + n) for shard in range(2) for n in range(3)
    ]
    assert not list((tmp_path / "shards").rglob("*.tar"))
    assert shards.verify_in_place(part) == []
    content = bytearray((tmp_path / "tars/00001.tar").read_bytes())
    content[600] ^= 1
    (tmp_path / "tars/00001.tar").write_bytes(content)
    assert shards.verify_in_place(part) == ["tars/00001.tar: SHA-256 differs from the manifest"]
