"""The stage: each setting does what it says, every sample is used or named, a stopped run ends with the same bytes."""

import glob
import json
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_lib import losses, model
from pipeline_lib.cache_teacher import run
from pipeline_lib.core import artifacts, provenance, shards
from pipeline_lib.core.truncation import describe_truncation
from pipeline_lib.model.embed import embed_images
from tests.cached_project import digests, open_cached, stage_process
from tests.conftest import run_stage
from tests.tiny_model import write_tiny_clip
from tests.tiny_project import make_project, write_params


@pytest.mark.parametrize(
    "change", [{"dtype": "float16"}, {"pixels": "never"}, {"text_cut": "none"}, {"mode": "online"}]
)
def test_settings(sharded, change):
    write_params(sharded, **{f"cache_teacher__{k}": v for k, v in change.items()})
    run_stage("cache_teacher", sharded)
    part, _, _ = open_cached(sharded)
    reference = part.read_inputs([3], [0])
    assert reference.images.shape == (1, 3, 32, 32)
    unit = part.units[0]
    if "dtype" in change:
        assert unit["image_features"].dtype == torch.float16
        assert part.read_features([3], [0])[0].dtype == torch.float32
    if "pixels" in change:
        assert not list((sharded / "data/pixels").rglob("*.npy"))
    if "text_cut" in change:
        assert part.text_length == 77
    if "mode" in change:
        assert part.read_features([3], [0]) is None
        assert "image_features" not in unit


def test_captions_longer_than_the_context_are_counted_and_said(sharded, caplog):
    """Six tokens, start and end among them: `drawing number 12` fits, a digit being one."""
    shutil.rmtree(sharded / "clip")
    write_tiny_clip(sharded / "clip", context_length=6)
    for name in ("base", "cache_teacher"):
        run_stage(name, sharded)
    captions = [c for entry in shards.read_part(sharded / "data/shards/refine").entries() for c in entry.captions]
    long = [caption for caption in captions if " in " in caption]  # `circle in red on blue`: five words beside two
    [found] = artifacts.read_manifest(sharded / "data/teacher")["parts"]["refine"]["truncated"].values()
    left = {caption.rsplit(" ", 1)[0] for caption in long}
    counts = {"num_texts": len(captions), "num_truncated": len(long), "num_distinct": len({*long})}
    assert found == {"context_length": 6, **counts, "num_distinct_read": len(left)}
    assert describe_truncation("captions of refine", found, "student") in caplog.text


def test_cutting_each_pass_gives_the_same_features_to_rounding(sharded, monkeypatch):
    """Captions sorted by length, each pass cut at its own longest: against one cut for the set, and cheaper."""
    path = sharded / "set/captions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for index, row in enumerate(rows):
        row["captions"][0] += " and so on" * (index % 5)
    path.write_text("\n".join(map(json.dumps, rows)))
    run_stage("shard", sharded)
    num_images = shards.read_part(sharded / "data/shards/refine").num_samples
    lengths, found = [], {}
    original = model.Clip.encode_text

    def encode_text(self, token_ids):
        lengths.append(token_ids.shape[1])
        return original(self, token_ids)

    monkeypatch.setattr(model.Clip, "encode_text", encode_text)
    for cut in ("set", "chunk"):
        lengths.clear()
        write_params(sharded, cache_teacher__text_cut=cut)
        run_stage("cache_teacher", sharded)
        part, _, _ = open_cached(sharded)
        features = [part.read_features(range(len(part)), [number] * len(part))[1] for number in (0, 1)]
        found[cut] = torch.cat(features), set(lengths), sum(lengths)
    torch.testing.assert_close(found["chunk"][0], found["set"][0], rtol=1e-5, atol=1e-6)
    assert found["set"][1] == {32}
    assert len(found["chunk"][1]) > 2  # as long as the captions of a pass are
    assert min(found["chunk"][1]) < 16
    assert found["chunk"][2] < found["set"][2]
    assert num_images == len(found["set"][0]) / 2


def test_a_bf16_teacher_is_within_two_per_cent_and_its_student_starts_where_it_is(sharded, caplog):
    """Features computed under autocast, against fp32; step 0 compares in the cache's own precision: no difference."""
    found = {}
    for precision in ("fp32", "bf16"):
        write_params(sharded, cache_teacher__precision=precision)
        run_stage("cache_teacher", sharded)
        part, _, _ = open_cached(sharded)
        found[precision] = part.read_features(part.valid_rows, [0] * len(part.valid_rows))
    for exact, rough in zip(found["fp32"], found["bf16"], strict=True):
        difference = (rough - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert 0 < float(difference.max()) < 2e-2
    with caplog.at_level("INFO"):
        run_stage("refine", sharded)
    assert "step 0: student and cache differ by 0.0e+00" in caplog.text


def test_fp16_storage_changes_the_loss_by_little(sharded):
    """The effect of storing halves on the HyCD loss, measured against fp32 storage: below one per mille."""
    values = {}
    for dtype in ("float32", "float16"):
        write_params(sharded, cache_teacher__dtype=dtype)
        run_stage("cache_teacher", sharded)
        part, _, _ = open_cached(sharded)
        image, text = part.read_features(part.valid_rows[:16], [0] * 16)
        student = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
        values[dtype] = float(losses.hycd_loss(student, image @ text.T))
    assert values["float16"] != values["float32"]
    assert values["float16"] == pytest.approx(values["float32"], rel=1e-3)


def test_another_model_may_teach(sharded, tmp_path):
    """A wider teacher with its own image size: its features are cached, the pixels and tokens stay the student's."""
    write_tiny_clip(sharded / "teacher", seed=7, embed_dim=24)
    path = sharded / "teacher" / "open_clip_config.json"
    settings = json.loads(path.read_text())
    settings["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(settings))
    write_params(sharded, cache_teacher__teacher="teacher")
    run_stage("cache_teacher", sharded)
    part, student, _ = open_cached(sharded)
    image, text = part.read_features([0, 1], [0, 0])
    assert image.shape == text.shape == (2, 24)
    teacher = model.load(sharded / "teacher")
    shard, entry = part.entry(1)
    pixels = torch.from_numpy(teacher.decode(shard.read_image(entry), 10**6))[None]
    torch.testing.assert_close(image[1:], embed_images(teacher, pixels, 8), rtol=1e-4, atol=1e-5)
    run_stage("refine", sharded)
    assert student.embed_dim == 16


def break_image(project, index):
    """An image whose header is whole and whose data end early."""
    path = project / "set" / f"{index:04d}.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-3000])


def test_every_sample_is_used_or_named_with_a_reason(tmp_path):
    """A truncated image ends in quarantine or as an invalid row: counted, named, never trained on."""
    project = make_project(tmp_path / "project", shard__max_bad_share=0.1, cache_teacher__max_bad_share=0.1)
    broken = list(range(0, 96, 30))
    for index in broken:
        break_image(project, index)
    for name in ("base", "shard", "cache_teacher"):
        run_stage(name, project)
    parts = {name: open_cached(project, name)[0] for name in ("refine", "val")}
    facts = artifacts.read_manifest(project / "data/teacher")["parts"]
    quarantined = [json.loads(line) for line in (project / "data/shards/quarantine.jsonl").read_text().splitlines()]
    invalid = [reason for part in facts.values() for reason in part["invalid"]]
    named = {q["key"] for q in quarantined} | {reason.split(":")[0] for reason in invalid}
    kept = sum(len(part.valid_rows) for part in parts.values())
    evaluated = shards.read_part(project / "data/shards/eval").num_samples
    assert named == {f"{index:04d}" for index in broken}
    assert kept + evaluated + len(named) == 96
    trained = {part.entry(row)[1].key for part in parts.values() for row in part.valid_rows}
    assert not trained & named


def test_an_image_that_only_the_model_cannot_take_is_an_invalid_row(tmp_path):
    """Narrow images that exceed the limit once they are resized: named in the manifest, never trained on."""
    values = {"shard__max_image_pixels": 10_000, "cache_teacher__max_bad_share": 0.2}
    project = make_project(tmp_path / "project", **values)
    narrow = {f"{index:04d}" for index in range(0, 96, 15)}
    for key in narrow:
        Image.new("RGB", (2, 300 + int(key))).save(project / "set" / f"{key}.png")
    for name in ("base", "shard", "cache_teacher", "refine"):
        run_stage(name, project)
    for name, facts in artifacts.read_manifest(project / "data/teacher")["parts"].items():
        part, _, _ = open_cached(project, name)
        keys = [part.entry(row)[1].key for row in range(len(part))]
        assert sorted(narrow & {*keys}) == [reason.split(":")[0] for reason in facts["invalid"]]
        assert facts["num_invalid"] == len(facts["invalid"]) > 0
        assert "too many (limit 10000, also after resizing)" in facts["invalid"][0]
        assert [keys[row] for row in part.valid_rows] == [key for key in keys if key not in narrow]
    trained_on = {row["key"] for row in artifacts.read_jsonl(project / "data/refined" / artifacts.TRAINED_ON)}
    assert not trained_on & narrow


def test_a_raised_limit_on_pixels_holds_in_every_stage_that_decodes(tmp_path):
    """Images of 110 megapixels that `shard` was told to accept: cached, trained on and evaluated like any other."""
    values = {"shard__max_image_pixels": 200_000_000, "cache_teacher__pixels": "never"}
    project = make_project(tmp_path / "project", num_samples=48, **values)
    large = {"refine": "0000", "val": "0002", "eval": "0003"}
    for key in large.values():
        Image.new("1", (11_000, 10_000 + int(key))).save(project / "set" / f"{key}.png")
    for name, arguments in {"base": (), "shard": (), "cache_teacher": (), "refine": (), "evaluate": ("base",)}.items():
        run_stage(name, project, *arguments)
    for name, key in large.items():
        assert key in [entry.key for entry in shards.read_part(project / "data/shards" / name).entries()]
    assert all(part["num_invalid"] == 0 for part in artifacts.read_manifest(project / "data/teacher")["parts"].values())


def test_two_runs_give_the_same_bytes(cached):
    before = digests(cached)
    run_stage("cache_teacher", cached)
    assert digests(cached) == before


@pytest.mark.parametrize("text_cut", ["set", "chunk"])
def test_finished_groups_are_kept_and_broken_ones_made_again(sharded, monkeypatch, caplog, text_cut):
    """Groups of two shards, stopped in the second part; the next run notices a unit that was damaged meanwhile.

    Where each pass is cut at its own longest text, a row's bits depend on what else is in its pass.
    """
    monkeypatch.setattr(run, "PASSES", 4)
    write_params(sharded, cache_teacher__text_cut=text_cut)
    undisturbed = shutil.copytree(sharded, sharded.with_name("undisturbed"))
    run_stage("cache_teacher", undisturbed)
    calls = []
    original = run.write_group

    def write_group(group, *rest):
        calls.append([unit.name for unit in group])
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(group, *rest)

    monkeypatch.setattr(run, "write_group", write_group)
    with pytest.raises(KeyboardInterrupt):
        run_stage("cache_teacher", sharded)
    assert calls == [["refine/00000", "refine/00001"], ["refine/00002"], calls[2]]
    assert calls[2][0] == "val/00000"
    [work] = (sharded / ".checkpoints").iterdir()
    damaged = work / "teacher" / "refine" / "00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with caplog.at_level("INFO"):
        run_stage("cache_teacher", sharded)
    assert "refine: resumed, 1 of 3 shards were finished" in caplog.text
    assert calls[3:] == [calls[0], calls[2]]
    assert digests(sharded) == digests(undisturbed)
    assert not list((sharded / ".checkpoints").iterdir())


@pytest.mark.parametrize("samples_per_shard", [3, 16, 96])
def test_passes_run_across_shards(tmp_path, monkeypatch, samples_per_shard):
    """In one group only the last pass of images and that of captions are not full, however small the shards are."""
    monkeypatch.setattr(run, "PASSES", 1000)
    passes = []
    for name in ("encode_image", "encode_text"):
        encode = getattr(model.Clip, name)
        monkeypatch.setattr(model.Clip, name, lambda *args, encode=encode: passes.append(len(args[1])) or encode(*args))
    project = make_project(tmp_path, shard__samples_per_shard=samples_per_shard, cache_teacher__verify_share=0.0)
    for name in ("base", "shard", "cache_teacher"):
        passes.clear()
        run_stage(name, project)
    parts = [open_cached(project, name)[0] for name in ("refine", "val")]
    rows = [count for part in parts for count in (len(part), part.part.num_captions)]
    verified = [8] * 4  # 16 images, 16 captions
    assert passes == [8] * sum(-(-count // 8) for count in rows) + verified


def test_units_of_another_version_of_a_package_are_not_resumed(sharded, cached, monkeypatch, caplog):
    """A killed cache, then an upgrade of torch: units of both in one cache would be no function of anything."""
    original, versions = run.write_group, provenance.package_versions()

    def write_group(group, *rest):
        if group[0].part.name == "val":
            raise KeyboardInterrupt
        original(group, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_group", write_group)
        patch.setattr(provenance, "package_versions", lambda: {**versions, "torch": "2.0"})
        with pytest.raises(KeyboardInterrupt):
            run_stage("cache_teacher", sharded)
    with caplog.at_level("INFO"):
        run_stage("cache_teacher", sharded)
    assert "resumed" not in caplog.text
    assert digests(sharded) == digests(cached)


IN_GROUPS = {"shard__samples_per_shard": 9, "shard__max_overlap_share": 1.0, "cache_teacher__text_cut": "chunk"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A project of which every part has several groups of shards, its cache made by one process without a stop."""
    top = tmp_path_factory.mktemp("groups")
    project = make_project(top / "project", num_samples=480, **IN_GROUPS)
    for name in ("base", "shard", "cache_teacher"):
        run_stage(name, project)
    return project


@pytest.fixture
def many(undisturbed, tmp_path):
    """The same before its cache was made."""
    project = shutil.copytree(undisturbed, tmp_path / "many")
    for name in ("teacher", "pixels"):
        shutil.rmtree(project / "data" / name)
    return project


def finished_units(project):
    """How many there are by now; `glob` takes folders that the stage moves away meanwhile as empty, `rglob` fails."""
    return len(glob.glob(str(project / ".checkpoints/*/done/*/*.json")))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_cache(many, undisturbed):
    """SIGKILL, five times at random moments after the first unit, then to the end: bitwise the uninterrupted cache."""
    dice = random.Random(0)
    for _ in range(5):
        process = stage_process(many, "cache_teacher")
        before = finished_units(many)
        while process.poll() is None and finished_units(many) == before:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
    process = stage_process(many, "cache_teacher")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert digests(many) == digests(undisturbed)


@pytest.mark.slow
def test_two_processes_write_the_same_cache(many, undisturbed):
    """`runtime.processes: 2` relaunches the stage under torchrun; every byte is that of one process."""
    write_params(many, runtime__processes=2, **IN_GROUPS)
    process = stage_process(many, "cache_teacher")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert digests(many) == digests(undisturbed)
