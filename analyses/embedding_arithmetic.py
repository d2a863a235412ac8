"""King − man + woman: does arithmetic on word vectors answer analogies, and under which rules?

Asks one question in every setting (three rules, centred or not, the words of the question left out
or not), then a list of analogies by category, beside controls that must find nothing. Pictures the
pairs in a plane, and places words along the direction that the pairs of a category share.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from analyses import main
from analyses._word_pairs import direction_section, pairs_of, plane_section
from interp.core.files import read_csv
from interp.loading.needs import Needs
from interp.methods.geometry import Embedding, analogy_controls, embedding, every_setting
from interp.methods.geometry.analogies import QUESTION, SETTING, accuracy
from interp.report import Report, Section
from interp.report.figures import bars
from interp.report.provenance import provenance
from interp.report.spine import percent

Rule = Literal["3cosadd", "3cosmul", "pairdistance"]
DATA = Path(__file__).parent / "data" / "analogies.csv"
RULES = {
    "3cosadd": "3CosAdd",
    "3cosmul": "3CosMul",
    "pairdistance": "PairDistance",
    "neighbor": "neighbour of c",
}
PLACES = ("first", "second", "third")
PLACED = (
    *("nurse", "librarian", "dancer", "teacher", "secretary", "singer", "writer", "student"),
    *("doctor", "lawyer", "professor", "artist", "scientist", "pilot", "judge", "farmer"),
    *("engineer", "soldier", "captain", "carpenter", "mechanic", "philosopher", "programmer"),
    *("table", "water", "green", "seven"),
)
"""Occupations, and four words for which no direction of people should mean anything."""
COUNTED = ("n", "correct", "accuracy", "low", "high")
NEEDS = Needs(text=True, tokenizer=True)
TABLES = {
    "answers-by-setting": (*SETTING, ...),
    "answers": (*SETTING, "rank", "token", "score"),
    "accuracy-figure": ("category", "rule", *COUNTED),
    "accuracy": (*SETTING, *COUNTED),
    "rules-by-category": ("category", "n", ...),
    "accuracy-by-category": (*SETTING, "category", *COUNTED),
    "misses": (*QUESTION, "top", "rank"),
    "questions": (*QUESTION, *SETTING, "rank", "correct", "top"),
    "plane-figure": ("word", "x", "y", "kind"),
    "plane": ("word", "x", "y", "explained"),
    "pairs": ("first", "second", "length", "cosine", "control"),
    "along-figure": ("word", "cosine", "low", "high"),
    "controls": ("control", "method", *COUNTED),
    "neighbours-side-by-side": ("rank", ...),
    "neighbours": ("word", "rank", "token", "score"),
    "skipped": (*QUESTION, "reason"),
}
"""The CSV files of the report and their columns."""
PERCENT = {"accuracy": ".1%", "low": ".1%", "high": ".1%"}


@dataclass(frozen=True)
class Config:
    """What to ask, and of which model."""

    model: str = "minilm"
    """A bundled model, a local folder or a Hugging Face id."""
    a: str = "man"
    """a is to b …"""
    b: str = "king"
    """… as c is to ?, which is b − a + c."""
    c: str = "woman"
    """The word that gets the answer."""
    expected: str | None = None
    """The answer whose rank is followed. By default queen for the default question, else none."""
    analogies: Path | None = None
    """CSV file of questions with the columns category, a, b, c, expected. By default our own."""
    methods: tuple[Rule, ...] = ("3cosadd", "3cosmul", "pairdistance")
    """Rules that score an answer; the first is the one in figures and findings."""
    side: Literal["embed", "unembed"] = "embed"
    """Which table of vectors: what the model reads (W_E) or what it predicts with (W_U)."""
    k: int = 5
    """Answers and neighbours to list."""
    category: str = "gender"
    """Category of the list whose pairs make a direction and are drawn in the plane."""
    placed: tuple[str, ...] = PLACED
    """Words to place along that direction; those that are not one token are counted and named."""
    seed: int = 0
    """Seed of the controls: shuffled answers and vectors, random tokens and directions."""
    device: str | None = None
    """cpu, cuda, …; by default the best one at hand."""
    dtype: str = "auto"
    """auto (float32 for half-precision weights on a CPU, else that of the file), float32, float64,
    bfloat16 or float16."""
    out: Path = Path("reports/embedding-arithmetic")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k}: expected at least 1")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods={self.methods}: expected one or more, each once")

    @property
    def words(self) -> tuple[str, str, str]:
        """The words of the question."""
        return self.a, self.b, self.c

    @property
    def followed(self) -> str | None:
        """The answer whose rank is followed."""
        default = self.words == (Config.a, Config.b, Config.c)
        return self.expected or ("queen" if default else None)


def run(model: Any, config: Config) -> Report:
    """The report. Raises ValueError if a, b or c is not one token, or no question can be asked."""
    report = Report(
        f"Embedding arithmetic in {model.name}",
        f"{config.a} is to {config.b} as {config.c} is to what? Does {config.b} − {config.a} + "
        f"{config.c} say so, and how far does the same arithmetic carry?",
        analysis="embedding_arithmetic",
        provenance=provenance(config, model),
    )
    table = embedding(model, side=config.side)
    path = config.analogies or DATA
    asked = read_analogies(path)
    questions, skipped = table.usable(asked)
    if questions.empty:
        raise ValueError(
            f"{path}: none of the {len(asked)} questions can be asked; "
            f"the first: {skipped['reason'].iloc[0]}"
        )
    answered = every_setting(table, *config.words, config.k, config.methods)
    grid = by_setting(table, answered, config)
    listed = Listed(
        questions,
        table.evaluate(questions, methods=config.methods),
        table.evaluate(questions, methods=["neighbor"], centre=True, exclude_inputs=True),
    )
    opening = report.answer(_answer(table, grid, listed, config))
    pairs = pairs_of(questions, config.category)
    _first_findings(report, grid, listed, config)
    _one_question(report, grid, answered, config)
    _many_questions(report, table, listed, config)
    answer = config.followed or str(answered["token"].iloc[0])
    plane_section(report, opening, table, pairs, config.words, answer, config.seed)
    direction_section(report, table, config.category, pairs, config.placed, config.seed)
    _neighbours(report, table, config)
    _skipped(report, skipped, len(asked))
    _doubts(report, table)
    return report


def read_analogies(path: Path) -> pd.DataFrame:
    """The questions of a CSV file as text. Raises ValueError, naming the line, on a file that
    `interp.files.read_csv` refuses."""
    rows = [[row.cells[name].strip() for name in QUESTION] for row in read_csv(path, QUESTION)]
    return pd.DataFrame(rows, columns=list(QUESTION), dtype=str)


class Listed(NamedTuple):
    """The questions of the list, and how they were answered (`Embedding.evaluate`)."""

    questions: pd.DataFrame
    answered: pd.DataFrame
    neighbour: pd.DataFrame
    """By the word nearest to c, without arithmetic."""


def by_setting(table: Embedding, answered: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Per setting of `every_setting` its first three answers and the rank of the followed one."""
    grid = pd.DataFrame(
        dict(zip(SETTING, setting, strict=True)) | dict(zip(PLACES, tokens, strict=False))
        for setting, tokens in answered.groupby(list(SETTING), sort=False)["token"]
    )
    if config.followed:
        question = pd.DataFrame([("", *config.words, config.followed)], columns=list(QUESTION))
        ranks = table.evaluate(question, methods=config.methods)["rank"]
        grid[f"rank_of_{config.followed}"] = ranks.tolist()
    return grid


def _answer(table: Embedding, grid: pd.DataFrame, listed: Listed, config: Config) -> str:
    """What comes out of the question in the main setting, and how many of the list are right."""
    total, top = f"{config.b} − {config.a} + {config.c}", grid["first"].iloc[0]
    carried = next(accuracy(_main(listed.answered, config), by=()).itertuples())
    plural = "s" if carried.n > 1 else ""
    share = (
        f"the same arithmetic answers {percent(carried.accuracy)} of {carried.n:,} question{plural}"
    )
    neighbour = table.analogy(*config.words, k=1, method="neighbor")["token"].iloc[0]
    needless = f" (as does taking the word nearest to {config.c}, without arithmetic)"
    needless = needless if neighbour == top else ""
    if config.followed is None:
        return f"{total} gives “{top}”{needless}; {share}."
    rank = int(grid[f"rank_of_{config.followed}"].iloc[0])
    if rank == 1:
        return f"Yes: {total} gives “{config.followed}”{needless}; {share}."
    return (
        f"No: {total} gives “{top}”, and “{config.followed}” only comes at place {rank:,} of "
        f"{len(table):,} words; {share}."
    )


def _first_findings(report: Report, grid: pd.DataFrame, listed: Listed, config: Config) -> None:
    """Whether the answer hangs on the setting, on the arithmetic, and on the kind of question."""
    top, left_in = grid["first"].iloc[0], grid.loc[~grid["exclude_inputs"], "first"]
    echoes = left_in.str.casefold().str.strip().isin([w.casefold().strip() for w in config.words])
    report.finding(
        f"“{top}” comes first in {(grid['first'] == top).sum()} of {len(grid)} ways to count; "
        "where the three words may answer themselves, one of them wins in "
        f"{echoes.sum()} of {len(left_in)}.",
        at="answers-by-setting",
    )
    asked = _main(listed.answered, config)
    answered = next(accuracy(asked, by=()).itertuples())
    alone = next(accuracy(listed.neighbour, by=()).itertuples())
    clearly = (
        ", clearly fewer"
        if alone.high < answered.low
        else ", clearly more"
        if alone.low > answered.high
        else ", not clearly fewer"
        if alone.correct < answered.correct
        else ", no fewer"
    )
    report.finding(
        f"Without arithmetic, the word nearest to the third answers {percent(alone.accuracy)} of "
        f"the questions{clearly} than the {percent(answered.accuracy)} with it.",
        at="accuracy-figure",
    )
    kinds = accuracy(asked).sort_values("accuracy", kind="stable")
    worst, best = kinds.iloc[0], kinds.iloc[-1]
    if best["accuracy"] > worst["accuracy"]:
        report.finding(
            f"It works best for “{best['category']}” ({percent(best['accuracy'])}) and worst for "
            f"“{worst['category']}” ({percent(worst['accuracy'])}) of {len(kinds)} kinds of "
            "question.",
            at="accuracy-figure",
        )
    elif len(kinds) > 1:
        told = f"All {len(kinds)} kinds of question fare alike: {percent(best['accuracy'])}."
        report.finding(told, at="accuracy-figure")


def _one_question(
    report: Report, grid: pd.DataFrame, answered: pd.DataFrame, config: Config
) -> None:
    section = report.section(
        f"{config.b} − {config.a} + {config.c} in {len(grid)} settings",
        "The rule, the centring of the vocabulary and the exclusion of the three words can each "
        "change the answer, so all of them are shown.",
    )
    section.table(_named(grid), "Best answers, by setting", name="answers-by-setting")
    section.table(_named(answered), "The same with scores", name="answers", rows=config.k)
    first, *others = answered.head(min(config.k, 2)).to_dict("records")  # of the first setting
    more = "".join(f"; next “{other['token']}”, {other['score']:.3f}" for other in others)
    report.finding(
        f"{config.b} − {config.a} + {config.c}: “{first['token']}” comes first by "
        f"{RULES[first['method']]}, centred, the three words left out "
        f"(score {first['score']:.3f}{more}).",
        at="answers",
    )


def _many_questions(report: Report, table: Embedding, listed: Listed, config: Config) -> None:
    questions, frame = listed.questions, listed.answered
    overall, by_category = accuracy(frame, by=()), accuracy(frame)
    neighbour = accuracy(listed.neighbour)
    main_rule = _main(by_category, config).assign(rule=RULES[config.methods[0]])
    baseline = neighbour.assign(rule=RULES["neighbor"])
    section = report.section(
        f"{len(questions)} questions in {questions['category'].nunique()} categories",
        "An answer is right when the expected word is first of all tokens. The neighbour of c is "
        "the baseline of Linzen (2016): it never sees a and b, so what it gets right is no "
        "evidence of arithmetic.",
    )
    _draw(section, pd.concat([main_rule, baseline]))
    section.table(_named(overall), "All questions, by setting", name="accuracy", formats=PERCENT)
    both = pd.concat([by_category, neighbour])
    caption, shares = "By category, centred, inputs excluded", dict.fromkeys(RULES.values(), ".0%")
    section.table(_wide(both), caption, name="rules-by-category", formats=shares)
    long = both.sort_values(list(SETTING), key=_in_order, kind="stable")
    caption = "By category and setting, with intervals"
    section.table(_named(long), caption, name="accuracy-by-category", formats=PERCENT, rows=6)
    _misses(section, frame, config)
    section.table(_named(frame), "Every question in every setting", name="questions", rows=4)
    _tell_many(report, overall, main_rule, baseline)
    _controls(report, table, questions, frame, config)


def _wide(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per category, one column of accuracy per rule, in the main setting."""
    kept = _named(frame[frame["centre"] & frame["exclude_inputs"]])
    wide = {
        rule: one.set_index("category")["accuracy"]
        for rule, one in kept.groupby("method", sort=False)
    }
    size = kept.drop_duplicates("category").set_index("category")["n"]
    return pd.DataFrame({"n": size, **wide}).reset_index()


def _in_order(column: pd.Series) -> pd.Series:
    """Sort keys: the rules as in RULES; True before False."""
    rank = {True: 0, False: 1} if column.name != "method" else {m: i for i, m in enumerate(RULES)}
    return column.map(rank)


def _draw(section: Section, data: pd.DataFrame) -> None:
    data = data[["category", "rule", *COUNTED]]
    order = data.iloc[: data["category"].nunique()].sort_values("accuracy", ascending=False)
    rank = {category: number for number, category in enumerate(order["category"])}
    data = data.sort_values("category", key=lambda c: c.map(rank), kind="stable")
    told = "; ".join(
        f"{row.category} {percent(row.accuracy)}" for row in order.itertuples(index=False)
    )
    figure = bars(
        data,
        label="category",
        value="accuracy",
        low="low",
        high="high",
        group="rule",
        axis="share of questions answered (95 % Wilson interval)",
        limits=(0.0, 1.0),
        alt=f"Bars of accuracy per category under {order['rule'].iloc[0]} beside the baseline that "
        f"takes the nearest neighbour of c. {order['rule'].iloc[0]}: {told}.",
    )
    section.figure(figure, "Accuracy by category, centred, inputs excluded", name="accuracy-figure")


def _misses(section: Section, frame: pd.DataFrame, config: Config) -> None:
    wrong = _main(frame, config).query("not correct")
    wrong = wrong[[*QUESTION, "top", "rank"]].sort_values("rank", kind="stable")
    caption = (
        f"What {RULES[config.methods[0]]} gets wrong, centred, inputs excluded: the answer it "
        "prefers and the rank of the expected one"
    )
    if len(wrong):
        section.table(wrong, caption, name="misses", rows=15)


def _tell_many(
    report: Report, overall: pd.DataFrame, main_rule: pd.DataFrame, baseline: pd.DataFrame
) -> None:
    rule = main_rule["rule"].iloc[0]
    kept = overall[overall["centre"] & overall["exclude_inputs"]]
    shares = "; ".join(f"{RULES[row.method]} {_share(row)}" for row in kept.itertuples())
    left_in = overall[overall["centre"] & ~overall["exclude_inputs"]].iloc[0]
    report.finding(
        f"Of the questions of the list, centred and with the inputs excluded: {shares}. With the "
        f"inputs left in, {rule} answers {percent(left_in['accuracy'])}."
    )
    alone = baseline["correct"].sum()
    rivals = baseline["accuracy"].to_numpy() >= main_rule["accuracy"].to_numpy()
    named = ", ".join(main_rule["category"][rivals])
    report.finding(
        f"The nearest neighbour of c, which never sees a and b, is right in {alone} of "
        f"{baseline['n'].sum()} ({percent(alone / baseline['n'].sum())}). "
        + (f"It does no worse than {rule} in: {named}." if named else "No category is its own.")
    )


def _controls(
    report: Report, table: Embedding, questions: pd.DataFrame, frame: pd.DataFrame, config: Config
) -> None:
    result = analogy_controls(table, questions, config.methods, config.seed, answered=frame)
    section = report.section(
        "Controls",
        "The same code on the same questions, spoilt in two ways: each answer swapped for that of "
        "another question of its category, and the vectors dealt out to the tokens at random. "
        "“As asked” is the positive control: what the code finds where there is something.",
    )
    section.table(_named(result), "Centred, inputs excluded", name="controls", formats=PERCENT)
    swapped = int(result.loc[result["control"] == "answers swapped", "n"].iloc[:1].sum())
    if swapped < len(questions):
        section.note(
            f"{len(questions) - swapped} questions have no other answer in their category and "
            "are not in the swapped control."
        )
    told = result[result["method"] == config.methods[0]].set_index("control")
    counts = "; ".join(f"{name} {row.correct} of {row.n}" for name, row in told.iterrows())
    report.sure(f"Controls, {RULES[config.methods[0]]}: {counts} (seed {config.seed}).")
    report.sure(
        "Intervals are 95 % Wilson intervals over the questions; the smallest category has "
        f"{questions['category'].value_counts().min()}."
    )


def _neighbours(report: Report, table: Embedding, config: Config) -> None:
    words = list(dict.fromkeys(config.words))
    found = {word: table.neighbors(word, k=max(10, config.k)) for word in words}
    frames = [frame.assign(word=word) for word, frame in found.items()]
    long = pd.concat(frames)[["word", "rank", "token", "score"]]
    wide = long.pivot(index="rank", columns="word", values="token")[words].reset_index()
    section = report.section("Nearest neighbours", "By cosine, centred; the word itself left out.")
    section.table(wide, "The three words", name="neighbours-side-by-side")
    section.table(long, "The same with cosines", name="neighbours", rows=config.k)


def _skipped(report: Report, skipped: pd.DataFrame, asked: int) -> None:
    if skipped.empty:
        return
    report.skip(
        f"{len(skipped)} of {asked} questions could not be asked, the first because "
        f"{skipped['reason'].iloc[0]}."
    )
    section = report.section("Questions that could not be asked")
    section.table(skipped, "With the reason", name="skipped")


def _doubts(report: Report, table: Embedding) -> None:
    report.doubt(
        f"Every one of the {len(table):,} tokens competes, word pieces and special tokens too; "
        "only the three words themselves are excluded, not their plurals or other spellings. "
        "A smaller list of candidates gives higher numbers."
    )
    report.doubt(
        "Each word pair serves in several questions, so these are not independent and the "
        "intervals are narrower than they should be."
    )
    report.doubt(
        "Only words that are one token can be asked, which favours frequent words. The table of "
        "vectors is the model's input or output, not what its layers make of a word in a text."
    )


def _main(frame: pd.DataFrame, config: Config) -> pd.DataFrame:
    kept = frame[frame["centre"] & frame["exclude_inputs"]]
    return kept[kept["method"] == config.methods[0]].reset_index(drop=True)


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(method=frame["method"].map(RULES))


def _share(row: Any) -> str:
    interval = f"{percent(row.low)} to {percent(row.high)}"
    return f"{row.correct} of {row.n} ({percent(row.accuracy)}, {interval})"


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
