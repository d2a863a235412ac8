"""What load checks: the family's recorded reference, the identities, the tokenizer's size."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

import interp
from interp.cli import main as cli
from interp.core.tokenizer import Tokenizer
from interp.loading import CheckFailed, check, check_family, reference
from interp.loading.families import FAMILIES
from interp.loading.reference import reference_model
from interp.model.attention import Attention
from interp.model.block import Block

from .published import edit_weights, published
from .strategies import random_model, small_config
from .vocabularies import word_level

MISS = 1e-3


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    check._once.cache_clear()
    yield
    check._once.cache_clear()


@pytest.mark.parametrize("name", reference.families())
def test_every_family_gives_its_recorded_numbers(name: str):
    found = check_family(name)
    assert found.family == name
    assert found.holds, found


def test_the_file_is_small():
    assert reference.FILE.stat().st_size <= 100_000
    assert set(FAMILIES) - set(reference.families()) == {"interp"}


def test_the_weights_are_the_same_whatever_the_version():
    """By hand, in plain Python whole numbers."""

    def number(name: str, i: int) -> float:
        import zlib

        x = (i * 2_654_435_761 + zlib.crc32(name.encode())) % 2**32
        for _ in range(2):
            x = ((x ^ (x >> 16)) * 0x45D9F3B) % 2**32
        return 0.35 * (2 * x / 2**32 - 1)

    matrix = reference.numbers("h.0.attn.c_attn.weight", (3, 5))
    assert matrix.flatten().tolist() == [number("h.0.attn.c_attn.weight", i) for i in range(15)]
    gain = reference.numbers("ln_f.weight", (4,))
    assert gain.tolist() == [1 + number("ln_f.weight", i) for i in range(4)]
    many = reference.numbers("x", (100, 100))
    assert abs(float(many.mean())) < 0.01
    assert float(many.std()) == pytest.approx(0.35 / math.sqrt(3), rel=0.05)


def test_unknown_families_are_named():
    with pytest.raises(ValueError, match="family 'gpt5' has no recorded reference; there are: gpt"):
        check_family("gpt5")


CHANGES = {
    "rotary base": ("llama", {"rotary_base": 9000.0}),
    "no rotary": ("llama", {"positions": "none"}),
    "epsilon": ("llama", {"norm_eps": 2e-3}),
    "window": ("mistral", {"sliding_window": None}),
    "scale": ("gpt2", {"attn_scale": 1.0}),
    "other gelu": ("gpt2", {"activation": "relu"}),
    "mask": ("gpt2", {"causal": False}),
    "soft-cap": ("gemma2", {"attn_softcap": None}),
    "alibi": ("bloom", {"positions": "none"}),
    "sees ahead only": ("bert", {"causal": True}),
}


@pytest.mark.parametrize(("name", "changes"), CHANGES.values(), ids=CHANGES)
def test_another_architecture_misses(name: str, changes: dict):
    model, given = reference_model(name), reference.reference(name)
    mutant = interp.HookedTransformer(model.cfg.replace(**changes), dtype=torch.float64)
    mutant.load_state_dict({key: model.state_dict()[key] for key in mutant.state_dict()})
    assert reference.distance(reference.run(mutant, given.inputs), given) > MISS


def unscaled(self, *args, attend=Attention.attend, **kwargs):
    return 1.1 * attend(self, *args, **kwargs)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_mutated_forward_fails_the_check(monkeypatch, name: str):
    monkeypatch.setattr(Attention, "attend", unscaled)
    found = check_family(name)
    assert not found.holds
    assert found.error > MISS


def test_numbers_that_are_none_do_not_hold():
    given = reference.reference("gpt2")
    output = reference.run(reference_model("gpt2"), given.inputs)
    assert reference.distance(output, given) < 1e-9
    assert reference.distance(output[:1], given) == math.inf
    assert not reference.FamilyCheck("gpt2", math.nan, 1e-5).holds
    output[0, 0, 0] = math.nan
    assert not reference.FamilyCheck("gpt2", reference.distance(output, given), 1e-5).holds
    output[0, 0, 0], output[0, 0, 1] = given.output[0], 99.0  # seen by the norm alone
    assert reference.distance(output, given) > MISS


# --- what load does with it ---------------------------------------------------------------------


def test_load_checks_the_family_once(tmp_path: Path, monkeypatch):
    published("gpt2", tmp_path)
    counted = []
    monkeypatch.setattr(
        check, "check_family", lambda name: counted.append(name) or check_family(name)
    )
    assert interp.load(tmp_path).source["family"] == "gpt2"
    interp.load(tmp_path)
    interp.load(tmp_path, check=True)
    assert counted == ["gpt2"]
    check._once.cache_clear()
    interp.load(tmp_path, check=False)
    assert counted == ["gpt2"]


def test_load_refuses_where_the_forward_is_another(tmp_path: Path, monkeypatch):
    published("gpt2", tmp_path)
    monkeypatch.setattr(Attention, "attend", unscaled)
    with pytest.raises(CheckFailed) as caught:
        interp.load(tmp_path)
    assert re.search(
        rf"{tmp_path.name}: this installation computes another gpt2 than the one recorded: "
        r"relative error \d\.\de-0\d, allowed 1e-05\. check=False opens it anyway",
        str(caught.value),
    )
    assert interp.load(tmp_path, check=False).cfg.n_layers == 3


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", ["gpt2", "llama", "bert", "bert mlm"])
def test_identities_hold_in_every_dtype(case: str, dtype: str, tmp_path: Path):
    published(case, tmp_path)
    interp.load(tmp_path, dtype=dtype, check=True)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    published("gpt2", tmp_path)

    def spoil(weights):
        weights["transformer.h.1.mlp.c_fc.weight"][3, 4] = math.inf

    edit_weights(tmp_path, spoil)
    for wanted in (None, True):
        with pytest.raises(CheckFailed, match=r"in_weight holds inf at \[4, 3\].*neuron 4 of W_in"):
            interp.load(tmp_path, check=wanted)
    assert interp.load(tmp_path, check=False).W_in.isinf().any()


def test_activations_that_overflow_fail_the_check(tmp_path: Path):
    """Its weights fit into float16, and not what they compute."""
    published("gpt2", tmp_path)

    def spoil(weights):
        weights["transformer.h.0.mlp.c_proj.weight"] *= 1e4

    edit_weights(tmp_path, spoil)
    interp.load(tmp_path, dtype="float32", check=True)
    with pytest.raises(CheckFailed, match=r"'blocks\.0\.hook_mlp_out'.*dtype='float32'"):
        interp.load(tmp_path, dtype="float16", check=True)


def adds_more_than_it_shows(self, x, post, tap):
    return tap(self.hook_resid_post, x + 1.001 * self._mlp_out(post, tap))


def test_a_forward_that_breaks_an_identity_fails(tmp_path: Path, monkeypatch):
    """In our own format, which has no reference that would miss as well."""
    published("gpt2", tmp_path / "theirs")
    folder = interp.save(interp.load(tmp_path / "theirs"), tmp_path / "ours")
    interp.load(folder, check=True)
    monkeypatch.setattr(Block, "from_post", adds_more_than_it_shows)
    with pytest.raises(CheckFailed) as caught:
        interp.load(folder, check=True)
    assert re.search(
        r"ours: 3 of 15 identities do not hold: resid_mid \+ mlp_out = resid_post in layer 0: "
        r"error \d\.\de-0\d, allowed 1e-10; .* in layer 1: .* in layer 2: ",
        str(caught.value),
    )
    interp.load(folder)


# --- the tokenizer ------------------------------------------------------------------------------


def with_tokenizer(folder: Path, n: int, special: tuple[str, ...] = (), **roles: str) -> Path:
    """A published GPT-2 with 61 rows of embedding, and a tokenizer of n words and more."""
    published("gpt2", folder)
    (folder / "tokenizer.json").write_text(word_level(n, special))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


@pytest.mark.parametrize("n", [3, 60, 61])
def test_a_smaller_tokenizer_is_fine(n: int, tmp_path: Path):
    model = interp.load(with_tokenizer(tmp_path, n))
    assert (model.tokenizer.vocab_size, model.cfg.d_vocab) == (n, 61)
    assert model.tokenizer.entries_past(61) == {}


def test_a_larger_tokenizer_is_refused(tmp_path: Path):
    folder = with_tokenizer(tmp_path, 63)
    with pytest.raises(ValueError, match="the tokenizer has 63 entries") as caught:
        interp.load(folder)
    for part in (
        f"{folder}: the tokenizer has 63 entries with ids up to 62, ",
        "the embedding has 61 rows (0 to 60)",
        "'w61' (61) would",
        "check=False",
    ):
        assert part in str(caught.value)
    model = interp.load(folder, check=False)
    with pytest.raises(ValueError, match="token id 62 is outside the vocabulary"):
        model("w62")


def test_special_tokens_past_the_embedding(tmp_path: Path):
    """Gemma 3 has one for images; one that padding uses is refused."""
    model = interp.load(with_tokenizer(tmp_path / "image", 61, ("<image>",)))
    assert model.tokenizer.entries_past(61) == {"<image>": 61}
    with pytest.raises(ValueError, match="token id 61 is outside the vocabulary"):
        model("w1 <image>")
    with pytest.raises(ValueError, match=r"rows \(0 to 60\), .* as '\[PAD\]' \(61\) would"):
        interp.load(with_tokenizer(tmp_path / "pad", 61, ("[PAD]",), pad_token="[PAD]"))


def _edit_config(folder: Path) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text())
    values["config"]["activation"] = "relu"
    file.write_text(json.dumps(values))


def _edit_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"pad_token": "w3"}')


def _drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize("edit", [_edit_config, _edit_tokenizer, _drop_tokenizer])
def test_a_saved_folder_that_was_edited_names_a_command_that_opens_it(edit, tmp_path, capsys):
    model = random_model(small_config(activation="gelu"))
    model.tokenizer = Tokenizer(word_level(29), {"pad_token": "w2"})
    folder, new = tmp_path / "it's mine", tmp_path / "new"
    interp.save(model, folder)
    edit(folder)
    assert cli.main(["generate", str(folder), "w1", "--max-new-tokens", "1"]) == 2
    said = capsys.readouterr().err
    command = re.search(r"`interp (convert .*) NEW`", said)[1]
    assert cli.main(["doctor", str(folder)]) == 1
    assert re.search(r"FAIL +files as saved .*`interp convert", capsys.readouterr().out)
    assert cli.main([*shlex.split(command), str(new)]) == 0
    after, edited = interp.load(new), interp.load(folder, check=False)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(after(ids), edited(ids)) and after.cfg == edited.cfg
    assert torch.equal(after(ids), model(ids)) == (edit is not _edit_config)
    words = [None if m.tokenizer is None else m.tokenizer.pad_id for m in (after, edited)]
    assert words[0] == words[1] == {_edit_config: 2, _edit_tokenizer: 3}.get(edit)
    assert interp.doctor(new).ok
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert cli.main([*shlex.split(command), str(tmp_path / "other")]) == 2
    assert "does not fit its checksum" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match=r"eps: .* is a config of interp, which states all"):
        interp.convert(folder, tmp_path / "other", eps=1e-3)
