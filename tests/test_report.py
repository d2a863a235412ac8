"""Reports: whole or not at all, quiet about nothing, and harmless whatever the words are."""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from interp.core.visible import one_line, visible
from interp.report import Report, check_destination
from interp.report import folder as folder_module
from interp.report.figures import bars
from interp.report.provenance import CODE, command, git_state, plain
from interp.report.text import csv_cell, number, shorten, slug

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\u2028",
    "\u202eRTL",
    "\ud800",
    "\x00",
    "&amp;",
    "'\"",
    "=1+1",
    "שלום",
    "\n",
]


def small(tokens=("king", "queen")) -> Report:
    report = Report("Title", "Why?", analysis="test")
    report.finding("One of two.")
    report.sure("Very.")
    report.doubt("Everything.")
    section = report.section("Evidence", "A paragraph.")
    words = pd.Series(list(tokens), dtype=object)  # pandas' own strings hold no lone surrogates
    frame = pd.DataFrame({"token": words, "score": np.linspace(-0.5, 1, len(tokens))})
    section.table(frame, "Scores")
    section.note("A note.")
    return report


def figure():
    frame = pd.DataFrame(
        {
            "category": pd.Series(["x", "</script>\u2028\ud800"] * 2, dtype=object),
            "rule": ["one", "one", "two", "two"],
            "share": [0.5, 0.25, 0.1, 0.0],
            "low": [0.4, 0.1, 0.0, 0.0],
            "high": [0.6, 0.5, 0.2, 0.1],
        }
    )
    return bars(
        frame, label="category", value="share", low="low", high="high", group="rule",
        axis="share", alt="Bars of two categories.", limits=(0.0, 1.0),
    )  # fmt: skip


class Page(HTMLParser):
    """Every start tag with its attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_report_is_a_page_a_csv_and_a_manifest(tmp_path):
    page = small().write(tmp_path / "r")
    assert page == tmp_path / "r" / "index.html"
    assert sorted(p.name for p in page.parent.iterdir()) == [
        "index.html", "manifest.json", "scores.csv",
    ]  # fmt: skip
    assert (page.parent / "scores.csv").read_text() == "token,score\nking,-0.5\nqueen,1.0\n"
    manifest = json.loads((page.parent / "manifest.json").read_text())
    assert manifest["kind"] == "interp report"
    assert manifest["files"] == ["index.html", "scores.csv"]
    assert manifest["findings"] == ["One of two."]
    text = page.read_text(encoding="utf-8")
    for part in (
        "Why?",
        "One of two.",
        "Very.",
        "Everything.",
        "A paragraph.",
        "A note.",
        "−0.500",
    ):
        assert part in text
    assert len(text) < 100_000


def test_the_page_asks_the_network_for_nothing(tmp_path):
    report = small()
    report.section("Figure").figure(figure(), "A figure")
    page = Page(report.write(tmp_path / "r").read_text(encoding="utf-8"))
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    css = re.search(r"<style>(.*?)</style>", report.html(), re.S)[1]
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    addresses = [a[k] for _, a in page.tags for k in ("src", "href") if k in a]
    assert addresses
    assert not [a for a in addresses if not a.startswith("data:") and re.match(r"[a-z]+:|//", a)]
    scripts = re.findall(r"<script>(.*?)</script>", report.html(), re.S)
    assert len(scripts) == len(page.all("script")) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert not [a for _, a in page.tags if any(k.startswith("on") or k == "style" for k in a)]


@pytest.mark.parametrize("where", ["cell", "title", "finding", "column", "category"])
def test_hostile_text_is_written_and_escaped(tmp_path, where):
    text = " ".join(HOSTILE)
    report = small(HOSTILE if where == "cell" else ("a", "b"))
    if where == "title":
        report = Report(text, text)
    elif where == "finding":
        report.finding(text)
    elif where == "column":
        frame = pd.DataFrame([[1]], columns=pd.Index([text], dtype=object))
        report.section("x", text).table(frame, text)
    elif where == "category":
        report.section("x").figure(figure(), text)
    path = report.write(tmp_path / "r")
    raw = path.read_bytes().decode("utf-8")
    assert not {"\u2028", "\u202e", "\x00"} & set(raw)
    page = Page(raw)
    assert page.all("script") == [{}]  # our own
    assert all(a.get("src", "data:").startswith("data:") for a in page.all("img"))
    for file in path.parent.rglob("*.csv"):
        file.read_bytes().decode("utf-8")
    json.loads((path.parent / "manifest.json").read_text(encoding="ascii"))


def test_formulas_are_disarmed_and_numbers_are_not(tmp_path):
    frame = pd.DataFrame(
        {"word": ["=1+1", "+a", "-b", "@c", "d"], "n": [-1, 2, 3, 4, 5], "ok": [True] * 5}
    )
    report = Report("t", "q")
    report.section("s").table(frame, "Formulas")
    path = report.write(tmp_path / "r").parent / "formulas.csv"
    rows = list(csv.reader(io.StringIO(path.read_text())))
    assert [row[0] for row in rows[1:]] == ["'=1+1", "'+a", "'-b", "'@c", "d"]
    assert rows[1][1:] == ["-1", "True"]
    assert frame["word"][0] == "=1+1"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_unless_declared(value):
    frame = pd.DataFrame({"score": [1.0, value]})
    section = Report("t", "q").section("s")
    with pytest.raises(ValueError, match="'score' holds 1 values"):
        section.table(frame, "x")
    section.table(frame, "x", missing=["score"])


def test_a_refused_table_leaves_no_trace():
    section = Report("t", "q").section("s")
    with pytest.raises(ValueError, match="finite"):
        section.table(pd.DataFrame({"a": [np.nan]}), "x")
    section.table(pd.DataFrame({"a": [1.0]}), "x")
    assert [item.name for item in section.items] == ["x"]


def test_a_table_of_a_million_rows_is_shown_in_part_and_written_whole(tmp_path):
    size = 1_000_000
    frame = pd.DataFrame({"token": np.resize(["a", "=b", "\u2028"], size), "loss": np.arange(size)})
    report = Report("t", "q")
    report.section("s").table(frame, "Large", rows=10)
    folder = report.write(tmp_path / "r").parent
    assert (folder / "index.html").stat().st_size < 60_000
    read = pd.read_csv(folder / "large.csv", keep_default_na=False)
    assert (read["loss"] == frame["loss"]).all()
    assert read["token"].tolist()[:3] == ["a", "'=b", "\\u2028"]


def test_what_is_missing_is_shown_as_such(tmp_path):
    frame = pd.DataFrame({"x": [1.5, np.nan, np.inf, -np.inf], "t": ["a", None, pd.NA, np.nan],
                          "day": pd.to_datetime(["2026-01-02", None, None, None])})  # fmt: skip
    report = Report("t", "q")
    report.section("s").table(frame, "Gaps", missing=["x"])
    cells = report.sections[0].items[0].cells
    assert [row[0] for row in cells] == ["1.500", "–", "∞", "−∞"]
    assert [row[1] for row in cells] == ["a", "", "", ""]
    assert [row[2] for row in cells][1:] == ["", "", ""]
    rows = (report.write(tmp_path / "r").parent / "gaps.csv").read_text().splitlines()
    assert rows[2:] == [",,", "inf,,", "-inf,,"]


def test_a_named_index_is_a_column_and_an_unnamed_one_is_none():
    section = Report("t", "q").section("s")
    section.table(pd.DataFrame({"n": [1, 2]}, index=pd.Index(["a", "b"], name="word")), "Named")
    section.table(pd.DataFrame({"n": [1, 2]}, index=[7, 8]), "Unnamed")
    assert [list(item.frame.columns) for item in section.items] == [["word", "n"], ["n"]]


def test_texts_of_ten_thousand_characters_stay_in_bounds(tmp_path):
    long = "/\\..:" * 2000
    report = Report(long, long)
    section = report.section(long, long)
    section.table(pd.DataFrame({long: [long]}), "Short", name=long + "/" + long)
    folder = report.write(tmp_path / "r").parent
    page = Page((folder / "index.html").read_text("utf-8"))
    table = page.text[page.text.index("Short") : page.text.index("table.csv")]
    assert table.count("10,000 characters") == 2
    assert len(table) < 1000  # the heading and the cell are cut; the file holds all
    assert max(len(p.name) for p in folder.iterdir()) < 80
    assert len(pd.read_csv(folder / "table.csv").columns[0]) == len(long)


def test_tables_large_empty_and_of_one_name(tmp_path):
    report = Report("t", "q")
    section = report.section("s")
    section.table(pd.DataFrame({"n": range(100_000)}), "Large", rows=10)
    section.table(pd.DataFrame({"n": []}), "Large")
    section.table(pd.DataFrame({"x": [None, pd.NA], "y": ["a", 3]}), "../../etc/passwd\x00" * 9)
    folder = report.write(tmp_path / "r").parent
    assert sum(1 for _ in (folder / "large.csv").open()) == 100_001
    assert (folder / "large-2.csv").read_text() == "n\n"
    assert (folder / "index.html").stat().st_size < 60_000
    assert "the first 10 of 100,000 rows" in (folder / "index.html").read_text("utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


def test_the_same_report_has_the_same_bytes(tmp_path):
    def written(name):
        report = small()
        report.section("Figure").figure(figure(), "A figure")
        folder = report.write(tmp_path / name).parent
        files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
        return {p.relative_to(folder): p.read_bytes() for p in files}

    assert written("one") == written("two")


@pytest.mark.parametrize("failing", range(5))
def test_a_full_disk_leaves_the_older_report_as_it_was(tmp_path, monkeypatch, failing):
    old = small()
    old.write(tmp_path / "r")
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    new = small(["changed", "words"])
    new.section("More").table(pd.DataFrame({"x": [1]}), "More")
    new.section("Drawn").table(pd.DataFrame({"x": [1]}), "Drawn")
    real, calls = folder_module.os.fsync, []

    def full_disk(handle):
        calls.append(handle)
        if len(calls) == failing + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(folder_module.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        new.write(tmp_path / "r")
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    new.write(tmp_path / "r")
    assert b"changed" in (tmp_path / "r" / "index.html").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


@pytest.fixture
def powerless():
    """A user who may not write everywhere, also where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="permissions: POSIX only")
def test_no_permission_is_said_before_the_work(tmp_path, powerless):
    shut = "/usr" if os.geteuid() == 65534 else str(tmp_path)
    if shut != "/usr":
        tmp_path.chmod(0o500)
    for target in (f"{shut}/report", f"{shut}/new/report"):
        with pytest.raises(PermissionError, match=f"nothing may be written into {shut}; change"):
            check_destination(target)
        with pytest.raises(PermissionError):
            small().write(target)


def test_what_is_not_a_report_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a report"):
        small().write(tmp_path / "mine")
    for below in ("", "report", "reports/report"):
        with pytest.raises(FileExistsError, match=r"thesis\.txt is a file"):
            small().write(tmp_path / "mine" / "thesis.txt" / below)
    (tmp_path / "mine" / "manifest.json").write_text('{"kind": "something else"}')
    with pytest.raises(FileExistsError, match="not a report"):
        check_destination(tmp_path / "mine")
    folder = small().write(tmp_path / "r").parent
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        small().write(folder)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    small().write(tmp_path / "empty")


def test_figures_touch_no_global_state():
    before = dict(matplotlib.rcParams)
    drawn = figure()
    assert dict(matplotlib.rcParams) == before
    assert drawn.png.startswith(b"\x89PNG")
    assert b"<dc:date>" not in drawn.svg
    assert b"prefers-color-scheme: dark" in drawn.svg
    assert drawn.alt == "Bars of two categories."


def test_a_figure_has_its_numbers_behind_it(tmp_path):
    report = Report("t", "q")
    report.section("s").figure(figure(), "Shares", name="shares")
    folder = report.write(tmp_path / "r").parent
    assert {p.name for p in (folder / "figures").iterdir()} == {"shares.svg", "shares.png"}
    assert len(pd.read_csv(folder / "shares.csv")) == 4
    page = Page((folder / "index.html").read_text("utf-8"))
    assert page.all("img")[0]["alt"] == "Bars of two categories."
    assert page.all("details")


def test_text():
    assert visible("\ud800\x00\u2028\u202e\n") == "\\ud800\\u0000\\u2028\\u202e\\n"
    assert visible("שלום naïve ##ing Ġthe 👩‍👩‍👧") == "שלום naïve ##ing Ġthe 👩‍👩‍👧"
    assert csv_cell("\t=x") == "\\t=x"
    assert shorten("x" * 1_000_000).endswith("… (1,000,000 characters)")
    assert len(slug("../é" * 900)) <= 60
    assert slug("…") == "table"
    assert [number(v) for v in (np.inf, -np.inf)] == ["∞", "−∞"]
    assert [slug(name) for name in ("CON", "lpt1", "console")] == [
        "con-table", "lpt1-table", "console",
    ]  # fmt: skip
    assert [number(v) for v in (True, 1234, -0.5, float("nan"))] == ["yes", "1,234", "−0.500", "–"]
    assert one_line(" a\n  b\x1b[31m ") == "a b\\u001b[31m"


def test_provenance_facts(tmp_path):
    folder = tmp_path / "analyses"
    folder.mkdir()
    (folder / "__init__.py").touch()
    assert command([f"{folder}/__main__.py", "run", "a b"]) == "python -m analyses run 'a b'"
    assert command([f"{folder}/lens.py", "--k=1"]) == "python -m analyses.lens --k=1"
    assert command(["/somewhere/bin/interp"]) == "interp"
    assert plain({"x": (tmp_path, None, 1.5)}) == {"x": [tmp_path.as_posix(), None, 1.5]}
    assert git_state(folder) is None


def test_reports_do_not_import_torch():
    code = "import sys, interp.report.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_manifest_says_where_everything_comes_from(tmp_path):
    """What DESIGN §8 lists, and null where nobody told."""
    wanted = {
        *("command", "config", "seed", "git", "packages", "device", "dtype", "threads", "model"),
        *("wall_seconds", "packing", "skipped", "created", "files", "kind", "title", "findings"),
    }
    assert wanted <= set(small().manifest())
    assert small().manifest()["git"] is None
    frame = pd.DataFrame({"effect": [1.0]})
    frame.attrs = {"engine": "rerun", "forward_equivalents": np.float64(3.5)}
    report = Report("t", "q", provenance={"seed": 3})
    report.section("s").table(frame, "Swept")
    report.section("s").table(pd.DataFrame({"x": [1]}), "Not swept")
    page = report.write(tmp_path / "r")
    manifest = json.loads((page.parent / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert manifest["packing"]["swept"]["engine"] == "rerun"
    assert float(manifest["packing"]["swept"]["forward_equivalents"]) == 3.5
    assert set(manifest["packing"]) == {"swept"}


def test_the_commit_of_our_own_code_is_known():
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("git: this is no working copy")
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    assert git_state(CODE)["commit"] == head.stdout.strip()


def test_a_notebook_gets_the_page_in_a_frame_that_can_do_nothing(monkeypatch):
    report = small(HOSTILE)
    report.section("Figure").figure(figure(), "A figure")
    frame = Page(report._repr_html_())
    assert [name for name, _ in frame.tags] == ["iframe"]
    (attributes,) = frame.all("iframe")
    assert attributes["sandbox"] == "allow-scripts allow-downloads"  # not allow-same-origin
    assert attributes["title"] == "Title"
    inner = Page(attributes["srcdoc"])
    assert inner.all("img")[0]["src"].startswith("data:")
    # Nothing lies beside a page that was not written.
    assert {link["href"][0] for link in inner.all("a")} == {"#"}
    assert "scores.csv" in inner.text
    policy = next(a["content"] for a in inner.all("meta") if "http-equiv" in a)
    assert policy in html.unescape(report.html())
    shown = []
    notebook = SimpleNamespace(display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=notebook))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    report.show()
    assert shown == [report]
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ImportError, match=r"show\(\) is for notebooks and needs IPython"):
        report.show()


def test_markdown_holds_the_words_the_tables_and_the_figures(tmp_path):
    report = Report("Title", "Why?", provenance={"seed": 3})
    report.finding("One of two.")
    report.skip("Nothing | much.")
    section = report.section("Evidence", "A paragraph.")
    section.table(pd.DataFrame({"token": ["a|b", "c"], "n_rows": [1, 2000]}), "Scores", rows=1)
    section.figure(figure(), "A figure", name="shares")
    section.note("A note.")
    text = report.to_markdown()
    assert text.startswith("# Title\n\n*Why?*\n\n**One of two.**\n\n![Bars of two categories.](")
    assert (
        "| token | n rows |\n| --- | ---: |\n| a\\|b | 1 |\n\n[scores.csv](scores.csv), the first"
        in (text)
    )
    assert "![Bars of two categories.](figures/shares.png)" in text
    assert "> A note." in text
    assert "- Nothing \\| much." in text
    assert text.endswith("- seed: 3\n")
    folder = report.write(tmp_path / "r").parent
    for address in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / address).is_file(), address


MARKUP = ("# x", "1. x", "- x", "| a |", "![x](y)", "https://e.org", "www.e.org", "&lt;b&gt;",
          "`x`", "===", "*a* _b_ ~~c~~ $d$")  # fmt: skip


@pytest.mark.parametrize("text", [*HOSTILE, *MARKUP])
def test_markdown_shows_hostile_text_and_nothing_else(text):
    report = Report("Title", "q")
    report.finding(text)  # the answer
    report.finding(text)
    report.section("s", text).table(pd.DataFrame({"t": pd.Series([text], dtype=object)}), "x")
    source = report.to_markdown()
    assert not re.search(r"(?<!\\)://|www\.", source)  # GitHub makes links of these, unasked
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = reader.parse(source)
    inline = [token for one in tokens for token in (one.children or [])]
    kinds = {one.type for one in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "image", "code_inline", "s_open", "fence"}
    assert sum(one.type == "heading_open" for one in tokens) == 3
    assert sum(one.type == "bullet_list_open" for one in tokens) == 1
    assert {one.attrs["href"] for one in inline if one.type == "link_open"} == {"x.csv"}
    shown = ["".join(leaf.content for leaf in one.children) for one in tokens if one.children]
    assert visible(text) in shown  # the cell
    assert (
        not one_line(text) or shown.count(one_line(text)) == 4
    )  # the answer, the finding, the section


# Pages beside it --------------------------------------------------------------------------------


def test_a_page_shows_parts_of_the_reports_tables_and_links_to_its_neighbours(tmp_path):
    report = Report("Whole", "What?", analysis="test")
    frame = pd.DataFrame({"n": [1, 2, 3]})
    report.section("All").table(frame, "Numbers", name="numbers")
    for at in range(3):
        page = report.page(f"parts/p{at}.html", f"Part {at}", "Which?")
        page.section("One").table(frame[at : at + 1], "One of them", name="numbers")
        page.section("Again").table(frame[:0], "None of them", name="numbers")
    folder = report.write(tmp_path / "r").parent
    index, middle = ((folder / name).read_text() for name in ("index.html", "parts/p1.html"))
    assert '<a href="parts/p1.html">Part 1</a>' in index
    for address in ("../index.html", "../parts/p0.html", "../parts/p2.html", "../numbers.csv",
                    "../manifest.json"):  # fmt: skip
        assert f'href="{address}"' in middle
    assert sorted(path.name for path in folder.glob("*.csv")) == ["numbers.csv"]
    assert "parts/p2.html" in json.loads((folder / "manifest.json").read_text())["files"]


def test_a_page_with_a_table_of_its_own_is_refused(tmp_path):
    report = Report("Whole", "What?", analysis="test")
    page = report.page("p.html", "Part", "Which?")
    page.section("One").table(pd.DataFrame({"n": [1]}), "Own", name="own")
    with pytest.raises(ValueError, match=r"p\.html: 'own' is not in the report itself"):
        report.write(tmp_path / "r")
    with pytest.raises(ValueError, match=r"'p\.html' and 'p\.html' cannot be two files"):
        report.page("p.html", "Part", "Which?")
    assert not (tmp_path / "r").exists()


SCHEMA = {"effects": ("layer", "effect", "stderr?"), "wide": ("layer", ...)}


def test_declared_tables_know_their_blanks():
    report = Report("T", "Q?", tables=SCHEMA)
    section = report.section("S")
    frame = pd.DataFrame({"layer": [0, 1], "effect": [0.5, 1.0], "stderr": [np.nan, 0.1]})
    section.table(frame, "Effects", name="effects")
    section.table(frame[["layer", "effect"]], "Wide", name="wide")
    with pytest.raises(ValueError, match="column 'effect' holds 2 values"):
        Report("T", "Q?", tables=SCHEMA).section("S").table(
            frame.assign(effect=np.nan), "Effects", name="effects"
        )


@pytest.mark.parametrize("change", ["reordered", "more", "fewer", "unknown"])
def test_tables_that_are_not_as_declared_are_refused(change):
    frame = pd.DataFrame({"layer": [0], "effect": [0.5], "stderr": [0.1]})
    frames = {
        "reordered": frame[["effect", "layer", "stderr"]],
        "more": frame.assign(p=0.5),
        "fewer": frame[["layer", "effect"]],
        "unknown": frame,
    }
    report = Report("T", "Q?", tables=SCHEMA)
    name = "others" if change == "unknown" else "effects"
    with pytest.raises(ValueError, match="the report declares"):
        report.section("S").table(frames[change], "Effects", name=name)
    page = report.page("heads/L0.html", "Page", "Q?")
    with pytest.raises(ValueError, match="the report declares"):
        page.section("S").table(frames[change], "Effects", name=name)
