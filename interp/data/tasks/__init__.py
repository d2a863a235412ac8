"""Tasks: pairs of a clean and a corrupted prompt whose right next token is known.

    pairs = tasks.indirect_object(model, n=100, seed=0)
    pairs.clean, pairs.corrupted, pairs.answer, pairs.wrong, pairs.clean.roles["s2"]

The prompts are made for the model's own tokenizer: words that are several tokens in it are skipped
and listed in `pairs.skipped`, and of the templates those of the commonest length are used, so that
all rows have one length and nothing is padded. Answers, templates and word orders are balanced to
within one, no pair comes twice, and the same seed gives the same pairs. `bos` is that of
`model.to_tokens`. A model that attends both ways is asked at a mask token behind the prompt; in
every case the role "end" is where the answer is expected.
"""

from __future__ import annotations

from .csv_file import from_csv
from .pairs import Pairs
from .repeats import induction
from .sentences import agreement, capitals, gendered_pronoun, indirect_object
from .years import greater_than

__all__ = [
    "Pairs",
    "agreement",
    "capitals",
    "from_csv",
    "gendered_pronoun",
    "greater_than",
    "indirect_object",
    "induction",
]
