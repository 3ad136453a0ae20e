"""`clip-refine init` reads a folder by the readers of the formats, and writes a params.yaml that passes every check."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipeline_lib.core.errors import UserError
from pipeline_lib.setup import begin, verify
from pipeline_lib.sources.formats import open_evaluation_set
from pipeline_lib.sources.settings import EvaluationSet
from tests import small_sets
from tests.tiny_project import write_set

ROOT = Path(__file__).parents[2]


def own_choices(folder):
    row = {"image": "a.jpg", "captions": ["A red bike."], "negatives": ["A blue bike."]}
    return small_sets.jsonl(folder, [row])


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the project's own params.yaml."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("write", "name", "captions"),
    [
        (lambda place: small_sets.coco(place), "coco", 2 * (5 + 6 + 7)),
        (lambda place: write_set(place, 12), "jsonl", 30),
        (lambda place: small_sets.flickr(place), "flickr", None),
        (lambda place: small_sets.docci(place), "docci", 6),
        (lambda place: small_sets.sharegpt4v(place), "sharegpt4v", 6),
        (lambda place: small_sets.img2dataset(place), "webdataset", 6),
        (lambda place: small_sets.hugging_face(place), "hugging_face", 12),
        (lambda place: small_sets.image_folder(place), "image_folder", 6),
    ],
)
def test_a_folder_is_known_by_its_files(project, write, name, captions):
    write(project / "set")
    found = begin.look_at(project / "set")
    assert found.format == name
    assert captions is None or found.num_captions == captions


def test_what_is_written_passes_every_check(project, capsys):
    write_set(project / "set", 60)
    begin.main(["set", "--model", "ViT-B-32-quickgelu"])
    said = capsys.readouterr().out
    assert "set: jsonl, 60 images, 150 captions" in said
    assert "ViT-B-32-quickgelu: 151 M weights" in said  # as OpenAI's paper and open_clip's own table have it
    params = yaml.safe_load((project / "params.yaml").read_text())
    assert params["data"]["format"] == "jsonl"
    assert params["data"]["parts"] == {"refine": 0.7, "val": 0.1, "eval": 0.2}
    assert params["base"]["source"] == "open_clip"
    assert params["recipes"] == yaml.safe_load((ROOT / "params.yaml").read_text())["recipes"]  # the rest stays
    assert (project / "params.yaml.former").read_bytes() == (ROOT / "params.yaml").read_bytes()
    verify.main([])
    assert "nothing to mend" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("write", "keys"),
    [
        (small_sets.urban1k, "format: urban1k"),
        (small_sets.xm3600, "format: xm3600"),
        (small_sets.clip_benchmark, "format: clip_benchmark"),
        (small_sets.winoground, "format: image_pairs"),
        (own_choices, "format: caption_choice"),
    ],
)
def test_a_set_to_evaluate_on_is_named_with_what_to_write(project, write, keys):
    """Some look like folders of classes, or like captions of one's own: nothing is trained on them."""
    write(project / "set")
    with pytest.raises(UserError, match=rf"^set: a set to evaluate on, in .*{keys}, path: set.* to train on$") as error:
        begin.look_at(Path("set"))
    written = yaml.safe_load(str(error.value).split("`")[1])
    sets = {name: EvaluationSet(**values) for name, values in written.items()}
    source = open_evaluation_set(small_sets.data(".", "jsonl", evaluation=sets), "set")
    assert len(list(source.samples)) > 0


def test_a_folder_of_no_format_says_what_each_misses(project):
    (project / "set").mkdir()
    with pytest.raises(UserError) as error:
        begin.look_at(project / "set")
    assert all(f"\n- {name}: " in str(error.value) for name in (*begin.EVALUATED, *begin.FORMATS))
    assert (project / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_images_that_are_missing_are_no_set(project):
    write_set(project / "set", 12)
    (project / "set/0003.png").unlink()
    with pytest.raises(UserError, match=r"jsonl: .*0003\.png: No such file"):
        begin.look_at(project / "set")


@pytest.mark.parametrize(
    ("pairs", "batch", "rate"),
    [(118_287, 512, 1e-6), (1_536, 64, 1e-5), (1_714, 64, 9e-6), (30, 16, 1e-5)],  # the first is the paper's
)
def test_batch_and_rate_lead_about_as_far_as_the_papers(pairs, batch, rate):
    assert begin.choose_steps(pairs) == {"refine.batch_size": batch, "refine.learning_rate": rate}


@pytest.mark.parametrize(("images", "eval_share"), [(100, 0.2), (10_000, 0.1), (1_000_000, 0.01)])
def test_the_test_set_is_large_enough_and_no_larger_than_a_fifth(images, eval_share):
    parts = begin.choose_parts(begin.Found("jsonl", images, images, ()))
    assert parts["eval"] == eval_share
    assert sum(parts.values()) == pytest.approx(1)


def test_a_set_with_splits_of_its_own_keeps_them():
    parts = begin.choose_parts(begin.Found("coco", 100, 500, ("train", "restval", "val", "test")))
    assert parts == {"refine": "train", "val": "val", "eval": "test"}
    parts = begin.choose_parts(begin.Found("docci", 10_000, 10_000, ("train", "test", "qual_dev", "qual_test")))
    assert parts == {"refine": 0.9, "val": 0.1, "eval": "test"}
