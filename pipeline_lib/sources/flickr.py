"""Flickr8k and Flickr30k: a text file with a line per caption, and a folder of images.

    data/flickr8k/
        captions.txt                         a CSV with the header `image,caption`; commas inside quotes
        Images/1000268201_693b08cb0e.jpg
        val.txt                              optional list files: an image name or key per line, to name in `parts`

The captions file may also be the original `Flickr8k.token` (`1000268201_693b08cb0e.jpg#0<TAB>A child ...`) or
Flickr30k's `results.csv` (columns apart by `|`). The key of a sample is its file name without the extension; the lines
of an image need not stand together. In params.yaml:

    data:
      format: flickr
      root: data/flickr8k
      annotations: null # the only captions.txt, *.token or results.csv; or its name
      images: null # Images, images, Flicker8k_Dataset, flickr30k_images, flickr30k-images or the root itself
      parts: {val: val.txt, refine: 0.8, eval: 0.2} # of what no list claims
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import FileImage, Sample, Source, make_sample

IMAGE_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "flickr30k_images", "flickr30k-images", ".")


def open_set(place: Place) -> Source:
    """Open a set in Flickr8k's or Flickr30k's layout.

    Raises:
        UserError: The captions file or the image folder is missing, or the file is not of this form.
    """
    path = place.find_captions_file(("captions.txt", "*.token", "results.csv", "results_*.token"))
    folder = place.find_image_folder(IMAGE_FOLDERS)
    captions: dict[str, list[str]] = {}
    for name, caption in _read_captions(path):
        captions.setdefault(name, []).append(caption)

    def make() -> Iterator[Sample]:
        for name, texts in captions.items():
            key, extension = os.path.splitext(os.path.basename(name))
            yield make_sample(key, FileImage(os.path.join(folder, name)), extension[1:].lower(), texts)

    return place.make_source(make, captioned=True)


def _read_captions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (image file, caption) from a CSV with a header, or from `file#0<TAB>caption` lines."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
            file.seek(0)
            yield from _token_rows(path, file) if re.match(r"[^\t]+#\d+\t", first) else _csv_rows(path, file, first)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not readable as captions ({error})") from None


def _token_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file, 1):
        name, tab, caption = line.rstrip("\r\n").partition("\t")
        if tab:
            yield name.rpartition("#")[0] or name, caption
        elif line.strip():
            raise UserError(f"{path}: line {number}: expected `file#0<TAB>caption`, found {line.strip()[:60]!r}")


def _csv_rows(path: Path, file: Iterable[str], first: str) -> Iterator[tuple[str, str]]:
    delimiter = "|" if first.count("|") > first.count(",") else ","
    rows = csv.reader(file, delimiter=delimiter, skipinitialspace=delimiter == "|")
    header = [name.strip().lower() for name in next(rows, [])]
    image, caption = (
        next((header.index(name) for name in names if name in header), -1)
        for names in (("image", "image_name", "filename"), ("caption", "comment"))
    )
    if image < 0 or caption < 0:
        raise UserError(f"{path}: line 1: expected the header `image,caption`, found {first.strip()[:60]!r}")
    for row in rows:
        if len(row) == len(header):
            yield row[image].strip(), row[caption]
        elif row:
            raise UserError(
                f"{path}: line {rows.line_num}: {len(row)} columns, the header has {len(header)}; quote the caption"
            )
