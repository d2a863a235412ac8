"""Behind the bridge: sites that are offered mean what they mean here, and all else is left out."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

import interp
from interp import edits, metrics
from interp.core.config import ConfigError
from interp.core.sites import UnknownSite
from interp.core.tap import EditError
from interp.core.tokens import Tokens
from interp.loading import bridge
from interp.loading.bridge.weights import QuantisedWeights
from interp.loading.families import FAMILIES
from tests.parity.reference import relative_error

V = 97
SIZES = {
    "vocab_size": V,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
}
GPT = {"vocab_size": V, "n_positions": 48, "n_embd": 24, "n_layer": 3, "n_head": 3}
BERT = {**SIZES, "num_attention_heads": 3, "pad_token_id": 0}
del BERT["num_key_value_heads"]
OTHERS = {
    "Starcoder2ForCausalLM": ("Starcoder2Config", SIZES),
    "GPTBigCodeForCausalLM": ("GPTBigCodeConfig", GPT),
    "Glm4ForCausalLM": ("Glm4Config", {**SIZES, "head_dim": 6, "pad_token_id": 0}),
    "CohereForCausalLM": ("CohereConfig", SIZES),
    "MambaForCausalLM": (
        "MambaConfig",
        {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 3},
    ),
}
YARDSTICKS = {
    "GPT2LMHeadModel": ("GPT2Config", GPT),
    "LlamaForCausalLM": ("LlamaConfig", SIZES),
    "BertForMaskedLM": ("BertConfig", BERT),
}
IDS = torch.randint(5, V, (2, 9), generator=torch.Generator().manual_seed(1))


def made(name: str) -> transformers.PreTrainedModel:
    """A random model with weights ten times the usual, float32."""
    config, values = {**OTHERS, **YARDSTICKS}[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**values)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and bool((parameter == 1).all())
        parameter.copy_(1 + 0.3 * noise if gain else 0.2 * noise)
    return model


@pytest.fixture(scope="module")
def bridged():
    """Makes each bridged model once."""
    cache: dict[str, bridge.BridgedTransformer] = {}

    def get(name: str) -> bridge.BridgedTransformer:
        if name not in cache:
            cache[name] = bridge.load(made(name))
        return cache[name]

    return get


@pytest.fixture(scope="module")
def starcoder(bridged):
    return bridged("Starcoder2ForCausalLM")


def offered(model) -> set[str]:
    return {site.local_name for site in model.sites}


CORE = {"hook_resid_pre", "hook_resid_post", "hook_embed", "hook_logits"}
ATTENTION = {
    "hook_attn_out",
    *(f"attn.hook_{n}" for n in ("q", "k", "v", "pattern", "z", "result")),
}
MLP = {"hook_mlp_out", "mlp.hook_pre", "mlp.hook_post"}


@pytest.mark.parametrize("name", OTHERS)
def test_opens_what_is_not_native(name: str, bridged) -> None:
    model, reference = bridged(name), made(name)
    assert model.cfg.architecture == name
    assert reference.config.model_type not in FAMILIES
    assert relative_error(model(IDS), reference(input_ids=IDS).logits) <= 1e-5
    wanted = CORE if name.startswith("Mamba") else CORE | ATTENTION | MLP
    assert wanted <= offered(model)
    assert not set(model.sites.names) & set(model.left_out)
    assert all(model.left_out.values())


@pytest.mark.parametrize("name", YARDSTICKS)
def test_every_site_that_is_offered_equals_ours(name: str, bridged, tmp_path: Path) -> None:
    made(name).save_pretrained(tmp_path)
    native, model = interp.load(tmp_path, device="cpu"), bridged(name)
    names = [n for n in model.sites.names if n in native.sites]
    assert set(model.sites.names) - set(names) <= {
        "ln_final.hook_scale",  # TransformerLens counts the norm of BERT's masked-LM head as this
        "ln_final.hook_normalized",
    }
    assert len(names) >= 30
    _, ours = native.run_with_cache(IDS, names)
    _, theirs = model.run_with_cache(IDS, names)
    errors = {site: relative_error(theirs[site], x) for site, x in ours.items()}
    assert {site: error for site, error in errors.items() if not error <= 1e-5} == {}


@pytest.mark.parametrize("name", YARDSTICKS)
def test_every_edit_does_what_ours_does(name: str, bridged, tmp_path: Path) -> None:
    made(name).save_pretrained(tmp_path)
    native, model = interp.load(tmp_path, device="cpu"), bridged(name)
    plain = native(IDS)
    for site in model.sites:
        if site.layer != 1 or site.name not in native.sites:
            continue

        def half(x: Tensor, hook: object) -> Tensor:
            return x * torch.linspace(0.5, 1.5, x.shape[-1]) if x.shape[-1] > 1 else x * 1.5

        hooks = [(site.name, half)]
        ours, theirs = native.run_with_hooks(IDS, hooks), model.run_with_hooks(IDS, hooks)
        assert relative_error(theirs, ours) <= 1e-4, site.name
        assert relative_error(theirs, plain) > 1e-4, site.name


def test_bert_is_wrong_in_the_library_and_left_out_here(bridged) -> None:
    model = bridged("BertForMaskedLM")
    for layer in range(3):
        for local in ("hook_resid_mid", "hook_attn_out"):
            assert f"blocks.{layer}.{local}" in model.left_out
    assert "does not hold" in model.left_out["blocks.1.hook_resid_mid"]
    assert "hook_embed" in model.left_out  # it is behind the norm there
    with pytest.raises(UnknownSite, match=r"resid_mid' is left out \(.*does not hold"):
        model.run_with_cache(IDS, "resid_mid")


def test_a_site_that_is_read_but_not_acted_on_is_left_out(starcoder) -> None:
    assert "an edit of it does not act" in starcoder.left_out["blocks.0.hook_resid_mid"]
    assert "mask" in starcoder.left_out["blocks.0.attn.hook_attn_scores"]


@pytest.mark.parametrize("broken", ["attn.hook_z", "hook_mlp_out", "attn.hook_rot_k"])
def test_a_hook_point_that_fires_on_a_copy_is_found_out(broken: str, monkeypatch) -> None:
    """The bug class itself: the hook point is called, and what it returns is dropped."""
    from transformer_lens.hook_points import HookPoint

    model = made("LlamaForCausalLM")
    real = HookPoint.__call__

    def dead(self, x, *args, **kwargs):
        out = real(self, x, *args, **kwargs)
        return x if getattr(self, "_dead", False) else out

    built = bridge.BridgedTransformer.__init__

    def init(self, tl, *args):
        tl.hook_dict[f"blocks.1.{broken}"]._dead = True
        built(self, tl, *args)

    monkeypatch.setattr(HookPoint, "__call__", dead)
    monkeypatch.setattr(bridge.BridgedTransformer, "__init__", init)
    found = bridge.load(model)
    assert f"blocks.1.{broken}" in found.left_out
    assert f"blocks.0.{broken}" in found.sites


def test_identities_hold_on_the_users_tokens(starcoder) -> None:
    frame = starcoder.check_identities(IDS)
    assert list(frame.columns) == ["layer", "identity", "error", "tolerance", "holds"]
    assert frame["holds"].all()
    said = " ".join(frame["identity"])
    for part in ("pattern · v = z", "Σ_k pattern = 1", "resid_post = next resid_pre", "z W_O"):
        assert part in said


class Halt(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Halt])
def test_nothing_stays_behind_after_an_exception(error: type, starcoder) -> None:
    def fails(x: Tensor, hook: object) -> None:
        raise error

    before = starcoder(IDS)
    for site in ("attn.hook_result", "hook_mlp_out", "hook_q_input"):
        with pytest.raises(error):
            starcoder.run_with_hooks(IDS, [((site, 1), fails)])
        assert torch.equal(starcoder(IDS), before)
    assert not any(point.has_hooks() for point in starcoder.bridge.hook_dict.values())


def test_nothing_stays_behind_after_reads_views_and_abandoned_generators(starcoder) -> None:
    before = starcoder(IDS)
    starcoder.run_with_cache(IDS, starcoder.sites.names)
    view = starcoder.with_hooks([("z", lambda x, hook: x * 0)])
    stream = view.stream(IDS, 4)
    next(stream)
    assert not any(point.has_hooks() for point in starcoder.bridge.hook_dict.values())
    stream.close()
    assert torch.equal(starcoder(IDS), before)
    assert relative_error(view(IDS), before) > 1e-3
    with pytest.raises(AttributeError, match="immutable"):
        view.name = "other"


def test_edits_land_or_raise(starcoder) -> None:
    with pytest.raises(UnknownSite, match="did you mean"):
        starcoder.run_with_hooks(IDS, [("hook_resid_prr", lambda x, hook: x)])
    with pytest.raises(EditError, match="returned shape"):
        starcoder.run_with_hooks(IDS, [(("z", 0), lambda x, hook: x[:1])])
    with pytest.raises(UnknownSite, match="has no layer 2"):
        starcoder.run_with_hooks(IDS, [(("z", 2), lambda x, hook: x)], stop_at_layer=1)
    seen = []
    starcoder.run_with_hooks(IDS, [(("z", 1), lambda x, hook: seen.append(hook))])
    assert [tuple(hook) for hook in seen] == [("blocks.1.attn.hook_z", 1)]


def test_an_edit_gets_its_own_copy(starcoder) -> None:
    _, clean = starcoder.run_with_cache(IDS, "resid_post")
    kept = {name: x.clone() for name, x in clean.items()}
    out = starcoder.run_with_hooks(IDS, [(("resid_post", 0), lambda x, hook: x.zero_())])
    assert relative_error(out, starcoder(IDS)) > 1e-3
    assert all(torch.equal(clean[name], x) for name, x in kept.items())


def test_cache_options(starcoder) -> None:
    _, cache = starcoder.run_with_cache(IDS, "resid_post", pos=-1)
    _, whole = starcoder.run_with_cache(IDS, "resid_post")
    assert torch.equal(cache["resid_post", 1], whole["resid_post", 1][:, -1:])
    for stop in (0, 1, 3):
        name = ("resid_pre", stop) if stop < 3 else ("resid_post", 2)
        _, full = starcoder.run_with_cache(IDS, name)
        assert torch.equal(starcoder(IDS, stop_at_layer=stop), full[name])
    logits, graph = starcoder.run_with_cache(IDS, ["z", "resid_pre"], grad=True)
    grads = torch.autograd.grad(logits[:, -1, 3].sum(), list(graph.values()))
    assert all(bool(g.abs().max() > 0) for g in grads)


def test_generation_runs_hooks_in_every_step(starcoder, bridged) -> None:
    made_up = starcoder.generate(IDS, 4, names_filter="z")
    ids = IDS
    for _ in range(4):
        ids = torch.cat([ids, starcoder(ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(made_up.tokens.ids, ids)
    assert [cache["z", 0].shape[1] for cache in made_up.caches] == [9, 1, 1, 1]
    steps = []
    starcoder.with_hooks([(("z", 0), lambda x, hook: steps.append(x.shape[1]))]).generate(IDS, 3)
    assert steps == [9, 1, 1]
    with pytest.raises(ValueError, match="causal=False"):
        bridged("BertForMaskedLM").generate(IDS, 2)
    with pytest.raises(ValueError, match="key-value cache of MambaForCausalLM"):
        bridged("MambaForCausalLM").generate(IDS, 2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_the_real_tokens_alone(side: str, starcoder) -> None:
    assert starcoder.padding[side]
    rows = [IDS[0].tolist(), IDS[1, :5].tolist()]
    tokens = Tokens.from_rows(rows, side=side)
    out = starcoder(tokens)
    assert relative_error(out[1][tokens.mask[1]], starcoder(IDS[1:, :5])[0]) <= 1e-5


def test_padding_that_the_library_does_not_mask_is_refused(starcoder) -> None:
    view = starcoder.with_hooks([])
    view.__dict__["padding"] = {"left": False, "right": True}
    tokens = Tokens.from_rows([[5, 6, 7], [5, 6]], side="left")
    with pytest.raises(ValueError, match="padding on the left changes what"):
        view(tokens)


def test_sweeps_run_naive_and_say_so(starcoder, tmp_path: Path) -> None:
    nodes = interp.nodes(starcoder, "z", by=("layer", "head"))
    metric = metrics.logit_diff(torch.tensor([7, 8]), torch.tensor([9, 10]))
    told = {"progress": False, "edit": edits.zero(), "metric": metric}
    frame = interp.sweep(starcoder, IDS, nodes, journal=tmp_path / "j", **told)
    assert frame.attrs["engine"] == "naive"
    assert "behind the bridge" in frame.attrs["why"]
    again = interp.sweep(starcoder, IDS, nodes, journal=tmp_path / "j", **told)
    assert again.equals(frame)

    def silence(x: Tensor, hook: object) -> Tensor:
        x[:, :, 2] = 0
        return x

    by_hand = starcoder.run_with_hooks(IDS, [(("z", 1), silence)])[:, -1]
    value = (by_hand[[0, 1], [7, 8]] - by_hand[[0, 1], [9, 10]]).mean()
    row = frame[(frame["layer"] == 1) & (frame["head"] == 2)]
    assert float(row["value"].iloc[0]) == pytest.approx(float(value), rel=1e-5)
    with pytest.raises(ValueError, match=r"engine='rerun' needs.*behind the bridge"):
        interp.sweep(starcoder, IDS, nodes, engine="rerun", **told)
    cost = interp.explain(starcoder, IDS, nodes, edits.zero(), metric)
    assert cost["engine"] == "naive" and "behind the bridge" in cost["why"]
    ablated = interp.ablate(starcoder, IDS, "mlp_out", by=("layer",), metric=metric, progress=False)
    assert ablated.attrs["engine"] == "naive"


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_weight_views_have_our_shapes_and_numbers(name: str, bridged, tmp_path: Path) -> None:
    made(name).save_pretrained(tmp_path)
    native, model = interp.load(tmp_path, device="cpu"), bridged(name)
    assert model.num_params() == native.num_params()
    gated = name.startswith("Llama")
    maps = ["W_E", "W_U", "W_O", "W_in", "W_out", "b_in", "b_out", *(["W_gate"] if gated else [])]
    if gated:  # GPT-2's q, k and v are one map there
        maps += ["W_Q", "W_K", "W_V", "b_Q"]
    for weight in maps:
        assert torch.equal(getattr(model, weight), getattr(native, weight)), weight


class Packed(nn.Module):
    """A linear map as bitsandbytes stores it: four-bit codes, two to a byte."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        codes = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight.quant_state = object()
        self.dense, self.bias = [linear.weight.detach().clone()], None
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.dense[0].T


def test_a_quantised_weight_never_passes_for_a_matrix() -> None:
    model = made("LlamaForCausalLM")
    plain = bridge.load(made("LlamaForCausalLM"))
    for layer in model.model.layers:
        layer.self_attn.q_proj = Packed(layer.self_attn.q_proj)
        layer.mlp.down_proj = Packed(layer.mlp.down_proj)
    packed = bridge.load(model)
    assert relative_error(packed(IDS), plain(IDS)) <= 1e-5
    lost = set(plain.sites.names) - set(packed.sites.names)
    assert all(name in packed.left_out and name.endswith("_input") for name in lost)
    for view in (lambda: packed.W_Q, lambda: packed.blocks[0].attn.W_Q, lambda: packed.W_out):
        with pytest.raises(QuantisedWeights, match=r"stored quantised \(Packed, torch.uint8"):
            view()
    assert torch.equal(packed.W_V, plain.W_V)


def test_quantisation_needs_cuda_and_bitsandbytes(tmp_path: Path, monkeypatch) -> None:
    made("LlamaForCausalLM").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="quantization='int4': expected 'int8', 'nf4'"):
        bridge.load(tmp_path, quantization="int4")
    with pytest.raises(ValueError, match=r"need CUDA .* device is 'cpu'"):
        bridge.load(tmp_path, device="cpu", quantization="nf4")
    with pytest.raises(ValueError, match="a model that you made keeps its own"):
        bridge.load(made("LlamaForCausalLM"), quantization="nf4")
    monkeypatch.setattr(bridge, "as_device", torch.device)  # as if CUDA were here
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"pip install .interp\[quantised\]"):
        bridge.load(tmp_path, device="cuda", quantization="int8")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_bitsandbytes_models_open(kind: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("bitsandbytes")
    config = transformers.LlamaConfig(**{**SIZES, "hidden_size": 128, "intermediate_size": 256})
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = bridge.load(tmp_path, device="cuda", quantization=kind)
    assert {"hook_resid_pre", "attn.hook_z", "mlp.hook_post"} <= offered(model)
    with pytest.raises(QuantisedWeights, match="stored quantised"):
        model.W_Q  # noqa: B018


def write(folder: Path, **values: object) -> Path:
    file = folder / "config.json"
    held = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(held | values))
    return folder


def test_a_folder_opens_as_the_model_itself(tmp_path: Path, starcoder, caplog) -> None:
    made("Starcoder2ForCausalLM").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = bridge.load(tmp_path, device="cpu", dtype="float32")
    assert torch.equal(model(IDS), starcoder(IDS))
    assert model.source["kind"] == "folder" and model.name == tmp_path.name
    assert model.sites.names == starcoder.sites.names


def test_code_in_a_folder_is_refused(tmp_path: Path) -> None:
    made("Starcoder2ForCausalLM").save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    write(tmp_path, auto_map={"AutoModelForCausalLM": "evil.Evil"})
    with pytest.raises(ValueError, match="code in a model's folder is never run"):
        bridge.load(tmp_path, device="cpu")


def test_pickles_are_refused(tmp_path: Path) -> None:
    made("Starcoder2ForCausalLM").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle can run code"):
        bridge.load(tmp_path, device="cpu")


def test_load_names_the_bridge(tmp_path: Path) -> None:
    write(tmp_path, model_type="qwen22", architectures=["Qwen22ForCausalLM"])
    with pytest.raises(ConfigError, match=r"near it are qwen2.*interp\.loading\.bridge\.load"):
        interp.load(tmp_path)
    with pytest.raises(ConfigError, match=r"neither to interp nor to TransformerLens; near it are"):
        bridge.load(tmp_path, device="cpu")
    write(tmp_path, model_type="llama", quantization_config={"load_in_4bit": True})
    with pytest.raises(ConfigError, match=r"quantised.*interp\.loading\.bridge\.load"):
        interp.load(tmp_path)


def test_what_the_bridge_does_not_open() -> None:
    t5 = transformers.T5Config(d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=V)
    with pytest.raises(ValueError, match="encoder–decoder"):
        bridge.load(transformers.T5ForConditionalGeneration(t5))
    with pytest.raises(ConfigError, match=r"known neither to .*; near it are"):
        bridge.load(transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**SIZES)))
    with pytest.raises(ValueError, match="expected a name or a Hugging Face model"):
        bridge.load(3)


def test_verbs_that_need_the_inside_say_so(starcoder) -> None:
    for verb in (lambda: starcoder.folded(), lambda: starcoder.to_logits(torch.zeros(1, 1, 24))):
        with pytest.raises(ValueError, match="behind the bridge"):
            verb()
    with pytest.raises(ValueError, match="reads ids, not vectors"):
        starcoder(torch.zeros(1, 3, 24))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        starcoder(torch.tensor([[V]]))
    with pytest.raises(ValueError, match="n_ctx=48"):
        starcoder(torch.zeros(1, 49, dtype=torch.long))
    with pytest.raises(ValueError, match="no tokenizer"):
        starcoder("text")
