"""Options that are files, options that are texts: neither is taken for the other."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

import analyses
import interp
from interp.cli import main as cli
from interp.core.options import (
    FILES,
    NAMES,
    TEXTS,
    WORDS,
    WRITTEN,
    check_options,
    looks_like_a_file,
)
from interp.data.prompt_file import read_prompts

CONFIGS = {name: analyses.load(name).Config for name in analyses.names()}
FILE_OPTIONS = [
    (name, field.name)
    for name, config in CONFIGS.items()
    for field in dataclasses.fields(config)
    if field.name in FILES
]
TEXT_OPTIONS = [
    (name, field.name)
    for name, config in CONFIGS.items()
    for field in dataclasses.fields(config)
    if field.name in TEXTS
]
LIKE_FILES = [
    *("prompts.txt", "no/such", "./x", "../up.csv", "/abs/olute", "~/home.json", "C:\\a\\b"),
    *("my prompts.csv", "two words.TXT", "dir\\file", "notes.md", "a.b.jsonl"),
]
TEXTS_THAT_ARE_NONE = [
    "When Mary and John went to the store,",
    "The capital of France is",
    "yes and/or no",
    "Visit www.example.com",
    "He got 3.5",
    "3.14",
    "U.S.",
    "Hello",
    "你好。",
    "Please open the attached file named data.csv",
    " prompts.txt",
    "...",
    "a\tb.txt is what we were reading then",
    "",
]


@pytest.mark.parametrize("text", LIKE_FILES)
def test_names_of_files_look_like_files(text):
    assert looks_like_a_file(text)


@pytest.mark.parametrize("text", TEXTS_THAT_ARE_NONE)
def test_texts_do_not(text):
    assert not looks_like_a_file(text)


@given(st.lists(st.text(st.characters(categories=("Ll", "Lu", "Po"), exclude_characters="/\\"),
                        min_size=1), min_size=5))  # fmt: skip
def test_sentences_do_not(words):
    text = " ".join(["The", *words, "end"])
    assert not looks_like_a_file(text)


def test_every_option_of_every_analysis_is_of_one_kind():
    """A new option that is a text or a path must say what it takes."""
    kinds = {**dict.fromkeys(FILES, Path), **dict.fromkeys(WRITTEN, Path),
             **dict.fromkeys((*TEXTS, *WORDS, *NAMES), str)}  # fmt: skip
    for name, config in CONFIGS.items():
        for option, hint in typing.get_type_hints(config).items():
            parts = {hint, *typing.get_args(hint)}
            for kind in (Path, str):
                if kind in parts or tuple[kind, ...] in parts:
                    assert kinds.get(option) is kind, f"{name}: --{option} is in no list of options"


@pytest.mark.parametrize(("name", "option"), FILE_OPTIONS)
@pytest.mark.parametrize("value", ["When Mary and John", "no/such.csv", "x" * 5000, "."])
def test_a_file_that_is_not_there_is_refused_before_a_model_is_loaded(
    name, option, value, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(interp.__dict__, "load", None)
    command = ["run", name, f"--{option}", value, "--out", str(tmp_path / "r")]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert f"--{option}" in error and error.count("\n") == 1
    assert "this is a directory" in error if value == "." else f"no file {value}" in error
    assert FILES[option][:20] in error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("name", "option"), TEXT_OPTIONS)
@pytest.mark.parametrize("value", LIKE_FILES)
def test_a_text_that_looks_like_a_file_is_refused_before_a_model_is_loaded(
    name, option, value, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(interp.__dict__, "load", None)
    command = ["run", name, f"--{option}", "A sentence.", value, "--out", str(tmp_path / "r")]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert f"{value!r} looks like the name of a file" in error
    assert "--prompts takes" in error and error.count("\n") == 1


@pytest.mark.parametrize("value", ["words.csv", "./words", "/tmp/words"])
def test_words_that_look_like_files_are_refused(value):
    for config in CONFIGS.values():
        for option in {field.name for field in dataclasses.fields(config)} & {*WORDS}:
            if option == "categories":  # which need a sign =, as the config says
                continue
            options = [f"--{option}", value]
            if option in ("positive", "negative"):
                options = ["--positive", value, "--negative", value]
            with pytest.raises(ValueError, match="looks like the name of a file; it takes"):
                check_options(tyro.cli(config, args=options))


def test_what_is_there_passes(tmp_path):
    (tmp_path / "p.csv").write_text("clean\n")
    check_options(CONFIGS["head-ablation"](prompts=tmp_path / "p.csv", journal=Path("new")))
    for config in CONFIGS.values():
        check_options(config())


def test_generate_takes_a_text(monkeypatch, capsys):
    monkeypatch.setitem(interp.__dict__, "load", None)
    assert cli.main(["generate", "tinyworld", "prompts.txt"]) == 2
    assert "PROMPT 'prompts.txt' looks like the name of a file" in capsys.readouterr().err


# --- files of prompts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("a.txt", "one two\n\n three\r\nfour", ("one two", " three", "four")),
        ("a", "one, two\n", ("one, two",)),
        ("a.csv", "clean,corrupted\none two,x\nthree,y\n", ("one two", "three")),
        ("a.CSV", "id,text\n1,NA\n2,007\n", ("NA", "007")),
        ("a.tsv", "text\tlabel\none, two\tx\n", ("one, two",)),
    ],
)
def test_files_of_prompts(tmp_path, name, text, prompts):
    (tmp_path / name).write_text(text, newline="")
    assert read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "\n \n", "no line holds a prompt"),
        ("a.txt", "", "no line holds a prompt"),
        ("a.csv", "prompt\nx\n", "no column clean or text; there are: prompt"),
        ("a.csv", "clean,x\n ,y\n", "line 2: clean is empty"),
        ("a.csv", "clean\n", "no rows"),
    ],
)
def test_files_without_prompts(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["attention-patterns", "steering"])
def test_a_file_of_texts_says_what_the_texts_say(name, tmp_path):
    texts = ("The king saw a dog", "The queen saw a cat")
    (tmp_path / "p.txt").write_text("\n".join(texts))
    model = interp.load("tinyworld", device="cpu")
    module, small = analyses.load(name), {}
    if name == "steering":
        small = {"n": 4, "n_random": 2, "factors": (2.0,), "samples": 2, "new_tokens": 3}
    by_file = module.run(model, module.Config(prompts=tmp_path / "p.txt", **small))
    by_text = module.run(model, module.Config(prompt=texts, **small))
    assert by_file.findings == by_text.findings
    assert by_file.findings != module.run(model, module.Config(**small)).findings


@pytest.mark.parametrize("name", ["attention-patterns", "steering"])
def test_texts_and_a_file_of_them_are_one_too_many(name):
    with pytest.raises(ValueError, match="give one of the two"):
        analyses.load(name).Config(prompt=("a b", "c d"), prompts=Path("x"))
