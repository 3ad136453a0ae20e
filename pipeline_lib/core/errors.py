"""The one exception a user is meant to read: a sentence with the file, the key and the remedy.

Programmer errors stay `ValueError`, `AssertionError` and the like and keep their traceback; a `UserError` is
printed by `terminal.run_stage` as a single line, exit code 1 (the traceback appears with `--debug`).
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: bad input, bad parameters, a missing file."""


def first_lines(error: BaseException, count: int = 3) -> str:
    """Return the first lines of another library's error that say something, as one line of at most 500 characters."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join([line for line in lines if line][:count])[:500]
