"""What the files of a model's folder say about token ids: obeyed, or the tokenizer is refused.

tokenizer.json is the tokenizer. Tokens that the other files name beside it are added to it as
transformers does, under the ids that they state; where two files contradict each other nobody can
tell what the weights were trained on, and the folder is refused.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from ..files import decode, read_bytes
from ..files.untrusted import MAX_JSON_BYTES, read_json, refuse_code
from ..visible import logger
from .serialized import backend, parsed
from .stated import SPECIAL, check_agreement

log = logger(__name__)

MAX_TOKENIZER_BYTES = 256 << 20
CONFIG, SPECIAL_MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
OTHER_FORMATS = (("vocab.txt",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
"""Files from which transformers can build a fast tokenizer where there is no tokenizer.json."""
VOCABULARIES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model")
TOKENIZER_FILES = ("tokenizer.json", CONFIG, SPECIAL_MAP, ADDED, *VOCABULARIES)

READ = {
    *(*SPECIAL, "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "do_lower_case", "strip_accents"),
    *("tokenize_chinese_chars", "split_special_tokens", "init_inputs", "tokenizer_class"),
    *("auto_map", "trust_remote_code", "custom_pipelines"),
}
"""Fields of tokenizer_config.json that are obeyed, compared with tokenizer.json, or refused."""
WITHOUT_EFFECT = {
    # about chats, lengths, padding, decoding, slow tokenizers, or the file itself, not about ids
    *("chat_template", "model_max_length", "max_len", "max_length", "padding_side", "padding"),
    *("pad_to_multiple_of", "pad_token_type_id", "truncation", "truncation_side", "stride"),
    *("truncation_strategy", "model_input_names", "clean_up_tokenization_spaces", "errors"),
    *("spaces_between_special_tokens", "legacy", "sp_model_kwargs", "use_default_system_prompt"),
    *("do_basic_tokenize", "never_split", "use_fast", "name_or_path", "tokenizer_file"),
    *("vocab_file", "merges_file", "special_tokens_map_file", "full_tokenizer_file"),
    *("processor_class", "backend", "is_local", "local_files_only", "from_slow", "language"),
    *("unk_id", "bos_id", "eos_id", "pad_id", "response_template", "task", "tokenizer_type"),
    *("trim_offsets", "vocab_type", "model_specific_special_tokens", "vocab_size"),
    *("return_token_type_ids", "return_tensors"),
}


class Folder(NamedTuple):
    """A tokenizer as its folder describes it."""

    serialized: str
    """The text of a tokenizer.json that holds every token."""
    special: dict[str, str]
    unread: tuple[str, ...] = ()


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds the files of a tokenizer, which are not read."""
    formats = (("tokenizer.json",), *OTHER_FORMATS)
    return any(all((folder / name).is_file() for name in names) for names in formats)


def read_folder(folder: Path) -> Folder | None:
    """The tokenizer of a folder; None where it has none. Raises ValueError, naming the file, where
    its files contradict each other or what they ask for is not read."""
    file = folder / "tokenizer.json"
    if not has_tokenizer(folder):
        return None
    if not file.is_file():
        return _through_transformers(folder)
    text = decode(read_bytes(file, MAX_TOKENIZER_BYTES), file)
    values = parsed(text, str(file))
    config = _config(folder)
    tokens, special = _stated_tokens(folder, config)
    serialized = _with_tokens(text, str(file), tokens)  # from here on `values` is well formed
    check_agreement(folder, values, config)
    unread = [name for name in ("tokenizer.model",) if (folder / name).is_file()]
    unread += [f"{CONFIG}: {name}" for name in sorted(set(config) - READ - WITHOUT_EFFECT)]
    if any(":" in name for name in unread):
        log.warning("%s: not read: %s", folder, ", ".join(unread))
    return Folder(serialized, special, tuple(unread))


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, its code refused; empty where there is none."""
    if not (folder / CONFIG).is_file():
        return {}
    config = read_json(folder / CONFIG, MAX_JSON_BYTES)
    refuse_code(config, str(folder / CONFIG))
    for name, neutral in (("split_special_tokens", False), ("init_inputs", [])):
        if config.get(name) not in (None, neutral):
            raise ValueError(f"{folder / CONFIG}: {name}={config[name]!r:.80} is not supported")
    return config


class Stated(NamedTuple):
    """A token that a file beside tokenizer.json names."""

    token: AddedToken
    id: int | None
    """None: the file gives it none, and it is added where it is not there."""
    where: str


def _stated_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[list[Stated], dict[str, str]]:
    """Tokens in the order in which transformers adds them, and the special tokens by role.

    As there, special_tokens_map.json and added_tokens.json are of old and not read where
    tokenizer_config.json has an added_tokens_decoder, and go before it where it has none.
    """
    where, tokens, fields = str(folder / CONFIG), [], dict(config)
    decoder = config.get("added_tokens_decoder")
    old = {} if not (folder / SPECIAL_MAP).is_file() else read_json(folder / SPECIAL_MAP)
    added = {} if not (folder / ADDED).is_file() else read_json(folder / ADDED)
    if decoder is None:
        fields |= old
    else:
        tokens = _decoder_tokens(decoder, where)
    ids = {stated.token.content: stated.id for stated in tokens}
    names = {**fields, **{role: value for role, value in old.items() if not fields.get(role)}}
    special = {
        role: _token(names[role], role, where).content for role in SPECIAL if names.get(role)
    }
    given = [_token(fields[role], role, where) for role in SPECIAL if fields.get(role)]
    given += _extra_tokens(fields, where)
    plain = {token.content for token in given}
    for content, id in sorted(added.items(), key=lambda item: str(item[1]).rjust(12)):
        stated = _whole(id, content, str(folder / ADDED))
        if decoder is None or content not in ids:
            known = content in plain
            token = AddedToken(content, normalized=not known, special=known)
            tokens.append(Stated(token, stated, str(folder / ADDED)))
        elif ids[content] != stated:
            raise ValueError(
                f"{folder / ADDED}: gives {content!r:.60} the id {stated}, and {CONFIG} the id "
                f"{ids[content]}; make them agree"
            )
    return [*tokens, *(Stated(token, None, where) for token in given)], special


def _decoder_tokens(decoder: Any, where: str) -> list[Stated]:
    if not isinstance(decoder, dict):
        raise ValueError(f"{where}: added_tokens_decoder: expected an object from id to token")
    tokens = []
    for id, value in decoder.items():
        if not (id.isascii() and id.isdigit()):
            raise ValueError(
                f"{where}: added_tokens_decoder has the id {id!r:.40}: expected a number"
            )
        tokens.append(Stated(_token(value, f"added token {id}", where), int(id), where))
    return sorted(tokens, key=lambda stated: stated.id)


def _extra_tokens(fields: Mapping[str, Any], where: str) -> list[AddedToken]:
    """Special tokens without a role of ours: a family's own (image_token), and a list."""
    own = [n for n in fields if n.endswith("_token") and n not in READ and fields[n]]
    tokens = [_token(fields[n], n, where) for n in own if isinstance(fields[n], (str, dict))]
    extra = fields.get("extra_special_tokens") or fields.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    if not isinstance(extra, list):
        raise ValueError(f"{where}: extra_special_tokens={extra!r:.80}: expected a list of tokens")
    return [*tokens, *(_token(one, "special token", where) for one in extra)]


def _token(value: Any, what: str, where: str) -> AddedToken:
    """A token from its text, or from an object with its text and how it is matched."""
    if isinstance(value, str):
        return AddedToken(value, special=True, normalized=False)
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(
            f"{where}: special token {value!r:.80}: expected a string or an object with 'content' "
            f"({what})"
        )
    given = {name: value[name] for name in flags if name in value}
    unknown = sorted(set(value) - {*flags, "content", "__type", "id"})
    if unknown or not all(isinstance(flag, bool) for flag in given.values()):
        raise ValueError(
            f"{where}: {what}: expected 'content' and {', '.join(flags)}, each true or false, got "
            f"{value!r:.120}"
        )
    special = given.pop("special", not what.startswith("added token"))
    return AddedToken(value["content"], special=special, **given)


def _whole(id: Any, content: str, where: str) -> int:
    if isinstance(id, bool) or not isinstance(id, int) or id < 0:
        raise ValueError(f"{where}: id {id!r:.40} of {content!r:.60}: expected a whole number")
    return id


def _with_tokens(text: str, file: str, tokens: list[Stated]) -> str:
    """The text of a tokenizer.json with these tokens, the very text where it has them all."""
    made = backend(text, file)
    before = repr(made.get_added_tokens_decoder())
    for token, id, where in tokens:
        if id is None and made.token_to_id(token.content) is not None:
            continue
        made.add_tokens([token])
        got = made.token_to_id(token.content)
        if id is not None and got != id:
            raise ValueError(
                f"{where}: gives {token.content!r:.60} the id {id}, and in {file} it has {got}; "
                "put the files of one tokenizer in the folder"
            )
    return text if repr(made.get_added_tokens_decoder()) == before else made.to_str()


def _through_transformers(folder: Path) -> Folder:
    """What transformers builds of an older format, from a copy that holds nothing but what we know:
    a vocabulary, and the fields that are on our lists."""
    config, special = _config(folder), {}
    model = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    refuse_code(model, str(folder / "config.json"))
    paths = {n for n in WITHOUT_EFFECT if n.endswith("_file")}
    kept = {n: v for n, v in config.items() if n in (READ | WITHOUT_EFFECT) - paths}
    from transformers import AutoTokenizer  # takes seconds, and few folders need it

    with tempfile.TemporaryDirectory() as copy:
        for name in (*VOCABULARIES, SPECIAL_MAP, ADDED):
            if (folder / name).is_file():
                (Path(copy) / name).symlink_to((folder / name).resolve())
        (Path(copy) / CONFIG).write_text(json.dumps(kept), encoding="utf-8")
        if isinstance(model.get("model_type"), str):
            about = json.dumps({"model_type": model["model_type"]})
            (Path(copy) / "config.json").write_text(about, encoding="utf-8")
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                copy, trust_remote_code=False, local_files_only=True, use_fast=True
            )
            serialized = tokenizer.backend_tokenizer.to_str()
        except Exception as error:
            raise ValueError(
                f"{folder}: transformers could not build a tokenizer from its files ({error}); "
                "add a tokenizer.json, or remove the tokenizer files to load the model for ids only"
            ) from error
    for role in SPECIAL:
        token = getattr(tokenizer, role, None)
        special |= {role: str(token)} if token else {}
    unread = [f"{CONFIG}: {name}" for name in sorted(set(config) - READ - WITHOUT_EFFECT)]
    return Folder(serialized, special, tuple(unread))
