"""Each model sees whole captions, within its own context."""

import torch

from pipeline_lib import model
from pipeline_lib.cache_teacher import tokens
from pipeline_lib.cache_teacher.run import units_of
from pipeline_lib.core import shards
from tests.cached_project import rewrite_manifest
from tests.tiny_model import write_tiny_clip


def tokenized(root, student, teacher):
    """The units of part `refine`, their captions tokenised."""
    parts = [shards.read_part(root / "data/shards/refine")]
    units = units_of(parts, root / "work", student, stores_pixels=False)["refine"]
    for unit in units:
        tokens.tokenize(unit, student, teacher)
    return units


def test_a_teacher_with_a_longer_context_sees_whole_captions(sharded):
    """The student takes 24 tokens, the teacher 77: a caption of 60 words is cut for the one and whole for the other."""
    student, teacher = (
        model.load(write_tiny_clip(sharded / f"model{length}", context_length=length)) for length in (24, 77)
    )
    path = shards.read_part(sharded / "data/shards/refine").shards[0].index_path
    first = next(shards.read_index(path)).captions[0]
    path.write_text(path.read_text().replace(first, "word " * 60, 1))
    rewrite_manifest(path.parent)
    units = tokenized(sharded, student, teacher)
    cuts = tokens.choose_cuts(units, student, teacher, "set")
    assert cuts == (24, 64)
    ids = tokens.read_token_ids(units[0], cuts)
    assert [each.shape[1] for each in ids] == [24, 64]
    assert torch.equal(ids[0][1, :5], ids[1][1, :5])
    assert tokens.choose_cuts(units, student, teacher, "none") == (24, 77)
    counts = {"num_texts": units[0].part.num_captions, "num_truncated": 1, "num_distinct": 1, "num_distinct_read": 1}
    assert tokens.count_truncated(units) == {"student": {"context_length": 24, **counts}}


def test_one_model_is_tokenised_once(sharded, monkeypatch):
    """Also when an interrupted stage starts again."""
    clip = model.load(sharded / "data/base")
    asked, tokenize = [], clip.tokenize
    monkeypatch.setattr(clip, "tokenize", lambda texts: asked.append(len(texts)) or tokenize(texts))
    for _ in range(2):
        units = tokenized(sharded, clip, clip)
    assert asked == [unit.shard.num_captions for unit in units]
    student_ids, teacher_ids = tokens.read_token_ids(units[0], tokens.TextCuts(16, 16))
    captions = [caption for entry in units[0].read_entries() for caption in entry.captions]
    assert torch.equal(student_ids, tokenize(captions)[:, :16])
    assert torch.equal(student_ids, teacher_ids)
