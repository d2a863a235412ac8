"""What every command line of this project shares: what is printed can be seen, errors in one line,
and exit codes.

0: done. 1: the model that `interp doctor` examined failed a check. 2: the user's mistake, named in
one line. 130: Ctrl-C. A fault of our own keeps its traceback, and so does every other with --debug
or INTERP_DEBUG=1.

Everything that a command prints, whoever prints it (this project, a library's progress bar, a
warning, a traceback), passes through `Shown`: a folder's name, a config's key or a token cannot
move the cursor, write into the clipboard or hide. Newlines and tabs stay.
"""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from interp.core.visible import one_line, visible

USER_ERRORS = (ValueError, OSError, NotImplementedError)
KEPT = "\n\t"
BAR = re.compile(r"\r|(\x1b\[A|\n)+")
"""What moves the cursor for a progress bar: a write that is nothing else, or how a write begins."""


class Shown:
    """A stream whose text is visible. `bars`: it shows progress bars, which move the cursor."""

    def __init__(self, stream: Any, bars: bool = False) -> None:
        self.stream, self.bars = stream, bars

    def write(self, text: str) -> int:
        moves = BAR.match(text) if self.bars else None
        start = (
            moves.group() if moves and (moves.group() == "\r" or moves.end() == len(text)) else ""
        )
        self.stream.write(start + visible(text[len(start) :], KEPT))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guarded(act: Callable[[list[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command with its arguments (those of the process by default); the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("INTERP_DEBUG", "0") not in ("", "0")
    before = sys.stdout, sys.stderr
    streams = [_open_stream(stream) for stream in before]
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # a terminal without “−” must not end a long run
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _traceback
    os.environ.setdefault("NO_COLOR", "1")  # colours are escapes, which nobody could tell apart
    sys.stdout, sys.stderr = Shown(streams[0]), Shown(streams[1], bars=True)
    try:
        code = _run(act, [one for one in arguments if one != "--debug"], debug)
    except BrokenPipeError:  # the reader (head, less) has left; nothing is wrong
        before = open(os.devnull, "w"), before[1]  # noqa: SIM115  # what Python flushes at exit
        return 0
    finally:
        sys.stdout, sys.stderr = before
    return code


def write_text(text: str) -> None:
    """A text that a model wrote, on standard output: visible on a terminal, as it is in a file or
    pipe, where it may be read as data."""
    stream = sys.stdout
    if isinstance(stream, Shown) and not stream.isatty():
        stream = stream.stream
    stream.write(f"{text}\n")


def _open_stream(stream: Any) -> Any:
    """The stream; where the caller closed it (`>&-`, pythonw), one that takes everything: what
    nobody reads is no reason to lose a report."""
    if stream is not None and not stream.closed:
        return stream
    return open(os.devnull, "w", encoding="utf-8")  # as long as the process


def _run(act: Callable[[list[str]], int], arguments: list[str], debug: bool) -> int:
    try:
        code = act(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        raise
    except USER_ERRORS as error:
        if debug:
            raise
        sys.stderr.write(
            f"error: {one_line(str(error)) or type(error).__name__}  (--debug shows where)\n"
        )
        return 2


def _traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    Shown(sys.stderr).write(text)
