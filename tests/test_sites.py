"""Names of sites: full, short, pairs, filters; what is unknown says what is near."""

from __future__ import annotations

import numpy as np
import pytest

from interp.core.sites import SiteTable, UnknownSite

from .strategies import small_config
from .written_indices import READ_ALONE, REFUSED_ALONE

table = SiteTable(small_config())


@pytest.mark.parametrize(
    "name",
    [("z", 1), ("hook_z", 1), ("attn.hook_z", 1), ("attn.z", 1), "blocks.1.attn.hook_z"],
)
def test_short_forms_name_one_site(name):
    assert table[name].name == "blocks.1.attn.hook_z"


def test_a_layer_may_come_out_of_a_frame(unchecked):
    """A DataFrame holds numpy's integers, and ("z", frame.layer[0]) is how one goes on from it."""
    assert table[("z", np.int64(1))].name == "blocks.1.attn.hook_z"
    assert table.select([("z", np.int64(2))]) == ["blocks.2.attn.hook_z"]


@pytest.mark.parametrize("form", READ_ALONE)
def test_a_layer_of_a_pair_is_any_whole_number_counted_from_either_end(unchecked, form):
    value, meant = READ_ALONE[form]
    assert table["z", value].name == f"blocks.{meant % 3}.attn.hook_z"
    assert table.select(("z", value)) == [f"blocks.{meant % 3}.attn.hook_z"]


@pytest.mark.parametrize("form", [*REFUSED_ALONE, "text", "None", "list"])
def test_what_is_no_layer_is_no_pair(unchecked, form):
    value = {"text": "1", "None": None, "list": [1]} | REFUSED_ALONE
    for name in (("z", value[form]), [("z", value[form])]):
        with pytest.raises(UnknownSite):
            table.select(name)
    with pytest.raises(UnknownSite):
        table["z", value[form]]


def test_layers_outside_are_refused_with_the_range(unchecked):
    for layer in (3, -4):
        with pytest.raises(UnknownSite, match=f"no layer {layer}: it has layers 0 to 2"):
            table["z", layer]


def test_the_last_layer_is_that_of_the_stack():
    """Of the model, not of what a run meets, nor of the sites that a table holds."""
    pair = SiteTable(
        small_config(n_layers=2, encoder=small_config(n_layers=3, causal=False, head="none"))
    )
    assert pair.select(("attn.z", -1)) == [
        "encoder_blocks.2.attn.hook_z", "decoder_blocks.1.attn.hook_z",
    ]  # fmt: skip
    assert pair.select(("encoder_blocks.attn.z", -3)) == ["encoder_blocks.0.attn.hook_z"]
    stopped = table.before_layer(2)
    assert stopped["z", -2].name == "blocks.1.attn.hook_z"
    with pytest.raises(UnknownSite, match="no layer -1: it has layers 0 to 1"):
        stopped["z", -1]
    some = SiteTable.of([table["z", 1]], {})
    assert some["z", 1].name == "blocks.1.attn.hook_z"
    with pytest.raises(UnknownSite, match="does not know how many layers"):
        some["z", -1]


def test_a_list_with_nothing_in_it_does_not_mean_everything(unchecked):
    with pytest.raises(UnknownSite, match="None alone means them all"):
        table.select(["z", None])


def test_a_short_form_means_all_layers():
    assert table.select("resid_post") == [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    assert table.select([("z", 2), "hook_embed"]) == ["hook_embed", "blocks.2.attn.hook_z"]
    assert table.select(lambda name: name.endswith("hook_q"))[0] == "blocks.0.attn.hook_q"


def test_the_default_leaves_out_per_head_expansions():
    left_out = set(table.names) - set(table.select())
    assert {name.rpartition(".")[2] for name in left_out} == {
        "hook_result", "hook_q_input", "hook_k_input", "hook_v_input",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resid_pst", "did you mean 'resid_post'"),
        ("blocks.1.attn.hook_zz", "blocks.1.attn.hook_z"),
        (("z", 3), "no layer 3: it has layers 0 to 2"),
        (("hook_embed", 0), "it has no layer"),
        ([], "names no site"),
        (lambda name: False, "matches none of the"),
        (5, "not a site"),
    ],
)
def test_unknown_sites_raise(unchecked, name, message):
    filters = name if not isinstance(name, int) else [name]
    with pytest.raises(UnknownSite, match=message):
        table.select(filters)


def test_an_ambiguous_name_is_refused_where_one_site_is_meant():
    with pytest.raises(UnknownSite, match="names 3 sites"):
        table["z"]
    with pytest.raises(UnknownSite, match="names 2 sites"):
        table["scale", 0]


def test_architectures_have_their_own_sites():
    def locals_of(**changes):
        return {site.local_name for site in SiteTable(small_config(**changes))}

    assert "attn.hook_rot_q" in locals_of(positions="rotary") - locals_of()
    assert "hook_pos_embed" not in locals_of(positions="rotary")
    assert "mlp.hook_pre_linear" in locals_of(mlp_gated=True)
    assert "hook_resid_mid" not in locals_of(parallel=True)
    assert "mlp.hook_post" not in locals_of(d_mlp=0)
    assert "hook_logits" not in locals_of(head="none")
    assert "ln1_post.hook_scale" in locals_of(norm_position="both")
    assert "attn.q_norm.hook_scale" in locals_of(qk_norm="head")
    assert "embed_ln.hook_scale" in locals_of(embed_norm=True)
    assert "hook_token_type_embed" in locals_of(n_token_types=2)
