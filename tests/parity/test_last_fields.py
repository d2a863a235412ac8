"""Fields that no family's file says in full: MXFP4, NTK-aware bases, computed sinusoids."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings

import interp
from interp.core.config import RotaryScaling
from interp.loading import info
from interp.loading.assemble import WeightsError
from interp.model.embed import sinusoids
from tests.parity.families import FAMILIES
from tests.parity.inputs import batch
from tests.parity.reference import relative_error
from tests.strategies import small_config


@pytest.fixture
def packed(pair, tmp_path):
    """gpt_oss as it is published: experts' maps in MXFP4, here 32 neurons wide; and the maps as
    transformers unpacks them."""
    family = FAMILIES["gpt_oss"]
    values = {**family.values, "intermediate_size": 32}
    config = transformers.GptOssConfig(**values)
    config._experts_implementation = "eager"
    model = transformers.GptOssForCausalLM(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.requires_grad_(False).normal_(0, 0.3, generator=generator)
    tensors, n = {}, config.num_local_experts
    for layer in range(config.num_hidden_layers):
        experts = model.model.layers[layer].mlp.experts
        for name, rows in (("gate_up_proj", 64), ("down_proj", 32)):
            blocks = torch.randint(0, 256, (n, rows, 1, 16), generator=generator)
            scales = torch.randint(122, 128, (n, rows, 1), generator=generator)
            blocks, scales = blocks.to(torch.uint8), scales.to(torch.uint8)
            key = f"model.layers.{layer}.mlp.experts.{name}"
            tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
            values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float64)
            getattr(experts, name).copy_(values)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    ours = {key: x for key, x in stored.items() if not key.endswith(("up_proj", "down_proj"))}
    save_file(ours | tensors, tmp_path / "model.safetensors")
    said = json.loads((tmp_path / "config.json").read_text())
    said["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(said))
    return model, tmp_path


def test_mxfp4_is_unpacked_as_transformers_does(packed) -> None:
    theirs, folder = packed
    ours, ids = interp.load(folder, dtype="float64"), batch().ids
    for layer, block in enumerate(ours.blocks):
        experts = theirs.model.layers[layer].mlp.experts
        maps = experts.gate_up_proj.unflatten(-1, (-1, 2))  # [expert, d_model, neuron, 2]
        assert torch.equal(block.mlp.W_gate, maps[..., 0].transpose(0, 1).flatten(1))
        assert torch.equal(block.mlp.W_in, maps[..., 1].transpose(0, 1).flatten(1))
        assert torch.equal(block.mlp.W_out, experts.down_proj.flatten(0, 1))
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        assert relative_error(ours(ids), theirs(input_ids=ids).logits) < 1e-5
    assert interp.load(folder, dtype="bfloat16").W_in.dtype == torch.bfloat16
    assert info.info(folder).cfg == ours.cfg


def test_mxfp4_without_its_scales_is_refused(packed) -> None:
    _, folder = packed
    stored = load_file(folder / "model.safetensors")
    del stored["model.layers.1.mlp.experts.down_proj_scales"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: layers.1.mlp.experts.down_proj_scales"):
        interp.load(folder)
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"]["quant_method"] = "awq"
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="quantization_config"):
        interp.load(folder)


def test_a_file_with_a_wrong_shape_names_the_expert(pair, tmp_path) -> None:
    folder = shutil.copytree(pair("mixtral").folder, tmp_path / "bad")
    stored = load_file(folder / "model.safetensors")
    key = "model.layers.2.block_sparse_moe.experts.3.w2.weight"
    stored[key] = stored[key].T.contiguous()
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"experts\.3\.w2\.weight \[16, 32\], expected \[32, 16"):
        interp.load(folder)


def test_ntk_is_the_librarys_dynamic_scaling_at_one_length(pair) -> None:
    """At length L, "dynamic" raises the base as our static factor f L / n_ctx − (f − 1) does."""
    this, ids = pair("llama"), batch().ids
    config, length = this.reference.config.to_dict(), ids.shape[1]
    rope = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 100.0}
    config |= {"max_position_embeddings": 8, "rope_parameters": rope}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).double().eval()
    theirs.load_state_dict(this.reference.state_dict())
    factor = 3.0 * length / 8 - 2.0

    def ours(scaling: RotaryScaling | None) -> torch.Tensor:
        cfg = this.ours.cfg.replace(rotary_base=100.0, rotary_scaling=scaling)
        model = interp.HookedTransformer(cfg, dtype=torch.float64)
        model.load_state_dict(this.ours.state_dict())
        return model(ids)

    with torch.no_grad():
        reference = theirs(input_ids=ids).logits
    assert relative_error(ours(RotaryScaling(kind="ntk", factor=factor)), reference) < 1e-5
    assert relative_error(ours(RotaryScaling(kind="ntk", factor=factor + 1)), reference) > 1e-3
    assert relative_error(ours(None), reference) > 1e-3


def test_sinusoids_are_those_of_distilbert() -> None:
    table = torch.empty(48, 24, dtype=torch.float64)
    create_sinusoidal_embeddings(48, 24, table)
    ours = sinusoids(torch.arange(48)[None], 24, torch.float64)[0]
    assert (ours - table).abs().max() < 1e-7  # which the library rounds to float32


def test_sinusoids_are_computed_as_a_learned_table_is_read() -> None:
    cfg = small_config(positions="sinusoidal", position_offset=2)
    model = interp.HookedTransformer(cfg, dtype=torch.float64)
    learned = interp.HookedTransformer(cfg.replace(positions="learned"), dtype=torch.float64)
    table = sinusoids(torch.arange(cfg.n_ctx + 2)[None], cfg.d_model, torch.float64)[0]
    learned.load_state_dict({**model.state_dict(), "embed.W_pos": table})
    assert torch.allclose(model([[1, 2, 3]]), learned([[1, 2, 3]]), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="positions='sinusoidal': this model has no W_pos"):
        _ = model.W_pos
