"""Configs that would take all time or memory, or choose code for transformers: refused, or without
effect, at once."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import interp
from interp.core.config import BOUNDS, ConfigError, TransformerConfig
from interp.core.files.untrusted import MAX_DEPTH, parse_json, refuse_code
from interp.core.sites import SiteTable
from interp.core.tokens import Tokens
from interp.loading import bridge, reference
from interp.loading.checkup import doctor
from interp.loading.theirs import OLDER, described_quantization, their_config
from tests.published import edit_json, published, tiny
from tests.strategies import random_model, small_config

# --- sizes ------------------------------------------------------------------------------------

SMALL = {"n_layers": 2, "d_model": 8, "n_heads": 2, "d_vocab": 16, "n_ctx": 16, "d_mlp": 16}
HUGE = {
    "layers": {"n_layers": 10_000},
    "many layers": {"n_layers": 200},
    "width": {"d_model": 1_000_000},
    "vocabulary": {"d_model": 100_000, "d_vocab": 10_000_000},
    "heads": {"d_model": 8 * 100_000, "n_heads": 100_000, "n_layers": 100},
    "head width": {"d_head": 100_000, "n_heads": 2_000},
    "context": {"n_ctx": 100_000_000, "d_model": 100_000},
    "neurons": {"d_mlp": 10_000_000, "d_model": 100_000},
    "experts": {"n_experts": 10_000, "d_mlp": 10_000, "experts_per_token": 2, "n_layers": 512},
    "most experts": {"n_experts": 10_000, "d_mlp": 10_000, "experts_per_token": 2, "n_layers": 5},
    "no number": {"n_layers": 10**4000},
    "alibi": {"n_heads": 100_000, "d_head": 8, "positions": "alibi", "n_layers": 100},
}
SECONDS = 2.0
"""Of this thread; a machine of 2026 needs a fifth of it."""


class Within:
    """At most SECONDS of computing time inside."""

    def __enter__(self) -> None:
        self.start = time.thread_time()

    def __exit__(self, *_: object) -> None:
        assert time.thread_time() - self.start < SECONDS


@pytest.mark.parametrize("changes", HUGE.values(), ids=HUGE)
def test_huge_sizes_are_refused_or_answered_at_once(changes: dict[str, Any], unchecked):
    with Within():
        try:
            cfg = TransformerConfig(**{**SMALL, **changes})
        except ConfigError as error:
            assert len(str(error)) < 300  # noqa: PT017  # some sizes are within the bounds
            return
    with Within():
        assert len(SiteTable(cfg)) < 15_000
        interp.num_params(cfg, by="component")
    if 4 * cfg.least_params > 1e12:  # more than any machine of a test has
        with (
            Within(),
            pytest.raises(ValueError, match=r"needs at least [\d,.]+ GB, and [\d,.]+ GB"),
        ):
            interp.HookedTransformer(cfg)


@pytest.mark.parametrize("changes", HUGE.values(), ids=HUGE)
def test_info_of_huge_sizes(changes: dict[str, Any], tmp_path: Path, unchecked):
    text = json.dumps({"model_type": "interp", "config": {**SMALL, **changes}})
    (tmp_path / "config.json").write_text(text)
    with Within():
        try:
            assert "Memory" in str(interp.info(tmp_path))
        except ValueError as error:
            assert str(error).startswith(str(tmp_path))  # noqa: PT017
    with Within(), pytest.raises(ValueError, match=r"config\.json|no weights|needs at least"):
        interp.load(tmp_path)


def test_what_fits_is_made(monkeypatch: pytest.MonkeyPatch):
    from interp.model import transformer

    cfg = TransformerConfig(**{**SMALL, "n_ctx": 40_000_000})
    exact = TransformerConfig(**SMALL)
    assert 0 < exact.least_params < interp.num_params(exact) < 1.5 * exact.least_params
    monkeypatch.setattr(transformer, "free_bytes", lambda device: 4 * cfg.least_params - 1)
    with pytest.raises(ValueError, match=r"n_ctx=40000000 needs at least 1\.3 GB"):
        interp.HookedTransformer(cfg)
    with torch.device("meta"):
        assert interp.HookedTransformer(cfg).cfg is cfg
    monkeypatch.setattr(transformer, "free_bytes", lambda device: None)
    with torch.device("meta"):
        transformer.check_memory(cfg, torch.device("cpu"))


def test_the_deepest_published_models_are_within_bounds():
    assert BOUNDS["n_layers"][1] >= 200
    TransformerConfig(**{**SMALL, "n_layers": 61, "n_experts": 384, "d_mlp": 768,
                         "experts_per_token": 8})  # fmt: skip


# --- JSON -------------------------------------------------------------------------------------

DEEP = ["[" * n + "]" * n for n in (MAX_DEPTH, 900, 100_000)]
FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"),
    *("special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tiny(tmp_path)
    tokenizer = '{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}'
    (path / "tokenizer.json").write_text(tokenizer)
    return path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("inner", [*DEEP, '{"a":' * 5000 + "1" + "}" * 5000], ids=len)
def test_deep_json_is_a_plain_error(folder: Path, name: str, inner: str):
    (folder / name).write_text('{"x": ' + inner + "}")
    with Within(), pytest.raises(ValueError, match=rf"{name}: .*(deep|not valid|recursion)"):
        interp.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_key_twice_is_a_plain_error(folder: Path, name: str):
    (folder / name).write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(ValueError, match=rf"{name}: .*the key 'b' stands there twice"):
        interp.load(folder)


def test_two_sizes_in_one_config(folder: Path):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("{", '{"n_layer": 99, ', 1))
    with pytest.raises(ValueError, match="the key 'n_layer' stands there twice"):
        interp.info(folder)


def test_a_tensor_twice(folder: Path):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    name = next(key for key in json.loads(header) if key != "__metadata__")
    again = json.dumps({name: json.loads(header)[name]})[1:-1]
    header = header[:-1] + b"," + again.encode() + b"}"
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    with pytest.raises(ValueError, match=f"not a complete safetensors file: .*'{name}' stands"):
        interp.load(folder)


def test_many_keys_of_which_the_last_stands_twice():
    keys = ", ".join(f'"{i}": 0' for i in range(200_000))
    with Within(), pytest.raises(ValueError, match="the key '199999' stands there twice"):
        parse_json(f'{{{keys}, "199999": 1}}'.encode(), "x")


# --- what transformers is handed --------------------------------------------------------------

PLACE = "evil/kernel"
ASKING = {
    "attn_implementation": PLACE,
    "_attn_implementation": PLACE,
    "_attn_implementation_internal": "evil/kernel:fn",
    "experts_implementation": PLACE,
    "_experts_implementation_internal": ["evil", "kernel"],
    "attn_implementation ": None,
    "auto_map": {"AutoModelForCausalLM": "evil.Evil"},
    "trust_remote_code": True,
    "custom_pipelines": {"x": {"impl": "evil.Evil"}},
    "custom_generate": PLACE,
    "use_kernels": True,
    "kernel_config": {"RMSNorm": "evil/kernel"},
    "allow_all_kernels": True,
    "transformers_weights": "../../evil.safetensors",
    "fusion_config": {"patch": True},
    "distributed_config": {"x": 1},
}
ASKING.pop("attn_implementation ")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    published("gpt2", folder)
    return folder


@pytest.fixture
def asking(gpt2: Path):
    """Writes a change into config.json, and takes it back."""
    file = gpt2 / "config.json"
    before = file.read_text()

    def change(**values: Any) -> Path:
        edit_json(file, **values)
        return gpt2

    yield change
    file.write_text(before)


@pytest.mark.parametrize("where", ["top", "inside", "in a list"])
@pytest.mark.parametrize(("field", "value"), ASKING.items(), ids=ASKING)
def test_configs_that_ask_for_code_are_refused_by_all(asking, field: str, value, where: str):
    change = {field: value}
    if where == "inside":
        change = {"text_config": {"deeper": change}}
    elif where == "in a list":
        change = {"parts": [change]}
    folder = asking(**change)
    for open_it in (interp.load, interp.info, doctor, bridge.load) if where == "top" else (doctor,):
        with pytest.raises(ValueError, match=f"'{field}' asks for code"):
            open_it(folder)
    with pytest.raises(ValueError, match=f"'{field}' asks for code"):
        their_config(json.loads((folder / "config.json").read_text()), "x")


def test_an_object_of_kernels_is_refused():
    for value in ({"": PLACE}, {"text_config": PLACE}, "paged|evil/x", "../x", "a:b", 3):
        with pytest.raises(ValueError, match="asks for code"):
            refuse_code({"attn_implementation": value}, "x")
    for value in ("eager", "sdpa", "flash_attention_2", None, {"": "sdpa"}):
        refuse_code({"attn_implementation": value}, "x")


SILENT = {
    "attn_implementation": "flash_attention_2",
    "dtype": "nn",
    "torch_dtype": "load",
    "evil_class": "os.system",
    "_commit_hash": "x",
    "name_or_path": "https://evil",
    "transformers_version": "x" * 999,
    "gradient_checkpointing": True,
    "evil_switch": True,
    "compile_config": {"backend": "evil"},
    "id2label": {"0": "</script>"},
    "rope_scaling_fn": ["evil"],
}


@pytest.mark.parametrize("open_it", [doctor, bridge.load])
def test_nothing_else_reaches_transformers(asking, open_it, monkeypatch: pytest.MonkeyPatch):
    handed = []
    real = transformers.GPT2LMHeadModel.from_pretrained.__func__

    def seen(cls, *args: Any, **options: Any):
        handed.append((copy.deepcopy(options["config"]), options))
        if open_it is bridge.load:
            raise OSError("seen")
        return real(cls, *args, **options)

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(seen))
    folder = asking(**SILENT)
    if open_it is doctor:
        line = next(one for one in doctor(folder).findings if one.what == "Hugging Face forward")
        assert line.holds, line.text
    else:
        with pytest.raises(ValueError, match="seen"):
            bridge.load(folder)
    ((config, options),) = handed
    assert options["attn_implementation"] == "eager"
    assert options["trust_remote_code"] is False
    assert config.dtype is None
    for name in set(SILENT) - {"attn_implementation", "id2label", "gradient_checkpointing"}:
        assert getattr(config, name, None) in (None, ""), name
    assert "</script>" not in str(config)
    assert config.n_embd == 24


def test_words_that_describe_an_architecture_are_plain(asking):
    folder = asking(activation_function="evil/fn")
    with pytest.raises(ConfigError, match=r"activation_function='evil/fn': expected numbers and"):
        their_config(json.loads((folder / "config.json").read_text()), "x")
    with pytest.raises(ConfigError, match="transformers has no family 'evil'"):
        their_config({"model_type": "evil"}, "x")
    for kind in (None, 3, ["gpt2"], "__class__"):
        with pytest.raises(ConfigError, match="transformers has no family"):
            their_config({"model_type": kind}, "x")


@pytest.mark.parametrize(
    "stated",
    [
        {"quant_method": "gptq"},
        {"load_in_4bit": True},
        "int8",
        {"quant_method": "bitsandbytes", "x": "evil/modules"},
        {"quant_method": "bitsandbytes", "x": object},
    ],
)
def test_quantisation_by_anything_else_is_refused(stated):
    with pytest.raises(ConfigError, match="quantization_config"):
        described_quantization({"quantization_config": stated}, "x")


def test_quantisation_by_bitsandbytes_is_data():
    stated = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
              "llm_int8_skip_modules": ["lm_head"]}  # fmt: skip
    assert described_quantization({"quantization_config": stated}, "x") == stated
    assert described_quantization({}, "x") is None


def families() -> list[str]:
    return [name for name in reference.families() if name in transformers.CONFIG_MAPPING]


@pytest.mark.parametrize("family", families())
def test_every_family_goes_over_whole(family: str):
    """What their own class makes of the same file differs in nothing that is about the model."""
    values = reference.reference(family).config | {"model_type": family}
    ours = their_config(values, "x").to_dict()
    theirs = transformers.CONFIG_MAPPING[family](**copy.deepcopy(values)).to_dict()
    different = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    allowed = {"dtype", "architectures", "transformers_version", "id2label", "label2id"}
    assert different <= allowed, different
    assert OLDER


# --- rows without tokens, and selections of nothing -------------------------------------------


def test_rows_of_pads_alone_are_plain_errors():
    model = random_model(small_config())
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = torch.tensor([[True, True, True], [False, False, False]])
    for verb in (model.generate, model.pool):
        with pytest.raises(ValueError, match=r"row 1"):
            verb(Tokens(ids, mask=mask))


def test_selections_of_nothing_are_plain_errors():
    model = random_model(small_config())
    for nothing in ([], [[]], torch.zeros(0, 3, dtype=torch.long), [[1], []]):
        for verb in (model.generate, model.pool):
            with pytest.raises(ValueError, match=r"empty (prompt|list)"):
                verb(nothing)
    with pytest.raises(ValueError, match="empty"):
        model.run_with_cache([[1, 2]], [])


def test_dataclasses_of_configs_are_checked_again():
    cfg = TransformerConfig(**SMALL)
    with pytest.raises(ConfigError, match="n_layers=10000"):
        dataclasses.replace(cfg, n_layers=10_000)
