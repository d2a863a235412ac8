"""A page of one head in a real browser: it opens on its head, and the keyboard reaches it all."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp.report import Report
from tests.browser.conftest import until
from tests.patterns import patterns, words
from tests.test_report import HOSTILE

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    report = Report("All heads", "Where do they look?", analysis="test")
    layer, head = np.indices((2, 3)).reshape(2, -1)
    scores = pd.DataFrame({"layer": layer, "head": head, "label": "</script><b>x"})
    arrays = [patterns(2, 3, 9), patterns(2, 3, len(HOSTILE), causal=False)]
    shown = report.section("Attention").attention(
        arrays, [words(9), list(HOSTILE)], "All of them", scores=scores, name="all"
    )
    for one in ((0, 1), (1, 2)):
        page = report.page(f"heads/L{one[0]}H{one[1]}.html", f"L{one[0]} H{one[1]}", "What?")
        page.section("Where it looks").one_head(shown, *one, "Its attention")
    return report.write(tmp_path_factory.mktemp("pages") / "r").parent


def test_the_page_opens_on_its_head_and_stays_there(folder, open_page):
    page = open_page(folder / "heads" / "L1H2.html")
    page.get_by_role("heading", name="Layer 1, head 2").wait_for()
    assert page.locator(".wall").is_hidden()
    assert page.locator("header nav a").all_inner_texts() == ["The whole report", "Previous: L0 H1"]
    until(page, "document.querySelector('.matrix').width === 9")
    token = page.locator(".token").last
    token.focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.at") == "7"
    page.keyboard.press("Enter")
    assert "Locked" in page.locator(".readout").inner_text()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")  # there is no wall to go back to
    assert page.get_by_role("heading", name="Layer 1, head 2").is_visible()
    page.get_by_label("Prompt").select_option("1")
    until(page, f"document.querySelector('.matrix').width === {len(HOSTILE)}")


def test_links_lead_from_the_report_to_its_pages(folder, open_page):
    page = open_page(folder / "index.html")
    page.locator("nav[aria-label='Pages of this report'] a").first.click()
    page.get_by_role("heading", name="Layer 0, head 1").wait_for()
    page.get_by_role("link", name="Next: L1 H2").click()
    page.get_by_role("heading", name="Layer 1, head 2").wait_for()
