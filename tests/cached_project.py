"""Helpers around a tiny project whose teacher cache is there: open it, run a stage as a process, compare digests."""

import os
import subprocess
import sys

from pipeline_lib import model
from pipeline_lib.cache_teacher import reader
from pipeline_lib.cache_teacher.student import load_student
from pipeline_lib.core import artifacts, config
from pipeline_lib.core.paths import Paths
from tests.tiny_project import ROOT


def open_cached(project, name="refine"):
    paths = config.load(project / "params.yaml", Paths)
    paths = Paths(**{k: project / getattr(paths, k) for k in Paths.__dataclass_fields__})
    _, student = load_student(paths)
    return reader.open_parts(paths, student)[name], student, paths


def count_decoded(monkeypatch):
    """A list that grows by one with each image that this process decodes."""
    decoded, original = [], model.Preprocess.decode
    monkeypatch.setattr(
        model.Preprocess, "decode", lambda self, *arguments: decoded.append(1) or original(self, *arguments)
    )
    return decoded


def digests(project):
    return {name: artifacts.read_manifest(project / "data" / name)["digest"] for name in ("teacher", "pixels")}


def stage_process(project, stage, **env):
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rewrite_manifest(folder):
    """Let the manifest of a folder list its files as they are now."""
    manifest = artifacts.read_manifest(folder)
    facts = {key: value for key, value in manifest.items() if key not in ("stage", "files", "digest")}
    artifacts.write_manifest(folder, manifest["stage"], **facts)
