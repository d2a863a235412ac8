"""A process that dies between any two things that it does to the disk, without a second process."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.core.files import writing

OPERATIONS = (
    *((os, name) for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")),
    *((Path, name) for name in ("open", "mkdir", "rename", "replace", "unlink", "rmdir")),
    (shutil, "rmtree"),
    (writing, "_renameat2"),
)
"""What is counted: what changes a folder, or waits until it is on the disk."""
PATH_OPEN = Path.open


class Killed(BaseException):
    """What a kill looks like from inside; nobody catches it."""


class Death:
    """The operation `at` (from 0), and none after it, is done any more: not even tidying up."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.count = 0
        """Operations begun so far."""

    def wrapped(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            mode = given[1] if len(given) > 1 else options.get("mode", "r")
            if operation is PATH_OPEN and not set("wxa+") & set(mode):
                return operation(*given, **options)
            self.count += 1
            if self.at is not None and self.count > self.at:
                raise Killed
            return operation(*given, **options)

        return call


@contextlib.contextmanager
def dying(at: int | None = None) -> Iterator[Death]:
    """Die at an operation on the disk; without `at`, live and count them."""
    death = Death(at)
    with pytest.MonkeyPatch.context() as patched:
        for home, name in OPERATIONS:
            if getattr(home, name) is not None:  # where the system cannot exchange names
                patched.setattr(home, name, death.wrapped(getattr(home, name)))
        with contextlib.suppress(Killed):
            yield death
