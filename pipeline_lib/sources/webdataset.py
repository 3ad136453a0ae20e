"""Webdataset: uncompressed tars, as img2dataset writes them, read in place and never copied.

    data/my_tars/
        00000.tar        000000000.jpg, 000000000.txt (a caption per line) or .json (`caption` or `captions`), ...
        00001.tar

Members that stand together and share a key (the name up to its first dot) are one sample: a jpg, png or webp and a txt
or json. Tars in which they stand apart are refused; members that no sample needs are counted by their ending. Tars
elsewhere are named by a file in `sha256sum`'s form, and then their hashes are checked:

    data/my_tars.sha256      6c1f...  ../far/00000.tar

In params.yaml:

    data:
      format: webdataset
      root: data/my_tars # or data/my_tars.sha256
      annotations: null
      images: null
      parts: {refine: 0.9, val: 0.05, eval: 0.05}
      limit: null
      evaluation_root: data/evaluation
      evaluation: {}
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Source, TarFile, read_lines
from pipeline_lib.sources.tars import find_tars, make_tar_source


def open_set(place: Place) -> Source:
    """Open a folder of tars, or the tars that a file of hashes lists.

    Raises:
        UserError: There is no tar, or a line of the list is not of `sha256sum`'s form.
    """
    place.refuse("images", "annotations", "split")
    tars = _read_list(place.root) if place.root.is_file() else [TarFile(path) for path in find_tars(place.root)]
    if not tars:
        raise UserError(f"{place.name}: no *.tar in {place.root}")
    return make_tar_source(place, tars, {})


def _read_list(path: Path) -> list[TarFile]:
    """Read a `sha256sum` listing; its names are relative to its folder."""
    tars = []
    for number, line in enumerate(read_lines(path), 1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if not match:
            raise UserError(f"{path}: line {number}: expected `<sha256>  <file.tar>` as sha256sum prints it")
        tar = path.parent / match[2]
        if not os.path.isfile(tar):
            raise UserError(f"{path}: line {number}: no such file: {tar}")
        tars.append(TarFile(tar, match[1].lower()))
    return tars
