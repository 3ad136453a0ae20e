"""Crossmodal-3600 (XM3600): captions of 3,600 images in 36 languages, a JSON object per image, and a folder of images.

    data/evaluation/xm3600/
        captions.jsonl      {"image/key": "000411001ff7dd4f", "en": {"caption": ["A dish ...", "..."], ...},
                             "de": {"caption": ["..."], ...}, ...}
        images/000411001ff7dd4f.jpg

`language` says which captions are read, all that an image has in that language (some published scores use the first
alone); the manifest says so. An image without captions in it is left out, counted and named. In params.yaml (the other
keys of `data` stay as they are):

    data:
      evaluation_root: data/evaluation
      evaluation:
        xm3600_de: {format: xm3600, path: xm3600, language: de}
        xm3600_en: {format: xm3600, path: xm3600, language: en}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline_lib.core.errors import UserError
from pipeline_lib.sources.jsonl import good_values
from pipeline_lib.sources.place import Place
from pipeline_lib.sources.samples import Sample, Source, is_inside, make_file_sample
from pipeline_lib.sources.tables import Rows

KEY, LANGUAGE = "image/key", "language"
EXPECTED = 'expected {"image/key": "000411001ff7dd4f", "en": {"caption": ["A dish ..."]}}'


def open_set(place: Place) -> Source:
    """Open the captions of one language.

    Raises:
        UserError: No language is named or no image has captions in it, the file or the image folder is missing, or no
            line is of this form.
    """
    path = place.find_captions_file(("captions.jsonl",))
    folder = place.find_image_folder(("images",))
    rows, languages = Rows(path), set[str]()
    captions: list[tuple[str, list[Any]]] = []
    for number, value in good_values(rows, _names_an_image, EXPECTED):
        texts = {name: block["caption"] for name, block in value.items() if _is_good(block)}
        languages |= texts.keys()
        if place.language in texts:
            captions.append((value[KEY], texts[place.language]))
        else:
            rows.leave_out(number, f"no captions in `{place.language}`")
    if languages and place.language not in languages:
        given = "null" if place.language is None else f"`{place.language}`"
        raise UserError(f"{place.name}.{LANGUAGE}: {given} is none of {', '.join(sorted(languages))} of {path}")
    rows.check()

    def make() -> Iterator[Sample]:
        return (make_file_sample(folder, f"{key}.jpg", texts) for key, texts in captions)

    facts = {LANGUAGE: place.language, "captions": "all of each image"}
    return place.make_source(make, image_folder=folder, captioned=True, rows=rows, facts=facts)


def _names_an_image(value: Any) -> bool:
    return isinstance(value, dict) and is_inside(".", value.get(KEY))


def _is_good(block: Any) -> bool:
    """Return whether a value of a line holds the captions of a language."""
    return isinstance(block, dict) and isinstance(block.get("caption"), list)
