"""The small world: its sentences are labelled truly, what is held out is never trained on."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from interp import tasks
from interp.core.tokens import Tokens
from interp.data.tasks.prompts import words as task_words
from interp.model import HookedTransformer
from interp.training.data import IGNORED, MaskedData
from interp.zoo import tinyworld
from interp.zoo.tinyworld import evaluation, grammar, labels, rows
from interp.zoo.tinyworld.lexicon import HELD_NAMES, tables

BATCHES = 40
SIZE = 64


@pytest.fixture(scope="module")
def trained() -> list[str]:
    """Training rows of sentences as text, without those of random words."""
    texts = []
    for number in range(BATCHES):
        ids = tinyworld.data().batch("train", number, SIZE).ids
        texts += [tinyworld.tokenizer().decode(row[1:]) for row in ids.tolist()]
    return texts


def pattern(template: str) -> re.Pattern:
    """What sentences of a template look like; written apart from how the generator reads it."""
    text = re.sub(r"\{(\w+)[^}]*\}", "{}", template)
    parts = re.split(r"(\[[^\]]*\]|\{\})", text)
    made = []
    for part in parts:
        if part.startswith("["):
            choices = (
                re.escape(choice).replace(r"\{\}", r"\w+") for choice in part[1:-1].split("|")
            )
            made.append(f"(?:{'|'.join(choices)})")
        else:
            made.append(r"\w+" if part == "{}" else re.escape(part))
    return re.compile("".join(made).replace(r"\w+\w+", r"\d{4}"))


def small(config=None, **changes) -> HookedTransformer:
    sizes = {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_kv_heads": 2, "d_head": 8, "d_mlp": 16}
    cfg = (config or tinyworld.config()).replace(**sizes, rotary_dim=8, **changes)
    model = HookedTransformer(cfg, tinyworld.tokenizer())
    model.init_weights(0)
    return model


# The tokenizer.


def test_the_tokenizer_reads_words_marks_and_pairs_of_digits():
    tokenizer = tinyworld.tokenizer()
    words = [tokenizer.token(i) for i in tokenizer.encode("The war, from 1732 to 17.")]
    assert words == ["<s>", "The", "war", ",", "from", "17", "32", "to", "17", "."]
    assert tokenizer.str_tokens(tokenizer.encode(" king", bos=False)) == [" king"]
    assert tokenizer.encode("qwerty", bos=False) == [tokenizer.unk_id]
    assert small().to_tokens("The king").bos
    assert 1_800 <= tokenizer.vocab_size <= 2_200


@pytest.mark.parametrize("split", labels.SPLITS)
def test_sentences_are_read_back_as_they_were_written(split):
    tokenizer = tinyworld.tokenizer()
    for one in tinyworld.sentences(n=600, seed=5, split=split):
        assert tokenizer.encode(one.text, bos=False) == list(one.ids), one.text
        assert " ." not in one.text and "<" not in one.text
        assert one.text[0].isupper() and one.text[-1] in ".?!"


# Rows of training.


def test_a_batch_is_a_function_of_seed_split_and_number():
    data = tinyworld.data(seed=3)
    first = data.batch("train", 7, 8)
    assert first.ids.shape == first.targets.shape == (8, 128)
    assert torch.equal(first.ids, tinyworld.data(seed=3).batch("train", 7, 8).ids)
    others = [
        data.batch("val", 7, 8), data.batch("train", 8, 8), tinyworld.data().batch("train", 7, 8)
    ]  # fmt: skip
    assert not any(torch.equal(first.ids, other.ids) for other in others)
    assert data.fingerprint != tinyworld.data().fingerprint
    with pytest.raises(ValueError, match="n_ctx=64: a span and its repetition need 80"):
        tinyworld.data(n_ctx=64)


def test_rows_are_full_and_begin_with_bos():
    batch = tinyworld.data().batch("train", 0, 256)
    tokenizer = tinyworld.tokenizer()
    assert (batch.ids[:, 0] == tokenizer.bos_id).all()
    special = torch.tensor(sorted(tokenizer.special_ids))
    assert not torch.isin(batch.ids[:, 1:], special).any()
    asked = batch.targets != IGNORED
    assert torch.equal(batch.targets[asked][:-1].unique(), batch.targets[asked].unique())
    whole = asked.all(dim=1)
    texts = [tokenizer.decode(row[1:]) for row in batch.ids[whole].tolist()]
    known = {one.split()[0].strip(",") for one in texts}
    assert all(word[0].isupper() for word in known)
    assert 0.65 < whole.float().mean() < 0.87


def test_spans_come_again_and_only_what_can_be_known_is_asked():
    batch = tinyworld.data().batch("train", 1, 256)
    spans, ends = 0, 0
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        asked = [at for at, target in enumerate(targets) if target != IGNORED]
        if len(asked) == len(targets):
            continue
        row = [ids[0], *[t if t != IGNORED else None for t in targets]]
        tail = [at for at, target in enumerate(targets) if target == IGNORED]
        spans, ends = spans + (tail[0] == 0), ends + (tail[0] > 0)
        for at in asked:
            if at < tail[0]:
                continue
            before = [i for i in range(1, at + 1) if ids[i] == targets[at]]
            # the word stood before, and behind the word that stands before it now
            assert any(ids[i - 1] == ids[at] for i in before), (row, at)
    assert 0.08 * 256 < spans < 0.22 * 256
    assert 0.06 * 256 < ends < 0.2 * 256


def test_masked_rows_hide_words_and_never_special_tokens():
    data = MaskedData(tinyworld.data(), tinyworld.encoder_config().d_vocab)
    batch = data.batch("train", 0, 16)
    assert 0.1 < (batch.ids == data.tokenizer.mask_id).float().mean() < 0.14
    assert (batch.targets[:, 0] == IGNORED).all()


# What is held out.


def test_held_out_templates_are_never_trained_on(trained):
    text, made = "\n".join(trained), defaultdict(list)
    for one in tinyworld.sentences(n=600, split="held-out template"):
        made[one.template].append(one.text)
    held = tinyworld.heldout()
    held = set(held.loc[held["held"] == "all", "template"])
    assert held == set(made)
    for template in held:
        search = pattern(template)
        assert all(search.fullmatch(one) for one in made[template]), template
        assert not search.search(text), template
    # The same search finds a trained template, so that it can find.
    assert pattern("The capital of {c} is the city of {c.capital!}.").search(text)


def test_held_out_names_are_in_no_trained_indirect_object_sentence(trained):
    held = {name for gender in ("female", "male") for name in task_words()[gender][-HELD_NAMES:]}
    assert len(held) == 2 * HELD_NAMES >= 16
    given = re.compile(r"(\w+) (?:decided to )?\w+ an? \w+ to (\w+)\.")
    people = [name for found in given.findall("\n".join(trained)) for name in found]
    names = set(tables()["names"].columns["word"])
    assert names - held == {name for name in people if name in names}
    assert held <= set(re.findall(r"\w+", " ".join(trained)))  # they stand elsewhere
    for one in tinyworld.sentences("indirect_object", 500, split="held-out words"):
        assert {one.words[one.answer], tinyworld.tokenizer().token(one.wrong)} <= held


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("capitals", "The capital of {c} is the city of {c.capital!}."),
        ("capitals", "Every map of {c} marks [its|the] capital city {c.capital!}."),
        ("origins", "In {c}, [many people|people often] speak {c.language!}."),
        ("origins", "{x} was born in {c}, so {x.he} is {c.nationality!}."),
    ],
)
def test_pairs_of_a_country_and_a_template_are_held_out(kind, template):
    known = set(tables()["countries"].columns["word"])
    trained, held = (
        {
            word
            for one in tinyworld.sentences(kind, 12_000, split=split)
            if one.template == template
            for word in known & set(one.words)
        }
        for split in ("trained", "held-out words")
    )
    assert not trained & held
    assert len(held) in (len(known) // 5, len(known) // 5 + 1)
    assert len(trained) > 0.9 * (len(known) - len(held))
    listed = tinyworld.heldout().set_index("template").loc[template, "held"]
    assert set(listed.split()) == held


def test_every_template_of_the_tasks_is_trained_or_held_out():
    lists = task_words()["templates"]
    held, kinds = Counter(), {"gendered_pronoun": "pronoun"}
    for task, templates in lists.items():
        kind = kinds.get(task, task)
        made = {split: _starts(kind, split) for split in labels.SPLITS[:2]}
        for template in templates:
            text = template[-1] if isinstance(template, list) else template
            start = tinyworld.tokenizer().encode(re.sub(r"\{\w+\}", " <mask> ", text), bos=False)
            found = [split for split, starts in made.items() if _begins(start, starts)]
            assert len(found) == 1, (text, found)
            held[task] += found == ["held-out template"]
    assert held["indirect_object"] >= 3 and held["capitals"] >= 2
    assert all(held[task] >= 2 for task in lists)


def _starts(kind: str, split: str) -> list[list[set[int]]]:
    """Every template as the ids that may stand at each place, the mask token too at a field's. Of
    a year, which is one field of the tasks, the century is left out."""
    vocab = tinyworld.tokenizer().vocab()

    def ids(template: grammar.Template, piece: str | grammar.Field) -> set[int]:
        if isinstance(piece, str):
            return {vocab[piece]}
        words = tables()[template.draws[piece.var][0]].columns[piece.column]
        return {vocab["<mask>"], *(vocab[word] for word in words)}

    return [
        [ids(one, piece) for piece in one.pieces if getattr(piece, "var", "") != "h"]
        for one in grammar.templates()
        if one.kind == kind and one.split == split
    ]


def _begins(start: list[int], templates: list[list[set[int]]]) -> bool:
    """Whether a template begins so."""
    return any(
        len(start) <= len(one) and all(i in ids for i, ids in zip(start, one, strict=False))
        for one in templates
    )


def test_how_a_held_out_indirect_object_sentence_opens_is_not_trained():
    """The opening and what the two did there are new together, in sentences of every kind, though
    each of them stands with others."""
    vocab, made = tinyworld.tokenizer().vocab(), {}
    for one in grammar.templates():
        if one.kind == "indirect_object" and one.split == "held-out template":
            made[one.source] = one.pieces
    trained = [start for kind in labels.kinds() for start in _starts(kind, "trained")]
    assert len(made) >= 7
    for pieces in made.values():
        opening = itertools.takewhile(lambda piece: piece not in (",", "."), pieces)
        words = [piece if isinstance(piece, str) else "<mask>" for piece in opening]
        assert words.count("<mask>") == 3, words
        assert not _begins([vocab[word] for word in words], trained), words
    when = "When <mask> and <mask> worked at the <mask>"
    assert _begins(tinyworld.tokenizer().encode(when, bos=False), trained)


def test_every_word_of_a_held_out_template_is_trained_in_its_kind():
    trained = defaultdict(set)
    for one in grammar.templates():
        if one.split == "trained":
            for piece in one.pieces:
                trained[one.kind] |= (
                    {piece}
                    if isinstance(piece, str)
                    else set(tables()[one.draws[piece.var][0]].columns[piece.column])
                )
    for one in grammar.templates():
        if one.split == "held-out template":
            words = {piece for piece in one.pieces if isinstance(piece, str)}
            assert words <= trained[one.kind], one.source


def test_every_word_is_trained():
    vocab = set(tinyworld.tokenizer().vocab()) - set(rows.SPECIAL.values())
    seen: set[str] = set()
    for template in grammar.templates():
        if template.split != "trained":
            continue
        for piece in template.pieces:
            if isinstance(piece, str):
                seen.add(piece)
            else:
                table, some = template.draws[piece.var]
                column = tables()[table].columns[piece.column]
                seen |= {column[i] for i in some}
    assert vocab <= seen | {"00"}


# What the sentences say.


def test_the_end_of_a_span_of_years_is_uniform_behind_its_start():
    some = tinyworld.sentences("greater_than", 6_000)
    start = np.array([one.after for one in some])
    end = np.array([int(one.words[one.answer]) for one in some])
    assert (end > start).all() and end.max() == 99
    assert set(start) == set(range(99))
    assert np.bincount(start).min() > 0.4 * len(start) / 99
    along = (end - start - 0.5) / (99 - start)
    assert np.histogram(along[start < 50], 10, (0, 1))[0] / (start < 50).sum() == pytest.approx(
        0.1, abs=0.025
    )
    for one in some[:200]:
        years = [int(year) for year in re.findall(r"\d{4}", one.text)]
        assert years[0] < years[1] and years[0] // 100 == years[1] // 100


def test_labels_are_true_of_their_words():
    female = set("she She her herself woman female queen princess duchess Mary".split())  # noqa: SIM905
    male = set("he He his him himself man male king prince duke John".split())  # noqa: SIM905
    plural, singular = {"are", "were", "have", "keys"}, {"is", "was", "has", "key"}
    facts = dict(task_words()["countries"])
    found = Counter()
    for one in tinyworld.sentences(n=4_000, seed=1):
        for index, values in one.labels.items():
            word = one.words[index]
            found.update(values.keys())
            if "gender" in values:
                assert word not in (male if values["gender"] == "female" else female)
            if word in female | male and word != "her":
                assert "gender" in values or one.kind in ("facts", "agreement"), one
            if "number" in values:
                assert word not in (singular if values["number"] == "plural" else plural)
            if word in facts.values() and one.kind in ("capitals", "origins"):
                assert facts[values["country"]] == word
            if "sense" in values:
                assert values["sense"].startswith(f"{word}: ")
        for name in ("sentiment", "country", "number"):
            known = {v[name] for i, v in one.labels.items() if name in v and i != _other(one)}
            assert len(known) <= 1, one
    assert {"gender", "rank", "age", "role", "number", "sense", "sentiment", "country"} <= set(
        found
    )


def _other(one: labels.Sentence) -> int | None:
    """Where a distractor stands, whose number is its own."""
    nouns = [i for i, v in one.labels.items() if "number" in v]
    return nouns[1] if len(nouns) > 2 else None


def test_a_probe_gets_the_positions_of_labelled_words():
    some = tinyworld.sentences("sense", 50)
    tokens, frame = tinyworld.labelled("sense", some)
    at = tokens.ids[torch.arange(len(tokens)), tokens.roles["word"]]
    assert [tinyworld.tokenizer().token(i) for i in at.tolist()] == frame["word"].tolist()
    last = tokens.ids[torch.arange(len(tokens)), tokens.roles["last"]]
    assert set(last.tolist()) == {tinyworld.tokenizer().vocab()["."]}
    assert list(frame.columns) == list(labels.LABELS) and len(frame) == len(tokens)
    assert tokens.real.sum(1).tolist() == [1 + len(some[i].ids) for i in frame["sentence"]]
    with pytest.raises(ValueError, match="label 'sens': the sentences have sense"):
        tinyworld.labelled("sens", some)


def test_what_is_unknown_is_refused():
    with pytest.raises(ValueError, match="kind='royals': expected one of indirect_object, people"):
        tinyworld.sentences("royals")
    with pytest.raises(ValueError, match="split='test': expected one of 'trained'"):
        tinyworld.sentences(split="test")
    with pytest.raises(ValueError, match="'facts' has nothing in the split 'held-out words'"):
        tinyworld.sentences("facts", split="held-out words")


# What is measured.


class Oracle:
    """A model that knows the sentences it was told: one logit is highest at each prefix's end."""

    tokenizer = tinyworld.tokenizer()
    device = torch.device("cpu")

    def __init__(self, known: dict[tuple[int, ...], int], causal: bool) -> None:
        self.cfg = small().cfg.replace(causal=causal)
        self.known = known

    def __call__(self, tokens: Tokens) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, self.cfg.d_vocab)
        for i, (row, real) in enumerate(zip(tokens.ids.tolist(), tokens.real, strict=True)):
            ids = row[: int(real.sum())]
            mask = tinyworld.tokenizer().mask_id
            at = ids.index(mask) if mask in ids else len(ids) - 1
            logits[i, at, self.known[tuple(ids)]] = 20
        return logits


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("kind", "rule"), grammar.rules().items())
def test_answers_are_read_where_they_are_asked(kind, rule, causal):
    some = [o for o in tinyworld.sentences(kind, 80, 0) if evaluation._fits(o, rule)][:20]
    right, bad = {}, {}
    for one in some:
        ids = [tinyworld.tokenizer().bos_id, *one.ids]
        prompt = ids[: 1 + one.answer]
        if not causal:
            prompt = [*prompt, tinyworld.tokenizer().mask_id, *ids[2 + one.answer :]]
        right[tuple(prompt)] = one.asked
        bad[tuple(prompt)] = one.wrong or tinyworld.tokenizer().vocab()["00"]
    for known, value in ((right, 1.0), (bad, 0.0)):
        measured = list(evaluation._sentences(Oracle(known, causal), kind, rule, "trained", 20, 0))
        assert len(measured) >= 1
        for _, _, _, n, found in measured:
            assert 0 < n <= 20 and found == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("causal", [True, False])
def test_all_tasks_work_with_the_tokenizer(causal):
    model = small(None if causal else tinyworld.encoder_config())
    makers = [tasks.indirect_object, tasks.capitals, tasks.agreement, tasks.gendered_pronoun,
              tasks.induction, *([tasks.greater_than] if causal else [])]  # fmt: skip
    for make in makers:
        pairs = make(model, 24)
        assert "<unk>" not in "".join(pairs.clean_texts)
        skipped = pairs.skipped
        assert not skipped["reason"].str.contains("unknown").any(), skipped
        assert set(skipped["kind"]) <= {"template"}, skipped  # of another length


def test_an_untrained_model_guesses():
    for cfg in (tinyworld.config(), tinyworld.encoder_config()):
        frame = tinyworld.evaluate(small(cfg), n=16)
        assert list(frame.columns) == list(evaluation.COLUMNS) and not frame.isna().any().any()
        assert not frame.duplicated(["task", "split", "measure"]).any()
        first = frame.loc[frame["measure"] == "first", "value"]
        assert len(first) > 8 and first.max() < 0.1
        above = frame.loc[frame["measure"] == "above wrong", "value"]
        assert 0.4 < above.mean() < 0.6
        assert set(frame["split"]) == {*labels.SPLITS, "baseline", "embedding"}
        assert frame.loc[frame["measure"] == "rank", "value"].item() > 1


def test_the_configs_are_those_of_small_models():
    decoder, encoder = tinyworld.config(), tinyworld.encoder_config()
    assert (decoder.n_layers, decoder.n_heads, decoder.d_head, decoder.n_ctx) == (4, 8, 24, 128)
    assert decoder.causal and decoder.tied and not encoder.causal
    assert decoder.d_vocab == encoder.d_vocab == tinyworld.tokenizer().vocab_size
