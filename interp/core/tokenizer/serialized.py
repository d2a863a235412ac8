"""The text of a tokenizer.json, checked before the library is trusted with it.

The library numbers added tokens anew, takes the last of two entries, and ends in a panic where a
regular expression runs away. Here that is a plain error.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import tokenizers

from ..files.untrusted import parse_json

MAX_GROWTH = 1000
"""How many characters the normalizer, or the decoder, may make of one."""
MAX_SECONDS = 1.0
"""For each text of the self-test, of which a sound tokenizer makes short work (20 µs)."""
TEXT = "The cat’s 12 mats: aaaaaaaa\n  bbbb!! 0000 été 猫 \t__ --"
WAY_OUT = "take the tokenizer files out of the folder to load the model for ids only"


def backend(serialized: str, name: str) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json. Raises ValueError, naming it, on a text that is
    none, numbers its tokens in two ways, draws at random, or runs away."""
    values = parsed(serialized, name)
    _check_growth(values, name)
    _check_model(values, name)
    try:
        with panics_named(name):
            made = tokenizers.Tokenizer.from_str(serialized)
    except Exception as error:  # noqa: BLE001  # the library raises plain Exception
        raise ValueError(f"{name}: not a valid tokenizer.json ({error})") from None
    for token in values.get("added_tokens") or ():
        content, stated = token["content"], token["id"]
        got = made.token_to_id(content)
        if got != stated:
            raise ValueError(
                f"{name}: tokenizer.json says that the added token {content!r:.60} has id "
                f"{stated}, but in its vocabulary it gets {got}; {WAY_OUT}"
            )
    made.no_truncation()
    made.no_padding()
    _try_out(made, name)
    return made


def parsed(serialized: str, name: str) -> dict[str, Any]:
    """A tokenizer.json as data."""
    try:
        return parse_json(serialized.encode(), name)
    except (ValueError, UnicodeEncodeError) as error:
        raise ValueError(f"{name}: not a valid tokenizer.json ({error})") from None


def vocabulary(values: dict[str, Any]) -> dict[str, Any]:
    """Entry to id of the model of a tokenizer.json, without added tokens."""
    model = values.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: pairs of a piece and its score
        pieces = [entry[0] if isinstance(entry, list) and entry else None for entry in vocab]
        return {piece: i for i, piece in enumerate(pieces) if isinstance(piece, str)}
    return vocab if isinstance(vocab, dict) else {}


class UnknownText(ValueError):
    """A text of words that the vocabulary lacks, where it has no token for unknown ones either."""


@contextlib.contextmanager
def panics_named(name: str) -> Iterator[None]:
    """A panic of the library, which is no Exception, as a ValueError; as `UnknownText` the plain
    Exception that it raises where an unknown token is needed and there is none."""
    try:
        yield
    except BaseException as error:
        if type(error) is Exception:
            raise UnknownText(f"{name}: a word of the text is unknown ({error})") from None
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{name}: the tokenizers library gave up ({error}); a regular expression or table of "
            f"tokenizer.json does not stand this text; {WAY_OUT}"
        ) from None


def _check_growth(values: dict[str, Any], name: str) -> None:
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = 1
        for inner in _objects(values.get(part)):
            content = inner.get("content")
            if inner.get("type") == "Replace" and isinstance(content, str):
                growth *= max(1, len(content))
        if growth > MAX_GROWTH:
            raise ValueError(
                f"{name}: the {part} of tokenizer.json makes {growth:,} characters of one, and at "
                f"most {MAX_GROWTH:,} are let through; {WAY_OUT}"
            )


def _check_model(values: dict[str, Any], name: str) -> None:
    model = values.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise ValueError(
            f"{name}: tokenizer.json drops merges at random (dropout={model['dropout']!r:.20}), so "
            "that a text has no fixed ids; set dropout to null in it"
        )
    ids = list(vocabulary(values).values())
    if len(set(map(repr, ids))) != len(ids):
        seen: dict[str, str] = {}
        for token, id in vocabulary(values).items():
            if repr(id) in seen:
                raise ValueError(
                    f"{name}: tokenizer.json gives the id {id!r:.20} to {seen[repr(id)]!r:.60} and "
                    f"to {token!r:.60}"
                )
            seen[repr(id)] = token


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a value, itself included; `parse_json` bounds the depth."""
    if isinstance(value, dict):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _objects(one)


def _try_out(made: tokenizers.Tokenizer, name: str) -> None:
    """Encode and decode ever longer texts. Raises ValueError as soon as one takes too long or gives
    too much, while that is still little: each costs at most as much per character as the next."""
    length = 1
    while length < 2 * len(TEXT):
        start, text = time.thread_time(), TEXT[:length]
        ids, back = [], ""
        with contextlib.suppress(UnknownText), panics_named(name):
            ids = made.encode(text).ids
            back = made.decode(ids, skip_special_tokens=False)
        seconds, size = time.thread_time() - start, max(len(ids), len(back))
        if seconds > MAX_SECONDS or size > MAX_GROWTH * (length + 10):
            raise ValueError(
                f"{name}: {length} characters take {seconds:.1f} s and become {len(ids):,} ids and "
                f"{len(back):,} characters again; tokenizer.json is broken or hostile; {WAY_OUT}"
            )
        length *= 2
