"""Where each stage writes: section `paths` of params.yaml."""

from __future__ import annotations

from pathlib import Path

from pipeline_lib.core.schema import section

STAGES = ("base", "shard", "cache_teacher", "refine", "evaluate", "report")
"""In the order of the pipeline."""

LANGUAGE = "language"
"""The stage before `cache_teacher` that exists where it is asked for (`language.stages`)."""

MODELS = ("base", "refined")
"""What is evaluated."""


@section("paths")
class Paths:
    """Where each stage writes, relative to the current folder (dvc runs stages in the project's)."""

    base: Path
    """The pre-trained model, an open_clip folder."""

    shards: Path
    """Images and captions as tars, a folder per part and evaluation set."""

    language: Path
    """The language model of stage `language`, where there is one."""

    text: Path
    """What reads captions in the refined model: `base`'s own text tower, or the folder `language`."""

    teacher: Path
    """The teacher's features and the token ids."""

    pixels: Path
    """Decoded images, where `cache_teacher.pixels` has them stored; a local copy that decides nothing."""

    refined: Path
    """The refined model, an open_clip folder."""

    eval: Path
    """A folder for each evaluated model: numbers, per-item results, features."""

    report: Path
    """The page; its verdict in numbers beside it, as `<report>.json`."""

    def folders(self, *stages: str) -> dict[str, Path]:
        """Return the output folder of each of these stages, of all without any, in the order of the pipeline."""
        found = {"base": self.base, "shard": self.shards}
        found |= {LANGUAGE: self.language} if self.has_language else {}
        found |= {"cache_teacher": self.teacher, "refine": self.refined}
        found |= {f"evaluate@{model}": self.eval / model for model in MODELS} | {"report": self.report}
        return {stage: folder for stage, folder in found.items() if stage in stages or not stages}

    @property
    def has_language(self) -> bool:
        """Return whether a language model reads captions."""
        return self.text != self.base

    @property
    def report_numbers(self) -> Path:
        """Return the path of the verdict in numbers, which DVC compares."""
        return self.report.with_name(f"{self.report.name}.json")
