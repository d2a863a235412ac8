"""Causal tracing: against hooks written by hand, and what noise and places are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from interp import edits, metrics, sweep, tasks, tracing
from interp.core.tokens import Tokens
from interp.methods.tracing import (
    PLACES,
    causal_trace,
    elsewhere,
    noise_effect,
    noised,
    subject_span,
)
from tests.strategies import configs, random_model, small_config
from tests.vocabularies import model_of, models_by_kind, whole_words

ROWS = [[3, 1, 4, 1, 5, 3, 1], [2, 7, 1, 2, 2]]
ANSWER, WRONG = torch.tensor([4, 2]), torch.tensor([5, 6])


def given_tokens() -> tuple[Tokens, torch.Tensor]:
    """Two rows, one of them padded, whose subjects are tokens 1 and 2, and token 1."""
    tokens = Tokens.from_rows(ROWS)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[0, 1:3] = mask[1, 1] = True
    return tokens, mask


def traced(model, **options):
    tokens, mask = given_tokens()
    return causal_trace(model, tokens, mask, ANSWER, WRONG, progress=False, **options)


def by_hand(model, noisy, clean, site, layers, pos):
    """Logits [batch d_vocab] at the last real token with one state restored by hooks."""

    def put(x, hook):
        x[:, pos] = clean[hook.name][:, pos]

    logits = model.run_with_hooks(noisy, [((site, layer), put) for layer in layers])
    return logits[torch.arange(2), torch.tensor([6, 4])]


@settings(max_examples=5, deadline=None)
@given(cfg=configs(head="unembed"))
def test_every_state_is_what_hooks_by_hand_restore(cfg):
    model = random_model(cfg)
    tokens, mask = given_tokens()
    window = min(2, cfg.n_layers)
    last, n = cfg.n_layers - 1, cfg.n_layers
    frame = traced(model, sigma=0.5, draws=1, window=window, seed=3, layers=[last])
    noisy = noised(model, tokens, mask, 0.5, seed=3)
    _, clean = model.run_with_cache(tokens)
    sites = set(frame["site"])
    assert sites == {*tracing.SITES} - ({"hook_mlp_out"} if cfg.d_mlp == 0 else set())
    for site in sites:
        layers = [last] if site == "hook_resid_post" else [*range(max(0, last - window // 2), n)]
        for pos in (2, 4):
            logits = by_hand(model, noisy, clean, site, layers, pos)
            probs = logits.softmax(-1)[torch.arange(2), ANSWER]
            gaps = logits[torch.arange(2), ANSWER] - logits[torch.arange(2), WRONG]
            own = frame[(frame["site"] == site) & (frame["layer"] == last) & (frame["pos"] == pos)]
            for name, expected in (("prob", probs), ("logit_diff", gaps)):
                found = own[own["metric"] == name].sort_values("example")["value"]
                assert np.allclose(found, expected, rtol=1e-9, atol=1e-9), (site, pos, name)


@settings(max_examples=10, deadline=None)
@given(cfg=configs(head="unembed"))
def test_noise_of_size_zero_changes_nothing(cfg):
    """Vectors are what the model has at hook_embed: scaled, before positions and norms."""
    model = random_model(cfg)
    tokens, mask = given_tokens()
    same = noised(model, tokens, mask, 0.0)
    assert same.ids is None
    assert torch.equal(model(same), model(tokens))


def test_without_noise_no_state_has_an_effect():
    frame = traced(random_model(small_config(embed_scale=2.0)), sigma=0.0, draws=1)
    assert (frame["effect"] == 0).all()
    assert np.allclose(frame["clean"], frame["corrupted"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"causal": False, "norm_position": "post"}])
def test_restoring_the_end_of_the_last_layer_restores_the_answer(changes):
    model = random_model(small_config(n_layers=2, **changes))
    frame = traced(model, sigma=1.0, draws=2, sites=["hook_resid_post"])
    lost = (frame["clean"] - frame["corrupted"]).abs()
    assert lost.groupby(frame["metric"]).max().min() > 1e-3
    ends = frame[frame["place"] == "last token"]
    last = ends[ends["layer"] == model.cfg.n_layers - 1]
    assert len(last) == 2 * 2 * 2
    assert np.allclose(last["value"], last["clean"], atol=1e-10)
    others = frame[(frame["place"] != "last token") & (frame["layer"] == 1)]
    assert np.allclose(others["effect"], 0, atol=1e-12)


def test_restoring_all_positions_of_any_layer_restores_the_answer():
    model = random_model(small_config())
    tokens, mask = given_tokens()
    noisy = noised(model, tokens, mask, 1.0)
    nodes = [{"row": layer, "site": "resid_post", "layer": layer} for layer in range(3)]
    metric = metrics.prob(ANSWER)
    found = sweep(model, noisy, nodes, edit=edits.patch(tokens), metric=metric, progress=False)
    clean = noise_effect(model, tokens, mask, ANSWER, sigma=1.0, draws=1)["clean"].mean()
    assert np.allclose(found["value"], clean, atol=1e-10)
    assert abs(found["effect"].iloc[0]) > 1e-3


def test_noise_is_where_and_what_is_said():
    model = random_model(small_config(embed_scale=3.0, embed_norm=True))
    tokens, mask = given_tokens()
    clean = model.W_E[tokens.ids] * 3.0
    noise = noised(model, tokens, mask, 0.5).vectors - clean
    assert torch.equal(noise[~mask], torch.zeros_like(noise[~mask]))
    wide = noised(model, Tokens(tokens.ids.repeat(200, 1)), mask.repeat(200, 1), 0.5)
    entries = (wide.vectors - clean.repeat(200, 1, 1))[mask.repeat(200, 1)]
    assert entries.std() == pytest.approx(0.5, rel=0.03)
    assert abs(entries.mean()) < 0.02
    # Elsewhere the same noise: of equal norm.
    other = elsewhere(model, tokens, mask)
    assert torch.equal(other.sum(1), mask.sum(1)) and not (other & mask).any()
    moved = noised(model, tokens, other, 0.5).vectors - clean
    assert torch.allclose(moved[other], noise[mask])
    for options in ({"seed": 1}, {"draw": 1}):
        different = noised(model, tokens, mask, 0.5, **options).vectors - clean
        assert not torch.isclose(different[mask], noise[mask]).any(-1).all()
    spread = float(clean[mask].std(unbiased=False))
    assert tracing.embedding_spread(model, tokens, mask) == pytest.approx(spread)
    frame = causal_trace(model, tokens, mask, ANSWER, draws=1, layers=[0], progress=False)
    assert frame.attrs["sigma"] == pytest.approx(3 * spread)
    assert set(frame["metric"]) == {"prob"}


def test_a_draw_of_noise_is_the_same_in_the_trace_and_without_it():
    model = random_model(small_config())
    tokens, mask = given_tokens()
    frame = traced(model, sigma=1.0, draws=2, seed=5, sites=["hook_mlp_out"], layers=[0])
    totals = noise_effect(model, tokens, mask, ANSWER, WRONG, sigma=1.0, draws=2, seed=5)
    keys = ["metric", "draw", "example"]
    own = frame.groupby(keys)[["clean", "corrupted"]].agg(["min", "max"])
    totals = totals.set_index(keys).sort_index()
    for name in ("clean", "corrupted"):
        for bound in ("min", "max"):
            assert np.allclose(own[name][bound], totals[name], atol=1e-12)
    assert np.allclose(totals["effect"], totals["clean"] - totals["corrupted"])
    assert totals["corrupted"].nunique() == len(totals)


def test_places_are_seen_from_the_subject_and_the_end():
    frame = traced(random_model(small_config(n_layers=1)), draws=1, sites=["hook_mlp_out"])
    of = frame[frame["metric"] == "prob"].drop_duplicates(["example", "pos"])
    named = {row: own.sort_values("pos")["place"].tolist() for row, own in of.groupby("example")}
    before, first, _, last, after, further, end, behind = PLACES
    assert named[0] == [before, first, last, after, further, further, end]
    assert named[1] == [before, last, after, further, end]  # no pads
    tokens, mask = given_tokens()
    mask[0, 3] = True
    model = random_model(small_config(n_layers=1, causal=False))
    frame = causal_trace(
        model, tokens, mask, ANSWER, pos=torch.tensor([4, 4]), draws=1, progress=False,
        sites=["hook_mlp_out"],
    )  # fmt: skip
    of = frame.drop_duplicates(["example", "pos"]).sort_values(["example", "pos"])
    places = of.loc[of["example"] == 0, "place"].tolist()
    assert places == [before, first, PLACES[2], last, end, behind, behind]


def test_windows_lie_around_their_layer():
    assert [*tracing._window(0, 5, 3)] == [0, 1]
    assert [*tracing._window(2, 5, 3)] == [1, 2, 3]
    assert [*tracing._window(2, 5, 2)] == [1, 2]
    assert [*tracing._window(4, 5, 10)] == [0, 1, 2, 3, 4]
    sizes = {n: tracing.default_window(random_model(small_config(n_layers=n))) for n in (1, 4, 12)}
    assert sizes == {1: 1, 4: 1, 12: 2}


def test_the_subject_is_its_words(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "clean,corrupted,answer,wrong,role:subject,role:city\n"
        "I know the old king of Spain is,I know the old queen of France is,Paris,Rome,"
        "the old king of Spain,is\n"
    )
    model = model_of(whole_words())
    pairs = tasks.from_csv(path, model)
    words = [word.strip() for word in pairs.clean.strings[0]]

    def marked(mask):
        return [word for word, on in zip(words, mask[0].tolist(), strict=True) if on]

    assert marked(subject_span(pairs, "subject")) == ["the", "old", "king", "of", "Spain"]
    assert marked(subject_span(pairs, "city")) == ["is"]
    assert marked(subject_span(pairs)) == ["king", "Spain"]
    bare = dataclasses.replace(pairs, table=None)
    assert marked(subject_span(bare, "subject")) == ["Spain"]  # as far as the prompts differ
    with pytest.raises(ValueError, match="has the roles subject, city, end"):
        subject_span(pairs, "verb")


def test_the_subject_is_its_pieces(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "clean,corrupted,answer,wrong,role:subject\n"
        "The tower of Zanzibar is in,The tower of Zanzibor is in,Paris,Rome,Zanzibar\n"
        "Spain and Spain is in,Spain and Italy is in,Paris,Rome,Spain#2\n"
    )
    model = models_by_kind()["byte pairs"]
    pairs = tasks.from_csv(path, model)
    mask = subject_span(pairs, "subject")
    pieces = [
        "".join(word for word, on in zip(row, own.tolist(), strict=True) if on)
        for row, own in zip(pairs.clean.strings, mask, strict=True)
    ]
    assert [piece.strip() for piece in pieces] == ["Zanzibar", "Spain"]
    assert mask[0].sum() > 1 and mask[1].sum() == 1
    differs = pairs.clean.ids != pairs.corrupted.ids
    assert (mask[0] & ~differs[0]).any()


def test_what_cannot_be_traced_is_named(unchecked):
    model = random_model(small_config())
    tokens, mask = given_tokens()
    cases = (
        ({"window": 4}, "window=4: expected 1 to 3"),
        ({"window": 0}, "window=0"),
        ({"draws": 0}, "draws=0"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"sites": ["hook_resid_mid"]}, "this model has hook_resid_post"),
        ({"layers": [3]}, "layers=3: expected 0 to 2"),
        ({"layers": []}, "layers is empty: expected 0 to 2"),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            traced(model, **options)
    for subject, message in (
        ("king", "roles"),
        (mask[:1], "expected torch.bool"),
        (mask.long(), "expected torch.bool"),
        (torch.zeros_like(mask), "no token is marked"),
        (torch.ones_like(mask), "or a pad is"),
    ):
        with pytest.raises(ValueError, match=message):
            causal_trace(model, tokens, subject, ANSWER)
    with pytest.raises(ValueError, match="this one has hooks"):
        traced(model.with_hooks([("z", lambda z, hook: z)]))
    encoder = small_config(causal=False, head="none", n_layers=1)
    pair = random_model(small_config(n_layers=1, encoder=encoder, decoder_start_token_id=1))
    with pytest.raises(ValueError, match="one stack"):
        traced(pair)
    with pytest.raises(ValueError, match="0 other tokens for noise on 1"):
        elsewhere(model, [[1, 2]], torch.tensor([[True, False]]))
    with pytest.raises(ValueError, match="no logits"):
        traced(random_model(small_config(head="none", tied=False)))


def test_sites_and_layers_restrict_and_nothing_else_changes():
    model = random_model(small_config(n_layers=2))
    whole = traced(model, sigma=1.0, draws=1)
    part = traced(model, sigma=1.0, draws=1, sites=["hook_mlp_out"], layers=[1])
    assert set(part["site"]) == {"hook_mlp_out"} and set(part["layer"]) == {1}
    keys = ["metric", "example", "draw", "site", "layer", "pos"]
    both = part.merge(whole, on=keys)
    assert len(both) == len(part)
    assert np.allclose(both["effect_x"], both["effect_y"], atol=1e-12)
