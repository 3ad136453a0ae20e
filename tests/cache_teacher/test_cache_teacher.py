"""The cache equals the teacher, is joined by identity, resumes at the next shard, is refused if it does not fit."""

import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from pipeline_lib import losses, model
from pipeline_lib.cache_teacher import (
    check as cache_check,
)
from pipeline_lib.cache_teacher import (
    pixels as pixel_cache,
)
from pipeline_lib.cache_teacher import (
    reader as teacher_cache,
)
from pipeline_lib.cache_teacher import (
    run as cache_writer,
)
from pipeline_lib.cache_teacher.reader import embed_images, embed_texts
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import artifacts, config, provenance, shards
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from tests.conftest import run_stage
from tests.small_sets import image_file, write
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import ROOT, make_project, write_params


def open_cached(project, name="refine"):
    paths = Paths(**{k: project / "data" / k for k in Paths.__dataclass_fields__})
    student = model.load(paths.base)
    return teacher_cache.open_parts(paths, student)[name], student, paths


def test_every_image_and_every_caption_has_the_teachers_raw_features(cached):
    """Against a plain loop, one sample at a time, of open_clip's own transform and encoders."""
    part, clip, paths = open_cached(cached)
    entries = list(shards.read_part(paths.shards / "refine").entries())
    assert len(part) == len(entries) > 16  # several shards
    norms = []
    for row, entry in enumerate(entries):
        shard, same = part.entry(row)
        assert same == entry
        pixels = torch.from_numpy(clip.decode(shard.read_image(entry), 10**6))[None]
        for caption, text in enumerate(entry.captions):
            inputs = part.read_inputs([row], [caption])
            assert torch.equal(inputs.images, pixels)
            image_features, text_features = part.read_features([row], [caption])
            with torch.inference_mode():
                torch.testing.assert_close(image_features, clip.encode_image(pixels), rtol=1e-4, atol=1e-5)
                expected = clip.encode_text(clip.tokenize([text]))
            torch.testing.assert_close(text_features, expected, rtol=1e-4, atol=1e-5)
            norms.append(float(text_features.norm()))
    assert len(norms) == sum(len(e.captions) for e in entries)
    assert max(abs(n - 1) for n in norms) > 0.1  # raw, not normalised


def test_no_rows_have_no_features(cached):
    part, clip, _ = open_cached(cached)
    images, token_ids = part.read_inputs([0], [0])
    assert embed_images(clip, images[:0], 8).shape == (0, clip.embed_dim)
    assert embed_texts(clip, token_ids[:0], 8).shape == (0, clip.embed_dim)
    assert teacher_cache.embed_texts_by_length(clip, token_ids[:0], 8).shape == (0, clip.embed_dim)


def test_a_rows_features_do_not_depend_on_its_place(cached):
    """What `chunk_size` must be a multiple of 8 for: the same rows in another order and other passes, bitwise."""
    part, clip, _ = open_cached(cached)
    images, token_ids = part.read_inputs(part.valid_rows, [0] * len(part.valid_rows))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    for embed, rows in ((embed_images, images), (embed_texts, token_ids)):
        assert torch.equal(embed(clip, rows, 8)[order], embed(clip, rows[order], 8))


def test_cached_equals_online_bitwise_in_features_loss_and_gradient(cached):
    """The same function and chunk size: the HyCD loss and its gradient do not know where the teacher came from."""
    part, clip, _ = open_cached(cached)
    rows = part.valid_rows[[5, 0, 17, 9, 2]]
    captions = [0, 1, 0, 1, 1]
    inputs = part.read_inputs(rows, captions)
    cached_pair = part.read_features(rows, captions)
    online_pair = embed_images(clip, inputs.images, 8), embed_texts(clip, inputs.token_ids, 8)
    found = []
    for pair in (cached_pair, online_pair):
        student = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = losses.hycd_loss(student, pair[0] @ pair[1].T)
        found.append((*pair, loss.detach(), torch.autograd.grad(loss, student)[0]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_reading_needs_no_order(cached):
    part, _, _ = open_cached(cached)
    rows = list(np.random.default_rng(0).permutation(len(part))[:20])
    together = part.read_features(rows, [0] * 20)
    for i, row in enumerate(rows):
        alone = part.read_features([row], [0])
        assert torch.equal(alone[0][0], together[0][i])
        assert torch.equal(alone[1][0], together[1][i])


def test_text_is_cut_for_the_whole_set_and_the_cut_is_exact(cached):
    """Longest caption rounded up to 16; the full 77 tokens give the same features to rounding."""
    part, clip, _ = open_cached(cached)
    assert part.text_length == 16
    assert part.read_inputs([0], [0]).token_ids.shape == (1, 16)
    captions = [part.entry(row)[1].captions[0] for row in range(8)]
    full = embed_texts(clip, clip.tokenize(captions), 8)
    torch.testing.assert_close(part.read_features(range(8), [0] * 8)[1], full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "change", [{"dtype": "float16"}, {"pixels": "never"}, {"text_cut": "none"}, {"mode": "online"}]
)
def test_settings(sharded, change):
    write_params(sharded, **{f"cache_teacher__{k}": v for k, v in change.items()})
    run_stage("cache_teacher", sharded)
    part, _, _ = open_cached(sharded)
    reference = part.read_inputs([3], [0])
    assert reference.images.shape == (1, 3, 32, 32)
    unit = part.units[0]
    if "dtype" in change:
        assert unit["image_features"].dtype == torch.float16
        assert part.read_features([3], [0])[0].dtype == torch.float32
    if "pixels" in change:
        assert not list((sharded / "data/pixels").rglob("*.npy"))
    if "text_cut" in change:
        assert part.text_length == 77
    if "mode" in change:
        assert part.read_features([3], [0]) is None
        assert "image_features" not in unit


def test_cutting_each_pass_gives_the_same_features_to_rounding(sharded, monkeypatch):
    """Captions sorted by length, each pass cut at its own longest: against one cut for the set, and cheaper."""
    entries = list(shards.read_part(sharded / "data/shards/refine").entries())
    lengths, found = [], {}
    original = model.Clip.encode_text

    def encode_text(self, token_ids):
        lengths.append(token_ids.shape[1])
        return original(self, token_ids)

    monkeypatch.setattr(teacher_cache, "CUT_MULTIPLE", 2)
    monkeypatch.setattr(model.Clip, "encode_text", encode_text)
    for cut in ("set", "chunk"):
        lengths.clear()
        write_params(sharded, cache_teacher__text_cut=cut)
        run_stage("cache_teacher", sharded)
        part, _, _ = open_cached(sharded)
        features = [part.read_features(range(len(part)), [number] * len(part))[1] for number in (0, 1)]
        found[cut] = torch.cat(features), set(lengths), sum(lengths)
    torch.testing.assert_close(found["chunk"][0], found["set"][0], rtol=1e-5, atol=1e-6)
    assert len(found["set"][1]) == 1
    assert len(found["chunk"][1]) > 1
    assert found["chunk"][2] < found["set"][2]
    assert len(entries) == len(found["set"][0]) / 2


def test_a_bf16_teacher_is_within_two_per_cent_and_its_student_starts_where_it_is(sharded, caplog):
    """Features computed under autocast, against fp32; step 0 compares in the cache's own precision: no difference."""
    found = {}
    for precision in ("fp32", "bf16"):
        write_params(sharded, cache_teacher__precision=precision)
        run_stage("cache_teacher", sharded)
        part, _, _ = open_cached(sharded)
        found[precision] = part.read_features(part.valid_rows, [0] * len(part.valid_rows))
    for exact, rough in zip(found["fp32"], found["bf16"], strict=True):
        difference = (rough - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert 0 < float(difference.max()) < 2e-2
    with caplog.at_level("INFO"):
        run_stage("refine", sharded)
    assert "step 0: student and cache differ by 0.0e+00" in caplog.text


def test_a_teacher_with_a_longer_context_sees_whole_captions(sharded):
    """The student takes 24 tokens, the teacher 77: a caption of 60 words is cut for the one and whole for the other."""
    student, teacher = (
        model.load(write_tiny_clip(sharded / f"model{length}", context_length=length)) for length in (24, 77)
    )
    part = shards.read_part(sharded / "data/shards/refine")
    settings = config.load(sharded / "params.yaml", CacheTeacherSettings)
    writer = cache_writer.Writer(student, teacher, settings, sharded / "work", World(), progress=False)
    long = "word " * 60
    for entry in shards.read_index(part.shards[0].index_path):
        path = part.shards[0].index_path
        path.write_text(path.read_text().replace(entry.captions[0], long, 1))
        break
    assert writer._tokenize_all([part]) == {"student": 24, "teacher": 64}
    assert writer._tokens(part, 0)["student"].shape[1] == 24
    assert writer._tokens(part, 0)["teacher"].shape[1] == 77


def test_fp16_storage_changes_the_loss_by_little(sharded):
    """The effect of storing halves on the HyCD loss, measured against fp32 storage: below one per mille."""
    values = {}
    for dtype in ("float32", "float16"):
        write_params(sharded, cache_teacher__dtype=dtype)
        run_stage("cache_teacher", sharded)
        part, _, _ = open_cached(sharded)
        image, text = part.read_features(part.valid_rows[:16], [0] * 16)
        student = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        values[dtype] = float(losses.hycd_loss(student, image @ text.T))
    assert values["float16"] != values["float32"]
    assert values["float16"] == pytest.approx(values["float32"], rel=1e-3)


def test_another_model_may_teach(sharded, tmp_path):
    """A wider teacher with its own picture size: its features are cached, the pixels and tokens stay the student's."""
    write_tiny_clip(sharded / "teacher", seed=7, embed_dim=24)
    path = sharded / "teacher" / "open_clip_config.json"
    settings = json.loads(path.read_text())
    settings["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(settings))
    write_params(sharded, cache_teacher__teacher="teacher")
    run_stage("cache_teacher", sharded)
    part, student, _ = open_cached(sharded)
    image, text = part.read_features([0, 1], [0, 0])
    assert image.shape == text.shape == (2, 24)
    teacher = model.load(sharded / "teacher")
    shard, entry = part.entry(1)
    pixels = torch.from_numpy(teacher.decode(shard.read_image(entry), 10**6))[None]
    torch.testing.assert_close(image[1:], embed_images(teacher, pixels, 8), rtol=1e-4, atol=1e-5)
    run_stage("refine", sharded)
    assert student.embed_dim == 16


# --- pixels: a copy that saves time and decides nothing -----------------------------------------------------------


def count_decoded(monkeypatch):
    """A list that grows by one with each image that this process decodes."""
    decoded, original = [], model.Preprocess.decode
    monkeypatch.setattr(
        model.Preprocess, "decode", lambda self, *arguments: decoded.append(1) or original(self, *arguments)
    )
    return decoded


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
    original, answers = cache_writer.Writer._write_unit, iter([False, True])

    def write(self, part, index, chunks):
        if part.name == "val":
            raise KeyboardInterrupt
        original(self, part, index, chunks)

    monkeypatch.setattr(pixel_cache, "fits", lambda *_: next(answers))
    with monkeypatch.context() as patch:
        patch.setattr(cache_writer.Writer, "_write_unit", write)
        with pytest.raises(KeyboardInterrupt):
            run_stage("cache_teacher", sharded)
    run_stage("cache_teacher", sharded)
    assert digests(sharded) == digests(cached)


@pytest.mark.parametrize("change", ["picture", "limit", "preprocess", "package"])
def test_pixels_of_anything_else_are_not_used(cached, monkeypatch, change):
    """Other pictures, limit, preprocessing or decoders: the part reads as if there were none."""
    part, student, paths = open_cached(cached)
    assert part.pixels
    if change == "picture":
        name, sample = teacher_cache.pixels_name, {"sha256": "0" * 64}
        monkeypatch.setattr(teacher_cache, "pixels_name", lambda i, e: name(i, [replace(e[0], **sample), *e[1:]]))
    elif change == "limit":
        part.part.manifest = {**part.part.manifest, "max_image_pixels": part.part.max_image_pixels + 1}
    elif change == "preprocess":
        student.preprocess = replace(student.preprocess, config={**student.preprocess.config, "resize_mode": "squash"})
    else:
        monkeypatch.setattr(teacher_cache, "_decoder_versions", lambda: {"pillow": "0"})
    assert teacher_cache.CachedPart(paths.teacher, paths.pixels, part.part, student).pixels == []


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
    path = Path(part.pixels[1].filename)
    content = np.load(path)
    if harm == "others":
        np.save(path, 255 - content)
    elif harm == "shape":
        np.save(path, content[:-1])
    else:
        path.write_bytes(path.read_bytes()[:-100] if harm == "cut" else b"")
    opened = teacher_cache.CachedPart(paths.teacher, paths.pixels, part.part, student)
    assert opened.pixels == []
    assert f"{path.name}: not used" in caplog.text
    shard, entry = opened.entry(0)
    decoded = student.decode(shard.read_image(entry), opened.part.max_image_pixels)
    assert torch.equal(opened.read_inputs([0], [0]).images[0], torch.from_numpy(decoded))


def test_a_reader_finds_whole_pixels_or_none_while_others_write_and_remove_them(cached, tmp_path):
    """Two writers replace the folder all the time, one with pixels of other pictures: every row read is right."""
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
    while len(found) < 40 or (set(found) != {True, False} and time.monotonic() < deadline):
        opened = teacher_cache.CachedPart(paths.teacher, paths.pixels, part.part, student)
        found.append(bool(opened.pixels))
        assert torch.equal(opened.read_inputs(part.valid_rows, [0] * len(part.valid_rows)).images, expected)
    stop.set()
    for writer in writers:
        writer.join()
    assert set(found) == {True, False}
    assert torch.equal(part.read_inputs(part.valid_rows, [0] * len(part.valid_rows)).images, expected)  # still open


# --- refusals ---------------------------------------------------------------------------------------------------


def test_cache_of_another_model_is_refused_and_says_what_differs(cached):
    shutil.rmtree(cached / "clip")
    write_tiny_clip(cached / "clip", seed=2)
    run_stage("base", cached)
    with pytest.raises(UserError, match=r"not the cache for this configuration.*teacher\.weights_digest"):
        run_stage("refine", cached)


@pytest.mark.parametrize(("key", "value"), [("chunk_size", 16), ("dtype", "float16"), ("text_cut", "none")])
def test_cache_of_other_settings_is_refused(cached, key, value):
    write_params(cached, **{f"cache_teacher__{key}": value})
    with pytest.raises(UserError, match=rf"{key}: cache has .*, now {value!r}"):
        run_stage("refine", cached)


def swap(path, name, harm):
    unit = safetensors.torch.load_file(path)
    unit = {k: v.clone() for k, v in unit.items()}
    harm(unit[name])
    path.unlink()
    safetensors.torch.save_file(unit, path)


@pytest.mark.parametrize("name", ["key_digests", "caption_digests"])
def test_rows_are_joined_by_identity_not_by_number(cached, name):
    """Two exchanged rows: counts and shapes fit, the keys or captions do not."""
    path = cached / "data/teacher/refine/00000.safetensors"
    swap(path, name, lambda digests: digests.__setitem__([0, 1], digests[[1, 0]].clone()))
    with pytest.raises(UserError, match=rf"{name} differ from"):
        open_cached(cached)


def test_wrong_features_are_caught_before_the_first_step(cached):
    path = cached / "data/teacher/refine/00000.safetensors"
    swap(path, "text_features", lambda rows: rows.__setitem__([0, 1], rows[[1, 0]].clone()))
    with pytest.raises(UserError, match="before the first step the student's features differ from the cache"):
        run_stage("refine", cached)


@pytest.mark.parametrize(("harm", "message"), [(0.0, "16 of 16 are zero"), (float("nan"), "16 of 16 are not finite")])
def test_a_teacher_that_gives_constants_or_nan_is_refused(sharded, harm, message):
    """A released cache generator of another project writes empties in silence; here nothing useless is written."""
    path = write_tiny_clip(sharded / "teacher") / "open_clip_model.safetensors"
    weights = {k: v.clone() for k, v in safetensors.torch.load_file(path).items()}
    weights["visual.proj"].fill_(harm)
    safetensors.torch.save_file(weights, path)
    write_params(sharded, cache_teacher__teacher="teacher")
    with pytest.raises(UserError, match=message):
        run_stage("cache_teacher", sharded)
    assert not (sharded / "data/teacher").exists()


def test_a_shard_of_equal_captions_is_cached_and_a_part_of_equal_features_is_not(cached):
    """The tail of an image folder whose classes differ in size has one class, and so one caption, per shard."""
    part, _, _ = open_cached(cached)
    units = [{key: value.clone() for key, value in unit.items()} for unit in part.units]
    units[0]["text_features"][:] = units[0]["text_features"][:1]
    cache_check.check_unit(units[0], "refine/00000")
    cache_check.check_spread(units, "refine")
    for unit in units:
        unit["text_features"][:] = units[0]["text_features"][:1]
    count = sum(len(unit["text_features"]) for unit in units)
    with pytest.raises(UserError, match=rf"^refine: the teacher gives the same vector for all {count} text_features"):
        cache_check.check_spread(units, "refine")


def test_an_image_folder_with_a_large_class_passes_through_the_cache(tmp_path):
    """Classes of 40, 4 and 4 pictures, 8 samples a shard: all but the first are of one class."""
    make_project(tmp_path)
    shutil.rmtree(tmp_path / "set")
    for label, (name, count) in enumerate((("cat", 40), ("dog", 4), ("owl", 4))):
        for number in range(count):
            write(tmp_path / "set" / name / f"{number}.png", image_file(100 * label + number, "PNG"))
    parts = {"refine": 0.7, "val": 0.1, "eval": 0.2}
    write_params(
        tmp_path, data__format="image_folder", data__annotations=None, data__parts=parts, shard__samples_per_shard=8
    )
    for stage in ("base", "shard", "cache_teacher"):
        run_stage(stage, tmp_path)
    captions = [
        {text for e in s.samples() for text in e.captions}
        for s in shards.read_part(tmp_path / "data/shards/refine").shards
    ]
    assert {"a photo of a cat"} in captions, "a shard of one caption, which is what this test is about"


def test_a_teacher_with_one_vector_for_all_texts_is_refused(sharded):
    path = write_tiny_clip(sharded / "teacher") / "open_clip_model.safetensors"
    weights = {k: v.clone() for k, v in safetensors.torch.load_file(path).items()}
    weights["ln_final.weight"].zero_()
    weights["ln_final.bias"].fill_(1.0)
    safetensors.torch.save_file(weights, path)
    write_params(sharded, cache_teacher__teacher="teacher")
    with pytest.raises(UserError, match=r"^refine: the teacher gives the same vector for all \d+ text_features; check"):
        run_stage("cache_teacher", sharded)


def test_few_rows_are_computed_again_however_large_the_set(cached, monkeypatch):
    part, clip, _ = open_cached(cached)
    settings = replace(config.load(cached / "params.yaml", CacheTeacherSettings), verify_share=1.0, chunk_size=8)
    assert cache_check.verify(part, clip, settings)["rows"] == len(part)
    monkeypatch.setattr(cache_check, "MOST_ROWS", 9)
    assert cache_check.verify(part, clip, settings)["rows"] == 9


def test_verify_notices_features_that_are_not_the_teachers(cached):
    part, clip, _ = open_cached(cached)
    settings = config.load(cached / "params.yaml", CacheTeacherSettings)
    found = cache_check.verify(part, clip, settings)
    assert found["features"] == found["loss"] == found["gradient"] == 0.0
    part.units = [{k: v.clone() for k, v in unit.items()} for unit in part.units]
    for unit in part.units:
        unit["image_features"] *= 1.001
    with pytest.raises(UserError, match=r"recomputed features differ by 1.00e-03"):
        cache_check.verify(part, clip, replace(settings, verify_share=1.0))
    found = cache_check.verify(part, clip, replace(settings, verify_share=1.0, verify_tolerance=2e-3))
    assert found["features"] == pytest.approx(1e-3, rel=1e-3)


# --- undecodable images -----------------------------------------------------------------------------------------


def break_image(project, index):
    """A picture whose header is whole and whose data end early."""
    path = project / "set" / f"{index:04d}.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-3000])


def test_every_sample_is_used_or_named_with_a_reason(tmp_path):
    """A truncated picture ends in quarantine or as an invalid row: counted, named, never trained on."""
    project = make_project(tmp_path / "project", shard__max_bad_share=0.1, cache_teacher__max_bad_share=0.1)
    broken = list(range(0, 96, 30))
    for index in broken:
        break_image(project, index)
    for name in ("base", "shard", "cache_teacher"):
        run_stage(name, project)
    parts = {name: open_cached(project, name)[0] for name in ("refine", "val")}
    facts = artifacts.read_manifest(project / "data/teacher")["parts"]
    quarantined = [json.loads(line) for line in (project / "data/shards/quarantine.jsonl").read_text().splitlines()]
    invalid = [reason for part in facts.values() for reason in part["invalid"]]
    named = {q["key"] for q in quarantined} | {reason.split(":")[0] for reason in invalid}
    kept = sum(len(part.valid_rows) for part in parts.values())
    evaluated = shards.read_part(project / "data/shards/eval").num_samples
    assert named == {f"{index:04d}" for index in broken}
    assert kept + evaluated + len(named) == 96
    trained = {part.entry(row)[1].key for part in parts.values() for row in part.valid_rows}
    assert not trained & named


def test_a_raised_limit_on_pixels_holds_in_every_stage_that_decodes(tmp_path):
    """Pictures of 110 megapixels that `shard` was told to accept: cached, trained on and evaluated like any other."""
    values = {"shard__max_image_pixels": 200_000_000, "cache_teacher__pixels": "never"}
    project = make_project(tmp_path / "project", num_samples=48, **values)
    large = {"refine": "0000", "val": "0002", "eval": "0003"}
    for key in large.values():
        Image.new("1", (11_000, 10_000 + int(key))).save(project / "set" / f"{key}.png")
    for name, arguments in {"base": (), "shard": (), "cache_teacher": (), "refine": (), "evaluate": ("base",)}.items():
        run_stage(name, project, *arguments)
    for name, key in large.items():
        assert key in [entry.key for entry in shards.read_part(project / "data/shards" / name).entries()]
    assert all(part["num_invalid"] == 0 for part in artifacts.read_manifest(project / "data/teacher")["parts"].values())


def test_too_many_undecodable_images_fail_the_stage(cached):
    """Pixels that stop decoding after `shard` saw them: the stage names them and the limit."""
    part, student, _ = open_cached(cached)
    reasons = [f"{part.entry(row)[1].key}: cannot be decoded" for row in range(3)]
    settings = config.load(cached / "params.yaml", CacheTeacherSettings)
    writer = cache_writer.Writer(student, student, settings, cached, World())
    with pytest.raises(UserError, match=r"3 of \d+ images cannot be decoded.*raise cache_teacher.max_bad_share"):
        writer._check_share(part.part, reasons)


# --- resumption -------------------------------------------------------------------------------------------------


def digests(project):
    return {name: artifacts.read_manifest(project / "data" / name)["digest"] for name in ("teacher", "pixels")}


def test_two_runs_give_the_same_bytes(cached):
    before = digests(cached)
    run_stage("cache_teacher", cached)
    assert digests(cached) == before


def test_finished_shards_are_kept_and_broken_ones_made_again(sharded, cached, monkeypatch, caplog):
    """Stopped in the second part: the next run keeps what is whole, and notices a unit that was damaged meanwhile."""
    calls = []
    original = cache_writer.Writer._write_unit

    def write(self, part, index, chunks):
        calls.append((part.name, index))
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(self, part, index, chunks)

    monkeypatch.setattr(cache_writer.Writer, "_write_unit", write)
    with pytest.raises(KeyboardInterrupt):
        run_stage("cache_teacher", sharded)
    first = list(calls)
    [work] = (sharded / ".checkpoints").iterdir()
    damaged = work / "teacher" / "refine" / "00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with caplog.at_level("INFO"):
        run_stage("cache_teacher", sharded)
    assert "resumed, 2 of" in caplog.text
    assert calls[4] == ("refine", 1)
    assert ("refine", 0) not in calls[4:]
    assert first[0] == ("refine", 0)
    assert digests(sharded) == digests(cached)
    assert not list((sharded / ".checkpoints").iterdir())


def test_units_of_another_version_of_a_package_are_not_resumed(sharded, cached, monkeypatch, caplog):
    """A killed cache, then an upgrade of torch: units of both in one cache would be no function of anything."""
    original, versions = cache_writer.Writer._write_unit, provenance.package_versions()

    def write(self, part, index, chunks):
        if part.name == "val":
            raise KeyboardInterrupt
        original(self, part, index, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(cache_writer.Writer, "_write_unit", write)
        patch.setattr(provenance, "package_versions", lambda: {**versions, "torch": "2.0"})
        with pytest.raises(KeyboardInterrupt):
            run_stage("cache_teacher", sharded)
    with caplog.at_level("INFO"):
        run_stage("cache_teacher", sharded)
    assert "resumed" not in caplog.text
    assert digests(sharded) == digests(cached)


def stage_process(project, stage, **env):
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished_units(project):
    """How many there are by now; `glob` takes folders that the stage moves away meanwhile as empty, `rglob` fails."""
    return len(glob.glob(str(project / ".checkpoints/*/done/*/*.json")))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_cache(sharded, cached):
    """SIGKILL, five times at random moments after the first unit, then to the end: bitwise the uninterrupted cache."""
    dice = random.Random(0)
    for _ in range(5):
        process = stage_process(sharded, "cache_teacher")
        before = finished_units(sharded)
        while process.poll() is None and finished_units(sharded) == before:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
    process = stage_process(sharded, "cache_teacher")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert digests(sharded) == digests(cached)


@pytest.mark.slow
def test_two_processes_write_the_same_cache(sharded, cached):
    """`runtime.processes: 2` relaunches the stage under torchrun; every byte is that of one process."""
    write_params(sharded, runtime__processes=2)
    process = stage_process(sharded, "cache_teacher")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert digests(sharded) == digests(cached)
