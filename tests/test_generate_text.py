"""The text of a generation is what the tokenizer makes of the whole; every id has a name; every end
token ends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

import interp
from interp import directions
from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.loading import bridge
from interp.loading.beside import end_ids
from interp.methods.neurons import promoted_tokens
from tests.published import edit_json, published
from tests.strategies import random_model, small_config

BYTES = [f"<0x{i:02X}>" for i in range(256)]
PIECES = ["▁The", "▁cat", "▁sat", "▁on", "▁the", "▁mat", "sat", "on", "▁", "s", "a", "t", ".", "\n"]


def sentence_piece() -> Tokenizer:
    """Like that of Llama: pieces with their space in front, bytes for what is not there, and a
    decoder that strips the first space."""
    vocab = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *BYTES, *PIECES])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Tokenizer(backend.to_str(), special, "pieces")


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*alphabet, "Ġsat", "Ġon", "<|end|>"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    return Tokenizer(backend.to_str(), {"eos_token": "<|end|>"}, "bytes")


PIECE, BYTE = sentence_piece(), byte_level()
D_VOCAB = 300
"""More rows than either tokenizer has entries."""


def pieces(*names: str) -> list[int]:
    return [PIECE.vocab()[name] for name in names]


def as_bytes(text: str) -> list[int]:
    return BYTE.encode(text)


def scripted(tokenizer: Tokenizer | None, *rows: list[int], ends: tuple[int, ...] = ()):
    """A model that continues row i with the ids of rows[i], whatever it reads."""
    model = random_model(small_config(n_layers=1, d_vocab=D_VOCAB, n_ctx=64))
    model.tokenizer, model.stored_end_ids = tokenizer, ends

    def force(logits: torch.Tensor, hook):
        for row, ids in enumerate(rows):
            logits[row, -1, ids[min(force.step, len(ids) - 1)]] = 1e6
        force.step += 1
        return logits

    force.step = 0
    return model.with_hooks([("hook_logits", force)])


# --- the text ------------------------------------------------------------------------------------


def test_pieces_keep_their_space():
    model = scripted(PIECE, pieces("▁sat", "▁on", "▁the", "▁mat"))
    done = model.generate(Tokens.of(pieces("▁The", "▁cat")), 4)
    assert done.texts == ["The cat sat on the mat"] == [str(done)]
    assert done.completions == [" sat on the mat"]


@pytest.mark.parametrize(
    ("stop", "completion", "steps"),
    [
        (" on", " sat", 2),
        (" sat", "", 1),
        ("sat on", " ", 2),
        ("at on the", " s", 3),
        (" mat", " sat on the", 4),
        ("cat", " sat on the mat", 4),  # of the prompt, which does not stop
        ("cat sat", " sat on the mat", 4),
        ("saton", " sat on the mat", 4),
    ],
)
def test_stop_strings_see_the_text(stop: str, completion: str, steps: int):
    model = scripted(PIECE, pieces("▁sat", "▁on", "▁the", "▁mat"))
    done = model.generate(Tokens.of(pieces("▁The", "▁cat")), 4, stop=[stop])
    assert done.completions == [completion]
    assert done.texts == ["The cat" + completion]
    assert done.new_ids.shape == (1, steps)


def test_the_first_of_several_stop_strings():
    model = scripted(PIECE, pieces("▁sat", "▁on", "▁the", "▁mat"))
    done = model.generate(Tokens.of(pieces("▁The", "▁cat")), 4, stop=["mat", "n t", " the"])
    assert done.completions == [" sat o"]


def test_rows_stop_each_at_its_own():
    model = scripted(PIECE, pieces("▁sat", "▁on", "."), pieces("▁on", "▁sat", "▁mat"))
    prompts = Tokens.from_rows([pieces("▁The", "▁cat"), pieces("▁The")])
    done = model.generate(prompts, 3, stop=" sat")
    assert done.texts == ["The cat", "The on"]
    assert done.tokens.real.sum(1).tolist() == [3, 3]


def test_characters_of_several_bytes():
    prompt, rest = as_bytes("caf") + as_bytes("é")[:1], as_bytes("é")[1:] + as_bytes(" au 猫.")
    done = scripted(BYTE, rest).generate(Tokens.of(prompt), len(rest))
    assert done.texts == ["café au 猫."]
    assert done.completions == ["é au 猫."], "the character that the prompt began is whole here"
    done = scripted(BYTE, rest).generate(Tokens.of(prompt), len(rest), stop="猫")
    assert done.texts == ["café au "]
    assert done.new_ids.shape[1] == len(rest) - 1, "it stops when the last byte is there"


def test_bytes_among_pieces():
    rest = pieces("▁sat", "▁", "<0xC3>", "<0xA9>", ".")
    done = scripted(PIECE, rest).generate(Tokens.of(pieces("▁The")), 5, stop="é.")
    assert done.texts == ["The sat "]


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_the_text_is_that_of_the_whole(data: st.DataObject):
    """Whatever the ids: decoded at once, and cut where the first stop string begins."""
    tokenizer = data.draw(st.sampled_from([PIECE, BYTE]))
    ids = st.integers(3, tokenizer.vocab_size - 2)
    prompt = data.draw(st.lists(ids, min_size=1, max_size=4))
    rest = data.draw(st.lists(ids, min_size=1, max_size=6))
    whole = tokenizer.decode(prompt + rest)
    done = scripted(tokenizer, rest).generate(Tokens.of(prompt), len(rest))
    assert done.texts == [whole]
    assert whole.endswith(done.completions[0])
    completion = done.completions[0]
    if completion and "\ufffd" not in whole:
        start = data.draw(st.integers(0, len(completion) - 1))
        stop = completion[start : data.draw(st.integers(start + 1, len(completion)))]
        cut = scripted(tokenizer, rest).generate(Tokens.of(prompt), len(rest), stop=stop)
        assert cut.completions == [completion[: completion.index(stop)]]


@pytest.mark.parametrize("stop", ["", ["x", ""], [3], [None]])
def test_stop_strings_that_are_none(stop, unchecked):
    with pytest.raises(ValueError, match=r"stop=.*: expected a text of at least one character"):
        scripted(PIECE, [5]).generate(Tokens.of([3]), 2, stop=stop)


# --- names ---------------------------------------------------------------------------------------


def test_every_row_of_the_embedding_has_a_name():
    model = scripted(PIECE, [299, *pieces("▁cat"), 290, 291, *pieces("▁sat")])
    done = model.generate(Tokens.of(pieces("▁The")), 5)
    assert done.texts == ["The<unused 299> cat<unused 290><unused 291> sat"]
    assert model.to_string(done.tokens.ids[0]) == done.texts[0]
    done = scripted(PIECE, [299, *pieces("▁cat")]).generate(
        Tokens.of(pieces("▁The")), 2, stop=["<unused 299>"]
    )
    assert done.completions == [""]
    names = PIECE.str_tokens(range(D_VOCAB))
    assert names[PIECE.vocab_size :] == [f"<unused {i}>" for i in range(PIECE.vocab_size, D_VOCAB)]
    assert all(names), "no name is empty"


def test_holes_of_a_vocabulary_have_names():
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    tokenizer = Tokenizer(backend.to_str())
    assert tokenizer.str_tokens(range(9)) == [
        *("a", *(f"<unused {i}>" for i in range(1, 7)), "b", "<unused 8>")
    ]


def test_ids_past_the_embedding_are_no_names(unchecked):
    model = scripted(PIECE, [3])
    with pytest.raises(ValueError, match="id 300 is not in the vocabulary"):
        model.to_string([3, 300])
    for wrong in ([-1], [1.5], [True]):
        with pytest.raises(ValueError, match=r"ids?(=| is a mask)|not in the vocabulary"):
            model.to_string(wrong)


@pytest.mark.parametrize("tokenizer", [PIECE, BYTE], ids=["pieces", "bytes"])
def test_verbs_name_what_no_token_has(tokenizer: Tokenizer):
    model = random_model(small_config(n_layers=1, d_vocab=D_VOCAB))
    model.tokenizer = tokenizer
    with torch.no_grad():
        model.unembed.weight[295:] += 50 * model.blocks[0].mlp.W_out[0]
    promoted = promoted_tokens(model, [(0, 0)], k=D_VOCAB)
    table = dataclasses.replace(interp.embedding(model), resolve=None)
    neighbors = table.neighbors(" on", k=298)
    unembedded = interp.embedding(model, side="unembed").tokens
    direction = directions.Direction(torch.randn(32).double(), "blocks.0.hook_resid_post", "x")
    read = directions.promoted_tokens(model, direction, k=D_VOCAB)
    for names in (promoted["token"], neighbors["token"], unembedded, read["token"]):
        assert "<unused 299>" in set(names)
        assert all(names)
    top = promoted[promoted["side"] == "promoted"]["token"].head(5)
    assert set(top) == {f"<unused {i}>" for i in range(295, 300)}


# --- end tokens ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ending")
    published("gpt2", folder)  # 61 ids, and no tokenizer
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


ENDS = {
    "config, one": ({"eos_token_id": 2}, None, (2,)),
    "config, several": ({"eos_token_id": [2, 3]}, None, (2, 3)),
    "generation_config": ({"eos_token_id": None}, {"eos_token_id": [5, 4]}, (4, 5)),
    "both": ({"eos_token_id": 2}, {"eos_token_id": [2, 3]}, (2, 3)),
    "past the vocabulary": ({"eos_token_id": [50256, 7, -1]}, None, (7,)),
    "of a part": ({"eos_token_id": None, "text_config": {"eos_token_id": 9}}, None, (9,)),
    "none": ({"eos_token_id": None}, {"max_length": 20}, ()),
}


@pytest.mark.parametrize(("config", "generation", "ends"), ENDS.values(), ids=ENDS)
def test_end_tokens_of_the_files(config, generation, ends, tmp_path: Path):
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert end_ids(config, tmp_path, 61) == ends


@pytest.mark.parametrize("value", ["2", [2, "3"], True, 2.0, {"a": 1}, [[2]]])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_end_tokens_that_are_none(name: str, value, tmp_path: Path):
    values = {"eos_token_id": value}
    (tmp_path / "generation_config.json").write_text(
        json.dumps(values if name.startswith("g") else {})
    )
    with pytest.raises(ValueError, match=rf"{name}: eos_token_id=.*expected an id, or a list"):
        end_ids(values if name == "config.json" else {}, tmp_path, 61)


def test_every_end_token_ends_and_is_kept(ending: Path, tmp_path: Path):
    edit_json(ending / "config.json", eos_token_id=[2, 3])
    (ending / "generation_config.json").write_text(json.dumps({"eos_token_id": 4}))
    model = interp.load(ending)
    assert model.end_ids == {2, 3, 4}
    assert model.folded().end_ids == {2, 3, 4}
    assert interp.load(interp.save(model, tmp_path / "ours")).end_ids == {2, 3, 4}
    for end in (2, 3, 4):
        force = model.with_hooks([("hook_logits", lambda x, hook, end=end: _put(x, end))])
        assert force.generate([[7, 8]], 5).new_ids.tolist() == [[end]]
        assert force.generate([[7, 8]], 5, stop_at_eos=False).new_ids.shape == (1, 5)
    assert model.with_hooks([]).end_ids == {2, 3, 4}


def _put(logits: torch.Tensor, id: int) -> torch.Tensor:
    logits[..., id] = 1e6
    return logits


def test_the_tokenizer_ends_too():
    on = pieces("▁on")[0]
    model = scripted(PIECE, pieces("▁sat", "</s>", "▁on"), ends=(on,))
    done = model.generate(Tokens.of(pieces("▁The")), 3)
    assert done.texts == ["The sat"]
    assert model.end_ids == {2, on}
    model = scripted(PIECE, pieces("▁sat", "▁on", "</s>"), ends=(on,))
    assert model.generate(Tokens.of(pieces("▁The")), 3).texts == ["The sat"]


def test_the_bridge_ends_too(ending: Path):
    edit_json(ending / "config.json", eos_token_id=[2, 3], architectures=["GPT2LMHeadModel"])
    model = bridge.load(ending)
    assert {2, 3} <= model.end_ids
