"""Where heads look, counted again pair by pair in plain Python from the patterns themselves."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from interp import heads
from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.methods.heads import looks
from tests.strategies import random_model, small_config
from tests.vocabularies import word_level

# Repeats at several distances, a token three times, a repeat right behind itself, a pad id (0)
# that also stands among the words, and rows of unequal length.
ROWS = [[7, 5, 2, 7, 5, 2, 9, 5], [3, 4, 3, 4], [6, 6, 6, 1, 6], [1, 2, 0, 8, 2, 0], [8, 1, 4],
        [2, 8, 2, 8], [5, 4, 3, 2, 1, 9], [9, 1, 4, 9]]  # fmt: skip


def by_hand(model, tokens: Tokens) -> pd.DataFrame:
    """`attention_scores`, from loops over rows, queries and keys."""
    cfg, causal = model.cfg, model.cfg.causal
    _, cache = model.run_with_cache(tokens, "pattern")
    real = tokens.real.tolist()
    # Each row as its real tokens, with the place where each stands in the padded batch.
    rows = [
        [(at, int(tokens.ids[b, at])) for at in range(tokens.shape[1]) if real[b][at]]
        for b in range(len(tokens))
    ]
    lines = []
    for layer in range(cfg.n_layers):
        for head in range(cfg.n_heads):
            pattern = cache["pattern", layer][:, head].double()
            lines.append({"layer": layer, "head": head} | _of_head(pattern, rows, causal, tokens))
    return pd.DataFrame(lines)


def _of_head(pattern, rows, causal: bool, tokens: Tokens) -> dict[str, float]:
    shares: dict[str, list[float]] = {name: [] for name in looks.MEASURED}
    induction_of_rows, entropy = [], []
    by_offset: dict[int, list[float]] = {}
    for b, row in enumerate(rows):
        induction_of_row, distances = [], []
        queries = [q for q in range(len(row)) if q > 0 or not causal]
        seen = {q: [k for k in range(len(row)) if k <= q or not causal] for q in queries}

        def weight(q: int, k: int, b=b, row=row) -> float:
            return float(pattern[b, row[q][0], row[k][0]])

        def behind_equal(q: int, k: int, row=row) -> bool:
            return k > 0 and row[k - 1][1] == row[q][1] and k - 1 != q

        for q in queries:
            keys = seen[q]
            entropy.append(-sum(w * math.log2(w) for k in keys if (w := weight(q, k)) > 0))
            for k in keys:
                by_offset.setdefault(q - k, []).append(weight(q, k))
            wanted = {
                "previous_token": [k for k in keys if k == q - 1],
                "duplicate_token": [k for k in keys if k != q and row[k][1] == row[q][1]],
                "induction": [k for k in keys if behind_equal(q, k)],
                "bos": [k for k in keys if k == 0],
                "self": [q],
                "local": [k for k in keys if q - looks.NEAR <= k < q],
            }
            for name, chosen in wanted.items():
                if chosen:
                    shares[name].append(sum(weight(q, k) for k in chosen))
            if wanted["induction"]:
                induction_of_row.append(shares["induction"][-1])
                distances += [q - k for k in wanted["induction"]]
        induction_of_rows.append(induction_of_row)
        for q in queries:  # the control: as far away, where nothing is repeated
            if any(behind_equal(q, k) for k in seen[q]):
                continue
            chosen = [
                k
                for k in seen[q]
                if q - k in distances
                and not (k != q and row[k][1] == row[q][1])
                and (k > 0 or tokens.bos is False)
            ]
            if chosen:
                shares["same_distance"].append(sum(weight(q, k) for k in chosen) / len(chosen))
    with_any = [row for row in induction_of_rows if row]
    mean = np.mean([share for row in with_any for share in row])
    off = [sum(row) - len(row) * mean for row in with_any]
    most = max(1, tokens.shape[1] // 2)
    offsets = {d: np.mean(w) for d, w in by_offset.items() if abs(d) <= most}
    offset = max(sorted(offsets), key=offsets.__getitem__)
    return {name: float(np.mean(values)) for name, values in shares.items()} | {
        "induction_stderr": np.std(off, ddof=1) / len(off) ** 0.5 / np.mean([*map(len, with_any)]),
        "offset": offset,
        "offset_share": offsets[offset],
        "entropy": np.mean(entropy),
    }


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
def test_scores_are_what_loops_over_the_pattern_count(causal, side, bos, monkeypatch):
    monkeypatch.setattr(looks, "ELEMENTS", 600)  # a batch in several chunks
    cfg = small_config(causal=causal, n_layers=2) if causal else small_config(
        causal=False, head="none", n_layers=2
    )  # fmt: skip
    model = random_model(cfg)
    tokens = Tokens.from_rows(ROWS, side=side)
    tokens = model.accept(Tokens(tokens.ids, mask=tokens.mask, bos=bos))
    assert sum(1 for _ in looks.chunks(model, tokens)) > 1
    scores = heads.attention_scores(model, tokens)
    expected = by_hand(model, tokens)
    pd.testing.assert_frame_equal(
        scores[list(expected)], expected, check_dtype=False, atol=1e-6, rtol=1e-5
    )


@pytest.mark.filterwarnings(
    "ignore:Mean of empty slice", "ignore:Degrees of freedom", "ignore:invalid value encountered"
)
@pytest.mark.parametrize(
    "rows",
    [[[1, 2, 1, 2], [3, 4, 3, 4]], [[1, 2, 3]], [[4, 5, 6], [7, 8, 7]], [[1, 2], [3, 4]], [[1, 1]]],
)
@pytest.mark.parametrize("causal", [True, False])
def test_scores_of_few_and_short_rows(causal, rows):
    model = random_model(small_config(causal=causal, head="unembed" if causal else "none"))
    tokens = model.accept(rows)
    scores = heads.attention_scores(model, tokens)
    expected = by_hand(model, tokens)
    pd.testing.assert_frame_equal(
        scores[list(expected)], expected, check_dtype=False, atol=1e-6, rtol=1e-5
    )
    assert set(scores.dtypes[["induction_stderr", "entropy", "offset_share"]]) == {np.dtype(float)}


def with_words(n: int, special: dict[str, str] | None, **changes):
    """A model whose tokenizer has n words and these special tokens behind them; None: it has no
    tokenizer."""
    if special is None:
        return random_model(small_config(d_vocab=n, **changes))
    tokenizer = Tokenizer(word_level(n, tuple(special.values())), special)
    model = random_model(small_config(d_vocab=n + len(special), **changes))
    model.tokenizer = tokenizer
    return model


SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}


@pytest.mark.parametrize("special", [None, {}, {"pad_token": "<pad>"}, SPECIAL])
@pytest.mark.parametrize("n_ctx", [4, 5, 8, 9, 24])
@pytest.mark.parametrize("words", [1, 2, 3, 4, 5, 6, 7, 11, 40])
def test_random_repeats_fill_what_context_and_vocabulary_allow(words, n_ctx, special):
    """Whatever the sizes, a row is distinct ordinary tokens, then the last `span` of them again,
    and the longest that fits: half the context, and no more distinct tokens than there are."""
    model = with_words(words, special, n_ctx=n_ctx)
    has_bos = "bos_token" in (special or {})

    def distinct(length: int) -> int:  # tokens that the shortest repetition needs
        return 2 * length - max(2, math.ceil(length / 2))

    fitting = [
        length for length in range(2, (n_ctx - has_bos) // 2 + 1) if distinct(length) <= words
    ]
    if not fitting:
        sizes = f"n_ctx={n_ctx}, {words} ordinary tokens: nothing can repeat"
        with pytest.raises(ValueError, match=sizes):
            heads.random_repeats(model, 12, 50)
        return
    tokens = heads.random_repeats(model, 12, 50)
    assert tokens.bos is has_bos and tokens.mask is None
    rows = tokens.ids.tolist()
    if has_bos:
        assert {row[0] for row in rows} == {model.tokenizer.bos_id}
        rows = [row[1:] for row in rows]
    length = len(rows[0]) // 2
    assert length == max(fitting) and {len(row) for row in rows} == {2 * length}
    spans = []
    for row in rows:
        span = 2 * length - len(set(row))
        assert row[-span:] == row[-2 * span : -span], "the last span, twice"
        assert len(set(row[:-span])) == len(row) - span, "and nothing else"
        assert max(row) < words, "no special token"
        spans.append(span)
    balanced = range(max(2, math.ceil(length / 2)), length + 1)
    counts = [spans.count(span) for span in balanced]
    assert sum(counts) == 12 and max(counts) - min(counts) <= 1


def test_random_repeats_are_no_longer_than_asked_and_follow_their_seed():
    model = with_words(40, SPECIAL, n_ctx=24)
    tokens = heads.random_repeats(model, 5, 6)
    assert tokens.shape == (5, 13)
    assert torch.equal(tokens.ids, heads.random_repeats(model, 5, 6, seed=0).ids)
    assert not torch.equal(tokens.ids, heads.random_repeats(model, 5, 6, seed=1).ids)
    with pytest.raises(ValueError, match="nothing can repeat"):
        heads.random_repeats(model, 5, 1)


def test_without_ids_there_is_no_equal_token():
    model = random_model(small_config())
    vectors = torch.randn(2, 5, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    scores = heads.attention_scores(model, Tokens.of(vectors))
    assert scores[["duplicate_token", "induction", "same_distance"]].isna().all(axis=None)
    assert scores[["previous_token", "bos", "self", "local", "entropy"]].notna().all(axis=None)


@pytest.mark.parametrize("query", ["end", "name"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_one_position_puts_on_the_named_ones(side, query, monkeypatch):
    monkeypatch.setattr(looks, "ELEMENTS", 600)  # a batch in several chunks
    model = random_model(small_config(n_layers=2))
    tokens = Tokens.from_rows(ROWS, side=side)
    places = torch.stack([row.nonzero()[torch.tensor([1, 2, -1]), 0] for row in tokens.real])
    roles = dict(zip(("first", "name", "end"), places.T, strict=True))
    tokens = model.accept(Tokens(tokens.ids, mask=tokens.mask, roles=roles))
    assert sum(1 for _ in looks.chunks(model, tokens)) > 1
    frame = heads.role_attention(model, tokens, query)
    _, cache = model.run_with_cache(tokens, "pattern")
    lines = [
        (layer, head, role, np.mean([
            float(cache["pattern", layer][b, head, roles[query][b], roles[role][b]])
            for b in range(len(tokens))
        ]))
        for layer in range(2)
        for head in range(4)
        for role in roles
    ]  # fmt: skip
    expected = pd.DataFrame(lines, columns=["layer", "head", "role", "share"])
    pd.testing.assert_frame_equal(frame, expected, check_dtype=False, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"query='last': .* the roles first, name, end"):
        heads.role_attention(model, tokens, "last")


@pytest.mark.parametrize(
    ("elements", "sizes"), [(1, [1] * 8), (2 * 4 * 8 * 8 * 3, [3, 3, 2]), (10**9, [8])]
)
def test_rows_are_taken_as_their_patterns_fit(elements, sizes, monkeypatch):
    """And nothing but patterns is kept of them."""
    monkeypatch.setattr(looks, "ELEMENTS", elements)
    model = random_model(small_config(n_layers=2))
    kept, run = [], looks.finite_cache

    def spied(model, tokens, names):
        kept.append(run(model, tokens, names))
        return kept[-1]

    monkeypatch.setattr(looks, "finite_cache", spied)
    for method in (heads.attention_scores, heads.role_attention):
        kept.clear()
        tokens = Tokens(torch.arange(64).view(8, 8) % 29, roles={"end": torch.full((8,), 7)})
        method(model, tokens)
        assert [len(cache["pattern", 0]) for cache in kept] == sizes
        assert {name for cache in kept for name in cache} == {
            "blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern",
        }  # fmt: skip
