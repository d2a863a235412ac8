"""The first screen of every kind of report, and of every report of the gallery: the exhibit begins
where it is seen, nothing sticks out, links lead somewhere, axe finds nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interp.report import Report
from interp.report.figures import curves, heatmap
from tests.browser.conftest import until
from tests.patterns import patterns, words
from tests.test_report import HOSTILE

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
SCREENS = {(1280, 900): 700, (400, 900): 900}
"""Width and height of a screen, and where the exhibit must have begun, in pixels."""
EXHIBIT = "main :is(figure img, .viewer, .shaded, .texts, .scroll)"
SENTENCE = "One head, L1 H2, copies the name: without it the model is wrong. "


def heads(scale: float = 1.0) -> pd.DataFrame:
    layer, head = np.indices((4, 6)).reshape(2, -1)
    return pd.DataFrame({"layer": layer, "head": head, "effect": scale * np.sin(layer * 3 + head)})


def a_map(axis: str = "effect on the logit difference (logits)"):
    return heatmap(heads(), rows="layer", columns="head", value="effect", axis=axis, noise=0.2)


def three_maps():
    frame = pd.concat([heads(s).assign(part=p) for p, s in (("state", 1), ("MLP", 2), ("z", 3))])
    return heatmap(
        frame, rows="layer", columns="head", value="effect", panel="part", axis="share restored"
    )


def accuracy():
    frame = pd.DataFrame({"layer": range(13), "share": np.linspace(0.5, 0.9, 13)})
    frame = pd.concat([frame.assign(kind=kind) for kind in ("probe", "shuffled labels")])
    frame = frame.assign(low=frame["share"] - 0.05, high=frame["share"] + 0.05)
    return curves(frame, x="layer", value="share", low="low", high="high", group="kind",
                  x_axis="layer", axis="accuracy")  # fmt: skip


def viewer(section):
    return section.attention(
        [patterns(3, 4, 12), patterns(3, 4, len(HOSTILE), causal=False)],
        [words(12), list(HOSTILE)],
        "Every head",
        name="heads",
    )


def opened(add) -> Report:
    """An ordinary report: an answer, one exhibit, five findings, and what stands behind them."""
    report = Report("Head ablation in tinyworld", "Which heads does the task need?",
                    provenance={"seed": 0, "command": "interp run head-ablation"})  # fmt: skip
    add(report.answer(SENTENCE, links={"L1 H2": "behind"}))
    for number in range(5):
        report.finding(f"Finding {number} is a sentence of some words.", at="behind")
    report.sure("An interval.")
    for number in range(6):
        report.doubt(f"Doubt {number}.")
    report.skip("One thing.")
    report.warn("The model knows few of these words.")
    section = report.section("Evidence", "A paragraph.")
    section.table(pd.DataFrame({"n": range(40)}), "Behind it", name="behind")
    return report


def unanswered() -> Report:
    """As analyses wrote it before reports had answers."""
    report = Report("Older", "What was found?")
    report.section("Prompts").table(pd.DataFrame({"prompt": ["a b c"] * 60}), "The prompts")
    report.section("Figures").figure(accuracy(), "By layer", name="by-layer")
    for number in range(9):
        report.finding(f"Finding {number}: " + "with intervals and kinds (0.1 to 0.3), " * 6)
    return report


def burdened() -> Report:
    """All that stands above the exhibit is as long as it may be."""
    title = "A very long title of an analysis of a model with a very long name " * 3
    report = Report(title[:120], "A question that goes on and on, and then some, does it? " * 3)
    report.answer(SENTENCE * 3).figure(a_map(), "A map", name="map")
    for number in range(7):
        report.warn(f"Warning {number}: " + "the tokens of the texts are unknown to it. " * 20)
        report.finding(SENTENCE * 2, at="map")
        report.section(f"Section {number} " * 12, SENTENCE * 20)
    return report


def two_maps(section) -> None:
    section.figure(a_map(), "By head", name="one")
    section.figure(a_map("another effect (nats)"), "In nats", name="two")


LAYOUTS = {
    "one map": lambda: opened(lambda s: s.figure(a_map(), "A map", name="map")),
    "two maps": lambda: opened(two_maps),
    "three maps": lambda: opened(lambda s: s.figure(three_maps(), "Side by side", name="maps")),
    "curves": lambda: opened(lambda s: s.figure(accuracy(), "By layer", name="curves")),
    "viewer": lambda: opened(viewer),
    "texts": lambda: opened(
        lambda s: s.texts(
            {"as it is": "Once upon a time. " * 90, "steered": "\n".join(HOSTILE)}, "x"
        )
    ),
    "tokens": lambda: opened(lambda s: s.tokens(words(90), [0.5] * 90, "Loss", name="loss")),
    "table": lambda: opened(lambda s: s.table(heads(), "Numbers", name="numbers")),
    "unanswered": unanswered,
    "burdened": burdened,
}
GALLERY = sorted((ROOT / "reports" / "gallery").glob("*/index.html"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            made[name] = LAYOUTS[name]().write(folder / name.replace(" ", "-"))
        return made[name]

    return write


def check(page, width: int, most: int, violations) -> None:
    """What holds for every report at a size of the screen."""
    top = page.evaluate(
        f"document.querySelector({EXHIBIT!r}).getBoundingClientRect().top + scrollY"
    )
    assert top < most
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(
        """[...document.querySelectorAll("a[href^='#']")].map(a => a.getAttribute("href").slice(1))
        .filter(id => !/^(head-L|a=)/.test(id) && !document.getElementById(id))"""
    ) == []  # fmt: skip
    contents = page.locator(".side" if width >= 1100 else ".folded")
    assert contents.is_visible()
    assert page.locator(".folded" if width >= 1100 else ".side").is_hidden()
    listed = [a.get_attribute("href") for a in contents.locator("a").all()]
    sections = page.evaluate("[...document.querySelectorAll('main > [id] > h2')]"
                             ".filter(h => !h.closest('#_answer, #_findings'))"
                             ".map(h => '#' + h.parentElement.id)")  # fmt: skip
    assert listed == sections
    assert violations(page) == []


@pytest.mark.parametrize("size", SCREENS, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_report_answers_on_its_first_screen(written, open_page, violations, name, size):
    scheme = "dark" if len(name) % 2 else "light"
    page = open_page(written(name), width=size[0], height=size[1], color_scheme=scheme)
    check(page, size[0], SCREENS[size], violations)


@pytest.mark.parametrize("size", SCREENS, ids=str)
@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.parent.name)
def test_so_does_every_report_of_the_gallery(open_page, violations, path, size):
    page = open_page(path, width=size[0], height=size[1])
    check(page, size[0], SCREENS[size], violations)
    assert path.stat().st_size < 1_500_000


def test_a_finding_leads_to_its_exhibit_also_where_that_is_folded(written, open_page):
    page = open_page(written("one map"), height=900)
    page.get_by_role("link", name="Finding 1 is").click()
    until(page, "document.getElementById('behind').getBoundingClientRect().top < 100")
    page.locator(".side a", has_text="What would make it wrong").press("Enter")
    until(page, "document.getElementById('_wrong').getBoundingClientRect().top < innerHeight")
    assert page.get_by_text("Doubt 5.").is_hidden()  # long lists are folded
    page.locator("#_wrong summary").press("Enter")
    assert page.get_by_text("Doubt 5.").is_visible()


def test_two_maps_stand_side_by_side_where_there_is_room(written, open_page):
    for width, beside in ((1280, True), (400, False)):
        page = open_page(written("two maps"), width=width)
        one, two = (page.locator(f"#{name} img").bounding_box() for name in ("one", "two"))
        assert (one["y"] == two["y"]) == beside
        assert one["width"] == two["width"] and one["height"] == two["height"]


def test_on_paper_the_words_are_whole_and_the_lists_of_contents_are_gone(written, open_page):
    page = open_page(written("one map"))
    page.emulate_media(media="print")
    assert page.locator(".side").is_hidden() and page.locator(".folded").is_hidden()
    box = page.locator("#_wrong details p").last.bounding_box()
    assert box is not None and box["height"] > 10
    table = page.locator("#behind .scroll")
    assert table.evaluate("e => e.scrollHeight <= e.clientHeight")
