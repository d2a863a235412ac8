"""A run loses nothing: killed anywhere, on a full disk, damaged, or begun on another machine."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from interp.cli import main as cli
from interp.core.config import TransformerConfig
from interp.loading import CorruptFile, fingerprint
from interp.loading.stored import read_tensors
from interp.model import HookedTransformer
from interp.training import (
    TextData,
    TrainConfig,
    TrainingError,
    loop,
    state,
    train,
    train_tokenizer,
)

from .kills import dying

ROOT = Path(interp.__file__).parents[1]
TEXT = "the cat sat on the mat. a dog ran to the red house.\n" * 20
CONFIG = TrainConfig(steps=4, batch_size=2, warmup=1, eval_every=2, eval_batches=1, checkpoints=3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, "char")


@pytest.fixture(scope="module")
def data(tokenizer):
    return TextData(TEXT, tokenizer, 8)


@pytest.fixture(autouse=True)
def _no_sample(monkeypatch):
    """What a model writes at a validation takes longer than these runs."""
    monkeypatch.setattr(loop, "SAMPLE", 1)


@pytest.fixture
def trained(data, tokenizer):
    """Trains a tiny model in a folder."""

    def run(folder: Path, config: TrainConfig = CONFIG, dtype=torch.float32, **options):
        cfg = TransformerConfig(
            n_layers=1, n_heads=1, d_model=8, d_mlp=8, d_vocab=tokenizer.vocab_size, n_ctx=8
        )
        model = HookedTransformer(cfg, tokenizer).to(dtype)
        return train(model, data, folder, config, **{"progress": False} | options)

    return run


def files(folder: Path) -> dict[str, object]:
    """All that a run leaves; of the log and the state without how fast it was."""
    left: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == "log.csv":
            left[name] = pd.read_csv(path).drop(columns="tokens_per_second").to_csv()
        elif name == state.FILE:
            tensors, _ = read_tensors(path)
            left[name] = {key: value.tolist() for key, value in tensors.items()}
        else:
            left[name] = path.read_bytes()
    return left


def test_a_kill_anywhere_loses_nothing(trained, tmp_path, monkeypatch):
    """Between any two operations on the disk; the same call then ends in the same files, and on the
    way there is never a model that does not load, nor a state without its model."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug
    config = dataclasses.replace(CONFIG, steps=1, warmup=0, checkpoints=2)
    with dying() as counted:
        trained(tmp_path / "whole", config)
    expected = files(tmp_path / "whole")
    assert {"checkpoints/step-0000000/config.json", "log.csv", "model.safetensors", state.FILE,
            "checkpoints/step-0000001/model.safetensors"} <= expected.keys()  # fmt: skip
    assert counted.count > 80
    for at in range(counted.count):
        folder = tmp_path / f"killed-{at}"
        with dying(at):
            trained(folder, config)
        if (folder / "model.safetensors").exists():
            interp.load(folder)
        about = state.read_about(folder)
        if about and about["step"]:
            assert (folder / "model.safetensors").exists()
            assert about["step"] in pd.read_csv(folder / "log.csv")["step"].to_list()
        trained(folder, config)
        assert files(folder) == expected, at
        shutil.rmtree(folder)


def test_a_second_kill_on_the_way_on_loses_nothing(trained, tmp_path):
    trained(tmp_path / "whole")
    for first, second in ((60, 20), (60, 60), (90, 3), (40, 90)):
        folder = tmp_path / f"killed-{first}-{second}"
        for at in (first, second):
            with dying(at):
                trained(folder)
        trained(folder)
        assert files(folder) == files(tmp_path / "whole")


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "log.csv",
                                     "checkpoints/step-0000004/model.safetensors"])  # fmt: skip
@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_finished_run_mends_what_lies_beside_its_state(trained, tmp_path, missing, damage):
    trained(tmp_path)
    before = files(tmp_path)
    if damage == "gone":
        (tmp_path / missing).unlink()
    else:
        flip(tmp_path / missing, 40)
    trained(tmp_path)
    assert files(tmp_path) == before


def test_a_model_kept_earlier_that_was_removed_is_named(trained, tmp_path, caplog):
    trained(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step-0000002")
    with caplog.at_level(logging.WARNING):
        trained(tmp_path)
    assert "kept at steps [2] were removed" in caplog.text


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_any_flipped_bit_of_a_state_is_found(trained, tmp_path):
    trained(tmp_path)
    size = (tmp_path / state.FILE).stat().st_size
    for bit in range(0, 8 * size, 997):
        flip(tmp_path / state.FILE, bit)
        with pytest.raises(TrainingError, match=rf"{state.FILE}.*[Bb]ring back the file"):
            trained(tmp_path)
        flip(tmp_path / state.FILE, bit)
    trained(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_any_flipped_bit_of_a_kept_model_is_found(trained, tmp_path, name):
    trained(tmp_path)
    folder = tmp_path / "checkpoints" / "step-0000002"
    interp.load(folder)
    size = (folder / name).stat().st_size
    for bit in range(0, 8 * size, 8 * size // 60 + 1):
        flip(folder / name, bit)
        with pytest.raises(ValueError, match=name):
            interp.load(folder)
        flip(folder / name, bit)
    interp.load(folder)


def test_files_of_two_models_do_not_load_together(trained, tmp_path):
    """A kill between the files of a second `save` in one folder."""
    one = trained(tmp_path / "one")
    other = HookedTransformer(
        dataclasses.replace(one.cfg, norm_eps=0.1), one.tokenizer, name="other"
    )
    interp.save(one, tmp_path / "saved")
    with dying() as counted:
        interp.save(other, tmp_path / "other")
    ours, mixed = (tmp_path / "other" / "model.safetensors").read_bytes(), 0
    for at in range(counted.count):
        shutil.copytree(tmp_path / "saved", tmp_path / "mixed")
        with dying(at):
            interp.save(other, tmp_path / "mixed")
        saved = json.loads((tmp_path / "mixed" / "config.json").read_text())["config"]
        weights = (tmp_path / "mixed" / "model.safetensors").read_bytes()
        if (saved["norm_eps"] == 0.1) == (weights == ours):
            interp.load(tmp_path / "mixed")
        else:
            mixed += 1
            with pytest.raises(CorruptFile, match=r"config\.json .* belongs to another model"):
                interp.load(tmp_path / "mixed")
        shutil.rmtree(tmp_path / "mixed")
    assert mixed


def test_one_folder_has_one_training(trained, data, tmp_path, monkeypatch):
    refused = []
    batch = TextData.batch

    def second(self, split, number, size):
        if split == "train" and number == 1 and not refused:
            refused.append("")
            with pytest.raises(TrainingError, match="another training is writing there"):
                trained(tmp_path)
        return batch(self, split, number, size)

    monkeypatch.setattr(TextData, "batch", second)
    trained(tmp_path)
    assert refused


VICTIM = """
import sys, torch
from pathlib import Path
from interp.training import loop, text
from tests.test_training_state import CONFIG, TEXT
file, out = map(Path, sys.argv[1:3])
update = loop.Run.update
def slow(self):
    print("at", self.step, flush=True)
    if self.step == 3 and len(sys.argv) > 3:
        sys.stdin.readline()
    return update(self)
loop.Run.update = slow
text.train_on_text(text.TextRun(text=file, out=out, n_layers=1, n_heads=1, d_model=8, n_ctx=8,
                   device="cpu", train=CONFIG), progress=False)
"""


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    command = [sys.executable, "-c", VICTIM, str(tmp_path / "text"), str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "wait"], cwd=ROOT, text=True, **pipes) as first:
        assert any(line == "at 3\n" for line in first.stdout)
        other = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert "another training is writing there" in other.stderr
        first.kill()
    assert first.returncode == -signal.SIGKILL
    again = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("at 2\n")
    assert state.read_about(tmp_path / "run")["step"] == 4


CHANGES = {
    "code": (fingerprint, "code_hash", lambda: "0" * 16),
    "torch": (torch, "__version__", "2.10.9"),
    "threads": (torch, "get_num_threads", lambda: 64),
    "device": (fingerprint, "device_kind", lambda device: "cuda Some"),
    "precision": (torch, "get_float32_matmul_precision", lambda: "medium"),
}


def stopped(trained, folder: Path) -> None:
    """A run that was killed after the validation at step 2."""
    update = loop.Run.update
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop.Run, "update", lambda run: 1 / (run.step < 3) and update(run))
        with pytest.raises(ZeroDivisionError):
            trained(folder)
    assert state.read_about(folder)["step"] == 2


@pytest.mark.parametrize("what", [*CHANGES, "dtype"])
def test_another_machine_is_refused_with_the_difference(trained, tmp_path, monkeypatch, what):
    stopped(trained, tmp_path)
    options = {"dtype": torch.float64} if what == "dtype" else {}
    if what != "dtype":
        monkeypatch.setattr(*CHANGES[what])
    with pytest.raises(TrainingError, match=rf"{what} was .* and is .*; .*--resume-anyway") as told:
        trained(tmp_path, **options)
    assert str(told.value).count(" was ") == 1
    trained(tmp_path, resume_anyway=True, **options)
    machines = state.read_about(tmp_path)["machines"]
    assert [one["from_step"] for one in machines] == [0, 2]
    assert machines[0][what] != machines[1][what]
    # A finished run computes nothing, so it is opened wherever one likes.
    monkeypatch.undo()
    trained(tmp_path, **options)


def test_the_command_line_can_go_on_anyway(tmp_path, capsys, monkeypatch):
    (tmp_path / "text").write_text(TEXT)
    command = ["train", "--text", str(tmp_path / "text"), "--out", str(tmp_path / "run"),
               "--n-layers", "1", "--n-heads", "1", "--d-model", "8", "--n-ctx", "8", "--steps",
               "4", "--eval-every", "2", "--eval-batches", "1", "--device", "cpu"]  # fmt: skip
    with dying(70):
        cli.main(command)
    assert state.read_about(tmp_path / "run")["step"] == 2
    monkeypatch.setattr(*CHANGES["threads"])
    assert cli.main(command) == 2
    assert "--resume-anyway" in capsys.readouterr().err
    assert cli.main([*command, "--resume-anyway"]) == 0


def test_a_folder_with_a_model_that_was_not_trained_there_is_left_alone(trained, tmp_path):
    model = trained(tmp_path / "run")
    interp.save(model, tmp_path / "mine")
    before = files(tmp_path / "mine")
    with pytest.raises(TrainingError, match=r"mine holds a model .*would be overwritten"):
        trained(tmp_path / "mine")
    assert files(tmp_path / "mine") == before
    (tmp_path / "older" / "state-00000002").mkdir(parents=True)
    (tmp_path / "older" / "state-00000002" / "about.json").write_text("{}")
    with pytest.raises(TrainingError, match="an earlier version"):
        trained(tmp_path / "older")
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/run"):
        with pytest.raises(TrainingError, match="no folder can be made there"):
            trained(tmp_path / out)


@pytest.mark.parametrize("limit", [500, 3000, 9000])
def test_a_full_disk_is_said_plainly_and_what_was_saved_stays(trained, tmp_path, limit):
    """A limit on the size of files, which every writer meets in its own place."""
    stopped(trained, tmp_path / "cut")
    before = files(tmp_path / "cut")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        for folder in ("cut", "new"):
            with pytest.raises(TrainingError, match=r"could not be saved .*File too large.*whole"):
                trained(tmp_path / folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    after = files(tmp_path / "cut")
    assert after[state.FILE] == before[state.FILE]
    interp.load(tmp_path / "cut")
    trained(tmp_path / "whole")
    for folder in ("cut", "new"):
        trained(tmp_path / folder)
        assert files(tmp_path / folder) == files(tmp_path / "whole")


def test_ctrl_c_in_the_last_step_is_not_swallowed(trained, tmp_path, monkeypatch):
    update = loop.Run.update

    def interrupted(run):
        if run.step == CONFIG.steps - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(run)

    monkeypatch.setattr(loop.Run, "update", interrupted)
    with pytest.raises(KeyboardInterrupt, match="step 4 of 4; it is finished"):
        trained(tmp_path / "cut")
    monkeypatch.undo()
    trained(tmp_path / "whole")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_second_ctrl_c_while_saving_loses_nothing(trained, tmp_path, monkeypatch):
    """Two, the second in the middle of a file."""
    trained(tmp_path / "whole")
    fsync, calls = os.fsync, []

    def interrupting(handle):
        calls.append(handle)
        if len(calls) in (30, 31):
            os.kill(os.getpid(), signal.SIGINT)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", interrupting)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut")
    assert len(calls) < 40
    monkeypatch.undo()
    assert not list((tmp_path / "cut").glob(".*"))
    trained(tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_an_ignored_ctrl_c_stays_ignored(trained, tmp_path, monkeypatch):
    """As a shell sets it for what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    update = loop.Run.update

    def interrupted(run):
        os.kill(os.getpid(), signal.SIGINT)
        return update(run)

    monkeypatch.setattr(loop.Run, "update", interrupted)
    try:
        trained(tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert state.read_about(tmp_path)["step"] == 4


def test_two_trainings_in_two_threads_do_not_share_a_folder(trained, tmp_path):
    ends = []

    def run():
        try:
            trained(tmp_path)
            ends.append("trained")
        except TrainingError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(end == "trained" or "another training" in end for end in ends)
    assert "trained" in ends
