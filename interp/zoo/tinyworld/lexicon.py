"""The words of the language, as tables: a row is one thing, a column one word for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from interp.data.tasks.prompts import words as task_words

HELD_NAMES = 10
"""Names of each gender, the last ones of the tasks' lists, that no trained indirect-object sentence
holds."""
PRONOUNS = {
    "female": {"he": "she", "He": "She", "his": "her", "him": "her", "himself": "herself"},
    "male": {"he": "he", "He": "He", "his": "his", "him": "him", "himself": "himself"},
}
GENDERS = ("male", "female")
FORMS = {"is": ("is", "are"), "was": ("was", "were"), "has": ("has", "have")}
SILENT_H = ("heir", "heiress", "hour")


@dataclass(frozen=True)
class Table:
    """Rows that a sentence draws from with equal chances."""

    columns: dict[str, list[str]]
    """By name the word of each row; the first column is what a bare field stands for."""
    features: dict[str, list[str]] = field(default_factory=dict)
    """By name a label of each row: what a probe may be asked for."""
    told: dict[str, str] = field(default_factory=dict)
    """By feature the columns, besides the first, of whose words it is true."""
    paired: bool = False
    """Rows 2i and 2i + 1 differ in one feature only: king and queen, key and keys."""
    held: Sequence[bool] = ()
    """Rows that some kinds of sentence keep out of training."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def labels(self, row: int, column: str) -> dict[str, str]:
        """What is true of one word."""
        first = next(iter(self.columns))
        return {
            name: values[row]
            for name, values in self.features.items()
            if column == first or column in self.told.get(name, "").split()
        }

    def rows(self, query: str = "") -> np.ndarray:
        """All rows, or those with "feature=value"."""
        if not query:
            return np.arange(len(self))
        name, _, value = query.partition("=")
        return np.flatnonzero(np.array(self.features[name]) == value)


@cache
def read(file: str) -> dict:
    """One of the two lists beside this module."""
    return json.loads((Path(__file__).parent / file).read_text("utf-8"))


@cache
def tables() -> dict[str, Table]:
    """All tables by name."""
    return {
        **_gendered(),
        **_countries(),
        **_forms(),
        **_years(),
        **_senses(),
        **_kinds(),
        **_lists(),
    }


def _table(rows: Sequence[Sequence[str]], names: str) -> dict[str, list[str]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names.split())}


def _articles(words: Sequence[str]) -> dict[str, list[str]]:
    a = ["an" if w[0].lower() in "aeiou" or w in SILENT_H else "a" for w in words]
    return {"a": a, "A": [one.capitalize() for one in a]}


def _gendered() -> dict[str, Table]:
    lists, own = task_words(), read("words.json")
    rows = [row.split() for row in own["people"]["rows"]]
    people = [(row[i], *row[2:], row[0], sex) for row in rows for i, sex in enumerate(GENDERS)]
    columns = _table(people, "word thing home rank age")
    words, role, gender = columns["word"], [row[5] for row in people], [row[6] for row in people]
    features = {"gender": gender, "rank": columns["rank"], "age": columns["age"], "role": role}
    columns |= _articles(words) | _pronouns(gender) | {"sex": gender}
    named = [[*lists[g], *own["more_names"][g].split()] for g in GENDERS]
    names = [name for pair in zip(*named, strict=True) for name in pair]
    gender = [g for _ in named[0] for g in GENDERS]
    last = {name for g in GENDERS for name in lists[g][-HELD_NAMES:]}
    return {
        "people": Table(
            columns,
            features,
            told={"gender": f"sex {' '.join(PRONOUNS['male'])}", "rank": "rank", "age": "age"},
            paired=True,
        ),
        "names": Table(
            {
                "word": names,
                **_pronouns(gender),
                "man": [{"male": "man", "female": "woman"}[g] for g in gender],
                "Mr": [{"male": "Mr", "female": "Ms"}[g] for g in gender],
            },
            {"gender": gender},
            told={"gender": f"man Mr {' '.join(PRONOUNS['male'])}"},
            paired=True,
            held=[name in last for name in names],
        ),
    }


def _pronouns(gender: Sequence[str]) -> dict[str, list[str]]:
    return {form: [PRONOUNS[g][form] for g in gender] for form in PRONOUNS["male"]}


def _countries() -> dict[str, Table]:
    origins = read("words.json")["origins"]
    rows = [
        (country, capital, *origins[country].split())
        for country, capital in task_words()["countries"]
    ]
    columns = _table(rows, "word capital nationality language")
    features = {"country": columns["word"], "language": columns["language"]}
    told = {"country": "capital nationality", "language": "language"}
    return {"countries": Table(columns, features, told)}


def _forms() -> dict[str, Table]:
    lists, own = task_words(), read("words.json")
    found = {}
    for name, known in (("workers", "people"), ("things", "things")):
        pairs = [*lists[known], *(pair.split("/") for pair in own[f"more_{known}"].split())]
        columns = {"word": [word for pair in pairs for word in pair]}
        columns |= {verb: list(forms) * len(pairs) for verb, forms in FORMS.items()}
        number = ["singular", "plural"] * len(pairs)
        told = {"number": " ".join(FORMS)}
        found[name] = Table(columns, {"number": number}, told, paired=True)
    return found


def _years() -> dict[str, Table]:
    """Row 100 s + e holds a start s and an end e; see `grammar` for how they are drawn."""
    two = [f"{year:02}" for year in range(100)]
    years = Table({"word": [s for s in two for _ in two], "end": two * 100})
    return {"years": years, "centuries": Table({"word": [str(h) for h in range(11, 20)]})}


def _senses() -> dict[str, Table]:
    own = read("words.json")
    columns = _table([row.split() for row in own["senses"]["rows"]], own["senses"]["columns"])
    of = zip(columns["word"], columns["category"], strict=True)
    senses = Table(columns, {"sense": [f"{word}: {kind}" for word, kind in of]}, paired=True)
    polar = zip(own["polar"]["positive"], own["polar"]["negative"], strict=True)
    rows = [row.split() for pair in polar for row in pair]
    sentiment = ["positive", "negative"] * (len(rows) // 2)
    return {
        "senses": senses,
        "polar": Table(
            _table(rows, own["polar"]["columns"]),
            {"sentiment": sentiment},
            told={"sentiment": own["polar"]["columns"]},
            paired=True,
        ),
    }


def _kinds() -> dict[str, Table]:
    own = read("words.json")
    rows = [(word, kind) for kind, some in own["kinds"].items() for word in some.split()]
    kinds = _table(rows, "word category")
    order = [
        (words[i], words[(i + 1) % len(words)])
        for words in (line.split() for line in own["next"].values())
        for i in range(len(words))
    ]
    return {
        "kinds": Table(
            kinds | _articles(kinds["word"]),
            {"category": kinds["category"]},
            told={"category": "category"},
        ),
        "colors": Table({"word": own["kinds"]["color"].split()}),
        "order": Table(_table(order, "word next")),
    }


def _lists() -> dict[str, Table]:
    lists, own = task_words(), read("words.json")
    rows = {
        "plurals": ([pair.split("/") for pair in own["plurals"].split()], "word plural"),
        "jobs": ([row.split() for row in own["jobs"].split(", ")], "word place tool"),
        "verbs": ([row.split() for row in own["verbs"].split(", ")], "word s past ing"),
        "adjectives": (
            [row.split() for row in own["adjectives"].split(", ")],
            "word more most opposite",
        ),
    }
    found = {name: Table(_table(some, columns)) for name, (some, columns) in rows.items()}
    for name in ("places", "objects", "events"):
        words = list(dict.fromkeys([*lists[name], *own[f"more_{name}"].split()]))
        articles = _articles(words)
        found[name] = Table({"word": words, **articles}, {"article": articles["a"]})
    for name in ("reviewed", "given", "manners", "materials", "weather"):
        found[name] = Table({"word": own[name].split()})
    return found
