"""Harvests: what is kept is what the model computed, whole or not at all, and once."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers, processors

import interp
from interp import shards, windows
from interp.core.sites import UnknownSite
from interp.core.tokenizer import Tokenizer
from interp.core.tokens import Tokens
from interp.data.harvest import harvest
from interp.data.moments import Moments
from interp.data.shards import Harvest, HarvestError
from interp.data.windows import Windows
from interp.loading.tensors import read_entries

from .kills import dying
from .strategies import random_model, small_config

ROOT = Path(interp.__file__).parents[1]
WORDS = ["red", "blue", "green", "cat", "dog", "sun", "moon"]
SITES = [("resid_post", 0), ("z", 1)]
TEXTS = [
    "red cat",
    "blue dog sun moon",
    "green",
    "cat cat cat red sun sun moon blue blue green",
    "x",
]
SMALL = {"shard_size": 4000, "batch_size": 2, "dtype": "float64", "progress": False}


pytestmark = pytest.mark.usefixtures("one_thread")


def word_tokenizer(template: bool = False) -> Tokenizer:
    """One id per word, and, with a template, [CLS] and [SEP] around a text."""
    entries = {word: i for i, word in enumerate(["[UNK]", *WORDS, "[CLS]", "[SEP]"])}
    backend = tokenizers.Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        ends = [(name, entries[name]) for name in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    return Tokenizer(backend.to_str(), {"unk_token": "[UNK]"})


def made(**changes):
    model = random_model(small_config(**{"n_layers": 2, "d_model": 16, "n_ctx": 6} | changes))
    model.tokenizer = word_tokenizer()
    return model


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.fixture
def texts():
    drawn = random.Random(0)
    return [" ".join(drawn.choices(WORDS, k=drawn.randint(1, 9))) for _ in range(60)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def by_hand(model, texts):
    """Every window alone, by the plain verbs."""
    rows, values = [], {name: [] for name in model.sites.select(SITES)}
    for i, text in enumerate(texts):
        ids = model.tokenizer.encode(text)
        for w, at in enumerate(range(0, len(ids), model.cfg.n_ctx)):
            window = ids[at : at + model.cfg.n_ctx]
            _, cache = model.run_with_cache(torch.tensor([window]), SITES)
            rows += [(i, w, pos, token) for pos, token in enumerate(window)]
            for name, kept in values.items():
                kept.append(cache[name][0])
    return rows, {name: torch.cat(kept) for name, kept in values.items()}


def test_it_holds_what_the_model_computes(model, texts, tmp_path):
    kept = harvest(model, texts, SITES, tmp_path / "kept", **SMALL)
    rows, values = by_hand(model, texts)
    assert list(kept.rows.itertuples(index=False, name=None)) == rows
    assert len(kept.shards) > 3 and kept.complete and len(kept) == kept.tokens == len(rows)
    assert kept.cut == sum(len(text.split()) > 6 for text in texts) > 0
    for name, expected in values.items():
        assert torch.allclose(kept.read(name), expected, rtol=1e-12, atol=1e-12)
        for size in (7, 10_000):
            for at, part in kept.chunks(name, size):
                assert torch.equal(part, kept.read(name, at)) and len(part) <= size
        assert sum(len(part) for _, part in kept.chunks(name, 7)) == len(rows)
    assert kept.read(("z", 1)).shape == (len(rows), 4, 4)
    with pytest.raises(UnknownSite):
        kept.read(("z", 0))


def test_a_file_is_its_lines(model, texts, tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*texts[:3], "", "  ", *texts[3:]]).encode())
    kept = harvest(model, file, SITES, tmp_path / "file", **SMALL)
    listed = harvest(model, texts, SITES, tmp_path / "list", **SMALL)
    assert torch.equal(kept.read(SITES[0]), listed.read(SITES[0]))
    lines, numbers = kept.rows.text, listed.rows.text
    assert (lines == numbers + 2 * (numbers >= 3)).all()  # blank lines are counted, not read


def test_a_line_longer_than_memory_is_read_in_pieces(model, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "LONGEST", 37)
    text = " ".join(random.Random(1).choices(WORDS, k=400))
    file = tmp_path / "long.txt"
    file.write_text(f"{text}\nred", encoding="utf-8")
    kept = harvest(model, file, SITES, tmp_path / "kept", **SMALL)
    rows = kept.rows
    assert rows.token.tolist() == model.tokenizer.encode(f"{text} red")
    first = rows[rows.text == 0]
    assert first.window.drop_duplicates().tolist() == list(range(first.window.max() + 1))
    assert rows.text.max() == 1


def test_pieces_are_cut_between_characters(monkeypatch):
    for n in range(1, 9):
        line = ("é" * 3 + "日本" + "🙂").encode()[: 4 + n]
        whole = line[: windows._place_to_cut(line)]
        whole.decode("utf-8")
        assert len(line) - len(whole) < 4


def test_ids_and_padded_tokens_are_the_same_text(model, tmp_path):
    rows = [[1, 2, 3, 4, 5, 6, 7, 1], [2, 2], [5, 4, 3]]
    listed = harvest(model, rows, SITES, tmp_path / "a", **SMALL)
    padded = Tokens.from_rows(rows, side="left")
    again = harvest(model, padded, SITES, tmp_path / "b", **SMALL)
    assert listed.rows.equals(again.rows)
    assert torch.equal(listed.read(SITES[0]), again.read(SITES[0]))


def test_special_tokens_stand_around_every_window(tmp_path):
    model = made(causal=False)
    model.tokenizer = word_tokenizer(template=True)
    text = " ".join(WORDS * 2)
    kept = harvest(model, [text], SITES, tmp_path / "kept", **SMALL)
    whole = model.tokenizer.encode(text)
    for _, part in kept.rows.groupby("window"):
        assert part.token.iloc[0] == whole[0] and part.token.iloc[-1] == whole[-1]
    inner = kept.rows[~kept.rows.token.isin([whole[0], whole[-1]])]
    assert inner.token.tolist() == whole[1:-1]
    with pytest.raises(ValueError, match="leave no room"):
        harvest(model, [text], SITES, tmp_path / "none", width=2, **SMALL)


def test_positions_last_roles_and_sampled(model, texts, tmp_path):
    everything = harvest(model, texts, SITES, tmp_path / "all", **SMALL)
    rows, values = everything.rows, everything.read(SITES[0])
    last = harvest(model, texts, SITES, tmp_path / "last", positions="last", **SMALL)
    ends = rows.groupby(["text", "window"]).tail(1)
    assert last.rows.equals(ends.reset_index(drop=True))
    assert torch.allclose(last.read(SITES[0]), values[ends.index.to_numpy().copy()], atol=1e-12)

    some = harvest(model, texts, SITES, tmp_path / "some", sample=2, seed=3, **SMALL)
    sizes = rows.groupby(["text", "window"]).size().clip(upper=2)
    assert some.rows.groupby(["text", "window"]).size().equals(sizes)
    own = rows.reset_index().merge(some.rows, on=["text", "window", "pos", "token"])["index"]
    assert torch.allclose(some.read(SITES[0]), values[own.to_numpy().copy()], atol=1e-12)
    other = harvest(model, texts, SITES, tmp_path / "other", sample=2, seed=4, **SMALL)
    assert not other.rows.equals(some.rows)

    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 1], [2, 3, 4, 5]])
    roles = {"name": torch.tensor([0, 1, 2]), "end": torch.tensor([-1, 3, 3])}
    named = harvest(model, Tokens(ids, roles=roles), SITES, tmp_path / "roles",
                    positions=["name", "end"], **SMALL)  # fmt: skip
    assert named.rows.role.tolist() == ["name", "end"] * 3
    assert named.rows.pos.tolist() == [0, 3, 1, 3, 2, 3]
    assert named.rows.token.tolist() == [1, 4, 6, 1, 4, 5]
    _, cache = model.run_with_cache(ids, SITES)
    expected = cache["resid_post", 0][[0, 0, 1, 1, 2, 2], [0, 3, 1, 3, 2, 3]]
    assert torch.allclose(named.read(SITES[0]), expected, atol=1e-12)
    with pytest.raises(ValueError, match="roles"):
        harvest(model, Tokens(ids, roles=roles), SITES, tmp_path / "x", positions="nam", **SMALL)


def test_a_harvest_killed_anywhere_goes_on_to_the_same_bytes(model, texts, tmp_path, monkeypatch):
    """Between any two operations on the disk, and on the way on once more."""
    file = tmp_path / "text.txt"
    file.write_text("\n".join(texts[:12]), encoding="utf-8")
    sources = (texts[:12], file, Tokens.of(torch.arange(24).reshape(8, 3) % 8))
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug
    expected = [
        contents(harvest(model, source, SITES, tmp_path / f"whole-{i}", **SMALL).folder)
        for i, source in enumerate(sources)
    ]
    with dying() as counted:
        harvest(model, texts[:12], SITES, tmp_path / "counted", **SMALL)
    assert counted.count > 20
    for at in range(counted.count):
        source, folder = sources[at % 3], tmp_path / str(at)
        for later in (at, 9):
            with dying(later):
                harvest(model, source, SITES, folder, **SMALL)
            if (folder / "manifest.json").exists():
                Harvest.load(folder, partial=True)
        harvest(model, source, SITES, folder, **SMALL)
        assert contents(folder) == expected[at % 3]


VICTIM = """
import sys, time, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.test_harvest import made, SITES, SMALL, harvest
from interp import shards
write = shards.write_tensors
def slow(path, tensors, metadata):
    print(path.name, flush=True); write(path, tensors, metadata); time.sleep(0.05)
shards.write_tensors = slow
print("ready", flush=True)
harvest(made(), Path(sys.argv[1]), SITES, sys.argv[2], **SMALL)
"""


def test_a_process_that_is_killed_leaves_whole_shards(model, texts, tmp_path):
    file, folder = tmp_path / "text.txt", tmp_path / "kept"
    file.write_text("\n".join(texts), encoding="utf-8")
    command = [sys.executable, "-c", VICTIM, file, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as victim:
        for line in victim.stdout:
            if "00002" in line:
                time.sleep(0.01)  # inside the write of the third shard
                victim.send_signal(signal.SIGKILL)
                break
    assert victim.returncode == -signal.SIGKILL
    opened = Harvest.load(folder, partial=True)
    assert 2 <= len(opened.shards) <= 3 and not opened.complete
    with pytest.raises(HarvestError, match="is not finished"):
        Harvest.load(folder)
    whole = harvest(model, file, SITES, tmp_path / "whole", **SMALL)
    before = {name: data for name, data in contents(folder).items() if name.startswith("shard")}
    kept = harvest(model, file, SITES, folder, **SMALL)
    assert contents(kept.folder) == contents(whole.folder)
    assert before.items() <= contents(folder).items()


def test_a_finished_harvest_is_not_computed_again(model, texts, tmp_path, monkeypatch):
    harvest(model, texts, SITES, tmp_path / "kept", **SMALL)
    monkeypatch.setattr(type(model), "run_with_cache", None)
    assert harvest(model, texts, SITES, tmp_path / "kept", **SMALL).complete
    with pytest.raises(HarvestError, match="holds a harvest already"):
        harvest(model, texts, SITES, tmp_path / "kept", resume=False, **SMALL)


def test_something_else_is_refused_with_what_differs(model, texts, tmp_path):
    folder = tmp_path / "kept"
    harvest(model, texts, SITES, folder, **SMALL)
    other = random_model(model.cfg, seed=1)
    other.tokenizer = model.tokenizer
    for given, changes, field in (
        ((other, texts, SITES), {}, "weights: there"),
        ((model, texts[1:], SITES), {}, "source: there 60 of str"),
        ((model, texts, SITES[:1]), {}, "sites"),
        ((model, texts, SITES), {"positions": "last"}, "positions: there all, now last"),
        ((model, texts, SITES), {"batch_size": 3}, "batch_size: there 2, now 3"),
        ((model, texts, SITES), {"dtype": "float16"}, "stored: there float64, now float16"),
        ((model, texts, SITES), {"seed": 1}, "seed"),
    ):
        with pytest.raises(HarvestError, match=field) as error:
            harvest(*given, folder, **SMALL | changes)
        assert str(error.value).count("; ") == 1  # one difference, and what to do

    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "notes.txt").write_text("mine")
    with pytest.raises(HarvestError, match="is not a harvest"):
        harvest(model, texts, SITES, strange, **SMALL)
    with pytest.raises(HarvestError, match="is a file"):
        harvest(model, texts, SITES, strange / "notes.txt", **SMALL)
    assert (strange / "notes.txt").read_text() == "mine"
    (folder / "shard-00001.safetensors").unlink()
    with pytest.raises(HarvestError, match="lacks shard-00001"):
        Harvest.load(folder)


def test_two_do_not_write_one_folder(model, texts, tmp_path):
    folder = tmp_path / "kept"
    with (
        shards.opened(folder, {}, [], [], True),
        pytest.raises(HarvestError, match="another harvest"),
    ):
        harvest(model, texts, SITES, folder, **SMALL)


def test_a_full_disk_names_itself_and_whole_shards_stay(model, texts, tmp_path, monkeypatch):
    folder, replace = tmp_path / "kept", os.replace

    def full(beside, path):
        if "00002" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(beside, path)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(HarvestError, match=r"No space left.*2 shards .* are whole"):
        harvest(model, texts, SITES, folder, **SMALL)
    assert not list(folder.glob(".*")) and len(Harvest.load(folder, partial=True).shards) == 2
    monkeypatch.undo()
    whole = harvest(model, texts, SITES, tmp_path / "whole", **SMALL)
    assert contents(harvest(model, texts, SITES, folder, **SMALL).folder) == contents(whole.folder)


def test_the_librarys_own_error_is_named_too(model, texts, tmp_path):
    """A real limit on file sizes, which the writer of shards meets in its own code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with pytest.raises(HarvestError, match="cannot be written into"):
            harvest(model, texts, SITES, tmp_path / "kept", **SMALL | {"shard_size": 10_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert Harvest.load(tmp_path / "kept", partial=True).shards == ()


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def all_read(folder: Path) -> None:
    kept = Harvest.load(folder)
    kept.rows  # noqa: B018
    for site in kept.sites:
        kept.read(site.name)


@pytest.mark.parametrize("name", ["manifest.json", "shard-00001.safetensors"])
def test_any_flipped_bit_is_found_and_named(model, texts, tmp_path, name):
    folder = harvest(model, texts[:12], SITES, tmp_path / "kept", **SMALL).folder
    all_read(folder)
    size = 8 * (folder / name).stat().st_size
    for bit in {*range(0, size, size // 60), *range(0, 90 * 8, 19)}:
        flip(folder / name, bit)
        with pytest.raises(HarvestError, match=name):
            all_read(folder)
        flip(folder / name, bit)
    all_read(folder)


def test_what_is_damaged_is_not_gone_on_from_and_the_advice_works(model, texts, tmp_path):
    folder = harvest(model, texts, SITES, tmp_path / "kept", **SMALL).folder
    before, shard = contents(folder), folder / "shard-00001.safetensors"
    behind = sorted(folder.glob("shard-*"))[2:]
    assert behind
    behind.pop().unlink()  # else it is finished, and only read
    flip(shard, 8 * shard.stat().st_size - 5)
    with pytest.raises(HarvestError, match=r"shard-00001.* is damaged .*delete it and the shards"):
        harvest(model, texts, SITES, folder, **SMALL)
    for path in (shard, *behind):
        path.unlink()
    harvest(model, texts, SITES, folder, **SMALL)
    assert contents(folder) == before


def test_only_what_is_read_is_checked(model, texts, tmp_path):
    kept = harvest(model, texts, SITES, tmp_path / "kept", **SMALL)
    site, other = (site.name for site in kept.sites)
    shard = kept.folder / "shard-00001.safetensors"
    flip(shard, 8 * read_entries(shard)[site].start + 77)
    kept = Harvest.load(kept.folder)  # which reads no tensor
    for read in (lambda: list(kept.chunks(site, 3)), lambda: kept.read(site)):
        with pytest.raises(HarvestError, match=r"shard-00001.* is damaged"):
            read()
    kept.read(other)


def test_a_harvest_of_an_earlier_version_is_read(model, texts, tmp_path):
    """Its manifest and its shards bear no checksums."""
    kept = harvest(model, texts, SITES, tmp_path / "kept", **SMALL)
    whole = {site.name: kept.read(site.name) for site in kept.sites}
    for path in kept.folder.glob("shard-*"):
        header = {shards.KIND: shards.Shard.read(path).header}
        save_file(load_file(path), path, header)
    manifest = json.loads((kept.folder / "manifest.json").read_text())
    del manifest["check"]
    (kept.folder / "manifest.json").write_text(json.dumps(manifest))
    again = Harvest.load(kept.folder)
    assert all(torch.equal(again.read(name), value) for name, value in whole.items())


def test_numbers_that_do_not_fit_are_an_error_and_not_infinity(texts, tmp_path):
    model = made()
    model.W_E.mul_(1e6)
    options = SMALL | {"dtype": "float16"}
    with pytest.raises(HarvestError, match=r"reach .* do not fit into torch.float16"):
        harvest(model, texts, SITES, tmp_path / "kept", **options)
    kept = harvest(model, texts, SITES, tmp_path / "wide", **options | {"dtype": "bfloat16"})
    assert kept.read(SITES[0]).isfinite().all()


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ([], {}, "the list is empty"),
        (["red", ""], {}, "text 1, '', has no tokens"),
        ([[1, 2], []], {}, "text 1 has no tokens"),
        ((text for text in ["red"]), {}, "can be read only once"),
        (Path("/dev/null"), {}, "is a device, and a file is needed"),
        (["red"], {"batch_size": 0}, "batch_size=0"),
        (["red"], {"width": 7}, "width=7: this model reads 1 to 6"),
        (["red"], {"dtype": "int8"}, "dtype='int8'"),
        (["red"], {"sites": "pattern"}, "one vector per position"),
        (["red"], {"sites": "residpost"}, "did you mean"),
        (["red"], {"sample": 0}, "sample=0"),
        (["red"], {"positions": []}, "positions is empty"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(model, source, changes, message, tmp_path):
    options = {"sites": SITES, **SMALL, **changes}
    with pytest.raises(ValueError, match=message):
        harvest(model, source, options.pop("sites"), tmp_path / "kept", **options)


def test_files_that_are_no_text_are_refused(model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"red\nblue \xff\n")
    with pytest.raises(ValueError, match=r"byte 9 \(line 2\) is not UTF-8"):
        harvest(model, file, SITES, tmp_path / "a", **SMALL)
    file.write_bytes(b"\n \n")
    with pytest.raises(ValueError, match="nothing but blank lines"):
        harvest(model, file, SITES, tmp_path / "b", **SMALL)
    with pytest.raises(ValueError, match="is the name of a file"):
        harvest(model, str(file), SITES, tmp_path / "c", **SMALL)
    hooked = model.with_hooks([("z", lambda x, hook: None)])
    with pytest.raises(ValueError, match="without hooks"):
        harvest(hooked, ["red"], SITES, tmp_path / "d", **SMALL)


def test_memory_is_flat_in_the_length_of_a_file(model, tmp_path):
    """Reading alone: what Python holds at its highest, for a text and one ten times as long."""
    peaks = []
    for times in (1, 10):
        file = tmp_path / f"{times}.txt"
        file.write_text("red cat blue dog\n" * 200 * times, encoding="utf-8")
        stream = Windows(model, file, batch_size=8)
        tracemalloc.start()
        n = sum(len(batch.tokens) for batch in stream.batches())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert n == 200 * times
    assert peaks[1] < 1.5 * peaks[0]


def test_nothing_past_the_last_site_is_computed(model, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model), "to_logits", None)
    harvest(model, texts, [("resid_post", 1)], tmp_path / "a", **SMALL)
    monkeypatch.undo()
    last = harvest(model, texts, "ln_final.hook_normalized", tmp_path / "b", **SMALL)
    assert len(last) and json.loads((tmp_path / "b/manifest.json").read_text())["complete"]["rows"]


def test_moments_of_a_harvest_are_those_of_its_rows(model, texts, tmp_path):
    kept = harvest(model, texts, SITES, tmp_path / "kept", **SMALL)
    label = torch.from_numpy((kept.rows.token.to_numpy() == 1).astype("int64"))
    stream = Moments(16, classes=2)
    for rows, x in kept.chunks(("resid_post", 0), 5):
        stream.add(x, label[rows])
    whole = Moments.of(kept.read(("resid_post", 0)), label)
    assert torch.allclose(stream.covariance, whole.covariance, rtol=1e-12, atol=1e-12)
    assert torch.allclose(stream.class_means, whole.class_means, rtol=1e-12, atol=1e-12)
