"""Class names and prompt templates that lie beside a set, and the order in which class folders are labels.

Names come from `classnames.json` ({folder: name}) or `classnames.txt` (a name per line, by position), else from the
folders themselves: WordNet ids are ImageNet's classes, and so are 1,000 folders `0` to `999`; an id or a number that
stands before each name (`n02085620-Chihuahua`, `001.Black_footed_Albatross`) is no part of the name.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from pipeline_lib.core.errors import UserError
from pipeline_lib.core.shards import prompts_digest
from pipeline_lib.sources.imagenet import NUM_CLASSES, imagenet_names
from pipeline_lib.sources.samples import TEMPLATES, Task, encodable, read_lines

NAMES, NAMES_BY_FOLDER = "classnames.txt", "classnames.json"
WNID = "n[0-9]{8}"  # a WordNet id
MAX_BYTES = 10_000_000  # of classnames.json
log = logging.getLogger(__name__)


def make_task(name: str, labels: Sequence[object], classnames: Sequence[str], templates_file: Path) -> Task:
    """Make the task of a set, and log which label has which name, and the digest of its prompts.

    Args:
        name: How messages call the set.
        labels: What the set calls each class (its folder, its number), in the order of the labels.
        classnames: The name of each.
        templates_file: A template per line; where it is missing they are `samples.TEMPLATES`.

    Raises:
        UserError: A template does not hold `{}` or `{c}` once, or a class is named by a WordNet id.
    """
    refuse_ids(name, classnames)
    task = Task(tuple(classnames), _read_templates(templates_file))
    pairs = [f"{label} -> {named}" for label, named in islice(zip(labels, classnames, strict=True), 3)]
    twice = [named for named, count in Counter(classnames).items() if count > 1]
    log.info(
        "%s: %d classes: %s; %d templates; prompts %.16s%s",
        name,
        len(classnames),
        ", ".join(pairs + ["…"] * (len(classnames) > len(pairs))),
        len(task.templates),
        prompts_digest(task.classnames, task.templates),
        f"; names that stand more than once: {', '.join(twice)}" if twice else "",
    )
    return task


def refuse_ids(name: str, classnames: Sequence[str]) -> None:
    """Refuse class names that are WordNet ids.

    Raises:
        UserError: One is.
    """
    found = [named for named in classnames if re.fullmatch(WNID, named)]
    if found:
        raise UserError(
            f"{name}: {len(found)} of {len(classnames)} classes, such as {found[0]}, are named by WordNet ids, which "
            "are no names to ask a model for; write what each means"
        )


def _read_templates(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return TEMPLATES
    templates = tuple(re.sub(r"\{c?\}", "{}", line) for line in read_lines(path))
    if not templates:
        raise UserError(f"{path}: no templates; write one a line, or delete the file for the usual ones")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"{path}: template {template!r} must hold {{}} or {{c}} once, for the class name")
    return templates


def read_names(path: Path) -> list[str]:
    """Read class names by position, one a line.

    Raises:
        UserError: A line between others is empty, so that positions are in doubt, or there is no name.
    """
    names = read_lines(path, keep_empty=True)
    while names and not names[-1]:
        names.pop()
    if not names or "" in names:
        where = f"line {names.index('') + 1} is empty" if names else "no names"
        raise UserError(f"{path}: {where}; the line of a name is the number of its label, so each needs one")
    return names


def name_folders(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Return the class name of each class folder, the folders in the order of the labels.

    Folders that are numbers are in the order of their values, others in that of their text.

    Args:
        root: Folder of the set, where classnames.json or classnames.txt may lie.
        folders: Names of the class folders.

    Raises:
        UserError: Names and folders do not fit together.
    """
    kinds = {_kind(folder) for folder in folders}
    ordered = sorted(folders, key=int if kinds == {"number"} else None)
    if (root / NAMES_BY_FOLDER).is_file():
        return _by_folder(root, ordered)
    if "wnid" in kinds and len(kinds) > 1:
        odd = next(folder for folder in ordered if _kind(folder) != "wnid")
        raise UserError(
            f"{root}: some class folders are WordNet ids and some are not, such as {odd}; take out what is no class, "
            f"or name them all in {NAMES_BY_FOLDER} ({{folder: name}})"
        )
    if kinds == {"number"}:
        _check_numbers(root, ordered)
    if (root / NAMES).is_file():
        return _by_position(root, ordered, kinds)
    if kinds == {"wnid"}:
        return _imagenet(root, ordered)
    if kinds == {"number"} and len(ordered) == NUM_CLASSES:
        return dict(zip(ordered, imagenet_names().values(), strict=True))
    bare = _without_ids(ordered)
    return {folder: " ".join(re.split(r"[_\s]+", name)).strip() for folder, name in zip(ordered, bare, strict=True)}


def _without_ids(folders: Sequence[str]) -> list[str]:
    """Return the names without the WordNet id, or the running number, that stands before each of them."""
    ids = [re.fullmatch(rf"{WNID}[-_. ]+(\w.*)", folder) for folder in folders]
    numbers = [re.fullmatch(r"([0-9]+)\.([^\W\d].*)", folder) for folder in folders]
    if all(ids):
        return [match[1] for match in ids if match]
    found = sorted(int(match[1]) for match in numbers if match)
    if len(found) == len(folders) > 1 and found == list(range(found[0], found[0] + len(found))) and found[0] < 2:
        return [match[2] for match in numbers if match]
    return list(folders)


def _kind(folder: str) -> Literal["wnid", "number", "word"]:
    if re.fullmatch(WNID, folder):
        return "wnid"
    return "number" if re.fullmatch(r"[0-9]+", folder) else "word"


def _check_numbers(root: Path, ordered: Sequence[str]) -> None:
    """Refuse numbers that are not 0 to K − 1 each once: which class such a one is would be a guess."""
    for number, folder in enumerate(ordered):
        if int(folder) != number:
            raise UserError(
                f"{root}: its {len(ordered)} class folders are numbers but not 0 to {len(ordered) - 1}: {folder} "
                f"stands where {number} should; add what is missing, or name each folder in {NAMES_BY_FOLDER} "
                "({folder: name})"
            )


def _by_position(root: Path, ordered: Sequence[str], kinds: set[Literal["wnid", "number", "word"]]) -> dict[str, str]:
    path = root / NAMES
    names = read_names(path)
    if len(names) != len(ordered):
        raise UserError(f"{path}: {len(names)} names, but {root} has {len(ordered)} class folders")
    if "number" in kinds and len(kinds) > 1:
        raise UserError(
            f"{path}: some class folders of {root} are numbers and some are not, so their order is in doubt; write "
            f"{NAMES_BY_FOLDER} ({{folder: name}}) instead"
        )
    return dict(zip(ordered, names, strict=True))


def _by_folder(root: Path, ordered: Sequence[str]) -> dict[str, str]:
    path = root / NAMES_BY_FOLDER
    if (root / NAMES).is_file():
        raise UserError(f"{root}: holds {NAMES} and {NAMES_BY_FOLDER}; keep the one that is right")
    named = _read_named(path)
    missing = [folder for folder in ordered if folder not in named]
    if missing:
        raise UserError(f"{path}: no name for {len(missing)} of {len(ordered)} class folders, such as {missing[0]}")
    if len(named) > len(ordered):
        unknown = sorted(named.keys() - set(ordered))
        log.warning(
            "%s: %d of its %d names are of no folder: %s", path, len(unknown), len(named), ", ".join(unknown[:5])
        )
    return {folder: named[folder] for folder in ordered}


def _read_named(path: Path) -> dict[str, str]:
    """Read {folder: name}; JSON itself keeps the last of two equal keys, and so they are looked for here."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise UserError(f"{path}: {twice[0]} stands twice")
        return dict(pairs)

    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES} bytes")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    items = content.items() if isinstance(content, dict) else ()
    names = {key: encodable(name.strip()) for key, name in items if isinstance(name, str)}
    if not names or len(names) < len(content) or not all(names.values()):
        raise UserError(f'{path}: expected {{"folder": "class name", ...}}')
    return names


def _imagenet(root: Path, ordered: Sequence[str]) -> dict[str, str]:
    names = imagenet_names()
    unknown = [folder for folder in ordered if folder not in names]
    if unknown:
        raise UserError(
            f"{root}: {len(unknown)} of {len(ordered)} class folders, such as {unknown[0]}, are none of ImageNet's "
            f"1,000 classes, and a WordNet id is no name to ask a model for; name them in {NAMES_BY_FOLDER} "
            "({folder: name})"
        )
    return {folder: names[folder] for folder in ordered}
