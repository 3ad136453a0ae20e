"""A folder per class, as ImageNet and torchvision's `ImageFolder` have it.

    data/clothing/
        t-shirt/0a1b.jpg, ...      one folder per class; images may lie deeper
        wine_glass/...             its class is called "wine glass" unless one of these says otherwise:
        classnames.json            optional: {"wine_glass": "wine glass", ...}, the explicit way
        classnames.txt             optional: a class name per line, in the order of the folders
        templates.txt              optional: a prompt template per line, `{}` or `{c}` where the class name goes

Folders named by numbers must be 0 to K − 1 and are in the order of their values, others in that of their text. Folders
named by WordNet ids (n01440764), as those of ImageNet, ImageNet-A, -R and -Sketch, have open_clip's names of these
classes, and so have 1,000 folders 0 to 999, as those of ImageNet-V2. The log says which folder has which name.

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

import os
from collections.abc import Iterator
from itertools import zip_longest

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.classes import make_task, name_folders
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import CLASS_TASK, FileImage, Sample, Source, Task, extension_of, make_sample
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS


def open_set(place: Place) -> Source:
    """Open a folder per class.

    Raises:
        UserError: There are fewer than two class folders, or class names or templates do not fit them.
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
    named = name_folders(place.root, found)
    folders = list(named)
    task = make_task(place.name, folders, list(named.values()), place.root / "templates.txt")

    def make() -> Iterator[Sample]:
        # One of each class in turn, so that a trial run with `limit` has all of them.
        of_class = [_class_samples(place, index, name, task) for index, name in enumerate(folders)]
        return (sample for turn in zip_longest(*of_class) for sample in turn if sample is not None)

    return place.make_source(make, captioned=not place.evaluated_only, tasks={CLASS_TASK: task})


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
