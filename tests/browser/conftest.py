"""The system's chromium, offline: a page that asks for anything but itself, or logs an error, fails
its test."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="browser: playwright is not installed")
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
Open = Callable[..., "sync_api.Page"]


def until(page: sync_api.Page, expression: str, seconds: float = 30) -> None:
    """Wait for an expression to hold; playwright's own way needs eval, which our policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"never came true: {expression}"
        page.wait_for_timeout(20)


@pytest.fixture(scope="session")
def browser() -> Iterator[sync_api.Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("browser: there is no chromium")
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser) -> Iterator[Open]:
    """Opens a file: open_page(path, address="#…", width=1280, color_scheme="light", …)."""
    faults: list[str] = []
    contexts = []

    def note(message: str) -> None:
        if "willReadFrequently" not in message:  # said of the tests' own look at a canvas
            faults.append(f"console: {message}")

    def go(
        path: Path, address: str = "", *, width: int = 1280, height: int = 800, **options
    ) -> sync_api.Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: note(message.text))
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        folder = path.parent.as_uri()

        def judge(route):
            page_of_report = route.request.is_navigation_request()
            if page_of_report and route.request.url.startswith(folder):
                route.continue_()
            else:
                faults.append(f"request: {route.request.url[:200]}")
                route.abort()

        page.route("**/*", judge)
        page.goto(path.as_uri() + address)
        if options.get("java_script_enabled", True):
            until(page, "'ready' in document.documentElement.dataset")
        return page

    yield go
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def violations() -> Callable[[sync_api.Page], list[str]]:
    """What axe-core finds wrong with a page, by rule and place."""
    source = AXE.read_text(encoding="utf-8")

    def find(page: sync_api.Page) -> list[str]:
        page.evaluate(source)
        found = page.evaluate("axe.run()")
        assert len(found["passes"]) > 10  # it did look
        return [
            f"{one['id']}: {node['target']} {node['failureSummary']}"
            for one in found["violations"]
            for node in one["nodes"]
        ]

    return find
