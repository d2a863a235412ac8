"""What a folder says beside its tokenizer.json that no token shows, compared with it.

transformers obeys some of it in one version and for one class of tokenizer, and not in another; a
folder that agrees with itself means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import decode, read_bytes
from ..files.untrusted import read_json
from .serialized import vocabulary

MAX_VOCABULARY_BYTES = 64 << 20
SPECIAL = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Roles of special tokens, in the order in which transformers adds them."""


def check_agreement(folder: Path, values: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise ValueError where tokenizer_config.json (`config`), vocab.json, vocab.txt or merges.txt
    contradict tokenizer.json (`values`)."""
    where = folder / "tokenizer_config.json"
    for name, has in _switches(values, config):
        if isinstance(config.get(name), bool) and config[name] != has:
            raise ValueError(
                f"{where}: {name}={str(config[name]).lower()}, but tokenizer.json says "
                f"{str(has).lower()}, and which of them the weights were trained with nobody can "
                f"tell; make them agree, or take {name} out of tokenizer_config.json"
            )
    _check_vocabulary(folder, values)
    _check_merges(folder, values)


def _switches(values: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Field of tokenizer_config.json, and whether tokenizer.json does that, where it shows."""
    normalizers = list(_parts(values.get("normalizer"), "normalizers"))
    splitters = list(_parts(values.get("pre_tokenizer"), "pretokenizers"))
    for part in normalizers:
        if part.get("type") == "BertNormalizer":
            yield "do_lower_case", bool(part.get("lowercase"))
            yield "tokenize_chinese_chars", bool(part.get("handle_chinese_chars"))
            accents = part.get("strip_accents")
            yield "strip_accents", bool(part.get("lowercase") if accents is None else accents)
    kinds = [part.get("type") for part in normalizers]
    if "BertNormalizer" not in kinds:
        yield "do_lower_case", "Lowercase" in kinds
    for part in splitters:
        if part.get("type") == "ByteLevel" and len(splitters) == 1:
            yield "add_prefix_space", bool(part.get("add_prefix_space"))
        if part.get("type") == "Metaspace":
            scheme = part.get("prepend_scheme", "always")
            yield "add_prefix_space", scheme != "never"
    begins, ends = _template(values, config)
    if begins is not None and ends is not None:
        yield "add_bos_token", begins
        yield "add_eos_token", ends


def _template(
    values: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[bool | None, bool | None]:
    """Whether the template of tokenizer.json puts the BOS token first and the EOS token last; None:
    it has none that shows."""
    processors = list(_parts(values.get("post_processor"), "processors"))
    texts = {role: config.get(role) for role in ("bos_token", "eos_token")}
    bos, eos = (t.get("content") if isinstance(t, dict) else t for t in texts.values())
    if bos is None or eos is None:
        return None, None
    pieces: list[str] = []
    for part in processors:
        if part.get("type") == "TemplateProcessing":
            single = part.get("single")
            for piece in single if isinstance(single, list) else ():
                token = piece.get("SpecialToken") if isinstance(piece, dict) else None
                pieces.append(str(token.get("id")) if isinstance(token, dict) else "")
        elif part.get("type") != "ByteLevel":
            return None, None
    return bos in pieces[:1], eos in pieces[-1:] and len(pieces) > 1


def _parts(value: Any, inner: str) -> Iterator[dict[str, Any]]:
    """A component, or those of a sequence of them, however deep."""
    if isinstance(value, dict) and value.get("type") == "Sequence":
        for one in value.get(inner) or ():
            yield from _parts(one, inner)
    elif isinstance(value, dict):
        yield value


def _check_vocabulary(folder: Path, values: Mapping[str, Any]) -> None:
    ours = vocabulary(dict(values))
    added = {t["content"] for t in values.get("added_tokens") or () if isinstance(t, dict)}
    file = folder / "vocab.json"
    if file.is_file():
        _compare(file, read_json(file, MAX_VOCABULARY_BYTES), ours, added)
    file = folder / "vocab.txt"
    if file.is_file():
        lines = decode(read_bytes(file, MAX_VOCABULARY_BYTES), file).removesuffix("\n").split("\n")
        _compare(file, {line.rstrip("\r"): i for i, line in enumerate(lines)}, ours, added)


def _compare(
    file: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], added: set[str]
) -> None:
    for token in sorted((theirs.keys() ^ ours.keys()) - added):
        other = "tokenizer.json" if token in theirs else file.name
        raise ValueError(
            f"{file}: is not the vocabulary of tokenizer.json: {token!r:.60} is not in {other}; "
            "keep the one that belongs to the weights"
        )
    for token, id in theirs.items():
        if token in ours and ours[token] != id:
            raise ValueError(
                f"{file}: gives {token!r:.60} the id {id!r:.20}, and tokenizer.json gives it "
                f"{ours[token]}; keep the one that belongs to the weights"
            )


def _check_merges(folder: Path, values: Mapping[str, Any]) -> None:
    file, model = folder / "merges.txt", values.get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    if not file.is_file() or not isinstance(merges, list):
        return
    ours = [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]
    lines = decode(read_bytes(file, MAX_VOCABULARY_BYTES), file).split("\n")
    theirs = [line for line in lines if line.strip() and not line.startswith("#version")]
    if ours != theirs:
        i = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        fault = f"{len(theirs)} merges, and tokenizer.json has {len(ours)}"
        if i is not None:
            fault = f"merge {i} is {theirs[i]!r:.60}, and in tokenizer.json {ours[i]!r:.60}"
        raise ValueError(f"{file}: {fault}; keep the one that belongs to the weights")
