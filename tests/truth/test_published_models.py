"""Small public trained models do what their authors recorded."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch

import interp
from interp import edits, metrics


@pytest.fixture(scope="module")
def nano_sort(shared_data):
    return interp.load(shared_data / "models" / "nano-sort")


@pytest.fixture(scope="module")
def stories(shared_data):
    return interp.load(shared_data / "models" / "stories260K")


def test_nano_sort_sorts(nano_sort):
    inputs = torch.randint(0, 3, (2000, 6), generator=torch.Generator().manual_seed(0))
    ids = inputs
    for _ in range(6):  # its context is 11: six symbols and five of the answer
        ids = torch.cat([ids, nano_sort(ids[:, -11:])[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ids[:, 6:], inputs.sort(dim=1).values)


# The author's names → ours. q k v are [batch head pos d_head] there.
RECORDED = {
    "tok_emb": "hook_embed",
    "pos_emb": "hook_pos_embed",
    "x": ("resid_pre", 0),
    "q": ("q", 0),
    "k": ("k", 0),
    "v": ("v", 0),
    "attSm": ("pattern", 0),
    "att": ("attn_scores", 0),
    "y": ("z", 0),
    "yProj": ("attn_out", 0),
    "attnResid": ("resid_mid", 0),
    "fc": ("mlp.hook_pre", 0),
    "gelu": ("mlp.hook_post", 0),
    "mlp": ("mlp_out", 0),
    "mlpResid": ("resid_post", 0),
    "block0": ("resid_post", 0),
    "block1": ("resid_post", 1),
    "block2": ("resid_post", 2),
    "lm_head": "hook_logits",
}


def test_nano_sort_matches_its_authors_activations(nano_sort, shared_data):
    recorded = json.loads((shared_data / "models/nano-sort/partials.json").read_text())

    def theirs(name):
        data = base64.b64decode(recorded[name]["data"])
        values = np.frombuffer(data, "<f4").reshape(recorded[name]["shape"])
        return torch.from_numpy(values.copy())

    ids = theirs("idx").long()
    logits, cache = nano_sort.run_with_cache(ids)
    for name, site in RECORDED.items():
        want, got = theirs(name), cache[site]
        if name in ("q", "k", "v"):
            got = got.transpose(1, 2)
        if name == "y":
            got = got.flatten(-2)
        if name == "att":  # the author's scores are masked, ours are finite
            got = got.masked_fill(want.isinf(), -torch.inf)
        assert torch.allclose(got, want.expand_as(got), atol=2e-5, rtol=2e-5), name
    block = nano_sort.blocks[0]
    for name, norm, stream in (("ln1", block.ln1, "resid_pre"), ("ln2", block.ln2, "resid_mid")):
        assert torch.allclose(norm(cache[stream, 0]), theirs(name), atol=2e-5), name
    assert torch.allclose(nano_sort.ln_final(cache["resid_post", 2]), theirs("ln_f"), atol=2e-5)
    assert torch.allclose(logits.softmax(-1), theirs("probs"), atol=2e-6)


def test_stories_loss_and_text(stories, shared_data):
    """1.306 nats per token over the first 256 tokens of 50 stories, and its best-known sentence."""
    texts = json.loads((shared_data / "text/tinystories_1000.json").read_text())[:50]
    total = count = 0
    for text in texts:
        ids = stories.to_tokens(text, bos=True).ids[:, :256]
        losses = -stories(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
        total, count = total + float(losses.sum()), count + losses.numel()
    assert total / count == pytest.approx(1.306, abs=0.002)
    text = stories.generate(stories.to_tokens("", bos=True), 30).completions[0]
    expected = "Once upon a time, there was a little girl named Lily."
    assert text.strip().startswith(expected)


def test_stories_identities_padding_and_cache(stories):
    assert stories.check_identities("Lily had a red ball.")["holds"].all()
    texts = ["Once upon a time", "Lily", "The big dog ran to the park and"]
    alone = [str(stories.generate(text, 12)) for text in texts]
    assert stories.generate(texts, 12).texts == alone


def test_stories_has_no_induction_head_but_previous_token_heads(stories):
    """The negative control: repeated random spans find nothing; 3.6 looks one back."""
    half = torch.randint(3, 512, (20, 50), generator=torch.Generator().manual_seed(0))
    _, cache = stories.run_with_cache(torch.cat([half, half], dim=1), "pattern")
    patterns = cache.stack("pattern")  # layer batch head q k
    induction = patterns.diagonal(-49, dim1=-2, dim2=-1).mean((1, 3))
    previous = patterns.diagonal(-1, dim1=-2, dim2=-1).mean((1, 3))
    assert induction.max() < 0.06
    assert previous.argmax() == 3 * 8 + 6


@pytest.fixture(scope="module")
def induction_small(shared_data, tmp_path_factory):
    """A TransformerLens 2 state dict."""
    folder = shared_data / "models" / "induction-small"
    done = interp.convert(folder, tmp_path_factory.mktemp("converted"))
    return interp.load(done.folder), dict(np.load(folder / "eval.npz"))


def test_induction_small_does_what_was_recorded(induction_small):
    model, recorded = induction_small
    tokens = torch.from_numpy(recorded["tokens"]).long()
    logits, cache = model.run_with_cache(tokens, "pattern")
    assert torch.allclose(logits[:, -1], torch.from_numpy(recorded["logits"]), atol=1e-5, rtol=1e-5)
    right = logits[:, -1].argmax(-1) == torch.from_numpy(recorded["labels"])
    assert float(right.float().mean()) == pytest.approx(0.984, abs=0.001)
    previous = cache["pattern", 0][:, 0].diagonal(-1, dim1=-2, dim2=-1).mean()
    assert float(previous) == pytest.approx(0.74, abs=0.01)
    assert (model.OV[1, 0].AB.shape, model.OV[1, 0].eigenvalues.shape) == ((64, 64), (64,))
    copies = (model.W_E @ model.OV[1, 0] @ model.W_U).AB.argmax(-1)
    assert (copies == torch.arange(26)).sum() == 26


def test_ablating_induction_small_costs_what_was_recorded(induction_small):
    """3.90 and 3.20 nats under the mean per position."""
    model, recorded = induction_small
    tokens = interp.Tokens.of(torch.from_numpy(recorded["tokens"]).long())
    metric = metrics.log_prob(torch.from_numpy(recorded["labels"]).long())
    frame = interp.sweep(
        model, tokens, interp.nodes(model, "z"), edit=edits.mean(tokens, per="pos"), metric=metric,
        progress=False,
    )  # fmt: skip
    assert frame["effect"].round(2).tolist() == [-3.9, -3.2]
