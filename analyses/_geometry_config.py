"""What `embedding_geometry` is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CATEGORIES = (
    "royalty=king queen prince princess duke duchess",
    "family=father mother brother sister son daughter uncle aunt",
    "countries=France Germany Italy Spain England Japan China Egypt",
    "jobs=doctor lawyer teacher judge farmer writer soldier artist",
    "animals=cat dog horse pig sheep cow bird fish",
)
MOST = 5
"""Categories of a figure, which have a colour each."""


@dataclass(frozen=True)
class Config:
    """Which model, which words, and which texts."""

    model: str = "minilm"
    """A bundled model, a local folder or a Hugging Face id."""
    words: tuple[str, ...] = ("king", "woman", "doctor", "France", "dog")
    """Words whose neighbours are listed."""
    categories: tuple[str, ...] = CATEGORIES
    """Groups of words to look for, each as name=word word …; five at most."""
    data: Path | None = None
    """Your own texts, a CSV or JSON-lines file with a text, a word of it and its sense there per
    row. By default sentences of the language of tinyworld, whose senses are known."""
    text_column: str = "text"
    """Column of --data with the text."""
    label_column: str = "sense"
    """Column of --data with the sense."""
    word_column: str = "word"
    """Column of --data with the word; “bank#2” is its second occurrence in the text."""
    group_column: str | None = None
    """Column of --data that says which texts belong together (the same cue, the same source): they
    are left out together when one of them is judged. By default each text is by itself."""
    compare: str | None = None
    """A second model, read on the same texts, to compare layers with."""
    layers: tuple[int, ...] | None = None
    """Layers to look at, 0 (what the first one reads) to the number of layers; by default all."""
    places: int = 800
    """Places in texts whose vectors are measured, in every layer."""
    pairs: int = 100_000
    """Random pairs of rows of the table whose cosines are drawn."""
    draws: int = 100
    """Shuffles of the controls for senses; a fifth as many for clusters."""
    seed: int = 0
    """Seed of the controls, of the pairs, and of what is drawn from the texts."""
    allow_unknown: bool = False
    """Whether to go on where more than 30 % of the tokens of a text are unknown to the model."""
    device: str | None = None
    """cpu, cuda, …; by default the best one at hand."""
    dtype: str = "auto"
    """auto (float32 for half-precision weights on a CPU, else that of the file), float32, float64,
    bfloat16 or float16."""
    out: Path = Path("reports/embedding-geometry")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        if self.layers is not None and not self.layers:
            raise ValueError("layers=(): expected one or more, or none given for all of them")
        for name, least in (("places", 20), ("pairs", 1000), ("draws", 20)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if len(self.categories) > MOST:
            raise ValueError(f"{len(self.categories)} categories: expected at most {MOST}")
        taken: set[str] = set()
        for name, words in self.groups.items():
            if len(set(words)) < len(words) or taken & {*words}:
                raise ValueError(f"categories: a word of {name!r} is there twice")
            taken |= {*words}

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Category to words."""
        found = {}
        for one in self.categories:
            name, sign, words = one.partition("=")
            if not sign or not name.strip() or not words.split() or name.strip() in found:
                raise ValueError(
                    f"categories: {one!r}: expected name=word word …, each name once, such as "
                    "“colors=red green blue”"
                )
            found[name.strip()] = tuple(words.split())
        return found
