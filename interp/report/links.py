"""Where the sentences of a report lead: addresses of exhibits, of pages, of heads in a viewer."""

from __future__ import annotations

import re

from .attention import Attention
from .contents import INDEX, Contents, Sentence, whole_words
from .text import shorten

HEAD = re.compile(r"#head-L(\d{1,6})H(\d{1,6})(?:-prompt(\d{1,6}))?")
"""A head in a viewer, and the prompt at which it opens, counted from 1."""
LISTED = 20
"""Names that an error lists."""


def pieces(contents: Contents, sentence: Sentence) -> list[tuple[str, str]]:
    """The words of a sentence, each with the address that it leads to, or "".

    Raises ValueError, which shows the sentence, on a name that nothing bears.
    """
    try:
        whole = address(contents, sentence.at) if sentence.at else ""
        links = {words: address(contents, to) for words, to in sentence.links.items()}
    except ValueError as error:
        raise ValueError(f"{error} (in {shorten(str(sentence))!r})") from None
    if not links:
        return [(str(sentence), whole)]
    parts = whole_words([*links]).split(sentence)
    return [
        (words, links.get(words, "") if odd % 2 else whole * bool(re.search(r"\w", words)))
        for odd, words in enumerate(parts)
        if words
    ]


def address(contents: Contents, target: str) -> str:
    """The address, seen from a page, of an exhibit's name, of another page of the report, or of a
    head (`HEAD`). Raises ValueError where there is none."""
    home = contents.home or contents
    path, _, fragment = target.partition("#")
    if path in home.pages:
        if fragment:
            _anchor(home.pages[path], f"#{fragment}", target)
        return f"{contents.root}{target}"
    if contents.home is not None and not _shows(contents, target):
        return f"{contents.root}{INDEX}{_anchor(home, target, target)}"
    return _anchor(contents, target, target)


def _anchor(contents: Contents, name: str, target: str) -> str:
    if _shows(contents, name):
        return name if name.startswith("#") else f"#{name}"
    home = contents.home or contents
    names = [*(item.name for item in contents.exhibits()), *home.pages]
    listed = ", ".join(names[:LISTED]) + ", …" * (len(names) > LISTED)
    raise ValueError(
        f"{target!r} leads nowhere: the report shows {listed or 'nothing yet'}; a head of a viewer "
        "is '#head-L0H1' or, at its second prompt, '#head-L0H1-prompt2'"
    )


def _shows(contents: Contents, name: str) -> bool:
    match = HEAD.fullmatch(name)
    if match:
        layer, head, prompt = (int(number or 1) for number in match.groups())
        viewers = [item for item in contents.exhibits() if isinstance(item, Attention)]
        return any(viewer.shows(layer, head, prompt) for viewer in viewers)
    return any(name.removeprefix("#") == item.name for item in contents.exhibits())
