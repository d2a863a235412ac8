"""Training: the loop is AdamW as anybody would write it, and a run survives whatever stops it."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.cli import main as cli
from interp.core.config import TransformerConfig
from interp.model import HookedTransformer
from interp.training import (
    MaskedData,
    SampledData,
    TextData,
    TextRun,
    TrainConfig,
    TrainingError,
    state,
    train,
    train_on_text,
    train_tokenizer,
)
from interp.training.data import IGNORED, Batch
from interp.training.loop import Run
from interp.zoo import modadd

ROOT = Path(interp.__file__).parents[1]
TEXT = "the cat sat on the mat. a dog ran to the red house, and the cat ran too.\n" * 40
SMALL = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32}
QUICK = TrainConfig(steps=12, batch_size=4, warmup=3, eval_every=5, eval_batches=2, lr=1e-2,
                    min_lr=1e-3)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, "char")


@pytest.fixture
def data(tokenizer):
    return TextData(TEXT, tokenizer, 16)


def fresh(tokenizer, **options) -> HookedTransformer:
    fields = SMALL | {"d_vocab": tokenizer.vocab_size, "n_ctx": 16} | options
    return HookedTransformer(TransformerConfig(**fields), tokenizer)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_loop_is_adamw_with_warmup_and_cosine(data, tokenizer, tmp_path):
    """The same weights as a loop written out by hand."""
    config = dataclasses.replace(QUICK, accumulate=2, steps=6)
    trained = train(fresh(tokenizer), data, tmp_path, config, progress=False)
    by_hand = fresh(tokenizer)
    by_hand.init_weights(0)
    by_hand.requires_grad_(True)
    named = dict(by_hand.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in named.items()}
    second = {name: torch.zeros_like(p) for name, p in named.items()}
    for step in range(6):
        along = (step - 3) / 3
        cosine = 1e-3 + 0.5 * (1 + math.cos(math.pi * along)) * (1e-2 - 1e-3)
        lr = 1e-2 * (step + 1) / 3 if step < 3 else cosine
        for i in (0, 1):
            ids, targets = data.batch("train", 2 * step + i, 4)
            log_probs = by_hand(ids).log_softmax(-1)
            (-log_probs.gather(-1, targets[..., None]).mean() / 2).backward()
        norm = torch.cat([p.grad.flatten() for p in named.values()]).norm()
        with torch.no_grad():
            for name, p in named.items():
                grad = p.grad * min(1.0, 1.0 / (float(norm) + 1e-6))
                first[name] = 0.9 * first[name] + 0.1 * grad
                second[name] = 0.99 * second[name] + 0.01 * grad**2
                mean = first[name] / (1 - 0.9 ** (step + 1))
                scale = (second[name] / (1 - 0.99 ** (step + 1))).sqrt()
                p.mul_(1 - lr * (0.1 if p.ndim > 1 else 0.0))
                p.sub_(lr * mean / (scale + 1e-8))
                p.grad = None
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, named[name].detach(), rtol=1e-3, atol=2e-5)


def test_it_learns_and_leaves_a_model_that_loads(data, tokenizer, tmp_path):
    config = dataclasses.replace(QUICK, steps=150, batch_size=16)
    model = train(fresh(tokenizer), data, tmp_path, config, progress=False)
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["val_loss"].iloc[-1] < 0.5 * math.log(tokenizer.vocab_size)
    assert list(log.columns) == ["step", "lr", "train_loss", "val_loss", "tokens_per_second"]
    assert not any(p.requires_grad for p in model.parameters())
    loaded = interp.load(tmp_path)
    ids = data.batch("val", 0, 2).ids
    assert torch.equal(loaded(ids), model(ids))
    assert str(loaded.generate("the c", 3)).startswith("the c")


def test_a_stopped_run_ends_in_the_same_bits(data, tokenizer, tmp_path):
    train(fresh(tokenizer), data, tmp_path / "whole", QUICK, progress=False)

    class Stopping(TextData):
        def batch(self, split, number, size):
            if split == "train" and number == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(split, number, size)

    with pytest.raises(KeyboardInterrupt, match="step 8 of 12"):
        train(fresh(tokenizer), Stopping(TEXT, tokenizer, 16), tmp_path / "cut", QUICK,
              progress=False)  # fmt: skip
    assert weights(tmp_path / "cut") != weights(tmp_path / "whole")
    torch.manual_seed(99)
    train(fresh(tokenizer), data, tmp_path / "cut", QUICK, progress=False)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    logs = [pd.read_csv(tmp_path / one / "log.csv") for one in ("cut", "whole")]
    pd.testing.assert_frame_equal(*(log.drop(columns="tokens_per_second") for log in logs))
    # A finished run stays as it is.
    train(fresh(tokenizer), data, tmp_path / "cut", QUICK, progress=False)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_training_may_begin_with_the_weights_that_a_model_has(data, tokenizer, tmp_path):
    config = dataclasses.replace(QUICK, checkpoints=2)
    given = HookedTransformer(fresh(tokenizer).cfg, tokenizer, seed=5)
    kept = {name: value.clone() for name, value in given.state_dict().items()}
    train(given, data, tmp_path / "more", config, fresh=False, progress=False)
    first = interp.load(tmp_path / "more" / "checkpoints" / "step-0000000").state_dict()
    assert all(torch.equal(first[name], value) for name, value in kept.items())
    assert any(not torch.equal(given.state_dict()[name], kept[name]) for name in kept)
    # The same call finds the run done; other first weights, or none, are another run.
    given.load_state_dict(kept)
    train(given, data, tmp_path / "more", config, fresh=False, progress=False)
    assert (
        weights(tmp_path / "more")
        != (tmp_path / "more" / "checkpoints" / "step-0000000" / "model.safetensors").read_bytes()
    )
    other = HookedTransformer(given.cfg, tokenizer, seed=6)
    with pytest.raises(TrainingError, match="the first weights are others"):
        train(other, data, tmp_path / "more", config, fresh=False, progress=False)
    with pytest.raises(TrainingError, match="the first weights are others"):
        train(other, data, tmp_path / "more", config, progress=False)


def test_ctrl_c_on_the_command_line(tmp_path):
    """Interrupted and resumed, `interp train` gives the weights of an uninterrupted run."""
    text = tmp_path / "input.txt"
    text.write_text(TEXT)
    sizes = ["--n-layers", "1", "--n-heads", "2", "--d-model", "16", "--n-ctx", "16"]
    steps = ["--steps", "300", "--batch-size", "2", "--eval-every", "100", "--eval-batches", "1"]

    def command(out: str) -> list[str]:
        own = ["--text", str(text), "--out", str(tmp_path / out), "--device", "cpu"]
        return [sys.executable, "-m", "interp", "train", *own, *sizes, *steps]

    done = subprocess.run(command("whole"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "whole")
    run = subprocess.Popen(command("cut"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "cut" / "config.json").exists() and run.poll() is None:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    stderr = run.communicate(timeout=60)[1]
    assert run.returncode == 130, stderr
    assert "interrupted" in stderr
    assert state.read_about(tmp_path / "cut")["step"] < 300
    again = subprocess.run(command("cut"), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_the_run(data, tokenizer, tmp_path):
    class Broken(TextData):
        model = None

        def batch(self, split, number, size):
            if split == "train" and number == 8:
                with torch.no_grad():
                    self.model.unembed.weight[0, 0] = float("nan")
            return super().batch(split, number, size)

    broken = Broken(TEXT, tokenizer, 16)
    broken.model = fresh(tokenizer)
    with pytest.raises(TrainingError, match=r"step 8: the loss is nan.*last good state"):
        train(broken.model, broken, tmp_path, QUICK, progress=False)
    assert state.read_about(tmp_path)["step"] == 5
    assert all(value.isfinite().all() for value in interp.load(tmp_path).state_dict().values())
    # Without the fault it goes on from there.
    train(fresh(tokenizer), data, tmp_path, QUICK, progress=False)


def test_another_run_is_refused_with_the_difference(data, tokenizer, tmp_path):
    train(fresh(tokenizer), data, tmp_path, QUICK, progress=False)
    other = dataclasses.replace(QUICK, lr=0.5)
    with pytest.raises(TrainingError, match=r"lr was 0\.01 and is 0\.5"):
        train(fresh(tokenizer), data, tmp_path, other, progress=False)
    with pytest.raises(TrainingError, match="n_layers was 1 and is 2"):
        train(fresh(tokenizer, n_layers=2), data, tmp_path, QUICK, progress=False)
    more = TextData(TEXT + "more text. " * 30, tokenizer, 16)
    with pytest.raises(TrainingError, match="the data are others"):
        train(fresh(tokenizer), more, tmp_path, QUICK, progress=False)


def test_models_are_kept_on_a_logarithmic_schedule(data, tokenizer, tmp_path):
    config = dataclasses.replace(QUICK, checkpoints=5)
    assert dataclasses.replace(QUICK, steps=10_000, checkpoints=5).kept == [
        0,
        10,
        100,
        1000,
        10_000,
    ]
    train(fresh(tokenizer), data, tmp_path, config, progress=False)
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [int(path.name.removeprefix("step-")) for path in kept] == config.kept
    initial = fresh(tokenizer)
    initial.init_weights(config.seed)
    assert torch.equal(interp.load(kept[0]).W_E, initial.W_E)
    assert weights(kept[-1]) == weights(tmp_path)


@pytest.mark.parametrize("threaded", [False, True])
def test_ctrl_c_is_as_before_afterwards(data, tokenizer, tmp_path, threaded):
    before = signal.getsignal(signal.SIGINT)
    if threaded:
        import threading

        thread = threading.Thread(
            target=lambda: train(fresh(tokenizer), data, tmp_path, QUICK, progress=False)
        )
        thread.start()
        thread.join()
        assert (tmp_path / "model.safetensors").exists()
    else:
        train(fresh(tokenizer), data, tmp_path, QUICK, progress=False)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"checkpoints": -1}, "checkpoints=-1"),
        ({"min_lr": 2.0}, r"min_lr=2\.0"),
        ({"lr": float("inf")}, "lr=inf"),
    ],
)
def test_a_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**change)


def test_text_gives_crops_of_its_own_part(tokenizer):
    text = "".join(chr(ord("a") + i % 26) for i in range(300))
    letters = train_tokenizer(text, "char")
    data = TextData(text, letters, 8, val_fraction=0.2)
    ids = torch.tensor(letters.encode(text, bos=False))
    for split, whole in (("train", ids[:240]), ("val", ids[240:])):
        inputs, targets = data.batch(split, 3, 5)
        again = data.batch(split, 3, 5)
        assert torch.equal(inputs, again.ids)
        assert torch.equal(targets, again.targets)
        assert not torch.equal(inputs, data.batch(split, 4, 5).ids)
        windows = {tuple(w) for w in whole.unfold(0, 9, 1).tolist()}
        both = torch.cat([inputs, targets[:, -1:]], 1)
        assert all(tuple(row) in windows for row in both.tolist())
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_every_start_of_the_text_is_drawn(tokenizer):
    text = "".join(chr(ord("a") + i) for i in range(26))
    letters = train_tokenizer(text, "char")
    data = TextData(text, letters, 3, val_fraction=0.3)
    firsts = {int(i) for n in range(40) for i in data.batch("train", n, 8).ids[:, 0]}
    assert firsts == set(range(len(data.parts["train"]) - 3))


@pytest.mark.parametrize(
    ("text", "n_ctx", "message"),
    [("short", 16, "16 needs at least 17"), (TEXT, 4000, "4000 needs at least 4001")],
)
def test_text_too_short_for_its_context(text, n_ctx, message):
    with pytest.raises(ValueError, match=message):
        TextData(text, train_tokenizer(text, "char"), n_ctx)


def test_masked_batches(tokenizer):
    masked = train_tokenizer(TEXT, "char", masked=True)
    data = MaskedData(TextData(TEXT, masked, 64), masked.vocab_size)
    whole = TextData(TEXT, masked, 64).batch("train", 0, 400).ids
    ids, targets = data.batch("train", 0, 400)
    asked = targets != IGNORED
    assert torch.equal(targets[asked], whole[asked])
    assert torch.equal(ids[~asked], whole[~asked])
    share = asked.double().mean()
    assert abs(share - 0.15) < 0.01
    hidden = (ids[asked] == masked.mask_id).double().mean()
    kept = (ids[asked] == whole[asked]).double().mean()
    assert abs(hidden - 0.8) < 0.02
    assert 0.08 < kept < 0.16  # a tenth, and other tokens that happen to be the same
    with pytest.raises(ValueError, match="needs a tokenizer with a mask token"):
        MaskedData(TextData(TEXT, tokenizer, 64), tokenizer.vocab_size)


def test_a_masked_model_learns(tmp_path):
    file = tmp_path / "input.txt"
    file.write_text("abcdefgh" * 400)
    config = TrainConfig(steps=250, batch_size=16, warmup=20, lr=1e-2, eval_every=250,
                         eval_batches=4)  # fmt: skip
    run = TextRun(text=file, out=tmp_path / "out", objective="masked", n_layers=2, n_heads=2,
                  d_model=32, n_ctx=16, train=config, device="cpu")  # fmt: skip
    model = train_on_text(run, progress=False)
    assert not model.cfg.causal
    log = pd.read_csv(tmp_path / "out" / "log.csv")
    assert log["val_loss"].iloc[-1] < 0.2
    ids = model.to_tokens("abcdefgh").ids.clone()
    ids[0, 2] = model.tokenizer.mask_id
    assert model.to_string(model(ids)[0, 2].argmax()) == "c"


def test_what_is_given_is_not_asked():
    def draw(rng, split, size):
        return np.tile([~np.int64(3), 1, ~np.int64(0), 2], (size, 1))

    ids, targets = SampledData(draw, None, "x").batch("train", 0, 2)
    assert ids.tolist() == [[3, 1, 0]] * 2
    assert targets.tolist() == [[1, IGNORED, 2]] * 2


def test_tokenizers():
    word = train_tokenizer("b a, a b a!", "word")
    assert word.encode("a, b?") == [
        word.single("a"),
        word.single(","),
        word.single("b"),
        word.unk_id,
    ]
    assert train_tokenizer("b a, a b a!", "word", 5).vocab().keys() >= {"a"}
    char = train_tokenizer("héllo\n", "char")
    assert char.decode(char.encode("hello\nh".replace("e", "é"))) == "héllo\nh"
    bpe = train_tokenizer(TEXT, "bpe", 270)
    assert bpe.vocab_size == 270
    assert bpe.decode(bpe.encode("the cät 😀\n")) == "the cät 😀\n"
    with pytest.raises(ValueError, match="vocab_size=100000: byte-level BPE of this text"):
        train_tokenizer(TEXT, "bpe", 100_000)
    with pytest.raises(ValueError, match=r"vocab_size=100: byte-level.* has from 257"):
        train_tokenizer(TEXT, "bpe", 100)
    with pytest.raises(ValueError, match="vocab_size=99: the text has 4 different words"):
        train_tokenizer("b a, a b a!", "word", 99)
    with pytest.raises(ValueError, match="the text is empty"):
        train_tokenizer(" \n", "char")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"  \n", "is empty"), (b"ab\xff", "byte 2 (line 1) is not UTF-8"),
     (b"tiny", "needs at least 129")],
)  # fmt: skip
def test_texts_that_cannot_be_trained_on(tmp_path, content, message, capsys):
    file = tmp_path / "input.txt"
    file.write_bytes(content)
    code = cli.main(["train", "--text", str(file), "--out", str(tmp_path / "out")])
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_modadd_is_addition():
    rows = modadd.pairs(7)
    assert len({tuple(row[:2]) for row in rows}) == 49
    assert all((a + b) % 7 == c and equals == 7 for a, b, equals, c in rows)
    parts = modadd.split(7, 0.5)
    assert len(parts["train"]) + len(parts["val"]) == 49
    assert not {tuple(r) for r in parts["train"]} & {tuple(r) for r in parts["val"]}
    ids, targets = modadd.data(7, 0.5).batch("train", 5, 1)
    assert ids.shape == (24, 3)
    assert (targets[:, :2] == IGNORED).all()
    assert torch.equal(targets[:, 2], (ids[:, 0] + ids[:, 1]) % 7)


def test_double_precision_of_the_loss(tmp_path):
    """A loss far below what float32 tells from zero still has a gradient."""
    batch = modadd.data(5).batch("train", 0, 1)
    for double in (True, False):
        config = TrainConfig(double_loss=double)
        model = HookedTransformer(modadd.config(5)).requires_grad_(True)
        run = Run(model, modadd.data(5), tmp_path, config, {})
        run.forward = lambda ids: torch.zeros(6).index_fill(0, ids[0, :1], 30.0).expand(
            *ids.shape, 6)  # fmt: skip
        own = Batch(batch.ids[:1], batch.ids[:1, :1].expand(1, 3))
        assert (float(run._loss(own)) > 0) is double
