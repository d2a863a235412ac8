"""Where a rerun enters a stack: the last stage at or before a site, for every family and config."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from interp.core.config import TransformerConfig
from interp.core.sites import ENCODER, Site, SiteTable
from interp.loading import reference
from interp.sweeps.rerun.stages import CROSS, CROSS_Z, MID, POST, PRE, Entry, Z, entries

from .strategies import configs, pair_configs, small_config


def by_prefix(site: Site, cfg: TransformerConfig) -> Entry:
    """The same said by what the names of sites begin with: a second route to every entry."""
    name, post_norm = site.inner_name, cfg.norm_position == "post"
    if site.layer is None:
        early = name.startswith(("hook_embed", "hook_pos", "hook_token", "embed_ln"))
        return Entry(-1 if early else cfg.n_layers, 0)
    if cfg.parallel:
        return Entry(site.layer, PRE)
    crosses = cfg.encoder is not None
    if name.startswith(("mlp.hook_post", "ln2_post", "hook_mlp_out", "hook_resid_post")) or (
        post_norm and name.startswith("ln2")
    ):
        stage = MID if cfg.n_experts else POST if cfg.d_mlp else CROSS_Z if crosses else Z
        return Entry(site.layer, stage)
    read_by_mlp = "hook_resid_mid_cross" if crosses else "hook_resid_mid"
    if name.startswith(("ln2", "mlp.")) or name == read_by_mlp:
        return Entry(site.layer, MID)
    behind_cross_z = ("cross_attn.hook_z", "cross_attn.hook_result", "ln_cross_post")
    if name.startswith((*behind_cross_z, "hook_cross_attn_out")) or (
        post_norm and name.startswith("ln_cross.")
    ):
        return Entry(site.layer, CROSS_Z)
    if name.startswith(("hook_resid_mid", "ln_cross.", "cross_attn.")):
        return Entry(site.layer, CROSS)
    if name.startswith(("attn.hook_z", "attn.hook_result", "ln1_post", "hook_attn_out")) or (
        post_norm and name.startswith("ln1.")
    ):
        return Entry(site.layer, Z)
    return Entry(site.layer, PRE)


def check_entries(cfg: TransformerConfig) -> int:
    """Compare both rules at every site of both stacks; how many sites were compared."""
    compared = 0
    stacks = [(SiteTable(cfg), cfg)]
    if cfg.encoder is not None:
        stacks.append((SiteTable(cfg.encoder, ENCODER), cfg.encoder))
    for sites, stack in stacks:
        found = entries(sites, stack)
        assert list(found) == sites.names
        for site in sites:
            in_other = stack.encoder is not None and site.in_encoder
            expected = Entry(0, CROSS) if in_other else by_prefix(site, stack)
            assert found[site.name] == expected, site.name
            compared += not in_other
    return compared


def test_entries_of_every_family():
    compared = {}
    for name in reference.families():
        cfg = reference.reference_model(name).cfg
        compared[name] = check_entries(cfg)
    assert len(compared) >= 36
    assert sum(compared.values()) >= 2_000
    assert min(compared.values()) > 20


@settings(max_examples=100, deadline=None)
@given(cfg=configs())
def test_entries_of_any_config(cfg):
    check_entries(cfg)


@settings(max_examples=50, deadline=None)
@given(cfg=pair_configs())
def test_entries_of_any_pair_of_stacks(cfg):
    check_entries(cfg)


def test_entries_written_out():
    """Of a small model, by hand."""
    found = entries(SiteTable(cfg := small_config(n_layers=2)), cfg)
    stages = {name: at for name, at in found.items() if not name.startswith("blocks.0")}
    assert stages["hook_pos_embed"] == (-1, 0)
    assert stages["blocks.1.hook_q_input"] == stages["blocks.1.attn.hook_pattern"] == (1, PRE)
    assert stages["blocks.1.attn.hook_z"] == stages["blocks.1.hook_attn_out"] == (1, Z)
    assert stages["blocks.1.hook_resid_mid"] == stages["blocks.1.mlp.hook_pre"] == (1, MID)
    assert stages["blocks.1.mlp.hook_post"] == stages["blocks.1.hook_resid_post"] == (1, POST)
    assert stages["ln_final.hook_scale"] == stages["hook_logits"] == (2, 0)


@pytest.mark.parametrize(
    ("changes", "site", "stage"),
    [
        ({"parallel": True}, "mlp.hook_post", PRE),
        ({"parallel": True}, "hook_attn_out", PRE),
        ({"n_experts": 4, "experts_per_token": 2}, "hook_mlp_out", MID),
        ({"n_experts": 4, "experts_per_token": 2}, "mlp.hook_router", MID),
        ({"d_mlp": 0}, "hook_resid_post", Z),
        ({"norm_position": "post"}, "ln1.hook_scale", Z),
        ({"norm_position": "post"}, "ln2.hook_scale", POST),
        ({"norm_position": "both"}, "ln1_post.hook_scale", Z),
    ],
)
def test_entries_where_blocks_differ(changes, site, stage):
    cfg = small_config(**changes)
    assert entries(SiteTable(cfg), cfg)[f"blocks.1.{site}"] == (1, stage)
