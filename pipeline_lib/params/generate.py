"""Writes what is generated from params.yaml, ablations/changes.yaml and the settings, and finds what is out of date."""

from __future__ import annotations

from pathlib import Path

from pipeline_lib.core import artifacts, config
from pipeline_lib.params import json_schema, reference, whole_file
from pipeline_lib.params.ablations import CHANGES, FOLDER, read_ablations
from pipeline_lib.params.sections import RECIPES

PARAMS = Path("params.yaml")
REFERENCE = Path("docs/params.md")
SCHEMA = Path("docs/params.schema.json")


def generate(project: Path) -> dict[Path, str]:
    """Return the text of every generated file, by its path in `project`.

    Raises:
        UserError: params.yaml or ablations/changes.yaml cannot be read, or they do not fit together.
    """
    config.read_params(project / PARAMS)  # says what is wrong with it
    params_text = (project / PARAMS).read_text(encoding="utf-8")
    params = whole_file.load_params(params_text)
    texts = {
        FOLDER / f"{one.name}.yaml": whole_file.render_whole(params, one)
        for one in read_ablations(project / PARAMS, project / CHANGES)
    }
    return texts | {REFERENCE: reference.render_reference(params_text), SCHEMA: json_schema.render_schema()}


def write_generated(project: Path) -> list[Path]:
    """Write the generated files whose text is another, remove those that nothing stands for, and return their paths."""
    texts = generate(project)
    changed = [path for path, text in texts.items() if _read(project / path) != text]
    for path in changed:
        artifacts.write_text(project / path, texts[path])
    gone = _find_orphans(project, texts)
    for path in gone:
        (project / path).unlink()
    return [*changed, *gone]


def find_stale(project: Path) -> list[Path]:
    """List the generated files that are out of date.

    A new recipe makes none: blocks of recipes that a file does not choose are not compared, and its own file is not
    missed.
    """
    texts = generate(project)
    recipes = config.read_params(project / PARAMS)[RECIPES] or {}
    missable = {FOLDER / f"{name}.yaml" for name in recipes if not (project / FOLDER / f"{name}.yaml").exists()}
    stale = [path for path, text in texts.items() if path not in missable and _differs(project / path, text)]
    return [*stale, *_find_orphans(project, texts)]


def _differs(path: Path, text: str) -> bool:
    there = _read(path)
    if there is None or path.suffix != ".yaml":
        return there != text
    return whole_file.deciding_lines(there) != whole_file.deciding_lines(text)


def _find_orphans(project: Path, texts: dict[Path, str]) -> list[Path]:
    there = (path.relative_to(project) for path in sorted((project / FOLDER).glob("*.yaml")))
    return [path for path in there if path not in texts and whole_file.is_generated(_read(project / path) or "")]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
