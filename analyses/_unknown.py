"""How much of the texts of an analysis the model's tokenizer does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.core.unknown import WORTH_A_WARNING, unknown_tokens
from interp.report import Report

REFUSED = 0.30
"""Share of unknown tokens past which a report would be about nothing."""


def check_unknown(
    report: Report, model: Any, texts: Sequence[str], name: str, *, allowed: bool
) -> None:
    """State which share of the tokens of some texts is unknown; `name` is what they are called.

    Above 5 % it is a warning in red. Above 30 % raises ValueError, unless it is allowed.
    """
    found = unknown_tokens(model, texts)
    if found.share > REFUSED and not allowed:
        raise ValueError(
            f"{name}: {found}. What is measured would be about nothing: bring texts of words that "
            f"{model.name} knows, or a model that knows these; --allow-unknown goes on all the same"
        )
    if found.share > WORTH_A_WARNING:
        report.warn(f"{_capital(name)}: {found}.")
    else:
        report.sure(f"{_capital(name)}: {found}.")


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
