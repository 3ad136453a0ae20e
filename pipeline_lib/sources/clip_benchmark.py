"""Evaluation sets as clip-benchmark publishes them: tars of images with class labels, or with captions; read in place.

    data/evaluation/wds_cifar10/
        test/0.tar, 1.tar, ...                     s0000000.webp, s0000000.cls (the index of a class), ...
        test/nshards.txt                           optional: how many tars there must be
        train/...
        classnames.txt                             a class name per line
        zeroshot_classification_templates.txt      a prompt template per line, `{c}` where the class name goes

A set of captions has a txt with one per line in the place of each cls, no class names, and `dataset_type.txt`, which
says `retrieval`: each image needs a caption. In the others each needs a label. Sets with several labels an image
(`multilabel`) are refused. In params.yaml (the other keys of `data` stay as they are):

    data:
      evaluation_root: data/evaluation
      evaluation:
        cifar10: {format: clip_benchmark, path: wds_cifar10} # split `test`
        cifar10_train: {format: clip_benchmark, path: wds_cifar10, split: train}
"""

from __future__ import annotations

import dataclasses

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import classes
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import CLASS_TASK, Source, TarFile, Task, read_lines
from pipeline_lib.sources.tars import find_tars, make_tar_source

TYPE_FILE, TYPES = "dataset_type.txt", ("classification", "retrieval")


def open_set(place: Place) -> Source:
    """Open one split of a set in clip-benchmark's layout.

    Raises:
        UserError: A tar is missing, the set is of a type that is not read, or class names or templates are not of this
            form.
    """
    place.refuse("images", "annotations")
    folder = place.root / (place.split or "test")
    tars = find_tars(folder)
    if not tars:
        raise UserError(f"{place.name}: no *.tar in {folder}")
    counted = folder / "nshards.txt"
    expected = read_lines(counted) if counted.is_file() else [str(len(tars))]
    if expected != [str(len(tars))]:
        raise UserError(f"{place.name}: {folder} holds {len(tars)} tars, {' '.join(expected) or 'none'} expected")
    source = make_tar_source(place, [TarFile(path) for path in tars], _tasks(place))
    return dataclasses.replace(source, facts={"folder": place.root.name})


def _tasks(place: Place) -> dict[str, Task]:
    """Return the classification task; none for a set of captions."""
    if _type(place) == "retrieval":
        return {}
    path = place.root / classes.NAMES
    if not path.is_file():
        raise UserError(
            f"{place.name}: no {path}, so its labels have no names; a set of captions says `retrieval` in "
            f"{place.root / TYPE_FILE}"
        )
    names = classes.read_names(path)
    templates = place.root / "zeroshot_classification_templates.txt"
    return {CLASS_TASK: classes.make_task(place.name, range(len(names)), names, templates)}


def _type(place: Place) -> str:
    """Return what dataset_type.txt says; `classification` without one, as clip-benchmark writes none for it."""
    path = place.root / TYPE_FILE
    found = " ".join(read_lines(path)) if path.is_file() else TYPES[0]
    if found == "multilabel":
        raise UserError(
            f"{place.name}: {path} says `multilabel`: several labels an image are not scored here; take the set with "
            "one label an image where there is one (wds_voc2007 for wds_voc2007_multilabel), or take it out"
        )
    if found not in TYPES:
        raise UserError(f"{place.name}: {path} says `{found}`; known are {', '.join(TYPES)}")
    return found
