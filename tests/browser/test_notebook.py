"""A report inside a notebook: a sandboxed frame on a page of another origin, as Jupyter and VS Code
show the output of a cell."""

from __future__ import annotations

import pytest

from interp.report import Report
from tests.browser.conftest import until
from tests.browser.test_viewer import report

pytestmark = pytest.mark.browser
PAGE = '<!doctype html><html lang="en" data-ready=""><title>Notebook</title><h1>Notebook</h1>{cell}'


@pytest.fixture(scope="module")
def made() -> Report:
    return report()


def test_the_viewer_works_inside_a_cell(made, tmp_path, open_page):
    cell = tmp_path / "notebook.html"
    cell.write_text(PAGE.format(cell=made._repr_html_()), encoding="utf-8")
    page = open_page(cell)
    (frame,) = [one for one in page.frames if one != page.main_frame]
    frame.locator(".tile", has_text="L1 H2").click()
    frame.get_by_role("heading", name="Layer 1, head 2").wait_for()
    until(frame, "location.hash === '#a=all&layer=1&head=2&prompt=1'")
    frame.get_by_role("link", name="L0 H3 at the first").click()  # an address within the frame
    frame.get_by_role("heading", name="Layer 0, head 3").wait_for()
    frame.get_by_role("button", name="Pin beside").click()
    frame.get_by_label("Show as").select_option("lines")
    for kind in ("SVG", "PNG"):
        with page.expect_download() as download:
            frame.get_by_role("button", name=f"Save as {kind}").click()
        assert download.value.suggested_filename == f"all-L0H3-prompt1.{kind.lower()}"
    frame.locator(".side a", has_text="Where this comes from").click()
    until(frame, "document.getElementById('_origin').getBoundingClientRect().top < innerHeight")
    frame.get_by_role("button", name="Close").click()
    assert page.url == cell.as_uri()  # the notebook is where it was
    assert len(page.frames) == 2
