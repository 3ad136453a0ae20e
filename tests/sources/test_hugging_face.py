"""Layouts of Hugging Face's datasets: parquet, saved to disk, image folders; what their rows may lack or get wrong."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import arrow
from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.parts import split
from tests.small_sets import (
    assert_refused,
    data,
    hugging_face,
    image_file,
    images_of,
    listed,
    open_for_evaluation,
    parquet,
    write,
    write_shards,
)

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
LABEL = {"label": {"names": ["cat", "hot dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}


@pytest.fixture(autouse=True)
def _no_open_tables():
    """Tests write other tables under the same names."""
    yield
    arrow.open_table.cache_clear()
    arrow._images.cache_clear()


def row(n, **more):
    return {"image": {"bytes": image_file(n), "path": f"{n}.jpg"}, "text": f"caption {n}", **more}


def read(root, **changes):
    return open_source(data(root, "hugging_face", **changes))


def saved(folder: Path, rows, names=("data-00000-of-00001.arrow",), **state) -> Path:
    """What `Dataset.save_to_disk` writes: streams of record batches, and a state that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for turn, name in enumerate(names):
        table = pa.Table.from_pylist(rows[turn :: len(names)])
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    about = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None, **state}
    write(folder / "state.json", json.dumps(about))
    write(folder / "dataset_info.json", "{}")
    return folder


# Parquet


def test_parquet_of_the_hub_with_its_splits(tmp_path):
    """Names of files and folders as the hub has them; the images bit by bit, also after a trip to a worker."""
    parquet(tmp_path / "data/train-00000-of-00002.parquet", [row(n) for n in range(3)])
    parquet(tmp_path / "data/train-00001-of-00002-abc.parquet", [row(n) for n in range(3, 5)])
    parquet(tmp_path / "default/validation/0000.parquet", [row(5)])
    parquet(tmp_path / "my_test.parquet", [row(6)])
    source = read(tmp_path)
    samples = list(source.samples)
    assert [(s.key, s.captions, s.split) for s in samples] == [
        *((str(n), (f"caption {n}",), "train") for n in range(5)),
        ("5", ("caption 5",), "validation"),
        ("6", ("caption 6",), "test"),
    ]
    assert [pickle.loads(pickle.dumps(s.image)).read() for s in samples] == [image_file(n) for n in range(7)]
    assert [s.image.size for s in samples] == [len(image_file(n)) for n in range(7)]
    assert (source.rows.read, source.rows.bad) == (7, [])
    parts = split(source.samples, {"refine": "train", "val": "validation", "eval": "test"})
    assert {name: len(found) for name, found in parts.items()} == {"refine": 5, "val": 1, "eval": 1}


@pytest.mark.parametrize("paths", [["a.jpg", "a.jpg"], [None, "a.jpg"], [None, None]])
def test_rows_without_paths_of_their_own_have_keys_by_their_place(paths, tmp_path):
    rows = [{"image": {"bytes": image_file(n), "path": path}, "text": "x"} for n, path in enumerate(paths)]
    parquet(tmp_path / "data/train.parquet", rows)
    assert [s.key for s in read(tmp_path).samples] == ["data/train/0", "data/train/1"]


@pytest.mark.parametrize(
    ("values", "named", "captions"),
    [
        ({"caption": "a"}, None, ("a",)),
        ({"sentences": ["a", "b"]}, None, ("a", "b")),
        ({"caption_0": "a", "caption_1": "b", "filename": "x"}, None, ("a", "b")),
        ({"text": "a", "caption": "b"}, "caption", ("b",)),
        ({"alt": "a", "more": ["b", " "]}, "alt, more", ("a", "b")),
    ],
)
def test_which_columns_are_captions(values, named, captions, tmp_path):
    parquet(tmp_path / "train.parquet", [{"image": {"bytes": image_file(0), "path": "a.jpg"}, **values}])
    [sample] = read(tmp_path, annotations=named).samples
    assert sample.captions == captions
    [sample] = open_for_evaluation(tmp_path, "hugging_face", annotations=named).samples
    assert sample.captions == captions


def test_images_of_bytes_alone_and_a_file_as_root(tmp_path):
    rows = [{"jpg": image_file(n), "photo_id": b"x", "text": "a"} for n in range(2)]
    path = parquet(tmp_path / "any.parquet", rows)
    assert [s.image.read() for s in read(path).samples] == [image_file(0), image_file(1)]
    assert [s.key for s in read(path).samples] == ["any/0", "any/1"]


def test_class_labels_are_a_task_to_evaluate(tmp_path):
    rows = [{"image": row(n)["image"], "label": n % 2 if n else -1} for n in range(4)]
    parquet(tmp_path / "set/test-00000-of-00001.parquet", rows, LABEL)
    source = open_for_evaluation(tmp_path / "set", "hugging_face", split="test")
    assert (source.captioned, source.labelled) == (False, True)
    assert source.tasks["class"].classnames == ("cat", "hot dog")
    assert [dict(s.labels) for s in source.samples] == [{}, {"class": 1}, {"class": 0}, {"class": 1}]
    assert_refused(r"data.annotations: which column of .* holds the captions\? none has a usual name", tmp_path / "set",
                   "hugging_face")  # fmt: skip


# Saved to disk


def test_a_set_saved_to_disk_with_and_without_splits(tmp_path):
    rows = [row(n) for n in range(5)]
    saved(tmp_path / "one", rows, names=("data-00000-of-00002.arrow", "data-00001-of-00002.arrow"))
    assert [(s.captions, s.image.read()) for s in read(tmp_path / "one").samples] == [
        ((f"caption {n}",), image_file(n)) for n in (0, 2, 4, 1, 3)
    ]
    write(tmp_path / "all/dataset_dict.json", '{"splits": ["train", "test"]}')
    saved(tmp_path / "all/train", rows[:3])
    saved(tmp_path / "all/test", rows[3:])
    assert [(s.key, s.split) for s in read(tmp_path / "all").samples] == [
        *((str(n), "train") for n in range(3)),
        *((str(n), "test") for n in range(3, 5)),
    ]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_dict.json", "null", "dataset_dict.json: expected an object, found NoneType"),
        ("dataset_dict.json", "{}", r"dataset_dict.json: expected \{"),
        ("dataset_dict.json", '{"splits": [1]}', r"dataset_dict.json: expected \{"),
        ("dataset_dict.json", '{"splits": ["."]}', r"dataset_dict.json: expected \{|state.json: cannot be read"),
        ("dataset_dict.json", '{"splits": ["../other"]}', r"dataset_dict.json: expected \{"),
        ("dataset_dict.json", '{"splits": ["train", "gone"]}', "gone/state.json: cannot be read"),
        ("dataset_dict.json", json.dumps({"splits": ["a" * 300]}), "state.json: cannot be read"),
        ("dataset_dict.json", '{"splits": ["half \\ud800"]}', "state.json: cannot be read"),
        ("train/state.json", "[]", "state.json: expected an object, found list"),
        ("train/state.json", "{}", r"state.json: expected \{"),
        ("train/state.json", '{"_data_files": true}', r"state.json: expected \{"),
        ("train/state.json", '{"_data_files": [1]}', r"state.json: expected \{"),
        ("train/state.json", '{"_data_files": [{"filename": "../a.arrow"}]}', r"state.json: expected \{"),
        ("train/state.json", '{"_data_files": [{"filename": "\\ud800"}]}', "not a whole file of Arrow's"),
    ],
)
def test_what_names_no_files_of_a_saved_set_is_refused(file, content, message, tmp_path):
    """Nothing that it names is left out in silence."""
    saved(tmp_path / "train", [row(0)])
    write(tmp_path / "dataset_dict.json", '{"splits": ["train"]}')
    assert len(list(read(tmp_path).samples)) == 1
    write(tmp_path / file, content)
    assert_refused(message, tmp_path, "hugging_face")


def test_texts_that_lead_out_of_a_saved_file_are_refused(tmp_path):
    """Its offsets are mapped into memory as they are."""
    file = saved(tmp_path, [row(0), row(1)]) / "data-00000-of-00001.arrow"
    offsets, far = (np.array([0, 9, end], np.int32).tobytes() for end in (18, 2**31 - 1))  # of two texts
    assert file.read_bytes().count(offsets) == 1
    file.write_bytes(file.read_bytes().replace(offsets, far))
    assert_refused("data-00000-of-00001.arrow: broken in group 0", tmp_path, "hugging_face")


def test_rows_chosen_by_an_index_file_are_refused(tmp_path):
    """The tables hold all rows, and not in their order: they are not the set that was saved."""
    saved(tmp_path / "set", [row(0)], _indices_data_files=[{"filename": "indices.arrow"}])
    assert_refused(r"a file of indices; save dataset.flatten_indices\(\) instead", tmp_path / "set", "hugging_face")


# Image folders


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_image_folder_with_its_metadata_by_split(kind, tmp_path):
    """Two captions of one image are one sample; bad rows are named."""
    for part, numbers in (("train", (0, 1)), ("test", (2,))):
        rows = [{"file_name": f"deep/{n}.jpg", "text": f'a "{n}", said'} for n in numbers]
        rows.append({"file_name": f"deep/{numbers[0]}.jpg", "text": "again"})
        if part == "train":
            rows.append({"file_name": "../../secret.jpg", "text": "x"})
        for n in numbers:
            write(tmp_path / part / f"deep/{n}.jpg", image_file(n))
        if kind == "csv":
            quoted = [f'{r["file_name"]},"{r["text"].replace(chr(34), chr(34) * 2)}"' for r in rows]
            write(tmp_path / part / "metadata.csv", "\n".join(["file_name,text", *quoted]))
        elif kind == "jsonl":
            write(tmp_path / part / "metadata.jsonl", "\n".join(map(json.dumps, rows)) + "\n{\n")
        else:
            parquet(tmp_path / part / "metadata.parquet", rows)
    source = read(tmp_path)
    assert [(s.key, s.captions, s.split, s.image.read()) for s in source.samples] == [
        ("test/deep/2", ('a "2", said', "again"), "test", image_file(2)),
        ("train/deep/0", ('a "0", said', "again"), "train", image_file(0)),
        ("train/deep/1", ('a "1", said',), "train", image_file(1)),
    ]
    reasons = [reason for _, reason in source.rows.bad]
    assert len(reasons) == (3 if kind == "jsonl" else 1)
    assert any("'../../secret.jpg' is no file below" in reason for reason in reasons)


def test_a_name_with_half_of_a_pair_is_that_of_a_missing_file(tmp_path):
    write(tmp_path / "metadata.jsonl", '{"file_name": "half \\ud800.jpg", "text": "x"}\n')
    [sample] = read(tmp_path).samples
    assert sample.key == "half \\ud800"
    with pytest.raises(FileNotFoundError):
        sample.image.read()


# What is wrong


def broken(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: write(d / "a.txt", "x"), "no parquet, no state.json and no metadata file; name a folder"),
        (
            lambda d: (hugging_face(d), write(d / "metadata.csv", "file_name,text\n")),
            "files of imagefolder and parquet",
        ),
        (
            lambda d: (write(d / "metadata.csv", "x"), write(d / "metadata.jsonl", "x")),
            "metadata.jsonl or metadata.csv",
        ),
        (lambda d: broken(parquet(d / "a.parquet", [row(0)])), "a.parquet: not a whole file of Arrow's"),
        (lambda d: parquet(d / "a.parquet", [row(0, caption="y")]), "data.annotations: .* several have usual names"),
        (lambda d: parquet(d / "a.parquet", [{"text": "x"}]), "data.images: .* none has a usual name.*: none"),
        (lambda d: parquet(d / "a.parquet", [row(0, mask=row(1)["image"])]), "data.images: .* several .*: image, mask"),
        (
            lambda d: (
                parquet(d / "a.parquet", [row(0)]),
                parquet(d / "b.parquet", [{"img": image_file(0), "text": "x"}]),
            ),
            "b.parquet has other columns than .*a.parquet",
        ),
        (lambda d: write(d / "metadata.jsonl", '{"image": "a.jpg"}\n'), "metadata.jsonl: line 1: expected"),
    ],
)
def test_what_is_no_set_of_datasets(make, message, tmp_path):
    make(tmp_path)
    assert_refused(message, tmp_path, "hugging_face")


def test_named_columns_must_be_there(tmp_path):
    parquet(tmp_path / "a.parquet", [row(0)])
    assert_refused("data.annotations: .* `title` is none; columns of that type: text", tmp_path, "hugging_face",
                   annotations="title")  # fmt: skip
    assert_refused("data.images: .* `photo` is none", tmp_path, "hugging_face", images="photo")


def test_a_row_group_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "MAX_GROUP_BYTES", 100)
    parquet(tmp_path / "a.parquet", [row(0)])
    assert_refused("a row group of [0-9]+ bytes; write it again with row_group_size=100", tmp_path, "hugging_face")


def test_bad_rows_are_quarantined_by_shard(tmp_path, in_a_folder_of_its_own):
    """No image, a path outside, a broken image, no caption; a path below the folder is read."""
    write(Path("set/data/beside.jpg"), image_file(50))
    write(Path("secret.jpg"), image_file(51))
    rows = [
        {"image": None, "text": "none"},
        *(row(n) for n in range(20)),
        {"image": {"bytes": None, "path": "beside.jpg"}, "text": "beside"},
        {"image": {"bytes": None, "path": "../../secret.jpg"}, "text": "outside"},
        {"image": {"bytes": b"no image", "path": "broken.jpg"}, "text": "broken"},
        {"image": {"bytes": image_file(60), "path": "60.jpg"}, "text": None},
    ]
    parquet(Path("set/data/train-00000-of-00001.parquet"), rows)
    section = data("set", "hugging_face", parts={"refine": 1.0})
    write_shards(section, max_bad_share=0.5)
    found = images_of("refine")
    assert len(found) == 21
    assert {image_file(0), image_file(19), image_file(50)} <= set(found.values())
    quarantined = {each["key"]: each["reason"] for each in listed("quarantine.jsonl")}
    assert sorted(reason[:16] for reason in quarantined.values()) == [
        "no image in its ", "no image in its ", "not an image in ", "only empty capti",
    ]  # fmt: skip


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    parquet(tmp_path / "a.parquet", [row(0)])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"a.parquet: needs the package pyarrow; pip install it"):
        read(tmp_path)
