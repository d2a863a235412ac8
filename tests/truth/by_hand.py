"""Ablation, patching and scores as one would write them by hand: one hooked run per head.

Naive on purpose: nothing here leans on the engine that the planted models are to test.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from interp.zoo import planted

N = 200
TASKS = [name for name in planted.BUILDERS if name != "vocabulary"]
SINGLE_CAUSE = ["induction", "grouped_induction", "rotary_previous_token"]
SEEDS = [0, 1, 2]
MATRICES = ("W_Q", "W_K", "W_V", "W_O")


def build(name, seed=0, **kwargs):
    return planted.BUILDERS[name](seed=seed, **kwargs)


def accuracy(model, tokens, answer):
    return (model(tokens)[:, -1].argmax(-1) == answer).double().mean().item()


def logit_diff(model, tokens, prompts):
    logits, row = model(tokens)[:, -1], torch.arange(len(prompts))
    return (logits[row, prompts.answer] - logits[row, prompts.wrong]).mean().item()


def without(model, heads):
    """A view in which the z of some heads is zero."""

    def zero(z, hook):
        for layer, head in heads:
            if layer == hook.layer:
                z[:, :, head] = 0

    return model.with_hooks([("z", zero)])


def with_z(model, head, values):
    """A view in which the z of one head is another run's."""

    def put(z, hook):
        z[:, :, head[1]] = values[:, :, head[1]]

    return model.with_hooks([(("z", head[0]), put)])


def all_heads(model):
    return [
        (layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)
    ]


def zero_effects(known, prompts):
    """What each removal changes in the mean logit difference; head → change."""
    base = logit_diff(known.model, prompts.clean, prompts)
    return {
        head: logit_diff(without(known.model, [head]), prompts.clean, prompts) - base
        for head in all_heads(known.model)
    }


def patch_effects(known, prompts):
    """What each head's clean z restores in the corrupted run, as a share."""
    _, cache = known.model.run_with_cache(prompts.clean, "z")
    clean, corrupted = (
        logit_diff(known.model, tokens, prompts) for tokens in (prompts.clean, prompts.corrupted)
    )
    return {
        head: (
            logit_diff(with_z(known.model, head, cache["z", head[0]]), prompts.corrupted, prompts)
            - corrupted
        )
        / (clean - corrupted)
        for head in all_heads(known.model)
    }


def auroc(effects, truth):
    return roc_auc_score([head in truth for head in effects], np.abs(list(effects.values())))


def norms_of(model):
    """Frobenius norms of every head's QK and OV: [2, layer, head]."""
    return torch.stack([model.QK.norm(), model.OV.norm()])
