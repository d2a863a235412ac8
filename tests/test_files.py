"""The readers of users' files: what they read, and that every fault is named with its place.

Every entrance of the project at which a user's file is opened is in `TEXT_ENTRANCES`.
"""

from __future__ import annotations

import ast
import csv
import io
import os
import socket
import threading
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from analyses._labelled import read_labelled
from analyses._text import read_windows
from analyses.embedding_arithmetic import read_analogies
from interp import tasks
from interp.core.files import number, read_beginning, read_csv, read_text, unguarded, whole_number
from interp.core.files.untrusted import read_json
from interp.data.windows import Windows, _lines
from interp.model import HookedTransformer
from interp.report.table import Table
from interp.sweeps.nodes import COLUMNS, NUMBERS, as_frame
from interp.training.text import read_text as read_training_text
from interp.training.vocabulary import train_tokenizer
from tests.vocabularies import model_of

ROOT = Path(interp.__file__).parents[1]


def written(folder: Path, content: str | bytes, name: str = "own.csv") -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def cells(path: Path) -> list[list[str]]:
    return [list(row.cells.values()) for row in read_csv(path)]


# Text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\r\nb\rc\nd\r", "a\nb\nc\nd\n"),
        (b"\xef\xbb\xbfa\r\n\r\nb", "a\n\nb"),
        (
            "na\u00efve \U0001f600\u2028\u0085x\x0c".encode(),
            "na\u00efve \U0001f600\u2028\u0085x\x0c",
        ),
        (b"", ""),
        ("a\ufeffb".encode(), "a\ufeffb"),
    ],
)
def test_text_is_the_same_whatever_editor_wrote_it(tmp_path, data, text):
    assert read_text(written(tmp_path, data)) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ab\r\ncd\n\xe9", r"own.csv: byte 7 \(line 3\) is not UTF-8 \(unexpected end of data\)"),
        (b"a\rb\xffc", r"byte 3 \(line 2\) is not UTF-8 \(invalid start byte\); save it as UTF-8"),
        (b"\xed\xa0\x80", r"byte 0 \(line 1\) is not UTF-8"),
        ("a\n".encode("utf-16"), "UTF-16, not UTF-8; save it as UTF-8, as by iconv -f UTF-16 -t"),
        ("a\n".encode("utf-32"), "UTF-32, not UTF-8"),
        (b"\xfe\xff\x00a", "UTF-16, not UTF-8"),
        ("ab\n".encode("utf-16-le"), r"byte 1 \(line 1\) is NUL.*UTF-16 without a byte-order mark"),
        (b"one\ntwo\x00", r"byte 7 \(line 2\) is NUL"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(tmp_path, data, message):
    for read in (read_text, lambda path: read_beginning(path, 1000), read_csv):
        with pytest.raises(ValueError, match=message):
            read(written(tmp_path, data))


def special_files(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
    (folder / "folder").mkdir()
    (folder / "link").symlink_to(folder / "pipe")
    names = ("pipe", "socket", "folder", "link")
    return {name: folder / name for name in names} | {"device": Path("/dev/zero")}


@pytest.mark.parametrize("read", [read_text, read_csv, lambda path: read_beginning(path, 10)])
def test_what_is_no_file_is_refused_and_nobody_waits(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)  # the name of a socket is bounded
    for name, path in special_files(Path(".")).items():
        kind = {"folder": "directory", "link": "pipe"}.get(name, name)
        refused = []

        def act(path=path, refused=refused):
            with pytest.raises(ValueError, match="and a file is needed") as caught:
                read(path)
            refused.append(str(caught.value))

        waiting = threading.Thread(target=act, daemon=True)
        waiting.start()
        waiting.join(5)
        assert refused and f"is a {kind}, and a file is needed" in refused[0], name
    with pytest.raises(FileNotFoundError, match="no file absent"):
        read(Path("absent"))


def test_size_is_bounded(tmp_path):
    path = written(tmp_path, "a" * 11)
    assert read_text(path, 11) == "a" * 11
    with pytest.raises(ValueError, match="more than 10 bytes; take a part of it"):
        read_text(path, 10)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_csv(path, max_bytes=10)


@given(st.text(), st.integers(1, 40))
def test_the_beginning_of_a_file_is_whole_lines_or_whole_characters(tmp_path_factory, text, most):
    text = text.replace("\0", "").replace("\r", "").removeprefix("\ufeff")
    path = written(tmp_path_factory.getbasetemp(), text)
    begun, whole = read_beginning(path, most)
    assert whole == (len(text.encode()) <= most)
    assert text.startswith(begun) and len(begun.encode()) <= most
    if not whole:
        cut = text.encode()[:most].decode(errors="ignore")
        assert begun == (cut[: cut.rindex("\n") + 1] if "\n" in cut else cut)


def test_a_fault_in_a_file_that_is_cut_is_still_a_fault(tmp_path):
    with pytest.raises(ValueError, match=r"byte 2 \(line 1\) is not UTF-8"):
        read_beginning(written(tmp_path, b"ab\xffcd" * 10), 20)


# Entrances


def windows_of(path: Path) -> list[list[str]]:
    model = tiny_model()
    tokens = [batch.tokens for batch in Windows(model, path, width=8).batches()]
    return [row for part in tokens for row in pieces(model, part)]


def pieces(model, tokens) -> list[list[str]]:
    rows = zip(tokens.ids, tokens.real, strict=True)
    return [model.tokenizer.str_tokens(ids[real].tolist()) for ids, real in rows]


def read_windows_of(path: Path) -> list[list[str]]:
    return pieces(tiny_model(), read_windows(tiny_model(), path, width=8, windows=9)[0])


@cache
def tiny_model() -> HookedTransformer:
    tokenizer = train_tokenizer('abcdefghijklmnopqrstuvwxyz,:{}[]"', "char", name="letters")
    return model_of(tokenizer)


def labelled_of(path: Path) -> list[list[str]]:
    return read_labelled(path)[["text", "label"]].to_numpy().tolist()


PAIR = "clean,corrupted,answer,wrong"
TEXT_ENTRANCES = {
    "training": (read_training_text, "input.txt", "ab\ncd\n"),
    "--text": (read_windows_of, "input.txt", "ab\ncd\n"),
    "harvest": (windows_of, "input.txt", "ab\ncd\n"),
    "analogies": (read_analogies, "own.csv", "category,a,b,c,expected\nq,w,e,r,t\n"),
    "labelled": (labelled_of, "own.csv", "text,label\na b,x\n,\nc d,y\n"),
    "labelled tabs": (labelled_of, "own.tsv", "text\tlabel\na b\tx\nc d\ty\n"),
    "labelled lines": (
        labelled_of,
        "own.jsonl",
        '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n',
    ),
    "nodes": (as_frame, "own.csv", "site,layer\nz,0\n"),
    "nodes as JSON": (as_frame, "own.json", '[{"site": "z",\n"layer": 0}]\n'),
    "JSON": (read_json, "own.json", '{"a":\n1}\n'),
    "pairs": (
        lambda path: tasks.from_csv(path, tiny_model(), space=False).table,
        "own.csv",
        f"{PAIR}\nab,cb,d,e\n",
    ),
}  # fmt: skip
"""By entrance: how it reads, the name of a file that it takes, and a good file."""


def told(found) -> str:
    return found.to_json() if isinstance(found, pd.DataFrame) else repr(found)


@pytest.mark.parametrize("entrance", TEXT_ENTRANCES)
def test_every_entrance_reads_what_any_editor_writes(tmp_path, entrance):
    read, name, text = TEXT_ENTRANCES[entrance]
    plain = told(read(written(tmp_path, text, name)))
    for mark in ("", "\ufeff"):
        for end in ("\r\n", "\r"):
            assert told(read(written(tmp_path, mark + text.replace("\n", end), name))) == plain


@pytest.mark.parametrize("entrance", TEXT_ENTRANCES)
def test_every_entrance_refuses_what_is_no_text(tmp_path, entrance):
    read, name, text = TEXT_ENTRANCES[entrance]
    for data, message in (
        (text.encode("utf-16"), f"{name}: UTF-16, not UTF-8; save it as UTF-8"),
        (text.encode("utf-16-le"), r"byte 1 \(line 1\) is NUL"),
        (text.encode() + b"\xe9\n", r"byte \d+ \(line \d\) is not UTF-8"),
        (text.encode() + b"a\0b", r"byte \d+ \(line \d\) is NUL"),
    ):
        with pytest.raises(ValueError, match=message):
            read(written(tmp_path, data, name))


@pytest.mark.parametrize("entrance", TEXT_ENTRANCES)
def test_every_entrance_refuses_what_is_no_file(tmp_path, entrance):
    read, name, _ = TEXT_ENTRANCES[entrance]
    os.mkfifo(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is a pipe, and a file is needed"):
        read(tmp_path / name)
    with pytest.raises(ValueError, match="is a device, and a file is needed"):
        read(tmp_path / "folder" / name)
    with pytest.raises(FileNotFoundError, match=r"no file .*absent"):
        read(tmp_path / f"absent-{name}")


def test_a_text_of_many_lines_is_streamed_as_it_is_read(tmp_path, monkeypatch):
    """Lone CRs and long lines, over the bound of what is held at once."""
    for end in ("\n", "\r\n", "\r"):
        lines = [f"line {i}".replace("0", "") + "x" * (i % 7) for i in range(40)]
        path = written(tmp_path, end.join(lines), "long.txt")
        for longest in (16, 17, 18, 19, 1 << 20):
            monkeypatch.setattr("interp.windows.LONGEST", longest)
            read = list(_lines(path, 0, 0))
            assert [place for _, place, _ in read] == list(range(40))
            assert [words for _, _, words in read] == lines
            for piece in read[::9]:
                assert next(_lines(path, *piece[:2])) == piece


# CSV

SAME = [["one, two", 'say "x"'], ["l1\nl2", ""], ["null", "007"]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_cells_are_the_same_however_they_are_parted(tmp_path, delimiter, end, mark):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([["a", "b"], *SAME])
    text = mark + out.getvalue().replace("\n", end)
    assert cells(written(tmp_path, text)) == SAME


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=5), st.sampled_from(",;\t"))
def test_what_csv_writes_is_read_back(tmp_path_factory, rows, delimiter):
    rows = [list(row) for row in rows if any(cell.strip() for cell in row)]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(
        [["a", "b"], *rows]
    )
    path = written(tmp_path_factory.getbasetemp(), out.getvalue())
    if not rows:
        with pytest.raises(ValueError, match="no rows below the header"):
            read_csv(path)
    else:
        # A line break that is the file's own is "\n"; any other in quotes is as it was.
        assert cells(path) == rows


@pytest.mark.parametrize(
    "word", ["null", "NA", "nan", "None", "True", "", "007", "1e3", " 5 ", "N/A", "inf", "-", "#"]
)
def test_no_word_is_a_value_of_another_kind(tmp_path, word):
    assert cells(written(tmp_path, f"a,b\n{word},x\n")) == [[word, "x"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "own.csv: the file is empty"),
        ("\ufeff \r\n\n", "the file is empty"),
        ("a,b\r\n", "no rows below the header"),
        ("a,b\n,\n  ,\n\n", "no rows below the header"),
        ("a,b\n1,2,3\n", r"line 2: 3 cells for 2 columns \(a, b\); a cell with a comma"),
        ("a,b\n1,2,\n", "line 2: 3 cells for 2 columns"),
        ("\n\na,b\r\n\r\n1\n", "line 5: 1 cells for 2 columns"),
        ('a,b\n"x\ny",1\n1\n', "line 4: 1 cells for 2 columns"),
        ("a, a \n1,2\n", "line 1: the column 'a' stands there twice"),
        ("a,,\n1,2,3\n", "line 1: the column '' stands there twice"),
        ('a,b\n"1,2\n', "line 2: unexpected end of data; a cell with a comma"),
        ('a,b\n"1"x,2\n', "line 2: ',' expected after '\"'"),
        ("a;b,c\n1;2,3\n", "the header holds commas and semicolons, and one of them must part"),
        ("a\tb,c\n1\t2\n", "the header holds commas and tabs"),
        ('a,b\n1, "x"\n', "line 2: a cell begins with a space and a quote"),
        ('a,b\nx,y\n1, "x, y"\n', "line 3: 3 cells|line 3: a cell begins with a space"),
        ("b,c\n1,2\n", r"line 1: no column 'a'; there are: b, c"),
        ("a,b\n1,2\rx\n", "line 3: 1 cells for 2 columns"),
    ],
)
def test_faults_of_a_csv_file_are_named_with_their_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_csv(written(tmp_path, content), ["a"])
    assert "own.csv" in str(caught.value)


def test_what_looks_like_a_fault_and_is_none(tmp_path):
    assert cells(written(tmp_path, '"a;x",b\n1;2,3\n')) == [["1;2", "3"]]
    assert cells(written(tmp_path, "text\nno delimiter; here\n")) == [["no delimiter; here"]]
    assert cells(written(tmp_path, "a,b\n,,\n1,2\n , \n")) == [["1", "2"]]
    assert cells(written(tmp_path, "text;x\n1,2;3\n", "x.tsv")) == [["1,2;3"]]
    long = "x" * 200_000
    before = csv.field_size_limit()
    assert cells(written(tmp_path, f"a\n{long}\n")) == [[long]]
    assert csv.field_size_limit() == before
    assert cells(written(tmp_path, 'a,b\n"say, ""x""",  y\n')) == [['say, "x"', "  y"]]


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        text = '\na,b\n"x\ny",1\n\n2,3\n'.replace("\n", end)
        rows = read_csv(written(tmp_path, text))
        assert [row.line for row in rows] == [3, 6]
        assert rows[0].cells["a"] == "x\ny"


# Numbers


@pytest.mark.parametrize(
    ("cell", "value"),
    [("0", 0), ("12", 12), ("-1", -1), (" 5 ", 5), ("1.0", 1), ("-0", 0), ("12.00", 12)],
)
def test_whole_numbers_as_people_and_pandas_write_them(cell, value):
    assert whole_number(cell) == value and number(cell) == value


NO_NUMBERS = (
    *("", "x", "007", "00", "1_000", "1,5", "0x10", "True", "nan", "inf", "\u0665", "\u00b2"),
    *("1 2", "--1", ".", "e5", "-", "1e", "\uff11", "1e999", "\u22121"),
)


@pytest.mark.parametrize("cell", [*NO_NUMBERS, "1e3", "1.5", "+5", "9" * 19, "9" * 5000, "1."])
def test_what_is_no_whole_number(cell):
    with pytest.raises(ValueError, match=r"is no whole number|is past the whole numbers"):
        whole_number(cell)


def test_numbers():
    assert [number(c) for c in ("1e3", "-.5", "5.", "+2", "1E-2")] == [1000, -0.5, 5, 2, 0.01]
    for cell in NO_NUMBERS:
        with pytest.raises(ValueError, match=r"is no number|is too large"):
            number(cell)


def test_a_number_that_is_none_is_named_with_its_place(tmp_path):
    (row,) = read_csv(written(tmp_path, "a,b,c\n\n007,,2.5\n"))
    with pytest.raises(ValueError, match=r"own\.csv, line 3, column 'a': '007' is no whole"):
        row.whole_number("a")
    with pytest.raises(ValueError, match=r"line 3, column 'c': '2.5' is no whole number"):
        row.whole_number("c")
    assert row.whole_number("b") is None and row.number("b") is None and row.number("c") == 2.5


# Nodes

indices = st.none() | st.integers(-(2**40), 2**40)
letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")
shown = st.characters(categories=["L", "N", "P", "S"], exclude_characters="\r")
specials = st.sampled_from(
    ["null", "NA", "nan", "None", "True", "1", "007", "1.0", " ", "=1", "-x"]
)


@st.composite
def node_frames(draw, roles):
    one = st.fixed_dictionaries(
        {"site": st.sampled_from(["z", "attn.hook_z", "null"]), "row": st.integers(0, 99)}
        | {name: indices for name in NUMBERS if name != "row"}
        | {"role": st.none() | specials | roles}
    )
    return as_frame(draw(st.lists(one, min_size=1, max_size=5)))


def same_nodes(frame: pd.DataFrame, other: pd.DataFrame) -> bool:
    assert list(other.columns) == list(COLUMNS)
    return other.equals(frame) and bool((other.dtypes == frame.dtypes).all())


@settings(max_examples=60, deadline=None)
@given(node_frames(st.text(letters, min_size=1, max_size=6)))
def test_nodes_written_by_pandas_and_read_back_are_the_same_nodes(tmp_path_factory, frame):
    folder = tmp_path_factory.getbasetemp()
    frame.to_json(folder / "nodes.json", orient="records")
    assert same_nodes(frame, as_frame(folder / "nodes.json"))
    if any(isinstance(role, str) and role.startswith("'") for role in frame["role"]):
        return  # what a report's own writer does with these is tested below
    frame.to_csv(folder / "nodes.csv", index=False)
    assert same_nodes(frame, as_frame(folder / "nodes.csv"))
    frame.astype({name: float for name in NUMBERS if name != "row"}).to_csv(
        folder / "floats.csv", index=False
    )
    assert same_nodes(frame, as_frame(folder / "floats.csv"))


guards = st.builds(lambda marks, rest: marks + rest, st.text("'=+-@", max_size=4), st.text(shown))


@settings(max_examples=60, deadline=None)
@given(node_frames(guards.filter(bool)))
def test_nodes_of_a_report_and_read_back_are_the_same_nodes(tmp_path_factory, frame):
    path = written(tmp_path_factory.getbasetemp(), Table(frame, "", "nodes").csv())
    assert same_nodes(frame, as_frame(path))
    assert not any(
        str(row.cells["role"]).startswith(("=", "+", "-", "@")) for row in read_csv(path)
    )


@pytest.mark.parametrize(
    ("role", "read"), [("'=1", "=1"), ("''=1", "'=1"), ("'1", "'1"), ("'", "'"), ("=1", "=1")]
)
def test_a_guard_is_taken_from_names_and_from_nothing_else(tmp_path, role, read):
    assert unguarded(role) == read
    assert cells(written(tmp_path, f"text\n{role}\n")) == [[role]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("site,layer\nz,007\n", "line 2, column 'layer': '007' is no whole number"),
        ("site,layer\nz,1\nz,1e3\n", "line 3, column 'layer': '1e3'"),
        ("site,layer\nz,true\n", "column 'layer': 'true'"),
        ("site,layer,layer\nz,1,2\n", "the column 'layer' stands there twice"),
        ("site,layer\nz,1,2\n", "line 2: 3 cells for 2 columns"),
        ("site,layer\nz\n", "line 2: 1 cells for 2 columns"),
        ("site,layers\nz,1\n", "nodes have no column 'layers'"),
        ("layer\n1\n", "no column 'site'"),
        (b"site,layer\n\xff,1\n", r"byte 11 \(line 2\) is not UTF-8"),
    ],
)
def test_faults_of_a_file_of_nodes(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        as_frame(written(tmp_path, content))


def test_nodes_parted_by_semicolons(tmp_path):
    text = "\ufeffsite;layer;role;head\r\nz;1.0;null;\r\nz; 2 ;;3\r\n"
    frame = as_frame(written(tmp_path, text))
    assert frame["layer"].tolist() == [1, 2] and frame["role"][0] == "null"
    assert frame["role"][1] is pd.NA and frame["head"][0] is pd.NA and frame["head"][1] == 3


# One place


def test_files_are_read_nowhere_else():
    """CSV has one reader; a text's encoding is decided in one place."""
    for folder in ("interp", "analyses"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith("interp/core/files/"):
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
            assert not called & {"csv.reader", "csv.DictReader", "pd.read_csv"}, name
