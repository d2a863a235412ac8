"""What the older families do that no other does, against transformers."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.parity.inputs import LENGTHS, batch
from tests.parity.layout import D_VOCAB
from tests.parity.reference import relative_error, run

EXACT = 1e-9
PAD = 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_of_roberta_are_counted_over_what_is_no_pad(pair, side: str) -> None:
    """The library counts by itself: whatever is not the padding token."""
    this = pair("roberta")
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(PAD + 1, D_VOCAB, (n,), generator=generator).tolist() for n in LENGTHS]
    tokens = interp.Tokens.from_rows(rows, pad_id=PAD, side=side)  # type: ignore[arg-type]
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.real.long()}
    reference = run(this.reference, this.family.layout, inputs, lifted=False).output
    assert relative_error(this.ours(tokens), reference, tokens.real) < EXACT


@pytest.mark.parametrize("name", ["opt", "opt-post", "bloom", "falcon-serial-alibi"])
def test_positions_counted_by_the_library(pair, name: str) -> None:
    """Without position ids, on left padding (where the library counts them from the mask)."""
    this, inputs = pair(name), batch("left")
    given = {"input_ids": inputs.ids, "attention_mask": inputs.mask.long()}
    reference = run(this.reference, this.family.layout, given, lifted=False).output
    ours = this.ours(interp.Tokens(inputs.ids, mask=inputs.mask))
    tolerance = EXACT if this.family.exact else 1e-5
    assert relative_error(ours, reference, inputs.mask) < tolerance


@pytest.mark.parametrize("name", ["bert-mlm", "roberta", "distilbert-mlm"])
def test_logits_of_some_ids_go_through_the_transform(pair, name: str) -> None:
    model, inputs = pair(name).ours, batch()
    resid = model(inputs.ids, stop_at_layer=model.cfg.n_layers)
    ids = torch.tensor([5, 7, 2]).expand(*inputs.ids.shape, 3)
    logits = model(inputs.ids)
    assert relative_error(model.logits_of(resid, ids), logits.gather(-1, ids)) < EXACT
    log_probs = logits.log_softmax(-1).gather(-1, ids)
    assert relative_error(model.logits_of(resid, ids, log_probs=True), log_probs) < EXACT


@pytest.mark.parametrize("name", ["gptj", "opt-post", "bloom", "falcon-new", "gpt_neo"])
def test_generation_equals_whole_runs(pair, name: str) -> None:
    """Through the key-value cache, for prompts of unequal length."""
    model, inputs = pair(name).ours, batch("left")
    prompt = interp.Tokens(inputs.ids, mask=inputs.mask)
    made = model.generate(prompt, max_new_tokens=4, stop_at_eos=False)
    for row, length in enumerate(LENGTHS):
        ids = inputs.ids[row, -length:].tolist()
        for token in made.new_ids[row].tolist():
            assert int(model(torch.tensor([ids]))[0, -1].argmax()) == token
            ids.append(token)
