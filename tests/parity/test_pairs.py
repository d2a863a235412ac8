"""Our encoder–decoders are Hugging Face's: logits and every residual stream of both stacks."""

from __future__ import annotations

import dataclasses
import json
from functools import cache as once
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp import edits, metrics
from interp.loading.info import info
from interp.model import bias
from interp.model.attention import Attention
from interp.model.layout import SourceLayout
from tests.parity import pairs
from tests.parity.inputs import Batch
from tests.parity.pairs import CASES, START, Inputs, inputs
from tests.parity.reference import relative_error
from tests.parity.test_mutants import config, rebuilt, weights, zeroed

AS_IT_IS, LIFTED, MISS = 1e-5, 1e-9, 1e-3
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Makes the pair of a case by name, once."""
    return once(lambda name: pairs.make(name, tmp_path_factory.mktemp(name)))


def paddings(name: str):
    """BART counts pads as positions: there only those on the right can be compared."""
    sides = ("none", "right") if "bart" in name else ("none", "left", "right")
    return [(source, target) for source in sides for target in sides]


@pytest.mark.parametrize("lifted", [False, True], ids=["as it is", "float64 islands"])
@every_case
def test_logits_and_streams(pair, name: str, lifted: bool) -> None:
    this = pair(name)
    for source, target in paddings(name):
        given = inputs(source, target)
        expected = pairs.reference(this.reference, given, lifted=lifted)
        assert len(expected) == 1 + 3 + 2
        found = pairs.errors(this.ours, given, expected)
        tolerance = LIFTED if lifted else AS_IT_IS
        wrong = {site: error for site, error in found.items() if not error <= tolerance}
        assert wrong == {}, (source, target)


@every_case
def test_the_islands_are_lifted(pair, name: str) -> None:
    this, given = pair(name), inputs()
    a, b = (pairs.reference(this.reference, given, lifted=lifted) for lifted in (False, True))
    rounds = relative_error(a["hook_logits"], b["hook_logits"]) > LIFTED
    assert rounds != this.exact


@every_case
def test_pads_change_no_number(pair, name: str) -> None:
    """Of either stack, on either side: what the reference cannot say of BART."""
    model = pair(name).ours
    rows = [([5, 6, 7, 8, 9], [START, 4]), ([10, 11], [START, 12, 13, 14])]
    alone = [
        model(dataclasses.replace(interp.Tokens.of([t]), source=interp.Tokens.of([s])))
        for s, t in rows
    ]
    for a in ("left", "right"):
        for b in ("left", "right"):
            source = interp.Tokens.from_rows([s for s, _ in rows], side=a)
            target = interp.Tokens.from_rows([t for _, t in rows], side=b)
            together = model(dataclasses.replace(target, source=source))
            for row, own in enumerate(alone):
                assert torch.allclose(together[row][target.real[row]], own[0], atol=1e-10)


@every_case
def test_identities(pair, name: str) -> None:
    for source, target in (("none", "none"), ("left", "right"), ("right", "left")):
        frame = pair(name).ours.check_identities(inputs(source, target).tokens())
        assert frame[~frame["holds"]].empty
        assert frame["identity"].str.startswith("encoder: ").any()


@pytest.mark.parametrize(
    "site", ["encoder_blocks.attn.hook_z", "decoder_blocks.hook_resid_pre", "cross_attn.hook_v"]
)
@every_case
def test_rerun_equals_naive(pair, name: str, site: str) -> None:
    model = pair(name).ours
    source, target = (Batch(*(t[:, -6:] for t in part)) for part in inputs("left", "left"))
    tokens = Inputs(source, target).tokens()
    ids = target.ids.flip(1), source.ids.flip(1)
    other = interp.Tokens(ids[0], mask=target.mask, source=interp.Tokens(ids[1], mask=source.mask))
    nodes = interp.nodes(model, site, by=("layer", "pos"), tokens=tokens)
    options = {
        "edit": edits.patch(other),
        "metric": metrics.log_prob(torch.tensor([1, 2, 3]), pos=-2),
        "reduce": "none",
        "allow_noop": True,
        "progress": False,
    }
    naive = interp.sweep(model, tokens, nodes, engine="naive", **options)
    rerun = interp.sweep(model, tokens, nodes, **options)
    scale = max(1.0, naive["value"].abs().max())
    assert np.allclose(rerun["value"], naive["value"], rtol=0, atol=1e-10 * scale)
    assert naive["effect"].abs().max() > 1e-3
    assert rerun.attrs["engine"] == "rerun"
    assert rerun.attrs["forward_equivalents"] < naive.attrs["forward_equivalents"]


@every_case
def test_folding(pair, name: str) -> None:
    """BART's norms stand on the stream itself."""
    model, given = pair(name).ours, inputs("left", "right")
    if name.startswith("bart"):
        with pytest.raises(ValueError, match="norm_position='post'"):
            model.folded()
        return
    ours, theirs = (m(given.tokens()).log_softmax(-1)[given.target.mask]
                    for m in (model.folded(), model))  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-9)


@every_case
def test_greedy_generation(pair, name: str) -> None:
    """The reference's ids, with pads on the source."""
    this, given = pair(name), inputs("right").source
    with torch.no_grad():
        expected = this.reference.generate(
            given.ids, attention_mask=given.mask.long(), max_new_tokens=12, do_sample=False,
            num_beams=1, eos_token_id=None, decoder_start_token_id=START,
        )  # fmt: skip
    for padding in ("right", "left"):
        rows = [ids[real].tolist() for ids, real in zip(given.ids, given.mask, strict=True)]
        source = interp.Tokens.from_rows(rows, side=padding)
        assert source.mask is not None
        done = this.ours.generate(source, 12)
        assert torch.equal(done.new_ids, expected[:, 1:])
        assert not torch.equal(done.new_ids[0], done.new_ids[2])  # what is read matters


@every_case
def test_save_and_load(pair, name: str, tmp_path) -> None:
    model, given = pair(name).ours, inputs("left", "right").tokens()
    again = interp.load(interp.loading.save(model, tmp_path / "own"))
    assert again.cfg == model.cfg
    assert torch.equal(again(given), model(given))
    assert info(pair(name).folder).n_params == model.num_params()


# What is wrong, in words, and how; each misses the reference's logits.


def swap_cross_norms(_: Any, copies: dict) -> None:
    for name in [name for name in copies if ".ln_cross." in name]:
        other = name.replace(".ln_cross.", ".ln2.")
        copies[name], copies[other] = copies[other], copies[name]


def shift_positions(_: Any, copies: dict) -> None:
    copies["encoder.embed.W_pos"] = copies["encoder.embed.W_pos"].roll(1, dims=0)


def in_encoder(**changes: Any):
    """Another architecture of the encoder over the same weights."""
    return lambda model: rebuilt(
        model,
        model.cfg.replace(encoder=model.cfg.encoder.replace(**changes)),
        model.state_dict(),
    )


def no_relative_bias(_: Any, copies: dict) -> None:
    copies["embed.W_rel"].zero_()


MUTANTS = {
    ("t5", "no bias by distance in the encoder"): in_encoder(positions="none"),
    ("t5", "no bias by distance in the decoder"): weights(no_relative_bias),
    ("t5", "fewer exact distances"): config(relative_max_distance=200),
    ("t5", "1/√d_head"): config(attn_scale=None),
    ("t5", "no factor on logits"): config(logit_scale=None),
    ("t5", "no cross-attention"): zeroed("cross_attn.out_weight"),
    ("t5", "norms swapped"): weights(swap_cross_norms),
    ("t5", "no final norm of the encoder"): in_encoder(final_norm=False),
    ("t5", "LayerNorm"): config(norm="layernorm", norm_bias=False),
    ("t5-gated-untied", "exact gelu"): config(activation="gelu"),
    ("t5-gated-untied", "tied"): config(tied=True),
    ("t5-gated-untied", "a factor on logits"): config(logit_scale=24**-0.5),
    ("mt5", "norms swapped"): weights(swap_cross_norms),
    ("mt5", "exact gelu"): config(activation="gelu"),
    ("bart", "norms before the sublayers"): config(norm_position="pre"),
    ("bart", "norms swapped"): weights(swap_cross_norms),
    ("bart", "positions of the encoder one off"): weights(shift_positions),
    ("bart", "no bias of the logits"): zeroed("unembed.bias"),
    ("bart", "no bias of queries, keys and values"): zeroed("cross_attn.qkv_bias"),
    ("bart", "no norm of the embedding"): in_encoder(embed_norm=False),
    ("bart-scaled", "no factor on embeddings"): in_encoder(embed_scale=None),
    ("mbart", "no final norm of the encoder"): in_encoder(final_norm=False),
}


@pytest.mark.parametrize(
    ("name", "broken"), MUTANTS, ids=[f"{name}: {broken}" for name, broken in MUTANTS]
)
def test_mutant_misses(pair, name: str, broken: str) -> None:
    this, given = pair(name), inputs("right", "right")
    expected = pairs.reference(this.reference, given, lifted=True)
    logits = {"hook_logits": expected["hook_logits"]}
    assert pairs.errors(this.ours, given, logits)["hook_logits"] < LIFTED
    mutant = MUTANTS[name, broken](this.ours)
    assert pairs.errors(mutant, given, logits)["hook_logits"] > (1e-4 if "gelu" in broken else MISS)


def causal_buckets_everywhere(distance, cfg, of=bias.relative_buckets):
    return of(distance, cfg.replace(encoder=None, decoder_start_token_id=None, causal=False))


def unmasked(self, window):
    return True


def first_source_for_all(self, x, tap, of=Attention.project_source):
    return tuple(kv[:1].expand_as(kv) for kv in of(self, x, tap))


@pytest.mark.parametrize(
    ("where", "attribute", "mutant"),
    [
        (bias, "relative_buckets", causal_buckets_everywhere),
        (SourceLayout, "sees_all", unmasked),
        (Attention, "project_source", first_source_for_all),
    ],
    ids=["two-sided buckets in the decoder", "pads of the source seen", "one source for all"],
)
def test_mutant_of_the_code_misses(pair, monkeypatch, where, attribute, mutant) -> None:
    this, given = pair("t5"), inputs("right", "right")
    expected = pairs.reference(this.reference, given, lifted=True)
    logits = {"hook_logits": expected["hook_logits"]}
    monkeypatch.setattr(where, attribute, mutant)
    assert pairs.errors(this.ours, given, logits)["hook_logits"] > MISS


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("t5", {"architectures": ["T5EncoderModel"]}, "expected an encoder–decoder"),
        ("t5", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj='gated-tanh'"),
        ("t5", {"decoder_start_token_id": 97}, "decoder_start_token_id=97"),
        ("t5", {"relative_attention_num_buckets": 6}, "relative_buckets=6"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder=False"),
        ("bart", {"architectures": ["BartForSequenceClassification"]}, "Classification"),
        ("bart", {"num_hidden_layers": 7}, "num_hidden_layers=7"),
        ("bart", {"encoder_layers": 2}, "unexpected: model.encoder.layers.2"),
        ("t5", {"num_decoder_layers": 3}, "missing: decoder.block.2"),
        ("t5", {"feed_forward_proj": "gated-relu"}, "missing: encoder.block.0"),
    ],
)
def test_configs_that_do_not_fit_are_named(pair, tmp_path, name, changes, message) -> None:
    folder = pair(name).folder
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        interp.load(tmp_path)


def test_another_start_token_misses(pair) -> None:
    """Ids alone are the source, and the decoder begins with its start token."""
    this, given = pair("t5"), inputs("right")
    begun = given.target.ids[:, :1].fill_(START)
    target = given.target._replace(ids=begun, mask=begun > 0)
    expected = pairs.reference(this.reference, Inputs(given.source, target), lifted=True)
    source = interp.Tokens(given.source.ids, mask=given.source.mask)
    assert relative_error(this.ours(source), expected["hook_logits"]) < LIFTED
    other = interp.Tokens(begun + 1, source=source)
    assert relative_error(this.ours(other), expected["hook_logits"]) > MISS


def test_without_bias_of_the_logits_in_the_file(pair, tmp_path) -> None:
    """The library's own base models of BART have none."""
    from safetensors.torch import load_file, save_file

    folder = pair("bart").folder
    stored = load_file(folder / "model.safetensors")
    stored.pop("final_logits_bias")
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    model = interp.load(tmp_path, dtype="float64")
    assert not model.cfg.unembed_bias
    given = inputs().tokens()
    whole = pair("bart").ours
    assert torch.allclose(model(given) + whole.b_U, whole(given), atol=1e-10)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_doctor_compares_both_stacks(pair, name: str) -> None:
    card = interp.doctor(pair(name).folder, dtype="float64")
    assert card.ok, str(card)
    found = next(one for one in card.findings if one.what == "Hugging Face forward")
    assert found.holds, found.text
