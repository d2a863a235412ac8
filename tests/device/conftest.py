"""The attention kernel of the pretend accelerator on both sides, so that numbers can be equal bit
for bit: on the CPU torch would take a fused one, which adds in another order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel


@pytest.fixture(autouse=True)
def _one_kernel() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH):
        yield
