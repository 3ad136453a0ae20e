"""Values against annotations: what fits comes back as the dataclass, what does not is named by its path.

Most kinds of mistakes are tried in tests/core/test_config.py, on the project's own params.yaml.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

from pipeline_lib.base.settings import BaseSettings
from pipeline_lib.core import config, schema
from pipeline_lib.core.errors import UserError
from pipeline_lib.params.sections import SECTIONS
from pipeline_lib.sources.settings import DataSettings

ROOT = Path(__file__).parents[2]


@schema.block
class Inner:
    size: schema.Eights


@schema.block
class Outer:
    name: str
    folder: Path
    share: schema.Share
    pair: tuple[int, float]
    kind: Literal["a", 1]
    by_name: Mapping[str, Inner | float]
    inner: Inner | None = None


GOOD = {"name": "n", "folder": "x/y", "share": 1, "pair": [1, 2], "kind": 1, "by_name": {"p": {"size": 16}, "q": 0.5}}


def test_what_fits():
    made = schema.build(Outer, GOOD, "f: outer")
    assert made == Outer(
        name="n", folder=Path("x/y"), share=1.0, pair=(1, 2.0), kind=1, by_name={"p": Inner(size=16), "q": 0.5}
    )
    assert type(made.share) is type(made.pair[1]) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "m"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": True}, "f: outer.kind: bool True is not one of a, 1"),
        ({"kind": 1.0}, "f: outer.kind: float 1.0 is not one of a, 1"),
        ({"pair": [1, 2, 3]}, "f: outer.pair: expected 2 whole numbers, found 3"),
        ({"by_name": []}, "f: outer.by_name: expected a block of keys, found a list"),
        ({"by_name": {"p": {"size": 12}}}, "f: outer.by_name.p.size: 12 is out of range: a whole number, at least 8 and a multiple of 8"),  # noqa: E501
        ({"by_name": {"p": "x"}}, "f: outer.by_name.p: expected a block of keys or a number, found str 'x'"),
        ({"folder": 3}, "f: outer.folder: expected a path, found int 3"),
        ({"folder": "a" * 256}, f"f: outer.folder: expected a path, found str '{'a' * 256}'"),
        ({"folder": "a/b\0"}, r"f: outer.folder: expected a path, found str 'a/b\x00'"),
        ({"folder": "\ud800/b"}, r"f: outer.folder: expected a path, found str '\ud800/b'"),
        ({"share": float("nan")}, "f: outer.share: nan is out of range: a number, at least 0 and at most 1"),
        ({"share": 10**400}, f"f: outer.share: expected a number, found int {10**400}"),
        ({"by_name": {"p": {"size": 10**400}}}, f"f: outer.by_name.p.size: {10**400} is out of range: a whole number, at least 8 and a multiple of 8"),  # noqa: E501
        ({"names": "n"}, "f: outer.names: unknown key; did you mean `name`?"),
        ({"zzz": "n"}, "f: outer.zzz: unknown key; known: name, folder, share, pair, kind, by_name, inner"),
    ],
)  # fmt: skip
def test_what_does_not(change, message):
    with pytest.raises(UserError) as error:
        schema.build(Outer, {**GOOD, **change}, "f: outer")
    assert str(error.value) == message


def test_a_key_that_may_be_null_may_be_left_out():
    params = config.read_params(ROOT / "params.yaml")
    for name, kind in SECTIONS.items():
        without = {key: value for key, value in params[name].items() if value is not None}
        assert schema.build(kind, without, name) == schema.build(kind, params[name], name)
    with pytest.raises(
        UserError, match=r"^data: is empty; write .*\(format, root, parts, evaluation_root, evaluation\)$"
    ):
        schema.build(DataSettings, None, "data")


def test_a_block_may_be_optional_but_not_something_else(tmp_path):
    """What `base.demo` is: absent or null, else a block that is checked like any other."""
    base = config.raw_section(ROOT / "params.yaml", "base")
    assert schema.build(BaseSettings, {**base, "demo": None}, "base").demo is None
    assert schema.build(BaseSettings, {k: v for k, v in base.items() if k != "demo"}, "base").demo is None
    with pytest.raises(UserError, match=r"^base.demo: expected a block of keys or null, found int 3$"):
        schema.build(BaseSettings, {**base, "demo": 3}, "base")
    with pytest.raises(UserError, match=r"^base.demo.image_size: missing; add it \(a whole number\) \(and 6 more: "):
        schema.build(BaseSettings, {**base, "demo": {"seed": 0}}, "base")
    with pytest.raises(UserError, match=r"^evaluate.recall_at: expected a list of whole numbers, found int 5$"):
        schema.convert(tuple[int, ...], 5, "evaluate.recall_at")
