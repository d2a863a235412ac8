"""Generation is the forward pass, step by step: cached, batched and hooked alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from interp.core.tokens import Tokens
from interp.model.generate import Sampling

from .strategies import configs, random_model, small_config
from .vocabularies import single_letters


def naive(model, row, n):
    """Greedy continuation without a cache, one whole forward per token."""
    row = list(row)
    for _ in range(n):
        row.append(int(model([row])[0, -1].argmax()))
    return row


@settings(max_examples=40, deadline=None)
@given(cfg=configs(causal=True, head="unembed"))
def test_cached_generation_equals_whole_forwards(cfg):
    model = random_model(cfg)
    rows = [[3, 1, 4, 1, 5], [9, 2]]
    for side in ("left", "right"):
        done = model.generate(Tokens.from_rows(rows, side=side), 6)
        for i, row in enumerate(rows):
            assert done.tokens.ids[i][done.tokens.real[i]].tolist() == naive(model, row, 6)


def test_hooks_are_active_in_every_step():
    model = random_model(small_config())
    shapes = []

    def shift(x, hook):
        shapes.append(tuple(x.shape))
        return x.flip(-1)

    view = model.with_hooks([(("resid_mid", 1), shift)])
    done = view.generate([[1, 2, 3]], 4)
    assert shapes == [(1, 3, 32)] + [(1, 1, 32)] * 3
    assert done.tokens.ids[0].tolist() == naive(view, [1, 2, 3], 4)
    assert done.tokens.ids[0].tolist() != naive(model, [1, 2, 3], 4)


def test_activations_of_every_step_are_those_of_one_whole_run():
    model = random_model(small_config(positions="rotary"))
    done = model.generate([[1, 2, 3]], 4, names_filter=["resid_post", "pattern"])
    assert [c["resid_post", 0].shape[1] for c in done.caches] == [3, 1, 1, 1]
    _, whole = model.run_with_cache(done.tokens.ids[:, :-1], "resid_post")
    for layer in range(3):
        steps = torch.cat([c["resid_post", layer] for c in done.caches], dim=1)
        assert torch.allclose(steps, whole["resid_post", layer], atol=1e-9)
    assert done.caches[-1]["pattern", 0].shape == (1, 4, 1, 6)


def test_sampling_is_seeded_and_a_row_draws_alone_as_in_a_batch():
    model = random_model(small_config())
    args = {"temperature": 1.3, "top_k": 9, "top_p": 0.9}
    a, b = (model.generate([[1, 2], [3, 4]], 8, seed=5, **args).new_ids for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, model.generate([[1, 2], [3, 4]], 8, seed=6, **args).new_ids)
    assert torch.equal(a[:1], model.generate([[1, 2]], 8, seed=5, **args).new_ids)


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_000, -1)
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    share = lambda **kw: Sampling(**kw).choose(logits, draws).bincount(minlength=4) / 20_000  # noqa: E731
    p = logits[0].softmax(-1)
    assert torch.allclose(share(temperature=1.0), p, atol=0.01)
    assert torch.allclose(share(temperature=2.0), (logits[0] / 2).softmax(-1), atol=0.01)
    two = torch.tensor([p[0], p[1], 0, 0]) / (p[0] + p[1])
    assert torch.allclose(share(temperature=1.0, top_k=2), two, atol=0.01)
    assert torch.allclose(share(temperature=1.0, top_p=0.8), two, atol=0.01)  # .64 + .24
    assert share(temperature=1.0, top_p=0.5)[0] == 1.0
    assert share(temperature=0.0)[0] == 1.0


def scripted(continuation: str):
    """A model whose next letter depends on the position alone."""
    model = random_model(small_config(n_layers=1))
    model.tokenizer = single_letters()
    ids = [ord(c) - 96 if c != "." else 0 for c in continuation]

    def force(logits, hook):
        for position in range(logits.shape[1]):
            step = min(force.step, len(ids) - 1)
            logits[:, position] = -1.0
            logits[:, position, ids[step]] = 1.0
        force.step += 1
        return logits

    force.step = 0
    return model.with_hooks([("hook_logits", force)])


def test_stop_strings_and_the_end_token():
    done = scripted("hello").generate("ab", 5, stop="ll")
    assert done.completions == ["he"] and done.texts == ["abhe"] and str(done) == "abhe"
    assert done.new_ids.shape == (1, 4)  # stopped as soon as "ll" was there
    done = scripted("hi.xx").generate("ab", 5)
    assert done.completions == ["hi"] and done.new_ids.shape == (1, 3)
    done = scripted("hi.xx").generate("ab", 5, stop_at_eos=False)
    assert done.new_ids.shape == (1, 5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 23}, "n_ctx=24"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"stop": "x"}, "tokenizer"),
    ],
)
def test_bad_arguments_are_named(unchecked, kwargs, message):
    with pytest.raises(ValueError, match=message):
        random_model(small_config()).generate([[1, 2]], **({"max_new_tokens": 5} | kwargs))


def test_bidirectional_models_and_nan_logits_refuse():
    with pytest.raises(ValueError, match="causal"):
        random_model(small_config(causal=False)).generate([[1]], 2)
    model = random_model(small_config())
    with pytest.raises(ValueError, match=r"the first site .* is 'blocks\.0\.hook_resid_pre'"):
        model.with_hooks([("resid_pre", lambda x, hook: x * float("nan"))]).generate([[1]], 2)
