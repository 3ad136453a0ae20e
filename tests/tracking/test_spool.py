"""Spools: made while others are removed, and where there are no locks."""

import errno
import fcntl
import os

import pytest

from pipeline_lib.core.errors import UserError
from tests.tracked_project import (
    do,
    make_project,
    python,
)


def test_spools_are_made_while_another_process_removes_their_empty_folder(tmp_path):
    """Two processes begin and end runs as fast as they can; the last one to end removes the folder each time."""
    code = """
        import os
        from pathlib import Path
        from pipeline_lib.tracking.spool import Spool

        for number in range(2000):
            spool = Spool.of(Path("."), "refine", f"{os.environ['NAME']}{number:011d}")
            assert spool.open()
            spool.delete()
    """
    both = [python(code, tmp_path, NAME=name) for name in "ab"]
    assert [process.wait(120) for process in both] == [0, 0], [process.stderr.read() for process in both]


@pytest.mark.parametrize("mode", ["best_effort", "required"])
def test_a_file_system_without_locks_is_named_with_the_remedy(tmp_path, monkeypatch, caplog, mode):
    params = make_project(tmp_path, mode=mode, store=False)

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    if mode == "required":
        with pytest.raises(UserError, match=r"cannot be locked .* set tracking\.mode to disabled"):
            do("base", params)
    else:
        do("base", params)
        assert caplog.text.count("cannot be locked") == 1
