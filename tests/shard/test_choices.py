"""Choices in shards: ordinary samples and a table beside them; what is not scored is counted, named and kept apart."""

import json
from pathlib import Path

import pytest

from pipeline_lib.core import artifacts, shards
from pipeline_lib.core.choices import TABLE, read_choices
from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.settings import EvaluationSet
from tests.small_sets import data, image_file, images_of, listed, sugarcrepe, winoground, write, write_shards

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def write_sets(trained_on=b"", fingerprint="test", **limits):
    """Shards of a training part, and of the sets `crepe` and `wino` below `sets` as far as they lie there."""
    found = {"crepe": "caption_choice", "wino": "image_pairs"}
    sets = {name: EvaluationSet(format=kind, path=name) for name, kind in found.items() if Path("sets", name).exists()}
    write(Path("train/a.png"), trained_on or image_file(100, "PNG"))
    write(Path("train/set.jsonl"), '{"image": "a.png", "caption": "x"}\n')
    section = data("train", "jsonl", parts={"refine": 1.0}, evaluation_root="sets", evaluation=sets)
    return write_shards(section, fingerprint=fingerprint, **{"max_bad_share": 0.5, **limits})


def table(name):
    return list(read_choices(Path("shards", name)))


def test_choices_stand_beside_ordinary_samples_whose_captions_stay_empty():
    sugarcrepe(Path("sets/crepe"))
    winoground(Path("sets/wino"))
    manifest = write_sets()
    for name, images, choices in (("crepe", 6, 12), ("wino", 10, 5)):
        part = shards.read_part(Path("shards", name))
        assert len(images_of(name)) == part.num_samples == images
        assert all(entry.captions == () for entry in part.entries())
        assert part.num_captions == 0
        keys = {entry.key for entry in part.entries()}
        assert len(part.choices) == choices
        assert all(key in keys for choice in part.choices for key in choice.images)
        counts = {"read": choices, "used": choices, "left_out": 0, "unanswerable": 0}
        assert part.manifest["choices"] == counts
        assert part.manifest["files"][TABLE]["sha256"] == artifacts.sha256_file(Path("shards", name, TABLE))
        assert manifest["numbers"][name] | {f"choices_{k}": v for k, v in counts.items()} == manifest["numbers"][name]
        assert artifacts.verify(Path("shards", name)) == artifacts.verify(Path("shards")) == []
    assert "choices" not in shards.read_part(Path("shards/refine")).manifest
    assert not any(key.startswith("choices") for key in manifest["numbers"]["refine"])


def test_the_choices_of_a_bad_image_are_left_out_counted_and_named(caplog):
    sugarcrepe(Path("sets/crepe"))
    winoground(Path("sets/wino"))
    Path("sets/coco/val2017/000000000000.jpg").write_bytes(b"broken")
    Path("sets/wino/images/ex_3_img_1.png").unlink()
    write_sets()
    for name, gone in (("crepe", {"add_att/0", "add_att/18", "swap_obj/0"}), ("wino", {"30"})):
        part, found = shards.read_part(Path("shards", name)), table(name)
        counts = part.manifest["choices"]
        assert counts["read"] == len(found) == counts["used"] + counts["left_out"]
        assert {choice.key for choice in found if choice.left_out} == gone
        assert [choice.key for choice in part.choices] == [choice.key for choice in found if choice.key not in gone]
        assert f"{name}: {len(gone)} of {len(found)} choices left out: {min(gone)}: its image" in caplog.text
    assert table("crepe")[0].left_out == "its image `000000000000` was left out: not an image in a known format"
    assert [row["key"] for row in listed("quarantine.jsonl")] == ["000000000000", "ex_3_img_1"]


def test_the_choices_of_an_image_that_was_trained_on_are_left_out():
    winoground(Path("sets/wino"))
    write_sets(trained_on=Path("sets/wino/images/ex_2_img_0.png").read_bytes(), max_overlap_share=0.1)
    left_out = {choice.key: choice.left_out for choice in table("wino") if choice.left_out}
    assert left_out == {"20": "its image `ex_2_img_0` was left out: the same picture is in refine"}
    assert len(shards.read_part(Path("shards/wino")).choices) == 4


def own(*rows):
    lines = [
        {"image": "a.png", "captions": ["x"], "negatives": ["y"], "key": str(n), **row} for n, row in enumerate(rows)
    ]
    write(Path("sets/crepe/own.jsonl"), "".join(json.dumps(line) + "\n" for line in lines))
    write(Path("sets/crepe/a.png"), image_file(0, "PNG"))


def test_bad_texts_are_left_out_up_to_a_share(caplog):
    own({}, {"negatives": [" "]}, {"captions": ["x" * 201]}, {"captions": ["x", "y"]})
    write_sets()
    reasons = ["", "an empty text", "a text is longer than shard.max_caption_chars", ""]
    assert [choice.left_out for choice in table("crepe")] == reasons
    assert shards.read_part(Path("shards/crepe")).manifest["choices"] == {
        "read": 4,
        "used": 2,
        "left_out": 2,
        "unanswerable": 1,
    }
    assert "crepe: 1 of 4 choices have the same on both sides, so that every model gets them wrong: 3" in caplog.text
    with pytest.raises(
        UserError, match=r"crepe: 2 of the 4 choices cannot be scored, 2 for their texts \(shard.max_bad"
    ):
        write_sets(max_bad_share=0.4)


def test_a_set_of_which_no_choice_is_left_is_refused():
    winoground(Path("sets/wino"), count=2)
    for n in range(2):
        Path(f"sets/wino/images/ex_{n}_img_1.png").unlink()
    with pytest.raises(
        UserError, match=r"wino: 2 of the 2 choices cannot be scored, 0 for their texts .*: 0: its image"
    ):
        write_sets()


def test_equal_bytes_unless_a_text_changes_and_nothing_of_a_killed_run():
    sugarcrepe(Path("sets/crepe"))
    write(Path(".checkpoints/shard-test/output/refine", TABLE), "of another plan")
    first = write_sets()
    assert not Path("shards/refine", TABLE).exists()
    assert write_sets(fingerprint="again") == first
    path = Path("sets/crepe/swap_obj.json")
    path.write_text(path.read_text().replace("wrong 3", "false 3"))
    other = write_sets(fingerprint="other")["parts"]
    assert other["crepe"] != first["parts"]["crepe"], "the table is part of the digest"
    assert other["refine"] == first["parts"]["refine"]
