"""The stage as a command: exit codes, one sentence for a user's mistake, a full disk, kills in the middle."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline_lib.core import artifacts, config, shards
from stages import shard
from tests.small_sets import coco, image_file, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml for a COCO set of 40 images, and the list of what the base was trained on."""
    monkeypatch.chdir(tmp_path)
    coco(Path("coco"), count=40)
    write(Path("data/base/trained_on.jsonl"), "")
    artifacts.write_manifest(Path("data/base"), "base")
    configure()
    return tmp_path


def configure(**changes) -> None:
    params = config.read_params(ROOT / "params.yaml")
    params["data"] |= {
        "format": "coco",
        "root": "coco",
        "parts": {"refine": 0.6, "val": 0.2, "eval": 0.2},
        "evaluation": {},
    } | changes.pop("data", {})
    params["shard"] |= {"samples_per_shard": 4, "max_bad_share": 0.0} | changes.pop("shard", {})
    params["tracking"]["mode"] = "disabled"
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def command(*options: str, **more) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.shard", *options], env=environment, stderr=subprocess.PIPE, text=True, **more
    )


def content(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_the_stage_writes_every_part_and_says_nothing_of_time_or_place(project):
    shard.main(Path("params.yaml"))
    first = content("data/shards")
    parts = {name: shards.read_part(Path("data/shards", name)) for name in ("refine", "val", "eval")}
    assert sum(part.num_samples for part in parts.values()) == 40
    assert sum(part.num_captions for part in parts.values()) == sum(5 + n % 3 for n in range(40))
    assert not list(Path(".checkpoints").iterdir())
    with command() as process:
        assert process.wait() == 0
    assert content("data/shards") == first


def test_a_users_mistake_is_one_sentence_and_exit_code_1(project):
    Path("coco/val2017/000000000010.jpg").unlink()
    with command() as process:
        assert process.wait() == 1
        message = process.stderr.read()
    assert re.fullmatch(
        r"error: data: 1 of the \d+ samples of part `\w+` are bad, more than shard.max_bad_share allows: "
        r"000000000010: no such file: coco/val2017/000000000010.jpg; mend them or leave them out\n",
        message,
    )
    assert not Path("data/shards").exists()
    with command("--debug") as process:
        assert "Traceback" in process.stderr.read()
        assert process.wait() == 1


def test_without_a_base_the_stage_says_what_to_run(project):
    Path("data/base/manifest.json").unlink()
    with command() as process:
        assert process.wait() == 1
        assert "data/base is missing or unfinished; run `dvc repro`" in process.stderr.read()


def test_a_full_disk_is_one_sentence_and_leaves_no_half_written_file(project):
    write(Path("coco/val2017/000000000010.jpg"), image_file(1, size=(900, 900), kind="BMP"))  # 2.4 MB

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    configure(shard={"max_image_pixels": 10**6})
    with command(preexec_fn=limit) as process:
        assert process.wait() == 1
        message = process.stderr.read()
    assert re.fullmatch(
        r"error: \.checkpoints/shard-\w+/output/\w+/0000\d\.tar: cannot be written \(File too large\); "
        r"make room and run again, finished shards are kept\n",
        message,
    )
    assert not Path("data/shards").exists()
    assert not list(Path().rglob("*.tmp"))
    with command() as process:  # with room again
        assert process.wait() == 0
        assert "resumed" in process.stderr.read()
    assert artifacts.verify(Path("data/shards")) == []


def _wait_for(pattern: str, process: subprocess.Popen) -> None:
    limit = time.monotonic() + 60
    while not list(Path(".checkpoints").glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(project):
    coco(Path("coco"), count=160)
    configure(shard={"samples_per_shard": 2})
    with command(start_new_session=True) as process:
        _wait_for("shard-*/done/refine/00003.json", process)
        process.kill()
        process.wait()
    assert not Path("data/shards").exists()
    limit = time.monotonic() + 20
    while _of_session(process.pid):  # its workers end with it
        assert time.monotonic() < limit, _of_session(process.pid)
        time.sleep(0.02)
    with command() as process:
        assert process.wait() == 0
        assert re.search(r"data: resumed, \d+ shards were finished", process.stderr.read())
    resumed = content("data/shards")
    shard.main(Path("params.yaml"))
    assert content("data/shards") == resumed
    assert artifacts.verify(Path("data/shards")) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_in_order(project, number, code):
    coco(Path("coco"), count=160)
    configure(shard={"samples_per_shard": 2})
    with command() as process:
        _wait_for("shard-*/done/refine/00003.json", process)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    assert not Path("data/shards").exists()
    assert not list(Path(".checkpoints").rglob("*.tmp"))


def _of_session(session: int) -> list[str]:
    """Processes of a session that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == session and state != "Z":
            found.append(path.parent.name)
    return found
