"""Causal tracing names the planted lookup, the planted recall and its way, and nothing in controls.

The recall model is a fact as Meng et al. 2022 describe one: in layer 0 neurons at the subject look
its attribute up, in layer 1 a head takes it to the last token. Nothing else is computed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analyses import causal_tracing
from analyses.causal_tracing import Config, run
from interp.core.config import TransformerConfig
from interp.core.tokenizer import Tokenizer
from interp.data.tasks import Pairs
from interp.methods.tracing import causal_trace
from interp.zoo import planted
from interp.zoo.planted.base import GAIN, Planted, Prompts, Spaces, Truth, blank, links
from tests.truth.by_hand import SEEDS
from tests.vocabularies import word_level

pytestmark = pytest.mark.usefixtures("one_thread")

N = 6
SUBJECTS, FILLERS, ASK, VALUES = range(1, 1 + N), range(7, 15), 15, range(16, 16 + N)
LENGTH, STRONG = 7, 10.0


def recall(seed: int) -> Planted:
    """Layer 0: neuron i fires on subject i and writes its attribute and the flag "subject here",
    ten times as strong as the noise is. Layer 1: a head looks from ASK at the flag and writes the
    attribute as the answer. All other weights are zero."""
    generator = torch.Generator().manual_seed(seed)
    value = torch.randperm(N, generator=generator)
    spaces = Spaces(tok=VALUES.stop, attr=N, flag=1, out=N)
    cfg = TransformerConfig(
        n_layers=2, d_model=spaces.d_model, n_heads=2, d_head=N, d_vocab=VALUES.stop, d_mlp=2 * N,
        n_ctx=LENGTH, norm="none", final_norm=False, positions="none", attn_scale=1.0,
        qkv_bias=False, attn_out_bias=False, activation="relu",
    )  # fmt: skip
    model, tok, side = blank(cfg, "recall"), spaces["tok"], torch.arange(N)
    model.W_E[:, tok] = torch.eye(VALUES.stop, dtype=torch.float64)
    model.W_U[spaces["out"], torch.tensor(VALUES)] = GAIN
    early, late = model.blocks
    early.mlp.W_in[tok[SUBJECTS], side] = 1.0
    early.mlp.b_in[:N] = -0.5
    early.mlp.W_out[side, spaces["attr"][value]] = 2 * STRONG
    early.mlp.W_out[side, spaces["flag"]] = 2 * STRONG
    read, write, head = (cfg.d_model, N), (N, cfg.d_model), int(seed % 2)
    late.attn.W_Q[head] = links(read, (tok[ASK], 0, 20.0))
    late.attn.W_K[head] = links(read, (spaces["flag"], 0, 1 / STRONG))
    late.attn.W_V[head] = links(read, (spaces["attr"], side, 1 / STRONG))
    late.attn.W_O[head] = links(write, (side, spaces["out"], 1.0))

    def prompts(n: int, generator: torch.Generator) -> Prompts:
        subject = torch.randint(N, (n,), generator=generator)
        other = (subject + torch.randint(1, N, (n,), generator=generator)) % N
        ids = torch.randint(FILLERS.start, FILLERS.stop, (n, LENGTH), generator=generator)
        ids[:, 0], ids[:, -1] = 0, ASK
        at, row = torch.randint(1, LENGTH - 2, (n,), generator=generator), torch.arange(n)
        ids[row, at] = subject + SUBJECTS.start
        corrupted = ids.clone()
        corrupted[row, at] = other + SUBJECTS.start
        roles = {"subject": at, "end": torch.full((n,), LENGTH - 1)}
        answer, wrong = (value[one] + VALUES.start for one in (subject, other))
        return Prompts.of(ids, corrupted, answer, wrong, roles)

    return Planted("recall", model, Truth(), prompts)


def shares(known: Planted, role: str, sigma: float, n: int = 24) -> dict:
    """(site, layer, place) → average indirect effect, as a share of the total one."""
    prompts = known.prompts(n, seed=1)
    frame = causal_trace(
        known.model, prompts.clean, role, prompts.answer, pos="end", sigma=sigma, draws=2,
        progress=False,
    )  # fmt: skip
    lost = float((frame["clean"] - frame["corrupted"]).mean())
    assert lost > 0.3
    return (frame.groupby(["site", "layer", "place"])["effect"].mean() / lost).to_dict()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_lookup_is_in_the_mlp_at_the_last_token(seed):
    found = shares(planted.lookup(seed=seed), "a", sigma=1.0)
    assert found.pop(("hook_mlp_out", 0, "last token")) == pytest.approx(1, abs=0.02)
    mlp = {place: share for (site, _, place), share in found.items() if site == "hook_mlp_out"}
    assert max(map(abs, mlp.values())) < 0.02
    # The head that brings the key is upstream of it, and the stream behind both holds the answer.
    assert found.pop(("hook_attn_out", 0, "last token")) > 0.95
    assert found.pop(("hook_resid_post", 0, "last token")) == pytest.approx(1, abs=1e-9)
    assert max(map(abs, found.values())) < 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fact_is_recalled_at_the_subject_and_read_at_the_end(seed):
    found = shares(recall(seed), "subject", sigma=1.0)
    subject, end = "last subject token", "last token"
    expected = {
        ("hook_mlp_out", 0, subject), ("hook_attn_out", 1, end),
        ("hook_resid_post", 0, subject), ("hook_resid_post", 1, end),
    }  # fmt: skip
    for state, share in found.items():
        assert (share > 0.9) if state in expected else (abs(share) < 0.02), (state, share)


@pytest.mark.parametrize("control", ["random_control", "permuted_control"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_recalled_in_controls(seed, control):
    known = planted.lookup(seed=seed)
    null = getattr(planted, control)(known, seed=seed)
    prompts = known.prompts(24, seed=1)
    frame = causal_trace(
        null.model, prompts.clean, "a", prompts.answer, pos="end", draws=2, progress=False
    )
    effects = frame.groupby(["site", "layer", "place"])["effect"].mean()
    assert effects.abs().max() < 0.1
    assert abs((frame["clean"] - frame["corrupted"]).mean()) < 0.1


def report_on(known: Planted, prompts: Prompts, monkeypatch, **options):
    known.model.tokenizer = Tokenizer(word_level(known.model.cfg.d_vocab), {}, "numbers")
    pairs = Pairs(known.name, prompts.clean, prompts.corrupted, prompts.answer, prompts.wrong)
    monkeypatch.setattr(causal_tracing, "task_pairs", lambda model, config: pairs)
    return run(known.model, Config(draws=2, **options))


def test_the_report_names_the_recall_and_its_control_names_nothing(monkeypatch, tmp_path):
    known = recall(0)
    prompts = known.prompts(24, seed=1)
    report = report_on(known, prompts, monkeypatch, noise=6.0)
    subject, end, way, control = report.findings[3:]
    assert "at the last subject token" in subject and "MLP of layer 0" in subject
    assert "attention: no effect above rounding" in subject
    assert "the MLP brings back more" in subject
    assert "attention of layer 1" in end and "attention brings back more" in end
    assert "at the last subject token behind layer 0" in way
    assert "at the last token from layer 1 on" in way
    assert "random other tokens costs" in control
    null = planted.random_control(known, seed=0)
    report = report_on(null, prompts, monkeypatch, noise=6.0)
    assert "cannot do the task" in report.warnings[0]
    assert not any("brings back more" in text for text in report.findings)
    assert np.isfinite(report.sections[1].items[0].frame["effect"]).all()
