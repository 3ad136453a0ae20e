"""Class names and prompt templates that lie beside a set, one a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.samples import TEMPLATES, Task, read_lines


def read_class_task(root: Path, templates_file: str, folders: Sequence[str] = ()) -> Task:
    """Read the class names from `root/classnames.txt` and the templates from `root/templates_file`.

    Args:
        root: Folder of the set.
        templates_file: Name of the file with the templates; without one they are `samples.TEMPLATES`.
        folders: Class folders, in order: without classnames.txt their names are those of the classes.

    Raises:
        UserError: The names are not as many as the folders, or a template does not hold `{}` or `{c}` once.
    """
    path = root / "classnames.txt"
    names = read_lines(path) if path.is_file() else [" ".join(re.split(r"[_\s]+", name)).strip() for name in folders]
    if folders and len(names) != len(folders):
        raise UserError(f"{path}: {len(names)} names, but {root} has {len(folders)} class folders")
    path = root / templates_file
    templates = tuple(re.sub(r"\{c?\}", "{}", line) for line in read_lines(path)) if path.is_file() else TEMPLATES
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"{path}: template {template!r} must hold {{}} or {{c}} once, for the class name")
    return Task(tuple(names), templates)
