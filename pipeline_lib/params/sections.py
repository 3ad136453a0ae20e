"""Every section of params.yaml, in the order of the file, with the dataclass that its owner declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_lib.base.settings import BaseSettings
from pipeline_lib.cache_teacher.settings import CacheTeacherSettings
from pipeline_lib.core import config
from pipeline_lib.core.errors import Mistakes
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.runtime import RuntimeSettings
from pipeline_lib.core.schema import closest, did_you_mean, section_of
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.language.settings import LanguageSettings
from pipeline_lib.refine.settings import RefineSettings
from pipeline_lib.report.settings import ReportSettings
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.sources.settings import DataSettings
from pipeline_lib.tracking.settings import TrackingSettings

SECTIONS: dict[str, type] = {
    section_of(kind): kind
    for kind in (
        Paths,
        DataSettings,
        BaseSettings,
        ShardSettings,
        LanguageSettings,
        CacheTeacherSettings,
        RefineSettings,
        EvaluateSettings,
        ReportSettings,
        RuntimeSettings,
        TrackingSettings,
    )
}
RECIPES = "recipes"  # the one section without a dataclass: a block per recipe, whose function's signature is its schema


def load_all(params_file: Path) -> dict[str, Any]:
    """Load every section but `recipes`.

    Raises:
        UserError: Sections are unknown, missing, or do not load; all of them are said.
    """
    loaded, mistakes = load_what_loads(params_file)
    mistakes.raise_all()
    return loaded


def load_what_loads(params_file: Path) -> tuple[dict[str, Any], Mistakes]:
    """Load every section but `recipes`; return those that load, and what is wrong with the others.

    Raises:
        UserError: The file cannot be read, or holds no sections.
    """
    loaded, mistakes, known = dict[str, Any](), Mistakes(), [*SECTIONS, RECIPES]
    unknown = [str(name) for name in config.read_params(params_file) if name not in known]
    mistakes.sentences += [f"{params_file}: unknown section `{name}`{did_you_mean(name, known)}" for name in unknown]
    misspelt = [name for one in unknown for name in closest(one, known)]
    for name, kind in SECTIONS.items():
        if name not in misspelt:
            with mistakes:
                loaded[name] = config.load(params_file, kind)
    return loaded, mistakes
