"""The command line: what it prints, where errors go, and its exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import webbrowser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

import analyses
import interp
from analyses import embedding_arithmetic
from interp.cli import main as cli
from interp.core import console
from interp.core.visible import one_line
from interp.loading.needs import Abilities, stored_abilities
from tests.strategies import small_config
from tests.test_analyses_embedding_arithmetic import planted_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """`interp.load` gives the planted model, and the bundled list is one it can read."""
    file = tmp_path / "own.csv"
    file.write_text("category,a,b,c,expected\nx,w0,v0,w1,v1\nx,w2,v2,w3,v3\n")
    monkeypatch.setattr(embedding_arithmetic, "DATA", file)
    monkeypatch.setitem(interp.__dict__, "load", lambda *a, **k: planted_model())
    return tmp_path


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, **options
    )


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom interp.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'pandas', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "interp run embedding-arithmetic" in done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["run", "--help"], ["info", "--help"]])
def test_words_that_end_at_once(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "interp" in capsys.readouterr().out


def test_list_names_every_analysis(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "embedding-arithmetic  King − man + woman" in out
    assert len(out.splitlines()) == len(analyses.names())


@pytest.mark.parametrize("name", ["embedding-arithmetic", "embedding_arithmetic"])
def test_run_ends_with_the_path_of_the_report(planted, name, capsys):
    out = planted / "report"
    assert cli.main(["run", name, "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    last = lines[-2]
    assert "gives “queen”" in lines[-3]
    assert last == str(out / "index.html")
    assert Path(last).is_file()


def test_help_of_an_analysis_documents_each_field(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "embedding-arithmetic", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("--model", "--analogies", "--methods", "--seed", "Seed of the controls"):
        assert option in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "nope"],
            "unknown analysis 'nope'; there are: activation-patching, attention-heads",
        ),
        (["run", "embedding-arithmetic", "--a", "zorblax"], "'zorblax' is 2 tokens"),
        (["run", "embedding-arithmetic", "--analogies", "/absent.csv"], "no file /absent.csv"),
        (["run", "embedding-arithmetic", "--out", str(ROOT / "tests")], "is not a report"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(planted, monkeypatch, arguments, message, capsys):
    monkeypatch.delenv("INTERP_DEBUG", raising=False)
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(planted / "r")][: 2 if "nope" in arguments else None]
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (planted / "r").exists()


def test_debug_shows_the_traceback(monkeypatch):
    with pytest.raises(ValueError, match="unknown analysis"):
        cli.main(["run", "nope", "--debug"])
    monkeypatch.setenv("INTERP_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown analysis"):
        cli.main(["run", "nope"])


def test_ctrl_c_exits_130_with_one_line(monkeypatch, capsys):
    def stop(arguments):
        raise KeyboardInterrupt

    assert console.guarded(stop, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_our_own_faults_keep_their_traceback():
    def broken(arguments):
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        console.guarded(broken, [])


def test_errors_cannot_drive_the_terminal(monkeypatch, capsys):
    monkeypatch.delenv("INTERP_DEBUG", raising=False)

    def hostile(arguments):
        raise ValueError("token '\x1b[2J\u202e'\nsecond line")

    assert console.guarded(hostile, []) == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert err.count("\n") == 1


def test_unknown_options_exit_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "embedding-arithmetic", "--colour", "red"])
    assert stop.value.code == 2


def test_info_prints_what_the_loader_says(monkeypatch, capsys):
    monkeypatch.setitem(interp.__dict__, "info", lambda name: SimpleNamespace(name=name))
    assert cli.main(["info", "tiny"]) == 0
    assert "tiny" in capsys.readouterr().out


def test_the_package_is_a_command():
    done = python("-m", "interp", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_a_terminal_of_few_letters_is_no_error():
    done = python("-m", "interp", "list", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "King \\u2212 man" in done.stdout


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m interp list | true", shell=True, cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stderr == ""


# --- the last lines of a run, and what to try next --------------------------------------------


def test_every_analysis_names_another_in_one_circle():
    assert set(analyses.NEXT) == set(analyses.NEXT.values()) == set(analyses.names())
    name, seen = "embedding-arithmetic", []
    while name not in seen:
        seen.append(name)
        name = analyses.NEXT[name]
    assert sorted(seen) == analyses.names()


def test_the_last_lines_are_the_answer_the_page_and_what_to_try(planted, monkeypatch, capsys):
    kept = []
    run = embedding_arithmetic.run
    monkeypatch.setattr(embedding_arithmetic, "run", lambda *a: kept.append(run(*a)) or kept[0])
    out = planted / "report"
    assert cli.main(["run", "embedding-arithmetic", "--out", str(out)]) == 0
    *others, answer, page, following = capsys.readouterr().out.splitlines()
    assert answer == one_line(kept[0].headline) and answer not in others
    assert page == str(out / "index.html")
    assert following == "next: interp run embedding-geometry"
    assert json.loads((out / "manifest.json").read_text())["findings"]


@pytest.mark.parametrize(
    ("name", "options", "model", "command"),
    [
        ("neurons", {}, "tinyworld", "interp run embedding-arithmetic --model tinyworld"),
        ("embedding-geometry", {}, "minilm", "interp run probe-layers --model minilm"),
        ("probe-layers", {}, "minilm", "interp run attention-heads --model minilm"),
        ("head-ablation", {"task": "induction"}, "tinyworld",
         "interp run attention-heads --task induction"),
        ("attention-patterns", {"prompts": Path("texts.txt")}, "tinyworld", "interp run neurons"),
        ("logit-lens", {"prompts": Path("my pairs.csv")}, "tinyworld",
         "interp run causal-tracing --task indirect-object --prompts 'my pairs.csv'"),
        ("steering", {"prompts": Path("texts.txt")}, "tinyworld",
         "interp run logit-lens --task gendered-pronoun"),
        ("attention-heads", {"task": "induction"}, "modadd",
         "interp run attention-patterns --model modadd"),
    ],
)  # fmt: skip
def test_the_next_command_is_one_that_the_model_can_do(name, options, model, command):
    module = analyses.load(name)
    options = {"model": model, **options}
    found = analyses.next_command(module, module.Config(**options), stored_abilities(model))
    assert found == command
    _, _, analysis, *words = shlex.split(found)
    there = analyses.load(analysis)
    config, ending = analyses.parse(there, words, found)
    assert config.model == model and ending == analyses.Ending()
    assert there.NEEDS.lacking(stored_abilities(model), config) is None


def test_a_model_that_can_do_nothing_else_gets_no_command():
    module = analyses.load("attention-patterns")
    patches = {"image_size": (8, 8), "patch_size": (4, 4), "n_channels": 1, "n_ctx": 5}
    images = small_config(inputs="patches", **patches)
    known = Abilities("images", images, tokenizer=False)
    assert analyses.next_command(module, module.Config(model="images"), known) == ""


# --- --open -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [("--open",), ()])
def test_open_opens_the_page_that_was_written(planted, monkeypatch, place, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    out = planted / "a folder #1 with 100%"
    assert cli.main(["run", "embedding-arithmetic", *place, "--out", str(out)]) == 0
    assert opened == [(out / "index.html").absolute().as_uri()] * len(place)
    if place:
        assert Path(url2pathname(urlsplit(opened[0]).path)).is_file()


def test_open_without_a_browser_says_where_the_page_is(planted, monkeypatch, capsys):
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    out = planted / "r"
    assert cli.main(["run", "embedding-arithmetic", "--open", "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert f"no browser could be started; open {out / 'index.html'} in one" in shown.err
    assert str(out / "index.html") in shown.out.splitlines()


@pytest.mark.parametrize("name", analyses.names())
def test_no_analysis_has_an_option_of_the_command_itself(name, capsys):
    fields = {field.name for field in dataclasses.fields(analyses.load(name).Config)}
    assert not fields & {"open", "opens", "figures"}
    words = ["--open", "--figures", "paper"]
    config, ending = analyses.parse(analyses.load(name), words, "interp run")
    assert ending == analyses.Ending(opens=True, figures="paper")
    assert config == analyses.load(name).Config()


def test_figures_for_a_paper_are_written_alone(planted, capsys):
    out = planted / "figures of mine"
    command = ["run", "embedding-arithmetic", "--figures", "paper", "--out", str(out)]
    assert cli.main(command) == 0
    where = Path(capsys.readouterr().out.splitlines()[-2])
    assert where.is_dir() and out in (where, *where.parents)
    assert {path.suffix for path in out.rglob("*.*")} >= {".svg", ".pdf", ".png"}
    assert not list(out.rglob("*.html")) and not list(out.rglob("*.csv"))
    assert cli.main(["run", "embedding-arithmetic", "--out", str(out)]) == 0
    assert (out / "index.html").is_file()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("list", 0), ("run nope", 2), ("models", 0)])
def test_a_stream_that_is_closed_is_no_error(closed, words, code):
    done = subprocess.run(
        f"{sys.executable} -m interp {words} {closed}", shell=True, cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (closed == "2>&-" and code == 0)
    assert bool(done.stderr) == (closed == ">&-" and code == 2)
