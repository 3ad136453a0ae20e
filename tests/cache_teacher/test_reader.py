"""Rows of the cache are the teacher's features of their own images and captions, joined by identity or refused."""

import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline_lib.core import shards
from pipeline_lib.core.errors import UserError
from pipeline_lib.model.embed import embed_texts
from tests.cached_project import open_cached, rewrite_manifest
from tests.conftest import run_stage
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import write_params


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


def test_reading_needs_no_order(cached):
    part, _, paths = open_cached(cached)
    rows = list(np.random.default_rng(0).permutation(len(part))[:20])
    entries = list(shards.read_part(paths.shards / "refine").entries())
    assert [entry for _, entry in part.entries(rows)] == [entries[row] for row in rows]
    together = part.read_features(rows, [0] * 20)
    for i, row in enumerate(rows):
        alone = part.read_features([row], [0])
        assert torch.equal(alone[0][0], together[0][i])
        assert torch.equal(alone[1][0], together[1][i])


def test_text_is_cut_for_the_whole_set_and_the_cut_is_exact(cached):
    """Longest caption rounded up to 16; the full 77 tokens give the same features to rounding."""
    part, clip, _ = open_cached(cached)
    assert part.text_length == 16
    assert part.read_inputs([0], [0]).texts.shape == (1, 16)
    captions = [part.entry(row)[1].captions[0] for row in range(8)]
    full = embed_texts(clip, clip.tokenize(captions), 8)
    torch.testing.assert_close(part.read_features(range(8), [0] * 8)[1], full, rtol=1e-5, atol=1e-6)


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
    rewrite_manifest(path.parents[1])  # or the file's hash would tell


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


@pytest.mark.parametrize("folder", ["teacher/refine", "teacher/val", "teacher", "pixels"])
@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_a_damaged_file_is_refused_or_not_used(cached, caplog, folder, damage):
    """Of the features it is an error; what the pixels hold is decoded again."""
    path = min((cached / "data" / folder).glob("*.npy" if folder == "pixels" else "*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.unlink()
    if damage == "flipped":
        path.write_bytes(data)
    if folder == "pixels":
        parts = [open_cached(cached)[0], open_cached(cached, "val")[0]]
        assert sum(not part.pixels for part in parts) == 1
        assert ("not used" in caplog.text) == (damage == "flipped")
    else:
        with pytest.raises(UserError, match=rf"{path.name}: (missing|SHA-256 differs).*dvc repro -f cache_teacher"):
            run_stage("refine", cached)
