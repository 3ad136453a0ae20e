"""The library under the stages: a package a stage, imports only downwards (the contract stands in pyproject.toml).

OpenMP's idle threads sleep instead of spinning, unless the user says otherwise. Spinning gains a little on an idle
machine and costs a multiple on a busy one (two experiments at once: five times the step here). It is read when torch is
imported, so it is set before.

Ctrl-C while a command is still being imported ends it in one line, as it does later (`terminal`); so does a Python
that lacks a package, as one outside the project's environment does. The garbage collector waits meanwhile: importing
makes no garbage, and looking for some is a sixth of it. Nor does it look through everything once more at the end.
"""

import atexit
import gc
import os
import sys
from types import TracebackType

OWN = ("", "pipeline_lib", "stages")
REMEDY = "`source .venv/bin/activate` in the project's folder, or `make install` if that is done"


def _end_in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in OWN:
        print(f"error: no `{error.name}` in {sys.executable}; {REMEDY}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _is_own_command() -> bool:
    """Return whether Python is about to run a module of the project, and is not another program that imports it."""
    names = {argument.removeprefix("-m").partition(".")[0] for argument in sys.orig_argv[1:]}
    return sys.argv[0] == "-m" and not names.isdisjoint(OWN[1:])  # `-m`: its name until the module is found


if _is_own_command():
    sys.excepthook = _end_in_one_line
    gc.disable()  # until `terminal.one_line_errors`
    atexit.register(gc.freeze)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
