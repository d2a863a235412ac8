"""Images, spectrograms and trajectories as tokens: what they become, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import edits, metrics
from interp.core.config import ConfigError, TransformerConfig

from .strategies import configs, random_model, small_config

IMAGES = {"inputs": "patches", "image_size": (4, 6), "patch_size": (2, 2), "n_channels": 3}
TRAJECTORIES = {"inputs": "trajectory", "d_state": 5}
FRAMES = {"inputs": "frames", "n_mels": 4}
PLAIN = {"tied": False, "embed_scale": None}


def vit(**changes):
    return random_model(small_config(n_ctx=7, d_vocab=5, causal=False, **IMAGES, **changes))


def decision(**changes):
    return random_model(
        small_config(n_ctx=16, d_vocab=3, embed_norm=True, **TRAJECTORIES, **changes)
    )


def listener(**changes):
    fields = {"n_ctx": 50, "causal": False, "head": "none", **FRAMES, **changes}
    return random_model(small_config(**fields))


def pixels(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 3, 4, 6, generator=torch.Generator().manual_seed(seed))


def steps(seed: int = 0, length: int = 4, d_action: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"returns": (), "states": (5,), "actions": (d_action,)}
    return {
        name: torch.randn(3, length, *shape, generator=generator) for name, shape in shapes.items()
    }


def test_an_image_is_a_class_vector_and_patches_row_by_row():
    model = vit()
    tokens = model.to_tokens(pixels())
    assert tokens.kinds == ("class", *["patch"] * 6)
    assert tokens.strings[2] == (
        "class", "patch 0,0", "patch 0,1", "patch 0,2", "patch 1,0", "patch 1,1", "patch 1,2",
    )  # fmt: skip
    assert tokens.roles["class"].tolist() == [0, 0, 0]
    by_hand = torch.einsum("bcij,mcij->bm", pixels().double()[:, :, 2:4, 4:6], model.inputs.weight)
    assert torch.allclose(tokens.vectors[:, 6], by_hand + model.inputs.bias)
    assert torch.equal(tokens.vectors[:, 0], model.inputs.class_vector.expand(3, -1))
    logits, cache = model.run_with_cache(pixels(), ["hook_embed", "hook_pos_embed"])
    assert torch.equal(cache["hook_embed"], tokens.vectors)
    assert torch.equal(cache["hook_pos_embed"][1], model.W_pos)
    assert torch.equal(logits, model(tokens)) and logits.shape == (3, 7, 5)
    assert tokens[1:].kinds == tokens.kinds and len(tokens[1:].strings) == 2


def test_a_trajectory_is_return_state_action_per_timestep():
    model = decision()
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    times = torch.tensor([[0, 0, 3, 4], [12, 13, 14, 15], [0, 7, 8, 9]])
    tokens = model.to_tokens(**steps(), timesteps=times, mask=mask)
    assert tokens.kinds == ("return", "state", "action") * 4
    assert tokens.positions.tolist() == [
        [t for t in row for _ in range(3)] for row in times.tolist()
    ]
    assert tokens.mask.tolist() == [
        [bool(m) for m in row for _ in range(3)] for row in mask.tolist()
    ]
    assert tokens.strings[1][3:6] == ["return 13", "state 13", "action 13"]
    assert {role: where.tolist() for role, where in tokens.roles.items()} == {
        "return": [9] * 3, "state": [10] * 3, "action": [11] * 3,
    }  # fmt: skip
    early = model.to_tokens(**steps(), mask=mask.flip(1))
    assert early.roles["state"].tolist() == [4, 10, 7]
    plain = model.to_tokens(**steps())
    assert plain.positions[0].tolist() == [t for t in range(4) for _ in range(3)]
    assert torch.equal(model(steps()), model(plain))  # a dict is taken as it is
    assert plain.roles["state"].tolist() == [10] * 3
    named = model.to_tokens(**steps(), roles={"first": torch.zeros(3, dtype=torch.long)})
    assert set(named.roles) == {"return", "state", "action", "first"}


def test_whispers_spectrogram_is_that_of_transformers():
    from transformers import WhisperFeatureExtractor

    model = listener(n_ctx=1500, n_mels=80, n_layers=1)
    waves = np.random.default_rng(0).normal(size=(2, 20_000)).astype(np.float32) * 0.1
    theirs = WhisperFeatureExtractor()(list(waves), sampling_rate=16_000, return_tensors="pt")
    own = model.inputs.spectrogram(torch.as_tensor(waves), 16_000)
    assert torch.equal(own, theirs["input_features"])
    tokens = model.to_tokens(audio=waves[0], rate=16_000)
    assert tokens.shape == (1, 1500) and tokens.strings[0][7] == "frame 7"


def test_frames_are_two_convolutions():
    model = listener()
    x = torch.randn(2, 4, 100, dtype=torch.float64)
    stem = model.inputs
    first, second = torch.nn.Conv1d(4, 32, 3, padding=1), torch.nn.Conv1d(32, 32, 3, 2, 1)
    for conv, name in ((first, "first"), (second, "second")):
        conv.double()
        conv.weight.data, conv.bias.data = (
            stem.get_parameter(f"{name}_weight"),
            stem.get_parameter(f"{name}_bias"),
        )
    gelu = torch.nn.GELU()
    assert torch.allclose(model.to_tokens(x).vectors, gelu(second(gelu(first(x)))).mT)
    assert model(x).shape == (2, 50, 32)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.zeros(1, 3, 5, 6), r"\[batch 3 4 6\].*got \[1, 3, 5, 6\].*resize"),
        (torch.zeros(1, 1, 4, 6), r"\[batch 3 4 6\].*got \[1, 1, 4, 6\]"),
        (torch.zeros(3, 4, 6), r"give a batch, pixels\[None\]"),
        (torch.zeros(1, 3, 4, 6, dtype=torch.uint8), r"got torch.uint8.*rescale.*AutoImage"),
        ("a cat", "not text"),
        (["a cat"], "not text"),
        (torch.tensor([[1, 2]]), "as floats; got torch.int64"),
        (interp.Tokens.of([1, 2]), "this model reads patches, and these tokens are ids"),
    ],
)
def test_what_is_no_image_is_refused(value, match):
    with pytest.raises(ValueError, match=match):
        vit()(value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"states": torch.zeros(3, 4, 6)}, r"states \[batch step 5\]; got \[3, 4, 6\]"),
        ({"actions": torch.zeros(3, 4, 2)}, r"actions \[batch step 3\]; got \[3, 4, 2\]"),
        ({"returns": torch.zeros(3, 4, 2)}, r"returns \[batch step 1\]; got \[3, 4, 2\]"),
        ({"actions": torch.zeros(3, 5, 3)}, r"states \[3, 4\], actions \[3, 5\]"),
        ({"returns": torch.zeros(3, 3)}, r"one \[batch step\].*returns \[3, 3\], states \[3, 4\]"),
        ({"mask": torch.ones(3, 12)}, r"mask \[3, 12\]"),
        ({"timesteps": torch.arange(13, 17).expand(3, 4)}, "timestep 16: .* timesteps 0 to 15"),
        ({"timesteps": torch.arange(-1, 3).expand(3, 4)}, "timestep -1: "),
        ({"timesteps": torch.zeros(3, 4)}, "whole numbers"),
        ({"states": None}, "give returns=, states= and actions="),
        ({"states": torch.zeros(3, 4, 5, dtype=torch.long)}, "as floats"),
    ],
)
def test_what_is_no_trajectory_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        decision()({**steps(), **changes})


@pytest.mark.parametrize(
    ("named", "match"),
    [
        ({"audio": torch.zeros(800), "rate": 44_100}, "rate=44100: .* 16000 samples.*resample"),
        ({"audio": torch.zeros(800)}, "rate=None: .*16000"),
        ({"audio": torch.zeros(800, dtype=torch.int16), "rate": 16_000}, "floats; got torch.int16"),
        ({"audio": torch.zeros(16_001), "rate": 16_000}, "1.0 s of audio: .* hears 1 s .*16000"),
        ({"audio": [[0.0, 0.1], [0.2]], "rate": 16_000}, r"batch sample\], in .*; got a list"),
        ({"audio": torch.zeros(2, 3, 4), "rate": 16_000}, r"\[batch sample\].*got \[2, 3, 4\]"),
        ({"value": torch.zeros(1, 5, 100)}, r"\[batch 4 100\].*got \[1, 5, 100\]"),
        ({"value": torch.zeros(1, 4, 99)}, r"\[batch 4 100\].*got \[1, 4, 99\].*audio="),
        ({}, "audio= and rate="),
        ({"value": "hello"}, "not text"),
        ({"value": torch.zeros(1, 4, 100), "side": "left"}, "bos= and side= go with text"),
    ],
)
def test_what_is_no_sound_is_refused(named, match):
    with pytest.raises(ValueError, match=match):
        listener().to_tokens(**named)


def test_a_language_model_refuses_what_is_no_text():
    model = random_model(small_config())
    with pytest.raises(ValueError, match=r"got \[1, 3, 4, 6\]; images"):
        model(torch.zeros(1, 3, 4, 6))
    with pytest.raises(ValueError, match="reads text, not audio= and rate="):
        model.to_tokens(audio=torch.zeros(8), rate=16_000)
    with pytest.raises(ValueError, match="expected token ids"):
        model(steps())


def test_without_words_there_is_no_word_embedding():
    model = vit()
    with pytest.raises(ValueError, match="inputs='patches': this model has no word embedding"):
        model.W_E  # noqa: B018
    with pytest.raises(ValueError, match="no word embedding"):
        interp.embedding(model)
    with pytest.raises(ValueError, match="causal=True"):
        model.generate(pixels())
    with pytest.raises(ValueError, match="images and trajectories have none"):
        decision().generate(steps())
    with pytest.raises(ValueError, match="loss needs token ids"):
        interp.ablate(model, pixels(), "z", metric=metrics.loss())
    assert model.device.type == "cpu" and model.dtype == torch.float64
    assert model.b_U.shape == (5,) and model.W_U.shape == (32, 5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"inputs": "patches"}, "inputs='patches' needs image_size"),
        ({"n_mels": 80}, "n_mels goes with inputs='frames', not 'tokens'"),
        ({**IMAGES, "d_state": 3}, "d_state goes with inputs='trajectory', not 'patches'"),
        ({**IMAGES, "image_size": (4, 5)}, r"image_size=\(4, 5\) is not a multiple of patch_size"),
        ({**IMAGES, "image_size": (4, 0)}, r"image_size=\(4, 0\): expected a pair"),
        ({**IMAGES, "n_ctx": 6}, "n_ctx=6: expected 7"),
        ({**IMAGES, "n_ctx": 7, "tied": True}, "no token embedding: tied must be False"),
        ({**IMAGES, "n_ctx": 7, "embed_scale": 2.0}, "embed_scale must be None"),
    ],
)
def test_contradictions_in_a_config_name_both_fields(changes, match):
    with pytest.raises(ConfigError, match=match):
        small_config(**{"n_ctx": 7, **changes})


def test_a_config_of_images_survives_json():
    cfg = vit().cfg
    assert TransformerConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


@pytest.mark.parametrize("make", [vit, decision], ids=["patches", "trajectory"])
def test_sweeps_take_raw_inputs(make):
    model = make()
    raw, other = ((pixels(s) if make is vit else steps(s)) for s in (0, 1))
    right, wrong = torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])
    role = "class" if make is vit else "state"
    metric = metrics.logit_diff(right, wrong, pos=role)
    frame = interp.ablate(
        model, raw, "z", metric=metric, reference=model.to_tokens(other) if make is vit
        else model.to_tokens(**other), progress=False,
    )  # fmt: skip
    assert len(frame) == 12 and frame.attrs["engine"] == "rerun"
    assert frame["effect"].abs().min() > 0
    nodes = interp.nodes(model, "resid_pre", by=("layer", "pos"), positions=[role])
    assert len(interp.sweep(model, raw, nodes, edit=edits.zero(), metric=metric)) == 3


COMPILE = """
import torch
from tests.test_inputs import decision, pixels, steps, vit

for model, raw in ((vit(), pixels()), (decision(), steps())):
    model = model.float()
    compiled = torch.compile(model, fullgraph=True)
    assert torch.allclose(compiled(raw), model(raw), atol=1e-4)
"""


def test_compiles_from_raw_inputs_on_without_a_graph_break():
    """In a process of its own: the shape checks of the test run are not traceable."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SENSES = {
    "patches": ({**IMAGES, "n_ctx": 7}, lambda model, s: model.to_tokens(pixels(s))),
    "trajectory": (
        {**TRAJECTORIES, "n_ctx": 16},
        lambda model, s: model.to_tokens(
            **steps(s, length=2, d_action=11), mask=torch.tensor([[1, 1], [0, 1], [1, 0]])
        ),
    ),
    "frames": (
        {**FRAMES, "n_ctx": 5},
        lambda model, s: model.to_tokens(
            torch.randn(3, 4, 10, generator=torch.Generator().manual_seed(s))
        ),
    ),
}


@pytest.mark.parametrize("kind", SENSES)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_rerun_equals_naive_on_any_architecture(kind, data):
    fields, tokens_of = SENSES[kind]
    model = random_model(data.draw(configs(**PLAIN, **fields)))
    tokens, other = tokens_of(model, 0), tokens_of(model, 1)
    site = data.draw(st.sampled_from(["hook_embed", "resid_pre", "attn_out", "resid_post"]))
    by = ("pos",) if site == "hook_embed" else ("layer", "pos")
    edit = data.draw(st.sampled_from([edits.patch(other), edits.mean(other), edits.scale(1.3)]))
    answer = torch.tensor([1, 2, 3])
    before = tokens.real.long().cumsum(1).argmax(1) - 1  # the last but one of the real positions
    metric = metrics.pooled_cosine(torch.randn(3, 16, dtype=torch.float64))
    if model.cfg.head != "none":
        metric = data.draw(
            st.sampled_from(
                [metric, metrics.kl(), metrics.logit_diff(answer, answer + 4, pos=before)]
            )
        )
    options = {"edit": edit, "metric": metric, "reduce": "none", "allow_noop": True}
    nodes = interp.nodes(model, site, by=by, tokens=tokens)
    frames = [
        interp.sweep(model, tokens, nodes, engine=engine, progress=False, **options)["value"]
        for engine in ("rerun", "naive")
    ]
    scale = max(1.0, frames[1].abs().max())
    assert np.allclose(*frames, rtol=0, atol=1e-10 * scale)
    frame = model.check_identities(tokens)
    assert frame[~frame["holds"]].empty
