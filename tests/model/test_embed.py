"""Passes of one size: every row gets its own features, and what fills a pass up is not seen."""

import pytest
import torch

from pipeline_lib import model
from pipeline_lib.model.embed import cut_length, embed_images, embed_texts, embed_texts_by_length
from tests.tiny_model import write_tiny_hf_clip

CAPTIONS = ["a cat", "two dogs on a hill", "", "the red house near the river " * 3, "a bird"]


@pytest.fixture
def clip(tiny_clip):
    return model.load(tiny_clip)


@pytest.fixture
def images():
    return torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def passes_of(monkeypatch, clip, name):
    """The shapes in which `clip.encode_*` is called from now on."""
    shapes, encode = [], getattr(clip, name)
    monkeypatch.setattr(clip, name, lambda rows: shapes.append(tuple(rows.shape)) or encode(rows))
    return shapes


def test_features_are_those_of_single_rows(clip, images):
    token_ids = clip.tokenize(CAPTIONS)
    with torch.no_grad():
        single = [clip.encode_image(row[None]) for row in images], [clip.encode_text(row[None]) for row in token_ids]
    for expected, found in zip(
        map(torch.cat, single), (embed_images(clip, images, 4), embed_texts(clip, token_ids, 2)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not found.requires_grad
        assert not found.is_inference(), "an autograd graph may keep it"


def test_every_pass_has_the_same_size_and_the_number_of_rows_is_not_seen(clip, images, monkeypatch):
    whole = embed_images(clip, images, 8)
    shapes = passes_of(monkeypatch, clip, "encode_image")
    for count in range(1, 12):
        assert torch.equal(embed_images(clip, images[:count], 8), whole[:count])
    assert {shape[0] for shape in shapes} == {8}


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_rows_features_do_not_depend_on_its_place(clip, images):
    """What `cache_teacher.chunk_size` must be a multiple of 8 for: in another order and other passes, bitwise."""
    token_ids = clip.tokenize([f"{caption} {number}" for caption in CAPTIONS for number in range(3)])
    for embed, rows in ((embed_images, images), (embed_texts, token_ids)):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        assert torch.equal(embed(clip, rows, 8)[order], embed(clip, rows[order], 8))


@pytest.mark.parametrize(("multiple", "lengths"), [(1, [4, 7, 20]), (16, [16, 16, 32]), (80, [77, 77, 77])])
def test_sorted_texts_are_cut_at_the_longest_of_their_pass(clip, monkeypatch, multiple, lengths):
    """Passes of two; the captions need 4, 7, 2, 20 and 4 tokens, start and end included."""
    token_ids = clip.tokenize(CAPTIONS)
    assert clip.text_lengths(token_ids).tolist() == [4, 7, 2, 20, 4]
    expected = embed_texts(clip, token_ids, 2)
    shapes = passes_of(monkeypatch, clip, "encode_text")
    found = embed_texts_by_length(clip, token_ids, 2, multiple=multiple)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert shapes == [(2, length) for length in lengths]


def test_texts_that_cannot_be_cut_are_whole(tmp_path):
    clip = model.load(write_tiny_hf_clip(tmp_path / "model", pooler="mean_pooler", model_type="bert"))
    clip.text_cut_refusal = "padding counts"
    token_ids = clip.tokenize(CAPTIONS)
    assert torch.equal(embed_texts_by_length(clip, token_ids, 8), embed_texts(clip, token_ids, 8))


def test_whoever_watches_sees_every_row_once_and_may_stop(clip):
    token_ids, seen = clip.tokenize(CAPTIONS), []

    def watch(passes):
        for rows in passes:
            seen.append(rows.tolist())
            yield rows

    def stop(passes):
        yield passes[0]
        raise KeyboardInterrupt

    embed_texts_by_length(clip, token_ids, 2, watch=watch)
    assert seen == [[2, 0], [4, 1], [3]]
    with pytest.raises(KeyboardInterrupt):
        embed_texts_by_length(clip, token_ids, 2, watch=stop)


def test_no_rows_have_no_features(clip, images):
    token_ids = clip.tokenize(CAPTIONS)
    for embed, rows in ((embed_images, images), (embed_texts, token_ids), (embed_texts_by_length, token_ids)):
        assert embed(clip, rows[:0], 8).shape == (0, clip.embed_dim)


@pytest.mark.parametrize(
    ("lengths", "multiple", "expected"),
    [([3, 9], 16, 16), ([17], 16, 32), ([70], 16, 77), ([9, 2], 1, 9), ([], 16, 16)],
)
def test_cuts_are_rounded_up_within_the_context(lengths, multiple, expected):
    assert cut_length(torch.tensor(lengths), 77, multiple) == expected
