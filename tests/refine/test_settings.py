"""Every option of section `refine` is read by some code."""

import re

from pipeline_lib.refine.settings import RefineSettings
from tests.tiny_project import ROOT


def test_every_field_is_read():
    """A field that nothing reads would be a switch without a wire."""
    source = "".join(path.read_text() for path in (ROOT / "pipeline_lib/refine").glob("*.py"))
    for name in RefineSettings.__dataclass_fields__:
        assert re.search(rf"settings\.{name}\b", source), name
