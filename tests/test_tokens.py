"""Tokens: padding and positions are explicit, and padding changes no number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.tokens import Tokens

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
        roles={"subject": torch.tensor([0, 1, 1])},
    )
    picked = tokens[[2, 0]]
    assert picked.ids.tolist() == [[5, 6], [1, 2]]
    assert picked.strings == [["e", "f"], ["a", "b"]]
    assert picked.roles["subject"].tolist() == [1, 0]
    assert tokens[1].mask.tolist() == [[True, False]]
    assert tokens[-1].ids.tolist() == [[5, 6]]
    assert tokens[:2].ids.tolist() == [[1, 2], [3, 4]]
    assert tokens[torch.tensor([True, False, True])].ids.tolist() == [[1, 2], [5, 6]]


def test_explicit_positions_are_used():
    model = random_model(small_config())
    shifted = Tokens(torch.tensor([[1, 2]]), positions=torch.tensor([[3, 4]]))
    longer = Tokens(torch.tensor([[0, 0, 0, 1, 2]]),
                    mask=torch.tensor([[False, False, False, True, True]]),
                    positions=torch.arange(5)[None])  # fmt: skip
    assert torch.allclose(model(shifted), model(longer)[:, 3:], atol=1e-10)
    with pytest.raises(ValueError, match="position 24"):
        model(Tokens(torch.tensor([[1]]), positions=torch.tensor([[24]])))
