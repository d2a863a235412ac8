"""Bytes and time to the first interaction of the attention viewer, beside CircuitsVis and BertViz.

    python benchmarks/report.py [--peers FOLDER] [--libraries FOLDER]

The peers are no dependencies of this project; they are looked for in a folder of their own:

    pip install --no-deps --target FOLDER circuitsvis bertviz "importlib_metadata<8" zipp

CircuitsVis is given the heads of all layers as one list, so that its script stands there once.
BertViz' page loads require.js, jQuery and d3 from the network, which this benchmark does not ask:
what lies in --libraries as require.min.js, jquery.min.js and d3.min.js (npm has them) is given to
it; without them it is not timed.

Timed, in headless chromium, from the start of navigation: the page loads, the first head (of
BertViz: the first token) is clicked, and the frame after the answer has been painted. A pattern is
a random softmax of unequal sharpness, causal.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from measure import machine
from playwright.sync_api import Browser, Page, Route, TimeoutError, sync_playwright

from interp.report import Report, pages

RUNS = 5
ENOUGH = 15.0
"""Seconds past which a page is not opened again."""
PATIENCE = 60.0
"""Seconds past which it is given up."""
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
Write = Callable[[np.ndarray, list[str], Path], Path]


@dataclass(frozen=True)
class Config:
    """Where the peers are."""

    peers: Path | None = None
    """Folder that pip installed the peers into."""
    libraries: Path | None = None
    """Folder with the scripts that BertViz' page asks the network for."""


@dataclass(frozen=True)
class Case:
    """Patterns of one size, and what is hoped for."""

    name: str
    layers: int
    heads: int
    tokens: int
    goal: float | None = None
    """Seconds."""
    page_bytes: int = pages.PAGE_BYTES
    """What a page may weigh before its layers get pages of their own."""

    def patterns(self) -> np.ndarray:
        """[layer head q_pos k_pos] float32."""
        rng = np.random.default_rng(0)
        shape = (self.heads, self.tokens, self.tokens)
        weights = np.empty((self.layers, *shape), np.float32)
        for layer in weights:
            scores = rng.standard_normal(shape, np.float32) * rng.uniform(
                0.5, 5, (self.heads, 1, 1)
            )
            scores[:, ~np.tri(self.tokens, dtype=bool)] = -np.inf
            exp = np.exp(scores - scores.max(-1, keepdims=True))
            layer[:] = exp / exp.sum(-1, keepdims=True)
        return weights


CASES = (
    Case("12 layers × 12 heads × 64 tokens", 12, 12, 64, goal=1.0),
    Case("1 layer × 12 heads × 256 tokens", 1, 12, 256),
    Case("32 layers × 32 heads × 256 tokens", 32, 32, 256, goal=3.0),
    Case("the same, a page per layer", 32, 32, 256, goal=3.0, page_bytes=1_000_000),
)
PEERS_MOST = 50_000_000
"""Numbers that the peers are still asked to write as text."""


def ours(patterns: np.ndarray, tokens: list[str], folder: Path) -> Path:
    report = Report("Benchmark", "How large, how fast?")
    report.section("Attention").attention(patterns, tokens, "Attention", name="attention")
    return report.write(folder / "ours")


def circuitsvis(patterns: np.ndarray, tokens: list[str], folder: Path) -> Path:
    from circuitsvis.attention import attention_heads

    heads = patterns.reshape(-1, *patterns.shape[2:])
    return _page(folder / "circuitsvis.html", attention_heads(heads, tokens).local_src)


def bertviz(patterns: np.ndarray, tokens: list[str], folder: Path) -> Path:
    _without_ipython()
    from bertviz.head_view import head_view

    layers = list(torch.as_tensor(patterns)[:, None])
    return _page(folder / "bertviz.html", head_view(layers, tokens, html_action="return").data)


def _page(path: Path, body: str) -> Path:
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{body}", encoding="utf-8")
    return path


def _without_ipython() -> None:
    """BertViz hands its page to IPython's HTML, of which it needs no more than this."""
    held = lambda data: types.SimpleNamespace(data=data)  # noqa: E731
    display = types.ModuleType("IPython.display")
    vars(display).update(display=print, Javascript=held, HTML=held)
    sys.modules.setdefault("IPython", types.ModuleType("IPython"))
    sys.modules.setdefault("IPython.display", display)


# What is clicked first, and what must then be there.
TOOLS: dict[str, tuple[Write, str, str]] = {
    "interp": (ours, ".tile", ".head:not([hidden])"),
    "CircuitsVis": (circuitsvis, "canvas", "canvas"),
    "BertViz": (bertviz, "#vis text", "#vis line, #vis path"),
}


def first_interaction(
    browser: Browser, page: Path, click: str, answer: str, libraries: Path | None
) -> str:
    """Two cells: the median seconds over `RUNS` fresh contexts, or fewer where the first took very
    long, and the processor time of the page's main thread, which a busy machine stretches less."""
    times: list[float] = []
    busy: list[float] = []
    while len(times) < RUNS and not (times and times[-1] > ENOUGH):
        with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
            opened = context.new_page()
            opened.set_default_timeout(1000 * PATIENCE)
            opened.route("http*://**/*", lambda route: _from_disk(route, libraries))
            session = context.new_cdp_session(opened)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            try:
                times.append(_timed(opened, page, click, answer))
            except TimeoutError:
                return f"not within {PATIENCE:.0f} s | –"
            found = session.send("Performance.getMetrics")["metrics"]
            busy.append(next(one["value"] for one in found if one["name"] == "TaskDuration"))
    runs = f"{len(times)} runs" if len(times) > 1 else "1 run"
    wall = f"{statistics.median(times):.2f} s ({runs}, {min(times):.2f}–{max(times):.2f})"
    return f"{wall} | {statistics.median(busy):.2f} s"


def _timed(opened: Page, page: Path, click: str, answer: str) -> float:
    started = time.perf_counter()
    opened.goto(page.as_uri())
    opened.locator(click).first.click(force=True)
    opened.locator(answer).first.wait_for(state="attached")
    opened.evaluate(FRAME)
    return time.perf_counter() - started


def _from_disk(route: Route, libraries: Path | None) -> None:
    name = route.request.url.rsplit("/", 1)[1].removesuffix(".js") + ".js"
    if libraries is not None and (libraries / name).is_file():
        route.fulfill(path=libraries / name)
    else:
        route.abort()


def rows(browser: Browser, case: Case, config: Config, folder: Path) -> list[str]:
    """The lines of a table for one case."""
    pages.PAGE_BYTES = case.page_bytes
    patterns, tokens = case.patterns(), [f" token{i}" for i in range(case.tokens)]
    lines = []
    for name, (write, click, answer) in TOOLS.items():
        goal = f"{case.goal:.0f} s" if case.goal and name == "interp" else "–"
        if name != "interp" and (config.peers is None or patterns.size > PEERS_MOST):
            lines.append(f"| {case.name} | {name} | not run | – | – | – |")
            continue
        page = write(patterns, tokens, folder)
        parts = sorted(page.parent.glob("*.html")) if name == "interp" else [page]
        size = sum(one.stat().st_size for one in parts)
        timed = parts if len(parts) == 1 else [page, parts[0]]  # the index and one layer
        for one in timed:
            # On the index of several pages a click leaves the page: the layer's page is the answer.
            seconds = first_interaction(
                browser, one, click, "h1" if one is page and len(parts) > 1 else answer,
                config.libraries,
            )  # fmt: skip
            what = f"{one.stat().st_size / 1e6:.2f} MB"
            if len(parts) > 1:
                what = f"{one.name}: {what} (all {len(parts)} pages {size / 1e6:.1f} MB)"
            lines.append(f"| {case.name} | {name} | {what} | {seconds} | {goal} |")
    return lines


def main(config: Config) -> None:
    """Print the table."""
    if config.peers is not None:
        sys.path.append(str(config.peers))
    print(f"{machine()}\n")
    print("| patterns | viewer | size | first interaction | main thread | goal ≤ |")
    print("| --- | --- | --- | --- | --- | --- |")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for case in CASES:
            for line in rows(browser, case, config, Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
