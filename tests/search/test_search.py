"""Search finds what the models' own features say, in that order; the page holds it, and no markup of a query."""

import shutil
import subprocess
import threading

import pytest
import torch
from werkzeug.serving import make_server

from pipeline_lib import model
from pipeline_lib.core import config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.search.__main__ import main
from pipeline_lib.search.pictures import Pictures
from pipeline_lib.search.server import make_app
from tests.tiny_project import draw

QUERY = "a red circle"


def places(project):
    """Where a project's models lie, as absolute paths."""
    found = config.load(project / "params.yaml", Paths)
    return Paths(**{name: project / getattr(found, name) for name in Paths.__slots__})


@pytest.fixture(scope="module")
def paths(chosen):
    return places(chosen)


def by_hand(folder, images, query=QUERY):
    """The images' places, best first, by cosine in float64."""
    clip = model.load(folder)
    pixels = torch.stack([torch.from_numpy(clip.decode(image, 10**6)) for image in images])
    with torch.inference_mode():
        image = torch.nn.functional.normalize(clip.encode_image(pixels).double())
        text = torch.nn.functional.normalize(clip.encode_text(clip.tokenize([query])).double())
    return (image @ text.T)[:, 0].argsort(descending=True).tolist()


def test_a_folder_is_searched_as_by_hand(tmp_path, paths):
    for number in range(12):
        draw(tmp_path / f"{number:02d}.png", number)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    pictures = Pictures.of_folder(paths, tmp_path)
    assert pictures.names == [f"{number:02d}.png" for number in range(12)]
    found = pictures.search(QUERY, 5)
    images = [(tmp_path / name).read_bytes() for name in pictures.names]
    expected = {name: by_hand(folder, images) for name, folder in (("base", paths.base), ("refined", paths.refined))}
    for one, other in (("base", "refined"), ("refined", "base")):
        assert [hit.row for hit in found[one]] == expected[one][:5]
        assert [hit.other_place for hit in found[one]] == [expected[other].index(hit.row) + 1 for hit in found[one]]


def test_a_set_that_was_evaluated_has_its_features(paths):
    pictures = Pictures.of_set(paths, "eval")
    images = [pictures._read(row) for row in range(len(pictures))]
    found = pictures.search(QUERY, len(pictures))
    assert [hit.row for hit in found["refined"]] == by_hand(paths.refined, images)


def test_each_model_reads_a_query_by_its_own_text_side(joined_project, tmp_path):
    """The base by its text tower, the refined one by a language model; as by hand, of a set and of a folder."""
    paths = places(joined_project)
    for number in range(6):
        draw(tmp_path / f"{number:02d}.png", number)
    for pictures in (Pictures.of_set(paths, "eval"), Pictures.of_folder(paths, tmp_path)):
        images = [pictures._read(row) for row in range(len(pictures))]
        found = pictures.search(QUERY, len(pictures))
        for one, folder in (("base", paths.base), ("refined", paths.refined)):
            assert [hit.row for hit in found[one]] == by_hand(folder, images)


def test_an_unknown_set_and_an_empty_folder_are_refused(tmp_path, paths):
    with pytest.raises(UserError, match=r"^--set: `tests` was not evaluated; there are .*eval"):
        Pictures.of_set(paths, "tests")
    with pytest.raises(UserError, match="no image in it that can be decoded"):
        Pictures.of_folder(paths, tmp_path)


@pytest.fixture(scope="module")
def pictures(paths):
    return Pictures.of_set(paths, None)


def test_the_page_holds_what_was_found_and_no_markup_of_a_query(pictures):
    page = make_app(pictures).test_client()
    text = page.get("/", query_string={"query": "<script>alert(1)</script>"}).text
    assert "<script>" not in text
    assert text.count("<li>") == 2 * 12
    image = page.get(f"/image/{len(pictures) - 1}")
    assert image.mimetype == "image/jpeg"
    assert image.data[:2] == b"\xff\xd8"
    assert page.get(f"/image/{len(pictures)}").status_code == 404
    assert page.get("/", headers={"Host": "elsewhere.example"}).status_code == 400


def test_the_command_prints_what_each_model_finds(chosen, monkeypatch, capsys, pictures):
    monkeypatch.chdir(chosen)
    main([QUERY, "--print"])
    lines = capsys.readouterr().out.splitlines()
    first = pictures.search(QUERY, 1)
    assert [line.split(" (")[0] for line in lines] == [f"{one}: {first[one][0].name}" for one in ("base", "refined")]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_a_browser_shows_both_models_images(pictures, tmp_path):
    server = make_server("127.0.0.1", 0, make_app(pictures), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shot = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", f"--screenshot={shot}"]
    address = f"http://127.0.0.1:{server.port}/?query=a+red+circle"
    dumped = subprocess.run(["chromium", *options, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert dumped.stdout.count("<img") == 24
    assert "<h2>refined</h2>" in dumped.stdout
