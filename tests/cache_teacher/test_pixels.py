"""Pixels are a copy that saves time and decides nothing."""

import os
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_lib.cache_teacher import pixels, reader, run
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError
from tests.cached_project import count_decoded, digests, open_cached
from tests.conftest import run_stage
from tests.tiny_project import write_params


def test_the_cache_does_not_know_whether_pixels_were_stored(cached, sharded):
    write_params(sharded, cache_teacher__pixels="never")
    run_stage("cache_teacher", sharded)
    assert not (sharded / "data/pixels").exists()
    for name in ("teacher/manifest.json", "teacher/refine/00000.safetensors"):
        assert (sharded / "data" / name).read_bytes() == (cached / "data" / name).read_bytes()


def test_pixels_are_stored_alone_as_the_whole_stage_stores_them(cached, caplog):
    """After `dvc pull`: the remedy that `refine` names; the cache itself is not touched."""
    before = digests(cached)
    manifest = cached / "data/teacher/manifest.json"
    stamp = manifest.stat().st_mtime_ns
    shutil.rmtree(cached / "data/pixels")
    with caplog.at_level("INFO"):
        run_stage("cache_teacher", cached, "pixels")
    assert "images stored in data/pixels" in caplog.text
    assert digests(cached) == before
    assert artifacts.verify(cached / "data/pixels") == []
    assert manifest.stat().st_mtime_ns == stamp
    assert not list((cached / ".checkpoints").iterdir())
    write_params(cached, cache_teacher__pixels="never")
    with pytest.raises(UserError, match="`never` stores none here"):
        run_stage("cache_teacher", cached, "pixels")


def test_a_cache_without_room_for_pixels_resumes_with_them_when_there_is(sharded, cached, monkeypatch):
    """`auto` asks for the free disk, which a killed run may have filled itself: units without pixels are made again."""
    original, answers = run.write_group, iter([False, True])

    def write_group(group, *rest):
        if group[0].part.name == "val":
            raise KeyboardInterrupt
        original(group, *rest)

    monkeypatch.setattr(pixels, "fits", lambda *_: next(answers))
    with monkeypatch.context() as patch:
        patch.setattr(run, "write_group", write_group)
        with pytest.raises(KeyboardInterrupt):
            run_stage("cache_teacher", sharded)
    run_stage("cache_teacher", sharded)
    assert digests(sharded) == digests(cached)


@pytest.mark.parametrize("change", ["image", "limit", "preprocess", "package"])
def test_pixels_of_anything_else_are_not_used(cached, monkeypatch, change):
    """Other images, limit, preprocessing or decoders: the part reads as if there were none."""
    part, student, paths = open_cached(cached)
    assert part.pixels
    if change == "image":
        name, sample = reader.pixels_name, {"sha256": "0" * 64}
        monkeypatch.setattr(reader, "pixels_name", lambda i, e: name(i, [replace(e[0], **sample), *e[1:]]))
    elif change == "limit":
        part.part.manifest = {**part.part.manifest, "max_image_pixels": part.part.max_image_pixels + 1}
    elif change == "preprocess":
        student.preprocess = replace(student.preprocess, config={**student.preprocess.config, "resize_mode": "squash"})
    else:
        monkeypatch.setattr(pixels, "_decoder_versions", lambda: {"pillow": "0"})
    assert reader.CachedPart(paths.teacher, paths.pixels, part.part, student).pixels == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are counted there")
def test_shards_that_are_read_hold_no_file_open(cached):
    """A process has 1,024 descriptors by default, and a set may have more shards."""
    before = len(os.listdir("/proc/self/fd"))
    parts = [open_cached(cached, name)[0] for name in ("refine", "val")]
    assert all(part.pixels for part in parts)
    assert len(os.listdir("/proc/self/fd")) == before


def test_experiments_in_temporary_folders_share_the_pixels_of_the_project(cached, tmp_path, monkeypatch):
    """DVC gives them $DVC_ROOT, the main repository; their own folder is thrown away."""
    root = tmp_path / "root"
    monkeypatch.setenv("DVC_ROOT", str(root))
    run_stage("cache_teacher", cached)
    assert sorted(p.name for p in (root / "data/pixels").iterdir()) == sorted(
        p.name for p in (cached / "data/pixels").iterdir()
    )
    shutil.rmtree(cached / "data/pixels")
    decoded = count_decoded(monkeypatch)
    run_stage("refine", cached)
    assert len(decoded) == len(list((root / "data/pixels").glob("*.npy")))  # one of each file, to compare


@pytest.mark.parametrize("harm", ["cut", "empty", "others", "shape"])
def test_pixels_that_are_not_what_the_images_give_are_not_used(cached, caplog, harm):
    """Their name says what they should be; a bad disk or a hand says otherwise."""
    part, student, paths = open_cached(cached)
    [path] = [path for path in paths.pixels.glob("*.npy") if np.array_equal(np.load(path), part.pixels[1])]
    content = np.load(path)
    if harm == "others":
        np.save(path, 255 - content)
    elif harm == "shape":
        np.save(path, content[:-1])
    else:
        path.write_bytes(path.read_bytes()[:-100] if harm == "cut" else b"")
    opened = reader.CachedPart(paths.teacher, paths.pixels, part.part, student)
    assert opened.pixels == []
    assert f"{path.name}: not used" in caplog.text
    shard, entry = opened.entry(0)
    decoded = student.decode(shard.read_image(entry), opened.part.max_image_pixels)
    assert torch.equal(opened.read_inputs([0], [0]).images[0], torch.from_numpy(decoded))


def test_a_reader_finds_whole_pixels_or_none_while_others_write_and_remove_them(cached, tmp_path):
    """Two writers replace the folder all the time, one with pixels of other images: every row read is right."""
    part, student, paths = open_cached(cached)
    expected = part.read_inputs(part.valid_rows, [0] * len(part.valid_rows)).images
    stop = threading.Event()

    def write(name, change):
        number = 0
        while not stop.is_set():
            work = shutil.copytree(tmp_path / "stored", tmp_path / f"{name}{number}")
            for file in work.iterdir() if change else ():
                file.rename(work / f"other{file.name}")
            artifacts.publish(work, paths.pixels)
            number += 1

    shutil.copytree(paths.pixels, tmp_path / "stored")
    writers = [threading.Thread(target=write, args=arguments) for arguments in (("same", False), ("other", True))]
    for writer in writers:
        writer.start()
    found = []
    deadline = time.monotonic() + 60
    try:
        while len(found) < 40 or (set(found) != {True, False} and time.monotonic() < deadline):
            opened = reader.CachedPart(paths.teacher, paths.pixels, part.part, student)
            found.append(bool(opened.pixels))
            assert torch.equal(opened.read_inputs(part.valid_rows, [0] * len(part.valid_rows)).images, expected)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert set(found) == {True, False}
    assert torch.equal(part.read_inputs(part.valid_rows, [0] * len(part.valid_rows)).images, expected)  # still open


def test_pixels_may_lie_on_another_disk_than_the_features(cached):
    """/dev/shm is another file system than /tmp: what was decoded beside the features is copied there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        if os.stat(disk).st_dev == os.stat(cached).st_dev:
            pytest.skip("one file system")
        write_params(cached, paths__pixels=f"{disk}/fast/pixels")
        run_stage("cache_teacher", cached)
        there = {file.name: file.read_bytes() for file in Path(disk, "fast/pixels").iterdir()}
        assert there == {file.name: file.read_bytes() for file in (cached / "data/pixels").iterdir()}
        assert [file for folder in (cached, Path(disk)) for file in folder.glob("**/.checkpoints/*/*")] == []
