"""The one exception a user is meant to read: a sentence with the file, the key and the remedy.

Programmer errors stay `ValueError`, `AssertionError` and the like and keep their traceback; a `UserError` is
printed by `terminal.run_stage` as a single line, exit code 1 (the traceback appears with `--debug`).
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: bad input, bad parameters, a missing file; several sentences for several things.

    >>> str(UserError("params.yaml: refine.seed: missing", "params.yaml: refine.epoch: unknown key"))
    'params.yaml: refine.seed: missing (and 1 more: `clip-refine check` says them all)'
    """

    def __init__(self, *sentences: str) -> None:
        # What a file calls something may hold half of a surrogate pair, which no terminal can print.
        super().__init__(*(sentence.encode("utf-8", "backslashreplace").decode() for sentence in sentences))

    def __str__(self) -> str:
        first, *others = self.args
        return f"{first} (and {len(others)} more: `clip-refine check` says them all)" if others else str(first)


class Mistakes:
    """Gathers errors, so that a person reads all that is wrong at once.

    >>> mistakes = Mistakes()
    >>> with mistakes:
    ...     raise UserError("params.yaml: refine.seed: missing")
    >>> mistakes.sentences
    ['params.yaml: refine.seed: missing']
    """

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, UserError):
            self.sentences += error.args
        return isinstance(error, UserError)

    def raise_all(self) -> None:
        """Raise what was gathered.

        Raises:
            UserError: There was anything.
        """
        if self.sentences:
            raise UserError(*self.sentences)


def first_lines(error: BaseException, count: int = 3) -> str:
    """Return the first lines of another library's error that say something, as one line of at most 500 characters."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join([line for line in lines if line][:count])[:500]
