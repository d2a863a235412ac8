"""Words that restrict nodes, whether or not `by` names their column: the second route is a hook."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp import edits, metrics
from interp.core.tokens import Tokens
from interp.sweeps.nodes import as_frame

from .strategies import random_model, small_config
from .written_indices import NONE_AT_ALL, READ, READ_ALONE, REFUSED, REFUSED_ALONE, TWICE

WIDTH = 5
EXPERTS = {"n_experts": 4, "experts_per_token": 2, "mlp_gated": True}


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(n_layers=4, d_mlp=16))


@pytest.fixture(scope="module")
def experts():
    return random_model(small_config(n_layers=4, d_mlp=16, **EXPERTS))


@pytest.fixture(scope="module")
def tokens(model):
    ids = torch.randint(29, (3, WIDTH), generator=torch.Generator().manual_seed(1))
    roles = {"end": torch.tensor([4, 3, 2]), "start": torch.tensor([0, 1, 0])}
    return model.accept(Tokens(ids, roles=roles))


def loss_without(model, tokens, site, layers, *, pos=None, axis=None, picked=None):
    """The loss of each row with some of a site at zero, by hooks and nothing of the toolkit's."""

    def silence(x, hook):
        rows = torch.arange(len(x))[:, None]
        where = torch.arange(WIDTH).expand(len(x), -1) if pos is None else pos
        for i in picked if picked is not None else [slice(None)]:
            if axis is None:
                x[rows, where] = 0
            else:
                x[(rows, where, i)] = 0

    logits = model.run_with_hooks(tokens, [((site, layer), silence) for layer in layers])
    log_probs = logits.log_softmax(-1)[:, :-1].gather(2, tokens.ids[:, 1:, None])[..., 0]
    return -log_probs.mean(1)


CASES = {
    "a head of each layer": (
        ("z", ("layer",), {"heads": [1]}),
        [([layer], {"axis": 2, "picked": [1]}) for layer in range(4)],
    ),
    "two heads of each layer": (
        ("z", ("layer",), {"heads": np.array([3, -3])}),
        [([layer], {"axis": 2, "picked": [3, 1]}) for layer in range(4)],
    ),
    "a head of some layers, by position": (
        ("z", ("layer", "pos"), {"heads": 2, "layers": [-1, 1]}),
        [([layer], {"axis": 2, "picked": [2], "pos": torch.full((3, 1), p)})
         for layer, p in itertools.product([1, 3], range(WIDTH))],
    ),
    "layers together": (
        ("z", ("head",), {"layers": [0, 2]}),
        [([0, 2], {"axis": 2, "picked": [head]}) for head in range(4)],
    ),
    "layers and heads together": (
        ("z", (), {"layers": [0, 2], "heads": [0, 3]}), [([0, 2], {"axis": 2, "picked": [0, 3]})],
    ),
    "neurons of each layer": (
        ("mlp.post", ("layer",), {"neurons": range(3, 6)}),
        [([layer], {"axis": 2, "picked": [3, 4, 5]}) for layer in range(4)],
    ),
    "positions of each layer": (
        ("resid_post", ("layer",), {"positions": [0, -1]}),
        [([layer], {"pos": torch.tensor([[0, 4]] * 3)}) for layer in range(4)],
    ),
    "a role of each layer": (
        ("resid_post", ("layer",), {"positions": ["end"]}),
        [([layer], {"pos": torch.tensor([[4], [3], [2]])}) for layer in range(4)],
    ),
    "a role that is given alone": (
        ("resid_post", ("layer",), {"positions": "end"}),
        [([layer], {"pos": torch.tensor([[4], [3], [2]])}) for layer in range(4)],
    ),
    "a role and a position": (
        ("attn_out", (), {"positions": ["end", 0], "layers": [2]}),
        [([2], {"pos": torch.tensor([[4, 0], [3, 0], [2, 0]])})],
    ),
    "heads at a role": (
        ("z", ("layer",), {"heads": [1, 2], "positions": ["start"]}),
        [([layer], {"axis": 2, "picked": [1, 2], "pos": torch.tensor([[0], [1], [0]])})
         for layer in range(4)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["rerun", "naive"])
@pytest.mark.parametrize("case", CASES)
def test_what_by_leaves_out_is_restricted_all_the_same(unchecked, model, tokens, case, engine):
    (site, by, words), meant = CASES[case]
    frame = interp.ablate(
        model, tokens, site, by=by, kind="zero", metric=metrics.loss(), reduce="none",
        engine=engine, progress=False, **words,
    )  # fmt: skip
    once = frame.drop_duplicates(["row", "example"])
    values = once.pivot(index="row", columns="example", values="value").to_numpy()
    assert len(values) == len(meant)
    for value, (layers, picked) in zip(values, meant, strict=True):
        expected = loss_without(model, tokens, site, layers, **picked)
        assert torch.allclose(torch.from_numpy(value), expected, atol=1e-10)


def test_a_word_that_by_names_gives_a_node_for_each(model, tokens):
    frame = interp.nodes(model, "z", by=("layer", "head"), heads=[3, 1], tokens=tokens)
    assert frame["head"].tolist() == [3, 1] * 4
    assert frame["row"].tolist() == list(range(8))
    together = interp.nodes(model, "z", by=("layer",), heads=[3, 1])
    assert together["head"].tolist() == [3, 1] * 4
    assert together["row"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_keys_are_restricted_where_by_has_them(model, tokens):
    keys = interp.nodes(model, "pattern", by="k_pos", positions=[1, -1], tokens=tokens)
    assert keys["k_pos"].tolist() == [1, 4] * 4 and keys["pos"].isna().all()
    queries = interp.nodes(model, "pattern", by="head", positions=[1], tokens=tokens)
    assert queries["pos"].tolist() == [1] * 16 and queries["k_pos"].isna().all()
    both = interp.nodes(model, "pattern", by=("pos", "k_pos"), positions=(i for i in (0, 1)))
    assert both[["pos", "k_pos"]].drop_duplicates().to_numpy().tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="k_pos takes indices"):
        interp.nodes(model, "pattern", by="k_pos", positions=["end"], tokens=tokens)


WORDS = {"layers": "z", "heads": "z", "neurons": "mlp.post", "positions": "z"}
SIZES = {"layers": 4, "heads": 4, "neurons": 16, "positions": WIDTH, "experts": 4}
COLUMNS = {"layers": "layer", "heads": "head", "neurons": "neuron", "positions": "pos",
           "experts": "expert"}  # fmt: skip


def frame_of(model, experts, tokens, word, value, within: bool) -> pd.DataFrame:
    site = "mlp.expert_weights" if word == "experts" else WORDS[word]
    of = experts if word == "experts" else model
    by = (COLUMNS[word],) if within else ()
    return interp.nodes(of, site, by=by, tokens=tokens, **{word: value})


FORMS = [(word, form) for word in ("heads", "positions") for form in (*READ_ALONE, *READ)]
FORMS += [(word, form) for word in SIZES for form in ("np.int64", "negatives", "Int64 column")]


@pytest.mark.parametrize("within", [True, False], ids=["in by", "not in by"])
@pytest.mark.parametrize(("word", "form"), dict.fromkeys(FORMS))
def test_words_read_indices_in_any_form(unchecked, model, experts, tokens, word, form, within):
    value, meant = READ_ALONE[form] if form in READ_ALONE else (READ[form][0](), READ[form][1])
    meant = [i % SIZES[word] for i in ([meant] if isinstance(meant, int) else meant)]
    frame = frame_of(model, experts, tokens, word, value, within)
    found = frame[COLUMNS[word]].drop_duplicates().tolist()
    assert sorted(found) == sorted(meant)
    assert frame["row"].nunique() == (len(meant) if within else 1)


BAD = {
    **REFUSED_ALONE, **REFUSED, "text": "nosuchrole", "text in a list": ["nosuchrole"],
    **{f"no {form}": value for form, value in NONE_AT_ALL.items()},
    **{f"twice {form}": value for form, value in TWICE.items()}, "both ends": None,
}  # fmt: skip


WRONG = [(word, form) for word in ("heads", "positions") for form in BAD]
WRONG += [
    (word, form)
    for word in SIZES
    for form in ("True", "mask", "whole float", "far beyond", "far before", "None in a list",
                 "text", "nested list", "no list", "twice list", "both ends")
]  # fmt: skip


@pytest.mark.parametrize("within", [True, False], ids=["in by", "not in by"])
@pytest.mark.parametrize(("word", "form"), dict.fromkeys(WRONG))
def test_words_refuse_what_is_no_index(unchecked, model, experts, tokens, word, form, within):
    value = [0, -SIZES[word]] if form == "both ends" else BAD[form]
    with pytest.raises(ValueError, match=f"{word}|role="):
        frame_of(model, experts, tokens, word, value, within)


@pytest.mark.parametrize("by", [("layer",), (), ("layer", "head")])
@pytest.mark.parametrize(
    ("site", "words"),
    [("resid_post", {"heads": [1]}), ("z", {"neurons": [1]}), ("z", {"experts": [0]}),
     ("mlp.post", {"heads": [0]}), ("mlp.post", {"experts": [0]})],
)  # fmt: skip
def test_a_word_that_the_site_has_no_axis_for_is_refused(model, tokens, site, words, by):
    by = tuple(column for column in by if column == "layer" or site == "z")
    with pytest.raises(ValueError, match="to restrict; it has layer, pos"):
        interp.nodes(model, site, by=by, tokens=tokens, **words)


@pytest.mark.parametrize("by", [("layer",), ("layer", "pos")])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"positions": ["nosuchrole"]},
            "role='nosuchrole': these tokens have the roles end, start",
        ),
        ({"positions": [WIDTH]}, "positions=5: expected 0 to 4"),
        ({"neurons": [999_999]}, "neurons=999999: expected 0 to 15"),
        ({"layers": [4]}, "layers=4: expected 0 to 3"),
    ],
)
def test_what_is_not_there_is_refused_in_by_or_not(model, tokens, by, words, message):
    with pytest.raises(ValueError, match=message):
        interp.ablate(model, tokens, "mlp.post", by=by, kind="zero", metric=metrics.loss(),
                      **words)  # fmt: skip


OVERLAPS = {
    "twice the same": [{"head": 1}, {"head": 1}],
    "all and one": [{}, {"head": 1}],
    "from both ends": [{"pos": 4}, {"pos": -1}],
    "a role and its index": [{"role": "end"}, {"pos": 4}, {"pos": 3}],
    "a head and a position": [{"head": 2}, {"pos": 1}],
}


@pytest.mark.parametrize("engine", ["rerun", "naive"])
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("edit", [edits.scale(3.0), edits.noise(0.5)], ids=lambda e: e.name)
def test_parts_that_overlap_are_edited_once(model, tokens, overlap, engine, edit):
    """All that a node names is edited together, not one part after another."""
    lines = [{"row": 0, "site": "attn.hook_z", "layer": 1, **part} for part in OVERLAPS[overlap]]
    options = {"edit": edit, "metric": metrics.loss(), "reduce": "none", "progress": False}
    found = interp.sweep(model, tokens, lines, engine=engine, **options)
    value = found.drop_duplicates("example")["value"].to_numpy()
    if edit.name.startswith("noise"):  # its draws follow from the node: the other engine is asked
        other = "naive" if engine == "rerun" else "rerun"
        again = interp.sweep(model, tokens, lines, engine=other, **options)
        assert np.allclose(value, again.drop_duplicates("example")["value"], atol=1e-10)
        return

    def triple(z, hook):
        mask = torch.zeros_like(z, dtype=torch.bool)
        for part in OVERLAPS[overlap]:
            for row in range(len(z)):
                pos = part.get("pos", slice(None))
                pos = int(tokens.roles["end"][row]) if "role" in part else pos
                mask[row, pos, part.get("head", slice(None))] = True
        return torch.where(mask, 3 * z, z)

    log_probs = model.run_with_hooks(tokens, [(("z", 1), triple)]).log_softmax(-1)
    expected = -log_probs[:, :-1].gather(2, tokens.ids[:, 1:, None])[..., 0].mean(1)
    assert np.allclose(value, expected.numpy(), atol=1e-10)


@pytest.mark.parametrize("engine", ["rerun", "naive"])
def test_a_direction_is_removed_from_all_named_neurons_at_once(model, tokens, engine):
    """One after another, the second neuron would be projected from what is left of the first."""
    direction = torch.linspace(-1, 2, 16, dtype=torch.float64)
    frame = interp.nodes(model, "mlp.post", by=(), layers=[2], neurons=[1, 5, 9])
    found = interp.sweep(
        model, tokens, frame, edit=edits.project_out(direction), metric=metrics.loss(),
        reduce="none", engine=engine, progress=False,
    )  # fmt: skip
    unit = direction / direction.norm()

    def remove(x, hook):
        projected = x - (x @ unit)[..., None] * unit
        x[..., [1, 5, 9]] = projected[..., [1, 5, 9]]

    log_probs = model.run_with_hooks(tokens, [(("mlp.post", 2), remove)]).log_softmax(-1)
    expected = -log_probs[:, :-1].gather(2, tokens.ids[:, 1:, None])[..., 0].mean(1)
    value = found.drop_duplicates("example")["value"].to_numpy()
    assert np.allclose(value, expected.numpy(), atol=1e-10)


NUMBERS = ("layer", "head", "pos")


@pytest.mark.parametrize("column", NUMBERS)
@pytest.mark.parametrize("form", READ_ALONE)
def test_a_frame_of_nodes_holds_whole_numbers_of_any_type(unchecked, model, tokens, column, form):
    value, meant = READ_ALONE[form]
    plain = {"layer": 1, "head": 0, "pos": 2}
    options = {"edit": edits.zero(), "metric": metrics.loss(), "progress": False}
    found, expected = (
        interp.sweep(model, tokens, [{"site": "attn.hook_z", **plain, column: number}], **options)
        for number in (value, meant % (WIDTH if column == "pos" else 4))
    )
    assert found["value"].tolist() == expected["value"].tolist()


@pytest.mark.parametrize("column", ["row", *NUMBERS])
@pytest.mark.parametrize(
    "form",
    [*(form for form in REFUSED_ALONE if form != "NaN"), "text", "list"],  # NaN: blank
)
def test_a_frame_of_nodes_refuses_what_is_no_index(unchecked, model, tokens, column, form):
    value = ({"text": "1", "list": [1]} | REFUSED_ALONE)[form]
    if column == "row" and form.startswith("far"):
        return  # a row is a label
    for lines in (
        [{"site": "attn.hook_z", "layer": 1, "head": 0, "pos": 2, "row": 0, column: value}],
        [{"site": "attn.hook_z", "layer": 0}, {"site": "attn.hook_z", column: value}],
    ):
        with pytest.raises(ValueError, match=f"{column}|layer"):
            interp.sweep(model, tokens, lines, edit=edits.zero(), metric=metrics.loss())


def test_blanks_do_not_make_floats_of_whole_numbers(model, tokens):
    """pandas keeps a column of numbers with blanks as floats; of records nothing is lost."""
    lines = [{"site": "attn.hook_z", "head": 1}, {"site": "attn.hook_z"}]
    assert as_frame(lines)["head"].tolist() == [1, pd.NA]
    frame = pd.DataFrame(lines)
    assert frame["head"].dtype == "float64"
    assert as_frame(frame)["head"].tolist() == [1, pd.NA]
    for column in ([1.5, None], [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"head=1.[05]: a float"):
            as_frame(frame.assign(head=column))
    with pytest.raises(ValueError, match=r"head=1.0: a float"):
        as_frame([{"site": "attn.hook_z", "head": 1.0}, {"site": "attn.hook_z"}])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_role_counted_from_the_end_reaches_the_token_it_names(model, side):
    rows = [[5, 6, 7, 8], [9, 4]]
    plain = Tokens.from_rows(rows, side=side)
    if side == "right":
        with pytest.raises(ValueError, match="is a pad"):
            dataclasses.replace(plain, roles={"last": torch.tensor([-1, -1])})
        return
    tokens = dataclasses.replace(plain, roles={"last": torch.tensor([-1, -1])})
    node = [{"site": "hook_resid_post", "layer": 1, "role": "last"}]
    options = {"edit": edits.zero(), "metric": metrics.kl(), "reduce": "none", "progress": False}
    found = interp.sweep(model, tokens, node, **options)["value"]
    for i, row in enumerate(rows):
        alone = [{"site": "hook_resid_post", "layer": 1, "pos": len(row) - 1}]
        assert np.isclose(found[i], interp.sweep(model, [row], alone, **options)["value"][0])


@pytest.mark.parametrize("kind", ["tensor", "list", "numpy", "Tokens"])
def test_nodes_count_positions_of_whatever_the_model_takes_as_tokens(model, kind):
    ids = torch.tensor([[1, 2, 3, 4]])
    given = {"tensor": ids, "list": ids.tolist(), "numpy": ids.numpy(), "Tokens": Tokens.of(ids)}

    frame = interp.nodes(model, "resid_pre", by=("layer", "pos"), tokens=given[kind])
    assert frame["pos"].tolist() == [0, 1, 2, 3] * model.cfg.n_layers
    assert len(interp.nodes(model, "z", positions=[-1], tokens=given[kind])) == model.cfg.n_layers
