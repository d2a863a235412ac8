"""Indices in every form in which users write them, and what is refused in their place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.core.indices import (
    id_tensor,
    index,
    index_tensor,
    indices,
    span,
    whole_number,
    whole_numbers,
)
from tests.written_indices import NONE_AT_ALL, READ, READ_ALONE, REFUSED, REFUSED_ALONE, TWICE

SIZE = 4


@pytest.mark.parametrize("form", READ_ALONE)
def test_a_whole_number_of_any_type_is_an_index(form):
    value, meant = READ_ALONE[form]
    assert index(value, SIZE, "layer") == meant % SIZE
    assert indices(value, SIZE, "layers") == [meant % SIZE]
    assert index_tensor(value, SIZE, "pos").tolist() == meant % SIZE
    assert whole_number(value, "layer") == meant
    assert type(whole_number(value, "layer")) is int


@pytest.mark.parametrize("form", READ)
def test_whole_numbers_in_any_container_are_indices(form):
    make, meant = READ[form]
    assert indices(make(), SIZE, "layers") == [one % SIZE for one in meant]
    assert index_tensor(make(), SIZE, "pos").tolist() == [one % SIZE for one in meant]
    assert whole_numbers(make(), "pos").tolist() == meant
    assert whole_numbers(make(), "pos").dtype == torch.int64


@pytest.mark.parametrize("form", REFUSED_ALONE)
@pytest.mark.parametrize("read", [index, indices, index_tensor, id_tensor])
def test_what_is_no_index_is_refused_by_name(read, form):
    for value in (REFUSED_ALONE[form], [0, REFUSED_ALONE[form]]):
        with pytest.raises(ValueError, match="which"):
            read(value, SIZE, "which")


@pytest.mark.parametrize("form", REFUSED)
def test_lists_that_are_no_indices_are_refused_by_name(form):
    with pytest.raises(ValueError, match="which"):
        indices(REFUSED[form], SIZE, "which")


@pytest.mark.parametrize("form", NONE_AT_ALL)
def test_none_at_all_is_refused(form):
    with pytest.raises(ValueError, match="which is empty: expected 0 to 3"):
        indices(NONE_AT_ALL[form], SIZE, "which")


@pytest.mark.parametrize("form", TWICE)
def test_an_index_that_is_there_twice_is_refused(form):
    with pytest.raises(ValueError, match="is there twice"):
        indices(TWICE[form], SIZE, "which")


def test_the_same_index_counted_from_both_ends_is_there_twice():
    with pytest.raises(ValueError, match="3 is there twice"):
        indices([3, -1], SIZE, "which")


@pytest.mark.parametrize(
    ("mask", "way"),
    [
        ([True, False], r"\[i for i, chosen in enumerate\(mask\) if chosen\]"),
        (torch.tensor([True, False]), r"mask\.nonzero\(\)\.flatten\(\)"),
        (torch.tensor([True, False]).numpy(), r"np\.flatnonzero\(mask\)"),
    ],
)
def test_a_mask_is_refused_with_the_way_to_write_it(mask, way):
    for read in (indices, index_tensor, id_tensor):
        with pytest.raises(ValueError, match=f"which is a mask.*{way}"):
            read(mask, SIZE, "which")


def test_the_range_is_named():
    with pytest.raises(ValueError, match=r"layer=4: expected 0 to 3, or -4 to -1 counted"):
        index(4, SIZE, "layer")
    with pytest.raises(ValueError, match=r"stop=5: expected 0 to 4, or -4 to -1 counted"):
        index(5, SIZE, "stop", end=True)
    with pytest.raises(ValueError, match=r"answer=-1: expected 0 to 3$"):
        id_tensor([0, -1], SIZE, "answer")
    assert index(4, SIZE, "stop", end=True) == 4


@pytest.mark.parametrize("text", ["1", "12", "layer", ""])
def test_text_is_no_index(text):
    for read in (index, indices, index_tensor):
        with pytest.raises(ValueError, match="got a str"):
            read(text, SIZE, "which")
    for read in (indices, index_tensor):
        with pytest.raises(ValueError, match="got a str"):
            read([0, text], SIZE, "which")


def test_nothing_is_no_index():
    for read in (index, indices, index_tensor):
        with pytest.raises(ValueError, match=r"nothing \(None\)"):
            read(None, SIZE, "which")


def test_tensors_keep_their_shape():
    assert id_tensor([[1, 2], [0, 3]], SIZE, "ids").tolist() == [[1, 2], [0, 3]]
    assert index_tensor(torch.tensor([[0], [-1]]), SIZE, "pos").tolist() == [[0], [3]]
    with pytest.raises(ValueError, match="different shapes"):
        id_tensor([[1, 2], [0]], SIZE, "ids")


parts = st.none() | st.integers(-9, 9)


@given(parts, parts, st.none() | st.sampled_from([-3, -2, -1, 1, 2, 3]), st.integers(1, 6))
def test_a_slice_picks_as_from_a_list(start, stop, step, size):
    meant = list(range(size))[start:stop:step]
    if meant:
        assert indices(slice(start, stop, step), size, "pos") == meant
    else:
        with pytest.raises(ValueError, match="empty"):
            indices(slice(start, stop, step), size, "pos")


def test_a_span_is_a_slice(unchecked):
    assert span(slice(1, 9), SIZE, "rows") == range(1, 4)
    for value in (3, [0, 1], None, range(2)):
        with pytest.raises(ValueError, match=r"rows=.*expected a slice"):
            span(value, SIZE, "rows")


def test_the_bounds_of_a_slice_are_whole_numbers():
    for bound in (True, 1.0, "1"):
        with pytest.raises(ValueError, match="pos"):
            indices(slice(bound, None), SIZE, "pos")


@given(st.lists(st.integers(-6, 5), min_size=1, max_size=4), st.integers(1, 6))
def test_indices_are_those_of_a_list(values, size):
    """Against Python's own reading of the same indices."""
    inside = all(-size <= value < size for value in values)
    meant = [list(range(size))[value] for value in values] if inside else []
    if inside and len(set(meant)) == len(meant):
        assert indices(values, size, "pos") == meant
    else:
        with pytest.raises(ValueError, match="twice" if inside else "expected 0 to"):
            indices(values, size, "pos")
