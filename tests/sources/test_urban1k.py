"""Urban1k: image and caption of one name belong together, and the first line is the caption."""

import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.unnamed import find_unnamed
from tests.small_sets import image_file, open_for_evaluation, urban1k, write


def test_urban1k_is_joined_by_name_in_the_order_of_the_numbers(tmp_path):
    source = open_for_evaluation(urban1k(tmp_path / "Urban1k"), "urban1k")
    samples = list(source.samples)
    assert [sample.key for sample in samples] == [str(n) for n in range(1, 13)]
    for n, sample in enumerate(samples, 1):
        assert sample.captions == (f"Caption of {n}.",)
        assert sample.image.read() == image_file(n)
    assert source.facts == {"format": "urban1k", "captions": "first line", "files_with_more_lines": 4}


def test_what_has_no_partner_is_named_and_never_joined_to_another(tmp_path):
    folder = urban1k(tmp_path / "set")
    (folder / "image/3.jpg").rename(folder / "image/3.png")
    (folder / "caption/5.txt").unlink()
    (folder / "image/6.jpg").unlink()
    write(folder / "caption/7.txt", "")
    write(folder / "caption/8.txt", b"\xff\n")
    write(folder / "caption/notes.md", "x")
    source = open_for_evaluation(folder, "urban1k")
    samples = {sample.key: sample for sample in source.samples}
    assert samples.keys() == {str(n) for n in range(1, 13)} - {"5", "7", "8"}
    assert samples["3"].image.read() == image_file(3)
    with pytest.raises(FileNotFoundError):
        samples["6"].image.read()
    assert [reason for _, reason in source.rows.bad] == [
        "7.txt: its first line is empty",
        "8.txt: its first line is not UTF-8",
    ]
    assert source.ignored == {"not read: .md": 1}
    assert find_unnamed(source.image_folder, source.all_samples).first == ("5.jpg", "7.jpg", "8.jpg")


def test_what_is_not_urban1k(tmp_path):
    folder = urban1k(tmp_path / "set")
    write(folder / "image/2.png", image_file(2, "PNG"))
    with pytest.raises(UserError, match=r"image has 2.jpg and 2.png; which of them has the caption\?"):
        open_for_evaluation(folder, "urban1k")
    with pytest.raises(UserError, match=r"data.evaluation.s.path: no folder caption in .*image"):
        open_for_evaluation(folder / "image", "urban1k")
