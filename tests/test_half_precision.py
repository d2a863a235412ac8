"""Every public verb and method on half-precision weights, against the same weights in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import heads
from interp.core import precision

from . import calls

pytestmark = pytest.mark.usefixtures("unchecked")  # hundreds of calls, whose shapes others check
TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 8e-2}
"""Of the largest number: what a few layers of half-precision rounding leave."""
HALF = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype)[6:])
UNITS = (
    "value", "baseline", "effect", "stderr", "clean", "corrupted", "size", "alone", "given",
    "given_stderr", "first_alone", "interaction", "low", "high", "off_value", "off_baseline",
    "off_effect", "off_size", "plain", "tuned", "plain_stderr", "tuned_stderr", "train_plain",
    "train_tuned",
)  # fmt: skip
"""Columns in one unit: a difference of two large numbers is as sure as they are."""
JUMPS = {
    "check_identities": ("error", "tolerance"),
    "sweep rank": "all", "sweep rank naive": "all", "sweep accuracy": "all",
    "cumulative_ablation": ("share", "low", "high"),
    "second_removals": ("p", "p_corrected", "given_p_corrected"),
    "head_roles": ("p", "q"), "head_roles pairs": ("p", "q"),
    "causal_check": ("p_random", "p_covariance"),
    "dormancy": ("share", "expected"),
    "amnesic_check": ("p", "accuracy", "low", "high"),
    "disambiguation": "all", "probe_sweep": ("p", "null_low", "null_high"),
    "probe_sweep ridge": ("p", "null_low", "null_high"),
}  # fmt: skip
"""What a small change of a number may move by a step: ranks, counts, p-values by rank."""


def scales(reference: dict[str, np.ndarray]) -> dict[str, float]:
    """What the error of each column is divided by."""
    own = {name: float(np.abs(x[np.isfinite(x)]).max(initial=1e-12)) for name, x in
           reference.items()}  # fmt: skip
    shared = max((own[name] for name in own if name in UNITS), default=0.0)
    return {name: shared if name in UNITS else size for name, size in own.items()}


@pytest.mark.parametrize("name", calls.CALLS)
def test_half_precision_gives_the_numbers_of_float32(name):
    call, jumps = calls.CALLS[name], JUMPS.get(name, ())
    reference = calls.numbers(call(calls.tiny(torch.float32)))
    sizes = scales(reference)
    for dtype, tolerance in TOLERANCE.items():
        ours = calls.numbers(call(calls.tiny(dtype)))
        assert ours.keys() == reference.keys()
        for column, expected in reference.items():
            if jumps == "all" or column in jumps:
                continue
            assert ours[column].shape == expected.shape
            finite = np.isfinite(expected)
            assert (np.isfinite(ours[column]) == finite).all(), f"{dtype} {column}"
            error = np.abs(ours[column] - expected)[finite].max(initial=0) / sizes[column]
            assert error <= tolerance, f"{dtype} {column}: {error:.2g} of the largest number"


@HALF
def test_copying_is_not_zero_because_weights_are_half(dtype):
    """What counts as rounding is that of the computation, not of how weights are stored: a bound
    of 64 bfloat16 roundings is a quarter, below which almost any product of two matrices lies."""
    exact, half = (heads.copying(calls.tiny(one)) for one in (torch.float64, dtype))
    assert bool((exact.score != 0).all())
    torch.testing.assert_close(half.score, exact.score, atol=0.05, rtol=0)
    torch.testing.assert_close(half.z, exact.z, atol=0.2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_wide_keeps_what_is_wide_enough(dtype):
    x = torch.tensor([1.5, -2.0], dtype=dtype)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert precision.wide(x).dtype == wanted and precision.wide_dtype(dtype) == wanted
    assert precision.to_numpy(x).tolist() == [1.5, -2.0]
    assert precision.to_numpy(torch.tensor([3, 4])).dtype == np.int64


@HALF
def test_factored_matrices_decompose_in_half_precision(dtype):
    model = calls.tiny(dtype)
    for product in (model.QK, model.OV, model.OV.T, model.QK @ model.OV, model.W_E @ model.OV[0]):
        whole = product.A.double() @ product.B.double()
        U, S, Vh = product.svd()
        torch.testing.assert_close(((U * S[..., None, :]) @ Vh).double(), whole, atol=2e-4, rtol=0)
        torch.testing.assert_close(
            product.norm().double(), torch.linalg.matrix_norm(whole), atol=1e-4, rtol=1e-4
        )
        if whole.shape[-1] == whole.shape[-2]:
            trace = whole.diagonal(dim1=-2, dim2=-1).sum(-1)
            found = product.eigenvalues.sum(-1).real.double()
            torch.testing.assert_close(found, trace, atol=2e-4, rtol=0)
