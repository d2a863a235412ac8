"""The device that somebody names: one that torch knows and that is here, or a plain error."""

from __future__ import annotations

import logging

import pytest
import torch

import interp
from interp.cli import main as cli
from interp.core.devices import as_device
from interp.model import HookedTransformer
from tests.strategies import small_config

UNKNOWN = [
    *("gpu", "tpu:0", "CUDA", "", " cpu", "cuda:", "cuda:-1", "cuda:one", "cuda:01", "cpu,gpu"),
]
ABSENT = [
    *("xpu", "xpu:0", "mtia", "vulkan", "xla:0", "hpu", "cuda:99", "mps", "fpga", "ve", "ideep"),
]


def test_the_default_is_cuda_where_there_is_one_else_the_cpu(monkeypatch):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    assert as_device(None).type == expected


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu:0")])
def test_the_cpu_is_one_device(name):
    assert as_device(name) == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'cpu:1': there is one CPU; this machine has cpu"):
        as_device("cpu:1")


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_torch_does_not_know(name):
    with pytest.raises(ValueError, match="no such device; this machine has cpu") as error:
        as_device(name)
    assert f"device {name!r}: torch knows" in str(error.value)


@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_is_not_here(name):
    if torch.device(name).type == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has mps")
    with pytest.raises(ValueError, match=r"cannot be used \(.+\); this machine has cpu") as error:
        as_device(name)
    assert f"device {name!r}" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize("value", [0, 1, True, 1.0, ["cpu"], b"cpu"])
def test_what_is_no_name(value, unchecked):
    with pytest.raises(ValueError, match="expected a name; this machine has cpu"):
        as_device(value)


@pytest.mark.parametrize("name", ["meta", torch.device("meta")])
def test_meta_holds_no_numbers(name):
    with pytest.raises(ValueError, match=r"hold no numbers.*interp info"):
        as_device(name)


def test_apples_gpu_is_used_where_it_is_named_and_said_to_be_doubtful(monkeypatch, caplog):
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.empty(()))
    with caplog.at_level(logging.WARNING):
        assert as_device("mps").type == "mps"
    assert "wrong results" in caplog.text


def test_the_devices_that_are_here_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="this machine has cpu, cuda:0, cuda:1"):
        as_device("gpu")


COMMANDS = {
    "doctor": ["doctor", "modadd"],
    "generate": ["generate", "tinyworld", "the"],
    "run": ["run", "attention-patterns", "--model", "tinyworld"],
    "train": ["train", "--text", "text.txt"],
    "recipe": ["train", "--recipe", "modadd"],
}


@pytest.mark.parametrize("device", ["gpu", "xpu:3", "meta"])
@pytest.mark.parametrize("command", COMMANDS)
def test_on_the_command_line(command, device, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a few words of a text. " * 40, encoding="utf-8")
    out = ["--out", "out"] if COMMANDS[command][0] in ("run", "train") else []
    assert cli.main([*COMMANDS[command], *out, "--device", device]) == 2
    error = capsys.readouterr().err
    assert f"device '{device}'" in error and "this machine has cpu" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_places_that_take_a_device_name_it_alike():
    model = HookedTransformer(small_config())
    for act in (
        lambda: interp.load("modadd", device="gpu"),
        lambda: interp.doctor("modadd", device="gpu"),
        lambda: model.run_with_cache([1, 2], device="gpu"),
    ):
        with pytest.raises(ValueError, match="device 'gpu': torch knows no such device"):
            act()
