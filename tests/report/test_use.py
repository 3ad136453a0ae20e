"""The lines that a run ends with: they run as they stand, on every kind of result, and are those of README.md."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pipeline_lib import model
from pipeline_lib.report import __main__ as command
from pipeline_lib.report import use
from tests.tiny_model import write_tiny_clip, write_tiny_hf_clip, write_tiny_joined, write_tiny_timm_clip
from tests.tiny_project import ROOT


def photo(size=(50, 41), mode="RGB"):
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)
    return Image.fromarray(noise, "RGBA").resize(size).convert(mode)


def shown(folder: Path) -> str:
    """What the printed lines print, in a folder with the photo that they name."""
    lines = use.what_next(folder, Path("page")).split("Use it\n")[1].split("\n\nGo on")[0]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec("\n".join(line.removeprefix("    ") for line in lines.splitlines()), {})
    return said.getvalue()


def as_a_transformers_model(folder: Path) -> Path:
    config = json.loads((write_tiny_clip(folder) / model.CONFIG).read_text())
    config["preprocess_cfg"]["conventions"] = "transformers"
    (folder / model.CONFIG).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "write",
    [write_tiny_clip, write_tiny_hf_clip, write_tiny_timm_clip, as_a_transformers_model, write_tiny_joined],
)
def test_the_printed_lines_run_on_every_kind_of_result(write, tmp_path, monkeypatch):
    """From another folder, with no network; the probabilities are those of the pipeline's own features."""
    folder = write(tmp_path / "result")
    monkeypatch.chdir(tmp_path)
    photo().save("photo.jpg")
    clip = model.load(folder)
    with torch.no_grad():
        pixels = torch.from_numpy(clip.decode(Path("photo.jpg").read_bytes(), 10**6))[None]
        image = torch.nn.functional.normalize(clip.encode_image(pixels), dim=-1)
        texts = clip.encode_text(clip.tokenize(["a red bicycle", "two dogs on a hill"]))
        expected = (clip.logit_scale * image @ torch.nn.functional.normalize(texts, dim=-1).T).softmax(dim=-1)
    assert shown(folder) == f"{expected}\n"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_open_folder_gives_open_clip_s_own_parts(mode, tmp_path):
    """Pixels, ids and features bit by bit as plain open_clip has them for a native model."""
    folder = str(write_tiny_clip(tmp_path / "result"))
    ours, preprocess, tokenizer = model.open_folder(folder)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    image, texts = photo(mode=mode), ["A cat &amp; a dog", ""]
    assert torch.equal(preprocess(image), transform(image))
    assert torch.equal(tokenizer(texts), open_clip.get_tokenizer(f"local-dir:{folder}")(texts))
    with torch.no_grad():
        expected = theirs.eval().encode_image(transform(image)[None])
        assert torch.equal(ours.encode_image(preprocess(image)[None]), expected)
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_sixteen_bits_are_scaled_as_in_the_pipeline(tmp_path):
    clip = model.load(write_tiny_clip(tmp_path / "result"))
    image = Image.fromarray(np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16))
    file = io.BytesIO()
    image.save(file, "PNG")
    expected = clip.normalize(torch.from_numpy(clip.decode(file.getvalue(), 10**6))[None])[0]
    assert torch.equal(clip.preprocess(image), expected)


def test_the_command_ends_with_them_after_the_table(written, project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    command.main()
    said = capsys.readouterr().out
    assert said.startswith(written[1])
    assert said.endswith(use.what_next(Path("data/refined"), Path("data/report/report.html")) + "\n")
    assert max(map(len, said[len(written[1]) :].splitlines())) <= 100


def test_readme_shows_the_same_lines():
    block = f"```python\n{use.USE.format(folder='data/refined')}```"
    assert block in (ROOT / "README.md").read_text()


def test_what_comes_next_is_there():
    targets = (ROOT / "Makefile").read_text()
    for name in use.GO_ON:
        kind, first, *rest = name.split()
        if kind == "make":
            assert f"\n{first}:" in targets
        else:
            path = ROOT / Path(*rest[0].split("."))
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    assert os.path.isfile(ROOT / "README.md")
