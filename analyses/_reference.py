"""Over which prompts the mean of mean ablation is taken, and when it holds the answer itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analyses._task import TaskConfig
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods.ablation import usual_per
from interp.report import Report
from interp.sweeps.metrics import single_answer

Reference = Literal["both", "clean", "corrupted"]


@dataclass(frozen=True)
class MeanConfig(TaskConfig):
    """A task, and what a removed part's mean is taken over."""

    reference: Reference = "both"
    """Prompts over which the mean of mean ablation is taken: clean and corrupted ones together,
    so that it speaks for neither answer, or one side alone."""
    per: Literal["pos", "all"] | None = None
    """That mean for each position, or over all; by default for each position where all prompts are
    equally long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("reference", ("both", "clean", "corrupted")),
                            ("per", (None, "pos", "all"))):  # fmt: skip
            if getattr(self, name) not in known:
                told = ", ".join(str(one) for one in known if one)
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {told}")


def reference_of(pairs: Pairs, which: Reference) -> Tokens:
    """The prompts of a side, or of both."""
    return pairs.both if which == "both" else getattr(pairs, which)


def warn_of_one_class(report: Report, pairs: Pairs, config: MeanConfig) -> None:
    """Where the mean is taken over prompts that all have one answer, it holds that answer."""
    side = config.reference
    if (
        len(pairs) == 1
        or side == "both"
        or not single_answer(pairs.answer if side == "clean" else pairs.wrong)
    ):
        return
    holds = "the answer" if side == "clean" else "the wrong answer"
    shows = (
        "a part that carries the answer keeps it when it is “removed”, and its effect comes out "
        "too small or with the wrong sign"
        if side == "clean"
        else "what is put in speaks for the wrong answer, so that effects come out too large"
    )
    report.warn(
        f"All {len(pairs)} {side} prompts have the same answer, so that the mean over them holds "
        f"{holds} itself: {shows}. --reference both takes the mean over clean and corrupted "
        "prompts together."
    )


def mean_in_words(pairs: Pairs, config: MeanConfig) -> str:
    """Over what the mean is taken, and what it keeps."""
    reference = reference_of(pairs, config.reference)
    per = config.per or usual_per(pairs.clean, reference)
    side = "clean and corrupted" if config.reference == "both" else config.reference
    start = f"Mean ablation puts in the mean over {len(reference)} {side} prompts"
    if per == "all":
        why = "" if config.per else (
            ", since there is one prompt only" if len(reference) == 1
            else ", since they are not equally long"
        )  # fmt: skip
        return f"{start} and all their tokens{why}: what a head says of position goes, too."
    fixed = all(bool((where == where[0]).all()) for where in pairs.clean.roles.values())
    kept = f"{start}, for each position by itself, so that what a head says of position stays"
    if fixed:
        return f"{kept}; every role stands at one position."
    return (
        f"{kept}. Roles stand at other positions from prompt to prompt, so that the mean at a "
        "position mixes them; --per all takes one mean over all."
    )
