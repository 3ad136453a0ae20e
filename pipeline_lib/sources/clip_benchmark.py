"""Evaluation sets as clip-benchmark publishes them: tars of images with class labels, or with captions; read in place.

    data/evaluation/wds_cifar10/
        test/0.tar, 1.tar, ...                     s0000000.webp, s0000000.cls (the index of a class), ...
        test/nshards.txt                           optional: how many tars there must be
        train/...
        classnames.txt                             a class name per line
        zeroshot_classification_templates.txt      a prompt template per line, `{c}` where the class name goes

A retrieval set has no classnames.txt, and a txt with a caption per line in the place of each cls. In params.yaml (the
other keys of `data` stay as they are):

    data:
      evaluation_root: data/evaluation
      evaluation:
        cifar10: {format: clip_benchmark, path: wds_cifar10} # split `test`
        cifar10_train: {format: clip_benchmark, path: wds_cifar10, split: train}
"""

from __future__ import annotations

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.classes import read_class_task
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import CLASS_TASK, Source, TarFile, read_lines
from pipeline_lib.sources.tars import find_tars, make_tar_source


def open_set(place: Place) -> Source:
    """Open one split of a set in clip-benchmark's layout.

    Raises:
        UserError: A tar is missing, or the class names or templates are not of this form.
    """
    place.refuse("images", "annotations")
    folder = place.root / (place.split or "test")
    tars = find_tars(folder)
    counted = folder / "nshards.txt"
    expected = read_lines(counted) if counted.is_file() else [str(len(tars))]
    if not tars:
        raise UserError(f"{place.name}: no *.tar in {folder}")
    if expected != [str(len(tars))]:
        raise UserError(f"{place.name}: {folder} holds {len(tars)} tars, {' '.join(expected) or 'none'} expected")
    classes = (place.root / "classnames.txt").is_file()
    tasks = {CLASS_TASK: read_class_task(place.root, "zeroshot_classification_templates.txt")} if classes else {}
    return make_tar_source(place, [TarFile(path) for path in tars], tasks)
