"""One set on its way into shards: whatever is damaged, each sample is used or left out, by its key, and counted."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_lib.core.shards import read_index
from pipeline_lib.shard.jobs import run_job
from pipeline_lib.shard.manifests import write_manifests
from pipeline_lib.shard.set_writer import SetWriter
from pipeline_lib.shard.triage import Rules
from pipeline_lib.sources.formats import open_source
from pipeline_lib.sources.parts import Splitter
from tests import small_sets
from tests.small_sets import data, image_file, tar, write

IMAGES = {
    "good": lambda n: image_file(n),
    "empty": lambda n: b"",
    "text": lambda n: b"no image",
    "cut": lambda n: image_file(n)[:200],
    "missing": lambda n: None,
}
NAMES = st.one_of(
    st.sampled_from(["a", "A", "e\u0301", "\u00e9", "\U0001f600", "two words", "\u0627\u0644", "x" * 240, "%2E", "~"]),
    st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="./\\\0"), min_size=1, max_size=20),
)
CAPTIONS = st.lists(st.one_of(st.none(), st.text(max_size=30), st.just("y" * 10_000), st.just("z")), max_size=3)
SETS = st.lists(
    st.tuples(NAMES, st.sampled_from(sorted(IMAGES) + ["good"] * 8), CAPTIONS, st.sampled_from([False] * 5 + [True])),
    min_size=1,
    max_size=10,
    unique_by=lambda sample: sample[0].strip().casefold(),
)


class InThisProcess:
    """The jobs one after the other, as a worker runs them."""

    def run(self, jobs):
        return map(run_job, jobs)


def write_set(root: Path, kind: str, samples) -> set[str]:
    """A set with these samples; the keys that it holds. A sample whose row is broken has no key."""
    keys, lines, members = set(), [], {}
    for n, (name, image, captions, broken) in enumerate(samples):
        content = IMAGES[image](n)
        keys |= set() if kind == "jsonl" and broken else {name}
        lines.append('{"image": ' if broken else json.dumps({"image": f"{name}.jpg", "captions": captions}))
        members |= {} if content is None else {f"{name}.jpg": content}
        members[f"{name}.json"] = "{" if broken else json.dumps({"captions": captions})
        if kind == "jsonl" and content is not None:
            write(root / f"{name}.jpg", content)
    if kind == "jsonl":
        write(root / "set.jsonl", "\n".join(lines))
    else:
        tar(root / "0.tar", members)
    return keys


@pytest.mark.parametrize("kind", ["jsonl", "webdataset"])
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=SETS)
def test_read_is_used_and_left_out_by_key_however_a_set_is_damaged(tmp_path_factory, kind, samples):
    samples = [*((f"sound {n}", "good", ["x"], False) for n in range(12)), *samples]  # so that no part is empty
    root = tmp_path_factory.mktemp("set")
    keys = write_set(root / "set", kind, samples)
    (root / "work").mkdir()
    parts = {"refine": 0.5, "val": 0.3}
    rules = Rules(work=root / "work", settings=small_sets.settings(max_bad_share=1.0), captioned=True, tasks={})
    source = open_source(data(root / "set", kind, parts=parts))
    writer = SetWriter(source=source, splitter=Splitter(parts, root), rules=rules)
    writer.write(InThisProcess(), progress=False)
    manifest = write_manifests(root / "work/output", [writer])
    used = set[str]()
    for part in parts:
        for index in (root / "work/output" / part).glob("*.jsonl"):
            entries = list(read_index(index))
            assert not used & {entry.key for entry in entries}
            used |= {entry.key for entry in entries}
    rows = [json.loads(line) for line in (root / "work/output/quarantine.jsonl").read_text().split("\n") if line]
    bad = {row["key"] for row in rows if row["part"] is not None}
    assert not used & bad
    in_no_part = {key for key in keys if writer.splitter.part_of(key) is None}
    assert used | bad | in_no_part == keys
    assert manifest["counts"]["data"]["filtered"]["in_no_part"] == len(in_no_part)
    assert sum(record.read for part in parts for record in writer.records[part]) == len(keys - in_no_part)
    assert len(samples) == len(keys) + sum(row["part"] is None for row in rows)
