"""What the reports of all analyses share: which parts of a model are asked for, how these parts are
called, and how numbers stand in sentences.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from interp.core.indices import indices
from interp.methods import stats
from interp.model import HookedTransformer

Config = TypeVar("Config")


def counted_from_the_start(model: HookedTransformer, config: Config) -> Config:
    """The config with its layers and heads as whole numbers from 0, negative ones counted from the
    end. Raises ValueError, naming the range, on one that the model does not have.
    """
    sizes = {"layers": model.cfg.n_layers, "heads": model.cfg.n_heads}
    chosen = {
        name: tuple(indices(getattr(config, name), size, name))
        for name, size in sizes.items()
        if len(getattr(config, name, ()) or ())
    }
    return dataclasses.replace(config, **chosen)  # type: ignore[type-var]


# Parts of a model


def head_name(layer: object, head: object) -> str:
    """As heads are called in reports: L3 H1."""
    return f"L{int(str(layer))} H{int(str(head))}"


def neuron_name(layer: object, neuron: object) -> str:
    """As neurons are called in reports: L3 N120."""
    return f"L{int(str(layer))} N{int(str(neuron))}"


def head_links(sentence: str, link: Callable[[int, int], str]) -> dict[str, str]:
    """The heads that a sentence names, as `links=` takes them; `link` says where a layer and head
    are shown."""
    found = re.finditer(r"\bL(\d+) H(\d+)\b", sentence)
    return {match[0]: link(int(match[1]), int(match[2])) for match in found}


def part_name(row: pd.Series) -> str:
    """What a row of a frame is about, by its columns: L2 H1, L2 N77, or MLP 2."""
    if bool(pd.notna(row.get("head"))):
        return head_name(int(row["layer"]), int(row["head"]))
    if bool(pd.notna(row.get("neuron"))):
        return neuron_name(int(row["layer"]), int(row["neuron"]))
    return f"MLP {int(row['layer'])}"


def strongest(frame: pd.DataFrame, k: int | None = None, by: str = "effect") -> pd.DataFrame:
    """The rows of the k largest sizes of a column, largest first; ties stay in their order."""
    order = np.argsort(-frame[by].abs().to_numpy(), kind="stable")
    return frame.iloc[order[:k]]


# Words and numbers


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
    return f"{value:{form}}".replace("-", "\u2212")


def counted(count: int, thing: str) -> str:
    """no layer, 1 layer, 2 layers."""
    return f"{count or 'no'} {thing}{'s' * (count > 1)}"


def signed(value: float, digits: int = 2) -> str:
    """A change: it has a sign in any case."""
    return number(value, f"+z.{digits}f")


def percent(value: float, form: str = "z.0f") -> str:
    """A share of 1 as the house writes it: 23 %."""
    return number(100 * value, form) + "\u00a0%"


def plus_minus(value: float, stderr: float, form: str = "z.2f") -> str:
    """A number and its standard error, which has no sign; of one example there is none."""
    error = "" if stderr != stderr else f" ± {stderr:{form.removeprefix('+')}}"
    return number(value, form) + error


def moved(before: float, after: float, unit: str = "logits", form: str = "z.2f") -> str:
    """What becomes of a number: falls from 5.12 to 0.30 logits; as far as the digits show it."""
    start, end = number(before, form), number(after, form)
    if start == end:
        return f"stays at {start} {unit}"
    return f"{'rises' if after > before else 'falls'} from {start} to {end} {unit}"


def no_effect(noise: float) -> str:
    """What is said in place of ranks and names where all effects are rounding."""
    return f"no effect above rounding ({noise:.0e})".replace("e-0", "e-")


def out_of_reach(
    draws: int,
    tests: int,
    thing: str,
    of: str,
    option: str,
    correction: Literal["holm", "bh", "none"] = "bh",
    alpha: float = 0.05,
) -> str:
    """What a test by so many draws (`of` says of what) cannot find of one `thing`, however clear it
    is, and the option that would let it; empty where it can."""
    reach = stats.reach(draws, tests, alpha=alpha, correction=correction)
    if reach.alone <= alpha:
        return ""
    among = f" alone, corrected for {tests}," if tests > 1 and correction != "none" else ""
    return (
        f"with {draws} {of} the p of one {thing}{among} is never below {reach.alone:.2f}, so that "
        f"none can pass {alpha:.2f}; --{option} {reach.needed} lets it"
    )
