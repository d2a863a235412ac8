"""docs/families.md is what the code and the tests say."""

from __future__ import annotations

from interp.loading import reference
from tests.parity import table


def test_the_page_is_up_to_date() -> None:
    assert table.PAGE.read_text(encoding="utf-8") == table.page(), "python -m tests.parity.table"


def test_every_family_has_parity_and_mutants() -> None:
    for name in reference.families():
        assert table.mutants(table.models_of(name)) > 0, name
        assert name in table.EXAMPLES, name
