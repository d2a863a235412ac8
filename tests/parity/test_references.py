"""The recorded references are what the installed transformers computes, one for every family."""

from __future__ import annotations

import numpy as np
import pytest

from interp.loading import reference
from interp.loading.families import FAMILIES
from tests.parity.record import LEFT_OUT, recorded

NAMES = [name for name in FAMILIES if name not in LEFT_OUT]


def test_every_family_has_one():
    assert reference.families() == NAMES, "run: python -m tests.parity.record"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_transformers_computes(name: str) -> None:
    stored, fresh = reference.reference(name), recorded(name)
    assert stored.inputs == fresh["inputs"]
    assert reference.shapes(stored) == reference.shapes(reference.Reference(**fresh))
    scale = np.abs(stored.output).max()
    assert np.abs(np.subtract(stored.output, fresh["output"])).max() <= 1e-6 * scale
    assert stored.norm == pytest.approx(fresh["norm"], rel=1e-6)
