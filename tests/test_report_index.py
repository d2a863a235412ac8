"""The list of reports: what it shows, what it does not trust, and what it never overwrites."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from interp.cli import main as cli
from interp.report import Report, write_index
from interp.report.index import MARK, entries
from tests.test_report import HOSTILE, Page, figure, small


def page_of(folder) -> Page:
    return Page(write_index(folder).read_bytes().decode("utf-8"))


def edit(folder, **changes) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def home(tmp_path):
    """Two good reports, of which one lies deeper and has a figure."""
    Report("Older", "Why?", provenance={"model": {"name": "tiny"}}).write(tmp_path / "older")
    report = small()
    report.section("Figure").figure(figure(), "A figure")
    report.write(tmp_path / "deep" / "a b#?%")
    edit(tmp_path / "older", created="2020-01-02T03:04:05+00:00")
    return tmp_path


def test_the_list_names_each_report_with_what_it_found(home):
    page = page_of(home)
    links = [unquote(a["href"]) for a in page.all("a")]
    assert links == ["deep/a b#?%/index.html", "older/index.html"]  # the newest first
    for link in links:
        assert (home / link).is_file()
    for part in ("Title", "Older", "tiny", "2020-01-02", "One of two.", "Why?", "2 in this folder"):
        assert part in page.text
    (image,) = page.all("img")
    assert image["alt"] == ""  # the title beside it says it all
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    small_one = Image.open(io.BytesIO(data))
    assert max(small_one.size) <= 288
    assert len(data) < 30_000
    assert len(np.unique(np.asarray(small_one.convert("RGB")).reshape(-1, 3), axis=0)) > 3


def test_the_list_allows_nothing_but_its_style(home):
    text = write_index(home).read_text("utf-8")
    page = Page(text)
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    css = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    assert not page.all("script")
    assert not [a for _, a in page.tags if any(k.startswith("on") or k == "style" for k in a)]
    assert write_index(home).read_text("utf-8") == text  # same reports, same bytes


def test_a_hostile_manifest_is_text(home):
    text = " ".join(HOSTILE)
    edit(home / "older", title=text, question=text, findings=[text * 50_000],
         model={"name": text}, files=["../../etc/passwd", "figures/../../x.png", 3])  # fmt: skip
    raw = write_index(home).read_bytes().decode("utf-8")
    page = Page(raw)
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert not {"\u2028", "\u202e", "\x00"} & set(raw)
    assert "alert(1)" in page.text
    assert len(raw) < 60_000
    assert len(page.all("a")) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON|recursion"),
        ("[]", "not that of a report"),
        ('{"kind": "something else"}', "not that of a report"),
        ('{"kind": "interp report", "title": 3, "findings": []}', "title is no text"),
        ('{"kind": "interp report", "findings": {}}', "findings are no list of texts"),
        ('{"kind": "interp report", "findings": [3]}', "findings are no list of texts"),
        ('{"kind": "interp report", "findings": []}', "no index.html beside it"),
    ],
)
def test_a_broken_manifest_is_listed_as_such(home, content, reason):
    (home / "broken").mkdir()
    data = content if isinstance(content, bytes) else content.encode()
    (home / "broken" / "manifest.json").write_bytes(data)
    page = page_of(home)
    assert len(page.all("a")) == 2
    assert "3 in this folder" in page.text
    last = entries(home)[-1]
    assert last.folder == "broken"
    assert re.search(reason, last.broken)
    assert f"Cannot be listed: {last.broken}" in page.text


def test_a_manifest_that_is_too_large_is_not_read(home, monkeypatch):
    monkeypatch.setattr("interp.report.index.MAX_MANIFEST", 10)
    assert all("larger than" in entry.broken for entry in entries(home))


def test_a_figure_that_is_none_leaves_no_thumbnail(home, monkeypatch, tmp_path):
    (png,) = (home / "deep" / "a b#?%" / "figures").glob("*.png")
    whole = png.read_bytes()
    for data in (b"", b"not a picture", whole[:200], b"<svg onload='alert(1)'/>"):
        png.write_bytes(data)
        assert not page_of(home).all("img"), data[:20]
    png.write_bytes(whole)
    monkeypatch.setattr("interp.report.index.MAX_PIXELS", 1000)
    assert not page_of(home).all("img")
    monkeypatch.undo()
    assert page_of(home).all("img")
    secret = tmp_path / "secret.png"
    png.rename(secret)
    png.symlink_to(secret)
    assert not page_of(home).all("img")


def test_what_is_at_work_or_no_report_is_not_listed(home):
    small().write(home / ".r.12345678.new")
    (home / "notes").mkdir()
    (home / "circle").symlink_to(home)
    assert len(entries(home)) == 2


def test_a_page_that_is_not_ours_stays(home):
    (home / "index.html").write_text("<h1>My own site</h1>")
    with pytest.raises(FileExistsError, match="is not a list of reports"):
        write_index(home)
    with pytest.raises(FileExistsError, match="is not a list"):
        write_index(home / "older")  # a report's own page
    assert (home / "index.html").read_text() == "<h1>My own site</h1>"
    with pytest.raises(NotADirectoryError, match="absent is no folder"):
        write_index(home / "absent")
    (home / "index.html").write_text(f"<html>{MARK}")
    write_index(home)
    assert not list(home.glob(".index.*"))


def test_a_full_disk_leaves_the_older_list(home, monkeypatch):
    before = write_index(home).read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    edit(home / "older", title="Changed")
    with pytest.raises(OSError, match="No space"):
        write_index(home)
    assert (home / "index.html").read_bytes() == before
    assert not list(home.glob(".index.*"))


def test_the_command_writes_the_list_and_says_where(home, capsys, monkeypatch):
    assert cli.main(["reports", str(home)]) == 0
    assert capsys.readouterr().out == f"{home / 'index.html'}\n"
    monkeypatch.chdir(home.parent)
    assert cli.main(["reports", "absent"]) == 2
    assert "absent is no folder" in capsys.readouterr().err
    (home / "empty").mkdir()
    assert cli.main(["reports", str(home / "empty")]) == 0
    assert "interp run" in Page((home / "empty" / "index.html").read_text("utf-8")).text
