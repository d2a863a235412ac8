"""Words that findings are put together from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from interp import stats


def head_name(layer: object, head: object) -> str:
    """As heads are called in reports: L3 H1."""
    return f"L{int(str(layer))} H{int(str(head))}"


def listed(words: Iterable[object], most: int = 8) -> str:
    """a, b and c; past `most`, how many more there are; "none" for nothing."""
    texts = [str(word) for word in words]
    if not texts:
        return "none"
    if len(texts) > most:
        return f"{', '.join(texts[:most])} and {len(texts) - most} more"
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def number(value: float, form: str = "z.2f") -> str:
    """With a real minus sign; z in the form leaves none before a zero."""
    return f"{value:{form}}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A change: it has a sign in any case."""
    return number(value, f"+z.{digits}f")


def plus_minus(value: float, stderr: float, form: str = "z.2f") -> str:
    """A number and its standard error, which has no sign; of one example there is none."""
    error = "" if stderr != stderr else f" ± {stderr:{form.removeprefix('+')}}"
    return number(value, form) + error


def no_effect(noise: float) -> str:
    """What is said in place of ranks and names where all effects are rounding."""
    return f"no effect above rounding ({noise:.0e})".replace("e-0", "e-")


def out_of_reach(
    draws: int, tests: int, thing: str, of: str, option: str,
    correction: Literal["holm", "bh", "none"] = "bh", alpha: float = 0.05,
) -> str:  # fmt: skip
    """What a test by so many draws (`of` says of what) cannot find of one `thing`, however clear it
    is, and the option that would let it; empty where it can."""
    own = stats.reach(draws, tests, alpha=alpha, correction=correction)
    if own.alone <= alpha:
        return ""
    among = f" alone, corrected for {tests}," if tests > 1 and correction != "none" else ""
    return (
        f"with {draws} {of} the p of one {thing}{among} is never below {own.alone:.2f}, so that "
        f"none can pass {alpha:.2f}; --{option} {own.needed} lets it"
    )
