"""What a command prints can be seen: no name, key or token reaches a terminal as it is."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

import interp
from interp.cli import main as cli
from interp.core import console
from interp.core.visible import BIDI, logger, visible
from interp.loading import bridge
from interp.loading.checkup import doctor
from interp.loading.families.fields import log
from tests.published import edit_json, edit_weights, tiny

HOSTILE = {
    "colour": "\x1b[31m",
    "clear": "\x1b[2J",
    "title": "\x1b]0;x\x07",
    "clipboard": "\x1b]52;c;eA==\x07",
    "link": "\x1b]8;;http://x\x1b\\",
    "C1": "\x9b31m",
    "bell": "\x07",
    "backspace": "a\x08",
    "return": "a\rb",
    "delete": "\x7f",
    "turn": "\u202egnp.exe",
    "isolate": "\u2066",
    "mark": "\u200f",
    "line": "\u2028",
    "paragraph": "\u2029",
    "byte order": "\ufeff",
}
HARMFUL = {chr(i) for i in (*range(0x20), *range(0x7F, 0xA0))} - {"\n", "\t"} | BIDI
HARMFUL |= {"\u2028", "\u2029", *map(chr, range(0xD800, 0xE000))}


class Screen(io.StringIO):
    """A terminal that remembers what it was sent."""

    def isatty(self) -> bool:
        return True


class Sent:
    """What went to standard output and error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def getvalue(self) -> str:
        return "".join(self.capsys.readouterr())


@pytest.fixture
def screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sent:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return Sent(capsys)


def check(text: str) -> None:
    assert text
    assert not set(text) & HARMFUL, ascii(text)


@given(st.text())
def test_visible_leaves_nothing_harmful(text: str):
    check(visible(text, "\n\t") + "x")
    assert visible("a\tb\n", "\n\t") == "a\tb\n"
    assert visible("a\tb\n") == "a\\tb\\n"


@given(st.lists(st.text()))
def test_whatever_is_written_is_visible(texts: list[str]):
    for bars in (True, False):
        screen = Screen()
        stream = console.Shown(screen, bars)
        for text in texts:
            assert stream.write(f"<{text}") == len(text) + 1
        check(screen.getvalue() + "x")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_every_way_out_of_a_command(screen: Sent, text: str):
    def act(arguments: list[str]) -> int:
        print(text, "and", text, sep=text)
        sys.stdout.writelines([text, "\n"])
        print(text, file=sys.stderr)
        logging.getLogger("strangers").warning(text)
        for _ in tqdm(range(2), desc=text):
            pass
        raise ValueError(f"a fault {text}")

    before = sys.stdout, sys.stderr
    assert console.guarded(act, []) == 2
    assert (sys.stdout, sys.stderr) == before, "the streams are back"
    sent = screen.getvalue()
    assert "error: a fault" in sent
    assert "100%" in sent
    check(sent.replace("\r", ""))  # of the bar, which begins its lines anew
    assert visible(text) in sent


def test_the_screen_of_a_bar_moves_only_as_bars_do():
    screen = Screen()
    stream = console.Shown(screen, bars=True)
    for text in ("\rabc", "\n\x1b[A", "\x1b[A", "\r"):
        stream.write(text)
    assert screen.getvalue() == "\rabc\n\x1b[A\x1b[A\r"
    screen.truncate(0)
    for text in ("\r\x1b[2J", "\x1b[Ax", "x\r", "\x1b[B"):
        stream.write(text)
    assert "\x1b" not in screen.getvalue()


def test_a_traceback_is_visible(screen: Sent):
    def act(arguments: list[str]) -> int:
        raise RuntimeError(f"a fault \x1b[2J of {arguments}\nof two lines")

    with pytest.raises(RuntimeError) as caught:
        console.guarded(act, [])
    sys.excepthook(RuntimeError, caught.value, caught.value.__traceback__)
    sent = screen.getvalue()
    check(sent)
    assert "a fault \\u001b[2J of []\nof two lines" in sent


# --- commands ---------------------------------------------------------------------------------

EVIL = "\x1b]0;evil\x07\u202e\u2028"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in a folder with such a name, with such a key in its config."""
    inside = tmp_path / f"m{EVIL}"
    inside.mkdir()
    path = tiny(inside).rename(inside / f"tiny{EVIL}")
    edit_json(path / "config.json", **{f"key{EVIL}": 1})
    (path / f"file{EVIL}").write_bytes(b"x")
    return path


@pytest.mark.parametrize("command", ["info", "doctor", "generate", "convert", "models"])
def test_commands_on_a_hostile_folder(screen: Sent, folder: Path, command: str):
    options = {"convert": [str(folder.parent / "out")], "generate": ["x"]}.get(command, [])
    cli.main([command, str(folder), *options])
    check(screen.getvalue())


def test_errors_name_hostile_tensors(screen: Sent, folder: Path):
    edit_weights(folder, lambda weights: weights.update({f"x{EVIL}": weights.pop("wte.weight")}))
    assert cli.main(["doctor", str(folder)]) == 2
    sent = screen.getvalue()
    check(sent)
    assert "x\\u001b]0;evil" in sent


@pytest.mark.parametrize("open_it", [interp.load, interp.info, doctor, bridge.load])
def test_errors_of_the_library_are_visible(open_it, folder: Path):
    edit_json(folder / "config.json", n_head=0, architectures=[f"E{EVIL}"], model_type=f"x{EVIL}")
    with pytest.raises(ValueError, match="u001b") as caught:
        open_it(folder)
    check(str(caught.value))


def test_a_page_of_the_library_is_visible(folder: Path):
    check(str(interp.info(folder)))
    check(str(doctor(folder)))


def test_log_lines_of_the_library_are_visible(folder: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        interp.info(folder)
    assert "unknown field(s) are not read: key\\u001b" in caplog.text
    check(caplog.text)
    assert logger(log.name).filters == log.filters, "one filter, however often it is asked for"


# --- the text of a model ----------------------------------------------------------------------

SAID = f"one\ttwo\nthree{EVIL}\x1b[2J"


@pytest.mark.parametrize("terminal", [True, False])
def test_generated_text_is_visible_on_a_terminal_and_data_elsewhere(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
):
    out = Screen() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    class Model:
        def generate(self, prompt: str, **options: object) -> str:
            return prompt

    monkeypatch.setattr(interp, "load", lambda *args, **options: Model())
    assert cli.main(["generate", "any", SAID]) == 0
    if terminal:
        check(out.getvalue())
        assert out.getvalue().startswith("one\ttwo\nthree\\u001b]0;evil")
    else:
        assert out.getvalue() == f"{SAID}\n"


def test_a_file_of_findings_is_json(tmp_path: Path, screen: Sent):
    path = tiny(tmp_path)
    cli.main(["doctor", str(path), "--json", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text())["name"] == "tiny"
    check(screen.getvalue())
