"""What is read of a block: annotations, docstrings under fields, inherited ones too."""

from collections.abc import Mapping
from typing import Literal

from pipeline_lib.core.schema import AtLeastOne, block
from pipeline_lib.evaluate.settings import EvaluateSettings
from pipeline_lib.params import fields
from pipeline_lib.params.sections import SECTIONS
from pipeline_lib.results.certainty import Certainty


@block
class Upper:
    """The upper class,
    in two lines.
    """

    count: AtLeastOne
    """How many,
    at least one.
    """


@block
class Lower(Upper):
    """The lower class."""

    kind: Literal["a", "b"] | None = None
    """Of what kind."""

    def method(self) -> None:
        """Not a field."""


def test_fields_have_their_annotation_and_the_text_under_them():
    assert fields.read_fields(Lower) == [
        fields.Field("count", AtLeastOne, "How many, at least one.", required=True),
        fields.Field("kind", Literal["a", "b"] | None, "Of what kind.", required=False),
    ]
    assert fields.meaning_of(Upper) == "The upper class, in two lines."


def test_every_field_of_every_section_has_a_meaning():
    for kind in SECTIONS.values():
        assert all(field.meaning for field in fields.read_fields(kind))


def test_what_evaluate_inherits_is_of_it():
    names = {field.name for field in fields.read_fields(EvaluateSettings)}
    assert {field.name for field in fields.read_fields(Certainty)} < names


def test_nested_blocks():
    assert fields.block_in(Lower) is Lower
    assert fields.block_in(Lower | None) is Lower
    assert fields.block_in(Mapping[str, Lower]) is Lower
    assert fields.block_in(Mapping[str, float | str]) is None
    assert fields.block_in(tuple[int, ...]) is None
    assert fields.block_in(int | None) is None
