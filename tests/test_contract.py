"""The contract of every analysis that there is; a new one is found and needs no test of its own.

Each runs on a small random model whose vocabulary holds the words of our lists. An analysis that
takes too long gets other settings in `interp.cli.gallery.SMALL`; one that needs others on this
model, in `SETTINGS`.
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import hashlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import typing
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import matplotlib
import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import tyro
from pandas.api import types
from tokenizers import models, pre_tokenizers

import analyses
import interp
from analyses.embedding_arithmetic import DATA, PLACED, read_analogies
from interp.cli import main as cli
from interp.cli.gallery import SMALL
from interp.core.tokenizer import Tokenizer
from interp.core.visible import one_line
from interp.loading.needs import Needs
from interp.model import HookedTransformer
from interp.report import Report
from interp.report.text import visible
from tests.strategies import small_config
from tests.vocabularies import known_words

ROOT = Path(__file__).resolve().parents[1]
NAMES = analyses.names()
SETTINGS = SMALL | {
    # The words of the default texts are no part of the small model's vocabulary.
    "embedding-geometry": (
        *SMALL["embedding-geometry"],
        *("--data", str(ROOT / "tests" / "senses.csv"), "--group-column", "cue"),
    ),
}
"""Options of an analysis for this battery, as on the command line."""
COMMON = ("model", "device", "dtype", "seed", "out")
TOKENS = (
    "</script><script>alert(1)</script>",
    "<!--<script>alert(1)",
    "<img/src=x/onerror=alert(1)>",
    "]]>&lt;'\"`",
    "\u202ertl\u2066",
    "=1+1",
    "שלום",
    "a\x00b",
    "x" * 100_000,
    "a\u2028b",
)
"""Entries of the hostile vocabulary; those that are no white space stand in prompts, too."""


def vocabulary() -> list[str]:
    listed = [word for column in "abc" for word in read_analogies(DATA)[column]]
    answers = read_analogies(DATA)["expected"]
    return list(dict.fromkeys(["[UNK]", "<s>", *listed, *answers, *PLACED, *known_words()]))


class Surrogate(Tokenizer):
    """One entry falls apart into half a character, as those of byte-level vocabularies do."""

    def str_tokens(self, ids) -> list[str]:
        half = self.vocab().get("=1+1")
        return ["\ud800" if i == half else one
                for i, one in zip(ids, super().str_tokens(ids), strict=True)]  # fmt: skip


def small_model(more: tuple[str, ...] = ()) -> HookedTransformer:
    """Two layers of random weights; the vectors of `more` lie beside those of the default words."""
    words = [*vocabulary(), *more]
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]", "bos_token": "<s>"}
    tokenizer = (Surrogate if more else Tokenizer)(backend.to_str(), special, "contract")
    torch.manual_seed(0)
    cfg = small_config(n_layers=2, d_vocab=len(words), n_ctx=64)
    model = HookedTransformer(cfg, tokenizer=tokenizer)
    with torch.no_grad():
        for i, word in enumerate(more):
            near = model.W_E[words.index(("king", "woman", "queen")[i % 3])]
            model.W_E[len(words) - len(more) + i] = near + 0.01 * torch.randn(cfg.d_model)
            assert tokenizer.vocab()[word] == len(words) - len(more) + i
    return model.requires_grad_(False)


def config_of(name: str, *options: str):
    module = analyses.load(name)
    return tyro.cli(module.Config, args=[*SETTINGS.get(name, ()), *options])


def state_of(model) -> tuple:
    """Everything that an analysis could leave changed."""
    return (
        {key: hashlib.sha256(value.numpy().tobytes()).digest()
         for key, value in model.state_dict().items()},
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002  # not `random`: the shape checks draw from it
        (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
        dict(matplotlib.rcParams),
    )  # fmt: skip


@cache
def ran(name: str, home: Path) -> SimpleNamespace:
    """One run of an analysis, and the state before and after it."""
    model = small_model()
    config = config_of(name)
    before = state_of(model)
    report = analyses.load(name).run(model, config)
    return SimpleNamespace(
        model=model, config=config, report=report, before=before, after=state_of(model),
        folder=report.write(home / name).parent,
    )  # fmt: skip


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def done(name, home):
    return ran(name, home)


class Page(HTMLParser):
    """Tags with attributes, and what stands inside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.inside: list[tuple[str, dict, str]] = []
        self.order: list[str] = []
        self.text = ""
        self._open = False
        self.raw = path.read_bytes().decode("utf-8")
        self.feed(self.raw)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert len(attributes) == len(attrs)
        self.tags.append((tag, attributes))
        self.order.append("policy" if "http-equiv" in attributes else tag)
        self._open = tag in ("script", "style")
        if self._open:
            self.inside.append((tag, attributes, ""))

    def handle_endtag(self, tag):
        self._open = False

    def handle_data(self, data):
        if self._open:
            tag, attributes, text = self.inside.pop()
            self.inside.append((tag, attributes, text + data))
        else:
            self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def hashes(self) -> dict[str, set[str]]:
        """Of every style, and of every script that is more than data."""
        found: dict[str, set[str]] = {"script": set(), "style": set()}
        for tag, attributes, text in self.inside:
            if attributes.get("type") != "application/json":
                digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
                found[tag].add(f"'sha256-{digest}'")
        return found


def check_page(path: Path) -> Page:
    """One that opens, runs only what is ours, and asks for nothing."""
    page = Page(path)
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    rules = {rule.split()[0]: set(rule.split()[1:]) for rule in policy.split(";") if rule.strip()}
    assert rules["default-src"] == {"'none'"}
    assert rules["base-uri"] == rules["form-action"] == {"'none'"}
    for kind in ("script", "style"):
        assert rules.get(f"{kind}-src", set()) - {"'none'"} == page.hashes[kind]
    others = set().union(*(v for k, v in rules.items() if k not in ("script-src", "style-src")))
    assert others <= {"'none'", "data:"}
    assert page.order.index("policy") < min(
        page.order.index(tag) for tag in ("script", "style", "img") if tag in page.order
    )
    for tag, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "style"], tag
        assert tag not in ("iframe", "object", "embed", "base", "form", "link")
        for key in ("src", "href"):
            address = attributes.get(key, "#")
            if not address.startswith(("#", "data:")):
                assert not urlsplit(address).scheme and not urlsplit(address).netloc, address
                assert (path.parent / unquote(urlsplit(address).path)).is_file(), address
    for tag, attributes, text in page.inside:
        if tag == "script":
            assert "src" not in attributes
            if attributes.get("type") == "application/json":
                json.loads(text)
    assert all(image.get("alt") for image in page.all("img"))
    assert len(page.all("h1")) == 1
    assert page.all("html")[0]["lang"] == "en"
    assert "<title>" in page.raw
    assert not {"\u2028", "\u202e", "\x00"} & set(page.raw)
    return page


def test_there_are_analyses():
    assert "embedding-arithmetic" in NAMES


def test_it_has_the_protocol(name):
    module = analyses.load(name)
    config = module.Config
    assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen
    assert set(COMMON) <= set(config.__dataclass_fields__)
    config()  # every field has a default
    assert list(inspect.signature(module.run).parameters) == ["model", "config"]
    assert typing.get_type_hints(module.run)["return"] is Report
    assert isinstance(module.NEEDS, Needs)
    assert hasattr(module, "TABLES"), f"{name}: TABLES must name the CSV files and their columns"
    (tree,) = ast.parse(inspect.getsource(config)).body
    body = tree.body
    for field, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert told, f"{name}: Config.{field.target.id} has no sentence below it"


def test_it_answers_in_words(done):
    report = done.report
    assert report.title and report.question.rstrip().endswith("?")
    assert report.findings and report.certainty and report.doubts
    words = (report.warnings, report.findings, report.certainty, report.doubts, report.skipped)
    for text in (one for some in words for one in some):
        assert not re.search(r"\b(nan|inf|None)\b", text), text
    assert report.to_markdown().startswith("# ")


def test_its_tables_are_those_it_declares(name, done):
    declared = analyses.load(name).TABLES
    files = {path.stem: path for path in done.folder.glob("*.csv")}
    assert files
    for stem, path in files.items():
        assert stem in declared, f"{name}: TABLES does not name {stem}.csv"
        columns = [one for one in declared[stem] if one is not ...]
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
        wanted = [one.removesuffix("?") for one in columns]
        found = list(frame.columns)
        if ... in declared[stem]:
            found = found[: len(wanted)]
        assert found == wanted, f"{name}: {stem}.csv"
        for one in frame:
            if types.is_numeric_dtype(frame[one]):
                holes = f"{one}?" in columns
                assert holes or np.isfinite(frame[one].to_numpy(float)).all(), f"{stem}: {one}"


def test_its_page_opens_and_runs_only_what_is_ours(done):
    pages = sorted(done.folder.rglob("*.html"))
    assert done.folder / "index.html" in pages
    for path in pages:
        check_page(path)
    text = check_page(done.folder / "index.html").text
    for part in (done.report.title, done.report.question, *done.report.findings):
        assert visible(part) in text


def test_its_manifest_says_where_it_comes_from(name, done):
    manifest = json.loads((done.folder / "manifest.json").read_text(encoding="ascii"))
    assert manifest["analysis"].replace("_", "-") == name
    assert set(manifest["config"]) == set(type(done.config).__dataclass_fields__)
    assert manifest["seed"] == done.config.seed
    assert manifest["device"] == "cpu" and manifest["dtype"] == "float32"
    assert manifest["threads"] == torch.get_num_threads()
    assert len(manifest["model"]["weights_hash"]) == 64
    assert manifest["model"]["tokenizer_hash"] == done.model.tokenizer.hash
    assert manifest["command"] and manifest["packages"]["torch"] and manifest["wall_seconds"] > 0
    assert {"packing", "skipped", "git", "created"} <= set(manifest)
    present = {p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == present - {"manifest.json"}


def test_it_leaves_everything_as_it_was(done):
    for before, after in zip(done.before, done.after, strict=True):
        assert before == after


def test_the_same_seed_gives_the_same_bytes(name, done, tmp_path):
    torch.rand(3), np.random.rand(3)  # noqa: NPY002  # no seed but its own counts
    again = analyses.load(name).run(small_model(), done.config).write(tmp_path / "r").parent
    for path in sorted(p for p in done.folder.rglob("*") if p.is_file()):
        other = again / path.relative_to(done.folder)
        if path.name != "manifest.json":
            assert path.read_bytes() == other.read_bytes(), path.name
            continue
        one, two = (json.loads(p.read_text()) for p in (path, other))
        for key in ("created", "wall_seconds"):
            del one[key], two[key]
        assert one == two


def test_hostile_tokens_are_text(name, done, tmp_path):
    options = hostile_options(type(done.config), tmp_path)
    report = analyses.load(name).run(small_model(TOKENS), config_of(name, *options))
    folder = report.write(tmp_path / "r").parent
    pages = [check_page(path) for path in sorted(folder.rglob("*.html"))]
    assert "alert(1)" in "".join(page.raw for page in pages), "no hostile token got as far as this"
    ours = check_page(done.folder / "index.html").hashes
    assert all(page.hashes == ours for page in pages)
    for path in folder.rglob("*.csv"):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        assert not rows.map(lambda cell: cell.startswith(("=", "+", "@"))).any(axis=None)
    report.to_markdown().encode("utf-8")
    assert "<iframe" in report._repr_html_()[:8]


def hostile_options(config: type, folder: Path) -> list[str]:
    """Hostile prompts and texts, for those analyses that take any."""
    fields, options = config.__dataclass_fields__, []
    # A file with NUL is refused as no text.
    words = [token for token in TOKENS if not re.search(r"\s|\0", token)]
    if "prompts" in fields and "Path" in str(fields["prompts"].type):
        rows = [{"clean": " ".join([*words[i:], *words[:i], "king"]),
                 "corrupted": " ".join([*words[i:], *words[:i], "queen"]),
                 "answer": words[0], "wrong": words[1]} for i in range(3)]  # fmt: skip
        pd.DataFrame(rows).to_csv(folder / "hostile.csv", index=False)
        options += ["--prompts", str(folder / "hostile.csv")]
    elif "prompts" in fields:
        options += ["--prompts", " ".join(words)]
    if "text" in fields and "Path" in str(fields["text"].type):
        lines = (" ".join([*words[i:], *words[:i]]) for i in range(4))
        (folder / "hostile.txt").write_text("\n".join(lines), encoding="utf-8")
        options += ["--text", str(folder / "hostile.txt")]
    if "data" in fields:
        texts = [" ".join([*words[i:], *words[:i]]) for i in range(len(words))]
        rows = [{"text": f"{text} {word}", "word": word, "sense": f"{words[-1]} {i % 2}",
                 "label": word, "cue": str(i)}
                for i, text in enumerate(texts) for word in ("king", "queen")]  # fmt: skip
        pd.DataFrame(rows).to_csv(folder / "hostile-labels.csv", index=False)
        options += ["--data", str(folder / "hostile-labels.csv")]
    return options


def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(name, done, tmp_path):
    if "journal" not in type(done.config).__dataclass_fields__:
        pytest.skip(f"{name} has no journal: it takes no longer than a forward or two")
    config = config_of(name, "--journal", str(tmp_path / "journal"))
    run = analyses.load(name).run
    whole = run(small_model(), config).write(tmp_path / "whole").parent
    journals = sorted((tmp_path / "journal").glob("*.jsonl"))
    assert journals, f"{name}: --journal kept nothing"
    for path in journals:
        lines = path.read_bytes().splitlines(keepends=True)
        cut = lines[: 1 + (len(lines) - 1) // 2]
        path.write_bytes(b"".join(cut) + b'{"torn')
    again = run(small_model(), config).write(tmp_path / "again").parent
    for path in sorted(p for p in whole.rglob("*") if p.is_file() and p.name != "manifest.json"):
        assert path.read_bytes() == (again / path.relative_to(whole)).read_bytes(), path.name


def test_its_command_ends_with_the_answer_the_page_and_what_to_try(name, tmp_path, capsys):
    interp.save(small_model(), tmp_path / "model")
    out = tmp_path / "report"
    arguments = ["--model", str(tmp_path / "model"), *SETTINGS.get(name, ()), "--out", str(out)]
    assert cli.main(["run", name, *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    answer, page, following = lines[-3:]
    manifest = json.loads((out / "manifest.json").read_text(encoding="ascii"))
    assert answer and answer == one_line(manifest["answer"] or manifest["findings"][0])
    assert page == str(out / "index.html") and Path(page).is_file()
    assert following.startswith("next: interp run ") and shlex.split(following)[3] != name


def test_a_destination_is_refused_before_the_work(name, tmp_path, monkeypatch, capsys):
    loaded = []
    monkeypatch.setitem(interp.__dict__, "load", lambda *args, **kwargs: loaded.append(args))
    (tmp_path / "thesis.txt").write_text("years of work")
    assert cli.main(["run", name, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is not a report" in error and error.count("\n") == 1
    assert not loaded
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_model_that_is_not_there_is_named(name, tmp_path, capsys):
    absent, out = str(tmp_path / "no-such-model"), str(tmp_path / "r")
    assert cli.main(["run", name, "--model", absent, "--out", out]) == 2
    error = capsys.readouterr().err
    assert "no-such-model" in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_its_help_names_every_field(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(analyses.load(name).Config):
        assert f"--{field.name.replace('_', '-')}" in shown


def test_it_is_listed_and_is_a_command_of_its_own(name, capsys):
    assert cli.main(["list"]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.split()[0] == name]
    assert line.split(maxsplit=1)[1] == analyses.summary(name) != ""
    done = subprocess.run(
        [sys.executable, "-m", f"analyses.{name.replace('-', '_')}", "--help"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout
    assert analyses.summary(name).split()[0] in done.stdout
