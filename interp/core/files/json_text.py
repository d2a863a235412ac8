"""JSON that users bring: strictly what the standard has, each key of an object once."""

from __future__ import annotations

import json
from typing import Any


def parse_json_text(text: str, where: str) -> Any:
    """The value of a JSON text; `where` names it in errors.

    Raises ValueError on what is no JSON, on NaN and infinity, and on a key that an object repeats,
    of whose values json.loads would silently keep the last.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _distinct(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    if len(values) < len(items):
        seen: set[str] = set()
        repeated = next(key for key, _ in items if key in seen or seen.add(key))
        raise ValueError(f"the key {repeated[:100]!r} stands there twice")
    return values
