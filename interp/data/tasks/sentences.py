"""The tasks whose prompts are sentences with one word in question: who, where, which form.

Sentences and words are this project's own (`words.json`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from interp.model import HookedTransformer

from .pairs import Pairs
from .prompts import Draft, as_named, assemble, circle, crossed, fill, start


def indirect_object(
    model: HookedTransformer,
    n: int = 100,
    seed: int = 0,
    *,
    bos: bool | None = None,
    corruption: Literal["symmetric", "random"] = "symmetric",
) -> Pairs:
    """Who gets it: "When Mary and John went to the store, John gave a drink to" → " Mary".

    Half of the prompts name the indirect object first (order ABBA), half the subject (BABA). Only
    the second subject is corrupted: "symmetric" puts the indirect object's name there, so that
    the answer turns round; "random" a third name. Roles io s1 s1+1 s2 end. Wang et al. 2022.
    """
    if corruption not in ("symmetric", "random"):
        raise ValueError(f"corruption={corruption!r}: expected 'symmetric' or 'random'")
    reader, rng, words = start(model, "indirect_object", n, seed, bos)
    ids = reader.usable("names", words["female"] + words["male"], least=4)
    places = list(reader.usable("places", words["places"], least=2))
    objects = list(reader.usable("objects", words["objects"], least=2))
    names = list(ids)
    sample = {"a": names[0], "b": names[1], "s2": names[0]}
    sample |= {"place": places[0], "object": objects[0]}
    templates = words["templates"]["indirect_object"]
    usable = reader.templates(templates, sample)
    design = crossed(rng, n, len(usable), 2)
    cast = circle(rng, len(names), n, others=2)

    def draw(row: int, attempt: int) -> Draft:
        template, late = templates[usable[design[row, 0]]], bool(design[row, 1])
        io, s, third = (names[k] for k in cast[row])
        fields = {
            "a": s if late else io,
            "b": io if late else s,
            "place": str(rng.choice(places)),
            "object": str(rng.choice(objects)),
        }
        other = io if corruption == "symmetric" else third
        about = {"template": template, "order": "BABA" if late else "ABBA", "io": io, "s": s}
        return Draft(
            fill(template, {**fields, "s2": s}),
            fill(template, {**fields, "s2": other}),
            ids[io],
            ids[s],
            {**about, "other": other, "place": fields["place"], "object": fields["object"]},
        )

    def roles(draft: Draft, at: Mapping[str, int]) -> dict[str, int]:
        io, s1 = ("a", "b") if draft.about["order"] == "ABBA" else ("b", "a")
        return {
            "io": at[io], "s1": at[s1], "s1+1": at[s1] + 1, "s2": at["s2"], "end": at["end"]
        }  # fmt: skip

    return assemble(reader, n, draw, roles, changed=["s2"])


def capitals(
    model: HookedTransformer, n: int = 100, seed: int = 0, *, bos: bool | None = None
) -> Pairs:
    """A fact: "The capital of France is the city of" → " Paris"; corrupted: another country.

    `wrong` is the capital of the corrupted prompt's country. Roles subject end.
    """
    reader, rng, words = start(model, "capitals", n, seed, bos)
    known = reader.usable_rows("countries and capitals", words["countries"], least=3)
    templates = words["templates"]["capitals"]
    usable = reader.templates(templates, {"subject": known[0][0]})
    design, cast = crossed(rng, n, len(usable)), circle(rng, len(known), n, others=1)

    def draw(row: int, attempt: int) -> Draft:
        template, (subject, other) = templates[usable[design[row, 0]]], cast[row]
        if attempt:
            other = (subject + rng.integers(1, len(known))) % len(known)
        (country, capital), (foreign, elsewhere) = known[subject], known[other]
        return Draft(
            fill(template, {"subject": country}),
            fill(template, {"subject": foreign}),
            reader.word(capital)[0],
            reader.word(elsewhere)[0],
            {"template": template, "subject": country, "other": foreign, "answer": capital},
        )

    return assemble(reader, n, draw, as_named, changed=["subject"])


def agreement(
    model: HookedTransformer, n: int = 100, seed: int = 0, *, bos: bool | None = None
) -> Pairs:
    """A verb: "The keys near the cabinet still" → " are"; corrupted: the subject's number.

    The answer is a form of be or have, past or present. The distractor's number agrees in half of
    the rows and is kept (Linzen et al. 2016). Roles subject distractor end.
    """
    reader, rng, words = start(model, "agreement", n, seed, bos)
    nouns = {kind: reader.usable_rows(kind, words[kind], least=3) for kind in ("things", "people")}
    verbs = reader.usable_rows("verbs", words["verbs"], least=1)
    kinds = words["templates"]["agreement"]
    samples = [{"subject": nouns[s][0][0], "distractor": nouns[d][1][0]} for s, d, _ in kinds]
    usable = reader.templates([template for _, _, template in kinds], samples)
    design = crossed(rng, n, 2, 2, len(usable), len(verbs))

    def draw(row: int, attempt: int) -> Draft:
        number, agrees, which, verb = design[row]
        kind, other_kind, template = kinds[usable[which]]
        subject = nouns[kind][rng.integers(len(nouns[kind]))]
        rest = [noun for noun in nouns[other_kind] if noun != subject]
        distractor = rest[rng.integers(len(rest))][number if agrees else 1 - number]
        about = {"template": template, "subject": subject[number], "distractor": distractor}
        return Draft(
            fill(template, {"subject": subject[number], "distractor": distractor}),
            fill(template, {"subject": subject[1 - number], "distractor": distractor}),
            reader.word(verbs[verb][number])[0],
            reader.word(verbs[verb][1 - number])[0],
            {
                **about,
                "number": "plural" if number else "singular",
                "distractor_number": "same" if agrees else "other",
                "answer": verbs[verb][number],
            },
        )

    return assemble(reader, n, draw, as_named, changed=["subject"])


def gendered_pronoun(
    model: HookedTransformer, n: int = 100, seed: int = 0, *, bos: bool | None = None
) -> Pairs:
    """He or she: "Everyone in town likes Mary because" → " she"; corrupted: the other gender.

    The genders are those that English usage mostly gives the names (Mathwin et al. 2023). Roles
    name end.
    """
    reader, rng, words = start(model, "gendered_pronoun", n, seed, bos)
    pronouns = list(reader.usable("pronouns", words["pronouns"], least=2).values())
    names = [list(reader.usable(f"{g} names", words[g], least=2)) for g in ("female", "male")]
    templates = words["templates"]["gendered_pronoun"]
    usable = reader.templates(templates, {"name": names[0][0]})
    design = crossed(rng, n, 2, len(usable))
    casts = [circle(rng, len(some), n)[:, 0] for some in names]
    turn = np.where(design[:, 0] == 0, np.cumsum(design[:, 0] == 0), np.cumsum(design[:, 0])) - 1

    def draw(row: int, attempt: int) -> Draft:
        gender, which = design[row]
        name = names[gender][casts[gender][turn[row]]]
        other = str(rng.choice(names[1 - gender]))
        template = templates[usable[which]]
        return Draft(
            fill(template, {"name": name}),
            fill(template, {"name": other}),
            pronouns[gender],
            pronouns[1 - gender],
            {
                "template": template,
                "name": name,
                "other": other,
                "gender": ("female", "male")[gender],
            },
        )

    return assemble(reader, n, draw, as_named, changed=["name"])
