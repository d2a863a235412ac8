"""Where a word stands in a text, as users write it: "bank", or "bank#2" for its second place.

A word is a run of letters, digits and what belongs to them: combining marks (the vowel signs of
Hindi, the accents of decomposed text) and joiners. Apostrophes and hyphens part words: "bank" is in
"bank's" and in "bank-note". In scripts that put no space between words any run of characters can be
asked for, as 银行 in 我在银行工作.
"""

from __future__ import annotations

import re
import unicodedata

_NUMBERED = re.compile(r"(.+)#([1-9]\d?)", re.DOTALL)
JOINERS = frozenset("\u00ad\u200c\u200d\u2060\u0e33\u0eb3\uff9e\uff9f") | {
    chr(c) for c in range(0x1F3FB, 0x1F400)
}
"""Belong to the character before them, beside combining marks: the soft hyphen, the zero-width
joiner and non-joiner, the word joiner, vowel and sound signs of Thai, Lao and half-width Japanese
that Unicode counts as letters, and the skin tones of emoji."""
UNSPACED = re.compile(
    "["
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff"  # Chinese
    "\uf900-\ufaff\U00020000-\U0003ffff\u3100-\u312f\u31a0-\u31bf"
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f"  # Japanese
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1780-\u17ff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Khmer, Burmese
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df\ua000-\ua4cf"  # Balinese, Javanese, Yi
    "]"
)
"""Characters of scripts whose words are not parted by spaces."""
STACKING = frozenset("\u17d2\u1039\u1a60\u1b44\ua9c0")
"""Signs of these scripts that put the next consonant below the one before."""


def bare_word(word: str) -> str:
    """The word without its number."""
    return found[1] if (found := _NUMBERED.fullmatch(word.strip())) else word.strip()


def word_span(text: str, word: str, *, fold: bool = False) -> tuple[int, int]:
    """Start and end of a word in a text; fold: whatever its case.

    A word stands between letters and digits that are none of its own: "art" is not in "party", nor
    "कल" in "कला". Raises ValueError where it is missing, where it stands there more than once
    without a number, and on a number past the last.
    """
    bare, numbered = bare_word(word), _NUMBERED.fullmatch(word.strip())
    if not bare:
        raise ValueError(f"{word!r} is not a word")
    # Looked ahead for, so that places which overlap are all seen.
    pattern = re.compile(f"(?=({re.escape(bare)}))", re.IGNORECASE if fold else 0)
    spans = [match.span(1) for match in pattern.finditer(text)]
    spans = [span for span in spans if all(_parts(text, edge) for edge in span)]
    if not spans:
        raise ValueError(f"the word {bare!r} is not in {text[:200]!r}{_other_form(text, bare)}")
    if numbered is None and len(spans) > 1:
        raise ValueError(f"{bare!r} is there {len(spans)} times; write {bare}#1 or {bare}#2")
    which = int(numbered[2]) if numbered else 1
    if which > len(spans):
        raise ValueError(f"{word!r}, but {bare!r} is there {len(spans)} times")
    return spans[which - 1]


def _parts(text: str, at: int) -> bool:
    """Whether a word may begin or end in front of the character at this place."""
    if at in (0, len(text)):
        return True
    before, behind = text[at - 1], text[at]
    if _is_bound(behind):
        return False
    if not (_is_of_word(before) and _is_of_word(behind)):
        return True
    # What binds two characters, and a number, is not parted in scripts without spaces either.
    if before in STACKING or before in JOINERS or (before.isdecimal() and behind.isdecimal()):
        return False
    return bool(UNSPACED.match(before) or UNSPACED.match(behind))


def _is_bound(character: str) -> bool:
    """Whether a character belongs to the one before it."""
    return character in JOINERS or unicodedata.category(character).startswith("M")


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_" or _is_bound(character)


def _other_form(text: str, bare: str) -> str:
    """What to try where a word is there in the other way of writing its accents."""
    for form in ("NFC", "NFD"):
        if (other := unicodedata.normalize(form, bare)) != bare and other in text:
            return f"; it is there as {form}, letters and accents otherwise put together"
    return ""
