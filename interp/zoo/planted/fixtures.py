"""Analytic fixtures: models so small that what a method must say of a node has a closed form.

One number y stands in column 0 of the logits at the last position (F4: a KL of the logits). With
n(α) = n + α (n' − n), a node on its way from its clean to its corrupted value, and y(α) the clean
run with n(α) put in:

    exact        y(1) − y(0)                       `sweep` with edits.patch(corrupted)
    first order  y'(0)                             attribution patching (Nanda 2023)
    integrated   Σ y'((i + ½) / steps) / steps     integrated gradients (Sundararajan et al. 2017)

    from interp.zoo.planted import fixtures
    known = fixtures.saturated_attention(gap=10.0)
    metric = metrics.function(known.measure, known.name)
    sweep(known.model, known.clean, known.nodes, edit=edits.patch(known.corrupted), metric=metric)

Models are in float64; weights that a docstring does not name are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import cosh, log, sqrt, tanh
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.config import TransformerConfig
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from interp.sweeps.nodes import as_frame

from .base import blank

STEPS = (5, 20)
"""How finely the integrated gradients of a fixture are given."""


class Direction(NamedTuple):
    """A unit vector of the residual stream, and what y does when the stream moves along it."""

    vector: Float[Tensor, " d_model"]
    swapped: float
    """The stream's part along it is that of the corrupted run: x + ((x' − x)·v) v."""
    removed: float
    """Its part along it is taken out: x − (x·v) v."""
    stepped: float
    """One unit of it is added: x + v."""


def first_logit(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
    """y: column 0 at the last position."""
    return logits[:, -1, 0]


@dataclass(frozen=True, eq=False)
class Fixture:
    """A model, two runs of it, and what patching and its approximations give, one value per node.

    All values are changes of y = measure(logits) in the clean run. None: not part of this truth.
    """

    name: str
    model: HookedTransformer
    clean: Tokens
    corrupted: Tokens
    nodes: pd.DataFrame
    """What is patched; lines that share `row` are one node."""
    exact: tuple[float, ...]
    """What the node's corrupted value changes in the clean run."""
    first_order: tuple[float, ...] | None = None
    """Gradient at the clean run · (corrupted − clean)."""
    integrated: Mapping[int, float] | None = None
    """Steps → the same with the gradient averaged over the midpoints of the way; one node."""
    measure: Callable[[Tensor], Tensor] = field(default=first_logit, repr=False)
    """From the logits [batch pos d_vocab] to y, one number per example."""
    restored: tuple[float, ...] | None = None
    """The other way round: what the node's clean value changes in the corrupted run."""
    frozen: tuple[float, ...] | None = None
    """`exact` with ln_final.hook_scale held at its clean value. What is then left is linear in the
    node, so this is its first order and its integral as well."""
    directions: Mapping[str, Direction] = field(default_factory=dict)
    """Directions at the node's site, one by one."""


def saturated_attention(gap: float) -> Fixture:
    """F1. A head over two keys, its query patched: y = tanh(gap · q / 2), q from 1 to −1.

    Residual stream: ask | key | value | out. Position 0 is (0, ½, 1, 0), position 1 (q, −½, −1, 0).
    W_Q: ask → gap. W_K: key → 1. W_V: value → 1. W_O: → out. W_U: out → y. So position 1 gives its
    two keys the scores ± gap q / 2, the patterns σ(± gap q), and z = σ(gap q) − σ(−gap q). With
    clean q = 1 the two scores differ by the gap, and

        exact        −2 tanh(gap / 2)
        first order  −gap sech²(gap / 2)     dies with the gap, while the exact effect goes to −2
        integrated   → exact, but the slope gap/2 sech²(gap q / 2) is a peak 4/gap wide at q = 0:
                     5 midpoints, .4 apart, count it −2.288 at gap 10 and −4.011 at gap 20
    """
    return _one_node(
        f"F1 s={gap:g}",
        _two_keys("saturated_attention", gap, written=1.0, direct=0.0, asks=(1.0, -1.0)),
        ids=([0, 1], [0, 2]),
        node={"site": "attn.hook_q", "layer": 0, "pos": 1, "head": 0},
        way=(1.0, -1.0),
        y=lambda q: tanh(gap * q / 2),
        slope=lambda q: gap / 2 / cosh(gap * q / 2) ** 2,
    )


def cancellation() -> Fixture:
    """F2. A direct path and a head that takes it back at first: y = n − tanh(n), n from 0 to 3.

    The head of F1 with gap 2, so that z = tanh(n), where n is what stands in "ask"; it writes −z to
    "out", and W_U reads ask + out. The node is the residual stream that holds n, ahead of both.

        exact        3 − tanh 3 = 2.005
        first order  3 (1 − sech² 0) = 3 − 3 = 0     direct and indirect slope cancel
        integrated   → exact; the slope is tanh² n
    """
    return _one_node(
        "F2",
        _two_keys("cancellation", gap=2.0, written=-1.0, direct=1.0, asks=(0.0, 3.0)),
        ids=([0, 1], [0, 2]),
        node={"site": "hook_resid_pre", "layer": 0, "pos": 1},
        way=(0.0, 3.0),
        y=lambda n: n - tanh(n),
        slope=lambda n: tanh(n) ** 2,
    )


def or_gate() -> Fixture:
    """F3. An OR gate in a neuron: y = 1 − relu(1 − a − b), a = b = 1 clean, a = b = 0 corrupted.

    Residual stream: input a | input b | a | b | out. In layer 0 neurons 0 and 1 copy the inputs to
    a and b; these two are the nodes, alone and together. In layer 1 neuron 0 is relu(1 − a − b) and
    takes that from "out", where the bias of the MLP writes 1.

        exact        a: 0, b: 0, both: −1     each covers for the other
        first order  0: the neuron sits at −1, where relu is flat
        restored     +1 each, and +1 both: into the corrupted run either one suffices
    """
    model = _model("or_gate", n_layers=2, d_model=5, d_vocab=2, d_mlp=2)
    model.W_E[0, :2] = 1.0
    mlps: list[Any] = [block.mlp for block in model.blocks]
    copy, gate = mlps
    for neuron in (0, 1):
        copy.W_in[neuron, neuron] = copy.W_out[neuron, 2 + neuron] = 1.0
        gate.W_in[2 + neuron, 0] = -1.0
    gate.b_in[0] = gate.b_out[4] = 1.0
    gate.W_out[0, 4] = -1.0
    model.W_U[4, 0] = 1.0
    alone = [{"row": i, "site": "mlp.hook_post", "layer": 0, "neuron": i} for i in (0, 1)]
    return Fixture(
        "F3",
        model,
        Tokens.of([[0]]),
        Tokens.of([[1]]),
        nodes=as_frame([*alone, *({**one, "row": 2} for one in alone)]),
        exact=(0.0, 0.0, -1.0),
        first_order=(0.0, 0.0, 0.0),
        restored=(1.0, 1.0, 1.0),
    )


def stationary_kl() -> Fixture:
    """F4. A divergence from the clean run itself: y = KL(clean ‖ edited) = ln cosh n, n: 0 → .4.

    The residual stream is n alone, and the logits are (n, −n). Clean they are equal, p = (½, ½), so
    KL = −½ ln(2 σ(2n)) − ½ ln(2 σ(−2n)) = ln cosh n. The node is the stream.

        exact        ln cosh .4 = .078
        first order  .4 tanh 0 = 0     a divergence is least, so flat, where the two runs agree
        integrated   → exact; the slope is tanh n
    """
    model = _model("stationary_kl", d_model=1, d_vocab=2)
    model.W_E[1, 0] = 0.4
    model.W_U[0] = torch.tensor([1.0, -1.0])
    return _one_node(
        "F4",
        model,
        ids=([0], [1]),
        node={"site": "hook_resid_pre", "layer": 0},
        way=(0.0, 0.4),
        y=lambda n: log(cosh(n)),
        slope=tanh,
        measure=lambda logits: -log(2) - logits[:, -1].log_softmax(-1).mean(-1),
    )


def illusory_direction() -> Fixture:
    """F5. h = (x, 0, x), y = h · (0, 2, 1) = x, x from 1 to −1 (Makelov et al. 2023, illusion).

    Axis 0 follows x but is not read; axis 1 is read but dormant: it is 0 on all data; axis 2 does
    the work. Along v = (1, 1, 0)/√2 the stream moves by ((h' − h)·v) v = (x' − x)/2 · (1, 1, 0): as
    much into the dormant axis as along the unread one, and y by 2 (x' − x)/2, the whole effect.

                            swapped   removed   stepped
        unread    (1, 0, 0)   0         0         0
        dormant   (0, 1, 0)   0         0         2      shows only off the data
        illusory  v           x' − x    −x        √2     though neither part does
        real      (0, 0, 1)   x' − x    −x        1
    """
    model = _model("illusory_direction", d_model=3, d_vocab=2)
    model.W_E[:] = torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, -1.0]])
    model.W_U[:, 0] = torch.tensor([0.0, 2.0, 1.0])
    unread, dormant, real = torch.eye(3, dtype=torch.float64)
    return Fixture(
        "F5",
        model,
        Tokens.of([[0]]),
        Tokens.of([[1]]),
        nodes=as_frame([{"site": "hook_resid_pre", "layer": 0}]),
        exact=(-2.0,),
        directions={
            "unread": Direction(unread, 0.0, 0.0, 0.0),
            "dormant": Direction(dormant, 0.0, 0.0, 2.0),
            "illusory": Direction((unread + dormant) / sqrt(2), -2.0, -1.0, sqrt(2)),
            "real": Direction(real, -2.0, -1.0, 1.0),
        },
    )


def hidden_by_norm() -> Fixture:
    """F6. A head whose loss the norm makes up for: y = (a + b)/√(a² + b²), a = 1, b from 1 to 0.

    Residual stream: a | b, under RMSNorm without ε and gain, scale = √((a² + b²)/2). Token 0 is
    (1, 0), token 1 (0, 1). The last position is token 0, so a = 1. Before it stands token 1 (clean)
    or 0 (corrupted); the head attends alike to both (W_Q = W_K = 0), reads axis b, where the normed
    token 1 has √2, by W_V = √2, and writes ½ √2 √2 = 1 to b: its z is b, and the node. W_U reads
    (a + b)/√2 of the normed stream.

        exact        1 − √2 = −.414         y falls from 1.414 to 1.000
        frozen       1/√2 − √2 = −.707      to .707, with the scale kept at √(2/2) = 1
        first order  1/√2 − 1/√2 = 0        at a = b the scale's slope takes back all of it

    The norm hides 1 − .414/.707 = 41 % of the drop.
    """
    model = _model("hidden_by_norm", d_model=2, d_vocab=2, n_ctx=2, norm="rmsnorm")
    model.W_E[:] = torch.eye(2)
    attn: Any = model.blocks[0].attn
    attn.W_V[0, 1, 0], attn.W_O[0, 0, 1] = sqrt(2), 1.0
    model.W_U[:, 0] = sqrt(1 / 2)
    return Fixture(
        "F6",
        model,
        Tokens.of([[1, 0]]),
        Tokens.of([[0, 0]]),
        nodes=as_frame([{"site": "attn.hook_z", "layer": 0, "pos": 1, "head": 0}]),
        exact=(1 - sqrt(2),),
        first_order=(0.0,),
        frozen=(sqrt(1 / 2) - sqrt(2),),
    )


FIXTURES: Mapping[str, Callable[[], Fixture]] = MappingProxyType(
    {f"F1 s={gap:g}": partial(saturated_attention, gap) for gap in (1.0, 3.0, 10.0, 20.0)}
    | {
        "F2": cancellation,
        "F3": or_gate,
        "F4": stationary_kl,
        "F5": illusory_direction,
        "F6": hidden_by_norm,
    }
)
"""Every fixture by name, F1 at four gaps."""


def _model(
    name: str,
    *,
    d_model: int,
    d_vocab: int,
    n_layers: int = 1,
    n_ctx: int = 1,
    d_mlp: int = 0,
    norm: Any = "none",
) -> HookedTransformer:
    """Zero weights, no positions, one head of width 1 whose scores are q·k."""
    cfg = TransformerConfig(
        n_layers=n_layers, d_model=d_model, n_heads=1, d_head=1, d_vocab=d_vocab, d_mlp=d_mlp,
        n_ctx=n_ctx, norm=norm, norm_eps=0.0, norm_affine=False, final_norm=norm != "none",
        positions="none", attn_scale=1.0, qkv_bias=False, attn_out_bias=False, activation="relu",
    )  # fmt: skip
    return blank(cfg, name)


def _two_keys(
    name: str, gap: float, written: float, direct: float, asks: tuple[float, float]
) -> HookedTransformer:
    """y = written · tanh(gap · ask / 2) + direct · ask; behind token 0, token 1 or 2 asks."""
    ask, key, value, out = range(4)
    model = _model(name, d_model=4, d_vocab=3, n_ctx=2)
    model.W_E[:, key] = torch.tensor([0.5, -0.5, -0.5])
    model.W_E[:, value] = torch.tensor([1.0, -1.0, -1.0])
    model.W_E[1:, ask] = torch.tensor(asks)
    attn: Any = model.blocks[0].attn
    attn.W_Q[0, ask, 0], attn.W_O[0, 0, out] = gap, written
    attn.W_K[0, key, 0] = attn.W_V[0, value, 0] = 1.0
    model.W_U[out, 0], model.W_U[ask, 0] = 1.0, direct
    return model


def _one_node(
    name: str,
    model: HookedTransformer,
    *,
    ids: tuple[list[int], list[int]],
    node: dict[str, Any],
    way: tuple[float, float],
    y: Callable[[float], float],
    slope: Callable[[float], float],
    measure: Callable[[Tensor], Tensor] = first_logit,
) -> Fixture:
    """A fixture whose one node holds one number, which goes some way; y and its slope there."""
    start, end = way
    clean, corrupted = (Tokens.of([row]) for row in ids)

    def integral(steps: int) -> float:
        middles = (start + (i + 0.5) / steps * (end - start) for i in range(steps))
        return (end - start) * sum(map(slope, middles)) / steps

    return Fixture(
        name,
        model,
        clean,
        corrupted,
        nodes=as_frame([node]),
        exact=(y(end) - y(start),),
        first_order=((end - start) * slope(start),),
        integrated={steps: integral(steps) for steps in STEPS},
        measure=measure,
    )
