"""Whisper is Hugging Face's: sites of both stacks, generation, convolutions, start tokens."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor

import interp
from interp import Tokens, edits, metrics
from interp.core.tokenizer import Tokenizer
from interp.loading.info import info
from interp.model import inputs as model_inputs
from tests.parity.conftest import Pair
from tests.parity.families import build, save
from tests.parity.layout import D_VOCAB, Family, Layout
from tests.parity.reference import Float64Islands, _record, relative_error
from tests.parity.test_mutants import FAINT, MISS, config, rebuilt, weights, zeroed

AS_IT_IS, LIFTED = 1e-5, 1e-9
N_MELS, N_FRAMES, START, FORCED = 6, 10, 1, (4, 7)
WHISPER = {
    "vocab_size": D_VOCAB,
    "num_mel_bins": N_MELS,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 32,
    "d_model": 24,
    "max_source_positions": N_FRAMES,
    "max_target_positions": 48,
    "decoder_start_token_id": START,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "begin_suppress_tokens": None,
}
FAMILY = Family(Layout("WhisperForConditionalGeneration", {}), "WhisperConfig", WHISPER)


def _sites(ours: str, theirs: str, mid: str) -> dict[str, tuple[str, Any]]:
    return {
        f"{ours}.hook_resid_pre": (theirs, "in"),
        f"{ours}.attn.hook_z": (f"{theirs}.self_attn.out_proj", "in"),
        f"{ours}.hook_attn_out": (f"{theirs}.self_attn", "out"),
        f"{ours}.{mid}": (f"{theirs}.final_layer_norm", "in"),
        f"{ours}.mlp.hook_pre": (f"{theirs}.fc1", "out"),
        f"{ours}.mlp.hook_post": (f"{theirs}.fc2", "in"),
        f"{ours}.hook_mlp_out": (f"{theirs}.fc2", "out"),
        f"{ours}.hook_resid_post": (theirs, "out"),
    }


def all_sites() -> dict[str, tuple[str, Any]]:
    found = {}
    for layer in range(3):
        ours = f"encoder_blocks.{layer}"
        found |= _sites(ours, f"model.encoder.layers.{layer}", "hook_resid_mid")
    for layer in range(2):
        ours, theirs = f"decoder_blocks.{layer}", f"model.decoder.layers.{layer}"
        found |= _sites(ours, theirs, "hook_resid_mid_cross")
        found |= {
            f"{ours}.hook_resid_mid": (f"{theirs}.encoder_attn_layer_norm", "in"),
            f"{ours}.cross_attn.hook_z": (f"{theirs}.encoder_attn.out_proj", "in"),
            f"{ours}.hook_cross_attn_out": (f"{theirs}.encoder_attn", "out"),
        }
    return found


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    reference = build(FAMILY)
    folder = save(reference, tmp_path_factory.mktemp("whisper"))
    return Pair(FAMILY, reference, interp.load(folder, dtype="float64"), folder)


def given(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Spectrograms, and what the decoder reads."""
    generator = torch.Generator().manual_seed(seed)
    spectrogram = torch.randn(3, N_MELS, 2 * N_FRAMES, generator=generator, dtype=torch.float64)
    return spectrogram, torch.randint(0, D_VOCAB, (3, 7), generator=generator)


def tokens_of(model: Any, seed: int = 0) -> Tokens:
    spectrogram, ids = given(seed)
    return Tokens(ids, source=model.to_tokens(spectrogram).source)


def reference_of(this: Pair, *, lifted: bool) -> dict[str, Tensor]:
    spectrogram, ids = given()
    found: dict[str, Tensor] = {}
    this.reference.set_attn_implementation("eager" if lifted else "sdpa")
    with contextlib.ExitStack() as stack, torch.no_grad():
        for site, (path, side) in all_sites().items():
            handle = _record(this.reference.get_submodule(path), side, found, site)
            stack.callback(handle.remove)
        if lifted:
            stack.enter_context(Float64Islands())
        out = this.reference(input_features=spectrogram, decoder_input_ids=ids, use_cache=False)
    return {**found, "hook_logits": out.logits}


@pytest.mark.parametrize("lifted", [False, True], ids=["as it is", "float64 islands"])
def test_output_and_sites(whisper, lifted: bool) -> None:
    expected = reference_of(whisper, lifted=lifted)
    assert len(expected) == 3 * 8 + 2 * 11 + 1
    _, cache = whisper.ours.run_with_cache(tokens_of(whisper.ours), list(expected))
    found = {site: relative_error(cache[site], x) for site, x in expected.items()}
    tolerance = LIFTED if lifted else AS_IT_IS
    assert {site: e for site, e in found.items() if not e <= tolerance} == {}
    plain = whisper.ours(tokens_of(whisper.ours))
    assert relative_error(plain, expected["hook_logits"]) <= tolerance


def test_identities(whisper) -> None:
    frame = whisper.ours.check_identities(tokens_of(whisper.ours))
    assert frame[~frame["holds"]].empty
    folded = whisper.ours.folded()
    frame = folded.check_identities(tokens_of(folded))
    assert frame[~frame["holds"]].empty
    before, after = (m(tokens_of(m)).log_softmax(-1) for m in (whisper.ours, folded))
    assert relative_error(after, before) < LIFTED


def test_keys_have_no_bias(whisper) -> None:
    model = whisper.ours
    for block in (*model.encoder.blocks, *model.blocks):
        assert not block.attn.b_K.any() and block.attn.b_Q.any() and block.attn.b_V.any()
    assert all(not b.cross_attn.b_K.any() and b.cross_attn.b_V.any() for b in model.blocks)
    stored = sum(p.numel() for p in whisper.reference.parameters())
    assert model.num_params() == info(whisper.folder).n_params == stored + (3 + 2 * 2) * 24


def test_greedy_generation(whisper) -> None:
    """As the reference's forward goes on, token by token."""
    model, (spectrogram, _) = whisper.ours, given()
    ids = torch.full((3, 1), START)
    for _ in range(6):
        with torch.no_grad():
            logits = whisper.reference(input_features=spectrogram, decoder_input_ids=ids).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    done = model.generate(spectrogram, 6)
    assert torch.equal(done.new_ids, ids[:, 1:])
    assert relative_error(model(spectrogram)[:1], model(spectrogram)[1:2]) > MISS  # it listens
    begun = Tokens(ids[:, :4], source=model.to_tokens(spectrogram).source)
    assert torch.equal(model.generate(begun, 3).new_ids, ids[:, 4:])


def test_the_decoder_begins_with_the_forced_ids(whisper, tmp_path) -> None:
    folder = shutil.copytree(whisper.folder, tmp_path / "forced")
    file = folder / "config.json"
    values = json.loads(file.read_text())
    values["forced_decoder_ids"] = [[i + 1, one] for i, one in enumerate(FORCED)]
    file.write_text(json.dumps(values))
    model = interp.load(folder, dtype="float64")
    spectrogram, _ = given()
    assert model.accept(spectrogram).ids.tolist() == [[START, *FORCED]] * 3
    done = model.generate(spectrogram, 2)
    by_hand = Tokens(
        torch.tensor([[START, *FORCED]] * 3), source=model.to_tokens(spectrogram).source
    )
    assert torch.equal(done.new_ids, whisper.ours.generate(by_hand, 2).new_ids)
    assert done.n_prompt == 3
    again = interp.load(interp.save(model, tmp_path / "own"))
    assert again.cfg == model.cfg
    for broken in ([[1, 4], [3, 7]], [1, 2], "en", [[1, D_VOCAB]]):
        file.write_text(json.dumps({**values, "forced_decoder_ids": broken}))
        with pytest.raises(interp.config.ConfigError, match=r"forced_.*ids"):
            interp.load(folder)
    file.write_text(json.dumps({**values, "forced_decoder_ids": [[1, None], [2, 7]]}))
    assert interp.load(folder).cfg.decoder_forced_ids == ()  # the language is left open


def test_text_follows_the_start_tokens(whisper) -> None:
    """Whatever the tokenizer's own template puts around it."""
    words = {f"w{i}": i for i in range(3, 20) if i != 9} | {
        "[UNK]": 0,
        "<s>": START,
        "</s>": 2,
        "<n>": 9,
    }
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> <n> $A </s>", special_tokens=[("<s>", START), ("<n>", 9), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = Tokenizer(made.to_str(), special)
    model = interp.HookedTransformer(
        whisper.ours.cfg.replace(decoder_forced_ids=FORCED), tokenizer, dtype=torch.float64
    )
    spectrogram, _ = given()
    tokens = model.to_tokens(spectrogram, target=["w10 w11", "w12", "w13 w14"])
    assert tokens.ids[0].tolist() == [START, *FORCED, 10, 11]
    assert tokens.mask.sum(1).tolist() == [5, 4, 5]
    assert tokens.source.kinds == ("frame",) * N_FRAMES
    assert model.to_tokens(spectrogram).ids.tolist() == [[START, *FORCED]] * 3


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("hello", "not text"),
        (torch.tensor([[1, 2]]), "as floats; got torch.int64"),
        (torch.zeros(1, N_MELS + 1, 2 * N_FRAMES), r"\[batch 6 20\].*got \[1, 7, 20\]"),
        (torch.zeros(1, N_MELS, 2 * N_FRAMES + 2), r"\[batch 6 20\].*got \[1, 6, 22\]"),
        ({"audio": torch.zeros(3200), "rate": 8_000}, "rate=8000: .*16000"),
        (Tokens.of([[1, 2]]), "this model reads frames, and these tokens are ids"),
    ],
)
def test_what_is_no_sound_is_refused(whisper, value: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        whisper.ours(value)


def test_a_waveform_is_heard(whisper) -> None:
    model = whisper.ours
    waves = torch.randn(3, 3200, generator=torch.Generator().manual_seed(0))
    logits = model({"audio": waves, "rate": 16_000})
    tokens = model.to_tokens(audio=waves, rate=16_000)
    assert torch.equal(logits, model(tokens)) and tokens.source.shape == (3, N_FRAMES)


@pytest.mark.parametrize(
    ("site", "by"),
    [
        ("decoder_blocks.attn.hook_z", ("layer", "head")),
        ("decoder_blocks.cross_attn.hook_z", ("layer", "head")),
        ("decoder_blocks.hook_resid_pre", ("layer", "pos")),
        ("encoder_blocks.hook_resid_pre", ("layer", "pos")),
        ("encoder.hook_embed", ("pos",)),
    ],
)
def test_rerun_equals_naive(whisper, site: str, by: tuple[str, ...]) -> None:
    model = whisper.ours
    tokens, other = tokens_of(model), tokens_of(model, 1)
    nodes = interp.nodes(model, site, by=by, tokens=tokens)
    options = {
        "edit": edits.patch(other),
        "metric": metrics.logit_diff(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])),
        "reduce": "none",
        "progress": False,
        "allow_noop": True,
    }
    naive = interp.sweep(model, tokens, nodes, engine="naive", **options)
    default = interp.sweep(model, tokens, nodes, **options)
    assert default.attrs["engine"] == "rerun"
    scale = max(1.0, naive["value"].abs().max())
    assert np.allclose(default["value"], naive["value"], rtol=0, atol=1e-10 * scale)
    assert naive["effect"].abs().max() > 1e-3


# Mutants


def in_encoder(**changes: Any) -> Any:
    """Another architecture of the encoder over the same weights."""
    return lambda model: rebuilt(
        model, model.cfg.replace(encoder=model.cfg.encoder.replace(**changes)), model.state_dict()
    )


def shift(name: str) -> Any:
    def change(_: Any, copies: dict[str, Tensor]) -> None:
        copies[name] = copies[name].roll(1, dims=0)

    return weights(change)


def mirror(_: Any, copies: dict[str, Tensor]) -> None:
    copies["encoder.inputs.first_weight"] = copies["encoder.inputs.first_weight"].flip(-1)


MUTANTS = {
    "positions of frames one off": shift("encoder.embed.W_pos"),
    "positions of words one off": shift("embed.W_pos"),
    "no positions of frames": zeroed("encoder.embed.W_pos"),
    "no bias of the first convolution": zeroed("first_bias"),
    "no bias of the second convolution": zeroed("second_bias"),
    "first convolution in reverse": weights(mirror),
    "no cross-attention": zeroed("cross_attn.out_weight"),
    "no bias of queries and values": zeroed("attn.qkv_bias"),
    "no final norm of the encoder": in_encoder(final_norm=False),
    "norms behind the sublayers": in_encoder(norm_position="post"),
    "no scale": config(attn_scale=1.0),
    "tanh for exact gelu": config(activation="gelu_tanh"),
}


@pytest.mark.parametrize("broken", MUTANTS)
def test_mutant_misses(whisper, broken: str) -> None:
    expected = reference_of(whisper, lifted=True)["hook_logits"]
    mutant = MUTANTS[broken](whisper.ours)
    least = FAINT if "exact gelu" in broken else MISS
    assert relative_error(mutant(tokens_of(mutant)), expected) >= least


@pytest.mark.parametrize(
    ("attribute", "mutant"),
    [
        ("gelu", lambda x: x),
        ("conv1d", lambda x, w, b, stride=1, padding=0: torch.conv1d(
            x.roll(1, -1) if stride == 2 else x, w, b, stride, padding)),
    ],
    ids=["no gelu behind the convolutions", "the second convolution one column off"],
)  # fmt: skip
def test_mutant_of_the_stem_misses(whisper, monkeypatch, attribute: str, mutant: Any) -> None:
    expected = reference_of(whisper, lifted=True)["hook_logits"]
    model, exact = whisper.ours, model_inputs.F
    names = {name: getattr(exact, name) for name in ("gelu", "conv1d")}
    monkeypatch.setattr(model_inputs, "F", type("Mutant", (), {
        name: staticmethod(mutant if name == attribute else one) for name, one in names.items()
    }))  # fmt: skip
    assert relative_error(model(tokens_of(model)), expected) >= MISS


def test_rebuilding_alone_misses_nothing(whisper) -> None:
    same = weights(lambda cfg, copies: None)(whisper.ours)
    assert torch.equal(same(tokens_of(same)), whisper.ours(tokens_of(whisper.ours)))


def test_published_sizes() -> None:
    """Parameters of Whisper tiny and ViT base, counted by the library; ours has a bias of keys."""
    for config_class, model_class, biases in (
        ("WhisperConfig", "WhisperForConditionalGeneration", 3 * 4 * 384),
        ("ViTConfig", "ViTForImageClassification", 0),
    ):
        made = getattr(transformers, config_class)()
        made.architectures = [model_class]
        with torch.device("meta"):
            theirs = getattr(transformers, model_class)(made)
        values = {**json.loads(made.to_json_string(use_diff=False)), "model_type": made.model_type}
        _, cfg = interp.loading.families.read_config(values, "config.json")
        assert interp.num_params(cfg) == theirs.num_parameters() + biases
