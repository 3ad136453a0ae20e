"""The tests, one file a module. Imported before torch, so that `pipeline_lib` may say how threads wait."""

import pipeline_lib  # noqa: F401
