"""YAML 1.2 as DVC writes it, read without running anything."""

import pytest
import yaml

from pipeline_lib.core import yaml12
from pipeline_lib.core.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("5e-07", 5e-7),
        ("1.0e-6", 1e-6),
        ("1E+3", 1000.0),
        ("-.5", -0.5),
        ("12", 12),
        ("0o17", 15),
        ("017", 17),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("null", None),
        ("~", None),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    """What DVC's reader (YAML 1.2) makes of a scalar; PyYAML's own loader differs on several of these."""
    found = yaml12.load(f"x: {text}", "a.yaml")["x"]
    assert found == value
    assert type(found) is type(value)


def test_pyyaml_alone_would_read_a_string():
    assert yaml.safe_load("x: 1e-6") == {"x": "1e-6"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "^a.yaml: not valid YAML: while parsing a flow sequence"),
        ("a:\n  b: 1\n  b: 2\n", "^a.yaml: line 3: key `b` stands twice in one block; delete one$"),
        ("a: !!python/object/apply:os.system [ls]\n", "^a.yaml: not valid YAML: could not determine a constructor"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        yaml12.load(text, "a.yaml")
