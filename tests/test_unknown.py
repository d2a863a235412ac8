"""What a tokenizer does not know is counted, whatever it does with it, and is said loudly."""

from __future__ import annotations

import logging

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

import interp
from analyses._unknown import check_unknown
from interp.core.tokenizer import Tokenizer
from interp.core.unknown import unknown_tokens
from interp.data.windows import Windows
from interp.report import Report
from interp.training.vocabulary import train_tokenizer
from tests.vocabularies import byte_pairs, masked, model_of, whole_words

LETTERS = "abcdefgh"


def tokenizer_of(model, pre=None, special=None, normalizer=None, decoder=None) -> Tokenizer:
    backend = tokenizers.Tokenizer(model)
    for name, part in (("pre_tokenizer", pre), ("normalizer", normalizer), ("decoder", decoder)):
        if part is not None:
            setattr(backend, name, part)
    backend.add_special_tokens(list((special or {}).values()))
    return Tokenizer(backend.to_str(), special or {}, "own")


def letters(*more: str) -> dict[str, int]:
    return {piece: i for i, piece in enumerate([*more, *LETTERS, " "])}


UNK = {"unk_token": "<unk>"}
METASPACE = pre_tokenizers.Metaspace()
TOKENIZERS = {
    "words": lambda: tokenizer_of(
        models.WordLevel({"<unk>": 0, "ab": 1, "cd": 2}, "<unk>"), pre_tokenizers.Whitespace(), UNK
    ),
    "words, unknown not stated": lambda: tokenizer_of(
        models.WordLevel({"<unk>": 0, "ab": 1, "cd": 2}, "<unk>"), pre_tokenizers.WhitespaceSplit()
    ),
    "characters": lambda: tokenizer_of(
        models.BPE(letters("<unk>"), [], unk_token="<unk>"), None, UNK
    ),
    "characters, unknown dropped": lambda: tokenizer_of(models.BPE(letters(), [])),
    "dropped behind a space": lambda: tokenizer_of(models.BPE(letters("▁"), []), METASPACE),
    "bytes that are missing": lambda: tokenizer_of(models.BPE(letters(), [], byte_fallback=True)),
    "unigram": lambda: tokenizer_of(
        models.Unigram([("<unk>", 0.0), *((c, -1.0) for c in "▁" + LETTERS)], 0, False), METASPACE
    ),
    "wordpiece": lambda: tokenizer_of(
        models.WordPiece(
            {p: i for i, p in enumerate(["[UNK]", *LETTERS, *(f"##{c}" for c in LETTERS)])},
            unk_token="[UNK]",
        ),
        pre_tokenizers.BertPreTokenizer(), {"unk_token": "[UNK]"}, normalizers.BertNormalizer(),
    ),
}  # fmt: skip
KNOW_ALL = {
    "bytes": byte_pairs,
    "byte fallback": lambda: tokenizer_of(
        models.BPE(
            letters("<unk>", *(f"<0x{i:02X}>" for i in range(256))), [],
            unk_token="<unk>", byte_fallback=True,
        ),
        None, UNK, None, decoders.ByteFallback(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_is_unknown_is_counted(kind):
    tokenizer = TOKENIZERS[kind]()
    assert unknown_tokens(tokenizer, ["ab cd", "ab"]).unknown == 0
    some = unknown_tokens(tokenizer, ["ab 日 cd", "ab"])
    assert some.unknown == 1 and some.examples == ("日",) and 0 < some.share < 0.5
    assert unknown_tokens(tokenizer, "日 語").share >= 0.5
    assert "1 of" in str(some) and "'日'" in str(some)


@pytest.mark.parametrize("kind", KNOW_ALL)
@given(text=st.text())
def test_bytes_know_everything(kind, text):
    text = text.encode("utf-8", "ignore").decode()
    assert unknown_tokens(KNOW_ALL[kind](), text).unknown == 0


@pytest.mark.parametrize("kind", [k for k in TOKENIZERS if "dropped" in k or "missing" in k])
@given(text=st.text("abc déЖ日", max_size=20))
def test_dropped_characters_are_those_that_decoding_does_not_bring_back(kind, text):
    """A second route: the characters of the decoded text."""
    tokenizer = TOKENIZERS[kind]()
    found = unknown_tokens(tokenizer, text)
    left = "".join(tokenizer.token(i) for i in tokenizer.encode(text, bos=False))
    lost = [c for c in text if not c.isspace() and c not in left]
    assert found.unknown == len(lost)


def test_the_unknown_token_is_found_where_nothing_states_it():
    ids = {kind: make().unknown_ids for kind, make in TOKENIZERS.items()}
    assert ids["words"] == ids["words, unknown not stated"] == ids["unigram"] == {0}
    assert ids["characters, unknown dropped"] == ids["dropped behind a space"] == set()
    gpt = byte_pairs()
    assert gpt.unknown_ids == {gpt.unk_id}
    unstated = TOKENIZERS["words, unknown not stated"]()
    assert unstated.single("ab") == 1 and unstated.single("<unk>") == 0
    with pytest.raises(ValueError, match="'zz' is unknown to the tokenizer"):
        unstated.single("zz")


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_its_own_name_is_no_unknown_word(kind):
    tokenizer = TOKENIZERS[kind]()
    assert unknown_tokens(tokenizer, "ab <unk> ab").unknown == 0
    assert unknown_tokens(tokenizer, "ab <unk> 日").unknown == 1
    assert unknown_tokens(byte_pairs(), "a<|end|>b").unknown == 0
    plain = tokenizer_of(
        models.WordLevel({"?": 0, "ab": 1}, "?"), pre_tokenizers.Whitespace(), {"unk_token": "?"}
    )
    assert unknown_tokens(plain, "ab? zz? yy?").unknown == 2


def test_a_vocabulary_without_an_unknown_token_refuses_the_words_it_lacks():
    closed = tokenizer_of(
        models.WordLevel({"ab": 0, "cd": 1}, "<absent>"), pre_tokenizers.WhitespaceSplit()
    )
    assert closed.unknown_ids == set()
    assert unknown_tokens(closed, ["ab cd", "cd"]) == (3, 0, ())
    with pytest.raises(ValueError, match="own: a word of the text is unknown"):
        unknown_tokens(closed, "ab zz")


def test_marks_and_blanks_are_not_missed():
    assert unknown_tokens(masked(), "cafe\u0301 \u200b\u00a0the\t\n").unknown == 0
    assert unknown_tokens(TOKENIZERS["characters, unknown dropped"](), "a\nb\t\u3000c").unknown == 0
    assert unknown_tokens(TOKENIZERS["characters, unknown dropped"](), "कि").unknown == 2
    assert unknown_tokens(whole_words(), "").share == 0


def report() -> Report:
    return Report("t", "q?", analysis="x")


@pytest.mark.parametrize(
    ("unknown", "tokens", "warned", "refused"),
    [(0, 100, False, False), (5, 100, False, False), (6, 100, True, False),
     (30, 100, True, False), (31, 100, True, True), (100, 100, True, True)],
)  # fmt: skip
def test_above_5_percent_is_a_warning_and_above_30_a_refusal(unknown, tokens, warned, refused):
    model = model_of(whole_words())
    text = " ".join(["zzz"] * unknown + ["the"] * (tokens - unknown))
    for allowed in (False, True):
        page = report()
        if refused and not allowed:
            with pytest.raises(ValueError, match=r"the text: .*'zzz'.*--allow-unknown goes on"):
                check_unknown(page, model, [text], "the text", allowed=False)
            continue
        check_unknown(page, model, [text], "the text", allowed=allowed)
        assert bool(page.warnings) == warned
        (told,) = page.warnings or page.certainty
        assert f"of {tokens} tokens" in told


def test_the_library_warns_once_and_tells_the_share(caplog, tmp_path):
    model = model_of(whole_words())
    with caplog.at_level(logging.WARNING, logger="interp.core.unknown"):
        for _ in range(2):
            model.to_tokens("the yyy")
        model.to_tokens("the king")
    assert [r.message for r in caplog.records] == [
        "whole-words: 1 of 2 tokens (50%) are unknown to the tokenizer: 'yyy'"
    ]
    assert interp.unknown_tokens(model, "the yyy").share == 0.5
    caplog.clear()
    path = tmp_path / "t.txt"
    path.write_text("the xxx\n")
    with caplog.at_level(logging.WARNING, logger="interp.core.unknown"):
        Windows(model, path)
    assert "'xxx'" in caplog.text
    with pytest.raises(ValueError, match="has no tokenizer"):
        interp.unknown_tokens(model_of_ids(), "a")


def model_of_ids():
    model = model_of(train_tokenizer("ab", "char"))
    model.tokenizer = None
    return model
