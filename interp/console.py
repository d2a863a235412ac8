"""What every command line of this project shares: errors in one line, and exit codes.

0: done. 1: the model that `interp doctor` examined failed a check. 2: the user's mistake, named in
one line. 130: Ctrl-C. A fault of our own keeps its traceback, and so does every other with --debug
or INTERP_DEBUG=1.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence

from .report.text import one_line

USER_ERRORS = (ValueError, OSError, NotImplementedError)


def guarded(act: Callable[[list[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run a command with its arguments (those of the process by default); the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("INTERP_DEBUG", "0") not in ("", "0")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without “−” must not end a long run
            stream.reconfigure(errors="backslashreplace")
    try:
        code = act([one for one in arguments if one != "--debug"])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:  # the reader (head, less) has left; nothing is wrong
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # what Python flushes at exit
        return 0
    except USER_ERRORS as error:
        if debug:
            raise
        sys.stderr.write(
            f"error: {one_line(str(error)) or type(error).__name__}  (--debug shows where)\n"
        )
        return 2
