"""A factored product is indexed, scaled and multiplied as the dense one would be, or it raises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp import FactoredMatrix

from .strategies import random_model, small_config

BATCH, M, N, R = (3, 4), 6, 5, 2


def drawn(*shape):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))
    )


@pytest.fixture(scope="module")
def product():
    return FactoredMatrix(drawn(*BATCH, M, R), drawn(*BATCH, R, N))


@st.composite
def one_axis(draw, size, of_matrix, may_be_list):
    """What picks from one axis, and the same for the dense product."""
    number, end = st.integers(-size, size - 1), st.none() | st.integers(-size - 1, size + 1)
    kind = draw(st.sampled_from(["number", "slice", *(["list"] if may_be_list else [])]))
    if kind == "slice":
        key = slice(draw(end), draw(end), draw(st.sampled_from([None, 1, 2])))
        return key, key
    if kind == "list":
        numbers = draw(st.lists(number, min_size=1, max_size=3))
        return draw(st.sampled_from([list, np.array, torch.tensor, tuple]))(numbers), numbers
    i = draw(number)
    given_as = draw(st.sampled_from([int, np.int64, np.int32, torch.tensor]))
    return given_as(i), [i] if of_matrix else i


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_piece_is_that_piece_of_the_dense_product(product, data):
    """Numbers, slices and one list on leading axes, dots anywhere: rows and columns stay axes."""
    shape, listed = product.shape, data.draw(st.integers(-1, 3))
    pairs = [
        data.draw(one_axis(size, axis >= 2, axis == listed)) for axis, size in enumerate(shape)
    ]
    n = data.draw(st.integers(0, 4))
    keys, expected = [key for key, _ in pairs[:n]], product.AB
    if data.draw(st.booleans()):  # the last n axes
        shift = data.draw(st.integers(0, n))
        keys = [*keys[:shift], ..., *(key for key, _ in pairs[len(pairs) - n + shift :])]
        pairs = [*pairs[:shift], *[(None, slice(None))] * (4 - n), *pairs[len(pairs) - n + shift :]]
    else:
        pairs = pairs[:n]
    axis = 0
    for _, key in pairs:  # one axis of the dense product after the other
        expected = expected[(slice(None),) * axis + (key,)]
        axis += not isinstance(key, int)
    piece = product[tuple(keys)]
    assert torch.equal(piece.AB, (piece.A @ piece.B)) and piece.shape == expected.shape
    assert torch.allclose(piece.AB, expected)


def test_the_first_rows_and_columns_of_a_head():
    """QK[0, 0, :4, :4].AB differed from QK.AB[0, 0, :4, :4] by .087 of .089."""
    model = random_model(small_config())
    for circuit in (model.QK, model.OV):
        assert torch.allclose(circuit[0, 0, :4, :4].AB, circuit.AB[0, 0, :4, :4])
        assert torch.allclose(circuit[1, [0, 3], :, 7:].AB, circuit.AB[1, [0, 3], :, 7:])
        assert torch.allclose(circuit[[0, 2], [1, 1]].AB, circuit.AB[[0, 2], [1, 1]])  # two heads
        assert len(list(circuit)) == 3 and torch.equal(list(circuit)[2].A, circuit[2].A)


def test_factors_of_unequal_batch_are_indexed_as_their_product():
    product = FactoredMatrix(drawn(M, R), drawn(3, R, N))
    assert torch.allclose(product[1].AB, product.AB[1])
    assert torch.allclose(product[1, 2].AB, product.AB[1, 2:3])
    assert torch.allclose(product[..., 0].AB, product.AB[..., :1])


@pytest.mark.parametrize(
    "index",
    [
        None,
        (0, None),
        (0, 0, None),
        (0, 0, 0, 0, 0),
        (..., 0, ...),
        True,
        (0, True),
        1.0,
        (0, 0, 1.5),
        "q",
        [True, False, True],
        torch.tensor([True, False, True]),
        torch.ones(3, 4, dtype=torch.bool),
        (0, 0, np.ones(M, dtype=bool)),
        (0, 0, torch.ones(M, N, dtype=torch.bool)),
        (0, 0, [0, 1], [0, 1]),
        ([0, 1], 0, [0, 1]),
        ([0, 1], 0, slice(None), [0, 1]),
        [[0, 1], [1, 2]],
        [0.0, 1.0],
        3,
        -4,
        (0, 4),
        (0, 0, M),
        (0, 0, [0, M]),
        (0, 0, 0, -N - 1),
    ],
    ids=str,
)
def test_what_is_no_piece_of_factors_raises(unchecked, product, index):
    with pytest.raises(ValueError, match=r"\.AB\[|index \d.*(expected|is a mask|not an index)"):
        product[index]


def test_it_multiplies_as_the_dense_product(product):
    dense, matrix, vector = product.AB, drawn(N, 7), drawn(N)
    assert torch.allclose((product @ matrix).AB, dense @ matrix)
    assert torch.allclose(product @ vector, dense @ vector)
    assert torch.allclose((drawn(7, M) @ product).AB, drawn(7, M) @ dense)
    assert torch.allclose(drawn(M) @ product, drawn(M) @ dense)
    assert torch.allclose((product @ product.T).AB, dense @ dense.mT)
    assert torch.allclose((product.T @ product).AB, dense.mT @ dense)
    for twice in (product * 2, 2 * product, product * torch.tensor(2.0), np.float64(2) * product,
                  np.int64(2) * product, product / 0.5, -product * -2,
                  torch.tensor([2.0]) * product):  # fmt: skip
        assert isinstance(twice, FactoredMatrix) and torch.allclose(twice.AB, 2 * dense)


@pytest.mark.parametrize("factor", [torch.ones(3), "two", True, None, [2.0], 1j])
def test_only_a_number_scales_a_product(unchecked, product, factor):
    with pytest.raises((TypeError, ValueError)):
        product * factor


def test_it_is_as_the_one_of_transformer_lens(product):
    theirs_of = pytest.importorskip("transformer_lens.FactoredMatrix").FactoredMatrix
    theirs = theirs_of(product.A, product.B)
    assert product.ndim == theirs.ndim == 4 and product.shape == theirs.shape
    assert torch.allclose(product.S, theirs.S) and torch.allclose(product.norm(), theirs.norm())
    for index in [0, (1, 2), (1, 2, 3), (1, 2, 3, 4), (1, slice(2), slice(2), -1), (..., -1)]:
        ours = product[index]
        assert ours.shape == theirs[index].shape and torch.allclose(ours.AB, theirs[index].AB)
    assert torch.allclose((product * 3).AB, (theirs * 3).AB)
    assert torch.allclose(product.T.AB, theirs.T.AB)
    U, S, Vh, V = product.U, product.S, product.Vh, product.V
    assert V.shape == theirs.V.shape and U.shape == theirs.U.shape
    assert torch.allclose(U @ S.diag_embed() @ Vh, product.AB) and torch.equal(V, Vh.mT)


@pytest.mark.parametrize(("m", "n"), [(6, 5), (5, 6), (5, 5)])
def test_the_diagonal_is_that_of_the_dense_product(m, n):
    product = FactoredMatrix(drawn(3, m, R), drawn(3, R, n))
    assert torch.allclose(product.diagonal(), product.AB.diagonal(dim1=-2, dim2=-1))
    if m == n:
        assert torch.allclose(product.diagonal().sum(-1), product.eigenvalues.sum(-1).real)
