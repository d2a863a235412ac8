"""Where a word stands in a text, as users write it: "bank", or "bank#2" for its second place."""

from __future__ import annotations

import re

_NUMBERED = re.compile(r"(.+)#([1-9]\d?)")


def bare_word(word: str) -> str:
    """The word without its number."""
    return found[1] if (found := _NUMBERED.fullmatch(word.strip())) else word.strip()


def word_span(text: str, word: str, *, fold: bool = False) -> tuple[int, int]:
    """Start and end of a word in a text; fold: whatever its case.

    A word stands between letters and digits that are none of its own: "art" is not in "party".
    Raises ValueError where it is missing, where it stands there more than once without a number,
    and on a number past the last.
    """
    bare, numbered = bare_word(word), _NUMBERED.fullmatch(word.strip())
    if not bare:
        raise ValueError(f"{word!r} is not a word")
    pattern = rf"(?<!\w){re.escape(bare)}(?!\w)"
    found = [match.span() for match in re.finditer(pattern, text, re.IGNORECASE if fold else 0)]
    if not found:
        raise ValueError(f"the word {bare!r} is not in {text[:200]!r}")
    if numbered is None and len(found) > 1:
        raise ValueError(f"{bare!r} is there {len(found)} times; write {bare}#1 or {bare}#2")
    which = int(numbered[2]) if numbered else 1
    if which > len(found):
        raise ValueError(f"{word!r}, but {bare!r} is there {len(found)} times")
    return found[which - 1]
