"""What a tokenizer's folder says about ids is obeyed, as transformers does, or refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from interp.core.tokenizer import Tokenizer

WORDS = ["<unk>", "<s>", "</s>", "the", "king", "walked"]
TEXTS = ["the king", "the <new> king", "<new>the<other>", "<img> the", "</s> the king<pad>", ""]


def flags(content: str, special: bool = True, **changes: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **plain, "special": special, **changes}


def numbered(words: list[str]) -> dict[str, int]:
    return {word: i for i, word in enumerate(words)}


def word_level(words: list[str] = WORDS) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(numbered(words), unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def byte_level(prefix: bool = False) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*alphabet, "th", "the"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    return backend


def write(folder: Path, backend: tokenizers.Tokenizer | None = None, **files: Any) -> Path:
    """A tokenizer's folder; `files` by name without ending."""
    (folder / "tokenizer.json").write_text((backend or word_level()).to_str(), encoding="utf-8")
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


# --- obeyed: the ids of transformers.AutoTokenizer ---------------------------------------------

NEW = {"6": flags("<new>", special=False)}
FOLDERS = {
    "nothing beside": {},
    "added_tokens.json": {"added_tokens": {"<new>": 6, "<other>": 7}},
    "added_tokens.json, not in order": {"added_tokens": {"<other>": 7, "<new>": 6}},
    "an added token that is there": {"added_tokens": {"<s>": 1, "<new>": 6}},
    "added_tokens_decoder": {"tokenizer_config": {"added_tokens_decoder": NEW}},
    "added_tokens_decoder goes first": {
        "tokenizer_config": {"added_tokens_decoder": NEW, "pad_token": "<new>"},
        "special_tokens_map": {"pad_token": "<pad>"},
        "added_tokens": {"<new>": 6},
    },
    "flags of an added token": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                "2": flags("</s>", rstrip=True),
                "6": flags("<new>", lstrip=True),
            }
        }
    },
    "a pad token that is nowhere": {"tokenizer_config": {"pad_token": "<pad>"}},
    "an old map": {"special_tokens_map": {"pad_token": flags("<pad>"), "eos_token": "</s>"}},
    "the old map goes first": {
        "tokenizer_config": {"pad_token": "the"},
        "special_tokens_map": {"pad_token": "<pad>"},
    },
    "roles, in order": {
        "tokenizer_config": {"mask_token": "<other>", "cls_token": "<new>", "pad_token": "<pad>"}
    },
    "additional special tokens": {
        "tokenizer_config": {"additional_special_tokens": ["<new>", "<other>"]}
    },
    "extra special tokens": {"tokenizer_config": {"extra_special_tokens": ["<new>", "<other>"]}},
    "a family's own token": {"tokenizer_config": {"image_token": "<img>", "pad_token": "<pad>"}},
    "extra special tokens by name": {
        "tokenizer_config": {"extra_special_tokens": {"image_token": "<img>"}}
    },
}  # fmt: skip


@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS)
def test_ids_are_those_of_transformers(files: dict[str, Any], tmp_path: Path):
    from transformers import AutoTokenizer

    files = {"tokenizer_config": {}, **files}
    base = {"unk_token": "<unk>", "bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    files["tokenizer_config"] = base | files["tokenizer_config"]
    write(tmp_path, **files)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.encode(text, bos=False) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.vocab() == theirs.get_vocab()
    special = {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.special_ids == special | set(theirs.all_special_ids)
    roles = {role: getattr(theirs, f"{role}_id") for role in ours.special}
    assert {role: ours._special_id(role) for role in ours.special} == roles


def test_what_is_obeyed_stays_when_it_is_saved(tmp_path: Path):
    write(tmp_path, added_tokens={"<new>": 6}, special_tokens_map={"pad_token": "<pad>"})
    tokenizer = Tokenizer.from_folder(tmp_path)
    saved = tmp_path / "saved"
    saved.mkdir()
    for name, data in tokenizer.files().items():
        (saved / name).write_bytes(data)
    again = Tokenizer.from_folder(saved)
    assert again.encode("<new> the<pad>") == tokenizer.encode("<new> the<pad>") == [6, 3, 7]
    assert (again.hash, again.special, again.pad_id) == (tokenizer.hash, {"pad_token": "<pad>"}, 7)


def test_a_folder_that_says_nothing_new_keeps_its_very_text(tmp_path: Path):
    write(tmp_path, tokenizer_config={"bos_token": "<s>"}, added_tokens={"<s>": 1})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.files()["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()


# --- refused: two files that contradict each other, or what is not read --------------------------

REFUSED = {
    "an id that is taken": (
        {"added_tokens": {"<new>": 3}},
        r"added_tokens\.json: gives '<new>' the id 3, and in .*tokenizer\.json it has 6",
    ),
    "a hole": ({"added_tokens": {"<new>": 9}}, "gives '<new>' the id 9, and in .* it has 6"),
    "another id": ({"added_tokens": {"the": 4}}, "gives 'the' the id 4, and in .* it has 3"),
    "a decoder that lies": (
        {"tokenizer_config": {"added_tokens_decoder": {"4": flags("</s>")}}},
        r"tokenizer_config\.json: gives '</s>' the id 4, and in .* it has 2",
    ),
    "two files": (
        {"tokenizer_config": {"added_tokens_decoder": NEW}, "added_tokens": {"<new>": 7}},
        r"gives '<new>' the id 7, and tokenizer_config\.json the id 6",
    ),
    "an id of letters": (
        {"tokenizer_config": {"added_tokens_decoder": {"six": flags("<new>")}}}, "has the id 'six'"
    ),
    "a list for a decoder": (
        {"tokenizer_config": {"added_tokens_decoder": [1]}}, "expected an object from id to token"
    ),
    "an id that is no number": ({"added_tokens": {"<new>": "6"}}, "id '6' of '<new>'"),
    "an id that is true": ({"added_tokens": {"<new>": True}}, "id True of '<new>'"),
    "a flag that is no flag": (
        {"tokenizer_config": {"pad_token": {"content": "<pad>", "lstrip": 1}}},
        "each true or false",
    ),
    "a flag that nobody knows": (
        {"tokenizer_config": {"pad_token": {"content": "<pad>", "greedy": True}}},
        "expected 'content' and single_word",
    ),
    "extra tokens that are none": (
        {"tokenizer_config": {"extra_special_tokens": 7}}, "expected a list of tokens"
    ),
    "split_special_tokens": (
        {"tokenizer_config": {"split_special_tokens": True}}, "split_special_tokens=True is not"
    ),
    "init_inputs": ({"tokenizer_config": {"init_inputs": ["x"]}}, r"init_inputs=\['x'\] is not"),
    "code": ({"tokenizer_config": {"auto_map": {"AutoTokenizer": ["a.B", None]}}}, "never run"),
    "another vocabulary": (
        {"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "king": 3, "the": 4, "walked": 5}},
        r"vocab\.json: gives 'king' the id 3, and tokenizer\.json gives it 4",
    ),
    "a smaller vocabulary": (
        {"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "the": 3}},
        r"vocab\.json: is not the vocabulary of tokenizer\.json: 'king' is not in vocab\.json",
    ),
    "a larger vocabulary": (
        {"vocab": numbered([*WORDS, "queen"])}, r"'queen' is not in tokenizer\.json"
    ),
    "lower case": (
        {"tokenizer_config": {"do_lower_case": True}},
        r"do_lower_case=true, but tokenizer\.json says false",
    ),
    "a BOS": (
        {"tokenizer_config": {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}},
        r"add_bos_token=true, but tokenizer\.json says false",
    ),
    "an EOS": (
        {"tokenizer_config": {"add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"}},
        r"add_eos_token=true, but tokenizer\.json says false",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "fault"), REFUSED.values(), ids=REFUSED)
def test_contradictions_are_refused(files: dict[str, Any], fault: str, tmp_path: Path):
    write(tmp_path, **files)
    with pytest.raises(ValueError, match=fault):
        Tokenizer.from_folder(tmp_path)


def test_the_same_vocabulary_twice_is_fine(tmp_path: Path):
    write(tmp_path, vocab=numbered(WORDS))
    assert Tokenizer.from_folder(tmp_path).encode("the king") == [3, 4]
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    assert Tokenizer.from_folder(tmp_path).encode("the king") == [3, 4]
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[::-1]) + "\n")
    with pytest.raises(ValueError, match=r"vocab\.txt: gives '.*' the id \d, and tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_merges_beside(tmp_path: Path):
    write(tmp_path, byte_level())
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    assert len(Tokenizer.from_folder(tmp_path).encode("the")) == 1
    for text, fault in (
        ("th e\nt h\n", r"merge 0 is 'th e', and in tokenizer\.json 't h'"),
        ("t h\n", r"1 merges, and tokenizer\.json has 2"),
    ):
        (tmp_path / "merges.txt").write_text(text)
        with pytest.raises(ValueError, match=rf"merges\.txt: {fault}"):
            Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("said", [True, False, None])
def test_prefix_spaces_agree(inside: bool, said: bool | None, tmp_path: Path):
    write(tmp_path, byte_level(prefix=inside), tokenizer_config={"add_prefix_space": said})
    if said in (None, inside):
        assert Tokenizer.from_folder(tmp_path).encode("the")
        return
    with pytest.raises(ValueError, match=f"add_prefix_space={str(said).lower()}, but"):
        Tokenizer.from_folder(tmp_path)


def test_lower_case_of_bert(tmp_path: Path):
    backend = word_level()
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    write(tmp_path, backend, tokenizer_config={"do_lower_case": True, "strip_accents": None})
    assert Tokenizer.from_folder(tmp_path).encode("THE") == [3]
    for field in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        write(tmp_path, backend, tokenizer_config={field: False})
        with pytest.raises(ValueError, match=f"{field}=false, but tokenizer.json says true"):
            Tokenizer.from_folder(tmp_path)


def test_a_template_with_bos_agrees(tmp_path: Path):
    backend = word_level()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    said = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": False}
    write(tmp_path, backend, tokenizer_config=said)
    assert Tokenizer.from_folder(tmp_path).encode("the") == [1, 3]
    write(tmp_path, backend, tokenizer_config={**said, "add_bos_token": False})
    with pytest.raises(ValueError, match=r"add_bos_token=false, but tokenizer\.json says true"):
        Tokenizer.from_folder(tmp_path)


def test_what_is_not_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    said = {"bos_token": "<s>", "model_max_length": 512, "byte_shuffle": True, "evil\x1b[2J": 1}
    write(tmp_path, tokenizer_config=said)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.unread == (
        "tokenizer.model",
        "tokenizer_config.json: byte_shuffle",
        "tokenizer_config.json: evil\x1b[2J",
    )
    assert "not read: tokenizer.model, tokenizer_config.json: byte_shuffle" in caplog.text
    caplog.clear()
    write(tmp_path, tokenizer_config={"bos_token": "<s>", "model_max_length": 512})
    Tokenizer.from_folder(tmp_path)
    assert not caplog.records, "a file that is not read in most folders is no news"


# --- tokenizer.json itself ----------------------------------------------------------------------


def edited(backend: tokenizers.Tokenizer, **changes: Any) -> str:
    return json.dumps(json.loads(backend.to_str()) | changes)


def replaced(times: int) -> dict[str, Any]:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
    return {"type": "Sequence", "normalizers": [one] * times}


BROKEN = {
    "an added token that gets another id": (
        edited(word_level(), added_tokens=[{"id": 9, **flags("<new>")}]),
        "says that the added token '<new>' has id 9, but in its vocabulary it gets 6",
    ),
    "an id twice": (
        word_level().to_str().replace('"king":4', '"king":3'),
        "gives the id 3 to 'the' and to 'king'",
    ),
    "an entry twice": (
        word_level().to_str().replace('"king":4', '"king":4,"king":7'),
        "the key 'king' stands there twice",
    ),
    "random merges": (
        byte_level().to_str().replace('"dropout":null', '"dropout":0.1'), r"dropout=0\.1"
    ),
    "a billion laughs": (edited(word_level(), normalizer=replaced(10)), "characters of one"),
    "deep": (
        word_level().to_str().replace("null", "[" * 5000 + "]" * 5000),
        r"not a valid tokenizer\.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "fault"), BROKEN.values(), ids=BROKEN)
def test_a_tokenizer_that_contradicts_itself(text: str, fault: str, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=fault):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(ValueError, match=fault):
        Tokenizer(text)


SHAPES = [
    *(5, "x", True, [5], [[]], [{}], {"type": "Sequence"}, {"type": 3}),
    {"type": "Sequence", "normalizers": 5, "pretokenizers": 5},
    {"type": "BPE", "vocab": {"a": "b"}, "merges": [[1, 2]]},
    {"type": "Unigram", "vocab": [[[1], 0.0]], "unk_id": 9},
    {"type": "WordLevel", "vocab": 7, "dropout": [1]},
]
PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model", "post_processor")


@pytest.mark.parametrize("part", [*PARTS, "truncation", "padding", "version"])
def test_parts_of_a_wrong_shape_are_plain_errors(part: str, tmp_path: Path):
    (tmp_path / "vocab.json").write_text(json.dumps(numbered(WORDS)))
    (tmp_path / "merges.txt").write_text("a b\n")
    said = {"do_lower_case": False, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    for value in SHAPES:
        (tmp_path / "tokenizer.json").write_text(edited(word_level(), **{part: value}))
        try:
            Tokenizer.from_folder(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017  # some parts may be left out


RUNAWAY = [r"(a+)+$", r"(a|aa)+$", r"(?:[a ]+)+x", r"(\w+\s?)*$", r"((a|b)+)+!", r"(?:(a?){30})+$"]


@pytest.mark.parametrize("where", ["pre_tokenizer", "normalizer"])
@pytest.mark.parametrize("pattern", RUNAWAY)
def test_regular_expressions_that_run_away_are_plain_errors(pattern: str, where: str):
    """At once or at the text: never a panic, never minutes."""
    backend = word_level()
    regex = tokenizers.Regex(pattern)
    if where == "normalizer":
        backend.normalizer = normalizers.Replace(regex, "b")
    else:
        backend.pre_tokenizer = pre_tokenizers.Split(regex, "isolated")
    try:
        tokenizer = Tokenizer(backend.to_str(), name="hostile")
        for text in ("a" * 60 + "!", "ab" * 40 + "?", "a " * 40):
            tokenizer.encode(text)
    except ValueError as error:
        assert str(error).startswith("hostile: ")  # noqa: PT017  # some patterns stand the texts


def test_a_panic_is_a_plain_error():
    backend = word_level()
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")
    tokenizer = Tokenizer(backend.to_str(), name="hostile")
    with pytest.raises(ValueError, match=r"hostile: the tokenizers library gave up .*retry-limit"):
        tokenizer.encode("a" * 60 + "!")
    assert tokenizer.encode("the king") == [0], "one piece, as the pattern splits; it goes on"
