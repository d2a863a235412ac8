"""The first screen: the answer, what shows it, three findings, and links that lead somewhere."""

from __future__ import annotations

import functools
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from interp.report import Report
from interp.report.contents import Sentence, whole_words
from interp.report.links import pieces
from tests.patterns import patterns, words
from tests.test_report import HOSTILE, Page, figure

FRAME = pd.DataFrame({"layer": [0, 1], "effect": [0.5, -0.25]})


@functools.cache
def drawn():
    return figure()


def order(text: str, *parts: str) -> None:
    """All parts stand in a text, in this order."""
    places = [text.index(part) for part in parts]
    assert places == sorted(places), dict(zip(parts, places, strict=True))


def whole() -> Report:
    """A report with one exhibit of each kind, a page, and findings that lead to all of them."""
    report = Report("Title", "Which head copies?", provenance={"seed": 3})
    section = report.section("Evidence", "A paragraph.")
    section.table(FRAME, "Effects", name="effects")
    viewer = section.attention([patterns(2, 3, 5)] * 2, [words(5)] * 2, "Heads", name="heads")
    section.tokens(["a", "b"], [1.0, 2.0], "Loss", name="loss")
    page = report.page("heads/L1H2.html", "L1 H2", "What?")
    page.section("Where").one_head(viewer, 1, 2, "Its attention")
    page.finding("It copies; see the others.", at="#head-L1H2", links={"others": "effects"})
    opening = report.answer("L1 H2 copies the name.", links={"L1 H2": "heads/L1H2.html"})
    opening.figure(drawn(), "The map", name="map")
    report.finding("First, at the map.", at="map")
    report.finding("L1 H2, not L1 H20, is second.", at="effects", links={"L1 H2": "#head-L1H2"})
    report.finding("Third.", at="heads/L1H2.html#head-L1H2-prompt2")
    report.finding("Fourth.", at="loss")
    report.sure("Quite sure.")
    report.doubt("One doubt.")
    report.skip("One thing.")
    report.warn("Beware.")
    return report


def test_the_page_answers_before_anything_else(tmp_path):
    report = whole()
    text = Page(report.html()).text
    order(text, "Which head copies?", "Beware.", "L1 H2 copies the name.", "The map",
          "First, at the map.", "Third.", "Fourth.", "A paragraph.", "Loss", "Quite sure.",
          "One doubt.", "One thing.", "manifest.json")  # fmt: skip
    manifest = json.loads((report.write(tmp_path / "r").parent / "manifest.json").read_text())
    assert manifest["answer"] == "L1 H2 copies the name."
    assert manifest["findings"] == [str(one) for one in report.findings]
    order(report.to_markdown(), "**[L1 H2](heads/L1H2.html) copies the name.**", "figures/map.png",
          "- [First, at the map.](index.html#map)", "Third", "Fourth", "A paragraph", "Quite sure",
          "One doubt", "One thing")  # fmt: skip


def test_every_link_of_a_page_leads_somewhere(tmp_path):
    folder = whole().write(tmp_path / "r").parent
    pages = {path: Page(path.read_text("utf-8")) for path in folder.rglob("*.html")}
    anchors = {path: [a["id"] for _, a in page.tags if "id" in a] for path, page in pages.items()}
    assert all(len(set(ids)) == len(ids) for ids in anchors.values())
    seen = set()
    for path, page in pages.items():
        for link in page.all("a"):
            address, _, anchor = link["href"].partition("#")
            target = (path.parent / address).resolve() if address else path
            assert target.is_file()
            if anchor and not anchor.startswith("head-"):
                assert anchor in anchors[target], link
            seen.add(link["href"])
    assert {"#map", "#effects", "#head-L1H2", "heads/L1H2.html#head-L1H2-prompt2", "#loss",
            "../index.html#effects", "heads/L1H2.html"} <= seen  # fmt: skip


@pytest.mark.parametrize(
    "at",
    [
        *("absent", " ", "#map-2", "heads/L9H9.html", "heads/L1H2.html#absent", "index.html"),
        *("#head-L9H0", "#head-L0H9", "#head-L1H2-prompt3", "#head-L1H2-prompt0", "#head-x"),
        *("https://example.org", "javascript:alert(1)", "_sure", "../effects"),
    ],
)
@pytest.mark.parametrize("where", ["at", "links", "answer"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, at, where):
    report = whole()
    if where == "answer":
        report.opening = None
        report.answer("Some words.", links={"words": at})
    else:
        report.finding("Some words.", **{where: at if where == "at" else {"words": at}})
    for render in (report.html, report.to_markdown, lambda: report.write(tmp_path / "r")):
        with pytest.raises(ValueError, match=r"leads nowhere: .*heads.*Some words"):
            render()
    assert not (tmp_path / "r").exists()


def test_a_finding_may_lead_to_what_is_added_later():
    report = Report("t", "q")
    report.finding("Words.", at="late")
    with pytest.raises(ValueError, match="'late' leads nowhere: the report shows nothing yet"):
        report.html()
    report.section("s").table(FRAME, "Late")
    assert '<a href="#late">Words.</a>' in report.html()


def test_words_that_are_not_in_the_sentence_are_refused():
    report = Report("t", "q")
    for text in ("L1 H12 copies", "", "l1 h1"):
        with pytest.raises(ValueError, match="links='L1 H1': these words do not stand in"):
            report.finding(text, links={"L1 H1": "x"})
        with pytest.raises(ValueError, match="do not stand"):
            report.answer(text, links={"L1 H1": "x"})
    assert report.opening is None and not report.findings


def test_there_is_one_answer():
    report = Report("t", "q")
    report.answer("Yes.")
    with pytest.raises(ValueError, match=r"has its answer already: 'Yes\.'"):
        report.answer("No.")


def test_without_an_answer_the_first_finding_and_the_first_picture_stand_in(tmp_path):
    report = Report("t", "q")
    section = report.section("Prompts", "What was asked.")
    section.table(FRAME, "Prompts", name="prompts")
    report.section("Alone").figure(drawn(), "The map", name="map")
    for at in range(6):
        report.finding(f"Finding {at}.", at="map")
    text = Page(report.html()).text
    order(text, "Finding 0.", "The map", "Finding 1.", "Finding 3.", "Finding 4.",
          "What was asked.")  # fmt: skip
    assert "Alone" not in text  # nothing is left of that section
    assert [len(one.items) for one in report.sections] == [1, 1]  # the report is as it was
    assert (
        json.loads((report.write(tmp_path / "r").parent / "manifest.json").read_text())["answer"]
        == "Finding 0."
    )
    report.answer("An answer without an exhibit.")
    order(Page(report.html()).text, "An answer", "The map", "Finding 0.", "Finding 2.")


def test_an_empty_report_has_no_answer():
    report = Report("t", "q")
    assert report.headline == "" and report.manifest()["answer"] == ""
    assert "None" not in report.html().split("<script>")[0]
    assert report.to_markdown() == "# t\n\n*q*\n"
    assert len(report.html()) < 100_000


def test_texts_stand_side_by_side(tmp_path):
    report = Report("t", "q")
    columns = {"as it is": "Once upon\n a time", "</p><script>": "".join(HOSTILE)}
    report.answer("It turned.").texts(columns, "Two continuations", name="continuations")
    report.finding("Found.", at="continuations")
    folder = report.write(tmp_path / "r").parent
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "manifest.json"]
    page = Page((folder / "index.html").read_text("utf-8"))
    assert page.all("script") == [{}]
    order(page.text, "as it is", "Once upon a time", "alert(1)", "Two continuations", "Found.")
    order(report.to_markdown(), "Two continuations", "*as it is*", "> Once upon a time")
    with pytest.raises(ValueError, match="at least one heading"):
        report.section("s").texts({}, "x")
    with pytest.raises(ValueError, match="'continuations'"):
        report.section("s").table(FRAME, "x", name="continuations")


def test_long_and_many_warnings_are_folded():
    report = Report("t", "q")
    long = "A long warning. " * 40
    for text in (long, "Short.", "Third.", "Fourth."):
        report.warn(text)
    page = report.html()
    order(page, "<summary>A long warning.", "</summary>", "<p>Short.</p>", "2 more of these",
          "Third.", "Fourth.", 'id="_answer"')  # fmt: skip
    assert long.strip() in page


@given(st.lists(st.sampled_from(["L1 H1", "L1 H12", "L1", "a.b", "+", "x"]), min_size=1), st.data())
def test_pieces_make_up_the_sentence(phrases, data):
    text = " ".join(phrases)
    report = Report("t", "q")
    report.section("s").table(FRAME, "Effects", name="e")
    linked = data.draw(st.sets(st.sampled_from(phrases)))
    sentence = Sentence(text, data.draw(st.sampled_from([None, "e"])), dict.fromkeys(linked, "e"))
    parts = pieces(report, sentence)
    assert "".join(text for text, _ in parts) == text
    if linked and sentence.at is None:
        assert {text for text, address in parts if address} <= linked
        found = whole_words([*linked]).findall(text)
        assert [text for text, address in parts if address] == found


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_sentences_are_links_of_text(text):
    report = Report("t", "q")
    report.section("s").table(FRAME, "Effects", name="e")
    report.answer(f"{text} word", links={"word": "e"})
    report.finding(f"word {text}", at="e", links={"word": "e"})
    page = Page(report.html())
    assert page.all("script") == [{}] and not page.all("img")
    source = report.to_markdown()
    tokens = MarkdownIt("commonmark", {"html": True}).parse(source)
    inline = [token for one in tokens for token in (one.children or [])]
    links = {one.attrs["href"] for one in inline if one.type == "link_open"}
    assert links == {"index.html#e", "e.csv"}
    assert not {one.type for one in inline} & {"html_inline", "image"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("23% of it", "23\u00a0% of it"),
        ("23 % of it", "23\u00a0% of it"),
        ("23\u202f% of 4.5% and −1%", "23\u00a0% of 4.5\u00a0% and −1\u00a0%"),
        ("say “ John” and “   of”", "say “John” and “of”"),
        ("the token “ ” is a space", "the token “ ” is a space"),
        ("a%20b, %, 5 %s", "a%20b, %, 5 %s"),
    ],
)
def test_numbers_and_quotes_have_one_spelling(text, shown):
    report = Report("t", "q")
    for add in (report.warn, report.finding, report.sure, report.doubt, report.skip):
        add(text)
    report.answer(text)
    section = report.section("s", text)
    section.note(text)
    words = [*report.warnings, *report.findings, *report.certainty, *report.doubts]
    assert {*words, *report.skipped, report.headline, section.text} == {shown}
    assert section.items[0].text == shown
    section.table(pd.DataFrame({"share": [0.234]}), text, formats={"share": ".0%"})
    assert section.items[-1].caption == shown
    assert section.items[-1].cells == [["23\u00a0%"]]
