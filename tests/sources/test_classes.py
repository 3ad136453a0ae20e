"""Which folder is which class: ImageNet's ids, numbers by value, names by folder or position; and what is refused."""

import json

import pytest
from torchvision.models import ResNet18_Weights

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import prompts_digest
from pipeline_lib.sources.classes import name_folders
from pipeline_lib.sources.imagenet import imagenet_names
from tests.small_sets import clip_benchmark, image_folder, jsonl, open_for_evaluation, write

TEN_AND_MORE = [str(number) for number in range(12)]
WORDS = [f"class {number}" for number in range(12)]
BY_VALUE = dict(zip(TEN_AND_MORE, WORDS, strict=True))


def test_imagenets_ids_and_names_are_in_the_order_of_the_labels():
    """torchvision keeps a list of its own, in which 296 names are worded otherwise; the rest has the same labels."""
    found = [name.lower() for name in imagenet_names().values()]
    others = [name.lower() for name in ResNet18_Weights.DEFAULT.meta["categories"]]
    assert list(imagenet_names()) == sorted(imagenet_names())
    assert sum(a == b for a, b in zip(found, others, strict=True)) == 704
    elsewhere = {name for label, name in enumerate(found) if name in others and others[label] != name}
    assert elsewhere == {"missile", "sunglasses"}, "the two that stand twice"


@pytest.mark.parametrize(
    ("folders", "files", "expected"),
    [
        (["n01443537", "n01440764"], {}, {"n01440764": "tench", "n01443537": "goldfish"}),
        (["n01443537", "n01440764"], {"classnames.txt": "a\nb"}, {"n01440764": "a", "n01443537": "b"}),
        (sorted(TEN_AND_MORE), {"classnames.txt": "\n".join(WORDS) + "\n\n"}, BY_VALUE),
        (["02", "00", "01"], {}, {"00": "00", "01": "01", "02": "02"}),
        (sorted(map(str, range(1000))), {}, dict(zip(map(str, range(1000)), imagenet_names().values(), strict=True))),
        (["1990", "300"], {"classnames.json": {"1990": "new", "300": "old"}}, {"300": "old", "1990": "new"}),
        (["n01440764", "x"], {"classnames.json": {"x": " X ", "n01440764": "fish"}}, {"n01440764": "fish", "x": "X"}),
        (["b", "a"], {"classnames.json": {"a": "A", "b": "B", "c": "C"}}, {"a": "A", "b": "B"}),
        (["wine_glass", "10 m"], {}, {"10 m": "10 m", "wine_glass": "wine glass"}),
        (["n02085620-Shih_Tzu", "n02085782-pug"], {}, {"n02085620-Shih_Tzu": "Shih Tzu", "n02085782-pug": "pug"}),
        (["002.Gull", "001.Black_Tern"], {}, {"001.Black_Tern": "Black Tern", "002.Gull": "Gull"}),
        (["1.5_litres", "2.0_litres"], {}, {"1.5_litres": "1.5 litres", "2.0_litres": "2.0 litres"}),
        (["3.x", "4.y"], {}, {"3.x": "3.x", "4.y": "4.y"}),
    ],
)  # fmt: skip
def test_names_of_folders(tmp_path, folders, files, expected):
    for name, content in files.items():
        write(tmp_path / name, content if isinstance(content, str) else json.dumps(content))
    assert list(name_folders(tmp_path, folders).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("folders", "files", "message"),
    [
        (["n01440764", "n01443537", "readme"], {}, "are WordNet ids and some are not, such as readme"),
        (["n01440764", "7"], {"classnames.txt": "a\nb"}, "are WordNet ids and some are not, such as 7"),
        (["n01440764", "n99999999"], {}, "1 of 2 class folders, such as n99999999, are none of ImageNet's"),
        (["0", "1", "3"], {}, "are numbers but not 0 to 2: 3 stands where 2 should"),
        (["1", "2"], {"classnames.txt": "a\nb"}, "are numbers but not 0 to 1: 1 stands where 0 should"),
        (["0", "1", "01"], {}, "are numbers but not 0 to 2: 01 stands where 2 should"),
        (["0", "1", "x"], {"classnames.txt": "a\nb\nc"}, "are numbers and some are not, so their order is in doubt"),
        (["a", "b"], {"classnames.txt": "A\n\nB"}, r"classnames.txt: line 2 is empty"),
        (["a", "b"], {"classnames.txt": "\n"}, r"classnames.txt: no names"),
        (["a", "b"], {"classnames.txt": "A"}, r"classnames.txt: 1 names, but .* has 2 class folders"),
        (["a", "b"], {"classnames.txt": "A\nB", "classnames.json": "{}"}, "keep the one that is right"),
        (["a", "b", "c"], {"classnames.json": '{"a": "A"}'}, "no name for 2 of 3 class folders, such as b"),
        (["a", "b"], {"classnames.json": '{"a": "A", "b": "B", "a": "C"}'}, "classnames.json: a stands twice"),
        (["a", "b"], {"classnames.json": '{"a": "A", "b": 2}'}, r"classnames.json: expected \{\"folder\""),
        (["a", "b"], {"classnames.json": '{"a": "A", "b": " "}'}, r"classnames.json: expected \{\"folder\""),
        (["a", "b"], {"classnames.json": "[]"}, r"classnames.json: expected \{\"folder\""),
        (["a", "b"], {"classnames.json": "true"}, r"classnames.json: expected \{\"folder\""),
        (["a", "b"], {"classnames.json": "{"}, r"classnames.json: not valid JSON"),
    ],
)  # fmt: skip
def test_names_that_would_be_a_guess_are_refused(tmp_path, folders, files, message):
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        name_folders(tmp_path, folders)


def test_imagenet_v2_keeps_the_label_of_each_folder(tmp_path, caplog):
    """Its folders are numbers; in the order of their text, 10 of these 12 would get the name of another class."""
    image_folder(tmp_path / "v2", classes=TEN_AND_MORE, count=1)
    write(tmp_path / "v2/classnames.txt", "\n".join(WORDS))
    with caplog.at_level("INFO"):
        opened = open_for_evaluation(tmp_path / "v2", "image_folder")
    task = opened.tasks["class"]
    for sample in opened.samples:
        assert task.classnames[sample.labels["class"]] == f"class {sample.key.split('/')[0]}"
    (line,) = caplog.messages
    assert line == (
        "data.evaluation.s: 12 classes: 0 -> class 0, 1 -> class 1, 2 -> class 2, …; 4 templates; "
        f"prompts {prompts_digest(task.classnames, task.templates)[:16]}"
    )


def test_names_of_two_classes_are_told(tmp_path, caplog):
    image_folder(tmp_path / "set", classes=("a", "b"))
    write(tmp_path / "set/classnames.txt", "crane\ncrane\n")
    with caplog.at_level("INFO"):
        open_for_evaluation(tmp_path / "set", "image_folder")
    assert caplog.messages[0].endswith("; names that stand more than once: crane")


@pytest.mark.parametrize("kind", ["image_folder", "clip_benchmark", "jsonl"])
def test_a_wordnet_id_is_no_name_wherever_it_stands(tmp_path, kind):
    ids = ["n01440764", "n99999999"]
    if kind == "image_folder":
        write(image_folder(tmp_path / "set", classes=ids) / "classnames.txt", "\n".join(ids))
    elif kind == "clip_benchmark":
        write(clip_benchmark(tmp_path / "set") / "classnames.txt", "\n".join(ids))
    else:
        jsonl(tmp_path / "set", [{"image": f"{n}.png", "caption": "x", "label": name} for n, name in enumerate(ids)])
    with pytest.raises(UserError, match="2 of 2 classes, such as n01440764, are named by WordNet ids"):
        open_for_evaluation(tmp_path / "set", kind)


def test_names_of_no_folder_are_told(tmp_path, caplog):
    write(tmp_path / "classnames.json", json.dumps({"a": "A", "b": "B", "hta": "hat"}))
    assert list(name_folders(tmp_path, ["a", "b"])) == ["a", "b"]
    assert "classnames.json: 1 of its 3 names are of no folder: hta" in caplog.text


def test_an_empty_file_of_templates_is_refused(tmp_path):
    write(image_folder(tmp_path / "set") / "templates.txt", "\n")
    with pytest.raises(UserError, match=r"templates.txt: no templates"):
        open_for_evaluation(tmp_path / "set", "image_folder")


def test_a_name_that_utf_8_cannot_hold_is_written_out(tmp_path):
    write(tmp_path / "classnames.json", '{"a": "half \\ud800", "b": "B"}')
    assert name_folders(tmp_path, ["a", "b"]) == {"a": "half \\ud800", "b": "B"}
