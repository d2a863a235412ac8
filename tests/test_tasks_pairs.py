"""Pairs refuse what does not fit together, and a bad file is named with its line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from interp import tasks
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from tests.vocabularies import (
    KINDS,
    models_by_kind,
    text_of,
    word_at,
)


@pytest.fixture(scope="module")
def models() -> dict[str, HookedTransformer]:
    return models_by_kind()


def test_rows_and_repr(models):
    pairs = tasks.indirect_object(models["whole words"], n=10)
    for rows in (slice(2, 5), [4, 1], torch.tensor([0, 9])):
        some = pairs[rows]
        index = torch.arange(10)[rows]
        assert torch.equal(some.clean.ids, pairs.clean.ids[index])
        assert torch.equal(some.answer, pairs.answer[index])
        assert torch.equal(some.corrupted.roles["s2"], pairs.corrupted.roles["s2"][index])
        assert some.clean_texts == [pairs.clean_texts[int(i)] for i in index]
        assert some.table["io"].tolist() == pairs.table["io"].iloc[index.tolist()].tolist()
    assert len(pairs[3]) == 1
    assert len(repr(pairs)) < 200 and "'indirect_object', 10 × 14 tokens" in repr(pairs)
    with pytest.raises(ValueError, match="pairs of indirect_object is empty"):
        pairs[:0]


@pytest.mark.usefixtures("unchecked")
def test_pairs_refuse_what_does_not_fit(models):
    pairs = tasks.indirect_object(models["whole words"], n=4)
    clean, corrupted = pairs.clean, pairs.corrupted
    rolled = {**clean.roles, "s2": clean.roles["s1"]}
    mask = torch.ones(clean.shape, dtype=torch.bool).index_put(
        (torch.tensor([2]), torch.tensor([0])), torch.tensor(False)
    )
    cases = [
        ({"corrupted": corrupted[:3]}, r"\[4, 14\] and corrupted \[3, 14\]"),
        ({"corrupted": clean}, "clean and corrupted of row 0 are the same"),
        ({"corrupted": dataclasses.replace(corrupted, mask=mask)}, "row 2 has 14 clean and 13"),
        ({"answer": pairs.wrong}, "in row 0 the ids .* are answer and wrong"),
        ({"answer": pairs.answer[:3]}, r"answer is torch.int64 \[3\]; expected ids of shape \[4\]"),
        ({"answer": pairs.answer.float()}, "answer is of torch.float32"),
        ({"wrong": -pairs.wrong}, "a negative one"),
        ({"wrong": pairs.wrong[:, None].expand(-1, 2)}, "wrong of row 0 holds an id twice"),
        ({"clean": dataclasses.replace(clean, roles={})}, "lack 'end'"),
        ({"clean": dataclasses.replace(clean, roles=rolled)}, r"row 0 differs at \[\d+\], but"),
        (
            {"corrupted": dataclasses.replace(corrupted, roles={"end": clean.roles["end"]})},
            "and corrupted end; give both the same",
        ),
        ({"changed": ("verb",)}, r"changed=\['verb'\]: the roles are io, s1"),
        ({"clean_texts": ["one"]}, "clean_texts has 1 rows for 4 pairs"),
        ({"clean": Tokens(None, vectors=torch.zeros(4, 14, 3))}, "these tokens are vectors"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(pairs, **change)


GOOD = """clean,corrupted,answer,wrong,role:subject,note
"The capital of France is the city of","The capital of Italy is the city of",Paris,Rome,France,one
"In Spain, the capital is","In Japan, the capital is",Madrid,Tokyo,Spain,"a ""quoted"" note"
"""


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "own.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_from_csv(models, tmp_path, kind):
    model = models[kind]
    pairs = tasks.from_csv(write(tmp_path, GOOD), model)
    assert (pairs.name, len(pairs), list(pairs.clean.roles)) == ("own", 2, ["subject", "end"])
    assert [text_of(model, i).lower() for i in pairs.answer] == ["paris", "madrid"]
    assert [text_of(model, i).lower() for i in pairs.wrong] == ["rome", "tokyo"]
    assert [word_at(pairs, "subject", r).lower() for r in (0, 1)] == ["france", "spain"]
    assert [word_at(pairs, "subject", r, "corrupted").lower() for r in (0, 1)] == ["italy", "japan"]
    last = {"masked": "[MASK]"}.get(kind)
    assert [word_at(pairs, "end", r) for r in (0, 1)] == [last or "of", last or "is"]
    assert pairs.clean.mask is not None, "rows of unequal length are padded"
    assert pairs.table["note"].tolist() == ["one", 'a "quoted" note']
    led = tasks.from_csv(write(tmp_path, "\ufeff" + GOOD.replace("\n", "\r\n")), model)
    assert torch.equal(led.clean.ids, pairs.clean.ids)


def test_from_csv_takes_roles_of_several_tokens_and_repeated_words(models, tmp_path):
    head = "clean,corrupted,answer,wrong,role:who,role:again\n"
    row = '"When Mary and Xyz left, Mary gave it to","When John and Xyz left, Mary gave it to",'
    pairs = tasks.from_csv(write(tmp_path, head + row + "Tom,Ben,Xyz,Mary#2"), models["byte pairs"])
    assert word_at(pairs, "who", 0) == "z"
    at = [int(pairs.clean.roles[role][0]) for role in ("who", "again")]
    assert "".join(pairs.clean.strings[0][: at[0] + 1]) == "When Mary and Xyz"
    assert "".join(pairs.clean.strings[0][: at[1] + 1]) == "When Mary and Xyz left, Mary"


def test_from_csv_without_the_space(models, tmp_path):
    text = "clean,corrupted,answer,wrong\nfrom 1732 to 17,from 1701 to 17,45,12\n"
    model = models["byte pairs"]
    pairs = tasks.from_csv(write(tmp_path, text), model, space=False)
    assert model.tokenizer.str_tokens([int(pairs.answer[0])]) == ["45"]
    with pytest.raises(ValueError, match=r"\[' ', '45'\]; one is needed \(space=False: it is one"):
        tasks.from_csv(write(tmp_path, text), model)


def test_from_csv_finds_the_mask_where_it_stands(models, tmp_path):
    text = "clean,corrupted,answer,wrong\nthe [MASK] of France,the [MASK] of Italy,king,car\n"
    pairs = tasks.from_csv(write(tmp_path, text), models["masked"])
    assert pairs.clean_texts == ["the [MASK] of France"]
    assert int(pairs.clean.roles["end"][0]) == 2
    twice = text.replace("of France", "[MASK] France")
    with pytest.raises(ValueError, match="clean holds '\\[MASK\\]' more than once"):
        tasks.from_csv(write(tmp_path, twice), models["masked"])


HEAD = "clean,corrupted,answer,wrong\n"
BAD = {
    "columns": ("clean,answer\na,b\n", r"no column 'corrupted', 'wrong'; there are: clean, answer"),
    "empty file": ("", "the file is empty; .* such as clean,corrupted,answer,wrong"),
    "no rows": (HEAD, "no rows"),
    "twice": ("clean,corrupted,answer,wrong,wrong\n", "the column 'wrong' stands there twice"),
    "end": ("clean,corrupted,answer,wrong,role:end\na,b,c,d,e\n", "role:end is set by itself"),
    "open quote": (HEAD + '"in France,in Italy,Paris,Rome\n', "line 2: unexpected end of data"),
    "bad quote": (HEAD + 'a,b,c,d\n"in" France,in Italy,Paris,Rome\n', "line 3: .* expected after"),
    "cells": (HEAD + "in France, in Italy,in Japan,Paris,Rome\n", "line 2: 5 cells for 4 columns"),
    "few cells": (HEAD + "in France,in Italy,Paris\n", "line 2: 3 cells for 4 columns"),
    "empty cell": (HEAD + "\nin France,in Italy,,Rome\n", "line 3: answer is empty"),
    "length": (HEAD + "in France,in old Italy,Paris,Rome\n", "line 2: clean has 2 .* corrupted 3"),
    "pieces": (HEAD + "in France,in Italy,Qxz,Rome\n", r"answer 'Qxz' is \d tokens, \[' "),
    "wrong pieces": (HEAD + "in France,in Italy,Paris,Rome is\n", "wrong 'Rome is' is 2 tokens"),
    "same": (HEAD + "in France,in France,Paris,Rome\n", "line 2: clean and corrupted are the same"),
    "same answer": (HEAD + "in France,in Italy,Rome,Rome\n", "are the same token, 'Rome'"),
    "space": (HEAD + "in France ,in Italy ,Paris,Rome\n", "clean ends in a space"),
    "role": ("clean,corrupted,answer,wrong,role:x\nin France,in Italy,Paris,Rome,Fran\n",
             "role x: the word 'Fran' is not in 'in France'"),
    "role inside": ("clean,corrupted,answer,wrong,role:x\nin France,in Italy,Paris,Rome,rance\n",
                    "role x: the word 'rance' is not in 'in France'"),
    "role twice": ("clean,corrupted,answer,wrong,role:x\nin in France,in in Italy,Paris,Rome,in\n",
                   "'in' is there 2 times; write in#1 or in#2"),
    "role thrice": ("clean,corrupted,answer,wrong,role:x\nin France,in Italy,Paris,Rome,in#3\n",
                    "'in#3', but 'in' is there 1 times"),
    "utf-8": (HEAD.encode() + b"in \xff,in Italy,Paris,Rome\n", "not UTF-8"),
    "huge cell": (HEAD + "x" * 140_000 + ",b,c,d\n", "line 2: clean has .* tokens"),
    "note twice": (HEAD[:-1] + ",n,n\na,b,c,d,e,f\n", "the column 'n' stands there twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_from_csv_names_what_is_wrong(models, tmp_path, case):
    text, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        tasks.from_csv(write(tmp_path, text), models["byte pairs"])
    assert "own.csv" in str(caught.value)


def test_from_csv_unknown_words_and_missing_files(models, tmp_path):
    text = HEAD + "in France,in Italy,Qxz,Rome\n"
    with pytest.raises(ValueError, match="line 2: answer 'Qxz' is unknown to the tokenizer"):
        tasks.from_csv(write(tmp_path, text), models["whole words"])
    with pytest.raises(FileNotFoundError):
        tasks.from_csv(tmp_path / "absent.csv", models["whole words"])
