"""One random Hugging Face model per family and ours, loaded from its folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import PreTrainedModel

from tests.parity.families import FAMILIES, build, save
from tests.parity.layout import Family


class Pair(NamedTuple):
    """The same weights, there and here, both float64."""

    family: Family
    reference: PreTrainedModel
    ours: Any
    folder: Path


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Makes the pair of a family by name, once."""
    import interp

    @cache
    def make(name: str) -> Pair:
        reference = build(FAMILIES[name])
        folder = save(reference, tmp_path_factory.mktemp(name))
        return Pair(FAMILIES[name], reference, interp.load(folder, dtype="float64"), folder)

    return make
