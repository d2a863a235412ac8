"""Options of the command line that are texts, and options that are files: neither for the other.

`--prompts` and `--text` take a file in every analysis, and `--prompt` takes texts. Before a model
is loaded, a file that is not there is refused, and so is a text that looks like the name of a file:
it would be read word by word, and a page of numbers about its name written.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILES = {
    "analogies": "a CSV file with the columns category, a, b, c, expected",
    "data": "a CSV, TSV or JSON-lines file with a text and its label in each row",
    "direction": "a file that Direction.save wrote",
    "prompts": (
        "a file: a CSV of pairs (clean, corrupted, answer, wrong) where an analysis takes pairs, "
        "else a text per line"
    ),
    "text": "a UTF-8 text file, a text per line",
}
"""Options that name a file to read, and what may stand in it."""
WRITTEN = ("journal", "out")
"""Options that name what is written."""
TEXTS = ("prompt",)
"""Options that are texts of any kind."""
WORDS = {
    **dict.fromkeys(("a", "b", "c", "expected"), "a word"),
    **dict.fromkeys(("words", "placed"), "words, one by one"),
    **dict.fromkeys(("positive", "negative"), "words, separated by commas"),
    "categories": "a name and words, as in “animals=cat dog”",
}
"""Options that are words, and how they are given; those that are no tokens are refused or counted
later."""
NAMES = (
    *("model", "compare", "device", "dtype", "site", "sites", "neurons", "subject", "category"),
    *("text_column", "label_column", "word_column", "group_column", "split_column"),
)
"""Options that are names of other things; whoever looks them up refuses what is not there."""
ENDING = re.compile(r"\S+\.[A-Za-z][A-Za-z0-9]{1,4}")
"""A text without a space that ends as names of files do: “prompts.txt”."""
DATA = re.compile(r"\S.*\.(csv|tsv|tab|txt|text|md|json|jsonl|gz|zip|parquet)", re.IGNORECASE)
"""A text that ends as names of data files do: “my prompts.csv”."""
BEGINNING = re.compile(r"(\.{0,2}|~\w*|[A-Za-z]:)[/\\]\S")
"""How paths begin: “/tmp/…”, “./…”, “~/…”, “C:\\…”."""
FEW = 3
"""Words of a file's name at most, unless it is there; sentences have more."""


def check_options(config: Any) -> None:
    """Raises ValueError on a file that is not there and on a text that looks like a file's name."""
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if isinstance(value, Path) and field.name not in WRITTEN:
            _check_file(value, option, FILES.get(field.name, "a file"))
        elif field.name in (*TEXTS, *WORDS):
            texts: Sequence[str] = (value,) if isinstance(value, str) else value or ()
            for text in texts:
                check_text(text, option, WORDS.get(field.name))


def check_text(text: str, option: str, words: str | None = None) -> None:
    """Raises ValueError on a text that looks like the name of a file; `words` says how it should be
    given where it is words."""
    if words is not None and (BEGINNING.match(text) or _ends_as_data(text)):
        raise ValueError(f"{option} {text!r} looks like the name of a file; it takes {words}")
    if words is None and looks_like_a_file(text):
        raise ValueError(
            f"{option} {text!r} looks like the name of a file, and this is a text; --prompts takes "
            "a file where an analysis has it (with a space in front it is read as text)"
        )


def looks_like_a_file(text: str) -> bool:
    """Whether a text is more likely the name of a file."""
    separated = not re.search(r"\s", text) and re.search(r"[/\\]", text) is not None
    written = BEGINNING.match(text) or ENDING.fullmatch(text)
    return separated or written is not None or _ends_as_data(text)


def _ends_as_data(text: str) -> bool:
    if DATA.fullmatch(text) is None:
        return False
    try:
        return len(text.split()) <= FEW or Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it: it is none
        return False


def _check_file(path: Path, option: str, form: str) -> None:
    try:
        there, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):
        there = folder = False
    if folder:
        raise ValueError(f"{option} {path}: this is a directory; it takes {form}")
    if not there:
        text = "; texts go by --prompt, in analyses that have it" if option == "--prompts" else ""
        raise ValueError(f"{option}: no file {path}; it takes {form}{text}")
