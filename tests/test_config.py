"""A config is a value that cannot contradict itself."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from interp.core.config import ConfigError, RotaryScaling, TransformerConfig

from .strategies import configs, small_config


@settings(max_examples=30)
@given(cfg=configs())
def test_a_config_survives_json(cfg):
    assert TransformerConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


def test_rotary_scaling_survives_json():
    cfg = small_config(
        positions="rotary", rotary_scaling=RotaryScaling(kind="yarn", factor=4.0, original_n_ctx=8)
    )
    assert TransformerConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"rotary_scaling": 7}, ["rotary_scaling=7"]),
        ({"rotary_layers": 5}, ["rotary_layers=5"]),
        ({"rotary_layers": (1, 2, 3)}, ["rotary_layers=(1, 2, 3)"]),
        ({"sliding_window": 4}, ["sliding_window=4"]),
        ({"n_layers": -1}, ["n_layers=-1", "[1, 512]"]),
        ({"n_layers": 10**12}, ["n_layers=1000000000000"]),
        ({"d_vocab": "many"}, ["d_vocab='many'"]),
        ({"d_model": True}, ["d_model=True"]),
        ({"d_model": 33}, ["d_model=33", "n_heads=4"]),
        ({"n_kv_heads": 3}, ["n_heads=4", "n_kv_heads=3"]),
        ({"norm": "batchnorm"}, ["norm='batchnorm'", "'rmsnorm'"]),
        ({"tied": "yes"}, ["tied='yes'"]),
        ({"norm_eps": float("nan")}, ["norm_eps=nan"]),
        ({"positions": "rotary", "rotary_dim": 5}, ["rotary_dim=5", "even"]),
        ({"positions": "rotary", "rotary_dim": 10}, ["rotary_dim=10", "d_head=8"]),
        ({"sliding_window": (4,)}, ["sliding_window", "1 entries", "n_layers=3"]),
        ({"sliding_window": (4, 0, None)}, ["sliding_window", "0"]),
        ({"parallel": True, "norm_position": "post"}, ["parallel", "norm_position"]),
        ({"parallel_shared_norm": True}, ["parallel_shared_norm", "parallel=True"]),
        ({"mlp_gated": True, "d_mlp": 0}, ["mlp_gated", "d_mlp=0"]),
        ({"head": "none", "tied": True}, ["head='none'", "tied"]),
        ({"norm": "none", "qk_norm": "head"}, ["norm='none'", "qk_norm"]),
        (
            {"rotary_scaling": RotaryScaling(kind="linear", factor=2.0)},
            ["rotary_scaling", "positions"],
        ),
        ({"rotary_base": 0.5, "positions": "rotary"}, ["rotary_base=0.5"]),
    ],
)
def test_contradictions_name_both_fields(unchecked, changes, parts):
    with pytest.raises(ConfigError) as error:
        small_config(**changes)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"kind": "dynamic", "factor": 2.0}, "kind='dynamic'"),
        ({"kind": "longrope", "factor": 2.0}, "kind='longrope' needs rotary_scaling.original_n"),
        (
            {"kind": "longrope", "factor": 2.0, "original_n_ctx": 8},
            "rotary_scaling.short_factors goes with kind='longrope'",
        ),
        ({"kind": "ntk", "factor": 2.0, "long_factors": (1.0,)}, "long_factors goes with kind"),
        (
            {"kind": "longrope", "factor": 2.0, "original_n_ctx": 8, "short_factors": (1.0, -1.0)},
            r"short_factors=\(1.0, -1.0\): expected numbers",
        ),
        ({"kind": "llama3", "factor": 8.0}, "original_n_ctx"),
        ({"kind": "linear", "factor": -1.0}, "factor=-1.0"),
        ({"kind": "linear", "factor": True}, "factor=True"),
        ({"kind": "yarn", "factor": 2.0, "original_n_ctx": -5}, "original_n_ctx=-5"),
        ({"kind": "yarn", "factor": 2.0, "original_n_ctx": 8, "beta_fast": "x"}, "beta_fast='x'"),
        (
            {"kind": "llama3", "factor": 8.0, "original_n_ctx": 8, "low_freq_factor": 5.0},
            "low_freq_factor=5.0 must be below",
        ),
    ],
)
def test_rotary_scaling_is_validated(unchecked, scaling, message):
    with pytest.raises(ConfigError, match=message):
        RotaryScaling(**scaling)


def test_unknown_fields_are_refused(unchecked):
    with pytest.raises(ConfigError, match="'n_head'; did you mean 'n_heads'"):
        TransformerConfig.from_dict({"n_head": 4})
    with pytest.raises(ConfigError, match="missing"):
        TransformerConfig.from_dict({"n_heads": 4})
