"""Urban1k: a long caption of each image, in a text file of the image's name.

    data/evaluation/Urban1k/
        image/1.jpg
        caption/1.txt       its first line is the caption

An image and its caption are joined by their names, whatever order a folder lists them in. Lines after the first are not
read, as in the published script, and files that have some are counted in the manifest (`files_with_more_lines`); a
caption without an image is quarantined, an image without a caption counted and named. Another set of this layout is
read as well. In params.yaml (the other keys of `data` stay as they are):

    data:
      evaluation_root: data/evaluation
      evaluation:
        urban1k: {format: urban1k, path: Urban1k}
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Sample, Source, extension_of, make_file_sample
from pipeline_lib.sources.tables import Rows, read_text_lines
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS, not_read

CAPTIONS = "caption"
log = logging.getLogger(__name__)


def open_set(place: Place) -> Source:
    """Open a set in Urban1k's layout.

    Raises:
        UserError: A folder is missing, no file has a caption, or two images have one name.
    """
    texts = place.root / CAPTIONS
    if not texts.is_dir():
        raise UserError(f"{place.name}.path: no folder {CAPTIONS} in {place.root}; name the folder that holds it")
    folder = place.find_image_folder(("image", "images"))
    images = _images(place, folder)
    listed = [name for name in os.listdir(texts) if name[0] != "."]
    names = sorted((name for name in listed if extension_of(name) == "txt"), key=lambda name: (len(name), name))
    rows, longer = Rows(texts, unit="file", read=len(names)), 0
    captions: dict[str, str] = {}
    for number, name in enumerate(names, 1):
        lines = [line for _, line in read_text_lines(texts / name)]
        first = lines[0]  # an empty file has an empty one
        if first is None or not first.strip():
            rows.leave_out(number, f"{name}: its first line is {'not UTF-8' if first is None else 'empty'}")
        else:
            captions[name[: -len(".txt")]] = first
            longer += any(line is None or line.strip() for line in lines[1:])
    rows.check()
    if longer:
        log.info("%s: %d of %d files have more lines than the caption; not read", texts, longer, len(names))

    def make() -> Iterator[Sample]:
        return (make_file_sample(folder, images.get(stem, f"{stem}.jpg"), [text]) for stem, text in captions.items())

    ignored = Counter(not_read(name) for name in set(listed) - set(names))
    facts = {"captions": "first line", "files_with_more_lines": longer}
    return place.make_source(make, image_folder=folder, captioned=True, rows=rows, ignored=ignored, facts=facts)


def _images(place: Place, folder: str) -> dict[str, str]:
    """Return {name without extension: file name} of the images."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        if name[0] != "." and extension_of(name) in IMAGE_EXTENSIONS:
            stem = os.path.splitext(name)[0]
            if found.setdefault(stem, name) != name:
                raise UserError(f"{place.name}: {folder} has {found[stem]} and {name}; which of them has the caption?")
    return found
