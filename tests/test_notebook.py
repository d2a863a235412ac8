"""interp.attention: the wall of heads in one call, whatever the text comes as."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp.report import Report
from tests.strategies import small_config
from tests.vocabularies import models_by_kind

MODELS = models_by_kind()
TEXTS = ["the king and the queen", "a man"]


def shown(report: Report):
    (viewer,) = report.exhibits()
    return viewer.prompts


@pytest.mark.parametrize("kind", MODELS)
def test_the_wall_is_the_pattern_of_each_text(kind):
    """Whatever the tokenizer; texts of two lengths, of which one would be padded."""
    model = MODELS[kind]
    prompts = shown(interp.attention(model, TEXTS))
    for text, prompt in zip(TEXTS, prompts, strict=True):
        tokens = model.to_tokens(text)
        _, cache = model.run_with_cache(tokens, names_filter="pattern")
        pattern = torch.stack([cache["pattern", layer][0] for layer in range(model.cfg.n_layers)])
        assert np.abs(prompt.codes / 255 - pattern.numpy()).max() <= 0.5 / 255 + 1e-6
        assert list(prompt.tokens) == list(tokens.strings[0])
    (alone,) = shown(interp.attention(model, TEXTS[1]))
    assert (alone.codes == prompts[1].codes).all()


def test_tokens_and_ids_are_taken_and_padding_is_left_out():
    model = MODELS[next(iter(MODELS))]
    expected = shown(interp.attention(model, TEXTS))
    for side in ("left", "right"):
        for one, other in zip(
            shown(interp.attention(model, model.to_tokens(TEXTS, side=side))), expected, strict=True
        ):
            assert one.tokens == other.tokens and (one.codes == other.codes).all()
    bare = interp.model.HookedTransformer(small_config(n_layers=2, d_vocab=9))
    (prompt,) = shown(interp.attention(bare, torch.tensor([[1, 2, 3]])))
    assert prompt.tokens == ("1", "2", "3")
    (again,) = shown(interp.attention(bare, [[1, 2, 3]]))
    assert (again.codes == prompt.codes).all()


def test_what_shows_nothing_is_refused():
    model = MODELS[next(iter(MODELS))]
    with pytest.raises(ValueError, match="two or more"):
        interp.attention(model, torch.tensor([[1]]))
    broken = interp.model.HookedTransformer(small_config(n_layers=2, d_vocab=9))
    with torch.no_grad():
        broken.W_E[1] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        interp.attention(broken, torch.tensor([[1, 2, 3]]))


def test_it_is_a_report_that_shows_itself(tmp_path):
    model = MODELS[next(iter(MODELS))]
    report = interp.attention(model, "zzqx the king")
    assert len(report.warnings) == (interp.unknown_tokens(model, "zzqx the king").unknown > 0)
    assert report._repr_html_().startswith("<iframe")
    folder = report.write(tmp_path / "r").parent
    assert (folder / "attention.csv").is_file()
    assert 'class="attention exhibit"' in report.html()
