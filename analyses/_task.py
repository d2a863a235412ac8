"""What the analyses of a task share: its options, its prompts, and whether the model can do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from analyses._unknown import check_unknown
from interp import tasks
from interp.core.files.untrusted import safe_join
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods import baseline, stats
from interp.methods.baseline import Baseline, check_logits
from interp.report import Report
from interp.report.spine import plus_minus

Task = Literal[
    "indirect-object", "capitals", "agreement", "gendered-pronoun", "greater-than", "induction"
]
TASKS: dict[Task, Callable[..., Pairs]] = {
    "indirect-object": tasks.indirect_object,
    "capitals": tasks.capitals,
    "agreement": tasks.agreement,
    "gendered-pronoun": tasks.gendered_pronoun,
    "greater-than": tasks.greater_than,
    "induction": tasks.induction,
}
PROMPTS = ("clean", "corrupted", "answer", "wrong", "logit_diff", "corrupted_logit_diff")
TABLES = {"baseline": baseline.COLUMNS, "prompts": PROMPTS, "skipped-words": tasks.pairs.SKIPPED}
"""The tables of `task_section`."""
SHOWN = 3
"""Of several right answers, those that a table names."""


@dataclass(frozen=True)
class TaskConfig:
    """A task, one model, and where the report goes."""

    model: str = "tinyworld"
    """A bundled model, a local folder or a Hugging Face id."""
    task: Task = "indirect-object"
    """Bundled pairs of prompts; not used where --prompts is given."""
    prompts: Path | None = None
    """Your own pairs: a CSV file with the columns clean, corrupted, answer, wrong, and perhaps
    role:<name> with a word of the clean prompt."""
    n: int = 50
    """Pairs of the bundled task; of --prompts all are used."""
    bos: bool | None = None
    """Whether prompts begin with the model's beginning-of-sequence token; by default as its
    tokenizer has it."""
    seed: int = 0
    """Seed of the prompts and of everything else that is drawn."""
    allow_unknown: bool = False
    """Whether to go on where more than 30 % of the tokens of a text are unknown to the model."""
    device: str | None = None
    """cpu, cuda, …; by default the best one at hand."""
    dtype: str = "auto"
    """auto (float32 for half-precision weights on a CPU, else that of the file), float32, float64,
    bfloat16 or float16."""
    journal: Path | None = None
    """Folder in which sweeps keep what they have measured; the same command goes on from there
    after a kill, and ends in the same numbers."""
    out: Path = Path("reports/task")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n}: expected at least 1 pair")

    def kept(self, name: str) -> Path | None:
        """The journal of one sweep of this analysis."""
        if self.journal is None:
            return None
        self.journal.mkdir(parents=True, exist_ok=True)
        return safe_join(self.journal, f"{name}.jsonl")


def task_pairs(model: Any, config: TaskConfig) -> Pairs:
    """The pairs of a config, read by the model's tokenizer. Raises ValueError on a model without
    logits, which has no answer to measure."""
    check_logits(model)
    if config.prompts is not None:
        return tasks.from_csv(config.prompts, model, bos=config.bos)
    return TASKS[config.task](model, config.n, config.seed, bos=config.bos)


def position_names(pairs: Pairs) -> list[str]:
    """A label per position of the prompts: its token where all rows have the same, else the role
    that all rows have there, else nothing but the number."""
    strings, roles = pairs.clean.strings or [], pairs.clean.roles
    names = []
    for pos in range(pairs.clean.shape[1]):
        words = {row[pos] for row in strings if pos < len(row)}
        here = [role for role, where in roles.items() if bool((where == pos).all())]
        label = "/".join(here) if here else words.pop().strip() if len(words) == 1 else ""
        names.append(f"{pos} {label}".rstrip())
    return names


def example_names(pairs: Pairs) -> list[str]:
    """A label per position: the token that the first clean prompt has there, and in brackets the
    role that all prompts have there; the number before it where that says too little."""
    if pairs.clean.mask is not None or not pairs.clean.strings:  # one number is not one place
        return position_names(pairs)
    labels = []
    for pos, token in enumerate(pairs.clean.strings[0]):
        here = [role for role, at in pairs.clean.roles.items() if bool((at == pos).all())]
        labels.append(f"{token.strip()} ({'/'.join(here)})" if here else token.strip())
    return [
        label if label and labels.count(label) == 1 else f"{pos} {label}".rstrip()
        for pos, label in enumerate(labels)
    ]


def task_section(
    report: Report, model: Any, pairs: Pairs, found: Baseline, config: TaskConfig
) -> None:
    """Says first whether the model can do the task; then the prompts and what was left out.

    Raises ValueError where too many of the prompts' words are unknown (`check_unknown`).
    """
    if config.prompts is not None:
        texts = [*pairs.clean_texts, *pairs.corrupted_texts]
        check_unknown(report, model, texts, "the prompts", allowed=config.allow_unknown)
    clean, corrupted = (row for _, row in found.table.iterrows())
    name = config.prompts.name if config.prompts is not None else config.task
    score = (
        f"the answer lies above the wrong one in {clean['above_wrong']:.0%} of {len(pairs)} "
        f"prompts (95 % interval {clean['low']:.0%} to {clean['high']:.0%}; by chance 50 %)"
    )
    if not found.able:
        report.warn(
            f"This model cannot do the task {name}: {score}. What follows describes a model that "
            "does something else."
        )
    if not found.normal:
        report.warn(
            "Corrupting the prompts does not change the answer measurably (gap "
            f"{plus_minus(float(found.gap.mean()), float(stats.mean(found.gap).stderr))} logits), "
            "so effects are not stated as shares of it."
        )
    report.sure(
        f"The unedited model: {score}; logit difference "
        f"{plus_minus(clean['logit_diff'], clean['stderr'])} on clean and "
        f"{plus_minus(corrupted['logit_diff'], corrupted['stderr'])} on corrupted prompts "
        "(± standard error)."
    )
    if len(pairs) == 1:
        report.sure("There is one prompt only, so that nothing here has an interval.")
    section = report.section("The task", _about(pairs, name))
    section.table(found.table, "What the unedited model does", name="baseline", missing=("stderr",))
    section.table(_prompts(model, pairs, found), "The prompts", name="prompts", rows=10)
    if len(pairs.skipped):
        report.skip(f"{len(pairs.skipped)} words or templates are not single tokens here.")
        section.table(pairs.skipped, "What this tokenizer cannot use", name="skipped-words", rows=5)


def _about(pairs: Pairs, name: str) -> str:
    begins = {True: "with", False: "without", None: "perhaps without"}[pairs.clean.bos]
    return (
        f"{len(pairs)} pairs of {name}, {pairs.clean.shape[1]} tokens, {begins} a "
        "beginning-of-sequence token. The metric is logit(answer) − logit(wrong) where the answer "
        "is expected."
    )


def _prompts(model: Any, pairs: Pairs, found: Baseline) -> pd.DataFrame:
    def words(tokens: Tokens, texts: Iterable[str]) -> list[str]:
        whole = list(texts)
        return whole or ["".join(row) for row in tokens.strings or [""] * len(tokens)]

    def named(ids: Tensor) -> list[str]:
        rows = ids.reshape(len(pairs), -1).tolist()
        known = model.tokenizer
        pieces = (lambda ids: map(str, ids)) if known is None else known.str_tokens
        more = " …" if rows[0][SHOWN:] else ""
        return [" ".join(one.strip() for one in pieces(row[:SHOWN])) + more for row in rows]

    return pd.DataFrame(
        {
            "clean": words(pairs.clean, pairs.clean_texts),
            "corrupted": words(pairs.corrupted, pairs.corrupted_texts),
            "answer": named(pairs.answer),
            "wrong": named(pairs.wrong),
            "logit_diff": found.clean,
            "corrupted_logit_diff": found.corrupted,
        }
    )
