"""What a person sees of a stage: its command line, one line for an error, progress bars. It decides no result.

`run_stage` is the shell around every `stages/<name>.py`: it turns a `UserError` into one line and exit code 1, and lets
every other exception through with its traceback. On a terminal, lines of the log stand above the bars; elsewhere (CI,
nohup) a bar is a line of the log every half minute, and each line has the time of day.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import gc
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

from pipeline_lib.core import runtime
from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.core.paths import STAGES

log = logging.getLogger(__name__)
T = TypeVar("T")
EVERY = 30.0  # seconds between two lines of a bar without a terminal
LINE = "%(asctime)s %(name)s: %(message)s"
_place = ""
PLAIN_SIGNS = {"→": "->", "−": "-", "–": "-", "\u00a0": " ", "×": "x", "±": "+-", "▲": "^", "▼": "v", "●": "*"}


def run_stage(
    main: Callable[..., None], description: str | None, *, choice: tuple[str, Sequence[str]] | None = None
) -> NoReturn:
    """Run a stage's `main(params_file)` as a command and exit: 0 only on success.

    Args:
        main: Called with the params file (and the chosen item, if `choice` is given and one was named).
        description: The stage's docstring, shown by `--help`.
        choice: Name and values of an optional positional argument, such as `("model", ("base", "refined"))`.
    """
    _write_any_sign()
    parser = argparse.ArgumentParser(
        prog=_command(main), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="traceback for user errors, more log lines")
    if choice:
        parser.add_argument(choice[0], nargs="?", choices=choice[1], help=f"only this {choice[0]} (default: all)")
    options = parser.parse_args()
    _note_place(main)
    runtime.install_signals()
    chosen = getattr(options, choice[0]) if choice else None
    with one_line_errors(debug=options.debug):
        main(options.params, chosen) if chosen else main(options.params)
        _end_repro()
    sys.exit(0)


def _command(main: Callable[..., None]) -> str | None:
    """Say how a user calls the module of `main`: `python -m stages.base`; None where it was not called as a module."""
    spec = getattr(main, "__globals__", {}).get("__spec__")
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


def _note_place(main: Callable[..., None]) -> None:
    """Keep which stage of how many this process is, as the bars shall say."""
    global _place
    stage = (_command(main) or "").rpartition(".")[2]
    if stage in STAGES:
        _place = f"{stage}, {STAGES.index(stage) + 1} of {len(STAGES)} | "


def _end_repro() -> None:
    """Stop a stage that Ctrl-C reached in its last moments: had it ended in success, dvc would go on with the next."""
    if runtime.stop_signal() == signal.SIGINT and "DVC_STAGE" in os.environ:
        log.warning("the stage is done; `dvc commit %s` keeps what it made", os.environ["DVC_STAGE"])
        raise runtime.Stopped


@contextmanager
def one_line_errors(*, debug: bool = False, level: int = logging.INFO) -> Iterator[None]:
    """Log to standard error around a command, and say what the user can mend in one line there, with exit code 1.

    Ctrl-C is one line as well. A reader of standard output that has seen enough (`| head`) ends the command without a
    word, with a shell's exit code for it. With `debug`, all log lines, and every error has its traceback.
    """
    if not gc.isenabled():  # since `pipeline_lib` was imported; what the imports made, stays
        gc.freeze()
        gc.enable()
    _write_any_sign()
    handler = _AboveBars(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s" if _is_watched() else LINE, datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for own in ("pipeline_lib", "stages"):
        logging.getLogger(own).setLevel(logging.DEBUG if debug else level)
    try:
        yield
        sys.stdout.flush()  # here and not at exit, where a closed pipe could only be complained of
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(128 + signal.SIGPIPE)
        sentence = _sentence(error)
        if debug or not sentence:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _nobody_reads() -> bool:
    """Return whether standard output is a closed pipe, which it then is no longer: its rest needs a place at exit."""
    ends = select.poll()
    ends.register(sys.stdout.fileno(), 0)
    if not ends.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _write_any_sign() -> None:
    """Let a terminal that has not every sign (Latin-1, ASCII) show a plain one instead, or the sign's number."""
    codecs.register_error("plain_signs", _plain_signs)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain_signs")


def _plain_signs(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(PLAIN_SIGNS.get(one, one.encode("ascii", "backslashreplace").decode()) for one in signs), error.end


def _sentence(error: Exception) -> str:
    """Return the line for an error that the user can mend; "" for one of the program.

    A full disk or a missing permission is the user's to mend as well: OSError names the file itself. Libraries that
    write weights wrap that of a full disk in an error of their own.
    """
    if isinstance(error, UserError):
        return str(error)
    wrapped: BaseException | None = error
    while wrapped is not None:
        if any(os.strerror(number) in str(wrapped) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            return f"{first_lines(wrapped, 1)}; make room and run again"
        wrapped = wrapped.__cause__ or wrapped.__context__
    return str(error) if isinstance(error, OSError) and error.strerror else ""


def progress(items: Iterable[T] | None, *, label: str, enabled: bool = True, **options: Any) -> Any:
    """Show a progress bar over `items` (tqdm), or lines of the log where standard error is no terminal.

    Before its label stands the stage's place in the pipeline. Nothing where `enabled` is false.
    """
    kind = tqdm if _is_watched() else _Lines
    return kind(items, desc=_place + label, disable=not enabled, dynamic_ncols=True, **options)


def _is_watched() -> bool:
    return sys.stderr.isatty()


class _AboveBars(logging.StreamHandler[Any]):
    """Writes the lines of the log above the progress bars, which it clears meanwhile."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Take the bars' lock before the handler's own, the order in which a bar that logs has them."""
        with tqdm.external_write_mode(file=self.stream):
            return super().handle(record)


class _Lines(tqdm):
    """A progress bar that is a line of the log every half minute, and one at its end if there was any."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Look at the clock at every step, and not before half a minute has gone."""
        options |= {"mininterval": EVERY, "maxinterval": EVERY, "delay": EVERY, "miniters": 1, "file": io.StringIO()}
        self._said: float = -1
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log the line in place of drawing the bar; the last one not again."""
        if self.n != self._said:
            self._said = self.n
            logging.getLogger("pipeline_lib.progress").info("%s", _as_line(self.format_dict))


def _as_line(bar: Mapping[str, Any]) -> str:
    """Return what a bar shows as words: `refine: 120 of 480 step (25 %), 3.2 step/s, loss=0.4107, 01:53 left`.

    Args:
        bar: A bar's `format_dict`.
    """
    done, total, unit = bar["n"], bar["total"], bar["unit"].strip()
    rate = bar["rate"] or (done - bar["initial"]) / max(bar["elapsed"], 1e-9)
    share = f" of {total} {unit} ({done / total:.0%})" if total else f" {unit}"
    left = f"{tqdm.format_interval((total - done) / rate)} left" if total and rate else ""
    parts = [f"{bar['prefix']}: {done}{share}", f"{rate:.3g} {unit}/s", bar["postfix"] or "", left]
    return ", ".join(part for part in parts if part)
