"""A tap on the hook points of TransformerLens, put on for one run and taken off after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from interp.core.tap import Silent, Tap

from .candidates import GATED

LEVEL = -7
"""Marks our hooks, so that those of others stay."""


class Stopped(Exception):
    """The run reached the layer at which it was to stop."""

    def __init__(self, residual: Tensor) -> None:
        super().__init__("stopped")
        self.residual = residual


@contextlib.contextmanager
def attached(
    bridge: Any, points: Mapping[str, Any], tap: Silent | Tap, stop_at: str | None
) -> Iterator[None]:
    """While this lasts, the sites that the tap wants pass through it, and `stop_at` ends the run.

    Nothing is left behind, whatever happens meanwhile.
    """
    sites = [name for name in points if tap.wants(name)]
    flags = {GATED[local] for site in sites if (local := site.split(".", 2)[-1]) in GATED}
    stops = [] if stop_at is None else [stop_at]
    try:
        for flag in sorted(flags):
            getattr(bridge, f"set_{flag}")(True)
        for site in sites:
            points[site].add_hook(_through(tap, site), level=LEVEL)
        for site in stops:
            points[site].add_hook(_stop, level=LEVEL)
        yield
    finally:
        for site in (*sites, *stops):
            points[site].remove_hooks("fwd", level=LEVEL)
        for flag in flags:
            getattr(bridge, f"set_{flag}")(False)


def _through(tap: Silent | Tap, site: str) -> Callable[..., Tensor | None]:
    def hook(x: Tensor, hook: Any) -> Tensor | None:
        if tap.changes(site):
            return tap(site, x)
        tap(site, x.clone())  # the library may go on to add to x in place
        return None

    return hook


def _stop(x: Tensor, hook: Any) -> None:
    raise Stopped(x.clone())
