"""Text that leaves the program: made visible, bounded, and harmless to who opens it.

What is invisible is an escape (see `interp.visible`); HTML escaping is the template's work.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from interp.core.visible import visible

MAX_CELL = 200
"""Characters of a text shown in a page; the CSV beside it holds all of them."""
MAX_TOKEN = 40
"""Characters of a token where tokens stand side by side."""
FORMULA = re.compile(r"'*[=+\-@]")
"""What makes a spreadsheet run a cell, behind the apostrophes that stop it."""
PERCENT = re.compile(r"(?<=\d)[ \u00a0\u2009\u202f]?%(?!\w)")
QUOTED = re.compile(r"(?<=“) +(?=[^ ”])")
DEVICES = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9]")
"""Names that Windows keeps for itself, whatever their ending."""


def in_house_style(text: str) -> str:
    """Words as every report writes them: 23 %, with a space that does not break, and no space at
    the beginning of what is quoted."""
    return QUOTED.sub("", PERCENT.sub("\u00a0%", text))


def shorten(text: str, limit: int = MAX_CELL) -> str:
    """The beginning of a long text, with its length."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def number(value: Any, spec: str | None = None) -> str:
    """A number as a page shows it: three decimals, thousands apart, a true minus sign, "–" for
    nothing. Booleans are yes and no."""
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and math.isinf(value):
        return "∞" if value > 0 else "\u2212∞"
    if spec is None:
        spec = ".3f" if isinstance(value, float) else ","
    return in_house_style(format(value, spec).replace("-", "\u2212"))


def csv_cell(text: str) -> str:
    """A text as a CSV holds it: what a spreadsheet would run gets a leading apostrophe, and so does
    what looks guarded already, so that `files.unguarded` gives every text back."""
    text = visible(text)
    return f"'{text}" if FORMULA.match(text) else text


def slug(text: str, fallback: str = "table") -> str:
    """A file name of a to z, 0 to 9 and hyphens, at most 60 characters, that Windows takes too."""
    name = re.sub(r"[^a-z0-9]+", "-", text[:1000].lower())[:60].strip("-") or fallback
    return f"{name}-{fallback}" if DEVICES.fullmatch(name) else name


def json_block(value: Any) -> str:
    """JSON that may stand in a script element: ASCII, and nothing in it ends or opens a tag."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"})


def token_text(token: str, limit: int = MAX_TOKEN) -> str:
    """A token that can be seen and pointed at, whatever it is."""
    text = token if token.strip(" ") else "␣" * len(token) or "∅"
    shown = visible(text[:limit])
    return shown if len(text) <= limit else f"{shown}… ({len(text):,} characters)"
