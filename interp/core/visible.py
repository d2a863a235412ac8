"""Text that leaves the program, made visible: what a terminal would obey or nobody would see is
written as an escape ("\\u202e").

Vocabularies, names of folders and configs hold control characters, lone surrogates, line separators
and marks that turn the direction of writing.
"""

from __future__ import annotations

import contextlib
import logging
import re
import unicodedata
from collections.abc import Iterator

INVISIBLE = {"Cc", "Cs", "Zl", "Zp"}
BIDI = {
    *"\u200e\u200f\u061c\ufeff",
    *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x206A)),
}
NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str, keep: str = "") -> str:
    """The text with every invisible, unencodable or direction-turning character as an escape, but
    for those in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(escape(c) if _hides(c) and c not in keep else c for c in text)


def escape(character: str) -> str:
    """The character as Python writes it in a string: \\n, \\uXXXX or \\UXXXXXXXX."""
    code = ord(character)
    return NAMED.get(character) or (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def logger(name: str) -> logging.Logger:
    """A logger of the house, whose lines are visible whoever prints them."""
    made = logging.getLogger(name)
    if _shown not in made.filters:
        made.addFilter(_shown)
    return made


@contextlib.contextmanager
def visible_errors() -> Iterator[None]:
    """Around what reads the files of strangers: their names in an error are visible."""
    try:
        yield
    except (ValueError, OSError) as error:
        error.args = tuple(visible(a, "\n") if isinstance(a, str) else a for a in error.args)
        raise


def _hides(character: str) -> bool:
    return character in BIDI or unicodedata.category(character) in INVISIBLE


def _shown(record: logging.LogRecord) -> bool:
    record.msg, record.args = visible(record.getMessage(), "\n"), None
    return True


def one_line(text: str) -> str:
    """Prose or an error message on one line."""
    return visible(re.sub(r"\s*\n\s*", " ", text.strip()))
