"""Lenses and direct attribution on models whose truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyses._lens.direct import direct_sections, measure_direct
from analyses.logit_lens import Config, examine
from interp.core.chance import seeded
from interp.core.config import TransformerConfig
from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods.lens import fit_tuned_lens, logit_lens
from interp.report import Report
from interp.zoo import planted
from interp.zoo.planted.base import blank, orthogonal
from tests.truth.by_hand import SEEDS, build
from tests.vocabularies import word_level

pytestmark = pytest.mark.usefixtures("one_thread")


def affine(seed: int, layers: int = 2):
    """A model each of whose layers maps the stream by a known affine map: h ↦ h R + c.

    Its MLP is relu(x) − relu(−x) = x, followed by R − 1; there is no attention and no norm.
    """
    d, words = 12, 40
    cfg = TransformerConfig(
        n_layers=layers, d_model=d, n_heads=1, d_head=2, d_mlp=2 * d, d_vocab=words, n_ctx=8,
        norm="none", final_norm=False, positions="none", activation="relu", tied=False,
        qkv_bias=False, attn_out_bias=False,
    )  # fmt: skip
    model, generator = blank(cfg, "affine"), seeded(seed)
    one = torch.eye(d, dtype=torch.float64)
    model.W_E.normal_(0, 1, generator=generator)
    model.W_U.normal_(0, 1, generator=generator)
    maps = []
    for block in model.blocks:
        turn, shift = orthogonal(d, generator), torch.randn(d, generator=generator).double()
        block.mlp.W_in.copy_(torch.cat([one, -one], dim=1))
        block.mlp.W_out.copy_(torch.cat([turn - one, one - turn]))
        block.mlp.b_out.copy_(shift)
        maps.append((turn, shift))
    return model, maps


@pytest.mark.parametrize("seed", SEEDS)
def test_the_tuned_lens_recovers_what_later_layers_do(seed):
    model, maps = affine(seed)
    tokens = Tokens(torch.randint(40, (60, 8), generator=seeded(seed)))
    lens = fit_tuned_lens(model, tokens, steps=0, l2=1e-9, progress=False)
    table = lens.table.set_index("layer")
    assert (table.loc[[0, 1], "plain"] > 1).all()
    assert (table["tuned"] < 1e-6).all()
    whole, shift = torch.eye(12).double(), torch.zeros(12).double()
    for layer in (1, 0):
        turn, own = maps[layer]
        whole, shift = turn @ whole, own @ whole + shift
        A, b = lens.translators[layer]
        assert torch.allclose(A, (whole - torch.eye(12)).T, atol=1e-5)
        assert torch.allclose(b, shift, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_training_comes_near_where_the_regression_does_not(seed):
    model, _ = affine(seed, layers=1)
    tokens = Tokens(torch.randint(40, (60, 8), generator=seeded(seed)))
    # So large a penalty makes the regression useless; what is found then, the descent finds.
    poor = fit_tuned_lens(model, tokens, steps=0, l2=3.0, progress=False).table["tuned"][0]
    lens = fit_tuned_lens(model, tokens, steps=300, lr=0.02, l2=1e-9, progress=False)
    assert lens.table["tuned"][0] < 0.01 * poor


@pytest.mark.parametrize("seed", SEEDS)
def test_where_no_affine_map_leads_none_is_found(seed):
    """The stream of every word becomes that of another: 40 words in 12 dimensions, at random."""
    model, _ = affine(seed, layers=1)
    for parameter in model.blocks[0].mlp.parameters():
        parameter.zero_()
    order = torch.randperm(40, generator=seeded(seed))

    def shuffled(stream, hook):
        return model.W_E[order[torch.cdist(stream, model.W_E[None]).argmin(-1)]]

    view = model.with_hooks([(("resid_post", 0), shuffled)])
    tokens = Tokens(torch.randint(40, (60, 8), generator=seeded(seed)))
    lens = fit_tuned_lens(view, tokens, steps=50, progress=False)
    assert lens.table["tuned"][0] > 1 and lens.table["tuned"][1] == 0


def pairs_of(known, n: int = 40) -> Pairs:
    """The prompts of a planted model, with a word for every token."""
    model, prompts = known.model, known.prompts(n)
    words = [f"w{i}" for i in range(model.cfg.d_vocab)]
    model.tokenizer = Tokenizer(word_level(model.cfg.d_vocab), {}, "planted")

    def named(tokens):
        strings = [[words[i] for i in row] for row in tokens.ids.tolist()]
        return Tokens(tokens.ids, roles=tokens.roles, strings=strings, bos=True)

    clean, corrupted = named(prompts.clean), named(prompts.corrupted)
    return Pairs(known.name, clean, corrupted, prompts.answer, prompts.wrong)


def tables_of(report: Report) -> dict[str, pd.DataFrame]:
    items = [getattr(item, "table", item) for part in report.sections for item in part.items]
    return {table.name: table.frame for table in items}


def divided(known) -> tuple[Report, dict[str, pd.DataFrame]]:
    """The sections on direct attribution, and their tables."""
    report = Report("T", "Q?")
    model, pairs, config = known.model, pairs_of(known), Config(top=5)
    direct = measure_direct(report, model, pairs, [0, 1], config)
    assert direct is not None
    direct_sections(report, model, pairs, [0, 1], direct, config, 1e-9)
    return report, tables_of(report)


def heads_of(tables) -> pd.DataFrame:
    parts = tables["direct-parts"]
    return parts[(parts["component"] == "attn") & (parts["head"] >= 0)].set_index(["layer", "head"])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_report_names_movers_and_the_negative_head(seed):
    known = build("copy_suppression", seed)
    report, tables = divided(known)
    heads = heads_of(tables)
    (mover,), (negative,) = known.truth.roles["mover"], known.truth.roles["negative"]
    assert heads["value"].idxmax() == mover and heads["value"].idxmin() == negative
    assert heads.loc[mover, "value"] == pytest.approx(8, abs=0.1)
    assert heads.loc[negative, "value"] == pytest.approx(-4, abs=0.1)
    others = heads.drop([mover, negative])
    assert others["value"].abs().max() < 0.1
    (told,) = [one for one in report.findings if "Written directly" in one]
    towards, against = told.split("; against it ")
    assert f"L{mover[0]} H{mover[1]} (8.00" in towards
    assert f"L{negative[0]} H{negative[1]} (−" in against
    # Without the mover its negative head sleeps; without that head the answer gains.
    removed = tables["direct-and-total-by-head"].set_index(["layer", "head"])
    assert removed.loc[mover, "total"] == pytest.approx(4, abs=0.2)
    assert removed.loc[negative, "total"] == pytest.approx(-4, abs=0.2)
    assert heads.loc[mover, "random_pair"] < 0.5 * heads.loc[mover, "value"]


@pytest.mark.parametrize("seed", SEEDS)
def test_sleeping_backups_write_nothing_and_direct_is_not_total(seed):
    known = build("backup_movers", seed)
    _, tables = divided(known)
    heads, ((mover,), backups) = heads_of(tables), known.truth.roles.values()
    assert heads["value"].idxmax() == mover
    assert heads.loc[list(backups), "value"].abs().max() < 0.01
    removed = tables["direct-and-total-by-head"].set_index(["layer", "head"])
    assert removed.loc[mover, "direct"] == pytest.approx(8, abs=0.1)
    assert removed.loc[mover, "total"] == pytest.approx(0.8, abs=0.1)  # the backups write .9 of it


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("turned", [False, True])
def test_the_answer_arrives_behind_the_induction_head(seed, turned):
    known = build("induction", seed)
    known = planted.rotated(known, seed) if turned else known
    prompts = known.prompts(30)
    frame = logit_lens(known.model, prompts.clean, prompts.answer, pos="end")
    first = (frame["rank"] == 1).groupby(frame["layer"]).mean()
    assert first[2] == 1
    assert (first[[0, 1]] < 0.25).all()  # 1 in 25 by chance
    assert (frame[frame["layer"] < 2]["prob"] < 0.1).all()


def test_the_report_says_when_it_arrives():
    known, report = build("induction", 0), Report("T", "Q?")
    config = Config(prompts=Path("planted.csv"), tuned=False, top=5)
    examine(report, known.model, pairs_of(known), config)
    tables = tables_of(report)
    arrived = tables["arrival"]
    plain = arrived[arrived["lens"] == "plain"]
    assert (plain[["first_top", "top_for_good"]] == 2).mean(axis=None) > 0.8
    turned = arrived[arrived["lens"] == "turned"]
    assert turned["first_top"].notna().mean() < 0.2
    said = "first the top token at layer 2 (median; quartiles 2 to 2) and stays so"
    assert any(said in finding for finding in report.findings)
    assert "only at the output" in report.headline
    values = tables["direct-parts"]["value"]
    assert values.sum() == pytest.approx(tables["baseline"]["logit_diff"][0], abs=1e-6)
    assert np.isclose(values.max(), 8, atol=0.1)
