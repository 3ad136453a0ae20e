"""Flickr8k, Flickr30k, Flickr30k-CN and COCO-CN: a text file with a line per caption, and a folder of images.

    data/flickr8k/
        captions.txt                         a CSV with the header `image,caption`; commas inside quotes
        Images/1000268201_693b08cb0e.jpg
        val.txt                              optional list files: an image name or key per line, to name in `parts`

The captions file may also be the original `Flickr8k.token` (`1000268201_693b08cb0e.jpg#0<TAB>A child ...`), Flickr30k's
`results.csv` (columns apart by `|`, no quoting), Karpathy's `dataset_flickr30k.json` (see `karpathy.py`: its splits are
the set's own), or a table with the columns `filepath` and `title` (open_clip's, apart by tabs) or `file_name` and
`text`. The key of a sample is its file name without the extension; the lines of an image need not stand together. A
line that is not of its file's form is left out, counted and named. A name without an extension (COCO-CN's
`COCO_val2014_000000391895#0<TAB>...`) is that of the one image file that has it, in the image folder or in the folder
of its split there (`val2014`). Captions whose words carry part-of-speech tags, as files of Flickr30k-CN may have them,
are refused where most do. In params.yaml:

    data:
      format: flickr
      root: data/flickr8k
      annotations: null # the only captions.txt, *.token or results.csv, else dataset_flickr*.json; or its name
      images: null # Images, images, Flicker8k_Dataset, flickr30k_images, flickr30k-images or the root itself
      parts: {val: val.txt, refine: 0.8, eval: 0.2} # of what no list claims
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}

The Chinese sets as evaluation sets:

    evaluation:
      flickr30k_cn: {format: flickr, path: flickr30k_cn/flickr30k_test_zh.txt, images: ../flickr30k-images}
      coco_cn:
        format: flickr
        path: coco-cn-version1805v1.1/imageid.human-written-caption.txt
        images: ../coco # train2014 and val2014
        split: coco-cn_test.txt
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources import karpathy
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Sample, Source, is_inside, make_file_sample
from pipeline_lib.sources.tables import Rows, plain_suffix, read_text_lines
from pipeline_lib.sources.tars import IMAGE_EXTENSIONS

IMAGE_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "flickr30k_images", "flickr30k-images", ".")
COLUMNS = (  # names of the columns of images and captions; a header of the first kind is not looked at for the second
    (("image", "image_name", "filename"), ("caption", "comment")),
    (("filepath", "file_name", "image", "image_name", "filename"), ("title", "text", "caption", "comment")),
)
TAGGED = re.compile(r"\S+[/:_][A-Za-z]{1,4}(\s+\S+[/:_][A-Za-z]{1,4}){2,}\s*")  # three words or more, all with a tag
MAX_QUOTED_LINES = 100  # of one caption inside quotes; a quotation mark that is never closed would swallow the file

log = logging.getLogger(__name__)


def open_set(place: Place) -> Source:
    """Open a set in Flickr8k's or Flickr30k's layout.

    Raises:
        UserError: The captions file or the image folder is missing, the file is not of this form, most captions carry
            part-of-speech tags, or two image files fit a name.
    """
    path = place.find_captions_file(
        ("captions.txt", "*.token", "results.csv", "results_*.token"), ("dataset_flickr*.json*",)
    )
    if plain_suffix(path) == ".json":
        return karpathy.open_file(place, path, IMAGE_FOLDERS)
    folder = place.find_image_folder(IMAGE_FOLDERS)
    rows = Rows(path)
    named: dict[str, list[str]] = {}
    for name, caption in read_captions(rows, folder):
        named.setdefault(name, []).append(caption)
    rows.check()
    _refuse_tags(path, named)
    captions: dict[str, list[str]] = {}
    for name, texts in named.items():
        captions.setdefault(_image_file(place, folder, name), []).extend(texts)

    def make() -> Iterator[Sample]:
        return (make_file_sample(folder, name, texts) for name, texts in captions.items())

    return place.make_source(make, image_folder=folder, captioned=True, rows=rows)


def _refuse_tags(path: Path, captions: Mapping[str, Sequence[str]]) -> None:
    """Refuse a file of tagged words, which no tokenizer reads as the text that was written; say where a few are."""
    tagged = [text for texts in captions.values() for text in texts if TAGGED.fullmatch(text.strip())]
    said = f"{len(tagged)} of {sum(map(len, captions.values()))} captions carry part-of-speech tags, such as"
    if 2 * len(tagged) > sum(map(len, captions.values())):
        raise UserError(f"{path}: {said} {tagged[0].strip()[:60]!r}; take the file without tags")
    if tagged:
        log.warning("%s: %s %r", path, said, tagged[0].strip()[:60])


def _image_file(place: Place, folder: str, name: str) -> str:
    """Return the image file that a row names; a name without an extension is looked up in the image folder."""
    if os.path.splitext(name)[1] or os.path.isfile(os.path.join(folder, name)):
        return name
    coco = re.fullmatch(r"COCO_([a-z]+\d+)_\d+", name)
    stems = [name, *([f"{coco[1]}/{name}"] if coco else [])]
    files = [f"{stem}.{extension}" for stem in stems for extension in sorted(IMAGE_EXTENSIONS)]
    found = [file for file in files if os.path.isfile(os.path.join(folder, file))]
    if len(found) > 1:
        raise UserError(f"{place.name}.images: {folder} has {' and '.join(found)}; which of them is {name}?")
    return found[0] if found else name


def read_captions(rows: Rows, folder: str) -> Iterator[tuple[str, str]]:
    """Yield (image file, caption) from a table with a header, or from `file#0<TAB>caption` lines."""
    lines = [line for _, line in read_text_lines(rows.path)]
    first = lines[0] if lines else ""
    tokens = re.match(r"[^\t]+#\d+\t", first or "")
    for number, fields in _token_rows(lines) if tokens else _table_rows(rows.path, lines):
        rows.read += 1
        if isinstance(fields, str):
            rows.leave_out(number, fields)
        elif not is_inside(folder, fields[0]):
            rows.leave_out(number, f"{fields[0][:60]!r} is no file below {folder}")
        else:
            yield fields


Row = tuple[int, tuple[str, str] | str]  # the number of its line; (image file, caption), or why it has none


def _token_rows(lines: Sequence[str | None]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        name, tab, caption = (line or "").partition("\t")
        if tab:
            yield number, (name.rpartition("#")[0] or name, caption)
        elif line is None or line.strip():
            yield number, "not UTF-8" if line is None else f"expected `file#0<TAB>caption`, found {line.strip()[:60]!r}"


def _table_rows(path: Path, lines: Sequence[str | None]) -> Iterator[Row]:
    delimiter, width, image, caption = _header(path, (lines or [""])[0] or "")
    place = 1
    while place < len(lines):
        fields, used = _fields(lines, place, delimiter, width, image)
        if isinstance(fields, str):
            yield place + 1, fields
        elif fields:
            yield place + 1, (fields[image].strip(), fields[caption])
        place += used


def _header(path: Path, first: str) -> tuple[str, int, int, int]:
    """Return what parts the columns, how many there are, and which hold the image and the caption."""
    found: set[tuple[str, int, int, int]] = set()
    for kind, (images, captions) in enumerate(COLUMNS):
        for delimiter in () if found else ",|\t":
            names = [name.strip().lower() for name in _parsed([first], delimiter) or []]
            columns = [[names.index(name) for name in known if name in names] for known in (images, captions)]
            if all(columns) and (kind == 0 or all(len(one) == 1 for one in columns)):
                found.add((delimiter, len(names), columns[0][0], columns[1][0]))
    if len(found) != 1:
        raise UserError(
            f"{path}: line 1: expected the header `image,caption` (or image_name and comment, filepath and title, "
            f"file_name and text; one of each), found {first.strip()[:60]!r}"
        )
    return found.pop()


def _fields(
    lines: Sequence[str | None], place: int, delimiter: str, width: int, image: int
) -> tuple[list[str] | str, int]:
    """Return the fields of the row that begins at `place` (none: it is empty; a text: why it is bad), and its lines."""
    line = lines[place]
    if line is None:
        return "not UTF-8", 1
    if not line.strip():
        return [], 1
    plain = line.split(delimiter, width - 1 if delimiter == "|" else -1)
    for used in range(1, MAX_QUOTED_LINES + 1 if line.count('"') % 2 else 2):
        block = lines[place : place + used]
        if len(block) < used or None in block or (used > 1 and _begins_a_row(block[-1] or "", delimiter, width, image)):
            break
        fields = _parsed([each or "" for each in block], delimiter)
        if fields and len(fields) == width:
            # Bars part what nobody quotes: a caption of Flickr30k may begin and end with quotation marks of its own.
            needed = delimiter != "|" or used > 1 or any(mark in field for field in fields for mark in '"|')
            return (fields if needed else plain), used
    if len(plain) == width:
        return plain, 1
    advice = "; quote the caption" if len(plain) > width else ""
    return f"{len(plain)} columns, the header has {width}{advice}: {line.strip()[:60]!r}", 1


def _parsed(lines: Sequence[str], delimiter: str) -> list[str] | None:
    """Return the fields of one row by the rules of CSV, or None if it breaks them."""
    try:
        block = [f"{line}\n" for line in lines]
        rows = list(csv.reader(block, delimiter=delimiter, strict=True, skipinitialspace=delimiter == "|"))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _begins_a_row(line: str, delimiter: str, width: int, image: int) -> bool:
    """Return whether a line is a row by itself, and so no further line of a caption inside quotes."""
    fields = line.split(delimiter)
    name = fields[image].strip().strip('"') if image < len(fields) else ""
    return len(fields) >= width and os.path.splitext(name)[1][1:].lower() in IMAGE_EXTENSIONS
