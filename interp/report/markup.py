"""Pages from templates: whatever they print is text, and they run nothing but what is ours."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from interp.core.visible import visible

HERE = Path(__file__).parent


def page(template: str, sheets: Sequence[str], scripts: Sequence[str] = (), **values: Any) -> str:
    """A template filled with `values`, the style sheets and scripts of `static/`, and their hashes,
    which are all that its policy lets through."""
    css, script = ("".join(map(_static, names)) for names in (sheets, scripts))
    return (
        _environment()
        .get_template(template)
        .render(css=css, css_hash=_hash(css), script=script, script_hash=_hash(script), **values)
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _static(name: str) -> str:
    return (HERE / "static" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _finalize(value: Any) -> Any:
    """What the template prints: plain text made visible, markup left alone."""
    return visible(value) if type(value) is str else value
