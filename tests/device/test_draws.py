"""Whatever is drawn for a seed is the CPU's, bit for bit, wherever the model lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp import edits, erasure, heads, lens, probes, tracing
from interp.core.config import TransformerConfig
from interp.data.moments import Moments
from interp.methods.heads.roles import rotations
from interp.methods.probes.controls import random_features
from interp.methods.steering import _arms
from interp.model import HookedTransformer
from interp.training import SampledData, TextData, TrainConfig, train
from tests.device.bench import Bench
from tests.device.pretend import Pretend
from tests.strategies import small_config


def weights(b, dtype=torch.float32, **changes) -> list:
    """The initial weights of a model that was made on the device."""
    cfg = small_config(**changes)
    made = HookedTransformer(cfg, device=b.device, dtype=dtype, seed=11)
    with torch.device(b.device):
        within = HookedTransformer(cfg, dtype=dtype, seed=11)
    moved = HookedTransformer(cfg, dtype=dtype, seed=3).to(b.device)
    moved.init_weights(11)
    assert made.device.type == within.device.type == moved.device.type == b.device
    return [list(model.state_dict().values()) for model in (made, within, moved)]


def noise(b) -> torch.Tensor:
    """What an edit adds at two nodes, from their second position on."""
    site = b.model.sites["resid_mid", 0]
    replace = edits.noise(0.5, seed=4).bind(b.model, b.pairs.clean, [site.name])
    rows = edits.Rows(site, b.there(torch.tensor([0, 2])), (3, 9), 1)
    return replace(b.there(torch.zeros(2, 3, 4, dtype=torch.float64)), rows)


def first_weights(b, folder) -> list:
    """Those that training draws, and the batches that it is given."""
    seen = []
    model = HookedTransformer(small_config(n_layers=1), device=b.device, seed=1)
    data = SampledData(lambda rng, split, size: rng.integers(1, 29, (size, 9)), None, "drawn")

    class Seen:
        tokenizer, fingerprint = None, data.fingerprint

        def batch(self, split, number, size):
            batch = data.batch(split, number, size)
            seen.append(batch.ids)
            return batch

    config = TrainConfig(steps=1, batch_size=2, eval_batches=1, checkpoints=2, seed=6)
    train(model, Seen(), folder, config, progress=False)
    kept = sorted(folder.rglob("model.safetensors"))
    first = [interp.load(path.parent, device="cpu") for path in kept if "0000" in str(path)]
    return [*seen, *(value for model in first for value in model.state_dict().values())]


def sampled(b) -> list:
    return [
        b.model.generate(["the king", "a woman and"], 8, temperature=2.0, seed=seed).new_ids
        for seed in (0, 5)
    ]


DRAWS = {
    "initial weights": lambda b: weights(b),
    "initial weights, float64": lambda b: weights(b, torch.float64),
    "initial weights, bfloat16": lambda b: weights(b, torch.bfloat16, norm="rmsnorm_plus1"),
    "initial weights, encoder and decoder": lambda b: weights(
        b, decoder_start_token_id=1, encoder=small_config(causal=False, head="none")
    ),
    "a random copy": lambda b: list(probes.random_copy(b.model, seed=2).state_dict().values()),
    "noise of an edit": noise,
    "noise of a trace": lambda b: (
        tracing.noised(b.model, b.pairs.clean, "end", 0.5, seed=3, draw=1).vectors
    ),
    "tokens elsewhere": lambda b: tracing.elsewhere(b.model, b.pairs.clean, "end", seed=3),
    "sampled tokens": sampled,
    "random repeats": lambda b: heads.random_repeats(b.model, 4, 8, seed=3).ids,
    "random rotations": lambda b: rotations(2, 6, interp.chance.seeded(1)),
    "a random lens": lambda b: list(lens.random_lens(b.model, 3).translators[0]),
    "random features": lambda b: random_features(5, 4, 2, 1, b.features[0]),
    "a random eraser": lambda b: erasure.random_eraser(
        Moments.of(*b.features), 1, seed=2, method="mean_difference"
    ).matrix,
    "random directions": lambda b: [
        part.unit for part in _arms(b.direction.cpu(), b.features[0].cpu(), 2, 4)
    ],
    "pairs of a task": lambda b: [
        part.ids
        for task in ("agreement", "capitals", "gendered_pronoun", "induction")
        for pairs in [getattr(interp.tasks, task)(b.model, 6, seed=5)]
        for part in (pairs.clean, pairs.corrupted)
    ],
    "crops of a text": lambda b: list(
        TextData("the king saw the man . " * 30, b.model.tokenizer, 5).batch("train", 3, 4)
    ),
    "sampled positions": lambda b: torch.from_numpy(
        interp.harvest(
            b.model, b.tokens, "resid_post", b.folder, sample=2, seed=3, progress=False
        ).rows.to_numpy()
    ),
    "first weights and batches of training": lambda b: first_weights(b, b.folder),
}  # fmt: skip


@pytest.fixture(scope="module")
def benches() -> tuple[Bench, Bench]:
    return Bench("pretend"), Bench("cpu")


def bits(value) -> list:
    value = value if isinstance(value, (list, tuple)) else [value]
    parts = [part for one in value for part in (bits(one) if isinstance(one, list) else [one])]
    return [part.cpu() if isinstance(part, Pretend) else part for part in parts]


@pytest.mark.parametrize("what", DRAWS)
def test_a_draw_is_that_of_the_cpu_bit_for_bit(what, benches, tmp_path, unchecked):
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    drawn = []
    for bench in benches:
        bench.folder = tmp_path / bench.device
        drawn.append(bits(DRAWS[what](bench)))
    assert len(drawn[0]) == len(drawn[1]) > 0
    for ours, theirs in zip(*drawn, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    after = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1] == after[1]


def test_the_weights_of_a_seed_are_those_that_they_always_were():
    cfg = TransformerConfig(n_layers=1, d_model=4, n_heads=2, d_mlp=8, d_vocab=5, n_ctx=3)
    model = HookedTransformer(cfg, device="pretend", seed=0)
    expected = [-0.02251680, -0.02304720, -0.00501157, -0.00867758]
    assert model.W_E[0].tolist() == pytest.approx(expected, abs=1e-8)
