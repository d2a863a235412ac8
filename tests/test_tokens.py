"""Tokens: padding and positions are explicit, and padding changes no number."""

from __future__ import annotations

import dataclasses
from collections import UserDict

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.core.tokens import Tokens

from .strategies import configs, random_model, small_config


@settings(max_examples=40, deadline=None)
@given(
    cfg=configs(),
    rows=st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=7), min_size=1, max_size=4),
)
def test_padding_side_and_batch_size_change_no_number(cfg, rows):
    model = random_model(cfg)
    alone = [model([row])[0] for row in rows]
    for side in ("left", "right"):
        tokens = Tokens.from_rows(rows, side=side, pad_id=7)
        together = model(tokens)
        for i, expected in enumerate(alone):
            assert torch.allclose(together[i][tokens.real[i]], expected, rtol=1e-9, atol=1e-9)


def test_pad_ids_do_not_matter():
    model = random_model(small_config())
    a, b = (model(Tokens.from_rows([[1, 2, 3], [4]], side="left", pad_id=p))[1, -1] for p in (0, 9))
    assert torch.equal(a, b)


def test_lists_and_tensors_become_tokens():
    assert Tokens.of([1, 2, 3]).ids.tolist() == [[1, 2, 3]]
    assert Tokens.of(torch.tensor([1, 2], dtype=torch.int32)).ids.dtype == torch.int64
    ragged = Tokens.of([[1, 2], [3]])
    assert ragged.real.tolist() == [[True, True], [True, False]]
    assert Tokens.of([[1, 2], [3, 4]]).mask is None
    assert len(ragged) == 2 and ragged.shape == (2, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "'text'"),
        (None, "None"),
        ([], "empty list"),
        ([[1], []], "row 1 has no tokens"),
        (torch.zeros(2, 2, 2, dtype=torch.long), "shape"),
        (torch.tensor([True]), "whole numbers"),
        (torch.tensor(3), "shape"),
    ],
)
def test_bad_values_are_named(unchecked, value, message):
    with pytest.raises(ValueError, match=message):
        Tokens.of(value)


def test_rows_are_picked_with_what_belongs_to_them():
    tokens = Tokens(
        torch.tensor([[1, 2], [3, 4], [5, 6]]),
        mask=torch.tensor([[True, True], [True, False], [True, True]]),
        strings=[["a", "b"], ["c", "d"], ["e", "f"]],
        roles={"subject": torch.tensor([0, 0, 1])},
    )
    picked = tokens[[2, 0]]
    assert picked.ids.tolist() == [[5, 6], [1, 2]]
    assert picked.strings == [["e", "f"], ["a", "b"]]
    assert picked.roles["subject"].tolist() == [1, 0]
    assert tokens[1].mask.tolist() == [[True, False]]
    assert tokens[-1].ids.tolist() == [[5, 6]]
    assert tokens[:2].ids.tolist() == [[1, 2], [3, 4]]
    assert tokens[torch.tensor([True, False, True])].ids.tolist() == [[1, 2], [5, 6]]
    assert tokens[[True, False, True]].ids.tolist() == [[1, 2], [5, 6]]
    assert tokens[np.int64(1)].ids.tolist() == tokens[torch.tensor(1)].ids.tolist() == [[3, 4]]
    assert tokens[pd.Series([2, 2])].ids.tolist() == [[5, 6], [5, 6]]


@pytest.mark.parametrize(
    "rows", [3, -4, True, 1.0, [0, 3], [], [True, False], slice(3, None), [0, None], "1", [[0]]]
)
def test_rows_that_are_not_there_are_refused(unchecked, rows):
    tokens = Tokens(torch.tensor([[1, 2], [3, 4], [5, 6]]))
    with pytest.raises(ValueError, match="rows"):
        tokens[rows]


def test_explicit_positions_are_used():
    model = random_model(small_config())
    shifted = Tokens(torch.tensor([[1, 2]]), positions=torch.tensor([[3, 4]]))
    longer = Tokens(torch.tensor([[0, 0, 0, 1, 2]]),
                    mask=torch.tensor([[False, False, False, True, True]]),
                    positions=torch.arange(5)[None])  # fmt: skip
    assert torch.allclose(model(shifted), model(longer)[:, 3:], atol=1e-10)
    with pytest.raises(ValueError, match="position 24"):
        model(Tokens(torch.tensor([[1]]), positions=torch.tensor([[24]])))


HELLO = [[5, 6, 7, 8], [9, 4]]


@pytest.mark.parametrize("form", ["int64", "uint8", "list", "array", "list of booleans"])
def test_a_mask_of_ones_and_zeros_is_one_of_booleans(unchecked, form):
    """Of a tokenizer of Hugging Face the mask is int64, whose negation is −1 and −2."""
    ragged = Tokens.of(HELLO)
    ones = ragged.mask.long()
    mask = {"int64": ones, "uint8": ones.byte(), "list": ones.tolist(), "array": ones.numpy(),
            "list of booleans": ragged.mask.tolist()}[form]  # fmt: skip
    tokens = Tokens(ragged.ids, mask=mask)
    assert tokens.mask.dtype == torch.bool
    assert torch.equal(tokens.mask, ragged.mask)
    model = random_model(small_config())
    assert torch.equal(model(tokens), model(ragged))
    continued = model.generate(tokens, 4).tokens
    assert torch.equal(continued.ids, model.generate(ragged, 4).tokens.ids)
    assert continued.ids[0, :4].tolist() == HELLO[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": [[1, 1, 1, 2], [1, 1, 0, 0]]}, "the mask holds 2"),
        ({"mask": [[1, 1, 1, -1], [1, 1, 0, 0]]}, "the mask holds -1"),
        ({"mask": torch.zeros(2, 4)}, "the mask is of torch.float32"),  # as one that is added
        ({"mask": [[1, 1, 1], [1, 1, 0]]}, r"mask has the shape \[2, 3\], expected .*\[2, 4\]"),
        ({"mask": [[1, 1, 1, None], [1, 1, 1, 1]]}, "the mask holds something else"),
        ({"mask": [["1", "1", "1", "0"]] * 2}, "the mask holds something else"),
        ({"mask": [True, False]}, r"mask has the shape \[2\]"),
        ({"positions": [[0, 1, 2, 3]]}, r"positions has the shape \[1, 4\]"),
        ({"positions": torch.zeros(2, 4)}, "positions is of torch.float32"),
        ({"positions": [[True, False]] * 2}, "positions is a mask"),
        ({"token_types": [[0, 0, 0]] * 2}, r"token_types has the shape \[2, 3\]"),
        ({"token_types": torch.zeros(2, 4)}, "token_types is of torch.float32"),
        ({"ids": [1, 2]}, r"ids have the shape \[2\], expected \[batch pos\]"),
        ({"ids": torch.zeros(2, 4)}, "ids is of torch.float32"),
        ({"ids": torch.zeros(2, 4, dtype=torch.bool)}, "ids is a mask"),
        ({"ids": None}, "either ids or vectors"),
        ({"vectors": torch.zeros(2, 4, 3)}, "either ids or vectors"),
    ],
)
def test_tokens_refuse_what_does_not_fit_them(unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        Tokens(**({"ids": torch.ones(2, 4, dtype=torch.long)} | change))


def padded(side: str, **more) -> Tokens:
    return dataclasses.replace(Tokens.from_rows(HELLO, side=side), **more)


@pytest.mark.parametrize(
    "where", [[3, 3], (3, 3), torch.tensor([3, 3], dtype=torch.int32), np.array([3, 3]),
              pd.Series([3, 3], dtype="Int64"), [-1, -1], [np.int64(3), -1]],
    ids=lambda where: type(where).__name__,
)  # fmt: skip
def test_a_role_is_one_whole_number_per_row(unchecked, where):
    tokens = padded("left", roles={"end": where})
    assert tokens.roles["end"].tolist() == [3, 3]
    assert tokens.roles["end"].dtype == torch.int64


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ([0, 4], "role 'end'=4: expected 0 to 3"),
        ([0, -5], "role 'end'=-5: expected 0 to 3"),
        ([0, 2], "role 'end' of row 1 is position 2, which is a pad: .* are 0 to 1"),
        ([-1, -1], "role 'end' of row 1 is position 3, which is a pad"),
        ([0], r"role 'end' has the shape \[1\]; expected one index per row, \[2\]"),
        (0, r"role 'end' has the shape \[\]"),
        ([[0], [1]], r"role 'end' has the shape \[2, 1\]"),
        ([0.0, 1.0], "role 'end'=0.0: a float"),
        (torch.tensor([0.0, 1.0]), "role 'end' is of torch.float32"),
        ([True, False], "role 'end' is a mask"),
        (torch.tensor([True, False]), "role 'end' is a mask"),
        ([0, True], "role 'end'=True: a boolean"),
        ([0, None], "role 'end'=None"),
        ("01", "role 'end'='01'"),
    ],
)
def test_a_role_that_is_no_position_of_its_row_is_refused(unchecked, where, message):
    with pytest.raises(ValueError, match=message):
        padded("right", roles={"end": where})


def test_a_role_counted_from_the_end_is_the_last_token_behind_left_pads(unchecked):
    assert padded("left", roles={"end": [-1, -2]}).roles["end"].tolist() == [3, 2]
    with pytest.raises(ValueError, match=r"row 1 is position 1, which is a pad: .* are 2 to 3"):
        padded("left", roles={"start": [-3, -3]})


def test_what_a_tokenizer_of_hugging_face_returns_is_read(unchecked):
    ids, mask = [[5, 6, 7], [8, 9, 0]], [[1, 1, 1], [1, 1, 0]]
    encodings = [
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": [[5, 6, 7], [8, 9]], "attention_mask": [[1, 1, 1], [1, 1]]},
        {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)},
        {"input_ids": np.array(ids), "attention_mask": np.array(mask)},
        UserDict({"input_ids": ids, "attention_mask": mask}),  # as BatchEncoding is one
    ]
    for encoding in encodings:
        tokens = Tokens.of(encoding)
        assert tokens.ids.tolist() == ids
        assert tokens.mask.tolist() == [[True] * 3, [True, True, False]]
    alone = Tokens.of({"input_ids": [5, 6], "token_type_ids": [0, 1], "attention_mask": [1, 1]})
    assert alone.ids.tolist() == [[5, 6]] and alone.token_types.tolist() == [[0, 1]]
    model = random_model(small_config())
    assert torch.allclose(model(encodings[0])[1, :2], model([[8, 9]])[0])
    for wrong in ({"attention_mask": mask}, {"input_ids": ids, "offset_mapping": ids}, {}):
        with pytest.raises(ValueError, match="expected token ids, got a mapping"):
            Tokens.of(wrong)


@pytest.mark.parametrize(
    "value",
    [np.array([[1, 2]]), np.array([[1, 2]], dtype=np.uint8), [np.array([1, 2])],
     [torch.tensor([1, 2])], np.array([[1, 2]], dtype=object), [[np.int64(1), np.int64(2)]]],
    ids=repr,
)  # fmt: skip
def test_ids_are_whole_numbers_of_any_type(value):
    assert Tokens.of(value).ids.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "value",
    [[1.5, 2.5], [[1.5, 2.5]], [[True, False]], [True, False], [1, None], [[1, None]], [["a"]],
     np.array([True]), np.array([[1.0, 2.0]]), [[1, True], [2, 3]]],
    ids=repr,
)  # fmt: skip
def test_ids_that_are_no_whole_numbers_are_refused(unchecked, value):
    with pytest.raises(ValueError, match=r"ids|vectors need"):
        Tokens.of(value)


def test_a_row_of_nothing_but_pads_is_refused(unchecked):
    model = random_model(small_config())
    tokens = Tokens(torch.ones(2, 3, dtype=torch.long), mask=[[1, 1, 1], [0, 0, 0]])
    with pytest.raises(ValueError, match="row 1 holds nothing but pads"):
        model(tokens)
    with pytest.raises(ValueError, match="row 1 holds nothing but pads"):
        model.generate(tokens, 2)
