"""Pairs of the user's own, read from a CSV file.

    clean,corrupted,answer,wrong,role:subject
    The Eiffel Tower is in,The Brandenburg Gate is in,Paris,Berlin,Tower

Every fault is named with the file and the line, and nothing is left out in silence.
"""

from __future__ import annotations

from pathlib import Path

from interp.core.files import Row, read_csv
from interp.core.occurrence import word_span
from interp.model import HookedTransformer

from .pairs import Pairs
from .prompts import Draft, Prompt, Reader, as_pairs

COLUMNS = ("clean", "corrupted", "answer", "wrong")
ROLE = "role:"


def from_csv(
    path: str | Path, model: HookedTransformer, *, bos: bool | None = None, space: bool = True
) -> Pairs:
    """Pairs from a file with the columns clean, corrupted, answer and wrong.

    The answer is the one token that follows the prompt behind a space (space=False: without one).
    A column role:<name> holds a word of the clean prompt; the role is the position of its last
    token, in both prompts ("John#2": its second occurrence). "end" is always there. Other columns
    are kept in `table`, as text. Rows may differ in length, and are then padded on the right.
    Raises ValueError, naming the line, where the file is none that `files.read_csv` reads, a cell
    is empty, clean and corrupted differ in length, an answer is several tokens, or a word does not
    occur.
    """
    path = Path(path)
    reader = Reader(model, path.stem, bos)
    drafts = []
    for row in read_csv(path, COLUMNS):
        try:
            _check_row(row)
            drafts.append(_draft(reader, row.cells, space))
        except ValueError as error:
            raise ValueError(f"{row.where}: {error}") from None
    return as_pairs(reader, drafts, changed=())


def _check_row(row: Row) -> None:
    """Raises ValueError on a role that cannot be given, and on a blank cell that is needed."""
    if f"{ROLE}end" in row.cells or ROLE in row.cells:
        raise ValueError("role:end is set by itself, and role: needs a name behind it")
    needed = [name for name in row.cells if name in COLUMNS or name.startswith(ROLE)]
    blank = [name for name in needed if not row.cells[name].strip()]
    if blank:
        raise ValueError(f"{', '.join(blank)} is empty")


def _draft(reader: Reader, row: dict[str, str], space: bool) -> tuple[Draft, dict[str, int]]:
    clean, corrupted = (_prompt(reader, side, row[side], space) for side in COLUMNS[:2])
    roles = {name.removeprefix(ROLE): row[name] for name in row if name.startswith(ROLE)}
    ends = {role: _end_of(role, word, clean.text) for role, word in roles.items()}
    read = reader.read(Prompt(clean.text, {**ends, **clean.ends}))
    other = reader.read(corrupted)
    if read is None or other is None:
        raise ValueError("the tokens of this prompt's words are not the tokens of the whole prompt")
    if len(read.ids) != len(other.ids):
        pieces = [reader.tokenizer.str_tokens(ids) for ids in (read.ids, other.ids)]
        raise ValueError(
            f"clean has {len(read.ids)} tokens and corrupted {len(other.ids)}, where positions are "
            f"compared one by one: {pieces[0]} and {pieces[1]}"
        )
    if read.at["end"] != other.at["end"]:
        raise ValueError(f"the mask {reader.blank!r} stands at different tokens")
    ids = [_answer(reader, clean.text, row, what, space) for what in COLUMNS[2:]]
    if ids[0] == ids[1]:
        raise ValueError(f"answer and wrong are the same token, {row['answer']!r}")
    if read.ids == other.ids:
        raise ValueError("clean and corrupted are the same")
    return Draft(clean, corrupted, ids[0], ids[1], row), read.at


def _prompt(reader: Reader, side: str, text: str, space: bool) -> Prompt:
    if reader.blank is None and space and text != text.rstrip():
        raise ValueError(
            f"{side} ends in a space, and another follows before the answer; take it away, or say "
            "space=False"
        )
    if reader.blank is not None and text.count(reader.blank) > 1:
        raise ValueError(f"{side} holds {reader.blank!r} more than once")
    return reader.close(Prompt(text, {}))


def _answer(reader: Reader, text: str, row: dict[str, str], what: str, space: bool) -> int:
    word = row[what].strip() if space else row[what]
    tokenizer = reader.tokenizer
    if reader.blank is not None:
        ids = reader.word(word) if space else tokenizer.encode(word, bos=False)
    else:
        ids = reader.following(text, f" {word}" if space else word)
    if ids is None:
        raise ValueError(f"{what} {word!r} melts into the prompt's last token")
    if len(ids) != 1:
        bare = reader.following(text, word) if space and reader.blank is None else None
        raise ValueError(
            f"{what} {word!r} is {len(ids)} tokens, {tokenizer.str_tokens(ids)}; one is needed"
            + (" (space=False: it is one)" if bare and len(bare) == 1 else "")
        )
    if reader.unknown(word):
        raise ValueError(f"{what} {word!r} is unknown to the tokenizer {tokenizer.name!r}")
    return ids[0]


def _end_of(role: str, cell: str, text: str) -> int:
    """The index behind the word that a role's cell names."""
    try:
        return word_span(text, cell)[1]
    except ValueError as error:
        raise ValueError(f"role {role}: {error}") from None
