"""A folder per class, as ImageNet and torchvision's `ImageFolder` have it.

    data/clothing/
        t-shirt/0a1b.jpg, ...      one folder per class; images may lie deeper
        wine_glass/...             its class is called "wine glass" unless one of these says otherwise:
        classnames.json            optional: {"wine_glass": "wine glass", ...}, the explicit way
        classnames.txt             optional: a class name per line, in the order of the folders
        templates.txt              optional: a prompt template per line, `{}` or `{c}` where the class name goes

Folders named by numbers must be 0 to K − 1 and are in the order of their values, others in that of their text. Folders
named by WordNet ids (n01440764), as those of ImageNet, ImageNet-A, -R and -Sketch, have open_clip's names of these
classes, and so have 1,000 folders 0 to 999, as those of ImageNet-V2. An id or a running number before each name
(n02085620-Chihuahua, 001.Black_footed_Albatross) is no part of it. The log says which folder has which name.

What is no class is not taken for one: splits or domains above the class folders (train/cat, val/cat) and captions
beside the images (00000/000000000.txt, as img2dataset's `files`) are refused, unless classnames.json names the folders.
Files of other endings than those of images are counted and named.

The key of a sample is its path without the extension (`t-shirt/0a1b`). As training data each image is captioned
"a photo of a <class>"; as an evaluation set it has a label and no caption. The classes take turns, so that a trial run
with `limit` has samples of all of them. In params.yaml:

    data:
      format: image_folder
      root: data/clothing
      annotations: null
      images: null
      parts: {refine: 0.8, val: 0.1, eval: 0.1}
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}

As an evaluation set: `evaluation: {clothing: {format: image_folder, path: clothing/test}}`.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.classes import NAMES, NAMES_BY_FOLDER, make_task, name_folders
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import CLASS_TASK, FileImage, Sample, Source, Task, extension_of, make_sample
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS, not_read

TEXTS = ("txt", "json", "caption")
SPLITS = r"(train|training|val|valid|validation|test|testing|dev|eval|evaluation|query|gallery|fold|split)[ _.-]*[0-9]*"
log = logging.getLogger(__name__)


def open_set(place: Place) -> Source:
    """Open a folder per class.

    Raises:
        UserError: There are fewer than two class folders, the folders are of another layout, or class names or
            templates do not fit them.
    """
    place.refuse("images", "annotations")
    if not place.root.is_dir():
        raise UserError(f"{place.name}: {place.root} is not a folder; image_folder needs a folder per class")
    found = sorted(entry.name for entry in os.scandir(place.root) if entry.is_dir() and entry.name[0] != ".")
    if len(found) < 2:
        raise UserError(
            f"{place.name}: {place.root} holds {len(found)} folders, expected one per class"
            + (f"; did you mean {place.root / found[0]}?" if found else "")
        )
    contents = {folder: _survey(place.root / folder) for folder in found}
    if not (place.root / NAMES_BY_FOLDER).is_file():
        _refuse_other_layouts(place, contents)
    named = name_folders(place.root, found)
    folders = list(named)
    task = make_task(place.name, folders, list(named.values()), place.root / "templates.txt")

    def make() -> Iterator[Sample]:
        # One of each class in turn, so that a trial run with `limit` has all of them.
        of_class = [_class_samples(place, index, name, task) for index, name in enumerate(folders)]
        return (sample for turn in zip_longest(*of_class) for sample in turn if sample is not None)

    empty = [folder for folder, content in contents.items() if not content.num_images]
    if empty:
        log.warning("%s: no image in %d of %d class folders: %s", place.name, len(empty), len(found), ", ".join(empty))
    ignored = sum((content.ignored for content in contents.values()), Counter[str]())
    beside = [entry for entry in os.scandir(place.root) if extension_of(entry.name) in IMAGE_EXTENSIONS]
    ignored.update(["not read: an image beside the class folders"] * len(beside))
    return place.make_source(make, captioned=not place.evaluated_only, tasks={CLASS_TASK: task}, ignored=ignored)


@dataclass(slots=True)
class Content:
    """What one class folder holds."""

    num_images: int = 0
    has_own_images: bool = False  # not only in folders below it
    folders: set[str] = field(default_factory=set)  # directly in it
    text: str = ""  # a file that is called like an image beside it and may hold its caption
    ignored: Counter[str] = field(default_factory=Counter)  # files that are not read


def _survey(top: Path) -> Content:
    """Look at the names of all files below a class folder."""
    content = Content()
    for parent, folders, files in os.walk(top):
        images = {os.path.splitext(name)[0] for name in files if extension_of(name) in IMAGE_EXTENSIONS}
        others = [name for name in files if extension_of(name) not in IMAGE_EXTENSIONS]
        texts = [name for name in others if extension_of(name) in TEXTS and os.path.splitext(name)[0] in images]
        content.num_images += len(files) - len(others)
        content.text = content.text or (os.path.join(parent, min(texts)) if texts else "")
        content.ignored.update(not_read(name) for name in others)
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        content.ignored.update(["not read: a link to a folder"] * len(links))
        if Path(parent) == top:
            content.folders, content.has_own_images = set(folders), bool(images)
    return content


def _refuse_other_layouts(place: Place, contents: Mapping[str, Content]) -> None:
    """Refuse folders that are no classes, as far as names and places tell.

    Raises:
        UserError: See above.
    """
    says = f"or say in {NAMES_BY_FOLDER} ({{folder: name}}) that these folders are the classes"
    text = next((content.text for content in contents.values() if content.text), "")
    if text and not (place.root / NAMES).is_file():
        raise UserError(
            f"{place.name}: {text} lies beside its image: a caption, it seems, which image_folder does not read; "
            f"write tars (as img2dataset does, format webdataset) or JSON Lines (format jsonl), {says}"
        )
    above = {folder: content.folders for folder, content in contents.items() if not content.has_own_images}
    above = {folder: below for folder, below in above.items() if below and contents[folder].num_images}
    splits = [folder for folder in above if re.fullmatch(SPLITS, folder.lower())]
    all_above = len(above) == sum(content.num_images > 0 for content in contents.values())
    shared = set.intersection(*above.values()) if len(above) > 1 else set[str]()
    if len(splits) > 1 or (all_above and (splits or len(shared) > 1)):
        names, below = ", ".join(list(above)[:4]), ", ".join(sorted(next(iter(above.values())))[:3])
        raise UserError(
            f"{place.name}: {names} in {place.root} hold no images but folders ({below}, ...): splits or domains above "
            f"the classes, it seems; name one of them, such as {place.root / (splits or list(above))[0]}, {says}"
        )


def _class_samples(place: Place, index: int, folder: str, task: Task) -> Iterator[Sample]:
    """Yield the images below one class folder in the order of their paths."""
    captions = () if place.evaluated_only else (f"a photo of a {task.classnames[index]}",)
    top = str(place.root)
    for parent, folders, files in os.walk(os.path.join(top, folder)):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(parent, name)
            if extension_of(name) in IMAGE_EXTENSIONS:
                key = os.path.splitext(os.path.relpath(path, top))[0]
                yield make_sample(key, FileImage(path), extension_of(name), captions, labels={CLASS_TASK: index})
