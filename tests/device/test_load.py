"""A device that torch was taught is a device like another: `load`, `--device`, errors."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.cli import main as cli
from interp.core.devices import as_device
from interp.core.memory import free_bytes
from interp.loading.fingerprint import device_kind
from interp.training import TextRun, TrainConfig, train_on_text
from tests.device.pretend import DEVICE


@pytest.mark.parametrize("name", ["pretend", "pretend:0", DEVICE, torch.device("pretend")])
def test_load_takes_its_name(name):
    model = interp.load("modadd", device=name)
    assert {value.device for value in model.state_dict().values()} == {DEVICE}
    assert model.source == interp.load("modadd", device="cpu").source


def test_another_number_is_not_here_and_the_message_says_what_is():
    with pytest.raises(ValueError, match=r"'pretend:1' cannot be used .* has cpu, .*pretend:0$"):
        interp.load("modadd", device="pretend:1")
    with pytest.raises(ValueError, match=r"no such device; this machine has cpu, .*pretend:0$"):
        interp.load("modadd", device="pretended")


def test_it_is_never_chosen():
    assert as_device(None).type != "pretend"


def test_the_free_memory_of_an_unknown_device_is_unknown():
    assert free_bytes("pretend") is None


def test_a_journal_knows_its_device():
    assert device_kind(DEVICE) != device_kind(torch.device("cpu"))


COMMANDS = {
    "doctor": ["doctor", "modadd"],
    "generate": ["generate", "tinyworld", "the", "--max-new-tokens", "3"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_takes_it(command, capsys):
    said = []
    for device in ("pretend", "cpu"):
        assert cli.main([*COMMANDS[command], "--device", device]) == 0
        said.append(capsys.readouterr().out)
    if command == "generate":
        assert said[0] == said[1]
    else:
        assert "on pretend:0" in said[0] and "on cpu" in said[1]


def test_training_takes_it(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a few words of a text, again and again. " * 20, encoding="utf-8")
    models = [
        train_on_text(
            TextRun(
                text=text, out=tmp_path / device, n_layers=1, n_heads=2, d_model=16, n_ctx=8,
                device=device, train=TrainConfig(steps=2, batch_size=2, eval_batches=1),
            ),
            progress=False,
        )
        for device in ("pretend", "cpu")
    ]  # fmt: skip
    assert models[0].device == DEVICE
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(ours.cpu(), theirs, 1e-4, 1e-6)
