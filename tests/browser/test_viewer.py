"""The viewer in a real browser, by pointer and by keyboard."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from interp.report import Report
from interp.report import pages as pages_module
from tests.browser.conftest import until
from tests.patterns import patterns, words
from tests.test_report import HOSTILE, figure

pytestmark = pytest.mark.browser
LAYERS, HEADS = 3, 4
SIZES = (12, len(HOSTILE) + 3)
WORDS = ["<s>", *(f"w{at}" for at in range(1, SIZES[0] - 1)), "end"]
ATTACK = "<img src=x onerror=alert(1)>"
PAINTED = "[...document.querySelectorAll('.tile canvas')].every(c => c.width > 1)"


def report() -> Report:
    made = Report("All heads", "Where do they look?", analysis="test")
    made.finding("At something.")
    made.finding("L0 H3 at the first.", at="#head-L0H3")
    section = made.section("Attention", "Of three layers.")
    layer, head = np.indices((LAYERS, HEADS)).reshape(2, -1)
    scores = pd.DataFrame({"layer": layer, "head": head, "depth": layer + head / 10})
    scores["label"] = ["b", "a", ATTACK, "c"] * LAYERS
    tokens = [words(SIZES[0]), ["", *HOSTILE, "y" * 1_000_000, "  "]]
    section.attention(ARRAYS, tokens, "Attention of all heads", scores=scores, name="all")
    section.tokens(tokens, [np.linspace(0, 3, n) for n in SIZES], "Loss", name="loss")
    frame = pd.DataFrame({"word": ["b10", "b9", "a", "c"] * 4, "n": np.linspace(-2, 1.3e4, 16)})
    frame.loc[[0, 2, 5], "n"] = [-np.inf, np.nan, np.inf]
    section.table(frame, "Words", missing=["n"], formats={"n": ",.1f"})
    section.figure(figure(), "A figure")
    return made


ARRAYS = [patterns(LAYERS, HEADS, SIZES[0]), patterns(LAYERS, HEADS, SIZES[1], causal=False)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return report().write(tmp_path_factory.mktemp("viewer") / "r")


def tiles(page) -> list[str]:
    return [text.split("\n")[0] for text in page.locator(".tile").all_inner_texts()]


def open_head(page, name):
    page.locator(".tile", has_text=name).click()
    page.get_by_role("heading", name=re.compile(r"^Layer \d+, head \d+$")).wait_for()


def ink(page, selector) -> float:
    """The mean opacity of a canvas, 0 to 1."""
    return page.locator(selector).first.evaluate(
        """c => { const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let sum = 0; for (let i = 3; i < d.length; i += 4) sum += d[i];
        return sum / 255 / (c.width * c.height); }"""
    )


def test_the_wall_shows_every_head_as_it_is(written, open_page):
    page = open_page(written)
    assert tiles(page) == [f"L{layer} H{head}" for layer in range(LAYERS) for head in range(HEADS)]
    page.locator(".wall").scroll_into_view_if_needed()
    until(page, PAINTED)
    for at, (layer, head) in enumerate([(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]):
        codes = np.rint(ARRAYS[0][layer, head] * 255) / 255
        found = ink(page, f".tile:nth-child({at + 1}) canvas")
        assert found == pytest.approx(np.sqrt(codes).mean(), abs=3e-3)


def test_sort_and_filter_heads(written, open_page):
    page = open_page(written)
    page.get_by_label("Sort by").select_option("depth")
    names = tiles(page)
    assert names == [f"L{layer} H{head}" for layer in (2, 1, 0) for head in (3, 2, 1, 0)]
    assert page.locator(".tile").first.inner_text().split("\n")[-1] == "2.30"
    page.get_by_label("Sort by").select_option("name")  # by label, then by place
    assert tiles(page)[:4] == ["L0 H2", "L1 H2", "L2 H2", "L0 H1"]
    page.get_by_label("Only heads with").select_option("first token")
    page.get_by_role("spinbutton", name="of at least").fill("0.6")
    assert set(tiles(page)) == {"L0 H1", "L1 H1", "L2 H1"}
    assert page.locator(".controls output").first.inner_text() == "3 of 12 heads"
    page.get_by_role("spinbutton", name="of at least").fill("")
    assert len(tiles(page)) == 12


def test_a_head_that_is_filtered_out_while_it_is_unpacked(written, open_page):
    page = open_page(written)
    page.locator(".wall").scroll_into_view_if_needed()
    page.evaluate(
        """async () => {
        const [prompt, least] = ["select", "input[type=number]"].map((one) =>
            document.querySelector(`.controls ${one}`));
        for (let i = 0; i < 12; i += 1) {
            prompt.selectedIndex = i % 2;
            prompt.dispatchEvent(new Event("change", { bubbles: true }));
            await new Promise(requestAnimationFrame);
            for (const value of ["9", ""]) {
                least.value = value;
                least.dispatchEvent(new Event("input", { bubbles: true }));
                await new Promise(requestAnimationFrame);
            }
        }
        }"""
    )
    assert len(tiles(page)) == LAYERS * HEADS
    until(page, PAINTED)


def test_a_head_tells_its_weights(written, open_page):
    page = open_page(written)
    open_head(page, "L1 H0")  # looks at the previous token
    page.locator(".tokens .token").nth(5).hover()
    weight = f"{round(255 * ARRAYS[0][1, 0, 5, 4]) / 255:.3f}"
    assert page.locator(".viewer .readout").inner_text() == f"“w5” 5 attends to “w4” 4: {weight}."
    first = page.locator(".partners li").first.inner_text()
    assert re.sub(r"\s+", " ", first) == f"“w4” 4 {weight}"
    back = f"{round(255 * ARRAYS[0][1, 0, 6, 5]) / 255:.3f}"
    second = page.locator(".partners div").nth(1).locator("li").first.inner_text()
    assert re.sub(r"\s+", " ", second) == f"“w6” 6 {back}"
    page.locator(".matrix").hover(position={"x": 2, "y": 2})
    assert "“<s>” 0 attends to “<s>” 0: 1.000." in page.locator(".viewer .readout").inner_text()
    codes = np.rint(ARRAYS[0][1, 0] * 255) / 255
    assert ink(page, ".matrix") == pytest.approx(np.sqrt(codes).mean(), abs=3e-3)


def test_lock_and_unlock(written, open_page):
    page = open_page(written)
    open_head(page, "L1 H0")
    tokens, readout = page.locator(".tokens .token"), page.locator(".viewer .readout")
    tokens.nth(5).click()
    assert tokens.nth(5).get_attribute("aria-pressed") == "true"
    tokens.nth(2).hover()
    assert readout.inner_text().startswith("Locked. “w5” 5 attends to “w2” 2:")
    page.get_by_role("button", name="Next head").click()  # the lock stays
    until(page, "document.querySelector('h4').innerText === 'Layer 1, head 1'")
    assert tokens.nth(5).get_attribute("aria-pressed") == "true"
    tokens.nth(5).click()
    assert tokens.nth(5).get_attribute("aria-pressed") == "false"
    tokens.nth(2).hover()
    assert readout.inner_text().startswith("“w2” 2 attends to")


def test_everything_by_keyboard(written, open_page):
    page = open_page(written)
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")  # four heads a row
    assert page.evaluate("document.activeElement.innerText").startswith("L1 H1")
    page.keyboard.press("Enter")
    until(page, "document.activeElement.innerText === 'Layer 1, head 1'")
    page.keyboard.press("ArrowDown")
    until(page, "document.activeElement.innerText === 'Layer 1, head 2'")
    page.keyboard.press("ArrowUp")
    until(page, "document.activeElement.innerText === 'Layer 1, head 1'")
    names = []
    while not page.evaluate("document.activeElement.matches('.token')"):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.innerText"))
        assert len(names) < 12
    assert names[:5] == [
        "Previous head", "Next head", "Pin beside", "Link to this head", "Close",
    ]  # fmt: skip
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    focused = page.locator(".tokens .token[aria-pressed=true]")
    assert focused.inner_text().strip() == "w1"
    page.keyboard.press("ArrowDown")  # the next head, without leaving the token
    until(page, "document.querySelector('h4').innerText === 'Layer 1, head 2'")
    assert page.evaluate("document.activeElement.innerText").strip() == "w1"
    page.keyboard.press("Enter")
    assert focused.count() == 0
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.innerText").startswith("L1 H2")
    assert page.locator(".head").is_hidden()


def test_every_control_is_a_stop_of_the_keyboard(written, open_page):
    """Or belongs to a group that has one stop, whose arrow keys reach the others."""
    page = open_page(written, "#a=all&layer=1&head=1&prompt=1")
    page.locator("h4").wait_for()
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate("window.seen = new Set()")
    for _ in range(150):  # more than there are; from the last it goes on at the first
        page.keyboard.press("Tab")
        page.evaluate("(seen.add(document.activeElement), null)")
    missed = page.evaluate(
        """[...document.querySelectorAll("a, button, input, select, summary, .scroll")].filter(
        one => !seen.has(one) && !one.closest(".wall, .text") && one.checkVisibility())
        .map(one => one.outerHTML)"""
    )
    assert missed == []
    groups = page.evaluate(
        "[...document.querySelectorAll('.wall, .text')].map(g => "
        "[...seen].filter(one => g.contains(one)).length)"
    )
    assert groups == [1] * len(groups)
    assert len(groups) == 4  # the wall, the tokens of the head, two texts with values


def test_a_link_opens_its_head_and_the_head_makes_its_link(written, open_page):
    page = open_page(written, "#a=all&layer=2&head=3&prompt=2")
    page.locator("h4").wait_for()
    assert page.locator("h4").inner_text() == "Layer 2, head 3"
    assert page.get_by_label("Prompt").input_value() == "1"
    assert page.locator(".tokens .token").count() == SIZES[1]
    page.get_by_role("button", name="Previous head").click()
    until(page, "location.hash === '#a=all&layer=2&head=2&prompt=2'")
    page.get_by_label("Prompt").select_option(index=0)
    until(page, "location.hash === '#a=all&layer=2&head=2&prompt=1'")
    assert page.locator(".tokens .token").count() == SIZES[0]
    page.evaluate("location.hash = '#a=all&layer=0&head=1&prompt=99'")
    until(page, "document.querySelector('h4').innerText === 'Layer 0, head 1'")
    for wrong in ("#a=all&layer=9&head=1", "#a=other&layer=1&head=1", "#a=all&head=x", "#%"):
        page.evaluate("address => { location.hash = address }", wrong)
    assert page.locator("h4").inner_text() == "Layer 0, head 1"


def test_the_lines_are_those_above_the_threshold(written, open_page):
    page = open_page(written, "#a=all&layer=1&head=0&prompt=1")
    page.get_by_label("Show as").select_option("lines")
    assert page.locator(".head .matrix").is_hidden()
    level = page.get_by_role("slider")
    for least in (0.3, 0.05):
        level.fill(str(least))
        expected = int((np.rint(ARRAYS[0][1, 0] * 255) / 255 >= least).sum())
        until(page, f"document.querySelectorAll('.head .drawing path').length == {expected}")
        assert f"{expected} lines" in page.locator(".head .controls output").inner_text()
    page.locator(".tokens .token").nth(3).click()
    codes = np.rint(ARRAYS[0][1, 0] * 255) / 255 >= 0.05
    touching = codes[3].sum() + codes[:, 3].sum() - codes[3, 3]
    assert page.locator(".head .drawing path:not(.faint)").count() == touching
    page.get_by_label("Prompt").select_option(index=1)
    until(page, f"document.querySelectorAll('.head .scroll text').length == {2 * SIZES[1] + 2}")
    # A line goes from the row of the query to that of the key.
    starts = page.locator(".head .drawing path").first.get_attribute("d")
    q, k = (float(re.findall(r"[\d.]+", starts)[at]) for at in (1, -1))
    largest = np.rint(ARRAYS[1][1, 0] * 255).argmax()
    assert ((q - 32) / 20, (k - 32) / 20) == divmod(largest, SIZES[1])


def test_the_map_has_its_tokens_on_both_axes(written, open_page):
    page = open_page(written, "#head-L1H0")
    page.locator("h4").wait_for()
    words = page.locator(".head .axes text:not(.title)").all_text_contents()
    assert words == [word for i in range(SIZES[0]) for word in [WORDS[i]] * 2]
    box = page.locator(".head .matrix").bounding_box()
    places = page.evaluate(
        "[...document.querySelectorAll('.head .axes text:not(.title)')].map(t => "
        "[t.getBoundingClientRect().x, t.getBoundingClientRect().y,"
        " t.getBoundingClientRect().width, t.getBoundingClientRect().height])"
    )
    cell = box["height"] / SIZES[0]
    for i in range(SIZES[0]):
        (x, y, width, height), (x2, y2, width2, height2) = places[2 * i : 2 * i + 2]
        assert x + width <= box["x"] and y2 + height2 <= box["y"]
        assert y + height / 2 == pytest.approx(box["y"] + (i + 0.5) * cell, abs=3)
        assert x2 + width2 / 2 == pytest.approx(box["x"] + (i + 0.5) * cell, abs=3)


def test_heads_stand_side_by_side(written, open_page):
    page = open_page(written, "#head-L1H0")
    page.locator("h4").wait_for()
    pin = page.get_by_role("button", name="Pin beside")
    assert page.locator(".pins").is_hidden()
    pin.press("Enter")
    assert pin.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Next head").click()
    until(page, "document.querySelector('h4').innerText === 'Layer 1, head 1'")
    assert pin.get_attribute("aria-pressed") == "false"
    pin.click()
    names = page.locator(".pins figcaption span").all_inner_texts()
    assert names == ["L1 H0 b", "L1 H1 a"]
    for at, head in enumerate((0, 1)):
        codes = np.rint(ARRAYS[0][1, head] * 255) / 255
        until(page, f"document.querySelectorAll('.pins .matrix')[{at}].width === {SIZES[0]}")
        shown = ink(page, f".pins figure:nth-child({at + 1}) .matrix")
        assert shown == pytest.approx(np.sqrt(codes).mean(), abs=3e-3)
    page.get_by_label("Prompt").select_option(index=1)  # those beside follow
    until(page, f"document.querySelectorAll('.pins .matrix')[1].width === {SIZES[1]}")
    page.get_by_label("Show as").select_option("lines")
    until(page, "document.querySelectorAll('.pins .scroll:not([hidden]) path').length > 2")
    page.get_by_role("button", name="Open L1 H0").press("Enter")
    until(page, "document.querySelector('h4').innerText === 'Layer 1, head 0'")
    page.get_by_role("button", name="Remove L1 H0").press("Enter")
    assert page.evaluate("document.activeElement.ariaLabel") == "Open L1 H1"
    assert page.locator(".pins figure").count() == 1
    page.get_by_role("button", name="Close").click()
    assert page.locator(".pins figure").is_visible()  # it outlives the open head
    page.get_by_role("button", name="Remove L1 H1").click()
    assert page.locator(".pins").is_hidden()


@pytest.mark.parametrize("mode", ["map", "lines"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_is_saved(written, open_page, tmp_path, mode, scheme):
    page = open_page(written, "#head-L1H2-prompt2", color_scheme=scheme)
    page.locator("h4").wait_for()
    page.get_by_label("Show as").select_option(mode)
    saved = {}
    for kind in ("SVG", "PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save as {kind}").press("Enter")
        assert download.value.suggested_filename == f"all-L1H2-prompt2.{kind.lower()}"
        saved[kind] = tmp_path / kind
        download.value.save_as(saved[kind])
    root = ElementTree.fromstring(saved["SVG"].read_bytes())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    tags = [one.tag.rpartition("}")[2] for one in root.iter()]
    assert not {"script", "image", "foreignObject", "a", "style"} & set(tags)
    texts = ["".join(one.itertext()) for one in root.iter() if one.tag.endswith("text")]
    assert texts[0].startswith("Layer 1, head 2")
    assert texts.count("</script><sc…") == 2  # on both sides, as text
    codes = np.rint(ARRAYS[1][1, 2] * 255)
    shapes = "rect" if mode == "map" else "path"
    expected = (codes > 0).sum() + 1 if mode == "map" else (codes / 255 >= 0.3).sum()
    assert tags.count(shapes) == expected
    with Image.open(saved["PNG"]) as image:
        width, height = (3 * int(root.get(name)) for name in ("width", "height"))
        assert image.size == (width, height)
        corner = image.convert("RGB").getpixel((0, 0))
        assert corner == ((255, 255, 255) if scheme == "light" else (21, 24, 28))
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10  # it was drawn


def test_a_heads_name_opens_it(written, open_page):
    page = open_page(written, "#head-L2H1-prompt2")
    page.locator("h4").wait_for()
    assert page.locator("h4").inner_text() == "Layer 2, head 1"
    assert page.get_by_label("Prompt").input_value() == "1"
    page.get_by_role("link", name="L0 H3 at the first").click()
    until(page, "document.querySelector('h4').innerText === 'Layer 0, head 3'")
    assert page.get_by_label("Prompt").input_value() == "0"
    page.get_by_role("link", name="L0 H3 at the first").click()  # and again, from elsewhere
    until(page, "document.querySelector('.head').getBoundingClientRect().top < innerHeight")
    for wrong in ("#head-L9H0", "#head-L1", "#head-L1H1-prompt", "#head-LxHy"):
        page.evaluate("address => { location.hash = address }", wrong)
    assert page.locator("h4").inner_text() == "Layer 0, head 3"


def test_tables_sort_and_filter(written, open_page):
    page = open_page(written)
    region = page.get_by_role("region", name="Words")
    cells = lambda at: region.locator(f"tbody tr:visible td:nth-child({at})").all_inner_texts()  # noqa: E731
    before, heading = cells(2), region.get_by_role("columnheader", name="n", exact=True)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    up = cells(2)
    assert (up[0], *up[-3:]) == ("−∞", "13,000.0", "∞", "–")
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert (cells(2)[0], *cells(2)[-2:]) == ("∞", "−∞", "–")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") is None
    assert cells(2) == before
    region.get_by_role("columnheader", name="word").get_by_role("button").click()
    assert list(dict.fromkeys(cells(1))) == ["a", "b9", "b10", "c"]
    box = page.locator(
        ".filter",
        has=page.locator("xpath=following-sibling::div[starts-with(@aria-label, 'Words (')]"),
    )
    box.last.get_by_label("Filter these rows").fill("B1")
    assert set(cells(1)) == {"b10"}
    assert box.last.locator("output").inner_text() == "4 of 16 rows"
    short = page.get_by_role("region", name="A figure")  # four rows: no filter
    assert page.locator(".filter + .scroll").count() == page.locator(".filter").count()
    assert short.locator("xpath=preceding-sibling::p[contains(@class, 'filter')]").count() == 0


def test_tokens_tell_their_value(written, open_page):
    page = open_page(written)
    figure, tokens = page.locator(".shaded"), page.locator(".shaded .token")
    tokens.nth(4).hover()
    assert figure.locator(".readout").inner_text() == "“w4”: 1.091 nats"
    tokens.nth(4).click()
    tokens.nth(6).hover()
    assert figure.locator(".readout").inner_text() == "“w4”: 1.091 nats"
    tokens.nth(4).click()
    page.keyboard.press("ArrowRight")
    assert figure.locator(".readout").inner_text() == "“w5”: 1.364 nats"


def test_hostile_tokens_stay_text(written, open_page):
    page = open_page(written, "#a=all&layer=0&head=2&prompt=2")
    page.locator("h4").wait_for()
    page.get_by_label("Show as").select_option("lines")
    page.get_by_role("slider").fill("0.02")
    page.get_by_role("button", name="Pin beside").click()
    for at in range(SIZES[1]):
        page.locator(".tokens .token").nth(at).focus()
    assert page.locator("main img").count() == 1  # the figure
    assert page.locator("script").count() == 2
    assert ATTACK in page.locator(".head .source").first.inner_text()
    names = page.locator(".tokens .token").all_inner_texts()
    assert names[:2] == ["∅", "</script><script>alert(1)</script>"]
    assert names[-1] == "␣␣"
    assert all(names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "mode"), [(1280, "map"), (400, "map"), (400, "lines")])
def test_axe_finds_nothing_and_nothing_sticks_out(
    written, open_page, violations, scheme, width, mode
):
    page = open_page(written, "#a=all&layer=1&head=1&prompt=2", width=width, color_scheme=scheme)
    page.locator("h4").wait_for()
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.locator(".tokens .token").nth(3).click()
    page.get_by_role("button", name="Pin beside").click()
    page.get_by_label("Show as").select_option(mode)
    until(page, "document.querySelector('.pins .matrix').width > 1 || "
                "document.querySelector('.pins path')")  # fmt: skip
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert dark == (scheme == "dark")


def test_the_pictures_follow_the_colours_of_the_system(written, open_page):
    page = open_page(written, "#a=all&layer=1&head=1&prompt=1", color_scheme="light")
    page.locator("h4").wait_for()
    pixel = "[...document.querySelector('.matrix').getContext('2d').getImageData(0, 0, 1, 1).data]"
    light = page.evaluate(pixel)
    page.emulate_media(color_scheme="dark")
    until(page, f"JSON.stringify({pixel}) !== '{str(light).replace(' ', '')}'")
    assert page.evaluate(pixel)[:3] == [122, 180, 240]


def test_without_scripts_the_tables_are_there(written, open_page):
    page = open_page(written, java_script_enabled=False)
    assert page.get_by_text("The patterns need JavaScript").is_visible()
    assert page.locator("button").count() == 0
    page.get_by_text("The heads as a table").click()
    assert page.get_by_role("region", name="Attention of all heads").is_visible()
    assert page.locator(".shaded .token").count() == sum(SIZES)
    assert page.get_by_role("region", name="Words").is_visible()


def test_pages_by_layer(tmp_path, open_page, violations, monkeypatch):
    monkeypatch.setattr(pages_module, "PAGE_BYTES", 10_000)
    index = report().write(tmp_path / "r")
    page = open_page(index)
    assert len(tiles(page)) == LAYERS * HEADS
    page.locator(".wall").scroll_into_view_if_needed()
    until(page, PAINTED)
    assert violations(page) == []
    page.get_by_label("Prompt").select_option(index=1)
    page.locator(".tile", has_text="L1 H3").press("Enter")
    page.wait_for_url("**/all-layer-01.html#a=all&layer=1&head=3&prompt=2")
    page.locator("h4").wait_for()
    assert page.locator("h4").inner_text() == "Layer 1, head 3"
    assert tiles(page) == [f"L1 H{head}" for head in range(HEADS)]
    assert violations(page) == []
    page.get_by_role("link", name="2", exact=True).click()
    page.wait_for_url("**/all-layer-02.html")
    page.get_by_role("link", name="The whole report").click()
    page.wait_for_url("**/index.html")
    page.evaluate("location.hash = '#a=all&layer=0&head=2&prompt=1'")
    page.wait_for_url("**/all-layer-00.html#a=all&layer=0&head=2&prompt=1")
    page.locator("h4").wait_for()
    assert page.locator("h4").inner_text() == "Layer 0, head 2"
