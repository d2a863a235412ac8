"""What lies beside the weights and would change what they compute is refused; the rest is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import interp
from interp.loading import bridge
from interp.loading.checkup import doctor
from interp.loading.files import SMALL_FILES, Source, weight_entries

from .published import SHAPES, published, tiny, write_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny(tmp_path)


CHANGING = {
    "adapter_config.json": "a PEFT adapter lies beside the weights",
    "adapter_model.safetensors": "a PEFT adapter lies beside the weights",
    "adapter_model.bin": "a PEFT adapter lies beside the weights",
    "Adapter_Config.JSON": "a PEFT adapter lies beside the weights",
    "quantize_config.json": "says that the weights are quantized",
    "quant_config.json": "says that the weights are quantized",
    "hf_quant_config.json": "says that the weights are quantized",
}


@pytest.mark.parametrize("open_it", [interp.load, interp.info, doctor, bridge.load])
@pytest.mark.parametrize(("name", "fault"), CHANGING.items(), ids=CHANGING)
def test_what_would_make_another_model_is_refused(folder: Path, name: str, fault: str, open_it):
    (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"{name}: {fault}"):
        open_it(folder)


def write_index(folder: Path, file: str) -> None:
    text = json.dumps({"weight_map": dict.fromkeys(SHAPES, file)})
    (folder / "model.safetensors.index.json").write_text(text)


SHARD = "model-00001-of-00001.safetensors"


def test_two_sets_of_weights_are_refused(folder: Path):
    weights = folder / "model.safetensors"
    shutil.copy(weights, folder / SHARD)
    with pytest.raises(ValueError, match=rf"two sets of weights, model\.safetensors and {SHARD}"):
        interp.load(folder)
    write_index(folder, SHARD)
    with pytest.raises(ValueError, match=r"index\.json names and model\.safetensors; take one"):
        interp.load(folder)
    shutil.copy(weights, folder / "model-00007-of-00009.safetensors")
    weights.unlink()
    with pytest.raises(ValueError, match=r"names and model-00007-of-00009\.safetensors"):
        interp.load(folder)
    (folder / "model-00007-of-00009.safetensors").unlink()
    assert interp.load(folder).cfg.n_layers == 1


def test_an_index_of_the_one_file_is_fine(folder: Path):
    write_index(folder, "model.safetensors")
    assert interp.load(folder).cfg.n_layers == 1


def test_an_index_that_disagrees_with_the_one_file_is_refused(folder: Path):
    write_index(folder, "model.safetensors")
    text = (folder / "model.safetensors.index.json").read_text()
    (folder / "model.safetensors.index.json").write_text(text.replace("wte", "wtx"))
    with pytest.raises(ValueError, match=r"holds 'wte\.weight', which .* does not place there"):
        interp.load(folder)


def test_a_second_index_does_not_pass_the_hash_by(folder: Path):
    """Of a file whose hash is known, nothing but that file is read."""
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    write_index(folder, "other.safetensors")
    with pytest.raises(ValueError, match=r"sha256 is .*, expected 00"):
        weight_entries(Source("tiny", "bundled", folder, sha256="00"))


def test_what_is_not_read_is_listed(folder: Path):
    assert interp.info(folder).unread == ()
    for name in ("pytorch_model.bin", "modules.json", "README.md", "training_args.bin", "a.png"):
        (folder / name).write_bytes(b"x")
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    unread = ("modules.json", "pytorch_model.bin", "training_args.bin")
    info = interp.info(folder)
    assert info.unread == unread
    assert "Not read\n  modules.json" in str(info)
    card = {finding.what: finding.text for finding in doctor(folder).findings}
    assert card["not read"] == ", ".join(unread)
    assert interp.info(folder / "config.json").unread == ()


def test_a_hub_model_brings_what_would_change_it():
    assert {"generation_config.json", "adapter_config.json", "added_tokens.json"} <= set(
        SMALL_FILES
    )


def test_what_transformers_saves_loads(tmp_path: Path):
    """With generation_config.json, shards and their index."""
    published("gpt2", tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*"))) > 1
    assert interp.load(tmp_path).cfg.n_layers == 3
    assert interp.info(tmp_path).unread == ()


def test_an_adapter_alone_is_named(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="a PEFT adapter"):
        interp.load(tmp_path)
    write_config(tmp_path)
    with pytest.raises(ValueError, match="a PEFT adapter"):
        interp.load(tmp_path)
