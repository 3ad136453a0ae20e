"""The one exception a user is meant to read: a sentence with the file, the key and the remedy.

Programmer errors stay `ValueError`, `AssertionError` and the like and keep their traceback; a `UserError` is
printed by `runtime.run_stage` as a single line, exit code 1 (the traceback appears with `--debug`).
"""


class UserError(Exception):
    """Something the user can mend: bad input, bad parameters, a missing file."""
